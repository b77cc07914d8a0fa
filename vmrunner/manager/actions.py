"""What a pass can do, as records: `plan` makes them, the manager carries them out in this order."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from vmrunner.manager.observed import Ask
from vmrunner.model.job import Job, RunnerRecord, Scope
from vmrunner.model.machine import Ending, Machine, MachineId, Metadata


@dataclass(frozen=True)
class Note:
    """Write what was seen into the domain's metadata, so that the next pass knows since when.

    `job` is the one that runs on it; `ask` as for a Finish.
    """

    machine: Machine
    metadata: Metadata
    job: Job | None = None
    ask: Ask | None = field(default=None, compare=False)


@dataclass(frozen=True)
class DropSeed:
    """The guest has read this seed: delete it from the host."""

    machine: MachineId


@dataclass(frozen=True)
class Pause:
    """A parked clone has rehearsed a job's start: it uses no processor until its job comes."""

    machine: MachineId


@dataclass(frozen=True)
class Finish:
    """Destroy what is left of a machine, settle its job and its runner at the forge, and write its
    line of history.

    `job` is what the forge shows on it: it will be failed. With `if_idle` the machine must be
    without a job: that is checked once more after its runner was told to take none. With `had_none`
    its runner never had one: it has its record, which would have gone with it. `unexplained`: it
    went, and neither libvirt nor its guest said why. `ask`: it rests on what a list did not show,
    and is done only once that was asked for by its id. `elsewhere`: another runner has, or gets,
    the job that it was made for.
    """

    machine: MachineId
    ending: Ending
    reason: str
    seen: Machine | None = None
    job: Job | None = None
    has_record: bool = False
    if_idle: bool = False
    had_none: bool = False
    unexplained: bool = False
    elsewhere: bool = False
    ask: Ask | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Stay:
    """Tell a guest not to power off when its runner has ended; `metadata` says so then."""

    machine: Machine
    metadata: Metadata


@dataclass(frozen=True)
class Hold:
    """Keep a machine whose job is over for a person: close its network, settle its job and its
    runner at the forge. `metadata` says since when, how long and why. Each step can be done again.

    `instead` is the end that it would have had; `is_failed`: its job failed, and it is kept for
    that.
    """

    machine: Machine
    metadata: Metadata
    instead: Finish
    is_failed: bool = False

    @property
    def ask(self) -> Ask | None:
        """As for a Finish."""
        return self.instead.ask


@dataclass(frozen=True)
class DeleteRunner:
    """Delete a runner record that no machine explains; `ask` as for a Finish."""

    scope: Scope
    runner: RunnerRecord
    ask: Ask | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Bind:
    """Give a warm machine the runner for this job.

    `fallback` is where to register it if the forge does not permit `scope`.
    """

    metadata: Metadata  # of the warm machine
    pool: str
    job: Job
    scope: Scope
    fallback: Scope
    is_last: bool = field(default=False, compare=False)  # there is no room for another one


@dataclass(frozen=True)
class Start:
    """Start a machine: for a job, or registered and idle (`scope` without a job), or warm
    (neither).
    """

    pool: str
    job: Job | None = None
    scope: Scope | None = None
    fallback: Scope | None = None
    is_last: bool = field(default=False, compare=False)  # there is no room for another one


Action = Note | DropSeed | Pause | Stay | Hold | Finish | DeleteRunner | Bind | Start


class WaitKind(StrEnum):
    """Why a job waits. `status --json` and tests use it; the sentence beside it is for people."""

    # It has a machine, or gets one now.
    BOOTING = "booting"
    RUNNER_STARTS = "runner starts"
    BOUND = "bound"
    STARTED = "started"
    ROOM_IS_MADE = "room is made"
    # Another host on this forge has it, or comes first.
    OTHER_HOST = "other host"
    # The forge holds it back.
    BLOCKED = "blocked"
    HELD = "held"
    # No pool is for it.
    CALLER = "caller"
    UNLABELLED = "unlabelled"
    NO_LABEL = "no label"
    NO_POOL_WITH_ALL_LABELS = "no pool with all labels"
    NO_SCOPE = "no scope"
    # Its pool starts no machine now.
    DRAINED = "drained"
    BACKED_OFF = "backed off"
    AT_MAX = "at max"
    AT_MAX_HELD = "at max, held"
    NO_SNAPSHOT = "no snapshot"
    # The host has no room.
    NO_DISK = "no disk"
    NO_MEMORY = "no memory"
    NO_VCPUS = "no vcpus"


@dataclass(frozen=True)
class Reason:
    """Why a job waits: of which kind, and the sentence."""

    kind: WaitKind
    said: str


@dataclass(frozen=True)
class Wait:
    """A waiting job, and why it waits."""

    job: Job
    reason: Reason
    pool: str = ""  # the one that will serve it, if there is one


@dataclass(frozen=True)
class Plan:
    """The next actions in their order, and why each waiting job waits once they are done.

    `asks`: what has to be asked for by its id before anything more is ended; with the answers
    (`Observed.asked`) it is planned anew.
    """

    actions: tuple[Action, ...]
    waits: tuple[Wait, ...]
    asks: tuple[Ask, ...] = ()
    # Seconds until a job may be this host's that is not yet, or a machine is looked at again that
    # waits to be ended; 0.0: there is none.
    again: float = 0.0
    promised: frozenset[str] = frozenset()  # keys of jobs that are left to other hosts' runners
