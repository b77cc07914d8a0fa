"""Which pools are down: two who change that at once both get their way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmrunner.errors import ConfigError
from vmrunner.manager.drain import Drained

CHANGING = """
import sys
from pathlib import Path
from vmrunner.manager.drain import Drained
drained, who = Drained(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for n in range(100):
    drained.add([f"{who}{n}"], float(n))
    if n % 2:
        drained.remove([f"{who}{n}"])
"""


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CHANGING, tmp_path, who],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for who in "ab"
    ]
    for each in both:
        assert each.stdout is not None
        assert each.stdout.readline() == "ready\n"
    for each in both:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in both:
        each.communicate(timeout=60)
    assert [each.returncode for each in both] == [0, 0]
    assert Drained(tmp_path).pools() == {
        f"{who}{n}": float(n) for who in "ab" for n in range(0, 100, 2)
    }
    assert sorted(os.listdir(tmp_path)) == ["drained.json", "drained.lock"]


def test_a_pool_keeps_the_time_since_when_it_is_down(tmp_path: Path) -> None:
    drained = Drained(tmp_path / "new")
    drained.add(["p"], 1.0)
    drained.add(["p", "q"], 2.0)
    assert drained.pools() == {"p": 1.0, "q": 2.0}
    drained.remove(["p", "unknown"])
    assert drained.pools() == {"q": 2.0}


def test_what_cannot_be_read_drains_nothing_and_what_cannot_be_written_is_told(
    tmp_path: Path,
) -> None:
    (tmp_path / "drained.json").write_text(json.dumps([1]))
    assert Drained(tmp_path).pools() == {}
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file/drained.lock can't be opened"):
        Drained(tmp_path / "file").add(["p"], 1.0)
    (tmp_path / "drained.json").unlink()
    (tmp_path / "drained.json").mkdir()
    with pytest.raises(ConfigError, match=r"drained.json can't be written"):
        Drained(tmp_path).add(["p"], 1.0)
