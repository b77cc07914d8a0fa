"""Whether machines run on the processor itself (KVM), and why not where they don't."""

from __future__ import annotations

import grp
import pwd
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vmrunner.config import is_local
from vmrunner.hypervisor.connection import asking
from vmrunner.hypervisor.qemu_user import User


class NoKvm(Enum):
    """Why there is no KVM, in words, and what helps."""

    NO_FLAG = (
        "the processor shows neither vmx nor svm",
        "Enable virtualization (VT-x, AMD-V, SVM) in the firmware; in a virtual machine, nested "
        "virtualization on its host.",
    )
    NO_MODULE = (
        "the processor could, but there is no /dev/kvm",
        "`modprobe kvm_intel`, with an AMD processor `modprobe kvm_amd`; where that fails, "
        "`dmesg | grep -i kvm` says why.",
    )
    NO_ACCESS = (
        "QEMU's user may not open /dev/kvm",
        "It belongs to root:kvm with mode 0660: see that QEMU's user (libvirt-qemu, qemu) is in "
        "the group kvm, and restart libvirtd.",
    )
    NOT_OFFERED = (
        "libvirt does not offer it",
        "Restart libvirtd, which remembers what it found; `virsh domcapabilities --virttype kvm` "
        "says more.",
    )

    @property
    def said(self) -> str:
        """The reason, as the end of a sentence."""
        return str(self.value[0])

    @property
    def hint(self) -> str:
        """What helps."""
        return str(self.value[1])


@dataclass(frozen=True)
class Device:
    """/dev/kvm."""

    mode: int
    uid: int
    gid: int

    def opens_for(self, uid: int, gids: frozenset[int]) -> bool:
        """Whether its mode lets this user read and write it."""
        if uid == 0:
            return True
        both = stat.S_IROTH | stat.S_IWOTH
        shift = 6 if uid == self.uid else 3 if self.gid in gids else 0
        return self.mode >> shift & both == both


@dataclass(frozen=True)
class Local:
    """What this host itself shows."""

    cpuinfo: str
    device: Device | None
    uid: int  # QEMU's user
    gids: frozenset[int]

    @classmethod
    def look(cls, capabilities: str) -> Local:
        """This host, with QEMU's user as libvirt tells it; root, where it does not."""
        found = User.of(ElementTree.fromstring(capabilities))  # noqa: S314 — libvirt's own words
        uid, gid = (found.uid, found.gid) if found else (0, 0)
        gids, device = {gid}, None
        with suppress(KeyError):
            user = pwd.getpwuid(uid)
            gids |= {user.pw_gid, *(g.gr_gid for g in grp.getgrall() if user.pw_name in g.gr_mem)}
        with suppress(OSError):
            node = Path("/dev/kvm").stat()
            device = Device(stat.S_IMODE(node.st_mode), node.st_uid, node.st_gid)
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        return cls(cpuinfo, device, uid, frozenset(gids))


def judge(capabilities: str, local: Local | None) -> NoKvm | None:
    """Why there is no KVM, by libvirt's capabilities and what this host shows; None where it can
    be used. Without `local` libvirt is on another host.

    The processor's flags matter even where libvirt offers it: a /dev/kvm on a processor without
    vmx or svm opens, is offered, and hangs its guests.
    """
    root = ElementTree.fromstring(capabilities)  # noqa: S314 — libvirt's own words
    offered = any(domain.get("type") == "kvm" for domain in root.iter("domain"))
    if local is None:
        return None if offered else NoKvm.NOT_OFFERED
    if not re.search(r"^flags\s*:.*\b(vmx|svm)\b", local.cpuinfo, re.MULTILINE):
        return NoKvm.NO_FLAG
    if offered:
        return None
    if local.device is None:
        return NoKvm.NO_MODULE
    return NoKvm.NOT_OFFERED if local.device.opens_for(local.uid, local.gids) else NoKvm.NO_ACCESS


def lacking(connection: Any, uri: str) -> NoKvm | None:
    """The same of the host that a connection leads to. Raises HypervisorError."""
    with asking("listing what the host can do"):
        capabilities = str(connection.getCapabilities())
    return judge(capabilities, Local.look(capabilities) if is_local(uri) else None)
