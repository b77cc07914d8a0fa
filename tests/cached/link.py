"""The host's outside link, whose bytes are counted: a wire, and at its other end the public places
of packages, by their names. What comes there goes on by tests.cached.outside.

`python -m tests.cached.link` is that other end.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

from tests.cached.outside import SOCKET, join
from tests.forge.gitea import until
from tests.net.place import WORLD, ip, namespace
from vmrunner.cli.packages_files import name_servers

WIRE = "outside"
NEAR_END, FAR_END = "10.85.1.1", "10.85.1.2"
PUBLIC = "100.64.7.8"
"""An address that neither dnsmasq takes for one of this network, nor Docker has in the machines."""
NAMES = (
    "deb.debian.org",
    "security.debian.org",
    "registry.npmjs.org",
    "pypi.org",
    "files.pythonhosted.org",
    "proxy.golang.org",
    "sum.golang.org",
)
PORTS = (80, 443)
_HELLO = 16 << 10
"""What a client says first, with the name that it wants in plain, in TLS, too: no more."""


async def _far_end() -> None:
    async def reach(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port, said, name = writer.get_extra_info("sockname")[1], b"", None
        while name is None and len(said) < _HELLO and (part := await reader.read(_HELLO)):
            said += part
            name = next((each for each in NAMES if each.encode() in said), None)
        if name is None:
            writer.close()
            return
        far = await asyncio.open_unix_connection(SOCKET)
        far[1].write(f"{name} {port}\n".encode() + said)
        await join((reader, writer), far)

    servers = [await asyncio.start_server(reach, PUBLIC, port) for port in PORTS]
    print("listening", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))


def moved() -> int:
    """Bytes that have gone over the wire so far, both ways."""
    folder = Path(f"/sys/class/net/{WIRE}/statistics")
    return sum(int((folder / f"{way}_bytes").read_text()) for way in ("rx", "tx"))


def behind(stack: ExitStack, *command: str, log: Path | None = None) -> subprocess.Popen[str]:
    """A program at the other end, as long as the stack lasts; what it says is in the log, or to be
    read.
    """
    said = subprocess.PIPE if log is None else stack.enter_context(log.open("w"))
    inside = ["ip", "netns", "exec", WORLD, *command]
    process = stack.enter_context(
        subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=said, stderr=log and said, text=True)
    )
    stack.callback(process.kill)
    return process


def _named(stack: ExitStack) -> None:
    """Who asks this host's name servers is answered here."""
    for server in name_servers(Path("/etc/resolv.conf").read_text()):
        if not ip_address(server).is_loopback:
            ip("addr", "add", f"{server}/32", "dev", "lo", check=False)
            stack.callback(ip, "addr", "del", f"{server}/32", "dev", "lo", check=False)
        command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]
        command += ["--no-resolv", "--no-hosts", "--bind-interfaces", "--except-interface=lo"]
        command += [
            f"--listen-address={server}",
            # Local: that there is no IPv6 is an answer, too, without which nginx goes nowhere.
            *(f"--host-record={each},{PUBLIC}" for each in NAMES),
            *(f"--local=/{each}/" for each in NAMES),
        ]
        process = stack.enter_context(subprocess.Popen(command))
        stack.callback(process.kill)


async def _end() -> None:
    with suppress(OSError):
        _, writer = await asyncio.open_unix_connection(SOCKET)
        writer.write(b"end\n")
        await writer.drain()
        writer.close()


@contextmanager
def way_out() -> Iterator[None]:
    """The way out of the rig ends with what is within, however that ends."""
    try:
        yield
    finally:
        until(SOCKET.exists, 30, "the way out of the rig")
        asyncio.run(_end())


@contextmanager
def outside(mbit: int = 0) -> Iterator[ExitStack]:
    """While it is entered, the host has its link, of so many Mbit/s each way; 0: as fast as it
    goes.
    """
    with ExitStack() as stack:
        namespace(stack, WORLD)
        ip("link", "del", WIRE, check=False)
        ip("link", "add", WIRE, "type", "veth", "peer", "name", "eth0", "netns", WORLD)
        ip("addr", "add", f"{NEAR_END}/24", "dev", WIRE)
        ip("link", "set", WIRE, "up")
        ip("-n", WORLD, "addr", "add", f"{FAR_END}/24", "dev", "eth0")
        ip("-n", WORLD, "link", "set", "eth0", "up")
        ip("-n", WORLD, "addr", "add", f"{PUBLIC}/32", "dev", "lo")
        ip("-n", WORLD, "route", "add", "default", "via", NEAR_END)
        ip("route", "add", f"{PUBLIC}/32", "via", FAR_END)
        if mbit:
            limit = ["root", "tbf", "rate", f"{mbit}mbit", "burst", "256kb", "latency", "50ms"]
            for place in (
                ["-n", WORLD, "qdisc", "add", "dev", "eth0"],
                ["qdisc", "add", "dev", WIRE],
            ):
                subprocess.run(["tc", *place, *limit], check=True)
        far = behind(stack, sys.executable, "-m", "tests.cached.link")
        assert far.stdout
        assert far.stdout.readline() == "listening\n"
        _named(stack)
        yield stack


if __name__ == "__main__":
    asyncio.run(_far_end())
