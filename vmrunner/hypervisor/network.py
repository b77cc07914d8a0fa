"""Our own libvirt network: NAT towards the outside, isolated ports between the machines, and the
rules that filter it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Network
from typing import Any
from xml.etree import ElementTree

import libvirt

from vmrunner.config import is_local
from vmrunner.errors import HypervisorError, NameClash
from vmrunner.hypervisor.connection import Link, asking
from vmrunner.hypervisor.domain import NAMESPACE
from vmrunner.hypervisor.seam import Purged
from vmrunner.model.machine import MachineId, Metadata
from vmrunner.network import leftovers
from vmrunner.network.addresses import gateway, paired
from vmrunner.network.firewall import Firewall
from vmrunner.network.names import bridge_name, network_name
from vmrunner.network.policy import UNIQUE_LOCAL
from vmrunner.render import xml

_DNSMASQ = "http://libvirt.org/schemas/network/dnsmasq/1.0"


class Network:
    """One manager's network; without a firewall nothing filters it."""

    def __init__(
        self,
        link: Link,
        manager: str,
        subnet: IPv4Network,
        ipv6: IPv6Network | None,
        firewall: Firewall | None,
        mtu: int | None = None,
    ) -> None:
        self._link, self._manager, self._firewall = link, manager, firewall
        self._subnet, self._ipv6, self.mtu = subnet, ipv6, mtu

    @property
    def name(self) -> str:
        """What libvirt calls it."""
        return network_name(self._manager)

    @property
    def is_filtered(self) -> bool:
        """Whether rules of ours say what machines may reach."""
        return self._firewall is not None

    @property
    def _dns_options(self) -> tuple[str, ...]:
        return self._firewall.dns_options if self._firewall else ()

    def ensure(self, *, idle: bool, guest_on: Callable[..., str]) -> None:
        """See ensure_network."""
        ensure_network(
            self._link.connection,
            self._manager,
            self._subnet,
            self._dns_options,
            self._ipv6,
            self.mtu,
            idle=idle,
            guest_on=guest_on,
        )

    def ensure_rules(self) -> set[MachineId]:
        """Bring the rules to what they should be; returns the machines that they let through.

        Raises NotPermitted where this user may not change them.
        """
        return self._firewall.ensure() if self._firewall else set()

    def admit(self, metadata: Metadata) -> None:
        """Let a machine through, as far as its policy says."""
        if self._firewall and metadata.network and metadata.address:
            self._firewall.admit(
                metadata.machine, IPv4Interface(metadata.address).ip, metadata.network
            )

    def forget(self, machine: MachineId) -> None:
        """Let a machine through no more. Raises NotPermitted."""
        if self._firewall:
            self._firewall.forget(machine)

    def vacate(self, addresses: Sequence[IPv4Address]) -> None:
        """Have this host's kernel forget whoever had these addresses; another host's can't be
        asked.
        """
        if is_local(self._link.uri):
            pairs = (
                paired(IPv4Interface((address, self._subnet.prefixlen)), self._ipv6)
                for address in addresses
                if address in self._subnet
            )
            sixes = [pair.ip for pair in pairs if pair]
            leftovers.remove(bridge_name(self._manager), [*addresses, *sixes])

    def leftovers_lack(self) -> str:
        """Why `vacate` can't work here, in words; empty where it can, or is not for us."""
        return leftovers.lack() if is_local(self._link.uri) else ""

    def dropped(self) -> dict[MachineId, int]:
        """How many packets of each machine were dropped, as far as they are counted."""
        return self._firewall.dropped() if self._firewall else {}

    def drift(self) -> list[str] | None:
        """See network_drift."""
        return network_drift(
            self._link.connection,
            self._manager,
            self._subnet,
            self._dns_options,
            self._ipv6,
            self.mtu,
        )

    def rules_drift(self) -> str | None:
        """How the rules differ from the ones that we would make, in words; None where we make
        none.
        """
        return self._firewall.drift() if self._firewall else None

    def remove(self, guest_on: Callable[..., str]) -> Purged:
        """Remove the network, unless a guest of somebody else is on it, and its rules."""
        removed: list[str] = []
        kept: list[str] = []
        try:
            if self.drift() is not None and (
                guest := guest_on(self.name, bridge_name(self._manager))
            ):
                kept.append(f"network {self.name}: the guest {guest} is on it")
            else:
                removed += remove_network(self._link.connection, self._manager)
        except NameClash as why:
            kept.append(f"network {self.name}: {why.sentence}")
        try:
            removed += self._firewall.remove() if self._firewall else []
        except NameClash as why:
            kept.append(f"nftables table {self.name}: {why.sentence}")
        return Purged(tuple(removed), tuple(kept))


