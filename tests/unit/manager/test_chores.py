"""What is done beside the passes."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import astuple
from pathlib import Path

import pytest

from tests.world import World
from vmrunner.errors import HypervisorError
from vmrunner.manager.chores import Chores, once
from vmrunner.manager.history import History
from vmrunner.manager.metrics import Figures
from vmrunner.model.machine import EventKind, MachineId, Metadata
from vmrunner.model.used import Used

FIRST = Used(2, 1024, 300, 10.0, 1.0, 5, 6, 7)
LATER = Used(2, 1024, 250, 12.0, 1.0, 9, 6, 7)


def busy(world: World) -> MachineId:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.hypervisor.used[machine] = FIRST
    world.manager.chores()
    world.hypervisor.used[machine] = LATER
    world.manager.chores()
    return machine


def test_a_row_has_the_most_that_was_seen(world: World) -> None:
    machine = busy(world)
    (living,) = world.history.living()
    assert living.used == Used(2, 1024, 300, 12.0, 1.0, 9, 6, 7)
    world.hypervisor.report(machine, EventKind.USED, text="1000")
    for _ in range(4):
        world.step(machine)
        world.up()
    (row,) = world.history.all()
    assert (row.ending, row.used, row.guest_peak_mib) == ("done", living.used, 1000)
    totals = {(each.name, each.label): each.value for each in world.history.totals()}
    assert totals["machine_cpu_seconds_total", ""] == 12.0
    assert totals["machine_network_bytes_total", "sent"] == 7
    world.history.used({machine: Used(*(1 << 30 for _ in astuple(LATER)))})
    assert world.history.all() == [row], "what has ended uses nothing more"


@pytest.mark.parametrize(
    ("said", "peak"), [("-1e9; DROP TABLE machines", 0), ("", 0), ("٣", 0), ("99999999", 1024)]
)
def test_a_guest_that_lies_is_not_believed(world: World, said: str, peak: int) -> None:
    machine = busy(world)
    world.hypervisor.report(machine, EventKind.USED, text=said)
    for _ in range(4):
        world.step(machine)
        world.up()
    assert world.history.all()[0].guest_peak_mib == peak


def test_prometheus_knows_what_living_machines_take(world: World) -> None:
    machine = busy(world)
    figures = Figures(world.history)
    figures.saw(world.manager.survey(), 0.0)
    told = {
        sample.name: (sample.labels.get("machine"), sample.value)
        for metric in figures.collect()
        for sample in metric.samples
        if "machine_" in sample.name
    }
    assert told["vmrunner_machine_memory_bytes"] == (str(machine), 300 << 20)
    assert told["vmrunner_machine_cpu_used_seconds"] == (str(machine), 12.0)


def test_a_libvirt_that_refuses_costs_figures_alone(world: World) -> None:
    def refuse() -> dict[MachineId, Used]:
        raise HypervisorError("It does not answer.")

    machine = busy(world)
    world.hypervisor.machines.used = refuse  # type: ignore[method-assign]
    world.manager.chores()
    assert world.history.living()[0].machine == str(machine)


def test_an_older_history_can_be_measured_into(tmp_path: Path) -> None:
    machine = MachineId("m", "0" * 8)
    with closing(History(tmp_path / "h.sqlite", print)) as history:
        history.started(Metadata(machine, "p", "i/1", 1.0), 2.0)
        for column in ("written_bytes", "guest_peak_mib"):
            history._database.execute(f"ALTER TABLE machines DROP COLUMN {column}")
    with closing(History(tmp_path / "h.sqlite", print)) as history:
        history.used({machine: FIRST})
        assert history.living()[0].used == FIRST


def test_they_are_done_until_the_block_ends() -> None:
    twice, calls = threading.Event(), []

    def do() -> None:
        calls.append(1)
        if len(calls) == 2:
            twice.set()

    with Chores(do, every=0.001):
        assert twice.wait(30)


def test_a_qemu_that_hangs_keeps_nobody() -> None:
    hangs = threading.Event()
    with Chores(lambda: bool(hangs.wait(30)) and None, every=0.001):
        pass
    once(lambda: bool(hangs.wait(30)) and None, 0.01)
    hangs.set()
