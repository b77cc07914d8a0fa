"""Machines that are kept for a person: real Gitea, the real runner, real machines."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
import libvirt
import pytest

from tests.forge.gitea import URL, Site, until
from tests.ground import STORAGE, Ground
from tests.vm.test_endings import log_of, serving

pytestmark = pytest.mark.vm
LIFE = 240.0  # seconds for one job on a slow day

# Whoever looks in from inside outlives the job: what it reaches and finds goes to the console.
PROBE = f"""\
          cat >/probe <<'END'
          while sleep 0.2; do
            curl -s -m 1 -o /dev/null {URL}/ && echo "probe: forge reached" || echo "probe: forge closed"
            echo "probe: $(find /var/lib/vmrunner-job /run/vmrunner-guest/user-data /run/vmrunner-job-script -type f 2>/dev/null | wc -l) files"
            echo "probe: $(dd if=/dev/vdb bs=1M count=1 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c) bytes of seed"
          done
          END
          setsid sh /probe </dev/null >/dev/console 2>&1 &
"""  # noqa: E501 — a workflow keeps its lines
JOB = """\
on: [push, workflow_dispatch]
jobs:
  it:
    runs-on: [debian-12]
    steps:
      - run: |
          echo "token: ${{{{ github.token }}}} of the job" >/dev/console
{probe}          {end}
"""


# Until `let_end`.
LASTS = f'for n in $(seq 120); do curl -s {URL}/api/v1/repos/rig/held/labels | grep -q "$(hostname)" && break; sleep 0.5; done'  # noqa: E501


def let_end(site: Site, machine: str) -> None:
    site.call("POST", "/repos/rig/held/labels", {"name": machine, "color": "00aabb"})


def workflow(end: str) -> str:
    return JOB.format(probe=PROBE, end=end)


def machines(ground: Ground) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ground.status()["pools"][0]["machines"]
    return found


def up_until(ground: Ground, phase: str) -> dict[str, Any]:
    """Pass after pass until the machine is in this phase."""

    def found() -> dict[str, Any] | None:
        ground.run("up", check=False)
        return next((each for each in machines(ground) if each["phase"] == phase), None)

    machine: dict[str, Any] = until(found, LIFE, f"a machine is {phase}", every=0.5)
    return machine


def console(ground: Ground, machine: str) -> str:
    return (STORAGE / ground.manager / f"{machine}.console").read_text(errors="replace")


def probed(ground: Ground, machine: str) -> list[str]:
    """What it said from now on, over some seconds."""
    before = len(console(ground, machine))
    until(
        lambda: console(ground, machine)[before:].count("bytes of seed") >= 3,
        60,
        "the probe says more",
    )
    said = console(ground, machine)[before:]
    # The first words may be of a look that was under way.
    return sorted(set(re.findall(r"probe: (.*)", said.split("bytes of seed", 1)[1])))


def credentials(ground: Ground, machine: str) -> dict[str, Any]:
    path = ground.folder / "run" / "bindings" / f"{machine}.binding"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def answers(ground: Ground, machine: str, runner: dict[str, Any]) -> tuple[str, int]:
    """What the forge says to whoever has this runner's credentials, and the token of its job."""
    fetched = httpx.post(
        f"{URL}/api/actions/runner.v1.RunnerService/FetchTask",
        headers={"x-runner-uuid": runner["uuid"], "x-runner-token": runner["token"]},
        json={},
    )
    found = re.search(r"token: (\S+) of the job", console(ground, machine))
    assert found
    headers = {"Authorization": f"token {found[1]}"}
    asked = httpx.get(f"{URL}/api/v1/repos/rig/held/branches", headers=headers)
    # Gitea answers a runner that it does not know (any more) with 500, and that text.
    refused = "unregistered runner" in fetched.text
    return "unregistered" if refused else "", asked.status_code


