"""A machine that stays when its job is over, and what a job has it kept with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.guest.programs import Ended
from tests.unit.guest.test_job import Guest, job, run
from vmrunner.render import guest as program


@pytest.fixture
def stayed(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What took the place of job.py, if anything did."""
    found: list[Any] = []

    def execute(path: str, arguments: list[str]) -> None:
        found.append((path, arguments))
        raise Ended

    monkeypatch.setattr(guest.os, "execv", execute)
    return found


def seconds(guest: Guest, stayed: list[Any]) -> float:
    """For how long it stays, if nobody ends it."""
    ((_, arguments),) = stayed
    return float(arguments[-1]) - guest.time.clock_gettime(guest.time.CLOCK_BOOTTIME)


def port(guest: Guest, name: str) -> None:
    """The host shows a virtio port."""
    folder = guest.PORTS / f"vport-{name}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")


def test_it_goes_with_its_job_where_nobody_wants_it(guest: Guest, stayed: list[Any]) -> None:
    port(guest, "org.vmrunner.events")
    assert run(guest, job(guest)) == ["runner", "exit 0"]
    assert stayed == []
    assert not guest.HOLD_PROGRAM.exists()


def test_it_stays_without_its_credentials(guest: Guest, stayed: list[Any]) -> None:
    guest.GUEST_SEED.write_text("registration")
    guest.SCRIPT.write_text("registration")
    kept = guest.JOB_FOLDER / "root" / "somebody's"
    kept.parent.mkdir(parents=True)
    kept.write_text("work")
    assert run(guest, job(guest, stay_seconds=5400)) == ["runner", "exit 0"]
    assert seconds(guest, stayed) == pytest.approx(5400, abs=5)
    root = guest.WORK.parent
    left = [path for path in root.rglob("*") if path.is_file() and path.name != "said"]
    assert not [path for path in left if "registration" in path.read_text(errors="replace")]
    assert kept.exists()
    assert not (guest.SCRIPT.exists())
    assert not (guest.GUEST_SEED.exists())


def test_a_file_that_can_not_be_wiped_keeps_no_machine_from_its_end(
    guest: Guest, stayed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(guest, "wipe", full)
    assert run(guest, job(guest, stay_seconds=60)) == ["runner", "exit 0"]
    assert stayed


def test_one_whose_runner_was_refused_goes(guest: Guest, stayed: list[Any]) -> None:
    (guest.WORK.parent / "codes").write_text("1\n")
    assert run(guest, job(guest, stay_seconds=60, pickup_seconds=-1)) == ["runner", "exit 1"]
    assert stayed == []


def test_one_whose_runner_was_killed_stays(guest: Guest, stayed: list[Any]) -> None:
    (guest.WORK.parent / "codes").write_text("137\n")
    assert run(guest, job(guest, stay_seconds=60)) == ["runner", "exit 137"]
    assert stayed


def test_the_host_says_so_while_it_runs(guest: Guest, stayed: list[Any]) -> None:
    port(guest, "org.vmrunner.stay")
    assert run(guest, job(guest)) == ["runner", "exit 0"]
    assert seconds(guest, stayed) == pytest.approx(3600, abs=5)
    # As long as that port is there.
    assert f"{guest.PORTS}/*/name" not in guest.STAY
    assert "org.vmrunner.stay /sys/class/virtio-ports/*/name" in guest.STAY


def test_a_runner_that_does_not_end_is_ended_where_its_machine_is_kept(
    guest: Guest, stayed: list[Any]
) -> None:
    codes = guest.WORK.parent / "codes"
    codes.unlink()
    guest.os.mkfifo(codes)  # it waits for ever
    port(guest, "org.vmrunner.stay")
    assert run(guest, job(guest, seconds=0.3)) == ["runner", "exit 137"]
    assert stayed


def test_a_runner_that_does_not_end_takes_its_machine_along(
    guest: Guest, stayed: list[Any]
) -> None:
    codes = guest.WORK.parent / "codes"
    codes.unlink()
    guest.os.mkfifo(codes)
    assert run(guest, job(guest, seconds=0.3, stay_seconds=60)) == ["runner"]
    assert stayed == []


def ask(guest: Guest, *arguments: str, **places: str) -> subprocess.CompletedProcess[str]:
    """A step calls what was put there for it."""
    text = guest.HOLD_PROGRAM.read_text().replace("/run/vmrunner-hold", str(guest.HOLD_ASKED))
    return subprocess.run(
        ["/bin/sh", "-c", text, "vmrunner-hold", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere"} | places,
        capture_output=True,
        text=True,
        check=False,
    )


def permitted(most: int = 3600) -> str:
    """As the host writes it."""
    return program("vmrunner-hold").replace("most=0", f"most={most}", 1)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["90s"], "90"),
        (["30m"], "1800"),
        (["1h"], "3600"),
        (["9h"], "3600"),  # the pool's bound
        ([], "3600"),
        ([""], "3600"),
        (["007m"], "420"),
    ],
)
def test_a_step_asks_for_it(guest: Guest, arguments: list[str], asked: str) -> None:
    told = job(guest, hold_program=permitted())
    guest.prepare(told)
    done = ask(guest, *arguments)
    assert (done.returncode, guest.HOLD_ASKED.read_text().strip()) == (0, asked)
    assert f"kept for {asked} s" in done.stdout
    assert guest.stays(told) == int(asked) + 3600
    assert guest.EVENTS.read_text() == f"hold 0.0 {asked}\n"


