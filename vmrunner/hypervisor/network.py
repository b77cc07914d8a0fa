"""Our own libvirt network: NAT towards the outside, isolated ports between the machines."""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Network
from typing import Any

import libvirt

from vmrunner.hypervisor.connection import asking
from vmrunner.model import PREFIX
from vmrunner.render import xml


def network_name(manager: str) -> str:
    """The network's name; it carries the manager's id like everything of ours."""
    return f"{PREFIX}-{manager}"


def network_xml(manager: str, subnet: IPv4Network) -> str:
    """The network as libvirt wants it. The first address is the gateway; bridge names have 15 characters at most."""
    hosts = list(subnet.hosts()) if subnet.num_addresses <= 65536 else None
    first, second = (hosts[0], hosts[1]) if hosts else (subnet.network_address + 1, subnet.network_address + 2)
    return xml(
        "network.xml.j2",
        name=network_name(manager),
        manager=manager,
        bridge=f"{PREFIX}{hashlib.sha256(manager.encode()).hexdigest()[:8]}",
        gateway=first,
        netmask=subnet.netmask,
        first=second,
        last=subnet.broadcast_address - 1,
    )


def ensure_network(connection: Any, manager: str, subnet: IPv4Network) -> None:
    """Define and start the network where it is missing."""
    name = network_name(manager)
    with asking(f"preparing the network {name}"):
        try:
            network = connection.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                raise
            network = connection.networkDefineXML(network_xml(manager, subnet))
            network.setAutostart(1)
        if not network.isActive():
            network.create()
