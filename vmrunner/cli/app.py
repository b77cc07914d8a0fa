"""What all commands share: the application, the way they print, and where the configuration is."""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from vmrunner import __version__, resources
from vmrunner.cli import names, shown
from vmrunner.errors import UnknownMachine, VmrunnerError, WrongCommand
from vmrunner.log import Format, Level
from vmrunner.text import presentable, sentence, some

if TYPE_CHECKING:
    from vmrunner.config import HostConfig
    from vmrunner.hypervisor.seam import Hypervisor
    from vmrunner.manager.history import History
    from vmrunner.manager.record import Record

_RUN, _LOOK, _PREPARE = "Run machines", "Look", "Prepare"
COMMANDS = {
    "up": (_RUN, "One pass: start what waiting jobs need, finish what is done."),
    "serve": (_RUN, "The same continuously, as a service."),
    "down": (_RUN, "Drain pools: start nothing, let running jobs finish."),
    "hold": (_RUN, "Keep a machine when its job is over, to look into it."),
    "release": (_RUN, "Let a machine go that is held."),
    "destroy": (_RUN, "Destroy one machine at once."),
    "exec": (_RUN, "Run one command in a throwaway machine, without a forge."),
    "garm": (_RUN, "Carry out one call of GARM's, as its provider."),
    "status": (_LOOK, "Pools, machines, and why each waiting job waits."),
    "top": (_LOOK, "The same live, with what each machine takes, and keys to act."),
    "history": (_LOOK, "Finished machines: their jobs, verdicts and times."),
    "logs": (_LOOK, "All that was said in and about one machine, in one stream."),
    "report": (_LOOK, "Who used how much: jobs, waiting and machine time, failures."),
    "ssh": (_LOOK, "Enter a machine that runs, without a network."),
    "cp": (_LOOK, "Copy files out of a machine that runs, or into it."),
    "console": (_LOOK, "A machine's serial console."),
    "doctor": (_LOOK, "Check this host, the images and the forge; each finding with its fix."),
    "init": (_PREPARE, "Set up this host: ask, check each answer, write the files."),
    "config": (_PREPARE, "The configuration file."),
    "runner": (_PREPARE, "The forge's own runner program, which images carry."),
    "image": (_PREPARE, "Golden images."),
    "snapshot": (_PREPARE, "Saved machines that others are cloned from."),
    "cache": (
        _PREPARE,
        "What jobs keep for later ones; packages and images, fetched once for all.",
    ),
    "systemd": (_PREPARE, "systemd units that run vmrunner."),
    "completion": (_PREPARE, "Completion for bash, zsh and fish."),
    "schema": (_PREPARE, "What --json prints, as JSON Schema."),
}
"""Each command's group and line in `vmrunner --help`; the module NAME_cmd.py has the command."""


