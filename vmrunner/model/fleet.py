"""The other hosts on this forge, as their runners' records show them, and whose turn a job is.
Pure.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from vmrunner.model.job import Claim, Job, JobState, RunnerRecord
from vmrunner.model.machine import MachineId
from vmrunner.model.moment import Moment

TURN = 2.0
"""Seconds that a host has to take a job before the next one may: it looks twice a second."""
SPREAD = 60.0
"""Seconds that a job counts as older for its first host than for the second one: hosts that become
free together, each without knowing of the other, should not both take the oldest.
"""
CLAIM = 120.0
"""Seconds that a claim holds whose runner does not call the forge: it boots, or its host died."""
REMEMBERED = 7 * 86400.0
"""Seconds that a host counts which was not seen any more. One that died costs one turn."""
_STALE = 10.0  # seconds by which what is remembered of a time may be late: less is written so
_SPREAD_OVER = 500  # waiting jobs, the oldest, that are looked at for this
_EVIDENCE = 200  # waiting jobs, the oldest, that are looked at for hosts that let theirs pass

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
    alive: float  # when it was seen first, or last seen to call the forge
    claim: Claim | None = None


@dataclass(frozen=True)
class Fleet:
    """What a host remembers of the others. Of one that never saw another it is empty."""

    boot: str = ""
    peers: Mapping[str, Peer] = field(default_factory=dict)
    records: Mapping[int, Sighting] = field(default_factory=dict)
    # Since when each waiting job is known, by its key; only where there are others.
    waiting: Mapping[str, float] = field(default_factory=dict)

    def looked_at(
        self, me: str, moment: Moment, records: Iterable[RunnerRecord], jobs: Collection[Job]
    ) -> Fleet:
        """After a look at the forge, which answered for every scope."""
        before, now = self._in(moment), moment.steady
        strangers = [(host, record) for record in records if (host := host_of(record.name, me))]
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
        waits = {job.key for job in jobs if job.state is JobState.WAITING}
        after = Fleet(
            moment.boot,
            {host: peer for host, peer in peers.items() if now - peer.seen < REMEMBERED},
            seen,
            {key: before.waiting.get(key, now) for key in sorted(waits)},
        )
        return after._without_lazy(me, jobs, now)

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
        waiting = (job for job in jobs if job.state is JobState.WAITING)
        peers = dict(self.peers)
        for job in sorted(waiting, key=lambda job: self.waiting[job.key])[:_EVIDENCE]:
            if Claim.of(job).job in claimed:
                continue
            first = self._able(me, job)[0]
            peer = peers.get(first)
            if peer and now - max(self.waiting[job.key], peer.changed) >= 2 * TURN:
                peers[first] = replace(peer, closed=peer.closed | {_sorted(job.labels)})
        return replace(self, peers=peers)

    def holds(self, sighting: Sighting, now: float) -> bool:
        """Whether what it claims is still to be expected."""
        return now - sighting.alive < CLAIM + _STALE

    def order(self, me: str, job: Job) -> list[str]:
        """The hosts that may take this job, the first one first: the same one for all of them."""
        hosts = [host for host, peer in self.peers.items() if peer.may_take(job.labels)]
        return sorted([me, *hosts], key=lambda host: rank(job, host))

    def _able(self, me: str, job: Job) -> list[str]:
        """As `order`, with those that have no room."""
        hosts = [host for host, each in self.peers.items() if each.has_runners_for(job.labels)]
        return sorted([me, *hosts], key=lambda host: rank(job, host))

    def preferred(self, me: str, jobs: Sequence[Job]) -> list[Job]:
        """Jobs, oldest first, as this host should take those that wait."""
        if not self.peers:
            return list(jobs)
        waiting = [job for job in jobs if job.state is JobState.WAITING]
        others = [job for job in jobs if job.state is not JobState.WAITING]

        def age(job: Job) -> float:
            place = self._able(me, job).index(me)
            return self.waiting.get(job.key, 0.0) + SPREAD * math.log2(1 + place)

        return [*others, *sorted(waiting[:_SPREAD_OVER], key=age), *waiting[_SPREAD_OVER:]]

    def turn(self, me: str, job: Job) -> float:
        """When this host may take the job, by the steady clock; 0.0: now."""
        place = self.order(me, job).index(me) if self.peers else 0
        return self.waiting.get(job.key, 0.0) + TURN * math.log2(1 + place) if place else 0.0


def rank(job: Job, host: str) -> str:
    """Rendezvous hashing: of several hosts the one with the least has the job."""
    return _rank(job.key, host)


@lru_cache(1 << 16)
def _rank(key: str, host: str) -> str:
    return hashlib.sha256(f"{key} {host}".encode()).hexdigest()


def host_of(name: str, me: str) -> str:
    """The other host whose record it is; empty for our own, and for what is no machine of ours."""
    machine = MachineId.parse(name)
    if machine is None or not machine.host or (host := called(machine.manager, machine.host)) == me:
        return ""
    return host


def called(manager: str, identity: str) -> str:
    """What the hosts call one of them: several managers may share an identity."""
    return f"{manager}-{identity}"


def _sorted(labels: Collection[str]) -> Labels:
    return tuple(sorted(set(labels)))


def _sighting(host: str, record: RunnerRecord, known: Sighting | None, now: float) -> Sighting:
    """A claim stays with its record: the forge forgets it when the runner declares itself."""
    if known is None:
        return Sighting(host, now, record.claim)
    alive = now if record.online and now - known.alive > _STALE else known.alive
    return Sighting(host, alive, known.claim or record.claim)


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
        peer.takes | takes,
        closed,
    )
