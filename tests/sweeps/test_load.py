"""A good sweep file: what it means, that its spec means the same, and how it changes."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.core.model import RetryBudget
from keystone_mpi.sweeps.fingerprint import fingerprint_difference
from keystone_mpi.sweeps.load import load_sweep, sweep_from_spec
from keystone_mpi.sweeps.options import parse_duration, parse_memory
from keystone_mpi.sweeps.sweep import Sweep, preview
from keystone_mpi.tools.recipe import CollectRule, SuccessRule
from keystone_mpi.tools.render import RenderContext, Renderer

ISSUE = r"""
[sweep]
name = "poisson"
command = ["python", "heat.py", "--problem", "poisson", "--size", "{mesh_size}", "--kappa", "{kappa}", "{h}"]
where = "mesh_size * kappa < 100"
derived = { h = "1 / mesh_size" }
repeat = 5

[params]
mesh_size = [16, 32, 64]
kappa = { linspace = [0.5, 2.0, 4] }

[task]
timeout = "10min"
retries = 1
memory = "2GiB"
keep_output = "tail"

[collect]
residual = { regex = 'residual = (\S+)', type = "float" }

[success]
finite = ["residual"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "heat.py").write_text("print('{}')\n")
    return tmp_path


def load(folder: Path, text: str, name: str = "s.toml") -> Sweep:
    (folder / name).write_text(text)
    return load_sweep(folder / name, start_dir=folder)


def argv_of(sweep: Sweep, k: int = 0) -> tuple[str, ...]:
    return preview(sweep, k + 1)[k][1]


def test_the_sweep_of_the_issue(folder: Path) -> None:
    sweep = load(folder, ISSUE)
    assert (sweep.name, sweep.text, len(sweep)) == ("poisson", ISSUE, 55)
    assert sweep.warnings == []
    assert sweep.uniform
    assert sweep.space.params(0) == {"mesh_size": 16, "kappa": 0.5, "h": 0.0625, "replicate": 0}
    assert sweep.space.params(54) == {"mesh_size": 64, "kappa": 1.5, "h": 1 / 64, "replicate": 4}
    assert sweep.space.kinds() == {"mesh_size": "int", "kappa": "float", "h": "float", "replicate": "int"}
    request = sweep.request(7, 70)
    assert (request.index, request.cores, request.memory_bytes, request.timeout_s) == (70, 1, 2**31, 600.0)
    assert request.budget == RetryBudget(failed=1, timed_out=0, out_of_memory=0, worker_lost=2)
    assert sweep.recipe.collect == (CollectRule("residual", r"residual = (\S+)", type="float"),)
    assert sweep.recipe.success == SuccessRule(("residual",))
    assert preview(sweep, 2)[1] == (
        "1",
        ("python", "heat.py", "--problem", "poisson", "--size", "16", "--kappa", "0.5", "0.0625"),
    )
    assert len(preview(sweep, 1000)) == 55


def test_json_of_the_same_shape_is_the_same_sweep(folder: Path) -> None:
    shape = {
        "sweep": {"command": ["python", "heat.py", "{a}"], "where": "a < 3"},
        "params": {"a": {"range": [0, 9, 1]}},
    }
    toml = (
        "[sweep]\ncommand = ['python', 'heat.py', '{a}']\nwhere = 'a < 3'\n"
        "[params]\na = { range = [0, 9, 1] }\n"
    )
    one, other = load(folder, json.dumps(shape), "s.json"), load(folder, toml)
    assert one.space_digest == other.space_digest
    assert one.fingerprint == other.fingerprint
    assert one.name == "s"


