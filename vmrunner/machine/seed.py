"""Cloud-init's NoCloud files as an ISO image: a machine's identity and its one-shot credentials."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any
from urllib.parse import urlsplit

from vmrunner.errors import ConfigError
from vmrunner.hypervisor.seam import SEED_SIZE
from vmrunner.model.image import TOOL_CACHE
from vmrunner.model.job import Credentials
from vmrunner.model.label import Label
from vmrunner.model.machine import MachineId
from vmrunner.network.addresses import gateway
from vmrunner.network.forge import forge_host
from vmrunner.render import guest, text, waiting_code
from vmrunner.runner_config import CACHE_URL, PATIENCE, runner_config

_HOLD, _CONFIG = "vmrunner-hold", "config.yaml"
_CA_BUNDLE = "/usr/local/share/vmrunner/ca-bundle.pem"
_CA_VARIABLES = (
    "SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
)
"""For what looks at no system's store, and for containers, which have one of their own: OpenSSL and
Go, git, curl, Python, pip, Node.js.
"""
_TOOL_VARIABLES = ("RUNNER_TOOL_CACHE", "AGENT_TOOLSDIRECTORY")
"""By which actions find tools. Gitea's runner writes over the first one, see job.py's `make_work`;
of the second some actions know, setup-python among them.
"""
_NO_FORGE, _NO_CREDENTIALS = (
    "http://127.0.0.1:9",
    Credentials(0, "00000000-0000-0000-0000-000000000000", "rehearsal"),
)
_JOB_FOLDER, _REHEARSAL = "/var/lib/vmrunner-job", "/var/lib/vmrunner-rehearsal"
# Seconds before it begins: the clone is often made when the one before it was just given a job,
# which starts now.
_REHEARSAL_RESTS = 2
# What a guest waits longer than the host, which ends it: for a forge that does not tell how its job
# ended.
_STAYS_LONGER = timedelta(hours=1)
_REHEARSED_RUNNER = {"gitea": 15, "forgejo": 3}
"""Seconds after which it is ended.

Gitea's ends by itself, after a job that the guest hands out; Forgejo's meets no forge at all.
"""
RUNNERS = {"forgejo": "forgejo-runner", "gitea": "gitea-runner"}
"""Which runner program each kind of forge needs; an image's manifest says which one it carries."""


def further_runner(name: str, kind: str) -> str:
    """Where an image has the runner that its recipe calls `name`."""
    return f"/usr/local/lib/vmrunner/runners/{name}/{kind}"


