"""What is remembered of the other hosts, and whose turn a job is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vmrunner.manager import fleet as memory
from vmrunner.model.fleet import CLAIM, REMEMBERED, TURN, Fleet, called, host_of, rank
from vmrunner.model.job import Claim, Job, JobState, RunnerRecord
from vmrunner.model.machine import MachineId
from vmrunner.model.moment import Moment

HOSTS = [called("m", f"0000000{number}") for number in range(4)]
ME = HOSTS[0]


def job(number: int, *labels: str) -> Job:
    return Job(number, "job", labels or ("debian-12",), JobState.WAITING, f"{number}.0")


def record(number: int, host: int, claim: Claim | None = None, **fields: object) -> RunnerRecord:
    name = str(MachineId("m", f"{number:08x}", f"0000000{host}"))
    labels = fields.pop("labels", ("debian-12",))
    made = RunnerRecord(number, name, online=False, labels=labels, claim=claim)  # type: ignore[arg-type]
    return replace(made, **fields)  # type: ignore[arg-type]


def moment(steady: float, boot: str = "boot") -> Moment:
    return Moment(steady, steady, boot)


def seen(*jobs: Job, at: float = 100.0, me: str = ME) -> Fleet:
    """Each of the four hosts but this one had a runner, and has none now."""
    records = [record(number, number) for number in range(4)]
    known = Fleet().looked_at(me, moment(at - 50), records, [])
    return known.looked_at(me, moment(at), [], jobs)


def first_of(host: str) -> Job:
    """A job of which this host is the first of all."""
    return next(
        each
        for each in map(job, range(1, 1000))
        if min(HOSTS, key=lambda one: rank(each, one)) == host
    )


def test_all_hosts_compute_the_same_order() -> None:
    jobs = [job(number) for number in range(1, 200)]
    orders = [[seen(me=host).order(host, each) for each in jobs] for host in HOSTS]
    assert all(order == orders[0] for order in orders)
    firsts = Counter(order[0] for order in orders[0])
    assert min(firsts[host] for host in HOSTS) > 25, "each is the first for some of them"


def test_the_first_takes_it_at_once_and_the_others_a_while_later() -> None:
    each = job(1)
    turns = sorted(seen(each, me=host).turn(host, each) for host in HOSTS)
    assert turns == [0.0, 100 + TURN, pytest.approx(100 + TURN * 1.58496), 100 + 2 * TURN]


@pytest.mark.parametrize("push", [1, 7, 40], ids=["one by one", "by seven", "all at once"])
def test_two_that_are_always_free_together_meet_at_the_last_job_at_most(push: int) -> None:
    pair = HOSTS[:2]
    mine = [each for each in map(job, range(1, 200)) if rank(each, ME) < rank(each, HOSTS[1])]
    theirs = [each for each in map(job, range(1, 200)) if each not in mine]
    left = sorted([*mine[:10], *theirs[:30]], key=lambda each: each.id)
    known = {me: Fleet().looked_at(me, moment(50), [record(1, 0), record(2, 1)], []) for me in pair}
    for number in range(0, 40, push):
        for me in pair:
            at = moment(100 + number / 4)
            known[me] = known[me].looked_at(me, at, [], left[: number + push])
    met = 0
    while left:
        taken = {known[me].preferred(me, left, 200)[0].id for me in pair}
        met += len(taken) == 1
        left = [each for each in left if each.id not in taken]
    assert met <= 1


def test_who_never_saw_another_host_remembers_nothing() -> None:
    alone = Fleet().looked_at(ME, moment(1), [record(1, 0)], [job(1)])
    assert (alone.peers, alone.records, alone.waiting) == ({}, {}, {})
    assert alone.turn(ME, job(1)) == 0.0


def test_who_has_no_such_runners_is_not_asked_for_patience() -> None:
    arm = job(1, "arm64")
    known = seen(arm)
    assert list(known.order(ME, arm)) == [ME]
    assert known.turn(ME, arm) == 0.0
    able = known.looked_at(ME, moment(110), [record(9, 2, labels=("arm64", "big"))], [arm])
    assert set(able.order(ME, arm)) == {ME, HOSTS[2]}


def test_a_host_without_room_says_so_until_one_of_its_runners_goes() -> None:
    one, two = job(1), job(2)
    claims = [record(11, 1, Claim.of(one, is_last=True))]
    full = seen(one, two).looked_at(ME, moment(101), claims, [one, two])
    assert HOSTS[1] not in full.order(ME, two)
    again = full.looked_at(ME, moment(130), [], [two])
    assert HOSTS[1] in again.order(ME, two)
    more = full.looked_at(ME, moment(130), [*claims, record(12, 1, Claim.of(two))], [one, two])
    assert HOSTS[1] in more.order(ME, two)


def test_a_host_that_lets_its_job_pass_does_not_count_until_it_is_seen() -> None:
    its = first_of(HOSTS[1])
    waits = seen(its)
    assert HOSTS[1] in waits.looked_at(ME, moment(100 + TURN), [], [its]).order(ME, its)
    dead = waits.looked_at(ME, moment(100 + 2 * TURN), [], [its])
    assert HOSTS[1] not in dead.order(ME, its)
    later = dead.looked_at(ME, moment(5000), [], [])
    assert HOSTS[1] not in later.order(ME, its), "it costs one turn, not one for each job"
    back = later.looked_at(ME, moment(5010), [record(5, 1, Claim.of(its))], [its])
    assert HOSTS[1] in back.order(ME, its)


def test_a_job_that_nobody_can_take_says_nothing_of_the_next_host() -> None:
    its, now = first_of(HOSTS[1]), 100.0
    known = seen(its)
    for _ in range(20):
        now += 10
        known = known.looked_at(ME, moment(now), [], [its])
    assert {host for host, peer in known.peers.items() if peer.closed} == {HOSTS[1]}


def test_a_job_that_is_claimed_is_not_let_pass() -> None:
    its = first_of(HOSTS[1])
    claims, now = [record(9, 2, Claim.of(its))], 101.0
    known = seen(its).looked_at(ME, moment(now), claims, [its])
    assert HOSTS[1] in known.looked_at(ME, moment(now + 60), claims, [its]).order(ME, its)
    given_up = known.looked_at(ME, moment(now + 2 * CLAIM), claims, [its])
    assert HOSTS[1] not in given_up.order(ME, its), "its runner never called"


def test_a_job_that_may_be_gone_says_nothing_of_a_host() -> None:
    """In a long queue nobody has looked at it again."""
    its = first_of(HOSTS[1])
    known = seen(its).looked_at(ME, moment(160), [], [its], {its.key})
    assert HOSTS[1] in known.order(ME, its)
    assert its.key in known.waiting


def test_a_promise_counts_the_time_that_it_is_one_for() -> None:
    its = job(1)
    known, now = seen(its), 100.0
    for _ in range(3):  # 50 s, and not for 1,000
        known = known.promising({its.key}, now)
        now += 50
        assert not known.is_overdue(its, now)
        known = known.looked_at(ME, moment(now), [], [its]).promising(set(), now)
        now += 1_000
    known = known.promising({its.key}, now)
    assert not known.is_overdue(its, now + 29)
    assert known.is_overdue(its, now + 30)
    later = known.promising(set(), now + 31)
    assert later.is_overdue(its, now + 5_000), "as long as it waits"
    after = later.looked_at(ME, moment(now + 5_000), [], [])
    assert not after.promises


def test_a_record_without_a_job_is_not_waited_for_for_ever() -> None:
    its = job(1)
    known = seen(its)
    for now in (101, 200, 280, 282):
        records = [record(9, 2, Claim.of(its), online=True)]
        known = known.looked_at(ME, moment(now), records, [its])
        assert known.holds(known.records[9], now) == (now < 281)


def test_a_claim_stays_with_its_record() -> None:
    """Gitea forgets it when the runner declares itself."""
    its = job(1)
    known = seen(its).looked_at(ME, moment(101), [record(9, 2, Claim.of(its))], [its])
    known = known.looked_at(ME, moment(150), [record(9, 2, online=True)], [its])
    assert known.records[9].claim == Claim.of(its)
    assert known.records[9].alive == 150


def test_after_a_start_of_the_host_times_begin_anew() -> None:
    its = first_of(HOSTS[1])
    known = seen(its, at=1e6).looked_at(ME, moment(3, "another"), [], [its])
    assert known.peers.keys() == set(HOSTS[1:])
    assert known.turn(ME, its) > 3


def test_a_host_is_forgotten_in_the_end() -> None:
    known = seen()
    assert known.looked_at(ME, moment(REMEMBERED), [], []).peers
    assert not known.looked_at(ME, moment(REMEMBERED + 200), [], []).peers


def test_whose_record_it_is() -> None:
    assert host_of("vmr-m-0000000100000001", ME) == HOSTS[1]
    assert host_of("vmr-n-0000000000000001", ME) == called("n", "00000000")
    for own_or_none in ("vmr-m-0000000000000001", "vmr-m-00000001", "builder", ""):
        assert host_of(own_or_none, ME) == ""


def test_what_is_remembered_is_read_as_it_was_written(tmp_path: Path) -> None:
    its = job(1)
    known = seen(its).looked_at(ME, moment(101), [record(9, 2, Claim.of(its, is_last=True))], [its])
    known = known.promising({its.key}, 101)
    memory.save(tmp_path / "fleet.json", known)
    assert memory.load(tmp_path / "fleet.json") == known


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"boot": "", "peers": []}', "null", "\0"])
def test_a_memory_that_says_nothing_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "fleet.json").write_text(content)
    assert memory.load(tmp_path / "fleet.json") == Fleet()


def test_a_claim_is_read_out_of_any_text() -> None:
    for is_last in (False, True):
        claim = Claim.of(job(1), is_last=is_last)
        assert Claim.parse(f"one job's machine; {claim}, made today") == claim
    assert Claim.parse("vmrunner-claim-xyz") is None
    assert Claim.of(job(1)) != Claim.of(job(2))
