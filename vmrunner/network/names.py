"""What a manager's network and its bridge are called."""

from __future__ import annotations

import hashlib

from vmrunner.model.machine import PREFIX


def bridge_name(manager: str) -> str:
    """The host's interface on the network; names have 15 characters at most."""
    return f"{PREFIX}{hashlib.sha256(manager.encode()).hexdigest()[:8]}"


def network_name(manager: str) -> str:
    """The network's name; it carries the manager's id like everything of ours."""
    return f"{PREFIX}-{manager}"
