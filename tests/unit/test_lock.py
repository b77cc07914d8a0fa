"""One writer per manager: the second waits and says so, or gives up; a dead holder holds
nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmrunner.errors import Busy, ConfigError
from vmrunner.lock import exclusive

HOLDER = """
import sys, time
from pathlib import Path
from vmrunner.lock import exclusive
with exclusive(Path(sys.argv[1]), "m", wait=0, say=print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_says_so_and_gives_up_or_gets_it_when_the_first_dies(tmp_path: Path) -> None:
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Busy), exclusive(tmp_path, "m", wait=0.5, say=said.append):
            pass
        assert len(said) == 1
        with exclusive(tmp_path, "other", wait=0, say=said.append):
            holder.kill()
    with exclusive(tmp_path, "m", wait=5, say=said.append):
        pass


def test_what_root_locks_the_owner_of_the_folder_can_lock_later(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("run the tests as root: this one gives a folder away")
    os.chown(tmp_path, 65534, 65534)
    with exclusive(tmp_path, "m", wait=0, say=print):
        pass
    assert (tmp_path / "m.lock").stat().st_uid == 65534


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError), exclusive(tmp_path / "file", "m", wait=0, say=print):
        pass
