"""Snapshots: a booted machine's memory in a file that its clones share copy-on-write. QEMU calls
this VM templating.

The memory is a file of the storage pool that the saved machine maps shared, and a clone maps
privately; the devices' state is what QEMU would send to another host in a migration that leaves the
memory out (`x-ignore-shared`); the disk is an overlay that the clones' overlays lie on. libvirt has
no words for the first two, so they are said in QEMU's own, through libvirt.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import libvirt
import libvirt_qemu

from vmrunner.errors import Denied, DiskFull, HypervisorError, SnapshotError
from vmrunner.hypervisor.basis import Basis
from vmrunner.hypervisor.connection import Link, asking, dotted, is_denied
from vmrunner.hypervisor.domains import Domains
from vmrunner.hypervisor.seam import SNAPSHOT_PREFIX, File, Snapshot, snapshot_of
from vmrunner.hypervisor.storage import Storage, image_volume
from vmrunner.hypervisor.strangers import Strangers
from vmrunner.log import Say
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import EventKind, MachineId, Metadata, Shape, parse_events
from vmrunner.render import source, waiting_code
from vmrunner.waiting import Deadline

_LAYOUT = 1
"""Counts the changes of what a snapshot is made of, besides the templates."""
# QEMU's version from which it maps a file that it can't write, and reads and writes states by name.
_SHARING = 9_000_000
_SOCKETS = Path("/var/lib/libvirt/qemu")  # where QEMU's user may make sockets
_LOAD_WITHIN = 30.0  # seconds; it takes 30 ms
_SETTLE = 3.0  # seconds; what still runs in the guest when it is saved runs again in every clone
_MANIFEST = "manifest.json"
_BOOT = "boot"  # in which boot of the host its files were last found to be whole
_PARTS = ("ram", "state", "qcow2")


class LibvirtSnapshots:
    """The Snapshots of the seam, in the storage pool: volumes named `snapshot-<key>.<part>`, the
    manifest last.
    """

    def __init__(
        self,
        link: Link,
        storage: Storage,
        domains: Domains,
        strangers: Strangers,
        boot: str,
        *,
        kvm: bool,
    ) -> None:
        self._link, self._storage, self._domains, self._kvm = link, storage, domains, kvm
        self._strangers, self._boot = strangers, boot.encode()
        self._known: Basis | None = None
        self._found: dict[str, Snapshot] = {}
        self._whole: set[str] = set()  # keys of those that were looked at since the host's start
        self._looking = threading.Lock()

    def forget(self) -> None:
        """Ask the host anew: the connection is another one, and libvirt may be, too."""
        self._known, self._found, self._whole = None, {}, set()

    @property
    def _host(self) -> Basis:
        self._known = known = self._known or Basis.behind(
            self._link.connection, self._link.uri, kvm=self._kvm
        )
        return known

    @property
    def shares_memory(self) -> bool:
        """Whether clones map the snapshot's memory itself, which they can't write; else each has a
        copy of its own.
        """
        return self._host.qemu >= _SHARING

    def key(self, golden: Golden, shape: Shape) -> str:
        """What a snapshot must fit, as a digest."""
        templates = [source("domain.xml.j2"), waiting_code()]
        image = [[each.name, each.version, each.manifest.files] for each in golden.parts]
        what = [
            _LAYOUT,
            self._host.digest,
            image,
            shape.vcpus,
            shape.memory_mib,
            shape.disk_gib,
            shape.nested,
            templates,
            self._domains.mtu,
        ]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def find(self, golden: Golden, shape: Shape) -> Snapshot | None:
        """The whole snapshot for such machines, if there is one."""
        return self._find(self.key(golden, shape))

    def _find(self, key: str) -> Snapshot | None:
        """A whole snapshot of this key."""
        found = self._found  # `forget` puts another one in its place
        if key in found and not self._storage.exists(_volume(key, _MANIFEST)):
            del found[key]  # another process has dropped it
        if key not in found and (raw := self._storage.read(_volume(key, _MANIFEST), 65536)):
            with suppress(ValueError, TypeError, KeyError):
                found[key] = _parse(raw)
        return found.get(key)

    def all(self) -> list[Snapshot]:
        """Every whole snapshot."""
        return [snapshot for key in self._keys() if (snapshot := self._find(key))]

    def _keys(self) -> list[str]:
        """Of whole ones and halves."""
        return sorted({key for name in self._storage.names() if (key := snapshot_of(name))})

    def drop(self, key: str) -> list[str]:
        """Delete one, its manifest first; what a guest of somebody else uses stays, and is
        returned. It goes as a half when the next one is made and nobody uses it any more.
        """
        self._found.pop(key, None)
        self._whole.discard(key)
        for part in (_MANIFEST, _BOOT):
            self._storage.delete(_volume(key, part))
        held = self._strangers.held()
        parts = [_volume(key, part) for part in _PARTS]
        for name in parts:
            if name not in held:
                self._storage.delete(name)
        return [name for name in parts if name in held]

    def verify(self, snapshot: Snapshot) -> None:
        """Compare every file with its digest."""
        for name, expected in snapshot.files.items():
            if self._storage.digest(name) != expected:
                raise SnapshotError(
                    f"The snapshot {snapshot.key} is damaged: {name} has another sha256.",
                    f"vmrunner snapshot drop {snapshot.key}",
                )

    def trust(self, snapshot: Snapshot) -> None:
        """`verify` it, once after each start of the host: what one that lost its power had not
        written to the disk yet is not what is read later.
        """
        with self._looking:
            if snapshot.key in self._whole:
                return
            if self._storage.read(_volume(snapshot.key, _BOOT), 64) != self._boot:
                self.verify(snapshot)
                self._note_whole(snapshot.key)
            self._whole.add(snapshot.key)

    def _note_whole(self, key: str) -> None:
        self._storage.delete(_volume(key, _BOOT))
        self._storage.write(_volume(key, _BOOT), self._boot)

    # ---- arguments for QEMU ----

    def disk(self, key: str) -> str:
        """The volume of a snapshot's disk."""
        return _volume(key, "qcow2")

    def saved_arguments(self, machine: MachineId, shape: Shape) -> tuple[str, ...]:
        """For a machine whose memory shall be kept."""
        return _memory(shape, f"mem-path={self._storage.path(f'{machine}.{File.RAM}')},share=on")

    def clone_arguments(self, machine: MachineId, snapshot: Snapshot) -> tuple[str, ...]:
        """For a clone; makes its own copy of the memory where QEMU can't share it safely."""
        if self.shares_memory:
            path = self._storage.path(_volume(snapshot.key, "ram"))
            ram = f"mem-path={path},share=off,readonly=on,rom=off"
        else:
            self._storage.copy(
                _volume(snapshot.key, "ram"), f"{machine}.{File.RAM}", "0600", self._host.user
            )
            ram = f"mem-path={self._storage.path(f'{machine}.{File.RAM}')},share=off"
        return (*_memory(snapshot.shape, ram), "-incoming", "defer")

    # ---- making and loading ----

    def make(
        self,
        golden: Golden,
        shape: Shape,
        machine: MachineId,
        seed: bytes,
        timeout: float,
        say: Say,
    ) -> Snapshot:
        """Boot a machine with this seed, and save it when it is ready, within `timeout` seconds."""
        self._storage.write(f"{machine}.{File.SEED}", seed)
        metadata = Metadata(machine, "", golden.id, time.time(), tools=golden.tools_id)
        try:
            return self._make(golden, shape, metadata, timeout, say)
        except DiskFull:
            raise
        except HypervisorError as error:
            raise failed("No snapshot could be made", error) from error

    def _make(
        self, golden: Golden, shape: Shape, metadata: Metadata, timeout: float, say: Say
    ) -> Snapshot:
        key, machine = self.key(golden, shape), metadata.machine
        for half in [each for each in self._keys() if not self._find(each)]:
            self.drop(half)  # whoever made it was killed
        ram, state = f"{machine}.{File.RAM}", f"{machine}.{File.STATE}"
        self._storage.create_blank(ram, shape.memory_mib << 20, self._host.user)
        self._storage.create_blank(state, 0, self._host.user)
        image = image_volume(golden, DISK)
        self._storage.create_overlay(self.disk(key), image, shape.disk_gib, "0644")
        domain = self._domains.create(
            golden,
            shape,
            metadata,
            (image,),
            self.saved_arguments(machine, shape),
            overlay=self.disk(key),
        )
        self._await_ready(domain, machine, timeout)
        say(f"snapshot {key}: saving {machine}")
        with asking(f"saving {machine}", is_long=True):
            domain.suspend()
            self._migrate(domain, "migrate", state)
            domain.destroy()
        self._storage.copy(ram, _volume(key, "ram"))
        self._storage.copy(state, _volume(key, "state"))
        digests = {
            name: self._storage.digest(name) for name in (_volume(key, part) for part in _PARTS)
        }
        taken = sum(map(self._storage.allocated, digests))
        made = Snapshot(
            key,
            golden.id,
            shape,
            time.time(),
            dotted(self._host.qemu),
            dotted(self._host.libvirt),
            digests,
            -(-taken >> 20),
            self._host.digest,
            golden.tools_id,
        )
        self._note_whole(key)
        self._storage.write(_volume(key, _MANIFEST), json.dumps(asdict(made)).encode())
        return made

    def _await_ready(self, domain: Any, machine: MachineId, timeout: float) -> None:
        deadline = Deadline(timeout)
        while not any(
            event.kind is EventKind.READY
            for event in parse_events(self._storage.read(f"{machine}.{File.EVENTS}", 65536))
        ):
            self._storage.progress()
            if deadline.is_over:
                raise SnapshotError(
                    f"The machine that was to be saved was not ready within {timeout:.0f} s.",
                    "Does the image boot? `vmrunner exec` shows it.",
                )
            try:
                domain.info()
            except libvirt.libvirtError:
                raise SnapshotError(
                    "The machine that was to be saved went before it was ready.",
                    "Does the image boot? `vmrunner exec` shows it.",
                ) from None
            deadline.pause(0.2)
        time.sleep(_SETTLE)

    def load(self, domain: Any, snapshot: Snapshot) -> None:
        """Fill a domain that was started with `clone_arguments`; it stays paused."""
        self._migrate(domain, "migrate-incoming", _volume(snapshot.key, "state"))

    def _migrate(self, domain: Any, command: str, state: str) -> None:
        """Write or read the devices' state."""
        _say(
            domain,
            "migrate-set-capabilities",
            capabilities=[{"capability": "x-ignore-shared", "state": True}],
        )
        if self.shares_memory:
            _say(domain, command, uri=f"file:{self._storage.path(state)}")
            _await_migration(domain)
            return
        # Older ones know sockets only: what goes over it is read from the volume, or written there.
        with _socket() as path:
            if command == "migrate":
                with socket.socket(socket.AF_UNIX) as server:
                    server.bind(str(path))
                    path.chmod(0o666)
                    server.listen(1)
                    server.settimeout(_LOAD_WITHIN)
                    received = bytearray()

                    def receive() -> None:
                        with suppress(OSError), server.accept()[0] as peer:
                            while chunk := peer.recv(1 << 20):
                                received.extend(chunk)

                    thread = threading.Thread(target=receive)
                    thread.start()
                    _say(domain, command, uri=f"unix:{path}")
                    _await_migration(domain)
                    thread.join(_LOAD_WITHIN)
                self._storage.delete(state)
                self._storage.write(state, bytes(received))
                return
            content = self._storage.read(state, 1 << 30)
            _say(domain, command, uri=f"unix:{path}")
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.sendall(content)
            _await_migration(domain)


