"""How a machine comes to be, whoever wants it: cloned from a snapshot where one may be used, else
booted.

It does what it is for at once (`start`), or waits for that (`park`) until it is let go (`let_go`).
Whoever makes one undoes it where this fails: the machine's name is on all that it left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface

from vmrunner.errors import SnapshotError
from vmrunner.hypervisor.seam import File, Hypervisor, Machines
from vmrunner.machine import seed
from vmrunner.machine.clones import Shelf
from vmrunner.model.image import Golden
from vmrunner.model.machine import NO_LIMITS, Limits, MachineId, Metadata, Shape


@dataclass(frozen=True)
class Launch:
    """A machine that is to be made. Its image is on the host already."""

    metadata: Metadata  # what is true of it before it exists: its name, its address, its policy
    golden: Golden
    shape: Shape
    ipv6: IPv6Interface | None = None  # what it has beside its address
    limits: Limits = NO_LIMITS
    shelf: Shelf | None = None  # of the snapshots that it may be a clone of; None: it is booted
    clock: Callable[[], float] = time.time  # unix seconds

    @property
    def machine(self) -> MachineId:
        """Its name."""
        return self.metadata.machine


def start(
    hypervisor: Hypervisor,
    launch: Launch,
    script: str,
    bound: Callable[[Metadata], Metadata] = lambda metadata: metadata,
) -> Metadata:
    """Make a machine that has its network, and does what `script` (user-data) says; what is then
    written on it.

    `bound` adds whose credentials are in the script. A clone is marked so only when it is let go:
    one without that mark has seen nothing.
    """
    clone = _clone(hypervisor, launch)
    if clone is not None:
        return let_go(hypervisor.machines, bound(clone), script, launch.ipv6)
    metadata = bound(launch.metadata)
    return _boot(hypervisor.machines, launch, metadata, _task(metadata, script, launch.ipv6))


def park(hypervisor: Hypervisor, launch: Launch, rehearsal: str) -> Metadata:
    """Make a machine that waits, without network: a clone goes through `rehearsal` (user-data)
    meanwhile, one that is booted just comes up. What is then written on it.
    """
    clone = _clone(hypervisor, launch)
    if clone is None:
        return _boot(hypervisor.machines, launch, launch.metadata, seed.waiting(launch.machine))
    metadata = replace(clone, parked_at=launch.clock())
    hypervisor.machines.bind(metadata, seed.iso(launch.machine, rehearsal, None, rehearsal=True))
    return metadata


def let_go(
    machines: Machines, metadata: Metadata, script: str, ipv6: IPv6Interface | None
) -> Metadata:
    """Have a machine that waits do what `script` says, with its network; what is then written on
    it.
    """
    machines.bind(metadata, _task(metadata, script, ipv6))
    return metadata


def _task(metadata: Metadata, script: str, ipv6: IPv6Interface | None) -> bytes:
    return seed.iso(metadata.machine, script, IPv4Interface(metadata.address), ipv6)


def _boot(machines: Machines, launch: Launch, metadata: Metadata, content: bytes) -> Metadata:
    """Start it on an overlay of its image, with this seed."""
    machines.create_overlay(launch.machine, launch.golden, launch.shape.disk_gib)
    metadata = replace(metadata, overlay_at=launch.clock())
    machines.put(launch.machine, File.SEED, content)
    machines.start(launch.golden, launch.shape, metadata, limits=launch.limits)
    return metadata


def _clone(hypervisor: Hypervisor, launch: Launch) -> Metadata | None:
    """A paused clone; None where the machine is to be booted: it shall not be cloned, there is no
    snapshot, or it can't be used.

    One that can't be used is retired, and nothing of the machine is left.
    """
    if launch.shelf is None:
        return None
    machines, snapshots = hypervisor.machines, hypervisor.snapshots
    snapshot = snapshots.find(launch.golden, launch.shape)
    if snapshot is None:
        return None
    try:
        machines.create_overlay(launch.machine, launch.golden, launch.shape.disk_gib, snapshot)
        metadata = replace(launch.metadata, overlay_at=launch.clock(), snapshot=snapshot.key)
        machines.start(launch.golden, launch.shape, metadata, snapshot, launch.limits)
    except SnapshotError as error:
        machines.destroy(launch.machine)
        launch.shelf.failed(snapshot.key, error)
        snapshots.drop(snapshot.key)
        return None
    launch.shelf.works(snapshot.key)
    return metadata
