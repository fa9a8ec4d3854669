#!/usr/bin/env bash
# From a clean clone to a table of convergence:
#
#     ./jobscripts/quickstart.sh [RESULTS_FOLDER]
#
# Makes a venv (.venv/quickstart in the clone, ignored by git; another place with
# KEYSTONE_QUICKSTART_VENV), installs keystone_mpi with an MPI from a wheel, and runs the
# demo sweep on three ranks. Run it again: it installs nothing twice, and the sweep
# continues where it was, which for a finished sweep means that there is nothing to do.
set -euo pipefail

fail() { echo "quickstart: error: $*" >&2; exit 2; }
say() { echo "==> $*"; }

repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${KEYSTONE_QUICKSTART_VENV:-$repo/.venv/quickstart}
results=${1:-$venv/results}
ranks=3

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3 python3.14; do
        # A name on PATH may be a stand-in that runs nothing (pyenv): ask it.
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer found (tried python3.13, python3.12, python3.11, python3, python3.14);" \
        "install one and put it on PATH"
}

# The package is installed from a copy, so that building it leaves nothing in the clone.
install_package() {
    local python source stamp
    stamp=$(cd "$repo" && cat pyproject.toml $(find keystone_mpi -name '*.py' | LC_ALL=C sort) | sha256sum)
    if [ -x "$venv/bin/mpiexec" ] && [ "$(cat "$venv/.keystone-stamp" 2>/dev/null)" = "$stamp" ] &&
        "$venv/bin/python" -c 'import mpi4py, h5py' >/dev/null 2>&1; then
        say "keystone_mpi is installed in $venv"
        return
    fi
    python=$(find_python)
    say "installing keystone_mpi with MPICH into $venv ($("$python" --version))"
    mkdir -p "$(dirname "$venv")" 2>/dev/null || fail "cannot write $(dirname "$venv"); set KEYSTONE_QUICKSTART_VENV"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        rm -rf "$venv/bin" "$venv/lib" "$venv/pyvenv.cfg"
        "$python" -m venv "$venv" ||
            fail "$python cannot make a venv in $venv; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    rm -f "$venv/.keystone-stamp"
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    (cd "$repo" && cp -r pyproject.toml README.md LICENSE keystone_mpi "$source"/)
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$source[mpich]" ||
        fail "pip could not install keystone_mpi[mpich]; what pip said is above"
    rm -rf "$source"
    trap - EXIT
    echo "$stamp" >"$venv/.keystone-stamp"
}

install_package
mkdir -p "$results" 2>/dev/null || fail "cannot write the results folder $results; name another: $0 FOLDER"
results=$(cd "$results" && pwd -P)

# The demo runs in the results folder, as one's own sweep would. If the demo's files
# changed since the last time, the old results are moved aside (--fresh) and kept.
fresh=()
for file in heat.py poisson.toml convergence.py; do
    if ! cmp -s "$repo/jobscripts/demo/$file" "$results/$file"; then
        cp "$repo/jobscripts/demo/$file" "$results/$file"
        if [ "$file" != convergence.py ] && [ -e "$results/poisson.h5" ]; then fresh=(--fresh); fi
    fi
done

export PATH="$venv/bin:$PATH"
cd "$results"
say "mpiexec -n $ranks keystone-mpi run poisson.toml${fresh[0]+ --fresh}"
"$venv/bin/mpiexec" -n "$ranks" "$venv/bin/keystone-mpi" run poisson.toml ${fresh[@]+"${fresh[@]}"} </dev/null ||
    fail "the demo sweep did not end well (exit code $?); see: $venv/bin/keystone-mpi doctor"
say "python convergence.py poisson.h5"
"$venv/bin/python" convergence.py poisson.h5 || fail "the demo's results are not what they should be"
cat <<END

Results:   $results/poisson.h5
Look at:   $venv/bin/keystone-mpi status $results/poisson.h5
           $venv/bin/keystone-mpi show $results/poisson.h5 0
Your turn: source $venv/bin/activate, then edit a copy of $results/poisson.toml
END
