"""Machines that belong to one process (`vmrunner exec`, the making of a snapshot).

Passes leave them alone while it lives, and sweep them after.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vmrunner import files, lock
from vmrunner.config import HostConfig
from vmrunner.errors import ConfigError
from vmrunner.hypervisor.seam import Hypervisor
from vmrunner.log import Say
from vmrunner.model.image import Golden
from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import Addresses

LOCK_WAIT = 60.0
"""Seconds that such a process waits for a pass to end."""
_FOLDER = "exec"


@contextmanager
def claiming(
    hypervisor: Hypervisor,
    settings: HostConfig,
    golden: Golden,
    machine: MachineId,
    *,
    until: ExitStack,
    say: Say,
) -> Iterator[None]:
    """Bring the image to the host for a machine that this process owns, `until` it lets go of it.

    In the block no pass is at work: what a pass would sweep is noted there.
    """
    with lock.exclusive(settings.runtime_dir, settings.manager, wait=LOCK_WAIT, say=say):
        sweep(hypervisor, settings.runtime_dir, settings.addresses())
        until.enter_context(owning(settings.runtime_dir, machine))
        hypervisor.prepare(golden, say)
        yield


@contextmanager
def owning(runtime_dir: Path, machine: MachineId) -> Iterator[None]:
    """A lock file named after the machine, held while this process lives; it tells `sweep` who is
    still at work.
    """
    path = runtime_dir / _FOLDER / f"{machine}.lock"
    try:
        files.make_folder(path.parent)
        file = path.open("x")
        files.hand_over(file.fileno(), path.parent)
    except OSError as error:
        raise ConfigError(
            f"The lock {path} can't be made: {error.strerror}.", "Run as root, or set runtime_dir."
        ) from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def owned(manager: str, runtime_dir: Path) -> set[MachineId]:
    """The machines whose process lives."""
    return {
        machine
        for path in _locks(runtime_dir)
        if (machine := MachineId.of(manager, path.name)) and not _is_free(path)
    }


def sweep(hypervisor: Hypervisor, runtime_dir: Path, addresses: Addresses) -> None:
    """Destroy the machines whose process was killed, and give back their addresses. Call it under
    the manager's lock.
    """
    for path in _locks(runtime_dir):
        machine = MachineId.of(hypervisor.manager, path.name)
        if machine and _is_free(path):
            hypervisor.machines.destroy(machine)
            addresses.release(machine, hypervisor.vacate)
            path.unlink(missing_ok=True)


def forget(runtime_dir: Path, machine: MachineId) -> None:
    """Remove the lock of a machine that is destroyed, where its process was killed."""
    path = runtime_dir / _FOLDER / f"{machine}.lock"
    if _is_free(path):
        path.unlink(missing_ok=True)


def _locks(runtime_dir: Path) -> list[Path]:
    return sorted((runtime_dir / _FOLDER).glob("*.lock"))


def _is_free(path: Path) -> bool:
    """Whether the process that held this lock file is gone."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return True
