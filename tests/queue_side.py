"""One side of `make scale`'s long queue: a manager's first pass and idle ones, with the fake host
and the real forge. It is run as a program of its own in a tree of vmrunner, this one's or an older
one's, so it uses only what both have.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.world import POOL, World
from vmrunner.config import ForgeConfig
from vmrunner.forge.connect import connect
from vmrunner.forge.http import Http

try:
    from vmrunner.model.secret import Secret
except ImportError:  # where it was once
    from vmrunner.config import Secret  # type: ignore[no-redef, attr-defined]

MACHINES = 8


class Traffic:
    """Requests of all clients, counted."""

    def __init__(self) -> None:
        self.requests = self.received = 0
        self.minted = 0.0  # when the first runner was asked for
        really = Http.send

        def send(http: Http, method: str, path: str, doing: str, **options: Any) -> Any:
            if method == "POST" and not self.minted:
                self.minted = time.perf_counter()
            answer = really(http, method, path, doing, **options)
            self.requests += 1
            self.received += len(answer.content) + len(str(answer.headers))
            return answer

        Http.send = send  # type: ignore[method-assign]


def resident_mib() -> float:
    """This process's memory."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / (1 << 20)


def measure(folder: Path, idle: int) -> Mapping[str, float]:
    """The first pass, and `idle` passes with nothing to do."""
    forge = {"kind": "gitea", "url": os.environ["VMRUNNER_TEST_GITEA_URL"]}
    world = World(folder, pools={"p": POOL | {"max": MACHINES}}, forge=forge)
    manager = world.manager
    manager.forge = connect(
        ForgeConfig.model_validate(forge), Secret(os.environ["VMRUNNER_TEST_GITEA_TOKEN"])
    )
    act: Any = getattr(manager, "reconcile", None) or manager.pass_once  # type: ignore[attr-defined]
    options = {"whole": False} if "whole" in inspect.signature(act).parameters else {}
    traffic = Traffic()
    began = time.perf_counter()
    outcome, _ = act(**options)
    assert (outcome.started, outcome.failures) == (MACHINES, []), outcome
    found = {"first_start_seconds": traffic.minted - began}
    took, sizes, counts, memory = [], [], [], []
    for _ in range(idle):
        traffic.requests = traffic.received = 0
        began = time.perf_counter()
        outcome, _ = act(**options)
        took.append(time.perf_counter() - began)
        assert not outcome.acts, outcome
        assert not outcome.failures, outcome
        sizes.append(traffic.received)
        counts.append(traffic.requests)
        memory.append(resident_mib())
    manager.close()
    return found | {
        "idle_seconds": statistics.median(took),
        "idle_bytes": statistics.mean(sizes),
        "idle_requests": statistics.mean(counts),
        "memory_mib_middle": statistics.median(memory[idle // 2 : idle // 2 + idle // 8 + 1]),
        "memory_mib_end": statistics.median(memory[-idle // 8 :]),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="vmrunner-scale-", dir="/dev/shm") as made:
        print(json.dumps(measure(Path(made), int(sys.argv[1]))))
