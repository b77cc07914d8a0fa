"""Builds the golden image that the VM tests start from, into the cache; reuses it while its recipe's digest is the same.

Run with the host's network (`rig/rig run --outside`): nothing else in the suite needs a package registry.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.image import build, recipe, store

IMAGES = Path(os.environ.get("VMRUNNER_CACHE", "/cache")) / "images" / os.environ.get("RIG", "trixie")
NAME = "debian-12"


def usable(images: Path, name: str, digest: str) -> bool:
    """Whether the cache holds this image, whole and made from this recipe."""
    try:
        golden = store.find(images, name)
        store.verify(golden)
    except ImageError:
        return False
    return golden.manifest.recipe_digest == digest


def main() -> None:
    """Build what is missing; older versions go."""
    wanted = recipe.load(NAME)
    if usable(IMAGES, NAME, wanted.digest()):
        return
    shutil.rmtree(IMAGES / NAME, ignore_errors=True)
    build.build(wanted, IMAGES, lambda step: print(f"image {NAME}: {step} …", file=sys.stderr, flush=True))


if __name__ == "__main__":
    main()
