"""`vmrunner down`."""

from __future__ import annotations

from typing import Annotated

import typer

from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    LevelOption,
    LogOption,
    PoolArgument,
    YesOption,
    app,
    confirm,
    duration,
    out,
    warn,
)
from vmrunner.cli.up_cmd import finish
from vmrunner.errors import WrongCommand
from vmrunner.log import Format, Level, open_log


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
            "--timeout", help='How long to wait for running jobs, like "10m"; then as with --now.'
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
    yes: YesOption = False,
    as_json: JsonOption = False,
    log_format: LogOption = Format.TEXT,
    log_level: LevelOption = Level.INFO,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Drain: start nothing, destroy idle machines, let running jobs finish. Returns when no machine
    is left.

    The pools stay down, also over a restart, until `vmrunner up POOL`.
    """
    from vmrunner import config
    from vmrunner.manager.manager import open_manager

    limit = duration(timeout, "down").total_seconds() if timeout else None
    if purge and (not everything or pool):
        raise WrongCommand(
            "--purge removes all pools' things.", "Say `vmrunner down --all --purge`."
        )
    if everything and pool:
        raise WrongCommand("Either one pool or --all.", "See `vmrunner down --help`.")
    if halt and (pool or now or timeout or everything):
        raise WrongCommand("--halt is for every pool, and at once.", "Say `vmrunner down --halt`.")
    manager = open_manager(config.load(config_path), open_log(log_format, log_level), warn)
    if halt:
        finish(manager.halt(), as_json=as_json)
        return
    pools = manager.pools(pool)
    if purge:
        confirm("Remove all machines, images and networks of this manager from libvirt?", yes=yes)
    elif not pool and not everything and len(pools) > 1:
        confirm(f"Take all pools down: {', '.join(pools)}?", yes=yes)
    outcome = manager.down(pools, now=now, timeout=limit)
    removed, kept = list[str](), list[str]()
    if purge and not outcome.failures:
        done = manager.purge()
        removed, kept = list(done.removed), list(done.kept)
        if not as_json:
            for each in removed:
                out.print(f"removed {each}")
            for each in kept:
                out.print(f"kept {each}")
            out.print(f"Golden images and history stay in {manager.settings.state_dir}.")
    finish(outcome, removed, kept, as_json=as_json)
