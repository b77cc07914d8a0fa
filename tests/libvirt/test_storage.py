"""Storage that does not work, through the program and the real libvirtd: a sentence that says what
is wrong with it, and a hint. No guest runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import libvirt
import pytest

from tests.goldens import publish
from tests.ground import Ground, lay
from vmrunner.doctor.findings import Level
from vmrunner.doctor.host import disk
from vmrunner.errors import DiskFull, HypervisorError

MANAGER = "stored"
EXEC = ("exec", "--image", "web", "--memory", "64MiB", "--", "true")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody reaches."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    folder.chmod(0o755)
    yield folder
    with suppress(libvirt.libvirtError):
        pool = libvirt.open("qemu:///system").storagePoolLookupByName(f"vmr-{MANAGER}")
        if pool.isActive():
            pool.destroy()
        pool.undefine()
    subprocess.run(["umount", "-q", "-l", str(folder / "disk")], check=False)
    shutil.rmtree(folder)


def ground_on(storage: Path, tmp_path: Path) -> Ground:
    ground = lay(tmp_path, MANAGER, "10.88.3.0/24", token="t0ken", url="http://127.0.0.1:9")
    images = tmp_path / "state" / "images"
    images.unlink()
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", "1M"], check=True)
    publish(images, "v1", disk=(tmp_path / "disk").read_bytes())
    text = ground.config.read_text()
    ground.config.write_text(text.replace("[libvirt]", f'[libvirt]\nstorage_path = "{storage}"'))
    return ground


def refused(ground: Ground) -> tuple[int, str, str]:
    """Exit code, sentence and hint of a machine that can't be made."""
    done = ground.run(*EXEC, check=False)
    assert "Traceback" not in done.stderr
    lines = done.stderr.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("vmrunner: "))
    return done.returncode, lines[at], lines[at + 1]


def mounted(folder: Path, options: str) -> Path:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    return folder


@pytest.mark.parametrize(
    "is_link", [False, pytest.param(True, marks=pytest.mark.long)], ids=["folder", "link"]
)
def test_a_folder_that_qemu_cant_enter_is_named(place: Path, tmp_path: Path, is_link: bool) -> None:
    closed = place / "closed"
    (closed / "storage").mkdir(parents=True)
    storage = closed / "storage"
    if is_link:
        storage = place / "link"
        storage.symlink_to("closed/storage")
    ground = ground_on(storage, tmp_path)
    closed.chmod(0o700)
    code, sentence, hint = refused(ground)
    assert code == HypervisorError.exit_code
    assert f"can't enter {closed}, which is on the way to the storage pool" in sentence
    assert "libvirt.storage_path" in hint
    assert f"setfacl -m u:libvirt-qemu:x {closed}" in hint
    if is_link:
        shown = ground.run("doctor", check=False).stdout
        assert f"can't enter {closed}" in " ".join(shown.split())


def test_storage_that_became_read_only(place: Path, tmp_path: Path) -> None:
    storage = mounted(place / "disk", "mode=0755")
    ground = ground_on(storage, tmp_path)
    (storage / MANAGER).mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(storage)], check=True)
    code, sentence, hint = refused(ground)
    assert (code, "is read-only" in sentence, "dmesg" in hint) == (5, True, True), sentence
    assert [each.level for each in disk(storage)] == [Level.ERROR]


@pytest.mark.long
def test_storage_without_inodes(place: Path, tmp_path: Path) -> None:
    storage = mounted(place / "disk", "mode=0755,nr_inodes=4")
    ground = ground_on(storage, tmp_path)
    code, sentence, hint = refused(ground)
    assert (code, "is full" in sentence, "df -i" in hint) == (DiskFull.exit_code, True, True)
    (found,) = disk(storage)
    assert (found.level, "inodes are free" in found.said) == (Level.ERROR, True)


def test_storage_that_works_has_no_finding(place: Path) -> None:
    assert list(disk(mounted(place / "disk", "mode=0755"))) == []


@pytest.mark.long
def test_libvirt_that_does_not_answer(place: Path, tmp_path: Path) -> None:
    ground = ground_on(place, tmp_path)
    pid = int(Path("/run/libvirtd.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        done = ground.run("status", check=False, timeout=120)
    finally:
        os.kill(pid, signal.SIGCONT)
    first, hint = done.stderr.splitlines()[-2:]
    assert done.returncode == HypervisorError.exit_code
    assert "takes the connection, and has not answered for 10 s" in first
    assert "systemctl status libvirtd" in hint
    assert ground.run("doctor", check=False).returncode in {10, 11}


@pytest.mark.long
def test_storage_that_is_slow_is_said_while_it_is_waited_for(place: Path, tmp_path: Path) -> None:
    """A file system whose program answers nothing, as with a server that is away; then it ends."""
    storage, device = place / "disk", os.open("/dev/fuse", os.O_RDWR)
    storage.mkdir()
    ground = ground_on(storage, tmp_path)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    subprocess.run(
        ["mount", "-i", "-t", "fuse", "-o", options, "none", str(storage)],
        check=True,
        pass_fds=[device],
    )
    with subprocess.Popen(
        ground.command(*EXEC),
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"VMRUNNER_CONFIG": str(ground.config)},
    ) as waits:
        assert waits.stderr
        try:
            late = next(line for line in waits.stderr if "has not answered" in line)
        finally:
            os.close(device)
        rest = waits.stderr.read()
    assert f"10 s: preparing the storage pool vmr-{MANAGER}" in late
    assert (waits.returncode, "Traceback" in rest) == (HypervisorError.exit_code, False)
    assert rest.startswith("vmrunner: libvirt refused preparing the storage pool")
    (found,) = disk(storage)
    assert (found.level, "can't be looked at" in found.said) == (Level.ERROR, True)
