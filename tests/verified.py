"""A part of `make images`: every image that tests.recipes has built is verified in a machine, and a
machine is cloned of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from tests import recipes
from tests.forge.gitea import Site
from tests.ground import Ground, lay
from tests.recipes import STORE
from vmrunner.image.versions import store

_STARTS = 3  # of which the median counts


def main() -> int:
    """Each that has a version, the newest, or those of `--only`; 1 where one is not good."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[])
    only = parser.parse_args().only
    folder = Path("/tmp/vmrunner-verified")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "images").symlink_to(STORE)
    with closing(Site()) as site:
        ground = lay(folder, "verified", "10.82.0.0/24", token=site.token)
        names = only or sorted({golden.name for golden in store.list_all(STORE)})
        figures = {name: figure(ground, name) for name in names}
        ground.run("down", "--all", "--purge")
    recipes.noted({"verified": figures})
    return int(any(each["bad"] for each in figures.values()))


def figure(ground: Ground, name: str) -> dict[str, Any]:
    """What `image verify` says, and seconds until a command of a clone has run."""
    version = store.versions(STORE, name)[-1]
    found = json.loads(
        ground.run(
            "image", "verify", f"{name}/{version}", "--json", check=False, timeout=900
        ).stdout
    )
    bad = [f"{each['name']}: {each['measured']}" for each in found["checks"] if not each["passed"]]
    ground.run("snapshot", "create", "--image", name, timeout=900)
    starts = []
    for _ in range(_STARTS):
        began = time.monotonic()
        ground.run("exec", "--image", name, "--", "true")
        starts.append(time.monotonic() - began)
    said = {
        "boot_seconds": found["boot_seconds"],
        "exec_seconds": round(statistics.median(starts), 2),
        "checks": len(found["checks"]),
        "bad": bad,
    }
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    return said


if __name__ == "__main__":
    sys.exit(main())
