"""One manager's domains at libvirt: found by name and metadata, made, limited."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import libvirt

from vmrunner.config import is_local
from vmrunner.errors import Denied, HypervisorError, NameClash
from vmrunner.hypervisor import way
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.hypervisor.connection import GONE, Link, asking, patience, translate
from vmrunner.hypervisor.domain import NAMESPACE, domain_xml, metadata_xml, parse_metadata
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.seam import File
from vmrunner.hypervisor.storage import Storage
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import NO_LIMITS, Limits, MachineId, Metadata, Shape

_UNBOUND = {
    libvirt.VIR_ERR_OPERATION_INVALID,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_NO_SUPPORT,
}
"""What libvirt says where the host has no cgroups for it; `doctor` says so, too."""
_SVM_MAY_GO = 8_000_000
"""The QEMU from which on software emulation may lack SVM. In 7.2 (Debian 12) a processor loses its
extended CPUID leaves with it, among them the sizes of addresses, and Linux 6.1.192 copies wrong
bytes: findings/qemu-max-without-svm-has-fewer-cpuid-leaves.sh. 10.0 and 11.1 are right.
"""


class Domains:
    """What machines and snapshots need of libvirt's domains."""

    def __init__(
        self,
        link: Link,
        manager: str,
        storage: Storage,
        network: Network,
        cgroups: Cgroups,
        *,
        kvm: bool,
    ) -> None:
        self._link, self._manager, self._storage, self._network = link, manager, storage, network
        self._cgroups, self._kvm = cgroups, kvm

    @property
    def mtu(self) -> int | None:
        """The biggest packet of their network, in bytes; None: the usual one."""
        return self._network.mtu

    def all(self) -> dict[MachineId, Any]:
        """Those whose names look like ours."""
        with asking("listing domains"):
            # Ours are transient: what is defined and does not run is somebody's copy.
            domains = self._link.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            return {
                machine: domain
                for domain in domains
                if (machine := MachineId.of(self._manager, domain.name()))
            }

    def _named(self, machine: MachineId) -> Any | None:
        """The domain of this name that runs, whoever made it."""
        try:
            domain = self._link.connection.lookupByName(str(machine))
            return domain if domain.isActive() else None
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise translate(error, f"looking for {machine}") from error

    def exists(self, machine: MachineId) -> bool:
        """Whether a domain of this name runs."""
        return self._named(machine) is not None

    def own(self, machine: MachineId) -> Any | None:
        """The machine's domain, or None where there is none of this name that we made."""
        domain = self._named(machine)
        if domain is None:
            return None
        described = self.described(domain, machine)
        return domain if not described or parse_metadata(described, machine) is not None else None

    def described(self, domain: Any, machine: MachineId) -> str:
        """The domain's XML; empty if it powered off since it was listed."""
        try:
            return str(domain.XMLDesc(0))
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
                return ""
            raise translate(error, f"describing {machine}") from error

    def create(
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
        if self.exists(machine):
            raise NameClash(
                f"A domain named {machine} exists already.",
                "Look at it with virsh; vmrunner leaves alone what it did not make.",
            )
        for log in (File.EVENTS, File.CONSOLE, File.RUNNER_LOG):
            # Made by us first, so that the storage pool knows them and a crash leaves them
            # explained.
            self._storage.write(f"{machine}.{log}", b"")
        files = {
            str(file.name).lower(): self._storage.path(f"{machine}.{file}")
            for file in (File.SEED, File.EVENTS, File.CONSOLE, File.RUNNER_LOG)
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
            kvm=self._kvm,
            shape=shape,
            metadata=metadata,
            network=self._network.name,
            mtu=self._network.mtu,
            files=files,
            boot=boot,
            backing=tuple(self._storage.path(name) for name in backing),
            tools=self._storage.image_path(golden.tools, DISK) if golden.tools else "",
            qemu_arguments=qemu_arguments,
            limits=limits,
            hides_svm=self._kvm or self._link.connection.getVersion() >= _SVM_MAY_GO,
        )
        try:
            with patience.during(f"starting {machine}"):
                domain = self._link.connection.createXML(
                    described, libvirt.VIR_DOMAIN_START_VALIDATE | flags
                )
        except libvirt.libvirtError as error:
            raise self._refused(error, machine) from error
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

    def _refused(self, error: Any, machine: MachineId) -> HypervisorError:
        """What it means that libvirt did not start a machine."""
        found = way.refused(str(error)) if is_local(self._link.uri) else None
        if found and (closed := way.barrier(*found)):
            return Denied(*way.closed(closed, found[1], found[0].parent))
        return translate(error, f"starting {machine}")

    def _limit(self, domain: Any, shape: Shape, limits: Limits) -> None:
        """Have the host's kernel see to its memory and its share of the processors.

        Not by the domain's XML: with a limit in there libvirt permits QEMU to lock all that memory,
        and needs to be permitted that itself.
        """
        try:
            if most := self._cgroups.hard_limit_mib(shape.memory_mib, kvm=self._kvm):
                domain.setMemoryParameters(
                    {"hard_limit": most << 10}, libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
            if shares := self._cgroups.cpu_shares(limits.cpu_weight):
                domain.setSchedulerParametersFlags(
                    {"cpu_shares": shares}, libvirt.VIR_DOMAIN_AFFECT_LIVE
                )
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _UNBOUND | GONE:
                raise translate(error, f"bounding {domain.name()}") from error

    def write(self, domain: Any, metadata: Metadata) -> None:
        """Write its metadata into a live domain."""
        kind, flags = libvirt.VIR_DOMAIN_METADATA_ELEMENT, libvirt.VIR_DOMAIN_AFFECT_LIVE
        domain.setMetadata(kind, metadata_xml(metadata), "vmrunner", NAMESPACE, flags)
