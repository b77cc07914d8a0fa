"""Machines that are cloned from a snapshot: quick, each its own, and booted instead where the
snapshot can't be used.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import libvirt
import pytest

from tests.forge.gitea import Site, until
from tests.ground import STORAGE, Ground
from tests.prepare import GITEA
from tests.vm.test_jobs import LIFE, ONCE, records

pytestmark = pytest.mark.vm

CLONES = 3
RECIPES_HOST = "192.0.2.7 registry.example # the recipe's"  # line of /etc/hosts
IDENTITY = """
hostname
cat /etc/machine-id /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid /sys/class/net/eth0/address
head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
ip -4 -o address show eth0 | awk '{print $4}'
date +%s
"""  # noqa: E501 — a program keeps its lines
ALIKE = """
test ! -e /etc/ssh/ssh_host_ed25519_key || echo has SSH host keys
ls /run/systemd/netif/leases 2>/dev/null | sed 's/^/lease /'
journalctl -q --no-pager 2>/dev/null | grep -v "$(hostname)" | sed 's/^/journal /' | head -3
df --output=size -BG / | tail -1
getent hosts forge.example | cut -d' ' -f2-
wc -l </etc/hosts
grep -v vmrunner /etc/hosts
"""


def volumes(ground: Ground) -> list[Path]:
    return sorted((STORAGE / ground.manager).glob("snapshot-*"))


def test_a_clone_is_its_own_machine_and_the_snapshot_stays_as_it_is(
    lay_ground: Callable[..., Ground],
) -> None:
    ground = lay_ground(start="auto")
    ground.run("snapshot", "drop", "--yes")
    made = ground.run("snapshot", "create", "--image", GITEA, "--memory", "1GiB", "--disk", "20GiB")
    assert re.search(r"snapshot [0-9a-f]{16} of test-gitea/", made.stdout)
    assert ground.leftovers() == [], "nothing is left of the machine that was saved"
    (listed,) = json.loads(ground.run("snapshot", "list", "--json").stdout)
    assert [(path.stat().st_uid, path.stat().st_mode & 0o022) for path in volumes(ground)] == [
        (0, 0)
    ] * 5, "nobody but root may write"
    allocated = sum(path.stat().st_blocks * 512 for path in volumes(ground))
    assert allocated < 600 << 20, "the memory file is sparse"

    identities = []
    for _ in range(CLONES):
        done = ground.run(
            "exec", "--image", GITEA, "--memory", "1GiB", "--", "sh", "-c", f"{IDENTITY}\n{ALIKE}"
        )
        assert "cloned" in done.stderr
        lines = done.stdout.splitlines()
        identities.append(lines[:8])
        assert [line.strip() for line in lines[8:]] == [
            "20G",
            "forge.example",
            "4",
            RECIPES_HOST,
        ], "and nothing is inherited"
    for each in zip(*[identity[:6] for identity in identities], strict=True):
        assert len(set(each)) == CLONES, each
    # One after the other may have the same address: it is drawn, from those that are free.
    assert all(identity[6].startswith("10.90.0.") for identity in identities)
    assert identities[0][0].startswith(f"vmr-{ground.manager}-")
    now = int(subprocess.check_output(["date", "+%s"]))
    assert all(0 <= now - int(identity[7]) < 60 for identity in identities), (
        "the clock is the host's"
    )
    assert ground.leftovers() == []
    assert "3 files are as they were made" in ground.run("snapshot", "verify", listed["key"]).stdout
    assert "deleted" in ground.run("snapshot", "drop", "--yes").stdout
    assert (volumes(ground), ground.run("snapshot", "list", "--json").stdout.strip()) == ([], "[]")
    with closing(libvirt.open("qemu:///system")) as connection:
        # As libvirt calls stopping it.
        connection.storagePoolLookupByName(f"vmr-{ground.manager}").destroy()
    assert ground.run("snapshot", "list", "--json").stdout.strip() == "[]", (
        "a stopped storage pool is an empty one"
    )


def found_in(paths: list[Path], words: list[str]) -> list[str]:
    """Which of these words the files have in them, as bytes or as UTF-16."""
    found = set()
    for path in paths:
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            found |= {
                word
                for word in words
                for form in (word.encode(), word.encode("utf-16-le"))
                if content.find(form) >= 0
            }
    return sorted(found)


def test_a_parked_machine_takes_a_job_and_its_snapshot_knows_no_secret(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(start="auto", most=1, more="warm = 0")
    ground.run("snapshot", "drop", "--yes")
    assert "a snapshot for pool main is made in the background" in ground.run("up").stderr
    until(
        lambda: ground.run("snapshot", "list", "--json").stdout.strip() != "[]",
        LIFE,
        "the snapshot",
        every=1,
    )
    assert "in the background" not in ground.run("up").stderr
    ground.config.write_text(ground.config.read_text().replace("warm = 0", "warm = 1"))
    ground.run("up")
    (warm,) = ground.status()["pools"][0]["machines"]
    assert warm["phase"] == "ready", "at once"
    until(
        lambda: ground.run("up") and ground.status()["pools"][0]["machines"][0]["paused"],
        LIFE,
        "it has rehearsed",
        every=0.5,
    )
    (events,) = (STORAGE / ground.manager).glob(f"{warm['name']}.events*")
    assert [line.split()[0] for line in events.read_text().splitlines()] == ["rehearsed"]
    assert records(site, ground) == [], "it is registered nowhere"
    repository = site.repository("rig", "parked", ONCE)

    def done() -> bool:
        ground.run("up")
        return all(job["status"] == "completed" for job in repository.jobs())

    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    ground.run("up")
    (binding,) = (ground.folder / "run" / "bindings").iterdir()
    credentials = json.loads(binding.read_text())
    until(done, LIFE, "the job is over", every=0.5)
    (job,) = repository.jobs()
    assert (job["conclusion"], job["runner_name"]) == ("success", warm["name"])
    ground.run("down", "main")
    assert (ground.leftovers(), records(site, ground)) == ([], [])

    secrets = [credentials["uuid"], credentials["token"], site.token, warm["name"], repository.name]
    assert found_in(
        volumes(ground), ["It sleeps until its seed is another one", "Debian GNU/Linux 12"]
    ), "the search finds what is there"
    assert found_in(volumes(ground), secrets) == [], "and nothing that anybody must not know"
    repository.delete()


@pytest.mark.long
def test_a_damaged_snapshot_costs_no_job(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(start="auto", most=1)
    ground.run("snapshot", "drop", "--yes")
    ground.run("snapshot", "create", "--pool", "main")
    (state,) = [path for path in volumes(ground) if path.suffix == ".state"]
    os.truncate(state, 4096)
    repository = site.repository("rig", "damaged", ONCE)
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    ground.run("up", "main")
    (pool,) = ground.status()["pools"]
    assert len(pool["machines"]) == 1, "it is booted instead"
    assert "can't be used" in pool["snapshot"]
    assert volumes(ground) == [], "and the snapshot is retired"
    until(
        lambda: ground.run("up") and repository.jobs()[0]["status"] == "completed",
        LIFE,
        "the job is over",
        every=1,
    )
    assert repository.jobs()[0]["conclusion"] == "success"
    until(lambda: ground.run("up") and not ground.leftovers(), LIFE, "nothing is left", every=1)
    repository.delete()
