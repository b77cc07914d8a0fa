"""What `vmrunner doctor` looks at: everything that a machine and a job need, each finding with its
fix. Nothing is changed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import IntEnum
from pathlib import Path

from pydantic import TypeAdapter

from vmrunner.config import Config, PoolConfig, forge_token, webhook_secret
from vmrunner.errors import ForgeError, ImageError, NotPermitted, VmrunnerError
from vmrunner.forge.connect import connect
from vmrunner.forge.http import Http, parse
from vmrunner.forge.seam import Forge
from vmrunner.hypervisor.host import LibvirtHost
from vmrunner.image.versions import promotion, proof, store
from vmrunner.machine.clones import Shelf
from vmrunner.model.image import Golden
from vmrunner.model.job import RunnerRecord, Scope, ScopeKind
from vmrunner.model.label import without_docker
from vmrunner.model.machine import MachineId

_SKEW = 5.0  # seconds; the forge tells its time in whole ones
_LEAST = {"gitea": (1, 26), "forgejo": (15, 0)}
_LEAST_QEMU, _LEAST_LIBVIRT = (7, 2), (9, 0)
_VERSION = TypeAdapter(dict[str, str])
_NOT_FOR_DISKS = {
    "tmpfs": "what machines write takes the host's memory, which nobody counts",
    "overlay": "snapshots' memory is copied into its upper layer, and clones share less",
    **dict.fromkeys(
        ("nfs", "nfs4", "cifs", "9p"), "a machine whose disk is slow to answer stands still"
    ),
}
_BEYOND = {
    # What only a token with more scopes than ours may read, on both forges.
    "admin": "/api/v1/admin/users?limit=1",
    "issue": "/api/v1/repos/issues/search?limit=1",
    "notification": "/api/v1/notifications/new",
    "user": "/api/v1/user",
}


class Level(IntEnum):
    """How bad a finding is; its value is the exit code."""

    GOOD = 0
    WARNING = 10
    ERROR = 11


@dataclass(frozen=True)
class Finding:
    """One look at one thing."""

    check: str
    level: Level
    said: str
    fix: str = ""


def good(check: str, said: str) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.GOOD, said)


def warning(check: str, said: str, fix: str) -> Finding:
    """It works, but not as well or as safely as it could."""
    return Finding(check, Level.WARNING, said, fix)


def error(check: str, said: str, fix: str) -> Finding:
    """Jobs can't run because of it."""
    return Finding(check, Level.ERROR, said, fix)


def failed(check: str, why: VmrunnerError) -> Finding:
    """What would stop a pass, too."""
    return error(check, why.sentence, why.hint)


def examine(settings: Config, open_host: Callable[[], LibvirtHost]) -> Iterator[Finding]:
    """Every finding, as it is found."""
    yield from _folders(settings)
    names: set[str] | None = None
    try:
        host = open_host()
    except VmrunnerError as why:
        yield failed("libvirt", why)
    else:
        yield from _versions(host)
        yield from _accelerator(host, settings)
        yield _bounds(host)
        yield from _storage(host, settings)
        yield from _network(host)
        yield from _images(settings, host)
        machines = host.machines()
        names = {str(machine.id) for machine in machines}
        strays = [str(machine.id) for machine in machines if machine.metadata is None]
        if strays:
            yield warning(
                "leftovers",
                f"Files without a machine: {', '.join(strays)}.",
                "`vmrunner up` sweeps them.",
            )
        else:
            yield good("leftovers", f"{len(machines)} machines, no files without one")
    yield from _forge(settings, names)
    yield from _webhook(settings)


def _folders(settings: Config) -> Iterator[Finding]:
    for key, path in (("state_dir", settings.state_dir), ("runtime_dir", settings.runtime_dir)):
        there = next(each for each in (path, *path.parents) if each.exists())
        if not os.access(there, os.W_OK | os.X_OK):
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
                "Put it below /run.",
            )
        else:
            yield good("permissions", f"{key} {path}")


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


