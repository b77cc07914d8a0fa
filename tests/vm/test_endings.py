"""`vmrunner serve` with real Gitea and QEMU: warm machines, every way for a job to lose its
machine, restarts that disturb nobody.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import libvirt
import pytest

from tests import daemons
from tests.forge.gitea import Repository, Site, until
from tests.ground import STORAGE, Ground
from tests.prepare import GITEA, IMAGES
from tests.vm.test_jobs import LIFE, records

pytestmark = pytest.mark.vm

JOB = """\
  {name}:
    runs-on: [{label}]
    steps:
      - run: |
          echo "{name} began on $(hostname)"
          {command}
          echo "{name} went on"
"""
LONG = "sleep 300"


def workflow(*jobs: tuple[str, str, str]) -> str:
    """Jobs by name, label and the command between their two lines."""
    return "on: [push, workflow_dispatch]\njobs:\n" + "".join(
        JOB.format(name=name, label=label, command=command) for name, label, command in jobs
    )


@contextmanager
def serving(ground: Ground, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`vmrunner serve` in the background; killed at the end if it still runs.

    Its log is printed for a test that fails.
    """
    process = ground.serve(*options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        print(log_of(ground))


def log_of(ground: Ground) -> str:
    return ground.log.read_text()


def events(ground: Ground) -> list[tuple[str, str]]:
    """What `serve --log-format json` logged: events, and the machines they are about."""
    lines = [json.loads(line) for line in log_of(ground).splitlines() if line.startswith("{")]
    return [(line["event"], line.get("machine", "")) for line in lines]


def job_named(repository: Repository, name: str) -> dict[str, Any]:
    """The newest job of this name; waits for the forge to list it."""
    found: list[dict[str, Any]] = until(
        lambda: [job for job in repository.jobs() if job["name"] == name], 30, f"the job {name}"
    )
    return found[-1]


def machine_of(ground: Ground, repository: Repository, name: str) -> str:
    """Wait until the first step of the job runs; its machine's name."""

    def began() -> str | None:
        job = job_named(repository, name)
        first = next(
            (step for step in job.get("steps") or [] if step.get("started_at", "1970") > "1971"),
            None,
        )
        return str(job["runner_name"]) if job["status"] == "in_progress" and first else None

    found: str = until(began, LIFE, f"the job {name} runs")
    return found


def completed(repository: Repository, name: str) -> dict[str, Any]:
    def done() -> dict[str, Any] | None:
        job = job_named(repository, name)
        return job if job["status"] == "completed" else None

    found: dict[str, Any] = until(done, LIFE, f"the job {name} is over")
    return found


def history(ground: Ground) -> dict[str, dict[str, Any]]:
    """Rows by job."""
    return {row["job"]: row for row in json.loads(ground.run("history", "--json").stdout)}


def qemu_of(machine: str) -> int:
    """The pid of a machine's QEMU."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if words[0].endswith(
                b"qemu-system-x86_64"
            ) and f"guest={machine},".encode() in b"\0".join(words):
                return int(path.parent.name)
    raise AssertionError(f"{machine} has no QEMU")


ENDINGS = {
    # The command of the job, what the job's log must say, the ending, and the forge's verdict.
    "killed": (LONG, "its QEMU process died", "died", "failure"),
    "panics": (
        "sync; sleep 3; echo c >/proc/sysrq-trigger; sleep 300",
        "its guest's kernel panicked",
        "died",
        "failure",
    ),
    "memory": (
        "echo 1000 >/proc/$PPID/oom_score_adj; tail /dev/zero",
        "its guest ran out of memory; its runner ended (exit 137) before its job did",
        "died",
        "failure",
    ),
    "overdue": (LONG, "its job did not end within 15 s", "job-timeout", "failure"),
    "stays": (
        "kill -STOP $(systemctl show --property MainPID --value vmrunner-guest.service); "
        "echo exit $(date +%s.%N) 0 >/dev/virtio-ports/org.vmrunner.events",
        "",
        "teardown-timeout",
        "success",
    ),
}


def test_every_way_to_lose_a_machine_fails_its_job_with_a_line_that_says_why(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    short = (
        '\n[pools.short]\nlabels = ["short"]\nimage = "test-gitea"\nmemory = "1GiB"\ndisk = '
        '"6GiB"\njob_timeout = "15s"\n'
    )
    ground = lay_ground(cloned=True, most=2, more=f'teardown_timeout = "5s"\n{short}')
    labels = {"overdue": "short"}
    jobs = [
        (name, labels.get(name, "debian-12"), command) for name, (command, *_) in ENDINGS.items()
    ]
    repository = site.repository("rig", "endings", workflow(*jobs))
    with serving(ground):
        machine = machine_of(ground, repository, "killed")
        os.kill(qemu_of(machine), signal.SIGKILL)
        began = time.monotonic()
        completed(repository, "killed")
        took = time.monotonic() - began
        for name, (_, said, _, verdict) in ENDINGS.items():
            done = completed(repository, name)
            log = repository.said(done["id"])
            assert done["conclusion"] == verdict, f"{name}: {log}"
            if said:
                assert (
                    f"vmrunner: machine {done['runner_name']} on host {socket.gethostname()} is "
                    f"gone: {said}" in log
                ), f"{name}: {log}"
                assert f"{name} went on" not in log
        until(lambda: not ground.leftovers(), LIFE, "nothing is left")
    print(f"the forge called the killed machine's job failed after {took:.1f} s")
    assert {name: row["ending"] for name, row in history(ground).items()} == {
        name: ending for name, (_, _, ending, _) in ENDINGS.items()
    }
    assert records(site, ground) == []
    repository.delete()


@pytest.fixture
def small_pool() -> Iterator[Path]:
    """A file system for a storage pool, with room for the image and some 300 MiB."""
    folder = Path("/var/lib/libvirt/small")
    folder.mkdir(exist_ok=True)
    size = sum(path.stat().st_size for path in (IMAGES / GITEA / "current").iterdir()) + (300 << 20)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(folder)], check=True
    )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.long
def test_a_full_disk_a_host_that_reboots_and_down_now(
    site: Site, lay_ground: Callable[..., Ground], small_pool: Path
) -> None:
    ground = lay_ground(most=1, more='[capacity]\ndisk_floor = "1MiB"\ndisk_guard = "0MiB"\n')
    text = ground.config.read_text().replace('"suite"', '"small"').replace("10.90.", "10.89.")
    ground.config.write_text(text.replace("[libvirt]", f'[libvirt]\nstorage_path = "{small_pool}"'))
    full = ("full", "debian-12", "head -c 500M /dev/urandom >/big; sync; sleep 300")
    repository = site.repository(
        "rig",
        "hosts",
        workflow(full, ("rebooted", "debian-12", LONG), ("stopped", "debian-12", LONG)),
    )
    with serving(ground):
        done = completed(repository, "full")
        assert (
            "is gone: its disk could not be written: the host's storage is full or failing"
            in repository.said(done["id"])
        )
        machine_of(ground, repository, "rebooted")
        reboot()
        done = completed(repository, "rebooted")
        assert f"vmrunner: machine {done['runner_name']} on host " in repository.said(done["id"])
        machine_of(ground, repository, "stopped")
        assert ground.run("down", "--all", "--now", "--purge", check=False).returncode == 0
        done = completed(repository, "stopped")
        assert "is gone: vmrunner down --now" in repository.said(done["id"])
    assert {row["job"]: row["ending"] for row in history(ground).values()} == {
        "full": "died",
        "rebooted": "died",
        "stopped": "stopped",
    }
    assert all(job["conclusion"] == "failure" for job in repository.jobs())
    assert (ground.leftovers(), records(site, ground)) == ([], [])
    repository.delete()


def reboot() -> None:
    """What a manager of another host sees of it: every QEMU and libvirt's daemons are gone at once,
    and these come back empty.
    """
    pids = [daemons.pid_of(daemon) for daemon in daemons.ALL if daemons.runs(daemon)]
    pids += [int(path.read_text()) for path in Path("/run/libvirt/qemu").glob("*.pid")]
    for each in pids:
        # One that has just ended by itself, whose file libvirtd had no time to delete.
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 90, "all are gone")
    daemons.start(daemons.MACHINES)


def test_a_cancelled_job_and_a_restart_that_disturbs_nobody(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(cloned=True, most=1, more='[metrics]\nlisten = "127.0.0.1:9751"\n')
    repository = site.repository("rig", "restarts", workflow(("runs", "debian-12", "sleep 15")))
    with serving(ground) as first:
        machine = machine_of(ground, repository, "runs")
        first.send_signal(signal.SIGTERM)
        assert first.wait(30) == 0
    assert "machines that run are left alone" in log_of(ground)
    with serving(ground, "--log-format", "json") as second:
        until(lambda: log_of(ground).count("serving") == 2, 30, "the second one serves")
        for daemon in daemons.ALL:
            daemons.restart(daemon)
        done = completed(repository, "runs")
        assert (done["conclusion"], done["runner_name"]) == ("success", machine), (
            "adopted, its job undisturbed"
        )
        until(lambda: not ground.leftovers(), 60, "nothing is left")
        figures = httpx.get("http://127.0.0.1:9751/metrics").text
        assert 'vmrunner_machines_total{ending="done",pool="main"} 1.0' in figures

        repository.push(workflow(("cancelled", "debian-12", LONG)), "cancelled.yaml")
        until(lambda: len(repository.jobs()) >= 3, 30, "the new jobs")
        machine = machine_of(ground, repository, "cancelled")
        until(
            lambda: ("job running", machine) in events(ground),
            30,
            "the manager has seen the job run",
        )
        site.cancel(job_named(repository, "cancelled"))
        until(
            lambda: history(ground).get("cancelled", {}).get("ending") == "cancelled",
            LIFE,
            "the cancelled job's machine is gone",
        )

        text = ground.config.read_text()
        ground.config.write_text(text.replace("max = 1", "max = one"))
        second.send_signal(signal.SIGHUP)
        until(
            lambda: "configuration not reloaded" in log_of(ground),
            30,
            "the wrong configuration is refused",
        )
        ground.config.write_text(text.replace("max = 1", "max = 2"))
        second.send_signal(signal.SIGHUP)
        until(lambda: "configuration reloaded" in log_of(ground), 30, "the right one is taken")
        assert ("machine destroyed", machine) in events(ground)
        repository.delete()
        assert ground.run("down").returncode == 0
    assert (ground.leftovers(), records(site, ground)) == ([], [])


@pytest.mark.long
def test_a_warm_machine_is_bound_to_the_job_that_comes(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(most=1, more="warm = 1\n")
    with serving(ground):
        until(
            lambda: [m for m in ground.status()["pools"][0]["machines"] if m["phase"] == "ready"],
            LIFE,
            "a warm machine",
        )
        (machine,) = ground.status()["pools"][0]["machines"]
        assert records(site, ground) == [], "registered nowhere"
        (seed,) = (STORAGE / ground.manager).glob("*.seed.iso")
        assert b"debian-12:host" not in seed.read_bytes(), "and its seed has no runner in it"
        repository = site.repository("rig", "warm", workflow(("quick", "debian-12", "true")))
        done = completed(repository, "quick")
        assert (done["conclusion"], done["runner_name"]) == ("success", machine["name"])
        until(lambda: machine["name"] not in str(ground.leftovers()), 60, "it served one job")
        until(
            lambda: [m for m in ground.status()["pools"][0]["machines"] if m["phase"] == "ready"],
            LIFE,
            "another warm machine",
        )
    repository.delete()
    ground.run("down")
    assert (ground.leftovers(), records(site, ground)) == ([], [])


def listing() -> str:
    """What virsh and nft show on this host."""
    virsh = ["list --all", "net-list --all", "pool-list --all", "nwfilter-list"]
    texts = [
        subprocess.run(
            ["virsh", "-c", "qemu:///system", *command.split()], capture_output=True, text=True
        ).stdout
        for command in virsh
    ]
    return "\n".join(
        [
            *texts,
            subprocess.run(
                ["nft", "--stateless", "--terse", "list", "ruleset"],
                capture_output=True,
                text=True,
                check=True,
            ).stdout,
            *sorted(path.name for path in Path("/var/log/libvirt/qemu").iterdir()),
        ]
    )


def test_purge_leaves_the_host_as_it_was(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(most=1)
    ground.config.write_text(
        ground.config.read_text().replace('"suite"', '"purged"').replace("10.90.", "10.94.")
    )
    # libvirt keeps empty tables of its own from the first network that ever starts on a host.
    network = libvirt.open("qemu:///system").networkCreateXML(
        "<network><name>first</name><forward mode='nat'/><ip address='10.95.0.1' "
        "netmask='255.255.255.0'/></network>"
    )
    network.destroy()
    before = listing()
    assert (
        ground.run("exec", "--image", "test-gitea", "--memory", "1GiB", "--", "true").returncode
        == 0
    )
    assert "vmr-purged" in listing()
    said = ground.run("down", "--all", "--purge").stdout
    assert "removed storage pool vmr-purged" in said
    assert listing() == before
    assert not (STORAGE / "purged").exists()
    assert ground.run("down", "--purge", check=False).returncode != 0, "only with --all"
