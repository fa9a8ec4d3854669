"""Tool ``fenicsx``: a Python script that imports dolfinx, under the interpreter that has it.

    python on PATH, ours, $CONDA_PREFIX, /usr/bin --(which has dolfinx?)--> interpreter x.py --name value

dolfinx is in no wheel: it lives under one particular Python, seldom ours. Forms
are compiled once per worker into a cache of its own (`tools.jit_cache`).
"""

from __future__ import annotations

import os
import shutil
import sys

import msgspec

from keystone_mpi.tools.finding import PYTHON_VARIABLES, is_our_interpreter, say
from keystone_mpi.tools.python import prepare_script
from keystone_mpi.tools.tool import Finding, Keys, Prepared, ToolRequest

INSTALL = "apt-get install python3-dolfinx, or conda install -c conda-forge fenics-dolfinx"
_PROBE = """
import importlib.metadata, importlib.util, sys
if importlib.util.find_spec("dolfinx") is None:
    sys.exit(3)
for name in ("fenics-dolfinx", "dolfinx"):
    try:
        print("dolfinx", importlib.metadata.version(name))
        break
    except importlib.metadata.PackageNotFoundError:
        pass
else:
    print("dolfinx")
"""
CHECK = ("-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('dolfinx') is None)")


class FenicsxTool:
    """FEniCSx (dolfinx) scripts."""

    name = "fenicsx"
    summary = "FEniCSx: a Python script that imports dolfinx"
    parameters = "--name value for each, $KEYSTONE_PARAMS (JSON)"
    results = "report_result(...), JSON on stdout, $KEYSTONE_RESULT, [collect]"
    keys = ("script", "python")

    def default_workdir(self, keys: Keys) -> str:  # noqa: ARG002 - of the protocol
        """Return that its tasks may share the start folder."""
        return "none"

    def find(self, keys: Keys | None = None, *, version: bool = False) -> Finding:  # noqa: ARG002 - of the protocol
        """Look for an interpreter that has dolfinx."""
        named = keys.text("python") if keys is not None else ""
        tried: list[str] = []
        for python in [named] if named else _candidates():
            env = dict(os.environ)
            if not is_our_interpreter(python):
                for name in PYTHON_VARIABLES:
                    env.pop(name, None)
            code, text = say([python, "-c", _PROBE], env)
            if code == 0:
                return Finding(found=True, where=python, detail=text.strip())
            tried.append(python)
        return Finding(found=False, detail=f"no dolfinx in {', '.join(tried)}", install=INSTALL)

    def prepare(self, request: ToolRequest) -> Prepared:
        """Read ``script`` and ``python``."""
        keys = request.keys
        for key in ("command", "shell"):
            if keys.has(key):
                raise keys.error(
                    key, f'not used with tool = "{self.name}"', "give command, or tool and script"
                )
        python = keys.text("python", "python3")
        check: tuple[str, ...] = (python, *CHECK)
        if request.check_programs:
            found = self.find(keys)
            if not found.found:
                key = "python" if keys.has("python") else "tool"
                hint = f'{INSTALL}; or python = "/path/to/python" that has it, or setup = ["module load ..."]'
                raise keys.error(key, f"FEniCSx was not found: {found.detail}", hint)
            python, check = found.where, ()
        prepared = prepare_script(request, python, self.name)
        return msgspec.structs.replace(prepared, check=check, check_hint=INSTALL, jit_cache=True)


def _candidates() -> list[str]:
    conda = os.environ.get("CONDA_PREFIX", "")
    names = [
        shutil.which("python3"),
        shutil.which("python"),
        sys.executable,
        f"{conda}/bin/python" if conda else None,
        "/usr/bin/python3",
    ]
    return list(dict.fromkeys(name for name in names if name and os.access(name, os.X_OK)))
