"""Options: ``[task]``, what the scheduler wants to know of every task.

Rule: an option is a number, or the name of the parameter that it comes from
(``cores = "{ranks}"``).  Durations and memory may carry units in both cases.

    timeout  10 | "90s" | "10min" | "1h30m" | "2d"          0: none
    memory   bytes | "500MB" | "2GiB" | "2G" (= GiB, as Slurm)  0: none
    retries  0   further attempts after a failure of the solver
    retries_timeout 0, retries_memory 0, retries_lost 2 (the third lost worker quarantines the task)
             or in one: retries = { failed = 1, timeout = 0, memory = 0, lost = 2 }
    ranks x threads take the place of cores where a launcher starts ranks
    cores 1, gpus 0, priority 0 (larger goes first), grace 5 s between SIGTERM and SIGKILL
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from keystone_mpi.core.errors import InternalError, SweepFileError
from keystone_mpi.core.model import RetryBudget
from keystone_mpi.deferred_numpy import np
from keystone_mpi.sweeps.reading import Section
from keystone_mpi.sweeps.spec import Option, TaskSpec
from keystone_mpi.sweeps.values import Array, Kind, Value, describe, near_match

_SECONDS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    **{form: 2 ** (10 * power) for power, unit in enumerate("kmgt", 1) for form in (unit, f"{unit}ib")},
}
_DURATION_PART = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)")
_MEMORY = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*\Z")
_PARAMETER = re.compile(r"\{([^{}]*)\}\Z")
SMALLEST_MEMORY_BYTES = 2**20

DURATION_FORM = 'seconds, or a text such as "90s", "10min", "1h30m", "2d"'
MEMORY_FORM = 'bytes, or a text such as "500MB", "2GiB"'


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def parse_duration(value: object, where: str) -> float:
    """Return seconds; 0 means none."""
    number = _number(value)
    if isinstance(value, str):
        number = 0.0
        position = 0
        plain = value.strip()
        while position < len(plain):
            part = _DURATION_PART.match(plain, position)
            if part is None or (part.group(2).lower() not in _SECONDS and part.group(0) != plain):
                number = None
                break
            unit = part.group(2).lower()
            if unit and unit not in _SECONDS:
                raise SweepFileError(
                    None,
                    where,
                    f'found {describe(value)}; the unit "{part.group(2)}" is none of ms, s, min, h, d',
                    near_match(unit, _SECONDS),
                )
            number += float(part.group(1)) * _SECONDS[unit or "s"]
            position = part.end()
        if not plain:
            number = None
    if number is None or number < 0:
        raise SweepFileError(None, where, f"found {describe(value)}; allowed are {DURATION_FORM}")
    return number


def parse_memory(value: object, where: str) -> float:
    """Return bytes; 0 means no limit."""
    number = _number(value)
    if isinstance(value, str):
        found = _MEMORY.match(value)
        unit = found.group(2).lower() if found is not None else "?"
        number = (
            math.ceil(float(found.group(1)) * _BYTES[unit]) if found is not None and unit in _BYTES else None
        )
    if number is None or number < 0:
        raise SweepFileError(None, where, f"found {describe(value)}; allowed are {MEMORY_FORM}")
    if 0 < number < SMALLEST_MEMORY_BYTES:
        raise SweepFileError(
            None,
            where,
            f"{describe(value)} is {number:g} bytes, too little for any program",
            f'"{number:g}GiB"?',
        )
    return float(math.ceil(number))


def parse_cores(value: object, where: str) -> float:
    """Return a whole number of cores."""
    return _whole(value, where, 1)


def parse_gpus(value: object, where: str) -> float:
    """Return a whole number of GPUs."""
    return _whole(value, where, 0)


def _whole(value: object, where: str, least: int) -> float:
    number = _number(value)
    if number is None or not number.is_integer() or not least <= number <= 10**6:
        raise SweepFileError(
            None, where, f"found {describe(value)}; allowed is a whole number, at least {least}"
        )
    return number


def parse_priority(value: object, where: str) -> float:
    """Return a priority; larger goes first."""
    number = _number(value)
    if number is None:
        raise SweepFileError(None, where, f"found {describe(value)}; allowed is a number; larger goes first")
    return number


PARSERS: dict[str, Callable[[object, str], float]] = {
    "cores": parse_cores,
    "ranks": parse_cores,
    "memory": parse_memory,
    "gpus": parse_gpus,
    "timeout": parse_duration,
    "priority": parse_priority,
}


def read_task(section: Section, kinds: Mapping[str, Kind]) -> TaskSpec:
    """Read the options of ``[task]`` that the scheduler uses."""
    return TaskSpec(
        cores=_option(section, "cores", 1.0, kinds),
        memory=_option(section, "memory", 0.0, kinds),
        gpus=_option(section, "gpus", 0.0, kinds),
        timeout=_option(section, "timeout", 0.0, kinds),
        priority=_option(section, "priority", 0.0, kinds),
        budget=_budget(section),
        ranks=_option(section, "ranks", 0.0, kinds) if section.has("ranks") else Option(),
        threads=section.whole("threads", 1, 1, 10**6),
    )


def _option(section: Section, name: str, default: float, kinds: Mapping[str, Kind]) -> Option:
    value: Any = section.table.get(name, default)
    where = section.key(name)
    if isinstance(value, str) and "{" in value:
        found = _PARAMETER.match(value.strip())
        if found is None:
            raise section.wrong(name, 'a value or one parameter alone, such as "{ranks}"')
        param = found.group(1)
        if param not in kinds:
            raise section.error(
                name,
                f"{{{param}}} is no parameter; the parameters are: {', '.join(kinds) or 'none'}",
                near_match(param, kinds),
            )
        if kinds[param] == "bool" or (kinds[param] == "str" and name not in ("memory", "timeout")):
            raise section.error(
                name, f"the parameter {param} is {'text' if kinds[param] == 'str' else 'true/false'}"
            )
        return Option(param=param)
    return Option(PARSERS[name](value, where))


def _budget(section: Section) -> RetryBudget:
    names = {
        "failed": "retries",
        "timeout": "retries_timeout",
        "memory": "retries_memory",
        "lost": "retries_lost",
    }
    given: Any = section.table.get("retries", 0)
    if isinstance(given, dict):
        for key in names.values():
            if key != "retries" and section.has(key):
                raise section.error(key, "given twice; retries is a table already")
        table = section.section("retries", tuple(names))
        counts = {cause: table.whole(cause, 2 if cause == "lost" else 0, 0, 1000) for cause in names}
    else:
        counts = {
            cause: section.whole(key, 2 if cause == "lost" else 0, 0, 1000) for cause, key in names.items()
        }
    return RetryBudget(counts["failed"], counts["timeout"], counts["memory"], counts["lost"])


def check_values(name: str, param: str, values: Iterable[Value]) -> None:
    """Check the values of a parameter that an option comes from."""
    for value in values:
        try:
            PARSERS[name](value, f"task.{name}")
        except SweepFileError as error:
            raise SweepFileError(
                None, error.where, f"from the parameter {param}: {error.problem}", error.hint
            ) from None


def check_column(name: str, param: str, column: Array) -> None:
    """Check a whole column of numbers quickly; the first value at fault is told as by `check_values`."""
    match name:
        case "cores" | "ranks" | "gpus":
            bad = (column < (0 if name == "gpus" else 1)) | (column != np.floor(column)) | (column > 10**6)
        case "memory":
            bad = (column < 0) | ((column > 0) & (column < SMALLEST_MEMORY_BYTES))
        case "timeout":
            bad = column < 0
        case "priority":
            return
        case _:
            raise InternalError(f"no option is called {name}")
    if bad.any():
        check_values(name, param, column[bad][:1].tolist())


def option_value(option: Option, name: str, params: Mapping[str, Value], point: int) -> float:
    """Return the option of one task."""
    if not option.param:
        return option.value
    try:
        return PARSERS[name](params[option.param], f"task.{name}")
    except SweepFileError as error:
        raise SweepFileError(None, error.where, f"point {point}: {error.problem}", error.hint) from None
