"""`make soak JOBS=20`: jobs through real Gitea, in two pools of one machine each; every verdict,
leftover and line of history is checked.

The jobs are of five kinds, some fail on purpose, and each takes a second. Afterwards `vmrunner
history` is held against the forge's own record: which job ran on which machine, of which commit,
from when to when, and its verdict.

`vmrunner serve` runs them, and is killed (-9) and started again every minute. `make soak
ROTATIONS=10` goes on with jobs until their image has been renewed so often: verified, its snapshot
made, promoted, old versions pruned, and no overlay ever without what it lies on. `make soak
JOBS=200 OUTAGES="3 30 240"` stops the forge meanwhile, at random moments, for so many seconds each
time; half a minute after it is back no pool may be backed off.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import struct
import sys
import threading
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx

from tests.forge.gitea import URL, Repository, Site, until
from tests.forge.process import GiteaProcess
from tests.goldens import linked
from tests.ground import STORAGE, Ground, lay
from tests.prepare import GITEA, IMAGES
from vmrunner import config
from vmrunner.errors import VmrunnerError
from vmrunner.hypervisor.host import open_host
from vmrunner.image.upkeep.rotation import Stage
from vmrunner.image.versions import promotion, store
from vmrunner.image.versions.promotion import Why

ORIGIN = IMAGES / GITEA / "current"

SECOND = """\
[pools.second]
labels = ["debian-12", "second"]
image = "{image}"
max = 1
memory = "1GiB"
disk = "6GiB"
start = "{start}"
[images]
keep = 1
"""
ONE = """\
  job{number:03}:{more}
    runs-on: {labels}
    steps:
      - run: |
          test ! -e /marker
          touch /marker
          echo "{name} ran"
      - run: {end}
"""
CELLS = """\
  cells:
    strategy:
      fail-fast: false
      matrix:
        n: {numbers}
        x: [y z]
    runs-on: [debian-12, second]
    steps:
      - run: |
          test ! -e /marker
          touch /marker
          echo "cells (${{{{ matrix.n }}}}, ${{{{ matrix.x }}}}) ran"
      - run: exit $(( ${{{{ matrix.n }}}} % 2 * 3 ))
"""
PER_PAIR = 150.0  # seconds that two jobs may take on a slow day
PER_ROTATION = 300.0  # seconds that one may take beside jobs
SOON = 30.0  # seconds after which an outage holds nothing back any more
AT_LEAST = 4  # jobs that wait or run while the image is renewed


class Rotations:
    """Renews the image beside the jobs, as `vmrunner image refresh` does it after its build."""

    def __init__(self, ground: Ground, count: int) -> None:
        self._ground, self.count = ground, count
        self.done, self.seconds, self.trouble, self.missing = 0, list[float](), "", set[str]()
        self._thread = threading.Thread(target=self._run, daemon=True)
        if count:
            self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        settings = config.load(self._ground.config)
        for number in range(1, self.count + 1):
            began = time.monotonic()
            linked(settings.images_dir, ORIGIN, GITEA, f"9{number:03}", kernel=f"rotation {number}")
            try:
                with closing(open_host(settings, lambda _: None)) as host:
                    stage = Stage(host, settings, lambda _: None)
                    said = stage.settle(store.version(settings.images_dir, GITEA, f"9{number:03}"))
            except VmrunnerError as error:
                self.trouble = f"rotation {number}: {error.sentence}"
                return
            self.done += 1
            self.seconds.append(time.monotonic() - began)
            print(
                f"rotation {number}: {said}, {self.seconds[-1]:.0f} s", file=sys.stderr, flush=True
            )

    def look(self) -> None:
        """Whether each overlay's backing file is there: read in the overlay itself."""
        for overlay in (STORAGE / self._ground.manager).glob("*.qcow2"):
            backing = backing_of(overlay)
            if backing and not backing.exists() and overlay.exists():
                self.missing.add(f"{overlay.name} lies on {backing.name}")


class Outages:
    """Stops the forge beside the jobs, at random moments, for so many seconds each time."""

    def __init__(self, ground: Ground, lengths: list[float]) -> None:
        self._ground, self._lengths = ground, lengths
        self.over, self.held = 0, list[str]()  # pools that were backed off afterwards
        self._there = threading.Event()
        self._there.set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def away(self) -> bool:
        """Whether the forge is stopped, or was while somebody asked."""
        return not self._there.is_set()

    def wait(self) -> None:
        """Until the last one is over and judged."""
        self._thread.join()

    def _run(self) -> None:
        if not self._lengths:
            return
        gitea = GiteaProcess()
        for length in self._lengths:
            time.sleep(random.uniform(20, 60))  # noqa: S311 — any moment will do
            self._there.clear()
            gitea.stop()
            time.sleep(length)
            gitea.start()
            self._there.set()
            self.over += 1
            print(f"the forge was away for {length:.0f} s", file=sys.stderr, flush=True)
            time.sleep(SOON)
            pools = json.loads(self._ground.run("status", "--json").stdout)["pools"]
            self.held += [
                f"{pool['name']} after {length:.0f} s: {pool['backoff']}"
                for pool in pools
                if pool["backoff"]
            ]


