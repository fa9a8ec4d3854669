"""How solvers are started and heard: setup, prefix, ranks, own tools, results, progress."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from solvers_support import IN_CI, SYSTEM_MPIEXEC, has_system_openmpi, venv_bin

pytestmark = pytest.mark.multirank

RANKS = """
import os, sys
from mpi4py import MPI
world = MPI.COMM_WORLD
from keystone_solver import report_result
report_result(ranks=world.allreduce(1), arguments=" ".join(sys.argv[1:]),
              threads=os.environ["OMP_NUM_THREADS"], cpus=len(os.sched_getaffinity(0)))
"""


def sweep(folder: Path, text: str, name: str = "s.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def results(path: Path) -> dict[str, list]:
    found: dict[str, list] = {}
    with h5py.File(path) as file:

        def keep(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = (item.asstr()[:] if item.dtype.kind == "O" else item[:]).tolist()

        if "results" in file:
            file["results"].visititems(keep)
    return found


# --- setup and prefix ----------------------------------------------------------------------------


def test_setup_runs_once_per_worker_and_every_solver_has_its_environment(mpiexec, tmp_path: Path) -> None:
    sweep(
        tmp_path,
        """
[sweep]
command = ["./say"]
setup = ["echo $$ >> setups.txt", "export COLOUR='deep blue'", "source ./more.sh"]
[params]
x = [1, 2, 3, 4, 5, 6]
""",
    )
    (tmp_path / "say").write_text(
        "#!/bin/sh\n" + """printf '{"colour": "%s", "path": "%s"}' "$COLOUR" "$(command -v tool)"\n"""
    )
    (tmp_path / "say").chmod(0o755)
    (tmp_path / "more.sh").write_text('export PATH="$PWD/bin:$PATH"\n')
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    mpiexec(["keystone-mpi", "run", "s.toml", "--slots", "4"], n=3).check()
    found = results(tmp_path / "s.h5")
    assert found["colour"] == ["deep blue"] * 6
    assert found["path"] == [str(tool)] * 6
    assert len((tmp_path / "setups.txt").read_text().split()) == 2  # two workers
    with h5py.File(tmp_path / "s.h5") as file:
        fingerprint = json.loads(file["fingerprint"].asstr()[()])
    assert "deep blue" in fingerprint["setup"]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["echo module not there >&2", "false"], "module not there"),
        (["echo before", "exit 3"], "before"),
        (["true"], "'no-such-solver' is not on PATH"),
    ],
)
def test_a_failing_setup_ends_the_run_at_once(mpiexec, tmp_path: Path, lines: list[str], said: str) -> None:
    written = f"""
[sweep]
command = ["no-such-solver"]
setup = {json.dumps(lines)}
[params]
x = [1, 2, 3]
"""
    sweep(tmp_path, written)
    done = mpiexec(["keystone-mpi", "run", "s.toml"], n=2).check(2)
    assert said in done.stdout + done.stderr
    assert "cannot run here" in done.stderr
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["tasks/state"][:].tolist() == [0, 0, 0]  # pending: no task was spent on it
    # Mended, the same command goes on: nothing was run that could be mixed with it.
    sweep(tmp_path, written.replace("no-such-solver", "true").replace(json.dumps(lines), '["true"]'))
    mpiexec(["keystone-mpi", "run", "s.toml"], n=2).check()


def test_a_prefix_stands_before_every_command(keystone, tmp_path: Path) -> None:
    sweep(
        tmp_path,
        """
[sweep]
command = ["sh", "-c", 'echo "{{\\"inside\\": \\"$INSIDE\\"}}"']
prefix = ["env", "INSIDE=image-{x}"]
[params]
x = [1, 2]
""",
    )
    keystone(["run", "s.toml"]).check()
    assert results(tmp_path / "s.h5")["inside"] == ["image-1", "image-2"]


# --- ranks ---------------------------------------------------------------------------------------


def test_ranks_take_cores_and_come_from_a_parameter(mpiexec, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    sweep(
        tmp_path,
        """
[sweep]
tool = "python"
script = "ranks.py"
[params]
k = [1, 2, 3]
bind-to = ["none"]
[task]
launcher = "mpiexec"
ranks = "{k}"
threads = 2
""".replace("bind-to", "bind_to"),
    )
    done = mpiexec(["keystone-mpi", "run", "s.toml", "--slots", "4"], n=2).check(1)
    assert "it needs 6 cores; the largest worker has 4" in done.stdout
    found = results(tmp_path / "s.h5")
    assert found["ranks"][:2] == [1, 2]
    assert found["threads"][:2] == ["2", "2"]
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["tasks/state"][:].tolist() == [2, 2, 3]


def test_a_launcher_leaves_the_solvers_arguments_alone(mpiexec, tmp_path: Path) -> None:
    # Open MPI 5's mpiexec rewrites what looks like its own, even behind the program's name.
    (tmp_path / "ranks.py").write_text(RANKS)
    arguments = ["--bind-to", "x", "--map-by", "{k}", "-n", "7", "--", "it's", "--display-map"]
    sweep(
        tmp_path,
        f"""
