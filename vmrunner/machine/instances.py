"""Which machine is which instance of GARM's: one file for each in the state folder, written before
anything of the machine exists and removed after all of it is gone.

GARM makes these machines and ends them; passes leave the living ones alone. A domain takes its
metadata along when it powers off, and GARM asks for its machine by name even then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from vmrunner import files, lock
from vmrunner.errors import ConfigError
from vmrunner.model.machine import Machine, MachineId
from vmrunner.model.moment import Moment

_FOLDER = "garm"
_SUFFIX = ".json"


@dataclass(frozen=True)
class Instance:
    """One of them. Texts are GARM's own words, but for `image` (name/version)."""

    machine: MachineId
    name: str
    controller: str
    pool: str
    flavor: str
    image: str
    os_name: str = ""
    os_version: str = ""
    arch: str = ""
    address: str = ""  # without its prefix length
    scope: str = ""  # where its runner is registered, as the configuration spells it
    runner_id: int = 0  # 0 until it is registered
    created_at: float = 0.0  # unix seconds
    # When its flavor's lifetime is over, by the clock that nobody sets, and in which boot that is.
    ends_at: float = 0.0
    boot: str = ""
    is_made: bool = False  # its creation was completed

    def is_late(self, moment: Moment) -> bool:
        """Whether its lifetime is over."""
        return self.boot == moment.boot and moment.steady > self.ends_at

    @property
    def owner(self) -> str:
        """What status, history and figures show as its pool."""
        return owner(self.controller, self.pool)


@dataclass(frozen=True)
class Lent:
    """One of them, and its machine as it is now."""

    instance: Instance
    machine: Machine


def owner(controller: str, pool: str) -> str:
    """A pool of GARM's among our own ones."""
    return f"garm:{controller}:{pool}"


def machine_of(manager: str, host: str, controller: str, name: str) -> MachineId:
    """The machine of this name. It follows from the name alone, so that whatever a killed process
    has left is found by it.
    """
    return MachineId.derived(manager, host, f"garm {controller} {name}")


class Instances:
    """The folder of them. Raises ConfigError where it can't be written."""

    def __init__(self, state_dir: Path, runtime_dir: Path, manager: str) -> None:
        self._folder, self._locks, self._manager = state_dir / _FOLDER, runtime_dir, manager

    def _path(self, machine: MachineId) -> Path:
        return self._folder / f"{machine}{_SUFFIX}"

    def save(self, instance: Instance) -> None:
        """Write one, all of it or nothing of it."""
        path = self._path(instance.machine)
        plain = asdict(instance) | {"machine": str(instance.machine)}
        try:
            files.make_folder(path.parent)
            files.write_whole(path, json.dumps(plain))
        except OSError as error:
            raise ConfigError(
                f"The file {path} can't be written: {error.strerror}.",
                "Check state_dir: its owner, its space.",
            ) from None

    def find(self, machine: MachineId) -> Instance | None:
        """One; None where there is none that can be read."""
        try:
            plain = json.loads(self._path(machine).read_bytes())
            return Instance(**{**plain, "machine": machine})
        except OSError:
            return None
        except (ValueError, TypeError):
            return None  # its files are a machine's without a name: a pass sweeps them

    def all(self) -> tuple[Instance, ...]:
        """Every one of this manager."""
        names = sorted(path.name for path in self._folder.glob(f"*{_SUFFIX}"))
        machines = (MachineId.of(self._manager, name) for name in names)
        return tuple(found for machine in machines if machine and (found := self.find(machine)))

    def drop(self, machine: MachineId) -> None:
        """Forget one; one that is gone is fine."""
        self._path(machine).unlink(missing_ok=True)

    def held(self, machine: MachineId, wait: float) -> AbstractContextManager[None]:
        """One call at a time for each instance; raises Busy after `wait` seconds.

        Some share a lock, so that there are no more than 256 files.
        """
        with suppress(OSError):  # the lock says it
            files.make_folder(self._locks / _FOLDER)
        return lock.held(
            self._locks / _FOLDER / f"{machine.serial[:2]}.lock",
            f"Another call is at work on {machine}",
            "Try again.",
            wait=wait,
            say=lambda _: None,
        )


def lent(machines: Iterable[Machine], instances: Iterable[Instance]) -> frozenset[MachineId]:
    """Those of these machines that are GARM's."""
    named = {instance.machine for instance in instances}
    return frozenset(
        machine.id
        for machine in machines
        if machine.id in named or (machine.metadata is not None and machine.metadata.instance)
    )
