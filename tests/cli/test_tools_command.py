"""`keystone-mpi tools`: what is here, how it is used, how the rest is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from keystone_mpi.tools.table import TOOLS


def test_every_tool_says_how_it_is_used(keystone) -> None:
    found = json.loads(keystone(["tools", "--json"]).check().stdout)["tools"]
    assert [tool["tool"] for tool in found] == list(TOOLS) == [
        "command", "python", "fenicsx", "lammps", "openfoam",
    ]  # fmt: skip
    for tool in found:
        assert tool["parameters"]
        assert tool["results"]
        assert tool["found"] or tool["install"]
    said = keystone(["tools"]).check().stdout
    assert all(name in said for name in TOOLS)
    assert "-var name value" in said


def test_the_solver_file_can_be_copied(keystone) -> None:
    path = Path(keystone(["tools", "--solver-file"]).check().stdout.strip())
    source = path.read_text()
    done = subprocess.run([sys.executable, "-I", "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
