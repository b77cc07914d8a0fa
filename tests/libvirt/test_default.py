"""The libvirt side on libvirt's own mock, test:///default: what isn't ours is never touched, and
every clash is a sentence.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import libvirt
import pytest

from vmrunner.errors import DiskFull, HypervisorError, NameClash
from vmrunner.hypervisor import connection
from vmrunner.hypervisor.acceleration import NoKvm
from vmrunner.hypervisor.connection import Link
from vmrunner.hypervisor.domains import Domains
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.network import ensure_network, network_drift
from vmrunner.hypervisor.seam import Volume
from vmrunner.hypervisor.storage import Storage
from vmrunner.model.machine import MachineId

SUBNET = IPv4Network("10.87.0.0/24")
DOMAIN = (
    "<domain type='test'><name>{name}</name><memory>1024</memory>"
    "<os><type>hvm</type></os>{more}</domain>"
)
OURS = (
    "<metadata><v:machine xmlns:v='https://vmrunner.dev/xmlns/1' manager='{manager}' pool='p' "
    "image='i/1' "
    "created='1.5' overlay='2' queued='0' runner='3' job='j'/></metadata>"
)


@pytest.fixture
def libvirt_mock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """One connection of the mock; test:///default gives every connection of a process the same
    state.
    """
    opened = libvirt.open("test:///default")
    monkeypatch.setattr(connection.libvirt, "open", lambda _: opened)
    yield opened
    for domain in opened.listAllDomains():
        if domain.name() != "test":
            domain.destroy()
    for pool in opened.listAllStoragePools():
        if pool.name().startswith("vmr-"):
            pool.destroy()
    for network in opened.listAllNetworks():
        if network.name().startswith("vmr-"):
            network.destroy()
            network.undefine()


@pytest.fixture
def host(libvirt_mock: Any) -> LibvirtHost:
    return LibvirtHost(
        uri="test:///default",
        manager="m",
        storage_path=Path("/nowhere"),
        subnet=SUBNET,
        accelerator="software",
        warn=lambda _: None,
    )


def test_of_a_domain_that_powers_off_while_it_is_looked_at_nothing_is_made_up(
    host: LibvirtHost, libvirt_mock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row of the history had no pool and stemmed from 1970, so it was forgotten at once."""
    more = OURS.format(manager="m")
    libvirt_mock.createXML(DOMAIN.format(name="vmr-m-00000001", more=more), 0)
    described = Domains.described

    def too_late(domains: Domains, domain: Any, machine: MachineId) -> str:
        domain.destroy()
        return described(domains, domain, machine)

    monkeypatch.setattr(Domains, "described", too_late)
    (machine,) = host.machines.all()
    assert (machine.id.serial, machine.alive, machine.metadata) == ("00000001", False, None)


def test_domains_of_others_are_neither_seen_nor_touched(
    host: LibvirtHost, libvirt_mock: Any
) -> None:
    lookalikes = {
        "vmr-m-0123abcd": "",
        "vmr-m-1123abcd": OURS.format(manager="other"),
        "vmr-other-0123abcd": OURS.format(manager="other"),
    }
    for name, more in lookalikes.items():
        libvirt_mock.createXML(DOMAIN.format(name=name, more=more))
    assert host.machines.all() == []
    host.machines.destroy(MachineId("m", "0123abcd"))
    host.machines.destroy(MachineId("m", "1123abcd"))
    assert {domain.name() for domain in libvirt_mock.listAllDomains()} == {"test", *lookalikes}
    assert not host.machines.residue()


def test_a_domain_of_ours_is_known_by_its_metadata(host: LibvirtHost, libvirt_mock: Any) -> None:
    libvirt_mock.createXML(DOMAIN.format(name="vmr-m-0123abcd", more=OURS.format(manager="m")))
    (machine,) = host.machines.all()
    assert (
        machine.alive,
        machine.metadata and machine.metadata.runner_id,
        machine.metadata and machine.metadata.created_at,
    ) == (
        True,
        3,
        1.5,
    )
    assert host.machines.residue().domains == ("vmr-m-0123abcd",)
    host.machines.destroy(machine.id)
    assert host.machines.all() == []


def test_a_storage_pool_of_our_name_elsewhere_is_not_used(libvirt_mock: Any) -> None:
    libvirt_mock.storagePoolCreateXML(
        "<pool type='dir'><name>vmr-m</name><target><path>/elsewhere</path></target></pool>", 0
    )
    with pytest.raises(HypervisorError, match=r"is not at /nowhere/m"):
        Storage(Link("test:///default"), "m", Path("/nowhere")).ensure()


