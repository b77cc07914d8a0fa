"""`vmrunner ssh`."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import Annotated, Any

import typer

from vmrunner.cli import names, terminal
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, app, warn
from vmrunner.errors import HypervisorError, MachineError

MachineArgument = Annotated[
    str,
    typer.Argument(
        metavar="MACHINE",
        help="A machine that runs, or how its name alone begins or ends.",
        autocompletion=names.live_machines,
    ),
]
_CHUNK = 1 << 15


@app.command("ssh", context_settings={"allow_interspersed_args": False})
def ssh(
    machine: MachineArgument,
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COMMAND", help="What to run; without it, a shell. Put -- before it."
        ),
    ] = None,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Enter a machine that runs, as root: a shell, or one command, whose exit code is this one's.

    It goes over a port of the machine, not over its network. The keys are made for this session,
    and are gone with it.
    """
    from vmrunner import config
    from vmrunner.hypervisor.host import open_host
    from vmrunner.machine import named, visit

    words = command[1:] if command and command[0] == "--" else command or []
    host = open_host(config.load_host(config_path), warn)
    found = named.find(host.machines.all(), machine)
    with visit.entered(host.machines, found) as (transport, line):
        channel = transport.open_session()
        if not words and terminal.is_there():
            _on_terminal(channel)
        else:
            _on_pipes(channel, visit.command_line(words) if words else "")
        code = channel.recv_exit_status()
        if code < 0:
            raise MachineError(
                f"{found.id} {line.fault or 'ended the session, and told no exit code'}.",
                visit.GONE_HINT,
            )
    raise typer.Exit(code)


def _on_terminal(channel: Any) -> None:
    columns, lines = terminal.size()
    channel.get_pty(os.environ.get("TERM", "vt100"), columns, lines)
    channel.invoke_shell()
    with terminal.raw(lambda: channel.resize_pty(*terminal.size())):
        _send_in_background(channel)
        while said := channel.recv(_CHUNK):
            terminal.write(said)


def _on_pipes(channel: Any, command: str) -> None:
    if command:
        channel.exec_command(command)
    else:
        channel.invoke_shell()
    _send_in_background(channel)

    def complain() -> None:
        while said := channel.recv_stderr(_CHUNK):
            sys.stderr.buffer.write(said)
            sys.stderr.buffer.flush()

    complaining = threading.Thread(target=complain, daemon=True)
    complaining.start()
    while said := channel.recv(_CHUNK):
        terminal.write(said)
    complaining.join()


def _send_in_background(channel: Any) -> None:
    """Our input, as long as there is any; the session does not wait for it."""

    def send() -> None:
        with suppress(OSError, HypervisorError):  # the session is over
            while typed := os.read(terminal.IN, _CHUNK):
                channel.sendall(typed)
            channel.shutdown_write()

    threading.Thread(target=send, daemon=True).start()
