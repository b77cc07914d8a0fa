"""A host in the middle of a day, served as the page's own process: for tests and for the docs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.browser.chromium import chromium
from tests.forge.gitea import until
from tests.page import Log, configure, free_port, is_up, made, publish, remember, served
from vmrunner.cli.shown import BackedOff, MachineShown, Pool, Queue, Status, Waiting
from vmrunner.page.seen import Writer

DESK, PHONE = {"width": 1100, "height": 700}, {"width": 360, "height": 740}
_JOBS = (
    "acme/site: build",
    "acme/site: test (3.13)",
    "acme/app: release",
    "ada/notes: check",
    "acme/app: test",
)


@dataclass(frozen=True)
class Demo:
    """Where it is served, and where what it shows lies."""

    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def see(self, status: Status) -> None:
        """A pass of `serve` has seen this."""
        Writer(self.folder / "run" / "m.seen.json", Log()).write(lambda: status, time.time())


def status() -> Status:
    """Machines at work, jobs that wait for several reasons, a pool that is backed off."""
    machines = tuple(
        made(
            MachineShown,
            name=f"vmr-m-{number:08x}",
            phase="running" if number < 4 else "ready",
            paused=number >= 4,
            age_seconds=37.0 + 41 * number,
            image="debian-12/20270108-1",
            job=_JOBS[number] if number < 4 else "",
            job_url=f"https://forge.example/acme/site/actions/runs/{number}" if number < 4 else "",
            trouble="",
            dropped_packets=12 if number == 2 else 0,
        )
        for number in range(5)
    )
    linux = made(
        Pool,
        name="linux",
        max=5,
        warm=1,
        image="debian-12/20270108-1",
        ready=1,
        image_age_seconds=3 * 86400,
        image_note="the newest version, 20270115-1, was rolled back",
        drained=False,
        snapshot="",
        running=4,
        register_idle=0,
        idle=0,
        failed=0,
        backoff=None,
        machines=machines,
    )
    big = replace(
        linux,
        name="big",
        max=2,
        warm=0,
        ready=0,
        image_note="",
        running=0,
        failed=3,
        backoff=BackedOff(3, 96.0, "the guest did not report within 5m"),
        machines=(),
    )
    waiting = tuple(
        made(
            Waiting,
            name=name.partition(": ")[2],
            id=number,
            repository=name.partition(": ")[0],
            labels=(labels,),
            url=f"https://forge.example/acme/site/actions/runs/{number}",
            pool=labels,
            kind="max",
            reason=reason,
            age_seconds=9.0 + 31 * number,
        )
        for number, (name, labels, reason) in enumerate(
            (
                (_JOBS[4], "linux", "pool linux is at its max of 5 machines"),
                (_JOBS[2], "big", "pool big is backed off for 96 s after 3 failures"),
                ("ada/notes: arm", "arm64", "no pool has the label arm64 (nearest: big, linux)"),
            )
        )
    )
    found: Status = made(
        Status,
        manager="m",
        host="ci.example",
        forge=(made(Queue, scope="instance", jobs=8),),
        pools=(linux, big),
        garm=(),
        waiting=waiting,
    )
    return found


@contextmanager
def demo(more: str = "", rows: int = 3000) -> Iterator[Demo]:
    """Served until the block ends."""
    with tempfile.TemporaryDirectory(prefix="vmrunner-demo-") as name:
        place = Demo(free_port(), Path(name))
        path = configure(place.folder, f"127.0.0.1:{place.port}", more, most=5)
        publish(place.folder)
        remember(place.folder, rows, days=7)
        place.see(status())
        with served(path):
            until(lambda: is_up(place.port), 60, "its plots are drawn", every=0.05)
            yield place


def pictures(folder: Path) -> None:
    """Those of docs/page.md: by day, and in the dark."""
    with demo() as place, chromium() as browser:
        place.see(status())
        shown = browser.new_page(viewport=DESK)
        shown.goto(place.url)
        shown.screenshot(path=folder / "page.png", full_page=True)
        dark = browser.new_page(viewport=DESK, color_scheme="dark")
        dark.goto(f"{place.url}/plots?span=week")
        dark.screenshot(path=folder / "plots.png", full_page=True)
