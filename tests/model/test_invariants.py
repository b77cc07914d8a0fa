"""The model test: random jobs, cancels, crashes, kills, outages, partial lists, clocks that are
set, reloads and a second host over the real manager on fakes, and what must always hold.

150 examples in `make test`, the same ones each time; 1,000 new ones in `make long`, and 10,000 in
`make model` (VMRUNNER_TEST_MODEL_EXAMPLES).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.fakes import Killed
from tests.world import POOL, World
from vmrunner.errors import HypervisorError, VmrunnerError
from vmrunner.manager import keep
from vmrunner.manager.actions import WaitKind
from vmrunner.manager.observed import Drain
from vmrunner.model.job import JobState
from vmrunner.model.machine import MachineId

ASKED = os.environ.get("VMRUNNER_TEST_MODEL_EXAMPLES")
EXAMPLES = int(ASKED or "150")
PHASES = [Phase.generate]  # shrinking takes minutes; a failing example is short enough to read
LABELS = [["debian-12"], ["big"], ["debian-12", "big"], ["arm64"], []]
REPOSITORIES = ["o/a", "o/b", "x/c"]
SIZES = st.fixed_dictionaries(
    {
        "max": st.integers(1, 3),
        "warm": st.integers(0, 2),
        "register_idle": st.integers(0, 2),
        "priority": st.integers(0, 1),
        "start": st.sampled_from(["boot", "auto", "snapshot"]),
        "takes_unlabelled": st.booleans(),
        "hold_failed": st.sampled_from([None, None, "3m"]),
        "job_may_hold": st.sampled_from([None, None, "5m"]),
    }
)
HOSTS = st.sampled_from([(1 << 20, 1 << 10), (5 * 1024, 4)])  # memory in MiB, cores


HYPERVISOR_CALLS = [
    "create_overlay",
    "put seed.iso",
    "start",
    "bind",
    "bind seed",
    "pause",
    "drop_snapshot",
    "destroy",
    "note",
    "stay",
    "isolate",
    "delete",
    "prepare",
]
FORGE_CALLS = [
    "create_runner",
    "delete_runner",
    "jobs",
    "ended_jobs",
    "runners",
    "disable_runner",
    "fail_job",
    "runner",
    "job",
]
# How a machine ends of which the manager believes that no job runs on it.
IDLE_ENDS = {
    "cancelled",
    "unneeded",
    "held-back",
    "pickup-timeout",
    "boot-timeout",
    "forge-away",
    "early",
    "done",
    "held",
}
JOB_TIMEOUT = 10800  # seconds, the default
# Why a job may wait for ever.
FINAL = {
    WaitKind.NO_LABEL,
    WaitKind.NO_POOL_WITH_ALL_LABELS,
    WaitKind.NO_SCOPE,
    WaitKind.UNLABELLED,
    WaitKind.DRAINED,
}
FAULTS = ["forge up", "forge up", "forge down", *HYPERVISOR_CALLS, *FORGE_CALLS]


class Serials:
    """Machines' serials that are the same in each run of an example."""

    last = 0

    @classmethod
    def token_hex(cls, size: int) -> str:
        cls.last += 1
        return f"{cls.last:0{size * 2}x}"


