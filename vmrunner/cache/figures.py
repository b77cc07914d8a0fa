"""The cache's figures for Prometheus, as `serve` tells them: of all repositories together, of which
there may be many.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from vmrunner import files
from vmrunner.cache import worth
from vmrunner.cache.index import INDEX
from vmrunner.manager.figures import Described

_LOOKUPS = Described(
    "vmrunner_cache_lookups_total",
    "counter",
    ("result",),
    "Questions of jobs to the cache, by whether there was an entry",
)
_BYTES = Described(
    "vmrunner_cache_bytes_total",
    "counter",
    ("direction",),
    "What jobs stored in the cache, and what it served them",
)
_ENTRIES = Described("vmrunner_cache_entries", "gauge", (), "Entries in the cache")
_SIZE = Described("vmrunner_cache_size_bytes", "gauge", (), "What they take of the disk")
_MOST = Described("vmrunner_cache_max_bytes", "gauge", (), "What they may take: `cache.max`")
_SECONDS = Described(
    "vmrunner_cache_saved_seconds",
    "gauge",
    (),
    "About how much longer the jobs of the history that found something there would have taken",
)
FIGURES = (_LOOKUPS, _BYTES, _ENTRIES, _SIZE, _MOST, _SECONDS)
_REST = 600.0  # seconds between two looks through the history
_PATIENCE = 1.0  # seconds for a writer to be done with the index


@dataclass(frozen=True)
class Place:
    """A cache, by its folder, the history that knows its jobs, and the bytes that it may take."""

    folder: Path
    history: Path
    most: int


class Kept(Collector):
    """Reads the cache's index when it is asked; where it can't be read there are no figures."""

    def __init__(
        self, place: Callable[[], Place | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`place`: where it is now; None where none is served."""
        self._place, self._clock = place, clock
        self._saved, self._look_at = 0.0, -math.inf

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        if (place := self._place()) is None:
            return
        try:
            hits, misses, stored, served, entries, size = _read(place.folder / INDEX)
        except (OSError, sqlite3.Error):
            return
        for described, values in (
            (_LOOKUPS, {"hit": hits, "miss": misses}),
            (_BYTES, {"stored": stored, "served": served}),
        ):
            counter = CounterMetricFamily(
                described.name, described.text, labels=list(described.labels)
            )
            for label, value in values.items():
                counter.add_metric([label], value)
            yield counter
        yield GaugeMetricFamily(_ENTRIES.name, _ENTRIES.text, value=entries)
        yield GaugeMetricFamily(_SIZE.name, _SIZE.text, value=size)
        yield GaugeMetricFamily(_MOST.name, _MOST.text, value=place.most)
        yield GaugeMetricFamily(_SECONDS.name, _SECONDS.text, value=self._worth(place))

    def _worth(self, place: Place) -> float:
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + _REST
            with suppress(OSError, sqlite3.Error):
                self._saved = sum(worth.saved(place.folder / INDEX, place.history).values())
        return self._saved


def _read(index: Path) -> tuple[int, ...]:
    address = files.database_to_read(index)
    with closing(sqlite3.connect(address, uri=True, timeout=_PATIENCE)) as database:
        row: tuple[int, ...] = database.execute(
            "SELECT total(hits), total(misses), total(saved), total(served), "
            "(SELECT entries FROM whole), (SELECT bytes FROM whole) FROM repositories"
        ).fetchone()
        return row
