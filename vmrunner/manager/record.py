"""One machine of the history: its row, and what becomes of it as more is known."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum

from vmrunner.model.binding import Binding
from vmrunner.model.job import Job, JobState
from vmrunner.model.machine import Ending, Metadata
from vmrunner.model.used import Used, hints


class Ran(StrEnum):
    """Whether a job ran on a machine, as the forge tells it after the machine's end."""

    NOT_ASKED = ""  # it lives, or ended before this was asked
    NO = "no"
    YES = "yes"
    ASKED = "asked"  # the answer is not there yet
    UNKNOWN = "unknown"  # the forge doesn't tell


@dataclass(frozen=True)
class Record:
    """One machine's row. Times are unix seconds, 0 where the phase was never seen; `up` to `exit`
    are the guest's own clock, `queued`, `job_started` and `job_ended` the forge's.
    """

    machine: str
    pool: str = ""
    image: str = ""
    job: str = ""  # the name of the job that ran on it, as soon as that is known
    job_key: str = ""
    repository: str = ""
    url: str = ""
    run_url: str = ""
    sha: str = ""
    attempt: int = 0  # 0 where the forge doesn't tell
    verdict: str = ""  # success, failure, cancelled or skipped
    job_started: float = 0.0
    job_ended: float = 0.0
    ran: str = ""  # a Ran
    # The name of the job that it was made for; on Gitea another one may have run on it.
    made_for: str = ""
    made_for_key: str = ""
    made_for_repository: str = ""
    queued: float = 0.0  # of the job that ran, once that is known
    created: float = 0.0
    overlay: float = 0.0
    started: float = 0.0
    bound: float = 0.0
    running: float = 0.0  # when the forge was first seen to have a job on it
    held: float = 0.0  # since when it was kept for a person, with its job over
    up: float = 0.0
    seed: float = 0.0
    ready: float = 0.0
    runner: float = 0.0
    exit: float = 0.0
    destroyed: float = 0.0
    ending: str = ""  # "" while it lives, else an Ending
    reason: str = ""
    scope: str = ""  # where its runner was registered, and as what
    runner_id: int = 0
    task: int = 0  # at the forge, where that is how it knows the job
    ask_at: float = 0.0  # when the forge is asked for its job; 0: never, or never again
    asks: int = 0  # how often it was asked and did not tell
    labels: str = ""  # its job's runs-on, with commas between
    # What it took of the host, as far as that was seen; see Used.
    vcpus: int = 0
    memory_mib: int = 0
    memory_peak_mib: int = 0
    cpu_seconds: float = 0.0
    waited_seconds: float = 0.0
    written_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    guest_peak_mib: int = 0  # of its memory in use, by its guest's own word; 0: it told nothing
    log_bytes: int = 0  # of the host's disk, that its log takes; see Logbook

    @property
    def used(self) -> Used:
        """What it took of the host."""
        return Used(*(getattr(self, name) for name in USED))

    @property
    def held_seconds(self) -> float:
        """How long it was there for its job; until then it was nobody's."""
        return max(0.0, self.destroyed - (self.bound or self.created))

    @property
    def lacks(self) -> tuple[str, ...]:
        """What to do about what it lacked, in sentences."""
        return hints(self.used, self.guest_peak_mib, self.held_seconds)

    @property
    def job_seconds(self) -> float | None:
        """How long its job took by the forge's clock, which has whole seconds; None where the forge
        doesn't tell.

        Gitea takes the end from the runner: a guest's clock that is a moment behind would make it
        less than nothing.
        """
        return (
            max(0.0, self.job_ended - self.job_started)
            if self.job_started and self.job_ended
            else None
        )

    @property
    def known_ending(self) -> Ending | None:
        """None while it lives, and where another vmrunner wrote an ending that this one does not
        know: after a step back to an older version.
        """
        return _ENDINGS.get(self.ending)

    @property
    def title(self) -> str:
        """Its job's repository and name, for people."""
        return f"{self.repository}: {self.job}" if self.repository else self.job

    @property
    def made_for_title(self) -> str:
        """The same of the job that it was made for."""
        return (
            f"{self.made_for_repository}: {self.made_for}"
            if self.made_for_repository
            else self.made_for
        )

    @property
    def hints(self) -> tuple[Job, ...]:
        """Jobs that it may have had: the one that was seen on it, and the one that it was made
        for.
        """
        known = (
            (self.job, self.job_key, self.repository),
            (self.made_for, self.made_for_key, self.made_for_repository),
        )
        return tuple(
            Job(
                0,
                name,
                (),
                JobState.RUNNING,
                key,
                repository=repository,
                url=self.url,
                task_id=self.task,
            )
            for name, key, repository in dict.fromkeys(known)
            if key
        )

    @property
    def start_seconds(self) -> float | None:
        """From its job's turn, when it was queued and this machine was there or was begun, to its
        runner's start; None where that was not seen.
        """
        began = max(self.queued, self.created)
        return self.runner - began if self.runner > began > 0 else None

    @property
    def boot(self) -> tuple[float, float]:
        """When its guest began to come up, and when it was.

        A parked clone's begins when it is given its job.
        """
        up = self.up or self.ready
        return (self.created, up) if up else (self.bound or self.created, self.runner)

    @classmethod
    def of(cls, metadata: Metadata) -> Record:
        """A machine's first row."""
        return cls(str(metadata.machine)).updated(metadata)

    def updated(self, metadata: Metadata) -> Record:
        """As the machine itself has it now, which knows the key of its job alone."""
        return replace(
            self,
            pool=metadata.pool,
            image=metadata.image,
            created=metadata.created_at,
            overlay=metadata.overlay_at,
            bound=metadata.bound_at,
            made_for_key=metadata.job_key,
            made_for_repository=metadata.repository,
            queued=metadata.queued_at,
        )

    def made_for_job(self, job: Job | None) -> Record:
        """With the job that it was made for, if there is one."""
        if job is None:
            return self
        return replace(
            self,
            made_for=job.name,
            made_for_key=job.key,
            made_for_repository=job.repository,
            labels=",".join(job.labels),
            queued=_seconds(job.queued_at),
        )

    def with_job(self, job: Job) -> Record:
        """With the job that ran, or runs, on it."""
        is_made_for = job.key == self.made_for_key
        return replace(
            self,
            job=job.name,
            job_key=job.key,
            repository=job.repository,
            url=job.url,
            run_url=job.run_url,
            sha=job.sha,
            attempt=job.attempt,
            labels=",".join(job.labels) or (self.labels if is_made_for else ""),
            verdict=job.conclusion,
            queued=_seconds(job.queued_at) or (self.queued if is_made_for else 0.0),
            job_started=_seconds(job.started_at),
            job_ended=_seconds(job.finished_at),
            task=job.task_id,
        )

    def asked(self, binding: Binding, at: float) -> Record:
        """With the question to the forge, from this time on, what the binding's runner had."""
        return replace(
            self,
            ran=Ran.ASKED.value,
            scope=str(binding.scope),
            runner_id=binding.credentials.id,
            ask_at=at,
            asks=0,
        )


USED = tuple(field.name for field in fields(Used))
_ENDINGS = {each.value: each for each in Ending}


def _seconds(at: datetime | None) -> float:
    return at.timestamp() if at else 0.0
