"""Whose rights an address has: by the machine that has it now, and the job that was told of it."""

from __future__ import annotations

import threading
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from vmrunner.cache import who
from vmrunner.cache.rights import rights
from vmrunner.cache.who import Who
from vmrunner.model.job import JobFacts
from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import Addresses

ONE, TWO = (MachineId("m", serial) for serial in ("00000001", "00000002"))
FACTS = JobFacts("o/r", "refs/heads/main", "push", None, "main", from_fork=False)


class Place:
    """A host's runtime folder, and whoever waits in it moves the clock."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "m.jobs.json"
        # Room for one machine at a time, so that an address comes again.
        self.addresses = Addresses(folder, IPv4Network("10.87.0.0/30"))
        self.now, self.waits = 0.0, 0
        self.later: who.Told = {}
        self.who = Who(
            (self.file, folder / "lab.json"),
            self.addresses,
            {"g": ["o/r", "o/s"]},
            wait=self.wait,
            clock=lambda: self.now,
        )

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.waits += 1
        if self.later and self.now >= 2.0:
            who.write(self.file, self.later)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_the_rights_are_those_of_the_machines_job(place: Place) -> None:
    address = str(place.addresses.take(ONE).ip)
    who.write(place.file, {str(ONE): FACTS})
    assert place.who.of(address) == replace(rights(FACTS, {"g": ["o/r", "o/s"]}), machine=str(ONE))
    assert place.waits == 0
    assert place.file.stat().st_mode & 0o777 == 0o600


def test_what_the_lab_tells_holds_as_well(place: Place, tmp_path: Path) -> None:
    address = str(place.addresses.take(ONE).ip)
    who.write(place.file, {str(TWO): FACTS})
    who.write(tmp_path / "lab.json", {str(ONE): FACTS})
    assert place.who.of(address)
    (tmp_path / "lab.json").unlink()
    assert place.who.of(address) is None
    assert place.waits == 0


def test_an_address_that_comes_again_has_nothing_of_the_machine_before(place: Place) -> None:
    address = place.addresses.take(ONE)
    who.write(place.file, {str(ONE): FACTS})
    assert place.who.of(str(address.ip))
    place.addresses.release(ONE, lambda _: None)
    assert place.addresses.take(TWO) == address
    # No pass has looked since: what was written still tells of the one before alone.
    assert place.who.of(str(address.ip)) is None
    others = replace(FACTS, repository="o/other")
    who.write(place.file, {str(ONE): FACTS, str(TWO): others})
    found = place.who.of(str(address.ip))
    assert found
    assert found.repository == "o/other"


@pytest.mark.parametrize(
    "address",
    ["", "10.87.0.77", "::1", "10.87.0.2/..", "../addresses/10.87.0.2", "010.87.0.2", "x\0"],
)
def test_who_is_no_machine_is_refused_at_once(place: Place, address: str) -> None:
    assert str(place.addresses.take(ONE).ip) == "10.87.0.2"
    who.write(place.file, {str(ONE): FACTS})
    assert place.who.of(address) is None
    assert place.waits == 0


def test_a_job_that_asks_before_it_is_known_waits_for_that(place: Place) -> None:
    address, place.later = str(place.addresses.take(ONE).ip), {str(ONE): FACTS}
    assert place.who.of(address)
    assert 2.0 <= place.now < 2.2
    assert place.who.of(address)
    assert place.now < 2.2


def test_in_vain_it_waits_once(place: Place) -> None:
    address = str(place.addresses.take(ONE).ip)
    assert place.who.of(address) is None
    waited = place.now
    assert waited >= 10
    assert place.who.of(address) is None
    assert place.now == waited
    who.write(place.file, {str(ONE): FACTS})
    assert place.who.of(address), "known after all"


@pytest.mark.parametrize("told", [{}, {str(ONE): None}])
def test_a_job_that_is_over_or_can_not_be_known_does_not_wait(place: Place, told: who.Told) -> None:
    address = str(place.addresses.take(ONE).ip)
    who.write(place.file, {str(ONE): FACTS})
    assert place.who.of(address)
    who.write(place.file, told)
    assert place.who.of(address) is None
    assert place.waits == 0


def test_one_machine_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    go, here = threading.Event(), threading.Semaphore(0)

    def wait(_: float) -> None:
        here.release()
        go.wait(20)

    addresses = Addresses(tmp_path, IPv4Network("10.87.0.0/24"))
    first, second = (str(addresses.take(machine).ip) for machine in (ONE, TWO))
    path = tmp_path / "m.jobs.json"
    asked = Who([path], addresses, {}, wait=wait)
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.append(asked.of(first))) for _ in range(4)]
    for thread in threads:
        thread.start()
        assert here.acquire(timeout=20)
    assert asked.of(first) is None, "a fifth one of this machine is refused at once"
    who.write(path, {str(TWO): FACTS})
    assert asked.of(second)
    who.write(path, {str(ONE): FACTS, str(TWO): FACTS})
    go.set()
    for thread in threads:
        thread.join(20)
    its = replace(rights(FACTS, {}), machine=str(ONE))
    assert answers == [its] * 4, "and those that waited are answered"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"a": {"repository": "o/r"}}', '{"a": 3}', '{"a": {"other": 1}}'],
)
def test_a_file_that_says_something_else_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m.jobs.json"
    path.write_text(text)
    assert not who.reader(path).now()


def test_whose_an_address_is(tmp_path: Path) -> None:
    addresses = Addresses(tmp_path, IPv4Network("10.87.0.0/24"))
    taken = addresses.take(ONE).ip
    assert addresses.owner(taken) == str(ONE)
    assert addresses.owner(IPv4Address("10.87.0.200")) == ""
