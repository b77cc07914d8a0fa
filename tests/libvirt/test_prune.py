"""Pruning on libvirt's real storage, through the program: what an overlay's own header names stays.

No machine is started.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.goldens import publish
from tests.ground import Ground, host_of, lay
from vmrunner.errors import HypervisorError, ImageError
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.storage import image_volume
from vmrunner.model.image import DISK

MANAGER, SUBNET = "prune", "10.88.1.0/24"


@pytest.fixture
def ground(tmp_path: Path) -> Ground:
    ground = lay(tmp_path, MANAGER, SUBNET, token="t0ken", url="http://127.0.0.1:9")
    (tmp_path / "state" / "images").unlink()
    return ground


@pytest.fixture
def host() -> Iterator[LibvirtHost]:
    made = host_of(MANAGER, SUBNET)
    made._storage.remove()
    made._storage.ensure()
    yield made
    made._storage.remove()
    made.close()


@pytest.fixture
def disk(tmp_path: Path) -> bytes:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", "1M"], check=True)
    return (tmp_path / "disk").read_bytes()


def test_promote_rollback_and_prune(ground: Ground, host: LibvirtHost, disk: bytes) -> None:
    images = ground.folder / "state" / "images"
    goldens = {version: publish(images, version, disk=disk) for version in ("v1", "v2", "v3", "v4")}
    for golden in goldens.values():
        host.images.publish(golden)
    host._storage.create_overlay("vmr-prune-0123abcd.qcow2", image_volume(goldens["v2"], DISK), 1)

    assert "web v1: new machines use it" in ground.run("image", "promote", "web", "v1").stdout
    listed = {
        row["version"]: row for row in json.loads(ground.run("image", "list", "--json").stdout)
    }
    assert [version for version, row in listed.items() if row["current"]] == ["v1"]
    assert [row["promoted_why"] for row in listed.values()] == [
        "promoted",
        "built",
        "built",
        "built",
    ]
    assert all(row["promoted_at"] and row["promoted_by"] for row in listed.values())
    assert "v4: new machines use it again" in ground.run("image", "rollback", "web").stdout

    would = ground.run("image", "prune", "--keep", "1", "--dry-run").stdout
    assert "web v3: would be removed" in would
    assert sorted(path.name for path in images.glob("web/v*")) == ["v1", "v2", "v3", "v4"]
    done = ground.run("image", "prune", "web", "--keep", "1").stdout
    assert done == would.replace("would be removed", "removed")
    assert sorted(path.name for path in images.glob("web/v*")) == ["v2", "v4"], (
        "v2 is under an overlay"
    )
    assert [name for name in host._storage.names() if name.endswith(DISK)] == [
        "image-web-v2.disk.qcow2",
        "image-web-v4.disk.qcow2",
    ]

    host._storage.delete("vmr-prune-0123abcd.qcow2")
    assert "web v2: removed" in ground.run("image", "prune", "--keep", "1").stdout
    assert "Nothing to remove." in ground.run("image", "prune", "--keep", "1").stdout
    assert [name for name in host._storage.names() if name.endswith(DISK)] == [
        "image-web-v4.disk.qcow2"
    ]
    refused = ground.run("image", "rollback", "web", check=False)
    assert (
        refused.returncode,
        "no version that the image 'web' could go back to" in refused.stderr,
    ) == (ImageError.exit_code, True)


def test_the_last_door_looks_itself(ground: Ground, host: LibvirtHost, disk: bytes) -> None:
    golden = publish(ground.folder / "state" / "images", "v1", disk=disk)
    host.images.publish(golden)
    host._storage.create_overlay("vmr-prune-0123abcd.qcow2", image_volume(golden, DISK), 1)
    before = host._storage.names()
    with pytest.raises(
        HypervisorError, match=r"is not deleted: vmr-prune-0123abcd\.qcow2 lies on it"
    ):
        host.images.drop([image_volume(golden, "manifest.json"), image_volume(golden, DISK)])
    assert host._storage.names() == before, "not even the first"
