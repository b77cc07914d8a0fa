"""The other hosts on this forge, as their runners' records show them, and whose turn a job is.
Pure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from vmrunner.model.job import Claim, Job, JobState, RunnerRecord
from vmrunner.model.machine import MachineId
from vmrunner.model.moment import Moment

TURN = 2.0
"""Seconds that a host has to take a job before the next one may: it looks twice a second."""
SPREAD = 20.0
"""Seconds that a job counts as older for its first host than for the second one: hosts that become
free together, each without knowing of the other, should not both take the oldest.
"""
CLAIM = 120.0
"""Seconds that a claim holds whose runner does not call the forge: it boots, or its host died."""
PROMISE = 180.0
"""Seconds that other hosts' runners may keep a waiting job from this one, in all: to boot and to be
handed it takes less. Whoever made such a runner, and whatever it is called, is not known.
"""
AGAIN = 30.0
"""Seconds of these that each promise costs, however short it was: so they are few."""
REMEMBERED = 7 * 86400.0
"""Seconds that a host counts which was not seen any more. One that died costs one turn."""
_STALE = 10.0  # seconds by which what is remembered of a time may be late: less is written so
_SPREAD_OVER = 500  # waiting jobs, the oldest, that are looked at for this
_EVIDENCE = 200  # waiting jobs, the oldest, that are looked at for hosts that let theirs pass
# What is remembered at most, whatever the forge shows: anybody may register runners there.
MOST_PEERS = 256
MOST_RECORDS = 2_000
_MOST_JOBS = 5_000
_MOST_LABELS = 32  # of a runner, and such sets of a host
_LONGEST = 100  # characters of a name or a label

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Peer:
    """Another host. Times by the steady clock."""

    seen: float
    changed: float  # when one of its records came or went last
    takes: frozenset[Labels] = frozenset()  # labels that its runners have, or that it made one for
    # What its jobs asked for when it had room for no other, or let one pass; until a record goes.
    closed: frozenset[Labels] = frozenset()

    def has_runners_for(self, labels: Collection[str]) -> bool:
        """Whether it was seen to have such runners."""
        wanted = set(labels)
        return any(wanted <= set(each) for each in self.takes)

    def may_take(self, labels: Collection[str]) -> bool:
        """Whether it was seen to have such runners, and is not known to lack the room."""
        return _sorted(labels) not in self.closed and self.has_runners_for(labels)


@dataclass(frozen=True)
class Sighting:
    """A record of another host's."""

    host: str
    first: float  # when it was seen first
    alive: float  # then, or when it was last seen to call the forge
    claim: Claim | None = None


@dataclass(frozen=True)
class Promise:
    """That a waiting job is left to another host's runner."""

    spent: float  # seconds in which it was, before `at`
    at: float  # when that began, or ended
    is_open: bool = True

    def kept(self, now: float) -> float:
        """Seconds until now in which the job was left to others."""
        return self.spent + (now - self.at if self.is_open else 0.0)

    def again(self, now: float) -> Promise:
        """It is left to others now."""
        return self if self.is_open else Promise(self.spent, now)

    def over(self, now: float) -> Promise:
        """It is not any more."""
        if not self.is_open:
            return self
        return Promise(self.spent + max(AGAIN, now - self.at), now, is_open=False)


