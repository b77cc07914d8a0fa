"""Builds every recipe that vmrunner brings: `python -m tests.recipes`, with the host's network.
What came out is in FIGURES.

Each is built twice, the second time with another script, which takes the packages of the first;
debian-12 also from a stock cloud image. The images stay in the cache, in a store of their own
(tests.verified boots them). Then one of them is killed at random moments, and built where there is
too little room.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import httpx

from tests import interrupted, stock
from tests.prepare import CACHE, say
from vmrunner.config import HostConfig, LibvirtConfig, NetworkConfig
from vmrunner.errors import ImageError
from vmrunner.files import digest
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.seam import Output
from vmrunner.image.build import build
from vmrunner.image.build import stock as stock_image
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import Recipe, Script, StockSource
from vmrunner.image.versions import store
from vmrunner.model.image import Golden
from vmrunner.resources import folder

STORE = CACHE / "recipes" / os.environ.get("RIG", "trixie")
# Each part of `make images` adds its own, the last one prints them.
FIGURES = STORE / "figures.json"
STOCK = "debian-12-stock"
# MiB: while it bootstraps, while it keeps the packages, while it writes the disk.
FULL = [100, 350, 800, 1100, 1500]


def main() -> int:
    """Build them one after the other; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], help="this recipe; may be given again"
    )
    parser.add_argument("--kills", type=int, default=20, help="how many builds are killed")
    options = parser.parse_args()
    built, elsewhere = [], []
    for name in options.only or [
        *sorted(path.stem for path in folder("images").glob("*.toml")),
        STOCK,
    ]:
        try:
            if is_reached(wanted := from_stock() if name == STOCK else recipe.load(name)):
                built.append(result(wanted, STORE))
            else:
                elsewhere.append(name)
        except ImageError as error:
            print(f"{name}: {error.sentence}\n{error.hint}", file=sys.stderr)
            return error.exit_code
    figures: dict[str, Any] = {"built": built, "mirror not reached, or no keys of it": elsewhere}
    if options.kills:
        place = STORE / "interrupted"
        figures |= interrupted.kill_at_random(
            "debian-12", place, kills=options.kills, cold=options.kills // 3, seed=options.kills
        )
        figures |= interrupted.fill_at_sizes("debian-12", STORE / "full", FULL)
        shutil.rmtree(place)
    FIGURES.unlink(missing_ok=True)
    noted(figures)
    return 0


def noted(figures: dict[str, Any]) -> dict[str, Any]:
    """Add to the figures of this `make images`; returns all of them."""
    known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    FIGURES.parent.mkdir(parents=True, exist_ok=True)
    FIGURES.write_text(json.dumps(known | figures))
    return known | figures


def from_stock() -> Recipe:
    """debian-12 with a stock image (see tests.stock) in the place of the bootstrap."""
    base, path = recipe.load("debian-12"), stock.ensure(stock.SUITE, say)
    return base.model_copy(
        update={"name": STOCK, "stock": StockSource(path=path, sha256=digest(path))}
    )


def boot(golden: Golden, command: Sequence[str], write: Callable[[Output, bytes], None]) -> int:
    """On the rig's libvirtd. There is no network to filter: this process is not in the rig's."""
    place = STORE / ".host"
    libvirt, network = (
        LibvirtConfig(subnet=IPv4Network("10.83.0.0/24")),
        NetworkConfig(filter=False),
    )
    settings = HostConfig(
        manager="recipes", state_dir=place, runtime_dir=place, libvirt=libvirt, network=network
    )
    host = open_host(settings, say)
    try:
        return stock_image.boot(host, settings, golden, command, write)
    finally:
        host.purge()
        host.close()


def is_reached(wanted: Recipe) -> bool:
    """Whether this host reaches the recipe's mirror, and has its keys; one that names none takes
    the host's own.
    """
    if wanted.keyring and not wanted.keyring.is_file():
        return False
    try:
        return (
            wanted.mirror is None
            or httpx.head(
                f"{wanted.mirror}/dists/{wanted.suite}/InRelease", follow_redirects=True
            ).is_success
        )
    except httpx.HTTPError:
        return False


def result(wanted: Recipe, images: Path) -> dict[str, Any]:
    """Build one, and again with its packages and another script; compare it with its manifest, and
    drop older ones.
    """
    shutil.rmtree(images / wanted.name, ignore_errors=True)
    cold, _ = _timed(wanted, images, fresh=True)
    script = Script(name="another", text="echo another >/etc/another")
    warm, golden = _timed(wanted.model_copy(update={"scripts": (*wanted.scripts, script)}), images)
    store.verify(golden)
    size = sum((golden.directory / part).stat().st_size for part in golden.manifest.files) >> 20
    return {
        "name": wanted.name,
        "packages": len(golden.manifest.packages),
        "size_mib": size,
        "seconds": cold,
        "again_seconds": warm,
    }


def _timed(wanted: Recipe, images: Path, *, fresh: bool = False) -> tuple[int, Golden]:
    began = time.monotonic()
    golden = build.build(
        wanted, images, lambda step: say(f"{wanted.name}: {step} …"), fresh=fresh, boot_stock=boot
    )
    return round(time.monotonic() - began), golden


if __name__ == "__main__":
    sys.exit(main())
