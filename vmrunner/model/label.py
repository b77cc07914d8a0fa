"""A pool's labels: what jobs ask for, and where in the machine the runner starts them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

HOST, _CONTAINER = "host", "docker://"
_LABEL = re.compile(
    r"(?P<name>[A-Za-z0-9._-]{1,100})(?::(?P<place>host|docker://(?P<image>[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254})))?"
)


@dataclass(frozen=True)
class Label:
    """The forge knows the name alone; the runner in the machine is told the place, too."""

    name: str
    # "host": in the machine itself; "docker://IMAGE": in a container of the machine.
    place: str = HOST

    @classmethod
    def parse(cls, text: str) -> Label:
        """`debian-13`, `debian-13:host` or `ubuntu-latest:docker://node:22-bookworm`.

        Raises ValueError.
        """
        found = _LABEL.fullmatch(text)
        name, _, place = text.partition(":")
        if place.startswith("lxc"):
            raise ValueError(
                f'"{name}" alone will do: each job has a machine of its own, which takes the place '
                "of an lxc container"
            )
        if not found:
            raise ValueError(
                'a label is written like "debian-13", "debian-13:host" or '
                f'"node:docker://node:22-bookworm", not {text!r}'
            )
        return cls(found["name"], found["place"] or HOST)

    @property
    def needs_docker(self) -> bool:
        """Whether its jobs run in a container."""
        return self.place.startswith(_CONTAINER)

    def __str__(self) -> str:
        return f"{self.name}:{self.place}"


def without_docker(labels: Iterable[Label], image: str) -> str:
    """That jobs with some of the labels can't run in machines of an image that has no Docker; empty
    where none of them needs it.
    """
    names = [label.name for label in labels if label.needs_docker]
    return (
        f"jobs for {', '.join(names)} run in a container, and the image {image} has no Docker"
        if names
        else ""
    )
