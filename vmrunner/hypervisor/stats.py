"""What libvirt counts of the domains that live, asked for all of them in one call."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import libvirt

from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.connection import asking, connect
from vmrunner.model.machine import MachineId
from vmrunner.model.used import Used

_WANTED = (
    libvirt.VIR_DOMAIN_STATS_CPU_TOTAL
    | libvirt.VIR_DOMAIN_STATS_BALLOON
    | libvirt.VIR_DOMAIN_STATS_VCPU
    | libvirt.VIR_DOMAIN_STATS_INTERFACE
    | libvirt.VIR_DOMAIN_STATS_BLOCK
)
# A domain that another call has in its hands, such as one that is being made, tells less at once:
# nobody waits for it.
_FLAGS = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
_ACTIVE = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
_DISK = "vda"  # a machine's own; see domain.xml.j2


class Stats:
    """Asks for them by a connection of its own, which it opens when it is first needed: QEMUs that
    are slow to answer delay nobody else.
    """

    def __init__(self, uri: str, manager: str) -> None:
        self._uri, self._manager = uri, manager
        self._connection: Any | None = None
        self._lock = threading.Lock()  # one question at a time: see THREADS_MAY_SHARE

    def used(self) -> dict[MachineId, Used]:
        """What each machine of this manager has taken; one that goes meanwhile is left out."""
        try:
            with self._lock, asking("asking what machines have used"):
                self._connection = self._connection or connect(self._uri)
                domains = [
                    domain
                    for domain in self._connection.listAllDomains(_ACTIVE)
                    if MachineId.of(self._manager, domain.name())
                ]
                found = (
                    self._connection.domainListGetStats(domains, _WANTED, _FLAGS) if domains else ()
                )
        except HypervisorError:
            self.close()  # it may be lost: the next question opens another one
            raise
        named = ((MachineId.of(self._manager, domain.name()), told) for domain, told in found)
        return {machine: read(told) for machine, told in named if machine}

    def close(self) -> None:
        """Close the connection, if there is one."""
        lost, self._connection = self._connection, None
        if lost is not None:
            with suppress(libvirt.libvirtError):
                lost.close()


def read(told: Mapping[str, Any]) -> Used:
    """One domain's record. What is missing of it counts as nothing."""

    def number(key: str) -> int:
        return int(told.get(key, 0))

    vcpus, disks = number("vcpu.current"), range(number("block.count"))

    def vcpu(what: str) -> int:
        return sum(number(f"vcpu.{each}.{what}") for each in range(vcpus))

    return Used(
        vcpus=vcpus,
        memory_mib=number("balloon.maximum") >> 10,
        memory_peak_mib=number("balloon.rss") >> 10,
        # Without cgroups libvirt knows of its processors alone, and not of what is beside them.
        cpu_seconds=(number("cpu.time") or vcpu("time")) / 1e9,
        waited_seconds=vcpu("delay") / 1e9,
        written_bytes=sum(
            number(f"block.{each}.wr.bytes")
            for each in disks
            if told.get(f"block.{each}.name") == _DISK
        ),
        received_bytes=number("net.0.rx.bytes"),
        sent_bytes=number("net.0.tx.bytes"),
    )
