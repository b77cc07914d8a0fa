"""A host that lost its power: what its disk holds of images and snapshots is read before the first
machine is made of it, and believed only where it is what was written. No machine is started.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.goldens import publish
from tests.ground import STORAGE, host_of
from vmrunner.errors import ImageError, SnapshotError
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.seam import Snapshot
from vmrunner.hypervisor.storage import image_volume
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import Shape

MANAGER, SUBNET = "power", "10.88.2.0/24"
KEY = "0123456789abcdef"
CONTENT = bytes(range(256)) * 512
Reboot = Callable[[str], LibvirtHost]


def truncate(path: Path) -> None:
    """Its last blocks were allocated, and not written."""
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [truncate, zero, flip, empty, Path.unlink]


@pytest.fixture
def reboot() -> Iterator[Reboot]:
    """The host in a boot of this name."""
    hosts = []

    def start(boot: str) -> LibvirtHost:
        host = host_of(MANAGER, SUBNET, boot=boot)
        hosts.append(host)
        return host

    start("0")._storage.remove()
    hosts[0]._storage.ensure()
    yield start
    hosts[0]._storage.remove()
    for host in hosts:
        host.close()


@pytest.fixture
def golden(tmp_path: Path) -> Golden:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", "1M"], check=True)
    return publish(tmp_path / "images", "v1", disk=(tmp_path / "disk").read_bytes())


def volume(name: str) -> Path:
    return STORAGE / MANAGER / name


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_image_is_read_once_after_a_start_of_the_host_and_uploaded_anew_where_it_is_damaged(
    reboot: Reboot, golden: Golden, damage: Callable[[Path], None]
) -> None:
    disk = volume(image_volume(golden, DISK))
    reboot("1").images.publish(golden)
    whole, first = disk.read_bytes(), disk.stat().st_ino
    reboot("2").images.publish(golden)
    assert (disk.read_bytes(), disk.stat().st_ino) == (whole, first), "it was found to be whole"
    damage(disk)
    host = reboot("3")
    host.images.publish(golden)
    assert disk.read_bytes() == whole
    flip(disk)
    host.images.publish(golden)
    assert disk.read_bytes() != whole, "it is read once"


@pytest.mark.parametrize("damage", [truncate, zero, empty])
def test_a_manifest_that_was_not_written_is_none(
    reboot: Reboot, golden: Golden, damage: Callable[[Path], None]
) -> None:
    disk, marker = (volume(image_volume(golden, part)) for part in (DISK, "manifest.json"))
    reboot("1").images.publish(golden)
    whole, said = disk.read_bytes(), marker.read_bytes()
    damage(marker)
    zero(disk)
    reboot("1").images.publish(golden)
    assert (disk.read_bytes(), marker.read_bytes()) == (whole, said)


def test_no_machine_is_made_of_what_is_damaged_in_the_store_as_well(
    reboot: Reboot, golden: Golden
) -> None:
    reboot("1").images.publish(golden)
    zero(volume(image_volume(golden, DISK)))
    zero(golden.directory / DISK)
    for _ in range(2):
        with pytest.raises(ImageError, match="has another sha256"):
            reboot("2").images.publish(golden)
    assert not volume(image_volume(golden, "manifest.json")).exists()


def kept(host: LibvirtHost) -> Snapshot:
    """A snapshot on the host's disk, as far as its files matter."""
    parts = {f"snapshot-{KEY}.{part}": CONTENT for part in ("ram", "state", "qcow2")}
    for name, content in parts.items():
        host._storage.write(name, content)
    digests = {name: host._storage.digest(name) for name in parts}
    return Snapshot(KEY, "web/v1", Shape(1, 64, 1), time.time(), "10.0.0", "11.3.0", digests)


@pytest.mark.parametrize("part", ["ram", "state", "qcow2"])
@pytest.mark.parametrize("damage", [truncate, zero, flip])
def test_a_snapshot_is_read_once_after_a_start_of_the_host(
    reboot: Reboot, part: str, damage: Callable[[Path], None]
) -> None:
    snapshot = kept(reboot("1"))
    reboot("1").snapshots.trust(snapshot)
    damage(volume(f"snapshot-{KEY}.{part}"))
    reboot("1").snapshots.trust(snapshot)  # the same boot: nothing was lost
    for _ in range(2):
        with pytest.raises(SnapshotError, match=rf"snapshot-{KEY}\.{part} has another sha256"):
            reboot("2").snapshots.trust(snapshot)
    reboot("2").snapshots.drop(KEY)
    assert not list((STORAGE / MANAGER).glob("snapshot-*"))


def test_a_snapshot_without_a_word_of_its_boot_is_read(reboot: Reboot) -> None:
    snapshot = kept(reboot("1"))
    host = reboot("1")
    host.snapshots.trust(snapshot)
    assert volume(f"snapshot-{KEY}.boot").read_bytes() == b"1"
    zero(volume(f"snapshot-{KEY}.boot"))
    zero(volume(f"snapshot-{KEY}.ram"))
    with pytest.raises(SnapshotError):
        reboot("1").snapshots.trust(snapshot)
