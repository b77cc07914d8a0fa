"""One machine's life on real libvirt and QEMU: cloned, started, its command run, powered off,
nothing left.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Interface
from itertools import count
from pathlib import Path

import libvirt
import pytest

from tests.ground import host_of
from tests.prepare import GITEA, IMAGES
from vmrunner.errors import NameClash
from vmrunner.files import digest
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.seam import File, Output
from vmrunner.image.versions import store
from vmrunner.machine import seed
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import NO_LIMITS, EventKind, Limits, MachineId, Metadata, Phase, Shape

pytestmark = pytest.mark.vm

MANAGER = "life"
HOST_PARTS = count(10)  # of the machines' addresses
DEADLINE = 240.0  # seconds for one machine; a guest that hangs must not hang the suite
SHAPE = Shape(vcpus=2, memory_mib=1024, disk_gib=6)


@dataclass(frozen=True)
class Ended:
    """What a machine left behind, read before it was destroyed."""

    output: dict[Output, str]
    exit: str
    kinds: list[EventKind]


@pytest.fixture(scope="module")
def golden() -> Golden:
    return store.find(IMAGES, GITEA)


@pytest.fixture
def host(golden: Golden) -> Iterator[LibvirtHost]:
    warnings: list[str] = []
    host = host_of(MANAGER, "10.91.0.0/24", accelerator="auto", warn=warnings.append)
    host.prepare(golden)
    for machine in host.machines.all():  # of a run that was killed
        host.machines.destroy(machine.id)
    yield host
    for machine in host.machines.all():
        # Pytest shows it when the test failed.
        print(host.machines.read(machine.id, File.CONSOLE, tail=4000).decode("utf-8", "replace"))
        host.machines.destroy(machine.id)


def check_host(host: LibvirtHost, machine: MachineId) -> None:
    """Its QEMU runs in libvirt's sandbox as a user of no privileges, and is counted."""
    (pid,) = [
        path.parent.name
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"guest={machine},".encode() in path.read_bytes()
    ]
    command, status = (Path("/proc", pid, name).read_text() for name in ("cmdline", "status"))
    assert (
        "-sandbox\0on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
        in command
    )
    user = re.search(r"(?m)^Uid:\s+(\d+)", status)
    assert user
    assert int(user[1]) != 0
    assert re.search(r"(?m)^CapEff:\s+0+$", status)
    total = re.search(r"(?m)^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    assert total
    capacity = host.facts.capacity()
    assert (capacity.memory_mib, capacity.used_memory_mib, capacity.used_vcpus) == (
        int(total[1]) >> 10,
        SHAPE.memory_mib,
        SHAPE.vcpus,
    )


def check_bounds(host: LibvirtHost, machine: MachineId, limits: Limits) -> None:
    """What libvirt and the host's kernel see to."""
    with closing(libvirt.open("qemu:///system")) as connection:
        domain = connection.lookupByName(str(machine))
        disk = domain.blockIoTune("vda")
        assert (disk["total_bytes_sec"], disk["total_iops_sec"]) == (
            limits.disk_bandwidth_mib << 20,
            limits.disk_iops,
        )
        if host.facts.cgroups.memory:
            beside = (domain.memoryParameters()["hard_limit"] >> 10) - SHAPE.memory_mib
            assert 512 <= beside <= 2048
        if host.facts.cgroups.cpu:
            assert domain.schedulerParameters()["cpu_shares"] == host.facts.cgroups.cpu_shares(
                limits.cpu_weight
            )


def live(host: LibvirtHost, golden: Golden, *command: str, limits: Limits = NO_LIMITS) -> Ended:
    """Run one command in a machine of its own and destroy it."""
    machine = MachineId.new(MANAGER, "0a0b0c0d")
    host.machines.create_overlay(machine, golden, SHAPE.disk_gib)
    address = IPv4Interface(f"10.91.0.{next(HOST_PARTS)}/24")
    host.machines.put(
        machine,
        File.SEED,
        seed.iso(machine, seed.exec_script(command, timedelta(seconds=DEADLINE)), address),
    )
    host.machines.start(
        golden,
        SHAPE,
        Metadata(machine, "pool", golden.name, time.time(), address=str(address)),
        limits=limits,
    )
    check_bounds(host, machine, limits)
    output = {port: bytearray() for port in Output}
    readers = [
        threading.Thread(target=host.machines.stream, args=(machine, port, output[port].extend))
        for port in Output
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(DEADLINE)
    deadline = time.monotonic() + 30
    while host.machines.alive(machine):
        assert time.monotonic() < deadline, host.machines.read(
            machine, File.CONSOLE, tail=4000
        ).decode("utf-8", "replace")
        time.sleep(0.1)
    (seen,) = [found for found in host.machines.all() if found.id == machine]
    assert seen.phase is Phase.FINISHED
    ended = seen.event(EventKind.EXIT)
    assert ended is not None, host.machines.read(machine, File.CONSOLE, tail=4000).decode(
        "utf-8", "replace"
    )
    host.machines.destroy(machine)
    texts = {port: bytes(raw).decode() for port, raw in output.items()}
    return Ended(texts, ended.text, [event.kind for event in seen.events])


def test_a_command_runs_in_a_machine_that_leaves_nothing(host: LibvirtHost, golden: Golden) -> None:
    script = (
        "hostname; df --output=size -BG / | tail -1; getent hosts forge.example; echo marked "
        ">/marker; echo lost >&2; exit 3"
    )
    before = digest(golden.directory / DISK)

    first = live(host, golden, "sh", "-c", script)

    name, size, forge = first.output[Output.STDOUT].splitlines()
    assert name.startswith(f"vmr-{MANAGER}-")
    assert size.strip() in {"6G", "5G"}, (
        "the root grows from the image's 4 GiB to the machine's disk"
    )
    assert forge.endswith("forge.example")
    assert first.output[Output.STDERR] == "lost\n"
    assert first.exit == "3"
    assert first.kinds == [EventKind.UP, EventKind.SEED, EventKind.RUNNER, EventKind.EXIT]
    assert not host.machines.residue()

    second = live(host, golden, "sh", "-c", "test -e /marker && echo found; cat /etc/machine-id")
    assert "found" not in second.output[Output.STDOUT]
    assert not host.machines.residue()
    assert digest(golden.directory / DISK) == before


@pytest.mark.long
def test_a_machine_gets_no_more_of_the_host_than_it_may(host: LibvirtHost, golden: Golden) -> None:
    script = (
        "began=$(date +%s%N); dd if=/dev/zero of=/big bs=256k count=96 oflag=direct "
        "2>/dev/null; echo $(($(date +%s%N) - began))"
    )
    allowed = 4  # MiB a second

    ended = live(
        host,
        golden,
        "sh",
        "-c",
        script,
        limits=Limits(cpu_weight=50, disk_bandwidth_mib=allowed, disk_iops=10_000),
    )

    rate = 24 / (int(ended.output[Output.STDOUT]) / 1e9)
    assert rate < 1.5 * allowed, "some come at once: the first second's"


def test_destroy_ends_a_machine_that_runs(host: LibvirtHost, golden: Golden) -> None:
    machine = MachineId.new(MANAGER, "0a0b0c0d")
    host.machines.create_overlay(machine, golden, SHAPE.disk_gib)
    host.machines.put(
        machine,
        File.SEED,
        seed.iso(machine, seed.exec_script(["true"], timedelta(seconds=60)), None),
    )
    metadata = Metadata(
        machine,
        "pool",
        golden.name,
        1700000000.5,
        overlay_at=1700000001.25,
        runner_id=7,
        job_key='a"<&>',
        queued_at=3.5,
    )
    host.machines.start(golden, SHAPE, metadata)

    (seen,) = host.machines.all()
    assert (seen.alive, seen.phase, seen.metadata) == (True, Phase.STARTED, metadata)
    check_host(host, machine)
    used = host.machines.used()[machine]
    assert (used.vcpus, used.memory_mib) == (SHAPE.vcpus, SHAPE.memory_mib)
    assert used.memory_peak_mib > 0
    with pytest.raises(NameClash):
        host.machines.start(golden, SHAPE, metadata)
    host.machines.delete(machine, File.SEED)  # also while the machine has it open
    host.machines.destroy(machine)
    host.machines.destroy(machine)  # again is fine
    assert not host.machines.residue()
    assert host.machines.all() == []
    assert host.machines.used() == {}
