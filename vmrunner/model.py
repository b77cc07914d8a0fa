"""The words of the design as frozen records and enums. Pure: no I/O, no clock."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

PREFIX = "vmr"
"""Every libvirt and forge object of ours is named `vmr-<manager>-…`."""


class Phase(StrEnum):
    """Where a machine is in its life; see TRANSITIONS."""

    ABSENT = "absent"
    CLONED = "cloned"  # overlay and seed exist, no domain yet
    STARTED = "started"  # the domain exists, the guest has said nothing
    READY = "ready"  # the guest is up
    BOUND = "bound"  # the guest has read its seed, its runner is starting
    RUNNING = "running"  # the runner runs, or the forge shows the job on it
    FINISHED = "finished"  # the domain is gone: power-off
    FAILED = "failed"  # a deadline passed, or the host refused
    DESTROYED = "destroyed"  # nothing of it is left


TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    Phase.ABSENT: frozenset({Phase.CLONED, Phase.FAILED}),
    Phase.CLONED: frozenset({Phase.STARTED, Phase.FAILED}),
    # Odd edges from STARTED: the manager sees phases only when it looks, so a quick guest can be BOUND, RUNNING or
    # already powered off at the second look.
    Phase.STARTED: frozenset({Phase.READY, Phase.BOUND, Phase.RUNNING, Phase.FINISHED, Phase.FAILED}),
    Phase.READY: frozenset({Phase.BOUND, Phase.RUNNING, Phase.FINISHED, Phase.FAILED}),
    Phase.BOUND: frozenset({Phase.RUNNING, Phase.FINISHED, Phase.FAILED}),
    Phase.RUNNING: frozenset({Phase.FINISHED, Phase.FAILED}),
    Phase.FINISHED: frozenset({Phase.DESTROYED}),
    Phase.FAILED: frozenset({Phase.DESTROYED}),
    Phase.DESTROYED: frozenset(),
}


def may_follow(before: Phase, after: Phase) -> bool:
    """Whether a machine seen in `before` may be seen in `after` next. Seeing the same phase again is always fine."""
    return before is after or after in TRANSITIONS[before]


class EventKind(StrEnum):
    """What a guest reports over its virtio-serial port, one `<kind> <unix seconds> [text]` a line."""

    UP = "up"
    SEED = "seed"
    RUNNER = "runner"
    EXIT = "exit"


@dataclass(frozen=True)
class GuestEvent:
    """One report of a guest. Guests are hostile: a report is a hint about that guest alone, never a command."""

    kind: EventKind
    at: float  # the guest's clock, unix seconds
    text: str = ""


def parse_events(raw: bytes) -> tuple[GuestEvent, ...]:
    """Read what a guest wrote; whatever is not a well-formed line is dropped, and a guest can't make the list long."""
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


@dataclass(frozen=True)
class MachineId:
    """The name of one machine: `vmr-<manager>-<8 hex>`. Everything that belongs to it is named `<this>.<suffix>`."""

    manager: str
    serial: str

    @classmethod
    def new(cls, manager: str) -> MachineId:
        """A fresh id; 32 random bits are plenty beside the name-clash check that libvirt makes."""
        return cls(manager, secrets.token_hex(4))

    @classmethod
    def of(cls, manager: str, name: str) -> MachineId | None:
        """The id behind an object's name (a suffix such as `.qcow2` may follow), or None where it isn't this manager's."""
        head = f"{PREFIX}-{manager}-"
        serial = name.removeprefix(head).partition(".")[0]
        if not name.startswith(head) or len(serial) != 8 or any(c not in "0123456789abcdef" for c in serial):
            return None
        return cls(manager, serial)

    def __str__(self) -> str:
        return f"{PREFIX}-{self.manager}-{self.serial}"

    @property
    def mac(self) -> str:
        """A locally administered MAC address under QEMU's prefix, derived from the id."""
        digest = hashlib.sha256(str(self).encode()).digest()
        return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


@dataclass(frozen=True)
class Shape:
    """The size of a machine."""

    vcpus: int
    memory_mib: int
    disk_gib: int


@dataclass(frozen=True)
class Metadata:
    """What a machine's domain XML says about it in our namespace: enough to recognise it after a crash."""

    machine: MachineId
    pool: str
    image: str  # name/version
    created_at: float  # unix seconds, the host's clock: when creating began
    overlay_at: float = 0.0  # unix seconds: when the overlay existed
    runner_id: int = 0  # at the forge; 0 for a machine without a forge
    job_key: str = ""  # the job it was made for; on Gitea a hint only
    queued_at: float = 0.0  # unix seconds: when that job was queued, 0 where the forge doesn't tell


@dataclass(frozen=True)
class Machine:
    """One machine as the hypervisor shows it. `alive` is false when only files are left of it."""

    id: MachineId
    alive: bool
    metadata: Metadata | None = None
    events: tuple[GuestEvent, ...] = ()
    files: tuple[str, ...] = ()

    def event(self, kind: EventKind) -> GuestEvent | None:
        """The first report of this kind, if the guest made one."""
        return next((e for e in self.events if e.kind is kind), None)

    @property
    def phase(self) -> Phase:
        """The phase that the hypervisor and the guest's reports add up to."""
        if not self.alive:
            return Phase.FINISHED if self.events else Phase.CLONED
        for kind, phase in ((EventKind.RUNNER, Phase.RUNNING), (EventKind.SEED, Phase.BOUND), (EventKind.UP, Phase.READY)):
            if self.event(kind):
                return phase
        return Phase.STARTED
