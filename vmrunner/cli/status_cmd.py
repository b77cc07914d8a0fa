"""`vmrunner status`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, JsonOption, app, lasted, out, show, warn
from vmrunner.cli.shown import LentShown, MachineShown, Pool, Status
from vmrunner.errors import ConfigError, WrongCommand
from vmrunner.log import Format, Log, open_log

if TYPE_CHECKING:
    from vmrunner.config import Config
    from vmrunner.hypervisor.seam import Hypervisor
    from vmrunner.manager.manager import Manager

_EVERY = 2.0  # seconds
_STALE = 10.0  # seconds; a pass is made every 5


@app.command("status")
def status(
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every two seconds, until Ctrl-C.")
    ] = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Show pools, machines with phase and age, and every waiting job with the reason why it waits.

    Changes nothing. Where `vmrunner serve` runs, it is asked what it saw last; else this looks for
    itself.
    """
    from vmrunner import config

    if as_json and watch:
        raise WrongCommand("--json prints once.", "Leave --watch out, and call it again.")
    view = View(config.load(config_path), open_log(Format.TEXT), warn)
    if as_json:
        show(view.now())
        return
    if not watch:
        out.print(_picture(view.now()))
        return
    with Live(console=out, screen=out.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(_picture(view.now()), refresh=True)
            time.sleep(_EVERY)


class View:
    """What there is, each time it is asked. Of a long queue `serve` may not know all jobs yet: with
    `whole` it is not content with that.
    """

    def __init__(
        self, settings: Config, log: Log, warn: Callable[[str], None], *, whole: bool = True
    ) -> None:
        self._settings, self._log, self._warn, self._whole = settings, log, warn, whole
        self._manager: Manager | None = None
        self.host: Hypervisor | None = None  # where the last look was its own

    def now(self) -> Status:
        """As `serve` saw it last, or else as it is seen from here. Raises VmrunnerError."""
        from vmrunner.manager import status_socket

        heard, closed = None, False
        try:
            heard = _understood(status_socket.ask(status_socket.path(self._settings)))
        except PermissionError:
            closed = True
        self.host = None
        if heard and not (self._whole and any(queue.unread for queue in heard.forge)):
            return heard
        from vmrunner.cli import surveyed
        from vmrunner.manager.history import READERS
        from vmrunner.manager.manager import open_manager

        if self._manager is None:
            try:
                self._manager = open_manager(self._settings, self._log, self._warn, looks_only=True)
            except ConfigError as error:
                if heard:
                    return heard
                raise ConfigError(error.sentence, READERS) if closed else error from None
        self.host = self._manager.hypervisor
        return surveyed.status(self._manager, self._manager.survey(), time.time())

    def close(self) -> None:
        """Close what it holds open; the next look opens it again."""
        manager, self._manager, self.host = self._manager, None, None
        if manager:
            manager.close()


def _understood(answer: bytes) -> Status | None:
    """None where there is none yet, and where it is another version's."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Status).validate_json(answer) if answer else None
    except ValidationError:
        return None


def _picture(status: Status) -> Group:
    parts: list[Any] = [Text(f"manager {status.manager} on host {status.host}", style="dim")]
    if status.seen_seconds_ago > _STALE:
        seen = lasted(status.seen_seconds_ago)
        parts.append(Text(f"as it was {seen} ago: the pass since then is not over", style="yellow"))
    since = status.forge_down_since
    when = f" Not answering since {time.strftime('%H:%M', time.localtime(since))}." if since else ""
    problems = dict.fromkeys(queue.problem for queue in status.forge if queue.problem)
    parts += [Text(problem + when, style="red") for problem in problems]
    if unread := sum(queue.unread for queue in status.forge):
        parts.append(Text(f"{unread} more jobs wait, and were not looked at yet", style="yellow"))
    for pool in status.pools:
        parts.append(Text(_head(pool, status), style="bold"))
        parts += _notes(pool)
        if pool.machines:
            parts.append(_machine_table("job", pool.machines))
    for lent in status.garm:
        running = sum(each.phase in ("idle", "running") for each in lent.machines)
        line = f"GARM pool {lent.pool} of controller {lent.controller}: "
        line += f"{len(lent.machines)} machines, {running} with a runner"
        parts += [Text(line, style="bold"), _machine_table("instance", lent.machines)]
    if status.waiting:
        table = Table(
            Column("waiting job", overflow="fold"),
            "age",
            Column("why", overflow="fold"),
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for wait in status.waiting:
            title = f"{wait.repository}: {wait.name}" if wait.repository else wait.name
            table.add_row(*map(Text, (title, lasted(wait.age_seconds), wait.reason)))
        parts.append(table)
    return Group(*parts)


def _head(pool: Pool, status: Status) -> str:
    waiting = sum(wait.pool == pool.name for wait in status.waiting)
    more = ", drained" if pool.drained else ""
    wanted = f" of {pool.warm}" if pool.warm else ""
    idle = f"{pool.held} held, " if pool.held else ""
    idle += f"{pool.idle} of {pool.register_idle} idle, " if pool.register_idle else ""
    return (
        f"{pool.name}: {len(pool.machines)} of {pool.max} machines, {pool.running} running, {idle}"
        f"{pool.ready}{wanted} warm, {waiting} waiting{more}"
    )


def _notes(pool: Pool) -> list[Text]:
    """What is to be known of it, beside its machines."""
    found: list[Text] = []
    if (backoff := pool.backoff) and backoff.seconds:
        line = f"  backed off for {backoff.seconds:.0f} s, {backoff.failures} in a row failed; "
        found.append(Text(f"{line}last: {backoff.last}", style="red"))
    if pool.image_age_seconds is not None:
        line = f"  image {pool.image}, {_days(pool.image_age_seconds)}"
        found.append(Text(line, style="yellow" if pool.image_is_old else "dim"))
    if not pool.image and pool.image_wanted:
        line = f"  there is no image {pool.image_wanted}: see `vmrunner doctor`"
        found.append(Text(line, style="red"))
    if pool.image_note:
        found.append(Text(f"  {pool.image_note}", style="red"))
    if pool.catching_seconds:
        line = f"  the next machine whose job fails is held for {lasted(pool.catching_seconds)}"
        found.append(Text(line, style="dim"))
    if pool.snapshot:
        found.append(Text(f"  no snapshot: {pool.snapshot}", style="yellow"))
    return found


def _days(seconds: float) -> str:
    days = int(seconds // 86400)
    return f"built {days} day{'' if days == 1 else 's'} ago" if days >= 1 else "built today"


def _machine_table(last: str, machines: Sequence[MachineShown | LentShown]) -> Table:
    table = Table(
        "",
        Column("name", no_wrap=True),
        "phase",
        "age",
        Column(last, overflow="fold"),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 2),
    )
    for machine in machines:
        whose = machine.instance if isinstance(machine, LentShown) else _job(machine)
        cells = "machine", machine.name, machine.phase, lasted(machine.age_seconds), whose
        table.add_row(*map(Text, cells))
    return table


def _job(machine: MachineShown) -> str:
    job = f"{machine.job}  {machine.job_url}".rstrip()
    if held := machine.held:
        job = f"for {lasted(held.left_seconds)} more: {held.why}"
    dropped = machine.dropped_packets
    return f"{job}  ({dropped} packets dropped)" if dropped else job
