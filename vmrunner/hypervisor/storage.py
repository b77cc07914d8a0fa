"""Our own libvirt storage pool: volumes that are made, written, read and deleted, all through
libvirt's storage API.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO
from xml.etree import ElementTree

import libvirt

from vmrunner.errors import DiskFull, HypervisorError, NameClash
from vmrunner.hypervisor.connection import Link, asking
from vmrunner.hypervisor.seam import Purged, image_stem, is_of_image, snapshot_of
from vmrunner.model.image import Golden
from vmrunner.model.machine import PREFIX, UNBOUNDED, MachineId
from vmrunner.render import xml
from vmrunner.waiting import Deadline

_CHUNK = 1 << 20
_READS = 4  # attempts at a file that is swapped for another one meanwhile
_ZEROS = bytes(_CHUNK)
_REFRESH_WITHIN = 120.0  # seconds; the longest volume job is the upload of an image
_NO_VOLUME = {
    libvirt.VIR_ERR_NO_STORAGE_VOL,
    libvirt.VIR_ERR_NO_STORAGE_POOL,
    # The pool is not active: libvirtd died while it was made, or somebody stopped it.
    libvirt.VIR_ERR_OPERATION_INVALID,
}
_RESERVE = 1 << 20  # bytes that stay free beside an upload


class Storage:
    """The directory pool `vmr-<manager>`."""

    def __init__(self, link: Link, manager: str, root: Path) -> None:
        self._link = link
        self._manager = manager
        self.name = f"{PREFIX}-{manager}"
        self.folder = root / manager
        self._known = ""  # the UUID of the pool that was looked at, and is ours
        # Called between the parts of a long upload.
        self.progress: Callable[[], object] = lambda: None

    def ensure(self) -> None:
        """Define and start the pool where it is missing; a pool of this name at another place is
        not ours.
        """
        with asking(f"preparing the storage pool {self.name}"):
            pool = self._pool()
            if pool is None:
                pool = self._link.connection.storagePoolDefineXML(
                    xml("pool.xml.j2", name=self.name, path=self.folder), 0
                )
            if not pool.isActive():
                # Again is fine, and needed where libvirtd died between defining and building.
                pool.build(0)
                pool.setAutostart(1)
                pool.create(0)

    def _pool(self) -> Any | None:
        """Our pool, or None where there is none. Raises NameClash where somebody else's has its
        name: nothing in there is ours.
        """
        try:
            pool = self._link.connection.storagePoolLookupByName(self.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                return None
            raise
        identity = pool.UUIDString()
        if identity != self._known:
            described = ElementTree.fromstring(pool.XMLDesc(0))  # noqa: S314 — libvirt's own words
            at = described.findtext("target/path", "")
            if described.get("type") != "dir" or at != str(self.folder):
                raise NameClash(
                    f"The storage pool {self.name} is not at {self.folder}, but at {at or '?'}.",
                    "Somebody else's is left alone: choose another `manager`; or has "
                    "libvirt.storage_path changed?",
                )
            self._known = identity
        return pool

    def _own(self) -> Any:
        """Our pool, which has to exist."""
        return self._pool() or self._link.connection.storagePoolLookupByName(self.name)

    def _volume(self, name: str) -> Any | None:
        pool = self._pool()
        if pool is None:
            return None
        try:
            return pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() in _NO_VOLUME:
                return None
            raise

    def _present(self, name: str) -> Any:
        """A volume that has to exist."""
        return self._own().storageVolLookupByName(name)

    def exists(self, name: str) -> bool:
        """Whether there is such a volume."""
        with asking(f"looking for {name}"):
            return self._volume(name) is not None

    def allocated(self, name: str) -> int:
        """Bytes of the host's disk that a volume takes."""
        with asking(f"looking at {name}"):
            return int(self._present(name).info()[2])

    def names(self) -> list[str]:
        """Every volume, as the folder holds it now."""
        with asking("listing the storage pool"):
            pool = self._pool()
            if pool is None or not pool.isActive():
                return []
            refresh(pool)
            return sorted(pool.listVolumes())

    def free_mib(self) -> int:
        """Free space where the volumes lie, in MiB; a pool that does not exist yet limits
        nobody.
        """
        with asking("asking for the storage pool's free space"):
            pool = self._pool()
            if pool is None or not pool.isActive():
                return UNBOUNDED
            return int(pool.info()[3]) >> 20

    def is_ours(self, name: str) -> bool:
        """Whether a volume's name is one that this manager gives."""
        return bool(MachineId.of(self._manager, name) or snapshot_of(name) or is_of_image(name))

    def remove(self, held: Mapping[str, str] = MappingProxyType({}), user: str = "") -> Purged:
        """Delete our volumes, but for those that somebody else holds (with whose they are), and
        the pool itself, unless a guest, the `user`, is defined with it.
        """
        names = self.names()
        going = [name for name in names if self.is_ours(name) and name not in held]
        kept = [
            f"volume {name}: "
            + (f"{held[name]} lies on it" if name in held else "vmrunner did not make it")
            for name in names
            if name not in going
        ]
        with asking(f"removing the storage pool {self.name}"):
            pool = self._pool()
            if pool is None:
                return Purged((), ())
            for name in going:
                self.delete(name)
            removed = [f"volume {name}" for name in going]
            if user:
                kept.append(f"storage pool {self.name}: the guest {user} is defined with it")
                return Purged(tuple(removed), tuple(kept))
            if pool.isActive():
                pool.destroy()
            with suppress(libvirt.libvirtError):  # its folder may hold what is not ours
                pool.delete(0)
            pool.undefine()
        with suppress(OSError):
            # If this host is the libvirt host, and no other manager is on it.
            self.folder.parent.rmdir()
        return Purged((*removed, f"storage pool {self.name}"), tuple(kept))

    def machine_files(self) -> dict[MachineId, list[str]]:
        """The files of each machine of this manager."""
        found: dict[MachineId, list[str]] = {}
        for name in self.names():
            if machine := MachineId.of(self._manager, name):
                found.setdefault(machine, []).append(name)
        return found

    def path(self, name: str) -> str:
        """Where a volume is on the libvirt host, whether it exists yet or not."""
        return str(self.folder / name)

    def image_path(self, golden: Golden, part: str) -> str:
        """Where a part of a published image is on the libvirt host."""
        return self.path(image_volume(golden, part))

    def create_overlay(
        self, name: str, backing_name: str, disk_gib: int, mode: str = "0600"
    ) -> None:
        """A qcow2 volume backed by another one."""
        with asking("creating the overlay"):
            backing = self._volume(backing_name)
            if backing is None:
                raise HypervisorError(
                    f"{backing_name} is not in the storage pool.",
                    "Run the command again: it publishes what is missing.",
                )
            capacity = max(disk_gib << 30, backing.info()[1])
            self._create(name, "qcow2", capacity, backing=backing.path(), mode=mode)

    def _create(
        self,
        name: str,
        kind: str,
        capacity: int,
        *,
        backing: str = "",
        mode: str = "0600",
        owner: str = "",
    ) -> Any:
        described = xml(
            "volume.xml.j2",
            name=name,
            format=kind,
            capacity=capacity,
            backing=backing,
            mode=mode,
            owner=owner,
        )
        return self._own().createXML(described, 0)

    def create_blank(self, name: str, size: int, owner: str = "") -> None:
        """A sparse raw volume of zeros; `owner` is a user id on the host, default root."""
        with asking(f"creating {name}"):
            self._create(name, "raw", size, owner=owner)

    def copy(self, source: str, name: str, mode: str = "0444", owner: str = "") -> None:
        """A copy of a raw volume, as sparse as the first, or sharing its blocks where the file
        system can do that.
        """
        with asking(f"copying {source}", is_long=True):
            pool = self._own()
            original = pool.storageVolLookupByName(source)
            described = xml(
                "volume.xml.j2",
                name=name,
                format="raw",
                capacity=original.info()[1],
                backing="",
                mode=mode,
                owner=owner,
            )
            pool.createXMLFrom(described, original, 0)

    def overwrite(self, name: str, content: bytes) -> None:
        """Write into a volume that exists, be it open or not."""
        with asking(f"writing {name}"):
            volume = self._present(name)
            stream = self._link.connection.newStream(0)
            volume.upload(stream, 0, len(content), 0)
            self._send(stream, content)
            stream.finish()

    def digest(self, name: str) -> str:
        """The sha256 of a volume, as hex; holes are read as the zeros that they are."""
        with asking(f"reading {name}", is_long=True):
            volume = self._present(name)
            found = hashlib.sha256()
            if not volume.info()[1]:
                return found.hexdigest()
            stream = self._link.connection.newStream(0)
            # To its end: what it says of its size is a disk's, and the file may be longer.
            volume.download(stream, 0, 0, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)

            def data(_stream: object, chunk: bytes, _opaque: object) -> int:
                found.update(chunk)
                self.progress()
                return len(chunk)

            def hole(_stream: object, length: int, _opaque: object) -> None:
                while length:
                    found.update(_ZEROS[: min(length, _CHUNK)])
                    length -= min(length, _CHUNK)

            stream.sparseRecvAll(data, hole, None)
            stream.finish()
            return found.hexdigest()

    def _send(self, stream: Any, content: bytes) -> None:
        view, at = memoryview(content), 0
        while at < len(content):
            at += stream.send(bytes(view[at : at + _CHUNK]))

    def write(self, name: str, content: bytes) -> None:
        """A raw volume with this content, readable by its owner only."""
        self.upload(name, len(content), content)

    def upload(
        self,
        name: str,
        size: int,
        content: bytes | Digested,
        mode: str = "0600",
        sent: Callable[[int], object] = lambda _: None,
    ) -> None:
        """A raw volume of `size` bytes, `sent` of which it is told now and then; an unfinished one
        is deleted again. Raises DiskFull.
        """
        with asking(f"writing {name}", is_long=not isinstance(content, bytes)):
            pool = self._own()
            if size:  # a refresh looks into every file of the pool, and an empty one needs no room
                refresh(pool)
            if size and pool.info()[3] < size + _RESERVE:
                # Asked beforehand, since libvirtd 11.3 dies of an upload that meets a full disk (a
                # general protection fault, seen in its stream's writer thread), and with it the
                # connection of everyone else on the host.
                raise DiskFull(
                    f"The storage pool is full: {name} needs {size >> 20} MiB.",
                    "Free some space, or lower the pool's `max`.",
                )
            volume = self._create(name, "raw", size, mode=mode)
            if not size:
                return
            try:
                stream = self._link.connection.newStream(0)
                volume.upload(stream, 0, size, 0)
                if isinstance(content, bytes):
                    self._send(stream, content)
                else:
                    done = 0
                    while chunk := content.read(_CHUNK):
                        self.progress()
                        sent(done)
                        done += len(chunk)
                        while chunk:
                            chunk = chunk[stream.send(chunk) :]
                stream.finish()
            except BaseException:
                volume.delete(0)
                raise

    def read(self, name: str, tail: int) -> bytes:
        """The last `tail` bytes of a volume; empty where there is none."""
        with asking(f"reading {name}"):
            for _ in range(_READS - 1):
                # While it is read virtlogd may put an empty file in its place: a guest writes as
                # much as it likes.
                with suppress(libvirt.libvirtError):
                    return self._read(name, tail)
            return self._read(name, tail)

    def _read(self, name: str, tail: int) -> bytes:
        volume = self._volume(name)
        if volume is None:
            return b""
        size = volume.info()[1]  # a raw file's size now, also when QEMU has made it longer since
        if not size:
            return b""
        stream = self._link.connection.newStream(0)
        offset = max(0, size - tail)
        volume.download(stream, offset, size - offset, 0)
        out = bytearray()
        while chunk := stream.recv(_CHUNK):
            out += chunk
        stream.finish()
        return bytes(out)

    def blank(self, name: str) -> None:
        """Write zeros over a volume, also for whoever has it open; one that is gone is fine."""
        with asking(f"blanking {name}"):
            volume = self._volume(name)
            if volume is not None:
                volume.wipe(0)

    def delete(self, name: str) -> None:
        """Delete a volume; one that is gone is fine."""
        with asking(f"deleting {name}"):
            volume = self._volume(name)
            if volume is not None:
                volume.delete(0)


class Digested:
    """A file that is read from its start to its end, and its digest then."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self.size = os.fstat(file.fileno()).st_size

    def read(self, most: int) -> bytes:
        """The next bytes; none at its end."""
        chunk = self._file.read(most)
        self._digest.update(chunk)
        return chunk

    @property
    def sha256(self) -> str:
        """Of what was read, as hex."""
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def refresh(pool: Any) -> None:
    """Make libvirt look at the folder again.

    It refuses while a volume is being made, be it by us or by another vmrunner.
    """
    deadline = Deadline(_REFRESH_WITHIN)
    while True:
        try:
            pool.refresh(0)
        except libvirt.libvirtError as error:
            if "asynchronous jobs" not in str(error) or deadline.is_over:
                raise
            deadline.pause(0.05)
        else:
            return


def image_volume(golden: Golden, part: str) -> str:
    """The volume of one part of a published image."""
    return f"{image_stem(golden.name, golden.version)}{part}"
