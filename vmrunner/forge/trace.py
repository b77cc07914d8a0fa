"""What Gitea's lists have shown of jobs: where to look for one that is over, which no list of
Gitea's leads to.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from vmrunner.model.job import Job, JobState, Scope, ScopeKind

_MOST = 20_000  # jobs that are remembered; a busy forge has some thousands waiting
_MOST_ENDED = 5_000
_MOST_UNSURE = 20  # jobs that no look has come to again, and that may be over
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """Where a job is to be asked for."""

    repository: str  # owner/name
    job: int
    run: int = 0  # 0 where it is not known
    labels: tuple[str, ...] = ()
    runner_id: int = 0  # that was seen to have it


class Trace:
    """Jobs that were seen open, and those of which the end was seen. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the job's id; the last that was listed at the end.
        self._seen: OrderedDict[int, Place] = OrderedDict()
        self._open: dict[Scope, dict[int, JobState]] = {}  # as each scope's latest list has it
        self._old: dict[Scope, frozenset[int]] = {}  # of those, what that look has not shown
        self._by_runner: OrderedDict[int, Job] = OrderedDict()  # ended ones
        self._over: OrderedDict[int, None] = OrderedDict()  # their ids
        # Of runs: the most jobs that were open at once.
        self._sizes: OrderedDict[int, int] = OrderedDict()

    def listed(
        self, scope: Scope, jobs: Iterable[tuple[Place, JobState]], old: Collection[int] = ()
    ) -> None:
        """A look at a scope's open jobs: all of them, but for those that no look has come to yet.
        The `old` ones are known from an earlier look only, and may be over.
        """
        with self._lock:
            now = self._open[scope] = {}
            self._old[scope] = frozenset(old)
            runs: Counter[int] = Counter()
            for place, state in jobs:
                if place.job in self._old[scope]:
                    if place.job not in self._over:
                        now[place.job] = state
                    continue
                now[place.job] = state
                runs[place.run] += 1
                self._over.pop(place.job, None)  # it was begun again
                _put(self._seen, place.job, place, _MOST)
            for run, size in runs.items():
                _put(self._sizes, run, max(size, self._sizes.get(run, 0)), _MOST_ENDED)

    def ended(self, job: Job) -> None:
        """The forge says that this one is over."""
        with self._lock:
            self._seen.pop(job.id, None)
            _put(self._over, job.id, None, _MOST_ENDED)
            if job.runner_id:
                _put(self._by_runner, job.runner_id, job, _MOST_ENDED)

    def forget(self, job: int) -> None:
        """The forge knows this one no more."""
        with self._lock:
            self._seen.pop(job, None)
            _put(self._over, job, None, _MOST_ENDED)

    def of(self, runner_id: int) -> Job | None:
        """The job that this runner is known to have had."""
        with self._lock:
            return self._by_runner.get(runner_id)

    def hinted(self, repository: str, job: int) -> Place | None:
        """The place of a job that may be over; None where it still waited when it was listed last,
        or is known already.
        """
        with self._lock:
            waits = any(
                states.get(job) in {JobState.WAITING, JobState.BLOCKED}
                and job not in self._old[scope]
                for scope, states in self._open.items()
            )
            return (
                None if waits or job in self._over else self._seen.get(job, Place(repository, job))
            )

    def vanished(
        self, scope: Scope, runners: Collection[int], labels: Collection[tuple[str, ...]]
    ) -> list[Place]:
        """Jobs that were open and are not any more, and that one of these runners of this scope may
        have had.

        Those that it was seen to have come first, then those that were open until now; last some
        that no look has come to again, the oldest first, as the forge hands them out. No labels are
        labels that are not known.
        """
        known = [set(each) for each in labels]

        def may_be(place: Place) -> bool:
            return place.runner_id in runners or (
                not place.runner_id
                and covers(scope, place.repository)
                and any(not each or set(place.labels) <= each for each in known)
            )

        with self._lock:
            still = {job for states in self._open.values() for job in states}
            gone = [place for number, place in reversed(self._seen.items()) if number not in still]
            old = sorted(set().union(*self._old.values()) & still)
            unsure = [self._seen[number] for number in old if number in self._seen]
        fitting = sorted(filter(may_be, gone), key=lambda place: place.runner_id not in runners)
        return fitting + list(islice(filter(may_be, unsure), _MOST_UNSURE))

    def size(self, run: int) -> int:
        """How many jobs a run has, at least."""
        with self._lock:
            return self._sizes.get(run, 0)


def _put(into: OrderedDict[int, T], key: int, value: T, most: int) -> None:
    into[key] = value
    into.move_to_end(key)
    if len(into) > most:
        into.popitem(last=False)


def covers(scope: Scope, repository: str) -> bool:
    """Whether runners of this scope may have jobs of this repository; of a user's own the name is
    not known.
    """
    whole = {
        ScopeKind.REPOSITORY: repository,
        ScopeKind.ORGANISATION: repository.partition("/")[0],
    }.get(scope.kind)
    return whole is None or whole.lower() == scope.name.lower()


def by_run(places: Iterable[Place]) -> Iterator[list[Place]]:
    """The places by their runs, in the order of each run's first one; one without a known run
    stands alone.
    """
    groups: dict[tuple[int, int], list[Place]] = {}
    for place in dict.fromkeys(places):
        groups.setdefault((place.run, 0 if place.run else place.job), []).append(place)
    yield from groups.values()
