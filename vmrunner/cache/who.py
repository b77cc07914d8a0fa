"""Who asks: the machine behind an address of the machines' network, and what its job may do.

`serve` writes down where the jobs come from that run on machines (`teller.py`). The cache's
process, which jobs talk to, only reads that: it knows neither the forge's token nor libvirt.
"""

from __future__ import annotations

import json
import threading
import time
from collections import ChainMap, Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any

from vmrunner import files
from vmrunner.cache.rights import Rights, rights
from vmrunner.model.job import JobFacts
from vmrunner.network.addresses import Addresses

_PATIENCE = 10.0  # seconds that who asks first waits until its job is known; a second is usual
_LOOK = 0.1  # seconds between two looks
_MOST_WAITING = 4  # requests of one machine that wait so at the same time
_REMEMBERED = 10_000  # machines


Told = Mapping[str, JobFacts | None]
"""Where the job on each machine comes from, by the machine's name; None: it is not to be known."""


def write(path: Path, told: Told) -> None:
    """Raises OSError."""
    plain = {machine: asdict(facts) if facts else None for machine, facts in told.items()}
    files.write_whole(path, json.dumps(plain), 0o600)


def reader(path: Path) -> files.Read[Told]:
    """What was written there last."""
    return files.Read(path, _understood, {})


def _understood(raw: bytes) -> Told:
    plain: dict[str, dict[str, Any] | None] = json.loads(raw)
    if not isinstance(plain, dict):
        raise TypeError("another version's")
    return {machine: JobFacts(**facts) if facts else None for machine, facts in plain.items()}


class Who:
    """Threads may share it. `paths`: of what is told; `groups`: an admin's, by name."""

    def __init__(
        self,
        paths: Sequence[Path],
        addresses: Addresses,
        groups: Mapping[str, Collection[str]],
        *,
        patience: float = _PATIENCE,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._readers, self._addresses, self._groups = list(map(reader, paths)), addresses, groups
        self._patience, self._wait, self._clock = patience, wait, clock
        # Machines whose jobs were told once, or were waited for in vain: nobody waits again.
        self._settled: OrderedDict[str, None] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._lock = threading.Lock()

    def of(self, address: str) -> Rights | None:
        """What the job may do that runs on the machine with this address; None where there is no
        such machine, or no job is known to run on it (any more).

        A job may ask before it is known here: then this takes some seconds, once.
        """
        try:
            machine = self._addresses.owner(IPv4Address(address))
        except AddressValueError:
            return None
        facts = self._facts(machine) if machine else None
        return replace(rights(facts, self._groups), machine=machine) if facts and machine else None

    def _told(self) -> Told:
        return ChainMap(*(dict(each.now()) for each in self._readers))

    def _facts(self, machine: str) -> JobFacts | None:
        if machine not in self._told():
            if not self._may_wait(machine):
                return None
            try:
                until = self._clock() + self._patience
                while machine not in self._told() and self._clock() < until:
                    self._wait(_LOOK)
            finally:
                with self._lock:
                    self._waiting[machine] -= 1
                    self._waiting += Counter()  # without those that are 0
        self._settle(machine)
        return self._told().get(machine)

    def _may_wait(self, machine: str) -> bool:
        with self._lock:
            if machine in self._settled or self._waiting[machine] >= _MOST_WAITING:
                return False
            self._waiting[machine] += 1
            return True

    def _settle(self, machine: str) -> None:
        with self._lock:
            self._settled[machine] = None
            if len(self._settled) > _REMEMBERED:
                self._settled.popitem(last=False)
