"""What a saved memory rests on: it can be used only where all of this is as it was."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vmrunner.config import is_local
from vmrunner.hypervisor.connection import asking
from vmrunner.hypervisor.qemu_user import User

_MACHINE = "q35"  # as in templates/domain.xml.j2
_NESTED = "kvm_*/parameters/nested"


@dataclass(frozen=True)
class Kernel:
    """The kernel that runs this host, which with KVM has a part in what is saved."""

    release: str
    version: str  # its build
    nested: tuple[str, ...]  # whether its modules permit virtual machines in virtual machines

    @classmethod
    def running(cls, modules: Path = Path("/sys/module")) -> Kernel:
        """This one."""
        own = os.uname()
        return cls(own.release, own.version, nested(modules))


def nested(modules: Path = Path("/sys/module")) -> tuple[str, ...]:
    """What the modules of KVM that are loaded say of virtual machines in virtual machines."""
    return tuple(path.read_text(encoding="ascii").strip() for path in sorted(modules.glob(_NESTED)))


@dataclass(frozen=True)
class Basis:
    """What a host is for snapshots; versions are libvirt's numbers."""

    qemu: int
    libvirt: int
    user: str  # the id of QEMU's user; empty where libvirt tells none
    digest: str

    @classmethod
    def behind(cls, connection: Any, uri: str, *, kvm: bool) -> Basis:
        """Of the host that a connection leads to. Raises HypervisorError.

        Another host's kernel and QEMU's build can't be seen from here, only their versions.
        """
        with asking("asking for the versions"):
            qemu, libvirt = connection.getVersion(), connection.getLibVersion()
            capabilities = str(connection.getCapabilities())
        kernel = Kernel.running() if is_local(uri) else None
        return of(capabilities, qemu, libvirt, kernel, kvm=kvm, is_local=is_local(uri))


def of(
    capabilities: str,
    qemu: int,
    libvirt: int,
    kernel: Kernel | None,
    *,
    kvm: bool,
    is_local: bool = False,
) -> Basis:
    """By libvirt's capabilities (XML) and versions. Microcode and kernel count with KVM alone:
    software emulation has its own processor.
    """
    root = ElementTree.fromstring(capabilities)  # noqa: S314 — libvirt's own words
    user = User.of(root)
    arch = root.find("guest/arch[@name='x86_64']")
    emulator = arch.findtext("emulator", "") if arch is not None else ""
    machines = arch.findall("machine") if arch is not None else []
    parts: list[object] = [
        kvm,
        qemu,
        libvirt,
        *_processor(root.find("host/cpu"), kvm=kvm),
        sorted({each.get("canonical", "") for each in machines if each.text == _MACHINE}),
        emulator,
        _build(Path(emulator)) if is_local and emulator else [],
        [kernel.release, kernel.version, kernel.nested] if kvm and kernel else [],
    ]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return Basis(qemu, libvirt, str(user.uid) if user else "", digest[:16])


def _processor(found: ElementTree.Element | None, *, kvm: bool) -> list[object]:
    if found is None:
        return []
    exact = [dict(each.attrib) for name in ("signature", "microcode") for each in found.iter(name)]
    return [
        [found.findtext("model", ""), found.findtext("vendor", "")],
        sorted(each.get("name", "") for each in found.iter("feature")),
        exact if kvm else [],
    ]


def _build(emulator: Path) -> list[int]:
    """What changes with each build of QEMU: a distribution's fix keeps its version."""
    with suppress(OSError):
        status = emulator.stat()
        return [status.st_size, status.st_mtime_ns]
    return []
