"""Machines that GARM made: how they end, be it by GARM's word, by themselves, or by their age.

The provider and every pass do that alike; both write the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmrunner.errors import Busy, HypervisorError
from vmrunner.hypervisor.seam import File, Hypervisor
from vmrunner.machine import ownership
from vmrunner.machine.instances import Instance, Instances
from vmrunner.manager.history import History
from vmrunner.manager.logbook import Logbook
from vmrunner.manager.record import Ran, Record
from vmrunner.manager.stream import of_guest
from vmrunner.model.binding import Binding
from vmrunner.model.entry import Entry
from vmrunner.model.job import Credentials, Scope
from vmrunner.model.machine import Ending, EventKind, Machine, MachineId, parse_events
from vmrunner.model.moment import Moment
from vmrunner.network.addresses import Addresses


@dataclass(frozen=True)
class Ender:
    """Ends them. `asks`: a pass of this host asks the forge which job ran on each."""

    hypervisor: Hypervisor
    instances: Instances
    addresses: Addresses
    history: History
    asks: bool
    runtime_dir: Path
    logbook: Logbook  # keeps what they say

    def end(self, machine: MachineId, at: float, wanted: Ending, reason: str) -> Record | None:
        """Destroy the machine and forget the instance, whether there is anything of it or not.
        `wanted` is how a living one ends. Call it with the instance held.
        """
        instance = self.instances.find(machine)
        if instance:
            ending, reason = self._ending(instance, wanted, reason)
            seen = self._seen(machine)
            log_bytes = self._keep_log(instance, at)
        self.hypervisor.machines.destroy(machine)
        ownership.forget(self.runtime_dir, machine)
        self.addresses.release(machine, self.hypervisor.vacate)
        record = None
        if instance:
            binding = _binding(instance)
            ran = Ran.NO
            if binding:
                ran = Ran.ASKED if self.asks else Ran.UNKNOWN
            record = self.history.ended(
                machine, seen, ending, reason, at, binding, ran, log_bytes=log_bytes
            )
        self.instances.drop(machine)
        return record

    def settle(self, moment: Moment, owned: Sequence[MachineId] = ()) -> list[Record]:
        """End those that are over by themselves: powered off, killed in their making, or too old.
        `owned` are those that somebody makes just now. Call it under the manager's lock.
        """
        ended = []
        for instance in self.instances.all():
            machine = instance.machine
            if machine in owned:
                continue
            is_whole = instance.is_made and self.hypervisor.machines.alive(machine)
            if is_whole and not instance.is_late(moment):
                continue
            with suppress(Busy), self.instances.held(machine, 0.0):
                said = "its flavor's lifetime was over"
                if record := self.end(machine, moment.now, Ending.JOB_TIMEOUT, said):
                    ended.append(record)
        return ended

    def _keep_log(self, instance: Instance, at: float) -> int:
        """Keep what its guest has said; whatever can't be read keeps no machine alive."""
        said: list[Entry] = []
        with suppress(HypervisorError):
            machines = self.hypervisor.machines
            said = of_guest(machines, instance.machine, instance.created_at, at)
        return self.logbook.keep(str(instance.machine), said)

    def _seen(self, machine: MachineId) -> Machine:
        raw = self.hypervisor.machines.read(machine, File.EVENTS)
        alive = self.hypervisor.machines.alive(machine)
        return Machine(machine, alive, events=parse_events(raw))

    def _ending(self, instance: Instance, wanted: Ending, reason: str) -> tuple[Ending, str]:
        seen = self._seen(instance.machine)
        if last := seen.event(EventKind.EXIT):
            said = "" if last.text == "0" else f"its runner ended (exit {last.text or '?'})"
            return (Ending.DIED, said) if said else (Ending.DONE, "")
        if not instance.is_made:
            return Ending.ABANDONED, "its creation did not come to its end"
        if not seen.alive:
            return Ending.DIED, "it went without a last word from its guest"
        return wanted, reason


def _binding(instance: Instance) -> Binding | None:
    """Its runner, as the history asks for its job."""
    if not instance.runner_id:
        return None
    return Binding(
        instance.machine,
        instance.owner,
        Scope.parse(instance.scope),
        credentials=Credentials(instance.runner_id, "", ""),
    )
