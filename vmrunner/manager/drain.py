"""What an admin has said of pools, beside the configuration and over restarts: which are taken
down, until `vmrunner up POOL`, and which keep their next machine whose job fails.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from vmrunner import files, lock
from vmrunner.errors import ConfigError

_LOCK_WAIT = 10.0  # seconds; it is held while a small file is read and written


class _Said:
    """A file in the state folder: pool -> a number. Each change is made under a lock of its own:
    who changes it waits for no pass, and two of them at once must not lose a pool.
    """

    name: ClassVar[str]

    def __init__(self, state_dir: Path) -> None:
        self._path, self._lock = state_dir / f"{self.name}.json", state_dir / f"{self.name}.lock"

    def pools(self) -> dict[str, float]:
        """Every pool in it. A file that can't be read has none."""
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return (
            {str(pool): float(at) for pool, at in found.items()} if isinstance(found, dict) else {}
        )

    def remove(self, pools: list[str]) -> None:
        """Forget these. Raises ConfigError where the file can't be written."""
        if not self.pools().keys() & set(pools):
            return
        with self._changing():
            self._write({pool: at for pool, at in self.pools().items() if pool not in pools})

    def _changing(self) -> AbstractContextManager[None]:
        other = f"Another vmrunner changes {self._path}"
        return lock.held(self._lock, other, "Try again.", wait=_LOCK_WAIT, say=lambda _: None)

    def _write(self, pools: dict[str, float]) -> None:
        try:
            files.write_whole(self._path, json.dumps(pools))
        except OSError as error:
            raise ConfigError(
                f"The file {self._path} can't be written: {error.strerror}.", "Check state_dir."
            ) from None


class Drained(_Said):
    """Pools that are down, and since when, in unix seconds."""

    name = "drained"

    def add(self, pools: list[str], now: float) -> None:
        """Take these down. Raises ConfigError where the file can't be written."""
        with self._changing():
            self._write(dict.fromkeys(pools, now) | self.pools())


class Catching(_Said):
    """Pools whose next machine with a failed job is kept, and for how many seconds."""

    name = "catching"

    def put(self, pool: str, seconds: float) -> None:
        """From now on. Raises ConfigError where the file can't be written."""
        with self._changing():
            self._write(self.pools() | {pool: seconds})
