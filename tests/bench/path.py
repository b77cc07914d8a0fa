"""Where the time of `exec -- true` goes, cloned, step by step, beside the same steps of the QEMU
underneath.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any

from tests.bench.common import MANAGER, Ear, ground, median, say
from tests.bench.life import MEMORY, floor_of
from tests.forge.gitea import Site
from tests.ground import STORAGE
from tests.prepare import GITEA
from vmrunner import config
from vmrunner.hypervisor.domains import Domains
from vmrunner.hypervisor.host import LibvirtHost, open_host
from vmrunner.hypervisor.machines import LibvirtMachines
from vmrunner.hypervisor.network import Network
from vmrunner.hypervisor.seam import File
from vmrunner.hypervisor.snapshot import LibvirtSnapshots
from vmrunner.image.versions import store
from vmrunner.machine import oneshot
from vmrunner.model.machine import MachineId, Shape

STEPS = {
    "interpreter": "Python itself",
    "imports": "the program's modules and libraries",
    "open": "configuration, image, libvirt's connection",
    "prepare": "lock, sweep, storage pool, network and its rules",
    "overlay": "a volume on the snapshot's disk",
    "create": "the domain: libvirt's work and QEMU's own start",
    "admit": "the machine's elements in the rules",
    "load": "the devices' state",
    "bind": "metadata, seed, resume",
    "seed": "the guest sees its seed, reads it, and is another machine",
    "script": "its address, and a shell that begins the script",
    "command": "the command, the end of both outputs",
    "destroy": "QEMU's end, files, rules",
}
"""Of vmrunner, in their order.

The floor has `overlay`, `create` (QEMU alone), `load`, `bind`, the guest's three in one, and
`destroy`.
"""


class _Watch:
    """Notes how long calls take; a call inside another one is not counted twice."""

    def __init__(self) -> None:
        self.taken: dict[str, float] = {}
        self._inside: list[float] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self._inside.append(0.0)
        try:
            yield
        finally:
            took = time.monotonic() - began
            self.taken[name] = self.taken.get(name, 0.0) + took - self._inside.pop()
            if self._inside:
                self._inside[-1] += took

    def wrap(self, owner: Any, method: str, name: str) -> Callable[[], None]:
        """Count the calls of a method; returns what undoes that."""
        original = getattr(owner, method)

        @wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            with self.step(name):
                return original(*arguments, **options)

        setattr(owner, method, call)
        return lambda: setattr(owner, method, original)


_CALLS = (
    (LibvirtHost, "prepare", "prepare"),
    (LibvirtMachines, "create_overlay", "overlay"),
    (Domains, "create", "create"),
    (Network, "admit", "admit"),
    (LibvirtSnapshots, "load", "load"),
    (LibvirtMachines, "bind", "bind"),
    (LibvirtMachines, "destroy", "destroy"),
)


def steps(site: Site, runs: int) -> dict[str, dict[str, float]]:
    """Medians in seconds, of vmrunner and of the floor."""
    place = ground(site, "boot")
    floor, state = floor_of(place)
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for number in range(runs):
        for name, seconds in _ours(place.config).items():
            ours.setdefault(name, []).append(seconds)
        floor.run(state)
        for name, seconds in floor.steps.items():
            theirs.setdefault(name, []).append(seconds)
        say(f"path {number + 1}/{runs}")
    return {
        "vmrunner": {name: median(ours[name]) for name in STEPS if name in ours},
        "raw QEMU": {name: median(values) for name, values in theirs.items()},
    }


def _ours(path: Any) -> dict[str, float]:
    watch = _Watch()
    interpreter = _seconds("pass")
    watch.taken = {
        "interpreter": interpreter,
        "imports": _seconds("import vmrunner.cli.main, vmrunner.cli.exec_cmd") - interpreter,
    }
    with watch.step("open"):
        settings = config.load(path)
        golden = store.find(settings.images_dir, GITEA)
        host = open_host(settings, lambda _: None)
    undo = [watch.wrap(*call) for call in _CALLS]
    ear = Ear(STORAGE / MANAGER, f"*.{File.EVENTS}", f"*.{File.SEED}")
    bound: list[float] = []
    bind = host.machines.bind

    def binding(*arguments: Any) -> None:
        bind(*arguments)
        bound.append(time.time())

    host.machines.bind = binding  # type: ignore[method-assign]
    ended: list[float] = []
    destroy = host.machines.destroy

    def destroying(machine: MachineId) -> None:
        if bound:
            ended.append(time.time())
        destroy(machine)

    host.machines.destroy = destroying  # type: ignore[method-assign]
    try:
        code = oneshot.run(
            host,
            settings,
            oneshot.Command(
                golden, ["true"], Shape(2, config.parse_size(MEMORY), 20), timedelta(minutes=5)
            ),
            write=lambda *_: None,
            say=lambda _: None,
        )
    finally:
        ear.close()
        for each in undo:
            each()
        host.close()
    assert code == 0
    watch.taken |= {
        "seed": ear.heard["seed"] - bound[0],
        "script": ear.heard["runner"] - ear.heard["seed"],
        "command": ended[0] - ear.heard["runner"],
    }
    return watch.taken


def _seconds(program: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.monotonic() - began
