"""What root makes by hand, or for GARM, in folders of the service's user is that user's."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from vmrunner import files, lock
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits, Store
from vmrunner.cache.uploads import Uploads
from vmrunner.machine import ownership
from vmrunner.machine.bindings import Bindings
from vmrunner.machine.identity import host
from vmrunner.machine.instances import Instance, Instances
from vmrunner.manager.history import History
from vmrunner.manager.logbook import Logbook
from vmrunner.model.binding import Binding
from vmrunner.model.entry import Entry, Source
from vmrunner.model.job import Scope
from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import Addresses

SERVICE = 65534
MACHINE = MachineId("m", "5f6e7d8c", "0a0b0c0d")


def _owns(folder: Path) -> None:
    with ownership.owning(folder, MACHINE):
        _check(folder)


def _locks(folder: Path) -> None:
    with lock.exclusive(folder, "m", wait=0, say=print):
        pass


def _writes_history(folder: Path) -> None:
    path = folder / "history.sqlite"
    with closing(History(path, print)) as history:
        history.start_failed(MACHINE, "p", "no", 1.0)
        _check(folder)


def _keeps_a_log(folder: Path) -> None:
    Logbook(folder / "logs", print).keep(str(MACHINE), [Entry(1.0, Source.GUEST, "hello")])


def _caches(folder: Path) -> None:
    job = Rights("o/r", "refs/heads/main", ("refs/heads/main",))
    with closing(Store(folder / "cache", Limits(keep_free=0), print)) as store:
        uploads = Uploads(store, lambda _: job)
        id_ = uploads.reserve("a", job, "k", "v", 1)
        uploads.write(uploads.claim("a", job, id_, 0, 1), b"x")
        _check(folder)
        uploads.commit("a", job, id_, 1)
        _check(folder)


MAKERS: dict[str, Callable[[Path], object]] = {
    "a file": lambda folder: files.write_whole(folder / "file", "content"),
    "a secret": lambda folder: files.write_whole(folder / "file", "content", 0o600),
    "a folder": lambda folder: files.make_folder(folder / "inside"),
    "an address": lambda folder: Addresses(folder, IPv4Network("10.0.0.0/24")).take(MACHINE),
    "a binding": lambda folder: Bindings(folder, "m").save(
        Binding(MACHINE, "p", Scope.parse("instance"))
    ),
    "GARM's instance": lambda folder: Instances(folder, folder, "m").save(
        Instance(MACHINE, "one", "c", "p", "small", "i/1")
    ),
    "the host's word": host,
    "a lock": _locks,
    "a machine's lock": _owns,
    "the history": _writes_history,
    "a log": _keeps_a_log,
    "a cache": _caches,
}


def _check(folder: Path) -> None:
    made = {path: path.stat().st_uid for path in folder.rglob("*")}
    assert made
    assert set(made.values()) == {SERVICE}, made


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_root_makes_is_the_services(tmp_path: Path, make: Callable[[Path], object]) -> None:
    if os.geteuid() != 0:
        pytest.fail("run the tests as root: this one gives a folder away")
    folder = tmp_path / "folder"
    folder.mkdir()
    os.chown(folder, SERVICE, SERVICE)
    make(folder)
    if make is not _owns:
        _check(folder)
