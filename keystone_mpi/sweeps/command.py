"""Command: what ``[sweep]`` says is run, by which tool, and under which launcher.

Rule: what is missing (a program, a script, a solver, an allocation) is an error
now, not of every task. A tool's keys may stand in ``[sweep]`` or, for several
sweeps alike, in ``[tools.NAME]``; ``[sweep]`` and ``[task]`` win.

    [sweep] tool --(tools.table)--> Tool.prepare --> Prepared --> Recipe
    [tools.NAME] of another name defines a tool (tools.custom)
    [task] launcher, ranks, threads --> how its ranks are started
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.checking import TemplateChecker
from keystone_mpi.sweeps.outputs import read_collect, read_env
from keystone_mpi.sweeps.reading import TOOL_COMMON_KEYS, Section
from keystone_mpi.sweeps.values import REPLICATE, describe, near_match
from keystone_mpi.tools.recipe import LauncherKind
from keystone_mpi.tools.table import TOOLS, tool_named
from keystone_mpi.tools.tool import Prepared, Tool, ToolRequest

LAUNCHERS = ("none", "mpiexec", "srun")


class ToolKeys:
    """Keys of ``[sweep]`` and, where it has them not, of ``[tools.NAME]``.

    Parameters
    ----------
    first, second : Section
        In this order.
    """

    def __init__(self, first: Section, second: Section) -> None:
        self._first = first
        self._second = second

    def _of(self, name: str) -> Section:
        return self._second if self._second.has(name) and not self._first.has(name) else self._first

    def has(self, name: str) -> bool:
        return self._of(name).has(name)

    def key(self, name: str) -> str:
        return self._of(name).key(name)

    def value(self, name: str) -> Any:
        return self._of(name).table.get(name)

    def text(self, name: str, default: str = "") -> str:
        return self._of(name).text(name, default)

    def texts(self, name: str) -> tuple[str, ...]:
        return self._of(name).texts(name)

    def flag(self, name: str, default: bool = False) -> bool:
        return self._of(name).flag(name, default)

    def whole(self, name: str, default: int, least: int, most: int) -> int:
        return self._of(name).whole(name, default, least, most)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        return self._of(name).choice(name, choices, default)

    def error(self, name: str, problem: str, hint: str = "") -> SweepFileError:
        return self._of(name).error(name, problem, hint)

    def wrong(self, name: str, allowed: str, hint: str = "") -> SweepFileError:
        return self._of(name).wrong(name, allowed, hint)


class ToolChoice(msgspec.Struct, frozen=True):
    """The tool of a sweep and where its keys are."""

    tool: Tool
    section: Section
    """``[tools.NAME]``, empty when the file has none."""
    keys: ToolKeys


def choose_tool(document: Section, sweep: Section) -> ToolChoice:
    """Read ``tool`` and check every ``[tools.NAME]``."""
    tables = document.section("tools")
    sections: dict[str, Section] = {}
    for name in tables.items():
        if name in ("command", "line"):
            raise tables.error(name, f"the tool {name} is not yours to define", "another name")
        sections[name] = tables.section(name, (*tool_named(name).keys, *TOOL_COMMON_KEYS))
    chosen = sweep.text("tool", "command")
    known = (*TOOLS, *(name for name in sections if name not in TOOLS))
    if chosen not in known:
        raise sweep.error(
            "tool", f"found {describe(chosen)}; the tools are {', '.join(known)}", near_match(chosen, known)
        )
    section = sections.get(chosen) or Section(f"tools.{chosen}", {})
    tool = tool_named(chosen)
    if chosen not in TOOLS and sweep.has("command"):
        raise sweep.error("command", f"the tool {chosen} has its own", f"leave it out, or tool = {chosen!r}")
    return ToolChoice(tool, section, ToolKeys(sweep, section))


class Launching(msgspec.Struct, frozen=True, kw_only=True):
    """How the ranks of a task are started."""

    launcher: LauncherKind = ""
    path: str = ""
    flags: tuple[str, ...] = ()
    threads: int = 1


def read_launching(task: Section, choice: ToolChoice, *, check_programs: bool) -> Launching:
    """Read ``launcher`` and what belongs to it.

    Parameters
    ----------
    task : Section
        ``[task]``.
    choice : ToolChoice
        ``[tools.NAME]`` may hold the same keys.
    check_programs : bool
        Refuse a launcher that is not here.
    """
    keys = ToolKeys(task, choice.section)
    launcher = keys.choice("launcher", LAUNCHERS, "none")
    if launcher == "none":
        for name in ("ranks", "threads", "launcher_flags", "launcher_path"):
            if keys.has(name):
                raise keys.error(name, "only used with a launcher", 'launcher = "mpiexec" or "srun"')
        return Launching()
    if not keys.has("ranks"):
        raise keys.error("ranks", f'missing; launcher = "{launcher}" starts how many', "ranks = 4")
    if task.has("cores"):
        raise task.error(
            "cores", "with a launcher a task takes ranks x threads cores", "threads = N for cores per rank"
        )
    path = keys.text("launcher_path")
    if check_programs:
        _refuse_missing_launcher(keys, launcher, path)
    return Launching(
        launcher=cast("LauncherKind", launcher),
        path=path,
        flags=keys.texts("launcher_flags"),
        threads=keys.whole("threads", 1, 1, 10**6),
    )


def _refuse_missing_launcher(keys: ToolKeys, launcher: str, path: str) -> None:
    if launcher == "srun" and "SLURM_JOB_ID" not in os.environ:
        raise keys.error(
            "launcher",
            '"srun" starts steps of a Slurm allocation, and this is none (SLURM_JOB_ID is not set)',
            'keystone-mpi submit, sbatch or salloc; or launcher = "mpiexec"',
        )
    if path and shutil.which(path) is None:
        raise keys.error("launcher_path", f"{path} is no program")
    if not path and all(shutil.which(name) is None for name in (launcher, "mpirun")):
        raise keys.error("launcher", f"{launcher} is not on PATH", f'launcher_path = "/path/to/{launcher}"')


def read_command(
    sweep: Section,
    choice: ToolChoice,
    checker: TemplateChecker,
    names: tuple[str, ...],
    launching: Launching,
    *,
    start_dir: Path,
    sweep_dir: Path,
    own_folder: bool,
    made_files: frozenset[str],
    path_is_set: bool,
    check_programs: bool,
) -> Prepared:
    """Let the tool say how the tasks are run.

    Parameters
    ----------
    sweep : Section
        The table.
    choice : ToolChoice
        The tool.
    checker : TemplateChecker
        Knows the names.
    names : tuple of str
        Every parameter, for tools that pass them all.
    launching : Launching
        Whether ranks are started.
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
    keys = choice.keys
    own = {"command", *choice.tool.keys}
    for name in sweep.items() if choice.tool.name != "command" else ():
        if name in own or name in _HANDLED_BY_TOOLS:
            continue
        if any(name in tool.keys for tool in TOOLS.values()):
            raise sweep.error(name, f'not used with tool = "{choice.tool.name}"')
    # With `setup` the solver is where that puts it, with a prefix it is inside the container.
    elsewhere = bool(keys.texts("setup") or keys.texts("prefix"))
    prepared = choice.tool.prepare(
        ToolRequest(
            keys=keys,
            checker=checker,
            read_collect=lambda name: read_collect(choice.section.section(name), checker, own_folder),
            names=tuple(name for name in names if name != REPLICATE),
            start_dir=start_dir,
            sweep_dir=sweep_dir,
            own_folder=own_folder,
            made_files=made_files,
            check_files=check_programs,
            check_programs=check_programs and not elsewhere,
            path_is_set=path_is_set,
            launcher=launching.launcher,
        )
    )
    prefix = keys.texts("prefix")
    for position, text in enumerate(prefix):
        checker.check(text, f"{keys.key('prefix')}[{position}]")
    if prefix and check_programs and not keys.texts("setup") and shutil.which(prefix[0]) is None:
        raise keys.error("prefix", f"the program {describe(prefix[0])} is not on PATH")
    return prepared


_HANDLED_BY_TOOLS = frozenset({"command", "shell", "python"})
"""Keys whose misuse the tools explain themselves."""


def tool_environment(choice: ToolChoice, prepared: Prepared, checker: TemplateChecker) -> dict[str, str]:
    """Return the variables that the tool sets, unless ``[task] env`` does."""
    return {**prepared.env, **read_env(choice.section.section("env"), checker)}
