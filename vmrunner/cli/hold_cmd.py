"""`vmrunner hold`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    FailedOption,
    JsonOption,
    app,
    one_of,
    out,
    show,
    warn,
)
from vmrunner.cli.shown import Keeping
from vmrunner.errors import WrongCommand
from vmrunner.log import Format, open_log
from vmrunner.text import sentence

if TYPE_CHECKING:
    from vmrunner.model.machine import Machine


@app.command("hold")
def hold(
    machine: Annotated[
        str | None,
        typer.Argument(
            metavar="MACHINE",
            help="A machine with a job, or how its name alone begins or ends.",
            autocompletion=names.live_machines,
        ),
    ] = None,
    failed: FailedOption = None,
    span: Annotated[
        str, typer.Option("--for", metavar="TIME", help='For how long, like "30m" or "2h".')
    ] = "1h",
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Keep a machine when its job is over, to look into it: without a network, without credentials,
    until its time is over or `vmrunner release`.

    A machine that is held already is held for so long from now on.
    """
    from vmrunner import config
    from vmrunner.manager import keep
    from vmrunner.manager.manager import open_manager

    one_of(machine, failed)
    try:
        wanted = config.parse_hold_time(span)
    except ValueError as error:
        raise WrongCommand(sentence(str(error)), "See `vmrunner hold --help`.") from None
    seconds = wanted.total_seconds()
    manager = open_manager(config.load(config_path), open_log(Format.TEXT), warn)
    if failed:
        (pool,) = manager.pools(failed)
        manager.catching.put(pool, seconds)
        said = f"the next machine of pool {pool} whose job fails is held for {span}"
        shown = Keeping("", pool, held=False, seconds=seconds)
    else:
        kept = keep.hold(manager, str(machine), wanted)
        said = held(kept, span)
        pool = kept.metadata.pool if kept.metadata else ""
        shown = Keeping(str(kept.id), pool, held=kept.is_held, seconds=seconds)
    if as_json:
        show(shown)
    else:
        out.print(said)


def held(machine: Machine, span: str) -> str:
    """What `hold` has done, in words."""
    when = "from now on" if machine.is_held else "when its job is over"
    return f"{machine.id} is held for {span} {when}"