def iso(
    machine: MachineId,
    user_data: str,
    address: IPv4Interface | None,
    ipv6: IPv6Interface | None = None,
    *,
    rehearsal: bool = False,
) -> bytes:
    """The NoCloud ISO (label `cidata`) with `meta-data`, `network-config` and this `user-data`,
    padded to SEED_SIZE.

    Without an address the machine has no network yet; `ipv6` is what it has beside one. Two ISOs
    never begin alike. After a `rehearsal` the machine waits for another seed.
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
    import pycdlib  # here: commands that make no machine need it not

    image = pycdlib.PyCdlib()
    image.new(
        interchange_level=3,
        joliet=3,
        rock_ridge="1.09",
        vol_ident="cidata",
        app_ident_str=secrets.token_hex(16),
    )
    for number, (name, content) in enumerate(files.items()):
        data = content.encode()
        image.add_fp(
            io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}"
        )
    out = io.BytesIO()
    image.write_fp(out)
    image.close()
    if len(out.getvalue()) > SEED_SIZE:
        raise ConfigError(
            f"The seed of {machine} is bigger than {SEED_SIZE >> 10} KiB.",
            "Is forge.ca_file a whole bundle of certificates, or a pool's runner_config very long?",
        )
    return out.getvalue().ljust(SEED_SIZE, b"\0")


@dataclass(frozen=True)
class Job:
    """What a machine is told to start its runner for one job.

    `ca` is PEM text, or empty; so is `forge_address`, which its /etc/hosts then has. `runner` is
    the name of one of the image's further runners. `registry_mirror` and `proxy` are URLs without a
    password, or empty; the forge is never asked through the proxy. Without a `handle` the runner
    takes any job that fits: so it is on Gitea, and for machines that are registered idle. `user`
    runs the job. `runner_config` comes on top of what vmrunner configures. `cache_url` is where its
    job finds the cache, or empty. With `tools` the machine has a disk of them. `packages` are files
    about where packages come from, by their paths.
    """

    kind: str
    url: str
    machine: MachineId
    credentials: Credentials
    labels: Sequence[Label]
    job_timeout: timedelta
    pickup_timeout: timedelta
    ca: str = ""
    forge_address: str = ""
    handle: str = ""
    user: str = "root"
    runner: str = ""
    registry_mirror: str = ""
    proxy: str = ""
    no_proxy: Sequence[str] = ()
    runner_config: Mapping[str, Any] = field(default_factory=dict)
    # How long the machine is there at most; None: as long as a job that it is made for may take.
    lifetime: timedelta | None = None
    # For how long it does not power off after its job, which may have failed; and for how long, at
    # most, its job may have it kept.
    hold_failed: timedelta | None = None
    job_may_hold: timedelta | None = None
    cache_url: str = ""
    tools: bool = False
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def runner_path(self) -> str:
        """Where a further runner is; empty for the image's own."""
        return further_runner(self.runner, RUNNERS[self.kind]) if self.runner else ""

    @property
    def hold_program(self) -> str:
        """What its job has the machine kept with; empty where it may not."""
        most = round(self.job_may_hold.total_seconds()) if self.job_may_hold else 0
        return guest(_HOLD).replace("most=0", f"most={most}", 1) if most else ""

    @property
    def arguments(self) -> list[str]:
        """The runner's command line behind its name, in the folder of its files."""
        if self.kind == "gitea":
            return ["daemon", "--once", "--config", _CONFIG]
        known = ["one-job", "--config", _CONFIG, "--url", self.url, "--uuid", self.credentials.uuid]
        labels = [word for label in self.labels for word in ("--label", str(label))]
        handle = ["--handle", self.handle] if self.handle else []
        return [
            *known,
            "--token-url",
            f"file:{_JOB_FOLDER}/{self.user}/token",
            *labels,
            *handle,
            "--wait",
        ]

    @property
    def proxies(self) -> dict[str, str]:
        """What programs know of the pool's proxy: the runner, which fetches actions through it, and
        jobs, also in containers.
        """
        if not self.proxy:
            return {}
        near = ["localhost", "127.0.0.1", "::1", forge_host(self.url)]
        near += [str(urlsplit(self.cache_url).hostname)] if self.cache_url else []
        direct = ",".join(dict.fromkeys((*near, *self.no_proxy)))
        found = {"http_proxy": self.proxy, "https_proxy": self.proxy, "no_proxy": direct}
        return found | {name.upper(): value for name, value in found.items()}

    def files(self, **more: Any) -> dict[str, str]:
        """The runner's files by their names: its credentials, and its configuration, with `more` on
        top.
        """
        config = runner_config(
            self.kind,
            job_timeout=self.job_timeout,
            labels=self.labels,
            environment=self.proxies
            | (dict.fromkeys(_CA_VARIABLES, _CA_BUNDLE) if self.ca else {})
            | ({CACHE_URL: self.cache_url} if self.cache_url else {})
            | (dict.fromkeys(_TOOL_VARIABLES, TOOL_CACHE) if self.tools else {}),
            mounts=[_CA_BUNDLE] if self.ca else [],
            more=dict(self.runner_config) | more,
        )
        if self.kind != "gitea":
            return {"token": self.credentials.token, _CONFIG: config}
        record = {
            "id": self.credentials.id,
            "uuid": self.credentials.uuid,
            "name": str(self.machine),
            "token": self.credentials.token,
            "address": self.url,
            "labels": [str(label) for label in self.labels],
            "ephemeral": True,
        }
        return {".runner": json.dumps(record), _CONFIG: config}


