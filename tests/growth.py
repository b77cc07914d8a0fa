"""`make growth`: many machines in a row on few addresses, each of which leaves thousands of
connections open. None is refused one because of those before it, and nothing on the host grows.

The last line is JSON; exit 1 where something was refused, failed, or grows.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from tests.bench.common import say
from tests.forge.gitea import Site, until
from tests.ground import STORAGE, Ground, lay
from tests.net.place import INTERNET, WORLD, world
from tests.prepare import GITEA
from vmrunner.network import leftovers
from vmrunner.network.names import bridge_name, network_name

MANAGER, SUBNET, FOLDER = "growth", IPv4Network("10.82.0.0/28"), Path("/tmp/vmrunner-growth")
# Of the peer. No machine asks at the port of one shortly before it: the peer still has that one's
# connections, and where both came from the same port it would take the new one's for the old one's
# (a second is lost, and the kernel may count such a connection twice).
PORTS = range(9500, 9532)
DAY = 86400.0
# The host's own connections, such as the forge's, are over by then: TIME_WAIT lasts two minutes.
_QUIET_WITHIN = 150.0
_SEEN = (
    FOLDER,
    STORAGE / MANAGER,
    *map(Path, ("/var/log/libvirt", "/run/libvirt", "/var/lib/libvirt/dnsmasq")),
)
_BOUNDED = "/var/log/libvirt/libvirtd.log"  # by logrotate, or it is in the journal
_BLOCK = 4096  # bytes; by less a file grows that is written anew
_PROGRAMS = ("libvirtd", "virtlogd", "dnsmasq", "qemu-system-x86", "python3")
_WORK = """
import os, resource, signal, socket, sys
address, port, number = sys.argv[1], *map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (number + 64, number + 64))
held, refused = [], 0
for place in range(number):
    try:
        held.append(socket.create_connection((address, port), 10))
    except OSError as error:
        print(f"connection {place}: {error}", file=sys.stderr)
        refused += 1
        if refused == 3:
            break
print(len(held), flush=True)
# Somebody holds them when the machine is switched off: nothing is closed.
if os.fork() == 0:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for output in range(3):
        os.dup2(null, output)
    signal.pause()
"""
# It holds the connections of the last few machines.
_PEER = """
import collections, resource, selectors, socket, sys
most, first, end = map(int, sys.argv[2:])
resource.setrlimit(resource.RLIMIT_NOFILE, (most + 128, most + 128))
held = collections.deque(maxlen=most)
with selectors.DefaultSelector() as waiting:
    for port in range(first, end):
        server = socket.create_server((sys.argv[1], port), backlog=4096)
        waiting.register(server, selectors.EVENT_READ)
    print("listening", flush=True)
    while True:
        for ready, _ in waiting.select():
            held.append(ready.fileobj.accept()[0])
"""


def main() -> None:
    """Once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=200)
    parser.add_argument("--connections", type=int, default=2000, help="what each leaves open")
    options = parser.parse_args()
    site = Site()
    place = _ground(site, options.connections)
    refused, failed, marks = 0, 0, []
    with ExitStack() as stack:
        stack.enter_context(world())
        stack.enter_context(_peer(options.connections * 2))
        # The first ones make what stays: network, rules, the files of the host's programs.
        for number in range(-2, options.machines):
            if number == 0:
                marks.append((time.monotonic(), _state()))
            port = PORTS[number % len(PORTS)]
            work = ["python3", "-c", _WORK, INTERNET, str(port), str(options.connections)]
            done = place.run("exec", "--image", GITEA, "--", *work, check=False)
            if done.returncode:
                say(done.stderr)
                failed += 1
            else:
                less = options.connections - int(done.stdout)
                refused += less
                if less:
                    say(f"machine {number}: {done.stderr}")
            if number >= 0 and number % 10 == 9:
                say(f"{number + 1}/{options.machines}: {refused} refused, {failed} failed")
        marks.append((time.monotonic(), _state()))
        before = marks[0][1]["connections"]
        until(lambda: _connections() <= before, _QUIET_WITHIN, "the host's own are over", every=2)
        after = _connections()
    figures = _figures(marks, options.machines)
    figures |= {"refused": refused, "failed": failed, "leaves": options.connections}
    figures["conntrack"] = {"before": before, "after": after}
    print(json.dumps(figures))
    sys.exit(1 if refused or failed or figures["grows"] else 0)


