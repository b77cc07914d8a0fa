"""Which of Gitea's jobs without labels only call a reusable workflow. Pure but for the clock.

From 1.27 on the call is a row of its own in the list of jobs, which no runner ever gets; the list
does not say so. It comes before the jobs in there, which are rows of the same run; its state is the
sum of theirs.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from vmrunner.model.job import Job, JobState

FROM = (1, 27)
"""The first version that lists calls."""
_SETTLED = 10.0  # seconds: a call whose jobs were just made is ready before they are
_MOST = 5_000


class Callers:
    """Tells calls from jobs that somebody wrote without `runs-on`.

    A ready call has a job that is ready or runs. So what has one behind it in its run may be a
    call, and what has none for some seconds is none. Where the run's whole list has nothing behind
    it, that is certain at once.
    """

    def __init__(
        self, is_last: Callable[[Job, int], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`is_last`: whether a run has no job behind this one, whatever its state; by its list."""
        self._is_last, self._clock = is_last, clock
        self._alone: OrderedDict[str, float] = OrderedDict()  # by key: since when

    def mark(self, jobs: Sequence[tuple[int, Job]], *, is_whole: bool = True) -> list[Job]:
        """The jobs, each given with its run, with those marked that may be calls. Without
        `is_whole` more jobs may be there, and only a run's own list says what comes behind.
        """
        newest: dict[int, int] = {}  # by run: the last one that is ready or runs
        for run, job in jobs:
            if job.state in {JobState.WAITING, JobState.RUNNING}:
                newest[run] = max(job.id, newest.get(run, 0))
        return [
            replace(job, is_caller=True) if self._may_be(run, job, newest, is_whole) else job
            for run, job in jobs
        ]

    def _may_be(self, run: int, job: Job, newest: dict[int, int], is_whole: bool) -> bool:
        if job.labels or job.state is JobState.BLOCKED:
            return False
        if job.state is not JobState.WAITING:
            return not job.runner_id
        if newest.get(run, 0) > job.id:
            self._alone.pop(job.key, None)
            return True
        now, since = self._clock(), self._alone.get(job.key)
        # Where not all is listed, nothing behind it for some seconds says nothing.
        is_open = since is None or (not is_whole and _SETTLED <= now - since < math.inf)
        if since is None or is_open:
            since = -math.inf if self._is_last(job, run) else now
            self._alone[job.key] = since
            if len(self._alone) > _MOST:
                self._alone.popitem(last=False)
        return now - since < _SETTLED
