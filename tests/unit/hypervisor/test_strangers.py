"""What other people's guests use, from their definitions and the headers of their disks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vmrunner.hypervisor.domain import parse_metadata
from vmrunner.hypervisor.seam import is_of_image, snapshot_of
from vmrunner.hypervisor.strangers import backing, parse_guest
from vmrunner.model.machine import MachineId

GUEST = """<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>shop</name>
  <os><kernel>/pool/image-web-1.vmlinuz</kernel></os>
  <devices>
    <disk type='file'><driver type='qcow2'/><source file='/disks/with spaces.qcow2'/></disk>
    <disk type='file'><driver type='qcow2'/><source file='/disks/live.qcow2'/>
      <backingStore type='file'><source file='/pool/base.qcow2'/></backingStore></disk>
    <disk type='file'><driver type='raw'/><source file='/disks/cd.iso'/></disk>
    <disk type='block'><source dev='/dev/vg/shop'/></disk>
    <disk type='volume'><driver type='raw'/><source pool='vmr-m' volume='notes.raw'/></disk>
    <interface type='network'><source network='vmr-m'/></interface>
    <interface type='bridge'><source bridge='br0'/></interface>
    <interface type='user'/>
  </devices>
  <qemu:commandline><qemu:arg value='x,mem-path=/pool/snapshot.ram,share=off'/></qemu:commandline>
</domain>"""


def test_all_that_a_definition_names() -> None:
    guest = parse_guest(GUEST)
    assert guest.name == "shop"
    assert {
        "/pool/image-web-1.vmlinuz",
        "/disks/with spaces.qcow2",
        "/disks/live.qcow2",
        "/pool/base.qcow2",
        "/disks/cd.iso",
        "/dev/vg/shop",
        "/pool/snapshot.ram",
    } <= guest.files
    assert guest.unread == {"/disks/with spaces.qcow2", "/dev/vg/shop"}, (
        "the others lie on nothing, or it is said on what"
    )
    assert guest.volumes == {("vmr-m", "notes.raw")}
    assert guest.networks == {"vmr-m", "br0"}


@pytest.mark.parametrize("said", ["{base}", "base.qcow2", "json:{{\"driver\":\"qcow2\",\"file\":"
                                  "{{\"driver\":\"file\",\"filename\":\"{base}\"}}}}"])  # fmt: skip
def test_a_disk_tells_what_it_lies_on(tmp_path: Path, said: str) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    for command in (
        ["create", "-q", "-f", "qcow2", str(base), "1M"],
        ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", said.format(base=base), str(top)],
    ):
        subprocess.run(["qemu-img", *command], check=True)
    assert backing(top) == str(base)
    assert backing(base) == ""


@pytest.mark.parametrize("content", [b"", b"QFI", b"QFI\xfb" + bytes(60), b"KDMV" + b"\xff" * 60])
def test_what_is_no_overlay_lies_on_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "disk").write_bytes(content)
    assert backing(tmp_path / "disk") == ""
    assert backing(tmp_path / "none") == backing(tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "is_part"),
    [
        ("image-web-v1.disk.qcow2", True),
        ("image-debian-12-20260101000000-0123abcd.vmlinuz", True),
        ("image-web-v1.manifest.json", True),
        ("image-of-my-cat.iso", False),
        ("image-web-v1.disk.qcow2.bak", False),
        ("image-.disk.qcow2", False),
    ],
)
def test_names_of_parts_of_images(name: str, is_part: bool) -> None:
    assert is_of_image(name) == is_part


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("snapshot-0123456789abcdef.ram", "0123456789abcdef"),
        ("snapshot-0123456789abcdef.boot", "0123456789abcdef"),
        ("snapshot-0123456789abcdef.manifest.json", "0123456789abcdef"),
        ("snapshot-before-upgrade.qcow2", ""),
        ("snapshot-0123456789abcdef.tar", ""),
        ("snapshot-0123456789ABCDEF.ram", ""),
    ],
)
def test_names_of_parts_of_snapshots(name: str, key: str) -> None:
    assert snapshot_of(name) == key


@pytest.mark.parametrize(
    "attributes",
    ["", "manager='m'", "manager='m' pool='p'", "manager='m' pool='p' image='i/1'",
     "manager='other' pool='p' image='i/1' created='1'",
     "manager='m' pool='p' image='i/1' created='yesterday'"],
)  # fmt: skip
def test_half_of_our_metadata_is_nobodys_of_ours(attributes: str) -> None:
    described = (
        "<domain><metadata><v:machine xmlns:v='https://vmrunner.dev/xmlns/1' "
        f"{attributes}/></metadata></domain>"
    )
    assert parse_metadata(described, MachineId("m", "0123abcd")) is None
