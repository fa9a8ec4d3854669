"""A program whose first folder is removed goes on in another one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from keystone_mpi import TaskPipeline


def test_slots_start_although_the_folder_they_began_in_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, count in ((first, 1), (second, 16)):
        folder.mkdir()
        monkeypatch.chdir(folder)
        with TaskPipeline("out.h5") as pipeline:
            ids = [pipeline.submit_task("command", ["/bin/sleep", "0.05"], {"n": n}) for n in range(count)]
            assert pipeline.wait_for_workflow(ids, timeout=60)["completed"] == count
            assert os.getcwd() == str(folder)
        monkeypatch.chdir(tmp_path)
        shutil.rmtree(folder)
