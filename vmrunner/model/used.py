"""What a machine took of its host, and what of that an admin should know."""

from __future__ import annotations

from dataclasses import dataclass

_TIGHT = 0.9  # of a guest's memory that was in use
_WAITED = 0.1  # of the time that its processors could have run
_BUSY = 0.9  # of all its processors' time
_SHORTEST = 20.0  # seconds of which a share says something
_LEAST_WAIT = 5.0  # seconds that are worth a word


@dataclass(frozen=True)
class Used:
    """As the hypervisor counts it since the machine was started; all of it only grows."""

    vcpus: int = 0
    memory_mib: int = 0  # its size
    memory_peak_mib: int = 0  # what it took of the host's
    cpu_seconds: float = 0.0
    waited_seconds: float = 0.0  # its processors had work, and the host's had no time for them
    written_bytes: int = 0  # to its disk
    received_bytes: int = 0
    sent_bytes: int = 0


def is_tight(guest_peak_mib: int, memory_mib: int) -> bool:
    """Whether its guest had nearly all of its memory in use; of a guest that told nothing: no."""
    return guest_peak_mib > 0 and guest_peak_mib >= _TIGHT * memory_mib


def has_waited(used: Used, seconds: float) -> bool:
    """Whether it waited long for the host's processors, in so many seconds of its life."""
    could = used.vcpus * seconds
    return used.waited_seconds >= max(_LEAST_WAIT, _WAITED * could) and could > 0


def was_busy(used: Used, seconds: float) -> bool:
    """Whether all its processors had work nearly all the time."""
    return seconds >= _SHORTEST and 0 < _BUSY * used.vcpus * seconds <= used.cpu_seconds


def hints(used: Used, guest_peak_mib: int, seconds: float) -> tuple[str, ...]:
    """What to do about what it lacked, in sentences; `seconds` are those of its job."""
    found = []
    if is_tight(guest_peak_mib, used.memory_mib):
        size = f"{_gib(guest_peak_mib)} of {_gib(used.memory_mib)} GiB"
        found.append(f"{size} of its memory were in use: give the pool more `memory`.")
    if has_waited(used, seconds):
        found.append(
            f"Its processors waited {used.waited_seconds:.0f} s for the host's: fewer machines at "
            "once, or more `cpu_weight`, make it faster."
        )
    elif was_busy(used, seconds):
        found.append(
            f"Its {used.vcpus} processor(s) were busy all the time: more `vcpus` may make it "
            "faster."
        )
    return tuple(found)


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f}"
