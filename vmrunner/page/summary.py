"""The plots, drawn anew in the background: whoever looks finds them ready, however long the history
is.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from vmrunner.log import Log
from vmrunner.page.chart import SERIES, Bars, Chart, Line, bars, chart
from vmrunner.page.past import Past
from vmrunner.page.sums import HOUR, QUARTER, Hour, Seconds, Span, Sums, quantile, steps, whole
from vmrunner.page.words import duration, number, percent, tick

_EVERY = 30.0  # seconds between two looks at the history
# A job's verdict may come a day after its machine's end: what is older than this is read once.
_SETTLED = 2 * 86400.0
_SHOWN = 12  # repositories, say; of more the rest is one bar
_VERDICTS = {"success": "succeeded", "failure": "failed", "cancelled": "cancelled"}


@dataclass(frozen=True)
class Plots:
    """Those of a span."""

    span: Span
    at: float  # unix seconds, when they were made
    jobs: int
    charts: tuple[Chart, ...]
    bars: tuple[Bars, ...]


class Summary:
    """Sums of the history that follow it. Entered, a thread of its own does that; `draw` makes what
    is shown of the plots.
    """

    def __init__(
        self,
        past: Past,
        most: Mapping[str, int],
        draw: Callable[[Plots], str],
        log: Log,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._past, self._most, self._draw, self._log, self._clock = past, most, draw, log, clock
        self._settled, self._until = Sums(), 0.0  # what ended before that time is in there
        self._drawn: dict[Span, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="summary", daemon=True)

    def __enter__(self) -> Summary:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def drawn(self, span: Span) -> str | None:
        """What is shown of a span; None: it is not ready yet."""
        return self._drawn.get(span)

    def _run(self) -> None:
        told = ""
        while not self._stop.is_set():
            try:
                self.look()
                told = ""
            except sqlite3.Error as error:
                if str(error) != told:
                    self._log.warning("the history was not read for the page", reason=str(error))
                told = str(error)
            self._stop.wait(_EVERY)

    def look(self) -> None:
        """Read what is new, and draw. Raises sqlite3.Error."""
        now = self._clock()
        parts = self._read(now)
        self._drawn = {span: self._draw(plots(parts, span, self._most, now)) for span in Span}

    def _read(self, now: float) -> list[Sums]:
        settled = now - _SETTLED
        if settled < self._until - _SETTLED:  # the clock was set back
            self._settled, self._until = Sums(), 0.0
        begin = max(self._until, now - QUARTER * HOUR)
        if settled - begin > _SETTLED / 2:  # not at each look
            more = Sums()  # all of it, or nothing of it
            more.ended(self._past.lives(begin, settled))
            self._settled.add(more)
            self._settled.forget(int(now // HOUR) - QUARTER)
            self._until = settled
        fresh = Sums()
        fresh.ended(self._past.lives(max(self._until, begin), now + 1))
        fresh.going_on(self._past.going_on(), now)
        return [self._settled, fresh]


def plots(parts: list[Sums], span: Span, most: Mapping[str, int], now: float) -> Plots:
    """All of a span; `most` has each pool's max."""
    found = steps(parts, span, now)
    total = whole(found)
    times = [tick(at, span.hours) for at, _ in found]
    hours = [hour for _, hour in found]
    organisations: Seconds = defaultdict(float)
    for repository, seconds in total.held.items():
        organisations[repository.partition("/")[0]] += seconds
    return Plots(
        span,
        now,
        total.verdicts.total(),
        (
            _quantiles(
                "queue", "From the queue to the job's start", times, [h.waits for h in hours]
            ),
            _quantiles(
                "start", "From a job's turn to its runner", times, [h.starts for h in hours]
            ),
            chart(
                "jobs",
                "Jobs per hour",
                times,
                [
                    Line(said, tuple(_jobs(hour, verdict) / span.step for hour in hours))
                    for verdict, said in (*_VERDICTS.items(), ("", "not known"))
                ],
                number,
                stacked=True,
            ),
            chart(
                "use",
                "Machines in use, of the pool's max",
                times,
                _use(hours, span, most, now, [at for at, _ in found]),
                percent,
            ),
        ),
        (
            bars(
                "failures",
                "Failures of machines, by how they ended",
                dict(total.failures),
                number,
                _SHOWN,
            ),
            bars("repositories", "Machine time, by repository", dict(total.held), duration, _SHOWN),
            bars(
                "organisations",
                "Machine time, by organisation or user",
                dict(organisations),
                duration,
                _SHOWN,
            ),
        ),
    )


def _quantiles(name: str, title: str, times: list[str], values: list[list[float]]) -> Chart:
    ordered = [sorted(each) for each in values]
    lines = [
        Line(said, tuple(quantile(each, share) for each in ordered))
        for said, share in (("half of them", 0.5), ("95 of 100", 0.95))
    ]
    return chart(name, title, times, lines, duration)


def _jobs(hour: Hour, verdict: str) -> int:
    """Of this verdict; for the empty one, those that no other line has."""
    if verdict:
        return hour.verdicts[verdict]
    return hour.verdicts.total() - sum(hour.verdicts[each] for each in _VERDICTS)


def _use(
    hours: list[Hour], span: Span, most: Mapping[str, int], now: float, begins: list[float]
) -> list[Line]:
    """The pools that were used most."""
    used = whole(list(zip(begins, hours, strict=True))).used
    shown = [pool for pool in sorted(used, key=lambda pool: -used[pool]) if most.get(pool)]
    seconds = [min(span.step * HOUR, max(1.0, now - begin)) for begin in begins]
    return [
        Line(
            pool,
            tuple(
                hour.used[pool] / (most[pool] * length)
                for hour, length in zip(hours, seconds, strict=True)
            ),
        )
        for pool in shown[:SERIES]
    ]
