"""Whether the forge's host, as this host sees it, can be where machines find it."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

from vmrunner.errors import ConfigError, ForgeUnreachable, VmrunnerError
from vmrunner.network.forge import forge_host, is_for_machines
from vmrunner.text import some

Address = IPv4Address | IPv6Address


def fault(url: str, subnet: IPv4Network, *, ipv6: bool) -> VmrunnerError | None:
    """Why no machine of this subnet could reach the forge at this URL; None where one may.

    `ipv6`: whether machines have it. A name that nothing is known of is a ForgeUnreachable: that
    may pass. The rest are ConfigErrors.
    """
    host = forge_host(url)
    try:
        found = socket.getaddrinfo(host, None, socket.AF_UNSPEC, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not a name"
        return ForgeUnreachable(
            f"The forge's name {host} is not known on this host: {why}.",
            "Check forge.url, and this host's DNS and /etc/hosts.",
        )
    addresses = [ip_address(name) for name in dict.fromkeys(str(to[0]) for *_, to in found)]
    return misled(host, addresses, subnet, ipv6=ipv6)


def misled(
    host: str, addresses: Sequence[Address], subnet: IPv4Network, *, ipv6: bool
) -> ConfigError | None:
    """The same for addresses that the host's name has here. Pure."""
    leads = f"The forge's host {host} is {some([str(each) for each in addresses])} on this host"
    if str(addresses[0]) == host:
        leads = f"The forge's address is {host}"
    usable = [each for each in addresses if is_for_machines(each)]
    if not usable:
        return ConfigError(
            f"{leads}: to a machine that is itself, or nothing.",
            "Set forge.url to an address that machines reach, too; where a line of /etc/hosts "
            "makes it loopback (127.0.1.1), write the address of this host's network there.",
        )
    if not ipv6 and all(each.version == 6 for each in usable):
        return ConfigError(
            f"{leads}, and machines have no IPv6.",
            "Give machines IPv6 with `ipv6` in [network], or the forge an IPv4 address.",
        )
    inside = [each for each in usable if each in subnet and each != subnet.network_address + 1]
    if inside:
        return ConfigError(
            f"{leads}, which lies in the machines' own network {subnet}.",
            "Set libvirt.subnet to a network that nothing else uses.",
        )
    return None
