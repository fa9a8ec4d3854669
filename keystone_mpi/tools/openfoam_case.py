"""An OpenFOAM case folder with parameters in it: read once, rendered per task.

Rule: the case itself is never written. Each dictionary that holds a
placeholder or an entry to be set becomes a template, which is rendered into the
task's own copy of the case.

    <<nu>>, <<nu:.4g>> anywhere in 0*/, constant/, system/     --\\
    "system/controlDict:endTime" = "{end_time}"                  >--> FileRule(text = template)
    "system/fvSolution:solvers/p/tolerance" = 1e-8             --/

An entry that is not there is an error, not a new entry: a misspelt key would
change nothing, silently.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.tools.finding import escape_braces, near
from keystone_mpi.tools.recipe import FileRule
from keystone_mpi.tools.tool import Checker

LARGEST_DICTIONARY_BYTES = 1 << 20
"""Larger files are data (meshes, fields) and are copied as they are."""
LARGEST_DIGEST_BYTES = 16 << 20
RUN_LEFTOVERS = re.compile(r"(processors?\d.*|postProcessing|log\..*|\.git)\Z")
_PLACEHOLDER = re.compile(r"<<\s*([A-Za-z_]\w*)\s*(:[^<>\n]*)?>>")
_TOKEN = re.compile(
    r"""
    //[^\n]* | /\*.*?\*/ | \#\{.*?\#\} | "(?:\\.|[^"\\])*" | \#[^\n]* | [{}();] | [^\s{}();"]+
    """,
    re.VERBOSE | re.DOTALL,
)
_MARK = "\x00{}\x00"


def case_files(case: Path) -> Iterator[Path]:
    """Yield the files of a case that its tasks get, relative to it."""
    for folder, folders, files in os.walk(case):
        here = Path(folder).relative_to(case)
        folders[:] = sorted(name for name in folders if here.parts or not RUN_LEFTOVERS.match(name))
        for name in sorted(files):
            if here.parts or not RUN_LEFTOVERS.match(name):
                yield here / name


def digest_of_case(case: Path) -> str:
    """Return a digest of what a case holds; of very large files only their size counts."""
    digest = hashlib.blake2b(digest_size=16)
    for name in case_files(case):
        path = case / name
        if path.is_symlink() and not path.exists():
            continue
        size = path.stat().st_size
        digest.update(f"{name}\0{size}\0".encode())
        if size <= LARGEST_DIGEST_BYTES:
            digest.update(path.read_bytes())
    return "blake2b:" + digest.hexdigest()


def case_templates(
    case: Path, entries: Mapping[str, Any], checker: Checker, where: str
) -> dict[str, FileRule]:
    """Return the files of a case that differ between tasks.

    Parameters
    ----------
    case : Path
        The folder.
    entries : mapping
        ``file:keyword/keyword`` -> value or template.
    checker : Checker
        Knows the parameters.
    where : str
        Key of `entries` for messages.

    Raises
    ------
    SweepFileError
        A file or entry is not there, or a name is no parameter.
    """
    by_file: dict[str, list[tuple[str, str]]] = {}
    for key, value in entries.items():
        file, colon, entry = key.partition(":")
        if not colon or not entry.strip("/"):
            raise SweepFileError(
                None, where, f'found "{key}"; allowed is file:entry', '"system/controlDict:endTime" = ...'
            )
        plain = os.path.normpath(file)
        if not (case / plain).is_file() or plain.startswith(".."):
            known = [str(name) for name in case_files(case)]
            raise SweepFileError(None, where, f"the case has no file {file}", near(file, known))
        template = _value_template(value, f"{where}.{key}")
        checker.check(template, f'{where}."{key}"')
        by_file.setdefault(plain, []).append((entry, template))
    rules: dict[str, FileRule] = {}
    for name in case_files(case):
        path = case / name
        entries_here = by_file.get(str(name), [])
        text = _dictionary_text(path, wanted=bool(entries_here))
        if text is None or not (entries_here or _PLACEHOLDER.search(text)):
            continue
        deck = fill_in(text, entries_here, path, where)
        checker.check(deck, "", path=path, hint="<<name>> stands for a parameter")
        rules[escape_braces(str(name))] = FileRule(template=str(path), text=deck)
    return rules


def _dictionary_text(path: Path, *, wanted: bool) -> str | None:
    """Return a dictionary's text; None for data."""
    try:
        if path.stat().st_size > LARGEST_DICTIONARY_BYTES and not wanted:
            return None
        return path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None


