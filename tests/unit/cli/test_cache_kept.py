"""`vmrunner cache stats`, `prune` and `clear`."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from socket import socket

import pytest

from tests.fakes import FakeLog
from tests.unit.cli.conftest import Main
from tests.unit.cli.schemas import checked
from vmrunner import lock
from vmrunner.cache import main as cache_main
from vmrunner.cache.main import serve
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits, Store
from vmrunner.cache.uploads import Uploads
from vmrunner.errors import Busy, ConfigError
from vmrunner.manager.history import History
from vmrunner.manager.record import Record

MAIN = "refs/heads/main"
BESIDE = 4096 + 32 + 2 * len("org/tool" + MAIN + "v" + "k")  # the block, a digest, the names
CONFIG = """\
manager = "m"
state_dir = "{folder}"
[forge]
kind = "gitea"
url = "https://forge.example"
[cache]
listen_port = 8485
max = "{max}"
max_per_repository = "{max}"
[pools.p]
labels = ["a"]
image = "web"
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, as_main: Main) -> Run:
    """`vmrunner cache`: its exit code, and what it says."""

    def call(*arguments: str, most: str = "20GiB") -> tuple[int, str, str]:
        (tmp_path / "c.toml").write_text(CONFIG.format(folder=tmp_path, max=most))
        return as_main("cache", *arguments, "-c", str(tmp_path / "c.toml"))

    return call


def save(folder: Path, repository: str, key: str, data: bytes) -> None:
    rights = Rights(repository, MAIN, (MAIN,))
    with closing(Store(folder / "cache", Limits(keep_free=0), print)) as store:
        uploads = Uploads(store, lambda _: None)
        id_ = uploads.reserve("a", rights, key, "v", len(data))
        uploads.write(uploads.claim("a", rights, id_, 0, len(data)), data)
        uploads.commit("a", rights, id_, len(data))
        store.find(rights, (key,), "v")
        store.find(rights, ("none",), "v")
        store.served(repository, len(data))


def test_stats(tmp_path: Path, run: Run) -> None:
    save(tmp_path, "org/tool", "a", b"a" * 2048)
    save(tmp_path, "org/tool", "b", b"b" * 1024)
    save(tmp_path, "org/other", "b", b"b" * 1024)
    code, out, _ = run("stats")
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["org/other", "1", "5.1", "KiB", "1", "1", "1.0", "KiB", "1.0", "KiB", "-"],
        ["org/tool", "2", "11", "KiB", "2", "2", "3.0", "KiB", "3.0", "KiB", "-"],
    ]
    code, out, _ = run("stats", "--json")
    assert checked("cache stats", out)[1] == {
        "repository": "org/tool",
        "entries": 2,
        "bytes": 3072 + 2 * BESIDE,
        "hits": 2,
        "misses": 2,
        "bytes_stored": 3072,
        "bytes_served": 3072,
        "seconds_saved": None,
    }


def test_the_time_that_it_saved(tmp_path: Path, run: Run) -> None:
    save(tmp_path, "org/tool", "a", b"a")
    rights = Rights("org/tool", MAIN, (MAIN,))
    with (
        closing(Store(tmp_path / "cache", Limits(keep_free=0), print)) as store,
        closing(History(tmp_path / "history.sqlite", print)) as history,
    ):
        for number, (key, seconds) in enumerate((("none", 100), ("a", 30), ("a", 40))):
            machine = f"vmr-m-{number:08}"
            store.find(replace(rights, machine=machine), (key,), "v")
            took = {"job_started": 9.0, "job_ended": 9.0 + seconds}
            history._write(Record(machine, job="build", verdict="success", **took))
    code, out, _ = run("stats")
    assert (code, out.splitlines()[1].endswith("about 2m10s")) == (0, True), out
    assert checked("cache stats", run("stats", "--json")[1])[0]["seconds_saved"] == 130.0
    run("clear", "org/tool", "--yes")
    save(tmp_path, "org/tool", "a", b"a")
    assert run("stats")[1].splitlines()[1].endswith(" -")