@dataclass(frozen=True)
class Fleet:
    """What a host remembers of the others. Of one that never saw another it is empty."""

    boot: str = ""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    records: Mapping[int, Sighting] = field(default_factory=dict)
    # Since when each waiting job is known, by its key; only where there are others.
    waiting: Mapping[str, float] = field(default_factory=dict)
    promises: Mapping[str, Promise] = field(default_factory=dict)  # by the keys of such jobs

    def looked_at(
        self,
        me: str,
        moment: Moment,
        records: Iterable[RunnerRecord],
        jobs: Collection[Job],
        old: Collection[str] = (),
    ) -> Fleet:
        """After a look at the forge, which answered for every scope. `old` are the keys of waiting
        jobs that may be gone.
        """
        before, now = self._in(moment), moment.steady
        strangers = before._counted(me, records)
        if not strangers and not before.peers:
            return before
        known = {Claim.of(job).job: _sorted(job.labels) for job in jobs}
        seen = {
            record.id: _sighting(host, record, before.records.get(record.id), now)
            for host, record in strangers
        }
        peers = dict(before.peers)
        for gone in before.records.keys() - seen.keys():
            host = before.records[gone].host
            if host in peers:
                peers[host] = replace(peers[host], changed=now, closed=frozenset())
        for host, record in strangers:
            sighting = seen[record.id]
            wanted = known.get(sighting.claim.job) if sighting.claim else None
            peers[host] = _met(
                peers.get(host), record, sighting, wanted, now, record.id not in before.records
            )
        waiting = sorted((job.id, job.key) for job in jobs if job.state is JobState.WAITING)
        waits = {key: before.waiting.get(key, now) for _, key in waiting[:_MOST_JOBS]}
        after = Fleet(
            moment.boot,
            _last_seen(peers, {host for host, _ in strangers}, now),
            seen,
            waits,
            {
                key: promise
                for key, promise in before.promises.items()
                # One that no list shows may be there again.
                if key in waits or promise.is_open or now - promise.at < PROMISE
            },
        )
        return after._without_lazy(me, [job for job in jobs if job.key not in old], now)

    def promising(self, keys: Collection[str], now: float) -> Fleet:
        """After it was decided that these waiting jobs, and no others, are left to other hosts'
        runners.
        """
        found = {
            key: promise.again(now) if key in keys else promise.over(now)
            for key, promise in self.promises.items()
        }
        for key in sorted(set(keys) - found.keys()):
            found[key] = Promise(0.0, now)
        newest = sorted(found.items(), key=lambda each: (each[1].at, each[0]))[-_MOST_JOBS:]
        return replace(self, promises=dict(newest)) if found else self

    def _counted(self, me: str, records: Iterable[RunnerRecord]) -> list[tuple[str, RunnerRecord]]:
        """Other hosts' records, as many as are remembered: first those that are known, and those of
        known hosts.
        """
        found = [(host, record) for record in records if (host := host_of(record.name, me))]
        if len(found) > MOST_RECORDS or len({host for host, _ in found}) > MOST_PEERS:
            found.sort(
                key=lambda each: (
                    each[1].id not in self.records,
                    each[0] not in self.peers,
                    each[1].id,
                )
            )
            hosts = set(list(dict.fromkeys(host for host, _ in found))[:MOST_PEERS])
            found = [each for each in found if each[0] in hosts][:MOST_RECORDS]
        return found

    def _in(self, moment: Moment) -> Fleet:
        """As it is in this boot of the host: times of another one mean nothing."""
        if self.boot == moment.boot:
            return self
        now = moment.steady
        peers = {host: Peer(now, now, peer.takes) for host, peer in self.peers.items()}
        return Fleet(moment.boot, peers)

    def _without_lazy(self, me: str, jobs: Collection[Job], now: float) -> Fleet:
        """A host that was the first of all for a job, and did not take it in its turn, has no room
        or is no more. The next one is not judged by that job: it may be one that nobody can take.
        """
        claimed = {
            each.claim.job for each in self.records.values() if each.claim and self.holds(each, now)
        }
        waiting = (job for job in jobs if job.key in self.waiting)
        peers = dict(self.peers)
        for job in sorted(waiting, key=lambda job: self.waiting[job.key])[:_EVIDENCE]:
            if Claim.of(job).job in claimed:
                continue
            first = self._able(me, job)[0]
            peer = peers.get(first)
            if peer and now - max(self.waiting[job.key], peer.changed) >= 2 * TURN:
                peers[first] = replace(peer, closed=_few(peer.closed | {_sorted(job.labels)}))
        return replace(self, peers=peers)

    def holds(self, sighting: Sighting, now: float) -> bool:
        """Whether its runner is still to be expected to take a job."""
        return now - sighting.alive < CLAIM + _STALE and now - sighting.first < PROMISE

    def is_overdue(self, job: Job, now: float) -> bool:
        """Whether others had their time for this waiting job, so that this host goes on as if it
        were alone.
        """
        promise = self.promises.get(job.key)
        return promise is not None and promise.kept(now) >= PROMISE

    def order(self, me: str, job: Job) -> Sequence[str]:
        """The hosts that may take this job, the first one first: the same one for all of them."""
        return _ordered(job.key, self._hosts(me, job.labels, with_room=True))

    def _able(self, me: str, job: Job) -> Sequence[str]:
        """As `order`, with those that have no room."""
        return _ordered(job.key, self._hosts(me, job.labels, with_room=False))

    def _hosts(self, me: str, labels: Labels, *, with_room: bool) -> Labels:
        """Those that take jobs with these labels: jobs are many, and what they ask for is not."""
        found = self._by_labels.get((me, labels, with_room))
        if found is None:
            takes = Peer.may_take if with_room else Peer.has_runners_for
            hosts = [host for host, peer in self.peers.items() if takes(peer, labels)]
            found = self._by_labels[me, labels, with_room] = tuple(sorted([me, *hosts]))
        return found

    @cached_property
    def _by_labels(self) -> dict[tuple[str, Labels, bool], Labels]:
        return {}

    def preferred(self, me: str, jobs: Sequence[Job], now: float) -> list[Job]:
        """Jobs, oldest first, as this host should take those that wait.

        Of those that another host comes first for it begins with the newest, which that host takes
        last: so the two meet at one job at most, however often they become free together.
        """
        if not self.peers:
            return list(jobs)
        waiting = [job for job in jobs if job.state is JobState.WAITING]
        others = [job for job in jobs if job.state is not JobState.WAITING]

        def by_age(numbered: tuple[int, Job]) -> tuple[float, int]:
            number, job = numbered
            place = 0 if self.is_overdue(job, now) else self._able(me, job).index(me)
            since = self.waiting.get(job.key, 0.0) // SPREAD * SPREAD
            return since + SPREAD * math.log2(1 + place), -number if place else number

        first = sorted(enumerate(waiting[:_SPREAD_OVER]), key=by_age)
        return [*others, *(job for _, job in first), *waiting[_SPREAD_OVER:]]

    def turn(self, me: str, job: Job) -> float:
        """When this host may take the job, by the steady clock; 0.0: now. As the hosts are bounded,
        that is 16 s after the job was seen at the latest.
        """
        place = self.order(me, job).index(me) if self.peers else 0
        return self.waiting.get(job.key, 0.0) + TURN * math.log2(1 + place) if place else 0.0


