"""Jobs of the real Gitea in real machines, driven by `vmrunner up` as its users drive it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import libvirt
import pytest

from tests.forge.gitea import URL, Repository, Site, until
from tests.ground import STORAGE, Ground
from tests.vm.killed import STEPS

pytestmark = pytest.mark.vm
LIFE = 240.0  # seconds for one job on a slow day

# The marker names its machine and is put together in the guest, so that only a guest that ran the
# job has ever held it.
MARK = f"""\
on: [push, workflow_dispatch]
jobs:
  mark:
    runs-on: [debian-12]
    steps:
      - run: |
          test ! -e /marker
          for n in $(seq 100); do echo "marker"" of $(hostname)"; done | tee /marker /dev/shm/marker >/dev/null
          sync
          for n in $(seq 120); do curl -s {URL}/api/v1/repos/rig/marks/labels | grep -q "$(hostname)" && break; sleep 0.5; done
          echo "marked on $(hostname)"
"""  # noqa: E501 — a workflow keeps its lines
ONCE = """\
on: [push]
jobs:
  once:
    runs-on: [debian-12]
    steps:
      - run: echo "ran on $(hostname)"
"""


def up_until_done(ground: Ground, repository: Repository, jobs: int = 1) -> list[dict[str, Any]]:
    """Pass after pass until the forge calls every job done and nothing is left."""

    def done() -> list[dict[str, Any]] | None:
        ground.run("up")
        listed = repository.jobs()
        return (
            listed
            if len(listed) == jobs
            and all(job["status"] == "completed" for job in listed)
            and not ground.leftovers()
            else None
        )

    finished: list[dict[str, Any]] = until(done, LIFE, "jobs done and nothing left", every=1)
    return finished


def records(site: Site, ground: Ground) -> list[str]:
    return [
        record["name"]
        for record in site.runners()
        if record["name"].startswith(f"vmr-{ground.manager}-")
    ]


def machine_in(ground: Ground, phase: str) -> str | None:
    ground.run("up")
    machines = ground.status()["pools"][0]["machines"]
    return next((machine["name"] for machine in machines if machine["phase"] == phase), None)


def let_end(site: Site, machine: str) -> None:
    """The job of MARK on this machine has lasted long enough."""
    site.call("POST", "/repos/rig/marks/labels", {"name": machine, "color": "00aabb"})


def holds(path: Path, text: str) -> bool:
    return subprocess.run(["grep", "-aqF", text, str(path)], check=False).returncode == 0


def memory(machine: str, into: Path) -> Path:
    """The machine's RAM, as a file."""
    dump = into / f"{machine}.ram"
    domain = libvirt.open("qemu:///system").lookupByName(machine)
    domain.coreDumpWithFormat(
        str(dump),
        libvirt.VIR_DOMAIN_CORE_DUMP_FORMAT_RAW,
        libvirt.VIR_DUMP_MEMORY_ONLY | libvirt.VIR_DUMP_LIVE,
    )
    return dump


