"""The seam to the hypervisor: what vmrunner asks of a libvirt host."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Protocol

from vmrunner.hypervisor.acceleration import NoKvm
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.log import Say
from vmrunner.model.image import Golden
from vmrunner.model.machine import NO_LIMITS, Capacity, Limits, Machine, MachineId, Metadata, Shape
from vmrunner.model.used import Used

SNAPSHOT_PREFIX, IMAGE_PREFIX = "snapshot-", "image-"
"""What the volumes of snapshots and of published images begin with."""

SEED_SIZE = 1 << 20
"""Bytes of every seed: a guest that waits for another one on the same disk has seen the disk's size
already.
"""


def image_stem(name: str, version: str) -> str:
    """What the volumes of this version begin with; the part's name follows."""
    return f"{IMAGE_PREFIX}{name}-{version}."


_OF_IMAGES = re.compile(
    re.escape(IMAGE_PREFIX)
    + r"[A-Za-z0-9][A-Za-z0-9._-]*-[A-Za-z0-9_]+\.(disk\.qcow2|vmlinuz|initrd|manifest\.json)"
)
_OF_SNAPSHOTS = re.compile(
    re.escape(SNAPSHOT_PREFIX) + r"([0-9a-f]{16})\.(manifest\.json|boot|ram|state|qcow2)"
)


def is_of_image(volume: str) -> bool:
    """Whether a volume's name is one that parts of published images have."""
    return _OF_IMAGES.fullmatch(volume) is not None


def snapshot_of(volume: str) -> str:
    """The key of the snapshot that a volume is a part of by its name; empty where it is of none."""
    found = _OF_SNAPSHOTS.fullmatch(volume)
    return found[1] if found else ""


class File(StrEnum):
    """The files of one machine: volumes named `<machine>.<suffix>` in our own storage pool."""

    OVERLAY = "qcow2"
    SEED = "seed.iso"
    EVENTS = "events"
    CONSOLE = "console"
    RUNNER_LOG = "runner"  # what its runner itself prints
    # Its own copy of a snapshot's memory, where QEMU can't share that; of a machine that is being
    # saved: its memory.
    RAM = "ram"
    STATE = "state"  # of a machine that is being saved: its devices


class Output(StrEnum):
    """The live output ports of a machine made by `vmrunner exec`."""

    STDOUT = "stdout"
    STDERR = "stderr"


class Way(StrEnum):
    """Where a person speaks with a machine."""

    CONSOLE = "console"
    DOOR = "door"  # a port where the guest lets them in: images/guest/door.py


class Talk(Protocol):
    """What a person and a machine say to each other. It ends with the process, however that
    ends.
    """

    def hear(self, seconds: float) -> bytes | None:
        """What it says next; None where that is nothing for so many seconds, empty where there is
        no more to come.
        """

    def say(self, data: bytes) -> None:
        """Say all of this to it. Raises HypervisorError where it is gone."""

    def close(self) -> None:
        """Leave it; again is fine."""


@dataclass(frozen=True)
class Snapshot:
    """A booted machine's memory, devices and disk, from which machines of the same kind are cloned.

    Immutable.
    """

    key: str  # a digest of all that it fits: image, shape, processor, QEMU, libvirt, devices
    image: str  # name/version
    shape: Shape
    made_at: float  # unix seconds
    qemu: str
    libvirt: str
    files: dict[str, str]  # volume -> sha256
    disk_mib: int = 0  # what its files take of the host's disk
    basis: str = ""  # a digest of what it rests on of the host; empty: an older vmrunner made it
    tools: str = ""  # name/version of the disk of tools in it; empty: there is none


@dataclass(frozen=True)
class Volume:
    """One file in a storage pool of this host, or what a guest of somebody else uses."""

    name: str  # of such a guest, in words
    path: str  # empty for such a guest
    # The path of what it lies on, as its own header says; empty where it lies on nothing.
    backing: str
    is_ours: bool  # this manager's


@dataclass(frozen=True)
class Residue:
    """What is left of this manager on the host; all empty after the last machine is destroyed."""

    domains: tuple[str, ...]
    files: tuple[str, ...]
    logs: tuple[str, ...] = ()  # machines that the hypervisor keeps a log of

    def __bool__(self) -> bool:
        return bool(self.domains or self.files or self.logs)


