"""Collectors: readers of what one kind of solver prints and writes.

Rule: a collector runs in the slot process beside the solver (standard library
and msgspec only), keeps bounded memory whatever comes, and raises nothing but
`ResultFormatError`. What a solver says of itself (JSON, KEYSTONE_RESULT,
``[collect]``) wins over what a collector found.

    recipe.collectors --make_collector--> feed(stdout chunks)* --> finish(folder) --> result values
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from keystone_mpi.core.errors import InternalError
from keystone_mpi.tools.recipe import CollectorRule


class Collector(Protocol):
    """Gathers the results of one attempt."""

    def feed(self, chunk: bytes) -> None:
        """Take a piece of standard output as it comes."""

    def finish(self, folder: str) -> Mapping[str, Any]:
        """Return the results; `folder` is where the solver ran, not yet tidied up."""


def _lammps_log(options: Mapping[str, str]) -> Collector:
    from keystone_mpi.tools.lammps_log import LammpsLog

    return LammpsLog(whole_table=options.get("thermo") == "table")


def _openfoam_case(options: Mapping[str, str]) -> Collector:
    from keystone_mpi.tools.openfoam_output import OpenfoamOutput

    return OpenfoamOutput(history=options.get("residuals") == "history")


_COLLECTORS: dict[str, Callable[[Mapping[str, str]], Collector]] = {
    "lammps-log": _lammps_log,
    "openfoam": _openfoam_case,
}
COLLECTOR_KINDS = tuple(_COLLECTORS)


def make_collector(rule: CollectorRule) -> Collector:
    """Make the collector of one attempt."""
    make = _COLLECTORS.get(rule.kind)
    if make is None:
        raise InternalError(f"no collector is called {rule.kind!r}")
    return make(rule.options)