def _versions(host: LibvirtHost) -> Iterator[Finding]:
    for (name, version), least in zip(
        host.versions().items(), (_LEAST_LIBVIRT, _LEAST_QEMU), strict=True
    ):
        if _numbers(version) < least:
            yield warning(
                "libvirt",
                f"{name} {version} is older than {_dotted(least)}: nobody has tried it.",
                f"Update {name}.",
            )
        else:
            yield good("libvirt", f"{name} {version}")


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _accelerator(host: LibvirtHost, settings: Config) -> Iterator[Finding]:
    if host.kvm:
        yield good("accelerator", "KVM")
        nested = [
            path.read_text(encoding="ascii").strip() in "1Y"
            for path in Path("/sys/module").glob("kvm_*/parameters/nested")
        ]
        yield good(
            "accelerator",
            "virtual machines inside the machines: "
            + ("possible" if any(nested) else "not possible"),
        )
        return
    chosen = settings.libvirt.accelerator == "software"
    yield warning(
        "accelerator",
        "Machines run under software emulation, 10 to 50 times slower"
        + (", as configured." if chosen else ": there is no KVM."),
        'Set libvirt.accelerator to "auto".'
        if chosen
        else "Enable virtualization in the firmware; in a virtual machine, nested virtualization.",
    )
    if Path("/dev/kvm").exists():
        yield warning(
            "accelerator",
            "/dev/kvm is there, but the processor has no virtualization: libvirt tries it again "
            "for each machine, for a minute and more.",
            "Hide it from libvirtd, in a drop-in of libvirtd.service: `[Service]` "
            "`InaccessiblePaths=/dev/kvm`.",
        )


def _bounds(host: LibvirtHost) -> Finding:
    if host.cgroups.memory and host.cgroups.cpu:
        return good("bounds", "the host's kernel sees to the machines' memory and processors")
    return warning(
        "bounds",
        "This host has no cgroups for memory or processors: a QEMU that was broken out of may take "
        "all of them.",
        "Mount them at /sys/fs/cgroup; systemd does, and `cgroup_disable` on the kernel's command "
        "line prevents it.",
    )


def _storage(host: LibvirtHost, settings: Config) -> Iterator[Finding]:
    try:
        free, floor = host.capacity().free_disk_mib, settings.capacity.disk_floor
    except VmrunnerError as why:
        yield failed("storage", why)
        return
    path = settings.libvirt.storage_path
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
        if kind in _NOT_FOR_DISKS:
            yield warning(
                "storage",
                f"{path} is on {kind}: {_NOT_FOR_DISKS[kind]}.",
                "Put libvirt.storage_path on a disk of this host.",
            )


def _network(host: LibvirtHost) -> Iterator[Finding]:
    try:
        drift = host.network_drift()
    except VmrunnerError as why:
        yield failed("network", why)
        return
    yield from _rules(host)
    if drift is None:
        yield good("network", f"{host.network} is made with the first machine")
    elif drift:
        fix = (
            f"When no machine runs: `virsh net-destroy {host.network}; virsh net-undefine "
            f"{host.network}`; the next machine makes it anew."
        )
        yield error(
            "network",
            f"The network {host.network} is not as vmrunner made it: {'; '.join(drift)}.",
            fix,
        )
    else:
        yield good("network", f"{host.network} is as it should be")


def _rules(host: LibvirtHost) -> Iterator[Finding]:
    try:
        drift = host.rules_drift()
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