[sweep]
command = {json.dumps([sys.executable, "ranks.py", *arguments])}
[params]
k = [5]
[task]
launcher = "mpiexec"
ranks = 2
""",
    )
    mpiexec(["keystone-mpi", "run", "s.toml", "--slots", "2"], n=2).check()
    found = results(tmp_path / "s.h5")
    assert found["arguments"] == ["--bind-to x --map-by 5 -n 7 -- it's --display-map"]
    assert found["ranks"] == [2]
    done = mpiexec(["keystone-mpi", "rerun", "s.h5", "0", "--print"], n=1).check()
    assert "-n 2" in done.stdout
    assert "mpiexec" in done.stdout


def test_a_shell_line_starts_its_ranks_by_keystone_mpiexec(mpiexec, tmp_path: Path) -> None:
    (tmp_path / "ranks.py").write_text(RANKS)
    (tmp_path / "s.toml").write_text(
        f"""
[sweep]
shell = true
command = "cd . && $KEYSTONE_MPIEXEC {sys.executable} ranks.py {{k}}"
[params]
k = [1]
[task]
launcher = "mpiexec"
launcher_path = "{Path(sys.executable).parent}/mpiexec"
ranks = 2
"""
    )
    mpiexec(["keystone-mpi", "run", "s.toml", "--slots", "2"], n=2).check()
    assert results(tmp_path / "s.h5")["ranks"] == [2]


def test_a_solver_without_its_mpiexec_is_refused(keystone, tmp_path: Path, mpi_kind: str) -> None:
    other = "openmpi" if mpi_kind == "mpich" else "mpich"
    python = venv_bin(other) / "python"
    if not python.exists() and not IN_CI:
        pytest.skip(f".venv/{other} is not there")
    (tmp_path / "ranks.py").write_text(RANKS)
    sweep(
        tmp_path,
        f"""
[sweep]
tool = "python"
script = "ranks.py"
python = "{python}"
[params]
k = [1]
[task]
launcher = "mpiexec"
ranks = 2
""",
    )
    # The mpiexec on PATH is ours; the solver's own is found beside its library.
    keystone(["run", "s.toml", "--slots", "2"]).check()
    assert results(tmp_path / "s.h5")["ranks"] == [2]


@pytest.mark.skipif(not has_system_openmpi() and not IN_CI, reason=f"no Open MPI at {SYSTEM_MPIEXEC}")
def test_the_mpiexec_of_the_solvers_library_is_found() -> None:
    from keystone_mpi.execution.mpi_launch import NoLauncherError, find_rank_launcher

    env = dict(os.environ, PATH=f"{venv_bin('mpich')}:/usr/bin:/bin")
    launcher = find_rank_launcher("mpiexec", "", ("--verbose",), 1, "/usr/bin/mpirun.openmpi", env)
    assert launcher.argv[0].startswith("/usr/bin/mpi")
    with pytest.raises(NoLauncherError, match="no mpiexec"):
        find_rank_launcher("mpiexec", "", (), 1, "true", {"PATH": "/nonexistent"})


# --- srun ----------------------------------------------------------------------------------------


def test_srun_is_refused_outside_an_allocation(keystone, tmp_path: Path) -> None:
    sweep(
        tmp_path,
        '[sweep]\ncommand = ["true"]\n[params]\nx = [1]\n[task]\nlauncher = "srun"\nranks = 2\n',
    )
    done = keystone(["run", "s.toml"], env={"SLURM_JOB_ID": ""} if "SLURM_JOB_ID" in os.environ else None)
    done.check(2)
    assert "SLURM_JOB_ID is not set" in done.stderr
    assert not (tmp_path / "s.h5").exists()


# --- results and progress ------------------------------------------------------------------------


def test_report_result_takes_numbers_texts_and_arrays(keystone, tmp_path: Path) -> None:
    (tmp_path / "solver.py").write_text(
        """
import sys
from keystone_solver import report_result
report_result(energy=1.5, steps=3, label="a", ok=True, missing=None, box={"x": 1.0, "y": [1, 2, 3]})
report_result(energy=float("nan"), list2=[[1.0, 2.0], [3.0, 4.0]])
assert "numpy" not in sys.modules
if "--x" in sys.argv and sys.argv[sys.argv.index("--x") + 1] == "2":
    import numpy as np
    report_result(energy=np.float32(2.5), u=np.arange(6.0).reshape(2, 3).T, n=np.int64(7), z=np.array(4.0))
"""
    )
    sweep(tmp_path, '[sweep]\ntool = "python"\nscript = "solver.py"\n[params]\nx = [1, 2]\n')
    keystone(["run", "s.toml", "--slots", "1"]).check()
    found = results(tmp_path / "s.h5")
    assert np.isnan(found["energy"][0])
    assert found["energy"][1] == 2.5
    assert found["steps"] == [3, 3]
    assert found["label"] == ["a", "a"]
    assert found["box.y"] == [[1, 2, 3]] * 2
    assert found["list2"][1] == [[1.0, 2.0], [3.0, 4.0]]
    assert found["u"][1] == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert found["n"][1] == 7
    assert found["z"][1] == 4.0


def test_progress_is_seen_from_another_shell(
    mpiexec, keystone, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    (tmp_path / "slow.py").write_text(
        """
