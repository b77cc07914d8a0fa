"""Observe, plan, act: the single writer of everything that carries this manager's id."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from ipaddress import IPv4Interface

from vmrunner import config, files, lock
from vmrunner.config import Config, PoolConfig
from vmrunner.errors import (
    ConfigError,
    ForgeDenied,
    ForgeError,
    ForgeNotFound,
    ForgeTokenUnknown,
    ForgeUnreachable,
    HypervisorError,
    ImageError,
    MachineError,
    VmrunnerError,
)
from vmrunner.forge.connect import connect
from vmrunner.forge.seam import Forge
from vmrunner.hypervisor.connection import THREADS_MAY_SHARE
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.seam import Hypervisor, Purged
from vmrunner.image.versions import store
from vmrunner.log import Log
from vmrunner.machine import identity, ownership
from vmrunner.machine.bindings import Bindings
from vmrunner.machine.clones import Shelf
from vmrunner.machine.instances import Instance, Instances, Lent, lent
from vmrunner.machine.maker import Maker, pinned
from vmrunner.machine.packages import answers
from vmrunner.manager import fleet, outages, stream, wanted
from vmrunner.manager.actions import (
    Action,
    Bind,
    DeleteRunner,
    DropSeed,
    Finish,
    Hold,
    Note,
    Pause,
    Plan,
    Start,
    Stay,
)
from vmrunner.manager.drain import Catching, Drained
from vmrunner.manager.figures import Counted
from vmrunner.manager.history import History, is_late
from vmrunner.manager.lent import Ender
from vmrunner.manager.logbook import Noting, open_logbook
from vmrunner.manager.observed import (
    INSTANCE,
    Ask,
    Backoff,
    Desired,
    Drain,
    HostLimits,
    Observed,
    Queue,
    Told,
)
from vmrunner.manager.outbox import Outbox
from vmrunner.manager.plan import plan
from vmrunner.manager.record import Ran, Record
from vmrunner.manager.rollback import Rollback
from vmrunner.model.binding import Binding
from vmrunner.model.entry import Entry, Source
from vmrunner.model.fleet import Fleet, called
from vmrunner.model.image import Golden
from vmrunner.model.job import Claim, Job, JobState, Scope, Sought, Want
from vmrunner.model.label import without_docker
from vmrunner.model.machine import Ending, EventKind, Machine, MachineId, Metadata
from vmrunner.model.moment import Moment
from vmrunner.model.notice import Sight, Trouble, news
from vmrunner.network.addresses import gateway
from vmrunner.waiting import Deadline, boot, retry_at

_LOCK_WAIT = 120.0  # seconds; a pass takes a few, and the watchdog of `serve` bites after 300
_WORKERS = 4  # machines that are made or destroyed at the same time
_ASKED_AT_ONCE = 100  # machines that are gone whose jobs a pass asks for
_ASKED_BY_ID = 100  # records that a pass asks for, of machines that it would end
_SOUGHT_FOR = 86400.0  # seconds since it got its runner that a dead machine's job is looked for
_UNANSWERED = 3  # questions without an answer after which a pass asks no more
_ROUNDS = 3  # of planning and asking: an answer may raise another question
# Seconds until an older vmrunner's record without a machine is swept; see Manager._leftovers.
_OLD_NAMES_REST = 86400.0
_LOGS_REST = 60.0  # seconds between two looks for logs of machines that are gone
_FIRST_BACKOFF, _LONGEST_BACKOFF = 10.0, 900.0  # seconds
# Seconds that a job waits which the forge held back from its runner.
_HELD_FOR, _HELD_LONGEST = 60.0, 900.0
Warn = Callable[[str], None]


@dataclass
class Outcome:
    """What one pass did, as counts, and what went wrong; a failure of one machine does not stop the
    others.
    """

    acts: list[str] = field(default_factory=list)  # appended to by all workers
    # Machines that the hypervisor does not have any more.
    gone: set[MachineId] = field(default_factory=set)
    failures: list[VmrunnerError] = field(default_factory=list)

    @property
    def started(self) -> int:
        """Machines that were started."""
        return self.acts.count("started")

    @property
    def bound(self) -> int:
        """Warm machines that were given a job."""
        return self.acts.count("bound")

    @property
    def destroyed(self) -> int:
        """Machines that are gone."""
        return self.acts.count("destroyed")

    @property
    def swept(self) -> int:
        """Runner records without a machine that were deleted."""
        return self.acts.count("swept")

    def add(self, other: Outcome) -> None:
        """Count another pass in."""
        self.acts += other.acts
        self.failures += other.failures


@dataclass(frozen=True)
class Survey:
    """What there is, and what a pass would do about it."""

    pools: tuple[Desired, ...]
    observed: Observed
    plan: Plan
    failures: tuple[ForgeError, ...] = ()  # of what was asked for by its id
    bounds: HostLimits | None = None  # what of the host was left free

    def missing_snapshots(self) -> list[str]:
        """One pool for each snapshot that should be made now."""
        found: dict[str, str] = {}
        for pool in self.pools:
            if pool.missing_snapshot:
                found.setdefault(pool.missing_snapshot, pool.pool)
        return list(found.values())


class Manager:
    """One manager's pools on one hypervisor and one forge."""

    def __init__(
        self,
        settings: Config,
        hypervisor: Hypervisor,
        forge: Forge,
        history: History,
        log: Log,
        *,
        bindings: Bindings | None = None,
        looks_only: bool = False,
        serves_cache: bool = False,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        workers: int = _WORKERS,
    ) -> None:
        self.settings, self.hypervisor, self.forge, self.history = (
            settings,
            hypervisor,
            forge,
            history,
        )
        self._logbook = open_logbook(settings, log.warning)
        self._log: Log = Noting(log, self._logbook, clock)
        self._clock, self._steady, self._workers = clock, steady, workers
        self._boot = boot()
        self._pass_began = 0.0
        self._logs_at = 0.0  # by the steady clock: when the logs of machines are looked at again
        self._tidied_at = 0.0  # the same for what is kept of them
        self._outages = settings.runtime_dir / "outages.json"
        self._bindings = bindings or Bindings(settings.runtime_dir, settings.manager)
        self._drained = Drained(settings.state_dir)
        self.catching = Catching(settings.state_dir)
        self._serves_cache = serves_cache
        self.host = (identity.seen if looks_only else identity.host)(settings.state_dir)
        self._me = called(settings.manager, self.host)
        self._fleet = settings.state_dir / "fleet.json"
        self._addresses = settings.addresses()
        self.shelf = Shelf(settings.state_dir, clock)
        self._rollback = Rollback(settings, history, log)
        instances = Instances(settings.state_dir, settings.runtime_dir, settings.manager)
        self._lent = Ender(
            hypervisor,
            instances,
            self._addresses,
            history,
            True,
            settings.runtime_dir,
            self._logbook,
        )
        self._outbox = Outbox(settings.notices_dir, settings.manager, log)
        self._forge_down = settings.runtime_dir / "forge-down"  # written when the forge went away

    def close(self) -> None:
        """Close what it holds open."""
        self.forge.close()
        self.history.close()
        self.hypervisor.close()

    def pools(self, wanted: str | None) -> list[str]:
        """The named pool, or all of them; raises ConfigError for an unknown one."""
        if wanted is None:
            return list(self.settings.pools)
        self.settings.pool(wanted)  # says which there are
        return [wanted]

    def lock(self) -> AbstractContextManager[None]:
        """Held by whoever changes something, for the time of a pass."""
        return lock.exclusive(
            self.settings.runtime_dir, self.settings.manager, wait=_LOCK_WAIT, say=self._log.info
        )

    # ---- observe ----

    def observe(self, pools: Sequence[Desired] = (), *, whole: bool = True) -> Observed:
        """Machines first, then runners, then jobs: what the forge shows is never older than the
        machines. Without `whole` a long queue is read as far as these pools can use it.
        """
        instances = self._lent.instances.all()
        seen = self.hypervisor.machines.all()
        owned = ownership.owned(self.hypervisor.manager, self.settings.runtime_dir)
        # One that is made or ended meanwhile is in one of the two.
        instances = tuple({*instances, *self._lent.instances.all()})
        others = lent(seen, instances)
        machines = tuple(m for m in seen if m.id not in owned and m.id not in others)
        bindings = self._bindings.all()
        configured = {
            scope: None for section in self.settings.pools.values() for scope in section.scope
        }
        polled = dict(configured)
        if INSTANCE not in polled:
            polled |= {binding.scope: None for binding in bindings}
        capacity = self.hypervisor.facts.capacity()
        queues = {
            scope: self._queue(
                scope,
                None if whole else wanted.wants(scope, pools, machines, capacity),
                may_be_gone=scope not in configured,
            )
            for scope in polled
        }
        verdicts = self._verdicts(pools, machines, queues)
        moment = self.moment()
        silences = outages.load(self._outages).looked_at(moment, _silent(queues))
        return Observed(
            machines,
            queues,
            self.forge.binds_jobs,
            capacity,
            bindings,
            frozenset(self.history.unended()),
            self._held(),
            self.forge.may_throttle,
            moment=moment,
            silences=silences,
            host=self.host,
            me=self._me,
            fleet=self._looked_around(moment, queues),
            leftovers=self._leftovers(queues.values()),
            # After the lists: whoever has a record there had its name before.
            owned=frozenset(ownership.owned(self.hypervisor.manager, self.settings.runtime_dir)),
            lent=_lent(instances, seen),
            verdicts=verdicts,
            were_held=frozenset(self.history.were_held()),
        )

    def _verdicts(
        self, pools: Sequence[Desired], machines: Iterable[Machine], queues: Mapping[Scope, Queue]
    ) -> dict[int, Job | None]:
        """The jobs of machines whose guests stay after them, where it matters how they ended: by
        the runners' ids, of those scopes for which the forge answers.
        """
        keeping = {pool.pool for pool in pools if pool.hold_failed}
        sought: dict[Scope, list[Sought]] = {}
        for machine in machines:
            metadata = machine.metadata
            if metadata and metadata.pool in keeping and machine.awaits_verdict:
                row = self.history.find(machine.id)
                one = Sought(
                    metadata.runner_id, self._labels(metadata.pool), row.hints if row else ()
                )
                sought.setdefault(Scope.parse(metadata.scope), []).append(one)
        found: dict[int, Job | None] = {}
        for scope, those in sought.items():
            queue = queues.get(scope) or queues.get(INSTANCE)
            if queue and queue.problem:
                continue
            try:
                found.update(self.forge.ended_jobs(scope, those))
            except ForgeError as error:
                self.history.count(Counted.FORGE_ERRORS, label=type(error).__name__)
        return found

    def _looked_around(self, moment: Moment, queues: Mapping[Scope, Queue]) -> Fleet:
        known = fleet.load(self._fleet)
        if any(queue.problem for queue in queues.values()):
            return known  # what is missing may be there
        records = {record.id: record for queue in queues.values() for record in queue.runners}
        jobs = {job.key: job for queue in queues.values() for job in queue.jobs}
        old = {key for queue in queues.values() for key in queue.old}
        return known.looked_at(self._me, moment, records.values(), jobs.values(), old)

    def _leftovers(self, queues: Iterable[Queue]) -> frozenset[str]:
        """Records of an older vmrunner, whose names tell no host. This host's are those that its
        history knows. It may be another computer's, which this one's disk was copied from: so only
        what has long had no machine, since one that has calls the forge.
        """
        named = {
            machine
            for queue in queues
            for record in queue.runners
            if not (record.online or record.busy)
            and (machine := MachineId.of(self.settings.manager, record.name))
            and not machine.host
        }
        before = self._clock() - _OLD_NAMES_REST
        return frozenset(
            str(machine)
            for machine in named
            if (row := self.history.find(machine)) and row.created < before
        )

    def moment(self) -> Moment:
        """Now, by all clocks."""
        return Moment(self._clock(), self._steady(), self._boot)

    def _queue(self, scope: Scope, wants: Sequence[Want] | None, *, may_be_gone: bool) -> Queue:
        """Without `wants` all of it. `may_be_gone`: a repository that a job came from, and that
        nobody has configured.
        """
        try:
            runners = tuple(self.forge.runners(scope))
            if wants is None:
                return Queue(tuple(self.forge.jobs(scope)), runners)
            listing = self.forge.look(scope, wants)
            return Queue(
                listing.jobs,
                runners,
                unread=listing.unread,
                old=listing.old,
                is_short=listing.is_short,
            )
        except ForgeError as error:
            if may_be_gone and isinstance(error, ForgeNotFound):
                return Queue()  # it was deleted, and its jobs and runners with it
            self.history.count(Counted.FORGE_ERRORS, label=type(error).__name__)
            is_silent = isinstance(error, ForgeUnreachable)
            return Queue(problem=error.sentence, hint=error.hint, is_silent=is_silent)

    def _held(self) -> dict[str, float]:
        now = self._clock()
        times = self.history.held_back(now - 86400)
        return {
            job: retry_at(last, count, _HELD_FOR, _HELD_LONGEST, now)
            for job, (count, last) in times.items()
        }

    def desired(self, drain: Mapping[str, Drain] | None = None) -> tuple[Desired, ...]:
        """Every pool as it should be now. `drain` comes on top of what an admin has drained."""
        drains = dict.fromkeys(self._drained.pools(), Drain.IDLE) | dict(drain or {})
        return tuple(
            self._desired(name, drains.get(name, Drain.NO)) for name in self.settings.pools
        )

    def _desired(self, name: str, drain: Drain) -> Desired:
        section = self.settings.pools[name]
        images = self.settings.images_dir
        golden = store.current(images, section.image)
        whole = store.completed(images, golden, section.tools)
        failures = self.history.failures(name, self._rollback.current(section.image))
        backoff = None
        if failures:
            until = retry_at(
                failures.last_at, failures.count, _FIRST_BACKOFF, _LONGEST_BACKOFF, self._clock()
            )
            backoff = Backoff(failures.count, until, failures.last)
        missing, said = self._snapshot_of(section, whole)
        section = self._caught(name)
        return Desired(
            pool=name,
            scopes=section.scope,
            labels=frozenset(section.label_names),
            takes_unlabelled=section.takes_unlabelled,
            shape=section.shape,
            max=section.max,
            boot_timeout=section.boot_timeout.total_seconds(),
            pickup_timeout=section.pickup_timeout.total_seconds(),
            job_timeout=section.job_timeout.total_seconds(),
            teardown_timeout=section.teardown_timeout.total_seconds(),
            warm=section.warm_at(datetime.fromtimestamp(self._clock()).astimezone()),
            register_idle=section.register_idle,
            priority=section.priority,
            image=golden.id if golden else "",
            tools=whole.tools_id if whole else None,
            image_built=datetime.fromisoformat(golden.manifest.built_at).timestamp()
            if golden
            else 0.0,
            image_note=self._image_note(section, golden, whole),
            snapshot=said,
            needs_snapshot=bool(said) and section.start == "snapshot",
            missing_snapshot=missing,
            drain=drain,
            backoff=backoff,
            typical_boot=self.history.usual_boot(name),
            hold_failed=_seconds(section.hold_failed),
            job_may_hold=_seconds(section.job_may_hold),
        )

    def _caught(self, pool: str) -> PoolConfig:
        """The pool as configured, and as an admin wants its next failed machine kept."""
        section = self.settings.pools[pool]
        seconds = self.catching.pools().get(pool, 0.0)
        longest = max(timedelta(seconds=seconds), section.hold_failed or timedelta())
        return section.model_copy(update={"hold_failed": longest}) if seconds else section

    def _image_note(self, section: PoolConfig, golden: Golden | None, whole: Golden | None) -> str:
        """`whole` is the image with its tools, None where one of them lacks."""
        lacks = golden is not None and golden.manifest.lacks_docker
        notes = (
            f"there is no disk of tools {section.tools}: see `vmrunner doctor`"
            if golden and not whole and section.tools
            else "",
            self._rollback.note(section.image),
            without_docker(section.labels, section.image) if lacks else "",
        )
        return "; ".join(note for note in notes if note)

    def _snapshot_of(self, section: PoolConfig, golden: Golden | None) -> tuple[str, str]:
        """The key of the snapshot that should be made now, and why its machines can't be cloned;
        both empty if they can, or shall not.
        """
        if (
            section.start == "boot"
            or golden is None
            or self.hypervisor.snapshots.find(golden, section.shape)
        ):
            return "", ""
        key = self.hypervisor.snapshots.key(golden, section.shape)
        failure = self.shelf.failure(key)
        if failure is None:
            return key, "it is being made"
        return (
            "",
            f"{failure.cause} (tried again in {self.shelf.again_at(failure) - self._clock():.0f} "
            "s)",
        )

    def survey(self, drain: Mapping[str, Drain] | None = None, *, whole: bool = True) -> Survey:
        """Look and plan; changes nothing and needs no lock. Without `whole` a long queue is read a
        few pages at a time, which takes a manager that goes on looking.
        """
        pools, limits = self.desired(drain), self.settings.capacity
        observed = self.observe(pools, whole=whole)
        bounds = HostLimits(
            limits.cpu_overcommit, limits.memory_reserve, limits.disk_floor, limits.guard
        )
        failures: list[ForgeError] = []
        trusted: set[str] = set()
        for _ in range(_ROUNDS):
            decided = plan(self.settings.manager, pools, bounds, observed, self._clock())
            told = self._ask(decided.asks, failures)
            unsure = wanted.unsure(decided, observed, trusted)
            if not told and not unsure:
                break
            observed = replace(observed, asked={**observed.asked, **told})
            observed = self._ask_again(unsure, observed, trusted, failures)
        else:
            decided = plan(self.settings.manager, pools, bounds, observed, self._clock())
            decided = wanted.without(decided, wanted.unsure(decided, observed, trusted))
        if observed.moment and not any(queue.problem for queue in observed.queues.values()):
            known = observed.fleet.promising(decided.promised, observed.moment.steady)
            observed = replace(observed, fleet=known)
        return Survey(pools, observed, decided, tuple(failures), bounds)

    def _ask_again(
        self,
        jobs: Sequence[Job],
        observed: Observed,
        trusted: set[str],
        failures: list[ForgeError],
    ) -> Observed:
        """Whether these jobs still wait, which no look at the queue has shown again. `trusted` gets
        the keys of those that may not be asked for.
        """
        for job in jobs[:_ASKED_BY_ID]:
            try:
                now = self.forge.job(INSTANCE, job.repository, job.key)
            except ForgeTokenUnknown as error:
                failures.append(error)
                break
            except ForgeDenied:
                # Without `read:repository` the look that showed it has to do.
                trusted.add(job.key)
                continue
            except ForgeError as error:
                self.history.count(Counted.FORGE_ERRORS, label=type(error).__name__)
                failures.append(error)
                break
            observed = wanted.told(observed, job, now)
        return observed

    def _ask(self, asks: Sequence[Ask], failures: list[ForgeError]) -> dict[Ask, Told]:
        """Records and jobs by their ids. Without an answer nothing is ended; a later pass asks
        again.
        """
        told: dict[Ask, Told] = {}
        unanswered = 0
        for ask in asks[:_ASKED_BY_ID]:
            try:
                record = self.forge.runner(ask.scope, ask.runner_id)
                told[ask] = Told(record, self._asked_job(ask))
            except ForgeError as error:
                self.history.count(Counted.FORGE_ERRORS, label=type(error).__name__)
                failures.append(error)
                unanswered += 1
                if unanswered == _UNANSWERED:
                    break  # a forge that does not answer is not asked a hundred times
        return told

    def _asked_job(self, ask: Ask) -> Job | None:
        if not ask.job_key:
            return None
        try:
            return self.forge.job(ask.scope, ask.repository, ask.job_key)
        except ForgeTokenUnknown:
            raise  # a new token mends it
        except ForgeDenied:
            return None  # without `read:repository` the record has to do

    def forge_down_since(self) -> float:
        """Since when passes have found a scope of the forge without an answer, in unix seconds; 0
        where the last one found none.
        """
        try:
            return self._forge_down.stat().st_mtime
        except OSError:
            return 0.0

    def _remember_forge(self, problems: Mapping[str, str]) -> None:
        with suppress(OSError):  # only `status` needs it
            if not problems:
                self._forge_down.unlink(missing_ok=True)
            elif not self._forge_down.exists():
                self._forge_down.touch()

    # ---- act ----

    def _logged(self) -> list[MachineId]:
        """This host's machines that the hypervisor keeps a log of, once a minute. To be asked
        before the machines are: whose log is seen by then, and is in no later list, is gone.
        """
        if self._steady() < self._logs_at:
            return []
        self._logs_at = self._steady() + _LOGS_REST
        return [each for each in self.hypervisor.machines.logged() if each.host == self.host]

    def reconcile(
        self, drain: Mapping[str, Drain] | None = None, *, whole: bool = True
    ) -> tuple[Outcome, Survey]:
        """Start what is needed, finish what is done, sweep what nothing explains; what was done,
        and what it was decided from. `whole` as for `survey`.

        Call it with the lock held.
        """
        self._pass_began = self._clock()
        self.hypervisor.guard()
        ownership.sweep(self.hypervisor, self.settings.runtime_dir, self._addresses)
        self._bindings.sweep()
        self._settle()
        for folder in (self.settings.state_dir, self.settings.runtime_dir):
            files.sweep(folder)
        outcome = Outcome()
        outcome.failures += self._rollback.roll_back()
        logged = self._logged()
        survey = self.survey(drain, whole=whole)
        self._bindings.drop_damaged()
        self._log_plan(survey)
        living = {str(machine.id) for machine in survey.observed.machines}
        living |= {str(instance.machine) for instance in self._lent.instances.all()}
        self.history.seen(
            machine.metadata for machine in survey.observed.machines if machine.metadata
        )
        living |= {
            str(machine)
            for machine in ownership.owned(self.settings.manager, self.settings.runtime_dir)
        }
        self._addresses.sweep(living, self.hypervisor.vacate)
        for machine in logged:
            if str(machine) not in living:
                self.hypervisor.machines.drop_log(machine)
        problems = {
            queue.problem: queue.hint for queue in survey.observed.queues.values() if queue.problem
        }
        self._remember_forge(problems)
        outages.save(self._outages, survey.observed.silences)
        if survey.observed.fleet != fleet.load(self._fleet):
            fleet.save(self._fleet, survey.observed.fleet)
        outcome.failures += [ForgeError(problem, hint) for problem, hint in problems.items()]
        outcome.failures += survey.failures
        self._act(survey.plan.actions, outcome)
        self._ask_for_jobs(survey.observed, outcome)
        self._logbook.drop(self.history.prune(self._clock()))
        if self.settings.notify.url:
            self._note_news(survey)
        return outcome, survey

    def chores(self) -> None:
        """What no pass waits for, and that needs no lock: for another thread, or after a pass."""
        self._measure()
        self._tidy_logs()

    def _measure(self) -> None:
        """Have the history know what living machines have taken of the host. It waits for machines
        whose QEMU is slow.
        """
        try:
            self.history.used(self.hypervisor.machines.used())
        except HypervisorError as error:  # the next one has it
            self._log.debug("machines not measured", reason=error.sentence)

    def _tidy_logs(self) -> None:
        """Once a minute, what is kept of machines' logs is brought to its bound."""
        if self._steady() < self._tidied_at:
            return
        self._tidied_at = self._steady() + _LOGS_REST
        section = self.settings.history
        self._logbook.drop(self.history.drop_logs(section.keep_logs << 20))
        self._logbook.sweep(self._clock(), section.keep_days * 2 * 86400.0)

    def _settle(self) -> None:
        """What is over of what GARM made."""
        owned = ownership.owned(self.settings.manager, self.settings.runtime_dir)
        for record in self._lent.settle(self.moment(), tuple(owned)):
            self._log.info(
                "machine of GARM's ended",
                machine=record.machine,
                pool=record.pool,
                ending=record.ending,
                reason=record.reason,
            )

    def _note_news(self, survey: Survey) -> None:
        """Write down what an admin is to be told; who sends it is another thread."""
        queues, now = survey.observed.queues.values(), self._clock()
        known = self._outbox.known()
        after, told = news(
            known,
            Sight(
                self.settings.forge.url,
                next((queue.problem for queue in queues if queue.problem), ""),
                {
                    each.pool: Trouble(each.backoff.failures, each.backoff.last)
                    if each.backoff
                    else None
                    for each in survey.pools
                },
                self._rollback.done(),
                survey.observed.capacity.known_free_disk_mib,
                self.settings.capacity.disk_floor,
                {
                    str(each.id): _until(each.metadata)
                    for each in survey.observed.machines
                    if each.metadata and each.is_held
                },
            ),
            now,
        )
        if told or after != known:
            wanted_ones = [each for each in told if each.kind in self.settings.notify.events]
            self._outbox.put(wanted_ones, after, now)

    def _log_plan(self, survey: Survey) -> None:
        """For whoever looks for a fault of ours."""
        queues = survey.observed.queues.values()
        jobs = sum(len(queue.jobs) for queue in queues)
        self._log.debug("observed", machines=len(survey.observed.machines), jobs=jobs)
        for action in survey.plan.actions:
            self._log.debug("planned", action=type(action).__name__, what=str(action))

    def end(self, finish: Finish) -> Outcome:
        """End one machine. Call it with the lock held."""
        outcome = Outcome()
        self._act([finish], outcome)
        return outcome

    def _act(self, actions: Sequence[Action], outcome: Outcome) -> None:
        """First what is over; then, if the pool's old machines are really gone, what is new."""
        for kind in (Note, DropSeed, Pause, Stay, Hold, Finish, DeleteRunner):
            self._side_by_side(
                [
                    partial(self._carry_out, action, outcome)
                    for action in actions
                    if isinstance(action, kind)
                ],
                outcome,
            )
        gone_before = {
            action.machine
            for action in actions
            if isinstance(action, Finish) and action.seen and action.seen.alive
        }
        # The plan counted on their places: no new machines before they are really gone.
        kinds = (Bind, Start) if gone_before <= outcome.gone else (Bind,)
        new = [action for action in actions if isinstance(action, kinds)]
        makers = self._makers(new, outcome)
        goldens = self._publish([action for action in new if action.pool in makers], outcome)
        unusable = {pool for pool, golden in goldens.items() if golden is None}
        able = [action for action in new if action.pool in makers.keys() - unusable]
        self._side_by_side(
            [
                partial(self._make, action, makers[action.pool], goldens.get(action.pool), outcome)
                for action in able
            ],
            outcome,
        )

    def _side_by_side(self, calls: Sequence[Callable[[], None]], outcome: Outcome) -> None:
        def guarded(call: Callable[[], None]) -> None:
            try:
                call()
            except VmrunnerError as error:
                outcome.failures.append(error)

        if self._workers == 1 or len(calls) < 2:
            for call in calls:
                guarded(call)
            return
        with ThreadPoolExecutor(self._workers) as workers:
            list(workers.map(guarded, calls))

    def _publish(self, new: Sequence[Bind | Start], outcome: Outcome) -> dict[str, Golden | None]:
        """Bring each image that is needed to the host, once; returns what each pool's machines are
        made of, None where it can't be had.
        """
        found: dict[str, Golden | None] = {}
        for pool in dict.fromkeys(action.pool for action in new if isinstance(action, Start)):
            try:
                section = self.settings.pools[pool]
                golden = store.for_machines(self.settings.images_dir, section.image, section.tools)
                self.hypervisor.prepare(golden)
            except (ImageError, HypervisorError) as error:
                self._start_failed(MachineId.new(self.settings.manager, self.host), pool, error)
                outcome.failures.append(error)
                found[pool] = None
            else:
                # Another version may be promoted meanwhile, and is not on the host yet.
                found[pool] = golden
        return found

    def _makers(self, new: Sequence[Bind | Start], outcome: Outcome) -> dict[str, Maker]:
        """What makes the machines of each pool that gets some, once in a pass; a pool is left out
        whose machines can't be told how to reach the forge.
        """
        found: dict[str, Maker] = {}
        for pool in dict.fromkeys(action.pool for action in new):
            try:
                found[pool] = self._maker(pool)
            except ConfigError as error:
                outcome.failures.append(error)
        return found

    def _carry_out(self, action: Action, outcome: Outcome) -> None:
        match action:
            case Note():
                self.hypervisor.machines.note(action.metadata)
                if action.metadata.running_at and action.job:
                    self.history.running(action.metadata, action.job)
                    self._log.info(
                        "job running",
                        machine=action.machine.id,
                        pool=action.metadata.pool,
                        job=action.job.title,
                    )
            case DropSeed(machine):
                self.hypervisor.machines.drop_seed(machine)
            case Pause(machine):
                self.hypervisor.machines.pause(machine)
            case Stay(machine, metadata):
                self._stay(machine, metadata)
            case Hold():
                self._hold(action)
            case Finish():
                self._finish(action, outcome)
            case DeleteRunner(scope, runner):
                self.forge.delete_runner(scope, runner.id)
                self._log.warning("runner record without a machine deleted", machine=runner.name)
                self.history.count(Counted.SWEPT, label="runner")
                outcome.acts.append("swept")

    def _make(
        self, action: Bind | Start, maker: Maker, golden: Golden | None, outcome: Outcome
    ) -> None:
        scopes = _distinct(action.scope, action.fallback)
        match action:
            case Bind():
                claim = Claim.of(action.job, is_last=action.is_last)
                metadata = maker.bind(action.metadata, action.job, scopes, claim)
                self.history.bound(metadata, action.job)
                self._log.info(
                    "machine bound",
                    machine=metadata.machine,
                    pool=action.pool,
                    job=action.job.title,
                )
                outcome.acts.append("bound")
            case Start() if golden:
                self._start(action, maker, golden, scopes)
                outcome.acts.append("started")

    def _cache_url(self, section: PoolConfig) -> str:
        """Where jobs find the cache. Passes by a timer keep none: then jobs are told of one that
        answers. One that is kept may just be started.
        """
        url, port = self.settings.cache_url(section), self.settings.cache.listen_port
        address = str(gateway(self.settings.libvirt.subnet))
        return url if url and (self._serves_cache or answers(address, port or 0)) else ""

    def _maker(self, pool: str) -> Maker:
        section = self._caught(pool)
        return Maker(
            self.hypervisor,
            self.forge,
            self._bindings,
            self._addresses,
            self.shelf,
            pool,
            section,
            self.settings.forge.ca(),
            pinned(self.settings, section.network),
            self.moment,
            self._cache_url(section),
            self.settings.mirrors(section),
        )

    def _start(
        self, action: Start, maker: Maker, golden: Golden, scopes: tuple[Scope, ...]
    ) -> None:
        machine = MachineId.new(self.settings.manager, self.host)
        try:
            claim = Claim.of(action.job, is_last=action.is_last) if action.job else None
            metadata = maker.create(machine, golden, action.job, scopes, claim)
        except (HypervisorError, ImageError) as error:
            self._start_failed(machine, action.pool, error)
            raise
        self.history.started(metadata, self._clock(), action.job)
        self._log.info(
            "machine started",
            machine=machine,
            pool=action.pool,
            job=action.job.title if action.job else "",
        )

    def _start_failed(self, machine: MachineId, pool: str, error: VmrunnerError) -> None:
        blamed = self._rollback.blamed(self.settings.pools[pool].image, error)
        self.history.start_failed(
            machine, pool, error.sentence, self._clock(), blamed, self._pass_began
        )

    def _finish(self, action: Finish, outcome: Outcome) -> None:
        """Destroy, settle at the forge, write history.

        Each step can be done again, and the binding keeps what is left to do.
        """
        machine = action.machine
        binding = self._bindings.find(machine)
        if binding and action.if_idle:
            self.forge.disable_runner(binding.scope, binding.credentials.id)
            if self._got_a_job(binding, action):
                return  # while we looked, or no list shows it
        said = self._said(action.seen, binding) if action.seen else []
        failed = action.seen is not None and action.ending.is_failure
        theirs = (Source.CONSOLE, Source.RUNNER)
        console = "\n".join(each.text for each in said if failed and each.source in theirs)
        # For this host's log alone, since it may name the host's files: the forge's is the job's.
        words = self.hypervisor.machines.last_words(machine) if failed else ""
        reason = _with_cause(action, console)
        if binding and not binding.ending:
            binding = replace(
                binding, ending=action.ending.value, reason=reason, worked=_worked(action)
            )
            self._bindings.save(binding)
        log_bytes = self._logbook.keep(str(machine), said) if action.seen else 0
        self.hypervisor.machines.destroy(machine)
        self._addresses.release(machine, self.hypervisor.vacate)
        outcome.gone.add(machine)
        if action.seen and action.seen.dropped:
            self.history.count(Counted.DROPPED_PACKETS, _pool(action.seen), by=action.seen.dropped)
        record = self.history.ended(
            machine,
            action.seen,
            action.ending,
            reason,
            self._clock(),
            binding,
            self._may_have_run(action, binding),
            log_bytes=log_bytes,
        )
        if binding and not self._settle_runner(action, binding, reason, "is gone"):
            return
        outcome.acts.append("destroyed")
        tell = self._log.warning if action.ending.is_failure else self._log.info
        # A domain that vanished took its metadata along.
        pool = record.pool if record else _pool(action.seen)
        tell(
            "machine destroyed",
            machine=machine,
            pool=pool,
            ending=action.ending.value,
            reason=reason,
            **({"qemu": words} if words else {}),
        )
        if action.ending.is_failure and action.ending is not Ending.ABANDONED:
            raise MachineError(f"The machine {machine} was destroyed: {reason}.", console=console)

    def _said(self, seen: Machine, binding: Binding | None) -> list[Entry]:
        """What a machine's guest has said. Whatever can't be read keeps no machine alive."""
        began = seen.metadata.created_at if seen.metadata else 0.0
        if not began and (row := self.history.find(seen.id)):
            began = row.created  # a domain that vanished took its metadata along
        secret = binding.credentials.token if binding else ""
        try:
            machines = self.hypervisor.machines
            return stream.of_guest(machines, seen.id, began, self._clock(), secret)
        except HypervisorError as error:
            self._log.warning("log not read", machine=seen.id, reason=error.sentence)
            return []

    def _settle_runner(self, action: Finish, binding: Binding, reason: str, what: str) -> bool:
        """Have its job ended at the forge, and no runner of it left there; false where that has to
        be tried again. `what` became of the machine, and why.
        """
        found = self._fail_job(action, binding, reason, what)
        if action.has_record:
            left = None if found else self.forge.runner(binding.scope, binding.credentials.id)
            if left and (left.busy or self._had_one_unseen(action, binding)):
                # Its job is in no list just now; without its record nobody could end it.
                return False
            self.forge.delete_runner(binding.scope, binding.credentials.id)
        self._bindings.drop(binding.machine)
        return True

    def _stay(self, machine: Machine, metadata: Metadata) -> None:
        self._show_stay(machine.id, metadata.pool)
        self.hypervisor.machines.note(metadata)

    def _show_stay(self, machine: MachineId, pool: str) -> None:
        """One that can't be told powers off when its runner has ended: then there is nothing to
        keep.
        """
        try:
            self.hypervisor.machines.stay(machine)
        except HypervisorError as error:
            about = {"machine": machine, "pool": pool}
            self._log.warning("machine can't be kept", **about, reason=error.sentence)

    def _hold(self, action: Hold) -> None:
        """Keep it for a person: first its metadata say so, last its binding goes. Until then the
        next pass does all of it again.
        """
        machine, metadata = action.machine.id, action.metadata
        binding = self._bindings.find(machine)
        if action.instead.ending is Ending.JOB_TIMEOUT:
            # Its runner is at work: its guest has a deadline of its own, and ends that then.
            self._show_stay(machine, metadata.pool)
        self.hypervisor.machines.note(metadata)
        self.hypervisor.machines.isolate(machine)
        if metadata.address:
            self.hypervisor.vacate([IPv4Interface(metadata.address).ip])
        self.history.held(metadata, binding, self._clock())
        why = metadata.held_why
        if binding and not self._settle_runner(action.instead, binding, why, "is held"):
            return
        if action.is_failed:
            self.catching.remove([metadata.pool])
        self._log.warning(
            "machine held",
            machine=machine,
            pool=metadata.pool,
            seconds=round(metadata.held_for),
            reason=why,
        )

    def _got_a_job(self, binding: Binding, action: Finish) -> bool:
        """Whether a machine that seemed to be idle has a job, or had one; then that is noted, so
        that the next pass plans with it.
        """
        scope, runner_id = binding.scope, binding.credentials.id
        record = self.forge.runner(scope, runner_id)
        if record is None:
            return action.has_record  # it went with its job: the next pass sees an end
        if action.elsewhere:
            return record.busy  # that its job runs says nothing: another one has it
        asked = self._asked_job(Ask(scope, runner_id, binding.repository, binding.job_key))
        on_it = asked and asked.state is JobState.RUNNING
        if on_it and asked and not self.forge.binds_jobs:
            on_it = asked.runner_id == runner_id
        listed = (binding.job_key or not self.forge.binds_jobs) and self._jobs_on(binding)
        if not (record.busy or on_it or listed):
            return False
        metadata = action.seen.metadata if action.seen else None
        # On Forgejo a job that runs may be another runner's.
        surely = record.busy or not self.forge.binds_jobs
        if metadata and surely and not metadata.running_at:
            at = self._steady() + metadata.offset
            self.hypervisor.machines.note(replace(metadata, running_at=at))
        return True

    def _may_have_run(self, action: Finish, binding: Binding | None) -> Ran:
        """Whether the forge is to be asked for a job of this machine."""
        if binding is None or not binding.is_minted or action.if_idle:
            return Ran.NO
        if binding.worked or _worked(action):
            return Ran.ASKED
        if action.had_none and (action.elsewhere or action.ask or self._is_free(binding)):
            return Ran.NO
        # Forgejo is asked by the job, not by the runner.
        return Ran.UNKNOWN if self.forge.binds_jobs else Ran.ASKED

    def _is_free(self, binding: Binding) -> bool:
        """Whether the forge says of this very runner that it has no job; a list may not have shown
        it.
        """
        with suppress(ForgeError):
            record = self.forge.runner(binding.scope, binding.credentials.id)
            return record is not None and not record.busy
        return False

    def _fail_job(self, action: Finish, binding: Binding, reason: str, what: str) -> bool:
        """End the job that ran on a machine, if there is one, with a line in its log that says what
        became of that. False where that job was not found: of several that may be it the forge
        takes the end of none but its own.
        """
        machine = binding.machine
        line = f"vmrunner: machine {machine} on host {socket.gethostname()} {what}: {reason}"
        # A runner that still has its record may have taken a job since it was looked at.
        jobs = [action.job] if action.job else []
        if not jobs and action.has_record and not action.elsewhere:
            jobs = self._jobs_on(binding)
        is_named = bool(action.job or binding.job_key or not self.forge.binds_jobs)
        found = bool(jobs) and (is_named or not binding.is_minted)
        for job in jobs if binding.is_minted else []:
            try:
                ended = self.forge.fail_job(job, binding.credentials, [line])
            except ForgeNotFound:
                continue  # its repository is gone, and the job with it
            except ForgeTokenUnknown:
                raise  # a new token mends it, and the binding is kept for then
            except ForgeDenied as error:
                # Without the permission the forge's own clean-up has to end it; trying again would
                # not help.
                self._log.error(
                    "job could not be failed",
                    machine=machine,
                    job=job.title,
                    reason=error.sentence,
                    hint=error.hint,
                )
                found = True
                continue
            if ended:
                found = True
                self.history.had(binding, job, self._clock())
                self._log.warning(
                    "job failed at the forge", machine=machine, job=job.title, reason=reason
                )
                break
        return found

    def _ask_for_jobs(self, observed: Observed, outcome: Outcome) -> None:
        """Which jobs ran on the machines that are gone, and how they ended: asked of the forge last
        of all in a pass, for all together.

        What it does not tell now a later pass asks for; nothing waits for the answer.
        """
        records: dict[str, list[Record]] = {}
        for record in self.history.to_ask(self._clock(), _ASKED_AT_ONCE):
            records.setdefault(record.scope, []).append(record)
        for text, mine in records.items():
            scope = Scope.parse(text)
            queue = observed.queues.get(scope) or observed.queues.get(INSTANCE)
            if queue and queue.problem:
                continue  # the forge was just found not to answer
            sought = [
                Sought(record.runner_id, self._labels(record.pool), record.hints) for record in mine
            ]
            try:
                found = self.forge.ended_jobs(scope, sought)
            except (ForgeDenied, ForgeNotFound) as error:
                if isinstance(error, ForgeTokenUnknown):
                    outcome.failures.append(error)
                    continue
                # It may be set right, but not for long asked.
                found = dict.fromkeys(record.runner_id for record in mine)
                outcome.failures.append(error)
            except ForgeError as error:
                self.history.count(Counted.FORGE_ERRORS, label=type(error).__name__)
                outcome.failures.append(error)
                late = (record for record in mine if is_late(record, self._clock()))
                found = dict.fromkeys(record.runner_id for record in late)
            for record in mine:
                if record.runner_id in found:
                    self._tell(
                        self.history.answered(
                            record.machine, found[record.runner_id], self._clock()
                        )
                    )

    def _labels(self, pool: str) -> tuple[str, ...]:
        section = self.settings.pools.get(pool)
        return section.label_names if section else ()

    def _tell(self, record: Record | None) -> None:
        """A line in the log once it is known what ran on a machine, or that this is not to be
        known.
        """
        if record is None:
            return
        about = {"machine": record.machine, "pool": record.pool}
        if record.ran == Ran.UNKNOWN:
            self._log.info(
                "the forge does not tell which job ran on a machine",
                **about,
                made_for=record.made_for,
            )
            return
        took = f"{record.job_seconds:.0f} s" if record.job_seconds is not None else ""
        self._log.info(
            "job ended",
            **about,
            job=record.title,
            verdict=record.verdict,
            took=took,
            sha=record.sha,
        )

    def _had_one_unseen(self, action: Finish, binding: Binding) -> bool:
        """Whether a job ran on it that nobody can name: Forgejo does not tell the job of a runner
        that was registered idle, and of one that is gone says after ten seconds that it is not
        busy. For a day; the forge itself gives such a job up in the end.
        """
        since = self._steady() - binding.bound_at
        is_nameless = self.forge.binds_jobs and not binding.job_key
        return action.ending is Ending.DIED and is_nameless and 0 <= since < _SOUGHT_FOR

    def _jobs_on(self, binding: Binding) -> list[Job]:
        """The job that the forge shows on a binding's runner now.

        Of a runner that was registered idle Forgejo does not tell the job: then all that it might
        have. It can fail none but its own.
        """
        running = self.forge.running(binding.scope)
        if self.forge.binds_jobs:
            return [job for job in running if binding.job_key in ("", job.key)]
        return [job for job in running if job.runner_name == str(binding.machine)]

    def purge(self) -> Purged:
        """Remove all that this manager has made on the libvirt host, but for what others use."""
        with self.lock():
            removed = self.hypervisor.purge()
            self._settle()
            self._addresses.sweep((), self.hypervisor.vacate)
            for machine in self.hypervisor.machines.logged():
                if machine.host == self.host:
                    self.hypervisor.machines.drop_log(machine)
            return removed

    # ---- down ----

    def resume(self, pools: list[str]) -> None:
        """End the drain of these pools."""
        self._drained.remove(pools)

    def down(
        self,
        pools: list[str],
        *,
        now: bool,
        timeout: float | None = None,
        wait: Callable[[float], object] = time.sleep,
    ) -> Outcome:
        """Take these pools down, until `resume`: no new machines, idle ones go at once, busy ones
        when their job is done, or at once with `now`, or after `timeout` seconds. Blocks until none
        is left; the lock is taken for each pass.
        """
        self._drained.add(pools, self._clock())
        return self._empty(pools, Drain.ALL if now else Drain.IDLE, timeout, wait)

    def halt(self, *, wait: Callable[[float], object] = time.sleep) -> Outcome:
        """End every machine at once, since the host shuts down. No pool is drained by it."""
        return self._empty(list(self.settings.pools), Drain.HALT, None, wait)

    def _empty(
        self,
        pools: list[str],
        how: Drain,
        timeout: float | None,
        wait: Callable[[float], object],
    ) -> Outcome:
        total, told, now = Outcome(), False, bool(how.ends_jobs)
        deadline = Deadline(timeout) if timeout is not None else None
        while True:
            late = deadline is not None and deadline.is_over
            drain = dict.fromkeys(pools, Drain.ALL if late else how)
            with self.lock():
                outcome, survey = self.reconcile(drain)
            total.add(outcome)
            mine = [
                machine
                for machine in survey.observed.machines
                if not machine.alive or _pool(machine) in pools
            ]
            if not mine and not any(binding.pool in pools for binding in survey.observed.bindings):
                return total
            if outcome.failures and not outcome.destroyed and (now or late):
                return total
            if (
                not told
                and not now
                and (
                    busy := sum(
                        bool(machine.metadata and machine.metadata.running_at) for machine in mine
                    )
                )
            ):
                self._log.info(
                    f"{busy} machine(s) still run a job; waiting for them (--now does not wait)"
                )
                told = True
            if not outcome.destroyed:
                wait(1.0)