def check_secrets(ground: Ground, machine: str, secrets: dict[str, str]) -> None:
    """While the job runs nothing but the owner's own files has a secret: no command line,
    environment, domain, log or history.
    """
    said = ground.run("up", "--log-format", "json")
    shown = [
        ground.run(*command.split()).stdout
        for command in (
            *("status", "status --json", "history --json"),
            *(f"logs {machine}", f"history show {machine}"),
        )
    ]
    described = subprocess.run(
        ["virsh", "-c", "qemu:///system", "dumpxml", machine],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    processes = [
        path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if machine.encode() in path.read_bytes()
    ]
    assert processes, "its QEMU"
    processes += [
        (path.parent / "environ").read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if machine.encode() in path.read_bytes()
    ]
    texts = [
        said.stdout,
        said.stderr,
        described,
        *shown,
        *(each.decode(errors="replace") for each in processes),
    ]
    for whose, secret in secrets.items():
        assert not any(secret in text for text in texts), whose
        files = [
            path
            for path in ground.folder.rglob("*")
            if path.is_file() and not path.is_symlink() and holds(path, secret)
        ]
        files += [
            path
            for path in (STORAGE / ground.manager).iterdir()
            if path.suffix in {".console", ".events", ".runner"} and holds(path, secret)
        ]
        expected = {
            "the forge's": ["forge-token"],
            "its runner's": [f"{machine}.binding"],
            "registration": [],
        }[whose]
        assert [path.name for path in files] == expected, whose
        assert all(path.stat().st_mode & 0o077 == 0 for path in files), whose


def test_what_enters_a_machine_and_what_stays_of_it(
    site: Site, lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    ground = lay_ground(cloned=True, most=1)
    repository = site.repository("rig", "marks", MARK)
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    registration_token = site.call("POST", "/admin/actions/runners/registration-token")["token"]

    # Two at once: one does the work, the other waits for it, and there is one machine.
    both = [
        subprocess.Popen(
            ground.command("up"),
            stderr=subprocess.PIPE,
            text=True,
            env={"VMRUNNER_CONFIG": str(ground.config)},
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("another vmrunner is at work" in text.lower() for text in said) <= 1
    (status,) = ground.status()["pools"]
    (machine,) = status["machines"]
    name = machine["name"]
    assert records(site, ground) == [name]
    runner = json.loads((ground.folder / "run" / "bindings" / f"{name}.binding").read_text())
    with suppress(FileNotFoundError):  # its guest has read it already, and a pass has seen that
        seed = (STORAGE / ground.manager / f"{name}.seed.iso").read_bytes()
        assert (runner["token"].encode() in seed, registration_token.encode() in seed) == (
            True,
            False,
        )

    until(lambda: machine_in(ground, "running"), LIFE, "the machine runs", every=1)
    assert not list((STORAGE / ground.manager).glob("*.seed.iso")), (
        "the seed goes once the guest has read it"
    )
    until(lambda: repository.jobs()[0]["status"] == "in_progress", 60, "the job runs")
    (shown,) = ground.status()["pools"][0]["machines"]
    assert (shown["job"], shown["dropped_packets"]) == ("rig/marks: mark", 0), (
        "an honest machine sends nothing that is dropped"
    )
    time.sleep(4)  # for the marker
    overlay, ram = STORAGE / ground.manager / f"{name}.qcow2", memory(name, tmp_path)
    marker = f"marker of {name}"
    assert (holds(ram, runner["token"]), holds(ram, marker), holds(overlay, marker)) == (
        True,
        True,
        True,
    ), "the search can find something"
    for secret in (registration_token, site.token):
        assert (holds(ram, secret), holds(overlay, secret)) == (False, False)
    ram.unlink()
    check_secrets(
        ground,
        name,
        {
            "the forge's": site.token,
            "its runner's": runner["token"],
            "registration": registration_token,
        },
    )
    let_end(site, name)
    (first,) = up_until_done(ground, repository)
    assert (first["conclusion"], first["runner_name"]) == ("success", name)
    assert f"marked on {name}" in repository.log(first["id"])
    assert records(site, ground) == []
    refused = httpx.post(
        f"{URL}/api/actions/runner.v1.RunnerService/FetchTask",
        json={},
        headers={"x-runner-uuid": runner["uuid"], "x-runner-token": runner["token"]},
    )
    assert "unregistered runner" in refused.text

    repository.dispatch()
    until(lambda: len(repository.jobs()) == 2, 30, "the second job")
    until(lambda: machine_in(ground, "running"), LIFE, "the second machine runs", every=1)
    second_name = ground.status()["pools"][0]["machines"][0]["name"]
    until(lambda: repository.jobs()[1]["status"] == "in_progress", 60, "the second job runs")
    time.sleep(4)
    ram, overlay = memory(second_name, tmp_path), STORAGE / ground.manager / f"{second_name}.qcow2"
    assert (holds(ram, f"marker of {second_name}"), holds(ram, marker), holds(overlay, marker)) == (
        True,
        False,
        False,
    )
    ram.unlink()
    let_end(site, second_name)
    _, second = up_until_done(ground, repository, jobs=2)
    assert second["conclusion"] == "success", repository.log(second["id"])
    assert second["runner_name"] == second_name != name


@pytest.mark.long
def test_killed_at_each_step_of_creating_a_machine(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(most=1)
    repository = site.repository("rig", "killed", ONCE)
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    before: set[str] = set()
    for step in STEPS:
        killed = subprocess.run(
            [sys.executable, "-m", "tests.vm.killed", str(ground.config), step],
            timeout=60,
            capture_output=True,
        )
        assert killed.returncode == -9, f"{step}: {killed.stdout!r} {killed.stderr!r}"
        names = {
            part
            for left in ground.leftovers()
            for part in re.findall(r"vmr-suite-[0-9a-f]{16}", left)
        } | set(records(site, ground))
        assert len(names) == 1, (
            f"killed after {step}: this pass leaves its machine, and nothing of the one before"
        )
        assert not names & before
        before |= names
    (done,) = up_until_done(ground, repository)
    assert done["conclusion"] == "success"
    assert (done["run_attempt"], repository.said(done["id"]).count("ran on")) == (1, 1)
    assert {done["runner_name"]} == names, "the machine of the last kill lived, and did the job"
    assert records(site, ground) == []
