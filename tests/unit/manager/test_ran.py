"""Which job ran on a machine: not the one that it was made for, but the one that the forge names
after its end.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Killed
from tests.world import POOL, World
from vmrunner import config
from vmrunner.cli import history_cmd
from vmrunner.cli.app import out
from vmrunner.errors import ForgeDenied
from vmrunner.manager.history import History
from vmrunner.manager.record import Record
from vmrunner.model.job import JobState
from vmrunner.model.machine import MachineId


def started(world: World, jobs: int) -> list[MachineId]:
    """So many jobs with a machine for each, booted; the machines in the order of their jobs."""
    for number in range(1, jobs + 1):
        world.forge.queue(number)
    world.up()
    for machine in world.machines():
        world.step(machine)
    return sorted(
        world.machines(),
        key=lambda machine: int(
            world.hypervisor.domains[machine].job_key.strip("handle-").partition(".")[0]
        ),
    )


def run(world: World, machine: MachineId, verdict: str = "success") -> int:
    """A job from its beginning to the machine's end, between two passes.

    Which job, is for the forge to say.
    """
    number = world.forge.fetch(str(machine), world.hypervisor.domains[machine].job_key)
    world.forge.finish(number, verdict)
    world.hypervisor.power_off(machine)
    return number


def row(world: World, machine: MachineId) -> Record:
    found = world.history.find(machine)
    assert found is not None
    return found


def test_the_job_that_ran_is_named_and_the_one_that_it_was_made_for_beside_it(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    first, second = started(world, 2)
    assert [row(world, machine).job for machine in (first, second)] == ["", ""]
    assert (run(world, second, "failure"), run(world, first)) == (1, 2), (
        "Gitea hands them out oldest first"
    )
    assert world.up() == (0, 2, 0, 0)
    for machine, number, verdict, made_for in (
        (first, 2, "success", "job 1"),
        (second, 1, "failure", "job 2"),
    ):
        said = row(world, machine)
        assert (said.job, said.repository, said.verdict, said.ran) == (
            f"job {number}",
            "o/r",
            verdict,
            "yes",
        )
        assert (said.sha, said.url, said.attempt) == (
            f"{number:040x}",
            f"https://forge.example/jobs/{number}",
            1,
        )
        assert (said.job_started, said.job_ended, said.job_seconds) == (
            1_000_000.0,
            1_000_000.0,
            0.0,
        )
        assert (said.made_for, said.ending) == (made_for, "done")
        fields = {
            "machine": str(machine),
            "pool": "p",
            "job": f"o/r: job {number}",
            "verdict": verdict,
            "took": "0 s",
        }
        assert ("job ended", fields | {"sha": f"{number:040x}"}) in world.log.lines
    assert world.forge.questions == 1, "one question for all that ended in a pass"
    world.up()
    assert world.forge.questions == 1


def test_a_job_that_is_long_enough_to_be_seen_is_named_at_once(world: World) -> None:
    (machine,) = started(world, 1)
    assert world.step(machine) == "took a job"
    world.up()
    said = row(world, machine)
    assert (said.job, said.verdict, said.ran) == ("job 1", "", "")
    world.clock.now += 90.0
    assert [world.step(machine) for _ in range(2)] == ["finished", "powered off"]
    world.up()
    assert (row(world, machine).verdict, row(world, machine).job_seconds) == ("success", 90.0)


def test_a_guests_clock_that_is_behind_makes_no_job_shorter_than_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    (machine,) = started(world, 1)
    world.forge.fetch(str(machine))
    world.clock.now -= 1.0  # Gitea has the end from the runner
    world.forge.finish(1)
    world.clock.now += 1.0
    world.hypervisor.power_off(machine)
    world.up()
    assert (
        row(world, machine).job_started - row(world, machine).job_ended,
        row(world, machine).job_seconds,
    ) == (1.0, 0.0)


def test_a_machine_goes_although_the_forge_does_not_say_what_ran_on_it(world: World) -> None:
    (machine,) = started(world, 1)
    run(world, machine)
    world.forge.fail_at = "ended_jobs"
    assert world.up() == (0, 1, 0, 1)
    assert world.left() == []
    assert (row(world, machine).job, row(world, machine).ran) == ("", "asked")
    world.restart()
    world.up()
    assert (row(world, machine).job, row(world, machine).verdict, row(world, machine).ran) == (
        "job 1",
        "success",
        "yes",
    )


def test_a_forge_that_is_away_is_asked_when_it_is_back(world: World) -> None:
    (machine,) = started(world, 1)
    run(world, machine)
    world.forge.fail_at = "ended_jobs"
    world.up()
    world.forge.down = True
    for _ in range(100):
        world.clock.now += 300
        world.up()
    assert world.forge.questions == 0, "not even asked, as its list of jobs has no answer"
    world.forge.down = False
    world.up()
    assert (row(world, machine).job, row(world, machine).ran) == ("job 1", "yes")


def test_what_the_forge_never_tells_is_not_asked_for_ever(world: World) -> None:
    (machine,) = started(world, 1)
    run(world, machine)
    world.forge.forgets = True
    asked = []
    for second in range(100):
        before = world.forge.questions
        world.up()
        asked += [second] * (world.forge.questions - before)
        world.clock.now += 1.0
    assert asked == [0, 1, 3, 7, 15, 31]
    said = row(world, machine)
    assert (said.job, said.made_for, said.ran, said.job_seconds) == ("", "job 1", "unknown", None)
    assert "the forge does not tell which job ran on a machine" in [
        event for event, _ in world.log.lines
    ]


def test_a_day_later_it_is_asked_all_the_same(world: World) -> None:
    """The day may be one that the clock was set ahead by."""
    (machine,) = started(world, 1)
    run(world, machine)
    world.forge.fail_at = "ended_jobs"
    world.up()
    world.clock.now += 86401.0
    world.up()
    assert row(world, machine).ran == "yes"


def test_after_a_day_of_errors_it_is_asked_a_few_times_more(world: World) -> None:
    (machine,) = started(world, 1)
    run(world, machine)
    world.forge.fail_at = "ended_jobs"
    world.up()
    world.clock.now += 86401.0
    failed = 0
    for _ in range(20):
        world.forge.fail_at = "ended_jobs"
        world.up()
        failed += not world.forge.fail_at
        world.clock.now += 60.0
    world.forge.fail_at = ""
    assert (failed, row(world, machine).ran) == (6, "unknown")


def go_at_once(world: World, why: str) -> None:
    """Machines go, whatever the forge says of them."""
    if why == "down":
        world.manager.down(["p"], now=True, timeout=1.0)
    else:
        world.hypervisor.free_disk_mib = 1
        world.up()


@pytest.mark.parametrize("why", ["no room", "down"])
def test_who_goes_at_once_and_had_no_job(world: World, why: str) -> None:
    """The forge says so of its runner, by the id."""
    (machine,) = started(world, 1)
    go_at_once(world, why)
    assert (row(world, machine).ran, world.forge.questions) == ("no", 0)


@pytest.mark.parametrize("why", ["no room", "down"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_who_goes_at_once_may_have_had_a_job(world: World, why: str, is_listed: bool) -> None:
    """Also where no list shows it just then."""
    (machine,) = started(world, 1)
    number = world.forge.fetch(str(machine), world.hypervisor.domains[machine].job_key)
    if not is_listed:
        world.forge.unlisted_jobs = {number}
    go_at_once(world, why)
    world.forge.unlisted_jobs, world.hypervisor.free_disk_mib = set(), 1 << 20
    for _ in range(10):
        world.up()
        world.clock.now += 60
    assert (row(world, machine).job, row(world, machine).ran) == (f"job {number}", "yes")


def test_a_question_that_waits_is_asked_also_when_the_clock_was_set_back(world: World) -> None:
    (machine,) = started(world, 1)
    run(world, machine)
    world.forge.fail_at = "ended_jobs"
    world.up()
    world.clock.now -= 7200.0
    world.up()
    assert row(world, machine).ran == "yes"


def test_a_token_that_may_not_read_a_job_is_an_error_and_no_endless_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    (machine,) = started(world, 1)
    run(world, machine)

    def refuse(*_: object) -> None:
        raise ForgeDenied("The forge refuses reading a job (403).", "read:repository")

    monkeypatch.setattr(world.forge, "ended_jobs", refuse)
    failures = 0
    for _ in range(100):
        failures += world.up()[3]
        world.clock.now += 1.0
    assert (failures, row(world, machine).ran) == (6, "unknown")


def test_a_job_that_the_forge_believes_to_run_on_is_asked_for_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    (machine,) = started(world, 1)
    world.step(machine)
    world.up()
    # It may not, or somebody else is about to.
    monkeypatch.setattr(world.forge, "fail_job", lambda *_: False)
    world.hypervisor.die(machine)
    world.up()
    assert (row(world, machine).job, row(world, machine).verdict, row(world, machine).ran) == (
        "job 1",
        "",
        "asked",
    )
    world.forge.finish(1, "failure")
    world.up()
    assert row(world, machine).verdict == ""
    world.clock.now += 60.0
    world.up()
    assert (row(world, machine).verdict, row(world, machine).ran) == ("failure", "yes")


def test_the_job_that_died_with_its_machine_has_its_verdict(world: World) -> None:
    (machine,) = started(world, 1)
    world.step(machine)
    world.up()
    world.hypervisor.die(machine)
    world.up()
    assert (row(world, machine).ending, row(world, machine).job, row(world, machine).verdict) == (
        "died",
        "job 1",
        "failure",
    )


def test_a_machine_without_a_job_says_so_and_the_forge_is_not_asked(world: World) -> None:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.clock.now += 301
    world.up()
    said = row(world, machine)
    assert (said.ending, said.job, said.made_for, said.ran, world.forge.questions) == (
        "boot-timeout",
        "",
        "job 1",
        "no",
        0,
    )


def test_another_runner_took_the_job(tmp_path: Path) -> None:
    world = World(tmp_path)
    (machine,) = started(world, 1)
    world.forge.create_runner(world.settings.pools["p"].scope[0], "somebody", ["debian-12"])
    world.forge.take(1, "somebody")
    world.pass_time(1000)
    said = row(world, machine)
    assert (said.ending, said.job, said.made_for, said.ran) == ("unneeded", "", "job 1", "no")


@pytest.mark.parametrize(
    ("binds", "section"),
    [
        (False, {}),
        (False, {"warm": 1}),
        (True, {}),
        (True, {"warm": 1}),
        (True, {"hold_failed": "10m"}),  # its guest stays until it is ended
    ],
)
def test_killed_at_any_step_the_record_is_true(
    tmp_path: Path, binds: bool, section: dict[str, Any]
) -> None:
    for steps in range(200):
        pools = {"p": POOL | {"max": 1} | section}
        world = World(tmp_path / str(steps), binds_jobs=binds, pools=pools)
        world.forge.queue(1)
        world.doom.after = steps
        killed = False
        for _ in range(15):
            with suppress(Killed):
                world.up()
            if world.doom.dead:
                killed = True
                world.restart()
            for machine in world.machines():
                world.step(machine)
            world.clock.now += 5
        world.doom.after = None
        world.settle_but_for_warm()
        job = world.forge.known[1]
        assert job.state is JobState.DONE
        ran = [
            (said.machine, said.job, said.verdict, said.sha)
            for said in world.history.all()
            if said.job or said.ran == "yes"
        ]
        assert ran == [(job.runner_name, "job 1", "success", job.sha)], f"killed at step {steps}"
        if not killed:
            return
    raise AssertionError("every step was reached")


@pytest.mark.parametrize("was_seen", [False, True])
def test_killed_between_a_machines_end_and_its_line(
    world: World, was_seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the machine is left then that could tell of its job."""

    def killed(*_: object, **__: object) -> None:
        raise Killed

    (machine,) = started(world, 1)
    assert world.step(machine) == "took a job"
    if was_seen:
        world.up()
    assert [world.step(machine) for _ in range(2)] == ["finished", "powered off"]
    with monkeypatch.context() as patch:
        patch.setattr(History, "ended", killed)
        with pytest.raises(Killed):
            world.up()
    world.restart()
    world.up()
    said = row(world, machine)
    assert (said.ending, said.ran, said.job, said.verdict) == ("done", "yes", "job 1", "success")


