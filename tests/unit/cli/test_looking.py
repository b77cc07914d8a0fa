"""Commands that only look: for root, for the group of the service's user, for nobody else; and they
make no file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes import FakeLog
from tests.world import World
from vmrunner.cli import shown, surveyed
from vmrunner.manager.history import READERS, History
from vmrunner.manager.logbook import Logbook
from vmrunner.manager.record import Record
from vmrunner.manager.status_socket import StatusSocket
from vmrunner.model.entry import Entry, Source

SERVICE, MEMBER, STRANGER = 60000, 60001, 60002  # the first one's group has its number
MACHINE = "vmr-m-0123456789abcdef"


@pytest.fixture
def host() -> Iterator[Path]:
    """A service's folders as its units make them, and a token that is root's."""
    if os.geteuid() != 0:
        pytest.fail("run the tests as root: these become other users")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    for name, mode in (("state", 0o750), ("run", 0o710)):
        (folder / name).mkdir()
        (folder / name).chmod(mode)
        os.chown(folder / name, SERVICE, SERVICE)
    (folder / "token").write_text("0123456789")
    (folder / "token").chmod(0o600)
    (folder / "c.toml").write_text(
        f'manager = "m"\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\n'
        '[forge]\nkind = "gitea"\nurl = "http://192.0.2.7:9"\n'
        f'token_file = "{folder}/token"\n[libvirt]\nuri = "test:///default"\n'
        '[network]\nfilter = false\n[pools.p]\nlabels = ["a"]\nimage = "web"\n'
    )
    yield folder
    shutil.rmtree(folder)


def run(host: Path, user: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    groups = [SERVICE] if user == MEMBER else []
    return subprocess.run(
        [sys.executable, "-m", "vmrunner.cli.main", *arguments, "-c", str(host / "c.toml")],
        capture_output=True,
        text=True,
        timeout=60,
        user=user,
        group=user,
        extra_groups=groups,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )


def everything(host: Path) -> dict[str, tuple[int, int, int]]:
    seen = ((path, path.lstat()) for path in host.rglob("*"))
    return {
        str(path.relative_to(host)): (stat.st_mode, stat.st_uid, stat.st_size)
        for path, stat in seen
    }


def write_history(host: Path) -> History:
    """As the service does, under its umask."""
    before = os.umask(0o077)
    history = History(host / "state" / "history.sqlite", print)
    history._write(Record(MACHINE, "p", job="a job", ending="done", destroyed=time.time()))
    os.umask(before)
    for path in (host / "state").iterdir():
        os.chown(path, SERVICE, SERVICE)
    return history


@pytest.mark.parametrize("command", ["history", "report"])
@pytest.mark.parametrize("is_open", [True, False])
def test_the_history_is_the_groups_to_read(host: Path, command: str, is_open: bool) -> None:
    """While the service writes it, and when nobody has it open."""
    with closing(write_history(host)) as history:
        if not is_open:
            history.close()
        before = everything(host)
        for user in (0, SERVICE, MEMBER):
            done = run(host, user, command, "--json")
            assert done.returncode == 0, done.stderr
            assert len(json.loads(done.stdout)) == 1
        refused = run(host, STRANGER, command)
        assert refused.returncode == 3
        assert refused.stderr.splitlines() == [
            f"vmrunner: The history {host}/state/history.sqlite can't be read: Permission denied.",
            f"  {READERS}",
        ]
        assert everything(host) == before


@pytest.mark.parametrize("command", ["status", "top", "history", "report", "doctor"])
def test_looking_makes_nothing(host: Path, command: str) -> None:
    """Neither on a host where nothing has run yet, nor by root, whose files would shut out the
    service.
    """
    shutil.rmtree(host / "run")
    shutil.rmtree(host / "state")
    before = everything(host)
    done = run(host, 0, command)
    assert done.returncode in ({0} if command != "doctor" else {10, 11}), done.stderr
    assert everything(host) == before


def test_status_is_what_serve_saw(host: Path, tmp_path: Path) -> None:
    """For those that may ask it, without the token and without the forge."""
    world = World(tmp_path)
    world.forge.queue(1, ["nobody"])
    survey = world.manager.survey()

    def tell() -> bytes:
        status = surveyed.status(world.manager, survey, 1000.0, 970.0)
        return json.dumps(shown.plain(status)).encode()

    with StatusSocket(host / "run" / "m.status", tell, FakeLog()):
        os.chown(host / "run" / "m.status", SERVICE, SERVICE)
        before = everything(host)
        for user in (0, SERVICE, MEMBER):
            told = json.loads(run(host, user, "status", "--json").stdout)
            assert (told["seen_seconds_ago"], len(told["waiting"])) == (30.0, 1)
            assert "o/r: job" in run(host, user, "top").stdout
        text = run(host, MEMBER, "status").stdout
        assert "as it was 30s ago" in text
        assert "no label" in text or "nobody" in text
        for command in ("status", "top"):
            refused = run(host, STRANGER, command)
            assert (refused.returncode, refused.stderr.splitlines()[-1]) == (3, f"  {READERS}")
        assert everything(host) == before


def test_a_queue_that_serve_has_not_read_to_its_end(host: Path, tmp_path: Path) -> None:
    """Who may look for himself sees all of it, and others how much is missing."""
    world = World(tmp_path)
    told = shown.plain(surveyed.status(world.manager, world.manager.survey(), 1000.0, 999.0))
    told["forge"][0]["unread"] = 3
    with StatusSocket(host / "run" / "m.status", lambda: json.dumps(told).encode(), FakeLog()):
        os.chown(host / "run" / "m.status", SERVICE, SERVICE)
        assert "3 more jobs wait, and were not looked at yet" in run(host, MEMBER, "status").stdout
        looked = json.loads(run(host, 0, "status", "--json").stdout)
        assert (looked["seen_seconds_ago"], looked["forge"][0]["unread"]) == (0.0, 0)


@pytest.mark.parametrize("answer", [b"", b"{}", b"not json", b'{"manager": 7}'])
def test_an_answer_that_is_none_is_no_error(host: Path, answer: bytes) -> None:
    """Before the first pass is over, and of another version: it looks for itself."""
    with StatusSocket(host / "run" / "m.status", lambda: answer, FakeLog()):
        done = run(host, 0, "status", "--json")
        told = json.loads(done.stdout)
        assert (told["manager"], told["seen_seconds_ago"]) == ("m", 0.0)
        assert "can't be reached" in told["forge"][0]["problem"]


def test_doctor_without_the_token_says_what_it_left_out(host: Path) -> None:
    done = run(host, MEMBER, "doctor", "--json")
    found = {each["check"]: each for each in json.loads(done.stdout)}
    assert found["forge"]["level"] == "warning"
    assert "sudo vmrunner doctor" in found["forge"]["fix"]
    assert f"state_dir {host}/state, of the user {SERVICE}" in done.stdout
    assert "can't be written" not in done.stdout


def test_what_machines_said_is_the_services_alone(host: Path) -> None:
    """A console may show what a job keeps to itself."""
    with closing(write_history(host)):
        book = Logbook(host / "state" / "logs")
        book.keep(MACHINE, [Entry(1.0, Source.CONSOLE, "said")])
        for path in (host / "state" / "logs", *(host / "state" / "logs").iterdir()):
            os.chown(path, SERVICE, SERVICE)
        before = everything(host)
        for user in (0, SERVICE):
            done = run(host, user, "logs", MACHINE)
            assert done.returncode == 0, done.stderr
            assert "console  said" in done.stdout
        refused = run(host, MEMBER, "logs", MACHINE)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "This user may not open" in refused.stderr
        assert "sudo" in refused.stderr
        assert everything(host) == before
