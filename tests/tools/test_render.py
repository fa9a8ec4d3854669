"""Rendering: one recipe and one task's parameters, spelled out."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from keystone_mpi.tools.recipe import CollectRule, FileRule, Recipe
from keystone_mpi.tools.render import LINE_TOOL, RenderContext, Renderer, RenderError

PARAMS: dict[str, Any] = {"n": 16, "kappa": 0.25, "name": "it's", "flag": False}
CONTEXT = RenderContext(index=7, attempt=3, task_id="7", seed=42, cores=2)


def renderer(**parts: Any) -> Renderer:
    recipe = Recipe(**{"start_dir": "/start", "argv": ("solve",), **parts})
    return Renderer(recipe, output_path="/out/s.h5", scratch_dir="/scratch", run_id="run-1", epoch=4)


def test_arguments_and_environment() -> None:
    launch = renderer(
        argv=(
            "solve",
            "--n={n}",
            "{kappa:.1f}",
            "{{}}",
            "{flag}",
            "{task_id}-{index}-{seed}-{cores}",
            "{workdir}",
        ),
        env={"MODE": "{name}", "FIXED": "1"},
    ).render(PARAMS, CONTEXT)
    assert launch.argv == ("solve", "--n=16", "0.2", "{}", "false", "7-7-42-2", "/start")
    assert launch.cwd == "/start"
    assert launch.stdin == ""
    assert json.loads(launch.env.pop("KEYSTONE_PARAMS")) == PARAMS
    assert launch.env == {
        "KEYSTONE_TASK_ID": "7",
        "KEYSTONE_INDEX": "7",
        "KEYSTONE_ATTEMPT": "3",
        "KEYSTONE_SEED": "42",
        "KEYSTONE_RUN": "run-1",
        "KEYSTONE_EPOCH": "4",
        "OMP_NUM_THREADS": "2",
        "MODE": "it's",
        "FIXED": "1",
    }


def test_threads_follow_the_cores_unless_the_sweep_says_otherwise() -> None:
    assert renderer(env={"OMP_NUM_THREADS": "{n}"}).render(PARAMS, CONTEXT).env["OMP_NUM_THREADS"] == "16"


def test_shell_lines() -> None:
    launch = renderer(argv=("cd x && solve {name} {n} > log",), shell=True).render(PARAMS, CONTEXT)
    assert launch.argv == ("/bin/sh", "-c", "cd x && solve 'it'\"'\"'s' 16 > log")
    line = 'for i in {1..3}; do echo ${i} "it\'s"; done'
    launch = renderer(tool=LINE_TOOL, argv=("{command}",), shell=True).render({"command": line}, CONTEXT)
    assert launch.argv == ("/bin/sh", "-c", line)


@pytest.mark.parametrize(
    ("workdir", "cwd"),
    [("none", "/start"), ("task", "/out/s.h5.work/7/attempt-3"), ("local", "/scratch/run-1/7-3")],
)
def test_a_path_that_an_attempt_writes_holds_its_task_and_number(workdir: str, cwd: str) -> None:
    made = renderer(
        workdir=workdir,
        argv=("solve", "{workdir}"),
        stdin="in.{n}",
        files={
            "in.{n}": FileRule(template="/decks/in", text="n = {n}\n{{}}"),
            "a/../b": FileRule(copy="/decks/{name}"),
            "c": FileRule(link="/data/c"),
        },
        collect=(
            CollectRule("u", file="u-{n}.npy"),
            CollectRule("v", file="/abs/{task_id}"),
            CollectRule("r", regex="(x)"),
        ),
    )
    launch = made.render(PARAMS, CONTEXT)
    assert launch.cwd == cwd == made.work_path("7", 3)
    assert launch.argv == ("solve", cwd)
    assert launch.stdin == f"{cwd}/in.16"
    assert launch.writes == ((f"{cwd}/in.16", "n = 16\n{}"),)
    assert launch.copies == ((f"{cwd}/b", "/decks/it's"),)
    assert launch.links == ((f"{cwd}/c", "/data/c"),)
    assert launch.collect_files == {"u": f"{cwd}/u-16.npy", "v": "/abs/7"}


def test_standard_input_of_the_start_folder() -> None:
    assert (
        renderer(stdin="decks/{n}.in", workdir="task").render(PARAMS, CONTEXT).stdin == "/start/decks/16.in"
    )
    assert renderer(stdin="/abs/x").render(PARAMS, CONTEXT).stdin == "/abs/x"


@pytest.mark.parametrize("target", ["../x", "/etc/passwd", "a/../../x", "."])
def test_a_target_must_stay_in_the_folder_of_the_task(target: str) -> None:
    made = renderer(workdir="task", files={"{name}": FileRule(copy="/x")})
    with pytest.raises(RenderError) as caught:
        made.render({"name": target}, CONTEXT)
    assert str(caught.value) == f"task 7: [files] target '{target}' leaves the task's folder"


@pytest.mark.parametrize(
    "parts",
    [
        {"argv": ("solve", "{kappa:d}")},
        {"argv": ("solve {kappa:d}",), "shell": True},
        {"env": {"X": "{kappa:d}"}},
        {"stdin": "{kappa:d}"},
        {"workdir": "task", "files": {"x": FileRule(template="/t", text="{kappa:d}")}},
        {"collect": (CollectRule("u", file="{kappa:d}"),)},
    ],
)
def test_a_value_that_does_not_fit_names_the_task(parts: dict[str, Any]) -> None:
    with pytest.raises(RenderError) as caught:
        renderer(**parts).render(PARAMS, CONTEXT)
    assert str(caught.value).startswith("task 7: {kappa:d} does not fit the value 0.25: ")


def test_a_missing_parameter_names_the_task() -> None:
    with pytest.raises(RenderError, match="task 7: 'missing' is none of its parameters"):
        renderer(argv=("solve", "{missing}")).render(PARAMS, CONTEXT)


def test_rendering_is_cheap() -> None:
    made = renderer(argv=("solve", "-n", "{n}", "-k", "{kappa}", "--name={name}", "--flag", "{flag}"))
    started = time.perf_counter()
    for _ in range(5000):
        made.render(PARAMS, CONTEXT)
    assert (time.perf_counter() - started) / 5000 < 300e-6  # measured: 6 us
