"""What Prometheus is told of the cache."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from vmrunner.cache.figures import FIGURES, Kept, Place
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits, Store
from vmrunner.cache.uploads import Uploads

MAIN = "refs/heads/main"


def told(folder: Path) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(Kept(lambda: Place(folder, folder / "history.sqlite", 7)))
    lines = generate_latest(registry).decode().splitlines()
    return {
        name: float(value)
        for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")
    }


def test_figures_never_go_back(tmp_path: Path) -> None:
    job = Rights("org/tool", MAIN, (MAIN,))
    with closing(Store(tmp_path, Limits(keep_free=0), print)) as store:
        uploads = Uploads(store, lambda _: None)
        id_ = uploads.reserve("a", job, "k", "v", 4)
        uploads.write(uploads.claim("a", job, id_, 0, 4), b"data")
        uploads.commit("a", job, id_, 4)
        store.find(job, ("k",), "v")
        store.find(job, ("none",), "v")
        store.served("org/tool", 4)
        counted = {
            'vmrunner_cache_lookups_total{result="hit"}': 1.0,
            'vmrunner_cache_lookups_total{result="miss"}': 1.0,
            'vmrunner_cache_bytes_total{direction="stored"}': 4.0,
            'vmrunner_cache_bytes_total{direction="served"}': 4.0,
        }
        size = float(store.figures()[0].bytes)
        there = {"vmrunner_cache_entries": 1.0, "vmrunner_cache_size_bytes": size}
        always = {"vmrunner_cache_saved_seconds": 0.0, "vmrunner_cache_max_bytes": 7.0}
        counted |= always
        assert told(tmp_path) == counted | there
        store.recognise(replace(job, repository_id=1))
        store.recognise(replace(job, repository_id=2))  # another one of that name
        assert told(tmp_path) == counted | dict.fromkeys(there, 0.0)
        store.clear("org/tool")
        assert store.figures() == []
        store.clear("org/tool")
        assert told(tmp_path) == counted | dict.fromkeys(there, 0.0)
    assert {each.name for each in FIGURES} == {name.partition("{")[0] for name in counted | there}


@pytest.mark.parametrize("content", [None, b"", b"no database"])
def test_a_cache_that_can_not_be_read_has_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "index.sqlite").write_bytes(content)
    assert told(tmp_path) == {}


def test_where_none_is_served_there_are_none(tmp_path: Path) -> None:
    with closing(Store(tmp_path, Limits(), print)):
        assert list(Kept(lambda: None).collect()) == []
