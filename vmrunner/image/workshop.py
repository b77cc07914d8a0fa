"""Where a version of an image is made, out of sight, and how all of it appears in the store at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vmrunner.image import promotion, store
from vmrunner.image.store import Golden, Manifest

_PREFIX = ".building-"
_LOGS = 20  # of all images
Say = Callable[[str], object]


@contextmanager
def opened(images: Path) -> Iterator[Path]:
    """A hidden folder beside the images; it goes afterwards, and those of processes that died go first."""
    images.mkdir(parents=True, exist_ok=True)
    for old in images.glob(f"{_PREFIX}*"):
        pid = old.name.removeprefix(_PREFIX)
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    work = images / f"{_PREFIX}{os.getpid()}"
    work.mkdir(mode=0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def log(images: Path, name: str) -> Path:
    """The file for what the programs of one build print; those of the last builds are kept."""
    folder = images / ".log"
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[: -_LOGS + 1]:
        old.unlink(missing_ok=True)
    return folder / f"{name}.log"


def publish(out: Path, images: Path, manifest: Manifest, say: Say, *, promote: bool) -> Golden:
    """Make the folder `out`, which lies in a workshop, the version that its manifest names; with `promote` the current one."""
    home = images / manifest.name
    home.mkdir(exist_ok=True)
    final = home / manifest.version
    os.sync()  # a version that is visible is also on disk
    with promotion.changing(images, say):
        out.rename(final)
        if promote:
            promotion.switch(images, manifest.name, manifest.version, promotion.Why.BUILT, forced=True)
    return store.version(images, manifest.name, manifest.version)
