"""What doctor says of what fetches packages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from vmrunner.config import Config
from vmrunner.doctor import packages
from vmrunner.doctor.findings import Level
from vmrunner.model.packages import Ecosystem, Mirror


@contextmanager
def answering(status: int, header: str) -> Iterator[tuple[int, list[str]]]:
    """A server's port, and the lines of what it was asked."""
    asked = list[str]()

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(f"{self.path} {self.headers['Host']}")
            self.send_response(status)
            self.send_header(header, "x")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_port, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(**packages: object) -> Config:
    return Config.model_validate(
        {
            "forge": {"kind": "gitea", "url": "https://forge.example"},
            "pools": {"p": {"labels": ["a"], "image": "a"}},
            "manager": "m",
            "cache": {"packages": packages},
        }
    )


def test_there_are_none() -> None:
    assert list(packages.look(settings())) == []


@pytest.mark.parametrize(
    ("of", "header", "asked"),
    [
        (Ecosystem.APT, "X-Vmrunner-Cache", "/debian/dists/stable/InRelease deb.debian.org"),
        (Ecosystem.NPM, "X-Vmrunner-Cache", "/-/ping 127.0.0.1:{}"),
        (Ecosystem.PYPI, "X-Vmrunner-Cache", "/simple/pip/ 127.0.0.1:{}"),
        (Ecosystem.GO, "X-Vmrunner-Cache", "/sumdb/sum.golang.org/supported 127.0.0.1:{}"),
        (Ecosystem.OCI, "Docker-Distribution-Api-Version", "/v2/ 127.0.0.1:{}"),
        (Ecosystem.CRATES, "X-Vmrunner-Cache", "/config.json 127.0.0.1:{}"),
        (
            Ecosystem.MAVEN,
            "X-Vmrunner-Cache",
            "/maven2/junit/junit/maven-metadata.xml 127.0.0.1:{}",
        ),
    ],
)
def test_each_is_asked(of: Ecosystem, header: str, asked: str) -> None:
    with answering(200, header) as (port, lines):
        found = packages._look(Mirror(of, of.public, "127.0.0.1", port))
    assert (found.check, found.level) == (f"{of} packages", Level.GOOD)
    assert lines == [asked.format(port)]
    with answering(502, header) as (port, _):
        found = packages._look(Mirror(of, of.public, "127.0.0.1", port))
    assert (found.level, f"can't fetch from {of.public} (502)" in found.said) == (
        Level.WARNING,
        True,
    )
    with answering(200, "Server") as (port, _):
        found = packages._look(Mirror(of, of.public, "127.0.0.1", port))
    assert (found.level, "something else" in found.said) == (Level.WARNING, True)
    found = packages._look(Mirror(of, of.public, "127.0.0.1", port))
    assert (found.level, "Nothing answers" in found.said) == (Level.WARNING, True)
    assert f"`vmrunner cache setup {of}`" in found.fix
