"""What a libvirt host is and has: versions, processors, room, and its network as it is now."""

from __future__ import annotations

from contextlib import suppress
from xml.etree import ElementTree

import libvirt

from vmrunner.config import is_local
from vmrunner.hypervisor.acceleration import NoKvm
from vmrunner.hypervisor.cgroup import Cgroups
from vmrunner.hypervisor.connection import GONE, Link, asking, dotted
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.qemu_user import User
from vmrunner.hypervisor.storage import Storage
from vmrunner.hypervisor.way import barrier, closed
from vmrunner.model.machine import Capacity


class LibvirtFacts:
    """The Facts of the seam."""

    def __init__(
        self,
        link: Link,
        storage: Storage,
        network: Network,
        cgroups: Cgroups,
        *,
        kvm: bool,
        no_kvm: NoKvm | None,
    ) -> None:
        self._link, self._storage, self._network = link, storage, network
        self.cgroups, self.kvm, self.no_kvm = cgroups, kvm, no_kvm

    def versions(self) -> dict[str, str]:
        """Of libvirt and of QEMU."""
        with asking("asking for the versions"):
            return {
                "libvirt": dotted(self._link.connection.getLibVersion()),
                "QEMU": dotted(self._link.connection.getVersion()),
            }

    def closed_storage(self) -> tuple[str, str] | None:
        """Which folder on the way to the storage pool is closed to QEMU."""
        if not is_local(self._link.uri):
            return None
        with asking("listing what the host can do"):
            capabilities = ElementTree.fromstring(self._link.connection.getCapabilities())  # noqa: S314 — libvirt's own words
        pool, user = self._storage.folder, User.of(capabilities)
        found = barrier(pool, user) if user else None
        return closed(found, user, pool) if found and user else None

    def capacity(self) -> Capacity:
        """What the host has, and what all domains on it may take that are active, or start with
        it.
        """
        connection = self._link.connection
        with asking("asking what the host has"):
            _, memory_mib, cores, *_ = connection.getInfo()
            # What it says of memory is the first NUMA cell's as it was at boot: too little where
            # memory was plugged in later.
            with suppress(libvirt.libvirtError):  # libvirt's mock has none of it
                memory_mib = (
                    connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)["total"]
                    >> 10
                )
            used_kib = used_vcpus = 0
            active = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
            # Right after the host's start they may not be up yet.
            starting = connection.listAllDomains(
                libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE
                | libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART
            )
            for domain in active + starting:
                try:
                    _, most_kib, _, vcpus, _ = domain.info()
                except libvirt.libvirtError as error:
                    if error.get_error_code() not in GONE:
                        raise
                    continue
                used_kib, used_vcpus = used_kib + most_kib, used_vcpus + vcpus
        return Capacity(memory_mib, cores, used_kib // 1024, used_vcpus, self._storage.free_mib())

    @property
    def network(self) -> str:
        """The name of our libvirt network."""
        return self._network.name

    def network_drift(self) -> list[str] | None:
        """How our network differs from the one that we would make, in words; None where there is
        none yet.
        """
        return self._network.drift()

    def rules_drift(self) -> str | None:
        """How the nftables rules differ from the ones that we would make, in words; None where we
        make none.
        """
        return self._network.rules_drift()

    def leftovers_lack(self) -> str:
        """Why the host can't forget whoever had an address, in words; empty where it can."""
        return self._network.leftovers_lack()