def _images(settings: Config, host: LibvirtHost) -> Iterator[Finding]:
    seen: set[str] = set()
    for name, pool in settings.pools.items():
        try:
            golden = store.find(settings.images_dir, pool.image)
            if pool.image not in seen:
                store.verify(golden)
        except ImageError as why:
            yield failed("image", why)
            continue
        if pool.image not in seen:
            days = (
                datetime.now(UTC) - datetime.fromisoformat(golden.manifest.built_at)
            ).total_seconds() / 86400
            shown = (
                f"{golden.name} {golden.version} was built {days:.0f} days ago, and is as its "
                "manifest says"
            )
            fix = (
                f"`sudo vmrunner image refresh {golden.name}`; `vmrunner systemd install` has a "
                "timer for that."
            )
            old = warning("image", f"{shown}: nothing in it was updated since.", fix)
            yield (
                old
                if days > settings.images.max_age.total_seconds() / 86400
                else good("image", shown)
            )
            yield from _promotion(settings, golden)
        seen.add(pool.image)
        yield from _docker(name, pool, golden)
        if pool.start != "boot":
            yield _snapshot(settings, host, golden, name, pool)


def _docker(name: str, pool: PoolConfig, golden: Golden) -> Iterator[Finding]:
    if golden.manifest.lacks_docker and (said := without_docker(pool.labels, golden.name)):
        fix = (
            "Use one like debian-13-docker (docs/containers.md). Where a script of the recipe "
            "installs Docker, "
            'say so in its [checks]: docker = "docker version".'
        )
        yield warning("image", f"Pool {name}: {said}.", fix)


def _promotion(settings: Config, golden: Golden) -> Iterator[Finding]:
    """What became of the version, and of the last refresh."""
    last = next(reversed(promotion.history(settings.images_dir, golden.name)), None)
    if last and last.why is promotion.Why.STEPPED_BACK:
        fix = (
            "See why those machines failed with `vmrunner history --failed`; a version that is "
            "promoted by hand is tried anew."
        )
        yield warning(
            "image", f"{golden.name} was rolled back automatically at {last.at}: {last.cause}.", fix
        )
    found = proof.read(golden)
    if last and last.forced and not (found and found.is_good):
        said = f"is not good: {found.said}" if found else "was not verified"
        fix = f"`vmrunner image verify {golden.name}` boots a machine of it."
        yield warning(
            "image", f"{golden.name} {golden.version} was promoted all the same, and {said}.", fix
        )
    if bad := promotion.newest_bad(settings.images_dir, golden.name):
        fix = f"`vmrunner image verify {golden.name}/{bad}` says why; `image prune` removes it."
        yield warning(
            "image",
            f"The newer version {bad} of {golden.name} was found bad, and is not used.",
            fix,
        )


def _snapshot(
    settings: Config, host: LibvirtHost, golden: Golden, name: str, pool: PoolConfig
) -> Finding:
    if found := host.snapshot(golden, pool.shape):
        return good(
            "snapshot", f"pool {name} starts machines from {found.key}, {found.disk_mib} MiB"
        )
    failure = Shelf(settings.state_dir).failure(host.snapshot_key(golden, pool.shape))
    if failure is None:
        return good("snapshot", f"pool {name} has none yet; it is made with its first machine")
    fix = f"Mend that, then `vmrunner snapshot create --pool {name}`."
    if "ermission denied" in failure.cause and _has_apparmor():
        fix = (
            "AppArmor has to permit it: `vmrunner snapshot apparmor "
            ">>/etc/apparmor.d/local/abstractions/libvirt-qemu`."
        )
    return warning("snapshot", f"Machines of pool {name} are booted: {failure.cause}", fix)


def _has_apparmor() -> bool:
    try:
        return (
            Path("/sys/module/apparmor/parameters/enabled").read_text(encoding="ascii").strip()
            == "Y"
        )
    except OSError:
        return False


# ---- the forge ----


