"""What all commands share: the application, the way they print, and where the configuration is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vmrunner import config
from vmrunner.errors import VmrunnerError
from vmrunner.log import Format

app = typer.Typer(
    name="vmrunner",
    help="A fresh, hypervisor-isolated virtual machine for every Forgejo or Gitea Actions job.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
image = typer.Typer(help="Golden images.", no_args_is_help=True)
snapshot = typer.Typer(help="Saved machines that others are cloned from.", no_args_is_help=True)
config_app = typer.Typer(help="The configuration file.", no_args_is_help=True)
systemd_app = typer.Typer(help="systemd units that run vmrunner.", no_args_is_help=True)
app.add_typer(image, name="image")
app.add_typer(snapshot, name="snapshot")
app.add_typer(config_app, name="config")
app.add_typer(systemd_app, name="systemd")

_UNBOUND = 10_000  # columns of what nobody sees on a screen: a file, or a program that searches it

# Others' words are printed, such as a job's name: nothing in them is markup or a picture's name.
out = Console(
    highlight=False,
    markup=False,
    emoji=False,
    soft_wrap=not os.isatty(1),
    width=None if os.isatty(1) else _UNBOUND,
)
err = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        envvar="VMRUNNER_CONFIG",
        help="The configuration file.",
        show_default=str(config.DEFAULT_PATH),
    ),
]
PoolArgument = Annotated[
    str | None,
    typer.Argument(metavar="[POOL]", help="One pool of the configuration; all of them without it."),
]
LogOption = Annotated[
    Format,
    typer.Option("--log-format", envvar="VMRUNNER_LOG_FORMAT", help="Lines of text, or JSON."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def say(sentence: str) -> None:
    """Progress, to stderr."""
    err.print(sentence, markup=False)


_warned: set[str] = set()


def warn(sentence: str) -> None:
    """A warning, to stderr, once per run."""
    if sentence not in _warned:
        _warned.add(sentence)
        err.print(f"warning: {sentence}", style="yellow", markup=False)


def report(error: VmrunnerError) -> None:
    """Print an error as its sentence and its hint, to stderr."""
    err.print(f"vmrunner: {error.sentence}", style="red", markup=False)
    if error.hint:
        err.print(f"  {error.hint}", markup=False)


def age(since: float, now: float) -> str:
    """How long ago, for people: `12s`, `3m05s`, `2h10m`; `-` where it is not known.

    Unix seconds.
    """
    seconds = int(now - since)
    if not since or seconds < 0:
        return "-"
    hours, rest = divmod(seconds, 3600)
    return (
        f"{hours}h{rest // 60:02}m"
        if hours
        else f"{rest // 60}m{rest % 60:02}s"
        if rest >= 60
        else f"{rest}s"
    )
