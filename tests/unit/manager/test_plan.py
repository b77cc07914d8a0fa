"""Decisions: what is over goes, what waits gets a machine or a reason, and nobody else's machine is
touched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vmrunner.manager.actions import (
    Action,
    Bind,
    DeleteRunner,
    DropSeed,
    Finish,
    Note,
    Pause,
    Plan,
    Reason,
    Start,
    WaitKind,
)
from vmrunner.manager.observed import (
    Ask,
    Backoff,
    Desired,
    Drain,
    HostLimits,
    Observed,
    Queue,
    Told,
)
from vmrunner.manager.plan import CANCEL_GRACE, NO_LIFE, plan
from vmrunner.model.binding import Binding
from vmrunner.model.job import Credentials, Job, JobState, RunnerRecord, Scope
from vmrunner.model.machine import (
    Capacity,
    Ending,
    EventKind,
    GuestEvent,
    Machine,
    MachineId,
    Metadata,
    Shape,
)

NOW = 1_000_000.0
SCOPE = Scope.parse("instance")
POOL = Desired(
    "p",
    (SCOPE,),
    frozenset({"debian-12"}),
    Shape(2, 2048, 20),
    2,
    100,
    50,
    1000,
    30,
    image="image/1",
)
HOST = Capacity(
    memory_mib=64 * 1024, cores=16, used_memory_mib=0, used_vcpus=0, free_disk_mib=1 << 20
)
LIMITS = HostLimits(
    cpu_overcommit=4.0, memory_reserve_mib=1024, disk_floor_mib=5 * 1024, disk_guard_mib=2 * 1024
)
WARM = "up seed ready"


def machine(
    serial: str,
    *,
    age: float = 10,
    job: str = "1.0",
    runner: int = 1,
    pool: str = "p",
    events: str = "",
    alive: bool = True,
    files: str = "qcow2",
    running: float = 0,
    over: float = 0,
    trouble: str = "",
    scope: str = "instance",
) -> Machine:
    """A machine that was made for a job; warm with `runner=0`.

    Ages and the like are seconds ago.
    """
    identity = MachineId("m", serial * 8)
    metadata = None
    if alive:
        metadata = Metadata(
            identity,
            pool,
            "image/1",
            NOW - age,
            bound_at=NOW - age if runner else 0,
            running_at=NOW - running if running else 0,
            over_at=NOW - over if over else 0,
            runner_id=runner,
            scope=scope if runner else "",
            job_key=job if runner else "",
            seen_key="seen" if running else "",
        )
    names = tuple(f"{identity}.{suffix}" for suffix in files.split())
    return Machine(
        identity,
        alive,
        metadata,
        tuple(GuestEvent(EventKind(kind), 1.0) for kind in events.split()),
        names,
        trouble,
    )


def record(of: Machine | str, online: bool = True, number: int = 1) -> RunnerRecord:
    return RunnerRecord(number, of if isinstance(of, str) else str(of.id), online)


def waiting(
    number: int, handle: str = "", repository: str = "", labels: tuple[str, ...] = ("debian-12",)
) -> Job:
    return Job(
        number,
        f"job {number}",
        labels,
        JobState.WAITING,
        handle or f"{number}.0",
        handle,
        repository,
    )


def running(number: int, on: Machine, handle: str = "") -> Job:
    job = waiting(number, handle)
    return replace(
        job,
        state=JobState.RUNNING,
        key=handle or f"{number}.1",
        runner_name="" if handle else str(on.id),
    )


def bound(of: Machine, number: int = 1, job: str = "", ending: str = "") -> Binding:
    return Binding(
        of.id, "p", SCOPE, job, Credentials(number, "u", "t"), ending, "because" if ending else ""
    )


def decide(
    machines: list[Machine],
    jobs: list[Job] | None = None,
    records: list[RunnerRecord] | None = None,
    *,
    binds_jobs: bool = False,
    pools: list[Desired] | None = None,
    bindings: list[Binding] | None = None,
    host: Capacity = HOST,
    held: dict[str, float] | None = None,
    started: tuple[str, ...] = (),
    problem: str = "",
    may_throttle: bool = False,
    truth: dict[int, Told] | None = None,
) -> Plan:
    """What is asked for by its id, a runner's, is as `truth` has it, and else as it is listed."""
    queue = Queue(tuple(jobs or ()), tuple(records or ()), problem)
    observed = Observed(
        tuple(machines),
        {SCOPE: queue},
        binds_jobs,
        host,
        tuple(bindings or ()),
        frozenset(started),
        held or {},
        may_throttle,
    )
    wanted = [POOL] if pools is None else pools
    decided = plan("m", wanted, LIMITS, observed, NOW)
    if not decided.asks:
        return decided
    told = {ask: (truth or {}).get(ask.runner_id) or as_listed(ask, queue) for ask in decided.asks}
    decided = plan("m", wanted, LIMITS, replace(observed, asked=told), NOW)
    assert not decided.asks, "nothing is asked twice"
    return decided


