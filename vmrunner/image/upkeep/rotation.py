"""How a version goes live: verified, its snapshots made, and only then the current one; and how
images renew themselves.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from vmrunner import lock
from vmrunner.config import Config, HostConfig, PoolConfig
from vmrunner.errors import ImageError, SnapshotError
from vmrunner.hypervisor.seam import Hypervisor, Snapshot
from vmrunner.image.upkeep import prune
from vmrunner.image.upkeep.prune import GONE
from vmrunner.image.versions import diff, promotion, store
from vmrunner.image.versions import verify as verifying
from vmrunner.image.versions.promotion import Why
from vmrunner.image.versions.proof import Proof
from vmrunner.log import Say
from vmrunner.machine import clones
from vmrunner.model.image import Golden
from vmrunner.model.machine import Shape

_SNAPSHOT = 600.0  # seconds


@dataclass(frozen=True)
class Stage:
    """The host that versions are tried on."""

    hypervisor: Hypervisor
    settings: HostConfig
    say: Say

    def verify(self, golden: Golden) -> Proof:
        """See verify.verify."""
        return verifying.verify(self.hypervisor, self.settings, golden, say=self.say)

    def go_live(self, golden: Golden) -> None:
        """Verify a version, make the snapshots that machines will be cloned from, switch to it: the
        next machine is as quick as the last.

        Raises ImageError where it is not good; it stays published then, and is not current.
        """
        proof = self.verify(golden)
        if not proof.is_good:
            raise ImageError(
                f"The image {golden.name} {golden.version} is not good, and was not promoted: "
                f"{proof.said}.",
                f"`vmrunner image verify {golden.id}` shows all that was looked at.",
            )
        for note in proof.notes:
            self.say(f"{golden.name} {golden.version}: {note}")
        self.make_snapshots(golden)
        promotion.promote(
            self.settings.images_dir, golden.name, golden.version, self.say, why=Why.BUILT
        )

    def make_snapshots(self, golden: Golden) -> None:
        """Those that the pools want, and those that the current version has.

        Without one machines are booted, so a failure is only said.
        """
        for whole, shape in self._cloned(golden):
            if self.hypervisor.snapshots.find(whole, shape):
                continue
            try:
                clones.make(
                    self.hypervisor, self.settings, whole, shape, timeout=_SNAPSHOT, say=self.say
                )
            except SnapshotError as error:
                self.say(
                    f"No snapshot of {whole.name} {whole.version}, so its machines are booted: "
                    f"{error.sentence}"
                )

    def _cloned(self, golden: Golden) -> list[tuple[Golden, Shape]]:
        """What machines that are, or shall be, cloned are made of, once this version is the current
        one, and their sizes.
        """
        pools = self.settings.pools.values() if isinstance(self.settings, Config) else ()
        found = [
            (whole, pool.shape)
            for pool in pools
            if pool.start != "boot" and (whole := self._with(golden, pool))
        ]
        there = [
            (whole, each.shape)
            for each in self.hypervisor.snapshots.all()
            if (whole := self._in_place_of(golden, each))
        ]
        pairs = [*found, *there]
        return [pair for number, pair in enumerate(pairs) if pair not in pairs[:number]]

    def _with(self, golden: Golden, pool: PoolConfig) -> Golden | None:
        """What the pool's machines are made of, with this version in the place of the current one;
        None where they have nothing to do with it, or the rest is not there yet.
        """
        current = partial(store.current, self.settings.images_dir)
        if pool.tools == golden.name and (image := current(pool.image)):
            return replace(image, tools=golden)
        if pool.image != golden.name:
            return None
        tools = current(pool.tools) if pool.tools else None
        return None if pool.tools and not tools else replace(golden, tools=tools)

    def _in_place_of(self, golden: Golden, snapshot: Snapshot) -> Golden | None:
        """What the snapshot was made of, with this version in the place of the current one; None
        where that is not in it, or the rest of it is an old one.
        """
        names = [each.partition("/")[0] for each in (snapshot.image, snapshot.tools)]
        if golden.name not in names:
            return None
        image, tools = (
            store.current(self.settings.images_dir, name) if name else None for name in names
        )
        there = (image.id if image else "", tools.id if tools else "")
        if image is None or there != (snapshot.image, snapshot.tools):
            return None
        if golden.name == image.name:
            return replace(golden, tools=tools)
        return replace(image, tools=golden)

    def settle(self, candidate: Golden) -> str:
        """What becomes of a version that was built anew: live, where it is another one than the
        current and good; else dropped, or left.

        Returns what was done, in words. Raises ImageError where it is not good.
        """
        images, name = self.settings.images_dir, candidate.name
        known = store.current(images, name)
        if known:
            found = diff.between(known, candidate)
            if found.is_empty and found.files is not None:
                drop(images, candidate, self.say)
                return f"nothing new, {known.version} stays"
        if diff.content(candidate.manifest) in promotion.stepped_back_from(images, name):
            drop(images, candidate, self.say)
            return (
                f"what there is was rolled back before, {known.version if known else 'nothing'} "
                "stays"
            )
        self.go_live(candidate)
        gone = prune.prune(
            self.hypervisor, self.settings, name, self.settings.images.keep, self.say
        )
        old = f", {len(gone.versions)} old removed" if gone.versions else ""
        return f"{candidate.version} is current{old}"


def used(settings: HostConfig, names: Sequence[str]) -> list[str]:
    """The named images, or those that the pools use, and the disks of tools of pools and of
    flavors.
    """
    if names or not isinstance(settings, Config):
        return list(names)
    pools, flavors = settings.pools.values(), settings.garm.flavors.values()
    found = [name for pool in pools for name in (pool.image, pool.tools)]
    found += [flavor.tools for flavor in flavors]
    return [name for name in dict.fromkeys(found) if name]


def only_one(images: Path, say: Say) -> AbstractContextManager[None]:
    """Held while images are renewed: twice at once would build the same twice. Raises Busy."""
    return lock.held(
        images / ".refresh.lock",
        "Another vmrunner renews the images",
        "Wait for it.",
        wait=0,
        say=say,
    )


def drop(images: Path, golden: Golden, say: Say) -> None:
    """Remove a version that never was current."""
    with promotion.changing(images, say):
        gone = images / golden.name / f"{GONE}{golden.version}"
        golden.directory.rename(gone)
        shutil.rmtree(gone)
