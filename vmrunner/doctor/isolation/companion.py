"""A machine that runs beside others and says something line by line."""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

from vmrunner.doctor.isolation.lab import Lab
from vmrunner.errors import MachineError, VmrunnerError
from vmrunner.model.machine import MachineId
from vmrunner.network.policy import Reach


class Companion:
    """One of our probes in a machine of its own, until it is closed.

    Raises MachineError where it ends before its first line.
    """

    def __init__(
        self,
        lab: Lab,
        program: str,
        *arguments: str,
        policy: str = Reach.NONE,
        machine: MachineId | None = None,
    ) -> None:
        self._host, self._own = lab.open_host(), lab.open_host()
        self._machine: MachineId | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        self._text = b""
        self._failure: VmrunnerError | None = None
        self._thread = threading.Thread(
            target=self._live, args=(lab, program, arguments, policy, machine), daemon=True
        )
        self._thread.start()
        while True:
            with suppress(queue.Empty):
                self.first = self._lines.get(timeout=0.5)
                return
            if not self._thread.is_alive():
                raise self._failure or MachineError(
                    f"{program} ended before it had said anything.", "Has the image Python?"
                )

    def _live(
        self,
        lab: Lab,
        program: str,
        arguments: tuple[str, ...],
        policy: str,
        machine: MachineId | None,
    ) -> None:
        try:
            lab.run(
                program,
                *arguments,
                write=self._hear,
                policy=policy,
                machine=machine,
                host=self._own,
                started=self._began,
            )
        except VmrunnerError as error:  # its end is always one: it runs until it is destroyed
            self._failure = error

    def _began(self, machine: MachineId) -> None:
        self._machine = machine

    def _hear(self, chunk: bytes) -> None:
        *lines, self._text = (self._text + chunk).split(b"\n")
        for line in lines:
            self._lines.put(line.decode(errors="replace"))

    def lines(self) -> list[str]:
        """What it has said since it was asked last."""
        said = []
        with suppress(queue.Empty):
            while True:
                said.append(self._lines.get_nowait())
        return said

    def close(self) -> None:
        """Destroy it."""
        if self._machine is not None:
            # Whoever waits for its end destroys it, too, and one finds files that are gone.
            with suppress(VmrunnerError):
                self._host.machines.destroy(self._machine)
        self._thread.join()
        if self._machine is not None:
            self._host.machines.destroy(self._machine)
        self._host.close()
        self._own.close()
