"""The words of the design as frozen records and enums. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

PREFIX = "vmr"
SHORTEST = 4  # characters of a name that stand for it
"""Every libvirt and forge object of ours is named `vmr-<manager>-…`."""


class Phase(StrEnum):
    """Where a machine is in its life; see TRANSITIONS."""

    ABSENT = "absent"
    CLONED = "cloned"  # overlay and seed exist, no domain yet
    STARTED = "started"  # the domain exists, the guest boots
    READY = "ready"  # the guest is up; a warm one waits for its job's seed
    BOUND = "bound"  # it has a runner's credentials, its runner is starting
    IDLE = "idle"  # its runner is registered for any job, and none was seen on it yet
    RUNNING = "running"  # the runner runs, or the forge shows the job on it
    FINISHED = "finished"  # its runner has ended, or the domain is gone: power-off
    HELD = "held"  # its job is over, and it is kept for a person, without a network, for a time
    FAILED = "failed"  # a deadline passed, or the host refused
    DESTROYED = "destroyed"  # nothing of it is left


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.ABSENT: frozenset({Phase.CLONED, Phase.FAILED}),
    Phase.CLONED: frozenset({Phase.STARTED, Phase.FAILED}),
    # Odd edges from STARTED: the manager sees phases only when it looks, so a quick guest can be
    # BOUND, IDLE, RUNNING or already powered off at the second look.
    Phase.STARTED: frozenset(
        {Phase.READY, Phase.BOUND, Phase.IDLE, Phase.RUNNING, Phase.FINISHED, Phase.FAILED}
    ),
    Phase.READY: frozenset({Phase.BOUND, Phase.IDLE, Phase.RUNNING, Phase.FINISHED, Phase.FAILED}),
    Phase.BOUND: frozenset({Phase.IDLE, Phase.RUNNING, Phase.FINISHED, Phase.FAILED}),
    # Its job may come and go between two looks.
    Phase.IDLE: frozenset({Phase.RUNNING, Phase.FINISHED, Phase.FAILED}),
    Phase.RUNNING: frozenset({Phase.FINISHED, Phase.FAILED}),
    # Odd: a guest whose runner has ended may refuse to power off. One that was told to stay is
    # held, where somebody wants to look into it.
    Phase.FINISHED: frozenset({Phase.DESTROYED, Phase.HELD, Phase.FAILED}),
    # Odd: whoever holds it may lose it all the same, with its disk or its host.
    Phase.HELD: frozenset({Phase.DESTROYED, Phase.FINISHED, Phase.FAILED}),
    Phase.FAILED: frozenset({Phase.DESTROYED}),
    Phase.DESTROYED: frozenset(),
}


class Ending(StrEnum):
    """Why a machine is no more. Each is a line of history, with a reason in words beside it."""

    DONE = "done"  # its job ended and it powered off
    HELD = "held"  # its job ended, and it was kept for a person until its time was over
    CANCELLED = "cancelled"  # the forge ended the job; the guest never hears of it
    UNNEEDED = "unneeded"  # an idle one: drained, too many, outdated
    STOPPED = "stopped"  # destroyed with its job: `vmrunner down --now`, or the host shut down
    ABANDONED = "abandoned"  # the manager died while it made or bound it
    HELD_BACK = "held-back"  # its runner was there, and the forge did not hand it its job
    DIED = "died"  # it went while its job ran
    # Its runner found no forge, which was silent meanwhile.
    FORGE_AWAY = "forge-away"
    NO_ROOM = "no-room"  # destroyed with its job, as the newest, before the host's storage was full
    EARLY = "early"  # it went before a job ran on it
    START_FAILED = "start-failed"
    BOOT_TIMEOUT = "boot-timeout"
    PICKUP_TIMEOUT = "pickup-timeout"
    JOB_TIMEOUT = "job-timeout"
    TEARDOWN_TIMEOUT = "teardown-timeout"

    @property
    def is_failure(self) -> bool:
        """Whether somebody should look into it."""
        return self not in {
            Ending.DONE,
            Ending.HELD,
            Ending.CANCELLED,
            Ending.UNNEEDED,
            Ending.STOPPED,
            Ending.HELD_BACK,
            Ending.FORGE_AWAY,
        }

    @property
    def blames_pool(self) -> bool:
        """Whether the pool's image or host is to blame, so that the next machine would go the same
        way. What a job did is not.
        """
        return self in {
            Ending.EARLY,
            Ending.START_FAILED,
            Ending.BOOT_TIMEOUT,
            Ending.PICKUP_TIMEOUT,
        }


def may_follow(before: Phase, after: Phase) -> bool:
    """Whether a machine seen in `before` may be seen in `after` next.

    Seeing the same phase again is always fine.
    """
    return before is after or after in TRANSITIONS[before]


class EventKind(StrEnum):
    """What a guest reports over its virtio-serial port, one `<kind> <unix seconds> [text]` a
    line.
    """

    UP = "up"
    SEED = "seed"  # it has read its boot seed
    READY = "ready"  # a warm machine waits for its job's seed
    RUNNER = "runner"
    HOLD = "hold"  # its job asks for it to be kept, for so many seconds
    EXIT = "exit"
    REHEARSED = "rehearsed"  # a parked clone has gone through a job's start once
    CLOCK = "clock"  # its kernel's own time, in seconds, at that moment
    USED = "used"  # the most MiB of its memory that it had in use, by its own word


@dataclass(frozen=True)
class GuestEvent:
    """One report of a guest.

    Guests are hostile: a report is a hint about that guest alone, never a command.
    """

    kind: EventKind
    at: float  # the guest's clock, unix seconds
    # An exit code or a last sentence; of a start's words, what was done how many ms before.
    text: str = ""


def parse_events(raw: bytes) -> tuple[GuestEvent, ...]:
    """Read what a guest wrote; whatever is not a well-formed line is dropped, and a guest can't
    make the list long.
    """
    events: dict[EventKind, GuestEvent] = {}
    for line in raw[:65536].decode("utf-8", "replace").splitlines():
        words = line.strip().split(" ", 2)
        try:
            kind, at = EventKind(words[0]), float(words[1])
        except (ValueError, IndexError):
            continue
        if not 0 <= at < 1e11:  # also false for nan
            continue
        text = "".join(c for c in (words[2] if len(words) > 2 else "")[:200] if c.isprintable())
        events.setdefault(kind, GuestEvent(kind, at, text))
    return tuple(events.values())


def is_serial(text: str) -> bool:
    """Whether it is 8 hex digits, as a machine's serial and a host's identity are."""
    return len(text) == 8 and all(c in "0123456789abcdef" for c in text)


def may_mean(text: str, name: str) -> bool:
    """Whether somebody may mean the machine of this name: it is the name, or at least four
    characters of its beginning or its end.
    """
    return text == name or (
        len(text) >= SHORTEST and (name.startswith(text) or name.endswith(text))
    )


@dataclass(frozen=True)
class MachineId:
    """The name of one machine: `vmr-<manager>-<16 hex>`, of which the first 8 are the host's
    identity. Those that an older vmrunner made have the last 8 alone.

    Everything that belongs to it is named `<this>.<suffix>`. On a host the serial tells machines
    apart, so what is known of them by the serial alone (a tap) finds them, too.
    """

    manager: str
    serial: str
    host: str = field(default="", compare=False)

    @classmethod
    def new(cls, manager: str, host: str) -> MachineId:
        """A fresh id; 32 random bits are plenty beside the name-clash check that libvirt makes.

        Its MAC address has a letter: cloud-init reads it in YAML 1.1, where digits between colons
        may be a number.
        """
        while True:
            made = cls(manager, secrets.token_hex(4), host)
            if not made.mac.replace(":", "").isdecimal():
                return made

    @classmethod
    def derived(cls, manager: str, host: str, word: str) -> MachineId:
        """The id for this word, the same each time."""
        for number in count():
            digest = hashlib.sha256(f"{word} {number}".encode()).hexdigest()
            made = cls(manager, digest[:8], host)
            if not made.mac.replace(":", "").isdecimal():
                return made
        raise AssertionError("count() never ends")

    @classmethod
    def of(cls, manager: str, name: str) -> MachineId | None:
        """The id behind an object's name (a suffix such as `.qcow2` may follow), or None where it
        isn't this manager's. Whose host's it is, is another question.
        """
        found = cls.parse(name)
        return found if found and found.manager == manager else None

    @classmethod
    def parse(cls, name: str) -> MachineId | None:
        """The id behind an object's name, whoever's it is."""
        head, _, word = name.partition(".")[0].rpartition("-")
        manager, host, serial = head.removeprefix(f"{PREFIX}-"), word[:-8], word[-8:]
        if not head.startswith(f"{PREFIX}-") or not manager or not is_serial(serial):
            return None
        return cls(manager, serial, host) if not host or is_serial(host) else None

    def __str__(self) -> str:
        return f"{PREFIX}-{self.manager}-{self.host}{self.serial}"

    @classmethod
    def of_tap(cls, manager: str, tap: str) -> MachineId | None:
        """The machine behind a network interface of the host, without the host's identity; None
        where it isn't this manager's.
        """
        head = cls(manager, "").tap
        return (
            cls.of(manager, f"{PREFIX}-{manager}-{tap.removeprefix(head)}")
            if tap.startswith(head)
            else None
        )

    @property
    def tap(self) -> str:
        """The host's end of its network, as long as Linux permits (15): all of a manager's begin
        alike.
        """
        return f"v{hashlib.sha256(self.manager.encode()).hexdigest()[:6]}{self.serial}"

    @property
    def mac(self) -> str:
        """A locally administered MAC address under QEMU's prefix, derived from what the tap is."""
        digest = hashlib.sha256(f"{PREFIX}-{self.manager}-{self.serial}".encode()).digest()
        return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


