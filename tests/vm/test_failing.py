"""Machines that go wrong, on real libvirt and Gitea: one sentence, the console's tail, an exit
code, and nothing left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import libvirt
import pytest

from tests.forge.gitea import Site, until
from tests.ground import Ground
from tests.prepare import GITEA, IMAGES
from tests.vm.test_jobs import ONCE, records
from vmrunner import config
from vmrunner.errors import DiskFull, MachineError
from vmrunner.hypervisor.host import open_host
from vmrunner.image.versions import store

pytestmark = pytest.mark.vm
LIFE = 240.0


def image_with(ground: Ground, name: str, **changed: object) -> None:
    """A version of the test image with another manifest, in a store of the ground's own."""
    link = ground.folder / "state" / "images"
    published = link.resolve()
    link.unlink()
    version = (published / GITEA / "current").resolve()
    copy = link / name / version.name
    copy.mkdir(parents=True)
    for part in version.iterdir():
        (copy / part.name).symlink_to(part)
    manifest = json.loads((version / "manifest.json").read_text()) | {"name": name} | changed
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    (link / name / "current").symlink_to(version.name)


def pass_until_it_fails(ground: Ground) -> subprocess.CompletedProcess[str]:
    def failed() -> subprocess.CompletedProcess[str] | None:
        done = ground.run("up", check=False)
        return done if done.returncode else None

    found: subprocess.CompletedProcess[str] = until(
        failed, LIFE, "the pass that gives the machine up", every=1
    )
    return found


@pytest.mark.parametrize(
    ("kernel_arguments", "timeout", "said"),
    [
        pytest.param(
            "init=/bin/sh", 20, "its guest did not come up within 20 s", marks=pytest.mark.long
        ),
        ("panic=1 init=/bin/false", 120, "its guest's kernel panicked"),
    ],
    ids=["hangs", "panics"],
)
def test_a_guest_that_never_comes_up(
    site: Site, lay_ground: Callable[..., Ground], kernel_arguments: str, timeout: int, said: str
) -> None:
    ground = lay_ground(image="broken", most=1, more=f'boot_timeout = "{timeout}s"')
    image_with(
        ground, "broken", kernel_arguments=f"root=/dev/vda rw console=ttyS0 {kernel_arguments}"
    )
    repository = site.repository("rig", "panic", ONCE)
    until(lambda: len(repository.jobs()) == 1, 30, "the job")
    done, failed = pass_until_it_fails(ground), 1
    if "panicked" in said and "its guest did not come up" in done.stderr:
        # Seen in two of 22 runs of one day, never before, and not explained (no KVM here): the
        # first disk does not answer, so the kernel waits, and comes to no panic.
        print(done.stderr)
        done, failed = pass_until_it_fails(ground), 2
    assert (done.returncode, said in done.stderr) == (MachineError.exit_code, True), done.stderr
    assert "Its console ended with:\n  " in done.stderr, "the console's tail is shown"
    status = ground.status()
    (pool,), (waiting,) = status["pools"], status["waiting"]
    assert (pool["machines"], pool["failed"], said in pool["backoff"]["last"]) == (
        [],
        failed,
        True,
    )
    assert waiting["kind"] == "backed off" or not pool["backoff"]["seconds"], waiting
    ground.run("up")
    (pool,) = ground.status()["pools"]
    assert not pool["machines"] or not pool["backoff"]["seconds"], "no tight loop"
    rows = json.loads(ground.run("history", "--failed", "--json").stdout)
    assert len(rows) == failed
    assert any(said in row["reason"] for row in rows)
    repository.delete()
    ground.run("down")
    assert (ground.leftovers(), records(site, ground)) == ([], [])


