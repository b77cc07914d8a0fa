"""Other people's guests on the host, and the volumes of other pools: what of ours they use, so that
nobody takes it away from them. Nothing of them is changed.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt

from vmrunner.config import is_local
from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.connection import GONE, Link, asking
from vmrunner.hypervisor.domain import parse_metadata
from vmrunner.hypervisor.seam import Volume
from vmrunner.model.machine import MachineId

_HEADER = struct.Struct(">4sIQI")  # of a qcow2 file: magic, version, where the backing's name is
_LONGEST_NAME, _LONGEST_CHAIN = 1023, 200


@dataclass(frozen=True)
class Guest:
    """What the definition of a guest names."""

    name: str
    files: frozenset[str]
    # Disks among them that may lie on another file, which only their own headers tell.
    unread: frozenset[str]
    volumes: frozenset[tuple[str, str]]  # by the names of their pools and their own
    networks: frozenset[str]  # of libvirt, and bridges


def parse_guest(described: str) -> Guest:
    """What a domain's XML names, wherever in it."""
    root = ElementTree.fromstring(described)  # noqa: S314 — libvirt's own words
    words = [
        word
        for element in root.iter()
        for text in (element.text or "", *element.attrib.values())
        for word in (text, *re.split(r"[\s,=]", text))
    ]
    disks = root.findall("devices/disk")
    sources = [source for disk in disks for source in disk.iter("source")]
    cards = root.findall("devices/interface/source")
    return Guest(
        root.findtext("name", ""),
        frozenset(word for word in words if word.startswith("/")),
        frozenset(
            path
            for disk in disks
            if disk.find("backingStore") is None and _format(disk) != "raw"
            for source in disk.iterfind("source")
            if (path := source.get("file") or source.get("dev"))
        ),
        frozenset(
            (source.get("pool", ""), source.get("volume", ""))
            for source in sources
            if source.get("pool")
        ),
        frozenset(
            name
            for card in cards
            if (name := card.get("network") or card.get("bridge")) is not None
        ),
    )


def _format(disk: ElementTree.Element) -> str:
    driver = disk.find("driver")
    return driver.get("type", "") if driver is not None else ""


