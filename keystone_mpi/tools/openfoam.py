"""Tool ``openfoam``: a case folder, copied per task and filled in, or a Python script.

    case = "cavity"    copied, its dictionaries filled in (`tools.openfoam_case`), ./Allrun or applications:
                       applications = ["blockMesh", "icoFoam"]
                       with ranks:    ["blockMesh", "decomposePar", "icoFoam -parallel", "reconstructPar"]
    script = "x.py"    interpreter x.py --name value ...

Applications are run one after the other, each into ``log.<application>``;
those with ``-parallel`` are started on the task's ranks. Without a list it is
blockMesh, if the case has a blockMeshDict, and controlDict's application, with
decomposePar and reconstructPar around it where there are ranks.
"""

from __future__ import annotations

import glob
import os
import re
import shlex
import shutil
from pathlib import Path

import msgspec

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.tools.finding import escape_braces, near, say
from keystone_mpi.tools.openfoam_case import case_templates, digest_of_case, fill_in, find_entry
from keystone_mpi.tools.python import PythonTool
from keystone_mpi.tools.recipe import CollectorRule, FileRule
from keystone_mpi.tools.render import RANKS_NAME
from keystone_mpi.tools.templates import compile_template
from keystone_mpi.tools.tool import Finding, Keys, Prepared, ToolRequest

INSTALL = "apt-get install openfoam, or a package of openfoam.com or openfoam.org"
DEBIAN_FOLDER = "/usr/share/openfoam"
_BASHRC = ("/usr/lib/openfoam/openfoam*/etc/bashrc", "/opt/openfoam*/etc/bashrc", "/opt/OpenFOAM*/etc/bashrc")
_PLAIN_WORD = re.compile(r"[\w./=:,+%@{}-]*\Z")
_DECOMPOSE = "system/decomposeParDict"

DRIVER = """\
run() {
    name=$1; shift
    "$@" >>"log.$name" 2>&1 && return
    code=$?
    tail -n 40 "log.$name" >&2
    why=$(cat log.* | grep -A 3 -e "--> FOAM FATAL" | tr -s '[:space:]' ' ' | cut -c 5-300)
    echo "$name failed (exit code $code)${why:+: $why}" >&2
    exit "$code"
}
"""


class OpenfoamTool:
    """OpenFOAM cases and scripts that drive them."""

    name = "openfoam"
    summary = "OpenFOAM: a case folder, or a Python script"
    parameters = (
        'case: <<name>> in its files, set = { "system/controlDict:endTime" = "{name}" }; script: --name value'
    )
    results = "residuals of the logs, tables of postProcessing/ (probes, sets, forces), as for python"
    keys = ("case", "applications", "set", "residuals", "script", "python")

    def default_workdir(self, keys: Keys) -> str:
        """Return that a case is copied for each task."""
        return "task" if keys.has("case") else "none"

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:
        """Look for OpenFOAM's applications."""
        programs = ["blockMesh", "icoFoam"]
        if keys is not None:
            programs = [
                words[0] for words in map(shlex.split, keys.texts("applications")) if words
            ] or programs
        missing = [name for name in programs if shutil.which(name) is None]
        if not missing:
            where = shutil.which(programs[0]) or ""
            return Finding(found=True, where=where, detail=_version(programs[0]) if version else "OpenFOAM")
        unsourced = [path for pattern in _BASHRC for path in sorted(glob.glob(pattern))]
        if unsourced:
            hint = f'setup = ["source {unsourced[-1]}"], or source it before keystone-mpi'
            return Finding(found=False, detail=f"{missing[0]} is not on PATH", install=hint)
        return Finding(found=False, detail=f"{missing[0]} is not on PATH", install=INSTALL)

    def prepare(self, request: ToolRequest) -> Prepared:
        """Read ``case`` or ``script`` and what belongs to them."""
        keys = request.keys
        if keys.has("case") == keys.has("script"):
            found = "both" if keys.has("case") else "neither"
            raise keys.error(
                "case",
                f'found {found} of case and script; tool = "openfoam" runs one of them',
                'case = "cavity"',
            )
        env: dict[str, str] = {}
        if request.check_programs:
            self._refuse_missing(request)
            if "WM_PROJECT_DIR" not in os.environ and os.path.isdir(DEBIAN_FOLDER):
                env["WM_PROJECT_DIR"] = DEBIAN_FOLDER
        history = keys.choice("residuals", ("last", "history"), "last")
        collectors = (CollectorRule("openfoam", {"residuals": history}),)
        if keys.has("script"):
            for key in ("applications", "set"):
                if keys.has(key):
                    raise keys.error(key, "only used with case", "a script does this itself")
            prepared = msgspec.structs.replace(
                PythonTool().prepare(request), written=f"openfoam {keys.text('script')}"
            )
            # The script starts the applications, and their ranks by $KEYSTONE_MPIEXEC.
            starts_ranks = bool(request.launcher)
            prepared = msgspec.structs.replace(prepared, starts_ranks=starts_ranks, mpi_program="icoFoam")
        else:
            prepared = _prepare_case(request)
        return msgspec.structs.replace(
            prepared,
            env=env,
            collectors=collectors,
            check=("/bin/sh", "-c", "command -v blockMesh"),
            check_hint=INSTALL,
        )

    def _refuse_missing(self, request: ToolRequest) -> None:
        found = self.find(request.keys)
        if not found.found:
            hint = f'{found.install}; or setup = ["module load ..."]'
            raise request.keys.error("tool", f"OpenFOAM was not found: {found.detail}", hint)


