"""The house holds: who may import whom, who may print, and what may load what.

The rules are read from the source with ast, so that a breach is named with
its file and line before anything runs.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "keystone_mpi"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

EVERY_FOLDER = {
    "core", "tools", "sweeps", "transport", "execution", "records", "engine", "bench", "cli",
    "analysis", "slurm", "for_solvers",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "tools": {"core"},
    "sweeps": {"core", "tools"},
    "transport": {"core", "tools"},
    "execution": {"core", "tools"},
    "records": {"core"},
    "engine": {"core", "tools", "sweeps", "transport", "execution", "records"},
    "slurm": {"core", "tools", "sweeps", "records", "engine"},
    "bench": {"core", "tools", "sweeps", "transport", "execution", "records", "engine"},
    "analysis": {"core", "tools", "sweeps", "records", "engine"},
    "for_solvers": set(),
    "cli": EVERY_FOLDER,
}
"""Folder -> the other folders that it may import; a folder may always import itself."""

FROM_TOOLS_ONLY = {"transport": {"keystone_mpi.tools.recipe"}}
"""Folders that may import only these modules of tools."""

MPI4PY_MODULES = {"transport/world"}
H5PY_MODULES = {"records/store", "analysis"}

CORE_FORBIDDEN = {
    "asyncio", "datetime", "fcntl", "io", "logging", "multiprocessing", "mmap", "os", "pathlib", "queue",
    "random", "select", "selectors", "shutil", "signal", "socket", "subprocess", "sys", "tempfile",
    "threading", "time",
}  # fmt: skip
CORE_PATHS_ALLOWED = {"core/errors.py": {"pathlib"}}
"""errors.py only names the type of a path in a message."""

MAY_EXIT = {
    "engine/parting.py": "a rank that waits in MPI_Finalize for one that is gone cannot come back",
    "engine/worker_exit.py": "a worker rank of a program serves and never comes back into the program",
    "engine/program_exit.py": "an interrupted program ends with 75; Python forgets what exit hooks raise",
    "execution/forking.py": "a forked helper must not go on as the rank that it is a copy of",
    "execution/launcher.py": "a forked slot process must not run the launcher's exit handlers",
}
"""Modules outside cli that may end their process, and why."""

MAY_WRITE_TO_STDERR = {
    "engine/parting.py": "a rank that cannot come back says why it ends",
    "engine/worker_exit.py": "a worker rank of a program, whose rank 0 may be gone",
    "engine/program_exit.py": "a program that ends with 75 says so in one line, whatever its hooks do",
    "engine/program.py": "the engine under a program of the user's: there is no command line to tell",
}
"""Modules outside cli that may say something to a person by themselves, and why."""

MAY_PICKLE = {
    "execution/function_values.py": "functions of the Python API travel by value within one run",
}
"""Modules that may use pickle, and why; never on a file that somebody else may have written."""

MAY_BE_LONG: dict[str, str] = {}
"""Modules above 500 lines, and why they are not split."""


def parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"), filename=module)


def imports(module: str, *, at_import_time: bool = False) -> Iterator[tuple[str, int]]:
    """Yield every imported module (absolute) and its line.

    `at_import_time` leaves out imports inside functions and under TYPE_CHECKING.
    """
    package = ["keystone_mpi", *Path(module).parent.parts]

    def walk(node: ast.AST) -> Iterator[ast.stmt]:
        for child in ast.iter_child_nodes(node):
            if at_import_time and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if at_import_time and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child
            yield from walk(child)

    for node in walk(parse(module)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                # `from keystone_mpi.records import store` imports the module records.store.
                child = PACKAGE.parent / name.replace(".", "/") / alias.name
                is_module = child.with_suffix(".py").exists() or child.is_dir()
                yield (f"{name}.{alias.name}" if is_module else name), node.lineno


def folder_of(module: str) -> str:
    return module.split("/")[0] if "/" in module else ""


def calls(module: str) -> Iterator[tuple[str, int]]:
    """Yield every call's dotted name and line."""
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def test_every_folder_has_its_rule() -> None:
    folders = {folder_of(module) for module in MODULES} - {""}
    assert folders - set(MAY_IMPORT) == set(), "say in MAY_IMPORT what a new folder may import"


@pytest.mark.parametrize("module", [module for module in MODULES if folder_of(module)])
def test_imports_point_inward(module: str) -> None:
    folder = folder_of(module)
    for name, line in imports(module):
        parts = name.split(".")
        if parts[0] != "keystone_mpi" or len(parts) == 1 or parts[1] == folder:
            continue
        if not (PACKAGE / parts[1]).is_dir():
            continue  # a name of the package itself, such as __version__
        assert parts[1] in MAY_IMPORT[folder], f"{module}:{line}: {folder} may not import {name}"
        if parts[1] == "tools" and folder in FROM_TOOLS_ONLY:
            assert name in FROM_TOOLS_ONLY[folder], f"{module}:{line}: {folder} may not import {name}"


