"""`vmrunner up`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    LevelOption,
    LogOption,
    PoolArgument,
    app,
    out,
    report,
    say,
    warn,
)
from vmrunner.cli.snapshot_cmd import make_in_background
from vmrunner.log import open_log

if TYPE_CHECKING:
    from vmrunner.manager.manager import Outcome


@app.command("up")
def up(
    pool: PoolArgument = None,
    log_format: LogOption = "text",
    log_level: LevelOption = "info",
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """One pass: start a machine for each waiting job, finish what is done, sweep what is orphaned.
    Run it as often as you like.

    With POOL: that pool was taken down by `vmrunner down` and shall work again.
    """
    from vmrunner import config
    from vmrunner.manager import metrics
    from vmrunner.manager.manager import open_manager

    settings = config.load(config_path)
    manager = open_manager(settings, open_log(log_format, log_level), warn)
    named = manager.pools(pool) if pool else []
    with manager.lock():
        manager.resume(named)
        outcome, survey = manager.reconcile()
    if settings.metrics.textfile:
        figures = metrics.Figures(manager.history)
        figures.saw(survey, time.time())
        metrics.write(figures, settings.metrics.textfile)
    for missing in survey.missing_snapshots():
        # The output may be a pipe that somebody reads to its end.
        make_in_background(missing, config_path, quiet=True)
        say(f"a snapshot for pool {missing} is made in the background")
    finish(outcome)


def finish(outcome: Outcome) -> None:
    """Print what was done; exits with the code of the first failure, after reporting all of
    them.
    """
    bound = f", {outcome.bound} bound" if outcome.bound else ""
    out.print(
        f"{outcome.started} started{bound}, {outcome.destroyed} destroyed, {outcome.swept} runner "
        "records swept"
    )
    # One cause may stop many machines.
    for failure in {failure.sentence: failure for failure in outcome.failures}.values():
        report(failure)
    if outcome.failures:
        raise typer.Exit(outcome.failures[0].exit_code)
