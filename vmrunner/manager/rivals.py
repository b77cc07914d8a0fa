"""What the other hosts' runners have, or will take, of the jobs. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from vmrunner.model.fleet import Fleet, rank
from vmrunner.model.job import Claim, Job, JobState, RunnerRecord


@dataclass(frozen=True)
class Spare:
    """Another host's runner that waits, and whose own job is not there to be taken any more."""

    runner_id: int
    claim: Claim
    labels: frozenset[str]


class Rivals:
    """Look-ups over the records of other hosts, as they were seen just now.

    `at_work` are the records whose runners are shown to have a job.
    """

    def __init__(
        self,
        fleet: Fleet,
        me: str,
        records: Mapping[int, RunnerRecord],
        jobs: Collection[Job],
        at_work: Collection[int],
        now: float,
    ) -> None:
        self.fleet, self._me, self._now = fleet, me, now
        self._at_work: dict[str, set[int]] = {}  # by the digest of the job that they were made for
        for record in records.values():
            if record.busy and record.claim:
                self._at_work.setdefault(record.claim.job, set()).add(record.id)
        self._claimed: dict[str, set[str]] = {}  # digest of a job -> hosts
        self.spares: list[Spare] = []
        if not fleet.records:
            return
        waiting = {Claim.of(job).job for job in jobs if job.state is JobState.WAITING}
        for number, sighting in sorted(fleet.records.items()):
            seen, claim = records.get(number), sighting.claim
            if seen is None or claim is None or seen.busy or number in at_work:
                continue
            if not fleet.holds(sighting, now):
                continue
            if claim.job in waiting:
                self._claimed.setdefault(claim.job, set()).add(sighting.host)
            else:
                self.spares.append(Spare(number, claim, frozenset(seen.labels)))

    def has(self, job: Job, mine: int) -> bool:
        """Whether a runner with another record than `mine`, made for this running job, works."""
        return (
            bool(self._at_work.get(Claim.of(job).job, set()) - {mine}) if self._at_work else False
        )

    def maker(self, job: Job) -> str:
        """The host that makes a machine for this waiting job; empty where none does, or where
        others had their time for it.
        """
        if not self._claimed or self.is_overdue(job):
            return ""
        hosts = self._claimed.get(Claim.of(job).job, set())
        return min(hosts, key=lambda host: rank(job, host), default="")

    def is_overdue(self, job: Job) -> bool:
        """Whether this host goes on with this waiting job as if it were alone."""
        return bool(self.fleet.promises) and self.fleet.is_overdue(job, self._now)

    def comes_before(self, job: Job) -> bool:
        """Whether another host claims this job, too, and comes first."""
        host = self.maker(job)
        return bool(host) and rank(job, host) < rank(job, self._me)

    def preferred(self, jobs: Sequence[Job]) -> list[Job]:
        """Jobs, oldest first, as this host should take those that wait."""
        return self.fleet.preferred(self._me, jobs, self._now)

    def patience(self, job: Job) -> float:
        """Seconds until this host may make a machine for the job; 0.0: now."""
        if not self.fleet.peers or self.is_overdue(job):
            return 0.0
        return max(0.0, self.fleet.turn(self._me, job) - self._now)

    def first(self, job: Job) -> str:
        """Who comes first for it."""
        return self.fleet.order(self._me, job)[0]
