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
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    age,
    app,
    clock,
    one,
    out,
    show,
    warn,
)
from vmrunner.errors import WrongCommand
from vmrunner.text import presentable, size

if TYPE_CHECKING:
    from vmrunner.manager.record import Record

_LONGEST = 1000  # characters of one cell


@app.command("history")
def history(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[show] [MACHINE]",
            help="One machine, or what several names begin with; all without it. With `show`: all "
            "that is known of one machine, which may be named by its job, too.",
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
    their phases, what they took of the host, how they ended and why, with hints.
    """
    from vmrunner import config
    from vmrunner.manager.history import History

    settings = config.load(config_path)
    path = settings.history_file
    named, machine = _meant(words or [])
    with closing(History(path, warn, read_only=True)) as kept:
        if named:
            _show(one(kept, named), as_json=as_json)
            return
        found = kept.all()
    ended = [
        record
        for record in found
        if record.ending
        and record.machine.startswith(machine)
        and (not failed or record.known_ending is None or record.known_ending.is_failure)
    ][-limit:]
    if as_json:
        show([plain(record) for record in ended])
        return
    headers = (
        *("pool", "ended", "job", "verdict", "job took", "commit", "boot", "cpu", "memory"),
        "ending",
    )
    # What has not room on a screen goes on in the next line: nothing of it is left out.
    table = Table(
        Column("machine", no_wrap=True),
        *(Column(header, overflow="fold") for header in headers),
        box=None,
        pad_edge=False,
    )
    for record in ended:
        ending = f"{record.ending}: {record.reason}" if record.reason else record.ending
        memory = (size(mib << 20) for mib in (record.memory_peak_mib, record.memory_mib))
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
            f"{record.cpu_seconds:.0f} s" if record.cpu_seconds else "-",
            " of ".join(memory) if record.memory_peak_mib else "-",
            " ".join((ending, *record.lacks)),
        )
        # Others' words, such as a job's name, which may look like rich's own markup.
        table.add_row(*(Text(presentable(cell, _LONGEST)) for cell in cells))
    if table.rows:
        out.print(table)


def _meant(words: list[str]) -> tuple[str, str]:
    """What `show` is asked for, and what machines' names have to begin with otherwise."""
    match words:
        case ["show", named]:
            return named, ""
        case ["show"] | [_, _, *_]:
            raise WrongCommand(
                "It is `history`, `history MACHINE` or `history show MACHINE`.",
                "`vmrunner history` has the names of machines.",
            )
    return "", "".join(words)


def _show(record: Record, *, as_json: bool) -> None:
    """All that is known of one machine."""
    from vmrunner.manager.told import phases

    if as_json:
        show([plain(record)])
        return
    seconds = "" if record.job_seconds is None else f"{record.job_seconds:.0f} s"
    facts = {
        "machine": record.machine,
        "pool": record.pool,
        "image": record.image,
        "job": _job(record),
        "address": record.url,
        "commit": record.sha,
        "labels": record.labels,
        "verdict": record.verdict,
        "job took": seconds,
        "ending": " ".join(part for part in (record.ending or "it lives", record.reason) if part),
        "processors": f"{record.vcpus}, {record.cpu_seconds:.1f} s of the host's; waited "
        f"{record.waited_seconds:.1f} s for them"
        if record.vcpus
        else "",
        "memory": f"{size(record.memory_peak_mib << 20)} of the host's at most, of "
        f"{size(record.memory_mib << 20)}"
        if record.memory_peak_mib
        else "",
        "memory in use": f"{size(record.guest_peak_mib << 20)} at most, by its guest's word"
        if record.guest_peak_mib
        else "",
        "written": size(record.written_bytes) if record.written_bytes else "",
        "network": f"{size(record.received_bytes)} received, {size(record.sent_bytes)} sent"
        if record.received_bytes or record.sent_bytes
        else "",
        "log": f"{size(record.log_bytes)}: vmrunner logs {record.machine}"
        if record.log_bytes
        else "",
    }
    table = Table(Column("", no_wrap=True), Column("", overflow="fold"), box=None, pad_edge=False)
    for name, value in facts.items():
        if value:
            table.add_row(name, Text(presentable(value, _LONGEST)))
    for entry in phases(record):
        table.add_row(clock(entry.at), Text(presentable(entry.text, _LONGEST)))
    for each in record.lacks:
        table.add_row("hint", Text(each))
    table.show_header = False
    out.print(table)


def plain(record: Record) -> dict[str, object]:
    """A row, as --json prints it."""
    more = {"job_seconds": record.job_seconds, "hints": list(record.lacks)}
    return asdict(record) | more


def _job(record: Record) -> str:
    """What ran on it, and what it was made for where that is another job."""
    from vmrunner.manager.record import Ran

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
