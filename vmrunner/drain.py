"""Which pools an admin has taken down: they stay down, also over a restart, until `vmrunner up POOL`."""

from __future__ import annotations

import json
from pathlib import Path

from vmrunner.errors import ConfigError


class Drained:
    """The file `drained.json`: pool -> since when, in unix seconds."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "drained.json"

    def pools(self) -> dict[str, float]:
        """Every drained pool. A file that can't be read drains nothing."""
        try:
            found = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        return {str(pool): float(at) for pool, at in found.items()} if isinstance(found, dict) else {}

    def add(self, pools: list[str], now: float) -> None:
        """Take these down. Raises ConfigError where the file can't be written."""
        self._write(dict.fromkeys(pools, now) | self.pools())

    def remove(self, pools: list[str]) -> None:
        """Let these work again. Raises ConfigError where the file can't be written."""
        known = self.pools()
        if known.keys() & set(pools):
            self._write({pool: at for pool, at in known.items() if pool not in pools})

    def _write(self, pools: dict[str, float]) -> None:
        part = self._path.with_suffix(".part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(pools), encoding="utf-8")
            part.replace(self._path)
        except OSError as error:
            raise ConfigError(f"The file {self._path} can't be written: {error.strerror}.", "Check state_dir.") from None
