"""Published images of a few bytes, for tests of what is told about images."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vmrunner.image.recipe import lock
from vmrunner.image.versions.store import CURRENT, LOCK, MANIFEST
from vmrunner.model.image import DISK, Golden, Manifest, Package


def sha(text: str) -> str:
    """The sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def package(version: str, content: str = "") -> Package:
    """A package; `content` stands for what is in its .deb."""
    return Package(version=version, architecture="amd64", sha256=sha(content or version))


PACKAGES = {
    "curl": package("8.1"),
    "git": package("1:2.39.5-0+deb12u2"),
    "libc6": package("2.36~1"),
}


def publish(
    images: Path, name: str = "mine", version: str = "1", *, locked: bool = False, **changed: Any
) -> Golden:
    """Make it the current version of its name."""
    directory = images / name / version
    directory.mkdir(parents=True)
    (directory / DISK).write_text("a disk")
    pinned = lock.text(changed.get("packages", PACKAGES)) if locked else ""
    if locked:
        (directory / LOCK).write_text(pinned)
    plain: dict[str, Any] = {
        "name": name,
        "version": version,
        "recipe_digest": "0" * 64,
        "files": {DISK: sha("a disk")},
        "packages": PACKAGES,
        "suite": "bookworm",
        "inputs": {},
        "lock": sha(pinned) if locked else "",
        "kernel": "6.1",
        "built_at": "2026-11-01T10:00:00+00:00",
        "vmrunner_version": "1",
    }
    manifest = Manifest.model_validate(plain | changed)
    (directory / MANIFEST).write_text(manifest.model_dump_json())
    current = images / name / CURRENT
    current.unlink(missing_ok=True)
    current.symlink_to(version)
    return Golden(name, version, directory, manifest)
