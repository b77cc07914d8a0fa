"""`vmrunner console`."""

from __future__ import annotations

import os
import threading

from vmrunner.cli import terminal
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, app, say, warn
from vmrunner.cli.ssh_cmd import MachineArgument
from vmrunner.errors import MachineError, WrongCommand

_LEAVE = b"\x1d"  # Ctrl-]


@app.command("console")
def console(machine: MachineArgument, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """See what a machine says on its serial console from now on, and type there; Ctrl-] leaves.

    Its log goes on all the same.
    """
    from vmrunner import config
    from vmrunner.hypervisor.host import open_host
    from vmrunner.hypervisor.seam import Way
    from vmrunner.machine import named

    if not terminal.is_there():
        raise WrongCommand(
            "A console needs a terminal, for its input and for its output.",
            "`vmrunner ssh MACHINE -- COMMAND` needs none.",
        )
    host = open_host(config.load_host(config_path), warn)
    found = named.find(host.machines.all(), machine)
    talk = host.machines.talk(found.id, Way.CONSOLE)
    paused = " It is paused, and says nothing until it goes on." if found.is_paused else ""
    say(f"The console of {found.id}. Ctrl-] leaves.{paused}")
    left = threading.Event()

    def type_there() -> None:
        while not left.is_set():
            typed = os.read(terminal.IN, 1024)
            before, key, _ = typed.partition(_LEAVE)
            if before:
                talk.say(before)
            if key or not typed:
                left.set()

    try:
        with terminal.raw():
            threading.Thread(target=type_there, daemon=True).start()
            while not left.is_set():
                said = talk.hear(0.1)
                if said:
                    terminal.write(said)
                elif said is not None:
                    break
    finally:
        talk.close()
    if not left.is_set():
        raise MachineError(f"{found.id} is gone, and its console with it.")