def job_script(job: Job) -> str:
    """The user-data that starts the forge's runner for one job, and powers the machine off when
    that has ended.
    """
    told = {
        "user": job.user,
        "runner_kind": RUNNERS[job.kind],
        "runner_path": job.runner_path,
        "arguments": job.arguments,
        "files": job.files(),
        "environment": job.proxies,
        "packages": dict(job.packages),
        "tools": job.tools,
        "settings": {"VMRUNNER_REGISTRY_MIRROR": job.registry_mirror}
        if job.registry_mirror or job.proxy
        else {},
        "ca": job.ca.strip(),
        "ca_bundle": _CA_BUNDLE,
        "url": job.url,
        "forge_address": job.forge_address,
        "forge_host": forge_host(job.url),
        "forge_site": urlsplit(job.url).netloc,
        "seconds": ((job.lifetime or job.job_timeout) + PATIENCE).total_seconds(),
        "pickup_seconds": (job.pickup_timeout + PATIENCE).total_seconds(),
        "stay_seconds": (job.hold_failed + _STAYS_LONGER).total_seconds() if job.hold_failed else 0,
        "hold_program": job.hold_program,
        "hold_longer": _STAYS_LONGER.total_seconds(),
    }
    # Two lines that a machine which waits reads: it has the code already, and only takes what it is
    # told, if it is the same code. JSON in JSON is Python, too, and is read in less time there.
    head = f"#!/usr/bin/python3\nJOB = {json.dumps(json.dumps(told))}\nCODE = {_code()!r}\n"
    return f"{head}{waiting_code()}\n\nkeep_door(DOOR, alone=True)\nrun_job(json.loads(JOB))\n"


def rehearsal_script(kind: str, machine: MachineId, user: str, runner: str = "") -> str:
    """The user-data of a rehearsal: what job.py's `rehearse` is told.

    The parameters are those of a Job.
    """
    return json.dumps(_rehearsal(kind, machine, user, runner) | {"hooks": True})


def _rehearsal(kind: str, machine: MachineId, user: str, runner: str = "") -> dict[str, object]:
    limit = timedelta(seconds=_REHEARSED_RUNNER[kind])
    job = Job(
        kind,
        _NO_FORGE,
        machine,
        _NO_CREDENTIALS,
        [Label("rehearsal")],
        limit,
        limit,
        user=user,
        runner=runner,
    )
    return {
        "user": user,
        "runner_path": job.runner_path,
        "arguments": [
            word.replace(f"{_JOB_FOLDER}/{user}", f"{_REHEARSAL}/runner") for word in job.arguments
        ],
        "files": job.files(host={"workdir_parent": f"{_REHEARSAL}/work"}),
        "folder": _REHEARSAL,
        "url": _NO_FORGE,
        "rest_seconds": _REHEARSAL_RESTS,
        "seconds": _REHEARSED_RUNNER[kind],
    }


def _code() -> str:
    """Which code a job's script is."""
    return hashlib.sha256(waiting_code().encode()).hexdigest()[:16]


@cache  # every pass asks for the key of every pool's snapshot
def wait_script() -> str:
    """The user-data of a machine that waits for another seed, and does what that one's user-data
    says.
    """
    rehearsal = json.dumps(
        _rehearsal("gitea", MachineId("rehearsal", "00000000"), "root") | {"hooks": False}
    )
    head = f"#!/usr/bin/python3\nCODE = {_code()!r}\nREHEARSAL = {rehearsal!r}\n"
    return f"{head}{waiting_code()}\n\nkeep_door(DOOR, alone=False)\nwait(CODE, REHEARSAL)\n"


def waiting(machine: MachineId) -> bytes:
    """The seed of a machine that comes up, without network, and waits for another one."""
    return iso(machine, wait_script(), None)


def exec_script(
    command: Sequence[str],
    timeout: timedelta,
    end: str = "",
    *,
    boothook: bool = False,
    tools: bool = False,
    hosts: str = "",
) -> str:
    """The user-data that runs one command and reports its exit code; `end` (a word) then ends both
    of its outputs. With `tools` the machine has a disk of them; `hosts` is a line
    for its /etc/hosts, or empty.

    As a `boothook` it is for cloud-init only, which runs it before it changes anything of the
    machine.
    """
    return text(
        "user-data-exec.sh.j2",
        boothook=boothook,
        command=shlex.join(command),
        end=end,
        job_seconds=int(timeout.total_seconds()),
        hosts=hosts,
        tool_cache=TOOL_CACHE if tools else "",
        tool_variables=_TOOL_VARIABLES,
        waiting_code=waiting_code() if tools else "",
    )