def as_listed(ask: Ask, queue: Queue) -> Told:
    """The lists were whole."""
    return Told(
        next((record for record in queue.runners if record.id == ask.runner_id), None),
        next((job for job in queue.jobs if job.key == ask.job_key), None),
    )


def actions(*arguments: object, **options: object) -> list[Action]:
    return list(decide(*arguments, **options).actions)  # type: ignore[arg-type]


def endings(found: list[Action]) -> list[Ending]:
    return [action.ending for action in found if isinstance(action, Finish)]


def test_a_job_that_its_runner_knows_nothing_of() -> None:
    """The forge's answer was lost on its way: the job runs there, and nobody is on it."""
    at_work = machine("a", age=900, running=400, events=f"{WARM} runner")
    job, heard = running(1, at_work), record(at_work)
    silent = replace(heard, is_silent=True)
    assert actions([at_work], [job], [heard]) == []
    (note,) = actions([at_work], [job], [silent])
    assert isinstance(note, Note)
    assert note.metadata.silent_at == NOW
    assert actions([machine("a", age=30, running=20, events="runner")], [job], [silent]) == [], (
        "it may have nothing to say yet"
    )

    def since(seconds: float) -> Machine:
        assert at_work.metadata
        return replace(at_work, metadata=replace(at_work.metadata, silent_at=NOW - seconds))

    assert actions([since(NO_LIFE - 1)], [job], [silent]) == []
    (again,) = actions([since(NO_LIFE - 1)], [job], [heard])
    assert isinstance(again, Note)
    assert again.metadata.silent_at == 0
    (found,) = actions([since(NO_LIFE + 1)], [job], [silent])
    assert isinstance(found, Finish)
    assert (found.ending, found.job) == (Ending.DIED, job)
    assert "told the forge nothing of its job for 300 s" in found.reason


# ---- new machines ----


def test_a_machine_for_each_waiting_job_up_to_max() -> None:
    jobs = [waiting(number) for number in (1, 2, 3)]
    found = decide([], jobs)
    assert list(found.actions) == [
        Start("p", jobs[0], SCOPE, SCOPE),
        Start("p", jobs[1], SCOPE, SCOPE),
    ]
    assert [wait.reason for wait in found.waits] == [
        Reason(WaitKind.STARTED, "a machine is started for it now")
    ] * 2 + [Reason(WaitKind.AT_MAX, "pool p is at its max of 2")]


def test_where_jobs_are_not_bound_a_free_machine_counts_for_any_job() -> None:
    free, busy = machine("a", job="7.0"), machine("b", runner=2, running=5)
    jobs = [waiting(1), waiting(2), running(9, busy)]
    found = actions(
        [free, busy], jobs, [record(free), record(busy, number=2)], pools=[replace(POOL, max=9)]
    )
    assert found == [Start("p", jobs[1], SCOPE, SCOPE)]


def test_where_jobs_are_bound_each_has_its_own_machine() -> None:
    mine = machine("a", job="h2")
    jobs = [waiting(1, "h1"), waiting(2, "h2")]
    assert actions([mine], jobs, [record(mine)], binds_jobs=True) == [
        Start("p", jobs[0], SCOPE, SCOPE)
    ]


def test_a_warm_machine_gets_the_job_and_another_takes_its_place() -> None:
    warm = machine("a", runner=0, events=WARM)
    job = waiting(1)
    assert warm.metadata
    found = actions([warm], [job], pools=[replace(POOL, warm=1)])
    assert found == [Bind(warm.metadata, "p", job, SCOPE, SCOPE), Start("p")]


def test_a_job_waits_for_a_warm_machine_that_boots() -> None:
    booting = machine("a", runner=0, age=12)
    found = decide([booting], [waiting(1)], pools=[replace(POOL, warm=1, max=1, typical_boot=20)])
    assert (found.actions, found.waits[0].reason) == (
        (),
        Reason(WaitKind.BOOTING, f"machine {booting.id} is booting (12 s of ~20 s)"),
    )


def test_a_runner_is_registered_where_only_the_jobs_repository_is_served() -> None:
    job = waiting(1, repository="o/r")
    assert actions([], [job]) == [Start("p", job, Scope.parse("repository:o/r"), SCOPE)]
    bound_job = waiting(1, "h1", repository="o/r")
    assert actions([], [bound_job], binds_jobs=True) == [Start("p", bound_job, SCOPE, SCOPE)], (
        "a handle is better"
    )


