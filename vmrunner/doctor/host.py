"""This host: folders, libvirt, the accelerator, storage, the network and its rules."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

from vmrunner.config import Config, HostConfig, is_local
from vmrunner.doctor.findings import Finding, error, failed, good, warning
from vmrunner.errors import NotPermitted, VmrunnerError
from vmrunner.hypervisor import logs
from vmrunner.hypervisor.acceleration import NoKvm
from vmrunner.hypervisor.basis import nested
from vmrunner.hypervisor.seam import Facts
from vmrunner.support import numbers
from vmrunner.text import dotted

_LEAST_QEMU, _LEAST_LIBVIRT = (7, 2), (9, 0)
_NOT_FOR_DISKS = {
    "tmpfs": "what machines write takes the host's memory, which nobody counts",
    "overlay": "snapshots' memory is copied into its upper layer, and clones share less",
    **dict.fromkeys(
        ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse", "virtiofs"),
        "a machine whose disk is slow to answer stands still",
    ),
}
_LEAST_INODES = 50
_UNTRANSLATED = {"C", "POSIX"}
"""Locales for which every libc looks for no translations; since glibc 2.39 C.UTF-8 is one, too."""


def folders(settings: HostConfig) -> Iterator[Finding]:
    """Where vmrunner writes: permitted, and credentials on no disk."""
    for key, path in (("state_dir", settings.state_dir), ("runtime_dir", settings.runtime_dir)):
        there = next(each for each in (path, *path.parents) if each.exists())
        owner = _other_writer(path)
        if not owner and not os.access(there, os.W_OK | os.X_OK):
            yield error(
                "permissions",
                f"{key} {path} can't be written by this user.",
                "Run as the service's user, or as root.",
            )
        elif key == "runtime_dir" and _file_system(there) not in {"tmpfs", "ramfs"}:
            kind = _file_system(there)
            yield warning(
                "permissions",
                f"runtime_dir {path} is on {kind}: credentials of running jobs reach a disk.",
                "Mount a tmpfs there." if path.is_relative_to("/run") else "Put it below /run.",
            )
        else:
            whose = f", of the user {owner}" if owner else ""
            yield good("permissions", f"{key} {path}{whose}")


def _other_writer(path: Path) -> str:
    """Who else than this user has the folder and may write there: the service's user; empty where
    nobody has.
    """
    try:
        seen = path.stat()
    except OSError:
        return ""
    is_other = seen.st_uid not in {0, os.geteuid()}
    if not is_other or seen.st_mode & stat.S_IRWXU != stat.S_IRWXU:
        return ""
    try:
        return pwd.getpwuid(seen.st_uid).pw_name
    except KeyError:
        return str(seen.st_uid)


def look(settings: HostConfig, facts: Facts, floor: int) -> Iterator[Finding]:
    """Everything of a libvirt that answers; `floor` is capacity.disk_floor, in MiB."""
    yield from _versions(facts)
    yield from _accelerator(facts, settings)
    yield _bounds(facts)
    yield from _storage(facts, settings, floor)
    yield from _logs(settings)
    yield from locale()
    yield from _network(facts)


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on, as /proc/mounts calls it."""
    mounts = [
        line.split()[1:3] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()
    ]
    whole = path.resolve()
    fitting = [
        (target, kind)
        for target, kind in mounts
        if whole.is_relative_to(target.replace("\\040", " "))
    ]
    return max(fitting, key=lambda each: len(each[0]))[1] if fitting else "?"


def _versions(facts: Facts) -> Iterator[Finding]:
    for (name, version), least in zip(
        facts.versions().items(), (_LEAST_LIBVIRT, _LEAST_QEMU), strict=True
    ):
        if numbers(version) < least:
            yield warning(
                "libvirt",
                f"{name} {version} is older than {dotted(least)}: nobody has tried it.",
                f"Update {name}.",
            )
        else:
            yield good("libvirt", f"{name} {version}")


def _accelerator(facts: Facts, settings: HostConfig) -> Iterator[Finding]:
    if facts.kvm:
        yield good("accelerator", "KVM")
        yield from _nested(settings)
        return
    why = facts.no_kvm
    yield warning(
        "accelerator",
        "Machines run under software emulation, 10 to 50 times slower"
        + (f": there is no KVM, as {why.said}." if why else ", as configured."),
        why.hint if why else 'Set libvirt.accelerator to "auto".',
    )
    if why is NoKvm.NO_FLAG and Path("/dev/kvm").exists():
        yield warning(
            "accelerator",
            "/dev/kvm is there, but the processor has no virtualization: libvirt tries it again "
            "for each machine, for a minute and more.",
            "Hide it from libvirtd, in a drop-in of libvirtd.service: `[Service]` "
            "`InaccessiblePaths=/dev/kvm`.",
        )


def _nested(settings: HostConfig) -> Iterator[Finding]:
    """Whether machines can have virtual machines of their own, where a pool wants that."""
    configured = settings.pools if isinstance(settings, Config) else {}
    pools = [name for name, pool in configured.items() if pool.nested]
    if not pools or not is_local(settings.libvirt.uri):
        return
    if any(each in {"1", "Y"} for each in nested()):
        yield good("accelerator", f"machines of {', '.join(pools)} may have virtual machines")
    else:
        yield warning(
            "accelerator",
            f"Machines of {', '.join(pools)} shall have virtual machines, which this host's KVM "
            "does not permit.",
            "Load its module with `nested=1`: `options kvm_intel nested=1` (or kvm_amd) in "
            "/etc/modprobe.d.",
        )