def rank(job: Job, host: str) -> str:
    """Rendezvous hashing: of several hosts the one with the least has the job."""
    return _rank(job.key, host)


def _rank(key: str, host: str) -> str:
    return hashlib.sha256(f"{key} {host}".encode("utf-8", "replace")).hexdigest()


@lru_cache(2_000)
def _ordered(key: str, hosts: Labels) -> Labels:
    return tuple(sorted(hosts, key=lambda host: _rank(key, host)))


def _last_seen(peers: Mapping[str, Peer], here: Collection[str], now: float) -> dict[str, Peer]:
    """As many hosts as are remembered, first those that have a record now."""
    found = [(host, peer) for host, peer in peers.items() if now - peer.seen < REMEMBERED]
    found.sort(key=lambda each: (each[0] not in here, -each[1].seen, each[0]))
    return dict(found[:MOST_PEERS])


def host_of(name: str, me: str) -> str:
    """The other host whose record it is; empty for our own, and for what is no machine of ours."""
    machine = MachineId.parse(name) if len(name) <= _LONGEST else None
    if machine is None or not machine.host or (host := called(machine.manager, machine.host)) == me:
        return ""
    return host


def called(manager: str, identity: str) -> str:
    """What the hosts call one of them: several managers may share an identity."""
    return f"{manager}-{identity}"


def _sorted(labels: Collection[str]) -> Labels:
    return tuple(sorted({label for label in labels if len(label) <= _LONGEST})[:_MOST_LABELS])


def _few(labels: Collection[Labels]) -> frozenset[Labels]:
    return frozenset(sorted(labels)[:_MOST_LABELS])


def _sighting(host: str, record: RunnerRecord, known: Sighting | None, now: float) -> Sighting:
    """A claim stays with its record: the forge forgets it when the runner declares itself."""
    if known is None:
        return Sighting(host, now, now, record.claim)
    alive = now if record.online and now - known.alive > _STALE else known.alive
    return Sighting(host, known.first, alive, known.claim or record.claim)


def _met(
    peer: Peer | None,
    record: RunnerRecord,
    sighting: Sighting,
    wanted: Labels | None,
    now: float,
    is_new: bool,
) -> Peer:
    peer = peer or Peer(now, now)
    takes = {_sorted(record.labels)} if record.labels else set()
    closed = peer.closed
    if wanted is not None:
        takes.add(wanted)
        if is_new:
            is_last = sighting.claim is not None and sighting.claim.is_last
            closed = closed | {wanted} if is_last else closed - {wanted}
    return Peer(
        now if now - peer.seen > _STALE else peer.seen,
        now if is_new else peer.changed,
        _few(peer.takes | takes),
        _few(closed),
    )
