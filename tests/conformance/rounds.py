"""One round: cases on a side, until each has ended; and what differs between the rounds of two
sides.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tests.conformance import compare, play, sides
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
    site: Site,
    side: Side,
    chosen: Sequence[Case],
    folder: Path,
    keep: Callable[[str, list[Ended]], None] = lambda _name, _ended: None,
) -> tuple[dict[str, list[Ended]], list[str]]:
    """The jobs of each case on a side as they ended, and those that did not get over.

    `keep` gets a case's jobs as soon as it is over.
    """
    forge = site.url
    site.organisation(side.owner)
    began = time.monotonic()
    plays, ended = {}, dict[str, list[Ended]]()
    # Those that take long first.
    for case in sorted(chosen, key=lambda case: case.topic not in _LONG):
        if not case.sides or side.name in case.sides:
            plays[case.name] = Play.begin(
                site, side.owner, case, case.contents(side.name, side.container, forge)
            )
    say(f"{side.name}: {len(plays)} cases pushed in {time.monotonic() - began:.0f} s")

    def over(name: str) -> None:
        ended[name] = plays[name].ended()
        keep(name, ended[name])

    try:
        with sides.runners(site, side, folder):
            stuck = _play(site, side, plays, over)
        ended |= {name: each.ended() for name, each in plays.items() if name not in ended}
    finally:
        for each in plays.values():
            each.repository.delete()
    say(f"{side.name}: {len(plays)} cases in {time.monotonic() - began:.0f} s")
    return ended, stuck


def faults(side: Side, chosen: Iterable[Case], ended: dict[str, list[Ended]]) -> list[str]:
    """What is not as the cases want it, on a side."""
    return [
        f"{case.name}, {side.name}: {fault}"
        for case in chosen
        if case.name in ended
        for fault in play.faults(case.wanted_where(contained=side.is_contained), ended[case.name])
    ]


def _play(site: Site, side: Side, plays: dict[str, Play], over: Callable[[str], None]) -> list[str]:
    """Until all are over, each of which is told; those that come to a standstill."""
    last, shown = time.monotonic(), ""
    while open_ := {name: play for name, play in plays.items() if not play.over}:
        jobs = defaultdict(list)
        for job in _jobs(site, side.owner):
            jobs[in_repository(job)].append(job)
        for name, each in open_.items():
            each.go_on(jobs[each.repository.name])
            if each.over:
                over(name)
        now = json.dumps(
            [
                [(job["status"], job["run_attempt"]) for job in each.jobs] + [len(each.left)]
                for each in plays.values()
            ]
        )
        if now != shown:
            last, shown = time.monotonic(), now
        if time.monotonic() - last > STALLED:
            return [
                f"{name}, {side.name}: does not get over {each.left[0]!r}"
                for name, each in open_.items()
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
