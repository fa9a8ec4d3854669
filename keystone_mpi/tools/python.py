"""Tool ``python``: a Python script that takes every parameter as ``--name value``.

    tool = "python", script = "x.py"     interpreter x.py --name value ...     (python = "/usr/bin/python3")

The interpreter is that of keystone-mpi unless another is named; another one
does not inherit PYTHONPATH and PYTHONHOME, which are about ours.
"""

from __future__ import annotations

import sys

from keystone_mpi.tools.finding import (
    PYTHON_VARIABLES,
    Lookup,
    escape_braces,
    is_our_interpreter,
    is_relative_path,
)
from keystone_mpi.tools.tool import Finding, Keys, Prepared, ToolRequest

OPTION_FORM = ("--{name}", "{value}")


class PythonTool:
    """A Python script of the user's."""

    name = "python"
    summary = "a Python script"
    parameters = "--name value for each, $KEYSTONE_PARAMS (JSON)"
    results = "report_result(...), JSON on stdout, $KEYSTONE_RESULT, [collect]"
    keys = ("script", "python")

    def default_workdir(self, keys: Keys) -> str:  # noqa: ARG002 - of the protocol
        """Return that its tasks may share the start folder."""
        return "none"

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:  # noqa: ARG002 - of the protocol
        """Return the interpreter."""
        python = keys.text("python", sys.executable) if keys is not None else sys.executable
        return Finding(found=True, where=python, detail=f"Python {sys.version.split()[0]}")

    def prepare(self, request: ToolRequest) -> Prepared:
        """Read ``script`` and ``python``."""
        keys = request.keys
        for key in ("command", "shell"):
            if keys.has(key):
                raise keys.error(
                    key, f'not used with tool = "{self.name}"', "give command, or tool and script"
                )
        python = keys.text("python", sys.executable) or sys.executable
        if request.check_programs:
            Lookup(request.start_dir, request.sweep_dir).program(python, keys.key("python"))
        return prepare_script(request, python, self.name)


def prepare_script(request: ToolRequest, python: str, tool: str) -> Prepared:
    """Say how `script` is run by an interpreter."""
    keys = request.keys
    script = keys.text("script")
    if not script:
        raise keys.error("script", f'missing; tool = "{tool}" runs a script', 'script = "solve.py"')
    if request.check_files:
        Lookup(request.start_dir, request.sweep_dir).script(script, keys.key("script"))
    if is_relative_path(python):
        python = str(request.start_dir / python)
    path = str(request.start_dir / script)
    return Prepared(
        argv=(escape_braces(python), escape_braces(path), *request.pass_all(OPTION_FORM)),
        script=path,
        # The interpreter's own path differs between machines and is not what the user wrote.
        written=f"{tool} {keys.text('python')} {script}".replace("  ", " "),
        literals=(script,),
        unset=() if is_our_interpreter(python) else PYTHON_VARIABLES,
    )