def test_one_repository_with_many_jobs_does_not_starve_another() -> None:
    jobs = [waiting(number, repository="o/big") for number in range(1, 501)] + [
        waiting(900, repository="o/small")
    ]
    found = actions([], jobs, pools=[replace(POOL, max=2)])
    assert [action.job.id for action in found if isinstance(action, Start) and action.job] == [
        1,
        900,
    ]


def test_pools_of_one_priority_share_and_a_higher_one_comes_first() -> None:
    jobs = [waiting(number, labels=("a",)) for number in range(1, 20)] + [
        waiting(number, labels=("b",)) for number in range(20, 40)
    ]
    a, b = (
        replace(POOL, pool="a", labels=frozenset({"a"}), max=99),
        replace(POOL, pool="b", labels=frozenset({"b"}), max=99),
    )
    host = replace(HOST, memory_mib=1024 + 4 * 2048)
    share = [
        action.pool
        for action in actions([], jobs, pools=[a, b], host=host)
        if isinstance(action, Start)
    ]
    assert share == ["a", "b", "a", "b"]
    first = [
        action.pool
        for action in actions([], jobs, pools=[a, replace(b, priority=1)], host=host)
        if isinstance(action, Start)
    ]
    assert first == ["b"] * 4


def test_idle_machines_make_room_for_waiting_jobs() -> None:
    other = replace(POOL, pool="q", labels=frozenset({"q"}), warm=2)
    warm = machine("a", runner=0, pool="q", events=WARM)
    host = replace(HOST, memory_mib=1024 + 2048, used_memory_mib=2048)
    found = decide([warm], [waiting(1)], pools=[POOL, other], host=host)
    assert endings(list(found.actions)) == [Ending.UNNEEDED]
    assert found.waits[0].reason.kind is WaitKind.ROOM_IS_MADE
    hopeless = replace(host, memory_mib=2048)
    assert endings(actions([warm], [waiting(1)], pools=[POOL, other], host=hopeless)) == [], (
        "nobody goes in vain"
    )


def test_registered_idle_machines_are_kept_up() -> None:
    assert actions([], pools=[replace(POOL, register_idle=1)]) == [Start("p", None, SCOPE, SCOPE)]
    idle = machine("a", job="", age=9999, events="up seed runner")
    assert actions([idle], [], [record(idle)], pools=[replace(POOL, register_idle=1)]) == []
    assert endings(actions([idle], [], [record(idle)])) == [Ending.UNNEEDED]


@pytest.mark.parametrize(
    ("pool", "host", "job", "kind", "said"),
    [
        (
            POOL,
            HOST,
            waiting(1, labels=("debian-11",)),
            WaitKind.NO_LABEL,
            "no pool has the label debian-11 (nearest: debian-12)",
        ),
        (
            POOL,
            replace(HOST, memory_mib=2048),
            waiting(1),
            WaitKind.NO_MEMORY,
            "the host lacks 1024 MiB of memory",
        ),
        (
            POOL,
            replace(HOST, cores=1, used_vcpus=3),
            waiting(1),
            WaitKind.NO_VCPUS,
            "the host lacks 1 vCPUs",
        ),
        (
            POOL,
            replace(HOST, free_disk_mib=4 * 1024),
            waiting(1),
            WaitKind.NO_DISK,
            "the storage pool is 1024 MiB below the floor of free space",
        ),
        (
            replace(POOL, drain=Drain.IDLE),
            HOST,
            waiting(1),
            WaitKind.DRAINED,
            "pool p is drained (`vmrunner up p` ends that)",
        ),
        (
            replace(POOL, backoff=Backoff(3, NOW + 40, "no boot")),
            HOST,
            waiting(1),
            WaitKind.BACKED_OFF,
            "pool p is backed off for 40 s after 3 failures (last: no boot)",
        ),
        (
            POOL,
            HOST,
            replace(waiting(1), state=JobState.BLOCKED),
            WaitKind.BLOCKED,
            "blocked at the forge, by `needs` or a concurrency group",
        ),
        (
            replace(POOL, scopes=(Scope.parse("user"),)),
            HOST,
            waiting(1),
            WaitKind.NO_SCOPE,
            "no pool with its labels has its scope",
        ),
        (
            POOL,
            HOST,
            waiting(1, labels=()),
            WaitKind.UNLABELLED,
            "it has no runs-on, and no pool has takes_unlabelled",
        ),
        (
            replace(POOL, takes_unlabelled=True, scopes=(Scope.parse("user"),)),
            HOST,
            waiting(1, labels=()),
            WaitKind.NO_SCOPE,
            "no pool with takes_unlabelled has its scope",
        ),
        (
            replace(POOL, takes_unlabelled=True),
            HOST,
            replace(waiting(1, labels=()), is_caller=True),
            WaitKind.CALLER,
            "without runs-on it looks like the call of a reusable workflow, which needs no "
            "machine; the jobs in there get theirs",
        ),
    ],
)
def test_every_waiting_job_has_its_reason(
    pool: Desired, host: Capacity, job: Job, kind: WaitKind, said: str
) -> None:
    found = decide([], [job], pools=[pool], host=host)
    assert (found.actions, [wait.reason for wait in found.waits]) == ((), [Reason(kind, said)])


