"""`make dashboard`: every query of docs/grafana-dashboard.json, asked of a real Prometheus that
knows a day of vmrunner; and that day drawn, query by query, where `--draw FILE` says so.

The day is one of the fakes (see world.py) and of vmrunner's own metrics, a sample a minute; it has
what a bad day has: a forge that is away, machines that do not start, a disk that fills.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.world import POOL, World
from vmrunner.cache.figures import Kept, Place
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits, Store
from vmrunner.cache.uploads import Uploads
from vmrunner.config import MetricsConfig
from vmrunner.manager.figures import Counted
from vmrunner.manager.metrics import Figures, serve
from vmrunner.waiting import Deadline

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "docs" / "grafana-dashboard.json"
SCRAPED = {"instance": "ci.example:9750", "job": "vmrunner"}  # what Prometheus adds
STEP = 60  # seconds between two samples
MINUTES = 24 * 60
POOLS = {"debian-12": POOL | {"max": 4}, "big": POOL | {"labels": ["big"], "max": 2}}


@dataclass(frozen=True)
class Query:
    """One of a panel."""

    panel: str
    expression: str
    legend: str


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return found


def queries() -> list[Query]:
    return [
        Query(panel["title"], target["expr"], target["legendFormat"])
        for panel in dashboard()["panels"]
        for target in panel.get("targets", [])
    ]


def plain(expression: str) -> str:
    """As Grafana would send it, with all hosts and pools chosen."""
    for name, value in (("$__rate_interval", "10m"), ("$instance", ".*"), ("$pool", ".*")):
        expression = expression.replace(name, value)
    return expression


# ---- a day ----


def day(folder: Path, began: int, minutes: int = MINUTES, seed: int = 1) -> str:
    """What Prometheus would have read each minute, as OpenMetrics with times."""
    dice, world = random.Random(seed), World(folder, pools=POOLS)  # noqa: S311 — no secret
    world.clock.now = float(began)
    figures, ends, cache = Figures(world.history), {}, Cache(world, dice)
    samples: dict[str, list[str]] = defaultdict(list)
    number = 0
    for minute in range(minutes):
        hour = minute * 24 / minutes
        for _ in range(_arrivals(dice, hour)):
            number += 1
            labels = dice.choices((["debian-12"], ["big"], ["arm64"]), (12, 3, 0.02))[0]
            job = world.forge.queue(number, labels, repository=f"o/r{dice.randrange(5)}")
            world.forge.known[number] = replace(job, name=f"job {number % 3}")
        _trouble(world, hour)
        if minute == minutes // 2:  # both are rare
            world.history.count(Counted.SWEPT, label="runner")
            world.history.count(Counted.IMAGE_ROLLBACKS, label="debian-12")
        for _ in range(2):
            _, survey = world.manager.reconcile()
            world.manager.chores()
            for machine in world.machines():
                world.clock.now += dice.uniform(0.2, 1.0)
                known = len(ends)
                _guest(world, machine, ends, dice)
                if len(ends) > known and not cache.asked(machine):  # its job begins
                    ends[str(machine)] += 120.0
        world.clock.now = float(began + (minute + 1) * STEP)
        figures.saw(survey, world.clock.now - dice.uniform(0, 5))
        for family in (*figures.collect(), *cache.figures.collect()):
            for each in family.samples:
                labels = ",".join(
                    f'{key}="{value}"' for key, value in (each.labels | SCRAPED).items()
                )
                line = f"{each.name}{{{labels}}} {each.value} {int(world.clock.now)}"
                samples[each.name].append(line)
    world.history.close()
    cache.store.close()
    return "\n".join(line for lines in samples.values() for line in lines) + "\n# EOF\n"


def _arrivals(dice: random.Random, hour: float) -> int:
    """Few at night, many before and after noon."""
    mean = 0.05 + 0.9 * (9 <= hour < 12) + 0.7 * (13 <= hour < 18)
    return sum(dice.random() < mean / 4 for _ in range(4))


def _trouble(world: World, hour: float) -> None:
    world.forge.down = 10.0 <= hour < 10.3
    if 14 <= hour < 14.4:
        world.hypervisor.fail_at = "start"
    world.hypervisor.free_disk_mib = int(40_000 - 36_000 * hour / 20) if hour < 20 else 40_000


class Cache:
    """What jobs of this world keep: one in four has something new, of some hundred KiB."""

    def __init__(self, world: World, dice: random.Random) -> None:
        folder = world.folder / "cache"
        limits = Limits(most=20 * 2**20, keep_free=0)
        self.store = Store(folder, limits, print, world.clock)
        self._world, self._dice, self._uploads = world, dice, Uploads(self.store, lambda _: None)
        place = Place(folder, world.folder / "history.sqlite", limits.most)
        self.figures = Kept(lambda: place, world.clock)

    def asked(self, machine: Any) -> bool:
        """A job's first step, and its last one; whether it found something."""
        dice, ref = self._dice, "refs/heads/main"
        rights = Rights(f"o{dice.randrange(3)}/r", ref, (ref,), machine=str(machine))
        key = f"{int(self._world.clock() / 6 / 3600)}-{dice.randrange(4)}"
        if found := self.store.find(rights, (key,), "v"):
            self.store.served(rights.repository, found.size)
            return True
        data = dice.randbytes(dice.randrange(1, 2**19))
        id_ = self._uploads.reserve("", rights, key, "v", len(data))
        self._uploads.write(self._uploads.claim("", rights, id_, 0, len(data)), data)
        self._uploads.commit("", rights, id_, len(data))
        return False


