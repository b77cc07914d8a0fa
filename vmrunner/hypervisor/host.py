"""The libvirt host: the Hypervisor seam over a real libvirtd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path

from vmrunner import waiting
from vmrunner.config import HostConfig, is_local
from vmrunner.errors import HypervisorError, NotPermitted
from vmrunner.hypervisor.acceleration import NoKvm, lacking
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.hypervisor.connection import Link, patience
from vmrunner.hypervisor.domain import parse_metadata
from vmrunner.hypervisor.domains import Domains
from vmrunner.hypervisor.events import Events
from vmrunner.hypervisor.facts import LibvirtFacts
from vmrunner.hypervisor.images import LibvirtImages
from vmrunner.hypervisor.logs import Logs, folder
from vmrunner.hypervisor.machines import LibvirtMachines
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.seam import Purged
from vmrunner.hypervisor.snapshot import LibvirtSnapshots
from vmrunner.hypervisor.stats import Stats
from vmrunner.hypervisor.storage import Storage
from vmrunner.hypervisor.strangers import Strangers
from vmrunner.log import Say
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
        boot: str = "",
        warn: Callable[[str], None],
    ) -> None:
        """`boot` names the time since this computer's start; default: the one that goes on."""
        boot = boot or waiting.boot()
        self.manager = manager
        self._link = Link(uri)
        shall = accelerator != "software"
        no_kvm = _no_kvm(self._link, accelerator, warn) if shall else None
        kvm = shall and no_kvm is None
        self._storage = Storage(self._link, manager, storage_path)
        self._network = Network(self._link, manager, subnet, ipv6, firewall, mtu)
        self._strangers = Strangers(self._link, manager, self._storage.name, self._storage.folder)
        self._events = Events(manager)
        self._stats = Stats(uri, manager)
        cgroups = Cgroups.of_host(uri)
        self._domains = Domains(self._link, manager, self._storage, self._network, cgroups, kvm=kvm)
        self.snapshots = LibvirtSnapshots(
            self._link, self._storage, self._domains, self._strangers, boot, kvm=kvm
        )
        self.machines = LibvirtMachines(
            self._link,
            self._storage,
            self._network,
            self._domains,
            self._strangers,
            self.snapshots,
            self._events,
            Logs(manager, folder(uri)),
            self._stats,
        )
        self.images = LibvirtImages(self._link, self._storage, self._strangers, boot)
        self.facts = LibvirtFacts(
            self._link, self._storage, self._network, cgroups, kvm=kvm, no_kvm=no_kvm
        )

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
        self._events.close()
        self._stats.close()
        self._link.close()

    def reopen(self) -> bool:
        """Connect again if the connection is lost (a daemon of libvirt was restarted); whether it
        was.

        Raises HypervisorError while it stays so.
        """
        lost = not self._link.is_alive
        if lost:
            self._open()
        return lost

    def prepare(self, golden: Golden, say: Say = lambda _: None) -> None:
        """Make the storage pool, the network and its rules, and bring this image there, with what
        machines of it have beside.
        """
        self._storage.ensure()
        self._network.ensure(idle=not self._domains.all(), guest_on=self._strangers.on_network)
        self._network.ensure_rules()
        for part in golden.parts:
            self.images.publish(part, say)

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
            if not self._domains.exists(machine):  # it may have been made since we looked
                self._network.forget(machine)
        for machine in domains.keys() - admitted:
            if (described := self._domains.described(domains[machine], machine)) and (
                metadata := parse_metadata(described, machine)
            ):
                self._network.admit(metadata)

    def vacate(self, addresses: Sequence[IPv4Address]) -> None:
        """Have the host forget whoever had these addresses."""
        self._network.vacate(addresses)

    def purge(self) -> Purged:
        """Remove all that carries this manager's id, but for what others use."""
        machines = []
        for machine in self.machines.all():
            self.machines.destroy(machine.id)
            machines.append(f"machine {machine.id}")
        parts = [
            Purged(tuple(machines), ()),
            self._storage.remove(self._strangers.held(), self._strangers.in_pool()),
            self._network.remove(self._strangers.on_network),
        ]
        return Purged(
            tuple(each for part in parts for each in part.removed),
            tuple(each for part in parts for each in part.kept),
        )


def open_host(
    settings: HostConfig, warn: Callable[[str], None], late: Callable[[str], None] | None = None
) -> LibvirtHost:
    """The libvirt host that the configuration describes. Raises HypervisorError. `late` is told of
    calls that libvirt does not answer; default: `warn`.
    """
    section, firewall = settings.libvirt, None
    patience.tell = late or warn
    if settings.network.filter:
        if "://" not in section.uri:
            raise HypervisorError(
                f"libvirt.uri {section.uri!r} is not the address of a libvirt.",
                'On this host it is "qemu:///system".',
            )
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


def _no_kvm(link: Link, accelerator: str, warn: Callable[[str], None]) -> NoKvm | None:
    """Why machines can't run on the processor itself. Raises HypervisorError where they shall."""
    why = lacking(link.connection, link.uri)
    if why and accelerator == "kvm":
        raise HypervisorError(
            f"This host has no KVM: {why.said}.",
            f'{why.hint} Or set libvirt.accelerator to "auto".',
        )
    if why:
        warn(
            f"No KVM on this host: {why.said}. Machines run under software emulation, 10 to 50 "
            "times slower."
        )
    return why
