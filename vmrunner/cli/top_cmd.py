"""`vmrunner top`."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live

from vmrunner.cli import terminal
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, app, duration, out, say
from vmrunner.errors import WrongCommand

if TYPE_CHECKING:
    from vmrunner.cli.top_looks import Deed, Looks
    from vmrunner.cli.top_state import Seen

_SHORTEST = 0.5  # seconds between two looks
_TICK = 0.25  # seconds until what is new, or another size of the window, is drawn


@app.command("top")
def top(
    every: Annotated[
        str,
        typer.Option("--every", metavar="TIME", help='Between two looks, like "500ms" or "10s".'),
    ] = "2s",
    once: Annotated[
        bool, typer.Option("--once", help="One picture, and end; so it is in a pipe, too.")
    ] = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Show pools, machines with what each takes of the host, the queue with its reasons and the
    day's jobs, live; keys choose a machine, show its log, hold, release or destroy it.

    Looking needs what `vmrunner status` needs; hold, release and destroy what the commands of that
    name need.
    """
    from vmrunner import config
    from vmrunner.cli.top_looks import Looks
    from vmrunner.cli.top_picture import whole

    seconds = duration(every, "top").total_seconds()
    if seconds < _SHORTEST:
        raise WrongCommand(f"{every} is too often.", 'The least is "500ms".')
    looks = Looks(config.load(config_path))
    seen = looks.look()
    if once or not terminal.is_there() or out.is_dumb_terminal:
        for line in whole(seen, out.width if out.is_terminal else 0):
            out.print(line)
        return
    over = threading.Event()
    threading.Thread(target=looks.run, args=(seconds, over), name="looks", daemon=True).start()
    try:
        _live(looks, seen)
    finally:
        over.set()


def _live(looks: Looks, shown: Seen) -> None:
    from vmrunner.cli.top_looks import Deed
    from vmrunner.cli.top_picture import picture
    from vmrunner.cli.top_state import State, Wish, rows, struck

    state = State()
    deed: Deed | None = None
    drawn: tuple[object, ...] = ()
    with terminal.by_key(), Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            if looks.fault:
                raise looks.fault
            if deed and deed.is_over:
                state, deed = replace(state, said=_came_of(deed)), None
            shown = shown if state.is_paused else looks.seen or shown
            now = (shown, looks.log, state, *terminal.size())
            if now != drawn:
                live.update(Group(*picture(*now)), refresh=True)
                drawn = now
            typed = terminal.typed(_TICK)
            if typed is None:
                continue
            names = [row.name for row in rows(shown.status)]
            state, wish, machine = struck(state, typed, names)
            looks.log_of = state.log_of
            if not typed or wish is Wish.QUIT:
                break
            if wish and deed:
                state = replace(state, said="Wait: the last one is not done yet.")
            elif wish:
                deed = Deed(looks.settings, wish, machine)
    if deed:
        say("waiting for what was begun; Ctrl-C does not wait")
        deed.wait()
        out.print(_came_of(deed))


def _came_of(deed: Deed) -> str:
    if deed.fault:
        raise deed.fault
    return deed.said
