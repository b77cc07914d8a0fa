"""Which machine somebody means."""

from __future__ import annotations

import pytest

from tests.unit.machine.test_visit import ONE, OTHER, host
from vmrunner.errors import WrongCommand
from vmrunner.hypervisor.seam import File
from vmrunner.machine import named
from vmrunner.model.machine import MachineId


@pytest.mark.parametrize(
    ("said", "found"),
    [(str(ONE), ONE), ("0000000a", ONE), ("101a", OTHER), (str(OTHER)[:-2], OTHER)],
)
def test_a_machine_by_its_name_or_what_it_alone_begins_or_ends_with(
    said: str, found: MachineId
) -> None:
    assert named.find(host(ONE, OTHER).machines.all(), said).id == found


@pytest.mark.parametrize("said", ["vmr-m-", "000a"])
def test_a_name_of_several_is_none(said: str) -> None:
    several = host(ONE, OTHER, MachineId("m", "1110000a", "0a0b0c0d")).machines.all()
    with pytest.raises(WrongCommand, match=r"may be any of [23] machines"):
        named.find(several, said)


@pytest.mark.parametrize("said", ["vmr-m-ffffffff", "", "x", "01a", "vmr"])
def test_a_machine_that_is_not_there(said: str) -> None:
    with pytest.raises(WrongCommand, match="There is no machine"):
        named.find(host(OTHER).machines.all(), said)


def test_one_that_is_off_is_not_there() -> None:
    made = host(ONE)
    made.files[ONE, File.CONSOLE] = b""
    del made.domains[ONE]
    with pytest.raises(WrongCommand, match="There is no machine"):
        named.find(made.machines.all(), str(ONE))
