"""A machine that takes all it can get takes it from nobody: a neighbour's work is timed while it
tries.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from statistics import fmean

from vmrunner.doctor.isolation.companion import Companion
from vmrunner.doctor.isolation.lab import Cell, Lab
from vmrunner.errors import MachineError

_PROGRAM = "probe_load.py"
_MOST = 1.5  # times as long as usual
# Seconds that are looked at: before and after each attack, and while it goes on.
_USUAL, _ATTACKED = 4.0, 6.0
_SETTLE = 1.0  # seconds until work goes at its usual pace, and an attack is at its height
# Of an attack: the host has other things to do as well, and an attack that gets through does so
# each time.
_TRIES = 3
_ATTACKS = {
    "fork": "a fork bomb",
    "memory": "a memory hog",
    "disk": "a disk filler",
    "log": "a log flooder",
}


def cells(lab: Lab) -> Iterator[Cell]:
    """A worker in one machine, and one attack after the other in a second one.

    Raises MachineError where nothing is worked.
    """
    with lab.on_one_processor() as single, closing(Companion(single, _PROGRAM, "work")) as worker:
        time.sleep(_SETTLE)
        before = _pace(worker, _USUAL)
        for kind, what in _ATTACKS.items():
            slower = float("inf")
            for _ in range(_TRIES):
                with closing(Companion(single, _PROGRAM, "attack", kind)):
                    time.sleep(_SETTLE)
                    attacked = _pace(worker, _ATTACKED)
                time.sleep(_SETTLE)
                after = _pace(worker, _USUAL)
                # The host's other work comes and goes: the slower of the two is what is usual.
                slower = min(slower, attacked / max(before, after))
                before = after
                if slower <= _MOST:
                    break
            yield Cell(
                "",
                "resources",
                f"{what}; a neighbour's work",
                slower > _MOST,
                measured=f"{slower:.2f} of its usual time",
            )


def _pace(worker: Companion, seconds: float) -> float:
    """How long a unit of work takes now."""
    worker.lines()
    time.sleep(seconds)
    said = [float(line) for line in worker.lines()]
    if not said:
        raise MachineError(
            f"The neighbour did not work at all for {seconds:.0f} s.",
            "Is the host busy with something else?",
        )
    return fmean(said)
