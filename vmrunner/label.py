"""A pool's labels: what jobs ask for, and where in the machine the runner starts them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

HOST = "host"
_LABEL = re.compile(r"(?P<name>[A-Za-z0-9._-]{1,100})(?::(?P<place>host|docker://(?P<image>[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254})))?")


@dataclass(frozen=True)
class Label:
    """The forge knows the name alone; the runner in the machine is told the place, too."""

    name: str
    place: str = HOST  # "host": in the machine itself; "docker://IMAGE": in a container of the machine

    @classmethod
    def parse(cls, text: str) -> Label:
        """`debian-13`, `debian-13:host` or `ubuntu-latest:docker://node:22-bookworm`. Raises ValueError."""
        found = _LABEL.fullmatch(text)
        if not found:
            raise ValueError(f'a label is written like "debian-13", "debian-13:host" or "node:docker://node:22-bookworm", not {text!r}')
        return cls(found["name"], found["place"] or HOST)

    def __str__(self) -> str:
        return f"{self.name}:{self.place}"