STRICT = replace(POOL, pool="a-strict", labels=frozenset({"strict"}), max=9)
DOCKER = replace(POOL, pool="docker", labels=frozenset({"docker"}), max=9, takes_unlabelled=True)


@pytest.mark.parametrize("binds_jobs", [False, True])
def test_only_a_pool_that_says_so_takes_jobs_without_labels(binds_jobs: bool) -> None:
    """`a-strict` comes first by its name, and `docker` has the more machines."""
    one = waiting(1, "h1" if binds_jobs else "", labels=())
    busy = machine("b", pool="docker", job="9.1", running=5)
    found = actions(
        [busy],
        [one, running(9, busy, "9.1" if binds_jobs else "")],
        [record(busy)],
        pools=[STRICT, DOCKER],
        binds_jobs=binds_jobs,
    )
    assert found == [Start("docker", one, SCOPE, SCOPE)]


def test_a_warm_machine_of_a_strict_pool_is_not_for_a_job_without_labels() -> None:
    """However high its priority is; and it is still there for the pool's own jobs."""
    warm = machine("a", runner=0, pool="a-strict", events=WARM)
    pools = [replace(STRICT, warm=1, priority=9), replace(DOCKER, takes_unlabelled=False)]
    found = decide([warm], [waiting(1, labels=())], pools=pools)
    assert (found.actions, [wait.reason.kind for wait in found.waits]) == (
        (),
        [WaitKind.UNLABELLED],
    )
    mine = waiting(2, labels=("strict",))
    bind = actions([warm], [waiting(1, labels=()), mine], pools=[replace(STRICT, warm=1)])[0]
    assert isinstance(bind, Bind)
    assert bind.job == mine


def test_a_full_pool_is_the_reason_of_its_jobs_without_labels() -> None:
    found = decide([], [waiting(1, labels=())], pools=[STRICT, replace(DOCKER, max=0)])
    assert (found.actions, [wait.reason.kind for wait in found.waits]) == ((), [WaitKind.AT_MAX])


def test_an_idle_machine_is_not_believed_to_get_a_caller() -> None:
    """The registered one that is there is the other job's."""
    idle = machine("a", job="", events="up seed runner", pool="docker")
    caller = replace(waiting(1, labels=()), is_caller=True)
    job = waiting(2, labels=("docker",))
    found = decide([idle], [caller, job], [record(idle)], pools=[replace(DOCKER, register_idle=1)])
    assert [(wait.job.id, wait.reason.kind) for wait in found.waits] == [
        (1, WaitKind.CALLER),
        (2, WaitKind.RUNNER_STARTS),
    ]


@pytest.mark.parametrize(
    ("job", "may_throttle"),
    [
        (waiting(1, labels=()), False),
        (replace(waiting(1, labels=()), is_caller=True), False),
        (waiting(1, labels=("docker",)), True),
    ],
    ids=["without labels", "a caller", "a forge that throttles"],
)
def test_a_job_that_is_not_handed_out_blames_no_pool(job: Job, may_throttle: bool) -> None:
    idle = machine("a", age=151, pool="docker", events="up seed runner")
    pools = [DOCKER]
    (finish,) = actions([idle], [job], [record(idle)], pools=pools, may_throttle=may_throttle)
    assert isinstance(finish, Finish)
    assert (finish.ending, finish.ending.blames_pool) == (Ending.HELD_BACK, False)


def test_a_job_that_was_held_back_is_tried_again_later() -> None:
    found = decide([], [waiting(1, "h1")], binds_jobs=True, held={"h1": NOW + 30})
    assert (found.actions, "tried again in 30 s" in found.waits[0].reason.said) == ((), True)


def test_a_second_pool_serves_what_the_first_cannot() -> None:
    second = replace(POOL, pool="q")
    assert [
        action.pool
        for action in actions([], [waiting(1)], pools=[replace(POOL, max=0), second])
        if isinstance(action, Start)
    ] == ["q"]


