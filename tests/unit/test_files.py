"""A file is replaced as a whole: by many at once, by one that is killed, and never readable by
others for a moment.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vmrunner import files
from vmrunner.network.forge import ForgeAddresses


def test_it_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    files.write_whole(path, "né\n")
    assert (path.read_bytes(), os.listdir(tmp_path)) == ("né\n".encode(), ["file"])


def test_what_fails_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        files.write_whole(path, "begun " * 10_000 + "\udc80")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        files.write_whole(tmp_path / "folder", "new")
    with pytest.raises(FileNotFoundError):
        files.write_whole(tmp_path / "nowhere" / "file", "new")
    assert (path.read_text(), sorted(os.listdir(tmp_path))) == ("old", ["file", "folder"])


@pytest.mark.parametrize(
    ("mode", "umask", "wanted"),
    [(None, 0o027, 0o640), (0o644, 0o077, 0o644), (0o600, 0o000, 0o600)],
)
def test_its_mode_is_the_one_asked_for_or_that_of_the_umask(
    tmp_path: Path, mode: int | None, umask: int, wanted: int
) -> None:
    before = os.umask(umask)
    try:
        files.write_whole(tmp_path / "file", "content", mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == wanted


def test_a_secret_is_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    opening = os.open

    def watched(path: Path, flags: int, mode: int) -> int:
        file = opening(path, flags, mode)
        seen.append(stat.S_IMODE(os.fstat(file).st_mode))
        return file

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        files.write_whole(tmp_path / "secret", "token", 0o600)
        files.write_whole(tmp_path / "open", "nothing", 0o644)
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]


WRITER = """
import sys
from pathlib import Path
from vmrunner import files
print("begun", flush=True)
for n in range(int(sys.argv[2])):
    files.write_whole(Path(sys.argv[1]), sys.argv[3] * 100_000)
"""


def writer(path: Path, times: int, letter: str) -> subprocess.Popen[str]:
    """A process that writes the same letter again and again."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, path, str(times), letter], stdout=subprocess.PIPE, text=True
    )


def test_two_processes_and_two_threads_write_it_and_a_reader_finds_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("-" * 100_000)
    both = [writer(path, 200, letter) for letter in "ab"]
    failed: list[OSError] = []

    def write(letter: str) -> None:
        try:
            for _ in range(200):
                files.write_whole(path, letter * 100_000)
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "cd"]
    for thread in threads:
        thread.start()
    while any(each.poll() is None for each in both) or any(thread.is_alive() for thread in threads):
        text = path.read_text()
        assert (len(text), len(set(text))) == (100_000, 1)
    for each in both:
        each.communicate()
    assert ([each.returncode for each in both], failed, os.listdir(tmp_path)) == (
        [0, 0],
        [],
        ["file"],
    )


def test_what_a_killed_process_leaves_is_swept_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    with writer(tmp_path / "file", 10**9, "a") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "begun\n"
        killed.send_signal(signal.SIGKILL)
    (tmp_path / f"{files.PART}{killed.pid}.0").touch()
    with files.replacing(tmp_path / "file") as mine:
        mine.write_text("mine")
        files.sweep(tmp_path)
        assert [path for path in tmp_path.iterdir() if path.name.startswith(files.PART)] == [mine]
    assert (tmp_path / "file").read_text() == "mine"


def test_threads_that_remember_the_forges_addresses_do_not_take_each_others_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker of a pass may find that it is time to ask."""
    together, halves = threading.Barrier(4), []
    replace = Path.replace

    def meet(self: Path, target: Path) -> Path:
        halves.append(self)
        together.wait(60)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", meet)
    asking = [
        threading.Thread(target=ForgeAddresses("https://203.0.113.10", tmp_path)) for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert (len(set(halves)), os.listdir(tmp_path)) == (4, ["forge-addresses.json"])


def test_a_new_file_takes_nobodys_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_new(path, "first", 0o600)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(FileExistsError):
            files.write_new(taken, "second", 0o600)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("first", 0o600)
    assert sorted(os.listdir(tmp_path)) == ["file", "link"]


def test_a_database_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "a name?.sqlite"
    with pytest.raises(sqlite3.OperationalError):
        sqlite3.connect(files.database_to_read(missing), uri=True).execute("SELECT 1")
    assert list(tmp_path.iterdir()) == []
