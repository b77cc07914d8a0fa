"""The libvirt host: the Hypervisor seam over a real libvirtd."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import libvirt

from vmrunner.config import HostConfig, is_local
from vmrunner.errors import (
    Denied,
    DiskFull,
    HypervisorError,
    NameClash,
    NotPermitted,
    SnapshotError,
)
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.hypervisor.connection import GONE, Link, asking, connect, has_kvm, translate
from vmrunner.hypervisor.domain import NAMESPACE, domain_xml, metadata_xml, parse_metadata
from vmrunner.hypervisor.events import Events
from vmrunner.hypervisor.facts import LibvirtFacts
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.seam import SEED_SIZE, File, Output, Residue, Snapshot, Volume
from vmrunner.hypervisor.snapshot import Snapshots
from vmrunner.hypervisor.storage import Storage, image_volume
from vmrunner.log import Say
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
from vmrunner.network.firewall import Firewall
from vmrunner.waiting import Deadline

_GONE_WITHIN = 15.0  # seconds; a destroyed QEMU is reaped within two even by a slow PID 1
_TOLD_WITHIN = 1.0  # seconds; events come within a few milliseconds
_UNBOUND = {
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_NO_SUPPORT,
}
"""What libvirt says where the host has no cgroups for it; `doctor` says so, too."""
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


class LibvirtHost:
    """One manager's machines on one libvirt host."""

    def __init__(
        self,
        *,
        uri: str,
        manager: str,
        storage_path: Path,
        subnet: IPv4Network,
        ipv6: IPv6Network | None = None,
        accelerator: str = "auto",
        firewall: Firewall | None = None,
        warn: Callable[[str], None],
    ) -> None:
        self.manager = manager
        self._link = Link(uri)
        kvm = _uses_kvm(self._link, accelerator, warn)
        self._storage = Storage(self._link, manager, storage_path)
        self._network = Network(self._link, manager, subnet, ipv6, firewall)
        self._events = Events(manager)
        self._snapshots = Snapshots(self._link, self._storage, kvm)
        self.facts = LibvirtFacts(
            self._link, self._storage, self._network, Cgroups.of_host(uri), kvm=kvm
        )

    def watch(
        self, wake: Callable[[], None], progress: Callable[[], object] = lambda: None
    ) -> None:
        """See Hypervisor. Needs `events.start()` before the connection."""
        self._events.wake, self._storage.progress = wake, progress
        self._open()

    def _open(self) -> None:
        self._link.open()
        self._snapshots.forget()
        self._events.listen(self._link.connection)

    def close(self) -> None:
        """See Hypervisor."""
        self._events.wake = None
        self._link.close()

    def reopen(self) -> bool:
        """Connect again if the connection is lost (libvirtd was restarted); whether it was.

        Raises HypervisorError while it stays so.
        """
        lost = not self._link.is_alive
        if lost:
            self._open()
        return lost

    def prepare(self, golden: Golden) -> None:
        """See Hypervisor."""
        self._storage.ensure()
        self._network.ensure(idle=not self._domains())
        self._network.ensure_rules()
        self._storage.publish(golden)

    def guard(self) -> None:
        """See Hypervisor."""
        if not self._network.is_filtered:
            return
        domains = self._domains()
        try:
            admitted = self._network.ensure_rules()
        except NotPermitted:
            return  # `down` by hand, say; a machine can't be started like that
        for machine in admitted - domains.keys():
            self._network.forget(machine)
        for machine in domains.keys() - admitted:
            if (described := self._described(domains[machine], machine)) and (
                metadata := parse_metadata(described, machine)
            ):
                self._network.admit(metadata)

    def _domains(self) -> dict[MachineId, Any]:
        with asking("listing domains"):
            domains = self._link.connection.listAllDomains(0)
            return {
                machine: domain
                for domain in domains
                if (machine := MachineId.of(self.manager, domain.name()))
            }

    def machines(self) -> list[Machine]:
        """See Hypervisor."""
        domains = self._domains()
        files = self._storage.machine_files()
        self._events.keep(domains.keys() | files.keys())
        dropped = self._network.dropped() if domains else {}
        told_by: Deadline | None = None
        found = []
        for machine in sorted(domains.keys() | files.keys(), key=str):
            metadata, trouble, is_paused = None, "", False
            if machine in domains:
                described = self._described(domains[machine], machine)
                # One that powered off since it was listed can't be described any more.
                metadata = (
                    parse_metadata(described, machine)
                    if described
                    else Metadata(machine, "", "", 0.0)
                )
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

    def _described(self, domain: Any, machine: MachineId) -> str:
        """The domain's XML; empty if it powered off since it was listed."""
        try:
            return str(domain.XMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return ""
            raise translate(error, f"describing {machine}") from error

    def create_overlay(
        self, machine: MachineId, golden: Golden, disk_gib: int, snapshot: Snapshot | None = None
    ) -> None:
        """See Hypervisor."""
        backing = self._snapshots.disk(snapshot.key) if snapshot else image_volume(golden, DISK)
        self._storage.create_overlay(f"{machine}.{File.OVERLAY}", backing, disk_gib)

    def put(self, machine: MachineId, file: File, content: bytes) -> None:
        """See Hypervisor."""
        self._storage.write(f"{machine}.{file}", content)

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        """See Hypervisor."""
        return self._storage.read(f"{machine}.{file}", tail)

    def start(
        self,
        golden: Golden,
        shape: Shape,
        metadata: Metadata,
        snapshot: Snapshot | None = None,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """See Hypervisor."""
        machine = metadata.machine
        if snapshot is None:
            self._create(golden, shape, metadata, (image_volume(golden, DISK),), limits=limits)
            return
        self._storage.create_blank(f"{machine}.{File.SEED}", SEED_SIZE)
        backing = (self._snapshots.disk(snapshot.key), image_volume(golden, DISK))
        try:
            arguments = self._snapshots.clone_arguments(machine, snapshot)
            domain = self._create(
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
            raise SnapshotError(
                f"The snapshot {snapshot.key} can't be used: {error.sentence}",
                error.hint,
                denied=_is_denied(error),
            ) from error

    def _create(
        self,
        golden: Golden,
        shape: Shape,
        metadata: Metadata,
        backing: tuple[str, ...],
        qemu_arguments: tuple[str, ...] = (),
        flags: int = 0,
        overlay: str = "",
        limits: Limits = NO_LIMITS,
    ) -> Any:
        """Create the domain. `backing` and `overlay` (default: the machine's own) are volumes."""
        machine = metadata.machine
        if self.alive(machine):
            raise NameClash(
                f"A domain named {machine} exists already.",
                "Look at it with virsh; vmrunner leaves alone what it did not make.",
            )
        for log in (File.EVENTS, File.CONSOLE):
            # Made by us first, so that the storage pool knows them and a crash leaves them
            # explained.
            self.put(machine, log, b"")
        files = {
            str(file.name).lower(): self._storage.path(f"{machine}.{file}")
            for file in (File.SEED, File.EVENTS, File.CONSOLE)
        }
        files["overlay"] = self._storage.path(overlay or f"{machine}.{File.OVERLAY}")
        boot = None
        if golden.manifest.kernel_arguments:
            parts = (
                self._storage.image_path(golden, "vmlinuz"),
                self._storage.image_path(golden, "initrd"),
            )
            boot = (*parts, golden.manifest.kernel_arguments)
        described = domain_xml(
            kvm=self.facts.kvm,
            shape=shape,
            metadata=metadata,
            network=self._network.name,
            files=files,
            boot=boot,
            backing=tuple(self._storage.path(name) for name in backing),
            qemu_arguments=qemu_arguments,
            limits=limits,
        )
        with asking(f"starting {machine}"):
            domain = self._link.connection.createXML(
                described, libvirt.VIR_DOMAIN_START_VALIDATE | flags
            )
        # Until now its network was closed. Not before: what lets a machine through is swept where
        # there is no domain.
        try:
            self._network.admit(metadata)
            self._limit(domain, shape, limits)
        except BaseException:
            with suppress(libvirt.libvirtError):
                domain.destroy()
            raise
        return domain

    def _limit(self, domain: Any, shape: Shape, limits: Limits) -> None:
        """Have the host's kernel see to its memory and its share of the processors.

        Not by the domain's XML: with a limit in there libvirt permits QEMU to lock all that memory,
        and needs to be permitted that itself.
        """
        try:
            if most := self.facts.cgroups.hard_limit_mib(shape.memory_mib, kvm=self.facts.kvm):
                domain.setMemoryParameters(
                    {"hard_limit": most << 10}, libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
            if shares := self.facts.cgroups.cpu_shares(limits.cpu_weight):
                domain.setSchedulerParametersFlags(
                    {"cpu_shares": shares}, libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _UNBOUND | GONE:
                raise translate(error, f"bounding {domain.name()}") from error

    def bind(self, metadata: Metadata, seed: bytes) -> None:
        """See Hypervisor."""
        machine = metadata.machine
        with asking(f"binding {machine}"):
            domain = self._link.connection.lookupByName(str(machine))
            if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
                # So that its guest never sees half a seed, and a pass sees where we were killed.
                domain.suspend()
            self._write(domain, metadata)
        self._storage.overwrite(f"{machine}.{File.SEED}", seed)
        with asking(f"binding {machine}"):
            domain.resume()

    def pause(self, machine: MachineId) -> None:
        """See Hypervisor."""
        self._unless_gone(machine, "pausing", lambda domain: domain.suspend())

    def snapshot(self, golden: Golden, shape: Shape) -> Snapshot | None:
        """See Hypervisor."""
        return self._snapshots.find(self._snapshots.key(golden, shape))

    def snapshot_key(self, golden: Golden, shape: Shape) -> str:
        """See Hypervisor."""
        return self._snapshots.key(golden, shape)

    def snapshots(self) -> list[Snapshot]:
        """See Hypervisor."""
        return self._snapshots.all()

    def make_snapshot(
        self,
        golden: Golden,
        shape: Shape,
        machine: MachineId,
        seed: bytes,
        timeout: float,
        say: Say,
    ) -> Snapshot:
        """See Hypervisor."""
        self.put(machine, File.SEED, seed)
        metadata = Metadata(machine, "", golden.id, time.time())

        def start(arguments: tuple[str, ...], disk: str) -> Any:
            return self._create(
                golden, shape, metadata, (image_volume(golden, DISK),), arguments, overlay=disk
            )

        try:
            return self._snapshots.make(golden, shape, machine, start, timeout, say)
        except DiskFull:
            raise
        except HypervisorError as error:
            raise SnapshotError(
                f"No snapshot could be made: {error.sentence}",
                error.hint,
                denied=_is_denied(error),
            ) from error

    def verify_snapshot(self, snapshot: Snapshot) -> None:
        """See Hypervisor."""
        self._snapshots.verify(snapshot)

    def drop_snapshot(self, key: str) -> None:
        """See Hypervisor."""
        self._snapshots.drop(key)

    def volumes(self) -> list[Volume]:
        """See Hypervisor."""
        return self._storage.volumes()

    def drop_volumes(self, names: Sequence[str]) -> None:
        """See Hypervisor."""
        self._storage.drop_unused(names)

    def note(self, metadata: Metadata) -> None:
        """See Hypervisor."""
        self._unless_gone(
            metadata.machine, "describing", lambda domain: self._write(domain, metadata)
        )

    def _unless_gone(self, machine: MachineId, doing: str, act: Callable[[Any], object]) -> None:
        """Act on its domain, if there is one; that it goes meanwhile is fine."""
        with asking(f"{doing} {machine}"):
            domain = self._own(machine)
            if domain is None:
                return
            try:
                act(domain)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in GONE:
                    raise

    def _write(self, domain: Any, metadata: Metadata) -> None:
        kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        domain.setMetadata(kind, metadata_xml(metadata), "vmrunner", NAMESPACE, flags)

    def stream(
        self, machine: MachineId, output: Output, write: Callable[[bytes], bool | None]
    ) -> None:
        """See Hypervisor."""
        connection = connect(self._link.uri)  # of its own: see THREADS_MAY_SHARE
        try:
            with asking(f"reading the output of {machine}"):
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

    def alive(self, machine: MachineId) -> bool:
        """See Hypervisor."""
        try:
            self._link.connection.lookupByName(str(machine))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise translate(error, f"looking for {machine}") from error
        return True

    def _own(self, machine: MachineId) -> Any | None:
        """The machine's domain, or None where there is none of this name that we made."""
        try:
            domain = self._link.connection.lookupByName(str(machine))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translate(error, f"looking for {machine}") from error
        described = self._described(domain, machine)
        return domain if not described or parse_metadata(described, machine) is not None else None

    def delete(self, machine: MachineId, file: File) -> None:
        """See Hypervisor."""
        self._storage.delete(f"{machine}.{file}")

    def destroy(self, machine: MachineId) -> None:
        """See Hypervisor."""
        deadline = Deadline(_GONE_WITHIN)
        while (domain := self._own(machine)) is not None:
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
        for file in File:
            self.delete(machine, file)
        for stray in self._storage.machine_files().get(machine, []):
            self._storage.delete(stray)

    def residue(self) -> Residue:
        """See Hypervisor."""
        files = self._storage.machine_files()
        domains = sorted(
            str(machine) for machine in self._domains() if self._own(machine) is not None
        )
        return Residue(
            tuple(domains), tuple(sorted(name for names in files.values() for name in names))
        )

    def purge(self) -> list[str]:
        """See Hypervisor."""
        removed = []
        for machine in self.machines():
            self.destroy(machine.id)
            removed.append(f"machine {machine.id}")
        removed += self._storage.remove()
        return removed + self._network.remove()


def open_host(settings: HostConfig, warn: Callable[[str], None]) -> LibvirtHost:
    """The libvirt host that the configuration describes. Raises HypervisorError."""
    section, firewall = settings.libvirt, None
    if settings.network.filter:
        if not is_local(section.uri):
            raise HypervisorError(
                f"The network of machines at {section.uri} can't be filtered from here: nftables "
                "is that host's own.",
                "Run vmrunner there, or set `filter = false` in the table [network].",
            )
        firewall = Firewall(
            settings.manager,
            section.subnet,
            settings.policies,
            settings.network.bounds,
            settings.forge_addresses(),
            settings.runtime_dir,
            settings.network.ipv6,
        )
    return LibvirtHost(
        uri=section.uri,
        manager=settings.manager,
        storage_path=section.storage_path,
        subnet=section.subnet,
        ipv6=settings.network.ipv6,
        accelerator=section.accelerator,
        firewall=firewall,
        warn=warn,
    )


def _uses_kvm(link: Link, accelerator: str, warn: Callable[[str], None]) -> bool:
    """Whether machines run on the processor itself. Raises HypervisorError where they shall and
    can't.
    """
    kvm = accelerator != "software" and has_kvm(link.connection, link.uri)
    if accelerator == "kvm" and not kvm:
        raise HypervisorError(
            "This host has no KVM.",
            'Enable virtualization in its firmware, or set libvirt.accelerator to "auto".',
        )
    if accelerator == "auto" and not kvm:
        warn("No KVM on this host: machines run under software emulation, 10 to 50 times slower.")
    return kvm


def _is_denied(error: HypervisorError) -> bool:
    return isinstance(error, Denied) or (isinstance(error, SnapshotError) and error.denied)
