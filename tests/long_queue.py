"""`make scale`'s long queue: 5,000 jobs wait at the real Gitea. What the first pass and an idle one
cost with this vmrunner, beside an older one that read the whole list each time.
"""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.forge.gitea import Repository, Site, until

BEFORE = "b2c3d3a64f74946229be15ad0a221153c9641ae0"  # the commit to compare with
REPOSITORIES, RUNS, JOBS = 5, 4, 250  # of each repository, of each run
ROUNDS = 2
IDLE = {"before": 4, "now": 240}  # passes; in 100 of them the whole queue was read once
SOONER, LESS, GROWTH = 5.0, 0.1, 0.1  # what it has to be, at least, and at most
_WORKFLOW = f"""on: workflow_dispatch
jobs:
  many:
    runs-on: debian-12
    strategy:
      matrix:
        a: {list(range(JOBS // 10))}
        b: {list(range(10))}
    steps: [{{run: "true"}}]
"""
_PARTS = ("vmrunner", "tests", "templates", "images")  # of the older tree
_ROOT = Path(__file__).parents[1]


@contextmanager
def queue(site: Site) -> Iterator[int]:
    """So many jobs wait there meanwhile."""
    site.clear()
    site.organisation("crowd")
    made: list[Repository] = []
    jobs = REPOSITORIES * RUNS * JOBS
    try:
        for number in range(REPOSITORIES):
            made.append(site.repository("crowd", f"r{number}", _WORKFLOW))
        for each in made * RUNS:
            each.dispatch()
        until(lambda: site.queued() == jobs, 900, f"{jobs} jobs wait", every=2.0)
        yield jobs
    finally:
        for each in made:
            each.delete()


@contextmanager
def older() -> Iterator[Path | None]:
    """A tree of the older commit; None where the checkout does not have it."""
    packed = subprocess.run(
        [*["git", "-c", "safe.directory=*", "archive"], BEFORE, "vmrunner", "tests", "templates"],
        cwd=_ROOT,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        print(f"without a comparison: {packed.stderr.decode().strip()}", file=sys.stderr)
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="vmrunner-scale-") as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
            tar.extractall(folder, filter="data")
        yield Path(folder)


def side(tree: Path, idle: int, site: Site) -> dict[str, float]:
    """Measure with this tree; what it registers goes again."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_ROOT / "tests" / "queue_side.py"), str(idle)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    finally:
        for record in site.runners():
            site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))
    return found


def measure() -> dict[str, Mapping[str, float]]:
    """Both sides in turns: medians of the rounds."""
    site = Site()
    rounds: dict[str, list[dict[str, float]]] = {}
    try:
        with queue(site) as jobs, older() as before:
            print(f"{jobs} jobs wait at the forge", file=sys.stderr, flush=True)
            for _ in range(ROUNDS):
                for name, tree in (("before", before), ("now", _ROOT)):
                    if tree:
                        rounds.setdefault(name, []).append(side(tree, IDLE[name], site))
                        print(f"{name}: {rounds[name][-1]}", file=sys.stderr, flush=True)
    finally:
        site.close()
    return {
        name: {what: statistics.median(each[what] for each in found) for what in found[0]}
        for name, found in rounds.items()
    }


def report(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Print the table; what is not as it has to be."""
    now, before = figures["now"], figures.get("before")
    print(f"{'a long queue at the forge':28}" + "".join(f"{name:>16}" for name in figures))
    for what in now:
        print(f"{what:28}" + "".join(f"{side[what]:>16,.2f}" for side in figures.values()))
    grown = now["memory_mib_end"] / now["memory_mib_middle"] - 1
    faults = [f"a long queue: the memory grew by {grown:.1%}"] if grown > GROWTH else []
    if before:
        sooner = before["first_start_seconds"] / now["first_start_seconds"]
        less = now["idle_bytes"] / before["idle_bytes"]
        print(f"first start {sooner:.1f} times sooner, idle passes with {less:.1%} of the bytes")
        if sooner < SOONER:
            faults.append(f"a long queue: the first start is only {sooner:.1f} times sooner")
        if less > LESS:
            faults.append(f"a long queue: an idle pass has {less:.0%} of the bytes of before")
    return faults


def main() -> None:
    """Alone; the last line is the figures as JSON."""
    figures = measure()
    faults = report(figures)
    print(json.dumps({**figures, "faults": faults}))
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
