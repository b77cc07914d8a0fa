"""The Gitea test image with another initrd: it boots in a few seconds where the whole Debian takes
a minute under software emulation.

Disk, kernel and runner are the same, and what vmrunner says to a guest and hears of it is, too:
event port, both seeds, power-off. Only systemd and udev are left out, so this is for tests of the
manager that need many machines, not for tests of the guest.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.prepare import GITEA, IMAGES
from vmrunner.files import digest
from vmrunner.image.versions import store
from vmrunner.model.image import Golden

QUICK = "test-quick"
_ARGUMENTS = "console=ttyS0 quiet mitigations=off net.ifnames=0 panic=1"
_MODULES = (
    "virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk "
    "failover net_failover virtio_net cdrom isofs"
)
_PROGRAMS = ("sh", "mount", "insmod", "run-init", "cat")

# For klibc's shell.
_INIT = f"""#!/bin/sh
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
for module in {_MODULES}; do insmod /modules/$module.ko; done
mount -t tmpfs -o mode=755 tmpfs /run
mount -t ext4 -o rw,noatime /dev/vda /root
cat /quick >/run/quick
for folder in dev proc sys run; do mount -o move /$folder /root/$folder; done
exec run-init /root /bin/bash /run/quick </dev/console >/dev/console 2>&1
"""

# What systemd, udev and vmrunner-guest do for us otherwise. Runs as PID 1: when it ends the kernel
# panics, and the machine is gone.
_QUICK = r"""export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
modprobe virtio_console
mkdir -p /dev/virtio-ports /dev/disk/by-id /run/seed /run/vmrunner-guest /run/systemd/resolve
links() {
  local at name
  for at in /sys/class/virtio-ports/*; do
    read -r name <"$at/name" && ln -sf "/dev/${at##*/}" "/dev/virtio-ports/$name"
  done
  for at in /sys/block/vd*; do
    read -r name <"$at/serial"
    [ -n "$name" ] && [ ! -e "/dev/disk/by-id/virtio-$name" ] && ln -s "/dev/${at##*/}" "/dev/disk/by-id/virtio-$name"
  done
} 2>/dev/null
port=/dev/virtio-ports/org.vmrunner.events
until links; [ -e "$port" ]; do sleep 0.1; done
say() { printf '%s %s\n' "$1" "$EPOCHREALTIME" >"$port"; }
say up
mount -o ro -t iso9660 /dev/disk/by-id/virtio-vmrunner-seed /run/seed
name=$(sed -n 's/^local-hostname: *//p' /run/seed/meta-data)
hostname "${name//[\"\']/}"
cp /run/seed/user-data /run/seed/network-config /run/vmrunner-guest/
umount /run/seed
say seed
ip link set lo up
address=$(sed -n 's/^ *- \([0-9.]*\/[0-9]*\)$/\1/p' /run/vmrunner-guest/network-config)
gateway=$(sed -n 's/^ *via: //p' /run/vmrunner-guest/network-config)
if [ -n "$address" ]; then
  ip link set eth0 up
  ip address add "$address" dev eth0
  ip route add default via "$gateway"
  echo "nameserver $gateway" >/run/systemd/resolve/resolv.conf
fi
read -r interpreter </run/vmrunner-guest/user-data
"${interpreter#??}" /run/vmrunner-guest/user-data
sleep 5
"""  # noqa: E501 — a script keeps its lines


@dataclass(frozen=True)
class _Member:
    """One file of a cpio archive of the kind that the kernel reads."""

    name: str
    mode: int
    content: bytes

    def packed(self) -> bytes:
        path = self.name.encode() + b"\0"
        fields = [0, self.mode, 0, 0, 1, 0, len(self.content), 0, 0, 0, 0, len(path), 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        return _padded(head) + _padded(self.content)


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def _members(raw: bytes) -> Iterator[_Member]:
    at = 0
    while raw[at : at + 6] == b"070701":
        mode, size, length = (
            int(raw[at + 6 + 8 * field : at + 14 + 8 * field], 16) for field in (1, 6, 11)
        )
        begin = at + 110 + length + -(110 + length) % 4
        yield _Member(raw[at + 110 : at + 109 + length].decode(), mode, raw[begin : begin + size])
        at = begin + size + -size % 4


def _initrd(whole: bytes) -> bytes:
    """Debian's own klibc programs and modules, and our two scripts."""
    wanted = {f"usr/bin/{program}": f"bin/{program}" for program in _PROGRAMS}
    modules = {f"{module}.ko": f"modules/{module}.ko" for module in _MODULES.split()}
    folders = ("bin", "lib", "modules", "dev", "proc", "sys", "run", "root")
    taken = [_Member(name, 0o40755, b"") for name in folders] + [
        _Member("init", 0o100755, _INIT.encode())
    ]
    taken += [_Member("quick", 0o100644, _QUICK.encode()), _Member("dev/console", 0o20600, b"")]
    for member in _members(whole):
        last = member.name.rpartition("/")[2]
        name = (
            wanted.get(member.name)
            or modules.get(last)
            or (f"lib/{last}" if last.startswith("klibc-") else "")
        )
        if name and member.content:
            taken.append(_Member(name, 0o100755, member.content))
    return b"".join(member.packed() for member in (*taken, _Member("TRAILER!!!", 0, b"")))


def make(images: Path) -> Golden:
    """Lay the image into a store; one that is there is replaced."""
    golden = store.find(IMAGES, GITEA)
    folder = images / QUICK / golden.version
    shutil.rmtree(images / QUICK, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in golden.manifest.files:
        (folder / part).symlink_to(golden.directory / part)
    (folder / "initrd").unlink()
    (folder / "initrd").write_bytes(
        _initrd(gzip.decompress((golden.directory / "initrd").read_bytes()))
    )
    files = golden.manifest.files | {"initrd": digest(folder / "initrd")}
    changed = {"name": QUICK, "files": files, "kernel_arguments": _ARGUMENTS}
    (folder / "manifest.json").write_text(json.dumps(golden.manifest.model_dump() | changed))
    (images / QUICK / "current").symlink_to(golden.version)
    return store.find(images, QUICK)