values: st.SearchStrategy[Any] = st.one_of(
    st.lists(st.integers(-9, 9), min_size=1, max_size=4, unique=True),
    st.lists(st.floats(-9, 9, allow_subnormal=False), min_size=1, max_size=4, unique=True),
    st.lists(st.text("ab{}\"'\\é ", max_size=4), min_size=1, max_size=4, unique=True),
    st.builds(lambda a, n: {"linspace": [a, a + 1.5, n]}, st.integers(-5, 5), st.integers(2, 6)),
    st.builds(lambda a, n: {"range": [a, a + n, 0.5]}, st.integers(-5, 5), st.integers(1, 4)),
    st.builds(lambda n: {"logspace": [0.01, 10.0, n]}, st.integers(2, 6)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    params=st.dictionaries(st.sampled_from(["p", "q", "r"]), values, min_size=1),
    n=st.integers(0, 5),
    method=st.sampled_from(["random", "lhs", "sobol"]),
    repeat=st.sampled_from([1, 3]),
    table=st.booleans(),
    where=st.sampled_from(["", "task != 1", "d < 2"]),
    seed=st.integers(0, 99),
)
def test_a_stored_spec_is_the_same_sweep(
    folder: Path,
    params: dict[str, Any],
    n: int,
    method: str,
    repeat: int,
    table: bool,
    where: str,
    seed: int,
) -> None:
    shape: dict[str, Any] = {
        "sweep": {
            "command": ["python", "heat.py"],
            "repeat": repeat,
            "seed": seed,
            "derived": {"d": "sqrt(task)"},
        },
        "params": params,
        "zip": {"task": [0, 1, 2], "label": ["x", "{", "'"]},
        "task": {"cores": "{ranks}", "priority": "{task}", "workdir": "task"},
        "files": {"in": {"template": "deck.in"}},
    }
    (folder / "deck.in").write_text("{task} {{}}\n")
    if where:
        shape["sweep"]["where"] = where
    if n:
        ranges = {
            "u": [0, 1],
            "v": {"low": 0.1, "high": 9, "scale": "log"},
            "w": {"low": 0, "high": 99, "type": "int"},
        }
        shape["sample"] = {"method": method, "n": n, "seed": seed, "ranges": ranges}
    if table:
        (folder / "points.csv").write_text("ranks,flag,name\n1,true,a b\n2,false,é\n")
        shape["table"] = {"file": "points.csv"}
    else:
        shape["zip"]["ranks"] = [1, 2, 4]
    sweep = load(folder, json.dumps(shape), "s.json")
    for path in folder.iterdir():
        path.unlink()
    stored = sweep_from_spec(sweep.spec, sweep.text)
    (folder / "heat.py").write_text("print('{}')\n")
    assert stored.spec == sweep.spec
    assert stored.recipe == sweep.recipe
    assert stored.recipe.files["in"].text == "{task} {{}}\n"
    assert (stored.name, stored.text, stored.source_path) == (sweep.name, sweep.text, sweep.source_path)
    assert (stored.fingerprint, stored.warnings) == (sweep.fingerprint, sweep.warnings)
    assert stored.space_digest == sweep.space_digest
    assert len(stored) == len(sweep)
    for k in range(len(sweep)):
        assert stored.space.params(k) == sweep.space.params(k)
        assert stored.seed(k) == sweep.seed(k)
        assert stored.request(k) == sweep.request(k)
        assert sweep.space.index_of(sweep.space.params(k)) == k
    priorities = sweep.priorities(0, len(sweep))
    assert priorities.tolist() == [sweep.request(k).priority for k in range(len(sweep))]


def test_options_come_from_parameters(folder: Path) -> None:
    sweep = load(
        folder,
        "[sweep]\ncommand = ['python', 'heat.py', '{n}']\nderived = { c = 'n // 4' }\n"
        "[zip]\nn = [4, 8]\nmem = ['1GB', '512MiB']\nlimit = ['90s', '1h']\np = [1.5, -2]\n"
        "[task]\ncores = '{c}'\nmemory = '{mem}'\ntimeout = '{limit}'\npriority = '{p}'\ngpus = 1\n"
        "retries = { failed = 3, timeout = 1, memory = 2, lost = 0 }\n",
    )
    assert not sweep.uniform
    assert sweep.warnings == []
    first, second = sweep.request(0), sweep.request(1)
    assert (first.cores, first.memory_bytes, first.timeout_s, first.priority) == (1, 10**9, 90.0, 1.5)
    assert (second.cores, second.memory_bytes, second.timeout_s, second.priority) == (2, 2**29, 3600.0, -2.0)
    assert first.gpus == 1
    assert first.budget == RetryBudget(3, 1, 2, 0)
    assert sweep.priorities(0, 2).tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1.5, 1.5),
        ("90s", 90.0),
        ("10min", 600.0),
        ("10 m", 600.0),
        ("1h30m", 5400.0),
        ("1h 30min", 5400.0),
        ("2d", 172800.0),
        ("2D", 172800.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("45", 45.0),
    ],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration(value, "task.timeout") == seconds


@pytest.mark.parametrize("value", ["", "h", "1h30", "-5s", "1:30:00", "1e3s", None, [1], float("nan")])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(SweepFileError):
        parse_duration(value, "task.timeout")


@pytest.mark.parametrize(
    ("value", "size_bytes"),
    [
        (0, 0),
        (2**30, 2**30),
        ("2GiB", 2**31),
        ("2G", 2**31),
        ("500MB", 5 * 10**8),
        ("1.5 gb", 15 * 10**8),
        ("4096k", 2**22),
        ("1TiB", 2**40),
        ("2000000", 2 * 10**6),
    ],
)
def test_memory(value: object, size_bytes: int) -> None:
    assert parse_memory(value, "task.memory") == size_bytes


