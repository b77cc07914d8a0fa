"""Whether a connection still leads to all of libvirt, and what is said where it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import libvirt
import pytest

from vmrunner.errors import HypervisorError
from vmrunner.hypervisor import connection
from vmrunner.hypervisor.connection import Link, translate

LOCAL, REMOTE = "qemu:///system", "qemu+ssh://host.example/system"
REFUSED = "Failed to connect socket to '/var/run/libvirt/{}-sock': Connection refused"


def error(said: str, domain: int = libvirt.VIR_FROM_RPC) -> libvirt.libvirtError:
    """As the binding raises it."""
    made = libvirt.libvirtError(said)
    made.err = (libvirt.VIR_ERR_SYSTEM_ERROR, domain, said, 2, said, None, None, -1, -1)
    return made


class Connection:
    """To a libvirt of which a part may be gone."""

    def __init__(self, gone: str) -> None:
        self._gone = gone
        self.asked: list[str] = []

    def _ask(self, part: str) -> None:
        self.asked.append(part)
        if self._gone == part:
            raise error("Cannot write data: Broken pipe")

    def isAlive(self) -> int:  # noqa: N802 — libvirt's word
        return int(self._gone != "machines")

    def numOfNetworks(self) -> int:  # noqa: N802
        self._ask("networks")
        return 0

    def numOfStoragePools(self) -> int:  # noqa: N802
        self._ask("pools")
        return 0


@pytest.mark.parametrize(
    ("uri", "separate", "gone", "alive", "asked"),
    [
        # libvirtd has it all: it is asked nothing more.
        (LOCAL, False, "", True, []),
        (LOCAL, False, "machines", False, []),
        (LOCAL, True, "", True, ["networks", "pools"]),
        (LOCAL, True, "machines", False, []),
        (LOCAL, True, "networks", False, ["networks"]),
        (LOCAL, True, "pools", False, ["networks", "pools"]),
        # What another host has can't be seen from here.
        (REMOTE, False, "", True, ["networks", "pools"]),
        (REMOTE, False, "pools", False, ["networks", "pools"]),
    ],
)
def test_a_connection_is_alive_as_long_as_each_daemon_behind_it_answers(
    uri: str,
    separate: bool,
    gone: str,
    alive: bool,
    asked: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened = Connection(gone)
    monkeypatch.setattr(connection.libvirt, "open", lambda _: opened)
    monkeypatch.setattr(connection, "_SEPARATE", tmp_path / "virtqemud-sock")
    if separate:
        (tmp_path / "virtqemud-sock").touch()
    assert Link(uri).is_alive is alive
    assert opened.asked == asked


@pytest.mark.parametrize(
    ("said", "separate", "hint"),
    [
        (REFUSED.format("libvirt"), False, "`systemctl start libvirtd`"),
        (REFUSED.format("virtnetworkd"), True, "`systemctl start virtnetworkd.socket`"),
        (REFUSED.format("virtstoraged"), True, "`systemctl start virtstoraged.socket`"),
        (REFUSED.format("virtqemud"), True, "`systemctl start virtqemud.socket`"),
        (REFUSED.format("virtlogd"), False, "`systemctl start virtlogd.socket`"),
        ("client socket is closed", False, "`systemctl start libvirtd`"),
        ("client socket is closed", True, "`systemctl start virtqemud.socket`"),
    ],
)
def test_a_daemon_that_is_not_there_is_named(
    said: str, separate: bool, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_SEPARATE", tmp_path if separate else tmp_path / "none")
    refused = error(said)

    def closed(_uri: str) -> Any:
        raise refused

    monkeypatch.setattr(connection.libvirt, "open", closed)
    with pytest.raises(HypervisorError, match="does not answer") as met:
        Link(LOCAL)
    assert hint in met.value.hint
    assert hint in translate(refused, "preparing the network").hint


def test_what_libvirt_refuses_is_no_daemon_that_is_gone() -> None:
    refused = translate(error("no such machine type", libvirt.VIR_FROM_QEMU), "starting it")
    assert str(refused).startswith("libvirt refused starting it")
    assert "systemctl start" not in refused.hint
