"""Results of one attempt: out of its output, its result file and the files it was told to write.

Rule: only the standard library and msgspec (it runs in slot processes, many of
which start at once); nothing here raises for what a solver wrote: what cannot be
read becomes the attempt's `why` and one line of text.

    stdout chunks --> Collection.feed_stdout --> last match of each regex, success regex
    the tool's collectors (a thermo log, a case's tables) --> first of all
    stdout tail   --> last JSON object          \
    KEYSTONE_RESULT (.json, .npz)                > later ones win --> scalars, arrays
    [collect] regex, .npy .npz .csv .json text  /                    --> success conditions

Of a JSON object, nested keys are joined with dots, lists of numbers become
arrays, null is a missing value. A CSV column is an array; with a `type` it is
the column's last value. A file that is as it was before the attempt is not
this attempt's result.
"""

from __future__ import annotations

import math
import os
import re
from typing import Any

import msgspec

from keystone_mpi.core.model import ArrayValue, Why
from keystone_mpi.tools.arrays import ResultFormatError, array_from_numbers, read_npz
from keystone_mpi.tools.collectors import make_collector
from keystone_mpi.tools.recipe import CollectRule, Recipe
from keystone_mpi.tools.result_files import convert, parse_json, read_bytes, read_file

STDOUT_WINDOW_BYTES = 1 << 20
"""How much of the end of stdout is searched for a JSON object."""
_CARRY_BYTES = 1 << 16
"""Longest part of an unfinished line that is kept for the regexes."""
_OVERLAP_BYTES = 1 << 11
_STRING_LIMIT_CHARS = 1 << 20
_MARKER = "KEYSTONE_RESULT"

Signature = tuple[int, int, int, int] | None


class Collected(msgspec.Struct, frozen=True):
    """What an attempt brought, and whether that makes it a success."""

    scalars: dict[str, Any] = {}
    arrays: dict[str, ArrayValue] = {}
    ok: bool = True
    why: Why = Why.NONE
    error: str = ""


NOTHING = Collected()


