"""Our own libvirt storage pool: golden images, overlays, seeds and logs, all through libvirt's storage API."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import libvirt

from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.connection import asking
from vmrunner.image.store import Golden
from vmrunner.model import PREFIX, MachineId
from vmrunner.render import xml

_CHUNK = 1 << 20


class Storage:
    """The directory pool `vmr-<manager>`."""

    def __init__(self, connection: Any, manager: str, root: Path) -> None:
        self._connection = connection
        self._manager = manager
        self.name = f"{PREFIX}-{manager}"
        self._path = root / manager

    def ensure(self) -> None:
        """Define and start the pool where it is missing; a pool of this name at another place is not ours."""
        with asking(f"preparing the storage pool {self.name}"):
            pool = self._pool()
            if pool is None:
                pool = self._connection.storagePoolDefineXML(xml("pool.xml.j2", name=self.name, path=self._path), 0)
                pool.build(0)
                pool.setAutostart(1)
            if not pool.isActive():
                pool.create(0)
            described = pool.XMLDesc(0)
        if f"<path>{self._path}</path>" not in described:
            raise HypervisorError(
                f"The storage pool {self.name} is not at {self._path}.",
                "Another vmrunner uses this manager id, or libvirt.storage_path changed.",
            )

    def _pool(self) -> Any | None:
        try:
            return self._connection.storagePoolLookupByName(self.name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
                return None
            raise

    def _volume(self, name: str) -> Any | None:
        pool = self._pool()
        if pool is None:
            return None
        try:
            return pool.storageVolLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() in {libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_STORAGE_POOL}:
                return None
            raise

    def names(self) -> list[str]:
        """Every volume, as the folder holds it now."""
        with asking("listing the storage pool"):
            pool = self._pool()
            if pool is None or not pool.isActive():
                return []
            pool.refresh(0)
            return sorted(pool.listVolumes())

    def machine_files(self) -> dict[MachineId, list[str]]:
        """The files of each machine of this manager."""
        found: dict[MachineId, list[str]] = {}
        for name in self.names():
            if machine := MachineId.of(self._manager, name):
                found.setdefault(machine, []).append(name)
        return found

    def path(self, name: str) -> str:
        """Where a volume is on the libvirt host, whether it exists yet or not."""
        return str(self._path / name)

    def image_path(self, golden: Golden, part: str) -> str:
        """Where a part of a published image is on the libvirt host."""
        return self.path(_image_volume(golden, part))

    def create_overlay(self, name: str, golden: Golden, disk_gib: int) -> None:
        """A qcow2 volume backed by a published image."""
        with asking("creating the overlay"):
            backing = self._volume(_image_volume(golden, "disk.qcow2"))
            if backing is None:
                raise HypervisorError(
                    f"The image {golden.name} is not in the storage pool.", "Run the command again: it publishes the image."
                )
            capacity = max(disk_gib << 30, backing.info()[1])
            described = xml("volume.xml.j2", name=name, format="qcow2", capacity=capacity, backing=backing.path(), mode="0600")
            self._connection.storagePoolLookupByName(self.name).createXML(described, 0)

    def write(self, name: str, content: bytes) -> None:
        """A raw volume with this content, readable by its owner only; an unfinished one is deleted again."""
        self._upload(name, len(content), content)

    def _upload(self, name: str, size: int, content: bytes | BinaryIO, mode: str = "0600") -> None:
        with asking(f"writing {name}"):
            pool = self._connection.storagePoolLookupByName(self.name)
            volume = pool.createXML(xml("volume.xml.j2", name=name, format="raw", capacity=size, backing="", mode=mode), 0)
            if not size:
                return
            try:
                stream = self._connection.newStream(0)
                volume.upload(stream, 0, size, 0)
                if isinstance(content, bytes):
                    view, at = memoryview(content), 0
                    while at < size:
                        at += stream.send(bytes(view[at : at + _CHUNK]))
                else:
                    while chunk := content.read(_CHUNK):
                        while chunk:
                            chunk = chunk[stream.send(chunk) :]
                stream.finish()
            except BaseException:
                volume.delete(0)
                raise

    def read(self, name: str, tail: int) -> bytes:
        """The last `tail` bytes of a volume; empty where there is none."""
        with asking(f"reading {name}"):
            volume = self._volume(name)
            if volume is None:
                return b""
            size = volume.info()[1]  # a raw file's size now, also when QEMU has made it longer since
            if not size:
                return b""
            stream = self._connection.newStream(0)
            offset = max(0, size - tail)
            volume.download(stream, offset, size - offset, 0)
            out = bytearray()
            while chunk := stream.recv(_CHUNK):
                out += chunk
            stream.finish()
            return bytes(out)

    def delete(self, name: str) -> None:
        """Delete a volume; one that is gone is fine."""
        with asking(f"deleting {name}"):
            volume = self._volume(name)
            if volume is not None:
                volume.delete(0)

    def publish(self, golden: Golden) -> None:
        """Upload an image's files; its manifest comes last, so that a half-published image is never used."""
        marker = _image_volume(golden, "manifest.json")
        wanted = json.dumps(golden.manifest.files, sort_keys=True).encode()
        if self.read(marker, len(wanted) + 1) == wanted:
            return
        present = set(self.names())
        for part in golden.manifest.files:
            name = _image_volume(golden, part)
            if name in present:
                self.delete(name)
            source = golden.directory / part
            with source.open("rb") as content:
                # World-readable: the QEMU user reads it as it is, and libvirt need not change its owner.
                self._upload(name, source.stat().st_size, content, "0644")
        self.names()  # refresh: only then libvirt sees a qcow2 where raw bytes were uploaded
        if marker in present:
            self.delete(marker)
        self.write(marker, wanted)


def _image_volume(golden: Golden, part: str) -> str:
    return f"image-{golden.name}-{golden.version}.{part}"
