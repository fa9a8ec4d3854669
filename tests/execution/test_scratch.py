"""Folders whose owner was killed together with its launcher go with the next start; others stay."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from keystone_mpi.execution import scratch


def test_only_folders_of_dead_owners_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    dead = subprocess.Popen(["/bin/true"])
    dead.wait()
    ours = Path(scratch.new_scratch_root())
    of_dead = Path(str(ours).replace(f"-{os.getpid()}-", f"-{dead.pid}-"))
    foreign = tmp_path / "keystone-0-1-999999999-abc"
    for folder in (ours, of_dead, foreign, tmp_path / "keystone-notes"):
        (folder / "inner").mkdir(parents=True)
    scratch.remove_stale_roots()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [ours.name, foreign.name, "keystone-notes"]
    )
