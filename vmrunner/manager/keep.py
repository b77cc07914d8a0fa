"""What an admin does with one machine by hand: have it kept, let it go, destroy it.

None of it asks the forge more than it must: it may be the forge that fails.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from vmrunner.errors import WrongCommand
from vmrunner.machine import named, ownership
from vmrunner.manager.manager import Manager, Outcome
from vmrunner.manager.observed import View
from vmrunner.manager.plan import at_once, let_go
from vmrunner.model.machine import Ending, EventKind, Machine, Metadata


def hold(manager: Manager, name: str, span: timedelta) -> Machine:
    """Have a machine kept when its job is over, for so long; one that is held already, for so long
    from now on. Returns it as it is then. Raises WrongCommand where that can't be.
    """
    with manager.lock():
        machine, metadata = _named(manager, name)
        seconds = span.total_seconds()
        if machine.is_held:
            awake = manager.moment().steady + metadata.offset - metadata.held_at
            metadata = replace(metadata, held_for=max(0.0, awake) + seconds)
        elif not metadata.is_bound:
            raise WrongCommand(
                f"The machine {machine.id} has had no job, so there is nothing to keep.",
                "`vmrunner hold --failed POOL` keeps the pool's next machine whose job fails.",
            )
        elif machine.event(EventKind.EXIT) and not metadata.stays:
            raise WrongCommand(
                f"The runner of {machine.id} has ended: it powers off just now.",
                "With `hold_failed` in its pool a machine whose job fails stays.",
            )
        else:
            metadata = replace(metadata, held_for=seconds, stays=True)
        # Its guest would power off by itself after the time that it knows of.
        manager.hypervisor.machines.stay(machine.id)
        manager.hypervisor.machines.note(metadata)
    return replace(machine, metadata=metadata)


def release(manager: Manager, name: str) -> Outcome | None:
    """Destroy a machine that is held, or have one not kept for which somebody had asked that
    (None). Raises WrongCommand where it is neither.
    """
    with manager.lock():
        machine, metadata = _named(manager, name)
        if machine.is_held:
            return manager.end(let_go(machine, "`vmrunner release`"))
        if not metadata.held_for:
            raise WrongCommand(
                f"The machine {machine.id} is not held.", "`vmrunner status` shows which are."
            )
        manager.hypervisor.machines.note(replace(metadata, held_for=0.0))
    return None


def find(manager: Manager, name: str) -> Machine:
    """A machine of our pools, by what stands for it. Raises WrongCommand."""
    return _named(manager, name)[0]


def destroy(manager: Manager, name: str) -> Outcome:
    """Destroy a machine at once; a job that runs on it fails at the forge. Raises WrongCommand."""
    with manager.lock():
        _named(manager, name)
        observed = manager.observe()
        machine, metadata = _named(manager, name)
        ending = Ending.STOPPED if metadata.is_bound else Ending.UNNEEDED
        return manager.end(at_once(machine, ending, "`vmrunner destroy`", View(observed)))


def _named(manager: Manager, name: str) -> tuple[Machine, Metadata]:
    machine = named.find(manager.hypervisor.machines.all(), name)
    metadata = machine.metadata
    if metadata is None:
        raise WrongCommand(
            f"Nothing is known of the machine {machine.id}: it has just come to be, or is damaged.",
            "The next pass destroys it, if it is.",
        )
    if metadata.instance:
        raise WrongCommand(
            f"The machine {machine.id} is GARM's, which made it and ends it.",
            f"There it is called {metadata.instance}.",
        )
    if machine.id in ownership.owned(manager.settings.manager, manager.settings.runtime_dir):
        raise WrongCommand(
            f"The machine {machine.id} belongs to a vmrunner that runs just now.",
            "It goes when that ends.",
        )
    return machine, metadata
