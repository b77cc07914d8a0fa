"""Snapshots: how one is made, and which ones are not to be used any more."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vmrunner import files, lock
from vmrunner.config import HostConfig
from vmrunner.errors import SnapshotError
from vmrunner.hypervisor.seam import Hypervisor, Snapshot, Snapshots
from vmrunner.log import Say
from vmrunner.machine import seed
from vmrunner.machine.identity import fresh
from vmrunner.machine.ownership import claiming
from vmrunner.model.image import Golden
from vmrunner.model.machine import Shape
from vmrunner.waiting import retry_at

_FIRST_WAIT, _LONGEST_WAIT = 600.0, 86400.0  # seconds until one that failed is made again
_UNUSED = 7 * 86400.0  # seconds until one that no machine is cloned from goes
_USE_COUNTS = 60.0  # seconds; uses are written down once in this time


@dataclass(frozen=True)
class Failure:
    """Why a snapshot could not be made, or was given up."""

    cause: str
    count: int
    at: float  # unix seconds
    denied: bool = False  # by what guards the host


@dataclass
class _Memory:
    failed: dict[str, Failure]
    used: dict[str, float]  # unix seconds


class Shelf:
    """What is known about snapshots beside the files themselves, by key: failures and last uses,
    kept in `snapshots.json`.

    It is a memory only: it does without where the file can't be written, and of two processes that
    write at once one wins.
    """

    def __init__(self, state_dir: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self.clock = state_dir / "snapshots.json", clock
        self._lock = threading.Lock()

    def _read(self) -> _Memory:
        try:
            plain = json.loads(self._path.read_text(encoding="utf-8"))
            failed = {key: Failure(**each) for key, each in plain["failed"].items()}
            return _Memory(failed, {key: float(at) for key, at in plain["used"].items()})
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return _Memory({}, {})

    def _write(self, memory: _Memory) -> None:
        with suppress(OSError):
            files.write_whole(self._path, json.dumps(asdict(memory)))

    def again_at(self, failure: Failure) -> float:
        """When it is tried again, in unix seconds."""
        return retry_at(failure.at, failure.count, _FIRST_WAIT, _LONGEST_WAIT, self.clock())

    def failure(self, key: str) -> Failure | None:
        """Why this one is not used now."""
        failure = self._read().failed.get(key)
        return failure if failure and self.again_at(failure) > self.clock() else None

    def failed(self, key: str, error: SnapshotError) -> None:
        """Remember why."""
        with self._lock:
            memory = self._read()
            before = memory.failed.get(key)
            count = before.count + 1 if before else 1
            memory.failed[key] = Failure(error.sentence, count, self.clock(), error.denied)
            self._write(memory)

    def works(self, key: str) -> None:
        """A machine was cloned from it: forget its failures.

        That one could be made says nothing yet.
        """
        with self._lock:
            memory = self._read()
            if (
                memory.failed.pop(key, None)
                or abs(self.clock() - memory.used.get(key, 0.0)) > _USE_COUNTS
            ):
                memory.used[key] = self.clock()
                self._write(memory)

    def last_use(self, snapshot: Snapshot) -> float:
        """In unix seconds; making it counts."""
        return max(snapshot.made_at, self._read().used.get(snapshot.key, 0.0))


def prune(snapshots: Snapshots, shelf: Shelf, made: Snapshot) -> list[str]:
    """Drop those that no machine has been cloned from for a week, and those that do not fit this
    host any more: its QEMU and libvirt, its processor, its kernel.

    `made` was made just now. Machines that run keep their files open. Returns the keys.
    """
    old = [
        each.key
        for each in snapshots.all()
        if each.key != made.key
        and (
            (each.qemu, each.libvirt, each.basis) != (made.qemu, made.libvirt, made.basis)
            or shelf.clock() - shelf.last_use(each) > _UNUSED
        )
    ]
    for key in old:
        snapshots.drop(key)
    return old


def make(
    hypervisor: Hypervisor,
    settings: HostConfig,
    golden: Golden,
    shape: Shape,
    *,
    timeout: float,
    say: Say,
    clock: Callable[[], float] = time.time,
) -> Snapshot:
    """Make the snapshot for such machines. Its machine is owned by this process: passes leave it
    alone, and sweep it if we are killed.

    Raises SnapshotError and the like; nothing is left of the machine then.
    """
    machine, shelf = fresh(settings), Shelf(settings.state_dir, clock)
    key = hypervisor.snapshots.key(golden, shape)
    with lock.exclusive(
        settings.runtime_dir, f"{settings.manager}-snapshot", wait=timeout, say=say
    ):
        if found := hypervisor.snapshots.find(golden, shape):  # by another process meanwhile
            return found
        with ExitStack() as stack:
            with claiming(hypervisor, settings, golden, machine, until=stack, say=say):
                say(f"snapshot {key}: booting {machine}")
            try:
                made = hypervisor.snapshots.make(
                    golden, shape, machine, seed.waiting(machine), timeout, say
                )
            except SnapshotError as error:
                shelf.failed(key, error)
                raise
            finally:
                hypervisor.machines.destroy(machine)
        for old in prune(hypervisor.snapshots, shelf, made):
            say(f"snapshot {old}: dropped, nobody uses it any more")
        return made