@contextmanager
def forwarded(host: str, port: int) -> Iterator[int]:
    """A loopback port that leads to the forge: this host reaches it, a guest finds only itself
    there.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                threading.Thread(target=both_ways, args=(near,), daemon=True).start()

    def both_ways(near: socket.socket) -> None:
        with near, socket.create_connection((host, port)) as far:
            back = threading.Thread(target=copy, args=(far, near))
            back.start()
            copy(near, far)
            back.join()

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    server.join(5)


def test_a_runner_that_never_connects(site: Site, lay_ground: Callable[..., Ground]) -> None:
    with forwarded("forge.example", 3000) as port:
        ground = lay_ground(
            url=f"http://127.0.0.1:{port}",
            cloned=True,
            most=1,
            more='boot_timeout = "90s"\npickup_timeout = "5s"',
        )
        repository = site.repository("rig", "lonely", ONCE)
        until(lambda: len(repository.jobs()) == 1, 30, "the job")
        done = pass_until_it_fails(ground)
        assert done.returncode == MachineError.exit_code
        assert "its runner did not connect to the forge within 5 s" in done.stderr
        assert "connection refused" in done.stderr, "the console's tail is shown"
        repository.delete()
        ground.run("down")
        assert (ground.leftovers(), records(site, ground)) == ([], [])


@pytest.fixture
def start_exec() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`vmrunner exec` in the background; killed at the end if it still runs."""
    with ExitStack() as stack:

        def start(ground: Ground, *command: str) -> subprocess.Popen[str]:
            work = subprocess.Popen(
                ground.command("exec", "--image", GITEA, "--memory", "1GiB", "--", *command),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"VMRUNNER_CONFIG": str(ground.config)},
            )
            stack.callback(work.communicate)
            stack.callback(work.kill)
            return work

        yield start


StartExec = Callable[..., subprocess.Popen[str]]


@pytest.mark.long
def test_exec_streams_and_returns_the_commands_exit_code(
    lay_ground: Callable[..., Ground], start_exec: StartExec
) -> None:
    ground = lay_ground()
    work = start_exec(ground, "sh", "-c", "echo first; sleep 5; echo last; echo wrong >&2; exit 42")
    assert work.stdout is not None
    first, at = work.stdout.readline(), time.monotonic()
    rest, said = work.communicate(timeout=LIFE)
    assert (first, rest, work.returncode) == ("first\n", "last\n", 42)
    assert time.monotonic() - at > 2, "the first line came while the command still ran"
    assert said.splitlines()[-2] == "wrong"
    assert ground.leftovers() == []


def test_exec_interrupted_or_killed_leaves_nothing(
    lay_ground: Callable[..., Ground], start_exec: StartExec
) -> None:
    ground = lay_ground()
    for number in (signal.SIGINT, signal.SIGTERM):
        work = start_exec(ground, "sleep", "600")
        until(
            lambda: [left for left in ground.leftovers() if left.startswith("domain")],
            60,
            "the domain",
        )
        work.send_signal(number)
        _, said = work.communicate(timeout=60)
        ended = (work.returncode, said.rstrip().endswith(": destroyed"))
        assert ended == (128 + number, True), said
        assert ground.leftovers() == []
    work = start_exec(ground, "sleep", "600")
    until(
        lambda: [left for left in ground.leftovers() if left.startswith("domain")], 60, "the domain"
    )
    ground.run("up")
    assert ground.leftovers(), "a machine whose exec lives is left alone"
    work.kill()
    work.communicate()
    ground.run("up")
    assert ground.leftovers() == []


def test_exec_times_out(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    done = ground.run(
        "exec", "--image", GITEA, "--timeout", "2s", "--", "sleep", "600", check=False
    )
    assert done.returncode == MachineError.exit_code
    assert "did not end within 2 s" in done.stderr or "ended before the command did" in done.stderr
    assert ground.leftovers() == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for an image and little else; the storage pool on it is forgotten
    again.
    """
    small = tmp_path / "small"
    small.mkdir()
    size = sum(path.stat().st_size for path in (IMAGES / GITEA / "current").iterdir()) + (8 << 20)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "none", str(small)], check=True
    )
    yield small
    pool = libvirt.open("qemu:///system").storagePoolLookupByName("vmr-small")
    pool.destroy()
    pool.undefine()
    subprocess.run(["umount", "-l", str(small)], check=True)


@pytest.mark.parametrize("room", ["for nothing", "for the image only"])
def test_a_full_disk(lay_ground: Callable[..., Ground], small_disk: Path, room: str) -> None:
    ground = lay_ground()
    text = (
        ground.config.read_text()
        .replace('manager = "suite"', 'manager = "small"')
        .replace("10.90.", "10.89.")
    )
    ground.config.write_text(text.replace("[libvirt]", f'[libvirt]\nstorage_path = "{small_disk}"'))
    if room == "for the image only":
        open_host(config.load(ground.config), print).prepare(store.find(IMAGES, GITEA))
    with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
        while filler.write(bytes(1 << 20)):
            pass
    done = ground.run("exec", "--image", GITEA, "--", "true", check=False)
    assert (done.returncode, "The storage pool is full" in done.stderr) == (
        DiskFull.exit_code,
        True,
    ), done.stderr
    assert not [
        path.name for path in (small_disk / "small").iterdir() if path.name.startswith("vmr-")
    ]
    assert libvirt.open("qemu:///system").isAlive(), "libvirtd survived it"