def _ground(site: Site, connections: int) -> Ground:
    more = f"[network]\nconnections = {connections}\nnew_connections = 1000000\n"
    place = lay(FOLDER, MANAGER, str(SUBNET), token=site.token, start="snapshot", more=more)
    place.run("down", "--now")
    place.run("snapshot", "create", "--image", GITEA)
    return place


@contextmanager
def _peer(most: int) -> Iterator[None]:
    command = ["ip", "netns", "exec", WORLD, sys.executable, "-c", _PEER, INTERNET]
    numbers = map(str, (most, PORTS.start, PORTS.stop))
    with subprocess.Popen([*command, *numbers], stdout=subprocess.PIPE, text=True) as peer:
        try:
            assert peer.stdout
            assert peer.stdout.readline() == "listening\n"
            yield
        finally:
            peer.kill()


def _connections() -> int:
    """In the host's table."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def _state() -> Counter[str]:
    """How much there is of everything that could grow, by name."""
    found: Counter[str] = Counter({"connections": _connections()})
    found["connections of machines"] = leftovers.connections(list(SUBNET.hosts())[1:])
    for family in ("bridge", "inet"):
        for each in _json("nft", "-j", "list", "table", family, network_name(MANAGER))["nftables"]:
            for kind in each.keys() & {"set", "map"}:
                found[f"nft {family} {each[kind]['name']}"] = len(each[kind].get("elem", []))
    found["neighbours"] = len(_json("ip", "-j", "neigh", "show", "dev", bridge_name(MANAGER)))
    found["interfaces"] = len(list(Path("/sys/class/net").iterdir()))
    found["mounts"] = len(Path("/proc/mounts").read_text().splitlines())
    for folder in _SEEN:
        for path in folder.rglob("*"):
            if not path.is_symlink() and (path.is_file() or path.is_socket()):
                found[f"files {_anyones(path)}"] += 1
                found[f"bytes {_anyones(path)}"] += path.stat().st_size
    found["files /tmp"] = len(list(Path("/tmp").iterdir()))
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text().strip()
            if name in _PROGRAMS:
                found[f"processes {name}"] += 1
                found[f"open files {name}"] += len(list((process / "fd").iterdir()))
        except OSError:
            continue  # it has ended
    return found


def _anyones(path: Path) -> str:
    """A file's name without what is one machine's alone."""
    return re.sub(r"vmr-growth-[0-9a-f]+|\b[0-9]+\b", "*", str(path))


def _json(*command: str) -> Any:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout or "[]")


def _figures(marks: list[tuple[float, Counter[str]]], machines: int) -> dict[str, Any]:
    """What grew, by machine, and how much that is after a day of this."""
    (began, before), (ended, after) = marks
    a_day = DAY / (ended - began) * machines
    grown = {
        name: round((after[name] - before[name]) / machines, 3)
        for name in sorted(before.keys() | after.keys())
        if after[name] - before[name] > (_BLOCK if name.startswith("bytes ") else 0)
        and name != "connections"
    }
    log = grown.pop(f"bytes {_BOUNDED}", 0)
    return {
        "machines": machines,
        "seconds": round(ended - began),
        "bytes a machine in libvirt's own log": log,
        "grows": {
            name: {"a machine": by, "in 24 h": round(by * a_day)} for name, by in grown.items()
        },
    }


if __name__ == "__main__":
    main()
