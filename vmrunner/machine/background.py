"""A process of its own that makes a snapshot, so that whoever wants one goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def make_snapshot(
    options: Sequence[str], config_path: Path, *, quiet: bool = False
) -> subprocess.Popen[bytes]:
    """`vmrunner snapshot create` with these options. A second one waits for the first, and finds it
    made. It holds none of our files open; `quiet`: its errors go nowhere, else where ours go.
    """
    command = [sys.executable, "-m", "vmrunner.cli.main", "snapshot", "create"]
    return subprocess.Popen(
        [*command, *options, "--config", str(config_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if quiet else None,
        start_new_session=True,
    )