def _prepare_case(request: ToolRequest) -> Prepared:
    keys = request.keys
    for key in ("command", "shell", "python"):
        if keys.has(key):
            raise keys.error(key, "not used with a case", "applications = [...]")
    case = request.start_dir / keys.text("case")
    if not (case / "system" / "controlDict").is_file():
        if not case.is_dir():
            names = [entry.name for entry in case.parent.iterdir()] if case.parent.is_dir() else []
            raise keys.error("case", f"the folder {case} does not exist", near(case.name, names))
        raise keys.error("case", f"{case} is no case: it has no system/controlDict")
    if not request.own_folder:
        raise SweepFileError(
            None,
            "task.workdir",
            "a case is copied for each task, so tasks need folders of their own",
            '"task"',
        )
    entries = keys.value("set") or {}
    if not isinstance(entries, dict):
        raise keys.wrong("set", 'a table such as { "system/controlDict:endTime" = "{end_time}" }')
    files = case_templates(case, entries, request.checker, keys.key("set"))
    applications = _applications(request, case)
    if request.launcher:
        files.update(_decomposition(case, files))
    script = _driver(request, applications)
    ranked = [words[0] for words in applications if "-parallel" in words]
    return Prepared(
        argv=(script,),
        shell=True,
        case=str(case),
        files=files,
        written=msgspec.json.encode(["openfoam", keys.text("case"), *map(shlex.join, applications)]).decode()
        + msgspec.json.encode(entries, order="sorted").decode(),
        starts_ranks=bool(request.launcher),
        mpi_program=ranked[0] if ranked else "",
        fingerprint={f"case:{keys.text('case')}": digest_of_case(case)},
    )


def _applications(request: ToolRequest, case: Path) -> list[list[str]]:
    """Return the applications in order, each as its words."""
    keys = request.keys
    if keys.has("applications"):
        applications = []
        for position, text in enumerate(keys.texts("applications")):
            key = f"{keys.key('applications')}[{position}]"
            request.checker.check(text, key)
            words = _words(text, key)
            applications.append(words)
        if not applications:
            raise keys.error("applications", "the list is empty")
        if request.launcher and not any("-parallel" in words for words in applications):
            raise keys.error(
                "applications",
                "none of them is started on the ranks",
                '["blockMesh", "decomposePar", "icoFoam -parallel", "reconstructPar"]',
            )
        return applications
    if (case / "Allrun").is_file():
        return [["./Allrun"]]
    control = case / "system" / "controlDict"
    text = control.read_text(encoding="utf-8", errors="replace")
    start, end = find_entry(text, "application", control, keys.key("applications"))
    solver = text[start:end].strip('"')
    has_mesh_dict = any(
        (case / place / "blockMeshDict").is_file() for place in ("system", "constant/polyMesh")
    )
    before = [["blockMesh"]] if has_mesh_dict else []
    if request.launcher:
        return [*before, ["decomposePar"], [solver, "-parallel"], ["reconstructPar"]]
    return [*before, [solver]]


def _words(text: str, key: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as problem:
        raise SweepFileError(None, key, f"{problem}: {text}") from None
    if not words:
        raise SweepFileError(None, key, "the text is empty")
    for word in words:
        if not compile_template(word).literal and not _PLAIN_WORD.match(word):
            raise SweepFileError(
                None, key, f"a word with a parameter holds other than letters and ./=:,+-: {word}"
            )
    return words


def _driver(request: ToolRequest, applications: list[list[str]]) -> str:
    """Return the shell text, as a template whose values are quoted, that runs the applications."""
    lines = [escape_braces(DRIVER)]
    for words in applications:
        name = os.path.basename(words[0])
        started = "$KEYSTONE_MPIEXEC " if request.launcher and "-parallel" in words else ""
        quoted = [
            escape_braces(shlex.quote(compile_template(word).render({})))
            if compile_template(word).literal
            else word
            for word in words
        ]
        lines.append(f"run {shlex.quote(name)} {started}{' '.join(quoted)}\n")
    return "".join(lines)


def _decomposition(case: Path, files: dict[str, FileRule]) -> dict[str, FileRule]:
    """Make decomposeParDict say the task's number of ranks."""
    rule = files.get(_DECOMPOSE)
    path = case / _DECOMPOSE
    ranks = "{" + RANKS_NAME + "}"
    if rule is not None:
        return {}  # it has placeholders: the user's own way
    if path.is_file():
        text = fill_in(
            path.read_text(encoding="utf-8"), [("numberOfSubdomains", ranks)], path, "decomposeParDict"
        )
    else:
        text = (
            "FoamFile {{ version 2.0; format ascii; class dictionary; object decomposeParDict; }}\n"
            f"numberOfSubdomains {ranks};\n"
            f"method simple;\nsimpleCoeffs {{{{ n ({ranks} 1 1); delta 0.001; }}}}\n"
        )
    return {_DECOMPOSE: FileRule(template=str(path), text=text)}


def _version(program: str) -> str:
    env = {**os.environ}
    env.setdefault("WM_PROJECT_DIR", DEBIAN_FOLDER)
    _, text = say([program, "-help"], env, limit_s=20.0)
    found = re.search(r"OpenFOAM[^\n]*?(v?\d[\w.-]*)", text)
    return f"OpenFOAM {found.group(1)}" if found is not None else "OpenFOAM"
