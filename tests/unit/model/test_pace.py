"""How fast machines take, whoever measures them and whenever it is looked."""

from __future__ import annotations

import pytest

from vmrunner.model.pace import Gauge, Pace, between
from vmrunner.model.used import Used


def used(seconds: float) -> Used:
    """Of a machine that has half a processor busy, and writes a MiB a second."""
    return Used(2, 1024, 200, seconds / 2, 0.0, int(seconds * (1 << 20)), 0, int(seconds * 10))


def test_a_pace_is_of_a_second_and_never_below_nothing() -> None:
    assert between(used(10), used(14), 4.0) == Pace(0.5, 1 << 20, 0, 10)
    assert between(used(14), used(10), 4.0) == Pace(0, 0, 0, 0)


def test_two_fresh_measurements_are_enough() -> None:
    gauge = Gauge(fresh=True)
    gauge.saw({"a": used(100)}, 0.0)
    assert gauge.paces(0.0) == {}
    gauge.saw({"a": used(102), "b": used(1)}, 2.0)
    assert gauge.paces(2.0) == {"a": Pace(0.5, 1 << 20, 0, 10)}, "b was seen once"
    gauge.saw({"b": used(3)}, 4.0)
    assert list(gauge.paces(4.0)) == ["b"], "a is gone"


@pytest.mark.parametrize("looks", [0.5, 0.7, 1.9])
def test_who_looks_often_at_what_is_measured_seldom_sees_the_same(looks: float) -> None:
    """Somebody measures each 2 s, and the first figures are from nobody knows when."""
    gauge, at = Gauge(fresh=False), 1.5
    while at < 20.0:
        gauge.saw({"a": used(at // 2 * 2)}, at)
        at += looks
        if found := gauge.paces(at):
            assert found["a"].cpu == pytest.approx(0.5, rel=0.5)
    assert found["a"].cpu == pytest.approx(0.5, rel=0.3)


def test_the_first_figures_of_others_are_no_beginning() -> None:
    gauge = Gauge(fresh=False)
    gauge.saw({"a": used(0)}, 0.0)  # from long ago
    gauge.saw({"a": used(1000)}, 0.5)
    assert gauge.paces(0.5) == {}
    gauge.saw({"a": used(1002)}, 2.5)
    assert gauge.paces(2.5)["a"].cpu == 0.5


def test_what_nobody_measures_any_more_is_no_pace() -> None:
    gauge = Gauge(fresh=True)
    gauge.saw({"a": used(0)}, 0.0)
    gauge.saw({"a": used(2)}, 2.0)
    assert gauge.paces(30.0)
    assert gauge.paces(90.0) == {}
