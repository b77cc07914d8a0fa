"""Other people's guests, pools, volumes, networks and rules on the same host stay as they were
under every command that changes something; compared by XML and by file.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import libvirt
import pytest

from tests.forge.double import Double
from tests.goldens import publish
from tests.ground import STORAGE, Ground, host_of, lay
from vmrunner.cli.main import main
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.hypervisor.seam import SNAPSHOT_PREFIX
from vmrunner.hypervisor.storage import image_volume
from vmrunner.image.versions.store import MANIFEST
from vmrunner.model.image import DISK, Golden

# Commands end with their process, which here goes on: nobody closes their history.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MANAGER, SUBNET = "shared", "10.88.2.0/24"
EXEC = ("exec", "--image", "web", "--memory", "64MiB", "--", "true")
KEY = "0123456789abcdef"
OURS = "<metadata><v:machine xmlns:v='https://vmrunner.dev/xmlns/1' {attributes}/></metadata>"
WHOLE = "pool='p' image='i/1' created='1'"


@pytest.fixture
def qemu() -> Iterator[Any]:
    with ExitStack() as stack:
        connection = libvirt.open("qemu:///system")
        stack.callback(connection.close)
        yield connection


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    """On a forge that has no jobs: Gitea's may be those of other tests."""
    with Double() as double:
        ground = lay(
            tmp_path, MANAGER, SUBNET, token=double.token, url=double.url, kind="forgejo",
            image="web", more='network = "none"',
        )  # fmt: skip
        (tmp_path / "state" / "images").unlink()
        yield ground


@pytest.fixture
def host() -> Iterator[LibvirtHost]:
    made = host_of(MANAGER, SUBNET)
    made.purge()
    yield made
    made.purge()
    made.close()


class Others:
    """What other people have on this host."""

    def __init__(self, qemu: Any, folder: Path, stack: ExitStack) -> None:
        self.qemu, self.folder, self._stack = qemu, folder, stack
        self._domains: list[Any] = []
        self._pools: list[Any] = []
        self._networks: list[Any] = []
        self._files: list[Path] = []
        folder.chmod(0o755)

    def file(self, path: Path, content: bytes = b"theirs") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._files.append(path)
        self._stack.callback(path.unlink, missing_ok=True)
        return path

    def overlay(self, path: Path, base: str) -> Path:
        subprocess.run(
            ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, str(path)],
            check=True,
        )
        self._files.append(path)
        self._stack.callback(path.unlink, missing_ok=True)
        return path

    def domain(self, name: str, more: str = "", devices: str = "", *, runs: bool = False) -> None:
        """One that is defined, or runs and is paused."""
        described = (
            f"<domain type='qemu'><name>{name}</name>{more}<memory unit='MiB'>16</memory>"
            "<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>"
            f"{devices}<controller type='usb' model='none'/><memballoon model='none'/>"
            "</devices></domain>"
        )
        if runs:
            domain = self.qemu.createXML(described, libvirt.VIR_DOMAIN_START_PAUSED)
            self._stack.callback(domain.destroy)
        else:
            domain = self.qemu.defineXML(described)
            self._stack.callback(domain.undefine)
        self._domains.append(domain)

    def pool(self, name: str, folder: Path) -> Any:
        folder.mkdir(parents=True, exist_ok=True)
        pool = self.qemu.storagePoolCreateXML(
            f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>"
        )
        self._stack.callback(pool.destroy)
        self._pools.append(pool)
        return pool

    def network(self, name: str, bridge: str, address: str) -> None:
        network = self.qemu.networkDefineXML(
            f"<network><name>{name}</name><bridge name='{bridge}'/>"
            f"<ip address='{address}' netmask='255.255.255.0'/></network>"
        )
        self._stack.callback(network.undefine)
        self._networks.append(network)

    def table(self, family: str, name: str) -> None:
        subprocess.run(
            ["nft", "-f", "-"],
            input=f"table {family} {name} {{\n set machines {{ type ipv4_addr; elements = "
            "{ 192.0.2.1 } }\n}\n",
            text=True,
            check=True,
        )
        self._stack.callback(subprocess.run, ["nft", "delete", "table", family, name], check=True)

    def seen(self) -> dict[str, object]:
        """All of it, as it is now."""
        found: dict[str, object] = {
            f"domain {each.name()}": (each.UUIDString(), each.state(), each.XMLDesc(0))
            for each in self._domains
        }
        for pool in self._pools:
            described = pool.XMLDesc(0).split("</name>")[1].split("<capacity")[0]
            found[f"pool {pool.name()}"] = (pool.UUIDString(), pool.isActive(), described)
        found |= {f"network {each.name()}": (each.isActive(), each.XMLDesc(0))
                  for each in self._networks}  # fmt: skip
        for path in self._files:
            status = path.stat()
            found[str(path)] = (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_ino),
            )
        found["rules"] = [
            line.strip()
            for line in subprocess.run(
                ["nft", "list", "ruleset"], check=True, capture_output=True, text=True
            ).stdout.split("\ntable ")
            if "192.0.2.1" in line
        ]
        return found


