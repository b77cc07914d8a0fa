"""A libvirt that does not answer: said once for each call, and never of one that is answered."""

from __future__ import annotations

import threading

import pytest

from tests.fakes import Clock
from vmrunner.hypervisor.patience import SOON, Patience, within


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def patience(clock: Clock, said: list[str]) -> Patience:
    made = Patience(clock, every=3600.0)
    made.tell = said.append
    return made


def test_a_late_answer_is_said_once(patience: Patience, clock: Clock, said: list[str]) -> None:
    with patience.during("starting m"), patience.during("listing domains"):
        clock.now += SOON - 1
        patience.look()
        assert said == []
        with patience.during("looking at n"):
            clock.now += 2
            for _ in range(3):
                patience.look()
    assert len(said) == 2
    assert said[0].startswith("libvirt has not answered for 10 s: starting m.")
    assert "listing domains" in said[1]


def test_what_was_answered_is_not_late(patience: Patience, clock: Clock, said: list[str]) -> None:
    with patience.during("starting m"):
        clock.now += SOON - 1
    with pytest.raises(ValueError, match="no"), patience.during("starting n"):
        raise ValueError("no")
    clock.now += SOON
    patience.look()
    assert said == []


def test_the_watching_thread_looks_by_itself(clock: Clock) -> None:
    patience, told = Patience(clock, every=0.01), threading.Event()
    patience.tell = lambda _: told.set()
    with patience.during("starting m"):
        clock.now += SOON
        assert told.wait(30)


def test_within() -> None:
    go_on = threading.Event()
    assert within(30, lambda: None) == (None,)
    assert within(0.01, lambda: go_on.wait(30)) is None
    go_on.set()
    with pytest.raises(ValueError, match="asked"):
        within(30, lambda: int("asked"))
