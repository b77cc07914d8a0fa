"""Whom QEMU runs as, as libvirt tells it."""

from __future__ import annotations

import pwd
from dataclasses import dataclass
from xml.etree import ElementTree


@dataclass(frozen=True)
class User:
    """Whom QEMU runs as."""

    uid: int
    gid: int

    @classmethod
    def of(cls, capabilities: ElementTree.Element) -> User | None:
        """What libvirt's capabilities say of it, `+64055:+64055`; None where they don't."""
        label = capabilities.findtext("host/secmodel[model='dac']/baselabel") or ""
        uid, _, gid = label.partition(":")
        try:
            return cls(int(uid), int(gid))
        except ValueError:
            return None

    def __str__(self) -> str:
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return str(self.uid)
