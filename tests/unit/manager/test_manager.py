"""Passes on the fakes: started once, finished once, swept; a failure at any step leaves nothing and
does not stop the other machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes import Killed
from tests.world import POOL, World
from vmrunner.errors import (
    ConfigError,
    ForgeDenied,
    ForgeError,
    ForgeNotFound,
    ForgeTokenUnknown,
    ImageError,
    MachineError,
)
from vmrunner.hypervisor.seam import File
from vmrunner.machine.ownership import owning
from vmrunner.manager.actions import WaitKind
from vmrunner.manager.manager import Outcome
from vmrunner.manager.observed import Drain
from vmrunner.model.image import Golden
from vmrunner.model.job import JobState, RunnerRecord, Scope, ScopeKind
from vmrunner.model.machine import EventKind, Limits, MachineId


def one_running(world: World) -> str:
    """A machine with job 1 on it; its name."""
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.step(machine)
    assert world.step(machine) == "took a job"
    world.up()
    return str(machine)


def test_a_jobs_life(world: World) -> None:
    world.forge.queue(1)
    assert world.up() == (1, 0, 0, 0)
    assert world.up() == (0, 0, 0, 0), "a pass is idempotent"
    (machine,) = world.machines()
    assert world.step(machine) == "booted"
    world.up()
    assert (machine, File.SEED) not in world.hypervisor.files
    assert world.step(machine) == "took a job"
    assert world.up() == (0, 0, 0, 0)
    assert world.hypervisor.domains[machine].running_at == world.clock.now
    assert [world.step(machine) for _ in range(2)] == ["finished", "powered off"]
    assert world.up() == (0, 1, 0, 0)
    assert world.left() == []
    assert world.hypervisor.known == {}, "the host has forgotten its address"
    (row,) = world.history.all()
    assert (row.machine, row.job, row.repository, row.ending) == (
        str(machine),
        "job 1",
        "o/r",
        "done",
    )


def test_a_warm_machine_holds_no_credentials_and_is_registered_nowhere_until_it_is_bound(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, pools={"p": POOL | {"warm": 1}})
    world.up()
    (machine,) = world.machines()
    assert world.forge.runners_ == {}
    assert b"token-" not in world.hypervisor.files[machine, File.SEED]
    world.boot(machine)
    world.up()
    world.forge.queue(1)
    assert world.up() == (2, 0, 0, 0), "bound, and another one started to be warm"
    assert b"token-1" in world.hypervisor.files[machine, File.SEED]
    assert world.hypervisor.domains[machine].runner_id == 1
    assert [world.step(machine) for _ in range(4)] == [
        "bound",
        "took a job",
        "finished",
        "powered off",
    ]
    world.up()
    assert machine not in world.machines()
    assert len(world.machines()) == 1
    assert next(row.ending for row in world.history.all() if row.machine == str(machine)) == "done"


def test_a_parked_clone_rehearses_rests_and_takes_a_job(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"warm": 1, "max": 1, "start": "snapshot"}})
    world.make_snapshot("p")
    world.up()
    (machine,) = world.machines()
    seed = world.hypervisor.files[machine, File.SEED]
    assert b"vmrunner-rehearsal: true" in seed
    assert machine not in world.hypervisor.paused
    assert world.step(machine) == "rehearsed"
    world.up()
    assert machine in world.hypervisor.paused
    assert not world.forge.by_name(str(machine)), "it is registered nowhere"
    world.forge.queue(1)
    world.up()
    assert b"vmrunner-rehearsal: true" not in world.hypervisor.files[machine, File.SEED]
    assert [world.step(machine) for _ in range(4)] == [
        "bound",
        "took a job",
        "finished",
        "powered off",
    ]


@pytest.mark.parametrize("start", ["boot", "snapshot"])
def test_a_machine_is_bounded_as_its_pool_says(tmp_path: Path, start: str) -> None:
    pool = POOL | {
        "warm": 1,
        "start": start,
        "cpu_weight": 50,
        "disk_bandwidth": "20MiB",
        "disk_iops": 100,
    }
    world = World(tmp_path, pools={"p": pool})
    if start == "snapshot":
        world.make_snapshot("p")
    world.up()
    assert set(world.hypervisor.limits.values()) == {Limits(50, 20, 100)}


@pytest.mark.parametrize(
    "step", ["prepare", "create_overlay", "put seed.iso", "start", "create_runner"]
)
def test_a_failure_at_any_step_leaves_nothing_and_a_later_pass_makes_up_for_it(
    world: World, step: str
) -> None:
    world.forge.queue(1)
    (world.forge if step == "create_runner" else world.hypervisor).fail_at = step
    assert world.up() == (0, 0, 0, 1)
    assert world.left() == []
    if step != "create_runner":
        assert world.up() == (0, 0, 0, 0), "backed off"
        assert (
            "is backed off for 10 s after 1 failure (last: The fake fails at"
            in world.reasons()[1].said
        )
        world.clock.now += 10
    assert world.up() == (1, 0, 0, 0)


def test_a_version_promoted_in_the_middle_of_a_pass_is_the_next_ones(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = world.hypervisor.prepare

    def promoted_then(golden: Golden) -> None:
        prepare(golden)
        if golden.version == "1":
            world.publish("2", golden.manifest.runner and golden.manifest.runner.model_dump())

    monkeypatch.setattr(world.hypervisor, "prepare", promoted_then)
    for job, version in ((1, "1"), (2, "2")):
        world.forge.queue(job)
        assert world.up()[0] == 1
        assert f"debian-12/{version}" in {
            metadata.image for metadata in world.hypervisor.domains.values()
        }
    assert {Path(base).stem for base in world.hypervisor.lies_on.values()} == {
        "image-debian-12-1.disk",
        "image-debian-12-2.disk",
    }
    assert {Path(name).stem for name in world.hypervisor.published} >= {
        "image-debian-12-1.disk",
        "image-debian-12-2.disk",
    }


def test_failures_in_a_row_back_off_longer_and_longer(world: World) -> None:
    world.forge.queue(1)
    waits = []
    for _ in range(9):
        world.hypervisor.fail_at = "start"
        assert world.up() == (0, 0, 0, 1)
        (pool,) = world.manager.desired()
        assert pool.backoff
        waits.append(pool.backoff.until - world.clock.now)
        world.clock.now += waits[-1]
    assert waits == [10, 20, 40, 80, 160, 320, 640, 900, 900]


@pytest.mark.parametrize("step", ["bind", "bind seed", "create_runner"])
def test_a_failure_while_binding_costs_the_machine_and_not_the_job(
    tmp_path: Path, step: str
) -> None:
    world = World(tmp_path, pools={"p": POOL | {"warm": 1}})
    world.up()
    world.boot(world.machines()[0])
    world.forge.queue(1)
    (world.forge if step == "create_runner" else world.hypervisor).fail_at = step
    world.up()
    world.settle_but_for_warm()
    assert world.forge.verdicts == {1: ["success"]}


def test_one_machines_failure_does_not_stop_the_others(world: World) -> None:
    world.forge.queue(1)
    world.forge.queue(2)
    world.hypervisor.fail_at = "start"
    assert world.up() == (1, 0, 0, 1)


def test_a_forge_that_does_not_answer_changes_nothing_for_jobs(world: World) -> None:
    one_running(world)
    world.forge.down = True
    world.clock.now += 60
    assert world.up() == (0, 0, 0, 1)
    assert len(world.machines()) == 1
    assert world.manager.forge_down_since() > 0
    survey = world.manager.survey()
    assert [queue.problem for queue in survey.observed.queues.values()] == [
        "The fake forge does not answer."
    ]
    world.forge.down = False
    assert world.up() == (0, 0, 0, 0)
    assert world.manager.forge_down_since() == 0


def test_a_machine_that_dies_with_its_job_fails_it_with_a_line_that_says_why(world: World) -> None:
    name = one_running(world)
    machine = world.machines()[0]
    world.hypervisor.files[machine, File.CONSOLE] = b"[  12.3] Kernel panic - not syncing\n"
    world.hypervisor.die(machine)
    outcome, _ = world.manager.reconcile()
    (failure,) = outcome.failures
    assert isinstance(failure, MachineError)
    assert "Kernel panic" in failure.hint
    (line,) = world.forge.logs[1]
    assert line.startswith(f"vmrunner: machine {name} on host ")
    assert "its guest's kernel panicked" in line
    assert world.forge.verdicts == {1: ["failure"]}
    assert world.left() == []
    assert world.history.all()[0].ending == "died"


def test_the_job_of_a_dead_machine_is_failed_also_when_the_forge_was_away(world: World) -> None:
    one_running(world)
    world.forge.down = True
    world.hypervisor.die(world.machines()[0])
    world.up()
    assert world.forge.verdicts == {}
    world.forge.down, world.forge.fail_at = False, "fail_job"
    world.up()
    assert (world.hypervisor.machines.residue().files, world.forge.verdicts) == ((), {}), (
        "the machine is gone, its binding is not"
    )
    world.up()
    assert (world.forge.verdicts, world.left()) == ({1: ["failure"]}, [])


@pytest.mark.parametrize(
    ("error", "again"), [(ForgeTokenUnknown("401", ""), True), (ForgeDenied("403", ""), False)]
)
def test_the_job_of_a_dead_machine_waits_for_a_new_token_and_not_for_a_wider_one(
    world: World, error: ForgeError, again: bool
) -> None:
    one_running(world)
    real, refusals = world.forge.fail_job, iter([error])

    def refuse(*arguments: Any) -> bool:
        if refusal := next(refusals, None):
            raise refusal
        return real(*arguments)

    world.forge.fail_job = refuse  # type: ignore[method-assign]
    world.hypervisor.die(world.machines()[0])
    world.up()
    world.up()
    assert (world.forge.verdicts, world.left()) == ({1: ["failure"]} if again else {}, [])


def test_killed_at_any_step_of_a_jobs_life_it_still_runs_once(tmp_path: Path) -> None:
    for warm in (0, 1):
        for steps in range(200):
            world = World(
                tmp_path / f"{warm}-{steps}", pools={"p": POOL | {"warm": warm, "max": 1}}
            )
            world.forge.queue(1)
            world.doom.after = steps
            killed = 0
            for _ in range(12):
                try:
                    world.up()
                except Killed:
                    killed += 1
                    world.restart()
                for machine in world.machines():
                    world.step(machine)
                world.clock.now += 5
            world.doom.after = None
            world.settle_but_for_warm()
            assert world.forge.verdicts == {1: ["success"]}, f"killed at step {steps}"
            assert world.starts == {1: 1}
            assert world.hypervisor.known == {}, "the host has forgotten their addresses"
            if not killed:
                break
        assert killed == 0, "every step was reached"


def test_a_cancelled_job_ends_its_machine(world: World) -> None:
    one_running(world)
    world.forge.cancel(1)
    world.up()
    assert len(world.machines()) == 1, "a short grace"
    world.clock.now += 16
    assert world.up() == (0, 1, 0, 0)
    assert (world.left(), world.history.all()[0].ending) == ([], "cancelled")


def test_what_nothing_explains_is_swept_and_what_is_not_ours_stays(world: World) -> None:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.hypervisor.files[machine, File.CONSOLE] = b""
    world.hypervisor.die(machine)  # the host rebooted
    world.forge.create_runner(Scope.parse("instance"), "builder", ["x"])
    world.forge.create_runner(Scope.parse("instance"), world.named("0123abcd"), ["x"])
    world.forge.cancel(1)
    world.up()
    assert [runner.record.name for runner in world.forge.runners_.values()] == ["builder"]
    assert world.left() == []


def test_a_machine_that_is_overdue_is_an_error_with_its_consoles_tail(world: World) -> None:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.hypervisor.files[machine, File.CONSOLE] = b"Loading initial ramdisk ...\n"
    world.clock.now += 301
    outcome, _ = world.manager.reconcile()
    (failure,) = outcome.failures
    assert isinstance(failure, MachineError)
    assert (
        failure.sentence.endswith("its guest did not come up within 300 s."),
        "Loading" in failure.hint,
    ) == (True, True)
    world.clock.now += 11
    assert world.up() == (1, 0, 0, 0), "the job still waits, so it gets another machine"


def test_an_image_without_the_forges_runner_is_said_before_anything_is_made(world: World) -> None:
    world.publish("1", None)
    world.forge.queue(1)
    (failure,) = world.manager.reconcile()[0].failures
    assert isinstance(failure, ImageError)
    assert world.left() == []


def test_the_forges_certificates_are_read_once_in_a_pass_for_all_machines_of_a_pool(
    world: World,
) -> None:
    authority = world.folder / "ca.pem"
    forge = {"kind": world.forge.kind, "url": world.forge.url, "ca_file": authority}
    world.configure({"p": POOL}, forge=forge)
    world.forge.queue(1)
    world.forge.queue(2)
    (failure,) = world.manager.reconcile()[0].failures
    assert "ca.pem can't be read" in failure.sentence
    assert world.left() == []
    authority.write_text("the first PEM")
    assert world.up() == (2, 0, 0, 0)
    for machine in world.machines():
        assert b"the first PEM" in world.hypervisor.files[machine, File.SEED]
    authority.write_text("the second PEM")
    world.hypervisor.die(world.machines()[0])
    world.up()
    world.clock.now += 11
    world.up()
    seeds = [world.hypervisor.files[machine, File.SEED] for machine in world.machines()]
    assert sorted(b"the second PEM" in seed for seed in seeds) == [False, True]


def test_a_token_that_may_not_register_at_the_repository_registers_at_the_pools_scope(
    tmp_path: Path,
) -> None:
    world = World(tmp_path)
    world.forge.forbids_repositories = True
    world.forge.queue(1)
    assert world.up() == (1, 0, 0, 0)
    assert [str(runner.scope) for runner in world.forge.runners_.values()] == ["instance"]
    world.settle()


def test_an_idle_runner_that_gets_a_job_while_it_is_looked_at_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.boot(machine)
    survey = world.manager.survey({"p": Drain.IDLE})
    world.forge.take(1, str(machine))
    outcome = Outcome()
    world.manager._act(survey.plan.actions, outcome)
    assert (outcome.destroyed, world.machines()) == (0, [machine])


def test_down_lets_jobs_finish_and_destroys_the_idle(world: World) -> None:
    world.forge.queue(1)
    world.forge.queue(2)
    world.up()
    busy = world.machines()[0]
    world.boot(busy)
    number = world.forge.fetch(str(busy), world.hypervisor.domains[busy].job_key)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        assert world.machines() in ([busy], []), "the idle one went at once"
        if len(waited) == 2:
            world.forge.finish(number)
            world.hypervisor.power_off(busy)

    outcome = world.manager.down(["p"], now=False, wait=wait)
    assert (outcome.destroyed, len(waited)) == (2, 2)
    assert world.left() == []
    assert world.forge.verdicts == {number: ["success"]}


def test_a_drained_pool_stays_down_over_a_restart_until_it_is_resumed(world: World) -> None:
    world.manager.down(["p"], now=False)
    world.forge.queue(1)
    world.restart()
    assert world.up() == (0, 0, 0, 0)
    assert world.reasons()[1].kind is WaitKind.DRAINED
    world.manager.resume(["p"])
    assert world.up() == (1, 0, 0, 0)


@pytest.mark.parametrize("how", ["now", "timeout"])
def test_down_now_destroys_all_and_fails_their_jobs(world: World, how: str) -> None:
    one_running(world)
    outcome = world.manager.down(["p"], now=how == "now", timeout=0 if how == "timeout" else None)
    assert (outcome.destroyed, world.left()) == (1, [])
    assert world.history.all()[0].ending == "stopped"
    assert (world.forge.verdicts, "vmrunner down --now" in world.forge.logs[1][0]) == (
        {1: ["failure"]},
        True,
    )


def test_a_pool_that_left_the_configuration_finishes_its_jobs(world: World) -> None:
    one_running(world)
    world.configure({"other": POOL | {"labels": ["else"]}})
    assert world.up() == (0, 0, 0, 0)
    world.settle()
    assert world.forge.verdicts == {1: ["success"]}


def test_purge_leaves_nothing(world: World) -> None:
    world.forge.queue(1)
    world.up()
    world.manager.down(["p"], now=True)
    world.manager.purge()
    assert world.left() == []


def test_an_unknown_pool(world: World) -> None:
    assert world.manager.pools(None) == ["p"]
    with pytest.raises(ConfigError, match="There is no pool 'q'"):
        world.manager.pools("q")


def test_bindings_are_for_their_owner_only_and_a_damaged_one_is_forgotten(world: World) -> None:
    world.forge.queue(1)
    world.up()
    folder = world.folder / "run" / "bindings"
    (path,) = folder.iterdir()
    assert (path.stat().st_mode & 0o077, folder.stat().st_mode & 0o077) == (0, 0)
    path.write_text("{")
    world.up()
    assert (list(folder.iterdir()), len(world.machines())) == ([], 1), (
        "the machine knows its runner itself"
    )
    world.settle()
    assert world.known_states() == {JobState.DONE}


def test_events_of_a_guest_are_hints_about_itself_only(world: World) -> None:
    one_running(world)
    (machine,) = world.machines()
    world.hypervisor.report(machine, EventKind.EXIT, EventKind.READY, text="0")
    world.up()
    assert world.machines() == [machine], "the forge says that its job runs"


def test_a_repository_that_is_deleted_while_its_job_runs_takes_the_machine_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, pools={"p": POOL | {"scope": "organisation:o"}})
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    world.step(machine)
    world.step(machine)
    world.up()
    real = world.forge.runners

    def runners(scope: Scope) -> list[RunnerRecord]:
        if scope.kind is ScopeKind.REPOSITORY:
            raise ForgeNotFound("The forge knows nothing of listing runners (404).", "")
        return real(scope)

    monkeypatch.setattr(world.forge, "runners", runners)
    world.forge.known.clear()
    world.forge.runners_.clear()
    failures = 0
    for _ in range(5):
        failures += world.up()[3]
        world.clock.now += 30
    assert (world.machines(), failures) == ([], 0)


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_a_job_without_labels_waits_until_a_pool_says_that_it_is_its_own(
    tmp_path: Path, binds_jobs: bool
) -> None:
    pools = {
        "a-strict": POOL | {"labels": ["strict"]},
        "docker": POOL | {"labels": ["docker"]},
    }
    world = World(tmp_path, binds_jobs=binds_jobs, pools=pools)
    world.forge.queue(1, labels=())
    for _ in range(3):
        assert world.up() == (0, 0, 0, 0)
        world.clock.now += 1000
    assert world.reasons()[1].kind is WaitKind.UNLABELLED
    world.configure(pools | {"docker": pools["docker"] | {"takes_unlabelled": True}})
    assert world.up() == (1, 0, 0, 0)
    assert [metadata.pool for metadata in world.hypervisor.domains.values()] == ["docker"]
    world.settle()
    assert [row.ending for row in world.history.all()] == ["done"]


def test_what_the_forge_hands_to_nobody_costs_no_pool_its_back_off(tmp_path: Path) -> None:
    """Connected runners that get nothing of a busy forge, one after the other."""
    world = World(tmp_path)
    world.forge.may_throttle = True
    for number in (1, 2):
        world.forge.queue(number)
    world.up()
    for machine in world.machines():
        world.boot(machine)
        world.forge.connect(str(machine))
    done = (0, 0, 0, 0)
    while done == (0, 0, 0, 0):
        world.clock.now += 50
        done = world.up()
    assert done == (0, 2, 0, 0)
    assert {row.ending for row in world.history.all()} == {"held-back"}
    assert {reason.kind for reason in world.reasons().values()} == {WaitKind.HELD}
    world.forge.queue(3)
    assert world.up() == (1, 0, 0, 0), "other jobs have their machines at once"


def test_the_hypervisors_logs_of_machines_that_are_gone_are_swept_once_a_minute(
    world: World,
) -> None:
    name = one_running(world)
    gone = MachineId.new("m", world.manager.host)
    foreign = MachineId.new("m", "00ffee00")  # a manager of this name on another computer
    logs = world.hypervisor.logs
    world.clock.now += 61
    logs |= dict.fromkeys((gone, foreign), "")
    world.up()
    assert {str(each) for each in logs} == {name, str(foreign)}
    logs[gone] = ""
    world.up()
    assert gone in logs, "not in each pass"
    world.clock.now += 61
    world.up()
    assert gone not in logs
    world.manager.purge()
    assert logs.keys() == {foreign}


def test_a_log_of_a_machine_that_another_process_owns_stays(world: World) -> None:
    mine = MachineId.new("m", world.manager.host)
    with owning(world.manager.settings.runtime_dir, mine):
        world.hypervisor.logs[mine] = ""
        world.up()
        assert mine in world.hypervisor.logs
    world.clock.now += 61
    world.up()
    assert mine not in world.hypervisor.logs


def test_what_qemu_said_last_is_in_the_hosts_log_and_not_in_the_jobs(world: World) -> None:
    one_running(world)
    machine = world.machines()[0]
    world.hypervisor.logs[machine] = "could not open /secret"
    world.hypervisor.die(machine)
    world.up()
    (fields,) = [fields for event, fields in world.log.lines if event == "machine destroyed"]
    assert fields["qemu"] == "could not open /secret"
    assert "/secret" not in str(world.forge.logs)


def test_a_host_that_shuts_down_fails_the_jobs_and_drains_nothing(world: World) -> None:
    one_running(world)
    world.forge.queue(2)
    outcome = world.manager.halt(wait=lambda _: None)
    assert (outcome.failures, world.left()) == ([], [])
    assert world.forge.verdicts == {1: ["failure"]}
    assert world.forge.logs[1][0].endswith(": the host shuts down")
    assert [row.ending for row in world.history.all()] == ["stopped"]
    assert world.up()[0] == 1, "after the next start job 2 gets its machine"


def test_a_host_shuts_down_without_its_forge(world: World) -> None:
    one_running(world)
    world.forge.down = True
    outcome = world.manager.halt(wait=lambda _: None)
    assert outcome.failures
    assert world.machines() == []
    world.forge.down = False
    world.up()
    assert world.forge.verdicts == {1: ["failure"]}, "where the folder of the bindings is left"


def test_idle_machines_end_with_the_host(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"warm": 2, "max": 2}})
    world.up()
    assert len(world.machines()) == 2
    world.manager.halt(wait=lambda _: None)
    assert world.left() == []
    assert world.up()[0] == 2
