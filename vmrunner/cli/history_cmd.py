"""`vmrunner history`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from vmrunner import config
from vmrunner.cli.app import ConfigOption, JsonOption, age, app, out, warn
from vmrunner.history import History
from vmrunner.model import Ending


@app.command("history")
def history(
    failed: Annotated[bool, typer.Option("--failed", help="Only machines whose ending somebody should look into.")] = False,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the newest.")] = 50,
    as_json: JsonOption = False,
    config_path: ConfigOption = config.DEFAULT_PATH,
) -> None:
    """Show finished machines, oldest first: their job, the times of their phases, how they ended and why."""
    settings = config.load(config_path)
    found = History(settings.state_dir / "history.sqlite", warn, keep_days=settings.history.keep_days).all()
    ended = [record for record in found if record.ending and (not failed or Ending(record.ending).is_failure)][-limit:]
    if as_json:
        print(json.dumps([asdict(record) for record in ended], indent=1))
        return
    table = Table("machine", "pool", "ended", "job", "boot", "job took", "ending", box=None, pad_edge=False)
    for record in ended:
        job = f"{record.repository}: {record.job}".removeprefix(": ")
        ending = f"{record.ending}: {record.reason}" if record.reason else record.ending
        boot, took = _took(record.created, record.up or record.ready or record.runner), _took(record.running, record.exit)
        table.add_row(record.machine, record.pool, f"{age(record.destroyed, time.time())} ago", job, boot, took, ending)
    if table.rows:
        out.print(table)


def _took(began: float, ended: float) -> str:
    return f"{ended - began:.1f} s" if began and ended else "-"
