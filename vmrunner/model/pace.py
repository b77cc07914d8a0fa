"""How fast machines take of their host, from figures that only grow. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vmrunner.model.used import Used

_SPAN = 6.0  # seconds that a rate is of, about
_OLD = 60.0  # seconds after which a measurement says nothing of now


@dataclass(frozen=True)
class Pace:
    """What a machine takes each second."""

    cpu: float  # seconds of the host's processors: 1.0 is one that is busy
    written: float  # bytes to its disk
    received: float
    sent: float


def between(before: Used, after: Used, seconds: float) -> Pace:
    """That of so many seconds."""

    def each(first: float, last: float) -> float:
        return max(0.0, last - first) / seconds

    return Pace(
        each(before.cpu_seconds, after.cpu_seconds),
        each(before.written_bytes, after.written_bytes),
        each(before.received_bytes, after.received_bytes),
        each(before.sent_bytes, after.sent_bytes),
    )


Figures = Mapping[str, Used]


class Gauge:
    """Is told figures of machines as often as one likes, and knows the pace of each.

    Figures that are no others than the last ones are no new measurement. Unless they are `fresh`,
    that is measured just when they are told, nobody knows when the first ones were.
    """

    def __init__(self, *, fresh: bool) -> None:
        self.fresh = fresh
        self._told: list[tuple[float, Figures]] = []
        self._first: Figures | None = None

    def saw(self, figures: Figures, at: float) -> None:
        """At this time, of a clock that only goes on, these are the figures."""
        if not self.fresh and self._first is None:
            self._first = figures
        last = self._told[-1][1] if self._told else None if self.fresh else self._first
        if figures == last:
            return
        self._told.append((at, figures))
        while len(self._told) > 2 and self._told[1][0] <= at - _SPAN:
            del self._told[0]

    def paces(self, now: float) -> dict[str, Pace]:
        """Of each machine that was measured twice of late."""
        if not self._told or now - self._told[-1][0] > _OLD:
            return {}
        at, last = self._told[-1]
        found = {}
        for machine, used in last.items():
            begun = next(each for each in self._told if machine in each[1])
            if at > begun[0]:
                found[machine] = between(begun[1][machine], used, at - begun[0])
        return found