@dataclass(frozen=True)
class Purged:
    """What `purge` has done, in words."""

    removed: tuple[str, ...]
    kept: tuple[str, ...]  # each with its reason: it is not ours, or somebody else uses it


class Machines(Protocol):
    """The machines of this manager: their files, their domains, and how they end."""

    def all(self) -> list[Machine]:
        """Every machine of this manager: its domain, or only files where the domain is gone."""

    def create_overlay(
        self, machine: MachineId, golden: Golden, disk_gib: int, snapshot: Snapshot | None = None
    ) -> None:
        """Clone the golden image, or the snapshot's disk, copy-on-write; it is `disk_gib` big, or
        as big as the image if that is bigger.
        """

    def put(self, machine: MachineId, file: File, content: bytes) -> None:
        """Write one file of a machine."""

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        """The last `tail` bytes of one file of a machine; empty if there is none."""

    def said(self, machine: MachineId, file: File, *, tail: int) -> bytes:
        """The last `tail` bytes that a machine wrote there, also of what the host has set aside
        since, as each file there grows to a bound; empty if there is none.
        """

    def delete(self, machine: MachineId, file: File) -> None:
        """Delete one file of a machine, also one that the machine holds open; one that is gone is
        fine.
        """

    def drop_seed(self, machine: MachineId) -> None:
        """Delete the seed that its guest has read, and blank what that still has open; one that is
        gone is fine.
        """

    def start(
        self,
        golden: Golden,
        shape: Shape,
        metadata: Metadata,
        snapshot: Snapshot | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Start the transient domain. Its overlay must exist, and its seed.

        With a snapshot it is a clone, left paused and with an empty seed: `bind` lets it go. Raises
        SnapshotError where that fails; the domain is gone then.
        """

    def bind(self, metadata: Metadata, seed: bytes) -> None:
        """Write the metadata of a waiting machine into its domain, then its seed, and let it
        run.
        """

    def pause(self, machine: MachineId) -> None:
        """Let a waiting machine use no processor until it is bound; one that is gone is fine."""

    def stay(self, machine: MachineId) -> None:
        """Have its guest not power off when its runner has ended, as long as this is not undone by
        the machine's end; one that is gone is fine.
        """

    def isolate(self, machine: MachineId) -> None:
        """Cut its network off: nothing comes in, nothing goes out, until its end; one that is gone
        is fine. The caller sees to it that its metadata names no policy.
        """

    def note(self, metadata: Metadata) -> None:
        """Write the metadata of a live machine into its domain; one that is gone is fine."""

    def stream(
        self, machine: MachineId, output: Output, write: Callable[[bytes], bool | None]
    ) -> None:
        """Copy a live output port until the machine is gone, or `write` returns true.

        Blocks; call it in a thread of its own.
        """

    def talk(self, machine: MachineId, way: Way) -> Talk:
        """Speak with a machine that is alive. One at a time: raises Occupied where somebody does
        so already.
        """

    def alive(self, machine: MachineId) -> bool:
        """Whether the machine's domain exists."""

    def destroy(self, machine: MachineId) -> None:
        """Destroy the domain and delete every file of the machine, the hypervisor's log of it, too,
        and check that domain and files are gone.
        """

    def used(self) -> dict[MachineId, Used]:
        """What living machines have taken of the host, all of them in one call. It waits for each
        machine's QEMU, however long that takes, and delays no other call.
        """

    def last_words(self, machine: MachineId) -> str:
        """What the hypervisor's log of a machine says last, in one line; empty where it says
        nothing, or is not to be had.
        """

    def logged(self) -> frozenset[MachineId]:
        """The machines of this manager that the hypervisor keeps a log of: also those that are
        gone, and those of another host that has such a manager.
        """

    def drop_log(self, machine: MachineId) -> None:
        """Delete the hypervisor's log of a machine that is gone, as far as this user may."""

    def residue(self) -> Residue:
        """All domains, machine files and logs that carry this manager's id."""


class Snapshots(Protocol):
    """The snapshots of this manager, from which machines are cloned."""

    def all(self) -> list[Snapshot]:
        """Every whole snapshot, usable or not."""

    def key(self, golden: Golden, shape: Shape) -> str:
        """What the snapshot for such machines is called, whether it exists or not."""

    def find(self, golden: Golden, shape: Shape) -> Snapshot | None:
        """The snapshot for such machines, if there is one for this very image, processor, QEMU and
        libvirt.
        """

    def make(
        self,
        golden: Golden,
        shape: Shape,
        machine: MachineId,
        seed: bytes,
        timeout: float,
        say: Say,
    ) -> Snapshot:
        """Boot a machine of this id with this seed, wait until it is ready, for `timeout` seconds
        at most, save it, and destroy it. Raises SnapshotError.

        `say` hears of its progress.
        The caller destroys what is left of the machine where this fails.
        """

    def verify(self, snapshot: Snapshot) -> None:
        """Read every file of a snapshot; raises SnapshotError where one differs from its digest."""

    def drop(self, key: str) -> list[str]:
        """Delete a snapshot. Machines that were cloned from it keep what they have open.

        Returns the volumes that stay, since a guest of somebody else uses them.
        """


class Images(Protocol):
    """What the host has of published images, and what lies on it."""

    def volumes(self) -> list[Volume]:
        """Every volume of every manager's storage pool on this host, as its folder is now, those
        of other pools, and what other people's guests use; raises where one can't be looked into.
        """

    def drop(self, names: Sequence[str]) -> None:
        """Delete volumes of published images, in this order; none of them where any volume of the
        host lies on one.
        """


class Facts(Protocol):
    """What the host is and has, and how it differs from what it should be. Nothing is changed."""

    @property
    def kvm(self) -> bool:
        """Whether machines run on the processor itself; else it is emulated, 10 to 50 times
        slower.
        """

    @property
    def no_kvm(self) -> NoKvm | None:
        """Why they don't; None where they do, or where the configuration says so."""

    @property
    def cgroups(self) -> Cgroups:
        """What the host's kernel can bound machines with."""

    @property
    def network(self) -> str:
        """The name of our libvirt network."""

    def versions(self) -> dict[str, str]:
        """Of libvirt and of QEMU, under these names."""

    def closed_storage(self) -> tuple[str, str] | None:
        """Which folder on the way to the storage pool is closed to QEMU, as a sentence and a hint;
        None where there is none, or that can't be known from here.
        """

    def capacity(self) -> Capacity:
        """What the host has, and what all domains on it (not only ours) may take that are active,
        or start with the host.
        """

    def network_drift(self) -> list[str] | None:
        """How our network differs from the one that we would make, in words; None where there is
        none yet.
        """

    def rules_drift(self) -> str | None:
        """How the nftables rules differ from the ones that we would make, in words, empty where
        they don't; None where we make none. Raises NotPermitted.
        """

    def leftovers_lack(self) -> str:
        """Why the host can't forget whoever had an address (`vacate`), in words; empty where it
        can.
        """


class Hypervisor(Protocol):
    """One manager's part of a host. Its four parts are the same ones as long as it lives.

    Every call, of its parts, too, raises a HypervisorError (DiskFull, NameClash) where libvirt
    refuses.
    """

    @property
    def manager(self) -> str:
        """The id of the manager whose machines these are."""

    @property
    def machines(self) -> Machines:
        """Its machines."""

    @property
    def snapshots(self) -> Snapshots:
        """What they are cloned from."""

    @property
    def images(self) -> Images:
        """What they are booted from."""

    @property
    def facts(self) -> Facts:
        """What the host is and has."""

    def prepare(self, golden: Golden, say: Say = ...) -> None:
        """Make our storage pool and network where they are missing, and publish this image on the
        host; `say` hears of what takes long.
        """

    def guard(self) -> None:
        """Bring what filters the machines' network to what it should be: rules, and which machines
        are let through.
        """

    def vacate(self, addresses: Sequence[IPv4Address]) -> None:
        """Have the host forget whoever had these addresses: their connections, their MACs. Nobody
        has them now.
        """

    def watch(self, wake: Callable[[], None], progress: Callable[[], object] = ...) -> None:
        """Call `wake`, from another thread, whenever a machine of this manager starts or ends;
        `progress` between parts of long work.
        """

    def reopen(self) -> bool:
        """Connect again if the connection is lost (a daemon of libvirt was restarted); whether it
        was.

        Raises HypervisorError while it stays so.
        """

    def close(self) -> None:
        """Close the connection."""

    def purge(self) -> Purged:
        """Remove every object of this manager from the host, machines included, but for what
        others use.
        """
