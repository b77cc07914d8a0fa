"""Which pools an admin has taken down: they stay down, also over a restart, until `vmrunner up
POOL`.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path

from vmrunner import files, lock
from vmrunner.errors import ConfigError

_LOCK_WAIT = 10.0  # seconds; it is held while a small file is read and written


class Drained:
    """The file `drained.json`: pool -> since when, in unix seconds. Each change is made under a
    lock of its own: `vmrunner down` waits for no pass, and two of them at once must not lose a
    pool.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path, self._lock = state_dir / "drained.json", state_dir / "drained.lock"

    def pools(self) -> dict[str, float]:
        """Every drained pool. A file that can't be read drains nothing."""
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return (
            {str(pool): float(at) for pool, at in found.items()} if isinstance(found, dict) else {}
        )

    def add(self, pools: list[str], now: float) -> None:
        """Take these down. Raises ConfigError where the file can't be written."""
        with self._changing():
            self._write(dict.fromkeys(pools, now) | self.pools())

    def remove(self, pools: list[str]) -> None:
        """Let these work again. Raises ConfigError where the file can't be written."""
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
