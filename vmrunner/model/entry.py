"""The lines that there are about one machine, whoever said them, with their times. Pure.

What guests say is theirs: a line explains, and decides nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import chain
from operator import attrgetter

from vmrunner.model.machine import EventKind, GuestEvent
from vmrunner.text import presentable

_LONGEST = 1000  # characters of one line
_MOST = 5000  # lines of one source
_COLOURS = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|[()][0-9A-Za-z]|[=>78cDEHM])")
_KERNEL = re.compile(r"^\[ *(\d{1,9}\.\d{1,9})\] ")
_RUNNER = re.compile(
    r'^time="?(\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d))"? '
)
_AHEAD = 60.0  # seconds that a guest's clock may be before the host's


class Source(StrEnum):
    """Who said a line."""

    MANAGER = "manager"
    PHASE = "phase"  # of the history: what became of the machine, and of its job
    GUEST = "guest"  # what it reports
    CONSOLE = "console"  # its kernel, and what runs beside the runner
    RUNNER = "runner"  # the forge's runner itself; the job's own log is the forge's


@dataclass(frozen=True)
class Entry:
    """One line. Of a line that has no time of its own it is the time of the one before."""

    at: float  # unix seconds
    source: Source
    text: str


def in_order(*parts: Iterable[Entry]) -> list[Entry]:
    """By their times; the lines of one part stay in its order."""
    # Of what is equal the first part's comes first; and what is in order already costs little.
    return sorted(chain.from_iterable(map(_rising, parts)), key=attrgetter("at"))


def _rising(entries: Iterable[Entry]) -> Iterator[Entry]:
    at = 0.0
    for entry in entries:
        at = max(at, entry.at)
        yield entry if entry.at == at else Entry(at, entry.source, entry.text)


def console(raw: bytes, began: float, now: float, events: Sequence[GuestEvent]) -> list[Entry]:
    """A console's lines, of a machine whose domain began at `began`.

    The kernel counts from its own start, which for a clone was long ago: the guest tells once what
    time that is.
    """
    clock = next((event for event in events if event.kind is EventKind.CLOCK), None)
    zero = clock.at - _number(clock.text) if clock else began

    def time(line: str) -> float | None:
        found = _KERNEL.match(line)
        return zero + float(found[1]) if found else None

    return [Entry(_within(time(line), began, now), Source.CONSOLE, line) for line in _lines(raw)]


def runner(raw: bytes, began: float, now: float) -> list[Entry]:
    """The lines of a runner's log, which have times of their own."""

    def time(line: str) -> float | None:
        found = _RUNNER.match(line)
        try:
            return datetime.fromisoformat(found[1]).timestamp() if found else None
        except ValueError:  # the 31st of February
            return None

    return [Entry(_within(time(line), began, now), Source.RUNNER, line) for line in _lines(raw)]


def guest(events: Iterable[GuestEvent], began: float, now: float) -> list[Entry]:
    """What a guest has reported."""
    told = (Entry(_within(e.at, began, now), Source.GUEST, f"{e.kind} {e.text}") for e in events)
    return sorted(
        (Entry(each.at, each.source, each.text.strip()) for each in told), key=lambda each: each.at
    )


def _within(at: float | None, began: float, now: float) -> float:
    """A guest's clock, as far as that can be; `began` where it tells none."""
    return began if at is None or not began <= at <= now + _AHEAD else at


def _number(text: str) -> float:
    found = re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text)
    return float(text) if found else 0.0


def _lines(raw: bytes) -> list[str]:
    """The last ones, without colours and without those that are empty."""
    text = _COLOURS.sub("", raw.decode("utf-8", "replace"))
    found = (presentable(line, _LONGEST).rstrip() for line in re.split(r"[\r\n]+", text))
    return [line for line in found if line][-_MOST:]


def fresh(before: Sequence[Entry], now: Sequence[Entry]) -> list[Entry]:
    """What has come since `before` was read: both are ends of the same stream, of which the second
    may begin later. Times don't matter, since they may be known better by now.
    """
    found = list[Entry]()
    for source in Source:
        old = [entry.text for entry in before if entry.source is source]
        new = [entry for entry in now if entry.source is source]
        if source in (Source.PHASE, Source.GUEST):  # each is said once, and some are known late
            found += [entry for entry in new if entry.text not in old]
        else:
            found += new[_overlap(old, [entry.text for entry in new]) :]
    return sorted(found, key=lambda entry: entry.at)


def _overlap(before: Sequence[str], now: Sequence[str]) -> int:
    """How many lines at the end of the first are the beginning of the second."""
    most = min(len(before), len(now))
    return next(n for n in range(most, -1, -1) if before[len(before) - n :] == now[:n])
