"""Files from elsewhere, kept beside the images under the digest that their recipe wants, so that each is fetched once."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

import httpx

from vmrunner.errors import ImageError
from vmrunner.image.programs import Log

FOLDER = ".cache/downloads"
_KEPT = 30 * 86400.0  # seconds after its last use


def digest(path: Path, algorithm: str, hint: str) -> str:
    """The sha256 or sha512 of a file, as hex; raises ImageError with this hint where it can't be read."""
    try:
        with path.open("rb") as content:
            return hashlib.file_digest(content, algorithm).hexdigest()
    except OSError as error:
        raise ImageError(f"The file {path} can't be read: {error.strerror}.", hint) from None


def check(what: str, path: Path, algorithm: str, wanted: str) -> None:
    """Raise ImageError, which begins with `what`, where a file has another digest."""
    found = digest(path, algorithm, "Its path is relative to the recipe.")
    if found != wanted:
        raise ImageError(f"{what} has the {algorithm} {found}, the recipe wants {wanted}.", "Check where it comes from.")


def fetched(what: str, url: str, algorithm: str, wanted: str, images: Path, log: Log) -> Path:
    """The file from the cache, if it is whole, else from there. Raises ImageError where it can't be had, or has another digest."""
    folder = images / FOLDER
    kept = folder / wanted
    try:
        check(what, kept, algorithm, wanted)
        os.utime(kept)
        return kept
    except (ImageError, OSError):
        log.step(f"fetching {url}")
    folder.mkdir(parents=True, exist_ok=True)
    _forget(folder)
    part = folder / f".part-{os.getpid()}"
    try:
        download(what, url, part)
        check(what, part, algorithm, wanted)
        return part.replace(kept)
    finally:
        part.unlink(missing_ok=True)


def download(what: str, url: str, target: Path) -> None:
    """Fetch a file; raises ImageError where that fails, which begins with `what`."""
    try:
        with httpx.stream("GET", url, follow_redirects=True, timeout=60) as answer, target.open("wb") as out:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                out.write(chunk)
    except httpx.HTTPError as error:
        raise ImageError(f"{what} can't be fetched from {url}: {error}.", "Fetch it by hand and name its path in the recipe.") from None


def _forget(folder: Path) -> None:
    """Drop what nobody used for a month, and what killed builds began."""
    for path in folder.iterdir():
        pid = path.name.removeprefix(".part-")
        is_dead = path.name != pid and pid.isdigit() and not Path(f"/proc/{pid}").exists()
        with suppress(OSError):
            if is_dead or (path.name == pid and time.time() - path.stat().st_mtime > _KEPT):
                path.unlink()