def test_the_network_is_made_once_and_a_changed_subnet_is_said(libvirt_mock: Any) -> None:
    ensure_network(libvirt_mock, "m", SUBNET)
    ensure_network(libvirt_mock, "m", SUBNET)
    assert libvirt_mock.networkLookupByName("vmr-m").isActive()
    with pytest.raises(HypervisorError, match="has another subnet"):
        ensure_network(libvirt_mock, "m", IPv4Network("10.99.0.0/24"))


@pytest.mark.parametrize(
    ("prefix", "is_translated"), [("fd87::/64", True), ("2001:db8:87::/112", False)]
)
def test_ipv6_asked_for_later_is_drift_until_the_network_is_idle(
    libvirt_mock: Any, prefix: str, is_translated: bool
) -> None:
    ensure_network(libvirt_mock, "m", SUBNET)
    assert network_drift(libvirt_mock, "m", SUBNET) == []
    wanted = IPv6Network(prefix)
    drift = network_drift(libvirt_mock, "m", SUBNET, (), wanted)
    assert drift is not None
    assert [line.partition(" is ")[0] for line in drift] == [
        *(["translation of IPv6"] if is_translated else []),
        "the address",
        "DNS",
    ]
    ensure_network(libvirt_mock, "m", SUBNET, (), wanted)
    assert network_drift(libvirt_mock, "m", SUBNET, (), wanted) == drift, "a machine may be on it"
    ensure_network(libvirt_mock, "m", SUBNET, (), wanted, idle=True)
    assert [
        line.partition(" is ")[0]
        for line in network_drift(libvirt_mock, "m", SUBNET, (), wanted) or ()
    ] == ["DNS"], "the mock has none"
    assert network_drift(libvirt_mock, "m", SUBNET), "and when it is no longer asked for"


def test_another_mtu_is_drift_until_the_network_is_idle(libvirt_mock: Any) -> None:
    ensure_network(libvirt_mock, "m", SUBNET)
    drift = network_drift(libvirt_mock, "m", SUBNET, mtu=1400)
    assert drift == ["the MTU is missing instead of size=1400"]
    ensure_network(libvirt_mock, "m", SUBNET, mtu=1400, idle=True)
    assert network_drift(libvirt_mock, "m", SUBNET, mtu=1400) == []
    assert network_drift(libvirt_mock, "m", SUBNET, mtu=9000) == [
        "the MTU is size=1400 instead of size=9000"
    ]


def test_libvirts_refusals_are_sentences_with_hints(libvirt_mock: Any) -> None:
    with pytest.raises(NameClash) as clash, connection.asking("starting x"):
        libvirt_mock.createXML(DOMAIN.format(name="test", more=""))
    assert clash.value.hint
    with pytest.raises(HypervisorError) as refused, connection.asking("starting x"):
        libvirt_mock.createXML("<domain type='test'/>")
    assert "libvirt refused starting x" in refused.value.sentence
    full = libvirt.libvirtError("x")
    full.err = (1, 0, "qemu-img: " + "long " * 200 + "No space left on device", 2, "", "", "", 0, 0)
    assert isinstance(connection.translate(full, "creating the overlay"), DiskFull)


