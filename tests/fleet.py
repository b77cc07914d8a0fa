"""`make fleet`: many hosts on one forge, on fakes, by a clock of their own. How much more they get
done than one, how many machines are made in vain, what a host that dies costs, and what each of
them asks of the forge. The last line is the figures as JSON.

All hosts that look at the same half second see the same lists, and act on them: they know nothing
of what the others do in it. A part with real machines would be another `Scenario`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from tests.fakes import FakeForge
from tests.world import World
from vmrunner.model.job import JobState, Scope
from vmrunner.model.machine import MachineId

SIZES = (2, 10, 50)
GRID = 0.5  # seconds between two looks of a host that has something to look for
LONGEST = 5.0  # seconds between two of one that has not
FULL = 30.0  # of one without room; in truth 5 s, too, but it looks in vain
BOOT, POLL, POWER_OFF = 10.0, 2.0, 1.0  # seconds that guests take
JOB = 60.0  # seconds; a job takes up to a fifth more or less
ZOMBIE = 600.0  # seconds after which the forge gives up a job whose runner is gone
PAGE = 50
INSTANCE = Scope.parse("instance")
REPOSITORIES = ["o/a", "o/b", "o/c", "x/d", "x/e"]
# What is asked for at least: of the throughput of one host, and at most of machines in vain.
GOALS = {2: 1.9, 50: 45.0}
IN_VAIN = 0.02
MORE_REQUESTS = 1.1  # how much more a host may ask in a pass than one that is alone


@dataclass
class CountingForge(FakeForge):
    """Counts what is asked of it, with the pages of its lists."""

    requests: int = 0

    def step(self, name: str) -> None:
        super().step(name)
        self.requests += 1
        if name == "runners":
            self.requests += max(0, len(self.runners_) - 1) // PAGE


def hosts_of(
    folder: Path, number: int, *, binds_jobs: bool, maximum: int = 1, **pool: Any
) -> list[World]:
    """Hosts with one pool each, on one forge."""
    section = {"labels": ["debian-12"], "image": "debian-12", "max": maximum, "start": "boot"}
    worlds: list[World] = []
    for each in range(number):
        home = folder / str(each)
        home.mkdir(parents=True)
        # The same in each run, and so is whose turn a job is.
        (home / "host.json").write_text(json.dumps({"host": f"{each + 1:08x}"}))
        world = World(
            home,
            binds_jobs=binds_jobs,
            pools={"p": section | pool},
            beside=worlds[0] if worlds else None,
        )
        worlds.append(world)
    return worlds


def meet(worlds: Sequence[World]) -> None:
    """Each sees a runner of each other one."""
    forge = worlds[0].forge
    runners = [
        (world, forge.create_runner(INSTANCE, world.named("ffffffff"), ["debian-12"]))
        for world in worlds
    ]
    for runner in forge.runners_.values():  # or its own host would sweep it
        runner.record = replace(runner.record, busy=True)
    for world in worlds:
        world.up()
    for _, credentials in runners:
        forge.delete_runner(INSTANCE, credentials.id)
    for world in worlds:
        world.up()
        assert len(world.manager.survey().observed.fleet.peers) == len(worlds) - 1
    forge.clock.now += 60


@dataclass
class Result:
    """What came of it."""

    hosts: int
    forge: str
    seconds: float  # from the first job's queueing to the last one's end
    jobs: int
    made: int
    requests: float  # of a host in a pass
    begun: dict[int, int]  # how often each job was
    verdicts: dict[int, list[str]]
    killed: int = 0  # jobs that ran on a host when it died

    @property
    def in_vain(self) -> float:
        """Of the machines, those that had no job."""
        return (self.made - sum(self.begun.values())) / self.made

    def faults(self) -> list[str]:
        """What is wrong, whatever the figures are."""
        name = f"{self.forge}, {self.hosts} hosts"
        twice = [number for number, times in self.begun.items() if times != 1]
        lost = set(range(1, self.jobs + 1)) - self.verdicts.keys()
        failed = sum(verdicts != ["success"] for verdicts in self.verdicts.values())
        found = [f"{name}: {len(twice)} jobs were begun twice"] if twice else []
        found += [f"{name}: {len(lost)} jobs have no verdict"] if lost else []
        if failed != self.killed:
            found.append(f"{name}: {failed} jobs failed, of which {self.killed} lost their host")
        return found


@dataclass
class Scenario:
    """Jobs that are all there at once, and hosts that work them off. `kill_at`: seconds after
    which the first host is no more.
    """

    worlds: list[World]
    jobs: int
    kill_at: float = 0.0
    events: list[tuple[float, int, str, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)
    dead: set[int] = field(default_factory=set)
    passes: int = 0
    requests: int = 0
    killed: int = 0

    @property
    def forge(self) -> FakeForge:
        """The one that they share."""
        return self.worlds[0].forge

    def at(self, when: float, what: str, who: Any) -> None:
        """Something is to happen."""
        heapq.heappush(self.events, (when, next(self._numbers), what, who))

    def run(self) -> Result:
        """Until every job has its verdict."""
        clock, forge = self.forge.clock, self.forge
        began = ended = clock.now
        for world in self.worlds:
            world.log.lines.clear()
        for number in range(1, self.jobs + 1):
            forge.queue(number, repository=REPOSITORIES[number % len(REPOSITORIES)])
        self._due = dict.fromkeys(range(len(self.worlds)), began)
        self._seen: dict[int, set[MachineId]] = {number: set() for number in self._due}
        if self.kill_at:
            self.at(began + self.kill_at, "kill", 0)
        while len(forge.verdicts) < self.jobs:
            now = min(
                [when for number, when in self._due.items() if number not in self.dead]
                + ([self.events[0][0]] if self.events else [])
            )
            now = max(clock.now, -(-now // GRID) * GRID)
            clock.now = now
            if self._things_happen(now):
                for number, world in enumerate(self.worlds):
                    if self._has_room(world):
                        self._due[number] = min(self._due[number], now + GRID)
            self._hosts_look(now)
            if len(forge.verdicts) == self.jobs:
                ended = now
        made = sum(
            line == "machine started" for world in self.worlds for line, _ in world.log.lines
        )
        begun: dict[int, int] = {}
        for world in self.worlds:
            for number, times in world.starts.items():
                begun[number] = begun.get(number, 0) + times
        return Result(
            len(self.worlds),
            forge.kind,
            ended - began,
            self.jobs,
            made,
            self.requests / self.passes,
            begun,
            forge.verdicts,
            self.killed,
        )

    def _has_room(self, world: World) -> bool:
        """One without room looks in vain: it is left out here, for the time that it takes."""
        return len(world.hypervisor.domains) < world.settings.pools["p"].max

    def _things_happen(self, now: float) -> bool:
        """Whether the forge's list of jobs is another one now."""
        news = False
        while self.events and self.events[0][0] <= now:
            _, _, what, who = heapq.heappop(self.events)
            if what == "kill":
                self._kill(who)
            elif what == "give up":
                news = True
                if self.forge.known[who].state is JobState.RUNNING:
                    self.forge.finish(who, "failure")
            else:
                number, machine = who
                news = self._guest(number, machine, now) or news
        return news

    def _kill(self, number: int) -> None:
        """The host and all that is on it is no more; the forge hears nothing of that."""
        self.dead.add(number)
        world = self.worlds[number]
        for machine in world.machines():
            runner = self.forge.by_name(str(machine))
            if runner:
                runner.record = replace(runner.record, online=False, busy=False)
            if runner and runner.job:
                self.killed += 1
                self.at(self.forge.clock.now + ZOMBIE, "give up", runner.job)
        world.hypervisor.domains.clear()

    def _guest(self, number: int, machine: MachineId, now: float) -> bool:
        world = self.worlds[number]
        if number in self.dead or machine not in world.hypervisor.domains:
            return False
        done = world.step(machine)
        wait = {"booted": GRID, "polls": POLL, "finished": POWER_OFF}.get(done, 0.0)
        if done == "took a job":
            runner = self.forge.by_name(str(machine))
            assert runner
            wait = JOB * (0.8 + 0.4 * ((runner.job * 7) % 11) / 10)
        if wait:
            self.at(now + wait, "guest", (number, machine))
        self._due[number] = now  # its report, or the hypervisor's, wakes the host
        return done in {"took a job", "finished"}

    def _hosts_look(self, now: float) -> None:
        self.forge.freeze()
        for number, world in enumerate(self.worlds):
            if self._due[number] > now or number in self.dead:
                continue
            before = self.forge.requests if isinstance(self.forge, CountingForge) else 0
            world.forge.doom = world.doom
            outcome, survey = world.manager.reconcile()
            if isinstance(self.forge, CountingForge):
                self.requests += self.forge.requests - before
            self.passes += 1
            again = survey.plan.again or LONGEST
            if outcome.acts:
                again = min(again, 1.0)
            rest = max(GRID, min(again, LONGEST))
            self._due[number] = now + (rest if self._has_room(world) or outcome.acts else FULL)
            living = set(world.hypervisor.domains)
            for machine in sorted(living - self._seen[number], key=str):
                self.at(now + BOOT, "guest", (number, machine))
            self._seen[number] = living
        self.forge.thaw()


