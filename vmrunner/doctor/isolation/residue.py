"""What a job leaves behind is not there for the next one: two machines of the same name, one after
the other.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator

from vmrunner.doctor.isolation.lab import Cell, Lab
from vmrunner.errors import MachineError
from vmrunner.machine.identity import fresh

_PROGRAM = "probe_residue.py"


def cells(lab: Lab) -> Iterator[Cell]:
    """The first machine leaves marks wherever a program can and finds all of them; the second, with
    the first one's name, looks for them.

    Raises MachineError where the first does not find its own: then the second would prove nothing.
    """
    machine = fresh(lab.settings)
    token = secrets.token_hex(16)
    own: dict[str, bool] = lab.answers(
        _PROGRAM, "leave", token, f"<residue seed {token}>", machine=machine
    )
    if blind := [what for what, found in own.items() if not found]:
        raise MachineError(
            f"The probe does not find what it left itself: {', '.join(blind)}.",
            "Does the image's kernel have /proc/kcore?",
        )
    left = any(name.startswith(f"{machine}.") for name in lab.residue())
    yield Cell("", "residue", "a file of the machine on the host", left)
    found: dict[str, bool] = lab.answers(_PROGRAM, "search", machine=machine)
    for what in own:
        yield Cell("", "residue", what, found[what])
