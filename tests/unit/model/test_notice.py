"""What is news, and that it is told once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vmrunner.model.notice import Kind, Known, Notice, Sight, Trouble, news

WELL = Sight("https://forge.example", pools={"p": None}, free=9000, floor=5000)
OFF = replace(WELL, pools={"p": Trouble(3, "no boot")})


def kinds(*sights: tuple[float, Sight], known: Known | None = None) -> list[str]:
    """What is told while time goes by."""
    told: list[Notice] = []
    for at, sight in sights:
        known, more = news(known, sight, at)
        told += more
    return [each.kind.value for each in told]


def test_all_is_well() -> None:
    assert kinds((1, WELL), (2, WELL)) == []


def test_a_forge_that_is_restarted_is_no_news_and_one_that_stays_away_is_told_once() -> None:
    away = replace(WELL, silence="No answer.")
    assert kinds((1, away), (40, away), (41, WELL), (42, away), (90, away), (91, WELL)) == []
    gone = [(at, away) for at in (1.0, 61.0, 100.0, 5000.0)]
    assert kinds(*gone, (5001, WELL), (5002, WELL)) == ["forge-away", "forge-back"]


def test_a_clock_that_is_set_back_delays_it_alone() -> None:
    away = replace(WELL, silence="No answer.")
    assert kinds((1000, away), (10, away), (69, away)) == []
    assert kinds((1000, away), (10, away), (70, away)) == ["forge-away"]


def test_a_pool_is_told_from_the_third_failure_until_it_works() -> None:
    one, many = (
        replace(WELL, pools={"p": Trouble(1, "x")}),
        replace(OFF, pools={"p": Trouble(9, "x")}),
    )
    assert kinds((1, one), (2, WELL)) == []
    assert kinds((1, OFF), (2, many), (3, one), (4, WELL)) == ["pool-backed-off", "pool-works"]


def test_a_pool_that_is_configured_no_more_does_not_work_again() -> None:
    assert kinds((1, OFF), (2, replace(WELL, pools={}))) == ["pool-backed-off"]


def test_an_image_is_told_each_time_and_not_what_was_over_before() -> None:
    first, second = (
        replace(WELL, rolled_back={"web": (at, "3 machines failed")}) for at in ("1", "2")
    )
    assert kinds((1, first), (2, first)) == []
    both = ["image-rolled-back"] * 2
    assert kinds((1, WELL), (2, first), (3, WELL), (4, first), (5, second)) == both


@pytest.mark.parametrize(
    ("free", "told"),
    [
        ([5000], []),
        ([4999], ["storage-low"]),
        ([4999, 5100, 4999, 5499], ["storage-low"]),
        ([4999, 5500, 5000, 4999], ["storage-low", "storage-enough", "storage-low"]),
    ],
)
def test_storage_that_is_about_its_floor_is_told_once(free: list[int], told: list[str]) -> None:
    assert kinds(*((at, replace(WELL, free=mib)) for at, mib in enumerate(free, 1))) == told


def test_storage_that_is_not_there_yet_or_not_any_more_is_no_news() -> None:
    unknown, low = replace(WELL, free=None), replace(WELL, free=1)
    assert kinds((1, unknown), (2, WELL), (3, unknown)) == []
    assert kinds((1, low), (2, unknown), (3, low)) == ["storage-low"]


def test_what_is_told_has_its_subject_and_its_reason() -> None:
    (notice,) = news(None, OFF, 1.0)[1]
    assert notice == Notice(
        Kind.POOL_BACKED_OFF, "p", "Pool p is backed off after 3 failures in a row; last: no boot"
    )


def test_a_machine_that_is_held_is_told_once() -> None:
    one, two = "vmr-m-1", "vmr-m-2"
    first = replace(WELL, held={one: "of pool p, for 30 min, as its job failed"})
    both = replace(WELL, held={one: "as before", two: "too"})
    told = ["machine-held"]
    assert kinds((1, first), (2, first), (3, both), (4, both), (5, WELL)) == told * 2
    assert kinds((1, first), (2, WELL), (3, first)) == told * 2, "a name does not come again"
    known, (notice,) = news(None, first, 1)
    assert (notice.subject, known.held) == (one, {one})
    assert notice.text == f"The machine {one} is held: of pool p, for 30 min, as its job failed."
