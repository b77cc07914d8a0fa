"""A host of its own for a test: namespaces with a real libvirt, whose firewall nobody else minds.

The rig's own libvirtd and rules stay as they are. All that runs on such a host ends with it, and
what it writes into /etc, /run and /var is in memory.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import daemons
from tests.net.place import FORGE, FORGE_PORT, MANAGER, SUBNET, ip, listen, machines, world
from vmrunner.hypervisor.network import network_xml
from vmrunner.network.names import network_name

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET, for setns(2)
_BOOT = r"""
set -e
read -r pid _ </proc/self/stat  # /proc is still the caller's
mount -t proc proc /proc
mount -t sysfs sysfs /sys       # of this network: libvirt isolates a bridge's ports through it
mount -t tmpfs tmpfs /run
mkdir -p /run/dbus /run/lock /run/copy
for folder in /etc/ufw /etc/default /etc/firewalld /etc/libvirt; do
  [ -d $folder ] || continue
  mount -t tmpfs tmpfs /run/copy
  # Not the rig's networks, pools and machines.
  if [ $folder = /etc/libvirt ]; then cp $folder/*.conf /run/copy; else cp -a $folder/. /run/copy; fi
  mount --move /run/copy $folder
done
for folder in /var/lib/libvirt /var/cache/libvirt /var/log; do mount -t tmpfs tmpfs $folder; done
mkdir /var/log/libvirt
printf 'firewall_backend = "%s"\n' "$BACKEND" >>/etc/libvirt/network.conf  # libvirt before 10.4 reads no such file
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
cat >/run/dbus/bus.conf <<XML
<busconfig>
  <type>system</type><listen>unix:path=/run/dbus/system_bus_socket</listen><auth>EXTERNAL</auth>
  <policy context="default"><allow user="*"/><allow own="*"/><allow send_destination="*"/><allow receive_sender="*"/></policy>
</busconfig>
XML
dbus-daemon --config-file=/run/dbus/bus.conf --fork
# libvirt's nftables rules come with one of tc for DHCP answers, which we have none of, and which some kernels can't (act_csum).
mount --bind /bin/true "$(command -v tc)"
"$DAEMON" -d
echo "$pid"
exec tini -- sleep infinity
"""  # noqa: E501 — a program keeps its lines


def until(there: Callable[[], bool], what: str) -> None:
    """Look again and again, for as long as a busy computer may need."""
    deadline = time.monotonic() + 30
    while not there():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@dataclass(frozen=True)
class Host:
    """The pid of its first process names it."""

    pid: int

    def _inside(self, words: tuple[str, ...]) -> list[str]:
        return [
            "nsenter",
            "--target",
            str(self.pid),
            "--mount",
            "--net",
            "--pid",
            "--root",
            "--wd",
            "--",
            *words,
        ]

    def run(
        self, *words: str, script: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A program on it."""
        done = subprocess.run(
            self._inside(words), input=script, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 or not check, f"{words}: {done.stdout}{done.stderr}"
        return done

    def serve(self, *words: str) -> None:
        """A program that stays until the host ends."""
        self.run("sh", "-c", 'exec setsid -f "$@" </dev/null >/dev/null 2>&1', "-", *words)

    def answers(self, *words: str) -> bool:
        """Whether a program ends well."""
        return self.run(*words, check=False).returncode == 0

    def has_network_rules(self) -> bool:
        """Whether libvirt's rules for our network are there: without its NAT machines reach no
        internet.
        """
        rules = self.run("nft", "list", "ruleset").stdout.splitlines()
        return any("masquerade" in rule and str(SUBNET) in rule for rule in rules)

    def restart_libvirt(self) -> None:
        """As systemctl does it."""
        # Of its own pid namespace: no other one's. Not asked, because some now and then take 30 s
        # to end.
        self.run("pkill", "-KILL", "-x", daemons.NETWORKS)
        until(lambda: not self.answers("pgrep", "-x", daemons.NETWORKS), "the daemon ends")
        self.run(daemons.NETWORKS, "-d")
        until(self.has_network_rules, "libvirt makes its rules again")


@contextmanager
def at(namespace: Path) -> Iterator[None]:
    """This thread, and all that it starts, in another network namespace.

    os.setns is there since Python 3.12 only.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def enter(descriptor: int) -> None:
        if libc.setns(descriptor, _NEW_NETWORK):
            raise OSError(ctypes.get_errno(), "setns")

    with Path("/proc/thread-self/ns/net").open() as home, namespace.open() as there:
        enter(there.fileno())
        try:
            yield
        finally:
            enter(home.fileno())


@contextmanager
def host(backend: str, *, has_forge: bool) -> Iterator[Host]:
    """A host with our network, two stand-in machines on it and a world behind it; the caller is on
    it meanwhile.

    `backend` is how libvirtd writes its rules. The forge is on the host itself if `has_forge`.
    """
    ends_with_us = ["setpriv", "--pdeathsig", "KILL", "--"]
    unshare = [
        "unshare",
        "--mount",
        "--net",
        "--pid",
        "--fork",
        "--kill-child",
        "--propagation",
        "private",
        "--",
    ]
    with ExitStack() as stack:
        holder = subprocess.Popen(
            [
                *ends_with_us,
                "env",
                f"BACKEND={backend}",
                f"DAEMON={daemons.NETWORKS}",
                *unshare,
                "bash",
                "-c",
                _BOOT,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(holder)
        stack.callback(holder.kill)
        assert holder.stdout
        made = Host(int(holder.stdout.readline()))
        stack.enter_context(at(Path(f"/proc/{made.pid}/ns/net")))
        until(
            lambda: made.answers("virsh", "-c", "network:///system", "net-list"), "libvirtd answers"
        )
        # The stand-ins for the resolver listen in place of its dnsmasq.
        described = network_xml(MANAGER, SUBNET).replace("<ip ", '<dns enable="no"/><ip ')
        made.run("virsh", "-c", "network:///system", "net-define", "/dev/stdin", script=described)
        made.run("virsh", "-c", "network:///system", "net-start", network_name(MANAGER))
        ip("addr", "add", f"{FORGE}/32", "dev", "lo")
        if has_forge:
            listen(stack, "", [(FORGE, FORGE_PORT)])
        stack.enter_context(world())
        stack.enter_context(machines())
        yield made
