"""What is never shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Secret:
    """A token that repr() and logs never show."""

    value: str

    def __repr__(self) -> str:
        return "Secret(…)"
