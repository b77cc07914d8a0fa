"""The page beside a real `vmrunner serve`: whatever becomes of it, passes go on; and it never
outlives its `serve`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forge.gitea import Site, until
from tests.ground import Ground, lay
from tests.page import free_port
from vmrunner.page.seen import Reader

pytestmark = pytest.mark.long

TOKEN = "0123456789abcdef0123456789abcdef"


class Host:
    """A host with a page."""

    def __init__(self, folder: Path, token: str) -> None:
        self.port, secret = free_port(), folder / "page-token"
        secret.write_text(TOKEN)
        secret.chmod(0o600)
        page = f'[page]\nlisten = "127.0.0.1:{self.port}"\ntoken_file = "{secret}"'
        self.ground: Ground = lay(folder, "ci-page", "10.93.0.0/24", token=token, more=page)
        self.seen = Reader(folder / "run" / "ci-page.seen.json")

    def get(self, token: str = TOKEN) -> tuple[int, str]:
        """The status of `/`, and its text; 0 where nobody answers."""
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            with urllib.request.urlopen(asked, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""
        except OSError:
            return 0, ""

    def shows(self) -> bool:
        """Whether it shows a pass of a moment ago."""
        status, text = self.get()
        return status == 200 and "/machines?pool=main" in text and "may be old" not in text

    def goes_on(self) -> None:
        """Two more passes are seen."""
        for _ in range(2):
            before = self.seen.seen().at
            until(lambda before=before: self.seen.seen().at > before, 60, "a pass", every=0.1)


def beside(server: subprocess.Popen[bytes], module: bytes = b"vmrunner.page.main") -> int:
    """The id of the process of this module that it has started; 0 where there is none."""
    for folder in Path(f"/proc/{server.pid}/task").iterdir():
        for child in map(int, (folder / "children").read_text().split()):
            if module in Path(f"/proc/{child}/cmdline").read_bytes():
                return child
    return 0


@pytest.fixture
def host(tmp_path: Path, site: Site) -> Iterator[Host]:
    made = Host(tmp_path, site.token)
    yield made
    made.ground.run("down", "--now", "--all", "--purge", check=False)


def test_passes_go_on_whatever_becomes_of_the_page(host: Host) -> None:
    server = host.ground.serve()
    try:
        until(host.shows, 60, "it shows a pass", every=0.2)
        assert host.get("wrong")[0] == 401
        first = beside(server)
        os.kill(first, signal.SIGKILL)
        host.goes_on()
        until(host.shows, 60, "it is there again", every=0.2)
        second = beside(server)
        assert second != first
        os.kill(second, signal.SIGSTOP)
        with socket.create_connection(("127.0.0.1", host.port), timeout=5):
            host.goes_on()
        os.kill(second, signal.SIGCONT)
        server.kill()
        server.wait()
        until(lambda: host.get()[0] == 0, 60, "it has ended with serve", every=0.2)
        server = host.ground.serve()
        until(host.shows, 60, "the next one has its place", every=0.2)
        server.terminate()
        assert server.wait(60) == 0
        assert host.get()[0] == 0
    finally:
        server.kill()
        server.wait()
    log = host.ground.log.read_text()
    assert log.count("the page has ended; it is started again") == 1
    assert TOKEN not in log


def test_a_port_that_is_taken_stops_no_pass(host: Host) -> None:
    with socket.create_server(("127.0.0.1", host.port)):
        server = host.ground.serve()
        try:
            until(lambda: host.seen.seen().at, 60, "a pass", every=0.2)
            host.goes_on()
        finally:
            server.terminate()
            server.wait()
    assert "The page can't be served at" in host.ground.log.read_text()


def test_a_token_that_is_none_is_said_at_the_start(host: Host) -> None:
    (host.ground.folder / "page-token").write_text("short")
    done = host.ground.run("serve", check=False)
    assert (done.returncode, "is too short" in done.stderr) == (3, True)
