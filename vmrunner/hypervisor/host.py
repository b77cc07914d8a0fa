"""The libvirt host: the Hypervisor seam over a real libvirtd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

from vmrunner.config import HostConfig, is_local
from vmrunner.errors import HypervisorError, NotPermitted
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.hypervisor.connection import Link, has_kvm
from vmrunner.hypervisor.domain import parse_metadata
from vmrunner.hypervisor.domains import Domains
from vmrunner.hypervisor.events import Events
from vmrunner.hypervisor.facts import LibvirtFacts
from vmrunner.hypervisor.images import LibvirtImages
from vmrunner.hypervisor.machines import LibvirtMachines
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.snapshot import LibvirtSnapshots
from vmrunner.hypervisor.storage import Storage
from vmrunner.model.image import Golden
from vmrunner.network.firewall import Firewall


class LibvirtHost:
    """One manager's part of one libvirt host. Its parts share one connection, storage pool and
    network.
    """

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
        mtu: int | None = None,
        warn: Callable[[str], None],
    ) -> None:
        self.manager = manager
        self._link = Link(uri)
        kvm = _uses_kvm(self._link, accelerator, warn)
        self._storage = Storage(self._link, manager, storage_path)
        self._network = Network(self._link, manager, subnet, ipv6, firewall, mtu)
        self._events = Events(manager)
        cgroups = Cgroups.of_host(uri)
        self._domains = Domains(self._link, manager, self._storage, self._network, cgroups, kvm=kvm)
        self.snapshots = LibvirtSnapshots(self._link, self._storage, self._domains, kvm=kvm)
        self.machines = LibvirtMachines(
            self._link, self._storage, self._network, self._domains, self.snapshots, self._events
        )
        self.images = LibvirtImages(self._link, self._storage)
        self.facts = LibvirtFacts(self._link, self._storage, self._network, cgroups, kvm=kvm)

    def watch(
        self, wake: Callable[[], None], progress: Callable[[], object] = lambda: None
    ) -> None:
        """Call `wake` at each start and end of a machine, from the thread of libvirt's events.

        Needs `events.start()` before the connection.
        """
        self._events.wake, self._storage.progress = wake, progress
        self._open()

    def _open(self) -> None:
        self._link.open()
        self.snapshots.forget()
        self._events.listen(self._link.connection)

    def close(self) -> None:
        """Close the connection, and wake nobody any more."""
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
        """Make the storage pool, the network and its rules, and bring this image there."""
        self._storage.ensure()
        self._network.ensure(idle=not self._domains.all())
        self._network.ensure_rules()
        self.images.publish(golden)

    def guard(self) -> None:
        """Bring the rules to what they should be, and have them let through our machines alone."""
        if not self._network.is_filtered:
            return
        domains = self._domains.all()
        try:
            admitted = self._network.ensure_rules()
        except NotPermitted:
            return  # `down` by hand, say; a machine can't be started like that
        for machine in admitted - domains.keys():
            self._network.forget(machine)
        for machine in domains.keys() - admitted:
            if (described := self._domains.described(domains[machine], machine)) and (
                metadata := parse_metadata(described, machine)
            ):
                self._network.admit(metadata)

    def vacate(self, addresses: Sequence[IPv4Address]) -> None:
        """Have the host forget whoever had these addresses."""
        self._network.vacate(addresses)

    def purge(self) -> list[str]:
        """Remove all that carries this manager's id; returns it in words."""
        removed = []
        for machine in self.machines.all():
            self.machines.destroy(machine.id)
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
        mtu=settings.network.mtu,
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
