"""What a job is made of: command line over sweep file over site profile.

Rule: one set of keys for all three, checked the same way; whoever is nearer to
the person wins. Lists (setup, options) add up, the site's first.

    $KEYSTONE_PROFILE or ~/.config/keystone-mpi.toml   [slurm]  --.
    sweep file                                         [slurm]  ---+--> JobSettings
    keystone-mpi submit --nodes ...                             --'
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.slurm.walltime import parse_limit
from keystone_mpi.sweeps.reading import TABLES, Section, read_document, read_text

PROFILE_VARIABLE = "KEYSTONE_PROFILE"


class JobSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What one source says; None and empty: nothing."""

    nodes: int | None = None
    ranks_per_node: int | None = None
    cores_per_node: int | None = None
    time_s: float | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    memory: str | None = None
    gpus_per_node: int | None = None
    launcher: str | None = None
    setup: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def over(self, other: JobSettings) -> JobSettings:
        """Return these settings with `other` where these say nothing."""
        changes: dict[str, Any] = {}
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, tuple):
                changes[name] = (*theirs, *mine)
            else:
                changes[name] = theirs if mine is None else mine
        return JobSettings(**changes)


def profile_path(environ: Mapping[str, str] | None = None) -> Path:
    """Return where the site profile is, whether there is one or not."""
    env = os.environ if environ is None else environ
    if env.get(PROFILE_VARIABLE):
        return Path(env[PROFILE_VARIABLE])
    config = env.get("XDG_CONFIG_HOME") or os.path.join(env.get("HOME", "~"), ".config")
    return Path(config).expanduser() / "keystone-mpi.toml"


def load_profile(environ: Mapping[str, str] | None = None) -> JobSettings:
    """Read the site profile; nothing when there is none.

    Raises
    ------
    SweepFileError
        It cannot be read, or a key in it is wrong.
    """
    env = os.environ if environ is None else environ
    path = profile_path(env)
    if not path.exists() and not env.get(PROFILE_VARIABLE):
        return JobSettings()
    try:
        document = Section("", read_document(read_text(path), json_file=False), ("slurm",))
        return read_settings(document.section("slurm", TABLES["slurm"]))
    except SweepFileError as error:
        raise _located(path, error) from None


def load_sweep_settings(path: Path) -> JobSettings:
    """Read the ``[slurm]`` table of a sweep file; a task file has none."""
    if path.suffix.lower() not in (".toml", ".json"):
        return JobSettings()
    try:
        document = Section("", read_document(read_text(path), json_file=path.suffix.lower() == ".json"))
        return read_settings(document.section("slurm", TABLES["slurm"]))
    except SweepFileError as error:
        raise _located(path, error) from None


def _located(path: Path, error: SweepFileError) -> SweepFileError:
    if error.path is not None:
        return error
    return SweepFileError(path, error.where, error.problem, error.hint)


def read_settings(section: Section) -> JobSettings:
    """Read a ``[slurm]`` table."""

    def whole(name: str, least: int) -> int | None:
        return section.whole(name, least, least) if section.has(name) else None

    def text(name: str) -> str | None:
        if not section.has(name):
            return None
        value = section.text(name)
        if not value.strip():
            raise section.wrong(name, "a text that is not empty")
        return value

    time = section.table.get("time")
    if time is not None and not isinstance(time, str):
        raise section.wrong("time", 'a text such as "2h" or "1-12:00:00"')
    return JobSettings(
        nodes=whole("nodes", 1),
        ranks_per_node=whole("ranks_per_node", 1),
        cores_per_node=whole("cores_per_node", 1),
        time_s=None if time is None else parse_limit(time, section.key("time")),
        partition=text("partition"),
        account=text("account"),
        qos=text("qos"),
        constraint=text("constraint"),
        reservation=text("reservation"),
        memory=text("memory"),
        gpus_per_node=whole("gpus_per_node", 0),
        launcher=text("launcher"),
        setup=section.texts("setup"),
        options=section.texts("options"),
    )
