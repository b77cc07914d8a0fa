"""The rig's Gitea, as a process that can be stopped and started."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import httpx

from tests.forge.gitea import VERSION, until


class GiteaProcess:
    """The one that runs in this rig. Raises AssertionError where there is none."""

    def __init__(self) -> None:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                words = path.read_bytes().decode(errors="replace").split("\0")[:-1]
                if words[-1:] == ["web"] and words[0].endswith("/gitea"):
                    self._pid, self._words = int(path.parent.name), words
                    return
        raise AssertionError("there is no Gitea")

    def worked(self) -> float:
        """Seconds of a processor that it and those of its children that have ended have taken."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    @property
    def answers(self) -> bool:
        """Whether it does now."""
        with suppress(httpx.HTTPError):
            return httpx.get(VERSION, timeout=2).is_success
        return False

    def kill(self) -> None:
        """As a crash does it."""
        os.kill(self._pid, signal.SIGKILL)

    def stop(self) -> None:
        """As an admin does it: it ends what it is answering. Until it has gone."""
        os.kill(self._pid, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{self._pid}/exe").is_file(), 90, "Gitea has ended")

    def start(self) -> None:
        """Until it answers."""
        with open("/var/log/gitea-again.log", "ab") as log:
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        process.returncode = 0  # it outlives this program, and is nobody's child to wait for
        self._pid = process.pid
        until(lambda: self.answers, 60, "Gitea answers again")
