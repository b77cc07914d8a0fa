"""The page over files in a folder, without a server: what a browser would get."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from tests.fakes import FakeLog
from tests.world import POOL, World
from vmrunner.cli import surveyed
from vmrunner.manager.logbook import Logbook
from vmrunner.manager.record import Record
from vmrunner.model.machine import Ending
from vmrunner.page.access import Guard, Rules
from vmrunner.page.app import Host, Views, application, draw
from vmrunner.page.guests import Answer, Guests
from vmrunner.page.past import Past
from vmrunner.page.said import Logs
from vmrunner.page.seen import Reader, Writer
from vmrunner.page.summary import Summary

VIEWS = ("/", "/queue", "/machines", "/history", "/plots", "/images")
POOLS = {"p": POOL | {"max": 4}, "big": POOL | {"labels": ["big"], "max": 2}}
NOW = 1_800_000_000.0


class Answers(Guests):
    """What guests say, without a process that asks them."""

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__([])
        self.answer = answer

    def said(self, machine: str, began: float, patience: float) -> Answer | None:
        """The same of each."""
        return self.answer


class Page:
    """All that the page's process has, over the files of a world."""

    def __init__(
        self, folder: Path, rules: Rules | None = None, guests: Answers | None = None
    ) -> None:
        """With `guests` logs are shown."""
        self.world = World(folder, pools=POOLS)
        self.world.clock.now = NOW
        self.log, settings = FakeLog(), self.world.settings
        settings.runtime_dir.mkdir(parents=True, exist_ok=True)
        self.seen_file = settings.seen_file
        self.logbook = Logbook(settings.logs_dir)
        past = Past(settings.state_dir / "history.sqlite")
        most = {name: pool.max for name, pool in settings.pools.items()}
        self.summary = Summary(past, most, draw, self.log, self.world.clock)
        views = Views(
            Host(settings.manager, settings.images_dir, most),
            Reader(self.seen_file),
            past,
            self.summary,
            self.log,
            self.world.clock,
            Logs(self.logbook, guests) if guests else None,
        )
        self.app = Guard(application(views), rules or Rules())

    def look(self) -> None:
        """A pass of `serve`, as the page sees it."""
        survey, now = self.world.manager.survey(), self.world.clock.now
        Writer(self.seen_file, self.log).write(
            lambda: surveyed.status(self.world.manager, survey, now), now
        )

    def remember(self, number: int, **fields: Any) -> Record:
        """A machine that has ended; each one's end is a minute before that of the one with the
        number before.
        """
        end = self.world.clock.now - 60.0 * number
        row = Record(
            f"vmr-m-{number:08x}",
            "p",
            "debian-12/1",
            job=f"job {number}",
            repository="acme/site",
            verdict="success",
            ran="yes",
            queued=end - 50,
            created=end - 48,
            started=end - 47,
            up=end - 40,
            runner=end - 39,
            running=end - 38,
            job_started=end - 38,
            job_ended=end - 3,
            exit=end - 2,
            destroyed=end,
            ending=Ending.DONE.value,
        )
        row = replace(row, **fields)
        self.world.history._write(row)
        return row

    def get(self, address: str, method: str = "GET", **headers: str) -> httpx.Response:
        """An answer."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost"
            ) as client:
                return await client.request(
                    method,
                    address,
                    headers={name.replace("_", "-"): value for name, value in headers.items()},
                )

        return asyncio.run(ask())

    def text(self, address: str) -> str:
        """An answer's body, which is fine."""
        answer = self.get(address)
        assert answer.status_code == 200, (address, answer.status_code, answer.text)
        return answer.text

    def seen(self, change: Callable[[dict[str, Any]], object]) -> None:
        """What the last pass saw, changed."""
        plain = json.loads(self.seen_file.read_text())
        change(plain)
        self.seen_file.write_text(json.dumps(plain))

    def close(self) -> None:
        self.world.history.close()
        World.opened.remove(self.world)


def basic(password: str, user: str = "anybody") -> str:
    """An Authorization header."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
