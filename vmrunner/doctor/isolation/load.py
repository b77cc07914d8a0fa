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
_USUAL, _ATTACKED = 4.0, 6.0  # seconds that are looked at
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
        usual = _pace(worker, _USUAL)
        for kind, what in _ATTACKS.items():
            slower, tries = _slower(single, worker, kind, usual), 1
            while slower > _MOST and tries < _TRIES:
                usual = _pace(worker, _USUAL)  # which may be another one by now
                slower, tries = min(slower, _slower(single, worker, kind, usual)), tries + 1
            yield Cell(
                "",
                "resources",
                f"{what}; a neighbour's work",
                slower > _MOST,
                measured=f"{slower:.2f} of its usual time",
            )


def _slower(lab: Lab, worker: Companion, kind: str, usual: float) -> float:
    """How many times as long the work takes while this attack runs."""
    with closing(Companion(lab, _PROGRAM, "attack", kind)):
        time.sleep(_SETTLE)
        return _pace(worker, _ATTACKED) / usual


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
