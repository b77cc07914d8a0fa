"""A machine that waits for its seed, with a file as the disk: what it reads there, and what it does
then.
"""

from __future__ import annotations

import json
import mmap
import os
import stat
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.guest.programs import GUEST, Ended
from tests.unit.machine.test_seed import JOB, MACHINE, told
from vmrunner.hypervisor.seam import SEED_SIZE
from vmrunner.machine.seed import exec_script, iso, job_script, rehearsal_script, wait_script

Guest = Any
FOUR, SIX = IPv4Interface("10.87.0.9/24"), IPv6Interface("fd87::9/64")
CODE = wait_script().splitlines()[1].removeprefix("CODE = ").strip("'")


def read(guest: Guest, content: bytes) -> dict[str, str]:
    """A seed's files, as the guest reads them from its disk."""
    guest.DISK.write_bytes(content)
    seed = mmap.mmap(-1, guest.SIZE)
    files: dict[str, str] = guest.read_seed(seed)
    return files


@pytest.fixture(autouse=True)
def _disk(guest: Guest, tmp_path: Path) -> None:
    guest.DISK = tmp_path / "disk"


# ---- what it reads ----


def test_a_seed_is_as_big_as_the_guest_takes_it_to_be(guest: Guest) -> None:
    assert guest.SIZE == SEED_SIZE


@pytest.mark.parametrize("user_data", ["#!/bin/sh\n", "ü\n" * 2048, "x" * 2048, "y" * 700_000])
def test_the_files_of_a_seed(guest: Guest, user_data: str) -> None:
    files = read(guest, iso(MACHINE, user_data, FOUR))
    assert files.keys() >= {"meta-data", "network-config", "user-data"}
    assert files["user-data"] == user_data
    meta = dict(guest.META.findall(files["meta-data"]))
    assert (meta["local-hostname"], len(bytes.fromhex(meta["vmrunner-entropy"]))) == (
        str(MACHINE),
        64,
    )
    assert abs(float(meta["vmrunner-time"]) - time.time()) < 60
    assert "vmrunner-rehearsal" not in meta


def by_the_shell(guest: Guest, config: str) -> list[str]:
    """What the seed reader of a machine that boots makes of it: the lines of systemd's file."""
    text = (GUEST / "vmrunner-guest").read_text()
    begins = text.index("configure_network() {")
    function = text[begins : text.index("\n}\n", begins) + 3]
    assert "/run/systemd/network/00-vmrunner.network" in function
    function = function.replace("/run/systemd/network", "$folder")
    stubs = "networkctl() { :; }; until_true() { :; }; "
    folder = guest.DISK.parent
    (folder / "config").write_text(config)
    subprocess.run(
        [
            "sh",
            "-euc",
            f"folder=$1; {stubs}{function}configure_network $0",
            folder / "config",
            folder,
        ],
        check=True,
    )
    return (folder / "00-vmrunner.network").read_text().splitlines()


@pytest.mark.parametrize("six", [None, SIX])
def test_who_boots_and_who_is_cloned_read_the_same_network(
    guest: Guest, six: IPv6Interface | None
) -> None:
    """Two programs read what one template writes."""
    config = read(guest, iso(MACHINE, "", FOUR, six))["network-config"]
    assert config.endswith("        - 10.87.0.1\n")
    config = config.removesuffix("10.87.0.1\n") + "10.87.0.53\n"  # so that it is not the gateway
    mac, address, gateway, resolver, address6, gateway6 = guest.read_network(config)
    assert (mac, address, gateway, resolver) == (
        MACHINE.mac,
        "10.87.0.9/24",
        "10.87.0.1",
        "10.87.0.53",
    )
    assert (address6, gateway6) == (("fd87::9/64", "fd87::1") if six else ("", ""))
    lines = by_the_shell(guest, config)
    for section, key, value in (
        ("[Match]", "MACAddress", mac),
        ("[Network]", "Address", address),
        ("[Network]", "Gateway", gateway),
        ("[Network]", "DNS", resolver),
    ):
        assert f"{key}={value}" in lines[lines.index(section) :]
    others = [f"Gateway={gateway6}", "[Address]", f"Address={address6}"]
    assert [line in lines for line in others] == [bool(six)] * 3


