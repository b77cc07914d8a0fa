"""Figures for Prometheus: what it reads from us, over HTTP and from a file, and the alerts over
it.
"""

from __future__ import annotations

import os
import re
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tests.dashboard import dashboard, queries
from tests.world import POOL, World
from vmrunner.cache.figures import Kept, Place
from vmrunner.cache.store import Limits, Store
from vmrunner.config import MetricsConfig
from vmrunner.errors import ConfigError
from vmrunner.manager import metrics
from vmrunner.manager.figures import Counted
from vmrunner.manager.history import BUCKETS, History
from vmrunner.manager.metrics import Figures
from vmrunner.model.job import Job, JobState
from vmrunner.model.machine import UNBOUNDED, Ending, MachineId, Metadata

RULES = Path(__file__).parents[3] / "docs" / "prometheus-rules.yaml"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(
        tmp_path, pools={"p": POOL, "big": POOL | {"labels": ["big"], "scope": ["organisation:x"]}}
    )


def parsed(text: str) -> Samples:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def exposed(figures: Collector) -> Samples:
    registry = CollectorRegistry()
    registry.register(figures)
    return parsed(generate_latest(registry).decode())


def after_a_pass(world: World) -> Figures:
    figures = Figures(world.history)
    _, survey = world.manager.reconcile()
    figures.saw(survey, 1_000_002.5)
    return figures


def sample(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"vmrunner_{name}", frozenset(labels.items())))


def busy(world: World) -> None:
    """One machine with a job, one that died with its job, and jobs that wait."""
    for number in range(1, 5):
        world.forge.queue(number)
    world.forge.queue(9, ["arm64"])
    world.up()
    for machine in world.machines():
        world.boot(machine)
        world.forge.fetch(str(machine), world.hypervisor.domains[machine].job_key)
    world.up()
    world.hypervisor.die(world.machines()[0])


def test_the_age_of_the_image_that_is_current(world: World) -> None:
    figures = after_a_pass(world)
    # It was built on the first.
    figures.saw(world.manager.survey(), datetime(2026, 1, 3, tzinfo=UTC).timestamp())
    assert sample(exposed(figures), "image_age_seconds", image="debian-12") == 2 * 86400


def test_the_exposition_parses_and_says_what_a_pass_saw(world: World) -> None:
    busy(world)
    samples = exposed(after_a_pass(world))
    assert sample(samples, "pool_machines", pool="p", phase="running") == 1
    assert sample(samples, "waiting_jobs", pool="p") == 2
    assert sample(samples, "waiting_jobs", pool="big") == 0
    assert sample(samples, "waiting_jobs", pool="") == 1
    assert sample(samples, "waits", pool="p", reason="at max") == 1
    assert sample(samples, "waits", pool="p", reason="started") == 1
    assert sample(samples, "waits", pool="", reason="no label") == 1
    assert sample(samples, "storage_free_bytes") == 1 << 40
    assert sample(samples, "storage_floor_bytes") == 5 << 30
    assert sample(samples, "host_memory_bytes") > sample(samples, "host_memory_used_bytes") > 0
    assert sample(samples, "pool_max", pool="p") == 2
    assert sample(samples, "pool_failures", pool="p") == 0
    assert sample(samples, "forge_up", scope="instance") == 1
    assert sample(samples, "forge_up", scope="organisation:x") == 1
    assert sample(samples, "last_pass_timestamp_seconds") == 1_000_002.5


def test_storage_that_is_not_there_yet_has_no_figure(world: World) -> None:
    world.hypervisor.free_disk_mib = UNBOUNDED
    assert sample(exposed(after_a_pass(world)), "storage_free_bytes") is None


def test_a_scope_without_an_answer_and_a_pool_that_is_backed_off(world: World) -> None:
    world.forge.queue(1)
    world.hypervisor.fail_at = "start"
    world.up()
    world.forge.fail_at = "runners"
    samples = exposed(after_a_pass(world))
    assert sample(samples, "pool_failures", pool="p") == 1
    assert sorted(value for (name, _), value in samples.items() if name == "vmrunner_forge_up") == [
        0,
        1,
    ]
    assert sample(samples, "forge_errors_total", pool="", kind="ForgeUnreachable") == 1


def test_counters_are_by_ending_and_outlive_the_process(world: World) -> None:
    busy(world)
    world.forge.cancel(9)
    world.up()
    world.settle()
    world.forge.create_runner(world.settings.pools["p"].scope[0], world.named("0123abcd"), ["x"])
    world.up()
    world.restart()
    samples = exposed(Figures(world.history))
    assert sample(samples, "machines_total", pool="p", ending="done") == 3
    assert sample(samples, "machines_total", pool="p", ending="died") == 1
    assert sample(samples, "machines_total", pool="p", ending="cancelled") is None
    assert sample(samples, "swept_total", pool="", kind="runner") == 1
    assert not any(name.startswith("vmrunner_pool") for name, _ in samples), "there was no pass yet"


