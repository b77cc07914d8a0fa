"""What one job kept in the cache no other one gets: the service of this host is told of jobs that
no forge has, and their machines ask it for each other's entries.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Any, Protocol

from vmrunner.doctor.isolation.companion import Companion
from vmrunner.doctor.isolation.lab import Cell, Lab
from vmrunner.errors import MachineError
from vmrunner.machine.identity import fresh
from vmrunner.model.job import JobFacts
from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import gateway
from vmrunner.network.policy import pool_policy

_PROGRAM = "probe_cache.py"
_MAIN = "refs/heads/main"
_PATIENCE = 60.0  # seconds until a machine has asked once more
_OWNERS = "vmrunner-isolation-"  # their names begin so; no two runs have the same one
_FULL = "Is the cache full? `vmrunner cache stats` says so."

Tries = list[list[object]]
"""What `probe_cache.py try` is to try."""


class Told(Protocol):
    """What the cache's service is told of machines without a forge."""

    def tell(self, jobs: Mapping[str, JobFacts]) -> None:
        """These run now, by their machines' names."""

    def forget(self, owners: str) -> None:
        """None runs any more, and nothing is kept for owners whose names begin so."""


def cells(lab: Lab, told: Told) -> Iterator[Cell]:
    """All of it; nothing where no pool has a cache. One machine has an entry and goes on asking for
    it, while a job of a fork, one of another repository and a machine without a job try theirs.

    Raises MachineError where a machine does not do its part.
    """
    with_cache = [name for name, pool in lab.settings.pools.items() if lab.settings.has_cache(pool)]
    if with_cache:
        owner = f"{_OWNERS}{secrets.token_hex(4)}"
        told.forget(_OWNERS)  # what a run has left that was killed
        with ExitStack() as stack:
            stack.callback(told.forget, _OWNERS)
            yield from _Cells(lab, told, pool_policy(with_cache[0]), owner).all(stack)


class _Cells:
    def __init__(self, lab: Lab, told: Told, policy: str, owner: str) -> None:
        self._lab, self._told, self._policy, self._owner = lab, told, policy, owner
        self._jobs: dict[str, JobFacts] = {}
        settings = lab.settings
        self._place = f"{gateway(settings.libvirt.subnet)}:{settings.cache.listen_port}"

    def all(self, stack: ExitStack) -> Iterator[Cell]:
        job = JobFacts(f"{self._owner}/one", _MAIN, "push", None, _MAIN, from_fork=False)
        holder, key, text = self._machine(job), f"{self._owner}-key", secrets.token_hex(16)
        forks, fork = (
            f"{self._owner}-fork",
            replace(
                job, ref="refs/pull/1/head", event="pull_request", base_ref=_MAIN, from_fork=True
            ),
        )
        asking = stack.enter_context(
            closing(
                Companion(
                    self._lab,
                    _PROGRAM,
                    *("hold", self._place, key, text, forks),
                    policy=self._policy,
                    machine=holder,
                )
            )
        )
        found: dict[str, Any] = json.loads(asking.first)
        yield Cell("", "cache", "a job's own entry", bool(found["archive"]), should_be_open=True)
        if not found["archive"]:
            return  # nothing could be got from anybody
        address = self._address(holder)
        if not (found["upload"] and address):
            raise MachineError("A job could not begin to save a second entry.", _FULL)
        if self._tried(self._machine(fork), [["save", forks, text]]) != [True]:
            raise MachineError("A pull request's job could not save an entry.", _FULL)
        stranger = replace(job, repository=f"{self._owner}/two")
        yield from self._closed(self._machine(stranger), _a_strangers(found, key, text, address))
        yield from self._closed(fresh(self._lab.settings), _a_nobodys(found, key, text))
        own, of_fork = _next(asking)
        if not own:
            raise MachineError("A job does not find its own entry any more.", _FULL)
        yield Cell("", "cache", "what a fork's pull request kept, for its base's branch", of_fork)
        del self._jobs[str(holder)]
        self._told.tell(self._jobs)
        _next(asking)  # it may have been asked before
        yield Cell("", "cache", "its own entry, after the job", _next(asking)[0])

    def _machine(self, facts: JobFacts) -> MachineId:
        """The name of one that this job runs on."""
        machine = fresh(self._lab.settings)
        self._jobs[str(machine)] = facts
        self._told.tell(self._jobs)
        return machine

    def _address(self, machine: MachineId) -> str:
        addresses = self._lab.settings.addresses()
        every = map(IPv4Address, self._lab.settings.libvirt.subnet)
        return next((str(each) for each in every if addresses.owner(each) == str(machine)), "")

    def _tried(self, machine: MachineId, tries: Tries) -> list[bool]:
        asked = ("try", self._place, json.dumps(tries))
        answers: list[bool] = self._lab.answers(
            _PROGRAM, *asked, policy=self._policy, machine=machine
        )
        return answers

    def _closed(self, machine: MachineId, tries: Mapping[str, Tries]) -> Iterator[Cell]:
        answers = iter(self._tried(machine, [each for some in tries.values() for each in some]))
        for what, some in tries.items():
            got = [next(answers) for _ in some]
            yield Cell("", "cache", what, any(got))


def _a_strangers(found: Mapping[str, Any], key: str, text: str, address: str) -> dict[str, Tries]:
    """What a job of another repository tries."""
    headers = [{name: address} for name in ("X-Forwarded-For", "X-Real-IP", "Client-IP", "Host")]
    headers.append({"Forwarded": f"for={address}"})
    return {
        "another repository's entry, by its key": [["finds", key]],
        "another repository's entry, by how its key begins": [["finds", key[:-1]]],
        "another repository's entry, by its number": [["gives", found["archive"]]],
        "another repository's entry, by headers that name its machine": [
            ["finds", key, each] for each in headers
        ],
        "another repository's entry, from its machine's address": [["believes", address, key]],
        "another repository's upload, by its number": [["part", found["upload"], text]],
    }


def _a_nobodys(found: Mapping[str, Any], key: str, text: str) -> dict[str, Tries]:
    """What a machine tries that has no job."""
    return {
        "an entry, for a machine without a job": [["finds", key], ["gives", found["archive"]]],
        "to keep something, for a machine without a job": [["save", f"{key}-more", text]],
    }


def _next(asking: Companion) -> tuple[bool, bool]:
    """What it finds from now on: its own entry, and the other one."""
    asking.lines()
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if said := asking.lines():
            own, other = json.loads(said[-1])
            return own, other
        time.sleep(0.1)
    raise MachineError("A machine does not ask the cache any more.", "Does it still run?")