@contextmanager
def scene(
    hosts: int, jobs: int, *, binds_jobs: bool, kill_at: float = 0.0, known: bool = True
) -> Iterator[Scenario]:
    """Hosts on a forge of their own."""
    folder = Path(tempfile.mkdtemp(prefix="vmrunner-fleet-", dir="/dev/shm"))
    worlds: list[World] = []
    try:
        worlds = hosts_of(folder, hosts, binds_jobs=binds_jobs)
        counting = CountingForge(binds_jobs, clock=worlds[0].clock, doom=worlds[0].doom)
        for world in worlds:
            world.forge = counting
            world.restart()
        if known:
            meet(worlds)
        yield Scenario(worlds, jobs, kill_at)
    finally:
        for world in worlds:
            world.history.close()
            World.opened.remove(world)
        shutil.rmtree(folder)


def measure(
    hosts: int, jobs: int, *, binds_jobs: bool, kill_at: float = 0.0, known: bool = True
) -> Result:
    """One scenario, from its beginning to its end."""
    with scene(hosts, jobs, binds_jobs=binds_jobs, kill_at=kill_at, known=known) as scenario:
        return scenario.run()


def judge(result: Result, alone: Result) -> tuple[dict[str, float], list[str]]:
    """Its figures beside those of one host, and what they lack."""
    gain = (result.jobs / result.seconds) / (alone.jobs / alone.seconds)
    faults = result.faults()
    name = f"{result.forge}, {result.hosts} hosts"
    if gain < GOALS.get(result.hosts, 0.0):
        faults.append(f"{name}: {gain:.1f} times the throughput of one")
    if result.in_vain > IN_VAIN:
        faults.append(f"{name}: {result.in_vain:.1%} of the machines were made in vain")
    if result.requests > alone.requests * MORE_REQUESTS:
        faults.append(
            f"{name}: {result.requests:.1f} requests in a pass, {alone.requests:.1f} alone"
        )
    figures = {
        "throughput": round(gain, 2),
        "in_vain_percent": round(result.in_vain * 100, 1),
        "requests_in_a_pass": round(result.requests, 2),
    }
    return figures, faults