def disk(path: Path) -> str:
    return (
        f"<disk type='file'><driver name='qemu' type='qcow2'/><source file='{path}'/>"
        "<target dev='vda' bus='virtio'/></disk>"
    )


@pytest.fixture
def golden(ground: Ground, host: LibvirtHost, tmp_path: Path) -> Golden:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "d", "1M"], check=True)
    images, content = ground.folder / "state" / "images", (tmp_path / "d").read_bytes()
    made = publish(images, "v1", disk=content)
    host._storage.ensure()
    host.images.publish(made)
    for version in ("v2", "v3"):
        host.images.publish(publish(images, version, disk=content))
    return made


@pytest.fixture
def others(qemu: Any, golden: Golden, host: LibvirtHost, tmp_path: Path) -> Iterator[Others]:
    folder, base = STORAGE / MANAGER, image_volume(golden, DISK)
    with ExitStack() as stack:
        found = Others(qemu, tmp_path, stack)
        # Names like ours, and half of our metadata, or all of it in a mere copy.
        found.domain(f"vmr-{MANAGER}-0123abcd", runs=True)
        found.domain(f"vmr-{MANAGER}-1123abcd", OURS.format(attributes=f"manager='{MANAGER}'"))
        whole = OURS.format(attributes=f"manager='{MANAGER}' {WHOLE}")
        found.domain(f"vmr-{MANAGER}-2123abcd", whole)
        found.domain(f"vmr-{MANAGER}-copy", whole)
        other = OURS.format(attributes=f"manager='{MANAGER}-2' {WHOLE}")
        found.domain(f"vmr-{MANAGER}-2-3123abcd", other, runs=True)
        # In our own folder, in a folder of their own, and in somebody's pool.
        found.file(folder / "notes.txt")
        found.file(folder / "image-of-my-cat.iso")
        found.file(folder / "snapshot-before-upgrade.qcow2")
        copy = found.file(folder / f"vmr-{MANAGER}-4123abcd.qcow2", b"a copy to look into")
        found.domain("autopsy", devices=disk(copy).replace("qcow2'/><source", "raw'/><source"))
        here, there = tmp_path / "theirs", tmp_path / "pool"
        here.mkdir()
        found.domain("shop", devices=disk(found.overlay(here / "shop.qcow2", f"{folder / base}")))
        pool = found.pool(f"vmr-{MANAGER}2", there)
        found.overlay(there / "spare.qcow2", str(folder / base))
        found.file(there / f"vmr-{MANAGER}-5123abcd.qcow2")
        pool.refresh(0)
        found.network(f"vmr-{MANAGER}2", "vmrtheirs0", "10.88.3.1")
        found.table("inet", f"vmr-{MANAGER}2")
        yield found


Run = Callable[..., str]


@pytest.fixture
def run(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """The program, in this process: each start of another one would take a second."""
    on_terminate = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("VMRUNNER_CONFIG", str(ground.config))

    def one(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["vmrunner", *arguments])
        with suppress(SystemExit):
            main()
        said = capsys.readouterr()
        return said.out + said.err

    yield one
    signal.signal(signal.SIGTERM, on_terminate)  # main() set it
    gc.collect()  # so that what commands left open is closed here, and in nobody else's test


def unchanged(run: Run, others: Others, *arguments: str) -> str:
    """Run it; what others have is as before."""
    before = others.seen()
    said = run(*arguments)
    assert others.seen() == before, f"vmrunner {' '.join(arguments)}: {said}"
    return said


def test_no_command_touches_what_others_have(
    run: Run, host: LibvirtHost, golden: Golden, others: Others, qemu: Any
) -> None:
    base = image_volume(golden, DISK)
    for part in ("qcow2", MANIFEST):
        host._storage.write(f"{SNAPSHOT_PREFIX}{KEY}.{part}", b"x")
    ours = host._storage.create_blank, f"vmr-{MANAGER}-9123abcd.qcow2"
    ours[0](ours[1], 1 << 20)
    unchanged(run, others, "up")
    assert not host._storage.exists(ours[1]), "what is a leftover of ours goes"
    said = unchanged(run, others, "image", "prune", "--keep", "1")
    assert "web v2: removed" in said
    assert "web v1" not in said
    assert host._storage.exists(base)
    unchanged(run, others, "image", "promote", "web", "v1", "--force")
    unchanged(run, others, "image", "rollback", "web")
    unchanged(run, others, "snapshot", "drop", "--yes")
    interrupt = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))  # as Ctrl-C
    interrupt.start()
    unchanged(run, others, *EXEC)
    interrupt.join()
    said = unchanged(run, others, "down", "--all", "--purge", "--now")
    assert f"kept volume {base}" in said
    assert "kept volume image-of-my-cat.iso: vmrunner did not make it" in said
    left = sorted(path.name for path in (STORAGE / MANAGER).iterdir())
    assert left == sorted(
        [base, "notes.txt", "image-of-my-cat.iso", "snapshot-before-upgrade.qcow2",
         f"vmr-{MANAGER}-4123abcd.qcow2"]
    )  # fmt: skip
    assert f"vmr-{MANAGER}" not in [pool.name() for pool in qemu.listAllStoragePools()]
    (STORAGE / MANAGER / base).unlink()


