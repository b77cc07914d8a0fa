"""The page's process: it is kept running, ends with who started it, and whoever reaches its port
keeps nobody else out.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes import FakeLog
from tests.forge.gitea import until
from tests.page import ask, configure, free_port, publish, remember, served
from vmrunner.beside import Keeper, command
from vmrunner.errors import ConfigError
from vmrunner.log import Format, Level
from vmrunner.page import server

PROCESS = "vmrunner.page.main"


def answers(port: int) -> bool:
    try:
        return ask(port, "/").status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where one is served."""
    folder, port = tmp_path_factory.mktemp("page"), free_port()
    publish(folder)
    remember(folder, 200)
    with served(configure(folder, f"127.0.0.1:{port}")):
        until(lambda: answers(port), 30, "it answers", every=0.05)
        yield port


def test_it_has_neither_libvirt_nor_the_forges_client() -> None:
    program = "import sys, vmrunner.page.main; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules = set(done.stdout.split())
    assert "vmrunner.page.guests" in modules
    assert modules & {"libvirt", "httpx", "vmrunner.forge", "vmrunner.hypervisor.host"} == set()


def test_it_answers_beside_connections_that_say_nothing(port: int) -> None:
    sent: tuple[bytes, ...] = (
        b"",
        b"G",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /history HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
        b"\0" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    )
    with ExitStack() as stack:
        for number in range(250):
            other = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            try:
                other.sendall(sent[number % len(sent)])
            except OSError:
                continue  # it was refused in the middle of it
            if number % 50 == 0:
                assert ask(port, "/history").status == 200
        assert ask(port, "/").status == 200


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n", 421),
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.0\r\n", 421),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n", 400),
        (b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /../../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /machines/..%2f..%2fhistory.sqlite HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"GET /%ff%fe%00 HTTP/1.1\r\nHost: localhost\r\n", 404),
        (b"CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n", 405),
        (b"hello\r\n", 400),
    ],
)
def test_what_is_refused(port: int, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request_ + b"\r\n")
        head = connection.recv(65536).partition(b"\r\n")[0]
    assert int(head.split()[1]) == status
    assert ask(port, "/").status == 200


def test_a_connection_does_not_last(tmp_path: Path) -> None:
    program = (
        "from vmrunner.page import server; server._LONGEST = 0.3; "
        "import sys; from vmrunner import beside; "
        "from vmrunner.page import main; sys.exit(beside.main(main.run))"
    )
    own = free_port()
    path = configure(tmp_path, f"127.0.0.1:{own}")
    process = subprocess.Popen(
        [sys.executable, "-c", program, "--config", str(path)], stdin=subprocess.PIPE
    )
    try:
        until(lambda: answers(own), 30, "it answers", every=0.05)
        with socket.create_connection(("127.0.0.1", own), timeout=20) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost")
            assert connection.recv(1) == b""
    finally:
        process.kill()
        process.wait()
        process.stdin.close()  # type: ignore[union-attr]


def test_it_ends_with_who_started_it(tmp_path: Path) -> None:
    port = free_port()
    path = configure(tmp_path, f"127.0.0.1:{port}")
    child = command(PROCESS, path, Format.TEXT, Level.INFO)
    starter = (
        "import subprocess, sys, time; "
        f"subprocess.Popen({child!r}, stdin=subprocess.PIPE); "
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    until(lambda: answers(port), 30, "it answers", every=0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: not answers(port), 30, "it has ended", every=0.05)


def test_one_that_ends_is_started_again(tmp_path: Path) -> None:
    log, marks = FakeLog(), tmp_path / "marks"
    program = f"import sys; open({str(marks)!r}, 'a').write('x'); sys.exit(7)"
    with Keeper("page", [sys.executable, "-c", program], log, first_rest=0.01):
        until(lambda: marks.exists() and len(marks.read_text()) >= 3, 30, "three", every=0.05)
    told = [fields for event, fields in log.lines if event.startswith("the page has ended")]
    assert told[0] == {"exit_code": 7}
    ended = len(marks.read_text())
    assert len(marks.read_text()) == ended


def test_it_is_ended_when_nobody_keeps_it(tmp_path: Path) -> None:
    log, port = FakeLog(), free_port()
    path = configure(tmp_path, f"127.0.0.1:{port}")
    with Keeper("page", command(PROCESS, path, Format.TEXT, Level.INFO), log):
        until(lambda: answers(port), 30, "it answers", every=0.05)
    assert not answers(port)
    assert log.lines == []


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    log = FakeLog()
    with Keeper("page", [str(tmp_path / "nothing")], log, first_rest=0.01):
        until(lambda: log.lines, 30, "it says so", every=0.05)
    assert log.lines[0] == ("the page was not started", {"reason": "No such file or directory"})


@pytest.mark.parametrize("listen", ["192.0.2.99:8480", "{taken}", "{folder}/none/socket", "{file}"])
def test_where_it_can_not_be(tmp_path: Path, listen: str) -> None:
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = listen.format(
            taken=f"127.0.0.1:{taken.getsockname()[1]}", folder=tmp_path, file=tmp_path / "file"
        )
        with pytest.raises(ConfigError, match="The page can't be served at"):
            server.bind(place)
    assert (tmp_path / "file").is_file()


def test_a_socket_that_was_left_is_replaced_but_not_one_that_is_heard(tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    server.bind(place).close()
    with server.bind(place):
        assert os.stat(place).st_mode & 0o777 == 0o660
        with pytest.raises(ConfigError):
            server.bind(place)
