"""What `vmrunner doctor` looks at: everything that a machine and a job need, each finding with its
fix. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from vmrunner.config import DEFAULT_PATH, CapacityConfig, Config, HostConfig
from vmrunner.doctor import (
    cache,
    configuration,
    forge,
    host,
    images,
    notices,
    pace,
    packages,
    page,
)
from vmrunner.doctor.findings import Finding, Level, failed, good, warning
from vmrunner.errors import VmrunnerError
from vmrunner.hypervisor.seam import Hypervisor


def examine(
    settings: HostConfig,
    open_host: Callable[[], Hypervisor],
    starts: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Iterator[Finding]:
    """Every finding, as it is found; without pools and a forge, of the host alone. `starts` has the
    seconds that each pool's last jobs waited for their runner.
    """
    full = settings if isinstance(settings, Config) else None
    if full is None:
        yield warning(
            "configuration",
            f"There is no configuration at {DEFAULT_PATH}: only the host is looked at.",
            "`vmrunner init` makes one.",
        )
    else:
        yield from _doubts(full)
    yield from host.folders(settings)
    names: set[str] | None = None
    try:
        libvirt = open_host()
    except VmrunnerError as why:
        yield failed("libvirt", why)
    else:
        capacity = full.capacity if full else CapacityConfig()
        yield from host.look(settings, libvirt.facts, capacity.disk_floor)
        try:
            if full:
                yield from images.look(full, libvirt.snapshots)
                yield from pace.look(full, libvirt, starts)
            machines = libvirt.machines.all()
        except VmrunnerError as why:
            yield failed("machines", why)
            machines = []
        names = {str(machine.id) for machine in machines}
        strays = [str(machine.id) for machine in machines if machine.metadata is None]
        if strays:
            yield warning(
                "leftovers",
                f"Files without a machine: {', '.join(strays)}.",
                "`vmrunner up` sweeps them.",
            )
        else:
            yield good("leftovers", f"{len(machines)} machines, no files without one")
    if full:
        yield from forge.look(full, names)
        yield from forge.webhook(full)
        yield from notices.look(full)
        yield from page.look(full)
        yield from cache.look(full)
        yield from packages.look(full)


def _doubts(settings: Config) -> Iterator[Finding]:
    """Without those of images, which are looked at more closely."""
    wrong = [
        each
        for each in configuration.look(settings, configuration.this_host(settings))
        if each.level is Level.ERROR
    ]
    pools = ", ".join(settings.pools)
    yield from wrong or [good("configuration", f"manager {settings.manager}, pools {pools}")]