def test_a_guest_defined_with_our_pool_and_network_keeps_both(
    host: LibvirtHost, golden: Golden, qemu: Any, tmp_path: Path
) -> None:
    base = image_volume(golden, DISK)
    host._network.ensure(idle=True, guest_on=host._strangers.on_network)
    devices = (
        f"<disk type='volume'><source pool='vmr-{MANAGER}' volume='{base}'/>"
        "<target dev='vda' bus='virtio'/><readonly/></disk>"
        f"<disk type='file'><source file='{STORAGE / MANAGER}/{SNAPSHOT_PREFIX}{KEY}.qcow2'/>"
        "<target dev='vdb' bus='virtio'/></disk>"
        f"<interface type='network'><source network='vmr-{MANAGER}'/></interface>"
    )
    with ExitStack() as stack:
        others = Others(qemu, tmp_path, stack)
        others.domain("shop", devices=devices)
        for part in ("ram", "qcow2"):
            host._storage.write(f"{SNAPSHOT_PREFIX}{KEY}.{part}", b"x")
        assert host.snapshots.drop(KEY) == [f"{SNAPSHOT_PREFIX}{KEY}.qcow2"]
        assert not host._storage.exists(f"{SNAPSHOT_PREFIX}{KEY}.ram")
        before = others.seen()
        network = qemu.networkLookupByName(f"vmr-{MANAGER}")
        done = host.purge()
        assert others.seen() == before
        assert host._storage.exists(base)
        assert network.isActive()
        assert {each.partition(":")[0] for each in done.kept} == {
            f"volume {base}", f"volume {SNAPSHOT_PREFIX}{KEY}.qcow2",
            f"storage pool vmr-{MANAGER}", f"network vmr-{MANAGER}",
        }  # fmt: skip
    assert not host.purge().kept


@pytest.mark.parametrize(
    "what",
    [
        "pool",
        "network",
        *(pytest.param(each, marks=pytest.mark.long) for each in ("bridge", "inet")),
    ],
)
def test_what_has_our_very_name_is_said_and_left_alone(
    ground: Ground, run: Run, host: LibvirtHost, qemu: Any, tmp_path: Path, what: str
) -> None:
    images, name = ground.folder / "state" / "images", f"vmr-{MANAGER}"
    publish(images, "v1", disk=b"d" * 4096)
    with ExitStack() as stack:
        others = Others(qemu, tmp_path, stack)
        if what == "pool":
            pool = others.pool(name, tmp_path / "theirs")
            for each in (f"vmr-{MANAGER}-0123abcd.qcow2", "image-web-v1.disk.qcow2", "notes.txt"):
                others.file(tmp_path / "theirs" / each)
            pool.refresh(0)
        elif what == "network":
            others.network(name, "vmrtheirs0", "10.88.2.1")
        else:
            others.table(what, name)
        said = unchanged(run, others, *EXEC)
        assert ("is not vmrunner's" in said) or ("is not at" in said), said
        assert "choose another `manager`" in said
        findings = json.loads(run("doctor", "--json"))
        assert [each for each in findings if each["level"] == "error" and name in each["said"]]
        for command in (["up"], ["image", "prune"], ["snapshot", "drop", "--yes"],
                        ["down", "--all", "--now", "--purge"]):  # fmt: skip
            unchanged(run, others, *command)
