"""Builds every recipe that vmrunner brings: `python -m tests.recipes`, with the host's network. The last line is JSON: what came out.

The images stay in the cache, in a store of their own.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.prepare import IMAGES
from vmrunner.errors import ImageError
from vmrunner.image import build, recipe, store
from vmrunner.resources import folder

STORE = IMAGES.parents[1] / "recipes" / IMAGES.name


def main() -> int:
    """Build them one after the other; the first that fails ends it."""
    built = []
    for name in sorted(path.stem for path in folder("images").glob("*.toml")):
        try:
            built.append(result(name, STORE))
        except ImageError as error:
            print(f"{name}: {error.sentence}\n{error.hint}", file=sys.stderr)
            return error.exit_code
    print(json.dumps(built))
    return 0


def result(name: str, images: Path) -> dict[str, Any]:
    """Build one, compare it with its manifest, and drop older ones."""
    shutil.rmtree(images / name, ignore_errors=True)
    began = time.monotonic()
    golden = build.build(recipe.load(name), images, lambda step: print(f"{name}: {step} …", file=sys.stderr, flush=True))
    seconds = round(time.monotonic() - began)
    store.verify(golden)
    size = sum((golden.directory / part).stat().st_size for part in golden.manifest.files) >> 20
    return {"name": name, "packages": len(golden.manifest.packages), "size_mib": size, "seconds": seconds}


if __name__ == "__main__":
    sys.exit(main())