# ---- what is over ----


def test_a_job_that_is_seen_first_is_noted() -> None:
    mine = machine("a", events="up seed runner")
    (note,) = actions([mine], [running(1, mine)], [record(mine)])
    assert isinstance(note, Note)
    assert (note.metadata.running_at, note.job) == (NOW, running(1, mine))


def test_seeds_go_once_they_are_read() -> None:
    cold = machine("a", events="up seed", files="qcow2 seed.iso")
    assert actions([cold], [waiting(1)], [record(cold)]) == [DropSeed(cold.id)]
    unread = machine("a", events="up", files="qcow2 seed.iso")
    assert actions([unread], [waiting(1)], [record(unread)]) == []
    warm = machine("a", events=f"{WARM} runner", files="qcow2 seed.iso")
    assert actions([warm], [waiting(1)], [record(warm)]) == [DropSeed(warm.id)]
    bound_just_now = machine("a", events=WARM, files="qcow2 seed.iso")
    assert actions([bound_just_now], [waiting(1)], [record(bound_just_now)]) == [], (
        "what it said is about the seed before"
    )


def test_a_machine_that_powered_off_after_its_job_is_done() -> None:
    dead = machine("a", alive=False, events="up seed runner exit")
    assert endings(actions([dead], bindings=[bound(dead)])) == [Ending.DONE]


def test_a_machine_that_went_while_its_job_ran_fails_that_job() -> None:
    dead = machine("a", alive=False, events="up seed runner", trouble="its QEMU process died")
    job = running(1, dead)
    (finish,) = actions([dead], [job], [record(dead)], bindings=[bound(dead)])
    assert finish == Finish(
        dead.id, Ending.DIED, "its QEMU process died", dead, job, has_record=True
    )


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ("up seed exit", "its runner ended (exit ?) before it took a job"),
        ("up", "it went before its runner took a job"),
    ],
)
def test_a_machine_that_went_before_a_job_came_blames_the_pool(events: str, reason: str) -> None:
    dead = machine("a", alive=False, events=events)
    (finish,) = actions([dead], [], [record(dead)], bindings=[bound(dead)])
    assert isinstance(finish, Finish)
    assert (finish.ending, finish.reason, finish.ending.blames_pool) == (Ending.EARLY, reason, True)


def test_without_an_answer_of_the_forge_a_dead_machine_waits_for_its_verdict() -> None:
    dead = machine("a", alive=False)
    assert actions([dead], bindings=[bound(dead)], problem="no answer") == []
    assert endings(actions([dead], problem="no answer")) == [Ending.EARLY], (
        "one without a runner does not"
    )
    live = machine("b", age=9999)
    assert actions([live], problem="no answer") == []
    (finish,) = actions([machine("b", running=1001)], problem="no answer")
    assert isinstance(finish, Finish)
    assert finish.has_record, "nobody knows, so it is looked after"


def test_a_pool_whose_machine_just_failed_starts_no_other_at_once() -> None:
    gone = machine("a", alive=False, files="qcow2 console")
    kinds = [
        type(action)
        for action in actions(
            [gone], [waiting(1)], [record(gone)], bindings=[bound(gone)], started=(str(gone.id),)
        )
    ]
    assert kinds == [Finish], "its panicked guest said nothing"
    vanished = replace(gone, metadata=None)
    kinds = [
        type(action)
        for action in actions(
            [vanished],
            [waiting(1)],
            [record(gone)],
            bindings=[bound(gone)],
            started=(str(gone.id),),
        )
    ]
    assert kinds == [Finish], "it vanished while it was looked at"
    kinds = [
        type(action)
        for action in actions([gone], [waiting(1)], [record(gone)], bindings=[bound(gone)])
    ]
    assert kinds == [Finish, Start], "it never began"


def test_a_binding_without_a_machine_is_settled_with_the_reason_that_it_keeps() -> None:
    gone = machine("a", alive=False)
    job = running(1, gone)
    (finish,) = actions([], [job], [record(gone)], bindings=[bound(gone, ending="job-timeout")])
    assert finish == Finish(gone.id, Ending.JOB_TIMEOUT, "because", None, job, has_record=True)


def test_a_record_without_a_machine_goes_and_those_of_others_stay() -> None:
    mine, others = (
        record("vmr-m-0123abcd"),
        ["vmr-n-0123abcd", "vmr-m-x", "builder", "vmr-m-0123abcd-old"],
    )
    records = [mine, *(record(name, number=number) for number, name in enumerate(others, 2))]
    assert actions([], [], records) == [DeleteRunner(SCOPE, mine)]


