"""`--json`: one document, whatever happens, and a schema that describes it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest
import typer

from tests.goldens import publish
from tests.unit.cli.schemas import checked
from tests.world import POOL, World
from vmrunner.cli import plans, surveyed
from vmrunner.cli.app import COMMANDS, app, confirm
from vmrunner.cli.main import main
from vmrunner.cli.shown import SCHEMAS, Pass, plain
from vmrunner.errors import WrongCommand
from vmrunner.manager.actions import (
    Action,
    Bind,
    DeleteRunner,
    DropSeed,
    Finish,
    Hold,
    Note,
    Pause,
    Start,
    Stay,
)
from vmrunner.manager.history import History
from vmrunner.manager.record import Record
from vmrunner.model.job import RunnerRecord, Scope
from vmrunner.model.machine import Ending

Run = Callable[..., tuple[int, str]]
# Those print what is a text by itself, or run until they are stopped.
WITHOUT = {
    *("config example", "config schema", "schema", "completion", "systemd install"),
    *("snapshot apparmor", "image sbom", "exec", "serve", "garm", "init"),
    *("ssh", "console", "cp", "top", "cache setup"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The program on a host with two versions of an image; what it prints to stdout."""
    publish(tmp_path / "state" / "images", "1")
    publish(tmp_path / "state" / "images", "2", disk=b"other")
    (tmp_path / "token").write_text("t")
    (tmp_path / "token").chmod(0o600)
    (tmp_path / "c.toml").write_text(
        f'manager = "m"\nstate_dir = "{tmp_path}/state"\nruntime_dir = "{tmp_path}/run"\n'
        f'[forge]\nkind = "gitea"\nurl = "http://192.0.2.7"\ntoken_file = "{tmp_path}/token"\n'
        '[libvirt]\nuri = "bogus"\n[pools.p]\nlabels = ["a"]\nimage = "web"\n'
    )

    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(
            "sys.argv", ["vmrunner", *arguments, "--json", "-c", str(tmp_path / "c.toml")]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return call


def _options(group: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    for name, command in group.commands.items():
        here = f"{path} {name}".strip()
        if hasattr(command, "commands"):
            yield from _options(command, here)
        else:
            yield here, {option for param in command.params for option in param.opts}


def test_every_command_that_shows_something_has_json_and_a_schema() -> None:
    for name in COMMANDS:
        import_module(f"vmrunner.cli.{name}_cmd")
    found = dict(_options(typer.main.get_group(app)))
    assert {name for name, options in found.items() if "--json" not in options} == WITHOUT
    assert {name for name in SCHEMAS if " --" not in name} == set(found) - WITHOUT | {"error"}


@pytest.mark.parametrize("command", SCHEMAS)
def test_schemas_are_schemas(command: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMAS[command]())


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("config check", ()),
        ("config show", ()),
        ("image list", ()),
        ("image diff", ("web/1", "web/2")),
        ("image rollback", ("web",)),
        ("image promote", ("web", "2", "--force")),
        ("image verify --files-only", ("web",)),
        ("history", ()),
        ("report", ("--by", "pool")),
    ],
)
def test_what_is_printed_is_as_its_schema_says(
    run: Run, tmp_path: Path, command: str, arguments: tuple[str, ...]
) -> None:
    with closing(History(tmp_path / "state" / "history.sqlite", print)) as history:
        history._write(
            Record("vmr-m-0123456789abcdef", "p", job="a job", ending="done", destroyed=time.time())
        )
    code, printed = run(*command.split(), *arguments)
    assert code == 0
    assert checked(command, printed)