# Of a job that is over Forgejo tells only whoever knows which it was.
@pytest.mark.parametrize(("binds", "was_seen"), [(False, False), (False, True), (True, True)])
def test_a_job_that_is_over_while_its_record_stays_ran(
    tmp_path: Path, binds: bool, was_seen: bool
) -> None:
    """A record that shows no job any more is not one that never had any."""
    world = World(tmp_path, binds_jobs=binds)
    (machine,) = started(world, 1)
    assert world.step(machine) == "took a job"
    if was_seen:
        world.up()
    stays = {
        number: replace(runner, record=replace(runner.record, busy=False))
        for number, runner in world.forge.runners_.items()
    }
    assert [world.step(machine) for _ in range(2)] == ["finished", "powered off"]
    world.forge.runners_ = stays
    world.up()
    said = row(world, machine)
    assert (said.ran, said.job, said.verdict) == ("yes", "job 1", "success")


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize("start", ["boot", "snapshot"])
@pytest.mark.parametrize("unwritten", ["started", "bound"])
def test_killed_before_it_was_written_down(
    tmp_path: Path, unwritten: str, start: str, is_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine goes on: its row is made of what is written on the machine."""

    def killed(*_: object) -> None:
        raise Killed

    warm = int(unwritten == "bound")
    pool = POOL | {"warm": warm, "max": 1, "start": start}
    world = World(tmp_path, binds_jobs=True, pools={"p": pool})
    if start == "snapshot":
        world.make_snapshot("p")
    for _ in range(4):
        world.up()
        for machine in world.machines():
            world.step(machine)
    world.forge.queue(1)
    with monkeypatch.context() as patch:
        patch.setattr(History, unwritten, killed)
        with pytest.raises(Killed):
            world.up()
    world.restart()
    (machine,) = world.machines()
    while is_over and machine in world.hypervisor.domains:
        world.step(machine)
    world.settle_but_for_warm()
    (said,) = (said for said in world.history.all() if said.job)
    job = world.forge.known[1]
    assert (said.machine, said.job, said.verdict) == (job.runner_name, "job 1", "success")
    assert (said.pool, said.made_for_key, said.made_for_repository) == ("p", job.key, "o/r")
    assert min(said.created, said.queued, said.destroyed) > 0
    # Of a domain that is gone nothing else is known.
    assert is_over or (said.image == "debian-12/1" and min(said.overlay, said.bound) > 0)


def test_history_as_it_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    first, second = started(world, 2)
    run(world, second)
    run(world, first)
    world.forge.queue(3)
    world.up()
    (third,) = world.machines()
    world.clock.now += 301
    world.up()
    monkeypatch.setattr(config, "load", lambda _: world.settings)
    monkeypatch.setattr(out, "width", 300)
    history_cmd.history()
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "o/r: job 2 (made for o/r: job 1)" in lines[str(first)]
    assert "o/r: job 1 (made for o/r: job 2)" in lines[str(second)]
    assert "- (made for o/r: job 3)" in lines[str(third)]
    assert [word in lines[str(first)] for word in ("success", "0 s", f"{2:040x}"[:10])] == [
        True
    ] * 3
    history_cmd.history(as_json=True)
    shown = {each["machine"]: each for each in json.loads(capsys.readouterr().out)}
    assert (
        shown[str(first)]["job"],
        shown[str(first)]["made_for"],
        shown[str(first)]["job_seconds"],
    ) == ("job 2", "job 1", 0.0)
    assert (
        shown[str(third)]["job"],
        shown[str(third)]["ran"],
        shown[str(third)]["job_seconds"],
    ) == ("", "no", None)
    assert (
        datetime.fromtimestamp(shown[str(first)]["job_started"], UTC)
        == world.forge.known[2].started_at
    )


def shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *records: Record, failed: bool = False
) -> list[str]:
    """The lines of `vmrunner history` without their head."""
    world = World(tmp_path)
    for record in records:
        world.history._write(record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "load", lambda _: world.settings)
        patch.setattr(out, "width", 300)
        history_cmd.history(failed=failed)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()[1:]]


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("build [debian-12]", "build [debian-12]"),
        ("[red]a[/red] [/b]", "[red]a[/red] [/b]"),
        ("[link=https://a.example]b[/link]", "[link=https://a.example]b[/link]"),
        (":smile:", ":smile:"),
        ("a\x1b[2Jb\nc", "a [2Jb c"),
    ],
)
def test_a_jobs_name_is_shown_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, seen: str
) -> None:
    now = time.time()
    (line,) = shown(
        tmp_path,
        capsys,
        Record("m", "p", job=name, created=now - 9, destroyed=now, ending="early", reason=name),
    )
    assert f" {seen} " in line
    assert line.endswith(f"early: {seen}")


def test_clocks_that_were_set_are_no_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = time.time()
    ended = Record("m", "p", job="j", destroyed=now - 9, ending="done")
    ahead, behind, parked = shown(
        tmp_path,
        capsys,
        replace(ended, machine="ahead", created=now, destroyed=now + 3600),
        replace(ended, machine="behind", created=now + 1, up=now - 3600),
        # However long it waited for a job.
        replace(ended, machine="parked", created=now + 2, bound=now + 600, runner=now + 600.4),
    )
    assert " ago" not in ahead
    assert " 0.0 s " in behind
    assert " 0.4 s " in parked


@pytest.mark.parametrize("failed", [True, False])
def test_what_a_newer_vmrunner_wrote_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], failed: bool
) -> None:
    newer = Record("m", "p", ran="perhaps", created=1.0, destroyed=2.0, ending="melted")
    (line,) = shown(tmp_path, capsys, newer, failed=failed)
    assert line.endswith("melted")


def test_a_narrow_screen_hides_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    machine = "vmr-ci-1-0123456789abcdef"
    world.history._write(
        Record(machine, "debian-12", job="j" * 60, sha="a" * 40, created=1.0, ending="done")
    )
    monkeypatch.setattr(config, "load", lambda _: world.settings)
    monkeypatch.setattr(out, "width", 80)
    history_cmd.history()
    seen = capsys.readouterr().out
    assert f"\n{machine} " in seen
    assert (seen.count("jj") > 5, "\u2026" in seen) == (True, False)
    assert sum(line.count("j") for line in seen.splitlines()[2:]) >= 60
