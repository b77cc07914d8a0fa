"""libvirt's daemons in the rig: libvirtd, or one for each task that comes back by its socket
(RIG=modular).
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import closing
from pathlib import Path

import libvirt

from tests.forge.gitea import until

SEPARATE = os.environ.get("VMRUNNER_TEST_RIG") == "modular"
MACHINES = "virtqemud" if SEPARATE else "libvirtd"
NETWORKS = "virtnetworkd" if SEPARATE else "libvirtd"
STORAGE = "virtstoraged" if SEPARATE else "libvirtd"
LOGS = "virtlogd"
ALL = tuple(dict.fromkeys((MACHINES, NETWORKS, STORAGE)))


def pid_of(daemon: str) -> int:
    """Of one that runs, or ran until it was killed."""
    return int(_pid_file(daemon).read_text())


def _pid_file(daemon: str) -> Path:
    return Path(f"/run/{daemon}.pid")


def runs(daemon: str) -> bool:
    """Whether it does."""
    try:
        return bool(Path(f"/proc/{pid_of(daemon)}/cmdline").read_bytes())
    except (OSError, ValueError):
        return False


def answers() -> bool:
    """Whether libvirt can be talked to."""
    try:
        with closing(libvirt.open("qemu:///system")):
            return True
    except libvirt.libvirtError:
        return False


def start(daemon: str) -> None:
    """Start it, if it does not run; one that machines need: returns when libvirt answers."""
    if not runs(daemon) and (daemon == LOGS or not SEPARATE):
        _pid_file(daemon).unlink(missing_ok=True)
        subprocess.run([daemon, "-d"], check=True)
    if daemon != LOGS:  # which may be up before libvirtd is
        until(answers, 60, "libvirt answers", every=0.1)


def restart(daemon: str, how: signal.Signals = signal.SIGTERM) -> None:
    """As an upgrade of libvirt does it, or somebody's `kill`; machines go on.

    libvirtd asked to stop waits for the threads of its machines, sometimes in vain, and then gives
    up after 30 s (virnetdaemon.c).
    """
    pid = pid_of(daemon)
    os.kill(pid, how)
    until(lambda: not Path(f"/proc/{pid}").exists(), 90, f"{daemon} is gone", every=0.1)
    start(daemon)
