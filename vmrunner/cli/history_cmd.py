"""`vmrunner history`."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from vmrunner.cli import names
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, JsonOption, age, app, out, show, warn
from vmrunner.text import presentable

if TYPE_CHECKING:
    from vmrunner.manager.history import Record

_LONGEST = 1000  # characters of one cell


@app.command("history")
def history(
    machine: Annotated[
        str | None,
        typer.Argument(
            metavar="MACHINE",
            help="One machine, or what several names begin with; all without it.",
            autocompletion=names.machines,
        ),
    ] = None,
    failed: Annotated[
        bool, typer.Option("--failed", help="Only machines whose ending somebody should look into.")
    ] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, help="At most so many, the newest.")
    ] = 50,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Show finished machines, oldest first: the job that ran on each, its verdict, the times of
    their phases, how they ended and why.
    """
    from vmrunner import config
    from vmrunner.manager.history import History

    settings = config.load(config_path)
    path = settings.state_dir / "history.sqlite"
    with closing(History(path, warn, read_only=True)) as kept:
        found = kept.all()
    ended = [
        record
        for record in found
        if record.ending
        and record.machine.startswith(machine or "")
        and (not failed or record.known_ending is None or record.known_ending.is_failure)
    ][-limit:]
    if as_json:
        show([asdict(record) | {"job_seconds": record.job_seconds} for record in ended])
        return
    headers = ("pool", "ended", "job", "verdict", "job took", "commit", "boot", "ending")
    # What has not room on a screen goes on in the next line: nothing of it is left out.
    table = Table(
        Column("machine", no_wrap=True),
        *(Column(header, overflow="fold") for header in headers),
        box=None,
        pad_edge=False,
    )
    for record in ended:
        ending = f"{record.ending}: {record.reason}" if record.reason else record.ending
        boot = _took(*record.boot)
        took = "-" if record.job_seconds is None else f"{record.job_seconds:.0f} s"
        cells = (
            record.machine,
            record.pool,
            _ago(record.destroyed),
            _job(record),
            record.verdict or "-",
            took,
            record.sha[:10] or "-",
            boot,
            ending,
        )
        # Others' words, such as a job's name, which may look like rich's own markup.
        table.add_row(*(Text(presentable(cell, _LONGEST)) for cell in cells))
    if table.rows:
        out.print(table)


def _job(record: Record) -> str:
    """What ran on it, and what it was made for where that is another job."""
    from vmrunner.manager.history import Ran

    title = record.title or {
        Ran.ASKED.value: "(the forge is asked)",
        Ran.UNKNOWN.value: "(not known)",
    }.get(record.ran, "-")
    made_for = record.made_for_title
    return title if made_for in ("", record.title) else f"{title} (made for {made_for})"


def _ago(at: float) -> str:
    """`-` for what lies in the future: the clock was set back."""
    return f"{found} ago" if (found := age(at, time.time())) != "-" else found


def _took(began: float, ended: float) -> str:
    """The two are of two clocks: the guest's may be behind, and the host's may be set."""
    return f"{max(0.0, ended - began):.1f} s" if began and ended else "-"