def network_xml(
    manager: str,
    subnet: IPv4Network,
    options: Sequence[str] = (),
    ipv6: IPv6Network | None = None,
    mtu: int | None = None,
) -> str:
    """The network as libvirt wants it. The first address is the gateway; `options` are for its
    dnsmasq; `mtu` in bytes.

    IPv6 addresses that are unique local ones are translated like those of IPv4, others only routed.
    """
    if ipv6:
        # libvirt has dnsmasq advertise a router wherever there is IPv6.
        options = (*options, f"no-dhcp-interface={bridge_name(manager)}")
    return xml(
        "network.xml.j2",
        name=network_name(manager),
        manager=manager,
        bridge=bridge_name(manager),
        gateway=gateway(subnet),
        netmask=subnet.netmask,
        options=options,
        mtu=mtu,
        ipv6=ipv6,
        gateway6=ipv6 and gateway(ipv6),
        nat6=bool(ipv6 and ipv6.subnet_of(UNIQUE_LOCAL)),
    )


def _find(connection: Any, manager: str) -> Any | None:
    """Our network, or None where there is none. Raises NameClash where somebody else's has its
    name.
    """
    name = network_name(manager)
    try:
        network = connection.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
            return None
        raise
    described = ElementTree.fromstring(network.XMLDesc(0))  # noqa: S314 — libvirt's own words
    if described.findtext(f"metadata/{{{NAMESPACE}}}network") != manager:
        raise NameClash(
            f"The network {name} is not vmrunner's.",
            "It is somebody else's, and vmrunner leaves it alone: choose another `manager`.",
        )
    return network


def remove_network(connection: Any, manager: str) -> list[str]:
    """Stop and undefine the network; returns what was removed, in words."""
    name = network_name(manager)
    with asking(f"removing the network {name}"):
        network = _find(connection, manager)
        if network is None:
            return []
        if network.isActive():
            network.destroy()
        network.undefine()
    return [f"network {name}"]


def ensure_network(
    connection: Any,
    manager: str,
    subnet: IPv4Network,
    options: Sequence[str] = (),
    ipv6: IPv6Network | None = None,
    mtu: int | None = None,
    *,
    idle: bool = False,
    guest_on: Callable[..., str] = lambda *_: "",
) -> None:
    """Define and start the network where it is missing; one that differs is made anew when it is
    `idle`: no machine is on it, nor any guest of somebody else (`guest_on` tells by the names of
    networks and bridges).
    """
    name = network_name(manager)
    if (
        idle
        and network_drift(connection, manager, subnet, options, ipv6, mtu)
        and not guest_on(name, bridge_name(manager))
    ):
        remove_network(connection, manager)
    with asking(f"preparing the network {name}"):
        network = _find(connection, manager)
        if network is None:
            network = connection.networkDefineXML(network_xml(manager, subnet, options, ipv6, mtu))
            network.setAutostart(1)
        if f"address='{gateway(subnet)}' netmask='{subnet.netmask}'" not in network.XMLDesc(0):
            raise HypervisorError(
                f"The network {name} has another subnet than {subnet}.",
                f"Was libvirt.subnet changed? When no machine runs: `virsh net-destroy {name}; "
                f"virsh net-undefine {name}`.",
            )
        if not network.isActive():
            network.create()


def network_drift(
    connection: Any,
    manager: str,
    subnet: IPv4Network,
    options: Sequence[str] = (),
    ipv6: IPv6Network | None = None,
    mtu: int | None = None,
) -> list[str] | None:
    """How the network that exists differs from `network_xml`, in words; None where there is
    none.
    """
    with asking("looking at the network"):
        network = _find(connection, manager)
        if network is None:
            return None
        described, is_active = network.XMLDesc(0), bool(network.isActive())
    found, wanted = (
        _essence(text) for text in (described, network_xml(manager, subnet, options, ipv6, mtu))
    )
    return ([] if is_active else ["it is not active"]) + [
        f"{name} is {found[name] or 'missing'} instead of {wanted[name] or 'missing'}"
        for name in wanted
        if found[name] != wanted[name]
    ]


def _essence(described: str) -> dict[str, str]:
    root = ElementTree.fromstring(described)  # noqa: S314 — libvirt's own words, or ours

    def attributes(path: str, *names: str) -> str:
        return " ".join(
            f"{name}={element.get(name)}"
            for element in root.iterfind(path)
            for name in names
            if element.get(name)
        )

    return {
        "forwarding": attributes("forward", "mode", "dev"),
        "translation of IPv6": attributes("forward/nat", "ipv6"),
        "the bridge": attributes("bridge", "name", "stp"),
        "the MTU": attributes("mtu", "size"),
        "the address": attributes("ip", "address", "netmask", "prefix"),
        "DHCP": attributes("ip/dhcp/range", "start", "end"),
        "DNS": attributes(f"{{{_DNSMASQ}}}options/{{{_DNSMASQ}}}option", "value"),
    }
