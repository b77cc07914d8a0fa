"""`make bench`: how fast machines start, what they cost, side by side in one run."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.bench import caches, clones, life, load, memory, path, queue, report, resolver, steps
from tests.bench.common import Gate
from tests.forge.gitea import Site

PARTS = (
    "queue",
    "steps",
    "life",
    "path",
    "load",
    "memory",
    "throughput",
    "clones",
    "resolver",
    "caches",
)


def main() -> None:
    """Run the parts; the last line is their figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", action="append", default=[], choices=PARTS, help="this part; may be given again"
    )
    parser.add_argument(
        "--mode",
        action="append",
        default=[],
        choices=list(queue.MODES),
        help="of queue, steps and caches: this way of starting only",
    )
    parser.add_argument("--runs", type=int, default=20, help="how often each thing is measured")
    parser.add_argument("--clones", type=int, default=200, help="how many in a row")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FOLDER",
        help="also write benchmarks.txt and benchmarks.png there",
    )
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    failed: list[str] = []
    with closing(Site()) as site, closing(Gate(site)) as gate:
        site.clear()
        measures: dict[str, Callable[[], Any]] = {
            "queue": lambda: {
                mode: queue.first_steps(site, gate, mode, options.runs)
                for mode in options.mode or queue.USUAL
            },
            "steps": lambda: {
                mode: steps.side_by_side(site, gate, mode, options.runs)
                for mode in options.mode or steps.USUAL
            },
            "life": lambda: life.whole_lives(site, options.runs),
            "path": lambda: path.steps(site, options.runs),
            "load": lambda: load.side_by_side(site, options.runs),
            "throughput": lambda: {
                start: queue.throughput(site, gate, start, options.runs)
                for start in ("snapshot", "boot")
            },
            "memory": lambda: {start: memory.idle(site, start) for start in ("snapshot", "boot")},
            "clones": lambda: clones.in_a_row(site, options.clones),
            "caches": lambda: {
                mode: caches.first_steps(site, gate, mode, options.runs)
                for mode in options.mode or ("snapshot", "parked")
            },
            "resolver": lambda: resolver.beside(max(1, options.runs // 4)),
        }
        for part, measure in measures.items():
            if part in (options.only or measures):
                try:
                    figures[part] = measure()
                except Exception:  # what the others measured in half an hour is not lost
                    traceback.print_exc()
                    failed.append(part)
    for table in report.tables(figures):
        Console(stderr=True, width=120).print(table, "")
    if options.save:
        report.save(figures, options.save)
    print(json.dumps(figures | ({"failed": failed} if failed else {})))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
