"""What an admin is told of a machine's figures."""

from __future__ import annotations

import pytest

from vmrunner.model.used import Used, hints

SIZE = {"vcpus": 2, "memory_mib": 4096}


@pytest.mark.parametrize(
    ("used", "guest_peak_mib", "seconds", "expected"),
    [
        # The host's figure alone says nothing: a guest fills its memory with what it has read.
        (Used(**SIZE, memory_peak_mib=4096), 0, 100.0, []),
        (Used(**SIZE, memory_peak_mib=4096), 3000, 100.0, []),
        (Used(**SIZE), 3891, 100.0, ["3.8 of 4.0 GiB of its memory were in use: give the pool"]),
        (Used(**SIZE, waited_seconds=19.0), 0, 100.0, []),
        (Used(**SIZE, waited_seconds=20.0), 0, 100.0, ["Its processors waited 20 s for the host"]),
        # A few seconds of a short job are nobody's concern; nor is what happened in no time at all.
        (Used(**SIZE, waited_seconds=4.0), 0, 5.0, []),
        (Used(**SIZE, waited_seconds=9.0, cpu_seconds=9.0), 0, 0.0, []),
        (Used(**SIZE, cpu_seconds=180.0), 0, 100.0, ["Its 2 processor(s) were busy all the time"]),
        (Used(**SIZE, cpu_seconds=179.0), 0, 100.0, []),
        (Used(**SIZE, cpu_seconds=36.0), 0, 18.0, []),
        # More processors are no help where the host has no time for those that there are.
        (Used(**SIZE, cpu_seconds=180.0, waited_seconds=50.0), 0, 100.0, ["Its processors waited"]),
        (Used(), 0, 100.0, []),  # never measured
    ],
)
def test_hints(used: Used, guest_peak_mib: int, seconds: float, expected: list[str]) -> None:
    found = hints(used, guest_peak_mib, seconds)
    assert len(found) == len(expected)
    for each, beginning in zip(found, expected, strict=True):
        assert each.startswith(beginning)
