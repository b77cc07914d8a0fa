"""Files out of the net that recipes name with their sha256: fetched once, and there for the next builds."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from vmrunner.errors import ImageError
from vmrunner.image import bootstrap, store, workshop
from vmrunner.image.programs import Log

FOLDER = f"{bootstrap.FOLDER}/downloads"
_PART = ".part-"
_KEPT = 30 * 86400.0  # seconds after their last use: longer than from one `image refresh` to the next


@dataclass(frozen=True)
class Downloads:
    """Those of a store of images."""

    images: Path
    log: Log

    def get(self, what: str, url: str, sha256: str) -> Path:
        """The file with this digest, which stays where it is. Raises ImageError, which begins with `what`, where the URL gives none."""
        kept = self.images / FOLDER / sha256
        if kept.is_file() and store.digest(kept) == sha256:
            self.log.step(f"taking {url}, fetched before")
            with suppress(OSError):
                os.utime(kept)
            return kept
        self.log.step(f"fetching {url}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_name(f"{_PART}{os.getpid()}")
        try:
            found = _fetch(what, url, part)
            if found != sha256:
                raise ImageError(f"{what} has the sha256 {found}, the recipe wants {sha256}.", "Check where it comes from.")
            part.replace(kept)
        finally:
            part.unlink(missing_ok=True)
        for path in stale(self.images):
            with suppress(OSError):
                path.unlink()
        return kept


def stale(images: Path) -> list[Path]:
    """What no build has taken for a month, and what killed ones began."""
    folder = images / FOLDER
    old = [path for path in folder.glob("[!.]*") if time.time() - path.stat().st_mtime > _KEPT]
    return [*workshop.abandoned(folder, _PART), *sorted(old)]


def _fetch(what: str, url: str, target: Path) -> str:
    """Returns the sha256 of what came."""
    total = hashlib.sha256()
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer, target.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                total.update(chunk)
                out.write(chunk)
    except httpx.HTTPError as error:
        raise ImageError(f"{what} can't be fetched from {url}: {error}.", "Fetch it by hand and name its path in the recipe.") from None
    return total.hexdigest()
