"""A world in memory for the manager: the fakes, guests that boot, take jobs and power off, and
users who queue and cancel them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from tests.fakes import Clock, Doom, FakeBindings, FakeForge, FakeHypervisor, FakeLog
from vmrunner.config import Config
from vmrunner.hypervisor.seam import Snapshot
from vmrunner.image.versions import store
from vmrunner.machine import clones
from vmrunner.manager.actions import Reason
from vmrunner.manager.history import History
from vmrunner.manager.manager import Manager
from vmrunner.model.job import JobState
from vmrunner.model.machine import EventKind, MachineId, Phase, may_follow

MANIFEST = {
    "name": "debian-12",
    "version": "1",
    "recipe_digest": "0",
    "files": {},
    "packages": {},
    "kernel": "6.1",
    "kernel_arguments": "",
    "built_at": "2026-01-01T00:00:00+00:00",
    "vmrunner_version": "0",
}
POOL = {"labels": ["debian-12"], "image": "debian-12", "max": 2, "start": "boot"}


class World:
    """A manager on the fakes; the pool `p` has two machines at most unless `pools` says
    otherwise.
    """

    opened: ClassVar[list[World]] = []  # for whoever has to close their histories
    whole = True  # passes read the whole queue, as `vmrunner up` does

    def __init__(
        self,
        folder: Path,
        *,
        binds_jobs: bool = False,
        pools: dict[str, Any] | None = None,
        beside: World | None = None,
        **settings: Any,
    ) -> None:
        """`beside`: another host, on whose forge it is."""
        self.opened.append(self)
        self.folder = folder
        kind = "forgejo-runner" if binds_jobs else "gitea-runner"
        self.publish("1", {"kind": kind, "path": f"/usr/local/bin/{kind}", "sha256": "0"})
        self.clock = beside.clock if beside else Clock()
        self.doom, self.log = Doom(), FakeLog()
        self.hypervisor = FakeHypervisor(doom=self.doom, now=self.clock)
        self.forge = (
            beside.forge if beside else FakeForge(binds_jobs, clock=self.clock, doom=self.doom)
        )
        self.configure(pools or {"p": POOL}, **settings)
        self.starts: dict[int, int] = {}  # how often each job was begun
        self.taken: dict[int, float] = {}  # and when last, by the steady clock

    def publish(self, version: str, runner: dict[str, str] | None) -> None:
        """A new version of the image."""
        image = self.folder / "images" / "debian-12" / version
        image.mkdir(parents=True, exist_ok=True)
        (image / "manifest.json").write_text(
            json.dumps(MANIFEST | {"version": version, "runner": runner})
        )
        current = image.parent / "current"
        current.unlink(missing_ok=True)
        current.symlink_to(version)

    def configure(self, pools: dict[str, Any], **settings: Any) -> None:
        """Begin, or begin again, with this configuration."""
        self.settings = Config.model_validate(
            {
                "manager": "m",
                "state_dir": self.folder,
                "runtime_dir": self.folder / "run",
                "forge": {"kind": self.forge.kind, "url": self.forge.url},
                "pools": pools,
                **settings,
            }
        )
        self.restart()

    def restart(self) -> None:
        """The manager's process ends and another begins: only what is on disk, at the hypervisor
        and at the forge remains.
        """
        if hasattr(self, "history"):
            self.history.close()
        if isinstance(self.forge, FakeForge):
            self.forge.queues.clear()  # what a process has read of a long queue
        self.history = History(
            self.folder / "history.sqlite",
            lambda text: self.log.warning(text),
            keep_days=self.settings.history.keep_days,
        )
        self.doom.after, self.doom.dead = None, False
        bindings = FakeBindings(self.settings.runtime_dir, "m", self.doom)
        self.manager = Manager(
            self.settings,
            self.hypervisor,
            self.forge,
            self.history,
            self.log,
            bindings=bindings,
            clock=self.clock,
            steady=self.clock.steady,
            workers=1,
        )

    def make_snapshot(self, pool: str) -> Snapshot:
        """As `vmrunner snapshot create --pool` does."""
        section = self.settings.pools[pool]
        golden = store.find(self.settings.images_dir, section.image)
        return clones.make(
            self.hypervisor,
            self.settings,
            golden,
            section.shape,
            timeout=1,
            say=self.log.info,
            clock=self.clock,
        )

    def up(self) -> tuple[int, int, int, int]:
        """One pass: started or bound, destroyed, swept, failures."""
        self.forge.doom = self.doom  # who calls it dies in the middle
        done = self.manager.reconcile(whole=self.whole)[0]
        return done.started + done.bound, done.destroyed, done.swept, len(done.failures)

    def pass_time(self, seconds: float, every: float = 50.0) -> None:
        """Time goes by, with passes; at least one."""
        while seconds > 0:
            self.clock.now += min(seconds, every)
            seconds -= every
            self.up()

    def reasons(self) -> dict[int, Reason]:
        """Why each waiting job waits."""
        return {wait.job.id: wait.reason for wait in self.manager.survey().plan.waits}

    def named(self, serial: str) -> str:
        """What a machine of this host is called."""
        return str(MachineId("m", serial, self.manager.host))

    def machines(self) -> list[MachineId]:
        return sorted(self.hypervisor.domains, key=str)

    # ---- guests ----

    def boot(self, machine: MachineId) -> None:
        """The guest comes up and reads its seed; a warm one then waits."""
        warm = not self.hypervisor.domains[machine].is_bound
        self.hypervisor.report(
            machine, EventKind.UP, EventKind.SEED, EventKind.READY if warm else EventKind.RUNNER
        )
        if not warm:
            self.forge.connect(str(machine))

    def step(
        self, machine: MachineId, choose: Callable[[list[str]], str] = lambda choices: choices[0]
    ) -> str:
        """The guest does the next thing that it can do; returns what.

        `choose` picks among several.
        """
        before = self.phase(machine)
        done = self._step(machine, choose)
        assert may_follow(before, self.phase(machine)), (
            f"{before} to {self.phase(machine)} by {done}"
        )
        return done

    def phase(self, machine: MachineId) -> Phase:
        """What the manager would see."""
        return next(
            (seen.phase for seen in self.hypervisor.machines.all() if seen.id == machine),
            Phase.DESTROYED,
        )

    def _step(self, machine: MachineId, choose: Callable[[list[str]], str]) -> str:
        metadata = self.hypervisor.domains[machine]
        said = {event.kind for event in self.hypervisor.events.get(machine, ())}
        if machine in self.hypervisor.isolated:
            return "held"
        if EventKind.EXIT in said:
            refused = any(event.text == "1" for event in self.hypervisor.events[machine])
            if machine in self.hypervisor.told_to_stay and not refused:
                return "stays"
            self.hypervisor.die(machine)
            return "powered off"
        if machine in self.hypervisor.paused:
            return "paused"
        if not said and metadata.parked_at and not metadata.is_bound:
            self.hypervisor.report(machine, EventKind.REHEARSED)
            return "rehearsed"
        if not said:
            self.boot(machine)
            return "booted"
        if EventKind.RUNNER not in said:
            if metadata.is_bound:
                self.hypervisor.report(machine, EventKind.RUNNER)
                self.forge.connect(str(machine))
                return "bound"
            return "waits"
        runner = self.forge.by_name(str(machine))
        if runner is None:
            self.hypervisor.report(machine, EventKind.EXIT, text="1")
            return "refused"
        if not runner.job:
            number = self.forge.fetch(str(machine), metadata.job_key)
            if number:
                self.starts[number] = self.starts.get(number, 0) + 1
                self.taken[number] = self.clock.steady()
            return "took a job" if number else "polls"
        verdict = choose(["success", "failure", "failure, and a hold"])
        self.forge.finish(runner.job, verdict.partition(",")[0])
        if verdict.endswith("hold") and machine in self.hypervisor.told_to_stay:
            self.hypervisor.report(machine, EventKind.HOLD, text="400")
        self.hypervisor.report(machine, EventKind.EXIT, text="0")
        return "finished"

    def lose_patience(self, machine: MachineId) -> None:
        """A runner that waits for its job finds no forge, and gives up."""
        said = {event.kind for event in self.hypervisor.events.get(machine, ())}
        runner = self.forge.by_name(str(machine))
        if EventKind.RUNNER in said and EventKind.EXIT not in said and runner and not runner.job:
            self.hypervisor.report(machine, EventKind.EXIT, text="1")
            self.hypervisor.die(machine)

    def settle(self, passes: int = 200) -> None:
        """Let guests and passes go on until no job waits or runs and nothing is left."""
        for _ in range(passes):
            self.up()
            for machine in self.machines():
                if machine in self.hypervisor.domains:
                    self.step(machine)
            self.clock.now += 5
            open_jobs = [
                job
                for job in self.forge.known.values()
                if job.state in (JobState.WAITING, JobState.RUNNING)
            ]
            if not open_jobs and not self.left():
                return
        raise AssertionError(f"not settled: {self.left()} {self.reasons()}")

    def settle_but_for_warm(self) -> None:
        """Settle, with the warm machines drained in the end."""
        for _ in range(200):
            self.up()
            for machine in self.machines():
                if machine in self.hypervisor.domains:
                    self.step(machine)
            self.clock.now += 5
            if self.known_states() == {JobState.DONE}:
                break
        self.manager.down(
            ["p"], now=False, wait=lambda _: [self.step(machine) for machine in self.machines()]
        )
        assert self.left() == []

    def known_states(self) -> set[JobState]:
        """The states of all jobs."""
        return {job.state for job in self.forge.known.values()}

    def left(self) -> list[str]:
        """Whatever of this manager exists, anywhere."""
        residue = self.hypervisor.machines.residue()
        records = [
            runner.record.name
            for runner in self.forge.runners_.values()
            if (machine := MachineId.of("m", runner.record.name))
            and machine.host in ("", self.manager.host)
        ]
        bindings = [path.name for path in (self.folder / "run" / "bindings").glob("*")]
        return [*residue.domains, *residue.files, *residue.logs, *records, *bindings]
