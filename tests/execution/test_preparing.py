"""The setup of a recipe, once per worker: kept, run again by another launcher, never left behind."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from execution_support import Bench, wait_until

from keystone_mpi.core.model import Outcome
from keystone_mpi.execution.launcher_client import (
    AttemptProgress,
    LauncherRestarted,
    RecipePrepared,
)
from keystone_mpi.execution.preparations import needs_preparation, preparation_of
from keystone_mpi.execution.processes import RUN_TAG
from keystone_mpi.tools.recipe import Recipe


def asked(bench: Bench, recipe: Recipe, number: int = 0) -> None:
    assert needs_preparation(recipe)
    bench.client.prepare(preparation_of(recipe, number, {RUN_TAG: bench.run_id}))


def with_setup(*lines: str) -> Recipe:
    return Recipe(argv=("true",), setup=lines, start_dir="/")


def test_every_slot_has_the_environment_that_the_setup_left(make_bench: Callable[..., Bench]) -> None:
    plain, prepared = Recipe(), with_setup("export A=1", "export B='x y' PATH=/extra:$PATH")
    bench = make_bench(plain, prepared)
    # One slot process is there before, the other comes after.
    bench.run(bench.shell("true"), slot=0)
    asked(bench, prepared, 1)
    assert bench.wait_for_kind(RecipePrepared) == RecipePrepared(1, "")
    for slot in (0, 1):
        report = bench.run(bench.shell('echo "$A $B ${PATH%%:*} $KEYSTONE_RUN"', recipe=1), slot)
        assert report.stdout_tail == f"1 x y /extra {bench.run_id}\n"
        assert bench.run(bench.shell('echo "${A-none}"'), slot).stdout_tail == "none\n"


def test_the_login_shell_does_not_take_the_first_places_of_path(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"/mine/first:{os.environ['PATH']}")
    recipe = with_setup("true")
    bench = make_bench(recipe)
    asked(bench, recipe)
    bench.wait_for_kind(RecipePrepared)
    assert bench.run(bench.shell('echo "${PATH%%:*}"')).stdout_tail == "/mine/first\n"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("echo hello", "false"), "hello"),
        (("exit 0",), "ended before its last line"),
        (("kill -9 $$",), "signal 9"),
        (("echo 'open",), "unexpected EOF"),
    ],
)
def test_why_it_failed_is_told(make_bench: Callable[..., Bench], lines: tuple[str, ...], said: str) -> None:
    recipe = with_setup(*lines)
    bench = make_bench(recipe)
    asked(bench, recipe)
    error = bench.wait_for_kind(RecipePrepared).error
    assert error.startswith("the setup failed")
    assert said in error


def test_a_solver_that_the_setup_does_not_bring_is_missed(make_bench: Callable[..., Bench]) -> None:
    recipe = Recipe(
        argv=("true",), setup=("true",), start_dir="/", check=("false",), check_hint="install it so"
    )
    bench = make_bench(recipe)
    asked(bench, recipe)
    assert "install it so" in bench.wait_for_kind(RecipePrepared).error


def test_another_launcher_runs_it_again(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    go = bench.folder / "go"
    recipe = with_setup(f"touch {bench.folder}/begun", f"while [ ! -e {go} ]; do sleep 0.05; done")
    asked(bench, recipe)
    wait_until(lambda: (bench.folder / "begun").exists())
    os.kill(bench.client.launcher_pid, signal.SIGKILL)
    bench.wait_for_kind(LauncherRestarted)
    go.touch()
    assert bench.wait_for_kind(RecipePrepared).error == ""
    assert bench.run(bench.shell("true")).outcome is Outcome.SUCCESS


def test_it_ends_with_its_rank(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    recipe = with_setup(f"touch {bench.folder}/begun", "sleep 600")
    asked(bench, recipe)
    wait_until(lambda: (bench.folder / "begun").exists())
    began = time.monotonic()
    assert bench.close() == 0
    assert time.monotonic() - began < 5
    bench.wait_gone()


@pytest.mark.parametrize(
    "text", ["KEYSTONE_PROGRESS 0.25\\n", "x\\nKEYSTONE_PROGR%sESS=0.25\\nKEYSTONE_PROGRESS bad\\n"]
)
def test_progress_is_heard_while_the_solver_runs(make_bench: Callable[..., Bench], text: str) -> None:
    bench = make_bench()
    first, _, second = text.partition("%s")
    order = bench.shell(
        f"printf '{first}'; sleep 0.2; printf '{second}'; while [ ! -e go ]; do sleep 0.05; done"
    )
    bench.client.submit(0, [order])
    event = bench.wait_for_kind(AttemptProgress)
    assert (event.index, event.attempt, event.fraction) == (*order.key, 0.25)
    (bench.folder / "go").touch()
    assert bench.report(order).outcome is Outcome.SUCCESS
