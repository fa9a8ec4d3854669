"""Fingerprint: what runs the tasks, in parts that can be compared and shown.

Rule: a part changes exactly when the tasks would run something else.  What is
collected, limits and retries are no part of it.  Short parts are kept as they
were written, long ones and files as a digest, so a difference can be told in
words.

    command | env | stdin | derived:<name> | file:<target> | script:<name> | setup | prefix
    launcher | case:<folder>
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from keystone_mpi.tools.recipe import FileRule, Recipe
from keystone_mpi.tools.tool import Prepared

LARGEST_SCRIPT_BYTES = 16 * 2**20
LONGEST_TEXT = 2000
_DIGEST = "blake2b:"
_WRITTEN_SUFFIXES = frozenset(
    f".{name}"
    for name in "log out err h5 hdf5 nc npy npz vtu vtk pvd xdmf png pdf".split()  # noqa: SIM905 - reads better than a list
)


def _digest(data: bytes) -> str:
    return _DIGEST + hashlib.blake2b(data, digest_size=16).hexdigest()


def _part(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT and not text.startswith(_DIGEST) else _digest(text.encode())


def _scripts(literals: Iterable[str], start_dir: Path, made: frozenset[str]) -> dict[str, str]:
    """Digest the files of the start folder that the command names: the script, an input deck.

    Files that look written by the solver (logs, results, what follows an
    option such as ``--output``) are left out: they change by themselves.
    """
    parts: dict[str, str] = {}
    before = ""
    for name in literals:
        option, before = before, name
        path = start_dir / name
        if name.startswith("-") or name in made or path.suffix.lower() in _WRITTEN_SUFFIXES:
            continue
        if option.startswith("-") and ("out" in option.lower() or "log" in option.lower() or option == "-o"):
            continue
        try:
            if not path.is_file() or path.stat().st_size >= LARGEST_SCRIPT_BYTES:
                continue
            if not path.resolve().is_relative_to(start_dir.resolve()) and not path.suffix:
                continue  # a system program given by its path: an update of it is not the user's change
            parts[f"script:{name}"] = _digest(path.read_bytes())
        except (OSError, ValueError):
            continue
    return parts


def make_fingerprint(
    command: Prepared, recipe: Recipe, derived: Mapping[str, str], start_dir: Path
) -> dict[str, str]:
    """Return part -> text or digest of what runs the tasks."""
    parts = {
        "command": _part(command.written),
        "env": _part(msgspec.json.encode(recipe.env, order="sorted").decode()),
        "stdin": _part(recipe.stdin),
        "setup": _part(msgspec.json.encode(recipe.setup).decode()),
    }
    if recipe.prefix:
        parts["prefix"] = _part(msgspec.json.encode(recipe.prefix).decode())
    if recipe.launcher:
        parts["launcher"] = recipe.launcher
    parts.update(command.fingerprint)
    for name, text in derived.items():
        parts[f"derived:{name}"] = _part(" ".join(text.split()))
    for target, rule in recipe.files.items():
        parts[f"file:{target}"] = _file_part(rule)
    parts.update(_scripts(command.literals, start_dir, frozenset(recipe.files)))
    return parts


def _file_part(rule: FileRule) -> str:
    if rule.template:
        return _digest(rule.text.encode())
    source = rule.copy or rule.link
    path = Path(source.replace("{{", "{").replace("}}", "}"))
    kind = "copy" if rule.copy else "link"
    try:
        if path.is_file() and path.stat().st_size < LARGEST_SCRIPT_BYTES:
            return f"{kind} {_digest(path.read_bytes())}"
    except OSError:
        pass
    return f"{kind} {path.name}"


def fingerprint_difference(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Say in lines for people how two fingerprints differ; empty when they do not.

    A file that the command names and that was not there before is no
    difference: the solver may have written it.
    """
    lines: list[str] = []
    for part in sorted({*old, *new}):
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        kind, _, name = part.partition(":")
        label = {"file": "[files]", "derived": "derived"}.get(kind, kind) + (f" {name}" if name else "")
        if before is None:
            if kind != "script":
                lines.append(f"{label} is new" + ("" if _is_digest(after) else f": {after}"))
        elif after is None:
            lines.append(f"{label} is gone" + ("" if _is_digest(before) else f" (was: {before})"))
        elif _is_digest(before) or _is_digest(after):
            lines.append(f"{label} changed")
        else:
            lines.append(f"{label} changed: {before or 'none'} -> {after or 'none'}")
    return lines


def _is_digest(text: str | None) -> bool:
    return text is None or _DIGEST in text
