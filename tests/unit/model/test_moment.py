"""Time that counts: silences of the forge are subtracted once, whatever they overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmrunner.model.moment import RECOVERY, UNSEEN, Moment, Silence, Silences


def at(steady: float, boot: str = "b") -> Moment:
    return Moment(1e9 + steady, steady, boot)


def test_a_silence_begins_with_the_last_answer_and_ends_after_the_next_one() -> None:
    silences = Silences().looked_at(at(100), [])
    silences = silences.looked_at(at(105), ["instance"]).looked_at(at(110), ["instance"])
    assert silences.known == (Silence("instance", 100),)
    assert silences.between(0, 110, ["instance"]) == 10
    silences = silences.looked_at(at(115), [])
    assert silences.known == (Silence("instance", 100, 115 + RECOVERY),)
    assert silences.between(0, 115, ["instance"]) == 15
    assert silences.between(104, 500, ["instance"]) == 11 + RECOVERY
    assert silences.between(0, 500, ["organisation:o"]) == 0, "that one answered"
    again = silences.looked_at(at(120), ["instance"]).looked_at(at(140), [])
    assert again.between(0, 500, ["instance"]) == 40 + RECOVERY, "what overlaps counts once"


def test_time_in_which_nobody_looked_counts_for_a_minute() -> None:
    silences = Silences().looked_at(at(100), []).looked_at(at(400), [])
    assert silences.between(90, 400, ["user"]) == 300 - UNSEEN
    assert silences.between(90, 400, ["user"], unseen=False) == 0


def test_another_boot_knows_nothing_of_the_one_before() -> None:
    silences = Silences().looked_at(at(100), ["user"])
    assert silences.looked_at(at(5, "c"), []) == Silences("c", 5)
    assert silences.looked_at(at(50), []) == Silences("b", 50), "a clock that runs backwards"


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=30), st.floats(0, 1000))
def test_what_counts_is_never_more_than_what_passed(
    looks: list[tuple[float, bool]], began: float
) -> None:
    silences, now = Silences(), 0.0
    for seconds, away in looks:
        now += seconds
        silences = silences.looked_at(at(now), ["user"] if away else [])
    silent = silences.between(min(began, now), now, ["user"])
    assert 0 <= silent <= now - min(began, now) + 1e-6