class Life(RuleBasedStateMachine):
    """One manager's life."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
        self.number = 0
        Serials.last = 0

    @initialize(
        binds=st.booleans(),
        p=SIZES,
        q=SIZES,
        host=HOSTS,
        forbids=st.booleans(),
        hosts=st.integers(1, 2),
        page=st.sampled_from([0, 0, 2, 3]),
    )
    def begin(
        self,
        binds: bool,
        p: dict[str, Any],
        q: dict[str, Any],
        host: tuple[int, int],
        forbids: bool,
        hosts: int,
        page: int,
    ) -> None:
        self.pools: dict[str, Any] = {
            "p": POOL | p,
            "q": POOL | {"labels": ["big", "debian-12"]} | q,
        }
        self.world = World(self.folder, binds_jobs=binds, pools=self.pools)
        self.world.clock.now = 1.8e9  # so that no clock is set to before 1970
        self.world.hypervisor.memory_mib, self.world.hypervisor.cores = host
        self.world.forge.forbids_repositories = forbids
        self.worlds = [self.world]
        if hosts == 1 and not binds:  # as `serve` reads a long queue: a few pages in each pass
            self.world.forge.page, self.world.whole = page, not page
        if hosts == 2:
            second = World(
                self.folder / "second", binds_jobs=binds, pools=self.pools, beside=self.world
            )
            self.worlds.append(second)
        self.before: dict[str, int] = {}
        self.was_reloaded = False
        self.judged: set[str] = set()  # machines whose end was looked at

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self.eventually()
                for world in self.worlds:
                    world.history.close()
                World.opened.clear()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- users ----

    @rule(
        labels=st.sampled_from(LABELS),
        repository=st.sampled_from(REPOSITORIES),
        blocked=st.integers(0, 5),
    )
    def queue(self, labels: list[str], repository: str, blocked: int) -> None:
        self.number += 1
        self.world.forge.queue(self.number, labels, repository, blocked=blocked == 0)

    @precondition(
        lambda self: any(job.state is not JobState.DONE for job in self.world.forge.known.values())
    )
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        jobs = [
            number
            for number, job in self.world.forge.known.items()
            if job.state is not JobState.DONE
        ]
        self.world.forge.cancel(data.draw(st.sampled_from(jobs)))

    @rule(p=SIZES, keep_q=st.booleans(), version=st.sampled_from(["1", "2"]))
    def reload(self, p: dict[str, Any], keep_q: bool, version: str) -> None:
        pools = {"p": POOL | p} | ({"q": self.pools["q"]} if keep_q else {})
        kind = f"{self.world.forge.kind}-runner"
        self.world.publish(version, {"kind": kind, "path": "/usr/local/bin/runner", "sha256": "0"})
        self.world.configure(pools)
        self.was_reloaded = True

    @rule(pool=st.sampled_from(["p", "q"]), resume=st.booleans())
    def drain(self, pool: str, resume: bool) -> None:
        drained = self.world.manager._drained
        drained.remove([pool]) if resume else drained.add([pool], self.world.clock.now)

    @precondition(lambda self: self.world.hypervisor.domains)
    @rule(data=st.data(), what=st.sampled_from(["hold", "hold", "release", "destroy"]))
    def by_hand(self, data: st.DataObject, what: str) -> None:
        """One machine is held, let go or destroyed; that may not be possible."""
        name, busy = str(data.draw(st.sampled_from(self.world.machines()))), self.busy()
        with suppress(VmrunnerError):
            match what:
                case "hold":
                    keep.hold(self.world.manager, name, timedelta(minutes=4))
                case "release":
                    keep.release(self.world.manager, name)
                case "destroy":
                    keep.destroy(self.world.manager, name)
        self.check_ends(busy)

    @rule(pool=st.sampled_from(["p", "q"]))
    def catch(self, pool: str) -> None:
        self.world.manager.catching.put(pool, 200.0)

    # ---- guests ----

    @precondition(lambda self: self.world.hypervisor.domains)
    @rule(data=st.data())
    def guest(self, data: st.DataObject) -> None:
        machine = data.draw(st.sampled_from(self.world.machines()))
        self.world.step(machine, lambda choices: data.draw(st.sampled_from(choices)))

    @precondition(lambda self: self.world.hypervisor.domains)
    @rule(data=st.data(), how=st.sampled_from(["dies", "pauses"]))
    def crash(self, data: st.DataObject, how: str) -> None:
        machine: MachineId = data.draw(st.sampled_from(self.world.machines()))
        if how == "dies":
            self.world.hypervisor.die(machine)
        else:
            self.world.hypervisor.troubles[machine] = "its disk could not be written"

    # ---- the world ----

    @rule(working=st.booleans())
    def snapshot(self, working: bool) -> None:
        """What is missing is made; from now on clones work, or they don't."""
        self.world.hypervisor.clones_fail = not working
        self.make_snapshots()

    def make_snapshots(self, world: World | None = None) -> None:
        world = world or self.world
        with suppress(HypervisorError):
            for pool in world.manager.survey().missing_snapshots():
                world.make_snapshot(pool)

    @rule(mib=st.sampled_from([1 << 20, 4 << 10, 1 << 10]))
    def room(self, mib: int) -> None:
        """What is free of the host's storage: plenty, too little for a new machine, too little for
        those that run.
        """
        self.world.hypervisor.free_disk_mib = mib

    @rule(seconds=st.sampled_from([1, 5, 20, 130, 400, 11000]))
    def time(self, seconds: int) -> None:
        self.world.clock.now += seconds

    @rule(seconds=st.sampled_from([-7200, 18000, -86400 * 365, 86400 * 365]))
    def clock_is_set(self, seconds: int) -> None:
        """Or the host slept."""
        self.world.clock.jump(seconds)
        self.up(0)

    @rule(
        seconds=st.sampled_from([3, 30, 240, 12000]),
        passes=st.integers(0, 4),
        working=st.booleans(),
    )
    def outage(self, seconds: int, passes: int, working: bool) -> None:
        """Longer than any deadline, with or without passes in it; runners may give up meanwhile."""
        self.world.forge.down = True
        for _ in range(passes):
            self.world.clock.now += seconds / passes
            self.up(0)
        if not passes:
            self.world.clock.now += seconds
        if not working:
            for world in self.worlds:
                for machine in world.machines():
                    world.lose_patience(machine)
        self.world.forge.down = False

    @rule(data=st.data())
    def partial_lists(self, data: st.DataObject) -> None:
        """Until further notice the lists leave out some jobs and records."""
        forge = self.world.forge
        jobs, records = sorted(forge.known), sorted(forge.runners_)
        forge.unlisted_jobs = data.draw(st.sets(st.sampled_from(jobs))) if jobs else set()
        forge.unlisted_runners = data.draw(st.sets(st.sampled_from(records))) if records else set()
        for _ in range(2):
            self.up(0)
            self.world.clock.now += 20
        self.up(0)

    @rule(passes=st.integers(2, 4))
    def work(self, passes: int) -> None:
        """A job comes, and guests go on: otherwise few examples have one that runs."""
        self.queue(LABELS[0], REPOSITORIES[0], 1)
        for _ in range(passes):
            self.up(0)
            for machine in self.world.machines():
                runner = self.world.forge.by_name(str(machine))
                if machine in self.world.hypervisor.domains and not (runner and runner.job):
                    self.world.step(machine)
        self.up(0)

    @rule()
    def whole_lists(self) -> None:
        """They show all again."""
        self.world.forge.unlisted_jobs, self.world.forge.unlisted_runners = set(), set()

    @rule(fault=st.sampled_from(FAULTS))
    def something_fails(self, fault: str) -> None:
        """The next time that this is tried it fails; or the forge is away until further notice."""
        if fault in ("forge down", "forge up"):
            self.world.forge.down = fault == "forge down"
        elif fault in FORGE_CALLS:
            self.world.forge.fail_at = fault
        else:
            self.world.hypervisor.fail_at = fault

    # ---- the other host ----

    @precondition(lambda self: len(self.worlds) > 1)
    @rule(passes=st.integers(1, 3), steps=st.integers(0, 2))
    def second_host(self, passes: int, steps: int) -> None:
        """Passes on it, with its guests going on between them."""
        second = self.worlds[1]
        for _ in range(passes):
            busy = self.busy()
            second.up()
            self.check_ends(busy, second)
            for machine in second.machines():
                for _ in range(steps):
                    if machine in second.hypervisor.domains:
                        second.step(machine)

    @precondition(lambda self: len(self.worlds) > 1)
    @rule(guests=st.booleans(), steps=st.integers(0, 12))
    def second_host_fails(self, guests: bool, steps: int) -> None:
        """Its manager is killed in a pass, or the host is started anew."""
        second, busy = self.worlds[1], self.busy()
        second.doom.after = steps
        with suppress(Killed):
            second.up()
        second.restart()
        self.check_ends(busy, second)
        if guests:
            for machine in second.machines():
                second.hypervisor.die(machine)

    @precondition(lambda self: len(self.worlds) > 1)
    @rule()
    def both_look_at_once(self) -> None:
        """Neither sees what the other does just then."""
        self.number += 1
        self.world.forge.queue(self.number, LABELS[0], REPOSITORIES[0])
        self.world.forge.freeze()
        for world in self.worlds:
            busy = self.busy()
            world.up()
            self.check_ends(busy, world)
        self.world.forge.thaw()

    # ---- the manager ----

    @rule(more=st.integers(0, 3))
    def up(self, more: int) -> None:
        """Passes, with guests going on between them."""
        for _ in range(more + 1):
            self.before, busy = self.counts(), self.busy()
            self.world.up()
            self.check_max()
            self.check_ends(busy)
            for machine in self.world.machines()[:more]:
                if machine in self.world.hypervisor.domains:
                    self.world.step(machine)

    @rule(steps=st.integers(0, 12))
    def killed(self, steps: int) -> None:
        self.before, busy = self.counts(), self.busy()
        self.world.doom.after = steps
        with suppress(Killed):
            self.world.up()
        self.world.restart()
        self.check_max()
        self.check_ends(busy)

    def busy(self) -> dict[str, int]:
        """The machines on which a job runs, by the truth: their names, and the job."""
        forge = self.world.forge
        return {
            runner.record.name: runner.job
            for runner in forge.runners_.values()
            if runner.job and forge.known[runner.job].state is JobState.RUNNING
        }

    def check_ends(self, busy: dict[str, int], world: World | None = None) -> None:
        """No machine ended as idle whose job ran, and none for a deadline that has not passed."""
        world = world or self.world
        for row in world.history.all():
            if not row.ending or row.machine in self.judged:
                continue
            self.judged.add(row.machine)
            # Nobody makes one too many: there are when the configuration wants fewer than before.
            surplus = "machines than wanted" in row.reason
            assert not surplus or (world is self.world and self.was_reloaded), row
            # One with a broken disk goes, whatever the lists say of its job.
            if row.machine in busy and "disk" not in row.reason:
                assert row.ending not in IDLE_ENDS, (row, "its job ran")
            if row.ending == "job-timeout" and row.machine in busy:
                took = world.clock.steady() - world.taken[busy[row.machine]]
                assert took >= JOB_TIMEOUT, (row, took)

    def counts(self) -> dict[str, int]:
        pools = [metadata.pool for metadata in self.world.hypervisor.domains.values()]
        return {pool: pools.count(pool) for pool in set(pools)}

    def check_max(self) -> None:
        """A pass never takes a pool beyond its max, nor the host beyond what it has."""
        for pool, count in self.counts().items():
            section = self.world.settings.pools.get(pool)
            assert count <= max(section.max if section else 0, self.before.get(pool, 0)), (
                f"{pool} has {count} machines"
            )
        used = self.world.hypervisor.facts.capacity()
        assert used.used_memory_mib <= used.memory_mib, "memory"
        assert used.used_vcpus <= used.cores * self.world.settings.capacity.cpu_overcommit, "cores"

    @invariant()
    def every_job_has_one_verdict_and_runs_once(self) -> None:
        if hasattr(self, "world"):
            assert all(len(verdicts) == 1 for verdicts in self.world.forge.verdicts.values())
            begun = [number for world in self.worlds for number in world.starts]
            assert len(begun) == len(set(begun)), "a job was begun on both hosts"
            assert all(times == 1 for world in self.worlds for times in world.starts.values())
            taken = [runner.job for runner in self.world.forge.runners_.values() if runner.job]
            assert len(taken) == len(set(taken)), "a job on two machines"

    def eventually(self) -> None:
        """Once nothing disturbs any more, every runnable job runs, every other one has its reason,
        and nothing unexplained exists.
        """
        world = self.world
        world.forge.down, world.forge.fail_at, world.hypervisor.fail_at = False, "", ""
        self.whole_lists()
        world.hypervisor.clones_fail, world.hypervisor.free_disk_mib = False, 1 << 20
        for _ in range(400):
            for each in self.worlds:
                each.up()
                self.check_held(each)
                self.make_snapshots(each)
                for machine in each.machines():
                    if machine in each.hypervisor.domains:
                        each.step(machine)
            world.clock.now += 20
            open_jobs = [
                job
                for job in world.forge.known.values()
                if job.state in (JobState.WAITING, JobState.RUNNING)
            ]
            found = [each.reasons() for each in self.worlds]
            reasons = found[0]
            final = all(
                job.id in each and each[job.id].kind in FINAL for job in open_jobs for each in found
            )
            is_calm = all(
                self.is_kept_up(each) and not self.unexplained(each) for each in self.worlds
            )
            if final and is_calm:
                self.check_record()
                return
        waiting = [(job.id, job.state, reasons.get(job.id)) for job in open_jobs]
        survey = world.manager.survey()
        seen = (
            f"{survey.observed.machines}; {list(world.forge.runners_.values())}; "
            f"{survey.plan.actions}; log: {world.log.lines[-25:]}"
        )
        raise AssertionError(
            f"jobs: {waiting}; kept up: {[self.is_kept_up(each) for each in self.worlds]}; "
            f"unexplained: "
            f"{[self.unexplained(each) for each in self.worlds]}; {seen}"
        )

    def is_kept_up(self, world: World) -> bool:
        """Whether each pool has its warm and its registered machines, where the host has room for
        all.
        """
        pools = [pool for pool in world.manager.desired() if pool.drain is Drain.NO]
        if world.hypervisor.memory_mib < 1 << 20:
            return True
        of = [(metadata.pool, metadata.is_bound) for metadata in world.hypervisor.domains.values()]
        return all(
            of.count((pool.pool, False)) == min(pool.warm, pool.max)
            and of.count((pool.pool, True)) == min(pool.register_idle, max(0, pool.max - pool.warm))
            for pool in pools
        )

    def check_held(self, world: World) -> None:
        """After a pass that nothing disturbed a held machine reaches nothing, and neither its host
        nor the forge has credentials of it.
        """
        for machine, metadata in world.hypervisor.domains.items():
            if metadata.held_at:
                assert machine in world.hypervisor.isolated
                assert world.forge.by_name(str(machine)) is None
                assert not (world.folder / "run" / "bindings" / f"{machine}.binding").exists()

    def check_record(self) -> None:
        """Each job that ran on one of our machines is in that machine's line of history, and no
        other line has a job.
        """
        # For machines that have had their job and are still there, and then for all the times that
        # the forge is asked and does not tell.
        for _ in range(14):
            self.world.clock.now += 60
            for world in self.worlds:
                world.up()
        for world in self.worlds:
            self.check_history(world)

    def check_history(self, world: World) -> None:
        """See check_record."""
        ran = {
            job.runner_name: (job.name, job.conclusion, job.sha)
            for job in world.forge.known.values()
            if job.runner_name
        }
        ended = {row.machine: row for row in world.history.all() if row.ending}
        # Forgejo does not tell which job a runner had: it is known by what it was made for, unless
        # we had to delete it.
        unknown = {
            machine
            for machine, row in ended.items()
            if world.forge.binds_jobs and row.ran == "unknown"
        }
        told = {
            machine: (row.job, row.verdict, row.sha) for machine, row in ended.items() if row.job
        }
        true = {
            machine: job
            for machine, job in ran.items()
            if machine in ended and machine not in unknown
        }
        assert told == true, [
            (row.machine, row.ran, row.ask_at, row.asks, row.ending, row.destroyed)
            for row in ended.values()
        ]

    def unexplained(self, world: World) -> list[str]:
        """What exists of a host beside idle machines that are wanted."""
        alive = {str(machine) for machine in world.hypervisor.domains}
        wanted = sum(
            section.warm + section.register_idle for section in world.settings.pools.values()
        )
        strange = [
            name for name in world.left() if not any(name.startswith(machine) for machine in alive)
        ]
        busy = [runner.record.name for runner in world.forge.runners_.values() if runner.job]
        return strange + busy + (sorted(alive) if len(alive) > wanted else [])


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    # An example that fails must fail again.
    for module in ("vmrunner.model.machine", "vmrunner.machine.identity"):
        monkeypatch.setattr(f"{module}.secrets", Serials)
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # What chance alone finds is for who looks for it, not for somebody's change.
            derandomize=not ASKED,
            print_blob=True,
            database=None,
            phases=PHASES,
        ),
    )
