"""Silence is noticed, a pause of one's own blames nobody."""

from __future__ import annotations

import pytest

from keystone_mpi.engine.liveness import DEFAULT_SILENCE_S, SILENCE_VARIABLE, Liveness, silence_limit_s


def test_only_who_was_heard_of_can_be_missed() -> None:
    live = Liveness(0.0, 60.0)
    live.heard(1, 0.0)
    for now in range(0, 61, 10):
        assert live.silent(float(now)) == []
        live.heard(2, float(now))
    assert live.silent(70.0) == [1]
    live.forget(1)
    assert not live.knows(1)
    assert live.silent(80.0) == []


def test_a_pause_of_our_own_blames_nobody() -> None:
    live = Liveness(0.0, 60.0)
    live.heard(1, 0.0)
    assert live.silent(10.0) == []
    assert live.silent(1000.0) == []
    for now in range(1010, 1050, 10):
        assert live.silent(float(now)) == []
    assert live.silent(1060.0) == [1]


def test_beats() -> None:
    live = Liveness(0.0, 60.0)
    assert live.beat_due(0.0)
    assert not live.beat_due(9.0)
    assert live.next_look_s(4.0) == 6.0
    assert live.beat_due(10.0)


def test_the_limit_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SILENCE_VARIABLE, raising=False)
    assert silence_limit_s() == DEFAULT_SILENCE_S
    for text, seconds in (
        ("30", 30.0),
        ("0.1", 3.0),
        ("never", DEFAULT_SILENCE_S),
        ("nan", DEFAULT_SILENCE_S),
    ):
        monkeypatch.setenv(SILENCE_VARIABLE, text)
        assert silence_limit_s() == seconds


def test_a_pause_moves_no_sign_of_life_into_the_future() -> None:
    live = Liveness(0.0, 60.0)
    assert live.silent(0.0) == []
    live.heard(1, 990.0)  # read right after the pause, before anybody was looked for
    assert live.silent(1000.0) == []
    for now in range(1010, 1060, 10):
        assert live.silent(float(now)) == []
    assert live.silent(1061.0) == [1]
