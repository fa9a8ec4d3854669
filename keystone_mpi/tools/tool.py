"""Tool: what one kind of solver needs to be run, behind one small protocol.

Rule: a tool knows how parameters go in, where the solver is found and what it
leaves; it is asked once, when a sweep file is read, and what it answers is
plain data. Adding a solver is one file with one class, and one line in
`tools.table`.

    [sweep], [tools.NAME] --(Keys)--> Tool.prepare --> Prepared --> Recipe
    Tool.find --> Finding --> `keystone-mpi tools`, `doctor`, "missing, install it so"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.tools.recipe import CollectorRule, CollectRule, FileRule
from keystone_mpi.tools.templates import Template


class Keys(Protocol):
    """Keys of the sweep file that a tool reads: ``[sweep]`` first, then ``[tools.NAME]``."""

    def has(self, name: str) -> bool:
        """Whether the key is there."""

    def key(self, name: str) -> str:
        """Return the key's full name for messages."""

    def value(self, name: str) -> Any:
        """Return what the file holds; None when it is not there."""

    def text(self, name: str, default: str = "") -> str: ...

    def texts(self, name: str) -> tuple[str, ...]: ...

    def flag(self, name: str, default: bool = False) -> bool: ...

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str: ...

    def error(self, name: str, problem: str, hint: str = "") -> SweepFileError: ...

    def wrong(self, name: str, allowed: str, hint: str = "") -> SweepFileError: ...


class Checker(Protocol):
    """Compiles templates and refuses unknown names."""

    used: set[str]

    def check(self, text: str, where: str, *, path: Path | None = None, hint: str = "") -> Template: ...


class CollectReader(Protocol):
    """Reads a table of ``[collect]`` shape out of a tool's own keys."""

    def __call__(self, name: str) -> tuple[CollectRule, ...]: ...


class ToolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool may know of the sweep."""

    keys: Keys
    checker: Checker
    read_collect: CollectReader
    names: tuple[str, ...]
    """The parameters that tools pass on: all but the replicate's number."""
    start_dir: Path
    sweep_dir: Path
    own_folder: bool
    """Each task runs in a folder of its own."""
    made_files: frozenset[str]
    """Targets of ``[files]``: scripts among them need not exist."""
    check_files: bool
    """Whether scripts and input decks must be there."""
    check_programs: bool
    """Whether programs can be looked up here: not with `setup` or a container's prefix."""
    path_is_set: bool
    """``[task] env`` sets PATH."""
    launcher: str
    """"", ``mpiexec`` or ``srun``."""

    def pass_all(self, form: tuple[str, ...]) -> list[str]:
        """Return argument templates that pass every parameter, each in `form`.

        Parameters
        ----------
        form : tuple of str
            Such as ``("--{name}", "{value}")``.
        """
        arguments: list[str] = []
        for name in self.names:
            arguments += [part.replace("{name}", name).replace("{value}", f"{{{name}}}") for part in form]
            self.checker.used.add(name)
        return arguments


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool runs a sweep's tasks; becomes part of the recipe."""

    argv: tuple[str, ...]
    written: str
    """What the user wrote, in one canonical text; part of the fingerprint."""
    shell: bool = False
    script: str = ""
    """Absolute path of the tool's script."""
    literals: tuple[str, ...] = ()
    """Arguments without names, as they are run: where scripts and decks may be named."""
    env: Mapping[str, str] = {}
    """Defaults; ``[task] env`` wins."""
    files: Mapping[str, FileRule] = {}
    """Made in the task's folder, beside those of ``[files]``."""
    case: str = ""
    collect: tuple[CollectRule, ...] = ()
    collectors: tuple[CollectorRule, ...] = ()
    jit_cache: bool = False
    unset: tuple[str, ...] = ()
    starts_ranks: bool = False
    mpi_program: str = ""
    check: tuple[str, ...] = ()
    check_hint: str = ""
    fingerprint: Mapping[str, str] = {}
    """Further parts: name -> text or digest."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a solver is here."""

    found: bool
    where: str = ""
    """Path of its program or interpreter."""
    detail: str = ""
    """Its version, or why it was not found."""
    install: str = ""
    """What to type; said where it is missing."""


class Tool(Protocol):
    """One kind of solver."""

    @property
    def name(self) -> str:
        """What ``tool = "..."`` calls it."""

    @property
    def summary(self) -> str:
        """What it runs, a few words for people."""

    @property
    def parameters(self) -> str:
        """How parameters go in, one line for people."""

    @property
    def results(self) -> str:
        """How results come out, one line for people."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of ``[sweep]`` and of ``[tools.NAME]`` that are its own."""

    def default_workdir(self, keys: Keys) -> str:
        """Return ``none``, or ``task`` where its tasks cannot share a folder."""

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:
        """Look for the solver on this machine.

        Parameters
        ----------
        keys : Keys, optional
            They may name another program than the usual.
        version : bool
            Start the solver for its version; not from a rank, whose MPI it would find.
        """

    def prepare(self, request: ToolRequest) -> Prepared:
        """Say how the sweep's tasks are run.

        Raises
        ------
        SweepFileError
            A key is wrong, or the solver is not here: with how to install it.
        """
