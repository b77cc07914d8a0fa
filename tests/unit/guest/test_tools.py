"""A disk of tools in a machine: where it is mounted, and who is told of it."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Guest = Any


@pytest.fixture
def mounted(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What is mounted here: source, target, kind and options."""
    found: list[tuple[str, ...]] = []

    def mount(source: Path, target: Path, kind: str, flags: int, options: str = "") -> None:
        assert target.is_dir()
        assert flags & guest.MS_NODEV
        assert flags & guest.MS_NOSUID
        found.append((str(source), str(target), kind, options))

    guest.mount = mount
    is_mount = os.path.ismount
    monkeypatch.setattr(
        os.path, "ismount", lambda path: str(path) in {each[1] for each in found} or is_mount(path)
    )
    return found


def disks(guest: Guest, **serials: str) -> None:
    for name, serial in serials.items():
        (guest.BLOCKS / name).mkdir(parents=True)
        if serial:
            (guest.BLOCKS / name / "serial").write_text(f"{serial}\n")


def test_a_machine_without_such_a_disk_has_none(guest: Guest, mounted: list[Any]) -> None:
    disks(guest, vda="", vdb="vmrunner-seed")
    guest.mount_tools()
    guest.make_work()
    assert mounted == []
    assert list(guest.WORK.iterdir()) == []


def test_the_disk_is_found_by_its_name_and_lies_under_what_jobs_add(
    guest: Guest, mounted: list[Any]
) -> None:
    disks(guest, vda="", vdb="vmrunner-seed", vdd="vmrunner-tools")
    guest.mount_tools()
    guest.mount_tools()  # a clone's is there already
    folder = guest.TOOLS_FOLDER
    layers = f"lowerdir={folder}/disk/tools,upperdir={folder}/added,workdir={folder}/work"
    assert mounted == [
        ("/dev/vdd", f"{folder}/disk", "ext4", ""),
        ("overlay", str(guest.TOOL_CACHE), "overlay", f"{layers},redirect_dir=on"),
    ]
    # The folder of all is this one's: every user of a job may add to it.
    assert (folder / "added").stat().st_mode & 0o777 == 0o777
    guest.make_work()
    guest.make_work()
    assert (guest.WORK / "tool_cache").readlink() == guest.TOOL_CACHE


def test_a_job_goes_on_without_tools_that_cant_be_mounted(guest: Guest) -> None:
    disks(guest, vdc="vmrunner-tools")

    def mount(*_: Any) -> None:
        raise OSError(19, "mounting")

    guest.mount = mount
    guest.LOG.touch()
    guest.mount_tools()
    assert "there are no tools here" in guest.LOG.read_text()
    assert guest.TOOL_CACHE.stat().st_mode & 0o777 == 0o777  # where actions put what they fetch


@contextmanager
def docker(guest: Guest, answer: bytes) -> Iterator[list[bytes]]:
    """A Docker that hears one request."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(guest.DOCKER))
        server.listen()

        def hear() -> None:
            with server.accept()[0] as peer:
                heard.append(peer.recv(65536))
                peer.sendall(answer)

        listening = threading.Thread(target=hear)
        listening.start()
        yield heard
        listening.join()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.0 201 Created\r\n\r\n{}", ""),
        (b"HTTP/1.0 500 No\r\n\r\n{}", "containers have no tools: Docker answers HTTP/1.0 500 No"),
    ],
)
def test_containers_get_them_as_the_volume_that_the_runner_mounts(
    guest: Guest, mounted: list[Any], answer: bytes, said: str
) -> None:
    disks(guest, vdc="vmrunner-tools")
    guest.LOG.touch()
    with docker(guest, answer) as heard:
        guest.mount_tools()
    head, _, body = heard[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /volumes/create HTTP/1.0\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    options = {"type": "none", "o": "bind", "device": str(guest.TOOL_CACHE)}
    assert json.loads(body) == {"Name": "act-toolcache", "Driver": "local", "DriverOpts": options}
    assert said in guest.LOG.read_text()
    assert bool(guest.LOG.read_text()) == bool(said)
