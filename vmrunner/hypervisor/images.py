"""Published images on a libvirt host: brought there, listed with what lies on them, deleted."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.connection import Link, asking
from vmrunner.hypervisor.seam import Volume
from vmrunner.hypervisor.storage import Digested, Storage, image_volume, refresh
from vmrunner.hypervisor.strangers import Strangers, described_volume
from vmrunner.log import Say, tell_part
from vmrunner.model.image import Golden
from vmrunner.model.machine import PREFIX

_LONGEST_MARKER = 65536  # bytes


class LibvirtImages:
    """The Images of the seam: volumes named `image-<name>-<version>.<part>`, the manifest last. It
    has the digests, and on a second line in which boot of the host the files were found to have
    them: what a host that lost its power had not written to the disk yet is not what is read later.
    """

    def __init__(self, link: Link, storage: Storage, strangers: Strangers, boot: str) -> None:
        self._link, self._storage, self._strangers = link, storage, strangers
        self._boot = boot.encode()

    def publish(self, golden: Golden, say: Say = lambda _: None) -> None:
        """Upload an image's files, of which `say` is told; its manifest comes last, so that a
        half-published image is never used. After a start of the host they are read once, and
        uploaded again where one is damaged. Raises ImageError.
        """
        marker = image_volume(golden, "manifest.json")
        digests = json.dumps(golden.manifest.files, sort_keys=True).encode()
        found, _, boot = self._storage.read(marker, _LONGEST_MARKER).partition(b"\n")
        if found == digests and boot == self._boot:
            return
        if found != digests or not self._is_whole(golden):
            self._upload(golden, marker, say)
        self._storage.delete(marker)
        self._storage.write(marker, digests + b"\n" + self._boot)

    def _is_whole(self, golden: Golden) -> bool:
        present = set(self._storage.names())
        return all(
            name in present and self._storage.digest(name) == expected
            for part, expected in golden.manifest.files.items()
            if (name := image_volume(golden, part))
        )

    def _upload(self, golden: Golden, marker: str, say: Say) -> None:
        self._storage.delete(marker)
        present = set(self._storage.names())
        for part in golden.manifest.files:
            name = image_volume(golden, part)
            if name in present:
                self._storage.delete(name)
            try:
                content = Digested((golden.directory / part).open("rb"))
            except OSError as error:
                raise golden.unreadable(part, error) from None
            with closing(content):
                say(f"{golden.id}: copying {part} to libvirt, {content.size >> 20} MiB")
                # World-readable: the QEMU user reads it as it is, and libvirt need not change its
                # owner.
                told = partial(tell_part, say, of=content.size)
                self._storage.upload(name, content.size, content, "0644", told)
            if content.sha256 != golden.manifest.files[part]:  # what is uploaded is what was built
                self._storage.delete(name)
                raise golden.damaged(part)
        # A refresh: only then libvirt sees a qcow2 where raw bytes were uploaded.
        self._storage.names()

    def volumes(self) -> list[Volume]:
        """Every volume of every manager's storage pool, as libvirt reads it now; then what else is
        on the host.
        """
        found = []
        with asking("listing the storage pools"):
            for pool in self._link.connection.listAllStoragePools(0):
                name = pool.name()
                if not name.startswith(f"{PREFIX}-"):
                    continue
                if not pool.isActive():
                    raise HypervisorError(
                        f"The storage pool {name} is not active, so that nobody knows what its "
                        "volumes lie on.",
                        f"`virsh pool-start {name}`, or `virsh pool-undefine {name}` if its "
                        "manager is gone for good.",
                    )
                refresh(pool)
                if name == self._storage.name:
                    found += [
                        each
                        for volume in pool.listAllVolumes(0)
                        if (each := described_volume(volume, is_ours=True))
                    ]
        return found + self._strangers.volumes()

    def drop(self, names: Sequence[str]) -> None:
        """Delete volumes of published images, none where anything lies on one."""
        if not names:
            return
        wanted = {self._storage.path(name): name for name in names}
        for volume in self.volumes():  # looked at now, whatever the caller has seen before
            # Volumes of ours lie in one folder, which may have a second path, by a symlink.
            of_us = (
                self._storage.path(Path(volume.backing).name)
                if volume.is_ours and volume.backing
                else ""
            )
            if base := wanted.get(of_us) or wanted.get(os.path.normpath(volume.backing)):
                raise HypervisorError(
                    f"{base} is not deleted: {volume.name} lies on it.",
                    "Run the command again: it looks anew.",
                )
        for name in names:
            self._storage.delete(name)
