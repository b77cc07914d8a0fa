"""Names that shells complete: of pools, images, recipes, snapshots and finished machines.

All of it is read from files, and what can't be read has no names: a shell that waits for libvirt or
for a forge is worse than one that knows nothing.
"""

from __future__ import annotations

import sqlite3
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from vmrunner import files
from vmrunner.resources import CONFIG, folder

_NEWEST = 50  # machines


def pools(ctx: typer.Context, incomplete: str) -> list[str]:
    """Of the configuration."""
    return _fitting(_table(_settings(ctx), "pools"), incomplete)


def policies(ctx: typer.Context, incomplete: str) -> list[str]:
    """What `doctor --policy` takes."""
    found = _table(_settings(ctx), "pools")
    return _fitting(["internet", "none", *(f"pool-{name}" for name in found)], incomplete)


def forges(incomplete: str) -> list[str]:
    """The kinds that there are."""
    return _fitting(["forgejo", "gitea"], incomplete)


def images(ctx: typer.Context, incomplete: str) -> list[str]:
    """That are published on this host."""
    return _fitting((path.name for path in _folders(_images(ctx))), incomplete)


def versions(ctx: typer.Context, incomplete: str) -> list[str]:
    """NAME, and once that is there NAME/VERSION."""
    name, slash, _ = incomplete.partition("/")
    if not slash:
        return images(ctx, incomplete)
    return _fitting((f"{name}/{path.name}" for path in _folders(_images(ctx) / name)), incomplete)


def versions_of(ctx: typer.Context, incomplete: str) -> list[str]:
    """Of the image that stands before."""
    home = _images(ctx) / str(ctx.params.get("name"))
    return _fitting((path.name for path in _folders(home)), incomplete)


def recipes(ctx: typer.Context, incomplete: str) -> list[str]:
    """One's own and ours."""
    own = ctx.params.get("recipes") or _settings(ctx).get("recipes_dir", "/etc/vmrunner/recipes")
    places = (Path(str(own)), folder("images"))
    return _fitting((path.stem for place in places for path in place.glob("*.toml")), incomplete)


def snapshots(ctx: typer.Context, incomplete: str) -> list[str]:
    """Keys of those in the storage pool."""
    files = _storage(ctx).glob("*/snapshot-*.ram")
    return _fitting((path.stem.removeprefix("snapshot-") for path in files), incomplete)


def machines(ctx: typer.Context, incomplete: str) -> list[str]:
    """The newest of the history."""
    return _column(
        _state(ctx) / "history.sqlite",
        "SELECT machine FROM machines ORDER BY rowid DESC LIMIT ?",
        incomplete,
    )


def cached_repositories(ctx: typer.Context, incomplete: str) -> list[str]:
    """That the cache knows."""
    return _column(
        _state(ctx) / "cache" / "index.sqlite",
        "SELECT repository FROM repositories ORDER BY repository LIMIT ?",
        incomplete,
    )


def _column(file: Path, query: str, incomplete: str) -> list[str]:
    try:
        database = sqlite3.connect(files.database_to_read(file), uri=True, timeout=0.2)
        try:
            rows = database.execute(query, (_NEWEST,)).fetchall()
        finally:
            database.close()
    except (OSError, sqlite3.Error):
        return []
    return _fitting((str(row[0]) for row in rows), incomplete)


def live_machines(ctx: typer.Context, incomplete: str) -> list[str]:
    """That have files in the storage pool."""
    return _fitting((path.stem for path in _storage(ctx).glob("*/vmr-*.events")), incomplete)


def _storage(ctx: typer.Context) -> Path:
    storage = _table(_settings(ctx), "libvirt").get("storage_path", "/var/lib/libvirt/vmrunner")
    return Path(str(storage))


def _settings(ctx: typer.Context) -> dict[str, Any]:
    """The configuration as it is written: checking it takes longer than all of this."""
    try:
        text = Path(str(ctx.params.get("config_path") or CONFIG)).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except (OSError, ValueError):
        return {}


def _table(settings: dict[str, Any], name: str) -> dict[str, Any]:
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _state(ctx: typer.Context) -> Path:
    return Path(str(_settings(ctx).get("state_dir", "/var/lib/vmrunner")))


def _images(ctx: typer.Context) -> Path:
    return _state(ctx) / "images"


def _folders(home: Path) -> list[Path]:
    try:
        return [
            path
            for path in home.iterdir()
            if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")
        ]
    except OSError:
        return []


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    try:
        return sorted({name for name in names if name.startswith(incomplete)})
    except OSError:  # a folder that this user may not list
        return []
