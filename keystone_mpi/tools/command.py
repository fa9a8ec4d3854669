"""Tool ``command``: any program, as an argv list of templates, or a shell line.

    command = [argv]                     templates with {name}
    command = "line", shell = true       values are quoted for the shell

With a folder per task (``workdir`` other than "none") a relative argv[0] and an
interpreter's script are given as absolute paths; other arguments stay as written.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.tools.finding import Lookup, escape_braces, is_relative_path
from keystone_mpi.tools.templates import Template
from keystone_mpi.tools.tool import Finding, Keys, Prepared, ToolRequest

_INTERPRETER = re.compile(r"(python|pypy|bash|sh|dash|zsh|perl|ruby|Rscript|julia|node|octave)[0-9.]*\Z")
IN_SHELL = "$KEYSTONE_MPIEXEC"


class CommandTool:
    """Any program."""

    name = "command"
    summary = "any program"
    parameters = "{name} in the argument list"
    results = "JSON on stdout, $KEYSTONE_RESULT, [collect]"
    keys = ("command", "shell")

    def default_workdir(self, keys: Keys) -> str:  # noqa: ARG002 - of the protocol
        """Return that its tasks may share the start folder."""
        return "none"

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:  # noqa: ARG002 - of the protocol
        """Return that there is nothing to find."""
        return Finding(found=True, detail="whatever is on PATH")

    def prepare(self, request: ToolRequest) -> Prepared:
        """Read ``command``."""
        keys = request.keys
        for key in ("script", "python", "case", "applications"):
            if keys.has(key):
                uses = {"case": "openfoam", "applications": "openfoam"}.get(key, "python")
                raise keys.error(
                    key, f'only used with tool = "{uses}"', f'tool = "{uses}" and {key}, or command'
                )
        if not keys.has("command"):
            raise keys.error(
                "command", "missing; what is to be run", 'command = ["./solver", "--size", "{size}"]'
            )
        if keys.flag("shell"):
            return _shell(request)
        return prepare_argv(request, read_argv(request, "command", keys.value("command")))


def read_argv(request: ToolRequest, name: str, given: Any) -> list[Template]:
    """Check a list of argument templates; `name` is the key that holds it."""
    keys = request.keys
    if isinstance(given, str):
        raise _text_without_shell(keys, name, given)
    if not isinstance(given, list):
        raise keys.wrong(name, "a list of texts: program, argument, ...")
    if not given:
        raise keys.error(name, "the list is empty; it needs a program")
    templates: list[Template] = []
    for position, item in enumerate(given):
        key = f"{keys.key(name)}[{position}]"
        if not isinstance(item, str):
            shown = ("true" if item else "false") if isinstance(item, bool) else str(item)
            raise SweepFileError(None, key, f"found {shown}; every argument is a text", f'"{shown}"')
        if "\0" in item:
            raise SweepFileError(None, key, "an argument holds a NUL byte")
        templates.append(request.checker.check(item, key))
    if not given[0]:
        raise SweepFileError(None, f"{keys.key(name)}[0]", "the program's name is empty")
    return templates


def prepare_argv(request: ToolRequest, templates: list[Template], name: str = "command") -> Prepared:
    """Say how a list of argument templates is run."""
    keys = request.keys
    argv = [template.text for template in templates]
    literal = [template.render({}) if template.literal else None for template in templates]
    lookup = Lookup(request.start_dir, request.sweep_dir, request.made_files)
    program = literal[0]
    if request.check_programs and program is not None and not request.path_is_set:
        lookup.program(program, f"{keys.key(name)}[0]")
    moved = request.own_folder and program is not None and program not in request.made_files
    if moved and program is not None and is_relative_path(program):
        argv[0] = escape_braces(str(request.start_dir / program))
    script = _script_position(literal)
    if script is not None:
        named = literal[script]
        assert named is not None
        if request.check_files:
            lookup.script(named, f"{keys.key(name)}[{script}]")
        moved = request.own_folder and not os.path.isabs(named) and named not in request.made_files
        if moved and (request.start_dir / named).is_file():
            argv[script] = escape_braces(str(request.start_dir / named))
    return Prepared(
        argv=tuple(argv),
        written=msgspec.json.encode([template.text for template in templates]).decode(),
        literals=tuple(word for word in literal if word is not None),
    )


def _shell(request: ToolRequest) -> Prepared:
    keys = request.keys
    given = keys.value("command")
    if not isinstance(given, str):
        raise keys.wrong("command", "with shell = true one text, the shell line", "or leave shell = true out")
    if not given.strip():
        raise keys.error("command", "the shell line is empty")
    if "\0" in given:
        raise keys.error("command", "the shell line holds a NUL byte")
    if request.launcher and "KEYSTONE_MPIEXEC" not in given:
        raise keys.error(
            "command",
            f"the ranks of a shell line are started by the line itself, and it never says {IN_SHELL}",
            f'"{IN_SHELL} ./solver ..."',
        )
    request.checker.check(
        given, keys.key("command"), hint="in a shell line too: write {{ and }} for braces that are text"
    )
    return Prepared(argv=(given,), shell=True, written="shell: " + given, starts_ranks=bool(request.launcher))


def _text_without_shell(keys: Keys, name: str, text: str) -> SweepFileError:
    try:
        words = shlex.split(text)
    except ValueError:
        words = text.split()
    shown = "[" + ", ".join(msgspec.json.encode(word).decode() for word in words) + "]"
    found = text if len(text) <= 60 else text[:57] + "..."
    return keys.error(
        name,
        f'found the text "{found}"; allowed is a list, or a text with shell = true',
        f"{name} = {shown}",
    )


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
