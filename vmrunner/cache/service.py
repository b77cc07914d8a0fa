"""The cache's process beside `serve`: as the configuration wants it that passes go by."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import NamedTuple

from vmrunner.beside import Keeper
from vmrunner.cache.figures import Place
from vmrunner.cache.store import Limits
from vmrunner.cache.teller import Running, Teller
from vmrunner.config import Config
from vmrunner.forge.seam import Forge
from vmrunner.log import Log


class _Wanted(NamedTuple):
    """What the process reads of a configuration when it starts."""

    cache: object
    others: tuple[object, ...]

    @classmethod
    def by(cls, settings: Config) -> _Wanted:
        files = (settings.cache_dir, settings.cache_jobs_file)
        return cls(settings.cache, (*files, settings.libvirt.subnet, settings.forge.url))


class Service:
    """While it is entered, the process runs where there is to be one. `command` starts it."""

    def __init__(self, command: list[str], log: Log) -> None:
        self._command, self._log = command, log
        self._stack = ExitStack()
        self._wanted: _Wanted | None = None
        self._teller: Teller | None = None
        self.place: Place | None = None

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def follow(self, settings: Config) -> None:
        """Have it run as this wants it: start it anew, or end it, where that is another thing."""
        if (wanted := _Wanted.by(settings)) == self._wanted:
            return
        is_first, self._wanted = self._wanted is None, wanted
        self._stack.close()
        self._teller = self.place = None
        if settings.cache.listen_port is None:
            return
        if not is_first:
            self._log.info("the cache is started anew, as its configuration has changed")
        most = Limits.of(settings.cache).most
        self.place = Place(settings.cache_dir, settings.history_file, most)
        self._teller = self._stack.enter_context(Teller(settings.cache_jobs_file, self._log))
        self._stack.enter_context(Keeper("cache", self._command, self._log))

    def saw(self, forge: Forge, running: Callable[[], Iterable[Running]]) -> None:
        """What a pass saw."""
        if self._teller:
            self._teller.saw(forge, tuple(running()))