def _forge(settings: Config, machines: set[str] | None) -> Iterator[Finding]:
    readable: list[str] = []
    try:
        token = forge_token(settings.forge, readable.append)
        http = Http(settings.forge.url, token, settings.forge.ca_file)
        began = time.time()
        answer, headers = http.call("GET", "/api/v1/version", "its version")
        version = parse(_VERSION, answer, "its version").get("version", "?")
    except VmrunnerError as why:
        yield failed("forge", why)
        return
    yield from (warning("token", sentence, "") for sentence in readable)
    kind, least = settings.forge.kind, _LEAST[settings.forge.kind]
    if _numbers(version) < least:
        yield error(
            "forge", f"{kind} {version} is too old.", f"vmrunner needs {_dotted(least)} or newer."
        )
    else:
        yield good(
            "forge",
            f"{kind} {version} at {settings.forge.url} answered in {time.time() - began:.2f} s",
        )
    if date := headers.get("Date"):
        skew = began - parsedate_to_datetime(date).timestamp()
        far = warning(
            "clock",
            f"This host's clock is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} the "
            "forge's.",
            "Run an NTP client on both.",
        )
        yield (
            far if abs(skew) > _SKEW else good("clock", "this host and the forge agree on the time")
        )
    with closing(connect(settings.forge, token)) as forge:
        yield from _scopes(settings, forge, machines)
    with closing(http):
        yield from _too_wide(settings, http)


def _scopes(settings: Config, forge: Forge, machines: set[str] | None) -> Iterator[Finding]:
    records: list[RunnerRecord] = []
    for scope in dict.fromkeys(scope for pool in settings.pools.values() for scope in pool.scope):
        try:
            waiting = len(forge.jobs(scope))
            records += forge.runners(scope)
            forge.delete_runner(scope, 0)  # there never is one: whether we may
        except ForgeError as why:
            yield failed("token", why)
        else:
            yield good(
                "token", f"may see jobs and make runners for {scope} ({waiting} jobs there now)"
            )
    if machines is None:
        return
    ours = {record.name for record in records if MachineId.of(settings.manager, record.name)}
    if orphans := sorted(ours - machines):
        yield warning(
            "leftovers",
            f"Runner records without a machine: {', '.join(orphans)}.",
            "`vmrunner up` deletes them.",
        )


def _too_wide(settings: Config, http: Http) -> Iterator[Finding]:
    """Reads that the token need not be good for."""
    kinds = {scope.kind for pool in settings.pools.values() for scope in pool.scope}
    needed = {
        "admin" if ScopeKind.INSTANCE in kinds else "",
        "user" if ScopeKind.USER in kinds else "",
    }
    more = []
    for name, path in _BEYOND.items():
        if name not in needed:
            try:
                http.call("GET", path, f"what {name} may read", scope=Scope.parse("instance"))
            except ForgeError:
                continue
            more.append(name)
    if more:
        yield warning(
            "token",
            f"The token may do more than vmrunner needs: it has the scopes {', '.join(more)}.",
            "Make one with only the scopes that the README names; whoever reads its file has them "
            "all.",
        )


def _webhook(settings: Config) -> Iterator[Finding]:
    """Whether what is configured is heard. Nothing is wrong without it: jobs wait for the poll."""
    section = settings.serve.webhook
    if section.secret_file is None:
        return
    if settings.forge.kind != "gitea":
        yield warning(
            "webhook",
            "Forgejo has no webhook for jobs that wait, so nothing will be heard.",
            "Take listen and secret_file out of [serve.webhook].",
        )
        return
    readable: list[str] = []
    try:
        webhook_secret(section.secret_file, readable.append)
    except VmrunnerError as why:
        yield failed("webhook", why)
        return
    yield from (warning("webhook", sentence, "") for sentence in readable)
    try:
        at = datetime.fromtimestamp(settings.webhook_heard.stat().st_mtime).astimezone()
    except OSError:
        yield warning(
            "webhook",
            f"The forge's webhook was never heard at {section.listen}: jobs wait for the poll.",
            "Start a workflow while `vmrunner serve` runs; the webhook's page at the forge lists "
            "what became of the delivery.",
        )
    else:
        yield good("webhook", f"heard last at {at:%Y-%m-%d %H:%M:%S %z}")
