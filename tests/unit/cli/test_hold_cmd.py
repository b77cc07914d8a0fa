"""`vmrunner hold`, `release` and `destroy`: what they say, to people and to programs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.schemas import checked
from tests.world import POOL, World
from vmrunner.cli import surveyed
from vmrunner.cli.main import main
from vmrunner.cli.shown import plain
from vmrunner.model.machine import MachineId

Run = Callable[..., tuple[int, str, str]]
NAME = "[red]a[/red] \x1b[31m <&\"'>"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, pools={"p": POOL | {"hold_failed": "10m"}})


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program over a manager on the fakes: exit code, stdout, stderr."""
    config = world.folder / "c.toml"
    config.write_text(
        '[forge]\nkind = "gitea"\nurl = "http://192.0.2.7"\n'
        '[pools.p]\nlabels = ["debian-12"]\nimage = "debian-12"\n'
    )
    monkeypatch.setattr("vmrunner.manager.manager.open_manager", lambda *_: world.manager)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vmrunner", *arguments, "-c", str(config)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, " ".join(said.err.split())

    return call


def held(world: World, name: str = "job 1") -> MachineId:
    from dataclasses import replace

    job = world.forge.queue(1)
    world.forge.known[1] = replace(job, name=name)
    world.up()
    (machine,) = world.machines()
    for _ in range(2):
        world.step(machine)
    world.up()
    world.step(machine, lambda choices: choices[1])
    world.up()
    return machine


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hold"], "Either a MACHINE or --failed POOL."),
        (["hold", "x", "--failed", "p"], "Either a MACHINE or --failed POOL."),
        (["release"], "Either a MACHINE or --failed POOL."),
        (["hold", "--failed", "p", "--for", "soon"], 'A duration is written like "90s"'),
        (["hold", "--failed", "p", "--for", "8d"], 'A machine is held for "7d" at most.'),
        (["hold", "--failed", "p", "--for", "0s"], 'A duration is written like "90s"'),
        (["hold", "nobody"], "There is no machine nobody on this host."),
        (["release", "nobody"], "There is no machine nobody on this host."),
        (["destroy", "nobody"], "There is no machine nobody on this host."),
    ],
)
def test_a_wrong_command_is_one_sentence(run: Run, arguments: list[str], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_a_pool_that_is_not_there(run: Run) -> None:
    code, _, err = run("hold", "--failed", "q")
    assert code == 3
    assert "There is no pool 'q'." in err


def test_a_pool_catches_its_next_one(run: Run, world: World) -> None:
    code, out, _ = run("hold", "--failed", "p", "--for", "2h", "--json")
    assert (code, checked("hold", out)["seconds"]) == (0, 7200)
    shown = surveyed.status(world.manager, world.manager.survey(), time.time())
    assert shown.pools[0].catching_seconds == 7200
    assert run("release", "--failed", "p")[0] == 0
    assert world.manager.catching.pools() == {}


def test_one_that_is_held_is_shown_and_let_go(run: Run, world: World) -> None:
    machine = held(world, NAME)
    shown = surveyed.status(world.manager, world.manager.survey(), world.clock.now)
    (seen,) = checked("status", json.dumps(plain(shown)))["pools"][0]["machines"]
    why = "its job o/r: [red]a[/red]  [31m <&\"'> failed"
    assert (seen["phase"], seen["held"]) == (
        "held",
        {"why": why, "seconds": 0.0, "left_seconds": 600.0},
    )
    code, out, _ = run("hold", str(machine)[-8:], "--for", "1h", "--json")
    assert (code, checked("hold", out)) == (
        0,
        {"machine": str(machine), "pool": "p", "held": True, "seconds": 3600.0},
    )
    code, out, _ = run("release", str(machine), "--json")
    assert (code, checked("release", out)["destroyed"]) == (0, 1)
    assert world.machines() == []


def test_destroying_one_at_work_wants_a_yes(run: Run, world: World) -> None:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    code, _, err = run("destroy", str(machine))
    assert code == 2
    assert (
        "and fail the job that may run on it? Nobody can be asked here. Say so with --yes." in err
    )
    assert world.machines() == [machine]
    code, out, _ = run("destroy", str(machine), "--yes", "--json")
    assert (code, checked("destroy", out)["destroyed"]) == (0, 1)
    assert world.machines() == []


def test_a_held_one_is_destroyed_without_a_question(run: Run, world: World) -> None:
    machine = held(world)
    assert run("destroy", str(machine))[0] == 0
    assert world.machines() == []
