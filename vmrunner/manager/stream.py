"""The records of one machine, in the order of time: what the history, the logbook and, while it
lives, the host's storage have of it.
"""

from __future__ import annotations

from vmrunner.config import Config
from vmrunner.hypervisor.seam import File, Machines
from vmrunner.machine.bindings import Bindings
from vmrunner.manager.logbook import Logbook
from vmrunner.manager.record import Record
from vmrunner.manager.told import joined
from vmrunner.model import entry
from vmrunner.model.entry import Entry
from vmrunner.model.machine import MachineId, parse_events

# Bytes of each; the host keeps more.
_TAILS = {File.CONSOLE: 256 << 10, File.RUNNER_LOG: 512 << 10}
_MASK = b"***"


def stream(
    record: Record, logbook: Logbook, machines: Machines | None, now: float, secret: str = ""
) -> list[Entry]:
    """All records of a machine. Without `machines`, libvirt's, those of one that lives lack what
    its guest says. `secret` is its runner's token.
    """
    kept = logbook.entries(record.machine)
    machine = MachineId.parse(record.machine)
    guests: list[Entry] = []
    if machines and machine and not record.ending:
        guests = of_guest(machines, machine, record.created, now, secret, lives=True)
    return joined(record, kept, guests)


def token(settings: Config, machine: MachineId) -> str:
    """What is no line's to show: the token of a living machine's runner; empty where it has
    none.
    """
    binding = Bindings(settings.runtime_dir, settings.manager).find(machine)
    return binding.credentials.token if binding else ""


def of_guest(
    machines: Machines,
    machine: MachineId,
    began: float,
    now: float,
    secret: str = "",
    *,
    lives: bool = False,
) -> list[Entry]:
    """What a machine's guest has said until now, from the host's storage; none where there is
    nothing of it any more. A line that it has not finished is left out while it `lives`.
    """
    events = parse_events(machines.read(machine, File.EVENTS))
    console, runner = (
        _whole_lines(machines.said(machine, file, tail=tail), tail, lives=lives).replace(
            secret.encode() or _MASK, _MASK
        )
        for file, tail in _TAILS.items()
    )
    return entry.in_order(
        entry.guest(events, began, now),
        entry.console(console, began, now, events),
        entry.runner(runner, began, now),
    )


def _whole_lines(raw: bytes, tail: int, *, lives: bool) -> bytes:
    if len(raw) >= tail:
        raw = raw[raw.find(b"\n") + 1 :]
    return raw[: raw.rfind(b"\n") + 1] if lives else raw
