"""What a pass would do, in words and as records: `vmrunner up --dry-run`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmrunner.cli.shown import Planned
from vmrunner.text import presentable

if TYPE_CHECKING:
    from vmrunner.manager.actions import Action, Finish


def planned(action: Action) -> Planned:
    """An action as a record."""
    from vmrunner.manager.actions import (
        Bind,
        DeleteRunner,
        DropSeed,
        Finish,
        Hold,
        Note,
        Pause,
        Start,
        Stay,
    )

    match action:
        case Start(pool, job):
            why = "" if job else "registered and idle" if action.scope else "warm"
            return Planned("start", pool, "", job.title if job else "", why)
        case Bind(metadata, pool, job):
            return Planned("bind", pool, str(metadata.machine), job.title, "")
        case Finish(machine, ending, reason):
            job = action.job
            why = f"{ending.value}: {reason}" if reason else ending.value
            return Planned("finish", _pool(action), str(machine), job.title if job else "", why)
        case DeleteRunner(scope, runner):
            why = f"{runner.name} of {scope} has no machine"
            return Planned("delete runner", "", "", "", why)
        case Pause(machine):
            return Planned("pause", "", str(machine), "", "")
        case DropSeed(machine):
            return Planned("drop seed", "", str(machine), "", "")
        case Stay(machine, metadata):
            return Planned("stay", metadata.pool, str(machine.id), "", "")
        case Hold(machine, metadata):
            return Planned("hold", metadata.pool, str(machine.id), "", metadata.held_why)
        case Note(machine, metadata, job):
            title = job.title if job else ""
            return Planned("note", metadata.pool, str(machine.id), title, machine.phase.value)


def _pool(action: Finish) -> str:
    seen = action.seen.metadata if action.seen else None
    return seen.pool if seen else ""


def said(each: Planned) -> str:
    """In a line."""
    words = {
        "start": "start a machine of pool {pool}",
        "bind": "give {machine} of pool {pool} a runner",
        "finish": "destroy {machine}",
        "delete runner": "delete a runner at the forge",
        "pause": "pause {machine}, which has rehearsed",
        "stay": "tell {machine} to stay when its job is over",
        "hold": "hold {machine}",
        "drop seed": "delete the seed that {machine} has read",
        "note": "note that {machine} is in phase {reason}",
    }[each.action].format(pool=each.pool, machine=each.machine, reason=each.reason)
    job = f" for {presentable(each.job)}" if each.job and each.action != "note" else ""
    why = f": {presentable(each.reason)}" if each.reason and each.action != "note" else ""
    return f"would {words}{job}{why}"
