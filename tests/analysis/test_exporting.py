"""export: the same table as CSV, JSON and Parquet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas
import pytest

from keystone_mpi.cli.main import main


def test_csv_json_and_parquet_say_the_same(
    first_version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(first_version)]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 12
    assert [rows[5][name] for name in ("task", "n", "kappa", "model", "energy", "state")] == [
        "5", "2", "0.5", "b", "", "FAILURE",
    ]  # fmt: skip
    assert main(["export", str(first_version), "-o", str(tmp_path / "t.json")]) == 0
    objects = json.loads((tmp_path / "t.json").read_text())
    assert objects[5]["energy"] is None
    assert objects[0]["energy"] == 0.5
    assert main(["export", str(first_version), "-o", str(tmp_path / "t.parquet")]) == 0
    table = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(table.columns) == list(objects[0]) == list(rows[0])
    assert table.energy.isna().sum() == 2
    assert table.energy.sum() == pytest.approx(sum(row["energy"] or 0 for row in objects))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.json", "t.parquet"]


@pytest.mark.parametrize(("table", "rows"), [("attempts", 14), ("workers", 1)])
def test_other_tables(first_version: Path, capsys: pytest.CaptureFixture[str], table: str, rows: int) -> None:
    assert main(["export", str(first_version), "--table", table, "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == rows
    assert found[0]["host"]
    if table == "attempts":
        assert {row["outcome"] for row in found} == {"SUCCESS", "FAILED"}


def test_selection(first_version: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "export",
                str(first_version),
                "--select",
                "n=2,3",
                "--select",
                "kappa=1:",
                "--select",
                "state=SUCCESS",
            ]
        )
        == 0
    )
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["task"] for row in rows] == ["6", "10", "11"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "table.xls"], "tables are written as .csv, .json or .parquet"),
        (["--format", "parquet"], "name a file with -o"),
        (["-o", "."], "name it so"),
        (["-o", "none/t.csv"], "cannot be written: No such file or directory"),
        (["--select", "n"], "allowed are NAME=VALUE"),
        (["--select", "n=99"], "no task has n=99"),
        (["--select", "m=1"], "no parameter or result 'm'"),
    ],
)
def test_mistakes(
    first_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(first_version), *arguments]) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_results_file_is_never_the_output(
    first_version: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = first_version.read_bytes()
    for command in ("export", "report"):
        arguments = ["--format", "csv"] if command == "export" else []
        assert main([command, str(first_version), "-o", str(first_version), *arguments]) == 2
        assert "is the results file itself" in capsys.readouterr().err
    assert first_version.read_bytes() == before
