"""History: machines with the times of their phases; a corrupt file is set aside, a full disk stops
nothing.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmrunner.errors import ConfigError
from vmrunner.manager.history import Failures, History
from vmrunner.manager.record import Ran, Record
from vmrunner.model.binding import Binding
from vmrunner.model.job import Credentials, Job, JobState, Scope
from vmrunner.model.machine import Ending, EventKind, GuestEvent, Machine, MachineId, Metadata

ID = MachineId("m", "0" * 8)
METADATA = Metadata(
    ID, "p", "image/1", 10.0, overlay_at=11.0, bound_at=10.0, job_key="5.0", queued_at=9.0
)
JOB = Job(
    5,
    "build",
    ("x",),
    JobState.WAITING,
    "5.0",
    repository="o/r",
    url="u",
    queued_at=datetime.fromtimestamp(9, UTC),
)


def no_warning(sentence: str) -> None:
    raise AssertionError(sentence)


def ended(history: History, serial: int, ending: Ending, at: float, pool: str = "p") -> None:
    machine = MachineId("m", f"{serial:08x}")
    metadata = replace(METADATA, machine=machine, pool=pool, created_at=at - 0.5)
    history.started(metadata, at - 0.5)
    history.ended(machine, None, ending, f"reason {serial}", at)


def test_a_machine_from_start_to_end(tmp_path: Path) -> None:
    with closing(History(tmp_path / "state" / "history.sqlite", no_warning)) as history:
        history.started(METADATA, 12.0, JOB)
        history.running(replace(METADATA, running_at=17.5), replace(JOB, key="5.1"))
        events = tuple(
            GuestEvent(kind, at)
            for kind, at in zip(
                EventKind, (13.0, 14.0, 15.0, 16.0, 17.0, 18.0, 1.0, 1.0, 1.0), strict=True
            )
        )
        history.ended(ID, Machine(ID, alive=False, events=events), Ending.DONE, "", 19.0)
        history.ended(ID, None, Ending.DIED, "the first word counts", 20.0)
        totals = {(total.name, total.label): total.value for total in history.totals()}
    phases = {
        "queued": 9.0,
        "created": 10.0,
        "overlay": 11.0,
        "started": 12.0,
        "bound": 10.0,
        "running": 17.5,
    }
    guest = {"up": 13.0, "seed": 14.0, "ready": 15.0, "runner": 16.0, "exit": 18.0}
    made_for = {"made_for": "build", "made_for_key": "5.0", "made_for_repository": "o/r"}
    ran = {"job": "build", "job_key": "5.1", "repository": "o/r", "url": "u", "ran": "yes"}
    ran |= {"labels": "x"}
    expected = replace(
        Record(str(ID), "p", "image/1", destroyed=19.0, ending="done", **made_for),
        **phases,
        **guest,
        **ran,
    )
    with closing(History(tmp_path / "state" / "history.sqlite", no_warning)) as again:
        assert again.all() == [expected]
        assert again.usual_boot("p") == 3.0
    assert totals[("machines_total", "done")] == 1
    assert (
        totals[("queue_to_start_seconds", "10")],
        totals[("queue_to_start_seconds", "sum")],
    ) == (1, 8.5)


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
        for serial, ending in enumerate(
            (Ending.BOOT_TIMEOUT, Ending.DONE, Ending.BOOT_TIMEOUT, Ending.UNNEEDED, Ending.EARLY),
            1,
        ):
            ended(history, serial, ending, 100.0 + serial)
        ended(history, 9, Ending.BOOT_TIMEOUT, 200.0, pool="q")
        assert history.failures("p") == Failures(2, 105.0, "reason 5")
        history.start_failed(MachineId("m", "f" * 8), "p", "no image", 50.0)
        assert history.failures("p") == Failures(3, 50.0, "no image"), (
            "by the order of events, whatever the clock says"
        )
        ended(history, 10, Ending.DIED, 300.0)
        assert history.failures("p") is None, "a job ran: what it did is not the pool's fault"


@pytest.mark.parametrize(
    ("lives", "count"),
    [
        ([(0, 20), (0, 21), (1, 22), (2, 90)], 1),  # one pass made them, whenever they end
        ([(0, 20), (0, 21), (30, 50), (31, 51), (60, 80)], 3),
        ([(0, 100), (50, 150), (110, 210), (160, 260)], 2),
        ([(0, 20), (20, 40), (20, 41)], 1),  # made before it was seen that the first had failed
        ([(1000, 1020), (10, 30)], 2),  # the clock was set back in between
    ],
)
def test_machines_that_fail_together_are_one_failure(
    tmp_path: Path, lives: list[tuple[float, float]], count: int
) -> None:
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        for serial, (created, gone) in enumerate(lives):
            machine = MachineId("m", f"{serial:08x}")
            history.started(replace(METADATA, machine=machine, created_at=created), created)
            history.ended(machine, None, Ending.EARLY, "no forge", gone)
        found = history.failures("p")
        assert found
        assert (found.count, found.last_at) == (count, lives[-1][1])
        trial = history.trial("image/1", 0.0)
        assert (trial.failed, trial.failed - trial.together) == (len(lives), count)
        assert trial.is_lost(count)
        assert not trial.is_lost(count + 1)


def test_starts_that_fail_in_one_pass_are_one_failure(tmp_path: Path) -> None:
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        for serial in range(8):
            machine = MachineId("m", f"{serial:08x}")
            history.start_failed(machine, "p", "no", 10.0 + serial, "image/1", began=10.0)
        assert history.failures("p") == Failures(1, 17.0, "no")
        history.start_failed(MachineId("m", "9" * 8), "p", "no", 31.0, "image/1", began=30.0)
        assert history.failures("p") == Failures(2, 31.0, "no")


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


def test_a_word_of_the_forge_is_no_name_of_a_figure(tmp_path: Path) -> None:
    """Each would be a line for Prometheus, for ever."""
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        for number, word in enumerate(("success", "neutral", "", "x" * 200)):
            ended(history, number, Ending.DONE, 100.0)
            job = replace(JOB, state=JobState.DONE, conclusion=word)
            row = history.answered(f"vmr-m-{number:08x}", job, 101.0)
            assert row is not None
            assert row.verdict == word
        verdicts = {each.label: each.value for each in history.totals() if "jobs" in each.name}
    assert verdicts == {"success": 1, "unknown": 3}


def test_what_was_set_aside_before_stays(tmp_path: Path) -> None:
    """Such as by an older vmrunner, and by the newer one that came back."""
    path = tmp_path / "history.sqlite"
    for content in (b"first" * 99, b"second" * 99, b"third" * 99):
        path.write_bytes(content)
        History(path, [].append).close()
    aside = {each.name: each.read_bytes()[:5] for each in tmp_path.glob("history.corrupt*")}
    assert aside == {
        "history.corrupt": b"first",
        "history.corrupt-2": b"secon",
        "history.corrupt-3": b"third",
    }


def test_an_ending_of_another_vmrunner_stops_nothing(tmp_path: Path) -> None:
    """After a step back to an older version: the pool is not blamed for it."""
    path = tmp_path / "history.sqlite"
    with closing(History(path, no_warning)) as history:
        ended(history, 1, Ending.BOOT_TIMEOUT, 100.0)
        ended(history, 2, Ending.DONE, 200.0)
        with closing(sqlite3.connect(path)) as database:
            database.execute("UPDATE machines SET ending = 'melted' WHERE ending = 'done'")
            database.commit()
        assert history.failures("p") == Failures(1, 100.0, "reason 1")
        assert history.trial("image/1", 0.0).failed == 1


def test_a_damaged_file_is_no_empty_one(tmp_path: Path) -> None:
    """A pass goes on; `vmrunner history --json` must not say that nothing ran."""
    path, warnings = tmp_path / "history.sqlite", list[str]()
    with closing(History(path, no_warning)) as history:
        for number in range(500):
            ended(history, number, Ending.BOOT_TIMEOUT, 100.0)
    with path.open("r+b") as file:
        file.seek(4096 * 6)
        file.write(b"damage!!" * ((path.stat().st_size - file.tell()) // 8))
    with closing(History(path, warnings.append)) as history:
        with pytest.raises(ConfigError, match="can't be read: database disk image is malformed"):
            history.all()
        assert history.failures("p") is None
    assert ["was not read" in each for each in warnings] == [True]


def test_figures_that_cannot_be_read_stop_nothing(tmp_path: Path) -> None:
    warnings = list[str]()
    with closing(History(tmp_path / "history.sqlite", warnings.append)) as history:
        with closing(sqlite3.connect(tmp_path / "history.sqlite")) as database:
            database.execute("DROP TABLE totals")
        assert history.totals() == []
    assert [("were not read" in each) for each in warnings] == [True]


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="can't be written"):
        History(tmp_path / "file" / "history.sqlite", no_warning)


def old(path: Path) -> None:
    """A file of format 2, as vmrunner wrote it until it asked the forge for the job that ran."""
    times = (
        "queued",
        "created",
        "overlay",
        "started",
        "bound",
        "running",
        "up",
        "seed",
        "ready",
        "runner",
        "exit",
        "destroyed",
    )
    texts = ("machine", "pool", "image", "job", "job_key", "repository", "url")
    columns = [f"{name} TEXT NOT NULL" for name in texts] + [
        f"{name} REAL NOT NULL" for name in times
    ]
    columns += ["ending TEXT NOT NULL", "reason TEXT NOT NULL"]
    rows = [
        ("vmr-m-00000001", "5.0", 0.0, "done"),  # whatever ran on it
        ("vmr-m-00000002", "6.1", 12.0, "died"),  # seen on it
        ("vmr-m-00000003", "1c0ffee1", 0.0, "done"),  # Forgejo: no other one can have run
        ("vmr-m-00000004", "7.0", 0.0, ""),  # it lives
    ]
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(f"CREATE TABLE machines ({', '.join(columns)}, PRIMARY KEY (machine))")
        for machine, key, running, ending in rows:
            seen = [9.0, 10.0, 11.0, 11.5, 10.0, running, *[0.0] * 5, 20.0 if ending else 0.0]
            values = [
                machine,
                "p",
                "image/1",
                f"job {key}",
                key,
                "o/r",
                f"url {key}",
                *seen,
                ending,
                "",
            ]
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO machines VALUES ({marks})", values)  # noqa: S608 — only question marks
        database.execute(
            "CREATE TABLE totals (name TEXT, pool TEXT, label TEXT, value REAL, PRIMARY KEY (name, "
            "pool, label))"
        )
        database.execute("INSERT INTO totals VALUES ('machines_total', 'p', 'done', 2)")
        database.execute("PRAGMA user_version = 2")
        database.commit()


def test_a_file_from_before_is_brought_up_to_date_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    old(path)
    for _ in range(2):
        with closing(History(path, no_warning)) as history:
            rows = history.all()
            assert [(row.made_for, row.made_for_key, row.made_for_repository) for row in rows] == [
                (f"job {key}", key, "o/r") for key in ("5.0", "6.1", "1c0ffee1", "7.0")
            ]
            assert [(row.job, row.url) for row in rows] == [
                ("", ""),
                ("job 6.1", "url 6.1"),
                ("job 1c0ffee1", "url 1c0ffee1"),
                ("", ""),
            ]
            assert {(row.queued, row.created, row.ran, row.ask_at, row.asks) for row in rows} == {
                (9.0, 10.0, "", 0.0, 0)
            }
            assert (history.totals()[0].value, history.unended()) == (2, {"vmr-m-00000004"})
            assert history.to_ask(1e9, 10) == [], "of those nobody asks"
    with closing(History(path, no_warning)) as history:
        lives = MachineId("m", "00000004")
        binding = Binding(lives, "p", Scope.parse("instance"), "7.0", Credentials(3, "", ""))
        history.ended(lives, None, Ending.DONE, "", 30.0, binding, Ran.ASKED)
        (asked,) = history.to_ask(30.0, 10)
        assert (
            asked.scope,
            asked.runner_id,
            [(hint.key, hint.repository) for hint in asked.hints],
        ) == ("instance", 3, [("7.0", "o/r")])


def test_two_that_bring_a_file_up_to_date_at_once(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    old(path)
    found: list[int] = []

    def look() -> None:
        with closing(History(path, no_warning)) as history:
            found.append(len(history.all()))

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [4] * 8


@pytest.mark.parametrize("jump", [366 * 86400.0, -366 * 86400.0])
def test_a_clock_that_is_set_loses_no_answer(tmp_path: Path, jump: float) -> None:
    """A day seems to be over in which nobody has asked; nor is it asked for ever."""
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        history.started(METADATA, 1e9, JOB)
        binding = Binding(ID, "p", Scope.parse("instance"), "5.0", Credentials(3, "", ""))
        history.ended(ID, None, Ending.DONE, "", 1e9, binding, Ran.ASKED)
        now = 1e9 + jump
        (asked,) = history.to_ask(now, 10)
        assert history.answered(asked.machine, replace(JOB, state=JobState.RUNNING), now) is None
        (asked,) = history.to_ask(now + 60, 10)
        done = replace(JOB, state=JobState.DONE, conclusion="success")
        said = history.answered(asked.machine, done, now + 60)
        assert said is not None
        assert (said.job, said.verdict, said.ran) == ("build", "success", "yes")


@pytest.mark.parametrize("told", [None, replace(JOB, state=JobState.RUNNING)])
def test_nobody_is_asked_for_ever(tmp_path: Path, told: Job | None) -> None:
    """A day later it is asked a few times more."""
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        history.started(METADATA, 12.0, JOB)
        binding = Binding(ID, "p", Scope.parse("instance"), "5.0", Credentials(3, "", ""))
        history.ended(ID, None, Ending.DONE, "", 20.0, binding, Ran.ASKED)
        now, asks = 20.0 + 2 * 86400, 0
        while history.to_ask(now, 10):
            history.answered(str(ID), told, now)
            now, asks = now + 60, asks + 1
        assert asks == 6


def test_an_answer_that_comes_late_does_not_make_its_machine_the_latest(tmp_path: Path) -> None:
    """Failures count since the last machine that worked, by the order of the endings."""
    with closing(History(tmp_path / "history.sqlite", no_warning)) as history:
        history.started(METADATA, 12.0, JOB)
        history.ended(
            ID,
            None,
            Ending.DONE,
            "",
            19.0,
            Binding(ID, "p", Scope.parse("instance"), "5.0", Credentials(3, "", "")),
            Ran.ASKED,
        )
        ended(history, 2, Ending.BOOT_TIMEOUT, 20.0)
        done = replace(JOB, state=JobState.DONE, conclusion="success")
        said = history.answered(str(ID), done, 21.0)
        assert said is not None
        assert (said.job, said.verdict, said.ran) == ("build", "success", "yes")
        assert history.failures("p") == Failures(1, 20.0, "reason 2")
        assert {
            (total.label, total.value) for total in history.totals() if total.name == "jobs_total"
        } == {("success", 1)}


def test_a_file_from_before_there_were_labels_stays_one_that_the_older_vmrunner_reads(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.sqlite"
    with closing(History(path, no_warning)) as history:
        history.started(METADATA, 12.0, JOB)
    with closing(sqlite3.connect(path)) as database:
        database.execute("ALTER TABLE machines DROP COLUMN labels")
        before = database.execute("PRAGMA user_version").fetchone()
    with closing(History(path, no_warning)) as history:
        (record,) = history.all()
        history.started(METADATA, 13.0, JOB)
        (later,) = history.all()
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == before
    assert (record.made_for, record.labels, later.labels) == ("build", "", "x")