_CAUSES = {
    "Kernel panic": "its guest's kernel panicked",
    "Out of memory: Killed process": "its guest ran out of memory",
}
"""What a console may show of the reason why a machine went."""


def _with_cause(action: Finish, console: str) -> str:
    """Why a machine went, with what the console knows about it.

    A console is the guest's word: it explains, and decides nothing.
    """
    cause = next((cause for said, cause in _CAUSES.items() if said in console), "")
    if not cause or action.ending not in {Ending.DIED, Ending.EARLY, Ending.BOOT_TIMEOUT}:
        return action.reason
    return cause if action.unexplained else f"{cause}; {action.reason}"


def _lent(instances: Iterable[Instance], seen: Iterable[Machine]) -> tuple[Lent, ...]:
    machines = {machine.id: machine for machine in seen}
    return tuple(
        Lent(each, machines.get(each.machine) or Machine(each.machine, alive=False))
        for each in sorted(instances, key=lambda each: (each.owner, each.created_at, each.name))
    )


def _silent(queues: Mapping[Scope, Queue]) -> list[str]:
    """The scopes for which the forge gave no answer; none where the whole instance's lists came."""
    instance = queues.get(INSTANCE)
    if instance and not instance.problem:
        return []
    return [str(scope) for scope, queue in queues.items() if queue.is_silent]