class Commands(TyperGroup):
    """Lists all commands without loading them, and loads the one that is called: the whole manager
    takes as long to load as a clone takes to start.
    """

    # typer's own context and command, whose class differs between its versions: Any.

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of the table, not in that of loading."""
        return [name for name in COMMANDS if name in self.commands]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """By their groups."""
        for group in dict.fromkeys(group for group, _ in COMMANDS.values()):
            with formatter.section(group):
                formatter.write_dl(
                    [(name, line) for name, (of, line) in COMMANDS.items() if of == group]
                )

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command itself in place of its line."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            import_module(f"vmrunner.cli.{name}_cmd")
            command = typer.main.get_group(app).commands[name]
        return name, command, rest


app = typer.Typer(
    name="vmrunner",
    cls=Commands,
    help="A fresh, hypervisor-isolated virtual machine for every Forgejo or Gitea Actions job.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, wrapped as the screen is wide, in a quarter less time
    context_settings={"help_option_names": ["-h", "--help"]},
)
image, snapshot, config_app, systemd_app, runner_app, cache_app = (
    typer.Typer(no_args_is_help=True) for _ in range(6)
)
_GROUPS = {
    "image": image,
    "snapshot": snapshot,
    "config": config_app,
    "systemd": systemd_app,
    "runner": runner_app,
    "cache": cache_app,
}


def _only_a_line() -> None:
    """A command that is not loaded."""


for _name, (_, _line) in COMMANDS.items():
    if _name in _GROUPS:
        app.add_typer(_GROUPS[_name], name=_name, help=_line)
    else:
        app.command(_name, help=_line)(_only_a_line)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"vmrunner {__version__}")
        raise typer.Exit


@app.callback()
def _every_command(
    config_path: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", metavar="FILE", help="The configuration file, for any command."
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version."
        ),
    ] = False,
) -> None:
    if config_path:
        os.environ[_CONFIG_VARIABLE] = str(config_path)  # where the command's own option looks


_CONFIG_VARIABLE = "VMRUNNER_CONFIG"
COMPLETE = "_VMRUNNER_COMPLETE"
"""The variable by which a shell asks for names."""
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

DEFAULT_PATH = resources.CONFIG
ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        envvar=_CONFIG_VARIABLE,
        help="The configuration file.",
        show_default=str(DEFAULT_PATH),
    ),
]
PoolArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="POOL",
        help="One pool of the configuration; all of them without it.",
        autocompletion=names.pools,
    ),
]
LogOption = Annotated[
    Format,
    typer.Option("--log-format", envvar="VMRUNNER_LOG_FORMAT", help="Lines of text, or JSON."),
]
LevelOption = Annotated[
    Level,
    typer.Option("--log-level", envvar="VMRUNNER_LOG_LEVEL", help="The least that is logged."),
]


class _Json:
    """Whether the command that runs prints JSON, and whether it has: there is one document."""

    wanted = False
    shown = False


def _remember_json(wanted: bool) -> bool:
    _Json.wanted, _Json.shown = wanted, False
    return wanted


JsonOption = Annotated[
    bool,
    typer.Option(
        "--json", callback=_remember_json, help="Print JSON instead of text; see `vmrunner schema`."
    ),
]
FailedOption = Annotated[
    str | None,
    typer.Option(
        "--failed",
        metavar="POOL",
        help="In place of MACHINE: the next machine of this pool whose job fails.",
        autocompletion=names.pools,
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def show(value: object) -> None:
    """A record of `shown`, or plain values, as the one JSON document of this command."""
    _Json.shown = True
    print(json.dumps(shown.plain(value), indent=1))


def one_of(machine: str | None, pool: str | None) -> None:
    """Raises WrongCommand where there are both, or neither."""
    if (machine is None) == (pool is None):
        raise WrongCommand("Either a MACHINE or --failed POOL.", "`vmrunner status` shows both.")


def confirm(question: str, *, yes: bool, always: bool = False) -> None:
    """Ask before what can't be undone; where nobody can be asked, a script knows what it does, or
    has to say --yes (`always`). Ends the command where the answer is no; raises WrongCommand.
    """
    asked = sys.stdin is not None and sys.stdin.isatty() and err.is_terminal
    if yes or not (asked or always):
        return
    if not asked:
        raise WrongCommand(f"{question} Nobody can be asked here.", "Say so with --yes.")
    err.print(f"{question} [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        err.print("Nothing was done.")
        raise typer.Exit(VmrunnerError.exit_code)


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
    """Print an error as its sentence and its hint, to stderr; see also `failure`."""
    err.print(f"vmrunner: {error.sentence}", style="red", markup=False)
    if error.hint:
        err.print(f"  {error.hint}", markup=False)


def failure(error: VmrunnerError) -> shown.Failure:
    """The same for programs."""
    return shown.Failure(error.sentence, error.hint, error.exit_code)


def give_up(error: VmrunnerError) -> int:
    """Report what has ended the command, to a program that waits for JSON, too; its exit code."""
    report(error)
    if _Json.wanted and not _Json.shown:
        show(shown.Failed(failure(error)))
    return error.exit_code


def host_settings(config_path: Path) -> HostConfig:
    """The configuration of commands that need no forge. Raises ConfigError."""
    from vmrunner import config  # here, as it takes longer to load than all of this

    return config.load_host(config_path)


def open_libvirt(settings: HostConfig) -> Hypervisor:
    """The libvirt host that the configuration names. Raises HypervisorError."""
    from vmrunner.hypervisor.host import open_host

    return open_host(settings, warn)


def one(history: History, text: str) -> Record:
    """The machine that somebody means. Raises UnknownMachine."""
    from vmrunner.model.machine import may_mean

    found = history.named(text)
    exact = [record for record in found if record.machine == text]
    if exact:
        return exact[0]
    by_name = [record for record in found if may_mean(text, record.machine)]
    of_jobs = {
        (record.job_key or record.made_for_key).partition(".")[0]
        for record in found
        if record not in by_name
    }
    if not found:
        raise UnknownMachine(
            f"No machine is known as {presentable(text)}.",
            "`vmrunner history` and `vmrunner status` have their names; a job is named by its id "
            "or its address at the forge.",
        )
    if len(by_name) + len(of_jobs) > 1:
        raise UnknownMachine(
            f"{presentable(text)} may be {len(found)} machines.",
            f"One of {some([record.machine for record in reversed(found)])}.",
        )
    return found[-1]


def duration(text: str, command: str) -> timedelta:
    """What somebody has written for a time, like "90s", to this command. Raises WrongCommand."""
    from vmrunner import config

    try:
        return config.parse_duration(text)
    except ValueError as error:
        raise WrongCommand(sentence(str(error)), f"See `vmrunner {command} --help`.") from None


def clock(at: float) -> str:
    """Unix seconds as this host's date and time, for people."""
    return datetime.fromtimestamp(at).isoformat(sep=" ", timespec="milliseconds")


def lasted(seconds: float | None) -> str:
    """How long something is there, for people, as `age`; `-` where it is not known."""
    now = time.time()
    return "-" if seconds is None else age(now - seconds, now)


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
