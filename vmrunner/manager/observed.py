"""What a pass knows when it decides: the pools as configured, and the hypervisor and the forge as
they were seen. Pure records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from vmrunner.machine.instances import Lent
from vmrunner.manager.rivals import Rivals
from vmrunner.model.binding import Binding
from vmrunner.model.fleet import Fleet
from vmrunner.model.job import Job, JobState, RunnerRecord, Scope, ScopeKind
from vmrunner.model.machine import Capacity, Machine, MachineId, Metadata, Shape
from vmrunner.model.moment import Moment, Silences

INSTANCE = Scope(ScopeKind.INSTANCE)


class Drain(Enum):
    """Whether a pool is being taken down."""

    NO = 0
    IDLE = 1  # no new machines, idle ones go, busy ones finish
    ALL = 2  # busy ones go, too
    HALT = 3  # the same, for the host shuts down

    @property
    def ends_jobs(self) -> str:
        """Why busy machines go, too, in words; empty where they don't."""
        return {Drain.ALL: "vmrunner down --now", Drain.HALT: "the host shuts down"}.get(self, "")


@dataclass(frozen=True)
class Backoff:
    """A pool whose machines failed one after the other: no new one before `until` (unix
    seconds).
    """

    failures: int
    until: float
    last: str  # the last failure's reason


@dataclass(frozen=True)
class Desired:
    """One pool as configured, and what is known about it. Times in seconds."""

    pool: str
    scopes: tuple[Scope, ...]
    labels: frozenset[str]
    shape: Shape
    max: int
    boot_timeout: float
    pickup_timeout: float
    job_timeout: float
    teardown_timeout: float
    takes_unlabelled: bool = False  # also jobs without `runs-on`
    warm: int = 0
    register_idle: int = 0
    priority: int = 0
    image: str = ""  # name/version that new machines start from; empty where it is not known
    # The same of the disk of tools beside, empty where there is none; None where it is not known.
    tools: str | None = ""
    image_built: float = 0.0  # unix seconds; 0 where it is not known
    image_note: str = ""  # that it was rolled back, or should be, or lacks what the labels need
    # What is to be said of its snapshot: why there is none, where there should be one.
    snapshot: str = ""
    needs_snapshot: bool = False  # no machine is started before there is one
    missing_snapshot: str = ""  # the key of one that should be made now
    drain: Drain = Drain.NO
    backoff: Backoff | None = None
    typical_boot: float = 0.0  # 0 where none has booted yet
    hold_failed: float = 0.0  # for how long a machine is kept whose job failed; 0: not at all
    job_may_hold: float = 0.0  # for how long, at most, a job may have its machine kept

    def outdates(self, metadata: Metadata) -> str:
        """Why a machine that has no job yet is not as new ones are; empty where it is."""
        if self.image and metadata.image != self.image:
            return "its image is not the current one any more"
        if self.tools is not None and metadata.tools != self.tools:
            return "its tools are not the current ones any more"
        return ""

    def starts(self, now: float) -> bool:
        """Whether it starts machines where there is room; `now` in unix seconds."""
        waits = self.needs_snapshot or bool(self.backoff and self.backoff.until > now)
        return self.drain is Drain.NO and not waits

    def serves(self, job: Job) -> bool:
        """Whether its machines are made for such a job, whatever its repository is.

        A job without labels fits every runner; nobody has said what kind of machine it wants.
        """
        return job.fits(self.labels) if job.labels else self.takes_unlabelled


@dataclass(frozen=True)
class HostLimits:
    """How much of the host the machines may take."""

    cpu_overcommit: float
    memory_reserve_mib: int
    disk_floor_mib: int
    disk_guard_mib: int = 0  # with less free space than that the newest machine goes


