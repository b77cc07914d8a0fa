"""Old versions of images: which of them nothing needs any more, looked at and not remembered, and
their end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vmrunner import lock
from vmrunner.config import HostConfig
from vmrunner.errors import Busy
from vmrunner.hypervisor.seam import (
    IMAGE_PREFIX,
    SNAPSHOT_PREFIX,
    File,
    Hypervisor,
    Snapshot,
    Volume,
    image_stem,
    is_of_image,
    snapshot_of,
)
from vmrunner.image.build import bootstrap, downloads
from vmrunner.image.versions import promotion, proof, store, workshop
from vmrunner.image.versions.promotion import Why
from vmrunner.image.versions.store import MANIFEST
from vmrunner.log import Say
from vmrunner.machine import ownership
from vmrunner.model.image import DISK
from vmrunner.model.machine import Machine
from vmrunner.waiting import Deadline

GONE = ".gone-"
"""What the name of a folder on its way out begins with."""
_SETTLES_WITHIN, _POLL = 30.0, 0.2  # seconds; `vmrunner exec` makes an overlay in less than one


@dataclass(frozen=True)
class Waste:
    """What nothing needs: versions in the store, snapshots and volumes of images on the host, and
    what builds left beside the store.
    """

    versions: tuple[tuple[str, str], ...] = ()  # name, version
    snapshots: tuple[str, ...] = ()  # keys
    volumes: tuple[str, ...] = ()
    # Files and folders below the images: kept packages, logs, folders of builds that were killed.
    leftovers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.versions or self.snapshots or self.volumes or self.leftovers)


def prune(
    hypervisor: Hypervisor, settings: HostConfig, name: str | None, keep: int, say: Say
) -> Waste:
    """Remove what `find` finds, and return it. Raises Busy where other vmrunners are at work for
    long.

    Killed anywhere, it leaves whole images, or remains that the next one removes.
    """
    images = settings.images_dir
    _check(images, name)
    with ExitStack() as stack:
        # All who put something onto an image hold one of these, or own a machine: see `_settled`.
        # In the order of making a snapshot.
        for holder in (f"{settings.manager}-snapshot", settings.manager):
            stack.enter_context(
                lock.exclusive(settings.runtime_dir, holder, wait=ownership.LOCK_WAIT, say=say)
            )
        if images.is_dir():
            stack.enter_context(promotion.changing(images, say))
        waste = _find(
            images,
            _settled(hypervisor, settings.runtime_dir),
            hypervisor.machines.all(),
            hypervisor.snapshots.all(),
            name,
            keep,
        )
        for key in waste.snapshots:
            hypervisor.snapshots.drop(key)
        hypervisor.images.drop(waste.volumes)
        for half in images.glob(f"[!.]*/{GONE}*"):
            shutil.rmtree(half)
        for image, version in waste.versions:
            # In one step: nobody finds half of a version.
            gone = images / image / f"{GONE}{version}"
            (images / image / version).rename(gone)
            shutil.rmtree(gone)
        for leftover in waste.leftovers:
            _remove(images / leftover)
    return waste


def find(hypervisor: Hypervisor, settings: HostConfig, name: str | None, keep: int) -> Waste:
    """What nothing needs now: of the image `name`, or of all, and then of builds, too.

    A version is needed that is current, or one of the newest `keep` that were not found bad, or
    that a volume of this host lies on, or that a live machine names. Snapshots alone keep none;
    machines that were cloned from one keep it and the image under it.
    """
    _check(settings.images_dir, name)
    return _find(
        settings.images_dir,
        hypervisor.images.volumes(),
        hypervisor.machines.all(),
        hypervisor.snapshots.all(),
        name,
        keep,
    )


def _check(images: Path, name: str | None) -> None:
    if name is not None and not store.versions(images, name):
        store.find(images, name)  # says which there are


def _settled(hypervisor: Hypervisor, runtime_dir: Path) -> list[Volume]:
    """The host's volumes at a moment when each machine that belongs to a process has its overlay.

    `vmrunner exec` brings its image to the host under the manager's lock, and makes the overlay
    after that.
    """
    deadline = Deadline(_SETTLES_WITHIN)
    while True:
        # Before the volumes: one that ends meanwhile is waited for once more.
        owned = ownership.owned(hypervisor.manager, runtime_dir)
        volumes = hypervisor.images.volumes()
        names = {volume.name for volume in volumes if volume.is_ours}
        missing = sorted(
            str(machine) for machine in owned if f"{machine}.{File.OVERLAY}" not in names
        )
        if not missing:
            return volumes
        if deadline.is_over:
            raise Busy(
                f"The machine {missing[0]} is being made, and may need any version.",
                "Try again when it runs.",
            )
        deadline.pause(_POLL)


def _find(
    images: Path,
    volumes: Sequence[Volume],
    machines: Sequence[Machine],
    whole: Sequence[Snapshot],
    only: str | None,
    keep: int,
) -> Waste:
    homes = (
        sorted(path.name for path in images.iterdir() if not path.name.startswith("."))
        if images.is_dir()
        else []
    )
    known = {name: store.versions(images, name) for name in homes}
    used, snapshots = _used(volumes, machines)
    live = {
        name
        for machine in machines
        if machine.metadata
        for name in (machine.metadata.image, machine.metadata.tools)
    }
    stems = {name.removesuffix(DISK) for name in used} | {
        image_stem(*image.split("/", 1)) for image in live if "/" in image
    }

    def is_needed(name: str, version: str) -> bool:
        stem = image_stem(name, version)
        return (
            stem in stems
            or any(each.startswith(stem) for each in used)
            or _is_under(images / name / version, volumes)
        )

    going = []
    for name, versions in known.items():
        bad = _bad(images, name, versions)
        kept = {
            *[version for version in versions if version not in bad][-keep:],
            promotion.current(images, name),
        }
        if only in (None, name):
            going += [
                (name, version)
                for version in versions
                if version not in kept and not is_needed(name, version)
            ]
    stems |= {
        image_stem(name, version)
        for name in known
        for version in known[name]
        if (name, version) not in going
    }
    mine = [volume for volume in volumes if volume.is_ours]
    gone = [
        volume.name
        for volume in mine
        if is_of_image(volume.name)
        and only in (None, _owner(volume.name, homes))
        and volume.name not in used
        and not volume.name.startswith(tuple(stems))
    ]
    # The manifest first: without it nobody takes the rest for a published image.
    gone.sort(key=lambda name: (not name.endswith(f".{MANIFEST}"), name))
    keys = [
        _key(volume.name)
        for volume in mine
        if snapshot_of(volume.name)
        and Path(volume.backing).name in gone
        and _key(volume.name) not in snapshots
    ]
    # A disk of tools is no backing file: what goes with it is known by the snapshot's own word.
    tools = {f"{name}/{version}" for name, version in going}
    keys += [each.key for each in whole if each.tools in tools and each.key not in snapshots]
    stale = (
        []
        if only
        else [*workshop.stale(images), *bootstrap.stale(images), *downloads.stale(images)]
    )
    return Waste(
        tuple(going),
        tuple(sorted(set(keys))),
        tuple(gone),
        tuple(str(path.relative_to(images)) for path in stale),
    )


def _remove(path: Path) -> None:
    """A build may do so at the same time."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _bad(images: Path, name: str, versions: Sequence[str]) -> set[str]:
    """Versions that nobody goes back to: found bad when they were verified, or rolled back because
    their machines failed.
    """
    left = {each.before for each in promotion.history(images, name) if each.why is Why.STEPPED_BACK}
    return left | {version for version in versions if proof.is_bad(images / name / version)}


