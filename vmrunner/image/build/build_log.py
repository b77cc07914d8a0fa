"""The log of one build: its steps, and each program's command and output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmrunner.log import Say


@dataclass(frozen=True)
class BuildLog:
    """A file in an existing folder. `say` is told each step as it begins."""

    path: Path
    say: Say

    def step(self, text: str) -> None:
        """A step begins."""
        self.say(text)
        self.write(f"== {text}\n")

    def write(self, text: str) -> None:
        """Append to the file. A full disk is no error here: what the image itself needs fails."""
        try:
            with self.path.open("a", encoding="utf-8", errors="surrogateescape") as log:
                log.write(text)
        except OSError:
            pass