def _guest(world: World, machine: Any, ends: dict[str, float], dice: random.Random) -> None:
    """A job takes some minutes; a few machines die with theirs."""
    runner = world.forge.by_name(str(machine))
    if runner and runner.job:
        end = ends.setdefault(str(machine), world.clock.now + dice.lognormvariate(5.2, 0.7))
        if world.clock.now < end:
            return
        if dice.random() < 0.02:
            world.hypervisor.die(machine)
            return
    if machine in world.hypervisor.domains:
        world.step(machine, lambda choices: dice.choices(choices, (9, 1, 0)[: len(choices)])[0])
        events = world.hypervisor.events.get(machine, ())
        world.hypervisor.events[machine] = tuple(
            replace(event, at=world.clock.now) if event.at == 1.0 else event for event in events
        )


# ---- Prometheus ----


class Prometheus:
    """A server that answers queries."""

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **params: str | float) -> Any:
        """The result of a query."""
        asked = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(params)}"
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["data"]["result"]

    def over(self, expression: str, began: float, ended: float) -> list[dict[str, Any]]:
        """The series of a query over a time, a value each two minutes; those that are numbers."""
        found = self.ask("query_range", query=expression, start=began, end=ended, step=120)
        for series in found:
            series["values"] = [
                (t, float(v)) for t, v in series["values"] if v not in ("NaN", "+Inf")
            ]
        return [series for series in found if series["values"]]


@contextmanager
def prometheus(folder: Path, metrics: str = "", scrape: str = "") -> Iterator[Prometheus]:
    """One with these metrics of the past, that reads from this address."""
    folder.mkdir(exist_ok=True)
    data = folder / "data"
    if metrics:
        (folder / "metrics").write_text(metrics)
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", folder / "metrics", data],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    job = {"job_name": "vmrunner", "static_configs": [{"targets": [scrape]}]}
    (folder / "prometheus.yml").write_text(
        json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": [job] if scrape else []})
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *("prometheus", f"--config.file={folder}/prometheus.yml"),
                *(f"--storage.tsdb.path={data}", "--storage.tsdb.retention.time=10y"),
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", Deadline(60)
        while not _is_ready(url):
            if deadline.is_over or server.poll() is not None:
                sys.exit((folder / "log").read_text())
            deadline.pause(0.1)
        yield Prometheus(url)
    finally:
        server.terminate()
        server.wait()


def scraped(folder: Path) -> bool:
    """Whether Prometheus can read what `metrics.listen` serves."""
    world = World(folder / "world", pools=POOLS)
    figures = Figures(world.history)
    figures.saw(world.manager.survey(), time.time())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    serve(figures, MetricsConfig(listen=address))
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
        subprocess.run(["promtool", "check", "metrics"], input=answer.read(), check=True)
    with prometheus(folder, scrape=address) as server:
        deadline = Deadline(30)
        # A busy host may miss one.
        while not (found := server.ask("query", query="up == 1")) and not deadline.is_over:
            deadline.pause(0.2)
        return bool(found)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# ---- the picture ----


def legend(template: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)


def draw(shown: dict[str, list[tuple[str, list[tuple[float, float]]]]], path: Path) -> None:
    """Each panel's series, as plain lines: not as Grafana would show them."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    columns = 3
    figure, axes = pyplot.subplots(
        -(-len(shown) // columns), columns, figsize=(16, 3 * len(shown) / columns)
    )
    first = min(values[0][0] for lines in shown.values() for _, values in lines)
    for axis in axes.flat:
        axis.set_visible(False)
    for axis, (title, lines) in zip(axes.flat, shown.items(), strict=False):
        axis.set_visible(True)
        for name, values in lines:
            hours = [(at - first) / 3600 for at, _ in values]
            axis.plot(hours, [value for _, value in values], linewidth=1, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.set_xlim(0, 24)
        axis.tick_params(labelsize=7)
        if any(name for name, _ in lines):
            axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draw", type=Path, help="draw what the queries return into this file")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vmr-dashboard-"))
    try:
        began = int(time.time()) - (MINUTES + 5) * STEP
        metrics = day(folder / "world", began)
        print(f"{metrics.count(chr(10))} samples of a day on fakes")
        empty, shown = [], defaultdict(list)
        with prometheus(folder, metrics) as server:
            for query in queries():
                found = server.over(plain(query.expression), began, began + MINUTES * STEP)
                points = sum(len(series["values"]) for series in found)
                print(
                    f"{points:6} points, {len(found):2} series  {query.panel}: {query.expression}"
                )
                if not found:
                    empty.append(query.panel)
                for series in found:
                    name = legend(query.legend, series["metric"])
                    shown[query.panel].append((name, series["values"]))
        if not scraped(folder / "live"):
            sys.exit("Prometheus can't read what metrics.listen serves")
        if options.draw:
            draw(shown, options.draw)
        if empty:
            sys.exit(f"without data: {', '.join(empty)}")
        print(f"all {len(queries())} queries return data")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
