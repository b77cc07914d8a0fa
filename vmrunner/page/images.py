"""The images and disks of tools of this host with their versions, also damaged ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image.versions import promotion, proof, store
from vmrunner.image.versions.promotion import Promotion

_MOST = 20  # promotions of an image


@dataclass(frozen=True)
class Version:
    """One version, of which a manifest that can't be read tells nothing."""

    name: str
    is_current: bool
    is_damaged: bool
    built_at: str = ""  # ISO 8601
    kernel: str = ""
    runner: str = ""
    packages: int = 0
    tools: tuple[str, ...] = ()  # like "go 1.26.0", of a disk of tools
    proof: str = ""  # "good", "bad", or empty: nobody has looked
    forced: bool = False


@dataclass(frozen=True)
class Image:
    """Its versions, the newest first, and its promotions, the newest first."""

    name: str
    versions: tuple[Version, ...]
    promotions: tuple[Promotion, ...]

    @property
    def is_tools(self) -> bool:
        """Whether it is a disk of tools, as its newest version that can be read says."""
        found = next((each for each in self.versions if not each.is_damaged), None)
        return bool(found and found.tools)


def look(folder: Path) -> list[Image]:
    """Every image, by name."""
    if not folder.is_dir():
        return []
    names = sorted(
        each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")
    )
    return [
        Image(
            name,
            tuple(_version(folder, name, each) for each in reversed(store.versions(folder, name))),
            tuple(reversed(promotion.history(folder, name)))[:_MOST],
        )
        for name in names
    ]


def _version(folder: Path, name: str, version: str) -> Version:
    marks = tuple(_mark(folder / name / version / each) for each in (store.MANIFEST, proof.RECORD))
    return _read(folder, name, version, version == promotion.current(folder, name), marks)


def _mark(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=500)
def _read(
    folder: Path, name: str, version: str, is_current: bool, _marks: tuple[int, ...]
) -> Version:
    """A manifest lists hundreds of packages, and changes rarely."""
    try:
        golden = store.version(folder, name, version)
        found = proof.read(golden)
    except ImageError:
        return Version(version, is_current, is_damaged=True)
    manifest = golden.manifest
    return Version(
        version,
        is_current,
        is_damaged=False,
        built_at=manifest.built_at,
        kernel=manifest.kernel,
        runner=f"{manifest.runner.kind} {manifest.runner.version}".strip()
        if manifest.runner
        else "",
        packages=len(manifest.packages),
        tools=tuple(" ".join(place.split("/")[:2]) for place in manifest.tools),
        proof="" if found is None else "good" if found.is_good else "bad",
        forced=bool(manifest.forced),
    )
