"""Run the cases on every side, or on some; the last line is JSON. 1 where a job did not end as it has to, or a difference is not known."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.conformance import cases, compare, mirror, sides
from tests.conformance.cases import Case, Topic
from tests.conformance.compare import Ended
from tests.conformance.play import Play, in_repository
from tests.conformance.sides import PLAIN, SIDES, Side
from tests.forge.gitea import Site

FOLDER = Path("/tmp/vmrunner-conformance")
_LONG = (Topic.CANCEL, Topic.CONCURRENCY, Topic.SCHEDULES, Topic.TIMEOUTS)
SEEN = FOLDER / "seen"
STALLED = 420.0  # seconds in which nothing of a side goes on


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def run(site: Site, side: Side, chosen: Iterable[Case], folder: Path) -> tuple[dict[str, list[Ended]], list[str]]:
    """The jobs of each case on a side as they ended, and what is wrong with them."""
    forge = site.url
    site.organisation(side.owner)
    began = time.monotonic()
    plays = {}
    for case in sorted(chosen, key=lambda case: case.topic not in _LONG):  # those that take long first
        if not case.sides or side.name in case.sides:
            plays[case.name] = Play.begin(site, side.owner, case, case.contents(side.name, side.container, forge))
    say(f"{side.name}: {len(plays)} cases pushed in {time.monotonic() - began:.0f} s")
    try:
        with sides.runners(site, side, folder):
            stuck = _play(site, side, plays)
        ended = {name: play.ended() for name, play in plays.items()}
    finally:
        for play in plays.values():
            play.repository.delete()
    faults = [f"{name}, {side.name}: {fault}" for name, play in plays.items() for fault in play.faults(ended[name])]
    say(f"{side.name}: {len(plays)} cases in {time.monotonic() - began:.0f} s, {len(faults)} faults")
    return ended, faults + stuck


def _play(site: Site, side: Side, plays: dict[str, Play]) -> list[str]:
    """Until all are over; those that come to a standstill."""
    last, shown = time.monotonic(), ""
    while open_ := {name: play for name, play in plays.items() if not play.over}:
        jobs = defaultdict(list)
        for job in _jobs(site, side.owner):
            jobs[in_repository(job)].append(job)
        for play in open_.values():
            play.go_on(jobs[play.repository.name])
        now = json.dumps([[(job["status"], job["run_attempt"]) for job in play.jobs] + [len(play.left)] for play in plays.values()])
        if now != shown:
            last, shown = time.monotonic(), now
        if time.monotonic() - last > STALLED:
            return [f"{name}, {side.name}: does not get over {play.left[0]!r}" for name, play in open_.items()]
        time.sleep(0.5)
    return []


def _jobs(site: Site, owner: str) -> list[dict[str, Any]]:
    found, page = [], 1
    while listed := site.call("GET", f"/orgs/{owner}/actions/jobs", limit=50, page=page)["jobs"]:
        found += listed
        page += 1
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], help="Cases with this in their name or topic.")
    parser.add_argument(
        "--side", action="append", default=[], choices=[side.name for side in SIDES], help="Default: all, unless --seen says otherwise."
    )
    parser.add_argument("--keep", action="store_true", help=f"Write what was seen into files of {SEEN}.")
    parser.add_argument("--seen", action="append", default=[], choices=[side.name for side in SIDES], help="Sides as they were last kept.")
    options = parser.parse_args()
    began = time.monotonic()
    chosen = cases.load_all(*options.only)
    wanted = [side for side in SIDES if side.name in options.side or not (options.side or options.seen)]
    seen = {name: _kept(name, {case.name for case in chosen}) for name in options.seen}
    faults: list[str] = []
    with closing(Site()) as site:
        mirror.publish(site)
        for side in wanted:
            seen[side.name], found = run(site, side, chosen, FOLDER)
            faults += found
            for fault in found:
                say(f"  {fault}")
            if options.keep:
                _keep(side, seen[side.name])
    listed, unexpected = differ(seen)
    for line in unexpected:
        say(f"not known: {line}")
    figures = {
        "cases": len(chosen),
        "sides": [side.name for side in wanted],
        "jobs": sum(len(jobs) for side in seen.values() for jobs in side.values()),
        "faults": len(faults),
        "listed": listed,
        "unexpected": len(unexpected),
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(figures))
    return int(bool(faults or unexpected))


def differ(seen: dict[str, dict[str, list[Ended]]]) -> tuple[list[str], list[str]]:
    """Which known differences there were, by their ids, and those that are not known."""
    known, listed, unexpected = compare.known(), set[str](), list[str]()
    for side, ended in seen.items():
        for case, jobs in ended.items() if side != PLAIN.name else ():
            if case not in seen.get(PLAIN.name, {}):
                continue
            for difference in compare.differences(case, side, seen[PLAIN.name][case], jobs):
                reasons = {each.id for each in known if each.covers(difference)}
                listed |= reasons
                if not reasons:
                    unexpected.append(str(difference))
    return sorted(listed), unexpected


def _keep(side: Side, seen: dict[str, list[Ended]]) -> None:
    folder = SEEN / side.name
    folder.mkdir(parents=True, exist_ok=True)
    for case, jobs in seen.items():
        (folder / f"{case}.json").write_text(json.dumps([asdict(job) for job in jobs], indent=1))
        (folder / f"{case}.txt").write_text("\n".join(f"== {job.job}: {job.verdict}\n" + "\n".join(job.log[:400]) for job in jobs) + "\n")


def _kept(side: str, chosen: set[str]) -> dict[str, list[Ended]]:
    files = [path for path in (SEEN / side).glob("*.json") if path.stem in chosen]
    return {path.stem: [Ended(**job) for job in json.loads(path.read_text())] for path in files}


if __name__ == "__main__":
    sys.exit(main())
