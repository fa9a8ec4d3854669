"""Finding: programs, scripts and interpreters, where a task will find them.

Rule: what is not there is an error when the sweep file is read, with a near
match or how to install it, and never of every task. Programs are looked up on
PATH, scripts from the folder where keystone-mpi was started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import SweepFileError

LOOK_S = 60.0
"""How long a program may take to say what it is: a first import over a network file system is slow."""


def escape_braces(text: str) -> str:
    """Return a template that renders to `text` itself."""
    return text.replace("{", "{{").replace("}", "}}")


def is_relative_path(program: str) -> bool:
    """Tell a path such as ``./solver`` from a name on PATH and from an absolute path."""
    return "/" in program and not os.path.isabs(program)


def say(argv: list[str], env: dict[str, str] | None = None, limit_s: float = LOOK_S) -> tuple[int, str]:
    """Run a program that says something about itself; (-1, why) when it does not."""
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=limit_s,
            env=env,
            check=False,
            start_new_session=True,
        )
    except subprocess.TimeoutExpired:
        return -1, f"{argv[0]} gave no answer in {limit_s:g} s"
    except OSError as problem:
        return -1, f"{argv[0]}: {problem.strerror}"
    return done.returncode, done.stdout.decode("utf-8", "replace")


def is_our_interpreter(program: str) -> bool:
    """Whether a program is the Python that runs keystone-mpi, the same environment included."""
    found = shutil.which(program)
    # The path, not what it links to: environments share an interpreter and differ in their packages.
    return found is not None and (
        os.path.abspath(found) == os.path.abspath(sys.executable)
        or (
            os.path.dirname(os.path.abspath(found)) == os.path.dirname(os.path.abspath(sys.executable))
            and os.path.realpath(found) == os.path.realpath(sys.executable)
        )
    )


PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME")
"""What one Python's environment says is wrong for another's."""


class Lookup(msgspec.Struct, frozen=True):
    """Finds programs and scripts as a task will.

    Parameters
    ----------
    start_dir : Path
        Where keystone-mpi was started.
    sweep_dir : Path
        Where the sweep file lies.
    made_files : frozenset of str
        Targets of ``[files]``.
    """

    start_dir: Path
    sweep_dir: Path
    made_files: frozenset[str] = frozenset()

    def program(self, name: str, key: str) -> None:
        """Refuse a program that is not there."""
        if name in self.made_files or os.path.normpath(name) in self.made_files:
            return
        if "/" not in name:
            if shutil.which(name) is not None:
                return
            hint = ""
            if (self.start_dir / name).is_file():
                hint = f'to run the one in {self.start_dir} write "./{name}"'
            raise SweepFileError(
                None,
                key,
                f'the program "{name}" is not on PATH',
                hint or near(name, _programs_on_path()),
            )
        path = self.start_dir / name
        if not path.exists():
            raise SweepFileError(None, key, f'the program "{name}" does not exist: {path}', self._near(path))
        if path.is_dir():
            raise SweepFileError(None, key, f'the program "{name}" is a folder: {path}')
        if not os.access(path, os.X_OK):
            raise SweepFileError(
                None, key, f'the program "{name}" is not executable: {path}', f"chmod +x {path}"
            )

    def script(self, name: str, key: str) -> None:
        """Refuse a script that is not there."""
        if name in self.made_files or os.path.normpath(name) in self.made_files:
            return
        path = self.start_dir / name
        if path.is_dir() and (path / "__main__.py").is_file():
            return
        if not path.is_file():
            raise SweepFileError(None, key, f'the script "{name}" does not exist: {path}', self._near(path))

    def _near(self, path: Path) -> str:
        beside = self.sweep_dir / path.name
        if beside.is_file() and beside.resolve() != path.resolve():
            return f"it lies beside the sweep file; start keystone-mpi in {self.sweep_dir}, or write {beside}"
        try:
            names = [entry.name for entry in path.parent.iterdir()]
        except OSError:
            return "its folder does not exist"
        return (
            near(path.name, names)
            or f"looked up from the folder where keystone-mpi was started: {self.start_dir}"
        )


def near(word: str, allowed: Iterable[str]) -> str:
    """Return ``did you mean "x"?`` or an empty text."""
    lowered = {choice.lower(): choice for choice in allowed}
    import difflib

    exact = difflib.get_close_matches(word, lowered.values(), n=1, cutoff=0.6)
    close = exact or [lowered[name] for name in difflib.get_close_matches(word.lower(), lowered, n=1)]
    return f'did you mean "{close[0]}"?' if close else ""


def _programs_on_path() -> list[str]:
    names: list[str] = []
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        try:
            names += [entry.name for entry in os.scandir(folder or ".")]
        except OSError:
            continue
    return names
