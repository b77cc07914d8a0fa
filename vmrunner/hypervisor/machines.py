"""The machines of one manager on a libvirt host: their domains and their files together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any
from xml.etree import ElementTree

import libvirt

from vmrunner.errors import DiskFull, HypervisorError, NameClash, NotPermitted
from vmrunner.hypervisor.connection import GONE, Link, asking, connect, translate
from vmrunner.hypervisor.domain import parse_metadata
from vmrunner.hypervisor.domains import Domains
from vmrunner.hypervisor.events import Events
from vmrunner.hypervisor.logs import Logs
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.seam import SEED_SIZE, File, Output, Residue, Snapshot, Way
from vmrunner.hypervisor.snapshot import LibvirtSnapshots, failed
from vmrunner.hypervisor.stats import Stats
from vmrunner.hypervisor.storage import Storage, image_volume
from vmrunner.hypervisor.strangers import Strangers
from vmrunner.hypervisor.talk import LibvirtTalk
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import (
    NO_LIMITS,
    Limits,
    Machine,
    MachineId,
    Metadata,
    Shape,
    parse_events,
)
from vmrunner.model.used import Used
from vmrunner.waiting import Deadline

STAY_PORT = "org.vmrunner.stay"
"""A virtio port that is there alone to be seen: the guest must not power off by itself."""
_GONE_WITHIN = 15.0  # seconds; a destroyed QEMU is reaped within two even by a slow PID 1
_TOLD_WITHIN = 1.0  # seconds; events come within a few milliseconds
_TROUBLES = {
    (
        libvirt.VIR_DOMAIN_PAUSED,
        libvirt.VIR_DOMAIN_PAUSED_IOERROR,
    ): "its disk could not be written: the host's storage is full or failing",
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_CRASHED): "its guest crashed",
    (
        libvirt.VIR_DOMAIN_CRASHED,
        libvirt.VIR_DOMAIN_CRASHED_PANICKED,
    ): "its guest's kernel panicked",
}


class LibvirtMachines:
    """The Machines of the seam."""

    def __init__(
        self,
        link: Link,
        storage: Storage,
        network: Network,
        domains: Domains,
        strangers: Strangers,
        snapshots: LibvirtSnapshots,
        events: Events,
        logs: Logs,
        stats: Stats,
    ) -> None:
        self._link, self._storage, self._network = link, storage, network
        self._domains, self._strangers = domains, strangers
        self._snapshots, self._events, self._logs = snapshots, events, logs
        self._stats = stats

    def all(self) -> list[Machine]:
        """Every machine, as libvirt and the storage pool show it now."""
        domains = self._domains.all()
        files = self._storage.machine_files()
        if strays := files.keys() - domains.keys():
            # Seldom: one that is being made, or that powered off. A guest of somebody else may have
            # such a file, too: a copy of a machine, to look into.
            held = self._strangers.held_by_guests()
            for machine in strays:
                if not held.keys().isdisjoint(files[machine]):
                    del files[machine]
        self._events.keep(domains.keys() | files.keys())
        dropped = self._network.dropped() if domains else {}
        told_by: Deadline | None = None
        found = []
        for machine in sorted(domains.keys() | files.keys(), key=str):
            metadata, trouble, is_paused = None, "", False
            if machine in domains:
                # One that powered off since it was listed can't be described any more: as little
                # is known of it as of one that went before.
                if described := self._domains.described(domains[machine], machine):
                    metadata = parse_metadata(described, machine)
                    if metadata is None:
                        continue  # Its name looks like ours, but we did not make it: never touched.
                trouble, is_paused = self._state(domains[machine])
            events = (
                parse_events(self._storage.read(f"{machine}.{File.EVENTS}", 65536))
                if machine in files
                else ()
            )
            alive = machine in domains and self.alive(machine)
            if not alive:
                told_by = told_by or Deadline(_TOLD_WITHIN)
                trouble = trouble or self._events.end_of(machine, told_by)
            names = tuple(files.get(machine, ()))
            found.append(
                Machine(
                    machine,
                    alive,
                    metadata,
                    events,
                    names,
                    trouble,
                    dropped.get(machine, 0),
                    alive and is_paused,
                )
            )
        return found

    def _state(self, domain: Any) -> tuple[str, bool]:
        """What is wrong with a domain that exists, if anything, and whether it was paused on
        purpose.
        """
        try:
            state = tuple(domain.state())
        except libvirt.libvirtError:
            return "", False  # it powered off since it was listed
        trouble = _TROUBLES.get(state, "")
        return trouble, state[0] == libvirt.VIR_DOMAIN_PAUSED and not trouble

    def create_overlay(
        self, machine: MachineId, golden: Golden, disk_gib: int, snapshot: Snapshot | None = None
    ) -> None:
        """A disk of its own for a machine, on its image or its snapshot's disk."""
        backing = self._snapshots.disk(snapshot.key) if snapshot else image_volume(golden, DISK)
        self._storage.create_overlay(f"{machine}.{File.OVERLAY}", backing, disk_gib)

    def put(self, machine: MachineId, file: File, content: bytes) -> None:
        """Write one file of a machine."""
        self._storage.write(f"{machine}.{file}", content)

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        """The end of one file of a machine."""
        return self._storage.read(f"{machine}.{file}", tail)

    def said(self, machine: MachineId, file: File, *, tail: int) -> bytes:
        """The end of what a machine wrote, over more than one file."""
        found = self._storage.read(f"{machine}.{file}", tail)
        if len(found) < tail:  # virtlogd calls the one before `.0`
            found = self._storage.read(f"{machine}.{file}.0", tail - len(found)) + found
        return found

    def delete(self, machine: MachineId, file: File) -> None:
        """Delete one file of a machine."""
        self._storage.delete(f"{machine}.{file}")

    def drop_seed(self, machine: MachineId) -> None:
        """Blank the seed, which QEMU has open, and delete it."""
        self._storage.blank(f"{machine}.{File.SEED}")
        self.delete(machine, File.SEED)

    def start(
        self,
        golden: Golden,
        shape: Shape,
        metadata: Metadata,
        snapshot: Snapshot | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Start the domain, or a paused clone."""
        machine = metadata.machine
        if snapshot is None:
            self._domains.create(
                golden, shape, metadata, (image_volume(golden, DISK),), limits=limits
            )
            return
        self._storage.create_blank(f"{machine}.{File.SEED}", SEED_SIZE)
        backing = (self._snapshots.disk(snapshot.key), image_volume(golden, DISK))
        try:
            self._snapshots.trust(snapshot)
            arguments = self._snapshots.clone_arguments(machine, snapshot)
            domain = self._domains.create(
                golden,
                shape,
                metadata,
                backing,
                arguments,
                libvirt.VIR_DOMAIN_START_PAUSED,
                limits=limits,
            )
            try:
                self._snapshots.load(domain, snapshot)
            except BaseException:
                with suppress(libvirt.libvirtError):
                    domain.destroy()
                raise
        except (NameClash, DiskFull):
            raise
        except HypervisorError as error:
            if not self._link.is_alive:
                raise  # that says nothing about the snapshot
            raise failed(f"The snapshot {snapshot.key} can't be used", error) from error

    def bind(self, metadata: Metadata, seed: bytes) -> None:
        """Write the metadata, then the seed, and let the machine run."""
        machine = metadata.machine
        with asking(f"binding {machine}"):
            domain = self._link.connection.lookupByName(str(machine))
            if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                # So that its guest never sees half a seed, and a pass sees where we were killed.
                domain.suspend()
            self._domains.write(domain, metadata)
        self._storage.overwrite(f"{machine}.{File.SEED}", seed)
        with asking(f"binding {machine}"):
            domain.resume()

    def pause(self, machine: MachineId) -> None:
        """Stop its processors."""
        self._unless_gone(machine, "pausing", lambda domain: domain.suspend())

    def stay(self, machine: MachineId) -> None:
        """Show its guest a port that says so."""
        self._unless_gone(machine, "keeping", self._show_stay)

    def _show_stay(self, domain: Any) -> None:
        if STAY_PORT not in domain.XMLDesc(0):
            port = f'<channel type="null"><target type="virtio" name="{STAY_PORT}"/></channel>'
            domain.attachDeviceFlags(port, libvirt.VIR_DOMAIN_AFFECT_LIVE)

    def isolate(self, machine: MachineId) -> None:
        """Unplug its network cable, and let its packets through no more."""
        self._unless_gone(machine, "isolating", _unplug)
        with suppress(NotPermitted):  # the link is down anyway
            self._network.forget(machine)

    def note(self, metadata: Metadata) -> None:
        """Write its metadata into the domain."""
        self._unless_gone(
            metadata.machine, "describing", lambda domain: self._domains.write(domain, metadata)
        )

    def _unless_gone(self, machine: MachineId, doing: str, act: Callable[[Any], object]) -> None:
        """Act on its domain, if there is one; that it goes meanwhile is fine."""
        with asking(f"{doing} {machine}"):
            domain = self._domains.own(machine)
            if domain is None:
                return
            try:
                act(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in GONE:
                    raise

    def stream(
        self, machine: MachineId, output: Output, write: Callable[[bytes], bool | None]
    ) -> None:
        """Copy a live output port; blocks."""
        connection = connect(self._link.uri)  # of its own: see THREADS_MAY_SHARE
        try:
            with asking(f"reading the output of {machine}", is_long=True):
                stream = connection.newStream(0)
                domain = connection.lookupByName(str(machine))
                domain.openChannel(
                    f"org.vmrunner.{output}", stream, libvirt.VIR_DOMAIN_CHANNEL_FORCE
                )
                try:
                    while (chunk := stream.recv(65536)) and not write(chunk):
                        pass
                    stream.finish()
                except libvirt.libvirtError:
                    # QEMU is gone, and with it the port: that is how every stream of ours ends.
                    stream.abort()
        finally:
            with suppress(libvirt.libvirtError):
                connection.close()

    def talk(self, machine: MachineId, way: Way) -> LibvirtTalk:
        """Speak with it."""
        return LibvirtTalk(self._link.uri, machine, way)

    def alive(self, machine: MachineId) -> bool:
        """Whether its domain exists."""
        return self._domains.exists(machine)

    def destroy(self, machine: MachineId) -> None:
        """Destroy the domain, close its network, delete its files."""
        deadline = Deadline(_GONE_WITHIN)
        while (domain := self._domains.own(machine)) is not None:
            if deadline.is_over:
                raise HypervisorError(
                    f"{machine} does not go away.",
                    f"`virsh destroy {machine}` may say why; the next pass tries again.",
                )
            try:
                domain.destroy()
            except libvirt.libvirtError as error:
                if error.get_error_code() not in GONE:
                    raise translate(error, f"destroying {machine}") from error
                deadline.pause(0.05)  # it is on its way out
        self._events.forget(machine)
        with suppress(NotPermitted):  # the next pass that may sweeps it
            self._network.forget(machine)
        # Before its files, which have the next pass come again where this one is killed.
        self._logs.drop(machine)
        for file in File:
            self.delete(machine, file)
        for stray in self._storage.machine_files().get(machine, []):
            self._storage.delete(stray)

    def used(self) -> dict[MachineId, Used]:
        """What living machines have taken of the host."""
        return self._stats.used()

    def last_words(self, machine: MachineId) -> str:
        """What QEMU said last."""
        return self._logs.last_words(machine)

    def logged(self) -> frozenset[MachineId]:
        """Those that libvirt keeps a log of."""
        return self._logs.machines()

    def drop_log(self, machine: MachineId) -> None:
        """Delete libvirt's log of a machine."""
        self._logs.drop(machine)

    def residue(self) -> Residue:
        """Our domains, machine files and logs."""
        files = self._storage.machine_files()
        domains = sorted(
            str(machine)
            for machine in self._domains.all()
            if self._domains.own(machine) is not None
        )
        return Residue(
            tuple(domains),
            tuple(sorted(name for names in files.values() for name in names)),
            tuple(sorted(map(str, self._logs.machines()))),
        )


def _unplug(domain: Any) -> None:
    """Have the guest see no link: QEMU passes nothing on, whatever filters there are."""
    described = ElementTree.fromstring(domain.XMLDesc(0))  # noqa: S314 — libvirt's own words
    for interface in described.iterfind("devices/interface"):
        link = interface.find("link")
        if link is None:
            link = ElementTree.SubElement(interface, "link")
        if link.get("state") != "down":
            link.set("state", "down")
            changed = ElementTree.tostring(interface, encoding="unicode")
            domain.updateDeviceFlags(changed, libvirt.VIR_DOMAIN_AFFECT_LIVE)
