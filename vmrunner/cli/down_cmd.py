"""`vmrunner down`."""

from __future__ import annotations

from typing import Annotated

import typer

from vmrunner import config
from vmrunner.cli.app import ConfigOption, LogOption, PoolArgument, app, out, warn
from vmrunner.cli.up_cmd import finish
from vmrunner.errors import ConfigError
from vmrunner.log import open_log
from vmrunner.manager.manager import open_manager


@app.command("down")
def down(
    pool: PoolArgument = None,
    now: Annotated[
        bool,
        typer.Option(
            "--now",
            help="Destroy machines whose job still runs, too; those jobs fail at the forge.",
        ),
    ] = False,
    timeout: Annotated[
        str | None,
        typer.Option(
            "--timeout", help='Like "10m": so long running jobs may take, then as with --now.'
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every pool; needed with --purge.")
    ] = False,
    purge: Annotated[
        bool,
        typer.Option("--purge", help="Then remove all that vmrunner has made on the libvirt host."),
    ] = False,
    halt: Annotated[
        bool,
        typer.Option(
            "--halt",
            help="As --now in every pool, since the host shuts down: none is drained after it.",
        ),
    ] = False,
    log_format: LogOption = "text",
    config_path: ConfigOption = config.DEFAULT_PATH,
) -> None:
    """Drain: start nothing, destroy idle machines, let running jobs finish. Returns when no machine
    is left.

    The pools stay down, also over a restart, until `vmrunner up POOL`.
    """
    try:
        limit = config.parse_duration(timeout).total_seconds() if timeout else None
    except ValueError as error:
        raise ConfigError(f"{error}.".capitalize(), "See `vmrunner down --help`.") from None
    if purge and (not everything or pool):
        raise ConfigError(
            "--purge removes all pools' things.", "Say `vmrunner down --all --purge`."
        )
    if everything and pool:
        raise ConfigError("Either one pool or --all.", "See `vmrunner down --help`.")
    if halt and (pool or now or timeout or everything):
        raise ConfigError("--halt is for every pool, and at once.", "Say `vmrunner down --halt`.")
    manager = open_manager(config.load(config_path), open_log(log_format), warn)
    if halt:
        finish(manager.halt())
        return
    outcome = manager.down(manager.pools(pool), now=now, timeout=limit)
    if purge and not outcome.failures:
        done = manager.purge()
        for removed in done.removed:
            out.print(f"removed {removed}", markup=False)
        for kept in done.kept:
            out.print(f"kept {kept}", markup=False)
        out.print(f"Golden images and history stay in {manager.settings.state_dir}.", markup=False)
    finish(outcome)
