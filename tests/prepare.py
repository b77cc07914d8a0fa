"""Builds the golden images that the VM tests start from, into the cache; reuses them while their
recipes' digests are the same.

Run with the host's network (`rig/rig run --outside -- python -m tests.prepare [NAME…]`): nothing
else in the suite but tests.stock needs a package registry.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import containers
from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.image.build import build
from vmrunner.image.recipe import recipe
from vmrunner.image.versions import promotion, store, workshop
from vmrunner.image.versions.promotion import Why
from vmrunner.resources import folder

RECIPES = Path(__file__).parent / "images"
GITEA, FORGEJO, CLOUD_INIT, DOCKER = "test-gitea", "test-forgejo", "test-cloud-init", "test-docker"
JOBS, JOBS_DOCKER = "test-jobs", "test-jobs-docker"
"""For `make conformance`; the second one is only built where it is named."""
CACHED, CACHED_WHOLE = "test-cached", "test-cached-whole"
"""For `make cache`. Their recipes are elsewhere: the suite's images are not built anew for them."""


SHAPING = [*sorted(Path(str(build.__file__)).parent.glob("*.py")), Path(str(recipe.__file__))]
"""The code that decides what is in an image: all of the builder."""
BUILDER = "".join(
    files.digest(path)
    for path in [
        *SHAPING,
        *sorted(
            path
            for path in (folder("images") / "guest").iterdir()
            if path.is_file() and path.suffix != ".py"
        ),
    ]
)
CACHE = Path(os.environ.get("VMRUNNER_CACHE", "/cache"))
_STORES = CACHE / "images" / os.environ.get("RIG", "trixie")
_KEY = hashlib.sha256(
    BUILDER.encode() + b"".join(path.read_bytes() for path in sorted(RECIPES.glob("*.toml")))
).hexdigest()
IMAGES = _STORES / f"by-{_KEY[:16]}"
"""For this builder and these recipes: a checkout with others uses the store beside it."""
_KEPT = 3


def lay_store() -> None:
    """Make it, the newest one; stores that nobody has used for longest go. The packages that
    builds have fetched belong to all of them.
    """
    packages = _STORES / workshop.CACHE
    packages.mkdir(parents=True, exist_ok=True)
    IMAGES.mkdir(exist_ok=True)
    link = IMAGES / workshop.CACHE
    if not link.is_symlink():
        shutil.rmtree(link, ignore_errors=True)
        link.symlink_to(Path("..") / workshop.CACHE)
    os.utime(IMAGES)
    for old in sorted(_STORES.glob("by-*"), key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def usable(images: Path, name: str, digest: str) -> bool:
    """Whether the cache holds this image, whole and made from this recipe by this builder."""
    try:
        golden = store.find(images, name)
        store.verify(golden)
        builder = (images / name / "builder").read_text()
    except (ImageError, OSError):
        return False
    return (golden.manifest.recipe_digest, builder) == (digest, BUILDER)


def _folder(name: str) -> Path:
    return RECIPES.parent / "cached" if name in (CACHED, CACHED_WHOLE) else RECIPES


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def main(names: Sequence[str]) -> None:
    """Build what is missing of these; older versions go."""
    lay_store()
    if DOCKER in names or JOBS_DOCKER in names:
        containers.prepare(CACHE / "images" / "containers" / "base-oci.tar")
    if JOBS_DOCKER in names:
        containers.prepare_job(CACHE / "images" / "containers")
    for name in names:
        wanted = recipe.load(name, _folder(name))
        if usable(IMAGES, name, wanted.digest()):
            continue
        shutil.rmtree(IMAGES / name, ignore_errors=True)
        golden = build.build(
            wanted, IMAGES, lambda step, name=name: say(f"image {name}: {step} …"), promote=False
        )
        with promotion.changing(IMAGES, say):  # not by force: the tests are what verifies it
            promotion.switch(IMAGES, name, golden.version, Why.BUILT)
        (IMAGES / name / "builder").write_text(BUILDER)


if __name__ == "__main__":
    main(sys.argv[1:] or (GITEA, FORGEJO, CLOUD_INIT, DOCKER, JOBS))
