"""The history summed up by the hour, so that a plot costs the same however long the history is.
Pure.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil

from vmrunner.model.machine import Ending
from vmrunner.page.past import Life

HOUR = 3600.0
QUARTER = 91 * 24  # hours: as far back as sums go
_GOOD = {each.value for each in Ending if not each.is_failure}

Seconds = defaultdict[str, float]


class Span(StrEnum):
    """How far back a plot looks."""

    DAY = "day"
    WEEK = "week"
    QUARTER = "quarter"

    @property
    def hours(self) -> int:
        """All of it."""
        return {Span.DAY: 24, Span.WEEK: 7 * 24, Span.QUARTER: QUARTER}[self]

    @property
    def step(self) -> int:
        """Hours that a value of its plots stands for."""
        return {Span.DAY: 1, Span.WEEK: 6, Span.QUARTER: 24}[self]


@dataclass
class Hour:
    """What ended within some time: for how long its machines were whose; and for how long machines
    were in use within that time.
    """

    verdicts: Counter[str] = field(default_factory=Counter)  # of jobs; "" where none is known
    failures: Counter[str] = field(default_factory=Counter)  # of machines, by their ending
    waits: list[float] = field(default_factory=list)  # seconds from a job's queueing to its start
    starts: list[float] = field(default_factory=list)  # seconds from a job's turn to its runner
    held: Seconds = field(default_factory=lambda: defaultdict(float))  # by repository
    used: Seconds = field(default_factory=lambda: defaultdict(float))  # by pool

    def add(self, other: Hour) -> None:
        """Another time's, too."""
        self.verdicts.update(other.verdicts)
        self.failures.update(other.failures)
        for mine, more in ((self.held, other.held), (self.used, other.used)):
            for name, seconds in more.items():
                mine[name] += seconds
        self.waits += other.waits
        self.starts += other.starts


class Sums:
    """By the hour since 1970. Of one that is made of nothing there is nothing."""

    def __init__(self) -> None:
        self.hours: dict[int, Hour] = {}

    def _hour(self, number: int) -> Hour:
        return self.hours.setdefault(number, Hour())

    def ended(self, lives: Iterable[Life]) -> None:
        """Machines that are gone."""
        for life in lives:
            self._used(life, life.destroyed)
            hour = self._hour(int(life.destroyed // HOUR))
            hour.held[life.repository] += max(0.0, life.destroyed - (life.bound or life.created))
            if life.ending not in _GOOD:
                hour.failures[life.ending] += 1
            if life.had_job:
                hour.verdicts[life.verdict] += 1
                # One that was begun again was queued long before that.
                if life.queued and life.began and life.attempt < 2:
                    hour.waits.append(max(0.0, life.began - life.queued))
            if (turn := max(life.queued, life.created)) and life.runner > turn:
                hour.starts.append(life.runner - turn)

    def going_on(self, lives: Iterable[Life], now: float) -> None:
        """Machines that are there."""
        for life in lives:
            self._used(life, now)

    def _used(self, life: Life, until: float) -> None:
        """A machine is in use from when it was a job's."""
        begun = life.bound or (life.created if life.had_job or life.repository else 0.0)
        if not begun:
            return
        at = max(begun, until - QUARTER * HOUR)
        while at < until:
            number = int(at // HOUR)
            end = min(until, (number + 1) * HOUR)
            self._hour(number).used[life.pool] += end - at
            at = end

    def add(self, other: Sums) -> None:
        """All of another one."""
        for number, hour in other.hours.items():
            self._hour(number).add(hour)

    def forget(self, before: int) -> None:
        """What was before this hour."""
        for number in [number for number in self.hours if number < before]:
            del self.hours[number]


def steps(parts: Iterable[Sums], span: Span, now: float) -> list[tuple[float, Hour]]:
    """The values of a plot: each with the time that it begins at. The last one ends with the hour
    that `now` is in.
    """
    end = int(now // HOUR) + 1
    begin = end - span.hours
    found = [Hour() for _ in range(ceil(span.hours / span.step))]
    for part in parts:
        for number, hour in part.hours.items():
            if begin <= number < end:
                found[(number - begin) // span.step].add(hour)
    return [((begin + place * span.step) * HOUR, hour) for place, hour in enumerate(found)]


def whole(found: Iterable[tuple[float, Hour]]) -> Hour:
    """All of these times together."""
    total = Hour()
    for _, hour in found:
        total.add(hour)
    return total


def quantile(values: list[float], share: float) -> float | None:
    """Of sorted values the one below which this share of them lies; None of none."""
    return values[min(len(values) - 1, int(len(values) * share))] if values else None
