"""Golden images of a few bytes, published without building anything."""

from __future__ import annotations

import json
from pathlib import Path

from vmrunner.image import promotion, store
from vmrunner.image.promotion import Why
from vmrunner.image.store import DISK, MANIFEST, Golden


def publish(images: Path, version: str, *, name: str = "web", disk: bytes = b"disk", promote: bool = True) -> Golden:
    """As a build does it in the end."""
    folder = images / name / version
    folder.mkdir(parents=True)
    (folder / DISK).write_bytes(disk)
    manifest = {
        "name": name,
        "version": version,
        "recipe_digest": "0",
        "files": {DISK: store.digest(folder / DISK)},
        "packages": {},
        "built_at": "2026-01-01T00:00:00+00:00",
        "vmrunner_version": "0",
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    if promote:
        with promotion.changing(images, print):
            promotion.switch(images, name, version, Why.BUILT)
    return store.version(images, name, version)
