"""One task of a program, read with the rules of a sweep file.

Rule: a tool, its script and its parameters mean the same in a sweep file and
in a program, and the same mistakes are found, because the same code reads both.

    tool, script, params (+ tables as in a sweep file) --> Sweep of one point
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keystone_mpi.core.errors import SweepFileError
from keystone_mpi.sweeps.load import _make_sweep, _read_sweep
from keystone_mpi.sweeps.sweep import Sweep

ALLOWED_TABLES = ("task", "files", "collect", "success", "tools", "sweep")


def read_single(
    tool: str,
    script: str | Sequence[str],
    params: Mapping[str, Any],
    tables: Mapping[str, Any],
    start_dir: Path,
) -> Sweep:
    """Return how tasks of this tool, script and these parameter names are run.

    Parameters
    ----------
    tool : str
        As in ``[sweep]``.
    script : str or sequence of str
        The script; a case folder (openfoam); the argv template (command).
    params : mapping
        Scalars; only their names and kinds matter.
    tables : mapping
        Further tables as in a sweep file: ``task``, ``files``, ``collect``,
        ``success``, ``tools`` and other keys of ``sweep``.
    start_dir : Path
        Folder that relative paths start from.

    Raises
    ------
    SweepFileError
        Without a file; `where` is the key as in a sweep file.
    """
    unknown = [name for name in tables if name not in ALLOWED_TABLES]
    if unknown:
        raise SweepFileError(None, unknown[0], f"no such table; allowed are {', '.join(ALLOWED_TABLES)}")
    sweep = {**tables.get("sweep", {}), "tool": tool}
    if tool == "command":
        sweep["command"] = script if isinstance(script, str) else list(script)
        if isinstance(script, str):
            sweep["shell"] = True
    elif isinstance(script, str) and tool == "openfoam" and (start_dir / script).is_dir():
        sweep["case"] = script
    else:
        sweep["script"] = script
    document = {**tables, "sweep": sweep, "params": {name: [value] for name, value in params.items()}}
    path = start_dir / "program.json"
    spec, space = _read_sweep(path, json.dumps(document), start_dir, True)
    return _make_sweep(spec, space, "", path)