@dataclass(frozen=True)
class Queue:
    """What one scope at the forge shows.

    With a `problem` it could not be asked, and its emptiness means nothing.
    """

    jobs: tuple[Job, ...] = ()
    runners: tuple[RunnerRecord, ...] = ()
    problem: str = ""
    hint: str = ""  # what to do about the problem
    is_silent: bool = False  # the problem is that the forge gave no (usable) answer at all
    unread: int = 0  # jobs that wait and were not read yet, see Listing
    old: frozenset[str] = frozenset()  # keys of waiting jobs that may be gone
    is_short: bool = False  # machines could be made for more jobs than are known

    def told(self, before: Job, now: Job | None) -> Queue:
        """With one of the jobs as the forge shows it by its id, which is newer."""
        jobs = (now if job.id == before.id else job for job in self.jobs)
        return replace(
            self,
            jobs=tuple(job for job in jobs if job and job.state is not JobState.DONE),
            old=self.old - {before.key},
        )


@dataclass(frozen=True)
class Ask:
    """A runner's record, and the job that it may have, as they are asked for by their ids."""

    scope: Scope
    runner_id: int
    repository: str = ""
    job_key: str = ""  # empty where none is known

    @classmethod
    def about(cls, metadata: Metadata) -> Ask:
        """A machine that lives and has a runner."""
        key = metadata.seen_key or metadata.job_key
        return cls(Scope.parse(metadata.scope), metadata.runner_id, metadata.repository, key)


@dataclass(frozen=True)
class Told:
    """What the forge answered; None where it has no such record, or shows no such job."""

    record: RunnerRecord | None = None
    job: Job | None = None


@dataclass(frozen=True)
class Observed:
    """All machines and bindings of this manager, and every scope that they or the pools name.

    Machines are seen first, runners then, jobs last: a machine's record is never newer than the
    list of records.
    """

    machines: tuple[Machine, ...]
    queues: Mapping[Scope, Queue]
    binds_jobs: bool  # see Forge
    capacity: Capacity
    bindings: tuple[Binding, ...] = ()
    # Names of machines whose creation was completed and whose end is not in the history yet.
    started: frozenset[str] = frozenset()
    # Job key -> until when the forge is believed to hold it back.
    held: Mapping[str, float] = field(default_factory=dict)
    may_throttle: bool = False  # see Forge
    # What was asked for by its id, after the lists: the newest that is known.
    asked: Mapping[Ask, Told] = field(default_factory=dict)
    moment: Moment | None = None  # when it was seen; None: by a clock that was never set
    silences: Silences = field(default_factory=Silences)
    host: str = ""  # this host's identity: names that carry another one are strangers'
    # Names without an identity, of an older vmrunner, that are this host's all the same.
    leftovers: frozenset[str] = frozenset()
    # What a living process beside the manager has, such as `doctor --isolation`.
    owned: frozenset[MachineId] = frozenset()
    me: str = ""  # what the other hosts call this one
    fleet: Fleet = field(default_factory=Fleet)  # after this look
    lent: tuple[Lent, ...] = ()  # machines that GARM made and ends; nothing is planned with them
    # By the runner's record: the job that a machine had whose guest stays after it, where that was
    # asked; None where the forge does not tell (yet).
    verdicts: Mapping[int, Job | None] = field(default_factory=dict)
    # Names of machines that were held when they were last seen.
    were_held: frozenset[str] = frozenset()


