"""What `top` knows, and what keys make of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from vmrunner.cli.shown import LentShown, MachineShown, Status
from vmrunner.model.entry import Entry
from vmrunner.model.pace import Pace
from vmrunner.model.used import Used


@dataclass(frozen=True)
class Today:
    """Jobs that are over since midnight."""

    jobs: int
    failed: int
    waiting_seconds: float  # all together, from the queue to their start
    longest_wait_seconds: float


@dataclass(frozen=True)
class Seen:
    """What a look has found."""

    status: Status
    used: Mapping[str, Used] = field(default_factory=dict)  # by machine's name
    paces: Mapping[str, Pace] = field(default_factory=dict)
    today: Today | None = None  # None: the history can't be read
    at: float = 0.0  # unix seconds
    problem: str = ""  # why there is none newer


@dataclass(frozen=True)
class Log:
    """The last lines of a machine; `problem`: why there are not more."""

    machine: str = ""
    entries: tuple[Entry, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """A machine, whoever has made it."""

    name: str
    pool: str
    phase: str
    age_seconds: float | None
    job: str
    is_held: bool = False
    is_in_trouble: bool = False


def rows(status: Status) -> list[Row]:
    """All machines, those of one pool together."""
    ours = [_row(pool.name, machine) for pool in status.pools for machine in pool.machines]
    lent = [_lent(pool.pool, machine) for pool in status.garm for machine in pool.machines]
    return ours + lent


def _row(pool: str, machine: MachineShown) -> Row:
    held = machine.held
    job = f"held, {round(held.left_seconds / 60)} min more: {held.why}" if held else machine.job
    return Row(
        machine.name,
        pool,
        machine.phase,
        machine.age_seconds,
        machine.trouble or job,
        held is not None,
        bool(machine.trouble),
    )


def _lent(pool: str, machine: LentShown) -> Row:
    job = machine.trouble or f"GARM's {machine.instance}"
    return Row(
        machine.name, pool, machine.phase, machine.age_seconds, job, False, bool(machine.trouble)
    )


class Wish(Enum):
    """What a key asks for beyond the screen."""

    QUIT = auto()
    HOLD = auto()
    RELEASE = auto()
    DESTROY = auto()


@dataclass(frozen=True)
class State:
    """What the person has chosen."""

    machine: str = ""  # empty: the first one
    log_of: str = ""  # a machine whose log is shown
    asked_of: str = ""  # a machine: whether it is to be destroyed
    is_paused: bool = False
    said: str = ""  # what came of the last key


_SEQUENCES = {b"\x1b[A": "k", b"\x1bOA": "k", b"\x1b[B": "j", b"\x1bOB": "j"}
_ESCAPE = "\x1b"


def keys(typed: bytes) -> list[str]:
    """The keys that were struck; an arrow is the letter that does the same. What is no key of ours
    is one that does nothing.
    """
    found: list[str] = []
    rest = typed
    while rest:
        known = next((each for each in _SEQUENCES if rest.startswith(each)), None)
        if known:
            found.append(_SEQUENCES[known])
            rest = rest[len(known) :]
        elif rest.startswith(b"\x1b") and len(rest) > 1:
            return [*found, ""]  # some other key's sequence, and nobody knows where it ends
        else:
            found.append(chr(rest[0]))
            rest = rest[1:]
    return found


def struck(state: State, typed: bytes, names: list[str]) -> tuple[State, Wish | None, str]:
    """What becomes of it; a wish, and for which machine. `names`: those that are shown."""
    for key in keys(typed):
        state, wish, machine = _struck(state, key, names)
        # Whoever pastes something answers no question with it.
        if wish or state.asked_of:
            return state, wish, machine
    return state, None, ""


def _struck(state: State, key: str, names: list[str]) -> tuple[State, Wish | None, str]:
    if state.asked_of:
        machine, state = state.asked_of, replace(state, asked_of="")
        if key == "y":
            return replace(state, said=f"destroying {machine} …"), Wish.DESTROY, machine
        return replace(state, said="Nothing was done."), None, ""
    state = replace(state, said="")
    if key == "q":
        return state, Wish.QUIT, ""
    if key == "p":
        return replace(state, is_paused=not state.is_paused), None, ""
    if key == _ESCAPE:
        return replace(state, log_of=""), None, ""
    chosen = choice(state, names)
    if not chosen:
        return state, None, ""
    state = replace(state, machine=chosen)
    if key in ("j", "k"):
        at = names.index(chosen) + (1 if key == "j" else -1)
        chosen = names[min(max(at, 0), len(names) - 1)]
        log_of = chosen if state.log_of else ""
        return replace(state, machine=chosen, log_of=log_of), None, ""
    if key == "l":
        return replace(state, log_of="" if state.log_of else chosen), None, ""
    if key == "d":
        return replace(state, asked_of=chosen), None, ""
    if key == "h":
        return replace(state, said=f"holding {chosen} …"), Wish.HOLD, chosen
    if key == "r":
        return replace(state, said=f"releasing {chosen} …"), Wish.RELEASE, chosen
    return state, None, ""


def choice(state: State, names: list[str]) -> str:
    """The machine that keys are for; empty where there is none."""
    return state.machine if state.machine in names else next(iter(names), "")
