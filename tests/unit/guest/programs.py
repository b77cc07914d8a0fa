"""The programs that run inside machines, as modules."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from vmrunner.resources import folder

GUEST = folder("images") / "guest"
PYTHON = sorted(
    path.name
    for path in GUEST.iterdir()
    if path.is_file() and (path.suffix == ".py" or b"python3" in path.read_bytes()[:40])
)


class Ended(Exception):
    """The machine is off."""


def load(name: str) -> Any:
    """A module of its own, each time. No bytecode stays beside what travels in the wheel."""
    module = ModuleType("guest")
    code = compile((GUEST / name).read_bytes(), str(GUEST / name), "exec")
    exec(code, module.__dict__)  # noqa: S102 — ours
    return module
