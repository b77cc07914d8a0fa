"""The way into a machine, with a socket as the port and stand-ins for the programs of SSH."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest.programs import GUEST, load

KEY = "ecdsa-sha2-nistp256 AAAA"
OWN = "ssh-ed25519 BBBB"
_SERVER = """#!/bin/sh
printf '%s\\n' "$@" >{folder}/options
cat {folder}/door/authorized_keys >{folder}/let-in
exec cat
"""
_KEYGEN = f"""#!/bin/sh
while [ "$1" != -f ]; do shift; done
echo private >"$2"; echo "{OWN} comment" >"$2.pub"
"""


class Caller:
    """The host's end of the port, and the door at the other one."""

    def __init__(self, door: type, ours: socket.socket, port: socket.socket) -> None:
        self.port, self.theirs, self.door = ours, port, door(port.fileno())
        port.setblocking(False)
        ours.settimeout(10)
        self.thread = threading.Thread(target=self.door.let_in)

    def say(self, data: bytes) -> None:
        self.thread.start()
        self.port.sendall(data)

    def ask(self, **more: object) -> dict[str, str]:
        self.say(json.dumps({"key": KEY, "word": "w"} | more).encode() + b"\n")
        found: dict[str, str] = json.loads(self.frame())
        return found

    def frame(self) -> bytes:
        (length,) = struct.unpack(">i", self._take(4))
        return b"gone" if length < 0 else self._take(length)

    def _take(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            more = self.port.recv(count - len(found))
            assert more, "the door was closed"
            found += more
        return found

    def leave(self) -> None:
        self.port.close()
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def door(tmp_path: Path) -> Any:
    found = load("door.py").Door
    found.FOLDER, found.APART = tmp_path / "door", tmp_path / "apart"
    found.SSHD, found.KEYGEN = str(tmp_path / "sshd"), str(tmp_path / "keygen")
    found.SHADOW = str(tmp_path / "shadow")
    for path, content in (
        (found.SSHD, _SERVER.format(folder=tmp_path)),
        (found.KEYGEN, _KEYGEN),
    ):
        Path(path).write_text(content)
        Path(path).chmod(0o755)
    Path(found.SHADOW).write_text("root:*:1::::::\nrunner:!:1::::::\n")
    return found


@pytest.fixture
def caller(door: Any) -> Iterator[Caller]:
    ours, port = socket.socketpair()
    with ours, port:
        yield Caller(door, ours, port)


def running(folder: Path) -> bool:
    """Whether the server that was begun is still there."""
    return subprocess.run(["pgrep", "-f", f"{folder}/sshd"], capture_output=True).returncode == 0


def test_a_caller_is_let_in_by_its_key_alone_and_nothing_is_left_of_it(
    caller: Caller, tmp_path: Path
) -> None:
    assert caller.ask() == {"word": "w", "host_key": OWN}
    caller.port.sendall(b"hello")
    assert caller.frame() == b"hello"
    assert (tmp_path / "let-in").read_text() == f"restrict,pty {KEY}\n"
    assert (tmp_path / "door").stat().st_mode & 0o777 == 0o700
    options = (tmp_path / "options").read_text()
    for setting in (
        "-i\n-f\n/dev/null\n",
        "AllowTcpForwarding=no",
        "AllowAgentForwarding=no",
        "PasswordAuthentication=no",
        "X11Forwarding=no",
        "PermitUserRC=no",
        f"AuthorizedKeysFile={tmp_path}/door/authorized_keys",
    ):
        assert setting in options
    caller.leave()  # as when it is killed
    assert not (tmp_path / "door").exists()
    assert not running(tmp_path)


def test_a_server_that_does_not_end_is_ended(door: Any, tmp_path: Path) -> None:
    Path(door.SSHD).write_text("#!/bin/sh\ntrap '' HUP\nwhile :; do sleep 0.1; done\n")
    door.END = 0.1
    ours, port = socket.socketpair()
    with ours, port:
        caller = Caller(door, ours, port)
        caller.ask()
        assert running(tmp_path)
        caller.leave()
    assert not running(tmp_path)


def test_the_caller_hears_when_the_server_has_ended(door: Any, caller: Caller) -> None:
    Path(door.SSHD).write_text("#!/bin/sh\nprintf bye\n")
    assert "host_key" in caller.ask()
    assert [caller.frame(), caller.frame()] == [b"bye", b"gone"]
    caller.leave()


def test_more_than_the_port_takes_at_once_comes_whole(caller: Caller) -> None:
    caller.ask()
    data = bytes(range(256)) * 4096
    sending = threading.Thread(target=caller.port.sendall, args=(data,))
    sending.start()
    time.sleep(0.1)
    found = b""
    while len(found) < len(data):
        found += caller.frame()
    sending.join(10)
    assert found == data
    caller.leave()


def test_it_gives_signs_of_life(door: Any, caller: Caller) -> None:
    door.ALIVE = 0.01
    caller.ask()
    assert [caller.frame(), caller.frame()] == [b"", b""]
    caller.leave()


@pytest.mark.parametrize(
    ("path", "content", "lack"),
    [
        ("SSHD", None, "server"),
        ("KEYGEN", None, "server"),
        ("SHADOW", "root:!*:1::::::\n", "locked"),
        ("SHADOW", "root:!:1::::::\n", "locked"),
    ],
)
def test_what_an_image_lacks_is_said(
    door: Any, caller: Caller, path: str, content: str | None, lack: str
) -> None:
    file = Path(getattr(door, path))
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert caller.ask() == {"word": "w", "lack": lack}
    caller.leave()


@pytest.mark.parametrize("key", [f"{KEY}\nssh-rsa CCCC", f"{KEY}\n", "\0"])
def test_a_key_is_one_line(caller: Caller, key: str, tmp_path: Path) -> None:
    assert caller.ask(key=key) == {"word": "w", "lack": "key"}
    caller.leave()
    assert not (tmp_path / "options").exists()


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-paramiko\r\n",
        b"[]\n",
        b"{}\n",
        b'{"key": "k"}\n',
        b"\xff\xfe\n",
        b"x" * 10_000,
        b"[" * 4000 + b"\n",
    ],
)
def test_nobody_else_is_let_in(caller: Caller, said: bytes, tmp_path: Path) -> None:
    caller.say(said)
    caller.thread.join(10)
    assert not caller.thread.is_alive()
    assert not (tmp_path / "options").exists()