def test_a_seed_without_an_address_is_none_to_connect_with(guest: Guest) -> None:
    config = read(guest, iso(MACHINE, "", None))["network-config"]
    with pytest.raises(ValueError, match="network-config has no macaddress"):
        guest.read_network(config)


# ---- what it does to the machine ----

CONNECT = """
import sys
from pathlib import Path
from tests.unit.guest.programs import load
guest, resolv = load("job.py"), Path(sys.argv[1])
guest.Path = lambda path: {"/etc/resolv.conf": resolv}[path]
guest.connect(sys.argv[2], "eth0")
"""


def test_connect(guest: Guest) -> None:
    """In a network namespace: MAC, addresses, routes and resolver are those of the seed."""
    config = read(guest, iso(MACHINE, "", FOUR, SIX))["network-config"]
    resolv = guest.DISK.parent / "resolv.conf"
    # Its MAC is set before it is up, and a link-local address is none of ours.
    script = """set -e
ip link add eth0 type veth peer name far
echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip link set far up
ip link set eth0 up
"$@"
ip -o link show eth0
ip -o addr show eth0
ip route
ip -6 route
"""
    done = subprocess.run(
        [
            "unshare",
            "--net",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-c",
            CONNECT,
            resolv,
            config,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"link/ether {MACHINE.mac}" in done.stdout
    assert "inet 10.87.0.9/24" in done.stdout
    assert "default via 10.87.0.1 dev eth0" in done.stdout
    assert "inet6 fd87::9/64" in done.stdout
    assert "default via fd87::1 dev eth0" in done.stdout
    assert "inet6 fe80" not in done.stdout
    assert "tentative" not in done.stdout, "nobody is asked for it"
    assert resolv.read_text() == "nameserver 10.87.0.1\n"


def elsewhere(folder: Path) -> Callable[[str], Path]:
    """In the place of Path: every file is in this folder."""
    return lambda path: folder / Path(path).name


def test_a_clone_has_ids_of_its_own(guest: Guest, tmp_path: Path) -> None:
    mounted: list[Any] = []
    guest.Path, guest.mount = elsewhere(tmp_path), lambda *what: mounted.append(what)
    named: list[Any] = []
    guest.libc = SimpleNamespace(sethostname=lambda *name: named.append(name))
    (tmp_path / "machine-id").write_text("of the snapshot\n")
    ids = set()
    for _ in range(2):
        guest.identify({"local-hostname": "vmr-a", "vmrunner-machine-id": "5e" * 16})
        ids.add((tmp_path / "vmrunner-boot-id").read_text().rstrip())
    assert named[0] == (b"vmr-a", 5)
    assert (tmp_path / "hostname").read_text() == "vmr-a\n"
    assert (tmp_path / "machine-id").read_text() == "5e" * 16 + "\n"
    assert stat.S_IMODE((tmp_path / "machine-id").stat().st_mode) == 0o444
    assert mounted[0] == (tmp_path / "vmrunner-boot-id", tmp_path / "boot_id", "", guest.MS_BIND)
    assert [uuid.UUID(each).version for each in ids] == [4, 4]


@pytest.mark.parametrize(("of_the_host", "kept"), [(5.0, 9.0), (12.5, 12.5)])
def test_a_clone_has_a_clock_and_random_numbers_of_its_own(
    guest: Guest, of_the_host: float, kept: float
) -> None:
    clock: list[float] = []
    guest.time = SimpleNamespace(
        CLOCK_REALTIME=0, time=lambda: 9.0, clock_settime=lambda _, seconds: clock.append(seconds)
    )
    calls: list[Any] = []
    guest.fcntl = SimpleNamespace(ioctl=lambda _, *call: calls.append(call))
    guest.stir({"vmrunner-time": str(of_the_host), "vmrunner-entropy": "5e" * 64})
    assert clock == [kept], "it never goes back"
    # A struct rand_pool_info: bits, bytes, and those.
    assert calls == [
        (guest.RNDADDENTROPY, struct.pack("ii", 512, 64) + b"\x5e" * 64),
        (guest.RNDRESEEDCRNG,),
    ]


@pytest.fixture
def mute(guest: Guest, tmp_path: Path) -> Guest:
    """As a machine is before it is warmed up; only hooks are really run."""
    (tmp_path / "eth0").mkdir()
    guest.IPV6, guest.PROC = tmp_path, tmp_path / "proc"
    guest.IS_READY.unlink()
    guest.fcntl = SimpleNamespace(ioctl=lambda *_: None)
    guest.mount = lambda *_: None
    guest.os = SimpleNamespace(**vars(os) | {"sync": lambda: None})

    def run(command: list[Any], **options: Any) -> Any:
        if Path(command[0]).parent == guest.BEFORE_READY:
            return subprocess.run(command, **options)
        return subprocess.CompletedProcess(command, 0)

    guest.subprocess = SimpleNamespace(**vars(subprocess) | {"run": run})
    guest.BEFORE_READY.mkdir()
    return guest


def hook(guest: Guest, text: str) -> None:
    (guest.BEFORE_READY / "one").write_text(f"#!/bin/sh\n{text}\n")
    (guest.BEFORE_READY / "one").chmod(0o755)


def test_hooks_of_a_machine_that_waits_know_when_it_is_cloned(mute: Guest, tmp_path: Path) -> None:
    told, teller = os.pipe()
    hook(mute, f'(read -r _ <"$VMRUNNER_CLONED"; echo "$1" >{tmp_path}/heard) </dev/null &')
    mute.warm_up(told, "eth0")
    os.close(told)
    assert mute.IS_READY.exists(), "so that the job does not run them again"
    assert (tmp_path / "eth0/disable_ipv6").read_text() == "1"
    assert not (tmp_path / "heard").exists()
    os.close(teller)
    for _ in range(500):
        if (tmp_path / "heard").exists() and (tmp_path / "heard").read_text():
            break
        time.sleep(0.01)
    assert (tmp_path / "heard").read_text() == "waits\n"


def test_a_machine_whose_hook_fails_is_never_ready(mute: Guest) -> None:
    told, teller = os.pipe()
    hook(mute, "exit 3")
    with pytest.raises(SystemExit, match=r"one, which comes before .* failed \(exit 3\)"):
        mute.warm_up(told, "eth0")
    os.close(told)
    os.close(teller)
    assert not mute.IS_READY.exists()


# ---- until there is a seed with a job ----


class Host:
    """What a host does while a machine sleeps, one thing each time."""

    def __init__(self, guest: Guest, tmp_path: Path) -> None:
        self.guest, self.calls, self.told = guest, [], -1
        self.acts: list[Callable[[], object]] = []
        (tmp_path / "links").mkdir()
        for link in ("eth0", "lo"):
            (tmp_path / "links" / link).touch()
        guest.LINKS, guest.SCRIPT = tmp_path / "links", tmp_path / "script"
        guest.warm_up = self.warm_up
        guest.runners = list
        guest.stir = lambda meta: self.calls.append("stir")
        guest.identify = lambda meta: self.calls.append(f"identify {meta['local-hostname']}")
        guest.connect = lambda config, link: self.calls.append(f"connect {link}")
        guest.time = SimpleNamespace(**vars(time) | {"sleep": self.sleep})
        guest.run_job = self.run_job
        self.give(wait_script(), None)

    calls: list[Any]

    def give(self, user_data: str, address: IPv4Interface | None, **more: bool) -> None:
        """Another seed."""
        self.guest.DISK.write_bytes(iso(MACHINE, user_data, address, **more))

    def warm_up(self, told: int, link: str) -> None:
        self.told = told
        os.set_blocking(told, False)
        self.calls.append(f"warm up {link}")

    def is_cloned(self) -> bool:
        """What hooks know."""
        try:
            return os.read(self.told, 1) == b""
        except BlockingIOError:
            return False

    def sleep(self, _: float) -> None:
        assert self.acts, "it waits for ever"
        self.acts.pop(0)()

    def run_job(self, job: Any, *rest: Any) -> None:
        self.calls.append(("job", job, *rest))
        raise Ended

    def said(self) -> list[str]:
        return [line.split()[0] for line in self.guest.EVENTS.read_text().splitlines()]

    def marks(self) -> list[str]:
        """What was done before the last word, as far as it tells when."""
        last = self.guest.EVENTS.read_text().splitlines()[-1]
        return [mark.partition("=")[0] for mark in last.split()[2:]]


@pytest.fixture
def host(guest: Guest, tmp_path: Path) -> Host:
    return Host(guest, tmp_path)


def test_a_job_of_the_same_code_is_done_right_here(host: Host) -> None:
    script = job_script(JOB)
    quiet: list[bool] = []
    host.acts = [
        lambda: quiet.append(host.is_cloned()),
        lambda: host.calls.append("sleeps"),
        lambda: host.give(script, FOUR),
    ]
    with pytest.raises(Ended):
        host.guest.wait(CODE, "{}")
    assert host.calls == [
        "warm up eth0",
        "sleeps",
        "stir",
        f"identify {MACHINE}",
        "connect eth0",
        ("job", told(script), None, []),
    ]
    assert host.said() == ["ready", "seed"]
    assert host.marks() == ["seen", "read", "stirred", "chosen"]
    assert (quiet, host.is_cloned()) == ([False], True)


def test_the_runner_that_waits_takes_the_job_and_the_others_go(host: Host) -> None:
    root, other = SimpleNamespace(user="root"), SimpleNamespace(user="runner")
    rehearsed: list[Any] = []
    host.guest.runners = lambda: [root, other]
    host.guest.rehearse = rehearsed.append
    host.guest.chosen = lambda job, waiting: next(
        each for each in waiting if each.user == job["user"]
    )
    host.acts = [lambda: host.give(job_script(JOB), FOUR)]
    with pytest.raises(Ended):
        host.guest.wait(CODE, '{"a": 1}')
    assert host.calls[-1][2:] == (root, [other])
    assert rehearsed == [{"a": 1}], "before it was ready"


@pytest.mark.parametrize("of", ["another code", "a command"])
def test_any_other_script_is_run_by_its_interpreter(host: Host, of: str) -> None:
    text = exec_script(["true"], JOB.job_timeout) if of == "a command" else job_script(JOB)
    dropped: list[str] = []
    host.guest.runners = lambda: [SimpleNamespace(drop=lambda: dropped.append("root"))]
    host.guest.rehearse = lambda _: None

    def execute(program: str, words: list[str]) -> None:
        host.calls.append([program, *words])
        raise Ended

    host.guest.os = SimpleNamespace(**vars(os) | {"execv": execute})
    host.acts = [lambda: host.give(text, FOUR)]
    with pytest.raises(Ended):
        host.guest.wait(CODE if of == "a command" else "another", "{}")
    program = "/bin/sh" if of == "a command" else "/usr/bin/python3"
    assert host.calls[-1] == [program, program, str(host.guest.SCRIPT)]
    assert (host.guest.SCRIPT.read_text(), dropped) == (text, ["root"])
    assert stat.S_IMODE(host.guest.SCRIPT.stat().st_mode) == 0o600, "it has credentials in it"


@pytest.mark.parametrize("ends", [True, False])
def test_a_rehearsal_is_no_job_and_does_not_outlast_the_wait(host: Host, ends: bool) -> None:
    begun: list[Any] = []
    child: list[subprocess.Popen[bytes]] = []

    def apart(job: Any) -> int:
        begun.append(job)
        child.append(subprocess.Popen(["sleep", "60"], start_new_session=True))
        return child[0].pid

    def end() -> None:
        child[0].kill()
        os.waitid(os.P_PID, child[0].pid, os.WEXITED | os.WNOWAIT)

    script = rehearsal_script("gitea", MACHINE, "root")
    host.guest.apart = apart
    host.acts = [
        lambda: host.give(script, None, rehearsal=True),
        *([end] if ends else []),
        lambda: host.calls.append("sleeps"),
        lambda: host.give(job_script(JOB), FOUR),
    ]
    with pytest.raises(Ended):
        host.guest.wait(CODE, "{}")
    assert begun == [json.loads(script)]
    assert host.calls[:4] == ["warm up eth0", "stir", "sleeps", "stir"]
    assert host.said() == ["ready", *(["rehearsed"] if ends else []), "seed"]
    assert host.marks() == ["seen", "read", "stirred", "chosen"], "of the job's seed alone"
    if not ends:
        assert child[0].wait(10) == -15
    child[0].returncode = 0  # waited for