def _used(volumes: Sequence[Volume], machines: Sequence[Machine]) -> tuple[set[str], set[str]]:
    """The names of our volumes that others lie on, and the keys of snapshots that have clones.

    What only an unused snapshot lies on is not among the first.
    """
    by_path = {os.path.normpath(volume.path): volume.name for volume in volumes if volume.is_ours}

    def base(volume: Volume) -> str:
        # By name among ours: they lie in one folder, and a symlink may give it a second path.
        return (
            Path(volume.backing).name
            if volume.is_ours
            else by_path.get(os.path.normpath(volume.backing), "")
        )

    def is_snapshot(volume: Volume) -> bool:
        return volume.is_ours and volume.name.startswith(SNAPSHOT_PREFIX)

    based = [volume for volume in volumes if volume.backing]
    used = {base(volume) for volume in based if not is_snapshot(volume)} - {""}
    snapshots = {
        machine.metadata.snapshot
        for machine in machines
        if machine.metadata and machine.metadata.snapshot
    }
    snapshots |= {_key(name) for name in used if name.startswith(SNAPSHOT_PREFIX)}
    used |= {
        base(volume) for volume in based if is_snapshot(volume) and _key(volume.name) in snapshots
    }
    return used, snapshots


def _is_under(folder: Path, volumes: Sequence[Volume]) -> bool:
    """Whether any volume lies on a file of the store itself.

    None of vmrunner's does: they lie on copies.
    """
    folders = {folder.absolute(), folder.resolve()}
    return any(
        parent in folders
        for volume in volumes
        if volume.backing
        for parent in Path(os.path.normpath(volume.backing)).parents
    )


def _owner(volume: str, names: Sequence[str]) -> str:
    """Whose volume this is: the image with the longest name that fits, since names may have
    hyphens.
    """
    return max(
        (name for name in names if volume.startswith(f"{IMAGE_PREFIX}{name}-")), key=len, default=""
    )


def _key(volume: str) -> str:
    return volume.removeprefix(SNAPSHOT_PREFIX).partition(".")[0]
