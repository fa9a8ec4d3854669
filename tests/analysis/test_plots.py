"""Pictures: every kind in every format, of what a run really did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import SMALL, task_end, write_large, write_run

import keystone_mpi
from keystone_mpi.analysis import plots
from keystone_mpi.cli.main import main
from keystone_mpi.core.errors import UserError

SIGNATURES = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("kind", ["timeline", "durations", "scaling", "response"])
def test_the_command_writes_every_kind(
    first_version: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["plot", kind, str(first_version)]) == 0
    assert capsys.readouterr().out == f"v1-{kind}.png\n"
    for suffix, signature in SIGNATURES.items():
        if suffix != "png":
            assert main(["plot", kind, str(first_version), "-o", f"p.{suffix}"]) == 0
            assert Path(f"p.{suffix}").read_bytes().startswith(signature)
    assert Path(f"v1-{kind}.png").read_bytes().startswith(SIGNATURES["png"])


def test_the_timeline_has_a_bar_per_attempt(first_version: Path) -> None:
    with keystone_mpi.open_run(first_version) as run:
        axes = plots.plot_timeline(run).axes[0]
        assert len(axes.collections[0].get_paths()) == 14
        assert axes.get_ylim()[0] == 2  # two slots
        durations = plots.plot_durations(run).axes[0]
        assert sum(patch.get_height() for patch in durations.patches) == 14


def test_the_response_shows_the_values(first_version: Path) -> None:
    with keystone_mpi.open_run(first_version) as run:
        axes = plots.plot_response(run, "energy", "n", colour="model").axes[0]
        shown = np.sort(np.concatenate([line.get_ydata() for line in axes.lines]))
        assert shown.tolist() == sorted([0.5, 0.5, 1.5, 1.5, 1.0, 3.0, 1.5, 1.5, 4.5, 4.5])
        assert [text.get_text() for text in axes.get_legend().get_texts()] == ["model = a", "model = b"]
        by_text = plots.plot_response(run, "duration_s", "model").axes[0]
        assert [tick.get_text() for tick in by_text.get_xticklabels()] == ["a", "b"]
        with pytest.raises(UserError, match="field is an array per task"):
            plots.plot_response(run, "field", "n")
        with pytest.raises(UserError, match="label is text"):
            plots.plot_response(run, "label", "n")


def test_scaling_predicts_from_the_durations() -> None:
    equal = np.full(8, 2.0)
    assert plots._speedup_on(equal, 1) == 1
    assert plots._speedup_on(equal, 4) == 4
    assert plots._speedup_on(equal, 100) == 8
    assert plots._speedup_on(np.array([8.0, 1, 1, 1, 1]), 4) == pytest.approx(12 / 8)


def test_a_large_timeline_is_a_density(tmp_path: Path) -> None:
    with keystone_mpi.open_run(write_large(tmp_path, 150)) as run:
        axes = plots.plot_timeline(run).axes[0]
    assert len(axes.images) == 1
    assert 0 < float(axes.images[0].get_array().mean()) <= 1


def test_mistakes(first_version: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["timeline", "-o", "p.bmp"], "png, svg, pdf"),
        (["timeline", str(first_version)], "draws one run; found 2 files"),
        (["response", "-y", "enrgy"], "did you mean 'energy'"),
        (["durations", "-o", str(tmp_path / "none" / "p.png")], "cannot be written"),
    ):
        assert main(["plot", arguments[0], str(first_version), *arguments[1:]]) == 2
        assert said in capsys.readouterr().err
    nothing = write_run(tmp_path, SMALL, [], closed="interrupted")
    for kind in ("timeline", "durations", "scaling", "response"):
        assert main(["plot", kind, str(nothing)]) == 2
        assert "yet" in capsys.readouterr().err


def test_dollars_are_no_mathematics(tmp_path: Path) -> None:
    sweep = SMALL.replace('name = "small"', 'name = "cost $x^$ and ${"')
    path = write_run(tmp_path, sweep, [task_end(i, scalars={"a$b$": float(i)}) for i in range(4)])
    with keystone_mpi.open_run(path) as run:
        plots.save(plots.plot_response(run, "a$b$", "x"), tmp_path / "p.png")