def _worked(action: Finish) -> bool:
    """Whether a machine that ends had a job. Where we delete the record another machine is made for
    that job; then it must have been seen on this one.
    """
    seen = action.seen
    was_seen = action.job is not None or bool(seen and seen.metadata and seen.metadata.running_at)
    began = seen is not None and seen.event(EventKind.RUNNER) is not None
    return was_seen or (began and not action.has_record)


def _until(metadata: Metadata) -> str:
    """Why it is held, and for how long, in words."""
    pool = f"of pool {metadata.pool}"
    return f"{pool}, for {metadata.held_for / 60:.0f} min, as {metadata.held_why}"


def _seconds(span: timedelta | None) -> float:
    return span.total_seconds() if span else 0.0


def _pool(machine: Machine | None) -> str:
    return machine.metadata.pool if machine and machine.metadata else ""


def _distinct(*scopes: Scope | None) -> tuple[Scope, ...]:
    return tuple(dict.fromkeys(scope for scope in scopes if scope))


def open_manager(
    settings: Config,
    log: Log,
    warn: Warn,
    *,
    looks_only: bool = False,
    serves_cache: bool = False,
) -> Manager:
    """The manager that the configuration describes; one that `looks_only` makes no file, and is
    good for `survey`; one that `serves_cache` keeps the cache's process, too. Raises ConfigError,
    HypervisorError.
    """
    token = config.forge_token(settings.forge, warn)
    wrong = settings.forge_fault()
    if isinstance(wrong, ConfigError):  # a name that is not known now may be so in a minute
        warn(f"{wrong.sentence} {wrong.hint}")
    host = open_host(settings, warn)
    history = History(
        settings.history_file,
        warn,
        keep_days=settings.history.keep_days,
        read_only=looks_only,
    )
    return Manager(
        settings,
        host,
        connect(settings.forge, token),
        history,
        log,
        looks_only=looks_only,
        serves_cache=serves_cache,
        workers=_WORKERS if THREADS_MAY_SHARE else 1,
    )