@contextmanager
def _socket() -> Iterator[Path]:
    """A path for a socket that QEMU's user and we can reach."""
    if os.geteuid() != 0 or not _SOCKETS.is_dir():
        raise SnapshotError(
            "Snapshots with a QEMU older than 9 need root, and libvirt on this host.",
            'Update QEMU, or set `start = "boot"`.',
        )
    with tempfile.TemporaryDirectory(dir=_SOCKETS, prefix="vmrunner-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder) / "socket"


def _memory(shape: Shape, how: str) -> tuple[str, ...]:
    backend = f"memory-backend-file,id=vmrunner.ram,size={shape.memory_mib}M,{how}"
    return ("-object", backend, "-machine", "memory-backend=vmrunner.ram")


def _say(domain: Any, command: str, **arguments: object) -> Any:
    with asking(f"telling QEMU {command}"):
        answer = json.loads(
            libvirt_qemu.qemuMonitorCommand(
                domain, json.dumps({"execute": command, "arguments": arguments}), 0
            )
        )
    if "error" in answer:
        said = str(answer["error"].get("desc", "?"))
        raise SnapshotError(
            f"QEMU refused {command}: {said}",
            "The machine is booted instead.",
            denied=is_denied(said),
        )
    return answer["return"]


def _await_migration(domain: Any) -> None:
    deadline = Deadline(_LOAD_WITHIN)
    while (found := _say(domain, "query-migrate")).get("status") != "completed":
        if found.get("status") == "failed":
            said = str(found.get("error-desc", "?"))
            raise SnapshotError(
                f"QEMU could not use the state: {said}",
                "The machine is booted instead.",
                denied=is_denied(said),
            )
        if deadline.is_over:
            raise SnapshotError(
                f"QEMU did not use the state within {_LOAD_WITHIN:.0f} s.",
                "The machine is booted instead.",
            )
        deadline.pause(0.002)


def failed(what: str, error: HypervisorError) -> SnapshotError:
    """An error of the host as one of a snapshot, for who can go on without one."""
    denied = isinstance(error, Denied) or (isinstance(error, SnapshotError) and error.denied)
    return SnapshotError(f"{what}: {error.sentence}", error.hint, denied=denied)


def _volume(key: str, part: str) -> str:
    return f"{SNAPSHOT_PREFIX}{key}.{part}"


def _parse(raw: bytes) -> Snapshot:
    plain = json.loads(raw)
    return replace(Snapshot(**plain), shape=Shape(**plain["shape"]))
