"""Jobs that no forge has, on machines of `doctor --isolation`: told to the service that runs, which
judges them as any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from vmrunner.cache import who
from vmrunner.cache.refused import Refused
from vmrunner.cache.store import UNREADABLE, Limits, Store
from vmrunner.config import Config
from vmrunner.errors import ConfigError
from vmrunner.model.job import JobFacts


class Lab:
    """What the service of this host is told beside what `serve` tells it."""

    def __init__(self, settings: Config) -> None:
        self._settings = settings

    def tell(self, jobs: Mapping[str, JobFacts]) -> None:
        """These run now, by their machines' names. Raises ConfigError."""
        try:
            who.write(self._settings.cache_lab_file, jobs)
        except OSError as error:
            raise ConfigError(
                f"The cache can't be told of jobs: {error.strerror}.", "Check runtime_dir."
            ) from None

    def forget(self, owners: str) -> None:
        """None runs any more, and nothing is kept for owners whose names begin so. Raises
        ConfigError.
        """
        self._settings.cache_lab_file.unlink(missing_ok=True)
        limits = Limits.of(self._settings.cache)
        with closing(Store(self._settings.cache_dir, limits, lambda _: None)) as store:
            for each in store.figures():
                if each.repository.startswith(owners):
                    try:
                        store.clear(each.repository)
                    except Refused as error:
                        raise ConfigError(error.sentence, UNREADABLE) from None
