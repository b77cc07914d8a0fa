"""What `vmrunner doctor` looks at: everything that a machine and a job need, each finding with its
fix. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from vmrunner.config import Config
from vmrunner.doctor import forge, host, images, pace
from vmrunner.doctor.findings import Finding, failed, good, warning
from vmrunner.errors import VmrunnerError
from vmrunner.hypervisor.seam import Hypervisor


def examine(
    settings: Config,
    open_host: Callable[[], Hypervisor],
    starts: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Iterator[Finding]:
    """Every finding, as it is found. `starts` has the seconds that each pool's last jobs waited for
    their runner.
    """
    yield from host.folders(settings)
    names: set[str] | None = None
    try:
        libvirt = open_host()
    except VmrunnerError as why:
        yield failed("libvirt", why)
    else:
        yield from host.look(settings, libvirt.facts)
        try:
            yield from images.look(settings, libvirt.snapshots)
            yield from pace.look(settings, libvirt, starts)
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
    yield from forge.look(settings, names)
    yield from forge.webhook(settings)
