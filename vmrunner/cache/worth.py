"""What the cache is worth in time, as far as that was measured: jobs that found something in it,
beside jobs of the same name that found nothing.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from vmrunner import files

_PATIENCE = 1.0  # seconds for a writer to be done with a file


@dataclass(frozen=True)
class Took:
    """A job that asked the cache, and was a success."""

    repository: str
    job: str  # its name
    seconds: float
    found: bool  # anything


def saved(index: Path, history: Path) -> dict[str, float]:
    """The seconds that each repository saved, in small letters, by the cache's index and the
    history. Raises sqlite3.Error.
    """
    with closing(
        sqlite3.connect(files.database_to_read(index), uri=True, timeout=_PATIENCE)
    ) as database:
        database.execute("ATTACH ? AS past", (files.database_to_read(history),))
        rows = database.execute(
            "SELECT runs.repository, job, job_ended - job_started, hits > 0 FROM runs "
            "JOIN past.machines USING (machine) WHERE verdict = 'success' AND job != '' "
            "AND job_started > 0 AND job_ended >= job_started"
        ).fetchall()
    return seconds(
        Took(repository.lower(), job, took, bool(found)) for repository, job, took, found in rows
    )


def seconds(jobs: Iterable[Took]) -> dict[str, float]:
    """By repository: how much longer its jobs that found something would have taken, had each taken
    as long as the median of those of its name that found nothing. Less than nothing where they took
    longer; a name without such a job does not count.
    """
    times: dict[tuple[str, str], dict[bool, list[float]]] = defaultdict(
        lambda: {True: [], False: []}
    )
    for each in jobs:
        times[each.repository, each.job][each.found].append(each.seconds)
    by_repository: dict[str, float] = {}
    for (repository, _), took in times.items():
        if took[True] and took[False]:
            gained = median(took[False]) * len(took[True]) - sum(took[True])
            by_repository[repository] = by_repository.get(repository, 0.0) + gained
    return by_repository
