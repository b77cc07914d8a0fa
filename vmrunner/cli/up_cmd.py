"""`vmrunner up`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vmrunner.cli import plans
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    LevelOption,
    LogOption,
    PoolArgument,
    app,
    failure,
    out,
    report,
    say,
    show,
    warn,
)
from vmrunner.cli.shown import Pass
from vmrunner.log import Format, Level, open_log
from vmrunner.machine.background import make_snapshot

if TYPE_CHECKING:
    from vmrunner.manager.manager import Manager, Outcome

_SEND = 5.0  # seconds, at most, for notices; what is not sent by then waits for the next pass
_CHORES = 2.0  # seconds, at most; a QEMU that hangs is not waited for


@app.command("up")
def up(
    pool: PoolArgument = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    as_json: JsonOption = False,
    log_format: LogOption = Format.TEXT,
    log_level: LevelOption = Level.INFO,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """One pass: start a machine for each waiting job, finish what is done, sweep what is orphaned.
    Run it as often as you like.

    With POOL: that pool was taken down by `vmrunner down` and shall work again.
    """
    from vmrunner import config
    from vmrunner.manager import chores, metrics, outbox
    from vmrunner.manager.manager import open_manager

    settings = config.load(config_path)
    log = open_log(log_format, log_level)
    manager = open_manager(settings, log, warn)
    named = manager.pools(pool) if pool else []
    if dry_run:
        _preview(manager, named, as_json=as_json)
        return
    sender = outbox.open_sender(settings, log, warn)
    with manager.lock():
        manager.resume(named)
        outcome, survey = manager.reconcile()
    chores.once(manager.chores, _CHORES)
    if settings.metrics.textfile:
        figures = metrics.Figures(manager.history)
        figures.saw(survey, time.time())
        metrics.write(figures, settings.metrics.textfile)
    for missing in survey.missing_snapshots():
        # The output may be a pipe that somebody reads to its end.
        make_snapshot(["--pool", missing], config_path, quiet=True)
        say(f"a snapshot for pool {missing} is made in the background")
    if sender:
        sender.flush(_SEND)
    finish(outcome, as_json=as_json)


def _preview(manager: Manager, named: list[str], *, as_json: bool) -> None:
    """Look and plan as a pass does, and leave it at that."""
    from vmrunner.manager.observed import Drain

    survey = manager.survey(dict.fromkeys(named, Drain.NO))
    planned = tuple(plans.planned(action) for action in survey.plan.actions)
    if as_json:
        failures = tuple(map(failure, survey.failures))
        show(Pass(True, 0, 0, 0, 0, planned, (), (), failures))
    else:
        for each in planned:
            out.print(plans.said(each))
        if not planned:
            out.print("Nothing to do.")
    for problem in dict.fromkeys(
        queue.problem for queue in survey.observed.queues.values() if queue.problem
    ):
        warn(problem)
    if survey.failures:
        raise typer.Exit(survey.failures[0].exit_code)


def finish(
    outcome: Outcome, removed: Sequence[str] = (), kept: Sequence[str] = (), *, as_json: bool
) -> None:
    """Print what was done; exits with the code of the first failure, after reporting all of
    them.
    """
    if as_json:
        done = (outcome.started, outcome.bound, outcome.destroyed, outcome.swept)
        failures = tuple(map(failure, outcome.failures))
        show(Pass(False, *done, (), tuple(removed), tuple(kept), failures))
    bound = f", {outcome.bound} bound" if outcome.bound else ""
    if not as_json:
        out.print(
            f"{outcome.started} started{bound}, {outcome.destroyed} destroyed, {outcome.swept} "
            "runner records swept"
        )
    # One cause may stop many machines.
    for each in {each.sentence: each for each in outcome.failures}.values():
        report(each)
    if outcome.failures:
        raise typer.Exit(outcome.failures[0].exit_code)