def _value_template(value: Any, where: str) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str() if value.strip():
            return value
        case list() if value and all(isinstance(item, int | float) for item in value):
            return "(" + " ".join(map(repr, value)) + ")"
        case _:
            raise SweepFileError(None, where, f"found {value!r}; allowed are a number, a text or a vector")


def fill_in(text: str, entries: list[tuple[str, str]], path: Path, where: str) -> str:
    """Return the template of one dictionary: entries set, placeholders as names, other braces doubled."""
    templates: list[str] = []
    for entry, template in entries:
        start, end = find_entry(text, entry, path, where)
        text = text[:start] + _MARK.format(len(templates)) + text[end:]
        templates.append(template)
    pieces: list[str] = []
    position = 0
    for found in _PLACEHOLDER.finditer(text):
        pieces.append(escape_braces(text[position : found.start()]))
        pieces.append("{" + found.group(1) + (found.group(2) or "").rstrip() + "}")
        position = found.end()
    pieces.append(escape_braces(text[position:]))
    deck = "".join(pieces)
    for number, template in enumerate(templates):
        deck = deck.replace(_MARK.format(number), template)
    return deck


def find_entry(text: str, entry: str, path: Path, where: str) -> tuple[int, int]:
    """Return where an entry's value stands in a dictionary's text.

    Parameters
    ----------
    entry : str
        Keywords joined with ``/``: ``solvers/p/tolerance``.
    """
    start, end = 0, len(text)
    parts = [part for part in entry.split("/") if part]
    for depth, part in enumerate(parts):
        known: dict[str, tuple[bool, int, int]] = {}
        for keyword, is_dictionary, first, last in _entries(text, start, end):
            known[keyword.strip('"')] = (is_dictionary, first, last)
        if part not in known:
            inside = f" in {'/'.join(parts[:depth])}" if depth else ""
            hint = near(part, known) or f"it has {', '.join(list(known)[:12])}"
            raise SweepFileError(None, where, f"{path} has no entry {part}{inside}", hint)
        is_dictionary, start, end = known[part]
        if is_dictionary != (depth < len(parts) - 1):
            shown = "/".join(parts[: depth + 1])
            found = "is a dictionary" if is_dictionary else "is a value"
            hint = f"name an entry in it: {shown}/..." if is_dictionary else ""
            raise SweepFileError(None, where, f"{path}: {shown} {found}", hint)
    return start, end


def _entries(text: str, start: int, end: int) -> Iterator[tuple[str, bool, int, int]]:
    """Yield (keyword, is a dictionary, start, end of its content) at one level of a dictionary."""
    keyword = ""
    first = last = -1
    depth = 0
    body = -1
    for token in _TOKEN.finditer(text, start, end):
        word = token.group()
        if word.startswith(("//", "/*")) or (word.startswith("#") and not keyword):
            continue
        if depth == 0 and word == "{" and keyword and first < 0:
            body = token.end()
            depth = 1
        elif word in "{(":
            depth += 1
            first = token.start() if first < 0 and body < 0 else first
        elif word in "})":
            depth -= 1
            last = token.end()
            if depth == 0 and body >= 0:
                yield keyword, True, body, token.start()
                keyword, first, body = "", -1, -1
        elif depth == 0 and word == ";":
            if keyword and first >= 0:
                yield keyword, False, first, last
            keyword, first = "", -1
        elif depth == 0:
            if not keyword:
                keyword = word
            else:
                first = token.start() if first < 0 else first
                last = token.end()
