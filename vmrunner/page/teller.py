"""What the guests of living machines say, for the page's process, which has started this one:
`python -m vmrunner.page.teller`. Here libvirt is asked, and the runners' tokens are known, which no
line may show: the page's own process, which strangers' requests come to, needs neither.

Each line that is read is a question, each answer a line with its size, and then the log's lines as
the logbook writes them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import BinaryIO

from vmrunner import beside
from vmrunner.config import Config
from vmrunner.errors import HypervisorError
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.seam import Hypervisor
from vmrunner.log import Log
from vmrunner.manager import logbook, stream
from vmrunner.model.machine import MachineId


class Teller:
    """Asks libvirt, anew after an error. `connect` raises HypervisorError."""

    def __init__(self, settings: Config, connect: Callable[[], Hypervisor]) -> None:
        self._settings, self._connect = settings, connect
        self._host: Hypervisor | None = None

    def tell(self, name: str, began: float) -> tuple[bytes, str]:
        """The lines of the guest of this machine, which was made at `began`; and what is wrong."""
        machine = MachineId.parse(name)
        if machine is None:
            return b"", ""
        secret = stream.token(self._settings, machine)
        try:
            self._host = self._host or self._connect()
            machines = self._host.machines
            said = stream.of_guest(machines, machine, began, time.time(), secret, lives=True)
        except HypervisorError as error:
            self.close()
            return b"", error.sentence
        return logbook.plain(said), ""

    def close(self) -> None:
        """End the connection."""
        if self._host:
            self._host.close()
        self._host = None


def answer(teller: Teller, question: bytes, out: BinaryIO) -> None:
    """Answer one question."""
    name, began = json.loads(question)
    lines, problem = teller.tell(str(name), float(began))
    out.write(json.dumps([len(lines), problem]).encode() + b"\n" + lines)
    out.flush()


def _questions() -> Iterator[bytes]:
    """Each line of standard input. At its end the process ends, also while libvirt keeps it
    waiting.
    """
    asked: SimpleQueue[bytes] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            asked.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield asked.get()


def run(settings: Config, _: Log) -> None:
    """Answer until nobody asks any more."""
    teller = Teller(settings, lambda: open_host(settings, lambda _: None))
    for question in _questions():
        answer(teller, question, sys.stdout.buffer)


if __name__ == "__main__":
    sys.exit(beside.main(run))
