"""Cloud-init's NoCloud files as an ISO image: a machine's identity and its one-shot credentials."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Sequence
from datetime import timedelta

import pycdlib

from vmrunner.forge import Credentials, Job
from vmrunner.model import MachineId
from vmrunner.render import text

RUNNERS = {"forgejo": "forgejo-runner", "gitea": "gitea-runner"}
"""Which runner program each kind of forge needs; an image's manifest says which one it carries."""


def iso(machine: MachineId, user_data: str) -> bytes:
    """The NoCloud ISO (label `cidata`) with `meta-data`, `network-config` and this `user-data`."""
    files = {
        "meta-data": text("meta-data.j2", name=str(machine)),
        "network-config": text("network-config.j2", mac=machine.mac),
        "user-data": user_data,
    }
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata")
    for number, (name, content) in enumerate(files.items()):
        data = content.encode()
        image.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    return out.getvalue()


def job_script(
    *, kind: str, url: str, ca: str, machine: MachineId, credentials: Credentials, labels: Sequence[str], job: Job, job_timeout: timedelta
) -> str:
    """The user-data that starts the forge's runner for one job. `ca` is PEM text, or empty."""
    runner_file = {
        "id": credentials.id,
        "uuid": credentials.uuid,
        "name": str(machine),
        "token": credentials.token,
        "address": url,
        "labels": [f"{label}:host" for label in labels],
        "ephemeral": True,
    }
    return text(
        "user-data-job.sh.j2",
        kind=kind,
        runner_kind=RUNNERS[kind],
        url=url,
        ca=ca.strip(),
        uuid=credentials.uuid,
        token=credentials.token,
        labels=labels,
        handle=job.handle,
        runner_file=json.dumps(runner_file),
        job_seconds=int(job_timeout.total_seconds()),
    )


def exec_script(command: Sequence[str], timeout: timedelta) -> str:
    """The user-data that runs one command and reports its exit code."""
    return text("user-data-exec.sh.j2", command=shlex.join(command), job_seconds=int(timeout.total_seconds()))
