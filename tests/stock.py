"""A stock cloud image as a distribution makes one: GPT, GRUB, an ext4 root, cloud-init, an SSH
server, and nothing of vmrunner's.

Run with the host's network (`rig/rig run --outside -- python -m tests.stock`), by those who need it
only. No loop device and no mount: the file system is made in its place in the disk, the partition
table by sfdisk, and what `grub-install` would write is written here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vmrunner.files import digest

CACHE = Path(os.environ.get("VMRUNNER_CACHE", "/cache")) / "stock"
SUITE = "bookworm"
"""Of the image that the tests and benchmarks share: the same Debian as in their other images."""

_PACKAGES = (
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "fdisk",
    "grub-common",
    "grub-pc-bin",  # not grub-pc, whose scripts look for the disk that they are on
    "init",
    "initramfs-tools",
    "iproute2",
    "linux-image-cloud-amd64",
    "netbase",
    "openssh-server",
    "python3",
    "qemu-guest-agent",
    "sudo",
    "systemd-resolved",
    "udev",
)
_SECTOR, _MIB = 512, 1 << 20
_SIZE = 3 << 30
# Where GRUB's own partition and the root begin; the root ends a MiB before the disk, for the GPT's
# copy.
_BOOT, _ROOT = 1 * _MIB, 2 * _MIB
# The root comes last, so that it can grow; its number is 1, as everybody expects.
_LAYOUT = f"""\
label: gpt
disk14: start={_BOOT // _SECTOR}, size={(_ROOT - _BOOT) // _SECTOR}, type=21686148-6449-6E6F-744E-656564454649
disk1: start={_ROOT // _SECTOR}, size={(_SIZE - _MIB - _ROOT) // _SECTOR}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709
"""  # noqa: E501 — sfdisk wants each on a line
_GRUB = "/usr/lib/grub/i386-pc"
_MODULES = ("biosdisk", "part_gpt", "ext2", "normal", "linux", "serial", "terminal", "minicmd")
_MENU = """\
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=0
menuentry "Debian" {
  linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0,115200
  initrd /initrd.img
}
"""
# The fields that grub-install fills: where boot.img finds core.img, and where core.img's first
# sector finds the rest of it.
_CORE_SECTOR, _REST_SECTOR = 0x5C, _SECTOR - 12
Say = Callable[[str], None]


def ensure(suite: str, say: Say) -> Path:
    """The image from the cache, if it is whole and was made by this very file; else it is built."""
    path = cached(suite)
    note = path.with_suffix(".sha256")
    try:
        if digest(path) == note.read_text():
            return path
    except OSError:
        pass
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{suite}-*"):
        old.unlink()
    build(suite, path, say)
    note.write_text(digest(path))
    return path


def cached(suite: str) -> Path:
    """Where the cache has the image of this suite, or would have it."""
    return CACHE / f"{suite}-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]}.qcow2"


def build(suite: str, target: Path, say: Say) -> Path:
    """Make the image of a Debian suite, a qcow2.

    Nothing is at `target` before all of it is there.
    """
    part = target.with_suffix(".part")
    with tempfile.TemporaryDirectory(prefix="vmrunner-stock-") as name:
        work = Path(name)
        work.chmod(0o755)  # apt reads as a user of its own
        tree, disk = work / "tree", work / "disk"
        say(f"bootstrapping {suite}")
        _bootstrap(suite, tree, work)
        _furnish(tree)
        core = _boot_loader(tree)
        say("writing the disk")
        with disk.open("wb") as empty:
            empty.truncate(_SIZE)
        # GRUB of Debian 12 refuses a file system with metadata_csum_seed, which newer mke2fs turn
        # on.
        options = [
            "-q",
            "-t",
            "ext4",
            "-L",
            "root",
            "-O",
            "^metadata_csum_seed",
            "-E",
            f"offset={_ROOT},lazy_itable_init=0",
        ]
        _run("mke2fs", *options, "-d", tree, disk, f"{(_SIZE - _MIB - _ROOT) // 1024}k")
        _partition(tree, disk)
        with disk.open("r+b") as raw:
            raw.write(
                _patched(
                    (tree / _GRUB[1:] / "boot.img").read_bytes(), _CORE_SECTOR, _BOOT // _SECTOR
                )[:440]
            )
            raw.seek(_BOOT)
            raw.write(_patched(core, _REST_SECTOR, _BOOT // _SECTOR + 1))
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=1.1", disk, part)
    part.chmod(0o444)
    return part.rename(target)


def _run(*command: str | Path, stdin: str = "") -> None:
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} failed (exit "
            f"{done.returncode}):\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )


def _bootstrap(suite: str, tree: Path, work: Path) -> None:
    """Debian's packages, from where the rig's own came."""
    apt = Path("/etc/apt")
    text = "\n".join(
        path.read_text() for path in sorted((apt / "sources.list.d").glob("*.sources"))
    )
    (own,) = re.findall(r"(?m)^VERSION_CODENAME=(\w+)", Path("/etc/os-release").read_text())
    sources = work / "stock.sources"
    sources.write_text(re.sub(rf"\b{own}\b", suite, text))
    settings = [f"--aptopt={path}" for path in sorted((apt / "apt.conf.d").glob("99*"))]
    options = [
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--dpkgopt=force-unsafe-io",
        f"--include={','.join(_PACKAGES)}",
    ]
    _run("mmdebstrap", *options, *settings, suite, tree, sources)


def _furnish(tree: Path) -> None:
    """What a distribution's own build script does after the packages."""
    (tree / "etc/fstab").write_text("LABEL=root / ext4 rw,errors=remount-ro 0 1\n")
    (tree / "etc/hostname").write_text("localhost\n")
    # The C locale is all there is.
    (tree / "etc/cloud/cloud.cfg.d/01_stock.cfg").write_text("locale: false\n")
    (tree / "etc/machine-id").write_text("")  # each machine makes its own at its first boot
    for key in (tree / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    resolver = tree / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    resolver.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    _run(
        "chroot",
        tree,
        "systemctl",
        "enable",
        "systemd-networkd.service",
        "systemd-resolved.service",
    )


def _boot_loader(tree: Path) -> bytes:
    """GRUB's folder in the tree; returns its core, which goes into a partition of its own."""
    folder, core = tree / "boot/grub", tree / "boot/grub/i386-pc/core.img"
    shutil.copytree(
        tree / _GRUB[1:],
        folder / "i386-pc",
        ignore=shutil.ignore_patterns("*.image", "*.exec"),
        dirs_exist_ok=True,
    )
    (folder / "grub.cfg").write_text(_MENU)
    _run(
        "chroot",
        tree,
        "grub-mkimage",
        "-O",
        "i386-pc",
        "-p",
        "(,gpt1)/boot/grub",
        "-o",
        f"/{core.relative_to(tree)}",
        *_MODULES,
    )
    return core.read_bytes()


def _partition(tree: Path, disk: Path) -> None:
    """With the image's own sfdisk: the rig has none."""
    inside = tree / "disk"
    disk.rename(inside)
    _run(
        "chroot",
        tree,
        "sfdisk",
        "--quiet",
        "--no-reread",
        "--no-tell-kernel",
        "--wipe=never",
        "/disk",
        stdin=_LAYOUT,
    )
    inside.rename(disk)


def _patched(program: bytes, at: int, sector: int) -> bytes:
    return program[:at] + sector.to_bytes(8, "little") + program[at + 8 :]


if __name__ == "__main__":
    ensure(SUITE, lambda step: print(f"stock image: {step} …", file=sys.stderr, flush=True))
