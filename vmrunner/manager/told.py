"""The records of one machine put together, by who has no libvirt, too. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from vmrunner.manager.record import Record
from vmrunner.model import entry
from vmrunner.model.entry import Entry, Source


def joined(record: Record, kept: Sequence[Entry], guests: Sequence[Entry]) -> list[Entry]:
    """A machine's records, of what the logbook has `kept` and what its guest says while it
    lives.
    """
    if guests:  # of what is kept the manager's lines alone can be its
        kept = [each for each in kept if each.source is Source.MANAGER]
    by_source = [[each for each in (*kept, *guests) if each.source is source] for source in Source]
    return entry.in_order(phases(record), *by_source)


def phases(record: Record) -> list[Entry]:
    """What became of a machine and its job, by the clocks of the host and the forge."""
    job = record.title or record.made_for_title
    ending = " ".join(part for part in (record.ending, record.reason) if part)
    told: Sequence[tuple[float, str]] = (
        (record.queued, f"job queued: {job}"),
        (record.created, f"created for pool {record.pool}, from {record.image or 'no image'}"),
        (record.overlay, "its disk is there"),
        (record.started, "started"),
        (record.bound if record.bound != record.created else 0.0, "given its job"),
        (record.running, f"the forge shows a job on it: {record.title or job}"),
        (record.job_started, "the job began, by the forge's clock"),
        (record.job_ended, f"the job ended: {record.verdict or 'no verdict'}"),
        (record.destroyed, f"destroyed: {ending}"),
    )
    return sorted(
        (Entry(at, Source.PHASE, text) for at, text in told if at), key=lambda each: each.at
    )
