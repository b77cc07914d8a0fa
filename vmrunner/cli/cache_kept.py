"""`vmrunner cache stats`, `prune` and `clear`: what jobs keep for later jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Column, Table

from vmrunner import config
from vmrunner.cli import names
from vmrunner.cli.app import (
    DEFAULT_PATH,
    ConfigOption,
    JsonOption,
    YesOption,
    confirm,
    duration,
    lasted,
    out,
    show,
    warn,
)
from vmrunner.errors import ConfigError
from vmrunner.text import presentable, size

if TYPE_CHECKING:
    from vmrunner.cache.store import Much, Store
    from vmrunner.config import Config


def stats(as_json: JsonOption = False, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """Show what each repository keeps in the cache, how often its jobs found something there, how
    much went in and out, and about how much time that saved.
    """
    settings = config.load(config_path)
    with _store(settings) as store:
        figures = store.figures(_saved(settings)) if store else []
    if as_json:
        show(figures)
        return
    numbers = ("entries", "size", "hits", "misses", "stored", "served", "time saved")
    table = Table(
        Column("repository", overflow="fold"),
        *(Column(name, justify="right", no_wrap=True) for name in numbers),
        box=None,
        pad_edge=False,
    )
    for each in figures:
        table.add_row(
            presentable(each.repository),
            *(str(each.entries), size(each.bytes), str(each.hits), str(each.misses)),
            *(size(each.bytes_stored), size(each.bytes_served), _about(each.seconds_saved)),
        )
    if figures:
        out.print(table)
    else:
        out.print("Nothing was ever asked of the cache.")


def _saved(settings: Config) -> dict[str, float]:
    """The seconds of each repository; nothing where there is no history that can be read."""
    import sqlite3

    from vmrunner.cache import worth
    from vmrunner.cache.index import INDEX

    try:
        return worth.saved(settings.cache_dir / INDEX, settings.history_file)
    except (OSError, sqlite3.Error):
        return {}


def _about(seconds: float | None) -> str:
    """`-` where nothing was measured."""
    if seconds is None:
        return "-"
    return f"about {'-' if seconds <= -1 else ''}{lasted(abs(seconds))}"


def prune(
    unused: Annotated[
        str | None,
        typer.Option(
            "--unused",
            metavar="TIME",
            help='Also what no job has used for so long, like "30d".',
        ),
    ] = None,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Remove from the cache what is more than `max` and `max_per_repository` allow now, which the
    service does only when something new comes.
    """
    from vmrunner.cache.store import Much

    seconds = None if unused is None else duration(unused, "cache prune").total_seconds()
    with _changed(config.load(config_path)) as store:
        _told(store.prune(seconds) if store else Much(), as_json=as_json)


def clear(
    repository: Annotated[
        str,
        typer.Argument(
            metavar="REPOSITORY",
            help='Like "owner/name".',
            autocompletion=names.cached_repositories,
        ),
    ],
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Remove all that a repository keeps in the cache, and what was counted of it."""
    with _changed(config.load(config_path)) as store:
        known = {each.repository.lower(): each for each in store.figures()} if store else {}
        found = known.get(repository.lower())
        if store is None or found is None:
            raise ConfigError(
                f"The cache has nothing of {presentable(repository)}.",
                "`vmrunner cache stats` names the repositories that it knows.",
            )
        what = f"all {found.entries} entries of {presentable(found.repository)}"
        confirm(f"Remove {what}, {size(found.bytes)}?", yes=yes, always=True)
        _told(store.clear(repository), as_json=as_json)


def _told(removed: Much, *, as_json: bool) -> None:
    if as_json:
        show(removed)
    else:
        freed = f"; {size(removed.bytes)} are free again" if removed.bytes else ""
        out.print(f"removed {removed.entries} entries{freed}")


@contextmanager
def _store(settings: Config) -> Iterator[Store | None]:
    """The cache of this host, beside its service; None where there never was one. Raises
    ConfigError.
    """
    import sqlite3

    from vmrunner.cache.index import INDEX
    from vmrunner.cache.store import UNREADABLE, Limits, Store

    folder = settings.cache_dir
    limits = replace(Limits.of(settings.cache), keep_free=0)  # what is removed here needs no room
    try:
        is_there = (folder / INDEX).exists()
    except OSError as error:
        raise ConfigError(
            f"The cache {folder} can't be read: {error.strerror}.", "Run it with sudo."
        ) from None
    if not is_there:
        yield None
        return
    with closing(Store(folder, limits, warn)) as store:
        try:
            yield store
        except sqlite3.Error as error:
            raise ConfigError(f"The cache {folder} can't be used: {error}.", UNREADABLE) from None


@contextmanager
def _changed(settings: Config) -> Iterator[Store | None]:
    """The same, to change it."""
    from vmrunner.cache.refused import Refused

    with _store(settings) as store:
        try:
            yield store
        except Refused as error:
            raise ConfigError(error.sentence, "Is the disk full? `df -h` says so.") from None
