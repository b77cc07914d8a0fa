"""`vmrunner status`."""

from __future__ import annotations

import socket
import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from vmrunner import config
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, JsonOption, age, app, out, show, warn
from vmrunner.cli.shown import (
    BackedOff,
    LentPool,
    LentShown,
    MachineShown,
    Pool,
    Queue,
    Status,
    Waiting,
)
from vmrunner.errors import WrongCommand
from vmrunner.log import Format, open_log
from vmrunner.machine.instances import Lent
from vmrunner.manager.actions import Wait
from vmrunner.manager.manager import Manager, Survey, open_manager
from vmrunner.manager.observed import Desired, Drain, View
from vmrunner.model.job import Job
from vmrunner.model.machine import Machine, Phase

_EVERY = 2.0  # seconds


@app.command("status")
def status(
    as_json: JsonOption = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every two seconds, until Ctrl-C.")
    ] = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Show pools, machines with phase and age, and every waiting job with the reason why it waits.

    Changes nothing.
    """
    if as_json and watch:
        raise WrongCommand("--json prints once.", "Leave --watch out, and call it again.")
    manager = open_manager(config.load(config_path), open_log(Format.TEXT), warn)
    if as_json:
        show(_shown(manager, manager.survey(), time.time()))
        return
    if not watch:
        out.print(_picture(manager, manager.survey(), time.time()))
        return
    with Live(console=out, screen=out.is_terminal, auto_refresh=False) as live:
        while True:
            live.update(_picture(manager, manager.survey(), time.time()), refresh=True)
            time.sleep(_EVERY)


def _picture(manager: Manager, survey: Survey, now: float) -> Group:
    parts: list[Any] = [
        Text(f"manager {manager.settings.manager} on host {socket.gethostname()}", style="dim")
    ]
    since = manager.forge_down_since()
    when = f" Not answering since {time.strftime('%H:%M', time.localtime(since))}." if since else ""
    problems = dict.fromkeys(
        queue.problem for queue in survey.observed.queues.values() if queue.problem
    )
    parts += [Text(problem + when, style="red") for problem in problems]
    view = View(survey.observed)
    for pool in survey.pools:
        parts.append(Text(_head(pool, survey), style="bold"))
        if pool.backoff and pool.backoff.until > now:
            failures = f"{pool.backoff.failures} in a row failed"
            parts.append(
                Text(
                    f"  backed off for {pool.backoff.until - now:.0f} s, {failures}; last: "
                    f"{pool.backoff.last}",
                    style="red",
                )
            )
        if pool.image_built:
            old = now - pool.image_built > manager.settings.images.max_age.total_seconds()
            parts.append(
                Text(
                    f"  image {pool.image}, {_days(now - pool.image_built)}",
                    style="yellow" if old else "dim",
                )
            )
        if not pool.image and (configured := manager.settings.pools.get(pool.pool)):
            missing = f"  there is no image {configured.image}: see `vmrunner doctor`"
            parts.append(Text(missing, style="red"))
        if pool.image_note:
            parts.append(Text(f"  {pool.image_note}", style="red"))
        if pool.snapshot:
            parts.append(Text(f"  no snapshot: {pool.snapshot}", style="yellow"))
        table = _machine_table("job")
        for machine in _machines(pool, survey):
            metadata = machine.metadata
            since = now - view.awake(metadata, metadata.created_at) if metadata else 0
            job = _job_of(machine, view)
            shown = f"{job.title}  {job.url}".rstrip() if job else ""
            shown += f"  ({machine.dropped} packets dropped)" if machine.dropped else ""
            cells = "machine", str(machine.id), machine.phase.value, age(since, now), shown
            table.add_row(*map(Text, cells))
        if table.rows:
            parts.append(table)
    parts += _lent(survey, now)
    if survey.plan.waits:
        table = Table(
            Column("waiting job", overflow="fold"),
            "age",
            Column("why", overflow="fold"),
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for wait in survey.plan.waits:
            queued = wait.job.queued_at.timestamp() if wait.job.queued_at else 0
            table.add_row(*map(Text, (wait.job.title, age(queued, now), wait.reason.said)))
        parts.append(table)
    return Group(*parts)


def _lent(survey: Survey, now: float) -> list[Any]:
    """What GARM has made here, by its controllers and their pools."""
    parts: list[Any] = []
    for found in _by_owner(survey).values():
        first = found[0].instance
        running = sum(each.machine.phase in (Phase.IDLE, Phase.RUNNING) for each in found)
        parts.append(
            Text(
                f"GARM pool {first.pool} of controller {first.controller}: {len(found)} machines, "
                f"{running} with a runner",
                style="bold",
            )
        )
        table = _machine_table("instance")
        for each in found:
            made = each.instance.created_at
            phase = each.machine.phase.value
            cells = "machine", str(each.machine.id), phase, age(made, now), each.instance.name
            table.add_row(*map(Text, cells))
        parts.append(table)
    return parts


def _by_owner(survey: Survey) -> dict[str, list[Lent]]:
    found: dict[str, list[Lent]] = {}
    for each in survey.observed.lent:
        found.setdefault(each.instance.owner, []).append(each)
    return found


def _shown_lent(survey: Survey, now: float) -> tuple[LentPool, ...]:
    return tuple(
        LentPool(
            controller=found[0].instance.controller,
            pool=found[0].instance.pool,
            machines=tuple(
                LentShown(
                    name=str(each.machine.id),
                    instance=each.instance.name,
                    flavor=each.instance.flavor,
                    image=each.instance.image,
                    phase=each.machine.phase.value,
                    age_seconds=round(now - each.instance.created_at, 1),
                    trouble=each.machine.trouble,
                    dropped_packets=each.machine.dropped,
                )
                for each in found
            ),
        )
        for found in _by_owner(survey).values()
    )


def _days(seconds: float) -> str:
    days = int(seconds // 86400)
    return f"built {days} day{'' if days == 1 else 's'} ago" if days >= 1 else "built today"


def _head(pool: Desired, survey: Survey) -> str:
    machines = _machines(pool, survey)
    running = sum(machine.phase is Phase.RUNNING for machine in machines)
    warm = sum(machine.is_ready for machine in machines)
    waiting = sum(wait.pool == pool.pool for wait in survey.plan.waits)
    more = "" if pool.drain is Drain.NO else ", drained"
    wanted = f" of {pool.warm}" if pool.warm else ""
    registered = sum(machine.phase is Phase.IDLE for machine in machines)
    idle = f"{registered} of {pool.register_idle} idle, " if pool.register_idle else ""
    return (
        f"{pool.pool}: {len(machines)} of {pool.max} machines, {running} running, {idle}"
        f"{warm}{wanted} warm, {waiting} waiting{more}"
    )


def _machine_table(last: str) -> Table:
    return Table(
        "",
        Column("name", no_wrap=True),
        "phase",
        "age",
        Column(last, overflow="fold"),
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 2),
    )


def _machines(pool: Desired, survey: Survey) -> list[Machine]:
    return [
        machine
        for machine in survey.observed.machines
        if machine.metadata and machine.metadata.pool == pool.pool
    ]


def _job_of(machine: Machine, view: View) -> Job | None:
    return view.job_on(machine.id, machine.metadata.job_key) if machine.metadata else None


def _shown(manager: Manager, survey: Survey, now: float) -> Status:
    view = View(survey.observed)
    queues = survey.observed.queues.items()
    return Status(
        manager=manager.settings.manager,
        host=socket.gethostname(),
        forge=tuple(
            Queue(str(scope), queue.problem, queue.hint, len(queue.jobs)) for scope, queue in queues
        ),
        pools=tuple(_shown_pool(pool, survey, view, now) for pool in survey.pools),
        garm=_shown_lent(survey, now),
        waiting=tuple(_shown_wait(wait, now) for wait in survey.plan.waits),
    )


def _shown_pool(pool: Desired, survey: Survey, view: View, now: float) -> Pool:
    backoff = pool.backoff
    machines = _machines(pool, survey)
    return Pool(
        name=pool.pool,
        max=pool.max,
        warm=pool.warm,
        image=pool.image,
        image_age_seconds=round(now - pool.image_built) if pool.image_built else None,
        image_note=pool.image_note,
        drained=pool.drain is not Drain.NO,
        snapshot=pool.snapshot,
        running=sum(machine.phase is Phase.RUNNING for machine in machines),
        register_idle=pool.register_idle,
        idle=sum(machine.phase is Phase.IDLE for machine in machines),
        failed=backoff.failures if backoff else 0,
        backoff=BackedOff(backoff.failures, round(max(0.0, backoff.until - now), 1), backoff.last)
        if backoff
        else None,
        machines=tuple(_shown_machine(machine, view) for machine in machines),
    )


def _shown_machine(machine: Machine, view: View) -> MachineShown:
    metadata, job = machine.metadata, _job_of(machine, view)
    return MachineShown(
        name=str(machine.id),
        phase=machine.phase.value,
        paused=machine.is_paused,
        age_seconds=round(view.awake(metadata, metadata.created_at), 1) if metadata else None,
        image=metadata.image if metadata else "",
        job=job.title if job else "",
        job_url=job.url if job else "",
        trouble=machine.trouble,
        dropped_packets=machine.dropped,
    )


def _shown_wait(wait: Wait, now: float) -> Waiting:
    job = wait.job
    return Waiting(
        name=job.name,
        id=job.id,
        repository=job.repository,
        labels=tuple(job.labels),
        url=job.url,
        pool=wait.pool,
        kind=wait.reason.kind.value,
        reason=wait.reason.said,
        age_seconds=round(now - job.queued_at.timestamp(), 1) if job.queued_at else None,
    )
