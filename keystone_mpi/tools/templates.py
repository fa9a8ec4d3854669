"""Templates: text with ``{name}`` and ``{name:.3f}``, compiled once, rendered per task.

Rule: a template knows its names before anything runs, so that a wrong one is
an error of the sweep file and never of task 7,231.  ``{{`` and ``}}`` are
braces.  There is no attribute access, no indexing and no nested field.

    text --(compile_template)--> Template --(render(values))--> text

Values are written so that they read back as they were: integers and floats by
their shortest exact form, booleans as ``true`` and ``false`` (``{flag:d}``
gives 1 and 0), text unchanged.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from typing import Any

import msgspec

from keystone_mpi.core.errors import UserError

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
BRACES_HINT = "write {{ and }} for braces that are text"


class TemplateError(UserError):
    """A template that cannot be rendered.

    Parameters
    ----------
    problem : str
        What was found.
    hint : str
        What to write instead; may be empty.
    line : int
        Line of the template text, from 1.
    """

    def __init__(self, problem: str, hint: str = "", line: int = 1) -> None:
        self.problem = problem
        self.hint = hint
        self.line = line
        super().__init__(f"{problem} ({hint})" if hint else problem)


class Field(msgspec.Struct, frozen=True):
    """One ``{name:spec}`` of a template."""

    name: str
    spec: str
    line: int
    """Line of the template text, from 1."""

    def __str__(self) -> str:
        return f"{{{self.name}:{self.spec}}}" if self.spec else f"{{{self.name}}}"


def format_value(value: Any, spec: str = "") -> str:
    """Return `value` as solvers read it; see the module's rule."""
    if spec:
        return format(value, spec)
    if isinstance(value, str):
        return value
    if value is True:
        return "true"
    if value is False:
        return "false"
    return str(value)


class Template:
    """A compiled template; made by `compile_template`.

    Attributes
    ----------
    text : str
        The template as written.
    fields : tuple of Field
        Every ``{name}`` in order.
    names : frozenset of str
        The names that `render` needs.
    literal : bool
        True when no name occurs in it.
    """

    __slots__ = ("_only", "_parts", "fields", "literal", "names", "text")

    def __init__(self, text: str, parts: tuple[str | Field, ...]) -> None:
        self.text = text
        self._parts = parts
        self.fields = tuple(part for part in parts if isinstance(part, Field))
        self.names = frozenset(field.name for field in self.fields)
        self.literal = not self.fields
        # A lone {name} is by far the most common argument.
        self._only = self.fields[0] if len(parts) == 1 and self.fields else None

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def render(self, values: Mapping[str, Any]) -> str:
        """Return the text with every field replaced; `values` must hold every name."""
        only = self._only
        if only is not None:
            return format_value(values[only.name], only.spec)
        parts: list[str] = []
        for part in self._parts:
            if isinstance(part, str):
                parts.append(part)
            else:
                parts.append(format_value(values[part.name], part.spec))
        return "".join(parts)

    def render_quoted(self, values: Mapping[str, Any]) -> str:
        """Return the text with every value quoted for ``/bin/sh``; the template's own text is not."""
        return "".join(
            part if isinstance(part, str) else shlex.quote(format_value(values[part.name], part.spec))
            for part in self._parts
        )

    def check_values(self, values: Mapping[str, Any]) -> None:
        """Raise `TemplateError` when a format spec does not fit the value of its name."""
        for field in self.fields:
            value = values[field.name]
            try:
                format_value(value, field.spec)
            except (ValueError, TypeError, OverflowError) as error:
                raise TemplateError(
                    f"{field} does not fit the value {value!r}: {error}", "", field.line
                ) from None


def compile_template(text: str) -> Template:
    """Compile `text` once.

    Raises
    ------
    TemplateError
        For a lone brace, an empty field or anything but a plain name and a
        format spec between braces.
    """
    parts: list[str | Field] = []
    plain: list[str] = []
    position = 0
    line = 1
    for token in _TOKEN.finditer(text):
        before = text[position : token.start()]
        line += before.count("\n")
        position = token.end()
        plain.append(before)
        body = token.group(0)
        if body in ("{{", "}}"):
            plain.append(body[0])
            continue
        if body in ("{", "}"):
            other = "}" if body == "{" else "{"
            raise TemplateError(f"a {body} without its {other}", BRACES_HINT, line)
        name, _, spec = token.group(1).partition(":")
        if not _NAME.match(name):
            shown = body if len(body) <= 40 else body[:37] + "..."
            raise TemplateError(f"{' '.join(shown.split())} is not a parameter's name", BRACES_HINT, line)
        literal = "".join(plain)
        if literal:
            parts.append(literal)
        plain = []
        parts.append(Field(name, spec, line))
        line += body.count("\n")
    plain.append(text[position:])
    literal = "".join(plain)
    if literal or not parts:
        parts.append(literal)
    return Template(text, tuple(parts))


def with_braces(text: str, opening: str, closing: str) -> str:
    """Rewrite a text that uses other delimiters, such as ``<<name>>``, into the brace form.

    Braces of the text become literal ones, so decks full of braces need no
    doubling.
    """
    pieces: list[str] = []
    position = 0
    while (start := text.find(opening, position)) >= 0:
        end = text.find(closing, start + len(opening))
        if end < 0:
            line = text.count("\n", 0, start) + 1
            raise TemplateError(f"a {opening} without its {closing}", "", line)
        pieces.append(text[position:start].replace("{", "{{").replace("}", "}}"))
        pieces.append("{" + text[start + len(opening) : end].strip() + "}")
        position = end + len(closing)
    pieces.append(text[position:].replace("{", "{{").replace("}", "}}"))
    return "".join(pieces)
