"""Firewalls that hosts have beside ours: the real ufw and firewalld, what dockerd 28 writes, and
Debian's nftables.service.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Protocol

from tests.net.host import Host, until
from tests.net.place import BRIDGE, FORGE, FORGE_PORT, ip, listen, namespace

BOX, _BOX = "172.17.0.2", "vmr-box"  # a container, and its namespace
PUBLISHED = 8443  # a port of it on all of the host's addresses


_DOCKER_PORTS = f"""
-A DOCKER -d {BOX}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport {FORGE_PORT} -j ACCEPT
-A DOCKER -d {BOX}/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 443 -j ACCEPT
-A DOCKER ! -i docker0 -o docker0 -j DROP
"""
_DOCKER = f"""
*filter
:DOCKER - [0:0]
:DOCKER-BRIDGE - [0:0]
:DOCKER-CT - [0:0]
:DOCKER-FORWARD - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
{_DOCKER_PORTS}
-A DOCKER-BRIDGE -o docker0 -j DOCKER
-A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
COMMIT
*nat
:DOCKER - [0:0]
-A DOCKER -i docker0 -j RETURN
-A DOCKER -d {FORGE}/32 ! -i docker0 -p tcp -m tcp --dport {FORGE_PORT} -j DNAT --to-destination {BOX}:{FORGE_PORT}
-A DOCKER ! -i docker0 -p tcp -m tcp --dport {PUBLISHED} -j DNAT --to-destination {BOX}:443
COMMIT
"""  # noqa: E501 — a script keeps its lines
_DOCKER_JUMPS = (  # put in at the top of their chains, so that the last of them is the first
    "-t nat {} PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat {} OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
    "-t nat {} POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
    "-t filter {} FORWARD -j DOCKER-FORWARD",
    "-t filter {} FORWARD -j DOCKER-USER",
)


class Rival(Protocol):
    """One of them."""

    name: str  # in the docs
    has_forge: bool  # whether the forge is in a container of its own rather than on the host itself

    def start(self, host: Host, stack: ExitStack) -> None:
        """As its service starts."""

    def reload(self, host: Host) -> None:
        """As its admin has it read its rules again."""

    def restart(self, host: Host) -> None:
        """As its package's upgrade does: everything of its own is taken away and comes back."""


class Ufw:
    """Every way in is shut when it starts, as it is on a fresh Debian or Ubuntu."""

    name = "ufw"
    has_forge = False

    def start(self, host: Host, stack: ExitStack) -> None:
        host.run("ufw", "--force", "enable")

    def reload(self, host: Host) -> None:
        host.run("ufw", "reload")

    def restart(self, host: Host) -> None:
        host.run("ufw", "disable")
        host.run("ufw", "--force", "enable")


class Firewalld:
    """libvirtd puts its bridges into its own zone by itself, a moment after firewalld has said that
    it is there.
    """

    name = "firewalld"
    has_forge = False

    def start(self, host: Host, stack: ExitStack) -> None:
        host.serve("firewalld", "--nofork", "--nopid")
        self._settle(host)

    def reload(self, host: Host) -> None:
        host.run("firewall-cmd", "--reload")
        self._settle(host)

    def restart(self, host: Host) -> None:
        host.run("pkill", "-x", "firewalld")
        until(lambda: not host.answers("pgrep", "-x", "firewalld"), "firewalld ends")
        assert "table inet firewalld" not in host.run("nft", "list", "tables").stdout
        host.serve("firewalld", "--nofork", "--nopid")
        self._settle(host)

    def _settle(self, host: Host) -> None:
        until(lambda: host.answers("firewall-cmd", "--state"), "firewalld runs")
        asked = ("firewall-cmd", f"--get-zone-of-interface={BRIDGE}")
        until(
            lambda: host.run(*asked, check=False).stdout == "libvirt\n",
            "libvirtd puts the bridge into its zone",
        )
        until(host.has_network_rules, "libvirtd makes its rules again")


class Docker:
    """One network, and a container with the forge and something else, both published.

    Docker was what switched forwarding on.
    """

    name = "docker"
    has_forge = True

    def start(self, host: Host, stack: ExitStack) -> None:
        namespace(stack, _BOX)
        ip("link", "add", "docker0", "type", "bridge")
        ip("addr", "add", "172.17.0.1/16", "dev", "docker0")
        ip("link", "set", "docker0", "up")
        ip("link", "add", "vethbox", "type", "veth", "peer", "name", "eth0", "netns", _BOX)
        ip("link", "set", "vethbox", "master", "docker0", "up")
        ip("-n", _BOX, "addr", "add", f"{BOX}/16", "dev", "eth0")
        ip("-n", _BOX, "link", "set", "eth0", "up")
        ip("-n", _BOX, "route", "add", "default", "via", "172.17.0.1")
        listen(stack, _BOX, [(BOX, FORGE_PORT), (BOX, 443)])
        host.run("iptables", "-N", "DOCKER-USER")
        self.restart(host)

    def reload(self, host: Host) -> None:
        """What a container that goes and comes does to its rules."""
        host.run(
            "iptables-restore",
            "--noflush",
            script=f"*filter\n:DOCKER - [0:0]\n{_DOCKER_PORTS}COMMIT\n",
        )

    def restart(self, host: Host) -> None:
        """It never touches what is in DOCKER-USER."""
        host.run("iptables", "-P", "FORWARD", "DROP")
        for jump in _DOCKER_JUMPS:
            host.run("iptables", *jump.format("-D").split(), check=False)
        host.run("iptables-restore", "--noflush", script=_DOCKER)
        for jump in _DOCKER_JUMPS:
            host.run("iptables", *jump.format("-I").split())
