"""The names of figures, once: those that are counted over the time of more than one process, and
how one is described.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Counted(StrEnum):
    """What only grows, by pool and one more label."""

    MACHINES = "machines_total"  # by their ending
    JOBS = "jobs_total"  # by verdict
    FORGE_ERRORS = "forge_errors_total"  # by kind; without a pool
    DROPPED_PACKETS = "dropped_packets_total"
    IMAGE_ROLLBACKS = "image_rollbacks_total"  # by image; without a pool
    SWEPT = "swept_total"  # by kind; without a pool
    CPU_SECONDS = "machine_cpu_seconds_total"
    WAITED_SECONDS = "machine_cpu_waited_seconds_total"
    WRITTEN_BYTES = "machine_written_bytes_total"
    NETWORK_BYTES = "machine_network_bytes_total"  # by direction


class Timed(StrEnum):
    """How long something took, in seconds, as a histogram by pool."""

    QUEUE_TO_START = "queue_to_start_seconds"
    BOOT = "boot_seconds"
    JOB = "job_seconds"
    TEARDOWN = "teardown_seconds"


@dataclass(frozen=True)
class Described:
    """A figure for Prometheus, in words."""

    name: str
    kind: str  # Prometheus's
    labels: tuple[str, ...]
    text: str
