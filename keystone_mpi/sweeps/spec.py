"""The normalised sweep: what a sweep file means, complete in itself.

Rule: a spec needs no other file.  Table columns, template texts and Sobol
points are in it, so ``status``, ``show``, ``rerun`` and a continuation read it
from the results file and get the very same tasks.

    sweep file --(load)--> SweepSpec --(JSON bytes)--> results file --> SweepSpec
"""

from typing import Literal

import msgspec

from keystone_mpi.core.model import RetryBudget
from keystone_mpi.sweeps.values import Kind, Value
from keystone_mpi.tools.recipe import Recipe

SPEC_FORMAT = 1


class AxisSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One parameter of the grid; exactly one of the four sources is set."""

    name: str
    values: list[Value] = []
    linspace: tuple[int | float, int | float, int] | None = None
    """first, last, count."""
    range: tuple[int | float, int | float, int | float] | None = None
    """start, stop (exclusive), step."""
    logspace: tuple[float, float, int] | None = None
    """first, last, count: the values themselves, not exponents."""


class RowsSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Columns that advance together."""

    source: Literal["zip", "table", "lines"]
    names: list[str]
    kinds: list[Kind]
    columns: list[list[Value]]


class RangeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One sampled parameter."""

    name: str
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    type: Literal["float", "int"] = "float"


class SampleSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """``[sample]``."""

    method: Literal["random", "lhs", "sobol"]
    n: int
    ranges: list[RangeSpec]
    seed: int = 0
    points: list[list[float]] = []
    """Sobol points in [0, 1), one list per range: readers of the file need no scipy."""


class SpaceSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parameter space."""

    params: list[AxisSpec] = []
    rows: list[RowsSpec] = []
    sample: SampleSpec | None = None
    derived: dict[str, str] = {}
    where: str = ""
    repeat: int = 1


class Option(msgspec.Struct, frozen=True, omit_defaults=True):
    """A number of ``[task]``, or the parameter that it comes from."""

    value: float = 0.0
    param: str = ""


class TaskSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """``[task]`` as far as the scheduler wants to know."""

    cores: Option = Option(1)
    memory: Option = Option()
    """Bytes; 0: no limit."""
    gpus: Option = Option()
    timeout: Option = Option()
    """Seconds; 0: none."""
    priority: Option = Option()
    budget: RetryBudget = RetryBudget()
    ranks: Option = Option()
    """With a launcher a task takes ranks x threads cores; 0: no launcher."""
    threads: int = 1


class SweepSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that a sweep file means."""

    format: int
    name: str
    source: str
    """Path of the sweep file when it was read."""
    recipe: Recipe
    space: SpaceSpec
    task: TaskSpec = TaskSpec()
    seed: int = 0
    fingerprint: dict[str, str] = {}
    warnings: list[str] = []
