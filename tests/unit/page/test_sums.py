"""Sums of the history: they say what `vmrunner report` says, follow what comes, and cost what is
shown.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.page import remember
from tests.unit.page.site import NOW, Page
from vmrunner.manager.history import History
from vmrunner.manager.usage import usage
from vmrunner.model.by import By
from vmrunner.page.chart import Line, bars, chart, timeline
from vmrunner.page.past import Life, Past
from vmrunner.page.summary import plots
from vmrunner.page.sums import HOUR, QUARTER, Span, Sums, quantile, steps, whole
from vmrunner.page.words import duration, link, moment, number

LIFE = Life("p", "o/r", True, "success", "done", 10.0, 12.0, 1, 12.0, 11.0, 0.0, 20.0)


def life(ended: float, took: float, **fields: object) -> Life:
    plain = LIFE.__dict__ | {"created": ended - took, "destroyed": ended, "queued": 0.0} | fields
    return Life(**plain)


def test_they_are_those_of_the_report(tmp_path: Path) -> None:
    remember(tmp_path, 500, days=80)
    history = History(tmp_path / "history.sqlite", print)
    rows = history.all()
    history.close()
    last = max(row.destroyed for row in rows)
    sums = Sums()
    sums.ended(Past(tmp_path / "history.sqlite").lives(0.0, last + 1))
    total = whole(steps([sums], Span.QUARTER, last))
    report = usage(rows, By.REPOSITORY)
    for each in report:
        assert total.held[each.name] == pytest.approx(each.machine_seconds, abs=0.1)
    assert total.verdicts.total() == sum(each.jobs for each in report)
    assert total.verdicts["failure"] == sum(each.failed for each in report)
    assert total.failures.total() == sum(each.machine_failures for each in report)
    assert sum(total.waits) == pytest.approx(sum(e.waiting_seconds for e in report), abs=1.0)


def test_a_machine_is_in_use_in_each_hour_that_it_was_a_jobs() -> None:
    sums, end = Sums(), 1000 * HOUR
    sums.ended([life(end + 900, 2 * HOUR + 1800)])
    sums.ended([life(end, HOUR, had_job=False, repository="")])  # a warm one that nobody needed
    sums.ended([life(end, 5 * HOUR, bound=end - 60)])  # a warm one that got a job
    sums.going_on([life(0.0, 0.0, created=end + 1800)], end + 2700)
    used = {hour: each.used["p"] for hour, each in sums.hours.items() if each.used}
    assert used == {997: 900.0, 998: 3600.0, 999: 3600.0 + 60.0, 1000: 900.0 + 900.0}


@pytest.mark.parametrize(
    "odd",
    [
        life(NOW, 0.0, created=0.0),
        life(NOW, -500.0),
        life(NOW, 0.0, created=1.0, bound=0.0),
        life(NOW + 1e9, 60.0),
        life(NOW, 10.0, queued=NOW + 500, began=NOW - 500),
        life(NOW, 10.0, runner=NOW + 1e12),
        life(NOW, 10.0, ending="of another version", verdict="of another forge"),
    ],
)
def test_clocks_that_were_set(odd: Life) -> None:
    sums = Sums()
    sums.ended([odd])
    assert len(sums.hours) <= QUARTER + 2
    for span in Span:
        drawn = plots([sums], span, {"p": 2}, NOW)
        assert len(drawn.charts) == 4


def test_what_comes_later_is_seen_and_nothing_counts_twice(page: Page) -> None:
    clock = page.world.clock
    for number_ in range(40):
        page.remember(number_ * 200)  # five and a half days
    summary = page.summary
    summary.look()
    first = whole(steps(summary._read(clock.now), Span.QUARTER, clock.now)).verdicts
    assert first == {"success": 40}
    for _ in range(9):
        clock.now += 43_000
        page.remember(0, machine=f"vmr-m-{int(clock.now):08x}", verdict="")
        found = whole(steps(summary._read(clock.now), Span.QUARTER, clock.now)).verdicts
    assert found == {"success": 40, "": 9}
    # A verdict that comes when its machine is long gone.
    page.remember(0, machine=f"vmr-m-{int(clock.now):08x}", verdict="failure")
    clock.now += 80_000
    found = whole(steps(summary._read(clock.now), Span.QUARTER, clock.now)).verdicts
    assert found == {"success": 40, "": 8, "failure": 1}
    clock.now += 86_400 * 200
    assert not whole(steps(summary._read(clock.now), Span.QUARTER, clock.now)).verdicts
    assert summary._settled.hours == {}
    clock.now = NOW  # it was set back: what was forgotten is read again
    assert whole(steps(summary._read(NOW), Span.QUARTER, NOW)).verdicts["success"] == 40


@pytest.mark.parametrize("span", list(Span))
def test_the_places_of_a_plot(span: Span) -> None:
    found = steps([], span, NOW)
    assert len(found) * span.step == span.hours
    assert found[-1][0] <= NOW < found[-1][0] + span.step * HOUR
    assert {b - a for (a, _), (b, _) in pairwise(found)} == {span.step * HOUR}


def test_quantiles() -> None:
    assert quantile([], 0.5) is None
    assert quantile([7.0], 0.95) == 7.0
    assert [quantile([float(each) for each in range(100)], share) for share in (0.5, 0.95)] == [
        50.0,
        95.0,
    ]


VALUES = st.lists(st.none() | st.floats(0, 1e12), min_size=1, max_size=30)


@given(values=VALUES, stacked=st.booleans())
def test_nothing_is_drawn_outside_of_a_plot(values: list[float | None], stacked: bool) -> None:
    lines = [Line("a", tuple(values)), Line("b", tuple(reversed(values)))]
    made = chart(
        "x", "X", [str(each) for each in range(len(values))], lines, number, stacked=stacked
    )
    for path in made.paths:
        points = [
            tuple(map(float, each.split(","))) for piece in path.pieces for each in piece.split(" ")
        ]
        points += [*path.dots, *((x, y) for x, y, _, _ in path.bars)]
        points += [(x + wide, y + high) for x, y, wide, high in path.bars]
        for x, y in points:
            assert made.left <= x <= made.right
            assert 0 <= y <= made.bottom + 0.2
    assert len(made.columns) <= 6
    assert 5 <= len(made.rows) <= 12


def test_a_line_is_broken_where_nothing_is_known() -> None:
    (path,) = chart(
        "x", "X", list("abcdef"), [Line("l", (1.0, 2.0, None, 3.0, None, 0.0))], str
    ).paths
    assert (len(path.pieces), len(path.dots)) == (1, 2)


def test_bars_of_many() -> None:
    made = bars("x", "X", {f"r{each}": float(each) for each in range(30)} | {"": 99.0}, number, 3)
    assert [(each.name, each.value) for each in made.bars] == [
        ("(no job)", "99"),
        ("r29", "29"),
        ("r28", "28"),
        ("28 more", "378"),
    ]


def test_a_life_in_pieces() -> None:
    pieces = timeline([("a", 10.0), ("b", 0.0), ("c", 15.0), ("d", 12.0), ("e", 20.0), ("", 20.0)])
    assert [(each.name, each.seconds, each.left, each.width) for each in pieces] == [
        ("a", 5.0, 0.0, 50.0),
        ("c", 0.0, 50.0, 0.0),
        ("d", 5.0, 50.0, 50.0),
        ("e", 0.0, 100.0, 0.0),
    ]
    assert timeline([("a", 1.0), ("", 0.0)]) == timeline([]) == ()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "0 s"),
        (0, "0 s"),
        (0.84, "0.8 s"),
        (12.3, "12 s"),
        (99, "99 s"),
        (150, "2.5 min"),
        (9000, "2.5 h"),
        (400_000, "4.63 d"),
    ],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize("at", [0.0, -1.0, 1e18, float("inf"), float("nan")])
def test_times_that_are_none(at: float) -> None:
    assert moment(at) == "–"  # noqa: RUF001 — meant


@pytest.mark.parametrize(
    "url",
    [
        "",
        "javascript:alert(1)",
        "JavaScript:x",
        "data:text/html,x",
        "//evil.example",
        "/x",
        "http://",
        "https://[::1",
        "https://a\n.example",
        "ftp://a.example",
    ],
)
def test_addresses_that_are_no_links(url: str) -> None:
    assert link(url) == ""
    assert link("https://forge.example/a/b") == "https://forge.example/a/b"