def test_kvm_absent_is_one_warning_or_an_error_where_it_is_demanded(
    libvirt_mock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr("vmrunner.hypervisor.host.lacking", lambda *_: NoKvm.NO_MODULE)
    made = {
        "uri": "test:///default",
        "manager": "m",
        "storage_path": Path("/nowhere"),
        "subnet": SUBNET,
        "warn": warnings.append,
    }
    LibvirtHost(**made, accelerator="auto")
    assert [sentence.partition(":")[0] for sentence in warnings] == ["No KVM on this host"]
    assert NoKvm.NO_MODULE.said in warnings[0]
    with pytest.raises(HypervisorError, match=r"has no KVM: .* no /dev/kvm") as refused:
        LibvirtHost(**made, accelerator="kvm")
    assert "modprobe" in refused.value.hint
    assert len(warnings) == 1


def test_a_connection_that_was_lost_is_replaced_for_every_part_that_somebody_holds() -> None:
    keep = libvirt.open("test:///default")  # as long as it is open, the mock keeps its state
    try:
        host = LibvirtHost(
            uri="test:///default",
            manager="m",
            storage_path=Path("/nowhere"),
            subnet=SUBNET,
            accelerator="software",
            warn=lambda _: None,
        )
        machines, images, facts = host.machines, host.images, host.facts
        assert not host.reopen()
        host._link.connection.close()
        with pytest.raises(HypervisorError):
            machines.all()
        assert host.reopen()
        assert (machines.all(), facts.network_drift()) == ([], None)
        assert {volume.name for volume in images.volumes()} == {"the guest test"}
        assert facts.capacity().cores > 0
        host.close()
    finally:
        keep.close()


def test_how_a_machine_ended_is_waited_for_when_libvirt_tells_it_late(
    host: LibvirtHost, libvirt_mock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = libvirt_mock.createXML(
        DOMAIN.format(name="vmr-m-0123abcd", more=OURS.format(manager="m"))
    )
    # As after watch(), which the mock has no events for.
    host._events.wake = lambda: None
    monkeypatch.setattr(host.machines, "alive", lambda _: False)  # it went after it was listed
    stopped = (
        None,
        domain,
        libvirt.VIR_DOMAIN_EVENT_STOPPED,
        libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED,
        None,
    )
    teller = threading.Timer(0.1, host._events._lifecycle, stopped)
    teller.start()
    assert [(machine.alive, machine.trouble) for machine in host.machines.all()] == [
        (False, "its QEMU process died")
    ]
    teller.join()
    host._events.keep([])
    assert [machine.trouble for machine in host.machines.all()] == [""], (
        "nobody tells: it is not waited for without end"
    )


def test_what_others_take_of_the_host_and_what_starts_with_it_is_no_room_for_us(
    host: LibvirtHost, libvirt_mock: Any
) -> None:
    before = host.facts.capacity()
    described = (
        "<domain type='test'><name>{name}</name><memory unit='MiB'>512</memory><vcpu>3</vcpu>"
        "<os><type>hvm</type></os></domain>"
    )
    defined = [libvirt_mock.defineXML(described.format(name=each)) for each in ("shop", "spare")]
    try:
        assert host.facts.capacity() == before, "what is only defined takes nothing"
        defined[0].setAutostart(1)
        for act in (lambda: None, defined[0].create, defined[0].suspend):
            act()
            now = host.facts.capacity()
            assert now.used_memory_mib - before.used_memory_mib == 512
            assert now.used_vcpus - before.used_vcpus == 3
        defined[0].setAutostart(0)
        defined[0].destroy()
        assert host.facts.capacity() == before
    finally:
        for domain in defined:
            domain.undefine()


VOLUME = (
    "<volume><name>{name}</name><capacity>1024</capacity><target><format type='qcow2'/></target>"
    "<backingStore><path>{backing}</path><format type='qcow2'/></backingStore></volume>"
)


def in_pools(host: LibvirtHost) -> list[Volume]:
    """Without what the mock's own guest uses."""
    return [volume for volume in host.images.volumes() if volume.path]


def test_no_volume_that_another_lies_on_is_deleted_whosever_pool_that_is_in(
    host: LibvirtHost, libvirt_mock: Any
) -> None:
    pools = {}
    for manager in ("m", "other"):
        described = f"<pool type='dir'><name>vmr-{manager}</name>"
        described += f"<target><path>/nowhere/{manager}</path></target></pool>"
        pools[manager] = libvirt_mock.storagePoolCreateXML(described, 0)
    base = "image-web-1.disk.qcow2"
    for each in (base, "image-web-2.disk.qcow2"):
        pools["m"].createXML(VOLUME.format(name=each, backing="/nowhere/m/none"), 0)
    overlay = pools["other"].createXML(
        VOLUME.format(name="o.qcow2", backing=f"/nowhere/m/{base}"), 0
    )
    assert {(volume.name, volume.is_ours) for volume in in_pools(host)} == {
        (base, True),
        ("image-web-2.disk.qcow2", True),
        ("o.qcow2", False),
    }
    with pytest.raises(HypervisorError, match=r"o\.qcow2 lies on it"):
        host.images.drop(["image-web-2.disk.qcow2", base])
    assert len(in_pools(host)) == 3
    overlay.delete(0)
    host.images.drop(["image-web-2.disk.qcow2", base])
    assert in_pools(host) == []


def test_a_pool_of_ours_that_cant_be_looked_into_stops_the_deleting(
    host: LibvirtHost, libvirt_mock: Any
) -> None:
    described = (
        "<pool type='dir'><name>vmr-other</name><target><path>/nowhere/other</path></target></pool>"
    )
    pool = libvirt_mock.storagePoolDefineXML(described, 0)
    try:
        with pytest.raises(HypervisorError, match="vmr-other is not active"):
            host.images.drop(["image-web-1.disk.qcow2"])
    finally:
        pool.undefine()
