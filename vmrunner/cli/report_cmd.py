"""`vmrunner report`."""

from __future__ import annotations

import csv
import sys
import time
from contextlib import closing
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table
from rich.text import Text

from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, JsonOption, app, out, show, warn
from vmrunner.errors import WrongCommand
from vmrunner.model.by import By
from vmrunner.text import presentable, size

if TYPE_CHECKING:
    from vmrunner.manager.usage import Usage

_LONGEST = 1000  # characters of one name
# What a spreadsheet takes for the beginning of a formula; the wide ones are read as the others.
_FORMULA = tuple("=+-@＝＋－＠")  # noqa: RUF001 — meant


@app.command("report")
def usage_report(
    by: Annotated[
        By,
        typer.Option("--by", help="What machines and jobs are summed up by."),
    ] = By.REPOSITORY,
    since: Annotated[
        str,
        typer.Option(
            "--since", metavar="TIME", help='Those that ended within this time, like "7d" or "12h".'
        ),
    ] = "30d",
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV, for a spreadsheet.")] = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Sum up the history: machines and jobs, how long jobs waited, machine time, failures; who took
    the most machine time first.
    """
    from vmrunner import config
    from vmrunner.manager.history import History
    from vmrunner.manager.usage import usage

    if as_csv and as_json:
        raise WrongCommand("It is either --csv or --json.", "Leave one of them away.")
    try:
        span = config.parse_duration(since)
    except ValueError as error:
        raise WrongCommand(f"--since {presentable(since)}: {error}.") from None
    settings = config.load(config_path)
    keep = settings.history.keep_days
    if span.days > keep:
        warn(f"the history goes back {keep} days: history.keep_days")
    path = settings.history_file
    with closing(History(path, warn, read_only=True)) as kept:
        found = usage(kept.ended_since(time.time() - span.total_seconds()), by)
    if as_json:
        show(found)
    elif as_csv:
        _write_csv(by, found)
    elif found:
        out.print(_table(by, found))
        for each in found:
            for line in _lacks(each):
                out.print(Text(line))


def _write_csv(by: str, found: list[Usage]) -> None:
    from vmrunner.manager.usage import Usage

    # Each text has quotes around it: no name becomes two cells, whatever separates them.
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow([by, *(field.name for field in fields(Usage)[1:])])
    for each in found:
        writer.writerow([cell(value) for value in asdict(each).values()])


def cell(value: str | float) -> str | float:
    """As a spreadsheet shall show it: a name that it would run as a formula gets a `'` before
    it.
    """
    if not isinstance(value, str):
        return value
    text = presentable(value, _LONGEST)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text


def _table(by: str, found: list[Usage]) -> Table:
    headers = ("jobs", "ok", "failed", "cancelled", "waited", "longest", "job time", "machine time")
    figures = ("cpu time", "peak memory", "written", "received", "sent")
    table = Table(
        Column(by, overflow="fold"),
        *(
            Column(header, justify="right")
            for header in (*headers, *figures, "machines", "of them failed")
        ),
        box=None,
        pad_edge=False,
    )
    for each in found:
        cells = (
            *(each.jobs, each.succeeded, each.failed, each.cancelled),
            *(_span(each.waiting_seconds), _span(each.longest_wait_seconds)),
            *(_span(each.job_seconds), _span(each.machine_seconds)),
            *(_span(each.cpu_seconds), size(each.memory_peak_mib << 20)),
            *map(size, (each.written_bytes, each.received_bytes, each.sent_bytes)),
            *(each.machines, each.machine_failures),
        )
        # Others' words, which may look like rich's own markup.
        name = Text(presentable(each.name, _LONGEST) or "-")
        table.add_row(name, *(Text(str(cell)) for cell in cells))
    return table


def _lacks(each: Usage) -> list[str]:
    """What its machines lacked, in sentences."""
    name, found = presentable(each.name, _LONGEST) or "-", []
    if each.tight_machines:
        found.append(
            f"{name}: {each.tight_machines} of {each.machines} machines had nearly all of their "
            "memory in use: give their pool more `memory`."
        )
    if each.waited_machines:
        found.append(
            f"{name}: the processors of {each.waited_machines} of {each.machines} machines waited "
            "long for the host's: fewer machines at once make them faster."
        )
    return found


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
