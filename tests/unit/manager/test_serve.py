"""The loop on the fakes: what wakes it, how it bears a forge or a host that is away, how it ends
and how it reads its configuration again.

Time passes only while it waits, so every second is counted here and none is spent.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import FakeLog
from tests.fleet import meet
from tests.world import POOL, World
from vmrunner.errors import Busy, ConfigError, ForgeUnreachable, HypervisorError
from vmrunner.hypervisor.seam import File
from vmrunner.manager.manager import Manager
from vmrunner.manager.serve import Server
from vmrunner.model.fleet import TURN, called
from vmrunner.model.job import JobState
from vmrunner.model.machine import EventKind

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass
class Making:
    """A process that makes a snapshot; `code` is set when it ends."""

    pool: str
    at: float
    code: int | None = None

    def poll(self) -> int | None:
        return self.code


class Serving:
    """A server, and a list of what happens at which second while it waits.

    Times in it count from the beginning.
    """

    def __init__(self, world: World, *later: Callable[[], Manager]) -> None:
        self.world = world
        self._began = world.clock.now
        self._plan: list[tuple[float, Callable[[], object]]] = []
        self.told: list[str] = []  # to systemd
        self.passes: list[float] = []
        self.made: list[Making] = []
        # Lists of jobs that the forge was asked for, outside of passes.
        self.polls: list[float] = []
        self._in_pass = self._counting = False
        self._spied(world.manager)
        self.counts: list[float] = []  # numbers of jobs that it was asked for
        real, really_waiting = world.forge.jobs, world.forge.waiting

        def jobs(*arguments: Any) -> Any:
            if not self._in_pass and not self._counting:
                self.polls.append(self.now)
            return real(*arguments)

        def waiting(*arguments: Any) -> Any:
            self.counts.append(self.now)
            self._counting = True
            try:
                return really_waiting(*arguments)
            finally:
                self._counting = False

        world.forge.jobs = jobs  # type: ignore[method-assign]
        world.forge.waiting = waiting  # type: ignore[method-assign]
        openings = iter([lambda: world.manager, *later])
        self.server = Server(
            lambda: self._spied(next(openings)()),
            world.log,
            make_snapshot=self._make,
            clock=world.clock,
            wait=self._wait,
            notify=self.told.append,
        )

    def _spied(self, manager: Manager) -> Manager:
        if "reconcile" not in vars(manager):
            real = manager.reconcile

            def reconcile(*arguments: Any, **options: Any) -> Any:
                self.passes.append(self.now)
                self._in_pass = True
                try:
                    return real(*arguments, **options)
                finally:
                    self._in_pass = False

            manager.reconcile = reconcile  # type: ignore[method-assign]
        return manager

    def _make(self, pool: str) -> Making:
        self.made.append(Making(pool, self.now))
        return self.made[-1]

    @property
    def now(self) -> float:
        return round(self.world.clock.now - self._began, 3)

    def _wait(self, event: threading.Event, seconds: float) -> bool:
        if event.is_set():
            return True
        self.world.clock.now += seconds
        while self._plan and self._plan[0][0] <= self.now:
            self._plan.pop(0)[1]()
        return event.is_set()

    def at(self, second: float, act: Callable[[], object]) -> None:
        """Do this then."""
        self._plan.append((second, act))
        self._plan.sort(key=lambda each: each[0])

    def run(self, seconds: float) -> None:
        """Serve for so long."""
        self.at(seconds, self.server.stop)
        self.server.serve()

    def passes_within(self, begin: float, end: float) -> list[float]:
        return [at for at in self.passes if begin <= at <= end]


@pytest.fixture
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in HANDLED}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def running(world: World) -> None:
    """A machine runs job 1."""
    world.forge.queue(1)
    world.up()
    (machine,) = (
        machine for machine, metadata in world.hypervisor.domains.items() if metadata.is_bound
    )
    world.boot(machine)
    assert world.step(machine) == "took a job"
    world.up()


def said(world: World, event: str) -> int:
    """How often."""
    return sum(line.startswith(event) for line, _ in world.log.lines)


# ---- what wakes it ----


def test_left_alone_it_passes_every_five_seconds_and_polls_every_half_second(world: World) -> None:
    serving = Serving(world)
    serving.run(60)
    assert 12 <= len(serving.passes) <= 13
    assert 90 <= len(serving.polls) <= 120
    assert max(b - a for a, b in pairwise(serving.passes)) <= 5.5


def test_it_looks_again_when_its_turn_for_a_job_comes(world: World, tmp_path: Path) -> None:
    """Another host is the first for it, and does nothing."""
    second = World(tmp_path / "second", binds_jobs=world.forge.binds_jobs, beside=world)
    meet([world, second])
    world.log.lines.clear()
    me = called("m", world.manager.host)
    known = world.manager.survey().observed.fleet
    queued = map(world.forge.queue, range(100, 200))
    number = next(job.id for job in queued if known.order(me, job)[0] != me)
    world.forge.known.clear()
    serving = Serving(world)
    serving.at(1.0, lambda: world.forge.queue(number))
    started: list[int] = []
    for moment in (0.9 + TURN, 2.0 + TURN):
        serving.at(moment, lambda: started.append(said(world, "machine started")))
    serving.run(2.5 + TURN)
    assert started == [0, 1]


def test_a_machine_that_ends_wakes_it(world: World) -> None:
    running(world)
    serving = Serving(world)
    serving.at(2.0, lambda: world.hypervisor.die(world.machines()[0]))
    serving.run(3)
    assert serving.passes_within(2.0, 2.2)
    assert (world.left(), world.forge.verdicts) == ([], {1: ["failure"]})


def test_the_end_of_a_failed_machines_console_is_logged(world: World) -> None:
    running(world)
    (machine,) = world.machines()
    console = "".join(f"{number}\n" for number in range(100)) + "Kernel panic \x1b[31m\n"
    world.hypervisor.files[machine, File.CONSOLE] = console.encode()
    serving = Serving(world)
    serving.at(2.0, lambda: world.hypervisor.die(machine))
    serving.run(3)
    ((event, fields),) = [line for line in world.log.lines if "console" in line[1]]
    assert str(machine) in event
    shown = str(fields["console"]).splitlines()
    assert (shown[0], shown[-1], len(shown)) == ("89", "Kernel panic", 12)


def test_a_machine_that_said_nothing_makes_no_line_of_its_console(world: World) -> None:
    running(world)
    serving = Serving(world)
    serving.at(2.0, lambda: world.hypervisor.die(world.machines()[0]))
    serving.run(3)
    assert [line for line in world.log.lines if "console" in line[1]] == []


def test_a_guests_report_wakes_it(world: World) -> None:
    world.forge.queue(1)
    world.up()
    (machine,) = world.machines()
    serving = Serving(world)
    serving.at(2.0, lambda: world.boot(machine))
    serving.run(3)
    assert len(serving.passes_within(2.0, 2.4)) == 1
    assert not any(str(file) == "seed.iso" for _, file in world.hypervisor.files), (
        "the seed that was read is gone"
    )


def test_a_clone_that_has_rehearsed_wakes_it_once(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"warm": 1, "start": "snapshot"}})
    world.make_snapshot("p")
    serving = Serving(world)
    serving.at(2.0, lambda: world.step(world.machines()[0]))
    serving.run(4.9)
    assert set(world.machines()) == world.hypervisor.paused
    assert len(serving.passes_within(2.0, 4.9)) == 1


def test_reports_of_many_guests_are_one_reason_to_pass(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"max": 20}})
    for number in range(1, 21):
        world.forge.queue(number)
    world.up()
    serving = Serving(world)
    serving.at(2.0, lambda: [world.boot(machine) for machine in world.machines()])
    serving.run(4.9)
    assert len(serving.passes_within(2.0, 4.9)) == 1


def test_a_new_job_wakes_it(world: World) -> None:
    serving = Serving(world)
    serving.at(1.5, lambda: world.forge.queue(1))
    serving.run(3)
    assert serving.passes_within(1.5, 2.7)
    assert len(world.machines()) == 1


def test_a_job_is_seen_by_the_number_of_those_that_wait(tmp_path: Path) -> None:
    world = World(tmp_path)
    serving = Serving(world)
    serving.at(1.51, lambda: world.forge.queue(1))
    serving.at(1.8, serving.server.stop)
    serving.run(3)
    assert serving.passes_within(1.5, 1.7)
    assert len(world.machines()) == 1
    before = [at for at in serving.counts if at < 1.5]
    assert 8 <= len(before) <= 11
    assert min(b - a for a, b in pairwise(serving.counts)) >= 0.1


def test_a_long_queue_is_read_on_while_a_place_is_free(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.forge.page = 10
    for number in range(1, 600):
        world.forge.queue(number, ["debian-12"] if number == 300 else ["riscv"])
    Serving(world).run(3)
    assert [metadata.job_key for metadata in world.hypervisor.domains.values()] == ["300.0"]


def test_a_job_that_comes_last_is_heard_of_at_once(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.forge.page = 10
    for number in range(1, 600):
        world.forge.queue(number, ["riscv"])
    serving = Serving(world)
    serving.at(30.01, lambda: world.forge.queue(600))
    serving.run(32)
    assert serving.passes_within(30.01, 30.7)
    assert len(world.machines()) == 1


def test_where_only_the_list_tells_nothing_else_is_asked(tmp_path: Path) -> None:
    world = World(tmp_path, binds_jobs=True)
    serving = Serving(world)
    serving.at(1.01, lambda: world.forge.queue(1))
    serving.run(2)
    assert serving.passes_within(1.01, 1.6)
    assert len(serving.counts) <= len(serving.polls) + len(serving.passes)


def test_jobs_that_begin_to_run_are_no_news_by_their_number(tmp_path: Path) -> None:
    world = World(tmp_path)
    for number in range(1, 6):
        world.forge.queue(number, ["riscv"])
    serving = Serving(world, lambda: world.manager)
    serving.at(1.51, lambda: world.forge.take(1, "somebody-else"))
    serving.at(1.6, serving.server.stop)
    serving.run(3)
    assert not serving.passes_within(1.5, 1.7)


@pytest.mark.parametrize("off", [1, -1, 1000])
def test_a_number_that_never_agrees_with_the_list_is_news_once(tmp_path: Path, off: int) -> None:
    world = World(tmp_path)
    real = world.forge.waiting
    world.forge.waiting = lambda scope: real(scope) + off  # type: ignore[method-assign, operator]
    serving = Serving(world)
    serving.at(30.0, lambda: world.forge.queue(1, ["riscv"]))
    serving.run(60)
    assert len(serving.passes) <= 16
    assert serving.passes_within(30.0, 30.7)


def test_a_number_that_can_not_be_had_is_the_lists_business(tmp_path: Path) -> None:
    world = World(tmp_path)
    serving = Serving(world)

    def refuse(_: Any) -> Any:
        serving.counts.append(serving.now)
        raise ForgeUnreachable("The forge answered counting with 500.", "")

    world.forge.waiting = refuse  # type: ignore[method-assign]
    serving.at(1.6, lambda: world.forge.queue(1))
    serving.run(10)
    assert serving.passes_within(1.6, 2.3)
    assert not any("500" in line or "answer" in line for line, _ in world.log.lines)
    assert len(serving.counts) <= 2 * len(serving.polls)


def test_numbers_that_take_long_are_asked_for_less_often(tmp_path: Path) -> None:
    world = World(tmp_path, serve={"poll": "10s"})
    serving = Serving(world)

    def slowly(_: Any) -> int:
        serving.counts.append(serving.now)
        world.clock.now += 0.4
        return 0

    world.forge.waiting = slowly  # type: ignore[method-assign]
    serving.run(60)
    assert len(serving.counts) <= 16


def test_the_webhook_wakes_it(tmp_path: Path) -> None:
    world = World(tmp_path, serve={"poll": "1h"})
    serving = Serving(world)
    serving.at(2.0, lambda: (world.forge.queue(1), serving.server.wake()))
    serving.at(2.1, serving.server.stop)
    serving.run(3)
    assert serving.passes_within(2.0, 2.0)
    assert len(world.machines()) == 1


def test_wakes_that_come_together_are_one_pass(tmp_path: Path) -> None:
    serving = Serving(World(tmp_path))
    serving.at(2.0, lambda: [serving.server.wake() for _ in range(100)])
    serving.run(4.9)
    assert len(serving.passes_within(2.0, 4.9)) == 1


def test_it_polls_as_often_as_it_is_told(tmp_path: Path) -> None:
    serving = Serving(World(tmp_path, serve={"poll": "250ms"}))
    serving.run(60)
    assert 220 <= len(serving.polls) <= 240


def test_a_job_that_nothing_can_be_done_about_wakes_it_once(world: World) -> None:
    serving = Serving(world)
    serving.at(1.5, lambda: world.forge.queue(1, ["riscv"]))
    serving.run(60)
    assert len(serving.passes) <= 14


def test_a_jobs_whole_life(world: World) -> None:
    serving = Serving(world)
    serving.at(1.0, lambda: world.forge.queue(1))
    for second in (5, 10, 15, 20):
        serving.at(second, lambda: [world.step(machine) for machine in world.machines()])
    serving.run(22)
    assert (world.forge.verdicts, world.left()) == ({1: ["success"]}, [])
    assert world.history.all()[0].ending == "done"


def test_snapshots_are_made_one_after_the_other_beside_the_passes(tmp_path: Path) -> None:
    pools = {
        "p": POOL | {"start": "auto"},
        "same": POOL | {"start": "auto"},
        "big": POOL | {"start": "auto", "memory": "8GiB"},
    }
    world = World(tmp_path, pools=pools)
    serving = Serving(world, lambda: world.manager)

    def end(pool: str, code: int) -> None:
        if not code:
            world.make_snapshot(pool)
        serving.made[-1].code = code

    serving.at(20.0, lambda: end("p", 0))
    serving.at(80.0, serving.server.reload)
    serving.at(90.0, lambda: end("big", 9))
    serving.at(190.0, lambda: end("big", 0))
    serving.run(300)
    assert [making.pool for making in serving.made] == ["p", "big", "big"], (
        "one for each kind of machine, and one that failed again"
    )
    assert all(60 <= b.at - a.at <= 70 for a, b in pairwise(serving.made)), "and not at once"
    assert [said(world, event) for event in ("snapshot made", "snapshot not made")] == [2, 1]


# ---- a forge that is away ----


def test_a_forge_that_is_down_is_asked_less_often_logged_once_and_served_again(
    world: World,
) -> None:
    serving = Serving(world)

    def go_down(down: bool) -> None:
        world.forge.down = down

    serving.at(2.5, lambda: go_down(True))
    serving.at(302.0, lambda: (go_down(False), world.forge.queue(1)))
    serving.run(320)
    during = [at for at in serving.polls if 2.5 < at < 302]
    assert len(during) <= 5, "polls back off; a pass every five seconds asks anyway"
    assert len(serving.passes_within(2.5, 302.0)) <= 62
    assert (said(world, "forge does not answer"), said(world, "forge answers again")) == (1, 1)
    assert 5 <= said(world, "The fake forge does not answer.") <= 6, "once a minute"
    assert len(world.machines()) == 1, "the job that waits has its machine"
    again = [at for at in serving.polls if at > 308]
    assert len(again) >= 8, "and it is polled as before"


def test_a_forge_that_is_down_costs_no_running_machine(world: World) -> None:
    running(world)
    world.forge.down = True
    Serving(world).run(60)
    assert len(world.machines()) == 1
    assert world.forge.verdicts == {}


def test_a_slow_forge_is_polled_less_often(world: World) -> None:
    serving = Serving(world)
    real = world.forge.jobs

    def slowly(*arguments: Any) -> Any:
        answer = real(*arguments)
        world.clock.now += 2
        return answer

    world.forge.jobs = slowly  # type: ignore[method-assign]
    serving.run(100)
    assert len(serving.polls) <= 5, "what takes 2 s is not asked more often than every 20 s"


# ---- a host that is away ----


@pytest.mark.parametrize("call", ["machines.all", "facts.capacity", "reopen"])
def test_a_hypervisor_that_does_not_answer_ends_nothing(world: World, call: str) -> None:
    running(world)
    serving = Serving(world)
    part, _, name = call.rpartition(".")
    owner = getattr(world.hypervisor, part) if part else world.hypervisor
    real = getattr(owner, name)

    def away() -> Any:
        raise HypervisorError("libvirt does not answer.", "Is it running?")

    serving.at(2.0, lambda: setattr(owner, name, away))
    serving.at(140.0, lambda: setattr(owner, name, real))
    serving.at(141.0, lambda: world.forge.queue(2))
    serving.run(150)
    assert said(world, "libvirt does not answer.") == 3, "once a minute"
    assert len(serving.passes_within(2.0, 139.9)) <= (0 if call == "reopen" else 30), (
        "and it is not asked all the time"
    )
    assert len(world.machines()) == 2


def test_a_pass_by_hand_at_the_same_time_is_waited_for(world: World) -> None:
    serving = Serving(world)
    real = world.manager.lock

    def taken() -> Any:
        raise Busy("Another vmrunner is at work.", "Wait for it.")

    serving.at(0.5, lambda: setattr(world.manager, "lock", taken))
    serving.at(20.0, lambda: (setattr(world.manager, "lock", real), world.forge.queue(1)))
    serving.run(30)
    assert len(world.machines()) == 1


def test_the_same_failure_is_logged_once_a_minute_and_another_one_at_once(world: World) -> None:
    serving = Serving(world)
    world.forge.down = True

    def fail(name: str) -> Any:
        raise HypervisorError(f"The host fails at {name}.", "First line\nsecond line")

    serving.at(90.0, lambda: setattr(world.hypervisor.machines, "all", lambda: fail("listing")))
    serving.run(125)
    assert said(world, "The fake forge does not answer.") == 2
    assert said(world, "The host fails at listing.") == 1
    (fields,) = (fields for event, fields in world.log.lines if event.startswith("The host"))
    assert fields == {"hint": "First line", "kind": "HypervisorError"}


# ---- how it ends ----


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_machines_alone(world: World, number: signal.Signals) -> None:
    running(world)
    serving = Serving(world)
    serving.at(2.0, lambda: os.kill(os.getpid(), number))
    serving.server.run()
    assert (serving.now, len(world.machines()), world.forge.verdicts) == (2.0, 1, {})
    assert said(world, "stopped; machines that run are left alone") == 1
    assert [word for word in serving.told if word != "WATCHDOG=1"] == ["READY=1", "STOPPING=1"]
    world.restart()
    Serving(world).run(10)
    assert len(world.machines()) == 1, "the next start adopts them"
    world.settle()
    assert world.forge.verdicts == {1: ["success"]}


@pytest.mark.usefixtures("_signals")
def test_a_signal_drains_where_it_is_configured_so(tmp_path: Path) -> None:
    world = World(tmp_path, pools={"p": POOL | {"max": 3, "warm": 1}}, serve={"on_stop": "drain"})
    running(world)
    serving = Serving(world)
    serving.at(2.0, lambda: os.kill(os.getpid(), signal.SIGTERM))
    serving.at(3.0, lambda: world.forge.queue(2))
    busy = next(
        machine for machine in world.machines() if world.hypervisor.domains[machine].running_at
    )
    left: list[Any] = []
    serving.at(30.0, lambda: left.extend(world.machines()))
    for second in (40.0, 41.0):
        serving.at(second, lambda: world.step(busy))
    serving.server.run()
    assert left == [busy], "the warm one went, and the new job got none"
    assert (world.left(), world.forge.verdicts, world.forge.known[2].state) == (
        [],
        {1: ["success"]},
        JobState.WAITING,
    )
    assert 41 <= serving.now <= 47
    assert serving.told.index("STOPPING=1") < len(serving.told) - 100, (
        "the watchdog hears of it while it drains"
    )
    assert (said(world, "draining"), said(world, "stopped")) == (1, 1)


def test_a_second_signal_ends_the_draining(tmp_path: Path) -> None:
    world = World(tmp_path, serve={"on_stop": "drain"})
    running(world)
    serving = Serving(world)
    serving.at(10.0, serving.server.stop)
    serving.run(2)
    assert (serving.now, len(world.machines())) == (10.0, 1)


def test_a_reload_while_it_drains_does_not_make_it_spin(tmp_path: Path) -> None:
    world = World(tmp_path, serve={"on_stop": "drain"})
    running(world)
    serving = Serving(world)
    serving.at(3.0, serving.server.reload)
    serving.at(60.0, serving.server.stop)
    serving.run(2)
    assert len(serving.passes) <= 16


# ---- how it reads its configuration again ----


@pytest.mark.usefixtures("_signals")
def test_a_wrong_configuration_changes_nothing(world: World) -> None:
    def wrong() -> Manager:
        raise ConfigError("vmrunner.toml: pools.p.max: too big.", "Every key is described.")

    serving = Serving(world, wrong)
    serving.at(2.0, lambda: os.kill(os.getpid(), signal.SIGHUP))
    serving.at(3.0, lambda: world.forge.queue(1))
    serving.at(6.0, serving.server.stop)
    serving.server.run()
    (fields,) = (
        fields
        for event, fields in world.log.lines
        if event == "configuration not reloaded; the old one stays"
    )
    assert fields == {
        "reason": "vmrunner.toml: pools.p.max: too big.",
        "hint": "Every key is described.",
    }
    assert len(world.machines()) == 1


@pytest.mark.usefixtures("_signals")
def test_a_new_configuration_is_in_force_at_once(world: World) -> None:
    def changed() -> Manager:
        world.configure({"q": POOL | {"labels": ["big"], "warm": 1}})
        return world.manager

    running(world)
    old = world.manager
    serving = Serving(world, changed)
    serving.at(2.0, lambda: os.kill(os.getpid(), signal.SIGHUP))
    serving.at(4.0, serving.server.stop)
    serving.server.run()
    assert said(world, "configuration reloaded") == 1
    pools = sorted(metadata.pool for metadata in world.hypervisor.domains.values())
    assert pools == ["p", "q"], "the job of a pool that is no more goes on"
    assert world.manager is not old
    machines = {
        s.labels["pool"]
        for m in serving.server.figures.collect()
        if m.name == "vmrunner_pool_max"
        for s in m.samples
    }
    assert machines == {"q"}, "the figures are the new one's"
    assert world.hypervisor.wake, "its events are listened to"


# ---- systemd ----


def test_the_watchdog_hears_of_it_all_the_time(world: World) -> None:
    serving = Serving(world)
    heard: list[float] = []
    serving.server._notify = lambda _: heard.append(serving.now)
    serving.at(10.0, lambda: setattr(world.forge, "down", True))
    serving.run(60)
    assert max(b - a for a, b in pairwise(heard)) <= 0.5


def test_it_is_ready_when_it_listens(tmp_path: Path) -> None:
    world = World(tmp_path)
    listening: list[bool] = []
    server = Server(
        lambda: world.manager,
        FakeLog(),
        make_snapshot=lambda pool: Making(pool, 0.0),
        clock=world.clock,
        notify=lambda _: listening.append(world.hypervisor.wake is not None),
    )
    server.stop()
    server.serve()
    assert listening == [True, True]


def test_events_that_come_during_a_pass_are_not_lost(world: World) -> None:
    running(world)
    serving = Serving(world)
    real, (machine,) = world.hypervisor.facts.capacity, world.machines()

    def late() -> Any:
        if serving.now >= 2.0 and machine in world.hypervisor.domains:
            world.hypervisor.report(machine, EventKind.EXIT, text="0")
            world.hypervisor.die(machine)  # after this pass has looked at the machines
        return real()

    world.hypervisor.facts.capacity = late  # type: ignore[method-assign]
    serving.at(2.0, lambda: world.hypervisor.wake and world.hypervisor.wake())
    serving.run(3)
    assert len(serving.passes_within(2.0, 2.2)) == 2
    assert world.left() == []
