"""A machine that GARM asked for, with the real Gitea and runner; GARM itself is a double here, and
real in tests/garm.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.forge.gitea import URL, Site, until
from tests.garm import double
from tests.garm.calls import PROGRAM, call, with_flavor, words
from tests.garm.double import INSTANCE, POOL, Double
from tests.ground import STORAGE, Ground
from tests.prepare import GITEA

pytestmark = pytest.mark.vm
LIFE = 240.0  # seconds for one job on a slow day
# Its job ends when its repository has a label, so that it runs while it is looked at.
WORKFLOW = f"""\
on: [push]
jobs:
  once:
    runs-on: [for-garm]
    steps:
      - run: |
          for n in $(seq 400); do curl -s {URL}/api/v1/repos/rig/garm/labels | grep -q enough && break; sleep 0.5; done
          echo "ran on $(hostname)"
"""  # noqa: E501 — a workflow keeps its lines


def registration(site: Site) -> str:
    token: str = site.call("POST", "/repos/rig/garm/actions/runners/registration-token")["token"]
    return token


def wanted(garm: Double, name: str, **more: Any) -> dict[str, Any]:
    labels = ["for-garm", "runner-controller-id=c", f"runner-pool-id={POOL}"]
    asked = {"repo_url": f"{URL}/rig/garm", "image": GITEA, "labels": labels} | more
    return double.bootstrap(garm.url, name, **asked)


def holds(ground: Ground, machine: str, words: list[str]) -> list[str]:
    """Which of these words are in the machine's files on the host, or in its memory."""
    lines = {path.parent: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    (qemu,) = (process for process, line in lines.items() if f"guest={machine},".encode() in line)
    places = {"memory": _memory(qemu)}
    for path in (STORAGE / ground.manager).glob(f"{machine}*"):
        places[path.name] = path.read_bytes()
    return [
        f"{word} in {place}"
        for place, content in places.items()
        for word in words
        if word.encode() in content
    ]


def _memory(process: Path) -> bytes:
    """What a process has in memory that it may write to: its guest's, too."""
    out = []
    with (process / "maps").open() as maps, (process / "mem").open("rb") as memory:
        for line in maps:
            span, rights, *_ = line.split()
            first, last = (int(end, 16) for end in span.split("-"))
            if rights.startswith("rw"):
                with suppress(
                    OSError, ValueError, OverflowError
                ):  # what can't be read is no memory
                    memory.seek(first)
                    out.append(memory.read(last - first))
    return b"".join(out)


def test_a_machine_for_garm(lay_ground: Callable[..., Ground], site: Site) -> None:
    """Made, at work, listed, shown by status, without GARM's tokens; and gone."""
    ground = with_flavor(lay_ground(cloned=True))
    repository = site.repository("rig", "garm", WORKFLOW)
    with Double(registration(site)) as garm:
        began = time.monotonic()
        told = call(ground, "CreateInstance", wanted=wanted(garm, "garm-one"))
        print(f"CreateInstance: {time.monotonic() - began:.2f} s")
        assert (told["status"], told["provider_id"]) == ("running", "garm-one")
        ground.run("up")  # a pass leaves it alone
        assert [each["name"] for each in call(ground, "ListInstances")] == ["garm-one"]
        until(lambda: repository.jobs()[0]["status"] == "in_progress", LIFE, "its job runs")
        (machine,) = (line.split()[1] for line in ground.leftovers() if line.startswith("domain"))
        mark = f"vmr-{ground.manager}"  # is there, so that the looking is no looking away
        assert f"{mark} in memory" in holds(ground, machine, [mark])
        assert holds(ground, machine, [garm.registration, INSTANCE]) == []
        site.call("POST", "/repos/rig/garm/labels", {"name": "enough", "color": "#00aa00"})
        until(lambda: repository.jobs()[0]["status"] == "completed", LIFE, "its job is over")
    (job,) = repository.jobs()
    assert (job["conclusion"], job["runner_name"]) == ("success", "garm-one")
    until(lambda: call(ground, "ListInstances") == [], LIFE, "it has powered off")
    call(ground, "DeleteInstance", "garm-one")
    call(ground, "DeleteInstance", "garm-one")
    assert ground.leftovers() == []
    call(ground, "GetInstance", "garm-one", code=30)


@pytest.mark.long
def test_killed_in_create(lay_ground: Callable[..., Ground], site: Site) -> None:
    """At ten moments of its life: what it left is found by the name, or by the next pass."""
    ground = with_flavor(lay_ground(cloned=True))
    site.repository("rig", "garm", "on: [workflow_dispatch]\njobs: {}\n")
    with Double(registration(site)) as garm:
        began = time.monotonic()
        call(ground, "CreateInstance", wanted=wanted(garm, "garm-whole"))
        whole = time.monotonic() - began
        call(ground, "DeleteInstance", "garm-whole")
        for number in range(10):
            name = f"garm-{number}"
            process = subprocess.Popen(
                [PROGRAM],
                env=words(ground, "CreateInstance"),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert process.stdin
            process.stdin.write(json.dumps(wanted(garm, name)).encode())
            process.stdin.close()
            time.sleep(whole * (number + 1) / 11)
            process.send_signal(signal.SIGKILL)
            process.wait()
            if number % 2:
                call(ground, "DeleteInstance", name)
            else:
                ground.run("up")
                call(ground, "DeleteInstance", name)
            assert ground.leftovers() == [], name


INSTALL = """#!/bin/bash
set -euo pipefail
echo "install script as $(id -un) in $HOME"
{call} -X POST -d '{{"status": "installing", "message": "installing"}}' {garm}/api/v1/callbacks/status
gitea-runner register --ephemeral --no-interactive --instance {forge} --name {name} \
  --token "$({call} {garm}/api/v1/metadata/runner-registration-token/)" --labels for-garm:host
nohup gitea-runner daemon --once >/dev/null 2>&1 &
"""  # noqa: E501 — as a script has it


@pytest.mark.long
def test_a_machine_that_makes_its_runner_itself(
    lay_ground: Callable[..., Ground], site: Site
) -> None:
    """With an install script of the pool's own, which this machine fetches and runs."""
    address = URL.removeprefix("http://").partition(":")[0]
    repository = site.repository("rig", "garm", WORKFLOW)
    with Double(registration(site), address) as garm:
        reach = f'allow = ["{garm.url.removeprefix("http://")}"]\n'
        ground = with_flavor(lay_ground(cloned=True), f'install = "machine"\n{reach}')
        garm.install = INSTALL.format(
            call=f"curl -fsS -H 'Authorization: Bearer {INSTANCE}'",
            garm=garm.url,
            forge=URL,
            name="garm-own",
        )
        call(ground, "CreateInstance", wanted=wanted(garm, "garm-own"))
        site.call("POST", "/repos/rig/garm/labels", {"name": "enough", "color": "#00aa00"})
        until(lambda: repository.jobs()[0]["status"] == "completed", LIFE, "its job is over")
        (job,) = repository.jobs()
        assert (job["conclusion"], job["runner_name"]) == ("success", "garm-own")
        assert [each["name"] for each in call(ground, "ListInstances")] == ["garm-own"], (
            "GARM ends it"
        )
        call(ground, "DeleteInstance", "garm-own")
    assert ground.leftovers() == []
