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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests import actions_cache, tooling
from tests.bench.common import say
from tests.cached import base, report, tools
from tests.cached.kinds import ACTION, BROUGHT, KINDS, Kind, Place
from tests.cached.link import NEAR_END, PUBLIC, behind, moved, outside, way_out
from tests.cached.outside import SOCKET
from tests.fetching import as_registry, proxy, push, registry, running
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground, lay
from tests.prepare import CACHED, CACHED_WHOLE
from vmrunner import config
from vmrunner.cache.rights import Rights
from vmrunner.cli.packages_files import name_servers

FOLDER = Path("/tmp/vmrunner-cached")
LIFE = 900.0  # seconds for one job
HUB_PORT, TOOLS_PORT, FAR_PORT = 5000, 5001, 5002
HUB = f"http://{PUBLIC}:{HUB_PORT}"
"""What plays the public registry of container images."""
COLD, FAR, NEAR, ALL, NEXT = SIDES = tuple(report.SIDES)
_WHOLE = (ALL, NEXT)
"""With packages and tools, too."""
_ONCE = (COLD, NEXT)
"""What knows nothing of a run before: the second one would be the same."""
STEPS = ("tool", "restore", "get", "use", "save")
_PACKAGES = f'[cache.packages]\napt = true\nnpm = true\npypi = true\ngo = true\noci = "{HUB}"\n'
_TRUSTED = Path("/usr/local/share/ca-certificates")
_RESOLV_CONF = Path("/etc/resolv.conf")


def grounds_of(site: Site) -> dict[str, Ground]:
    """Of each side. There are two: without packages, tools and a container image, and with them."""
    mirror = f'registry_mirror = "{HUB}"\n'
    plain = _ground(site, "plain", "10.80.0.0/24", CACHED, mirror, "")
    whole = _ground(site, "whole", "10.81.0.0/24", CACHED_WHOLE, 'tools = "tools"\n', _PACKAGES)
    return {side: whole if side in _WHOLE else plain for side in SIDES}


def _ground(site: Site, name: str, subnet: str, image: str, pool: str, packages: str) -> Ground:
    ports = (80, 443, HUB_PORT, TOOLS_PORT, FAR_PORT)
    allow = ", ".join(f'"{PUBLIC}:{port}"' for port in ports)
    ground = lay(
        FOLDER / name,
        f"cached-{name}",
        subnet,
        token=site.token,
        image=image,
        labels=name,
        most=1,
        start="snapshot",
        more=f"allow = [{allow}]\n{pool}[cache]\nlisten_port = 8485\n{packages}",
    )
    if authorities := "".join(path.read_text() for path in sorted(_TRUSTED.glob("*.crt"))):
        file = ground.folder / "authorities.pem"  # jobs trust whom this host trusts
        file.write_text(authorities)
        text = ground.config.read_text()
        ground.config.write_text(text.replace("[libvirt]", f'ca_file = "{file}"\n[libvirt]'))
    return ground


def prepare(ground: Ground) -> None:
    """An empty cache, the disk of tools, and snapshots."""
    ground.run("down", "--now")
    shutil.rmtree(ground.folder / "state" / "cache", ignore_errors=True)
    tooling.beside_images(ground, CACHED, CACHED_WHOLE)
    (ground.folder / "tools.toml").write_text(tools.recipe())
    if "tools" in ground.config.read_text():
        ground.run("image", "build", "tools", "--recipes", str(ground.folder), timeout=900)
    ground.run("snapshot", "create", "--pool", "main", timeout=900)


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


def far_places(stack: ExitStack) -> None:
    """What is at the other end of the link: tools as archives, and a cache of jobs."""
    archives = FOLDER / "archives"
    shutil.rmtree(archives, ignore_errors=True)
    archives.mkdir(parents=True)
    for tool in tools.TOOLS:
        (archives / tool.archive.name).symlink_to(tool.archive)
    serve = ("-m", "http.server", str(TOOLS_PORT), "--bind", PUBLIC, "--directory", str(archives))
    behind(stack, sys.executable, *serve, log=FOLDER / "archives.log")
    kept, rights = FOLDER / "far", FOLDER / "far.rights"
    shutil.rmtree(kept, ignore_errors=True)
    here = Rights("rig/far", "refs/heads/main", ("refs/heads/main",))
    rights.write_text(json.dumps({NEAR_END: asdict(here)}))
    serve = ("-m", "tests.cache_service", str(kept), PUBLIC, str(FAR_PORT), str(rights), "{}")
    behind(stack, sys.executable, *serve, log=FOLDER / "far.log")
    for port in (TOOLS_PORT, FAR_PORT):
        until(partial(_answers, port), 30, "the far end answers")


