"""Figures for Prometheus: totals from the history, gauges from the last pass.

The same for `/metrics` and for a textfile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from vmrunner.config import MetricsConfig
from vmrunner.errors import ConfigError
from vmrunner.manager.figures import Counted, Timed
from vmrunner.manager.history import BUCKETS, History
from vmrunner.manager.manager import Survey

_HISTOGRAMS = {
    Timed.QUEUE_TO_START: "From the job's queueing until the forge had it on a machine",
    Timed.BOOT: "From the machine's creation until its guest was up",
    Timed.JOB: "From the job's start to its end, as the forge tells them; of the job that ran on "
    "the pool's machine",
    Timed.TEARDOWN: "From the runner's exit until the machine was destroyed",
}
_COUNTERS = {
    Counted.MACHINES: ("ending", "Machines that are no more, by their ending"),
    Counted.JOBS: ("verdict", "Jobs that ran on machines of the pool, by the forge's verdict"),
    Counted.FORGE_ERRORS: ("kind", "Requests that the forge did not answer as it should"),
    Counted.DROPPED_PACKETS: (
        "kind",
        "Packets of machines that are no more which their pool's network, or its bounds, did not "
        "let through",
    ),
    Counted.IMAGE_ROLLBACKS: (
        "image",
        "Versions of images that were rolled back because their first machines failed",
    ),
    Counted.SWEPT: ("kind", "Leaked objects that a pass found and deleted; should stay 0"),
}


class Figures(Collector):
    """Everything that vmrunner tells Prometheus."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._survey: Survey | None = None
        self.last_pass = 0.0

    def follow(self, history: History) -> None:
        """Read another history from now on: the configuration was reloaded."""
        self._history = history

    def saw(self, survey: Survey, at: float) -> None:
        """The latest pass, and when it was (unix seconds)."""
        self._survey, self.last_pass = survey, at

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        yield from self._totals()
        if self._survey:
            yield from self._gauges(self._survey)

    def _totals(self) -> Iterable[Metric]:
        totals = self._history.totals()
        for counted, (label, help_text) in _COUNTERS.items():
            name = f"vmrunner_{counted.value}"
            counter = CounterMetricFamily(name, help_text, labels=["pool", label])
            for total in totals:
                if total.name == counted:
                    counter.add_metric([total.pool, total.label], total.value)
            yield counter
        for timed, help_text in _HISTOGRAMS.items():
            name = f"vmrunner_{timed.value}"
            histogram = HistogramMetricFamily(name, help_text, labels=["pool"])
            pools: dict[str, dict[str, float]] = defaultdict(dict)
            for total in totals:
                if total.name == timed:
                    pools[total.pool][total.label] = total.value
            for pool, parts in pools.items():
                count, buckets = 0.0, []
                for bound in (*map(str, BUCKETS), "+Inf"):
                    count += parts.get(bound, 0.0)
                    buckets.append((bound, count))
                histogram.add_metric([pool], buckets, sum_value=parts.get("sum", 0.0))
            yield histogram

    def _gauges(self, survey: Survey) -> Iterable[Metric]:
        machines = GaugeMetricFamily(
            "vmrunner_pool_machines", "Machines by pool and phase", labels=["pool", "phase"]
        )
        phases = Counter(
            (m.metadata.pool, m.phase.value) for m in survey.observed.machines if m.metadata
        )
        phases.update(
            (each.instance.owner, each.machine.phase.value) for each in survey.observed.lent
        )
        for (pool, phase), count in sorted(phases.items()):
            machines.add_metric([pool, phase], count)
        yield machines
        dropped = GaugeMetricFamily(
            "vmrunner_machine_dropped_packets",
            "What the machine's network did not let through",
            labels=["pool", "machine"],
        )
        for machine in survey.observed.machines:
            if machine.metadata and machine.dropped:
                dropped.add_metric([machine.metadata.pool, str(machine.id)], machine.dropped)
        yield dropped
        waiting = GaugeMetricFamily(
            "vmrunner_waiting_jobs",
            "Jobs that wait; the pool is empty where none serves them",
            labels=["pool"],
        )
        waits = Counter(wait.pool for wait in survey.plan.waits)
        for pool in sorted({"", *(desired.pool for desired in survey.pools), *waits}):
            waiting.add_metric([pool], waits[pool])
        yield waiting
        why = GaugeMetricFamily(
            "vmrunner_waits",
            "Jobs that wait, by why; reasons that no job has are left out",
            labels=["pool", "reason"],
        )
        reasons = Counter((wait.pool, wait.reason.kind.value) for wait in survey.plan.waits)
        for (pool, reason), count in sorted(reasons.items()):
            why.add_metric([pool, reason], count)
        yield why
        yield from _host(survey)
        unread = GaugeMetricFamily(
            "vmrunner_unread_jobs",
            "Jobs that wait and were not read yet, as the queue is long",
            labels=["scope"],
        )
        for scope, queue in survey.observed.queues.items():
            if not queue.problem:
                unread.add_metric([str(scope)], queue.unread)
        yield unread
        backoff = GaugeMetricFamily(
            "vmrunner_pool_failures", "Failures in a row that back the pool off", labels=["pool"]
        )
        most = GaugeMetricFamily("vmrunner_pool_max", "The pool's max", labels=["pool"])
        for desired in survey.pools:
            backoff.add_metric([desired.pool], desired.backoff.failures if desired.backoff else 0)
            most.add_metric([desired.pool], desired.max)
        yield backoff
        yield most
        age = GaugeMetricFamily(
            "vmrunner_image_age_seconds",
            "Since the version that new machines use was built",
            labels=["image"],
        )
        built = {
            desired.image.partition("/")[0]: desired.image_built
            for desired in survey.pools
            if desired.image_built
        }
        for image, at in sorted(built.items()):
            age.add_metric([image], max(0.0, self.last_pass - at))
        yield age
        forge_up = GaugeMetricFamily(
            "vmrunner_forge_up", "Whether the forge answered for this scope", labels=["scope"]
        )
        for scope, queue in survey.observed.queues.items():
            forge_up.add_metric([str(scope)], 0 if queue.problem else 1)
        yield forge_up
        yield GaugeMetricFamily(
            "vmrunner_last_pass_timestamp_seconds", "When the last pass ended", value=self.last_pass
        )


