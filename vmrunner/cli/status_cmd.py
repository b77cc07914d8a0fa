"""`vmrunner status`."""

from __future__ import annotations

import json
import socket
import time
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from vmrunner import config
from vmrunner.cli.app import ConfigOption, JsonOption, age, app, out, warn
from vmrunner.log import open_log
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
    config_path: ConfigOption = config.DEFAULT_PATH,
) -> None:
    """Show pools, machines with phase and age, and every waiting job with the reason why it waits.

    Changes nothing.
    """
    manager = open_manager(config.load(config_path), open_log("text"), warn)
    if as_json:
        print(json.dumps(_plain(manager, manager.survey(), time.time()), indent=1))
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
        if pool.image_note:
            parts.append(Text(f"  {pool.image_note}", style="red"))
        if pool.snapshot:
            parts.append(Text(f"  no snapshot: {pool.snapshot}", style="yellow"))
        table = Table(
            "",
            Column("name", no_wrap=True),
            "phase",
            "age",
            Column("job", overflow="fold"),
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 2),
        )
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
    return (
        f"{pool.pool}: {len(machines)} of {pool.max} machines, {running} running, "
        f"{warm}{wanted} warm, {waiting} waiting{more}"
    )


def _machines(pool: Desired, survey: Survey) -> list[Machine]:
    return [
        machine
        for machine in survey.observed.machines
        if machine.metadata and machine.metadata.pool == pool.pool
    ]


def _job_of(machine: Machine, view: View) -> Job | None:
    return view.job_on(machine.id, machine.metadata.job_key) if machine.metadata else None


def _plain(manager: Manager, survey: Survey, now: float) -> dict[str, Any]:
    view = View(survey.observed)
    return {
        "manager": manager.settings.manager,
        "host": socket.gethostname(),
        "forge": [
            {
                "scope": str(scope),
                "problem": queue.problem,
                "hint": queue.hint,
                "jobs": len(queue.jobs),
            }
            for scope, queue in survey.observed.queues.items()
        ],
        "pools": [_plain_pool(pool, survey, view, now) for pool in survey.pools],
        "waiting": [_plain_wait(wait, now) for wait in survey.plan.waits],
    }


def _plain_pool(pool: Desired, survey: Survey, view: View, now: float) -> dict[str, Any]:
    backoff = pool.backoff
    machines = _machines(pool, survey)
    return {
        "name": pool.pool,
        "max": pool.max,
        "warm": pool.warm,
        "image": pool.image,
        "image_age_seconds": round(now - pool.image_built) if pool.image_built else None,
        "image_note": pool.image_note,
        "drained": pool.drain is not Drain.NO,
        "snapshot": pool.snapshot,
        "running": sum(machine.phase is Phase.RUNNING for machine in machines),
        "failed": backoff.failures if backoff else 0,
        "backoff": {
            "failures": backoff.failures,
            "seconds": round(max(0.0, backoff.until - now), 1),
            "last": backoff.last,
        }
        if backoff
        else None,
        "machines": [
            {
                "name": str(machine.id),
                "phase": machine.phase.value,
                "paused": machine.is_paused,
                "age_seconds": round(view.awake(machine.metadata, machine.metadata.created_at), 1)
                if machine.metadata
                else None,
                "image": machine.metadata.image if machine.metadata else "",
                "job": job.title if (job := _job_of(machine, view)) else "",
                "job_url": job.url if job else "",
                "trouble": machine.trouble,
                "dropped_packets": machine.dropped,
            }
            for machine in machines
        ],
    }


def _plain_wait(wait: Wait, now: float) -> dict[str, Any]:
    job = wait.job
    return {
        "name": job.name,
        "id": job.id,
        "repository": job.repository,
        "labels": list(job.labels),
        "url": job.url,
        "pool": wait.pool,
        "kind": wait.reason.kind.value,
        "reason": wait.reason.said,
        "age_seconds": round(now - job.queued_at.timestamp(), 1) if job.queued_at else None,
    }
