"""The seam to the hypervisor: what the manager asks of a libvirt host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from vmrunner.image.store import Golden
from vmrunner.model import Machine, MachineId, Metadata, Shape


class File(StrEnum):
    """The files of one machine: volumes named `<machine>.<suffix>` in our own storage pool."""

    OVERLAY = "qcow2"
    SEED = "seed.iso"
    EVENTS = "events"
    CONSOLE = "console"


class Output(StrEnum):
    """The live output ports of a machine made by `vmrunner exec`."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True)
class Residue:
    """What is left of this manager on the host; all empty after the last machine is destroyed."""

    domains: tuple[str, ...]
    files: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.domains or self.files)


class Hypervisor(Protocol):
    """Every call raises a HypervisorError (DiskFull, NameClash) where libvirt refuses."""

    manager: str

    def prepare(self, golden: Golden) -> None:
        """Make our storage pool and network where they are missing, and publish this image on the host."""

    def machines(self) -> list[Machine]:
        """Every machine of this manager: its domain, or only files where the domain is gone."""

    def create_overlay(self, machine: MachineId, golden: Golden, disk_gib: int) -> None:
        """Clone the golden image copy-on-write; the disk is `disk_gib` big, or as big as the image if that is bigger."""

    def put(self, machine: MachineId, file: File, content: bytes) -> None:
        """Write one file of a machine."""

    def read(self, machine: MachineId, file: File, *, tail: int = 65536) -> bytes:
        """The last `tail` bytes of one file of a machine; empty if there is none."""

    def start(self, golden: Golden, shape: Shape, metadata: Metadata, outputs: tuple[Output, ...] = ()) -> None:
        """Start the transient domain. Overlay and seed must exist."""

    def stream(self, machine: MachineId, output: Output, write: Callable[[bytes], None]) -> None:
        """Copy a live output port until the machine is gone. Blocks; call it in a thread of its own."""

    def alive(self, machine: MachineId) -> bool:
        """Whether the machine's domain exists."""

    def delete(self, machine: MachineId, file: File) -> None:
        """Delete one file of a machine, also one that the machine holds open; one that is gone is fine."""

    def destroy(self, machine: MachineId) -> None:
        """Destroy the domain and delete every file of the machine, and check that both are gone."""

    def residue(self) -> Residue:
        """All domains and machine files that carry this manager's id."""
