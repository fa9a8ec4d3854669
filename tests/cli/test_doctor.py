"""The doctor finds what is wrong and names the cure; a broken MPI cannot hang it."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from keystone_mpi.cli import doctor_checks, doctor_mpi
from keystone_mpi.cli.doctor_checks import Check, run_checks
from keystone_mpi.cli.doctor_mpi import MpiDoctor


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def checked(doctor: MpiDoctor) -> dict[str, Check]:
    return {check.name: check for check in run_checks(doctor.checks())}


@pytest.mark.multirank
def test_this_environment_is_well(keystone, mpi_kind: str) -> None:
    done = keystone(["doctor", "--json"], timeout_s=120).check(0)
    report = json.loads(done.stdout)
    checks = {check["name"]: check for check in report["checks"]}
    assert report["ok"]
    assert checks["launch"]["level"] == "ok"
    assert checks["more ranks than cores"]["level"] == "ok"
    family = {"mpich": "MPICH", "openmpi": "Open MPI"}[mpi_kind]
    assert checks["MPI library"]["found"].startswith(family)
    assert ("ULFM works" in checks["fault tolerance"]["found"]) == (mpi_kind == "openmpi")


def test_a_launcher_of_another_mpi_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It starts two worlds of one rank and exits 0: the silent mismatch.
    fake = script(
        tmp_path / "mpiexec",
        'test "$1" = --version && exec echo HYDRA; echo keystone-world 1; echo keystone-world 1',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = checked(MpiDoctor())
    assert found["mpiexec"].level == "warn"
    assert found["launch"].level == "fail"
    assert str(fake) in found["launch"].found
    assert "mpiexec" in found["launch"].advice


def test_a_launcher_that_hangs_costs_only_the_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(
        tmp_path / "mpiexec",
        'case "$1" in --version) echo HYDRA;; *) trap "" TERM; sleep 600 & wait; wait;; esac',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(doctor_mpi, "LIMIT_S", 0.5)
    monkeypatch.setattr(doctor_mpi, "TERM_GRACE_S", 0.2)
    doctor = MpiDoctor()
    doctor._library = doctor_mpi._Library("MPICH")
    check = doctor.check_launch()
    assert check.level == "fail"
    assert "no answer" in check.found


@pytest.mark.parametrize(
    ("said", "found", "advice"),
    [
        ("mpiexec has detected an attempt to run as root.", "root", "OMPI_ALLOW_RUN_AS_ROOT=1"),
        ("There are not enough slots available ... PRTE", "fewer", ":oversubscribe"),
        ("There are not enough slots available", "fewer", "OMPI_MCA_rmaps_base_oversubscribe=1"),
        ("Segmentation fault: address not mapped", "not mapped", "keystone_mpi[mpich]"),
    ],
)
def test_what_a_launcher_says_is_understood(
    said: str, found: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "mpiexec", f'echo "{said}" >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("sys.prefix", str(tmp_path / "venv"))
    doctor = MpiDoctor()
    doctor._library = doctor_mpi._Library("MPICH Version: 5.0")
    check = doctor.check_launch()
    assert check.level == "fail"
    assert found in check.found
    assert advice in check.advice


def test_no_launcher_is_a_warning_with_a_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check = MpiDoctor().check_mpiexec()
    assert check.level in ("warn", "fail")
    assert "PATH" in check.found
    assert check.advice


def test_a_mount_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor_checks.check_locks(tmp_path).level == "ok"

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(doctor_checks.fcntl, "flock", no_locks)
    check = doctor_checks.check_locks(tmp_path)
    assert check.level == "warn"
    assert "HDF5_USE_FILE_LOCKING=FALSE" in check.advice


@pytest.mark.parametrize(
    ("number", "word"), [(errno.EDQUOT, "quota"), (errno.ENOSPC, "full"), (errno.EACCES, "-o")]
)
def test_a_folder_that_cannot_be_written(
    number: int, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(doctor_checks.os, "posix_fallocate", refuse)
    check = doctor_checks.check_folder(tmp_path)
    assert check.level == "fail"
    assert word in f"{check.found} {check.advice}"


def test_a_check_that_breaks_does_not_stop_the_others() -> None:
    def broken() -> Check:
        raise RuntimeError("odd machine")

    found = list(run_checks([("a", broken), ("b", lambda: Check("b", "ok", "fine"))]))
    assert [check.level for check in found] == ["fail", "ok"]
    assert "odd machine" in found[0].found


def test_a_slow_disk_and_a_skewed_clock_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_checks, "SLOW_SYNC_S", 0.0)
    assert doctor_checks.check_sync(tmp_path).level == "warn"
    now = doctor_checks.time.time
    monkeypatch.setattr(doctor_checks.time, "time", lambda: now() - 30)
    assert "+30" in doctor_checks.check_clock(tmp_path).found


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    for _ in run_checks(doctor_checks.machine_checks(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(keystone) -> None:
    done = keystone(["doctor", "nowhere"]).check(2)
    assert "nowhere: no such folder" in done.stderr
