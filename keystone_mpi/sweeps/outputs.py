"""Outputs: ``[files]``, ``[collect]``, ``[success]`` and the work-folder keys of ``[task]``.

Rule: tasks must not write into or read from each other's files, so a relative
file of a task needs a folder per task or the task's number in its name.
"""

from __future__ import annotations

import os.path
import re
from pathlib import Path
from typing import Literal, cast

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.checking import TemplateChecker
from keystone_mpi.sweeps.reading import Section, read_text
from keystone_mpi.sweeps.values import describe
from keystone_mpi.tools.finding import escape_braces
from keystone_mpi.tools.recipe import CollectRule, FileRule, SuccessRule
from keystone_mpi.tools.templates import TemplateError, with_braces

LARGEST_DECK_BYTES = 16 * 2**20
_RESULT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*\Z")
_OWN = frozenset({"task_id", "index"})
_OWN_HINT = 'put {task_id} into its name, or [task] workdir = "task"'
_DECK_HINT = 'write {{ and }} for braces that are text, or add delimiters = ["<<", ">>"] to its entry'


def read_files(
    section: Section, checker: TemplateChecker, folder: Path, own_folder: bool
) -> dict[str, FileRule]:
    """Read ``[files]``; sources lie beside the sweep file."""
    rules: dict[str, FileRule] = {}
    for target, value in section.items().items():
        key = section.key(target)
        entry = Section(key, value, ("template", "copy", "link", "delimiters"))
        sources = [name for name in ("template", "copy", "link") if entry.has(name)]
        if len(sources) != 1:
            found = " and ".join(sources) or "none of them"
            raise SweepFileError(None, key, f"found {found}; allowed is exactly one of template, copy, link")
        where_to = checker.check(target, key)
        plain = os.path.normpath(target)
        if os.path.isabs(plain) or plain == ".." or plain.startswith("../") or plain == "." or not target:
            raise SweepFileError(None, key, "the target is not a path inside the task's folder")
        if not own_folder and not where_to.names & _OWN:
            raise SweepFileError(
                None, key, "tasks would write the same file: they share one folder", _OWN_HINT
            )
        rules[target] = _file_rule(entry, sources[0], checker, folder)
        if entry.has("delimiters") and sources[0] != "template":
            raise entry.error("delimiters", "only a template has delimiters")
    return rules


def _file_rule(entry: Section, source: str, checker: TemplateChecker, folder: Path) -> FileRule:
    text = entry.text(source)
    if not text:
        raise entry.error(source, "the path is empty")
    if source != "template":
        template = checker.check(text, entry.key(source))
        if template.literal:
            path = folder / template.render({})
            if not path.exists():
                raise entry.error(source, f"{path} does not exist")
        absolute = text if os.path.isabs(text) else escape_braces(str(folder)) + "/" + text
        return FileRule(copy=absolute) if source == "copy" else FileRule(link=absolute)
    path = folder / text
    if path.is_file() and path.stat().st_size > LARGEST_DECK_BYTES:
        raise entry.error(source, f"{path} is larger than 16 MiB", "use copy or link for files without names")
    try:
        deck = read_text(path)
    except SweepFileError as error:
        raise entry.error(source, str(error)) from None
    if entry.has("delimiters"):
        marks = entry.texts("delimiters")
        if len(marks) != 2 or not all(marks) or any(mark in "{}" for mark in marks):
            raise entry.wrong("delimiters", 'two texts, such as ["<<", ">>"]')
        try:
            deck = with_braces(deck, marks[0], marks[1])
        except TemplateError as error:
            raise SweepFileError(path, f"line {error.line}", error.problem) from None
    checker.check(deck, "", path=path, hint=_DECK_HINT if not entry.has("delimiters") else "")
    return FileRule(template=str(path), text=deck)


def read_collect(section: Section, checker: TemplateChecker, own_folder: bool) -> tuple[CollectRule, ...]:
    """Read ``[collect]``."""
    rules: list[CollectRule] = []
    for name, value in section.items().items():
        key = section.key(name)
        if not _RESULT_NAME.match(name):
            raise SweepFileError(
                None, key, f"{describe(name)} is not a result name; allowed are letters, digits, _, . and -"
            )
        entry = Section(key, value, ("regex", "from", "type", "file", "column", "required"))
        if entry.has("regex") == entry.has("file"):
            raise SweepFileError(
                None,
                key,
                "found "
                + ("both regex and file" if entry.has("file") else "neither regex nor file")
                + "; one is needed",
            )
        regex = entry.text("regex")
        file = entry.text("file")
        if entry.has("regex"):
            if _compiled(entry, "regex").groups < 1:
                raise entry.error(
                    "regex", "it has no group", r"put the value into parentheses: 'residual = (\S+)'"
                )
            if entry.has("column"):
                raise entry.error("column", "only used with file")
        else:
            if entry.has("from"):
                raise entry.error("from", "only used with regex")
            template = checker.check(file, entry.key("file"))
            if not file:
                raise entry.error("file", "the path is empty")
            if not own_folder and not template.names & _OWN and not _is_absolute(file):
                raise entry.error("file", "tasks would read each other's: they share one folder", _OWN_HINT)
        rules.append(
            CollectRule(
                name=name,
                regex=regex,
                source=cast(
                    "Literal['stdout', 'stderr']", entry.choice("from", ("stdout", "stderr"), "stdout")
                ),
                type=cast(
                    "Literal['float', 'int', 'str', 'bool', '']",
                    entry.choice("type", ("float", "int", "str", "bool"), "float")
                    if entry.has("type")
                    else "",
                ),
                file=file,
                column=entry.text("column"),
                required=entry.flag("required"),
            )
        )
    return tuple(rules)


def _is_absolute(file: str) -> bool:
    """An absolute path is the user's own choice, a shared table for example."""
    return os.path.isabs(file)


def _compiled(entry: Section, name: str) -> re.Pattern[str]:
    text = entry.text(name)
    if not text:
        raise entry.error(name, "the regular expression is empty")
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise entry.error(name, f"{describe(text)} is no regular expression: {error}") from None


def read_success(section: Section) -> SuccessRule:
    """Read ``[success]``."""
    if section.has("regex"):
        _compiled(section, "regex")
    return SuccessRule(section.texts("finite"), section.texts("required"), section.text("regex"))


def read_env(section: Section, checker: TemplateChecker) -> dict[str, str]:
    """Read ``env`` of ``[task]``."""
    env: dict[str, str] = {}
    for name, value in section.items().items():
        key = section.key(name)
        if not name or "=" in name or "\0" in name:
            raise SweepFileError(None, key, f"{describe(name)} is not a variable's name")
        if name.startswith("KEYSTONE_"):
            raise SweepFileError(None, key, "names that begin with KEYSTONE_ are keystone_mpi's own")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise SweepFileError(None, key, f"found {describe(value)}; allowed is a text or a number")
        text = str(value)
        if "\0" in text:
            raise SweepFileError(None, key, "a text holds a NUL byte")
        checker.check(text, key)
        env[name] = text
    return env


def read_stdin(
    task: Section, checker: TemplateChecker, files: dict[str, FileRule], start_dir: Path, check_programs: bool
) -> str:
    """Read ``stdin`` of ``[task]``: a file that ``[files]`` makes, or one of the start folder."""
    text = task.text("stdin")
    if not text:
        if task.has("stdin"):
            raise task.error("stdin", "the path is empty")
        return ""
    template = checker.check(text, task.key("stdin"))
    if text not in files and template.literal and check_programs:
        path = start_dir / template.render({})
        if not path.is_file():
            raise task.error("stdin", f"{path} does not exist")
    return text