def hub(stack: ExitStack, *, images: bool) -> None:
    """What plays the registry of container images, at the other end of the link."""
    shutil.rmtree(FOLDER / "hub", ignore_errors=True)
    made = registry(FOLDER / "hub", PUBLIC)
    made = replace(made, mirror=replace(made.mirror, port=HUB_PORT))
    made.config_path.parent.mkdir(parents=True)
    made.config_path.write_text(as_registry(made.config()))
    behind(stack, made.program, "serve", str(made.config_path), log=FOLDER / "hub" / "log")
    until(partial(_answers, HUB_PORT), 30, "the registry answers")
    if images:
        push(made, "latest", base.LAYER.read_bytes(), ["/bin/bash"], machine="")


def _answers(port: int) -> bool:
    try:
        socket.create_connection((PUBLIC, port), 5).close()
    except OSError:
        return False
    return True


def brought(kind: Kind) -> bytes:
    """Its sources, and what actions bring, as one archive."""
    out = io.BytesIO()
    client = Path(actions_cache.__file__).with_suffix(".mjs")
    library = actions_cache.bundle(actions_cache.BUNDLED) / actions_cache.LIBRARY
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for path in sorted(kind.folder.iterdir()):
            archive.add(path, path.name)
        archive.add(client, "client.mjs")
        archive.add(library, ACTION / actions_cache.LIBRARY)
        archive.add(Path(tools.__file__).with_name("tool.cjs"), "tool.cjs")
        archive.add(tools.BUNDLE / tools.LIBRARY, "tool-cache.js")
    return out.getvalue()


def repository_of(site: Site, kind: Kind, side: str) -> Repository:
    """Fresh: its cache is empty."""
    name = f"{kind.name}-{SIDES.index(side)}"
    empty = "on: workflow_dispatch\njobs: {it: {runs-on: nothing, steps: [{run: 'true'}]}}\n"
    made = site.repository("rig", name, empty)
    body = {"content": base64.b64encode(brought(kind)).decode(), "message": BROUGHT}
    site.call("POST", f"/repos/{made.name}/contents/{BROUGHT}", body)
    place = Place(
        "whole" if side in _WHOLE else "plain",
        f"http://{PUBLIC}:{TOOLS_PORT}",
        is_cached=side != COLD,
        cache=f"http://{PUBLIC}:{FAR_PORT}/" if side == FAR else "",
    )
    made.push(kind.workflow(site.url, made.name, place), "it.yaml")
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
        "seconds": round(steps["tool"] + steps["restore"] + steps["get"], 2),
        "mb": round((moved() - bytes_before) / 1e6, 2),
        "steps": steps,
    }


def measured(
    site: Site, grounds: Mapping[str, Ground], kind: Kind, sides: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Of each side, its runs."""
    repositories = {side: repository_of(site, kind, side) for side in sides}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side in sides:
            if number != (rounds if side == NEXT else 1) and side in _ONCE:
                continue
            runs[side].append(one_job(grounds[side], repositories[side]))
            say(f"{kind.name}, {side}, run {number}: {runs[side][-1]}")
    return runs


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=list(KINDS), help="this workflow")
    parser.add_argument("--side", action="append", choices=SIDES, help="this side")
    parser.add_argument("--runs", type=int, default=2, help="of each workflow on each side")
    parser.add_argument(
        "--mbit", type=int, default=100, help="how fast the outside link is; 0: without a bound"
    )
    parser.add_argument("--save", type=Path, metavar="FOLDER", help="also write cached.png there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing stays behind
    figures: dict[str, Any] = {}
    failed: list[str] = []
    with closing(Site()) as site, outside(options.mbit) as stack:
        until(SOCKET.exists, 30, "the way out of the rig")
        grounds = grounds_of(site)
        for ground in {grounds[side].manager: grounds[side] for side in SIDES}.values():
            prepare(ground)
        names, sides = options.only or list(KINDS), options.side or SIDES
        hub(stack, images=any(KINDS[name].folder.name == "docker" for name in names))
        far_places(stack)
        with fetching(grounds[ALL]):
            for name in names:
                try:
                    figures[name] = measured(site, grounds, KINDS[name], sides, options.runs)
                except AssertionError:  # what the others measured is not lost
                    traceback.print_exc()
                    failed.append(name)
        for ground in grounds.values():
            ground.run("down", "--now")
    say(report.table(figures))
    if options.save:
        report.draw(figures, options.save / "cached.png")
    print(json.dumps({"mbit": options.mbit, "workflows": figures, "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    with way_out():
        main()
