"""`vmrunner release`."""

from __future__ import annotations

from typing import Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    FailedOption,
    JsonOption,
    app,
    one_of,
    say,
    warn,
)
from vmrunner.cli.up_cmd import finish
from vmrunner.log import Format, open_log


@app.command("release")
def release(
    machine: Annotated[
        str | None,
        typer.Argument(
            metavar="MACHINE",
            help="A machine that is held, or how its name alone begins or ends.",
            autocompletion=names.live_machines,
        ),
    ] = None,
    failed: FailedOption = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """End what `vmrunner hold` has begun: a machine that is held is destroyed, one that is to be
    held goes with its job.
    """
    from vmrunner import config
    from vmrunner.manager import keep
    from vmrunner.manager.manager import Outcome, open_manager

    one_of(machine, failed)
    manager = open_manager(config.load(config_path), open_log(Format.TEXT), warn)
    outcome = None
    if failed:
        manager.catching.remove(manager.pools(failed))
        say(f"the next machine of pool {failed} whose job fails is not held for that")
    else:
        outcome = keep.release(manager, str(machine))
        if outcome is None:
            say(f"{machine} goes when its job is over")
    finish(outcome or Outcome(), as_json=as_json)
