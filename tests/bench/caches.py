"""What caches and tools cost a job's first step: the same pool without them, and with all of them,
in turns. Each turn has a snapshot of its own: some are quicker than others.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Thread
from typing import Any

from tests.bench.common import Gate, median, say, serving
from tests.bench.queue import MODES, first_step, workflow
from tests.forge.gitea import Site
from tests.ground import Ground
from vmrunner import config

WITHOUT, WITH = "without", "with"
_ALL = (
    'tools = "tools"\n[cache]\nlisten_port = 8485\n[cache.packages]\napt = true\nnpm = true\n'
    'pypi = true\ngo = true\ncrates = true\nmaven = true\noci = "https://registry.example"\n'
)
_SIDES = {
    WITHOUT: {"beside": "-without", "subnet": "10.84.1.0/24"},
    WITH: {"beside": "-with", "subnet": "10.84.2.0/24", "more": _ALL},
}
_JOBS = 4  # measured in each turn, after one that is not


def first_steps(site: Site, gate: Gate, mode: str, runs: int) -> dict[str, Any]:
    """Medians of some `runs` jobs on each side, in seconds, and how many times as long it takes
    with caches.
    """
    how = MODES[mode]
    repository = site.repository("rig", "bench", workflow(["first"], gate))
    taken: dict[str, list[float]] = {side: [] for side in _SIDES}
    for number in range(-(-runs // _JOBS)):
        for side in sorted(_SIDES, reverse=number % 2 == 1):
            place = how.ground(site, **_SIDES[side])
            place.run("snapshot", "drop", "--yes")
            place.run("snapshot", "create", "--pool", "main")
            with listening(place), serving(place):
                its = [first_step(place, how, gate, repository)[0] for _ in range(_JOBS + 1)]
            taken[side] += its[1:]
            say(f"caches/{mode} {side}: {' '.join(f'{each:.2f}' for each in its)}")
    repository.delete()
    medians = {side: median(each) for side, each in taken.items()}
    return {
        **medians,
        "ratio": round(medians[WITH] / medians[WITHOUT], 3),
        "runs": len(taken[WITH]),
    }


@contextmanager
def listening(place: Ground) -> Iterator[None]:
    """Something takes connections where packages would be fetched: machines are told of it. These
    jobs fetch nothing.
    """
    with ExitStack() as stack:
        for mirror in config.load(place.config).all_mirrors:
            server = socket.create_server((mirror.address, mirror.port))
            stack.enter_context(server)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            Thread(target=_take, args=(server,), daemon=True).start()
        yield


def _take(server: socket.socket) -> None:
    while True:
        try:
            server.accept()[0].close()
        except OSError:
            return
