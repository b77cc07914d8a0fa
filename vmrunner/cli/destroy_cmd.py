"""`vmrunner destroy`."""

from __future__ import annotations

from typing import Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    YesOption,
    app,
    confirm,
    warn,
)
from vmrunner.cli.up_cmd import finish
from vmrunner.log import Format, open_log


@app.command("destroy")
def destroy(
    machine: Annotated[
        str,
        typer.Argument(
            metavar="MACHINE",
            help="A machine, or how its name alone begins or ends.",
            autocompletion=names.live_machines,
        ),
    ],
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Destroy a machine at once. A job that runs on it fails at the forge, with a line that says
    why.
    """
    from vmrunner import config
    from vmrunner.manager import keep
    from vmrunner.manager.manager import open_manager

    manager = open_manager(config.load(config_path), open_log(Format.TEXT), warn)
    found = keep.find(manager, machine)
    at_work = found.is_bound and not found.is_held
    with_job = ", and fail the job that may run on it" if at_work else ""
    confirm(f"Destroy {found.id} ({found.phase.value}){with_job}?", yes=yes, always=at_work)
    finish(keep.destroy(manager, str(found.id)), as_json=as_json)
