"""`vmrunner status`: whatever jobs are called."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from tests.world import POOL, World
from vmrunner.cli import status_cmd, surveyed
from vmrunner.cli.shown import Status

NAME = "[red]a[/red] [/b] :x: [debian-12]"


def test_a_pool_without_its_image_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL, "q": POOL | {"image": "gone"}})
    console = Console(file=io.StringIO(), width=80)
    console.print(status_cmd._picture(_status(world)))
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert seen.count("there is no image") == 1
    assert "there is no image gone" in seen


@pytest.mark.parametrize("width", [80, 300])
def test_a_jobs_name_is_no_markup(tmp_path: Path, width: int) -> None:
    """Anybody who may push can call a job so, and status is everybody's."""
    world = World(tmp_path)
    for number, labels in ((1, ["debian-12"]), (2, ["nobody"])):
        job = world.forge.queue(number, labels)
        world.forge.known[number] = replace(job, name=f"{NAME} {number}")
    world.up()
    (machine,) = world.machines()
    world.step(machine)
    world.forge.fetch(str(machine), world.hypervisor.domains[machine].job_key)
    world.up()
    console = Console(file=io.StringIO(), width=width, color_system=None)  # which takes markup
    console.print(status_cmd._picture(_status(world)))
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert str(machine) in seen
    assert "\u2026" not in seen
    assert width == 80 or all(f"o/r: {NAME} {number}" in seen for number in (1, 2))


def test_registered_idle_machines_are_no_running_ones(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"register_idle": 2, "max": 3}})
    world.up()
    for machine in world.machines():
        world.step(machine)
    assert _seen(world) == (["idle", "idle"], 0, 2, "2 of 3 machines, 0 running, 2 of 2 idle")

    world.forge.queue(1, ["debian-12"])
    world.step(world.machines()[0])
    world.up()
    assert _seen(world)[:3] == (["idle", "running", "started"], 1, 1), "and another one comes"


def _seen(world: World) -> tuple[list[str], int, int, str]:
    """All phases, running and idle ones of the JSON, and the head of the table."""
    status = _status(world)
    (pool,) = status.pools
    head = status_cmd._head(pool, status).partition(": ")[2].partition(", 0 of")[0]
    return (
        sorted(machine.phase for machine in pool.machines),
        pool.running,
        pool.idle,
        ", ".join(head.split(", ")[:3]),
    )


def _status(world: World) -> Status:
    return surveyed.status(world.manager, world.manager.survey(), time.time())