def test_a_second_record_of_a_live_machine_goes() -> None:
    mine = machine("a", runner=2, events="up seed runner")
    lost = record(mine, number=1)
    assert actions([mine], [waiting(1)], [lost, record(mine, number=2)]) == [
        DeleteRunner(SCOPE, lost)
    ]


def clone(parked_at: float) -> Machine:
    """A warm one, paused."""
    booted = machine("a", runner=0)
    assert booted.metadata
    return replace(
        booted,
        is_paused=True,
        metadata=replace(booted.metadata, snapshot="key", parked_at=parked_at),
    )


@pytest.mark.parametrize(
    ("seen", "online", "ending"),
    [
        (machine("a", age=101), False, Ending.BOOT_TIMEOUT),
        (machine("a", age=99), False, None),
        (machine("a", age=151, events="up seed runner"), False, Ending.PICKUP_TIMEOUT),
        (machine("a", age=151, events="up seed runner"), True, Ending.PICKUP_TIMEOUT),
        (machine("a", age=149, events="up seed runner"), False, None),
        (machine("a", age=51, events=f"{WARM} runner"), False, Ending.PICKUP_TIMEOUT),
        (machine("a", age=101, runner=0), True, Ending.BOOT_TIMEOUT),
        (machine("a", age=9999, runner=0, events="up seed"), True, Ending.BOOT_TIMEOUT),
        (machine("a", age=2000, running=1001), True, Ending.JOB_TIMEOUT),
        (machine("a", trouble="its disk could not be written"), True, Ending.EARLY),
        (machine("a", running=5, trouble="its disk could not be written"), True, Ending.DIED),
        (replace(machine("a", events=WARM), is_paused=True), True, Ending.ABANDONED),
        (replace(machine("a", runner=0, age=9999), is_paused=True), True, Ending.BOOT_TIMEOUT),
        (clone(parked_at=0.0), True, Ending.ABANDONED),
        (clone(parked_at=NOW), True, None),
        (machine("a", runner=0, events=WARM, pool="nowhere"), True, Ending.UNNEEDED),
    ],
)
def test_deadlines(seen: Machine, online: bool, ending: Ending | None) -> None:
    pools = [replace(POOL, warm=1)]
    records = [record(seen, online)] if seen.is_bound else []
    assert endings(actions([seen], [waiting(1)], records, pools=pools)) == (
        [ending] if ending else []
    )


def test_a_parked_clone_is_paused_when_it_has_rehearsed() -> None:
    pools = [replace(POOL, warm=1)]
    still = replace(clone(parked_at=NOW - 1), is_paused=False)
    done = replace(still, events=(GuestEvent(EventKind.REHEARSED, NOW),))
    assert actions([still], pools=pools) == []
    assert actions([done], pools=pools) == [Pause(done.id)]
    assert actions([replace(done, is_paused=True)], pools=pools) == []
    assert still.metadata
    endless = replace(still, metadata=replace(still.metadata, parked_at=NOW - 61))
    assert actions([endless], pools=pools) == [Pause(endless.id)]
    (bind,) = [
        action for action in actions([still], [waiting(1)], pools=pools) if isinstance(action, Bind)
    ]
    assert bind.metadata == still.metadata, "a job does not wait for it"


def test_the_newest_machine_goes_before_the_storage_is_full() -> None:
    old, new, gone = (
        machine("a", age=50, running=40),
        machine("b", age=20, runner=2, running=10),
        machine("c", alive=False, runner=0),
    )
    jobs, records = [running(1, old), running(2, new)], [record(old), record(new, number=2)]
    room, tight = replace(HOST, free_disk_mib=2 * 1024), replace(HOST, free_disk_mib=2 * 1024 - 1)
    bindings = [bound(old, 1), bound(new, 2)]
    assert endings(actions([old, new], jobs, records, bindings=bindings, host=room)) == []
    finish = next(
        action
        for action in actions([old, new], jobs, records, bindings=bindings, host=tight)
        if isinstance(action, Finish)
    )
    said = "the host's storage has 2047 MiB left, and it was the newest machine"
    assert finish == Finish(new.id, Ending.NO_ROOM, said, new, jobs[1], has_record=True)
    found = actions([old, gone], jobs[:1], records[:1], bindings=bindings[:1], host=tight)
    assert endings(found) == [Ending.NO_ROOM, Ending.EARLY], (
        "one of which only files are left frees nothing"
    )
    warm = machine("d", age=5, runner=0, events=WARM)
    assert endings(actions([warm], host=tight, pools=[replace(POOL, warm=1)])) == [Ending.NO_ROOM]


