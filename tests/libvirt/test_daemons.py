"""A connection that stays for days, as that of `vmrunner serve`, while libvirt's daemons are killed
and restarted under it.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Network

import libvirt
import pytest

from tests import daemons
from tests.forge.gitea import until
from tests.ground import host_of
from vmrunner.hypervisor import events
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.network import ensure_network
from vmrunner.model.machine import MachineId

MANAGER, SUBNET = "daemons", IPv4Network("10.86.0.0/24")
MACHINE = MachineId(MANAGER, "0000000a")
DOMAIN = f"""<domain type='qemu'><name>{MACHINE}</name><memory unit='MiB'>32</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os></domain>"""


@pytest.fixture
def woken() -> list[int]:
    """One entry for each time that somebody was woken."""
    return []


@pytest.fixture
def host(woken: list[int]) -> Iterator[LibvirtHost]:
    events.start()
    made = host_of(MANAGER, str(SUBNET))
    made.watch(lambda: woken.append(1))
    made._storage.ensure()
    ensure_network(made._link.connection, MANAGER, SUBNET)
    yield made
    made.reopen()
    made.purge()
    made.close()


def live(host: LibvirtHost) -> None:
    """A domain's whole life, made by somebody else; returns once the host was told of its end."""
    with closing(libvirt.open("qemu:///system")) as another:
        another.createXML(DOMAIN, libvirt.VIR_DOMAIN_START_PAUSED).destroy()
    until(lambda: MACHINE in host._events._ends, 30, "its end was told", every=0.05)
    host._events.forget(MACHINE)


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.long)]
)
@pytest.mark.parametrize("daemon", daemons.ALL)
def test_after_any_daemon_has_ended_the_next_pass_has_all_of_libvirt(
    host: LibvirtHost, woken: list[int], daemon: str, how: signal.Signals
) -> None:
    live(host)
    told = len(woken)
    assert not host.reopen(), "nothing is wrong"
    daemons.restart(daemon, how)
    assert host.reopen(), "it is noticed"
    assert not host.reopen(), "and repaired"
    assert host.facts.network_drift() == []
    assert (host.machines.all(), host._storage.names()) == ([], [])
    live(host)
    assert len(woken) == 2 * told, "by the new connection, and not by the old one as well"


def test_what_was_closed_leaves_no_connection_behind(host: LibvirtHost) -> None:
    """Each reload of the configuration closes one; libvirt lets in so many clients and no more."""
    before = clients()
    for _ in range(3):
        host.watch(lambda: None)
    assert clients() == before


def clients() -> int:
    """How many this process is, of the daemon that runs the machines."""
    listed = subprocess.run(
        ["virt-admin", "-c", f"{daemons.MACHINES}:///system", "client-list", daemons.MACHINES],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return listed.count("unix")
