"""What the host's kernel can bound a machine's QEMU with: cgroups, as far as they can be seen from
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmrunner.config import is_local

_ROOT = Path("/sys/fs/cgroup")
_QEMU_MIB = 512  # beside the guest's memory: QEMU itself, its devices and their buffers
_TRANSLATED_MIB = 1024  # QEMU's own bound for the code that it translates under software emulation


@dataclass(frozen=True)
class Cgroups:
    """The controllers of this host that libvirt sets bounds with."""

    memory: bool
    cpu: bool
    unified: bool  # version 2, whose weights have another scale

    @classmethod
    def of_host(cls, uri: str, root: Path = _ROOT) -> Cgroups:
        """Those of the host behind a libvirt URI; another host than this one is taken for one with
        everything.
        """
        if not is_local(uri):
            return cls(memory=True, cpu=True, unified=True)
        try:
            there = (root / "cgroup.controllers").read_text(encoding="ascii").split()
        except OSError:
            there = [name for name in ("memory", "cpu") if (root / name / "tasks").exists()]
            return cls("memory" in there, "cpu" in there, unified=False)
        return cls("memory" in there, "cpu" in there, unified=True)

    def hard_limit_mib(self, memory_mib: int, *, kvm: bool) -> int:
        """What the QEMU of a machine with so much memory may take of the host's, in MiB, before it
        alone is killed; 0: nobody counts.
        """
        return memory_mib + _QEMU_MIB + (0 if kvm else _TRANSLATED_MIB) if self.memory else 0

    def cpu_shares(self, weight: int) -> int:
        """A weight (100 is everybody's) on this host's scale; 0: nobody weighs."""
        if not self.cpu:
            return 0
        return weight if self.unified else max(2, weight * 1024 // 100)
