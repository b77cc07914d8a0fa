"""A conversation with a machine, through libvirt: its console, or the port of its door.

The connection is one of its own. Its stream is closed by libvirt when this process ends, however
that happens, and the guest sees it.
"""

from __future__ import annotations

import queue
from contextlib import suppress

import libvirt

from vmrunner.errors import HypervisorError, Occupied
from vmrunner.hypervisor import events
from vmrunner.hypervisor.connection import asking, connect
from vmrunner.hypervisor.seam import Way
from vmrunner.model.machine import MachineId
from vmrunner.waiting import Deadline

_NOT_NOW = -2  # what libvirt's streams answer where they would have to wait
_TAKEN_WITHIN = 30.0  # seconds that a machine has to take what is said to it
_TAKEN = "stream exists"  # libvirt has no code for it: "Active channel stream exists"
_UNKNOWN = ("cannot find", "is not using a PTY")  # nor for a device that the domain has not


class LibvirtTalk:
    """The Talk of the seam. All calls but those of `say` are made by the thread of libvirt's
    events: see THREADS_MAY_SHARE.
    """

    def __init__(self, uri: str, machine: MachineId, way: Way) -> None:
        events.start()
        self._machine = machine
        self._heard: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._is_over = False
        self._connection = connect(uri)
        try:
            self._open(way)
        except BaseException:
            self.close()
            raise

    def _open(self, way: Way) -> None:
        with asking(f"speaking with {self._machine}"):
            self._connection.setKeepAlive(5, 3)
            domain = self._connection.lookupByName(str(self._machine))
            self._stream = self._connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
            try:
                if way is Way.CONSOLE:
                    domain.openConsole(None, self._stream, 0)
                else:
                    domain.openChannel(f"org.vmrunner.{way}", self._stream, 0)
            except libvirt.libvirtError as error:
                said = str(error)
                if _TAKEN in said or "session exists" in said:
                    raise Occupied(
                        f"Somebody is at the {way} of {self._machine} already.",
                        "One at a time: end the other one.",
                    ) from None
                if any(words in said for words in _UNKNOWN):
                    raise HypervisorError(
                        f"{self._machine} has no {way}: an older vmrunner made it.",
                        "Machines that are made from now on have one.",
                    ) from None
                raise
            wanted = (
                libvirt.VIR_STREAM_EVENT_READABLE
                | libvirt.VIR_STREAM_EVENT_ERROR
                | libvirt.VIR_STREAM_EVENT_HANGUP
            )
            self._stream.eventAddCallback(wanted, self._take, None)

    def _take(self, stream: libvirt.virStream, _events: int, _data: object) -> None:
        """All that has come; called by libvirt."""
        try:
            while (chunk := stream.recv(1 << 16)) != _NOT_NOW:
                self._heard.put(chunk)
                if not chunk:
                    break
            else:
                return
        except libvirt.libvirtError:
            self._heard.put(b"")
        with suppress(libvirt.libvirtError):
            stream.eventRemoveCallback()

    def hear(self, seconds: float) -> bytes | None:
        """What it says next."""
        if self._is_over:
            return b""
        try:
            chunk = self._heard.get(timeout=seconds)
        except queue.Empty:
            return None
        self._is_over = not chunk
        return chunk

    def say(self, data: bytes) -> None:
        """Say all of this."""
        deadline = Deadline(_TAKEN_WITHIN)
        with asking(f"speaking with {self._machine}", is_long=True):
            while data:
                taken = self._stream.send(data)
                if taken == _NOT_NOW:
                    if deadline.is_over:
                        raise HypervisorError(f"{self._machine} takes nothing any more.", "")
                    deadline.pause(0.01)
                    continue
                data = data[taken:]

    def close(self) -> None:
        """Leave it."""
        self._is_over = True
        with suppress(libvirt.libvirtError, AttributeError):
            self._stream.abort()
        with suppress(libvirt.libvirtError):
            self._connection.close()
