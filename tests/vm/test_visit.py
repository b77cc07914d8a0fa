"""A person in a machine: `vmrunner ssh`, `cp` and `console`, to machines whose job runs, that reach
nothing but their forge.
"""

from __future__ import annotations

import hashlib
import os
import pty
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.forge.gitea import Site, until
from tests.ground import Ground
from vmrunner.waiting import Deadline

pytestmark = pytest.mark.vm
WAIT = 120.0  # seconds, on a slow day
PROMPT = b"login: "  # of the console
JOB = """\
on: [push]
jobs:
  long:
    runs-on: [debian-12]
    steps:
      - run: |
          mkdir /tmp/out
          head -c 300000 /dev/urandom >/tmp/out/data
          touch /tmp/out/whole
          sleep 600
"""
LOOK = r"""
until [ -e /tmp/out/whole ]; do sleep 0.1; done
sha256sum </tmp/out/data
hostname
cat /run/vmrunner-door/authorized_keys | wc -l
pgrep -c 'sshd|sshd-session' || :
ls -A ~/.ssh /etc/ssh | grep -E 'authorized|host_' || echo nothing else
timeout 2 bash -c 'exec 3<>/dev/tcp/192.0.2.1/80' 2>/dev/null && echo open || echo closed
read -r line; echo "heard $line"
echo oh >&2
exit 7
"""


def job_on(ground: Ground, site: Site, name: str) -> str:
    """The machine that a job which lasts runs on."""
    site.repository("rig", name, JOB)

    def made() -> str | None:
        ground.run("up")
        machines = ground.status()["pools"][0]["machines"]
        return next((each["name"] for each in machines if each["phase"] != "ready"), None)

    found: str = until(made, WAIT, "a machine for the job")
    return found


def look(ground: Ground, machine: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ground.command("-c", str(ground.config), "ssh", machine, "--", "bash", "-c", LOOK),
        input="my words\n",
        capture_output=True,
        text=True,
        timeout=WAIT,
        check=False,
    )


def check_visit(ground: Ground, machine: str) -> str:
    """Look around; the digest of what the job made."""
    done = look(ground, machine)
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (7, ["oh"]), done
    digest, name, keys, servers, others, network, heard = done.stdout.splitlines()
    assert (name, keys, others) == (machine, "1", "nothing else")
    assert (network, heard) == ("closed", "heard my words")
    assert int(servers) <= 3, "of this session alone"
    return digest.split()[0]


def test_into_a_clone_whose_job_runs(lay_ground: Callable[..., Ground], site: Site) -> None:
    ground = lay_ground(cloned=True, most=1, more='network = "none"')
    machine = job_on(ground, site, "way-in")
    digest = check_visit(ground, machine)
    ground.run("cp", "-r", f"{machine[-8:]}:/tmp/out", str(ground.folder / "copied"))
    assert hashlib.sha256((ground.folder / "copied/data").read_bytes()).hexdigest() == digest
    ground.run("down", "--now")


@pytest.mark.long
@pytest.mark.parametrize("mode", ["booted", "parked"])
def test_into_other_machines_from_a_host_whose_serve_was_killed(
    lay_ground: Callable[..., Ground], site: Site, mode: str
) -> None:
    warm = "\nwarm = 1" if mode == "parked" else ""
    ground = lay_ground(cloned=mode == "parked", most=1, more=f'network = "none"{warm}')
    if mode == "parked":

        def parked() -> str | None:
            ground.run("up")
            return next(
                (
                    each["name"]
                    for each in ground.status()["pools"][0]["machines"]
                    if "is paused"
                    in ground.run("ssh", each["name"], "--", "true", check=False).stderr
                ),
                None,
            )

        until(parked, WAIT, "a clone that is parked, which nobody enters")
    serving = ground.serve()
    try:
        site.repository("rig", f"way-in-{mode}", JOB)

        def bound() -> str | None:
            machines = ground.status()["pools"][0]["machines"]
            return next((each["name"] for each in machines if each["phase"] != "ready"), None)

        machine: str = until(bound, WAIT, "a machine for the job")
    finally:
        serving.kill()
        serving.wait()
    check_visit(ground, machine)
    check_visitors(ground, machine)
    check_terminal(ground, machine)
    check_console(ground, machine)
    ground.run("down", "--now")


def check_visitors(ground: Ground, machine: str) -> None:
    """One at a time; and one that is killed leaves the door closed."""
    visitor = subprocess.Popen(
        ground.command(
            "-c", str(ground.config), "ssh", machine, "--", "sh", "-c", "echo in; exec sleep 1000"
        ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert visitor.stdout
    with visitor.stdout:
        assert visitor.stdout.readline() == b"in\n"
        second = ground.run("ssh", machine, "--", "true", check=False)
        assert (second.returncode, "Somebody is at the door" in second.stderr) == (5, True)
        visitor.send_signal(signal.SIGKILL)
        visitor.wait()
    check_visit(ground, machine)


def on_a_terminal(
    ground: Ground, command: list[str], says: list[tuple[bytes, bytes]]
) -> tuple[bytes, int]:
    """What a command shows, and its exit code, when a person types each answer after its words."""
    child, terminal = pty.fork()
    if not child:
        words = ground.command("-c", str(ground.config), *command)
        os.execv(words[0], words)  # noqa: S606 — ours
    shown, deadline = b"", Deadline(WAIT)
    for words, answer in [*says, (b"never said", b"")]:
        seen = len(shown)
        while words not in shown[seen:] and not deadline.is_over:
            if select.select([terminal], [], [], 1)[0]:
                try:
                    shown += os.read(terminal, 4096)
                except OSError:  # the other end is closed
                    break
            elif words == PROMPT:
                os.write(terminal, b"\r")
        if answer:
            os.write(terminal, answer)
    assert not deadline.is_over, shown
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(terminal)
    return shown, code


def check_terminal(ground: Ground, machine: str) -> None:
    """A shell on a terminal of the machine's, as big as this one."""
    says = [(b"# ", b"tty; stty size; stty -echo\r"), (b"0 0", b"exit 5\r")]
    shown, code = on_a_terminal(ground, ["ssh", machine], says)
    assert (b"/dev/pts/" in shown, code) == (True, 5), shown


def check_console(ground: Ground, machine: str) -> None:
    """What is typed there arrives, and is in the machine's log; Ctrl-] leaves."""
    refused = ground.run("console", machine, check=False)
    assert (refused.returncode, "needs a terminal" in refused.stderr) == (2, True)
    says = [(b"leaves.", b"\r"), (PROMPT, b"somebody\r"), (b"Password", b"\x1d")]
    shown, code = on_a_terminal(ground, ["console", machine], says)
    assert code == 0, shown
    log = Path(f"/var/lib/libvirt/vmrunner/{ground.manager}/{machine}.console")
    assert b"somebody" in log.read_bytes()
