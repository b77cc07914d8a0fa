"""Where a version of an image is made, out of sight, and how all of it appears in the store at
once.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vmrunner import files
from vmrunner.image.versions import promotion, store
from vmrunner.log import Say
from vmrunner.model.image import Golden, Manifest

CACHE = ".cache"
"""In the store: what builds take from builds before them."""
_PREFIX = ".building-"
_LOG = ".log"
_LOGS, _LOG_KEPT = 20, 30 * 86400.0  # of all images; seconds


@contextmanager
def opened(images: Path) -> Iterator[Path]:
    """A hidden folder beside the images; it goes afterwards, and those of processes that died go
    first.
    """
    images.mkdir(parents=True, exist_ok=True)
    for old in files.abandoned(images, _PREFIX):
        shutil.rmtree(old, ignore_errors=True)
    work = images / f"{_PREFIX}{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)  # of one that was killed, and had our id
    work.mkdir(mode=0o755)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def log(images: Path, name: str) -> Path:
    """The file for what the programs of one build print; those of the last builds are kept."""
    folder = images / _LOG
    folder.mkdir(parents=True, exist_ok=True)
    for old in _old_logs(images, _LOGS - 1):
        old.unlink(missing_ok=True)
    return folder / f"{name}.log"


def stale(images: Path) -> list[Path]:
    """The folders of builds that were killed, and logs of builds that are long over."""
    return [*files.abandoned(images, _PREFIX), *_old_logs(images, _LOGS)]


def used(paths: Iterable[Path]) -> dict[Path, float]:
    """When each was changed last, in unix seconds; without those that another process has removed
    meanwhile.
    """
    times = {}
    for path in paths:
        with suppress(FileNotFoundError):
            times[path] = path.stat().st_mtime
    return times


def _old_logs(images: Path, most: int) -> list[Path]:
    times = used((images / _LOG).glob("*.log"))
    newest = sorted(times, key=lambda path: times[path], reverse=True)
    kept = [path for path in newest[:most] if time.time() - times[path] < _LOG_KEPT]
    return sorted(times.keys() - set(kept))


def publish(out: Path, images: Path, manifest: Manifest, say: Say, *, promote: bool) -> Golden:
    """Make the folder `out`, which lies in a workshop, the version that its manifest names; with
    `promote` the current one.
    """
    home = images / manifest.name
    home.mkdir(exist_ok=True)
    final = home / manifest.version
    os.sync()  # a version that is visible is also on disk
    with promotion.changing(images, say):
        out.rename(final)
        if promote:
            promotion.switch(
                images, manifest.name, manifest.version, promotion.Why.BUILT, forced=True
            )
    return store.version(images, manifest.name, manifest.version)
