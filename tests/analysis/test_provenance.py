"""Where a run came from: what is recorded, and what never is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from keystone_mpi.engine.provenance import expand_hosts, gather_provenance, git_state


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("login", ["login"]),
        ("n[01-03,7],login", ["n01", "n02", "n03", "n7", "login"]),
        ("r[1-2]n[8-9]", ["r1n8", "r1n9", "r2n8", "r2n9"]),
        ("a,b", ["a", "b"]),
    ],
)
def test_node_lists(text: str, hosts: list[str]) -> None:
    assert expand_hosts(text) == hosts


def test_only_what_is_listed_is_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "AWS_SECRET_ACCESS_KEY": "hunter2",
        "SLURM_JWT": "hunter2",
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "LOADEDMODULES": "gcc/13:openmpi/5",
    }.items():
        monkeypatch.setenv(name, value)
    found = gather_provenance(["keystone-mpi", "run", "s.toml"])
    assert "hunter2" not in json.dumps(found)
    assert found["modules"] == ["gcc/13", "openmpi/5"]
    assert found["slurm"]["SLURM_JOB_ID"] == "42"
    assert found["hosts"] == ["n1", "n2"]
    assert found["command_line"] == ["keystone-mpi", "run", "s.toml"]
    assert found["packages"]["numpy"]
    assert found["folder"] == str(tmp_path)
    assert "git" not in found


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_commit_and_dirty_flag(tmp_path: Path) -> None:
    environment = {
        **os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
    }  # fmt: skip
    project = tmp_path / "project"
    project.mkdir()

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=project, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    assert git_state(str(project)) == {}
    git("init", "-q", "-b", "main")
    assert git_state(str(project)) == {}  # no commit yet
    (project / "solve.py").write_text("1")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    (project / "results.h5").write_text("untracked")
    assert git_state(str(project)) == {"commit": commit, "branch": "main", "dirty": False}
    (project / "solve.py").write_text("22")
    assert git_state(str(project)) == {"commit": commit, "branch": "main", "dirty": True}
    assert git_state(str(tmp_path / "none")) == {}
