"""Who used how much: finished machines and their jobs, summed up by repository, organisation, pool
or label. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from vmrunner.manager.record import Ran, Record
from vmrunner.model.by import By
from vmrunner.model.used import has_waited, is_tight


@dataclass(frozen=True)
class Usage:
    """The machines of one repository, or of whatever they are summed up by, and their jobs."""

    name: str  # empty for machines that were for none, such as warm ones without a job
    machines: int
    jobs: int  # of which one ran on a machine
    succeeded: int  # by the forge's verdict; some jobs have none
    failed: int
    cancelled: int
    machine_failures: int  # whose ending somebody should look into
    waiting_seconds: float  # all jobs together, from the queue to their start
    longest_wait_seconds: float
    job_seconds: float  # as the forge shows them
    machine_seconds: float  # from when a machine was a job's, until it was gone
    cpu_seconds: float  # of the host's processors
    written_bytes: int  # to the machines' disks
    received_bytes: int
    sent_bytes: int
    memory_peak_mib: int  # the most that one machine took of the host
    tight_machines: int  # that had nearly all of their memory in use, by their guests' word
    waited_machines: int  # whose processors waited long for the host's


def usage(records: Iterable[Record], by: By) -> list[Usage]:
    """Who took the most machine time first.

    With `LABEL` a job counts for each of its labels.
    """
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        for name in _names(record, by):
            groups[name].append(record)
    found = [_sum(name, group) for name, group in groups.items()]
    return sorted(found, key=lambda each: (-each.machine_seconds, each.name))


def _names(record: Record, by: By) -> Iterable[str]:
    repository = record.repository or record.made_for_repository
    match by:
        case By.REPOSITORY:
            return [repository]
        case By.ORGANISATION:
            return [repository.partition("/")[0]]
        case By.POOL:
            return [record.pool]
        case By.LABEL:
            return sorted(set(record.labels.split(",")))


def _sum(name: str, records: list[Record]) -> Usage:
    worked = [record for record in records if record.job or record.ran == Ran.YES]
    verdicts = [record.verdict for record in worked]
    waits = [_waited(record) for record in worked]
    endings = [record.known_ending for record in records]
    return Usage(
        name=name,
        machines=len(records),
        jobs=len(worked),
        succeeded=verdicts.count("success"),
        failed=verdicts.count("failure"),
        cancelled=verdicts.count("cancelled"),
        machine_failures=sum(ending is None or ending.is_failure for ending in endings),
        waiting_seconds=round(sum(waits), 1),
        longest_wait_seconds=round(max(waits, default=0.0), 1),
        job_seconds=round(sum(record.job_seconds or 0.0 for record in worked), 1),
        machine_seconds=round(sum(record.held_seconds for record in records), 1),
        cpu_seconds=round(sum(record.cpu_seconds for record in records), 1),
        written_bytes=sum(record.written_bytes for record in records),
        received_bytes=sum(record.received_bytes for record in records),
        sent_bytes=sum(record.sent_bytes for record in records),
        memory_peak_mib=max((record.memory_peak_mib for record in records), default=0),
        tight_machines=sum(is_tight(each.guest_peak_mib, each.memory_mib) for each in records),
        waited_machines=sum(has_waited(each.used, each.held_seconds) for each in records),
    )


def _waited(record: Record) -> float:
    """From the queue to its job's start. One that was begun again was queued long before that, so
    it counts as no wait; neither does what nobody saw.
    """
    began = record.job_started or record.running
    is_known = record.queued and began and record.attempt < 2
    return max(0.0, began - record.queued) if is_known else 0.0
