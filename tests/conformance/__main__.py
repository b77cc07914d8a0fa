"""Run the cases on every side, or on some; the last line is JSON.

1 where a job did not end as it has to, or a difference is not known.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path

from tests.conformance import cases, mirror, rounds
from tests.conformance.compare import Ended
from tests.conformance.rounds import differ, run, say
from tests.conformance.sides import SIDES, Side
from tests.forge.gitea import Site

FOLDER = Path("/tmp/vmrunner-conformance")
SEEN = FOLDER / "seen"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], help="Cases with this in their name or topic."
    )
    parser.add_argument(
        "--side",
        action="append",
        default=[],
        choices=[side.name for side in SIDES],
        help="Default: all, unless --seen says otherwise.",
    )
    parser.add_argument(
        "--keep", action="store_true", help=f"Write what was seen into files of {SEEN}."
    )
    parser.add_argument(
        "--seen",
        action="append",
        default=[],
        choices=[side.name for side in SIDES],
        help="Sides as they were last kept.",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Leave out the cases of these sides that were kept already, and keep the others.",
    )
    options = parser.parse_args()
    # The manager and its machines go with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    chosen = cases.load_all(*options.only)
    wanted = [
        side for side in SIDES if side.name in options.side or not (options.side or options.seen)
    ]
    seen = {name: _kept(name, {case.name for case in chosen}) for name in options.seen}
    faults: list[str] = []
    for side in SIDES:
        if side.name in options.seen:
            faults += rounds.faults(side, chosen, seen[side.name])
    with closing(Site()) as site:
        mirror.publish(site)
        for side in wanted:
            kept = _kept(side.name, {case.name for case in chosen}) if options.resume else {}
            left = [case for case in chosen if case.name not in kept]
            keep = partial(_keep, side) if options.keep or options.resume else lambda *_: None
            ended, stuck = run(site, side, left, FOLDER, keep)
            seen[side.name] = kept | ended
            found = rounds.faults(side, chosen, seen[side.name]) + stuck
            faults += found
    for fault in faults:
        say(f"  {fault}")
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


def _keep(side: Side, case: str, jobs: list[Ended]) -> None:
    folder = SEEN / side.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{case}.json").write_text(json.dumps([asdict(job) for job in jobs], indent=1))
    (folder / f"{case}.txt").write_text(
        "\n".join(f"== {job.job}: {job.verdict}\n" + "\n".join(job.log[:400]) for job in jobs)
        + "\n"
    )


def _kept(side: str, chosen: set[str]) -> dict[str, list[Ended]]:
    files = [path for path in (SEEN / side).glob("*.json") if path.stem in chosen]
    return {path.stem: [Ended(**job) for job in json.loads(path.read_text())] for path in files}


if __name__ == "__main__":
    sys.exit(main())
