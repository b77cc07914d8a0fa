"""What libvirt tells by itself: its event loop, in a thread of its own, delivers the events and the
keepalive of every connection opened after `start`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container
from contextlib import suppress
from typing import Any

import libvirt

from vmrunner.model.machine import MachineId
from vmrunner.waiting import Deadline

_ENDS = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "its QEMU process died",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "its QEMU process died",
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "its domain was destroyed from outside vmrunner",
}
_started = threading.Lock()


def start() -> None:
    """Start the loop once per process. Call it before the first connection is opened."""
    if not _started.acquire(blocking=False):
        return
    libvirt.virEventRegisterDefaultImpl()

    def run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()

    # It ends with the process: nothing of it has to be put away.
    threading.Thread(target=run, name="libvirt-events", daemon=True).start()


class Events:
    """Starts and ends of one manager's machines. The loop's thread writes down how each ended."""

    def __init__(self, manager: str) -> None:
        self._manager = manager
        # Called from the loop's thread at each start and end; None: nobody listens.
        self.wake: Callable[[], None] | None = None
        # How machines ended; empty: by themselves, or unknown.
        self._ends: dict[MachineId, str] = {}
        self._heard: tuple[Any, int] | None = None

    def listen(self, connection: Any) -> None:
        """Hear of what this connection tells, and of no other, if anybody is to be woken."""
        self._leave()
        if self.wake:
            # Without keepalive a host that vanished from the network would be waited for by the
            # hour.
            connection.setKeepAlive(5, 3)
            callback = connection.domainEventRegisterAny(
                None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None
            )
            self._heard = connection, callback

    def _leave(self) -> None:
        """A connection that somebody listens to stays open, whoever closes it."""
        if self._heard:
            connection, callback = self._heard
            self._heard = None
            with suppress(libvirt.libvirtError):  # it is lost
                connection.domainEventDeregisterAny(callback)

    def close(self) -> None:
        """Wake nobody any more, and hear of nothing."""
        self.wake = None
        self._leave()

    def _lifecycle(
        self, _connection: Any, domain: Any, event: int, detail: int, _data: object
    ) -> None:
        machine = MachineId.of(self._manager, domain.name())
        if machine is None:
            return
        if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
            self._ends[machine] = _ENDS.get(detail, "")
        if self.wake:
            self.wake()

    def end_of(self, machine: MachineId, told_by: Deadline) -> str:
        """How a machine that is gone has ended.

        libvirt forgets it a moment before it tells: that is waited for, once.
        """
        while self.wake and machine not in self._ends and not told_by.is_over:
            told_by.pause(0.005)
        return self._ends.setdefault(machine, "")

    def forget(self, machine: MachineId) -> None:
        """Forget how a machine ended that is not looked at again."""
        self._ends.pop(machine, None)

    def keep(self, machines: Container[MachineId]) -> None:
        """Forget all but these."""
        for gone in [machine for machine in list(self._ends) if machine not in machines]:
            self.forget(gone)