def _bounds(facts: Facts) -> Finding:
    if facts.cgroups.memory and facts.cgroups.cpu:
        return good("bounds", "the host's kernel sees to the machines' memory and processors")
    return warning(
        "bounds",
        "This host has no cgroups for memory or processors: a QEMU that was broken out of may take "
        "all of them.",
        "Mount them at /sys/fs/cgroup; systemd does, and `cgroup_disable` on the kernel's command "
        "line prevents it.",
    )


def _storage(facts: Facts, settings: HostConfig, floor: int) -> Iterator[Finding]:
    try:
        free = facts.capacity().free_disk_mib
    except VmrunnerError as why:
        yield failed("storage", why)
        return
    path = settings.libvirt.storage_path
    if closed := facts.closed_storage():
        yield error("storage", *closed)
    if free < floor:
        yield error(
            "storage",
            f"{free} MiB are free at {path}, below the floor of {floor} MiB: no machine starts.",
            "Free some space, or lower capacity.disk_floor.",
        )
    elif free >= 1 << 40:
        yield good("storage", f"the pool at {path} is made with the first machine")
    else:
        kind = _file_system(path) if path.exists() else "another host's disk"
        yield good("storage", f"{free >> 10} GiB free at {path} ({kind})")
        if what := _NOT_FOR_DISKS.get(kind.partition(".")[0]):  # fuse.sshfs
            yield warning(
                "storage",
                f"{path} is on {kind}: {what}.",
                "Put libvirt.storage_path on a disk of this host.",
            )
        if path.exists():
            yield from disk(path)


def disk(path: Path) -> Iterator[Finding]:
    """What of a file system other than its space keeps machines from being made."""
    try:
        seen = os.statvfs(path)
    except OSError as why:
        yield error("storage", f"{path} can't be looked at: {why.strerror}.", "Mount it again.")
        return
    if seen.f_flag & os.ST_RDONLY:
        yield error(
            "storage",
            f"{path} is read-only: no machine starts.",
            "`dmesg` may say why, often a failing disk. Mount it to be written.",
        )
    if seen.f_files and seen.f_favail < _LEAST_INODES:
        yield error(
            "storage",
            f"{seen.f_favail} inodes are free at {path}: no machine starts.",
            "Delete small files there (`df -i`); each machine takes six.",
        )


def _logs(settings: HostConfig) -> Iterator[Finding]:
    folder = logs.folder(settings.libvirt.uri)
    if folder is None or not folder.is_dir():
        return  # another host's, or made with the first machine
    if os.access(folder, os.W_OK | os.X_OK):
        yield good("logs", f"libvirt's log of each machine in {folder} goes with it")
    else:
        yield warning(
            "logs",
            f"This user may not delete in {folder}: libvirt's log of each machine stays there.",
            "`vmrunner systemd install` writes a file for systemd-tmpfiles that permits it to the "
            "service's user.",
        )


def locale(run: Path = Path("/run"), proc: Path = Path("/proc")) -> Iterator[Finding]:
    """Whether libvirt's daemon looks for translations; nothing where this user may not know."""
    for name in ("libvirtd", "virtqemud"):
        try:
            pid = int((run / f"{name}.pid").read_text(encoding="ascii"))
            raw = (proc / str(pid) / "environ").read_bytes()
        except (OSError, ValueError):
            continue
        chosen = _messages(raw)
        if chosen in _UNTRANSLATED:
            yield good("locale", f"{name} runs in the locale C")
        else:
            yield warning(
                "locale",
                f"{name} runs in the locale {chosen}: now and then it hangs for ever while a "
                "machine is made.",
                f"`systemctl edit {name}`: `[Service]` `Environment=LC_ALL=C`, and restart it.",
            )


def _messages(environ: bytes) -> str:
    """The locale of messages that a process with this environment has."""
    pairs = (each.partition(b"=") for each in environ.split(b"\0"))
    found = {name.decode("utf-8", "replace"): value for name, _, value in pairs}
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    chosen = next((value for name in names if (value := found.get(name))), b"C")
    return "".join(c for c in chosen.decode("utf-8", "replace") if c.isprintable())


def _network(facts: Facts) -> Iterator[Finding]:
    try:
        drift = facts.network_drift()
    except VmrunnerError as why:
        yield failed("network", why)
        return
    yield from _rules(facts)
    if lack := facts.leftovers_lack():
        yield warning(
            "network",
            f"What a machine leaves open stays for the next one on its address: {lack}.",
            "`modprobe nf_conntrack_netlink`; in a container its host has to do that.",
        )
    if drift is None:
        yield good("network", f"{facts.network} is made with the first machine")
    elif drift:
        fix = (
            f"When no machine runs: `virsh net-destroy {facts.network}; virsh net-undefine "
            f"{facts.network}`; the next machine makes it anew."
        )
        yield error(
            "network",
            f"The network {facts.network} is not as vmrunner made it: {'; '.join(drift)}.",
            fix,
        )
    else:
        yield good("network", f"{facts.network} is as it should be")


def _rules(facts: Facts) -> Iterator[Finding]:
    try:
        drift = facts.rules_drift()
    except NotPermitted as why:
        yield warning(
            "rules", "This user may not look at the rules of the machines' network.", why.hint
        )
        return
    except VmrunnerError as why:
        yield failed("rules", why)
        return
    if drift is None:
        yield warning(
            "rules",
            "The machines' network is not filtered: they reach this host, its LAN and whatever its "
            "own rules let them.",
            "Set `filter = true` in the table [network], or see that the host's own rules do it.",
        )
    elif drift:
        yield error(
            "rules",
            f"What filters the machines' network has changed: {drift}.",
            "`vmrunner up` puts it right; find out who did it.",
        )
    else:
        yield good("rules", "the nftables table of the machines' network is as it should be")