def backing(path: Path) -> str:
    """What a qcow2 file lies on, as its header says; empty where it lies on nothing, is no such
    file, or is not there. Raises PermissionError.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size:
                return ""
            magic, _, at, length = _HEADER.unpack(start)
            if magic != b"QFI\xfb" or not at or not 0 < length <= _LONGEST_NAME:
                return ""
            file.seek(at)
            name = file.read(length).decode("utf-8", "surrogateescape")
    except PermissionError:
        raise
    except OSError:
        return ""
    if name.startswith("json:"):
        found = re.search(r'"filename"\s*:\s*"([^"]+)"', name)
        name = found[1] if found else ""
    name = name.removeprefix("file:")
    return str(path.parent / name) if name and "://" not in name else ""


class Strangers:
    """All that is on a libvirt host and not of one manager."""

    def __init__(self, link: Link, manager: str, pool: str, folder: Path) -> None:
        self._link, self._manager = link, manager
        self._pool, self._folder = pool, folder  # where our own volumes are

    def guests(self) -> list[Guest]:
        """Every domain that is no machine of ours, as it is, and as it starts the next time."""
        found = []
        with asking("looking at other people's guests"):
            for domain in self._link.connection.listAllDomains(0):
                described = _described(domain, 0)
                machine = MachineId.of(self._manager, domain.name())
                if not described or (machine and parse_metadata(described, machine)):
                    continue
                now = parse_guest(described)
                found.append(now)
                with suppress(libvirt.libvirtError):
                    if not (domain.isActive() and domain.isPersistent()):
                        continue
                if later := _described(domain, libvirt.VIR_DOMAIN_XML_INACTIVE):
                    then = parse_guest(later)
                    # What a running one lies on, libvirt tells.
                    known = now.files - now.unread
                    found.append(replace(then, unread=then.unread - known - now.unread))
        return found

    def volumes(self) -> list[Volume]:
        """The volumes of all other pools, as libvirt saw them last, and what guests use, under
        their names. What lies in our own folder is spelt as we do. Raises where a guest's disk
        can't be looked into.
        """
        return self._of_guests(is_strict=True) + self._of_pools()

    def held(self) -> dict[str, str]:
        """Our volumes that somebody else uses, as far as this user can see, and whose they are in
        words.
        """
        return self._held(self._of_guests(is_strict=False) + self._of_pools())

    def held_by_guests(self) -> dict[str, str]:
        """Those of them that guests use."""
        return self._held(self._of_guests(is_strict=False))

    def _held(self, volumes: Sequence[Volume]) -> dict[str, str]:
        return {
            Path(volume.backing).name: volume.name
            for volume in volumes
            if volume.backing and Path(volume.backing).parent == self._folder
        }

    def _of_guests(self, *, is_strict: bool) -> list[Volume]:
        return [
            Volume(f"the guest {guest.name}", "", self._spelt(path), False)
            for guest in self.guests()
            for path in self._uses(guest, is_strict=is_strict)
        ]

    def _of_pools(self) -> list[Volume]:
        found: list[Volume] = []
        with asking("listing the storage pools"):
            for pool in self._link.connection.listAllStoragePools(
                libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE
            ):
                if pool.name() == self._pool:
                    continue
                with suppress(libvirt.libvirtError):  # it is stopped meanwhile
                    found += [
                        Volume(each.name, each.path, self._spelt(each.backing), False)
                        for volume in pool.listAllVolumes(0)
                        if (each := described_volume(volume, is_ours=False))
                    ]
        return found

    def on_network(self, *names: str) -> str:
        """A guest on one of these networks or bridges, or nothing."""
        return next((guest.name for guest in self.guests() if guest.networks & set(names)), "")

    def in_pool(self) -> str:
        """A guest whose definition names our pool, or nothing."""
        return next(
            (guest.name for guest in self.guests() if self._pool in dict(guest.volumes)), ""
        )

    def _uses(self, guest: Guest, *, is_strict: bool) -> Iterator[str]:
        yield from guest.files
        yield from (
            str(self._folder / volume) for pool, volume in guest.volumes if pool == self._pool
        )
        if is_local(self._link.uri):
            for path in guest.unread:
                try:
                    yield from _chain(path)
                except PermissionError as error:
                    if not is_strict:
                        continue
                    raise HypervisorError(
                        f"Nobody knows what the guest {guest.name} lies on: this user can't read "
                        f"{error.filename}.",
                        "Run it as root.",
                    ) from None

    def _spelt(self, path: str) -> str:
        """A path as it is; below our own folder with that folder's name, whatever symlinks led
        there.
        """
        if not path:
            return ""
        if is_local(self._link.uri):
            real = Path(os.path.realpath(path))
            if real.parent == Path(os.path.realpath(self._folder)):
                return str(self._folder / real.name)
        return os.path.normpath(path)


def _chain(path: str) -> Iterator[str]:
    for _ in range(_LONGEST_CHAIN):
        if not (path := backing(Path(path))):
            return
        yield path


def _described(domain: Any, flags: int) -> str:
    try:
        return str(domain.XMLDesc(flags))
    except libvirt.libvirtError as error:
        if error.get_error_code() in GONE:
            return ""
        raise


def described_volume(volume: Any, *, is_ours: bool) -> Volume | None:
    """What libvirt has read in the volume's own header; None for one that is gone meanwhile."""
    try:
        described = ElementTree.fromstring(volume.XMLDesc(0))  # noqa: S314 — libvirt's own words
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_VOL:
            return None
        raise
    return Volume(
        described.findtext("name", ""),
        described.findtext("target/path", ""),
        described.findtext("backingStore/path", ""),
        is_ours,
    )