def test_the_workspace_stays_which_the_runner_deletes(guest: Guest, tmp_path: Path) -> None:
    guest.prepare(job(guest, hold_program=permitted()))
    home, work = tmp_path / "home", tmp_path / "work"
    for folder in (home, work / "deep"):
        folder.mkdir(parents=True)
    (work / "deep" / "result").write_text("41")
    for said in ("41", "42"):  # whoever asks twice keeps what is there then
        (work / "deep" / "result").write_text(said)
        done = ask(guest, "1m", HOME=str(home), GITHUB_WORKSPACE=str(work))
        assert (done.returncode, done.stderr) == (0, "")
    assert str(home / "kept-workspace") in done.stdout
    shutil.rmtree(work)
    assert (home / "kept-workspace" / "deep" / "result").read_text() == "42"


@pytest.mark.parametrize(
    "wrong", ["m", "30", "30 m", "-5m", "1.5h", "30d", "$(id)m", "99999999s", "m30", "1h2m"]
)
def test_a_wrong_time_is_refused(guest: Guest, wrong: str) -> None:
    told = job(guest, hold_program=permitted())
    guest.prepare(told)
    done = ask(guest, wrong)
    assert (done.returncode, guest.HOLD_ASKED.read_text()) == (2, "")
    assert "a time is written like" in done.stderr
    assert guest.stays(told) == 0


@pytest.mark.parametrize("written", ["x", "-1", "0", "9" * 40, "1e9", "", "٣"])
def test_whatever_else_stands_there_asks_for_nothing(guest: Guest, written: str) -> None:
    told = job(guest, hold_program=permitted())
    guest.prepare(told)
    guest.HOLD_ASKED.write_text(written)
    assert guest.stays(told) == 0
    assert not guest.EVENTS.exists()


def test_anybody_in_the_machine_may_ask(guest: Guest) -> None:
    guest.prepare(job(guest, hold_program=permitted()))
    assert guest.HOLD_ASKED.stat().st_mode & 0o777 == 0o666
    assert guest.HOLD_PROGRAM.stat().st_mode & 0o777 == 0o755


def test_where_the_pool_does_not_permit_it_nothing_is_read(guest: Guest, tmp_path: Path) -> None:
    guest.HOLD_ASKED.write_text("1800")
    assert guest.stays(job(guest)) == 0
