"""One pass of the real manager in a process of its own, whose steps are written down, and in one of
which something goes wrong.

The product has no hook for this: its two seams and its bindings are real objects whose methods are
wrapped here. A step is a call that changes something on the host, at the forge (there each request
is one, the reading ones included) or in the bindings.
"""

from __future__ import annotations

import json
import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from threading import Lock, Timer
from typing import Any

import httpx
import libvirt
import libvirt_qemu

from tests import daemons
from vmrunner import config
from vmrunner.errors import VmrunnerError
from vmrunner.forge.connect import connect
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.seam import File
from vmrunner.machine.bindings import Bindings
from vmrunner.manager import manager as passes
from vmrunner.manager.history import History
from vmrunner.manager.manager import Manager
from vmrunner.manager.observed import Drain
from vmrunner.model.binding import Binding

FAULT_HEADER = "X-Fault"  # what the proxy between manager and forge shall do to this request
_NOBODY = "http://127.0.0.1:9"  # refuses connections
_PATIENCE = 1.0  # seconds; the product's own is too long for a matrix
_MOMENT = 0.3  # seconds; libvirt takes 0.5 and more to start a domain
SLOW = ("start", "bind", "destroy")  # steps that libvirtd takes longer for
_MACHINES = ("create_overlay", "put", "start", "bind", "note", "delete", "destroy")
_LIBVIRT = {  # what changes something, of what vmrunner calls
    "virConnect": ("createXML", "storagePoolDefineXML", "networkDefineXML"),
    "virStoragePool": ("build", "setAutostart", "create", "createXML"),
    "virNetwork": ("setAutostart", "create"),
    "virStorageVol": ("upload", "delete"),
    "virDomain": ("setMetadata", "suspend", "resume", "destroy"),
}
_FORGE = ("jobs", "runners", "create_runner", "delete_runner", "disable_runner", "fail_job")


class Kind(StrEnum):
    """What goes wrong at a step."""

    KILL_BEFORE = "kill-before"
    KILL_AFTER = "kill-after"
    QEMU = "qemu"  # kill -9 of the machine's QEMU
    LIBVIRTD = "libvirtd"  # kill -9 of libvirtd, or of the daemon for machines alone
    LIBVIRTD_MID = "libvirtd-mid"  # … a moment after it was asked
    NETWORKS = "networks"  # kill -9 of libvirt's daemon for networks, where it is one of its own
    STORAGE = "storage"  # … for storage
    DISK = "disk-full"
    REFUSE = "refuse"  # nobody listens
    HANG = "hang"  # the forge does what it is asked, its answer never comes
    ERROR = "500"
    DENY = "401"
    CUT = "cut-json"  # the forge does what it is asked, half of its answer comes
    NULL = "null"  # … and its answer is null

    @property
    def is_forges(self) -> bool:
        """Whether it needs a request to the forge."""
        return self in {Kind.REFUSE, Kind.HANG, Kind.ERROR, Kind.DENY, Kind.CUT, Kind.NULL}


_DAEMONS = {
    Kind.LIBVIRTD: daemons.MACHINES,
    Kind.NETWORKS: daemons.NETWORKS,
    Kind.STORAGE: daemons.STORAGE,
}


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and at which step of the pass."""

    step: str
    kind: Kind


@dataclass(frozen=True)
class Ground:
    """What a pass needs to know: the configuration, where to write down its steps, the folder that
    a full disk is made of.
    """

    config: Path
    notes: Path
    disk: Path


def machines_of(manager: str) -> list[int]:
    """The pids of the manager's QEMU processes, whatever libvirt thinks of them."""
    found = []
    for at in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"guest=vmr-{manager}-".encode() in (at / "cmdline").read_bytes():
                found.append(int(at.name))
    return found


def kill(pid: int) -> None:
    """kill -9, and wait until it has no thread left."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while _has_memory(pid):
        assert time.monotonic() < deadline, f"process {pid} does not die"
        time.sleep(0.02)


def _has_memory(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def fill(folder: Path) -> None:
    """Leave not a byte of the folder's file system."""
    with (folder / "filler").open("wb", buffering=0) as filler:
        at, size = 0, 256 << 20
        while size >= 4096:
            try:
                os.posix_fallocate(filler.fileno(), at, size)
                at += size
            except OSError:
                size //= 2


