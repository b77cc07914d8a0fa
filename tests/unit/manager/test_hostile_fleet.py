"""Runners that anybody registers on the same forge, called as other hosts' are, with claims on
everybody's jobs: Gitea shows an admin all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from tests.fleet import hosts_of
from tests.world import World
from vmrunner.model.fleet import MOST_PEERS, MOST_RECORDS, TURN, called, rank
from vmrunner.model.job import Claim, Job, JobState, Scope
from vmrunner.model.machine import MachineId

INSTANCE = Scope.parse("instance")
LABELS = ["debian-12"]
STEP = 2.0
BOUND = 196 + 3 * STEP  # as docs/security.md has it, and the looks between
BOTH = pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])


class Enemy:
    """A user with as many runners as they like."""

    def __init__(self, world: World) -> None:
        self.forge, self._numbers = world.forge, count(1)
        self.mine: list[int] = []

    def word(self) -> str:
        """Another one each time."""
        return f"{next(self._numbers) * 2654435761 % (1 << 32):08x}"

    def name(self, host: str = "") -> str:
        identity = host or self.word()
        return str(MachineId("x", self.word(), identity))

    def ground(self, job: Job) -> str:
        """A name that comes before almost all others for this job."""
        tries = [self.word() for _ in range(200)]
        return self.name(min(tries, key=lambda host: rank(job, called("x", host))))

    def registers(self, name: str, claim: Claim | None, *, online: bool = True) -> None:
        made = self.forge.create_runner(INSTANCE, name, LABELS, claim)
        self.mine.append(made.id)
        runner = self.forge.runners_[made.id]
        runner.record = replace(runner.record, online=online)

    def leaves(self) -> None:
        for number in self.mine:
            self.forge.runners_.pop(number, None)
        self.mine.clear()

    def jobs(self) -> list[Job]:
        return [job for job in self.forge.known.values() if job.state is JobState.WAITING]


def claims_all(enemy: Enemy, _: float) -> None:
    """Each job is claimed, by runners that stay."""
    claimed = {enemy.forge.runners_[number].record.claim for number in enemy.mine}
    for job in enemy.jobs():
        if Claim.of(job) not in claimed:
            enemy.registers(enemy.name(), Claim.of(job))


def cycles(enemy: Enemy, now: float) -> None:
    """New names once a minute."""
    if int(now / STEP) % 30 == 0:
        enemy.leaves()
        claims_all(enemy, now)


def flickers(enemy: Enemy, now: float) -> None:
    """There at one look, away at the next: what is made is to be withdrawn, again and again."""
    enemy.leaves()
    if int(now / STEP) % 2:
        for job in enemy.jobs():
            enemy.registers(enemy.ground(job), Claim.of(job), online=False)


def are_spare(enemy: Enemy, _: float) -> None:
    """Idle runners that never take anything, for jobs that are no more."""
    if not enemy.mine:
        known = next(iter(enemy.forge.known.values()))
        gone = replace(known, key="gone")
        for _number in range(40):
            enemy.registers(enemy.name(), Claim.of(gone))


def new_spares(enemy: Enemy, now: float) -> None:
    if int(now / STEP) % 30 == 0:
        enemy.leaves()
        are_spare(enemy, now)


def ground_names(enemy: Enemy, now: float) -> None:
    """Hosts that come first for each job, and do nothing."""
    if int(now / STEP) % 5 == 0:
        enemy.leaves()
        for job in enemy.jobs():
            enemy.registers(enemy.ground(job), None)


ATTACKS = [claims_all, cycles, flickers, are_spare, new_spares, ground_names]


@BOTH
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_stranger_keeps_a_job_from_its_machine(
    tmp_path: Path, attack: Callable[[Enemy, float], None], binds_jobs: bool
) -> None:
    (world,) = hosts_of(tmp_path, 1, binds_jobs=binds_jobs, maximum=6)
    enemy, forge = Enemy(world), world.forge
    for number in range(1, 7):
        forge.queue(number)
    queued, begun = world.clock.now, dict[int, float]()
    while len(begun) < 6:
        now = world.clock.now
        assert now - queued < BOUND, f"{6 - len(begun)} jobs still wait"
        attack(enemy, now)
        world.up()
        if int(now / STEP) % 5 == 0:  # guests are slower than passes
            for machine in world.machines():
                world.step(machine)
        for job in forge.known.values():
            if job.state is not JobState.WAITING:
                begun.setdefault(job.id, now)
        world.clock.now += STEP
    made = Counter(line for line, _ in world.log.lines)["machine started"]
    assert made <= 6 * (1 + 6), "one for each job, and one for each time that one was withdrawn"
    assert all(row.ending in {"", "unneeded", "done"} for row in world.history.all())


def test_a_machine_is_withdrawn_a_few_times_at_most(tmp_path: Path) -> None:
    """On Forgejo, where a claim that comes first does that; our guests are slow."""
    (world,) = hosts_of(tmp_path, 1, binds_jobs=True)
    enemy = Enemy(world)
    world.forge.queue(1)
    for _ in range(300):
        flickers(enemy, world.clock.now)
        world.up()
        world.clock.now += STEP
    withdrawn = [row for row in world.history.all() if row.ending == "unneeded"]
    assert 0 < len(withdrawn) <= 6


@BOTH
def test_a_job_that_others_had_their_time_for_is_theirs_no_more(
    tmp_path: Path, binds_jobs: bool
) -> None:
    """The host is full meanwhile, and claims come and go."""
    (world,) = hosts_of(tmp_path, 1, binds_jobs=binds_jobs)
    enemy = Enemy(world)
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    while world.known_states() != {JobState.RUNNING}:
        world.step(machine)
    world.up()
    world.forge.queue(2)
    for number in range(100):
        if number % 2:
            enemy.leaves()
        else:
            enemy.registers(enemy.name(), Claim.of(world.forge.known[2]))
        world.up()
        world.clock.now += 10
    enemy.registers(enemy.name(), Claim.of(world.forge.known[2]))
    while machine in world.machines():
        world.step(machine)
        world.up()
    world.up()
    assert len(world.machines()) == 1


def test_ten_thousand_records_are_not_remembered(tmp_path: Path) -> None:
    (world,) = hosts_of(tmp_path, 1, binds_jobs=False, maximum=3)
    enemy = Enemy(world)
    for number in range(1, 4):
        world.forge.queue(number)
    for number in range(10_000):
        enemy.registers(enemy.name(), Claim("0" * 12, f"{number:012x}"))
    began = world.clock.now
    while len(world.machines()) < 3:
        assert world.clock.now - began < BOUND
        world.up()
        world.clock.now += 20
    known = world.manager.survey().observed.fleet
    assert len(known.peers) == MOST_PEERS
    assert len(known.records) <= MOST_RECORDS
    assert (tmp_path / "0" / "fleet.json").stat().st_size < 1 << 20


def test_who_is_known_is_not_forgotten_for_a_crowd(tmp_path: Path) -> None:
    worlds = hosts_of(tmp_path, 2, binds_jobs=True, maximum=3)
    enemy, (first, second) = Enemy(worlds[0]), worlds
    first.forge.queue(1)
    first.up()
    second.up()
    its = first.manager._me
    assert its in second.manager.survey().observed.fleet.peers
    for _ in range(2_500):
        enemy.registers(enemy.name(), None)
    for _ in range(3):
        second.up()
        second.clock.now += 1
    assert its in second.manager.survey().observed.fleet.peers
    assert not second.machines(), "its claim counts"


def test_the_longest_turn_is_bounded(tmp_path: Path) -> None:
    (world,) = hosts_of(tmp_path, 1, binds_jobs=True)
    enemy = Enemy(world)
    for _ in range(3_000):
        enemy.registers(enemy.name(), None)
    world.up()
    world.forge.queue(1)
    world.up()
    world.clock.now += 8 * TURN + 0.1
    world.up()
    assert len(world.machines()) == 1


ABSURD = [
    "vmrunner-claim-",
    "vmrunner-claim-" + "f" * 100_000,
    "vmrunner-claim-" * 1_000,
    "\ud800\0\n",
    "x" * 1_000_000,
]


@BOTH
def test_absurd_names_and_labels_cost_nothing(tmp_path: Path, binds_jobs: bool) -> None:
    (world,) = hosts_of(tmp_path, 1, binds_jobs=binds_jobs)
    forge = world.forge
    for number, text in enumerate(ABSURD):
        assert Claim.parse(text) is None
        for name in (f"vmr-{text}-{number:016x}", f"vmr--{number:016x}", f"vmr-x-{number:017x}"):
            forge.create_runner(INSTANCE, name, [text])
        several = [text, *(f"label-{each}" for each in range(1_000))]
        forge.create_runner(INSTANCE, f"vmr-x-{number:016x}", several)
    forge.queue(1)
    world.up()
    assert len(world.machines()) == 1, "nobody else can take it"
    assert (tmp_path / "0" / "fleet.json").stat().st_size < 1 << 16
    world.settle()
    assert forge.verdicts == {1: ["success"]}
