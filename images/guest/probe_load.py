"""Runs inside a machine. `work` works for ever and prints how many seconds each unit of it took;
`attack KIND` takes all it can get.

Stands alone, with Python's own library.
"""

import contextlib
import hashlib
import os
import sys
import threading
import time

BLOCK = bytes(1 << 20)
# Bytes that are written again and again: enough for every cache, and not all of the host's disk.
FILL = 2 << 30
EVENTS, CONSOLE = "/dev/virtio-ports/org.vmrunner.events", "/dev/console"


def work() -> None:
    """What a job does: it computes, and now and then it writes a file."""
    while True:
        began = time.monotonic()
        for _ in range(4):
            hashlib.sha256(BLOCK).digest()
        with open("/work", "wb") as file:
            file.write(BLOCK)
        print(time.monotonic() - began, flush=True)


def fork() -> None:
    """Processes that make processes."""
    while True:
        with contextlib.suppress(OSError):
            os.fork()


def memory() -> None:
    """All of it, again after each time that the kernel has had enough."""
    while True:
        if os.fork() == 0:
            kept = []
            while True:
                block = bytearray(16 << 20)
                block[::4096] = b"x" * len(block[::4096])
                kept.append(block)
        os.wait()


def disk() -> None:
    """As fast as it goes, past the page cache."""
    while True:
        with open("/filled", "wb") as file:
            for _ in range(FILL // len(BLOCK)):
                try:
                    file.write(BLOCK)
                    os.fdatasync(file.fileno())
                except OSError:  # it is full
                    break


def log() -> None:
    """On the console and in the reports at once."""
    line = b"x" * 70 + b"\n"

    def flood(path: str) -> None:
        with open(path, "wb", buffering=0) as file:
            while True:
                file.write(line * 50)

    for path in (EVENTS, CONSOLE):
        threading.Thread(target=flood, args=(path,)).start()


ATTACKS = {"fork": fork, "memory": memory, "disk": disk, "log": log}


def main() -> None:
    """The command line."""
    if sys.argv[1] == "work":
        work()
    print("begun", flush=True)
    ATTACKS[sys.argv[2]]()


if __name__ == "__main__":
    main()
