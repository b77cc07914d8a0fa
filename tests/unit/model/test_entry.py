"""Lines of a machine: whose they are, when they were said, what is left out."""

from __future__ import annotations

import pytest

from vmrunner.model.entry import Entry, Source, console, fresh, guest, in_order, runner
from vmrunner.model.machine import EventKind, GuestEvent

BEGAN, NOW = 1_000_000.0, 1_000_100.0
CLOCK = GuestEvent(EventKind.CLOCK, BEGAN + 50.0, "7020.500")  # a clone of an old snapshot


def test_a_booted_machines_kernel_began_when_it_did() -> None:
    raw = (
        b"[    0.000000] Linux version 6.1\r\n\r\n"
        b"\x1b[0;32m[  OK  ]\x1b[0m Started \x1b[Jssh\r\n[   12.5] late\r\n"
    )
    assert console(raw, BEGAN, NOW, ()) == [
        Entry(BEGAN, Source.CONSOLE, "[    0.000000] Linux version 6.1"),
        Entry(BEGAN, Source.CONSOLE, "[  OK  ] Started ssh"),
        Entry(BEGAN + 12.5, Source.CONSOLE, "[   12.5] late"),
    ]


def test_a_clones_kernel_began_long_ago() -> None:
    (line,) = console(b"[ 7021.500] panic", BEGAN, NOW, (CLOCK,))
    assert line.at == BEGAN + 51.0


@pytest.mark.parametrize(
    "said", [b"[99999999.0] x", b"[-1.0] x", b"[nan] x", b"[ 1e9.5] x", b"[1.%s] x" % (b"1" * 400)]
)
def test_a_guest_that_lies_about_its_time_stays_in_its_own(said: bytes) -> None:
    (line,) = console(said, BEGAN, NOW, (CLOCK,))
    assert BEGAN <= line.at <= NOW + 60


def test_a_runner_has_times_of_its_own() -> None:
    raw = (
        b'time="1970-01-12T13:46:50Z" level=info msg="one"\nits next line\n'
        b'time="1970-01-12T13:46:59.25Z" level=info msg="two"\n'
        b'time="1970-02-31T13:46:59Z" level=info msg="never"\n'
        b'time="2999-01-01T00:00:00Z" level=info msg="far"\n'
    )
    found = in_order(runner(raw, BEGAN, NOW))
    assert [entry.at - BEGAN for entry in found] == [10.0, 10.0, 19.25, 19.25, 19.25]


def test_what_would_move_a_screen_is_gone() -> None:
    (line,) = runner(b"a\x1b]0;title\x07b\x00\x9bc\xff", BEGAN, NOW)
    assert line.text.isprintable()


def test_many_and_long_lines_are_bounded() -> None:
    found = console(b"x\n" * 100_000 + b"y" * 5000, BEGAN, NOW, ())
    assert len(found) == 5000
    assert len(found[-1].text) == 1000


def test_reports_are_in_the_order_of_their_times() -> None:
    events = [GuestEvent(EventKind.RUNNER, BEGAN + 9, "a=1"), GuestEvent(EventKind.UP, BEGAN + 3)]
    assert [entry.text for entry in guest(events, BEGAN, NOW)] == ["up", "runner a=1"]


def test_parts_keep_their_own_order() -> None:
    late, early = Entry(9.0, Source.CONSOLE, "late"), Entry(5.0, Source.CONSOLE, "after it")
    other = Entry(7.0, Source.RUNNER, "between")
    assert [entry.text for entry in in_order([late, early], [other])] == [
        "between",
        "late",
        "after it",
    ]


def lines(*texts: str, source: Source = Source.CONSOLE, at: float = 1.0) -> list[Entry]:
    return [Entry(at, source, text) for text in texts]


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ("", "ab", "ab"),
        ("ab", "ab", ""),
        ("ab", "abc", "c"),
        ("abc", "bcd", "d"),  # its beginning is not kept any more
        ("abc", "xyz", "xyz"),
        ("aab", "aabaab", "aab"),
        ("abab", "abab", ""),
        ("abc", "", ""),
    ],
)
def test_what_has_come_since(before: str, now: str, new: str) -> None:
    assert [entry.text for entry in fresh(lines(*before), lines(*now, at=2.0))] == list(new)


def test_a_phase_that_is_known_late_is_told_once() -> None:
    before = lines("created", "started", source=Source.PHASE)
    now = lines("job queued", "created", "started", "destroyed", source=Source.PHASE)
    assert [entry.text for entry in fresh(before, now)] == ["job queued", "destroyed"]
