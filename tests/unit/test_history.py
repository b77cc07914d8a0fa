"""History: machines with the times of their phases; a corrupt file is set aside, a full disk stops nothing."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmrunner.errors import ConfigError
from vmrunner.forge import Job, JobState
from vmrunner.history import Failures, History, Record
from vmrunner.model import Ending, EventKind, GuestEvent, Machine, MachineId, Metadata

ID = MachineId("m", "0" * 8)
METADATA = Metadata(ID, "p", "image/1", 10.0, overlay_at=11.0, bound_at=10.0, job_key="5.0", queued_at=9.0)
JOB = Job(5, "build", ("x",), JobState.WAITING, "5.0", repository="o/r", url="u", queued_at=datetime.fromtimestamp(9, UTC))


def no_warning(sentence: str) -> None:
    raise AssertionError(sentence)


def ended(history: History, serial: int, ending: Ending, at: float, pool: str = "p") -> None:
    machine = MachineId("m", f"{serial:08x}")
    history.started(replace(METADATA, machine=machine, pool=pool), at - 1)
    history.ended(machine, None, ending, f"reason {serial}", at)


def test_a_machine_from_start_to_end(tmp_path: Path) -> None:
    with closing(History(tmp_path / "state" / "history.sqlite", no_warning)) as history:
        history.started(METADATA, 12.0, JOB)
        history.running(replace(METADATA, running_at=17.5), JOB)
        events = tuple(GuestEvent(kind, at) for kind, at in zip(EventKind, (13.0, 14.0, 15.0, 16.0, 18.0, 1.0), strict=True))
        history.ended(ID, Machine(ID, alive=False, events=events), Ending.DONE, "", 19.0)
        history.ended(ID, None, Ending.DIED, "the first word counts", 20.0)
        totals = {(total.name, total.label): total.value for total in history.totals()}
    phases = {"queued": 9.0, "created": 10.0, "overlay": 11.0, "started": 12.0, "bound": 10.0, "running": 17.5}
    guest = {"up": 13.0, "seed": 14.0, "ready": 15.0, "runner": 16.0, "exit": 18.0}
    expected = Record(str(ID), "p", "image/1", "build", "5.0", "o/r", "u", **phases, **guest, destroyed=19.0, ending="done")
    with closing(History(tmp_path / "state" / "history.sqlite", no_warning)) as again:
        assert again.all() == [expected]
        assert again.usual_boot("p") == 3.0
    assert totals[("machines_total", "done")] == 1
    assert (totals[("queue_to_start_seconds", "10")], totals[("queue_to_start_seconds", "sum")]) == (1, 8.5)


def test_a_parked_clone_comes_up_when_it_is_given_its_job(tmp_path: Path) -> None:
    """However long it waited for one."""
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        history.started(replace(METADATA, bound_at=0.0), 12.0)
        history.bound(replace(METADATA, bound_at=600.0), JOB)
        said = {EventKind.REHEARSED: 15.0, EventKind.SEED: 600.2, EventKind.RUNNER: 600.4}
        events = tuple(GuestEvent(kind, at) for kind, at in said.items())
        history.ended(ID, Machine(ID, alive=False, events=events), Ending.DONE, "", 700.0)
        assert round(history.usual_boot("p"), 3) == 0.4


def test_a_new_file_that_another_process_is_just_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.3, other.execute, ("COMMIT",))
        release.start()
        try:
            with closing(History(path, no_warning)) as history:
                history.started(METADATA, 12.0)
                assert history.unended() == {str(ID)}
        finally:
            release.join()


def test_a_machine_that_never_started_has_no_row(tmp_path: Path) -> None:
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        history.ended(ID, Machine(ID, alive=False), Ending.EARLY, "", 1.0)
        assert history.all() == []


def test_failures_since_the_last_machine_that_worked(tmp_path: Path) -> None:
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        assert history.failures("p") is None
        for serial, ending in enumerate((Ending.BOOT_TIMEOUT, Ending.DONE, Ending.BOOT_TIMEOUT, Ending.UNNEEDED, Ending.EARLY), 1):
            ended(history, serial, ending, 100.0 + serial)
        ended(history, 9, Ending.BOOT_TIMEOUT, 200.0, pool="q")
        assert history.failures("p") == Failures(2, 105.0, "reason 5")
        history.start_failed(MachineId("m", "f" * 8), "p", "no image", 50.0)
        assert history.failures("p") == Failures(3, 50.0, "no image"), "by the order of events, whatever the clock says"
        ended(history, 10, Ending.DIED, 300.0)
        assert history.failures("p") is None, "a job ran: what it did is not the pool's fault"


def test_jobs_that_were_held_back(tmp_path: Path) -> None:
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        for serial in (1, 2):
            machine = MachineId("m", f"{serial:08x}")
            history.started(replace(METADATA, machine=machine), 1.0, JOB)
            history.ended(machine, None, Ending.HELD_BACK, "", 10.0 * serial)
        assert history.held_back(0.0) == {"5.0": (2, 20.0)}
        assert history.held_back(15.0) == {"5.0": (1, 20.0)}


def test_old_machines_are_forgotten(tmp_path: Path) -> None:
    with closing(History(tmp_path / "history.sqlite", no_warning, keep_days=1)) as history:
        ended(history, 1, Ending.DONE, 100.0)
        history.prune(100.0)
        assert len(history.all()) == 1
        history.prune(100.0 + 86400)
        assert history.all() == []


@pytest.mark.parametrize("spoil", ["corrupt", "another format"])
def test_a_file_that_cannot_be_used_is_set_aside_and_said_so(tmp_path: Path, spoil: str) -> None:
    path, warnings = tmp_path / "history.sqlite", list[str]()
    if spoil == "corrupt":
        path.write_bytes(b"not a database at all, " * 99)
    else:
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA user_version = 1")
    before = path.read_bytes()
    with closing(History(path, warnings.append)) as history:
        history.started(METADATA, 12.0)
    with closing(History(path, no_warning)) as history:
        assert [record.machine for record in history.all()] == [str(ID)]
    assert path.with_suffix(".corrupt").read_bytes() == before
    assert len(warnings) == 1
    assert "can't be used" in warnings[0]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        History(tmp_path / "file" / "history.sqlite", no_warning)