def test_seeds_are_reproducible_and_stay_when_the_sweep_grows(folder: Path) -> None:
    head = "[sweep]\ncommand = ['python', 'heat.py', '{a}']\n"
    small = load(folder, head + "repeat = 2\n[params]\na = [1, 2]\n")
    large = load(folder, head + "repeat = 3\nderived = { h = 'a + 1' }\n[params]\na = [0, 2, 1.0, 7.5]\n")
    seeds = {small.seed(k) for k in range(4)}
    assert len(seeds) == 4
    assert all(0 < seed < 2**31 for seed in seeds)
    for k in range(4):
        params = small.space.params(k)
        point = large.space.index_of(params)
        assert point is not None
        assert large.seed(point) == small.seed(k) == small.seed_of(params)
        assert large.identity(large.space.params(point)) == small.identity(params)
    other = load(folder, head + "seed = 1\nrepeat = 2\n[params]\na = [1, 2]\n")
    assert not seeds & {other.seed(k) for k in range(4)}


def test_an_unused_parameter_is_a_warning(folder: Path) -> None:
    sweep = load(
        folder,
        "[sweep]\ncommand = ['python', 'heat.py', '{h}', '{seed}']\n"
        "derived = { g = '1 / n', h = 'g / 2', f = 'm' }\n"
        "where = 'w < 9'\n[params]\nn = [1]\nm = [1]\nw = [1]\nx = [1]\nranks = [1]\n"
        "[task]\nenv = { X = '{x}' }\ncores = '{ranks}'\n",
    )
    said = " is used by no part of the command (the solver can still read it from $KEYSTONE_PARAMS)"
    assert sweep.warnings == [f"parameter m{said}", f"parameter w{said}", f"derived value f{said}"]


def test_the_python_tool_passes_every_parameter(folder: Path) -> None:
    sweep = load(
        folder,
        "[sweep]\ntool = 'python'\nscript = 'heat.py'\nrepeat = 2\nderived = { h = '1 / n' }\n"
        "[params]\nn = [4]\nflag = [true]\nname = ['a b']\n",
    )
    assert sweep.warnings == []
    script = str(folder / "heat.py")
    assert sweep.recipe.script == script
    arguments = ("--n", "4", "--flag", "true", "--name", "a b", "--h", "0.25")
    assert argv_of(sweep) == (sys.executable, script, *arguments)
    assert sweep.fingerprint["command"] == "python heat.py"
    other = load(folder, "[sweep]\ntool = 'python'\nscript = 'heat.py'\npython = 'python3'\n")
    assert argv_of(other) == ("python3", script)


def test_a_shell_line_gets_its_values_quoted(folder: Path) -> None:
    sweep = load(
        folder,
        "[sweep]\nshell = true\ncommand = 'f() {{ echo \"$1\"; }}; f {name} > log.{task_id}'\n"
        "[params]\nname = [\"it's; rm -rf {{}}\", 'plain']\n",
    )
    assert argv_of(sweep, 0) == (
        "/bin/sh",
        "-c",
        "f() { echo \"$1\"; }; f 'it'\"'\"'s; rm -rf {{}}' > log.0",
    )
    assert argv_of(sweep, 1)[2].endswith("; f plain > log.1")


def test_with_a_folder_per_task_programs_and_scripts_are_found(folder: Path) -> None:
    solver = folder / "{x}" / "solve"
    solver.parent.mkdir()
    solver.write_text("#!/bin/sh\n")
    solver.chmod(0o755)
    text = "[sweep]\ncommand = ['./{{x}}/solve', 'heat.py']\n[task]\nworkdir = '%s'\n"
    assert argv_of(load(folder, text % "none")) == ("./{x}/solve", "heat.py")
    assert argv_of(load(folder, text % "task")) == (f"{folder}/{{x}}/solve", "heat.py")
    text = "[sweep]\ncommand = ['python', '-u', 'heat.py', 'heat.py']\n[task]\nworkdir = 'local'\n"
    assert argv_of(load(folder, text)) == ("python", "-u", f"{folder}/heat.py", "heat.py")
    text += "[files]\n'heat.py' = { copy = 'heat.py' }\n"
    assert argv_of(load(folder, text)) == ("python", "-u", "heat.py", "heat.py")