def test_a_machine_whose_job_failed_stays_and_has_nothing(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(cloned=True, most=1, more='hold_failed = "10m"')
    ends = f"{LASTS}; echo 41 is not 42 >left; exit 1"
    repository = site.repository("rig", "held", workflow(ends))
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    name = up_until(ground, "running")["name"]
    runner = credentials(ground, name)
    until(lambda: "forge reached" in console(ground, name), 60, "the probe works")
    assert answers(ground, name, runner) == ("", 200)
    let_end(site, name)

    held = up_until(ground, "held")
    assert held["name"] == name
    assert held["held"]["why"] == "its job rig/held: it failed"
    assert 590 < held["held"]["left_seconds"] <= 600
    (job,) = repository.jobs()
    assert job["conclusion"] == "failure"
    assert (answers(ground, name, runner), site.runners()) == (("unregistered", 401), [])
    assert not list((ground.folder / "run" / "bindings").iterdir())
    assert probed(ground, name) == ["0 bytes of seed", "0 files", "forge closed"]

    described = libvirt.open("qemu:///system").lookupByName(name).XMLDesc(0)
    assert "<link state='down'/>" in described
    looked = ground.run("ssh", name[-8:], "--", "cat", "kept-workspace/left")
    assert looked.stdout == "41 is not 42\n", "its runner has deleted the workspace by now"

    ground.run("release", name[-8:])
    assert ground.leftovers() == []
    (row,) = json.loads(ground.run("history", "--json").stdout)
    assert (row["ending"], row["verdict"], row["job"]) == ("held", "failure", "it")


@pytest.mark.long
def test_an_admin_keeps_one_that_was_not_told(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    """Its seed says nothing of it; it was booted, and reaches the forge alone."""
    ground = lay_ground(most=1, more='network = "none"')
    repository = site.repository("rig", "held", workflow(LASTS))
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    name = up_until(ground, "running")["name"]
    until(lambda: "forge reached" in console(ground, name), 60, "the probe works")
    assert "is held for 2m when its job is over" in ground.run("hold", name, "--for", "2m").stdout
    let_end(site, name)
    held = up_until(ground, "held")
    assert held["held"]["why"] == "an admin asked for it"
    assert probed(ground, name) == ["0 bytes of seed", "0 files", "forge closed"]
    assert "is held for 1s from now on" in ground.run("hold", name, "--for", "1s").stdout
    time.sleep(1)
    ground.run("up")
    assert ground.leftovers() == []
    (row,) = json.loads(ground.run("history", "--json").stdout)
    assert (row["ending"], row["verdict"], row["reason"]) == (
        "held",
        "success",
        "an admin asked for it; it was held for " + row["reason"].rpartition(" for ")[2],
    )


@pytest.mark.long
def test_a_job_has_its_parked_machine_kept_over_a_kill_of_serve(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(cloned=True, most=1, more='warm = 1\njob_may_hold = "10m"')
    with serving(ground):
        until(lambda: any(each["paused"] for each in machines(ground)), LIFE, "a parked clone")
        repository = site.repository("rig", "held", workflow("vmrunner-hold 5m; exit 1"))

        def held() -> dict[str, Any] | None:
            return next((each for each in machines(ground) if each["phase"] == "held"), None)

        # It is called held before all of that is done.
        until(lambda: "machine held" in log_of(ground), LIFE, "a machine is held")
        kept = held()
        assert kept
    assert kept["held"]["why"] == "its job asked for it"
    assert 290 < kept["held"]["left_seconds"] <= 300
    assert repository.jobs()[0]["conclusion"] == "failure"
    assert probed(ground, kept["name"]) == ["0 bytes of seed", "0 files", "forge closed"]
    with serving(ground):
        time.sleep(3)
        assert [each["name"] for each in machines(ground)] == [kept["name"]]
        done = ground.run("down", "--now", "--yes")
    assert "1 destroyed" in done.stdout
    assert ground.leftovers() == []


@pytest.mark.long
def test_who_keeps_a_failed_job_finds_what_it_left(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    """As docs/howto/look-into-it.md tells it: in, look at the workspace, a file out, let it go."""
    ground = lay_ground(cloned=True, most=1, more='network = "none"\njob_may_hold = "10m"')
    end = "echo 41 is not 42 >result.txt; vmrunner-hold 5m; exit 3"
    site.repository("rig", "held", JOB.format(probe="", end=end))
    held = up_until(ground, "held")
    entered = ground.run("ssh", held["name"][-8:], "--", "ls", "-l", "kept-workspace")
    assert "result.txt" in entered.stdout
    print(ground.run("status").stdout, entered.stdout)
    found = "kept-workspace/result.txt"
    copy = ground.folder / "result.txt"
    ground.run("cp", f"{held['name'][-8:]}:{found}", str(copy))
    assert copy.read_text() == "41 is not 42\n"
    reach = ["timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{URL[7:].replace(':', '/')}"]
    assert ground.run("ssh", held["name"], "--", *reach, check=False).returncode != 0
    ground.run("release", held["name"])
    assert ground.leftovers() == []


@pytest.mark.long
def test_a_job_that_hangs_can_be_looked_at(site: Site, lay_ground: Callable[..., Ground]) -> None:
    more = 'hold_failed = "10m"\njob_timeout = "10s"'
    ground = lay_ground(cloned=True, most=1, more=more)
    repository = site.repository("rig", "held", workflow("sleep 600"))
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    name = up_until(ground, "running")["name"]
    runner = credentials(ground, name)
    until(lambda: "forge reached" in console(ground, name), 60, "the probe works")
    held = up_until(ground, "held")
    assert held["held"]["why"] == "its job did not end within 10 s"
    assert repository.jobs()[0]["conclusion"] == "failure"
    assert answers(ground, name, runner) == ("unregistered", 401)
    # Its guest ends the runner, and wipes what is refused anyway, five minutes later.
    assert "forge closed" in probed(ground, name)
    assert "forge reached" not in probed(ground, name)
    ground.run("release", name)
    assert ground.leftovers() == []
