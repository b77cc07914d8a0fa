"""How soon a job may be expected to start on this host: as it was here, or as it was elsewhere."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

from vmrunner.config import Config, PoolConfig
from vmrunner.doctor.findings import Finding, good
from vmrunner.errors import ImageError
from vmrunner.hypervisor.seam import Hypervisor
from vmrunner.image.versions import store


class Start(Enum):
    """How a pool's machines start, and what docs/performance.md says of it: seconds from the queue
    to a job's first step, under software emulation.
    """

    PARKED = ("parked clones", 0.6)
    CLONED = ("clones of a snapshot", 1.2)
    BOOTED = ("booted machines", 10.0)


def look(
    settings: Config, hypervisor: Hypervisor, measured: Mapping[str, Sequence[float]]
) -> Iterator[Finding]:
    """A line for each pool. `measured` has the seconds that its last machines took."""
    for name, pool in settings.pools.items():
        try:
            start = _start(settings, hypervisor, pool)
        except ImageError:
            continue  # said elsewhere
        yield good("start", said(name, start, measured.get(name, ()), kvm=hypervisor.facts.kvm))


def _start(settings: Config, hypervisor: Hypervisor, pool: PoolConfig) -> Start:
    golden = store.for_machines(settings.images_dir, pool.image, pool.tools)
    if pool.start == "boot" or hypervisor.snapshots.find(golden, pool.shape) is None:
        return Start.BOOTED
    return Start.PARKED if pool.warm or pool.schedule else Start.CLONED


def said(pool: str, start: Start, measured: Sequence[float], *, kvm: bool) -> str:
    """The line, without guesses: what was not measured is said to be so."""
    how, elsewhere = start.value
    if measured:
        middle = statistics.median(measured)
        return (
            f"pool {pool} has {how}; from a job's turn to its runner's start it took {middle:.1f} "
            f"s here (median of the last {len(measured)})"
        )
    usual = f"pool {pool} has {how}; expect a job's first step after some {elsewhere:g} s"
    if kvm:
        return f"{usual} at most: so long it took without KVM, with it nobody has measured yet"
    return f"{usual}, as it took on two cores under software emulation; none has run here yet"
