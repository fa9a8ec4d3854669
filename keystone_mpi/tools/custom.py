"""A tool of the user's own: ``[tools.NAME]`` in the sweep file.

    [tools.swmm]
    command = ["swmm5", "{script}", "out.rpt", "{parameters}"]
    each_parameter = ["--set", "{name}={value}"]     what {parameters} stands for, per parameter
    env = { ... }   setup = [...]   prefix = [...]   launcher = "mpiexec"   ranks = 4
    collectors = ["lammps-log"]     collect = { peak = { regex = 'peak = (\\S+)' } }

    [sweep]
    tool = "swmm"
    script = "network.inp"

Without ``{parameters}`` the command's own ``{name}`` templates say which go where.
"""

from __future__ import annotations

from typing import Any

import msgspec

from keystone_mpi.tools.collectors import COLLECTOR_KINDS
from keystone_mpi.tools.command import prepare_argv, read_argv
from keystone_mpi.tools.finding import Lookup, escape_braces, near
from keystone_mpi.tools.recipe import CollectorRule
from keystone_mpi.tools.tool import Finding, Keys, Prepared, ToolRequest

ALL_PARAMETERS = "{parameters}"
SCRIPT = "{script}"
DEFAULT_FORM = ("--{name}", "{value}")


class CustomTool:
    """A tool that a sweep file defines.

    Parameters
    ----------
    name : str
        What ``[tools.NAME]`` calls it.
    """

    summary = "defined by the sweep file"
    parameters = "{name} in the argument list, {parameters} for all of them in the form of each_parameter"
    results = "JSON on stdout, $KEYSTONE_RESULT, its own collect and collectors, [collect]"
    keys = ("command", "script", "each_parameter", "collect", "collectors", "install")

    def __init__(self, name: str) -> None:
        self.name = name

    def default_workdir(self, keys: Keys) -> str:  # noqa: ARG002 - of the protocol
        """Return that its tasks may share the start folder."""
        return "none"

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:  # noqa: ARG002 - of the protocol
        """Return that nobody knows."""
        return Finding(found=True)

    def prepare(self, request: ToolRequest) -> Prepared:
        """Read ``command`` and what goes with it."""
        keys = request.keys
        if not keys.has("command"):
            raise keys.error(
                "command", f"missing; what does the tool {self.name} run", 'command = ["./solver"]'
            )
        script = keys.text("script")
        given = keys.value("command")
        argv = self._expanded(request, given, script) if isinstance(given, list) else given
        prepared = prepare_argv(request, read_argv(request, "command", argv))
        collectors = keys.texts("collectors")
        for kind in collectors:
            if kind not in COLLECTOR_KINDS:
                allowed = ", ".join(COLLECTOR_KINDS)
                raise keys.error("collectors", f'"{kind}" is none of {allowed}', near(kind, COLLECTOR_KINDS))
        written = [self.name, *(given if isinstance(given, list) else [given]), script, *self._form(keys)]
        return msgspec.structs.replace(
            prepared,
            written=msgspec.json.encode([str(word) for word in written]).decode(),
            literals=(*prepared.literals, script) if script else prepared.literals,
            collect=request.read_collect("collect"),
            collectors=tuple(CollectorRule(kind) for kind in collectors),
            check_hint=keys.text("install"),
        )

    def _expanded(self, request: ToolRequest, given: list[Any], script: str) -> list[Any]:
        keys = request.keys
        path = str(request.start_dir / script) if script not in request.made_files else script
        if any(isinstance(word, str) and SCRIPT in word for word in given):
            if not script:
                raise keys.error("script", f'missing; tool = "{self.name}" runs a script')
            if request.check_files:
                lookup = Lookup(request.start_dir, request.sweep_dir, request.made_files)
                lookup.script(script, keys.key("script"))
        elif script:
            raise keys.error(
                "script", f"the command of {self.name} has no place for it", "{script} in its command"
            )
        argv: list[Any] = []
        for word in given:
            if word == ALL_PARAMETERS:
                argv += request.pass_all(self._form(keys))
            elif isinstance(word, str):
                argv.append(word.replace(SCRIPT, escape_braces(path)))
            else:
                argv.append(word)
        return argv

    def _form(self, keys: Keys) -> tuple[str, ...]:
        form = keys.texts("each_parameter") or DEFAULT_FORM
        if not any("{value}" in part for part in form):
            raise keys.error("each_parameter", "no part of it holds {value}", '["--{name}", "{value}"]')
        return form