@pytest.mark.parametrize(
    ("library", "allowed"), [("mpi4py", MPI4PY_MODULES), ("h5py", H5PY_MODULES)], ids=["mpi4py", "h5py"]
)
def test_one_door_to_each_library(library: str, allowed: set[str]) -> None:
    for module in MODULES:
        # One module, or the folder that it was split into.
        if any(module == f"{door}.py" or module.startswith(f"{door}/") for door in allowed):
            continue
        for name, line in imports(module):
            assert name.split(".")[0] != library, f"{module}:{line}: only {allowed} may import {library}"


def test_core_is_pure() -> None:
    for module in MODULES:
        if folder_of(module) != "core":
            continue
        for name, line in imports(module):
            top = name.split(".")[0]
            allowed = top not in CORE_FORBIDDEN or top in CORE_PATHS_ALLOWED.get(module, set())
            assert allowed, f"{module}:{line}: core knows no clock, file, thread or chance: {name}"
        for name, line in calls(module):
            assert name not in ("open", "print", "input"), f"{module}:{line}: core does no I/O: {name}()"


def test_only_the_command_line_prints_or_exits() -> None:
    for module in MODULES:
        if folder_of(module) == "cli":
            continue
        for name, line in calls(module):
            assert name not in ("print", "input", "breakpoint"), f"{module}:{line}: only cli prints"
            assert name != "sys.stdout.write", f"{module}:{line}: only cli prints"
            may_write = name != "sys.stderr.write" or module in MAY_WRITE_TO_STDERR
            assert may_write, f"{module}:{line}: only cli tells people ({name})"
            exits = name in ("exit", "quit", "sys.exit", "os._exit", "os.abort")
            assert not exits or module in MAY_EXIT, f"{module}:{line}: only cli exits ({name})"
        for node in ast.walk(parse(module)):
            if isinstance(node, ast.Raise) and node.exc is not None:
                raised = ast.unparse(node.exc)
                may = not raised.startswith("SystemExit") or module in MAY_EXIT
                assert may, f"{module}:{node.lineno}: only cli exits"


def test_nothing_is_unpickled_or_evaluated() -> None:
    for module in MODULES:
        for name, line in imports(module):
            pickles = name.split(".")[0] in ("pickle", "cloudpickle", "marshal", "shelve")
            assert not pickles or module in MAY_PICKLE, f"{module}:{line}: {name}"
        for name, line in calls(module):
            assert name not in ("eval", "exec"), f"{module}:{line}: {name}() on somebody's text"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_readable(module: str) -> None:
    lines = (PACKAGE / module).read_text(encoding="utf-8").count("\n")
    assert lines <= 500 or module in MAY_BE_LONG, f"{module}: {lines} lines: split it, or say why not"
    assert ast.get_docstring(parse(module)), f"{module}: what is its rule?"
    assert Path(module).stem not in ("utils", "util", "helpers", "misc", "base", "common"), module


def test_exceptions_to_the_rules_are_needed() -> None:
    for module in MAY_EXIT:
        names = {name for name, _ in calls(module)}
        assert names & {"sys.exit", "os._exit"}, f"{module} no longer exits"
    for module in MAY_BE_LONG:
        assert (PACKAGE / module).read_text(encoding="utf-8").count("\n") > 500, f"{module} is no longer long"


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after `statement`."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = {"numpy", "h5py", "mpi4py", "msgspec", "click", "rich", "psutil", "multiprocessing", "asyncio"}
    assert loaded_by("import keystone_mpi") & heavy == set()


def test_help_loads_no_command() -> None:
    heavy = {"numpy", "h5py", "mpi4py", "rich", "psutil", "scipy"}
    assert loaded_by("from keystone_mpi.cli.main import main; main(['--version'])") & heavy == set()


WORKER_MODULES = [
    "keystone_mpi.engine.worker", "keystone_mpi.execution.launcher_client", "keystone_mpi.engine.worker_exit",
    "keystone_mpi.cli.program", "keystone_mpi.engine.serving",
]  # fmt: skip


def test_a_worker_loads_neither_the_file_nor_the_screen() -> None:
    statement = "; ".join(f"import {name}" for name in WORKER_MODULES)
    assert loaded_by(statement) & {"h5py", "rich", "click", "scipy", "numpy"} == set()


def test_a_master_loads_arrays_and_the_file_only_when_it_needs_them() -> None:
    statement = "import keystone_mpi.cli.run, keystone_mpi.engine.run, keystone_mpi.sweeps.load"
    assert loaded_by(statement) & {"h5py", "rich", "numpy"} == set()
