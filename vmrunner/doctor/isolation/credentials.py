"""What a machine is given is worth one job: a runner is made at the real forge, for a label that no
job has, and its credentials tried.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack

from vmrunner.doctor.isolation.lab import Cell, Lab
from vmrunner.forge.seam import Forge
from vmrunner.machine import ownership
from vmrunner.machine.identity import fresh
from vmrunner.model.job import Credentials, Scope
from vmrunner.network.forge import forge_host

_WHILE_IT_LIVES = {
    "declare": ("a runner's own, while it exists", True),
    "register": ("a runner's, to register another one", False),
    "api": ("a runner's, at the forge's API", False),
}
_AFTER_ITS_JOB = {
    "declare": "a runner's own, after its job",
    "fetch": "a runner's, to fetch another job after its own",
    "single": "a runner's, to fetch a job by an empty handle after its own",
}


def cells(lab: Lab, forge: Forge, scope: Scope) -> Iterator[Cell]:
    """From inside a machine while the runner exists, and from inside another one after it was
    deleted, as it is with its job.

    Raises ForgeError where no runner can be made or deleted, ConfigError where its name can't be
    claimed.
    """
    label, name = f"vmrunner-isolation-{secrets.token_hex(4)}", fresh(lab.settings)
    with ExitStack() as stack:
        # The service's passes delete records with such a name that nobody has.
        stack.enter_context(ownership.owning(lab.settings.runtime_dir, name))
        credentials = forge.create_runner(scope, str(name), [label])
        stack.callback(forge.delete_runner, scope, credentials.id)
        answered = _ask(lab, credentials, label)
    for call, (what, may) in _WHILE_IT_LIVES.items():
        yield Cell("", "credentials", what, answered[call], may)
    answered = _ask(lab, credentials, label)
    for call, what in _AFTER_ITS_JOB.items():
        yield Cell("", "credentials", what, answered[call])


def _ask(lab: Lab, credentials: Credentials, label: str) -> dict[str, bool]:
    """Which calls the forge answers."""
    section = lab.settings.forge
    hosts = [f"{at.address} {forge_host(section.url)}" for at in lab.forge()]
    told = {
        "url": section.url,
        "uuid": credentials.uuid,
        "token": credentials.token,
        "label": label,
        "hosts": hosts[:1],
        "ca": section.ca(),
    }
    answered: dict[str, bool] = lab.answers("probe_credentials.py", json.dumps(told))
    return answered
