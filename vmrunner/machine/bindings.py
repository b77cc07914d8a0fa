"""Bindings: which live machine holds which runner's credentials, kept so that the manager can speak
for a machine that died.

One owner-only file for each machine in the runtime folder, which is a tmpfs: a reboot takes the
machines and the credentials together.
"""

from __future__ import annotations

import json
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ConfigError
from vmrunner.model.binding import Binding
from vmrunner.model.job import Credentials, Scope
from vmrunner.model.machine import MachineId

_SUFFIX = ".binding"
# One is written as a whole or not at all, so what raises one of these is not ours to mend.
_DAMAGED = (ValueError, KeyError, TypeError, ConfigError)
_HALVES = (f"{files.PART}*", "*.part")  # what is being written; the second is an older vmrunner's


class Bindings:
    """The folder of bindings, which the first one makes."""

    def __init__(self, runtime_dir: Path, manager: str) -> None:
        self._manager = manager
        self._folder = runtime_dir / "bindings"
        self._damaged: set[MachineId] = set()

    def _path(self, machine: MachineId) -> Path:
        return self._folder / f"{machine}{_SUFFIX}"

    def save(self, binding: Binding) -> None:
        """Write one, all of it or nothing of it."""
        plain = {
            "pool": binding.pool,
            "scope": str(binding.scope),
            "job": binding.job_key,
            "id": binding.credentials.id,
            "uuid": binding.credentials.uuid,
            "token": binding.credentials.token,
            "ending": binding.ending,
            "reason": binding.reason,
            "worked": binding.worked,
            "repository": binding.repository,
            "bound_at": binding.bound_at,
        }
        path = self._path(binding.machine)
        try:
            files.make_folder(self._folder, 0o700)
            files.write_whole(path, json.dumps(plain), 0o600)
        except OSError as error:
            raise ConfigError(
                f"The file {path} can't be written: {error.strerror}.",
                "Check runtime_dir: its owner, its space.",
            ) from None

    def find(self, machine: MachineId) -> Binding | None:
        """One machine's; None where there is none that can be read. Changes nothing."""
        try:
            return self._read(machine)
        except OSError:
            return None
        except _DAMAGED:
            self._damaged.add(machine)
            return None

    def _read(self, machine: MachineId) -> Binding:
        plain = json.loads(self._path(machine).read_bytes())
        credentials = Credentials(int(plain["id"]), str(plain["uuid"]), str(plain["token"]))
        scope = Scope.parse(plain["scope"])
        return Binding(
            machine,
            plain["pool"],
            scope,
            plain["job"],
            credentials,
            plain["ending"],
            plain["reason"],
            bool(plain.get("worked", False)),  # an older vmrunner's has none of these
            str(plain.get("repository", "")),
            float(plain.get("bound_at", 0.0)),
        )

    def all(self) -> tuple[Binding, ...]:
        """Every binding of this manager that can be read."""
        names = sorted(path.name for path in self._folder.glob(f"*{_SUFFIX}"))
        machines = (MachineId.of(self._manager, name) for name in names)
        return tuple(found for machine in machines if machine and (found := self.find(machine)))

    def sweep(self) -> None:
        """Delete what a killed process had not written to its end: it may hold a token.

        Call it under the manager's lock.
        """
        for pattern in _HALVES:
            for part in self._folder.glob(pattern):
                part.unlink(missing_ok=True)

    def drop_damaged(self) -> None:
        """Forget those that could not be read: the runner's record at the forge is swept as a
        stray. Call it under the manager's lock.
        """
        while self._damaged:
            self.drop(self._damaged.pop())

    def drop(self, machine: MachineId) -> None:
        """Forget one; one that is gone is fine."""
        self._path(machine).unlink(missing_ok=True)
