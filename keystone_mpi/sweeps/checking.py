"""Checking: every template of a sweep file against the names it may use.

Rule: a ``{name}`` that is no parameter is an error before any task runs; what
the templates use is remembered, so that an unused parameter can be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.values import REPLICATE, Value, near_match
from keystone_mpi.tools.render import RESERVED_NAMES
from keystone_mpi.tools.templates import Template, TemplateError, compile_template


class TemplateChecker:
    """Compiles templates and refuses unknown names.

    Parameters
    ----------
    names : sequence of str
        The parameters.
    example : mapping
        The values of one task; format specs are tried on them.

    Attributes
    ----------
    used : set of str
        Parameters that some template uses.
    """

    def __init__(self, names: Sequence[str], example: Mapping[str, Value]) -> None:
        self._names = tuple(names)
        self._example: dict[str, Value] = {
            **example,
            "task_id": "0",
            "index": 0,
            "seed": 1,
            "cores": 1,
            "workdir": "/work",
        }
        self.used: set[str] = set()

    def check(self, text: str, where: str, *, path: Path | None = None, hint: str = "") -> Template:
        """Compile one template.

        Parameters
        ----------
        text : str
            The template.
        where : str
            Its key; for a file of its own (`path`) the line is put in its place.
        path : Path, optional
            The template's own file.
        hint : str
            Said instead of the usual hint about braces.
        """
        try:
            template = compile_template(text)
        except TemplateError as error:
            place = f"line {error.line}" if path is not None else where
            raise SweepFileError(path, place, error.problem, hint or error.hint) from None
        for field in template.fields:
            if field.name not in self._names and field.name not in RESERVED_NAMES:
                place = f"line {field.line}" if path is not None else where
                known = ", ".join(self._names) or "none"
                near = near_match(field.name, [*self._names, *RESERVED_NAMES])
                if field.name == REPLICATE:
                    near = "it exists with sweep.repeat > 1"
                raise SweepFileError(
                    path,
                    place,
                    f"{{{field.name}}} is no parameter; the parameters are: {known}; always there: "
                    f"{', '.join(RESERVED_NAMES)}",
                    near or hint,
                )
        try:
            template.check_values(self._example)
        except TemplateError as error:
            raise SweepFileError(
                path, f"line {error.line}" if path is not None else where, error.problem
            ) from None
        self.used |= template.names
        return template
