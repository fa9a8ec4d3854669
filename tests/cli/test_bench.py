"""The benchmark measures what it says: the same program, the same number of times, start-up taken out."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from keystone_mpi.bench import contenders
from keystone_mpi.bench.contenders import all_contenders, build_floor, write_sweep
from keystone_mpi.bench.measure import Contender, time_command, time_side_by_side
from keystone_mpi.core.errors import ClusterError


def test_start_up_is_taken_out_by_the_difference(tmp_path: Path) -> None:
    def fixed_and_per_task(count: int, folder: Path) -> list[str]:
        return [sys.executable, "-S", "-c", f"import time; time.sleep(0.2 + 0.01 * {count})"]

    timing = time_side_by_side(
        [Contender("sleeper", fixed_and_per_task)], small=10, large=60, rounds=1, scratch=tmp_path, say=print
    )[0]
    assert timing.problem == ""
    # 100 a second on an idle machine; with the start-up in it there would be 75 at most.
    assert 20 < timing.tasks_per_s < 105
    assert timing.startup_s >= 0


def test_a_contender_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    broken = Contender("broken", lambda count, folder: ["/bin/sh", "-c", "echo no licence >&2; exit 4"])
    fine = Contender("fine", lambda count, folder: ["/bin/sleep", str(count / 1000)])
    missing = Contender("missing", lambda count, folder: ["no-such-program"])
    found = time_side_by_side(
        [broken, fine, missing], small=1, large=100, rounds=2, scratch=tmp_path, say=lambda text: None
    )
    assert "exit code 4: no licence" in found[0].problem
    assert found[1].problem == ""
    assert "no-such-program" in found[2].problem


def test_what_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone_mpi.bench.measure.LIMIT_S", 0.3)
    with pytest.raises(ClusterError, match="no end within"):
        time_command(["/bin/sleep", "60"], tmp_path)


@pytest.mark.parametrize("compiler", [True, False], ids=["C", "Python"])
def test_the_floor_runs_each_task_once(
    compiler: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiler and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler on this machine")
    if not compiler:
        monkeypatch.setattr(contenders.shutil, "which", lambda name: None)
    argv, name = build_floor(tmp_path)
    assert ("no C compiler" in name) is not compiler
    log = tmp_path / "log"
    shell = ["/bin/sh", "-c", f'echo "x$1" >> {log}', "sh"]
    subprocess.run([*argv, "7", "3", "0", *shell], check=True, timeout=30)
    assert log.read_text() == "x\n" * 7
    log.unlink()
    subprocess.run([*argv, "7", "1", "1", *shell], check=True, timeout=30)
    assert log.read_text() == "".join(f"x{number}\n" for number in range(7))
    assert subprocess.run([*argv, "2", "1", "0", "/bin/false"], check=False, timeout=30).returncode == 1


@pytest.mark.parametrize("numbered", [True, False])
def test_the_sweep_that_is_measured(numbered: bool, tmp_path: Path) -> None:
    from keystone_mpi.sweeps.load import load_sweep

    sweep = load_sweep(write_sweep(tmp_path, 12, ["/bin/sleep", "0.1"], numbered=numbered))
    assert len(sweep) == 12
    assert len(sweep.recipe.argv) == (3 if numbered else 2)


@pytest.mark.multirank
def test_every_contender_runs(tmp_path: Path, mpi_kind: str) -> None:
    found = time_side_by_side(
        all_contenders(tmp_path, ["/bin/true"], 2, numbered=True),
        small=1,
        large=9,
        rounds=1,
        scratch=tmp_path,
        say=lambda text: None,
    )
    assert {timing.problem for timing in found} == {""}
    assert "mpi4py.futures" in {timing.name for timing in found}


def test_a_part_alone_as_json(keystone) -> None:
    report = json.loads(keystone(["bench", "core", "--quick", "--json"], timeout_s=120).check(0).stdout)
    assert [timing["tasks"] for timing in report["core"]] == [10_000, 100_000, 100_000, 100_000]
    assert report["machine"]["cores"] >= 1
