"""One round: cases on a side, until each has ended; and what differs between the rounds of two
sides.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.conformance import compare, sides
from tests.conformance.cases import Case, Topic
from tests.conformance.compare import Ended
from tests.conformance.play import Play, in_repository
from tests.conformance.sides import PLAIN, Side
from tests.forge.gitea import Site

_LONG = (Topic.CANCEL, Topic.CONCURRENCY, Topic.SCHEDULES, Topic.TIMEOUTS)
STALLED = 420.0  # seconds in which nothing of a side goes on


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def run(
    site: Site, side: Side, chosen: Iterable[Case], folder: Path
) -> tuple[dict[str, list[Ended]], list[str]]:
    """The jobs of each case on a side as they ended, and what is wrong with them."""
    forge = site.url
    site.organisation(side.owner)
    began = time.monotonic()
    plays = {}
    # Those that take long first.
    for case in sorted(chosen, key=lambda case: case.topic not in _LONG):
        if not case.sides or side.name in case.sides:
            plays[case.name] = Play.begin(
                site, side.owner, case, case.contents(side.name, side.container, forge)
            )
    say(f"{side.name}: {len(plays)} cases pushed in {time.monotonic() - began:.0f} s")
    try:
        with sides.runners(site, side, folder):
            stuck = _play(site, side, plays)
        ended = {name: play.ended() for name, play in plays.items()}
    finally:
        for play in plays.values():
            play.repository.delete()
    faults = [
        f"{name}, {side.name}: {fault}"
        for name, play in plays.items()
        for fault in play.faults(ended[name])
    ]
    say(
        f"{side.name}: {len(plays)} cases in {time.monotonic() - began:.0f} s, {len(faults)} faults"
    )
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
        now = json.dumps(
            [
                [(job["status"], job["run_attempt"]) for job in play.jobs] + [len(play.left)]
                for play in plays.values()
            ]
        )
        if now != shown:
            last, shown = time.monotonic(), now
        if time.monotonic() - last > STALLED:
            return [
                f"{name}, {side.name}: does not get over {play.left[0]!r}"
                for name, play in open_.items()
            ]
        time.sleep(0.5)
    return []


def _jobs(site: Site, owner: str) -> list[dict[str, Any]]:
    found, page = [], 1
    while listed := site.call("GET", f"/orgs/{owner}/actions/jobs", limit=50, page=page)["jobs"]:
        found += listed
        page += 1
    return found


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