def backing_of(disk: Path) -> Path | None:
    """As a qcow2 file's header names it."""
    try:
        with disk.open("rb") as file:
            head = file.read(20)
            if head[:4] != b"QFI\xfb":
                return None
            offset, length = struct.unpack(">QI", head[8:20])
            file.seek(offset)
            return disk.parent / file.read(length).decode() if offset else None
    except OSError:
        return None  # it went meanwhile


def jobs_of(repositories: list[Repository]) -> list[dict[str, Any]]:
    return [job for repository in repositories for job in repository.jobs()]


def batch(site: Site, first: int, count: int) -> tuple[Repository, dict[str, str]]:
    """A repository with so many jobs, all queued, and the verdicts that they should have.

    Of the five kinds two are for one pool alone.
    """
    wanted: dict[str, str] = {}
    parts, cells = [], list[int]()
    for number in range(first, first + count):
        name, more, labels, verdict = f"job{number:03}", "", "[debian-12]", "success"
        match (number - first) % 5:
            case 1:
                labels, verdict = "[debian-12, main]", "failure"
            case 2:
                cells.append(number)
                wanted[f"cells ({number}, y z)"] = "failure" if number % 2 else "success"
                continue
            case 3:
                more = f"\n    needs: job{first:03}"
            case 4:
                name = f"№ {number}: odd (a, b)"
                more = f'\n    name: "{name}"'
        wanted[name] = verdict
        end = "exit 3" if verdict == "failure" else "exit 0"
        parts.append(ONE.format(number=number, name=name, more=more, labels=labels, end=end))
    if cells:
        parts.append(CELLS.format(numbers=cells))
    repository = site.repository("rig", f"soak-{first}", "on: [push]\njobs:\n" + "".join(parts))
    until(lambda: len(repository.jobs()) == count, 60, "every job queued")
    return repository, wanted


def history(ground: Ground) -> list[dict[str, Any]]:
    """What vmrunner has written down, oldest first."""
    rows: list[dict[str, Any]] = json.loads(
        ground.run("history", "--json", "--limit", "100000").stdout
    )
    return rows


def unlike(ground: Ground, jobs: list[dict[str, Any]]) -> list[str]:
    """Where `vmrunner history` says something else than the forge: machines, jobs, commits, times
    and verdicts.
    """
    ran = {job.get("runner_name", ""): job for job in jobs}
    for _ in range(30):  # the last answers may not be there yet
        rows = {row["machine"]: row for row in history(ground)}
        if all(rows.get(name, {}).get("ran") == "yes" for name in ran):
            break
        ground.run("up")
        time.sleep(1)
    found = []
    for name, job in ran.items():
        theirs = {
            "job": job["name"],
            "repository": "/".join(job["html_url"].removeprefix(URL).split("/")[1:3]),
            "url": job["html_url"],
            "sha": job["head_sha"],
            "attempt": job["run_attempt"],
            "verdict": job["conclusion"],
            "job_started": at(job["started_at"]),
            "job_ended": at(job["completed_at"]),
            "job_seconds": max(0.0, at(job["completed_at"]) - at(job["started_at"])),
        }
        ours = {key: rows.get(name, {}).get(key) for key in theirs}
        if ours != theirs:
            found.append(f"{name}: {ours}, the forge: {theirs}")
    oldest = min(at(job["created_at"]) for job in jobs)
    for name, row in rows.items():
        if name not in ran and row["created"] >= oldest and (row["job"] or row["ran"] == "yes"):
            found.append(f"{name}: {row['job']!r}, and the forge knows of none")
    return found


def at(time_of_forge: str) -> float:
    return datetime.fromisoformat(time_of_forge).timestamp()


def ground_for(folder: Path, token: str, start: str, rotations: int) -> Ground:
    """Where images are renewed, a store of its own, of which prune leaves little."""
    images = folder / "state" / "images"
    if images.is_symlink():
        images.unlink()
    else:
        shutil.rmtree(images, ignore_errors=True)
    if rotations:
        linked(images, ORIGIN, GITEA, "9000")
        with promotion.changing(images, print):
            promotion.switch(images, GITEA, "9000", Why.BUILT)
    ground = lay(
        folder, "soak", "10.86.0.0/24", token=token, labels='debian-12", "main', start=start, most=1
    )
    ground.config.write_text(ground.config.read_text() + SECOND.format(image=GITEA, start=start))
    return ground


