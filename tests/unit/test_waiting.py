"""Deadlines, by a clock that the test moves."""

from __future__ import annotations

import pytest

from tests.fakes import Clock
from vmrunner.waiting import Deadline


def test_a_deadline_is_over_when_its_time_has_come_and_stays_so() -> None:
    clock = Clock()
    deadline = Deadline(2.0, clock)
    assert (deadline.is_over, deadline.left) == (False, 2.0)
    clock.now += 1.5
    assert (deadline.is_over, deadline.left) == (False, 0.5)
    clock.now += 0.5
    assert (deadline.is_over, deadline.left) == (True, 0.0)
    clock.now += 100.0
    assert (deadline.is_over, deadline.left) == (True, 0.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
def test_one_without_time_is_over_at_once(seconds: float) -> None:
    assert Deadline(seconds).is_over


def test_a_pause_ends_with_the_deadline() -> None:
    clock, slept = Clock(), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.now += seconds

    deadline = Deadline(1.25, clock, sleep)
    while not deadline.is_over:
        deadline.pause(0.5)
    assert slept == [0.5, 0.5, 0.25]