def _host(survey: Survey) -> Iterable[Metric]:
    """What the host has, and what of it is used."""
    capacity = survey.observed.capacity
    figures: list[tuple[str, str, int | None]] = [
        (
            "storage_free",
            "Free in the storage of machines and images",
            capacity.known_free_disk_mib,
        ),
        ("host_memory", "The host's memory", capacity.memory_mib),
        (
            "host_memory_used",
            "What machines of this host may take of its memory, ours and others'",
            capacity.used_memory_mib,
        ),
    ]
    if survey.bounds:
        floor = survey.bounds.disk_floor_mib
        figures.append(("storage_floor", "With less free no machine is started", floor))
    for name, help_text, mib in figures:
        if mib is not None:
            yield GaugeMetricFamily(f"vmrunner_{name}_bytes", help_text, value=mib << 20)


def serve(figures: Figures, section: MetricsConfig, *others: Collector) -> None:
    """Answer /metrics in a thread of its own, if the configuration says where.

    Raises ConfigError.
    """
    if section.listen is None:
        return
    host, _, port = section.listen.rpartition(":")
    registry = CollectorRegistry()
    for each in (figures, *others):
        registry.register(each)
    try:
        start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"Metrics can't be served at {section.listen}: {error}.",
            "Choose another metrics.listen.",
        ) from None


def write(figures: Figures, path: Path) -> None:
    """Write the textfile, all of it or nothing of it. Raises ConfigError."""
    registry = CollectorRegistry()
    registry.register(figures)
    try:
        write_to_textfile(str(path), registry)
        path.chmod(0o644)  # the node exporter is another user; under systemd our umask is 077
    except OSError as error:
        raise ConfigError(
            f"The metrics {path} can't be written: {error.strerror}.", "Check metrics.textfile."
        ) from None