import pathlib, time
from keystone_solver import report_progress
report_progress(0.4)
while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""
    )
    sweep(
        tmp_path,
        """
[sweep]
command = ["sh", "-c", 'if [ {x} = 0 ]; then exec python slow.py; else echo KEYSTONE_PROGRESS 0.25; '
until_go]
[params]
x = [0, 1]
""".replace("'\nuntil_go]", "while [ ! -e go ]; do sleep 0.05; done; fi']"),
    )
    # python by its own name inside a shell line: the module's folder comes with $PYTHONPATH all the same.
    path = Path(__file__).parents[2] / "keystone_mpi" / "for_solvers"
    job = mpiexec.start(["keystone-mpi", "run", "s.toml", "--slots", "2"], n=2, env={"PYTHONPATH": str(path)})

    def seen() -> bool:
        done = keystone(["status", "s.h5", "--json"])
        return done.returncode == 0 and json.loads(done.stdout)["task_progress"] == {"0": 0.4, "1": 0.25}

    wait_until(seen, timeout_s=30, interval_s=0.3)
    assert "task 0 at 40%" in keystone(["status", "s.h5"]).check().stdout
    (tmp_path / "go").touch()
    job.wait().check()
    assert json.loads(keystone(["status", "s.h5", "--json"]).check().stdout)["task_progress"] == {}


# --- tools ---------------------------------------------------------------------------------------


def test_a_tool_of_the_users_own(keystone, tmp_path: Path) -> None:
    (tmp_path / "deck.txt").write_text("deck\n")
    (tmp_path / "solve").write_text('#!/bin/sh\necho "deck $(cat $1) $2 $3 $4 $MODE"; echo "peak = 4.5"\n')
    (tmp_path / "solve").chmod(0o755)
    sweep(
        tmp_path,
        """
[tools.mine]
command = ["./solve", "{script}", "{parameters}", "end={b}"]
each_parameter = ["{name}:{value}"]
env = { MODE = "fast-{a}" }
collect = { peak = { regex = 'peak = (\\S+)', type = "float" }, said = { regex = '^deck (.*)$' } }
[sweep]
tool = "mine"
script = "deck.txt"
[params]
a = [1]
b = [2, 3]
[collect]
said = { regex = 'deck deck (.*)' }
""",
    )
    keystone(["run", "s.toml"]).check()
    found = results(tmp_path / "s.h5")
    assert found["peak"] == [4.5, 4.5]
    assert found["said"] == ["a:1 b:2 end=2 fast-1", "a:1 b:3 end=3 fast-1"]


def test_a_missing_solver_is_refused_before_the_run(keystone, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("sh", "env"):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    env = {"PATH": str(tmp_path / "bin"), "CONDA_PREFIX": ""}
    (tmp_path / "in.x").write_text("")
    cases = {
        "lammps": ('tool = "lammps"\nscript = "in.x"\n', "apt-get install lammps"),
        "openfoam": ('tool = "openfoam"\nscript = "in.x"\n', "apt-get install openfoam"),
        "fenicsx": (
            f'tool = "fenicsx"\nscript = "in.x"\npython = "{sys.executable}"\n',
            "apt-get install python3-dolfinx",
        ),
    }
    for name, (text, install) in cases.items():
        sweep(tmp_path, f"[sweep]\n{text}[params]\nx = [1]\n", f"{name}.toml")
        done = keystone(["run", f"{name}.toml"], env=env).check(2)
        assert install in done.stderr
        assert not (tmp_path / f"{name}.h5").exists()
    report = json.loads(keystone(["tools", "--json"], env=env).check().stdout)
    said = {tool["tool"]: tool for tool in report["tools"]}
    assert not said["lammps"]["found"]
    assert "apt-get install lammps" in said["lammps"]["install"]
    assert "for lammps: apt-get" in keystone(["doctor"], env=env, timeout_s=90).stdout


def test_another_interpreter_does_not_inherit_ours(keystone, tmp_path: Path) -> None:
    (tmp_path / "say.py").write_text(
        "import os, json; print(json.dumps({'path': os.environ.get('PYTHONPATH', ''), "
        "'home': os.environ.get('PYTHONHOME', 'none')}))"
    )
    other = tmp_path / "python-of-mine"
    other.write_text('#!/bin/sh\nexec /usr/bin/env python "$@"\n')
    other.chmod(0o755)
    (tmp_path / "lib").mkdir()
    env = {"PYTHONPATH": str(tmp_path / "lib")}
    for name, line, kept in (("ours", "", True), ("other", f'python = "{other}"\n', False)):
        sweep(
            tmp_path,
            f'[sweep]\ntool = "python"\nscript = "say.py"\n{line}[params]\nx = [1]\n',
            f"{name}.toml",
        )
        keystone(["run", f"{name}.toml"], env=env).check()
        path = results(tmp_path / f"{name}.h5")["path"][0]
        assert (str(tmp_path / "lib") in path) is kept
        assert path.endswith("for_solvers")