def test_a_caller_who_says_nothing_is_not_waited_for(door: Any, caller: Caller) -> None:
    door.HELLO = 0.05
    caller.say(b'{"key": ')
    caller.thread.join(10)
    assert not caller.thread.is_alive()


def test_what_is_left_of_one_caller_is_not_heard_of_the_next(caller: Caller) -> None:
    caller.port.sendall(b"x" * 100_000)
    caller.port.close()
    caller.door.await_nobody()
    assert caller.door._read() == b""


@pytest.mark.parametrize("alone", [True, False])
def test_it_is_a_process_of_its_own_that_keeps_no_secret(tmp_path: Path, alone: bool) -> None:
    said = tmp_path / "said"
    door = (
        "import os, sys\n"
        f"with open({str(said)!r}, 'a') as said:\n"
        "    print(os.getppid(), 'SECRET' in globals(), sorted(os.environ), sys.flags.isolated,\n"
        "          os.getsid(0) == os.getpid(), os.readlink('/proc/self/fd/1'), file=said)\n"
    )
    run = f"SECRET = 1\nkeep_door({door!r}, alone={alone})\nos.wait()\nprint('goes on')\n"
    done = subprocess.run(
        [sys.executable, "-c", f"{(GUEST / 'job.py').read_text()}\n{run}"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"OURS": "1"},
    )
    assert (done.stdout, done.stderr) == ("goes on\n", "")
    _, has_secret, rest = said.read_text().split(" ", 2)
    assert has_secret == "False"
    assert rest.endswith("True /dev/null\n")
    assert ("OURS" in rest, " 1 True" in rest) == (not alone, alone)