class Notes:
    """The pass's own account, a line of JSON each, written at once: it must outlive a kill."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")

    def write(self, **fields: Any) -> None:
        self._file.write(json.dumps(fields, default=str) + "\n")

    def info(self, event: str, **fields: object) -> None:
        self.write(log=event, **fields)

    def debug(self, event: str, **fields: object) -> None: ...

    warning = error = info


class Steps:
    """Names the steps, and makes the fault happen at its step."""

    def __init__(self, ground: Ground, manager: str, notes: Notes, fault: Fault | None) -> None:
        self._ground, self._manager, self._notes, self._fault = ground, manager, notes, fault
        self._seen: Counter[str] = Counter()
        self._lock = Lock()

    @contextmanager
    def step(self, what: str) -> Iterator[Kind | None]:
        """Around the call.

        What it gives is the fault that the caller has to bring about by itself.
        """
        with self._lock:
            self._seen[what] += 1
            name = what if self._seen[what] == 1 else f"{what} #{self._seen[what]}"
            self._notes.write(step=name, qemu=bool(machines_of(self._manager)))
        kind = self._fault.kind if self._fault and self._fault.step == name else None
        if kind:
            self._notes.write(hit=name, kind=kind)
            self._strike(kind)
        later = (
            Timer(_MOMENT, kill, (daemons.pid_of(daemons.MACHINES),))
            if kind is Kind.LIBVIRTD_MID
            else None
        )
        if later:
            later.start()
        try:
            yield kind
        finally:
            if later:
                later.join()
        if kind is Kind.KILL_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    def _strike(self, kind: Kind) -> None:
        if kind is Kind.KILL_BEFORE:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind is Kind.QEMU:
            for pid in machines_of(self._manager):
                kill(pid)
        elif kind in _DAEMONS:
            if daemons.runs(_DAEMONS[kind]):  # an idle one has ended by itself
                kill(daemons.pid_of(_DAEMONS[kind]))
        elif kind is Kind.DISK:
            fill(self._ground.disk)

    def wrap(self, owner: Any, name: str, describe: Callable[..., str]) -> None:
        """Make every call of this method a step, the object's own calls of it included; one without
        a description is none.
        """
        method = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            what = describe(*arguments)
            with self.step(what) if what else nullcontext():
                return method(*arguments, **options)

        setattr(owner, name, call)


def _described_file(name: str) -> Callable[..., str]:
    return lambda _machine, file, *_: f"{name} {file}"


def _described_log(volume: str, *_: object) -> str:
    """Of the storage pool's volumes only a machine's logs, which are made within `start`."""
    kind = volume.partition(".")[2]
    return f"put {kind}" if kind in {File.EVENTS, File.CONSOLE, File.RUNNER_LOG} else ""


def _described_binding(binding: Binding) -> str:
    return f"save {'ending' if binding.ending else 'minted' if binding.is_minted else 'unminted'}"


def _wrap_forge(forge: Any, steps: Steps) -> None:
    """Each request is a step, named by the call that it is made for."""
    http, purpose = forge._http, [""]
    send = http.send

    def sent(method: str, path: str, doing: str, *, headers: Any, **options: Any) -> httpx.Response:
        last = path.rpartition("/")[2]
        with steps.step(f"{purpose[0]} {method} {'job' if last.isdigit() else last}") as kind:
            if kind is None or not kind.is_forges:
                return send(method, path, doing, headers=headers, **options)  # type: ignore[no-any-return]
            url, timeout = http.url, http._client.timeout
            http.url, http._client.timeout = (
                _NOBODY if kind is Kind.REFUSE else url,
                _PATIENCE if kind is Kind.HANG else timeout,
            )
            try:
                return send(
                    method, path, doing, headers={**headers, FAULT_HEADER: kind.value}, **options
                )  # type: ignore[no-any-return]
            finally:
                http.url, http._client.timeout = url, timeout

    def named(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            purpose[0] = name
            return method(*arguments)

        return call

    http.send = sent
    for name in _FORGE:
        setattr(forge, name, named(name, getattr(forge, name)))


def _wrap_libvirt(steps: Steps) -> None:
    """Between two calls of one method of the seam, too, a manager can be killed.

    This process makes one pass, so its classes are ours.
    """
    for kind, names in _LIBVIRT.items():
        for name in names:
            steps.wrap(getattr(libvirt, kind), name, lambda *_, called=f"{kind}.{name}": called)
    steps.wrap(libvirt_qemu, "qemuMonitorCommand", _described_command)


def _described_command(_domain: Any, command: str, *_: Any) -> str:
    name = json.loads(command)["execute"]
    return "" if name.startswith("query") else f"vir {name}"


def run(ground: Ground, fault: Fault | None, drained: bool) -> None:
    """The pass.

    A failure of the product's own kind is written down; anything else is a bug, and so is an exit
    code other than 0 or -9.
    """
    notes = Notes(ground.notes)
    # A machine that a fault took shall be followed by the next one at once.
    passes._FIRST_BACKOFF = 0.2
    try:
        settings = config.load(ground.config)
        steps = Steps(ground, settings.manager, notes, fault)
        host = open_host(settings, lambda _: None)
        forge = connect(settings.forge, config.forge_token(settings.forge, notes.warning))
        bindings = Bindings(settings.runtime_dir, settings.manager)
        steps.wrap(host, "prepare", lambda *_: "prepare")
        for name in _MACHINES:
            steps.wrap(
                host.machines,
                name,
                _described_file(name) if name in {"put", "delete"} else lambda *_, name=name: name,
            )
        steps.wrap(host._storage, "write", _described_log)
        steps.wrap(host.snapshots, "drop", lambda *_: "drop_snapshot")
        steps.wrap(bindings, "save", _described_binding)
        steps.wrap(bindings, "drop", lambda *_: "drop")
        _wrap_forge(forge, steps)
        _wrap_libvirt(steps)
        # A file written beside its place.
        steps.wrap(Path, "replace", lambda _, target: f"rename {Path(target).suffix}")
        history = History(settings.state_dir / "history.sqlite", notes.warning)
        manager = Manager(settings, host, forge, history, notes, bindings=bindings)
        with manager.lock():
            outcome, _ = manager.reconcile(
                dict.fromkeys(settings.pools, Drain.IDLE) if drained else None
            )
        for failure in outcome.failures:
            notes.write(failure=failure.sentence, kind=type(failure).__name__)
    except VmrunnerError as error:
        notes.write(failure=error.sentence, kind=type(error).__name__)
    except BaseException:
        notes.write(bug=traceback.format_exc())
        raise
