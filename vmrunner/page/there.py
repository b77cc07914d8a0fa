"""Machines that are there, as the last pass saw them: which of them, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

Machine = Mapping[str, Any]
"""As `status --json` has it."""


class Order(StrEnum):
    """Of a list of machines, in the page's words."""

    POOL = "pool"
    OLDEST = "oldest first"
    NEWEST = "newest first"


@dataclass(frozen=True)
class Sought:
    """Which machines are asked for; what is empty asks for nothing."""

    pool: str = ""
    phase: str = ""
    text: str = ""  # within the machine's name or its job's, with the repository
    order: Order = Order.POOL

    def __bool__(self) -> bool:
        return bool(self.pool or self.phase or self.text)

    def among(self, pools: Sequence[Mapping[str, Any]]) -> list[tuple[str, Machine]]:
        """Those that fit, each with its pool's name."""
        text = self.text.lower()
        found = [
            (pool["name"], machine)
            for pool in pools
            if self.pool in ("", pool["name"])
            for machine in pool["machines"]
            if self.phase in ("", machine["phase"])
            and (not text or text in f"{machine['name']}\0{machine['job']}".lower())
        ]
        if self.order is not Order.POOL:  # one whose age is not known comes last
            sign = -1.0 if self.order is Order.OLDEST else 1.0
            found.sort(key=lambda each: _rank(each[1]["age_seconds"], sign))
        return found


def _rank(age: float | None, sign: float) -> tuple[bool, float]:
    return (True, 0.0) if age is None else (False, sign * age)
