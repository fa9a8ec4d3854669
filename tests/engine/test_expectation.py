"""Durations are learned where parameters explain them, and only there."""

from __future__ import annotations

import math
import random

import pytest

from keystone_mpi.engine.expectation import SAMPLES_NEEDED, DurationModel


def cost_s(n: int, method: str) -> float:
    return 1e-4 * n**2.5 * (3.0 if method == "direct" else 1.0)


def trained(noise: float = 0.1, count: int = 80) -> DurationModel:
    rng = random.Random(7)
    model = DurationModel(("n", "method", "flag", "x"))
    for _ in range(count):
        n, method = rng.choice([16, 24, 32]), rng.choice(["cg", "direct"])
        params = {"n": n, "method": method, "flag": rng.random() < 0.5, "x": rng.uniform(-1, 1)}
        model.learn(cost_s(n, method) * math.exp(rng.gauss(0, noise)), lambda params=params: params)
    return model


def test_a_power_law_is_found_and_carries_on_beyond_what_was_seen() -> None:
    model = trained()
    for n in (16, 32, 128):
        for method in ("cg", "direct"):
            expected = model.expect({"n": n, "method": method, "flag": True, "x": 0.0})
            assert expected == pytest.approx(cost_s(n, method), rel=0.3)


def test_unexplained_durations_give_no_expectation() -> None:
    rng = random.Random(3)
    model = DurationModel(("n",))
    for _ in range(200):
        model.learn(math.exp(rng.gauss(0, 1)), lambda: {"n": rng.choice([1, 2, 3])})
    assert model.settled
    assert model.expect({"n": 2}) == 0.0


def test_nothing_is_said_before_enough_was_seen() -> None:
    model = trained(count=SAMPLES_NEEDED - 1)
    assert not model.settled
    assert model.expect({"n": 16, "method": "cg", "flag": False, "x": 0.0}) == 0.0


def test_short_tasks_settle_the_question_without_being_learned() -> None:
    model = DurationModel(("n",))
    for _ in range(SAMPLES_NEEDED):
        model.learn(0.001, lambda: {"n": 1})
    assert model.settled
    assert model.expect({"n": 1}) == 0.0


def test_odd_values_do_no_harm() -> None:
    model = DurationModel(("n", "s"))
    for index in range(100):
        model.learn(0.1 + index, lambda index=index: {"n": index - 50, "s": f"word {index}"})
    assert math.isfinite(model.expect({"n": -1, "s": "never seen"}))
    assert math.isfinite(model.expect({}))
    model.learn(float("nan"), lambda: {"n": 1, "s": "a"})
    assert math.isfinite(model.expect({"n": 10**300, "s": "a"}))