def test_one_that_goes_anyway_may_free_enough() -> None:
    late, new = machine("a", age=2000, running=1001), machine("b", age=20, runner=2, running=10)
    jobs, records = [running(1, late), running(2, new)], [record(late), record(new, number=2)]
    found = actions(
        [late, new],
        jobs,
        records,
        bindings=[bound(late, 1), bound(new, 2)],
        host=replace(HOST, free_disk_mib=0),
    )
    assert endings(found) == [Ending.JOB_TIMEOUT]


def test_a_runner_that_lost_its_job_to_another_is_not_a_failure() -> None:
    idle = machine("a", age=151, events="up seed runner")
    (finish,) = actions([idle], [], [record(idle)])
    assert isinstance(finish, Finish)
    assert (finish.ending, finish.if_idle) == (Ending.UNNEEDED, True)


def test_a_runner_that_was_disabled_makes_room_at_once() -> None:
    """A pass that drained its pool was killed after it had disabled the runner, and the pool works
    again.
    """
    idle = machine("a", age=5, events="up seed runner")
    finish, start = actions([idle], [waiting(1)], [replace(record(idle), disabled=True)])
    assert isinstance(finish, Finish)
    assert (finish.ending, finish.if_idle) == (Ending.UNNEEDED, True)
    assert isinstance(start, Start)


def test_a_job_that_the_forge_holds_back_is_not_a_failure() -> None:
    idle = machine("a", age=151, job="h1", events="up seed runner")
    assert endings(actions([idle], [waiting(1, "h1")], [record(idle)], binds_jobs=True)) == [
        Ending.HELD_BACK
    ]


def test_a_machine_whose_job_is_over_may_power_off_by_itself() -> None:
    done = machine("a", events="up seed runner")
    (note,) = actions([done])
    assert isinstance(note, Note)
    assert note.metadata.over_at == NOW
    assert actions([machine("a", events="up seed runner", over=CANCEL_GRACE - 1)]) == []
    assert endings(actions([machine("a", events="up seed runner", over=CANCEL_GRACE + 1)])) == [
        Ending.CANCELLED
    ]
    assert (
        endings(actions([machine("a", events="up seed runner exit", over=CANCEL_GRACE + 1)])) == []
    )
    assert endings(actions([machine("a", events="up seed runner exit", over=31)])) == [
        Ending.TEARDOWN_TIMEOUT
    ]


def test_a_bound_machine_whose_job_is_neither_waiting_nor_running_goes() -> None:
    booting, served = machine("a", job="h1"), machine("b", job="h2", runner=2)
    found = actions(
        [booting, served],
        [waiting(2, "h2")],
        [record(booting), record(served, number=2)],
        binds_jobs=True,
    )
    assert endings(found) == [Ending.CANCELLED]


def test_a_clock_that_was_set_back_begins_the_deadlines_anew() -> None:
    (note,) = actions([machine("a", age=-7200, running=-7200)])
    assert isinstance(note, Note)
    assert (note.metadata.created_at, note.metadata.running_at) == (NOW, NOW)


def test_down_destroys_the_idle_and_with_now_the_busy() -> None:
    busy, idle, warm = (
        machine("a", running=5, events="up seed runner"),
        machine("b", runner=2),
        machine("c", runner=0, events=WARM),
    )
    jobs, records = [running(1, busy), waiting(2)], [record(busy), record(idle, number=2)]
    gone = {
        action.machine
        for action in actions(
            [busy, idle, warm], jobs, records, pools=[replace(POOL, drain=Drain.IDLE)]
        )
        if isinstance(action, Finish)
    }
    assert gone == {idle.id, warm.id}
    assert (
        len(
            endings(
                actions([busy, idle, warm], jobs, records, pools=[replace(POOL, drain=Drain.ALL)])
            )
        )
        == 3
    )


def test_warm_machines_of_an_old_image_and_too_many_of_them_go() -> None:
    warm = machine("a", runner=0, events=WARM)
    assert endings(actions([warm], pools=[replace(POOL, warm=1, image="image/2")])) == [
        Ending.UNNEEDED
    ]
    assert endings(actions([warm], pools=[replace(POOL, warm=0)])) == [Ending.UNNEEDED]
    assert actions([warm], pools=[replace(POOL, warm=1)]) == []


