"""`vmrunner exec`: one command in a throwaway machine, without a forge.

The process that made the machine owns it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta

from vmrunner.config import HostConfig
from vmrunner.errors import MachineError
from vmrunner.hypervisor.seam import File, Hypervisor, Machines, Output
from vmrunner.log import Say
from vmrunner.machine import launch, seed
from vmrunner.machine.clones import Shelf
from vmrunner.machine.identity import fresh
from vmrunner.machine.launch import Launch
from vmrunner.machine.ownership import claiming
from vmrunner.model.image import Golden
from vmrunner.model.machine import (
    EventKind,
    GuestEvent,
    Machine,
    MachineId,
    Metadata,
    Shape,
    parse_events,
)
from vmrunner.network.policy import Reach
from vmrunner.waiting import Deadline

_POLL = 0.2  # seconds
_SOON = 0.01  # seconds
_POWER_OFF = 10.0  # seconds from the guest's own deadline to ours


@dataclass(frozen=True)
class Command:
    """One command, and the machine for it."""

    golden: Golden
    words: Sequence[str]
    shape: Shape
    timeout: timedelta  # for the command
    boot_timeout: timedelta = timedelta(minutes=5)
    snapshot: bool = True  # the machine may be a clone, where there is a snapshot that works
    network: str = Reach.INTERNET  # the policy that says what it reaches
    boothook: bool = False  # see seed.exec_script
    hosts: str = ""  # see seed.exec_script
    machine: MachineId | None = None  # its name; None: a new one


def run(
    hypervisor: Hypervisor,
    settings: HostConfig,
    command: Command,
    *,
    write: Callable[[Output, bytes], None],
    say: Say,
    started: Callable[[MachineId], None] = lambda _: None,
) -> int:
    """Run the command and return its exit code. `write` gets its output as it comes, from two
    threads; `started` is told the machine's name.

    Raises MachineError when the guest doesn't come up, or the command doesn't end in time. However
    this ends, the machine is destroyed.
    """
    machine, golden = command.machine or fresh(settings), command.golden
    addresses = settings.addresses()
    with ExitStack() as stack:
        with claiming(hypervisor, settings, golden, machine, until=stack, say=say):
            address = addresses.take(machine)
        stack.callback(addresses.release, machine, hypervisor.vacate)
        stack.callback(_destroy, hypervisor.machines, machine, say)
        metadata = Metadata(
            machine,
            "",
            golden.id,
            time.time(),
            address=str(address),
            network=command.network,
            tools=golden.tools_id,
        )
        wanted = Launch(
            metadata,
            golden,
            command.shape,
            addresses.beside(address),
            shelf=Shelf(settings.state_dir) if command.snapshot else None,
        )
        end = secrets.token_hex(16)
        script = seed.exec_script(
            command.words,
            command.timeout,
            end,
            boothook=command.boothook,
            tools=bool(golden.tools),
            hosts=command.hosts,
        )
        is_clone = bool(launch.start(hypervisor, wanted, script).snapshot)
        hint = "; `vmrunner snapshot create` lets the next ones start at once"
        how = "cloned" if is_clone else f"booting{hint if command.snapshot else ''}"
        say(f"machine {machine}: {how}")
        started(machine)
        readers = [
            threading.Thread(
                target=_copy, args=(hypervisor.machines, machine, port, end, write), daemon=True
            )
            for port in Output
        ]
        for reader in readers:
            reader.start()
        ended = _wait(
            hypervisor.machines,
            machine,
            readers[0],
            command.boot_timeout.total_seconds(),
            command.timeout.total_seconds(),
        )
        for reader in readers:
            reader.join(_POWER_OFF)
        if ended is None or not ended.text.isdigit():
            raise MachineError(
                "The machine ended before the command did.",
                console=_console(hypervisor.machines, machine),
            )
        return int(ended.text)


def _destroy(machines: Machines, machine: MachineId, say: Say) -> None:
    machines.destroy(machine)
    say(f"machine {machine}: destroyed")


class _Until:
    """Passes on the bytes that come before a word; calling it returns true once the word has
    come.
    """

    def __init__(self, word: bytes, write: Callable[[bytes], None]) -> None:
        self._word, self._write, self._held = word, write, b""

    def __call__(self, chunk: bytes) -> bool:
        before, found, _ = (self._held + chunk).partition(self._word)
        # What the chunk ends with may be the word's beginning.
        held = (
            0
            if found
            else next(
                (n for n in range(len(self._word) - 1, 0, -1) if before.endswith(self._word[:n])), 0
            )
        )
        self._held = before[len(before) - held :]
        if len(before) > held:
            self._write(before[: len(before) - held])
        return bool(found)

    def finish(self) -> None:
        """The word will not come any more."""
        if self._held:
            self._write(self._held)


def _copy(
    machines: Machines,
    machine: MachineId,
    port: Output,
    end: str,
    write: Callable[[Output, bytes], None],
) -> None:
    until = _Until(end.encode(), lambda chunk: write(port, chunk))
    machines.stream(machine, port, until)
    until.finish()


def _wait(
    machines: Machines,
    machine: MachineId,
    reader: threading.Thread,
    boot: float,
    timeout: float,
) -> GuestEvent | None:
    """The end of the command as the guest told it, or None where the machine went before.

    Deadlines run on our clock.
    """
    deadline, up = Deadline(boot), False
    while True:
        alive = machines.alive(machine)
        seen = Machine(machine, alive, events=parse_events(machines.read(machine, File.EVENTS)))
        if (ended := seen.event(EventKind.EXIT)) or not alive:
            return ended
        if deadline.is_over:
            what = (
                f"The command did not end within {timeout:.0f} s."
                if up
                else f"The guest did not come up within {boot:.0f} s."
            )
            raise MachineError(what, console=_console(machines, machine))
        if not up and seen.event(EventKind.RUNNER):
            deadline, up = Deadline(timeout + _POWER_OFF), True
        # The output's end comes right before the word that the command has ended.
        reader.join(_POLL) if reader.is_alive() else deadline.pause(_SOON)


def _console(machines: Machines, machine: MachineId) -> str:
    return machines.read(machine, File.CONSOLE).decode("utf-8", "replace")