def test_a_host_without_a_cache(tmp_path: Path, run: Run) -> None:
    assert run("stats")[:2] == (0, "Nothing was ever asked of the cache.\n")
    assert checked("cache stats", run("stats", "--json")[1]) == []
    assert run("prune")[:2] == (0, "removed 0 entries\n")
    code, _, err = run("clear", "org/tool", "--yes")
    assert (code, "The cache has nothing of org/tool." in err) == (3, True)
    assert not (tmp_path / "cache").exists()


def test_clear(tmp_path: Path, run: Run) -> None:
    save(tmp_path, "org/tool", "a", b"a" * 2048)
    save(tmp_path, "org/other", "b", b"b" * 1024)
    code, _, err = run("clear", "org/tool")
    assert (code, "--yes" in err) == (2, True)
    code, out, _ = run("clear", "Org/Tool", "--yes", "--json")
    assert (code, checked("cache clear", out)) == (0, {"entries": 1, "bytes": 2048 + BESIDE})
    assert "org/tool" not in run("stats")[1]
    assert "org/other" in run("stats")[1]


def test_prune(tmp_path: Path, run: Run) -> None:
    for key in "abc":
        save(tmp_path, "org/tool", key, key.encode() * (1 << 20))
    code, out, _ = run("prune")
    assert (code, out) == (0, "removed 0 entries\n")
    code, out, _ = run("prune", "--json", most="3MiB")
    removed = {"entries": 1, "bytes": (1 << 20) + BESIDE + 3 * 32}
    assert (code, checked("cache prune", out)) == (0, removed)
    code, out, _ = run("prune", "--unused", "1ms")
    assert (code, out) == (0, "removed 2 entries; 2.0 MiB are free again\n")


@pytest.mark.parametrize("span", ["", "7", "-1d", "next week"])
def test_a_time_that_is_none(run: Run, span: str) -> None:
    code, _, err = run("prune", "--unused", span)
    assert (code, 'a duration is written like "90s"' in err.lower()) == (2, True), err


def test_a_cache_that_is_no_cache(tmp_path: Path, run: Run) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "index.sqlite").write_bytes(b"\0" * 4096)
    for command in (("stats",), ("prune",), ("clear", "org/tool", "--yes")):
        code, _, err = run(*command)
        assert (code, "can't be used" in err, "Traceback" in err) == (3, True, False)


def test_a_cache_whose_index_has_gone_bad(tmp_path: Path, run: Run) -> None:
    """What it holds, not its head: it opens, and fails later."""
    save(tmp_path, "org/tool", "k", b"x")
    index = tmp_path / "cache" / "index.sqlite"
    with closing(sqlite3.connect(index)) as database:
        pages = database.execute("SELECT rootpage FROM sqlite_schema WHERE rootpage").fetchall()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with index.open("r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * size)
            if page > 1:
                file.write(b"\xff" * size)
    for command in (("stats",), ("prune",), ("clear", "org/tool", "--yes")):
        code, _, err = run(*command)
        assert (code, "malformed" in err, "Traceback" in err) == (3, True, False)
    with closing(socket()) as listening, pytest.raises(ConfigError, match="malformed"):
        serve(listening, tmp_path / "cache", "", Limits(), lambda _: None, FakeLog())


def test_one_process_alone_serves_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two managers may have one `state_dir`: one would remove the other's uploads."""
    monkeypatch.setattr(cache_main, "_PATIENCE", 0.0)
    save(tmp_path, "org/tool", "k", b"x")
    folder = tmp_path / "cache"
    with (
        lock.held(folder / "lock", "", "", wait=0, say=print),
        closing(socket()) as listening,
        pytest.raises(Busy, match="Another vmrunner serves the cache"),
    ):
        serve(listening, folder, "", Limits(), lambda _: None, FakeLog())


def test_another_users_cache() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        save(folder, "org/tool", "a", b"a")
        (folder / "c.toml").write_text(CONFIG.format(folder=folder, max="1GiB"))
        command = [sys.executable, "-m", "vmrunner.cli.main", "cache", "stats"]
        done = subprocess.run(
            [*command, "-c", folder / "c.toml"], user=65534, capture_output=True, text=True
        )
    assert (done.returncode, "sudo" in done.stderr, done.stdout) == (3, True, ""), done
