"""Which folder on the way to the storage pool keeps QEMU out."""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vmrunner.hypervisor import way
from vmrunner.hypervisor.qemu_user import User

QEMU = User(64055, 64055)  # Debian's


@pytest.fixture
def ground() -> Iterator[Path]:
    """A folder that everybody reaches, with `a/b/pool` in it."""
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    for each in (folder, folder / "a", folder / "a/b", folder / "a/b/pool"):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def mode(ground: Path) -> tuple[Path, Path]:
    (ground / "a").chmod(0o700)
    return ground / "a/b/pool/x.qcow2", ground / "a"


def last(ground: Path) -> tuple[Path, Path]:
    (ground / "a/b/pool").chmod(0o750)
    return ground / "a/b/pool", ground / "a/b/pool"


def behind_a_link(ground: Path) -> tuple[Path, Path]:
    (ground / "a/b").chmod(0o710)
    (ground / "link").symlink_to("a/b")
    (ground / "second").symlink_to(ground / "link" / "pool")
    return ground / "second" / "x.qcow2", ground / "a/b"


def back_and_forth(ground: Path) -> tuple[Path, Path]:
    """The link's own folder is closed, what it leads to is not."""
    (ground / "home").mkdir(mode=0o700)
    (ground / "home" / "pool").symlink_to("../a/b/pool")
    return ground / "home" / "pool" / "x.qcow2", ground / "home"


def acl(ground: Path) -> tuple[Path, Path]:
    """Everybody but QEMU."""
    entries = [(1, 7, 0xFFFFFFFF), (2, 0, QEMU.uid), (4, 5, 0xFFFFFFFF), (16, 7, 0xFFFFFFFF)]
    entries.append((32, 5, 0xFFFFFFFF))
    packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    os.setxattr(ground / "a", "system.posix_acl_access", packed)
    return ground / "a/b/pool/x.qcow2", ground / "a"


CASES = [mode, last, behind_a_link, back_and_forth, acl]


@pytest.mark.parametrize("close", CASES)
def test_the_folder_is_named(ground: Path, close: Callable[[Path], tuple[Path, Path]]) -> None:
    assert way.barrier(ground / "a/b/pool/x.qcow2", QEMU) is None
    path, closed = close(ground)
    assert way.barrier(path, QEMU) == closed


@pytest.mark.parametrize("close", [case for case in CASES if case is not acl])
def test_who_is_not_root_goes_by_modes(
    ground: Path, close: Callable[[Path], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert way.barrier(ground / "a/b/pool/x.qcow2", QEMU) is None
    path, closed = close(ground)
    assert way.barrier(path, QEMU) == closed


def test_an_acl_is_not_judged_by_its_mode(ground: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, closed = acl(ground)
    closed.chmod(0o700)  # which is the ACL's mask now
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert way.barrier(path, QEMU) is None


def test_links_in_a_circle_and_what_is_not_there_end(ground: Path) -> None:
    (ground / "one").symlink_to("two")
    (ground / "two").symlink_to("one")
    assert way.barrier(ground / "one" / "x", QEMU) is None
    assert way.barrier(ground / "none" / "x" / "y", QEMU) is None


def test_what_libvirt_says() -> None:
    said = "Cannot access storage file '/srv/x y/d.qcow2' (as uid:64055, gid:107): Permission "
    assert way.refused(said + "denied") == (Path("/srv/x y/d.qcow2"), User(64055, 107))
    assert way.refused("internal error: process exited") is None


@pytest.mark.parametrize(
    ("label", "user"), [("+64055:+107", User(64055, 107)), ("", None), ("qemu:qemu", None)]
)
def test_the_user_of_the_capabilities(label: str, user: User | None) -> None:
    text = (
        "<capabilities><host><secmodel><model>none</model></secmodel><secmodel><model>dac</model>"
        f"<baselabel type='kvm'>{label}</baselabel></secmodel></host></capabilities>"
    )
    assert User.of(ElementTree.fromstring(text)) == user  # noqa: S314 — our own words