class View:
    """Look-ups over one observation."""

    def __init__(self, observed: Observed, now: float = 0.0) -> None:
        self.binds_jobs, self.may_throttle = observed.binds_jobs, observed.may_throttle
        self.moment = observed.moment or Moment(now, now)
        self._silences = observed.silences
        self.bindings = {binding.machine: binding for binding in observed.bindings}
        self.verdicts, self.were_held = observed.verdicts, observed.were_held
        self.answered = {
            scope: queue for scope, queue in observed.queues.items() if not queue.problem
        }
        self.problems = [queue.problem for queue in observed.queues.values() if queue.problem]
        self.records: dict[int, RunnerRecord] = {}
        self.record_scope: dict[int, Scope] = {}
        self.jobs: dict[str, Job] = {}
        self.visible: dict[str, set[Scope]] = {}  # job key -> the scopes that show it
        # Keys of waiting jobs that may be gone: no list has shown them just now.
        self.old: set[str] = set()
        for scope, queue in self.answered.items():
            for record in queue.runners:
                self.records[record.id] = record
                self.record_scope.setdefault(record.id, scope)
            for job in queue.jobs:
                known = self.jobs.get(job.key)
                # Two scopes were asked one after the other, and a job only ever goes on.
                if known is None or known.state is not JobState.RUNNING:
                    self.jobs[job.key] = job
                self.visible.setdefault(job.key, set()).add(scope)
            self.old |= queue.old
        self.asked = observed.asked
        for ask, told in self.asked.items():
            self._believe(ask, told)
        # Records whose runners are shown to have a job, where the forge tells.
        self.at_work = {
            job.runner_id for job in self.jobs.values() if job.state is JobState.RUNNING
        } - {0}
        self._by_runner = {
            job.runner_name: job
            for job in self.jobs.values()
            if job.state is JobState.RUNNING and job.runner_name
        }
        self.rivals = Rivals(
            observed.fleet,
            observed.me,
            self.records,
            self.jobs.values(),
            self.at_work,
            self.moment.steady,
        )

    def _believe(self, ask: Ask, told: Told) -> None:
        """What was asked by its id is newer than the lists, and never partial."""
        if told.record is None:
            self.records.pop(ask.runner_id, None)
        else:
            self.records[ask.runner_id] = told.record
            self.record_scope.setdefault(ask.runner_id, ask.scope)
        job = told.job
        if job is None or job.state is not JobState.RUNNING:
            return
        if not self.binds_jobs:
            # Gitea up to 1.26 counts the attempt when it begins: it may be listed as waiting under
            # another key.
            for key in [key for key, known in self.jobs.items() if known.id == job.id]:
                del self.jobs[key]
        self.jobs[job.key] = job
        self.visible.setdefault(job.key, set()).add(ask.scope)

    def by(self, metadata: Metadata) -> float:
        """Now, by this machine's times."""
        return self.moment.steady + metadata.offset

    def since(self, metadata: Metadata, at: float, *, unseen: bool = False) -> float:
        """Seconds since this time of a machine in which its host was awake and the forge was not
        silent: what a deadline counts. Without `unseen` time in which nobody asked the forge does
        not count either: nobody knows whether it was there.
        """
        silent = self._silences.between(
            at - metadata.offset,
            self.moment.steady,
            {metadata.scope, str(INSTANCE)},
            unseen=not unseen,
        )
        return max(0.0, self.awake(metadata, at) - silent)

    def awake(self, metadata: Metadata, at: float) -> float:
        """Seconds since this time of a machine in which its host was awake."""
        return max(0.0, self.by(metadata) - at)

    def was_silent(self, scope: Scope, since: float) -> bool:
        """Whether the forge was silent meanwhile, by the steady clock."""
        scopes = {str(scope), str(INSTANCE)}
        return self._silences.between(since, self.moment.steady, scopes, unseen=False) > 0

    def answers(self, scope: Scope) -> bool:
        """Whether the forge told about this scope."""
        return scope in self.answered or INSTANCE in self.answered

    def job_on(self, machine: MachineId, job_key: str) -> Job | None:
        """The job that the forge shows on this machine."""
        if self.binds_jobs:
            job = self.jobs.get(job_key)
            return job if job and job.state is JobState.RUNNING else None
        return self._by_runner.get(str(machine))

    def surely_on(self, runner_id: int, job: Job | None) -> Job | None:
        """The job that `job_on` found, where no other runner may have it: Forgejo does not tell who
        took a job, but which runners have told of one within the last ten seconds.
        """
        record = self.records.get(runner_id)
        return job if not self.binds_jobs or record is None or record.busy else None

    def is_elsewhere(self, runner_id: int, job: Job | None) -> bool:
        """Whether that job runs on another one, which says so."""
        record = self.records.get(runner_id)
        return (
            self.binds_jobs
            and job is not None
            and not (record and record.busy)
            and self.rivals.has(job, runner_id)
        )

    def is_busy(self, machine: Machine) -> bool:
        """Whether the forge shows a job on this machine, be it known which or not."""
        if machine.metadata is None:
            return False
        record = self.records.get(machine.metadata.runner_id)
        return self.job_on(machine.id, machine.metadata.job_key) is not None or bool(
            record and record.busy
        )