@pytest.mark.parametrize(("new", "old"), [("tools/2", "tools/1"), ("tools/1", ""), ("", "tools/1")])
def test_machines_without_a_job_go_when_there_are_other_tools(new: str, old: str) -> None:
    """A version that is promoted, a pool that has some now, or none any more."""
    for number, pool in ((0, replace(POOL, warm=1)), (1, replace(POOL, register_idle=1))):
        seen = machine("a", runner=number, job="", events=WARM, age=1000)
        assert seen.metadata
        seen = replace(seen, metadata=replace(seen.metadata, tools=old))
        records = [record(seen)] if number else []
        for tools, gone in ((old, []), (new, [Ending.UNNEEDED])):
            pools = [replace(pool, tools=tools)]
            assert endings(actions([seen], [], records, pools=pools)) == gone


# ---- room for a job that no idle machine can take ----

MINE = waiting(1, repository="o/r")


def elsewhere(serial: str, number: int) -> Machine:
    """A registered one of another repository."""
    return machine(
        serial, job="", runner=number, age=9999, events="up seed runner", scope="repository:o/other"
    )


@pytest.mark.parametrize(
    ("change", "host", "kind"),
    [
        ({}, HOST, WaitKind.ROOM_IS_MADE),
        ({"needs_snapshot": True}, HOST, WaitKind.AT_MAX),
        ({"backoff": Backoff(1, NOW + 9, "")}, HOST, WaitKind.BACKED_OFF),
        ({}, replace(HOST, free_disk_mib=4 * 1024), WaitKind.AT_MAX),
        ({}, replace(HOST, used_memory_mib=64 * 1024 + 1), WaitKind.AT_MAX),
    ],
)
def test_an_idle_machine_goes_only_where_the_job_gets_its_place(
    change: dict[str, Any], host: Capacity, kind: WaitKind
) -> None:
    idle = elsewhere("a", 1)
    pool = replace(POOL, register_idle=1, max=1, **change)
    found = decide([idle], [MINE], [record(idle)], pools=[pool], host=host)
    assert [wait.reason.kind for wait in found.waits] == [kind]
    assert endings(list(found.actions)) == [Ending.UNNEEDED] * (kind is WaitKind.ROOM_IS_MADE)


def test_a_pool_above_its_max_gives_up_no_machine_in_vain() -> None:
    """Its max was lowered: with one of them gone it would be full still."""
    idle, busy = elsewhere("a", 1), [machine("b", runner=2, running=5), machine("c", runner=3)]
    jobs = [MINE, running(2, busy[0]), running(3, busy[1])]
    records = [record(each, number=number) for number, each in enumerate([idle, *busy], start=1)]
    for most, gone in ((2, 0), (3, 1)):
        pool = replace(POOL, register_idle=1, max=most)
        found = decide([idle, *busy], jobs, records, pools=[pool])
        assert len(endings(list(found.actions))) == gone


def test_no_more_machines_make_room_than_the_pool_has_places() -> None:
    """Two jobs wait, and one may be served by this pool."""
    other = replace(POOL, pool="q", labels=frozenset({"q"}), register_idle=2)
    idle = [replace_pool(elsewhere("a", 1), "q"), replace_pool(elsewhere("b", 2), "q")]
    records = [record(each, number=number) for number, each in enumerate(idle, start=1)]
    host = replace(HOST, memory_mib=1024 + 4096, used_memory_mib=4096)
    jobs = [MINE, waiting(2, repository="o/r")]
    for most in (1, 2):
        pools = [replace(POOL, max=most), other]
        found = decide(idle, jobs, records, pools=pools, host=host)
        assert len(endings(list(found.actions))) == most


def replace_pool(of: Machine, pool: str) -> Machine:
    assert of.metadata
    return replace(of, metadata=replace(of.metadata, pool=pool))


def test_a_warm_machine_that_boots_for_a_job_is_replaced_when_it_has_it() -> None:
    """The job may be cancelled until then."""
    boots = machine("a", runner=0)
    pool = replace(POOL, warm=1)
    assert actions([boots], [waiting(1)], pools=[pool]) == []
    bind, start = actions([machine("a", runner=0, events=WARM)], [waiting(1)], pools=[pool])
    assert (type(bind), type(start)) == (Bind, Start)


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({}, True),
        ({"needs_snapshot": True}, False),
        ({"backoff": Backoff(1, NOW + 9, "")}, False),
        ({"backoff": Backoff(1, NOW - 9, "")}, True),
        ({"image": ""}, False),
    ],
)
def test_an_outdated_idle_machine_stays_until_a_new_one_can_start(
    change: dict[str, Any], gone: bool
) -> None:
    idle = machine("a", job="", age=9999, events="up seed runner")
    pool = replace(POOL, register_idle=1, **{"image": "image/2"} | change)
    assert endings(actions([idle], [], [record(idle)], pools=[pool])) == [Ending.UNNEEDED] * gone
