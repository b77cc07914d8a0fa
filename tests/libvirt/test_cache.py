"""The cache beside a real `vmrunner serve`: whatever becomes of it, passes go on; and it never
outlives its `serve`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forge.gitea import Site, until
from tests.ground import Ground, lay
from tests.libvirt.test_page import beside
from tests.page import free_port
from vmrunner import config
from vmrunner.doctor import cache
from vmrunner.doctor.findings import Level

pytestmark = pytest.mark.long
MODULE = b"vmrunner.cache.main"


class Host:
    """A host with a cache."""

    def __init__(self, folder: Path, token: str) -> None:
        more = f"[cache]\nlisten_port = {free_port()}"
        self.ground: Ground = lay(folder, "ci-cache", "10.94.0.0/24", token=token, more=more)
        self.settings = config.load(self.ground.config)

    def says(self) -> str:
        """Of doctor, about the cache."""
        (finding,) = cache.look(self.settings)
        return finding.said if finding.level is Level.WARNING else ""

    def looks(self, server: subprocess.Popen[bytes]) -> None:
        """A pass is asked for, and seen in what `status` shows."""
        before = self.ground.status()["seen_seconds_ago"]
        until(lambda: self.ground.status()["seen_seconds_ago"] < max(before, 1.0), 60, "a pass")
        assert server.poll() is None


@pytest.fixture
def host(tmp_path: Path, site: Site) -> Iterator[Host]:
    made = Host(tmp_path, site.token)
    # As the machines' network has it, which comes with the first machine.
    subprocess.run(["ip", "addr", "add", "10.94.0.1/32", "dev", "lo"], check=True)
    yield made
    subprocess.run(["ip", "addr", "del", "10.94.0.1/32", "dev", "lo"], check=True)
    made.ground.run("down", "--now", "--all", "--purge", check=False)


def test_passes_go_on_whatever_becomes_of_the_cache(host: Host) -> None:
    server = host.ground.serve()
    try:
        until(lambda: not host.says(), 60, "it answers", every=0.2)
        first = beside(server, MODULE)
        os.kill(first, signal.SIGKILL)
        until(lambda: beside(server, MODULE) not in (0, first), 60, "it is started again")
        until(lambda: not host.says(), 60, "it answers again", every=0.2)
        second = beside(server, MODULE)
        os.kill(second, signal.SIGSTOP)
        host.looks(server)
        os.kill(second, signal.SIGCONT)
        server.kill()
        server.wait()
        until(lambda: "does not answer" in host.says(), 60, "it has ended with serve", every=0.2)
        server = host.ground.serve()
        until(lambda: not host.says(), 60, "the next one has its place", every=0.2)
        server.terminate()
        assert server.wait(60) == 0
        assert "does not answer" in host.says()
    finally:
        server.kill()
        server.wait()
    assert host.ground.log.read_text().count("the cache has ended; it is started again") == 1


def test_a_port_that_is_taken_stops_no_pass(host: Host) -> None:
    with socket.create_server(("10.94.0.1", host.settings.cache.listen_port or 0)):
        server = host.ground.serve()
        try:
            until(lambda: "can't be served" in host.ground.log.read_text(), 60, "it says so")
            host.looks(server)
        finally:
            server.terminate()
            server.wait()


def test_a_changed_configuration_takes_effect_with_a_reload(host: Host) -> None:
    server, first = host.ground.serve(), host.settings
    try:
        until(lambda: not host.says(), 60, "it answers", every=0.2)
        text, port = host.ground.config.read_text(), free_port()
        changed = text.replace(
            f"listen_port = {first.cache.listen_port}", f'listen_port = {port}\nmax = "6GiB"'
        )
        host.ground.config.write_text(changed)
        server.send_signal(signal.SIGHUP)
        host.settings = config.load(host.ground.config)
        until(lambda: not host.says(), 60, "it answers at the other port", every=0.2)
        host.settings = first
        assert "does not answer" in host.says()
        host.ground.config.write_text(text.partition("[cache]")[0])
        server.send_signal(signal.SIGHUP)
        until(lambda: not beside(server, MODULE), 60, "there is none any more", every=0.2)
        host.looks(server)
    finally:
        server.terminate()
        server.wait()