def main() -> None:
    """Run the soak; the last line is its figures as JSON; exits non-zero unless all is right."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument(
        "--rotations",
        type=int,
        default=0,
        help="How often the image is renewed meanwhile; there are jobs until then.",
    )
    parser.add_argument(
        "--outages",
        type=float,
        nargs="*",
        default=[],
        help="The forge is stopped meanwhile, for so many seconds each.",
    )
    parser.add_argument(
        "--kill-every", type=float, default=60.0, help="Seconds between two kills of the manager."
    )
    parser.add_argument(
        "--start",
        default="snapshot",
        choices=("snapshot", "boot"),
        help="How machines are started.",
    )
    options = parser.parse_args()
    with closing(Site()) as site:
        ground = ground_for(
            Path("/tmp/vmrunner-soak"), site.token, options.start, options.rotations
        )
        ground.run("down", "--now")
        for pool in ("main", "second"):
            ground.run("up", pool)  # "down" holds until then
        if options.start == "snapshot":
            ground.run("snapshot", "create", "--pool", "main")
        repository, wanted = batch(site, 1, options.jobs)
        repositories = [repository]
        began, kills, most = time.monotonic(), 0, 0
        deadline = began + PER_PAIR * (len(wanted) / 2 + 1) + PER_ROTATION * options.rotations
        deadline += sum(options.outages)
        next_kill = began + options.kill_every
        manager, rotations = ground.serve(), Rotations(ground, options.rotations)
        outages, jobs = Outages(ground, options.outages), list[dict[str, Any]]()
        while True:
            for _ in range(12):
                time.sleep(0.25)
                rotations.look()
            if time.monotonic() > next_kill:
                manager.kill()
                manager.wait()
                kills, next_kill, manager = (
                    kills + 1,
                    time.monotonic() + options.kill_every,
                    ground.serve(),
                )
            try:
                jobs = jobs_of(repositories)
            except (httpx.HTTPError, AssertionError):
                if not outages.away:
                    raise
                continue
            left = ground.leftovers()
            machines = sum(name.startswith("domain ") for name in left)
            most = max(most, machines)
            done = sum(job["status"] == "completed" for job in jobs)
            print(
                f"{time.monotonic() - began:6.1f} s  {done} of {len(wanted)} jobs done, {machines} "
                "machines",
                file=sys.stderr,
                flush=True,
            )
            if not rotations.over and len(wanted) - done < AT_LEAST:
                repository, more = batch(site, len(wanted) + 1, options.jobs)
                repositories.append(repository)
                wanted |= more
            if (
                (done == len(wanted) and not left and rotations.over)
                or time.monotonic() > deadline
                or manager.poll() is not None
            ):
                break
        outages.wait()
        seconds = time.monotonic() - began
        manager.kill()
        manager.wait()
        wrong = [job["name"] for job in jobs if job["conclusion"] != wanted[job["name"]]]
        twice = [
            job["name"]
            for repository in repositories
            for job in repository.jobs()
            if repository.said(job["id"]).splitlines().count(f"{job['name']} ran") != 1
        ]
        shared = len(jobs) - len({job["runner_name"] for job in jobs})
        records = [
            record["name"] for record in site.runners() if record["name"].startswith("vmr-soak-")
        ]
        left = ground.leftovers()
        untrue = unlike(ground, jobs)
        for repository in repositories:
            repository.delete()
    mine = {job["runner_name"] for job in jobs}
    swapped = sum(
        row["machine"] in mine and row["made_for"] not in ("", row["job"])
        for row in history(ground)
    )
    print("\n".join(untrue), file=sys.stderr)
    print(
        f"wrong verdicts: {wrong}; not run exactly once: {twice}; left on the host: {left}; left "
        f"at the forge: {records}; "
        f"overlays without their base: {sorted(rotations.missing)}; {rotations.trouble}; backed "
        f"off {SOON:.0f} s after an outage: {outages.held}",
        file=sys.stderr,
    )
    figures: dict[str, object] = {
        "jobs": len(wanted),
        "verdicts_right": len(jobs) - len(wrong),
        "ran_once": len(jobs) - len(twice),
        "machines_shared": shared,
        "history_right": len(jobs) - len(untrue),
        "not_the_job_made_for": swapped,
        "longest_job": max(at(job["completed_at"]) - at(job["started_at"]) for job in jobs),
        "leftovers": len(left) + len(records),
        "machines_at_once": most,
        "manager_kills": kills,
        "seconds": round(seconds, 1),
        "seconds_per_job": round(seconds / len(wanted), 1),
    }
    if options.outages:
        figures |= {"outages": outages.over, "backed_off_after": len(outages.held)}
    if options.rotations:
        versions = {row["image"] for row in history(ground)[-len(wanted) - 50 :]}
        kept = store.versions(ground.folder / "state" / "images", GITEA)
        figures |= {
            "rotations": rotations.done,
            "seconds_per_rotation": round(sum(rotations.seconds) / max(1, rotations.done), 1),
            "versions_used": len(versions),
            "versions_left": len(kept),
            "overlays_without_base": len(rotations.missing),
        }
    print(json.dumps(figures))
    bad = (
        untrue
        or wrong
        or twice
        or shared
        or left
        or records
        or outages.held
        or rotations.missing
        or rotations.done != options.rotations
    )
    if bad or most > (3 if options.rotations else 2):  # one that is verified, or saved
        print(ground.log.read_text()[-20000:], file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