def test_decks_are_made_copied_and_linked(folder: Path) -> None:
    (folder / "input.nml.in").write_text("&mesh n = {n}, name = '{name}' /\n")
    (folder / "dict.in").write_text("solver { n <<n>>; x << name >>; }\n")
    (folder / "mesh-4.msh").write_text("mesh")
    sweep = load(
        folder,
        "[sweep]\ncommand = ['python', 'heat.py', 'input.nml']\n[params]\nn = [4]\nname = ['a{b}']\n"
        "[task]\nworkdir = 'task'\nstdin = 'input.nml'\n"
        "[files]\n'input.nml' = { template = 'input.nml.in' }\n"
        "'system/dict' = { template = 'dict.in', delimiters = ['<<', '>>'] }\n"
        "'mesh_{n}.msh' = { copy = 'mesh-{n}.msh' }\nscript = { link = 'heat.py' }\n"
        "[collect]\nu = { file = 'out/u-{n}.npy' }\n"
        "v = { file = '{workdir}/v.csv', column = 'v', required = true }\n",
    )
    assert sweep.warnings == []
    renderer = Renderer(sweep.recipe, output_path="/o/s.h5", scratch_dir="/scratch", run_id="r")
    launch = renderer.render(sweep.space.params(0), RenderContext(index=3, attempt=2, task_id="3"))
    cwd = "/o/s.h5.work/3/attempt-2"
    assert launch.cwd == cwd
    assert launch.stdin == f"{cwd}/input.nml"
    assert launch.writes == (
        (f"{cwd}/input.nml", "&mesh n = 4, name = 'a{b}' /\n"),
        (f"{cwd}/system/dict", "solver { n 4; x a{b}; }\n"),
    )
    assert launch.copies == ((f"{cwd}/mesh_4.msh", str(folder / "mesh-4.msh")),)
    assert launch.links == ((f"{cwd}/script", str(folder / "heat.py")),)
    assert launch.collect_files == {"u": f"{cwd}/out/u-4.npy", "v": f"{cwd}/v.csv"}


def test_shared_folders_are_safe_with_the_task_in_the_name(folder: Path) -> None:
    sweep = load(
        folder,
        "[sweep]\ncommand = ['python', 'heat.py']\n[files]\n'in.{task_id}' = { copy = 'heat.py' }\n"
        "[collect]\nu = { file = 'u-{index}.npy' }\nshared = { file = '/data/table.csv', column = 'x' }\n",
    )
    assert [rule.file for rule in sweep.recipe.collect] == ["u-{index}.npy", "/data/table.csv"]


def test_table_types_are_inferred(folder: Path) -> None:
    (folder / "points.csv").write_bytes(
        '\ufeffn, x,flag,name,code\r\n1,2,TRUE,a,007\r\n\r\n-2,.5e1,false,"b, c",008\r\n'.encode()
    )
    sweep = load(folder, "[sweep]\ncommand = ['python', 'heat.py', '{n}']\n[table]\nfile = 'points.csv'\n")
    assert sweep.space.kinds() == {"n": "int", "x": "float", "flag": "bool", "name": "str", "code": "str"}
    assert [tuple(sweep.space.params(k).values()) for k in range(2)] == [
        (1, 2.0, True, "a", "007"),
        (-2, 5.0, False, "b, c", "008"),
    ]
    columns = sweep.space.columns(0, 2)
    assert {name: column.dtype for name, column in columns.items()} == {
        "n": np.dtype("int64"),
        "x": np.dtype("float64"),
        "flag": np.dtype("bool"),
        "name": np.dtype("object"),
        "code": np.dtype("object"),
    }


