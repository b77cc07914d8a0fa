"""The cache's process beside `serve`, and who is told of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from socket import create_server
from typing import Any

import pytest

from tests.fakes import FakeLog
from tests.page import free_port
from tests.world import POOL, World
from vmrunner.cache.service import Service
from vmrunner.config import Config
from vmrunner.waiting import Deadline

# In place of the cache: it says that it has begun, and ends with its standard input.
PROCESS = "import sys; open(sys.argv[1], 'a').write('begun '); sys.stdin.read(); open(sys.argv[1], 'a').write('ended ')"  # noqa: E501 — a program keeps its lines


def settings(folder: Path, **more: Any) -> Config:
    return Config.model_validate(
        {
            "manager": "m",
            "state_dir": folder,
            "runtime_dir": folder / "run",
            "forge": {"kind": "gitea", "url": "https://forge.example"},
            "pools": {"p": POOL},
        }
        | more
    )


class Beside:
    def __init__(self, folder: Path) -> None:
        (folder / "run").mkdir()
        self.folder, self.said, self.log = folder, folder / "said", FakeLog()
        self.service = Service([sys.executable, "-c", PROCESS, str(self.said)], self.log)

    def follow(self, **more: Any) -> None:
        self.service.follow(settings(self.folder, **more))

    def says(self, wanted: str) -> bool:
        """Whether the process comes to say just this."""
        deadline = Deadline(20)
        while (self.said.read_text() if self.said.exists() else "") != wanted:
            if deadline.is_over:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    made = Beside(tmp_path)
    with made.service:
        yield made


def test_it_runs_as_the_configuration_wants_it(beside: Beside) -> None:
    beside.follow()
    assert (beside.said.exists(), beside.service.place) == (False, None)
    beside.follow(cache={"listen_port": 8485})
    assert beside.says("begun ")
    beside.follow(cache={"listen_port": 8485}, pools={"p": POOL | {"max": 7}})
    assert beside.says("begun ")
    for count, changed in enumerate(
        (
            {"listen_port": 8486},
            {"listen_port": 8486, "max": "30GiB"},
            {"listen_port": 8486, "groups": {"g": ["a/b", "a/c"]}},
        )
    ):
        beside.follow(cache=changed)
        assert beside.says("begun ended " * (count + 1) + "begun ")
    beside.follow(cache={"listen_port": 8486}, libvirt={"subnet": "10.95.0.0/24"})
    assert beside.says("begun ended " * 4 + "begun ")
    place = beside.service.place
    assert place
    assert place.most == 20 * 2**30
    beside.follow()
    assert beside.says("begun ended " * 5)
    assert beside.service.place is None


@pytest.mark.parametrize("serves", [False, True])
def test_passes_without_a_cache_tell_jobs_of_one_that_answers(tmp_path: Path, serves: bool) -> None:
    world, port = World(tmp_path), free_port()
    world.configure(
        {"p": POOL, "q": POOL | {"network": "none"}},
        cache={"listen_port": port},
        libvirt={"subnet": "127.0.9.0/24"},
    )
    url, manager = f"http://127.0.9.1:{port}/", world.manager
    manager._serves_cache = serves  # it may just be started
    assert manager._maker("p").cache_url == (url if serves else "")
    with closing(create_server(("127.0.9.1", port))):
        assert manager._maker("p").cache_url == url
        assert manager._maker("q").cache_url == ""
    with suppress(OSError):
        world.history.close()
