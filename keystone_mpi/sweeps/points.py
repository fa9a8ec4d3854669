"""Points: ``[params]``, ``[zip]``, ``[table]`` and ``[sample]`` into one `SpaceSpec`.

Rule: what is wrong with a value is said here, with its key; what comes out
needs no other file.

    Section --(read_space)--> SpaceSpec --(Space)--> points
"""

from __future__ import annotations

import math
import warnings as python_warnings
from pathlib import Path
from typing import Literal, cast

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.blocks import RowsBlock, SampleBlock, refuse_repeats
from keystone_mpi.sweeps.reading import TABLES, Section
from keystone_mpi.sweeps.spec import AxisSpec, RangeSpec, RowsSpec, SampleSpec, SpaceSpec
from keystone_mpi.sweeps.values import LARGEST_INT, REPLICATE, check_name, describe, typed_column

RANGE_FORMS = {
    "linspace": "[first, last, count]",
    "range": "[start, stop (exclusive), step]",
    "logspace": "[first, last, count] (the values themselves, not exponents)",
}
LARGEST_SOBOL = 2**22
"""Points times columns: they are computed once and kept in the results file."""


def read_space(document: Section, folder: Path, warnings: list[str]) -> SpaceSpec:
    """Read everything that makes points.

    Parameters
    ----------
    document : Section
        The whole file.
    folder : Path
        Where the sweep file lies; tables are looked up from there.
    warnings : list of str
        Gets what is odd but allowed.
    """
    sweep = document.section("sweep", TABLES["sweep"])
    repeat = sweep.whole("repeat", 1, 1)
    taken: dict[str, str] = {REPLICATE: "sweep.repeat"} if repeat > 1 else {}
    params = [_axis(name, value) for name, value in document.section("params").items().items()]
    _take_names([axis.name for axis in params], "params", taken)
    rows: list[RowsSpec] = []
    if document.has("zip"):
        rows.append(_zip(document.section("zip"), taken))
    if document.has("table"):
        from keystone_mpi.sweeps.table import read_table

        table = read_table(folder, document.section("table", TABLES["table"]))
        _take_names(table.names, "table", taken)
        rows.append(table)
    sample = None
    if document.has("sample"):
        sample = _sample(document.section("sample", TABLES["sample"]), taken, warnings)
    derived: dict[str, str] = {}
    for name, text in sweep.section("derived").items().items():
        key = f"sweep.derived.{name}"
        if not isinstance(text, str):
            raise SweepFileError(
                None,
                key,
                f"found {describe(text)}; allowed is an expression as text",
                f'{name} = "1 / mesh_size"',
            )
        derived[name] = text
    _take_names(list(derived), "sweep.derived", taken)
    where = sweep.text("where")
    if sweep.has("where") and not where.strip():
        raise sweep.error("where", "the expression is empty")
    return SpaceSpec(params, rows, sample, derived, where, repeat)


def _take_names(names: list[str], table: str, taken: dict[str, str]) -> None:
    for name in names:
        key = f"{table}.{name}"
        check_name(name, key)
        if name in taken:
            raise SweepFileError(
                None,
                key,
                f"the parameter {name} is already given by {taken[name]}",
                "with repeat the replicate's number is called replicate" if name == REPLICATE else "",
            )
        taken[name] = key if table != "table" else f"the table's column {name}"


def _numbers(value: object, key: str, form: str, count: int) -> list[int | float]:
    good = (
        isinstance(value, list)
        and len(value) == count
        and all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)
        and all(math.isfinite(item) and abs(item) <= LARGEST_INT for item in value)
    )
    if not good:
        raise SweepFileError(None, key, f"found {describe(value)}; allowed is {form}")
    return cast("list[int | float]", value)


def _axis(name: str, value: object) -> AxisSpec:
    key = f"params.{name}"
    match value:
        case list():
            kind, values = typed_column(value, key)
            del kind
            return AxisSpec(name, values)
        case dict():
            section = Section(key, value, tuple(RANGE_FORMS))
            if len(value) != 1:
                raise SweepFileError(
                    None, key, f"found {describe(value)}; allowed is exactly one of {', '.join(RANGE_FORMS)}"
                )
            form = next(iter(value))
            parts = _numbers(value[form], section.key(form), RANGE_FORMS[form], 3)
            if form == "range":
                return AxisSpec(name, range=(parts[0], parts[1], parts[2]))
            if not isinstance(parts[2], int):
                raise SweepFileError(
                    None, section.key(form), f"the count {parts[2]} is not a whole number", RANGE_FORMS[form]
                )
            if form == "linspace":
                return AxisSpec(name, linspace=(parts[0], parts[1], parts[2]))
            return AxisSpec(name, logspace=(float(parts[0]), float(parts[1]), parts[2]))
        case _:
            raise SweepFileError(
                None,
                key,
                f"found {describe(value)}; allowed is a list of values or a range",
                f"{name} = [{describe(value)}]",
            )


