"""Which machine has which credentials, on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.machine.bindings import Bindings
from vmrunner.model.binding import Binding
from vmrunner.model.job import Credentials, Scope
from vmrunner.model.machine import MachineId

ONE, OTHER = MachineId("m", "0000000a", "0a0b0c0d"), MachineId("m", "0000101a", "0a0b0c0d")
STRANGERS = MachineId("x", "0000202a", "0a0b0c0d")


def of(machine: MachineId) -> Binding:
    return Binding(
        machine, "p", Scope.parse("instance"), "7", Credentials(3, "uuid", "token"), bound_at=5.0
    )


def test_what_is_saved_is_found_and_dropped(tmp_path: Path) -> None:
    bindings = Bindings(tmp_path, "m")
    for machine in (OTHER, ONE, STRANGERS):
        bindings.save(of(machine))
    assert bindings.find(ONE) == of(ONE)
    assert bindings.all() == (of(ONE), of(OTHER)), "and not those of another manager"
    bindings.drop(ONE)
    bindings.drop(ONE)
    assert (bindings.find(ONE), bindings.all()) == (None, (of(OTHER),))


@pytest.mark.parametrize(
    "text",
    ["", "not json", "[]", "{}", '{"pool": "p"}', "\xff", '{"id": "x", "uuid": "", "token": ""}'],
)
def test_a_damaged_one_is_none_and_goes_with_a_pass_alone(tmp_path: Path, text: str) -> None:
    """`status` reads them, too, and changes nothing."""
    bindings = Bindings(tmp_path, "m")
    bindings.save(of(OTHER))
    damaged = tmp_path / "bindings" / f"{ONE}.binding"
    damaged.write_text(text, "latin-1")
    assert (bindings.find(ONE), bindings.all()) == (None, (of(OTHER),))
    assert damaged.exists()
    bindings.drop_damaged()
    assert not damaged.exists()
    assert bindings.all() == (of(OTHER),)