class _Stream:
    """Regexes over one output stream, line by line, with a bounded memory of an unfinished line."""

    __slots__ = ("_carry", "_searched", "found", "last", "rules", "success")

    def __init__(
        self, rules: tuple[tuple[str, re.Pattern[str]], ...], success: re.Pattern[str] | None
    ) -> None:
        self.rules = rules
        self.success = success
        self.found = success is None
        self.last: dict[str, str] = {}
        self._carry = b""
        self._searched = 0

    def feed(self, chunk: bytes) -> None:
        data = self._carry + chunk
        cut = data.rfind(b"\n") + 1
        if cut <= self._searched:
            if len(data) <= _CARRY_BYTES:
                self._carry = data
                return
            cut = len(data)
        self._search(data[:cut])
        # A little of what was searched stays, from the start of a line: a match may span lines.
        keep = 0
        if cut > _OVERLAP_BYTES:
            keep = data.find(b"\n", cut - _OVERLAP_BYTES, cut) + 1 or cut
        self._carry = data[keep:]
        self._searched = cut - keep

    def finish(self) -> None:
        if len(self._carry) > self._searched:
            self._search(self._carry)
        self._carry = b""
        self._searched = 0

    def _search(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for name, pattern in self.rules:
            for match in pattern.finditer(text):
                self.last[name] = (match.group(1) if pattern.groups else match.group()) or ""
        if not self.found and self.success is not None:
            self.found = self.success.search(text) is not None


class CollectPlan:
    """A recipe's `[collect]` and `[success]`, compiled once for all its attempts.

    Parameters
    ----------
    recipe : Recipe
        Where the rules come from.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.success_regex = re.compile(recipe.success.regex, re.MULTILINE) if recipe.success.regex else None
        regex_rules = [rule for rule in recipe.collect if rule.regex]
        self._stdout_rules = tuple(
            (rule.name, re.compile(rule.regex, re.MULTILINE))
            for rule in regex_rules
            if rule.source == "stdout"
        )
        self._stderr_rules = tuple(
            (rule.name, re.compile(rule.regex, re.MULTILINE))
            for rule in regex_rules
            if rule.source == "stderr"
        )
        self.watches_stdout = (
            bool(self._stdout_rules) or self.success_regex is not None or bool(recipe.collectors)
        )
        self.watches_stderr = bool(self._stderr_rules)
        self.has_rules = bool(recipe.collect or recipe.collectors) or recipe.success != type(recipe.success)()

    def start(self, collect_files: dict[str, str], folder: str = "") -> Collection:
        """Begin an attempt that will run in `folder`: remember how its result files look before it runs."""
        return Collection(self, collect_files, self._stdout_rules, self._stderr_rules, folder)


class Collection:
    """The results of one attempt in the making; made by `CollectPlan.start`."""

    def __init__(
        self,
        plan: CollectPlan,
        files: dict[str, str],
        stdout_rules: tuple[tuple[str, re.Pattern[str]], ...],
        stderr_rules: tuple[tuple[str, re.Pattern[str]], ...],
        folder: str = "",
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._collectors = [make_collector(rule) for rule in plan.recipe.collectors]
        self._files = files
        self._before = {path: signature(path) for path in files.values()}
        self._stdout = _Stream(stdout_rules, plan.success_regex)
        self._stderr = _Stream(stderr_rules, None)
        self.feed_stdout = self._feed_all if self._collectors else self._stdout.feed
        self.feed_stderr = self._stderr.feed

    def _feed_all(self, chunk: bytes) -> None:
        self._stdout.feed(chunk)
        for collector in self._collectors:
            collector.feed(chunk)

    def finish(self, stdout_tail: bytes, result_path: str) -> Collected:
        """Read everything and judge; called once, after the solver exited with code 0.

        Parameters
        ----------
        stdout_tail : bytes
            The end of stdout, at most `STDOUT_WINDOW_BYTES` of it.
        result_path : str
            The file that the solver wrote for KEYSTONE_RESULT; empty: it wrote none.
        """
        self._stdout.finish()
        self._stderr.finish()
        values = _Values()
        try:
            for collector in self._collectors:
                values.add_all(dict(collector.finish(self._folder)))
            collect_defaults(values, stdout_tail, result_path)
            for rule in self._plan.recipe.collect:
                self._apply(rule, values)
        except ResultFormatError as problem:
            return Collected(values.scalars, values.arrays, False, Why.RESULTS, str(problem))
        except OSError as problem:
            error = f"a result file cannot be read: {problem.strerror}: {problem.filename}"
            return Collected(values.scalars, values.arrays, False, Why.RESULTS, error)
        unmet = self._unmet_condition(values)
        if unmet:
            return Collected(values.scalars, values.arrays, False, Why.CONDITION, unmet)
        return Collected(values.scalars, values.arrays)

    def _apply(self, rule: CollectRule, values: _Values) -> None:
        if rule.regex:
            last = self._stdout.last if rule.source == "stdout" else self._stderr.last
            if rule.name in last:
                values.add(rule.name, convert(last[rule.name], rule.type, f"collect.{rule.name}"))
            return
        path = self._files.get(rule.name, rule.file)
        now = signature(path)
        if now is None or now == self._before.get(path):
            if rule.required:
                state = "was not written" if now is None else "is older than this attempt"
                raise ResultFormatError(f"collect.{rule.name}: required file {path} {state}")
            return
        values.add(rule.name, read_file(rule, path))

    def _unmet_condition(self, values: _Values) -> str:
        success = self._plan.recipe.success
        if not self._stdout.found:
            return f"success.regex: {success.regex!r} was not found in stdout"
        needed = [rule.name for rule in self._plan.recipe.collect if rule.required]
        for name in (*needed, *success.required, *success.finite):
            if not values.has(name):
                return f"required result {name!r} was not found"
        for name in success.finite:
            if not values.is_finite(name):
                shown = f" (it is {values.scalars[name]!r})" if name in values.scalars else ""
                return f"success.finite: result {name!r} is not finite{shown}"
        return ""


class _Values:
    """Result values by name; a later value of the same name wins."""

    def __init__(self) -> None:
        self.scalars: dict[str, Any] = {}
        self.arrays: dict[str, ArrayValue] = {}

    def add(self, name: str, value: Any) -> None:
        # "/" would make a group of its own in the results file.
        name = _clean(name).replace("/", ".").strip(".") or "value"
        match value:
            case None:
                return
            case bool():
                self._scalar(name, value)
            case int():
                self._scalar(name, value if -(2**63) <= value < 2**63 else float(value))
            case float():
                self._scalar(name, value)
            case str():
                if len(value) > _STRING_LIMIT_CHARS:
                    raise ResultFormatError(f"result {name!r} is a string of {len(value)} characters")
                self._scalar(name, _clean(value))
            case ArrayValue():
                self.scalars.pop(name, None)
                self.arrays[name] = value
            case dict():
                for key, inner in value.items():
                    self.add(f"{name}.{key}", inner)
            case list() | tuple():
                array = array_from_numbers(value)
                if array is None:
                    self.add(name, msgspec.json.encode(value).decode())
                else:
                    self.add(name, array)
            case _:
                raise ResultFormatError(f"result {name!r} has the type {type(value).__name__}")

    def add_all(self, members: dict[str, Any]) -> None:
        for key, value in members.items():
            self.add(str(key), value)

    def _scalar(self, name: str, value: bool | int | float | str) -> None:
        self.arrays.pop(name, None)
        self.scalars[name] = value

    def has(self, name: str) -> bool:
        return name in self.scalars or name in self.arrays

    def is_finite(self, name: str) -> bool:
        if name in self.arrays:
            array = self.arrays[name]
            if array.dtype[1] != "f":
                return True
            return all(map(math.isfinite, memoryview(array.data).cast("d" if array.dtype == "<f8" else "f")))
        value = self.scalars[name]
        return not isinstance(value, str) and math.isfinite(value)


def _clean(text: str) -> str:
    """Make text that every reader of the file can take: no NUL, no lone surrogates."""
    if "\0" in text:
        text = text.replace("\0", "\u2400")
    return text.encode("utf-8", "replace").decode("utf-8")


def signature(path: str) -> Signature:
    """How a file looks; equal before and after an attempt: the attempt did not write it."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def last_json_object(data: bytes) -> dict[str, Any] | None:
    """Find the last JSON object in an output: on a line of its own, or pretty-printed over several.

    A line may begin with the word ``KEYSTONE_RESULT``.
    """
    end = len(data)
    while True:
        close = data.rfind(b"}", 0, end)
        if close < 0:
            return None
        line_start = data.rfind(b"\n", 0, close) + 1
        line_end = data.find(b"\n", close)
        line = data[line_start : line_end if line_end >= 0 else len(data)].strip()
        if line == b"}":
            opening = b"\n" + data[:line_start]
            at = opening.rfind(b"\n{")
            found = _parse_object(opening[at + 1 :] + b"}") if at >= 0 else None
        else:
            if line.startswith(_MARKER.encode()):
                line = line[len(_MARKER) :].lstrip(b" \t:=")
            found = _parse_object(line) if line.startswith(b"{") else None
        if found is not None:
            return found
        end = line_start


def _parse_object(data: bytes) -> dict[str, Any] | None:
    try:
        value = parse_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def collect_defaults(values: _Values, stdout_tail: bytes, result_path: str) -> None:
    """Add what needs no rule: the last JSON object on stdout, then the KEYSTONE_RESULT file."""
    if b"}" in stdout_tail:
        found = last_json_object(stdout_tail)
        if found:
            values.add_all(found)
    if result_path:
        data = read_bytes(result_path, _MARKER)
        if data.startswith(b"PK"):
            values.add_all(read_npz(data, _MARKER))
        elif data.strip():
            values.add_all(_json_members(data, _MARKER))


def _json_members(data: bytes, where: str) -> dict[str, Any]:
    try:
        value = parse_json(data)
    except ValueError as problem:
        raise ResultFormatError(f"{where}: malformed JSON: {problem}") from None
    if not isinstance(value, dict):
        raise ResultFormatError(f"{where}: a JSON object is needed, found {type(value).__name__}")
    return value
