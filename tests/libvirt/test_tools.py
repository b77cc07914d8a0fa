"""A disk of tools at the real libvirt and QEMU: several machines have the same file open, and none
of them can write to it. Their guests do nothing.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from tests.goldens import publish
from tests.ground import STORAGE, host_of
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.seam import File
from vmrunner.model.image import DISK
from vmrunner.model.machine import MachineId, Metadata, Shape

MANAGER, SHAPE = "tooled", Shape(1, 64, 1)


@pytest.fixture
def host() -> Iterator[LibvirtHost]:
    made = host_of(MANAGER, "10.88.5.0/24")
    yield made
    made.purge()
    made.close()


def test_machines_share_it_and_qemu_has_it_read_only(host: LibvirtHost, tmp_path: Path) -> None:
    images = tmp_path / "images"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "d", "1M"], check=True)
    disk = (tmp_path / "d").read_bytes()
    tools = publish(images, "1", name="tools", disk=disk, tools={"go/1.26.0/x64": "0" * 64})
    golden = replace(publish(images, "1", disk=disk), tools=tools)
    host.prepare(golden)
    volume = STORAGE / MANAGER / f"image-tools-1.{DISK}"
    machines = [MachineId(MANAGER, f"0000000{number}", "00c0ffee") for number in (1, 2)]
    for machine in machines:
        host.machines.create_overlay(machine, golden, 1)
        host.machines.put(machine, File.SEED, bytes(1 << 20))
        metadata = Metadata(machine, "p", golden.id, 1.0, tools=golden.tools_id)
        host.machines.start(golden, SHAPE, metadata)
    connection = libvirt.open("qemu:///system")
    for machine in machines:
        domain = connection.lookupByName(str(machine))
        asked = json.dumps({"execute": "query-block"})
        answer = json.loads(libvirt_qemu.qemuMonitorCommand(domain, asked, 0))["return"]
        ours = {
            each["inserted"]["file"]: each["inserted"]["ro"]
            for each in answer
            if "inserted" in each
        }
        assert ours[str(volume)] is True
        assert ours[str(STORAGE / MANAGER / f"{machine}.{File.OVERLAY}")] is False
    seen = {each.id: each.metadata for each in host.machines.all()}
    assert [found.tools for machine in machines if (found := seen[machine])] == ["tools/1"] * 2
    state = volume.stat()
    assert (state.st_uid, state.st_mode & 0o777) == (0, 0o644), "QEMU's user may not write"
    assert hashlib.sha256(volume.read_bytes()).hexdigest() == tools.manifest.files[DISK]


def test_its_version_is_in_the_key_of_a_snapshot(host: LibvirtHost, tmp_path: Path) -> None:
    images = tmp_path / "images"
    golden = publish(images, "1")
    one, two = (
        publish(images, version, name="tools", disk=version.encode(), tools={"a/1.0.0/x64": "0"})
        for version in "12"
    )
    keys = {host.snapshots.key(replace(golden, tools=each), SHAPE) for each in (None, one, two)}
    assert len(keys) == 3