def test_sobol_points_fill_evenly_and_are_remarked_on(folder: Path) -> None:
    head = "[sweep]\ncommand = ['python', 'heat.py', '{x}{k}']\n[sample]\nmethod = 'sobol'\nseed = 5\n"
    ranges = "ranges = { x = [0, 1], k = { low = 1e-3, high = 1, scale = 'log' } }\n"
    sweep = load(folder, head + "n = 64\n" + ranges)
    assert sweep.warnings == []
    column = sweep.space.columns(0, 64)["x"]
    assert sorted(np.floor(column * 64).astype(int)) == list(range(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        odd = load(folder, head + "n = 100\n" + ranges)
    assert odd.warnings == ["sample.n = 100: Sobol points are balanced at powers of two, such as 64 or 128"]
    assert odd.space.columns(0, 64)["x"].tolist() == column.tolist()


# -- fingerprints ------------------------------------------------------------------------------------


def test_the_fingerprint_is_what_runs(folder: Path) -> None:
    base = load(folder, ISSUE)
    assert set(base.fingerprint) == {"command", "env", "stdin", "setup", "derived:h", "script:heat.py"}
    same = [
        ISSUE.replace("[16, 32, 64]", "[16, 32, 64, 128]"),
        ISSUE.replace("10min", "20min"),
        ISSUE.replace("retries = 1", "retries = 2"),
        ISSUE.replace('finite = ["residual"]', 'required = ["residual"]'),
        ISSUE.replace("residual = { regex = 'residual", "r2 = { regex = 'r2"),
        ISSUE.replace("1 / mesh_size", "1  /  mesh_size"),
        ISSUE.replace("repeat = 5", "repeat = 6"),
    ]
    for text in same:
        assert load(folder, text).fingerprint == base.fingerprint
        assert fingerprint_difference(base.fingerprint, load(folder, text).fingerprint) == []


def test_differences_are_told_in_words(folder: Path) -> None:
    (folder / "deck").write_text("n = {a}\n")
    text = (
        "[sweep]\ncommand = ['python', 'heat.py', '{a}']\nderived = { h = '1 / a' }\n[params]\na = [1]\n"
        "[task]\nworkdir = 'task'\nenv = { X = '1' }\n[files]\nd = { template = 'deck' }\n"
    )
    old = load(folder, text).fingerprint
    new = load(
        folder, text.replace("'{a}'", "'{h}'").replace("1 / a", "2 / a").replace("X = '1'", "")
    ).fingerprint
    assert fingerprint_difference(old, new) == [
        'command changed: ["python","heat.py","{a}"] -> ["python","heat.py","{h}"]',
        "derived h changed: 1 / a -> 2 / a",
        'env changed: {"X":"1"} -> {}',
    ]
    (folder / "heat.py").write_text("print('{ }')\n")
    (folder / "deck").write_text("n = {a}.0\n")
    assert fingerprint_difference(old, load(folder, text).fingerprint) == [
        "[files] d changed",
        "script heat.py changed",
    ]
    less = load(folder, text.replace("[files]\nd = { template = 'deck' }\n", "")).fingerprint
    assert "[files] d is gone" in fingerprint_difference(old, less)
    assert "[files] d is new" in fingerprint_difference(less, old)


def test_what_the_solver_writes_is_no_part_of_the_fingerprint(folder: Path) -> None:
    text = "[sweep]\ncommand = ['python', 'heat.py', '--output', 'u.dat', 'run.log', 'in.melt']\n"
    before = load(folder, text).fingerprint
    for name in ("u.dat", "run.log", "in.melt"):
        (folder / name).write_text("x")
    after = load(folder, text).fingerprint
    assert set(after) - set(before) == {"script:in.melt"}
    assert fingerprint_difference(before, after) == []
    (folder / "in.melt").write_text("y")
    assert fingerprint_difference(after, load(folder, text).fingerprint) == ["script in.melt changed"]


# -- task files --------------------------------------------------------------------------------------


def test_each_line_of_a_task_file_is_a_shell_line(folder: Path) -> None:
    sweep = load(
        folder,
        "# comment\n\ncd x && OMP_NUM_THREADS=2 ./a > log\r\n  # another\necho ${HOME} {a} 'b\\'\n   ls \\\n",
        "tasks.txt",
    )
    lines = ["cd x && OMP_NUM_THREADS=2 ./a > log", "echo ${HOME} {a} 'b\\'", "ls \\"]
    assert (len(sweep), sweep.name, sweep.uniform, sweep.warnings) == (3, "tasks", True, [])
    assert [sweep.space.params(k) for k in range(3)] == [{"command": line} for line in lines]
    assert [argv_of(sweep, k) for k in range(3)] == [("/bin/sh", "-c", line) for line in lines]
    assert sweep_from_spec(sweep.spec).space.params(1) == {"command": lines[1]}


def test_a_line_that_is_there_twice_runs_twice_and_identity_survives_edits(folder: Path) -> None:
    once = load(folder, "a\nb\n", "t.txt")
    twice = load(folder, "b\na\nb\n", "t.txt")
    assert [twice.space.params(k) for k in range(3)] == [
        {"command": "b", "replicate": 0},
        {"command": "a", "replicate": 0},
        {"command": "b", "replicate": 1},
    ]
    assert [twice.space.index_of(once.space.params(k)) for k in range(2)] == [1, 0]
    assert [once.space.index_of(twice.space.params(k)) for k in range(3)] == [1, 0, None]
    assert twice.space.indices_of(once.space.columns(0, 2)).tolist() == [1, 0]
    assert twice.seed(1) == once.seed(0)
    assert argv_of(twice, 2) == ("/bin/sh", "-c", "b")
    assert once.fingerprint == twice.fingerprint