def _zip(section: Section, taken: dict[str, str]) -> RowsSpec:
    names = list(section.items())
    if not names:
        raise SweepFileError(None, "zip", "the table is empty; it needs columns of one length")
    _take_names(names, "zip", taken)
    kinds, columns = [], []
    for name, values in section.items().items():
        if not isinstance(values, list):
            raise section.wrong(name, "a list of values")
        kind, column = typed_column(values, section.key(name))
        kinds.append(kind)
        columns.append(column)
    lengths = {name: len(column) for name, column in zip(names, columns, strict=True)}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise SweepFileError(
            None, "zip", f"the columns differ in length: {found}", "[params] crosses its lists"
        )
    rows = RowsSpec("zip", names, kinds, columns)
    refuse_repeats(RowsBlock(rows), "zip", lambda row: f"entry {row + 1}")
    return rows


def _sample(section: Section, taken: dict[str, str], warnings: list[str]) -> SampleSpec:
    method = section.choice("method", ("random", "lhs", "sobol"), "random")
    if not section.has("n"):
        raise section.error("n", "missing; how many points are to be drawn")
    n = section.whole("n", 1, 1, 2**40)
    seed = section.whole("seed", 0, 0)
    ranges_section = section.section("ranges")
    if not ranges_section.items():
        raise section.error("ranges", "missing or empty", "ranges = { x = [0, 1] }")
    ranges = [_range(name, value, ranges_section.key(name)) for name, value in ranges_section.items().items()]
    _take_names([one.name for one in ranges], "sample.ranges", taken)
    points: list[list[float]] = []
    if method == "sobol":
        points = _sobol(section, n, len(ranges), seed, warnings)
    spec = SampleSpec(cast("Literal['random', 'lhs', 'sobol']", method), n, ranges, seed, points)
    if all(one.type == "int" for one in ranges):
        choices = math.prod(int(one.high) - int(one.low) + 1 for one in ranges)
        if n > choices:
            raise section.error("n", f"{n:,} points asked for, but the whole-number ranges hold {choices:,}")
        try:
            refuse_repeats(SampleBlock(spec), "sample", lambda row: f"draw {row + 1}")
        except SweepFileError as error:
            raise section.error(
                "ranges",
                f"whole numbers only: {error.problem}",
                "draw fewer points, or list the values in [params]",
            ) from None
    return spec


def _range(name: str, value: object, key: str) -> RangeSpec:
    if isinstance(value, list):
        low, high = _numbers(value, key, "[low, high]", 2)
        scale, kind = "linear", "float"
    else:
        section = Section(key, value, ("low", "high", "scale", "type"))
        for end in ("low", "high"):
            if not section.has(end):
                raise section.error(end, "missing; a range needs low and high")
        low, high = _numbers([section.table["low"], section.table["high"]], key, "finite low and high", 2)
        scale = section.choice("scale", ("linear", "log"), "linear")
        kind = section.choice("type", ("float", "int"), "float")
    if not low < high:
        raise SweepFileError(None, key, f"low = {low} is not below high = {high}")
    if scale == "log" and low <= 0:
        raise SweepFileError(None, key, f'low = {low} with scale = "log"; allowed are numbers above 0')
    if kind == "int" and not (
        float(low).is_integer() and float(high).is_integer() and max(abs(low), abs(high)) < 2**52
    ):
        raise SweepFileError(
            None, key, f'low = {low}, high = {high} with type = "int"; allowed are whole numbers'
        )
    return RangeSpec(
        name,
        float(low),
        float(high),
        cast("Literal['linear', 'log']", scale),
        cast("Literal['float', 'int']", kind),
    )


def _sobol(section: Section, n: int, dimensions: int, seed: int, warnings: list[str]) -> list[list[float]]:
    if n * dimensions > LARGEST_SOBOL:
        raise section.error(
            "n",
            f"{n:,} Sobol points of {dimensions} values; at most {LARGEST_SOBOL:,} values are allowed",
            'method = "random" has no such limit',
        )
    try:
        from scipy.stats import qmc
    except ImportError:
        raise section.error(
            "method", '"sobol" needs scipy, which is not installed here', 'pip install "keystone_mpi[sample]"'
        ) from None
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        warnings.append(
            f"sample.n = {n}: Sobol points are balanced at powers of two, such as {below} or {2 * below}"
        )
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # the same remark, said above in a user's words
        drawn = qmc.Sobol(dimensions, scramble=True, rng=seed).random(n)
    return [[float(value) for value in drawn[:, column]] for column in range(dimensions)]
