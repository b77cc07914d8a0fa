"""`vmrunner exec`: one command in a throwaway machine, without a forge.

The process that made the machine owns it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta

from vmrunner import lock
from vmrunner.config import HostConfig
from vmrunner.errors import MachineError
from vmrunner.hypervisor.seam import File, Hypervisor, Output
from vmrunner.log import Say
from vmrunner.machine import clones, seed
from vmrunner.machine.ownership import LOCK_WAIT, owning, sweep
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
from vmrunner.network.addresses import Addresses
from vmrunner.network.policy import Reach
from vmrunner.waiting import Deadline

_POLL = 0.2  # seconds
_SOON = 0.01  # seconds
_POWER_OFF = 10.0  # seconds from the guest's own deadline to ours


def run(
    hypervisor: Hypervisor,
    settings: HostConfig,
    golden: Golden,
    command: Sequence[str],
    *,
    shape: Shape,
    boot_timeout: timedelta,
    timeout: timedelta,
    snapshot: bool = True,
    network: str = Reach.INTERNET,
    write: Callable[[Output, bytes], None],
    say: Say,
    started: Callable[[MachineId], None] = lambda _: None,
    boothook: bool = False,
    machine: MachineId | None = None,
) -> int:
    """Run the command and return its exit code. `write` gets its output as it comes, from two
    threads.

    The machine is cloned from a snapshot if there is one that works, unless `snapshot` is false. It
    reaches what the policy `network` says. `started` is told its name, which is a new one unless
    `machine` says otherwise. `boothook`: see seed.exec_script.

    Raises MachineError when the guest doesn't come up, or the command doesn't end in time. However
    this ends, the machine is destroyed.
    """
    machine = machine or MachineId.new(hypervisor.manager)
    with ExitStack() as stack:
        with lock.exclusive(settings.runtime_dir, settings.manager, wait=LOCK_WAIT, say=say):
            sweep(hypervisor, settings.runtime_dir)
            stack.enter_context(owning(settings.runtime_dir, machine))
            hypervisor.prepare(golden)
            addresses = Addresses(
                settings.runtime_dir, settings.libvirt.subnet, settings.network.ipv6
            )
            address = addresses.take(machine)
        stack.callback(_destroy, hypervisor, machine, say)
        metadata = Metadata(
            machine, "", golden.id, time.time(), address=str(address), network=network
        )
        end = secrets.token_hex(16)
        script = seed.exec_script(command, timeout, end, boothook=boothook)
        clone = (
            clones.clone(hypervisor, clones.Shelf(settings.state_dir), golden, shape, metadata)
            if snapshot
            else None
        )
        if clone:
            hypervisor.bind(clone, seed.iso(machine, script, address, addresses.beside(address)))
            say(f"machine {machine}: cloned")
        else:
            hypervisor.create_overlay(machine, golden, shape.disk_gib)
            hypervisor.put(
                machine, File.SEED, seed.iso(machine, script, address, addresses.beside(address))
            )
            hypervisor.start(golden, shape, metadata)
            say(
                f"machine {machine}: booting"
                + (
                    "; `vmrunner snapshot create` lets the next ones start at once"
                    if snapshot
                    else ""
                )
            )
        started(machine)
        readers = [
            threading.Thread(
                target=_copy, args=(hypervisor, machine, port, end, write), daemon=True
            )
            for port in Output
        ]
        for reader in readers:
            reader.start()
        ended = _wait(
            hypervisor, machine, readers[0], boot_timeout.total_seconds(), timeout.total_seconds()
        )
        for reader in readers:
            reader.join(_POWER_OFF)
        if ended is None or not ended.text.isdigit():
            raise MachineError(
                "The machine ended before the command did.",
                console=_console(hypervisor, machine),
            )
        return int(ended.text)


def _destroy(hypervisor: Hypervisor, machine: MachineId, say: Say) -> None:
    hypervisor.destroy(machine)
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
    hypervisor: Hypervisor,
    machine: MachineId,
    port: Output,
    end: str,
    write: Callable[[Output, bytes], None],
) -> None:
    until = _Until(end.encode(), lambda chunk: write(port, chunk))
    hypervisor.stream(machine, port, until)
    until.finish()


def _wait(
    hypervisor: Hypervisor,
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
        alive = hypervisor.alive(machine)
        seen = Machine(machine, alive, events=parse_events(hypervisor.read(machine, File.EVENTS)))
        if (ended := seen.event(EventKind.EXIT)) or not alive:
            return ended
        if deadline.is_over:
            what = (
                f"The command did not end within {timeout:.0f} s."
                if up
                else f"The guest did not come up within {boot:.0f} s."
            )
            raise MachineError(what, console=_console(hypervisor, machine))
        if not up and seen.event(EventKind.RUNNER):
            deadline, up = Deadline(timeout + _POWER_OFF), True
        # The output's end comes right before the word that the command has ended.
        reader.join(_POLL) if reader.is_alive() else deadline.pause(_SOON)


def _console(hypervisor: Hypervisor, machine: MachineId) -> str:
    return hypervisor.read(machine, File.CONSOLE).decode("utf-8", "replace")
