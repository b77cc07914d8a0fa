"""What doctor says of the cache of jobs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.caching import served
from tests.page import free_port
from vmrunner.config import Config
from vmrunner.doctor import cache
from vmrunner.doctor.findings import Level


def configured(subnet: str = "127.0.0.0/24", **section: object) -> Config:
    settings = {
        "manager": "m",
        "forge": {"kind": "gitea", "url": "https://forge.example"},
        "pools": {"p": {"labels": ["a"], "image": "a"}},
        "libvirt": {"subnet": subnet},  # whose gateway is there
        "cache": section,
    }
    return Config.model_validate(settings)


def told(subnet: str = "127.0.0.0/24", **section: object) -> list[tuple[Level, str]]:
    found = cache.look(configured(subnet, **section))
    return [(each.level, each.said) for each in found]


@contextmanager
def saying(answer: bytes) -> Iterator[int]:
    """Somebody who says this to whoever connects, and the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answers() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

        thread = threading.Thread(target=answers)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def test_there_is_none() -> None:
    assert told() == []


def test_it_answers(tmp_path: Path) -> None:
    with served(tmp_path / "cache", {}) as service:
        found = told(listen_port=service.port)
        assert cache.answers(configured(listen_port=service.port))
    assert found == [(Level.GOOD, f"for jobs, at 127.0.0.1:{service.port}")]


def test_the_machines_network_is_not_there_yet() -> None:
    ((level, said),) = told("192.0.2.0/24", listen_port=8485)
    assert (level, said) == (
        Level.GOOD,
        "for jobs, at 192.0.2.1:8485; that address is there from the first machine on",
    )


def test_nobody_answers() -> None:
    assert not cache.answers(configured())
    assert not cache.answers(configured(listen_port=free_port()))
    ((level, said),) = told(listen_port=free_port())
    assert (level, "does not answer at 127.0.0.1:" in said) == (Level.WARNING, True)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\nnull",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9\r\n\r\n<message>",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"",
    ],
)
def test_somebody_else_answers(answer: bytes) -> None:
    with saying(answer) as port:
        ((level, said),) = told(listen_port=port)
    assert (level, said) == (
        Level.WARNING,
        f"Something else than the cache answers at 127.0.0.1:{port}.",
    )
