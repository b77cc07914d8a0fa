"""The libvirt host: the Hypervisor seam over a real libvirtd."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network, IPv6Network
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
from vmrunner.hypervisor.connection import asking, connect, dotted, has_kvm, translate
from vmrunner.hypervisor.domain import NAMESPACE, domain_xml, metadata_xml, parse_metadata
from vmrunner.hypervisor.network import ensure_network, network_drift, remove_network
from vmrunner.hypervisor.seam import SEED_SIZE, File, Output, Residue, Snapshot, Volume
from vmrunner.hypervisor.snapshot import Snapshots
from vmrunner.hypervisor.storage import Storage, image_volume
from vmrunner.log import Say
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import (
    NO_LIMITS,
    Capacity,
    Limits,
    Machine,
    MachineId,
    Metadata,
    Shape,
    parse_events,
)
from vmrunner.network.firewall import Firewall
from vmrunner.network.names import network_name
from vmrunner.waiting import Deadline

_GONE_WITHIN = 15.0  # seconds; a destroyed QEMU is reaped within two even by a slow PID 1
_TOLD_WITHIN = 1.0  # seconds; events come within a few milliseconds
_GONE = {libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID}
"""What libvirt says of a domain that is on its way out."""
_UNBOUND = {
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_NO_SUPPORT,
}
"""What libvirt says where the host has no cgroups for it; `doctor` says so, too."""
_ENDS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "its QEMU process died",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "its QEMU process died",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "its domain was destroyed from outside vmrunner",
}
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
        self._uri, self._storage_path, self._subnet, self._firewall = (
            uri,
            storage_path,
            subnet,
            firewall,
        )
        self._ipv6 = ipv6
        self._wake: Callable[[], None] | None = None
        self._progress: Callable[[], object] = lambda: None
        # How machines ended, as libvirt's events told; empty: by themselves, or unknown.
        self._ends: dict[MachineId, str] = {}
        self._open()
        self.cgroups = Cgroups.of_host(uri)
        self.kvm = accelerator != "software" and has_kvm(self._connection, uri)
        if accelerator == "kvm" and not self.kvm:
            raise HypervisorError(
                "This host has no KVM.",
                'Enable virtualization in its firmware, or set libvirt.accelerator to "auto".',
            )
        if accelerator == "auto" and not self.kvm:
            warn(
                "No KVM on this host: machines run under software emulation, 10 to 50 times slower."
            )

    def _open(self) -> None:
        self._connection = connect(self._uri)
        self._storage = Storage(self._connection, self.manager, self._storage_path)
        self._storage.progress = self._progress
        self._kept: Snapshots | None = None
        if self._wake:
            # Without keepalive a host that vanished from the network would be waited for by the
            # hour.
            self._connection.setKeepAlive(5, 3)
            self._connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
            )

    def watch(
        self, wake: Callable[[], None], progress: Callable[[], object] = lambda: None
    ) -> None:
        """See Hypervisor. Needs `events.start()` before the connection."""
        self._wake, self._progress = wake, progress
        self._open()

    def close(self) -> None:
        """See Hypervisor."""
        self._wake = None
        with suppress(libvirt.libvirtError):
            self._connection.close()

    def reopen(self) -> bool:
        """Connect again if the connection is lost (libvirtd was restarted); whether it was.

        Raises HypervisorError while it stays so.
        """
        lost = not self._is_connected()
        if lost:
            self._open()
        return lost

    def _is_connected(self) -> bool:
        try:
            return bool(self._connection.isAlive())
        except libvirt.libvirtError:
            return False

    def _lifecycle(
        self, _connection: Any, domain: Any, event: int, detail: int, _data: object
    ) -> None:
        machine = MachineId.of(self.manager, domain.name())
        if machine is None:
            return
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._ends[machine] = _ENDS.get(detail, "")
        if self._wake:
            self._wake()

    @property
    def _snapshots(self) -> Snapshots:
        if self._kept is None:
            self._kept = Snapshots(self._connection, self._storage, self.kvm)
        return self._kept

    def versions(self) -> dict[str, str]:
        """Of libvirt and of QEMU."""
        with asking("asking for the versions"):
            return {
                "libvirt": dotted(self._connection.getLibVersion()),
                "QEMU": dotted(self._connection.getVersion()),
            }

    @property
    def network(self) -> str:
        """The name of our libvirt network."""
        return network_name(self.manager)

    def network_drift(self) -> list[str] | None:
        """How our network differs from the one that we would make, in words; None where there is
        none yet.
        """
        return network_drift(
            self._connection, self.manager, self._subnet, self._dns_options, self._ipv6
        )

    def rules_drift(self) -> str | None:
        """How the nftables rules differ from the ones that we would make, in words; None where we
        make none.
        """
        return self._firewall.drift() if self._firewall else None

    @property
    def _dns_options(self) -> tuple[str, ...]:
        return self._firewall.dns_options if self._firewall else ()

    def prepare(self, golden: Golden) -> None:
        """See Hypervisor."""
        self._storage.ensure()
        ensure_network(
            self._connection,
            self.manager,
            self._subnet,
            self._dns_options,
            self._ipv6,
            idle=not self._domains(),
        )
        if self._firewall:
            self._firewall.ensure()
        self._storage.publish(golden)

    def guard(self) -> None:
        """See Hypervisor."""
        if self._firewall is None:
            return
        domains = self._domains()
        try:
            admitted = self._firewall.ensure()
        except NotPermitted:
            return  # `down` by hand, say; a machine can't be started like that
        for machine in admitted - domains.keys():
            self._firewall.forget(machine)
        for machine in domains.keys() - admitted:
            if (described := self._described(domains[machine], machine)) and (
                metadata := parse_metadata(described, machine)
            ):
                self._admit(metadata)

    def _admit(self, metadata: Metadata) -> None:
        if self._firewall and metadata.network and metadata.address:
            self._firewall.admit(
                metadata.machine, IPv4Interface(metadata.address).ip, metadata.network
            )

    def _domains(self) -> dict[MachineId, Any]:
        with asking("listing domains"):
            domains = self._connection.listAllDomains(0)
            return {
                machine: domain
                for domain in domains
                if (machine := MachineId.of(self.manager, domain.name()))
            }

    def machines(self) -> list[Machine]:
        """See Hypervisor."""
        domains = self._domains()
        files = self._storage.machine_files()
        for gone in [
            machine
            for machine in list(self._ends)
            if machine not in domains and machine not in files
        ]:
            self._ends.pop(gone, None)
        dropped = self._firewall.dropped() if self._firewall and domains else {}
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
                trouble = trouble or self._end_of(machine, told_by)
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

    def _end_of(self, machine: MachineId, told_by: Deadline) -> str:
        """How a machine that is gone has ended.

        libvirt forgets it a moment before it tells: that is waited for, once.
        """
        while self._wake and machine not in self._ends and not told_by.is_over:
            told_by.pause(0.005)
        return self._ends.setdefault(machine, "")

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
            if not self._is_connected():
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
            kvm=self.kvm,
            shape=shape,
            metadata=metadata,
            network=self.network,
            files=files,
            boot=boot,
            backing=tuple(self._storage.path(name) for name in backing),
            qemu_arguments=qemu_arguments,
            limits=limits,
        )
        with asking(f"starting {machine}"):
            domain = self._connection.createXML(
                described, libvirt.VIR_DOMAIN_START_VALIDATE | flags
            )
        # Until now its network was closed. Not before: what lets a machine through is swept where
        # there is no domain.
        try:
            self._admit(metadata)
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
            if most := self.cgroups.hard_limit_mib(shape.memory_mib, kvm=self.kvm):
                domain.setMemoryParameters(
                    {"hard_limit": most << 10}, libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
            if shares := self.cgroups.cpu_shares(limits.cpu_weight):
                domain.setSchedulerParametersFlags(
                    {"cpu_shares": shares}, libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _UNBOUND | _GONE:
                raise translate(error, f"bounding {domain.name()}") from error

    def bind(self, metadata: Metadata, seed: bytes) -> None:
        """See Hypervisor."""
        machine = metadata.machine
        with asking(f"binding {machine}"):
            domain = self._connection.lookupByName(str(machine))
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
                if error.get_error_code() not in _GONE:
                    raise

    def _write(self, domain: Any, metadata: Metadata) -> None:
        kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        domain.setMetadata(kind, metadata_xml(metadata), "vmrunner", NAMESPACE, flags)

    def capacity(self) -> Capacity:
        """See Hypervisor."""
        with asking("asking what the host has"):
            _, memory_mib, cores, *_ = self._connection.getInfo()
            # What it says of memory is the first NUMA cell's as it was at boot: too little where
            # memory was plugged in later.
            with suppress(libvirt.libvirtError):  # libvirt's mock has none of it
                memory_mib = (
                    self._connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)[
                        "total"
                    ]
                    >> 10
                )
            used_kib = used_vcpus = 0
            for domain in self._connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                try:
                    _, most_kib, _, vcpus, _ = domain.info()
                except libvirt.libvirtError as error:
                    if error.get_error_code() not in _GONE:
                        raise
                    continue
                used_kib, used_vcpus = used_kib + most_kib, used_vcpus + vcpus
        return Capacity(memory_mib, cores, used_kib // 1024, used_vcpus, self._storage.free_mib())

    def stream(
        self, machine: MachineId, output: Output, write: Callable[[bytes], bool | None]
    ) -> None:
        """See Hypervisor."""
        connection = connect(self._uri)  # of its own: see THREADS_MAY_SHARE
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
            self._connection.lookupByName(str(machine))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise translate(error, f"looking for {machine}") from error
        return True

    def _own(self, machine: MachineId) -> Any | None:
        """The machine's domain, or None where there is none of this name that we made."""
        try:
            domain = self._connection.lookupByName(str(machine))
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
                if error.get_error_code() not in _GONE:
                    raise translate(error, f"destroying {machine}") from error
                deadline.pause(0.05)  # it is on its way out
        self._ends.pop(machine, None)
        if self._firewall:
            with suppress(NotPermitted):  # the next pass that may sweeps it
                self._firewall.forget(machine)
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
        removed += remove_network(self._connection, self.manager)
        return removed + (self._firewall.remove() if self._firewall else [])


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


def _is_denied(error: HypervisorError) -> bool:
    return isinstance(error, Denied) or (isinstance(error, SnapshotError) and error.denied)
