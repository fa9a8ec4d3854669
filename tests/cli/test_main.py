"""Mistakes of the user end in one line and exit code 2; ours in a traceback and 70."""

from __future__ import annotations

import sys
import types

import click
import pytest

from keystone_mpi.cli import main as cli
from keystone_mpi.core.errors import ClusterError, InternalError, UserError


def install(monkeypatch: pytest.MonkeyPatch, body) -> None:
    """Make `body` the command ``status``."""
    module = types.ModuleType("keystone_mpi.cli.status")
    module.command = click.command("status")(body)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "keystone_mpi.cli.status", module)


@pytest.mark.parametrize("error", [UserError("a.toml: no\nsuch key"), ClusterError("a.toml: no such key")])
def test_a_mistake_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise error

    install(monkeypatch, body)
    assert cli.main(["status"]) == 2
    assert capsys.readouterr().err == "keystone-mpi: error: a.toml: no such key\n"


@pytest.mark.parametrize("error", [InternalError("a broken rule"), ZeroDivisionError("a bug")])
def test_a_defect_shows_everything_a_report_needs(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        raise error

    install(monkeypatch, body)
    monkeypatch.setenv("PMI_RANK", "3")
    assert cli.main(["status"]) == 70
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert str(error) in text
    assert "rank 3" in text
    assert "report" in text


def test_a_command_returns_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, lambda: 75)
    assert cli.main(["status"]) == 75
    install(monkeypatch, lambda: None)
    assert cli.main(["status"]) == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["staus", "x.h5"], "no command 'staus'; did you mean `keystone-mpi status`?"),
        (["--frob"], "--frob"),
        (["doctor", "--jsn"], "--jsn"),
        (["doctor", "a", "b"], "unexpected extra argument"),
    ],
)
def test_bad_usage_names_the_next_command(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    text = capsys.readouterr().err
    assert expected in text
    assert text.startswith("keystone-mpi: error: ")
    assert text.count("\n") == 1


def test_a_sweep_file_given_as_a_command(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poisson.toml").write_text("")
    assert cli.main(["poisson.toml"]) == 2
    assert "did you mean `keystone-mpi run poisson.toml`?" in capsys.readouterr().err


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"  {name} " in text
    assert cli.main(["--version"]) == 0
    assert cli.main([]) == 2


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--help"]) == 0
    assert f"keystone-mpi {name}" in capsys.readouterr().out
