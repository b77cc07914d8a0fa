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
from vmrunner.manager.figures import Counted, Described, Timed
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
    Counted.CPU_SECONDS: ("kind", "Processor time that machines took which are no more"),
    Counted.WAITED_SECONDS: (
        "kind",
        "How long the processors of machines that are no more waited for the host's",
    ),
    Counted.WRITTEN_BYTES: ("kind", "What machines that are no more wrote to their disks"),
    Counted.NETWORK_BYTES: ("direction", "What machines that are no more received and sent"),
}


_GAUGES = {
    "pool_machines": ("Machines by pool and phase", ("pool", "phase")),
    "machine_dropped_packets": (
        "What the machine's network did not let through",
        ("pool", "machine"),
    ),
    "machine_memory_bytes": ("The host's memory that the machine took", ("pool", "machine")),
    "machine_cpu_used_seconds": ("The processor time that the machine took", ("pool", "machine")),
    "waiting_jobs": ("Jobs that wait; the pool is empty where none serves them", ("pool",)),
    "waits": ("Jobs that wait, by why; reasons that no job has are left out", ("pool", "reason")),
    "storage_free_bytes": ("Free in the storage of machines and images", ()),
    "storage_floor_bytes": ("With less free no machine is started", ()),
    "host_memory_bytes": ("The host's memory", ()),
    "host_memory_used_bytes": (
        "What machines of this host may take of its memory, ours and others'",
        (),
    ),
    "unread_jobs": ("Jobs that wait and were not read yet, as the queue is long", ("scope",)),
    "pool_failures": ("Failures in a row that back the pool off", ("pool",)),
    "pool_max": ("The pool's max", ("pool",)),
    "image_age_seconds": ("Since the version that new machines use was built", ("image",)),
    "forge_up": ("Whether the forge answered for this scope", ("scope",)),
    "last_pass_timestamp_seconds": ("When the last pass ended", ()),
}


def described() -> tuple[Described, ...]:
    """All that a pass and the history tell; others (the webhook) describe themselves."""
    return (
        *(
            Described(f"vmrunner_{counted.value}", "counter", ("pool", label), text)
            for counted, (label, text) in _COUNTERS.items()
        ),
        *(
            Described(f"vmrunner_{timed.value}", "histogram", ("pool",), text)
            for timed, text in _HISTOGRAMS.items()
        ),
        *(
            Described(f"vmrunner_{name}", "gauge", labels, text)
            for name, (text, labels) in _GAUGES.items()
        ),
    )


def _gauge(name: str) -> GaugeMetricFamily:
    text, labels = _GAUGES[name]
    return GaugeMetricFamily(f"vmrunner_{name}", text, labels=labels)


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
        machines = _gauge("pool_machines")
        phases = Counter(
            (m.metadata.pool, m.phase.value) for m in survey.observed.machines if m.metadata
        )
        phases.update(
            (each.instance.owner, each.machine.phase.value) for each in survey.observed.lent
        )
        for (pool, phase), count in sorted(phases.items()):
            machines.add_metric([pool, phase], count)
        yield machines
        dropped = _gauge("machine_dropped_packets")
        for machine in survey.observed.machines:
            if machine.metadata and machine.dropped:
                dropped.add_metric([machine.metadata.pool, str(machine.id)], machine.dropped)
        yield dropped
        yield from self._used(survey)
        waiting = _gauge("waiting_jobs")
        waits = Counter(wait.pool for wait in survey.plan.waits)
        for pool in sorted({"", *(desired.pool for desired in survey.pools), *waits}):
            waiting.add_metric([pool], waits[pool])
        yield waiting
        why = _gauge("waits")
        reasons = Counter((wait.pool, wait.reason.kind.value) for wait in survey.plan.waits)
        for (pool, reason), count in sorted(reasons.items()):
            why.add_metric([pool, reason], count)
        yield why
        yield from _host(survey)
        unread = _gauge("unread_jobs")
        for scope, queue in survey.observed.queues.items():
            if not queue.problem:
                unread.add_metric([str(scope)], queue.unread)
        yield unread
        backoff = _gauge("pool_failures")
        most = _gauge("pool_max")
        for desired in survey.pools:
            backoff.add_metric([desired.pool], desired.backoff.failures if desired.backoff else 0)
            most.add_metric([desired.pool], desired.max)
        yield backoff
        yield most
        age = _gauge("image_age_seconds")
        built = {
            desired.image.partition("/")[0]: desired.image_built
            for desired in survey.pools
            if desired.image_built
        }
        for image, at in sorted(built.items()):
            age.add_metric([image], max(0.0, self.last_pass - at))
        yield age
        forge_up = _gauge("forge_up")
        for scope, queue in survey.observed.queues.items():
            forge_up.add_metric([str(scope)], 0 if queue.problem else 1)
        yield forge_up
        ended = _gauge("last_pass_timestamp_seconds")
        ended.add_metric([], self.last_pass)
        yield ended

    def _used(self, survey: Survey) -> Iterable[Metric]:
        """What machines that live have taken; the history has it."""
        memory, cpu = _gauge("machine_memory_bytes"), _gauge("machine_cpu_used_seconds")
        there = {str(machine.id) for machine in survey.observed.machines}
        for record in self._history.living():
            if record.machine in there and record.memory_peak_mib:
                memory.add_metric([record.pool, record.machine], record.memory_peak_mib << 20)
                cpu.add_metric([record.pool, record.machine], record.cpu_seconds)
        yield memory
        yield cpu


def _host(survey: Survey) -> Iterable[Metric]:
    """What the host has, and what of it is used."""
    capacity = survey.observed.capacity
    figures: dict[str, int | None] = {
        "storage_free_bytes": capacity.known_free_disk_mib,
        "host_memory_bytes": capacity.memory_mib,
        "host_memory_used_bytes": capacity.used_memory_mib,
    }
    if survey.bounds:
        figures["storage_floor_bytes"] = survey.bounds.disk_floor_mib
    for name, mib in figures.items():
        if mib is not None:
            figure = _gauge(name)
            figure.add_metric([], mib << 20)
            yield figure


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
