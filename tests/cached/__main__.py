"""A part of `make cache`: what caches are worth to workflows that fetch packages, with real Gitea,
its real runner, real machines and the public registries.

Each workflow runs twice on each side, the sides in turns; without anything kept, and as another
repository's first job, once. Seconds by the machine's own clock, bytes
over the host's outside link; the last line is JSON.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import shutil
import signal
import socket
import sys
import tarfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests import actions_cache
from tests.bench.common import say
from tests.cached import base, report
from tests.cached.kinds import BROUGHT, KINDS, Kind
from tests.cached.link import PUBLIC, behind, moved, outside, way_out
from tests.cached.outside import SOCKET
from tests.fetching import as_registry, proxy, push, registry, running
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground, lay
from tests.prepare import CACHED
from vmrunner import config
from vmrunner.cli.packages_files import name_servers

FOLDER, SUBNET = Path("/tmp/vmrunner-cached"), "10.80.0.0/24"
LIFE = 900.0  # seconds for one job
HUB_PORT = 5000
HUB = f"http://{PUBLIC}:{HUB_PORT}"
"""What plays the public registry of container images."""
COLD, ALONE, BOTH = "cold", "actions/cache alone", "with packages"
NEXT = "with packages, another repository"
SIDES = (COLD, ALONE, BOTH, NEXT)
_ONCE = (COLD, NEXT)
"""What knows nothing of a run before: the second one would be the same."""
STEPS = ("restore", "get", "use", "save")
_PACKAGES = f'[cache.packages]\napt = true\nnpm = true\npypi = true\ngo = true\noci = "{HUB}"\n'
_TRUSTED = Path("/usr/local/share/ca-certificates")
_RESOLV_CONF = Path("/etc/resolv.conf")


def ground_of(site: Site, side: str) -> Ground:
    """The same place, configured for this side."""
    allow = ", ".join(f'"{PUBLIC}:{port}"' for port in (80, 443, HUB_PORT))
    packages = side in (BOTH, NEXT)
    mirror = "" if packages else f'registry_mirror = "{HUB}"\n'
    ground = lay(
        FOLDER,
        "cached",
        SUBNET,
        token=site.token,
        image=CACHED,
        labels="cached",
        most=1,
        start="snapshot",
        more=f"allow = [{allow}]\n{mirror}[cache]\nlisten_port = 8485\n"
        + (_PACKAGES if packages else ""),
    )
    if authorities := "".join(path.read_text() for path in sorted(_TRUSTED.glob("*.crt"))):
        file = FOLDER / "authorities.pem"  # jobs trust whom this host trusts
        file.write_text(authorities)
        text = ground.config.read_text()
        ground.config.write_text(text.replace("[libvirt]", f'ca_file = "{file}"\n[libvirt]'))
    return ground


@contextmanager
def fetching(ground: Ground) -> Iterator[None]:
    """What `vmrunner cache setup` sets up, empty."""
    settings = config.load(ground.config)
    with ExitStack() as stack:
        for mirror in settings.all_mirrors:
            folder = FOLDER / "packages" / mirror.of
            shutil.rmtree(folder, ignore_errors=True)
            made = replace(
                proxy(folder, mirror.of, mirror.upstream),
                mirror=mirror,
                max_mib=settings.cache.packages.max,
                resolvers=name_servers(_RESOLV_CONF.read_text()),
            )
            stack.enter_context(running(made))
        yield


def hub(stack: ExitStack, *, images: bool) -> None:
    """What plays the registry of container images, at the other end of the link."""
    shutil.rmtree(FOLDER / "hub", ignore_errors=True)
    made = registry(FOLDER / "hub", PUBLIC)
    made = replace(made, mirror=replace(made.mirror, port=HUB_PORT))
    made.config_path.parent.mkdir(parents=True)
    made.config_path.write_text(as_registry(made.config()))
    behind(stack, *made.command, log=FOLDER / "hub" / "log")
    until(_hub_answers, 30, "the registry answers")
    if images:
        push(made, "latest", base.LAYER.read_bytes(), ["/bin/bash"], machine="")


def _hub_answers() -> bool:
    try:
        socket.create_connection((PUBLIC, HUB_PORT), 5).close()
    except OSError:
        return False
    return True


def brought(kind: Kind) -> bytes:
    """Its sources, and the client of the cache, as one archive."""
    out = io.BytesIO()
    client = Path(actions_cache.__file__).with_suffix(".mjs")
    library = actions_cache.bundle(actions_cache.BUNDLED) / actions_cache.LIBRARY
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path in sorted(kind.folder.iterdir()):
            archive.add(path, path.name)
        archive.add(client, "client.mjs")
        archive.add(library, actions_cache.LIBRARY)
    return out.getvalue()


def repository_of(site: Site, kind: Kind, side: str) -> Repository:
    """Fresh: its cache is empty."""
    name = f"{kind.name}-{SIDES.index(side)}"
    empty = "on: workflow_dispatch\njobs: {it: {runs-on: nothing, steps: [{run: 'true'}]}}\n"
    made = site.repository("rig", name, empty)
    body = {"content": base64.b64encode(brought(kind)).decode(), "message": BROUGHT}
    site.call("POST", f"/repos/{made.name}/contents/{BROUGHT}", body)
    made.push(kind.workflow("cached", site.url, made.name, cached=side != COLD), "it.yaml")
    return made


def one_job(ground: Ground, repository: Repository) -> dict[str, Any]:
    """Its seconds by step, and MB over the link."""
    before, bytes_before = len(repository.jobs()), moved()
    ground.run("up", "main")
    ground.log.unlink(missing_ok=True)
    process = ground.serve()
    try:
        until(lambda: "the cache is served" in ground.log.read_text(), 60, "the cache is served")
        repository.dispatch("it.yaml")
        until(lambda: len(repository.jobs()) > before, 60, "the forge has the job")
        until(lambda: repository.jobs()[-1]["status"] == "completed", LIFE, "its end", every=1)
    finally:
        process.terminate()
        process.wait()
        ground.run("down", "--now")
    job = repository.jobs()[-1]
    log = repository.said(job["id"])
    found = re.search(r"took:([0-9. ]+)", log)
    assert job["conclusion"] == "success", log
    assert found, log
    times = [float(time) for time in found[1].split()]
    steps = dict(
        zip(STEPS, (round(after - first, 2) for first, after in pairwise(times)), strict=True)
    )
    return {
        "seconds": round(steps["restore"] + steps["get"], 2),
        "mb": round((moved() - bytes_before) / 1e6, 2),
        "steps": steps,
    }


def measured(site: Site, kind: Kind, sides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Of each side, its runs."""
    repositories = {side: repository_of(site, kind, side) for side in sides}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            if number != (rounds if side == NEXT else 1) and side in _ONCE:
                continue
            runs[side].append(one_job(ground_of(site, side), repositories[side]))
            say(f"{kind.name}, {side}, run {number}: {runs[side][-1]}")
    return runs


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="this workflow")
    parser.add_argument("--side", action="append", choices=SIDES, help="this side")
    parser.add_argument("--runs", type=int, default=2, help="of each workflow on each side")
    parser.add_argument("--mbit", type=float, default=0, help="how fast the outside link is")
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="also write cached.png there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing stays behind
    figures: dict[str, Any] = {}
    failed: list[str] = []
    with closing(Site()) as site, outside(options.mbit) as stack:
        until(SOCKET.exists, 30, "the way out of the rig")
        ground = ground_of(site, BOTH)
        ground.run("down", "--now")
        shutil.rmtree(FOLDER / "state" / "cache", ignore_errors=True)
        names = options.only or list(KINDS)
        hub(stack, images="docker" in names)
        ground.run("snapshot", "create", "--pool", "main", timeout=900)
        with fetching(ground):
            for name in names:
                try:
                    figures[name] = measured(site, KINDS[name], options.side or SIDES, options.runs)
                except AssertionError:  # what the others measured is not lost
                    traceback.print_exc()
                    failed.append(name)
        ground.run("down", "--now")
    say(report.table(figures))
    if options.save:
        report.draw(figures, options.save / "cached.png")
    print(json.dumps({"mbit": options.mbit, "workflows": figures, "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    with way_out():
        main()
