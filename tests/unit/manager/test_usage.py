"""Who used how much: finished machines and their jobs, summed up."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.manager.history import History
from vmrunner.manager.record import Record
from vmrunner.manager.usage import By, Usage, usage

DONE = Record(
    "vmr-m-1",
    "small",
    job="build",
    repository="acme/web",
    verdict="success",
    queued=100.0,
    created=101.0,
    bound=101.0,
    job_started=110.0,
    job_ended=140.0,
    destroyed=145.0,
    ending="done",
    ran="yes",
    labels="debian-12,docker",
)


def record(**changes: object) -> Record:
    return Record(**(vars(DONE) | changes))


RECORDS = [
    DONE,
    record(
        machine="vmr-m-2",
        verdict="failure",
        job_started=160.0,
        job_ended=161.0,
        vcpus=2,
        memory_mib=1024,
        memory_peak_mib=900,
        guest_peak_mib=1000,
        cpu_seconds=40.5,
        waited_seconds=30.0,
        written_bytes=12,
        received_bytes=20,
        sent_bytes=4,
    ),
    # Its machine was parked for an hour before it had a job.
    record(machine="vmr-m-3", repository="acme/api", created=50.0, bound=3600.0, destroyed=3700.0),
    # No job ran on it; it was made for one.
    record(
        machine="vmr-m-4",
        **dict.fromkeys(("job", "verdict", "repository", "ran"), ""),
        **dict.fromkeys(("job_started", "job_ended"), 0.0),
        made_for_repository="acme/web",
        ending="boot-timeout",
    ),
    # A warm one that nobody needed.
    Record("vmr-m-5", "big", created=10.0, destroyed=70.0, ending="unneeded", ran="no"),
]


def test_a_repository_has_its_jobs_waits_and_machines() -> None:
    web, api, nobody = usage(RECORDS, By.REPOSITORY)
    assert web == Usage(
        name="acme/web",
        machines=3,
        jobs=2,
        succeeded=1,
        failed=1,
        cancelled=0,
        machine_failures=1,
        waiting_seconds=70.0,
        longest_wait_seconds=60.0,
        job_seconds=31.0,
        machine_seconds=132.0,
        cpu_seconds=40.5,
        written_bytes=12,
        received_bytes=20,
        sent_bytes=4,
        memory_peak_mib=900,
        tight_machines=1,
        waited_machines=1,
    )
    assert (api.name, api.machine_seconds) == ("acme/api", 100.0)
    assert (nobody.name, nobody.machines, nobody.jobs) == ("", 1, 0)


@pytest.mark.parametrize(
    ("by", "machines"),
    [
        (By.ORGANISATION, {"acme": 4, "": 1}),
        (By.POOL, {"small": 4, "big": 1}),
        (By.LABEL, {"debian-12": 4, "docker": 4, "": 1}),
    ],
)
def test_what_it_is_summed_up_by(by: By, machines: dict[str, int]) -> None:
    assert {each.name: each.machines for each in usage(RECORDS, by)} == machines


@pytest.mark.parametrize(
    "changes",
    [
        {"attempt": 2},  # it was queued when its first attempt was
        {"queued": 0.0},
        {"job_started": 0.0},
        {"queued": 115.0},  # the forge's clock was set
    ],
)
def test_a_wait_that_is_not_known_is_none(changes: dict[str, object]) -> None:
    assert usage([record(**changes)], By.POOL)[0].waiting_seconds == 0.0


def test_an_ending_of_a_newer_vmrunner_is_looked_into() -> None:
    assert usage([record(ending="eaten")], By.POOL)[0].machine_failures == 1


def test_only_those_that_ended_since_then(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite", print)
    for each in [*RECORDS, Record("vmr-m-6", "small", created=9.0)]:
        history._write(each)
    assert {each.machine for each in history.ended_since(145.0)} == {
        "vmr-m-1",
        "vmr-m-2",
        "vmr-m-3",
        "vmr-m-4",
    }
    history.close()