def test_jobs_count_by_their_verdict_in_the_pool_of_the_machine_that_ran_them(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, pools={"p": POOL | {"max": 1}, "q": POOL | {"max": 1}})
    for number in (1, 2):
        world.forge.queue(number)
    world.up()
    for machine in reversed(world.machines()):
        world.boot(machine)
        number = world.forge.fetch(str(machine))
        world.clock.now += 40.0
        world.forge.finish(
            number, "failure" if world.hypervisor.domains[machine].pool == "q" else "success"
        )
        world.hypervisor.power_off(machine)
    world.up()
    samples = exposed(Figures(world.history))
    assert sample(samples, "jobs_total", pool="p", verdict="success") == 1
    assert sample(samples, "jobs_total", pool="q", verdict="failure") == 1
    assert (
        sample(samples, "job_seconds_sum", pool="p")
        == sample(samples, "job_seconds_sum", pool="q")
        == 40
    )
    assert sample(samples, "queue_to_start_seconds_count", pool="p") == 1, (
        "also of those that no pass saw running"
    )


def test_histograms_are_cumulative(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite", pytest.fail)
    waits = [0.25, 0.5, 4.0, 5.0, 20_000.0]
    for number, seconds in enumerate(waits):
        metadata = Metadata(MachineId("m", f"{number:08x}"), "p", "i/1", 100.0)
        job = Job(
            number,
            "j",
            ("x",),
            JobState.WAITING,
            f"{number}",
            queued_at=datetime.fromtimestamp(100, UTC),
        )
        history.started(metadata, 100.0, job)
        history.running(replace(metadata, running_at=100 + seconds), job)
    samples = exposed(Figures(history))
    history.close()
    buckets = {
        dict(labels)["le"]: value
        for (name, labels), value in samples.items()
        if name == "vmrunner_queue_to_start_seconds_bucket"
    }
    assert list(map(float, buckets)) == [*BUCKETS, float("inf")]
    for bound, count in buckets.items():
        assert count == sum(seconds <= float(bound) for seconds in waits), bound
    assert sample(samples, "queue_to_start_seconds_count", pool="p") == len(waits)
    assert sample(samples, "queue_to_start_seconds_sum", pool="p") == sum(waits)


def test_the_textfile_is_for_everyone_to_read(world: World, tmp_path: Path) -> None:
    path = tmp_path / "vmrunner.prom"
    before = os.umask(0o077)  # as systemd runs us
    try:
        metrics.write(after_a_pass(world), path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert sample(parsed(path.read_text()), "pool_max", pool="p") == 2


def test_the_textfile_is_replaced_as_a_whole_or_not_at_all(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    path = folder / "vmrunner.prom"
    metrics.write(after_a_pass(world), path)
    complete, old = path.read_text(), path.open()

    class Broken(Figures):
        def collect(self) -> Iterable[Metric]:
            yield from super().collect()
            assert path.read_text() == complete, "nothing is seen before all is written"
            raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match="No space left on device"):
        metrics.write(Broken(world.history), path)
    assert (path.read_text(), list(folder.iterdir())) == (complete, [path])
    metrics.write(after_a_pass(world), path)
    with old:
        assert old.read() == complete, "whoever reads the old one reads on in it"


def test_a_textfile_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"can't be written: No such file") as refused:
        metrics.write(Figures(world.history), tmp_path / "nowhere" / "vmrunner.prom")
    assert "metrics.textfile" in refused.value.hint


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The ports that were opened; they are closed afterwards."""
    opened: list[Any] = []
    real = metrics.start_http_server

    def start(*arguments: Any) -> None:
        opened.append(real(*arguments))
        numbers.append(opened[-1][0].server_port)

    numbers: list[int] = []
    monkeypatch.setattr(metrics, "start_http_server", start)
    yield numbers
    for server, thread in opened:
        server.shutdown()
        thread.join()
        server.server_close()


def test_metrics_over_http(world: World, ports: list[int]) -> None:
    busy(world)
    metrics.serve(figures := after_a_pass(world), MetricsConfig(listen="127.0.0.1:0"))
    for _ in range(2):
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/metrics", timeout=10) as answer:
            assert (answer.status, answer.headers.get_content_type()) == (200, "text/plain")
            assert parsed(answer.read().decode()) == exposed(figures)
        world.up()
        figures.follow(world.history)


def test_nothing_listens_unless_it_is_configured(world: World, ports: list[int]) -> None:
    metrics.serve(Figures(world.history), MetricsConfig())
    assert ports == []


@pytest.mark.parametrize("address", ["192.0.2.1:9750", "127.0.0.1:99999", "nobody.invalid:9750"])
def test_an_address_that_is_not_ours(world: World, address: str) -> None:
    with pytest.raises(
        ConfigError, match=f"Metrics can't be served at {re.escape(address)}"
    ) as refused:
        metrics.serve(Figures(world.history), MetricsConfig(listen=address))
    assert "metrics.listen" in refused.value.hint


def test_a_port_that_is_taken(world: World, ports: list[int]) -> None:
    metrics.serve(Figures(world.history), MetricsConfig(listen="127.0.0.1:0"))
    with pytest.raises(ConfigError, match="Address already in use"):
        metrics.serve(Figures(world.history), MetricsConfig(listen=f"127.0.0.1:{ports[0]}"))


# ---- docs/prometheus-rules.yaml ----


def known(world: World) -> dict[str, set[str]]:
    """Every series that vmrunner can have, with its labels."""
    busy(world)
    world.manager.chores()
    world.forge.cancel(9)
    world.up()
    world.settle()
    world.history.count(Counted.SWEPT, label="runner")
    world.history.count(Counted.FORGE_ERRORS, label="ForgeUnreachable")
    world.history.count(Counted.IMAGE_ROLLBACKS, label="debian-12")
    world.forge.queue(100)
    world.up()
    world.up()
    folder = world.folder / "cache"
    with closing(Store(folder, Limits(), print)):
        place = Place(folder, world.folder / "history.sqlite", 1)
        cached = exposed(Kept(lambda: place))
    found: dict[str, set[str]] = {}
    for name, labels in (*exposed(after_a_pass(world)), *cached):
        found.setdefault(name, set()).update(dict(labels))
    return found


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def test_the_alerts_name_only_figures_and_labels_that_exist(world: World) -> None:
    series = known(world)
    named = set()
    for rule in rules():
        for name, matchers in re.findall(r"\b(vmrunner_[a-z_]+)(?:\{([^}]*)\})?", rule["expr"]):
            named.add(name)
            assert name in series, f"{rule['alert']} names {name}"
            assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= series[name], (
                f"{rule['alert']}: {matchers}"
            )
        labels = set().union(
            *(series[name] for name in re.findall(r"\bvmrunner_[a-z_]+", rule["expr"]))
        ) | {"instance"}
        for grouped in re.findall(r"\b(?:by|on) \(([^)]*)\)", rule["expr"]):
            assert set(grouped.split(", ")) <= labels, rule["alert"]
        told = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", told)) <= labels, rule["alert"]
    watched = {
        "swept_total",
        "forge_up",
        "pool_failures",
        "last_pass_timestamp_seconds",
        "waiting_jobs",
        "image_age_seconds",
    }
    assert {f"vmrunner_{name}" for name in watched} <= named


def test_the_dashboard_names_only_figures_and_labels_that_exist(world: World) -> None:
    series, named = known(world), set()
    for query in queries():
        for name, matchers in re.findall(r"\b(vmrunner_[a-z_]+)\{([^}]*)\}", query.expression):
            named.add(name)
            assert name in series, query
            matched = set(re.findall(r"(\w+)\s*[=!]", matchers))
            assert "instance" in matched, f"{query}: the choice of a host"
            assert matched <= series[name] | {"instance"}, query
        assert "vmrunner_" not in re.sub(r"vmrunner_[a-z_]+\{", "", query.expression), query
        labels = set().union(*(series[name] for name in series if name in query.expression))
        assert set(re.findall(r"\{\{(\w+)\}\}", query.legend)) <= labels | {"instance"}, query
    shared = {name.removesuffix("_bucket").removesuffix("_count") for name in series}
    left_out = {"vmrunner_dropped_packets_total", "vmrunner_cache_entries"} | {
        f"vmrunner_machine_{what}"
        for what in ("dropped_packets", "memory_bytes", "cpu_used_seconds")
    }
    figures = {name for name in shared if not name.endswith(("_created", "_sum"))}
    assert figures - {name.removesuffix("_bucket") for name in named} <= left_out


def test_a_dashboard_has_each_thing_once_and_none_on_another() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [
        (x, y)
        for panel in panels
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24


def test_the_failures_on_the_dashboard_are_the_failures() -> None:
    (fine,) = {
        found for query in queries() for found in re.findall(r'ending!~"([^"]+)"', query.expression)
    }
    assert set(fine.split("|")) == {ending.value for ending in Ending if not ending.is_failure}


def test_the_endings_that_alert_are_the_failures(world: World) -> None:
    (pattern,) = (
        found for rule in rules() for found in re.findall(r'ending=~"([^"]+)"', rule["expr"])
    )
    # One that a killed manager left behind says nothing about the pool.
    assert {ending for ending in Ending if re.fullmatch(pattern, ending.value)} == {
        ending for ending in Ending if ending.is_failure and ending is not Ending.ABANDONED
    }


def test_every_alert_says_what_it_means() -> None:
    for rule in rules():
        assert re.fullmatch(r"Vmrunner[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"].keys() == {"summary", "description"}
