"""What `make cache CACHE=--jobs` runs and prints."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from tests.cached import report
from tests.cached.kinds import KINDS, Place


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_workflow_is_one_that_a_shell_reads(name: str, cached: bool) -> None:
    place = Place("label", "http://tools.example", is_cached=cached, cache="http://far.example/")
    text = KINDS[name].workflow("http://forge.example", "rig/one", place)
    (step,) = yaml.safe_load(text)["jobs"]["it"]["steps"]
    done = subprocess.run(["bash", "-n"], input=step["run"], text=True, capture_output=True)
    assert done.stderr == ""
    by_action, key = bool(KINDS[name].kept), KINDS[name].key
    asked = [f"{what} {key}" in step["run"] for what in ("restore", "save")]
    assert asked == [cached and by_action] * 2
    assert by_action or f"caching={'yes' if cached else ''}\n" in step["run"]


def test_a_key_is_another_one_with_other_sources() -> None:
    assert len({kind.key for kind in KINDS.values()}) == len(KINDS)


def test_the_second_run_is_compared_with_a_cold_one() -> None:
    def run(seconds: float, mb: float) -> dict[str, float]:
        return {"seconds": seconds, "mb": mb}

    told = report.table({"go": {"cold": [run(30, 9)], "all": [run(41, 9), run(5, 0)]}})
    assert told.splitlines()[-2:] == [
        "| go | nothing kept | 30.0 |  | 9.0 |  |  |",
        "| go | all caches | 41.0 | 5.0 | 9.0 | 0.0 | 6.0 |",
    ]
