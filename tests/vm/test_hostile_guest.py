"""A guest that floods what it can write to: the host's disk stays bounded, and the neighbour does not notice."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.ground import STORAGE, Ground

pytestmark = pytest.mark.vm
SECONDS = int(os.environ.get("VMRUNNER_TEST_FLOOD_SECONDS", "10"))
MACHINE = ("exec", "--image", "test-gitea", "--memory", "1GiB", "--")
# virtlogd keeps 2 MiB and three older files of each port, and swaps them while we look.
BOUND = 2 * 5 * (2 << 20)
FLOOD = f"""
line=$(head -c 60 /dev/zero | tr '\\0' a)
timeout {SECONDS} yes "$line" >/dev/ttyS0 &
timeout {SECONDS} yes "up 1 $line" >/dev/virtio-ports/org.vmrunner.events &
timeout {SECONDS} yes "$line" >/flood &
wait
"""


def taken(ground: Ground) -> int:
    """Bytes of the host's disk that its console and its reports take."""
    total = 0
    for path in (STORAGE / ground.manager).glob(f"vmr-{ground.manager}-*"):
        if ".console" in path.name or ".events" in path.name:
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:  # swapped meanwhile
                continue
    return total


def test_a_flood(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    ground.run("snapshot", "create", "--image", "test-gitea", "--memory", "1GiB")
    environment = {"VMRUNNER_CONFIG": str(ground.config), "PATH": os.environ["PATH"]}
    with subprocess.Popen(ground.command(*MACHINE, "sh", "-c", FLOOD), env=environment, stderr=subprocess.DEVNULL) as flooding:
        most = 0
        while flooding.poll() is None:
            most = max(most, taken(ground))
            neighbour = ground.run(*MACHINE, "echo", "undisturbed")
            assert neighbour.stdout == "undisturbed\n"
            time.sleep(0.2)
    print(f"{SECONDS} s: {most >> 10} KiB at most")
    assert flooding.returncode == 0
    assert 0 < most <= BOUND
    assert taken(ground) == 0, "and nothing of it is left"