def main() -> None:
    """Measure all; exits non-zero where a goal is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--hosts", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--save", type=Path, help="a folder for the picture, as fleet.png")
    wanted = parser.parse_args()
    faults: list[str] = []
    figures: dict[str, dict[str, Any]] = {}
    print(
        f"{'forge':10}{'hosts':>8}{'seconds':>10}{'times one':>12}{'in vain':>10}{'requests':>10}"
    )
    for binds_jobs in (False, True):
        alone = measure(1, wanted.jobs // 10, binds_jobs=binds_jobs)
        faults += alone.faults()
        rows: list[tuple[str, Result]] = [("1", alone)]
        for hosts in wanted.hosts:
            rows.append((str(hosts), measure(hosts, wanted.jobs, binds_jobs=binds_jobs)))
        killed = measure(10, wanted.jobs, binds_jobs=binds_jobs, kill_at=100.0)
        for name, result in rows:
            found, missed = judge(result, alone)
            faults += missed
            figures.setdefault(result.forge, {})[name] = found
            _show(name, result, found)
        faults += killed.faults()
        strangers = measure(10, wanted.jobs, binds_jobs=binds_jobs, known=False)
        faults += strangers.faults()
        for name, result in (("10, 1 dies", killed), ("10, new", strangers)):
            found, _ = judge(result, alone)
            figures[result.forge][name] = found | {"jobs_that_lost_their_host": result.killed}
            _show(name, result, found)
    if wanted.save:
        draw(figures, wanted.save / "fleet.png")
    for fault in faults:
        print(fault, file=sys.stderr)
    print(json.dumps({"jobs": wanted.jobs, "figures": figures, "faults": faults}))
    if faults:
        sys.exit(1)


def draw(figures: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """A picture: how much more so many hosts get done than one, beside the best that there can
    be, and what each asks of the forge.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    picture, (gains, asked) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for forge, marker in zip(figures, "os", strict=True):
        rows = {int(name): row for name, row in figures[forge].items() if name.isdigit()}
        gains.plot(
            list(rows), [row["throughput"] for row in rows.values()], f"-{marker}", label=forge
        )
        asked.plot(
            list(rows),
            [row["requests_in_a_pass"] for row in rows.values()],
            f"-{marker}",
            label=forge,
        )
    gains.plot([1, max(rows)], [1, max(rows)], "--", color="grey", label="as many as hosts")
    gains.set(xlabel="hosts on one forge", ylabel="times the throughput of one")
    asked.set(xlabel="hosts on one forge", ylabel="requests of a host in a pass", ylim=(0, 4))
    gains.legend()
    asked.legend()
    picture.savefig(path, dpi=110)


def _show(name: str, result: Result, found: dict[str, float]) -> None:
    print(
        f"{result.forge:10}{name:>10}{result.seconds:>9.0f}{found['throughput']:>11.1f}"
        f"{found['in_vain_percent']:>9.1f}%{found['requests_in_a_pass']:>10.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
