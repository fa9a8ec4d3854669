"""Command: what ``[sweep]`` says is run, as argv templates, and whether it can be.

Rule: a program or script that is not there is an error now, not of every task.
Programs are looked up as they will be when a task runs: on PATH, or from the
folder where keystone-mpi was started.

    command = [argv]                     tool "command"
    command = "line", shell = true       tool "command", values are quoted for the shell
    tool = "python", script = "x.py"     interpreter script --name value for every parameter and derived value

With a folder per task (``workdir`` other than "none") a relative argv[0] and an
interpreter's script are given as absolute paths; other arguments stay as written.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.checking import TemplateChecker, escape_braces
from keystone_mpi.sweeps.reading import Section
from keystone_mpi.sweeps.values import REPLICATE, describe, near_match
from keystone_mpi.tools.templates import Template

TOOLS = ("command", "python")
_INTERPRETER = re.compile(r"(python|pypy|bash|sh|dash|zsh|perl|ruby|Rscript|julia|node|octave)[0-9.]*\Z")


@dataclass(frozen=True, slots=True)
class Command:
    """The command of a sweep."""

    tool: str
    argv: tuple[str, ...]
    shell: bool
    script: str
    """Absolute path of the script of a tool; empty for a plain command."""
    written: str
    """What the user wrote, in one canonical text; part of the fingerprint."""
    literals: tuple[str, ...]
    """Arguments without names, as they are run: where scripts and decks may be named."""


def read_command(
    sweep: Section,
    checker: TemplateChecker,
    names: tuple[str, ...],
    *,
    start_dir: Path,
    sweep_dir: Path,
    own_folder: bool,
    made_files: frozenset[str],
    path_is_set: bool,
    check_programs: bool,
) -> Command:
    """Read the command of ``[sweep]``.

    Parameters
    ----------
    sweep : Section
        The table.
    checker : TemplateChecker
        Knows the names.
    names : tuple of str
        Every parameter, for tools that pass them all.
    start_dir, sweep_dir : Path
        Where keystone-mpi was started, and where the sweep file lies.
    own_folder : bool
        Each task runs in a folder of its own.
    made_files : frozenset of str
        Targets of ``[files]``: scripts among them need not exist.
    path_is_set : bool
        ``[task] env`` sets PATH, so programs cannot be looked up here.
    check_programs : bool
        Look programs and scripts up.
    """
    tool = sweep.text("tool", "command")
    if tool not in TOOLS:
        raise sweep.error(
            "tool", f"found {describe(tool)}; the tools are {', '.join(TOOLS)}", near_match(tool, TOOLS)
        )
    if tool == "python":
        return _python(sweep, checker, names, start_dir, sweep_dir, check_programs)
    for key in ("script", "python"):
        if sweep.has(key):
            raise sweep.error(key, 'only used with tool = "python"', f'tool = "python" and {key}, or command')
    if not sweep.has("command"):
        raise sweep.error(
            "command", "missing; what is to be run", 'command = ["./solver", "--size", "{size}"]'
        )
    if sweep.flag("shell"):
        return _shell(sweep, checker)
    given = sweep.table["command"]
    if isinstance(given, str):
        raise _text_without_shell(sweep, given)
    if not isinstance(given, list):
        raise sweep.wrong("command", "a list of texts: program, argument, ...")
    if not given:
        raise sweep.error("command", "the list is empty; it needs a program")
    templates: list[Template] = []
    for position, item in enumerate(given):
        key = f"sweep.command[{position}]"
        if not isinstance(item, str):
            shown = ("true" if item else "false") if isinstance(item, bool) else item
            raise SweepFileError(None, key, f"found {describe(item)}; every argument is a text", f'"{shown}"')
        if "\0" in item:
            raise SweepFileError(None, key, "an argument holds a NUL byte")
        templates.append(checker.check(item, key))
    if not given[0]:
        raise SweepFileError(None, "sweep.command[0]", "the program's name is empty")
    argv = [template.text for template in templates]
    literal = [template.render({}) if template.literal else None for template in templates]
    lookup = _Lookup(start_dir, sweep_dir, made_files)
    if check_programs and literal[0] is not None and not path_is_set:
        lookup.program(literal[0], "sweep.command[0]")
    program = literal[0]
    if own_folder and program is not None and _is_relative_path(program) and program not in made_files:
        argv[0] = escape_braces(str(start_dir / program))
    script = _script_position(literal)
    if script is not None:
        name = literal[script]
        assert name is not None
        if check_programs:
            lookup.script(name, f"sweep.command[{script}]")
        if own_folder and not os.path.isabs(name) and name not in made_files and (start_dir / name).is_file():
            argv[script] = escape_braces(str(start_dir / name))
    written = msgspec.json.encode(given).decode()
    return Command("command", tuple(argv), False, "", written, tuple(x for x in literal if x is not None))


def _shell(sweep: Section, checker: TemplateChecker) -> Command:
    given = sweep.table["command"]
    if not isinstance(given, str):
        raise sweep.wrong(
            "command", "with shell = true one text, the shell line", "or leave shell = true out"
        )
    if not given.strip():
        raise sweep.error("command", "the shell line is empty")
    if "\0" in given:
        raise sweep.error("command", "the shell line holds a NUL byte")
    checker.check(
        given, "sweep.command", hint="in a shell line too: write {{ and }} for braces that are text"
    )
    return Command("command", (given,), True, "", "shell: " + given, ())


def _text_without_shell(sweep: Section, text: str) -> SweepFileError:
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    shown = "[" + ", ".join(msgspec.json.encode(word).decode() for word in words) + "]"
    return sweep.error(
        "command",
        f"found the text {describe(text)}; allowed is a list, or a text with shell = true",
        f"command = {shown}",
    )


def _python(
    sweep: Section,
    checker: TemplateChecker,
    names: tuple[str, ...],
    start_dir: Path,
    sweep_dir: Path,
    check_programs: bool,
) -> Command:
    for key in ("command", "shell"):
        if sweep.has(key):
            raise sweep.error(key, 'not used with tool = "python"', "give command, or tool and script")
    script = sweep.text("script")
    if not script:
        raise sweep.error("script", 'missing; tool = "python" runs a script', 'script = "solve.py"')
    interpreter = sweep.text("python", sys.executable) or sys.executable
    lookup = _Lookup(start_dir, sweep_dir, frozenset())
    if check_programs:
        lookup.program(interpreter, "sweep.python")
        lookup.script(script, "sweep.script")
    if _is_relative_path(interpreter):
        interpreter = str(start_dir / interpreter)
    path = str(start_dir / script)
    argv = [escape_braces(interpreter), escape_braces(path)]
    for name in names:
        if name != REPLICATE:
            argv += [f"--{name}", f"{{{name}}}"]
            checker.used.add(name)
    # The interpreter's own path differs between machines and is not what the user wrote.
    written = f"python {sweep.text('python')} {script}".replace("  ", " ")
    return Command("python", tuple(argv), False, path, written, (script,))


def _is_relative_path(program: str) -> bool:
    return "/" in program and not os.path.isabs(program)


def _script_position(literal: list[str | None]) -> int | None:
    """Return where an interpreter's script stands; None without an interpreter or a plain script name."""
    program = literal[0]
    if program is None or not _INTERPRETER.match(os.path.basename(program)):
        return None
    skip = False
    for position, word in enumerate(literal[1:], 1):
        if skip:
            skip = False
        elif word is None:
            return None
        elif word in ("-W", "-X", "--check-hash-based-pycs"):
            skip = True
        elif word in ("-m", "-c", "-e", "-"):
            return None
        elif not word.startswith("-"):
            return position
    return None


@dataclass(frozen=True, slots=True)
class _Lookup:
    """Finds programs and scripts as a task will."""

    start_dir: Path
    sweep_dir: Path
    made_files: frozenset[str]

    def program(self, name: str, key: str) -> None:
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
                hint or near_match(name, _programs_on_path()),
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
            near_match(path.name, names)
            or f"looked up from the folder where keystone-mpi was started: {self.start_dir}"
        )


def _programs_on_path() -> list[str]:
    names: list[str] = []
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        try:
            names += [entry.name for entry in os.scandir(folder or ".")]
        except OSError:
            continue
    return names