@dataclass(frozen=True)
class Shape:
    """The size of a machine, and what its processors can."""

    vcpus: int
    memory_mib: int
    disk_gib: int
    nested: bool = False  # virtual machines of its own


DEFAULT_SHAPE = Shape(2, 2048, 20)
"""What nobody has said otherwise of: for pools as for machines that belong to none."""


@dataclass(frozen=True)
class Limits:
    """How much of the host a machine may use while it runs; its guest can't see them."""

    cpu_weight: int = 100  # against the other machines, when the processors are busy; 1 to 10000
    disk_bandwidth_mib: int = 0  # read and written a second; 0: as much as there is
    disk_iops: int = 0  # reads and writes a second; 0: as many as it can


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Metadata:
    """What a machine's domain XML says about it in our namespace: enough to recognise it after a
    crash.

    Times are unix seconds by the host's clock as it was when the machine was made, whether it is
    set later or not; 0 where it has not happened.
    """

    machine: MachineId
    pool: str
    image: str  # name/version
    created_at: float  # when creating began
    overlay_at: float = 0.0  # when the overlay existed
    # When it was cloned from a snapshot without a job: it rehearses one, and is paused until one
    # comes.
    parked_at: float = 0.0
    bound_at: float = 0.0  # when it got a runner; one that is made for a job is born with it
    running_at: float = 0.0  # when the forge was first seen to have a job on it
    # When the forge was first seen to have no job and no runner for it any more.
    over_at: float = 0.0
    # Since when the forge hears nothing of the job that it has on it, or of a runner that is
    # registered idle; 0 where it does.
    silent_at: float = 0.0
    runner_id: int = 0  # at the forge; 0 while it is registered nowhere
    scope: str = ""  # where that runner is registered
    # The job it was made for; on Gitea a hint only; empty for one that is registered idle.
    job_key: str = ""
    # The job that was seen on it; empty where none was, or where the forge didn't tell which.
    seen_key: str = ""
    repository: str = ""  # owner/name of that job, or else of the one that it was made for
    queued_at: float = 0.0  # when that job was queued, 0 where the forge doesn't tell
    address: str = ""  # with its subnet's prefix length
    network: str = ""  # the name of its policy; empty: its network stays closed
    # The key of the snapshot that it is a clone of; empty for one that was booted.
    snapshot: str = ""
    tools: str = ""  # name/version of its disk of tools; empty where it has none
    # What its times have to be lessened by for the clock that nobody sets, and in which boot of the
    # manager's host that holds; see Moment.
    offset: float = 0.0
    boot: str = ""
    # What GARM calls it, which made it and ends it; empty for machines of our own pools.
    instance: str = ""
    # Its guest was told not to power off after its runner's end: somebody may want to look into it.
    stays: bool = False
    # Since when it is held, and for how long; before that, for how long somebody asked for.
    held_at: float = 0.0
    held_for: float = 0.0
    held_why: str = ""

    @property
    def is_bound(self) -> bool:
        """Whether it has a runner's credentials."""
        return self.runner_id != 0


