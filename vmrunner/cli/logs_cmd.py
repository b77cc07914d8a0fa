"""`vmrunner logs`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    app,
    clock,
    one,
    open_libvirt,
    show,
    warn,
)
from vmrunner.errors import HypervisorError

if TYPE_CHECKING:
    from vmrunner.config import Config
    from vmrunner.hypervisor.seam import Machines
    from vmrunner.manager.logbook import Logbook
    from vmrunner.manager.record import Record
    from vmrunner.model.entry import Entry

_LOOK = 1.0  # seconds between two looks at a machine that is followed
_WIDEST = 8  # characters of a source


@app.command("logs")
def logs(
    machine: Annotated[
        str,
        typer.Argument(
            metavar="MACHINE|JOB",
            help="A machine, or how its name alone begins or ends; or a job's id or address at the "
            "forge, for the machine that had it last.",
            autocompletion=names.machines,
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the machine has ended.")
    ] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Show what there is about one machine, in the order of time: its console, its runner's own
    log, its guest's reports, the manager's lines, and what became of it and its job. Also of
    machines that have ended.

    The log of the job itself is at the forge. With --follow, --json prints an object a line.
    """
    from vmrunner import config
    from vmrunner.manager.logbook import open_logbook
    from vmrunner.model.entry import fresh

    settings = config.load(config_path)
    logbook, record = open_logbook(settings), _find(settings, machine)
    with ExitStack() as stack:
        machines = None if record.ending else _machines(settings, stack, warn)
        found = _read(settings, record, logbook, machines, warn)
        if as_json and not follow:
            show([asdict(entry) for entry in found])
            return
        _print(found, as_json=as_json)
        is_over = bool(record.ending)
        while follow and not is_over:
            is_over = bool(record.ending)  # then once more: its last lines are about its end
            time.sleep(_LOOK)
            before, record = found, _find(settings, record.machine)
            found = _read(settings, record, logbook, machines, warn)
            _print(fresh(before, found), as_json=as_json)


def records(settings: Config, text: str, warn: Callable[[str], None]) -> list[Entry]:
    """What there is about one machine now. Raises VmrunnerError, PermissionError."""
    from vmrunner.manager.logbook import open_logbook

    logbook, record = open_logbook(settings), _find(settings, text)
    with ExitStack() as stack:
        machines = None if record.ending else _machines(settings, stack, warn)
        return _read(settings, record, logbook, machines, warn)


def _find(settings: Config, text: str) -> Record:
    """Each time anew: while nobody has it open, a history that is read stays as it was."""
    from vmrunner.manager.history import History

    with closing(History(settings.history_file, warn, read_only=True)) as history:
        return one(history, text)


def _machines(settings: Config, stack: ExitStack, warn: Callable[[str], None]) -> Machines | None:
    """Of a libvirt that does not answer the rest can be shown all the same."""
    try:
        host = open_libvirt(settings)
    except HypervisorError as error:
        warn(f"{error.sentence} What its guest says is not shown.")
        return None
    stack.callback(host.close)
    return host.machines


def _read(
    settings: Config,
    record: Record,
    logbook: Logbook,
    machines: Machines | None,
    warn: Callable[[str], None],
) -> list[Entry]:
    from vmrunner.manager.stream import stream, token
    from vmrunner.model.machine import MachineId

    machine = MachineId.parse(record.machine)
    secret = token(settings, machine) if machine and not record.ending else ""
    try:
        return stream(record, logbook, machines, time.time(), secret)
    except HypervisorError as error:
        warn(f"{error.sentence} What its guest says is not shown.")
        return stream(record, logbook, None, time.time())


def _print(entries: list[Entry], *, as_json: bool) -> None:
    for entry in entries:
        print(
            json.dumps(asdict(entry))
            if as_json
            else f"{clock(entry.at)}  {entry.source:{_WIDEST}} {entry.text}",
            flush=True,
        )
