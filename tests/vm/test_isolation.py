"""The probes of `doctor --isolation` where the command itself does not go: booted machines, and
what they find where isolation ends.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.forge.double import Double
from tests.forge.gitea import Repository, Site, until
from tests.ground import Ground
from tests.prepare import FORGEJO
from tests.vm.test_jobs import LIFE
from vmrunner import config
from vmrunner.doctor.isolation import residue
from vmrunner.doctor.isolation.lab import Lab
from vmrunner.hypervisor.host import open_host
from vmrunner.image.versions import store
from vmrunner.render import guest

pytestmark = pytest.mark.vm


@pytest.mark.long
def test_nothing_is_left_for_a_booted_machine_either(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    settings = config.load(ground.config)
    pool, said = settings.pools["main"], list[str]()
    golden = store.find(settings.images_dir, pool.image)
    lab = Lab(
        settings,
        lambda: open_host(settings, lambda _: None),
        golden,
        pool.shape,
        snapshot=False,
        say=said.append,
    )
    cells = list(residue.cells(lab))
    assert [cell.what for cell in cells if not cell.is_right] == []
    assert sum(line.endswith(": booting") for line in said) == 2
    assert len({line for line in said if line.endswith(": booting")}) == 1, "both have one name"


ATTACKED = """
import statistics, subprocess, sys, time
load = sys.argv[1]
def pace():
    work = subprocess.Popen([sys.executable, "-c", load, "work"], stdout=subprocess.PIPE, text=True)
    time.sleep(6)
    work.kill()
    return statistics.fmean(map(float, work.communicate()[0].split()))
usual = pace()
attack = [subprocess.Popen([sys.executable, "-c", load, "attack", "disk"], stdout=subprocess.DEVNULL) for _ in range(2)]
print(pace() / usual)
for each in attack:
    each.kill()
"""  # noqa: E501 — a program keeps its lines


@pytest.mark.long
def test_an_attack_is_noticed_where_nothing_keeps_it_apart(
    lay_ground: Callable[..., Ground],
) -> None:
    """In one machine with the work: so the probe can fail."""
    ground = lay_ground()
    options = ["--image", "test-gitea", "--memory", "1GiB", "--cpus", "1"]
    done = ground.run("exec", *options, "--", "python3", "-c", ATTACKED, guest("probe_load.py"))
    assert float(done.stdout) > 1.5


THIEF = """
import json, pathlib, re, urllib.error, urllib.request
seed = pathlib.Path("/dev/disk/by-id/virtio-vmrunner-seed").read_bytes()
named = lambda pattern: re.search(pattern, seed)[1].decode()
runner = {"uuid": named(rb"uuid[^0-9a-z]+([0-9a-f-]{36})"), "token": named(rb"token[^0-9a-z]+([0-9a-f]{40})")}
runner["address"] = named(rb"(http://forge.example:[0-9]+)")
for method, body in (("FetchTask", {}), ("FetchSingleTask", {"handle": ""})):
    address = f"{runner['address']}/api/actions/runner.v1.RunnerService/{method}"
    headers = {"Content-Type": "application/json", "x-runner-uuid": runner["uuid"], "x-runner-token": runner["token"]}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as answer:
            print(method, "stole it" if "task" in json.load(answer) else "got nothing")
    except urllib.error.HTTPError as error:
        print(method, "is refused with", error.code)
"""  # noqa: E501 — a program keeps its lines
COMMAND = f"python3 -c \"exec(bytes.fromhex('{THIEF.encode().hex()}'))\""


def one_by_one(ground: Ground, repository: Repository) -> list[dict[str, Any]]:
    """No pass while a machine runs: it would blank the seed, where the thief looks for what the
    runner has in its memory.
    """

    def done() -> list[dict[str, Any]] | None:
        left = ground.leftovers()
        if not any(what.startswith("domain ") for what in left):
            ground.run("up")
        listed = repository.jobs()
        is_over = all(job["status"] == "completed" for job in listed)
        return listed if is_over and not left else None

    jobs: list[dict[str, Any]] = until(done, 2 * LIFE, "jobs done and nothing left", every=1)
    return jobs


def test_a_job_of_gitea_gets_no_other_with_its_own_credentials(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(cloned=True, most=1)
    jobs = {
        name: {"runs-on": ["debian-12"], "steps": [{"run": command}]}
        for name, command in (("thief", COMMAND), ("victim", "hostname"))
    }
    repository = site.repository("rig", "theft", json.dumps({"on": ["push"], "jobs": jobs}))
    until(lambda: len(repository.jobs()) == 2, 30, "both jobs")
    thief, victim = sorted(one_by_one(ground, repository), key=lambda job: str(job["name"]))
    said = repository.said(thief["id"])
    assert "FetchTask got nothing" in said, said
    assert "FetchSingleTask is refused with 404" in said, "Gitea has no such call"
    assert (thief["conclusion"], victim["conclusion"]) == ("success", "success")
    assert thief["runner_name"] != victim["runner_name"]


@pytest.mark.long
def test_a_job_of_forgejo_gets_no_other_by_an_empty_handle(
    lay_ground: Callable[..., Ground],
) -> None:
    with Double("203.0.113.10", host="forge.example") as double:
        ground = lay_ground(
            url=double.url, token=double.token, kind="forgejo", image=FORGEJO, cloned=True, most=1
        )
        thief = double.add_job("thief", steps=[COMMAND])
        victim = double.add_job("victim")
        until(lambda: ground.run("up") and bool(victim.result), LIFE, "both jobs ran", every=1)
        assert thief.log == ["FetchTask got nothing", "FetchSingleTask got nothing", "job passed"]
        assert thief.runner is not victim.runner
        until(lambda: ground.run("up") and not ground.leftovers(), LIFE, "nothing is left", every=1)
