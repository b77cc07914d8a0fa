"""Cloud-init's NoCloud files as an ISO image: a machine's identity and its one-shot credentials."""

from __future__ import annotations

import io
import json
import secrets
import shlex
import time
from collections.abc import Sequence
from datetime import timedelta
from ipaddress import IPv4Interface, IPv6Interface

import pycdlib

from vmrunner.addresses import gateway
from vmrunner.errors import ConfigError
from vmrunner.forge import Credentials
from vmrunner.forge.addresses import forge_host
from vmrunner.label import Label
from vmrunner.model import MachineId
from vmrunner.render import source, text

SIZE = 1 << 20
"""Bytes of every seed: a guest that waits for another one on the same disk has seen the disk's size already."""
_BACKSTOP = timedelta(minutes=5)  # the host's own deadline comes first: it can say why
_NO_FORGE, _NO_CREDENTIALS = "http://127.0.0.1:9", Credentials(0, "00000000-0000-0000-0000-000000000000", "rehearsal")
_REHEARSAL_RESTS = 2  # seconds before it begins: the clone is often made when the one before it was just given a job, which starts now
_REHEARSED_RUNNER = 3  # seconds after which it is ended, should it not give up by itself
RUNNERS = {"forgejo": "forgejo-runner", "gitea": "gitea-runner"}
"""Which runner program each kind of forge needs; an image's manifest says which one it carries."""


def further_runner(name: str, kind: str) -> str:
    """Where an image has the runner that its recipe calls `name`."""
    return f"/usr/local/lib/vmrunner/runners/{name}/{kind}"


def iso(
    machine: MachineId, user_data: str, address: IPv4Interface | None, ipv6: IPv6Interface | None = None, *, rehearsal: bool = False
) -> bytes:
    """The NoCloud ISO (label `cidata`) with `meta-data`, `network-config` and this `user-data`, padded to SIZE.

    Without an address the machine has no network yet; `ipv6` is what it has beside one. Two ISOs never begin alike. After a `rehearsal`
    the machine waits for another seed.
    """
    network = text(
        "network-config.j2",
        mac=machine.mac,
        address=address,
        gateway=address and gateway(address.network),
        ipv6=ipv6,
        gateway6=ipv6 and gateway(ipv6.network),
    )
    files = {
        "meta-data": text(
            "meta-data.j2",
            name=str(machine),
            machine_id=secrets.token_hex(16),
            entropy=secrets.token_hex(64),
            now=time.time(),
            rehearsal=rehearsal,
        ),
        "network-config": network,
        "user-data": user_data,
    }
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident="cidata", app_ident_str=secrets.token_hex(16))
    for number, (name, content) in enumerate(files.items()):
        data = content.encode()
        image.add_fp(io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}")
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    if len(out.getvalue()) > SIZE:
        raise ConfigError(f"The seed of {machine} is bigger than {SIZE >> 10} KiB.", "Is forge.ca_file a whole bundle of certificates?")
    return out.getvalue().ljust(SIZE, b"\0")


def job_script(
    *,
    kind: str,
    url: str,
    ca: str,
    forge_address: str = "",
    machine: MachineId,
    credentials: Credentials,
    labels: Sequence[Label],
    handle: str,
    job_timeout: timedelta,
    runner: str = "",
    registry_mirror: str = "",
    proxy: str = "",
    no_proxy: Sequence[str] = (),
) -> str:
    """The user-data that starts the forge's runner for one job. `ca` is PEM text, or empty; so is
    `forge_address`, which its /etc/hosts then has.

    `runner` is the name of one of the image's further runners.
    `registry_mirror` and `proxy` are URLs without a password, or empty; the forge is never asked through the proxy.

    Without a `handle` the runner takes any job that fits: so it is on Gitea, and for machines that are registered idle.
    """
    return text(
        "user-data-job.sh.j2",
        **_runner(kind, url, machine, credentials, labels, handle, runner),
        ca=ca.strip(),
        forge_address=forge_address,
        forge_host=forge_host(url),
        registry_mirror=registry_mirror,
        proxy=proxy,
        no_proxy=",".join(("localhost", "127.0.0.1", "::1", forge_host(url), *no_proxy)),
        job_seconds=int((job_timeout + _BACKSTOP).total_seconds()),
    )


def rehearsal_script(kind: str, machine: MachineId, labels: Sequence[Label], runner: str = "") -> str:
    """The user-data of a rehearsal: a job's start, up to a forge that nobody runs. It ends by itself; the parameters are job_script's."""
    return text(
        "user-data-rehearsal.sh.j2",
        **_runner(kind, _NO_FORGE, machine, _NO_CREDENTIALS, labels, "", runner),
        rest_seconds=_REHEARSAL_RESTS,
        runner_seconds=_REHEARSED_RUNNER,
    )


def _runner(
    kind: str, url: str, machine: MachineId, credentials: Credentials, labels: Sequence[Label], handle: str, runner: str
) -> dict[str, object]:
    """What a template needs to start a runner."""
    runner_file = {
        "id": credentials.id,
        "uuid": credentials.uuid,
        "name": str(machine),
        "token": credentials.token,
        "address": url,
        "labels": [str(label) for label in labels],
        "ephemeral": True,
    }
    return {
        "kind": kind,
        "runner_kind": RUNNERS[kind],
        "runner_path": further_runner(runner, RUNNERS[kind]) if runner else "",
        "url": url,
        "uuid": credentials.uuid,
        "token": credentials.token,
        "labels": [str(label) for label in labels],
        "handle": handle,
        "runner_file": json.dumps(runner_file),
    }


def wait_script() -> str:
    """The user-data of a machine that waits for another seed, and runs that one's user-data."""
    return source("user-data-wait.py")


def exec_script(command: Sequence[str], timeout: timedelta, end: str = "", *, boothook: bool = False) -> str:
    """The user-data that runs one command and reports its exit code; `end` (a word) then ends both of its outputs.

    As a `boothook` it is for cloud-init only, which runs it before it changes anything of the machine.
    """
    return text("user-data-exec.sh.j2", boothook=boothook, command=shlex.join(command), end=end, job_seconds=int(timeout.total_seconds()))
