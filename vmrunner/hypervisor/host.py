"""The libvirt host: the Hypervisor seam over a real libvirtd."""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import libvirt

from vmrunner.errors import HypervisorError, NameClash
from vmrunner.hypervisor import File, Output, Residue
from vmrunner.hypervisor.connection import asking, connect, has_kvm, translate
from vmrunner.hypervisor.domain import domain_xml, parse_metadata
from vmrunner.hypervisor.network import ensure_network, network_name
from vmrunner.hypervisor.storage import Storage
from vmrunner.image.store import Golden
from vmrunner.model import Machine, MachineId, Metadata, Shape, parse_events

_GONE_WITHIN = 15.0  # seconds; a destroyed QEMU is reaped within two even by a slow PID 1


class LibvirtHost:
    """One manager's machines on one libvirt host."""

    def __init__(
        self, *, uri: str, manager: str, storage_path: Path, subnet: IPv4Network, accelerator: str = "auto", warn: Callable[[str], None]
    ) -> None:
        self.manager = manager
        self._connection = connect(uri)
        self._storage = Storage(self._connection, manager, storage_path)
        self._subnet = subnet
        self._kvm = accelerator != "software" and has_kvm(self._connection, uri)
        if accelerator == "kvm" and not self._kvm:
            raise HypervisorError("This host has no KVM.", 'Enable virtualization in its firmware, or set libvirt.accelerator to "auto".')
        if accelerator == "auto" and not self._kvm:
            warn("No KVM on this host: machines run under software emulation, 10 to 50 times slower.")

    def prepare(self, golden: Golden) -> None:
        """See Hypervisor."""
        self._storage.ensure()
        ensure_network(self._connection, self.manager, self._subnet)
        self._storage.publish(golden)

    def _domains(self) -> dict[MachineId, Any]:
        with asking("listing domains"):
            domains = self._connection.listAllDomains(0)
            return {machine: domain for domain in domains if (machine := MachineId.of(self.manager, domain.name()))}

    def machines(self) -> list[Machine]:
        """See Hypervisor."""
        domains = self._domains()
        files = self._storage.machine_files()
        found = []
        for machine in sorted(domains.keys() | files.keys(), key=str):
            metadata = None
            if machine in domains:
                metadata = self._metadata(domains[machine], machine)
                if metadata is None:
                    continue  # Its name looks like ours, but we did not make it: never touched.
            events = parse_events(self._storage.read(f"{machine}.{File.EVENTS}", 65536)) if machine in files else ()
            found.append(Machine(machine, machine in domains and self.alive(machine), metadata, events, tuple(files.get(machine, ()))))
        return found

    def _metadata(self, domain: Any, machine: MachineId) -> Metadata | None:
        try:
            return parse_metadata(domain.XMLDesc(0), machine)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # it powered off since it was listed
                return Metadata(machine, "", "", 0.0)
            raise translate(error, f"describing {machine}") from error

    def create_overlay(self, machine: MachineId, golden: Golden, disk_gib: int) -> None:
        """See Hypervisor."""
        self._storage.create_overlay(f"{machine}.{File.OVERLAY}", golden, disk_gib)

    def put(self, machine: MachineId, file: File, content: bytes) -> None:
        """See Hypervisor."""
        self._storage.write(f"{machine}.{file}", content)

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        """See Hypervisor."""
        return self._storage.read(f"{machine}.{file}", tail)

    def start(self, golden: Golden, shape: Shape, metadata: Metadata, outputs: tuple[Output, ...] = ()) -> None:
        """See Hypervisor."""
        machine = metadata.machine
        if self.alive(machine):
            raise NameClash(
                f"A domain named {machine} exists already.", "Look at it with virsh; vmrunner leaves alone what it did not make."
            )
        for log in (File.EVENTS, File.CONSOLE):
            self.put(machine, log, b"")  # made by us first, so that the storage pool knows them and a crash leaves them explained
        files = {str(file.name).lower(): self._storage.path(f"{machine}.{file}") for file in File}
        files["golden"] = self._storage.image_path(golden, "disk.qcow2")
        boot = None
        if golden.manifest.kernel_arguments:
            parts = self._storage.image_path(golden, "vmlinuz"), self._storage.image_path(golden, "initrd")
            boot = (*parts, golden.manifest.kernel_arguments)
        described = domain_xml(
            kvm=self._kvm, shape=shape, metadata=metadata, network=network_name(self.manager), files=files, boot=boot, outputs=outputs
        )
        with asking(f"starting {machine}"):
            self._connection.createXML(described, libvirt.VIR_DOMAIN_START_VALIDATE)

    def stream(self, machine: MachineId, output: Output, write: Callable[[bytes], None]) -> None:
        """See Hypervisor."""
        with asking(f"reading the output of {machine}"):
            stream = self._connection.newStream(0)
            domain = self._connection.lookupByName(str(machine))
            domain.openChannel(f"org.vmrunner.{output}", stream, libvirt.VIR_DOMAIN_CHANNEL_FORCE)
            try:
                while chunk := stream.recv(65536):
                    write(chunk)
                stream.finish()
            except libvirt.libvirtError:
                stream.abort()  # QEMU is gone, and with it the port: that is how every stream of ours ends

    def alive(self, machine: MachineId) -> bool:
        """See Hypervisor."""
        try:
            self._connection.lookupByName(str(machine))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return False
            raise translate(error, f"looking for {machine}") from error
        return True

    def delete(self, machine: MachineId, file: File) -> None:
        """See Hypervisor."""
        self._storage.delete(f"{machine}.{file}")

    def destroy(self, machine: MachineId) -> None:
        """See Hypervisor."""
        try:
            domain = self._connection.lookupByName(str(machine))
            if self._metadata(domain, machine) is not None:
                domain.destroy()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise translate(error, f"destroying {machine}") from error
        deadline = time.monotonic() + _GONE_WITHIN
        while self.alive(machine):
            if time.monotonic() > deadline:
                raise HypervisorError(f"{machine} does not go away.", f"`virsh destroy {machine}` may say why; the next pass tries again.")
            time.sleep(0.05)
        for file in File:
            self.delete(machine, file)
        for stray in self._storage.machine_files().get(machine, []):
            self._storage.delete(stray)

    def residue(self) -> Residue:
        """See Hypervisor."""
        files = self._storage.machine_files()
        return Residue(tuple(sorted(map(str, self._domains()))), tuple(sorted(name for names in files.values() for name in names)))
