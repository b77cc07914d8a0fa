"""Files out of the net that recipes name with their digest: fetched once, and there for the next
builds.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from vmrunner import files
from vmrunner.errors import ImageError, NotFetched
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.versions import workshop

FOLDER = f"{workshop.CACHE}/downloads"
_ALGORITHMS = {64: "sha256", 128: "sha512"}  # by how long their words are
# Seconds after their last use: longer than from one `image refresh` to the next.
_KEPT = 30 * 86400.0


@dataclass(frozen=True)
class Downloads:
    """Those of a store of images."""

    images: Path
    log: BuildLog

    def get(self, what: str, url: str, digest: str) -> Path:
        """The file with this sha256 or sha512, which stays where it is.

        Raises ImageError, which begins with `what`, where the URL gives none.
        """
        kept, algorithm = self.images / FOLDER / digest, _ALGORITHMS[len(digest)]
        if kept.is_file() and files.digest(kept, algorithm) == digest:
            self.log.step(f"taking {url}, fetched before")
            with suppress(OSError):
                os.utime(kept)
            return kept
        self.log.step(f"fetching {url}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(kept) as part:
            found = fetch(what, url, part, algorithm)
            if found != digest:
                raise ImageError(
                    f"{what} has the {algorithm} {found}, the recipe wants {digest}.",
                    "Check where it comes from.",
                )
        for path in stale(self.images):
            with suppress(OSError):
                path.unlink()
        return kept


def stale(images: Path) -> list[Path]:
    """What no build has taken for a month, and what killed ones began."""
    folder = images / FOLDER
    old = [
        path for path, at in workshop.used(folder.glob("[!.]*")).items() if time.time() - at > _KEPT
    ]
    return [*files.abandoned(folder), *sorted(old)]


def fetch(what: str, url: str, target: Path, algorithm: str) -> str:
    """Write what the URL gives to `target`; returns its digest.

    Raises NotFetched where it gives nothing, ImageError where it can't be written.
    """
    total = hashlib.new(algorithm)
    with _answer(what, url) as answer:
        try:
            with target.open("wb") as out:
                for chunk in answer.iter_bytes():
                    total.update(chunk)
                    out.write(chunk)
        except OSError as error:
            raise ImageError(
                f"{what} can't be written to {target.parent}: {error.strerror}.",
                "Is there room, and may this user write there?",
            ) from None
    return total.hexdigest()


def read(what: str, url: str, most: int) -> bytes:
    """What the URL gives, of which no more than `most` bytes and a piece are read.

    Raises NotFetched.
    """
    found = b""
    with _answer(what, url) as answer:
        for chunk in answer.iter_bytes():
            found += chunk
            if len(found) >= most:
                break
    return found[:most]


@contextmanager
def _answer(what: str, url: str) -> Iterator[httpx.Response]:
    by_hand = "Fetch it by hand and name its path in the recipe."
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer:
            if not answer.is_success:
                said = f"{answer.status_code} {answer.reason_phrase}".strip()
                raise NotFetched(
                    f"{what} can't be fetched from {url}: its server answers {said}.",
                    by_hand,
                    status=answer.status_code,
                )
            yield answer
    except (
        httpx.HTTPError,
        httpx.InvalidURL,
        ValueError,
        OverflowError,
    ) as error:  # the last two of names and ports that can't be
        raise NotFetched(f"{what} can't be fetched from {url}: {error}.", by_hand) from None