@dataclass(frozen=True)
class Machine:
    """One machine as the hypervisor shows it. `alive` is false when only files are left of it."""

    id: MachineId
    alive: bool
    metadata: Metadata | None = None
    events: tuple[GuestEvent, ...] = ()
    files: tuple[str, ...] = ()
    # What the hypervisor says is wrong with it, or how it ended, where it says so.
    trouble: str = ""
    dropped: int = 0  # packets that its policy, or its bounds, did not let through
    is_paused: bool = False  # by whoever made it: a parked one, or one that is being made or bound

    def event(self, kind: EventKind) -> GuestEvent | None:
        """The first report of this kind, if the guest made one."""
        return next((e for e in self.events if e.kind is kind), None)

    @property
    def is_up(self) -> bool:
        """Whether the guest has said anything.

        Under cloud-init the first that it says is `runner` or `ready`.
        """
        return bool(self.events)

    @property
    def is_bound(self) -> bool:
        """Whether it has a runner's credentials."""
        return self.metadata is not None and self.metadata.is_bound

    @property
    def is_held(self) -> bool:
        """Whether it is kept for a person, with its job over."""
        return self.metadata is not None and self.metadata.held_at > 0

    @property
    def awaits_verdict(self) -> bool:
        """Whether its runner has ended, its guest stays, and nothing is decided yet."""
        stays = self.alive and self.metadata is not None and self.metadata.stays
        return stays and not self.is_held and self.event(EventKind.EXIT) is not None

    @property
    def asked_hold(self) -> float:
        """For how many seconds its job asks to keep it. The guest's word: whoever goes by it has a
        bound of their own.
        """
        asked = self.event(EventKind.HOLD)
        text = asked.text if asked else ""
        return float(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0.0

    @property
    def is_ready(self) -> bool:
        """Whether it waits for a job's seed: booted and waiting for it, or parked."""
        return (
            self.alive
            and not self.is_bound
            and (self._is_parked or self.event(EventKind.READY) is not None)
        )

    @property
    def rehearses(self) -> bool:
        """Whether it is a parked clone that runs still."""
        return self.is_ready and self._is_parked and not self.is_paused

    @property
    def _is_parked(self) -> bool:
        return self.metadata is not None and self.metadata.parked_at > 0

    @property
    def has_read_seed(self) -> bool:
        """Whether the guest has read the seed with its credentials.

        A warm one read another before, and says `seed` but once.
        """
        said = {event.kind for event in self.events}
        enough = {EventKind.RUNNER, EventKind.EXIT} | (
            set() if EventKind.READY in said else {EventKind.SEED}
        )
        return self.is_bound and not said.isdisjoint(enough)

    @property
    def phase(self) -> Phase:
        """The phase that the hypervisor and the guest's reports add up to."""
        if not self.alive:
            return Phase.FINISHED if self.events else Phase.CLONED
        if self.is_held:
            return Phase.HELD
        if self.event(EventKind.EXIT):
            return Phase.FINISHED
        if not self.is_bound:
            return Phase.READY if self.is_ready else Phase.STARTED
        if self.metadata and self.metadata.running_at:
            return Phase.RUNNING
        if self.event(EventKind.RUNNER):
            return Phase.RUNNING if self.metadata and self.metadata.job_key else Phase.IDLE
        if self.event(EventKind.SEED) or self.event(EventKind.READY):
            return Phase.BOUND
        return Phase.READY if self.is_up else Phase.STARTED


UNBOUNDED = 1 << 40
"""MiB that limit nobody."""


@dataclass(frozen=True)
class Capacity:
    """What the host has, and what the machines on it (ours and others') may take of it: those that
    run, and those that start with the host.

    Memory and disk in MiB.
    """

    memory_mib: int
    cores: int
    used_memory_mib: int
    used_vcpus: int
    free_disk_mib: int  # UNBOUNDED where it is not known

    @property
    def known_free_disk_mib(self) -> int | None:
        """None before there is a storage pool."""
        return self.free_disk_mib if self.free_disk_mib < UNBOUNDED else None