def test_an_image_goes_to_another_host(run: Run, tmp_path: Path) -> None:
    code, printed = run("image", "export", "web/1", str(tmp_path / "web.tar"))
    found = checked("image export", printed)
    assert (code, found["version"], found["current"]) == (0, "1", False)
    code, printed = run("image", "import", str(tmp_path / "web.tar"))
    assert code == 0 or checked("error", printed), printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("up",), 5, "libvirt.uri 'bogus' is not the address of a libvirt."),
        (("status",), 5, "libvirt.uri 'bogus'"),
        (("image", "verify", "none"), 6, "There is no image 'none'. There are: web."),
        (("snapshot", "drop"), 5, "libvirt.uri 'bogus'"),
        (("down", "--timeout", "x"), 2, "A duration is written like"),
        (("history",), 3, "c.toml: line 1, manager: a name here"),
    ],
)
def test_an_error_is_json_too(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    if "manager" in said:
        text = (tmp_path / "c.toml").read_text()
        (tmp_path / "c.toml").write_text(text.replace('"m"', '"M"'))
    ended, printed = run(*arguments)
    error = checked("error", printed)["error"]
    assert (ended, error["exit_code"], said in error["sentence"]) == (code, code, True), error


def busy(folder: Path) -> World:
    """Jobs that wait, and one that runs; a machine that is to be destroyed."""
    world = World(folder, pools={"p": POOL | {"max": 3}, "q": POOL | {"warm": 1, "labels": ["w"]}})
    for number in (1, 2):
        world.forge.queue(number, ["debian-12"])
    world.up()
    first, *_ = world.machines()
    world.step(first)
    job = world.forge.queue(3, ["nobody"])
    world.forge.known[3] = replace(job, name="[red]a job[/red]")
    world.forge.queue(4, ["debian-12"])
    return world


def test_status_is_as_its_schema_says(tmp_path: Path) -> None:
    world = busy(tmp_path)
    shown = surveyed.status(world.manager, world.manager.survey(), world.clock())
    found = checked("status", json.dumps(plain(shown)))
    assert [pool["name"] for pool in found["pools"]] == ["p", "q"]
    assert {wait["kind"] for wait in found["waiting"]} >= {"no label"}


def test_a_dry_run_says_what_the_pass_does_then(tmp_path: Path) -> None:
    world = busy(tmp_path)
    before = world.machines()
    actions = world.manager.survey().plan.actions
    planned = tuple(map(plans.planned, actions))
    checked("up", json.dumps(plain(Pass(True, 0, 0, 0, 0, planned, (), (), ()))))
    assert world.machines() == before, "it changes nothing"
    starts = [each for each in planned if each.action == "start"]
    lines = [plans.said(each) for each in planned]
    assert any(line.startswith("would start a machine of pool p for ") for line in lines), lines
    started, *_ = world.up()
    assert started == len(starts) > 0
    for line in lines:
        assert line.isprintable()
        assert "None" not in line
        assert "{" not in line


def test_a_dry_run_has_words_for_every_action(tmp_path: Path) -> None:
    world = busy(tmp_path)
    (machine, *_), job = world.manager.survey().observed.machines, world.forge.known[1]
    assert machine.metadata
    record, scope = RunnerRecord(7, "vmr-m-gone", online=False), Scope.parse("instance")
    actions: tuple[Action, ...] = (
        Start("p", job, scope, scope),
        Start("p", None, scope),
        Start("p"),
        Bind(machine.metadata, "p", job, scope, scope),
        Finish(machine.id, Ending.DONE, "powered off", machine, job),
        Finish(machine.id, Ending.DONE, ""),
        DeleteRunner(scope, record),
        Pause(machine.id),
        DropSeed(machine.id),
        Note(machine, machine.metadata, job),
        Stay(machine, machine.metadata),
        Hold(machine, machine.metadata, Finish(machine.id, Ending.DONE, "")),
    )
    assert {type(each) for each in actions} == set(get_args(Action))
    assert len({plans.said(plans.planned(each)) for each in actions}) == len(actions)


def test_deleting_everything_has_to_be_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    confirm("Delete all?", yes=True, always=True)
    confirm("Delete?", yes=False)  # a script says what it means
    with pytest.raises(WrongCommand) as refused:
        confirm("Delete all?", yes=False, always=True)
    assert "--yes" in refused.value.hint


@pytest.mark.parametrize(
    ("typed", "code"), [(b"y\n", 0), (b"Yes\n", 0), (b"n\n", 1), (b"\n", 1), (b"\x04", 1)]
)
def test_somebody_at_a_terminal_is_asked(typed: bytes, code: int) -> None:
    ours, theirs = pty.openpty()
    program = (
        "import sys, typer; from vmrunner.cli.app import confirm\n"
        "try:\n confirm('Delete all?', yes=False)\n"
        "except typer.Exit as ended: sys.exit(ended.exit_code)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stderr=theirs, close_fds=True
    ) as process:
        os.close(theirs)
        os.write(ours, typed)
        assert process.wait(30) == code
    assert b"Delete all? [y/N]" in os.read(ours, 1000)
    os.close(ours)
