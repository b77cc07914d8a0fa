"""What runs in a machine to start its job."""

from __future__ import annotations

import json
import os
import pwd
import re
import ssl
import stat
import subprocess
import time
import types
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
import trustme

from tests.unit.guest.programs import Ended
from vmrunner import render
from vmrunner.machine.seed import rehearsal_script
from vmrunner.model.machine import MachineId

Guest = Any


def job(guest: Guest, **more: Any) -> dict[str, Any]:
    """What a host tells, as far as it matters here."""
    plain = {
        "user": "root",
        "runner_kind": "gitea-runner",
        "runner_path": "",
        "arguments": ["daemon", "--once", "--config", "config.yaml"],
        "files": {".runner": "registration\n", "config.yaml": "config\n"},
        "environment": {},
        "settings": {},
        "packages": {},
        "tools": False,
        "ca": "",
        "ca_bundle": str(guest.WORK.parent / "bundle/ca.pem"),
        "url": "",  # not watched
        "forge_address": "",
        "forge_host": "forge.example",
        "forge_site": "forge.example:3000",
        "seconds": 60,
        "pickup_seconds": 30,
        "stay_seconds": 0,
        "hold_program": "",
        "hold_longer": 3600,
    }
    return plain | more


def run(guest: Guest, told: dict[str, Any], waiting: Any = None) -> list[str]:
    """The machine's whole life; what it reported."""
    with pytest.raises(Ended):
        guest.run_job(told, waiting)
    told = [
        " ".join(line.split()[:1] + line.split()[2:])
        for line in guest.EVENTS.read_text().splitlines()
        if not line.startswith(("clock ", "used "))  # see test_what_it_says_of_itself
    ]
    return [re.sub(r"^runner prepared=\d+$", "runner", line) for line in told]


def said(guest: Guest) -> list[str]:
    return (guest.WORK.parent / "said").read_text().splitlines()


def test_a_job_has_what_a_login_has(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("JOURNAL_STREAM", "INVOCATION_ID", "TERM", "SYSTEMD_EXEC_PID"):
        monkeypatch.setenv(name, "x")
    guest.ENVIRONMENT.write_text(
        "export FLAVOUR='vanilla and '\"'\"'mint'\"'\"\nexport PATH=/opt/bin:/bin:/usr/bin\n"
    )
    before = os.umask(0o077)
    try:
        assert run(guest, job(guest)) == ["runner", "exit 0"]
    finally:
        os.umask(before)
    umask, soft, hard, *rest = said(guest)
    assert umask == "0022"
    assert (soft, int(hard) <= 524288) == ("1024", True)
    names = {line.partition("=")[0] for line in rest if "=" in line} - {
        "PWD",
        "SHLVL",
        "_",
        "OLDPWD",
    }
    assert names == {"PATH", "LANG", "HOME", "USER", "LOGNAME", "SHELL", "FLAVOUR"}
    assert {
        "HOME=/root",
        "USER=root",
        "LOGNAME=root",
        "FLAVOUR=vanilla and 'mint'",
        "PATH=/opt/bin:/bin:/usr/bin",
    } <= set(rest)
    assert rest[-2:] == ["config", "registration"]
    for file in (guest.JOB_FOLDER / "root").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(guest.WORK.stat().st_mode) == 0o1777


def test_the_jobs_user(guest: Guest) -> None:
    nobody = pwd.getpwnam("nobody")
    folder = guest.WORK.parent
    (folder / "said").touch()
    for path in (folder / "said", folder / "codes", folder, *folder.parents):
        if path.parent.is_relative_to("/tmp"):
            path.chmod(0o777)
    run(guest, job(guest, user="nobody"))
    assert {"USER=nobody", "LOGNAME=nobody", f"HOME={nobody.pw_dir}"} <= set(said(guest))
    folder = guest.JOB_FOLDER / "nobody"
    assert {folder.stat().st_uid, *(file.stat().st_uid for file in folder.iterdir())} == {
        nobody.pw_uid
    }


@pytest.mark.parametrize(
    ("told", "end"),
    [
        (
            {"user": "nobody-at-all"},
            "exit the image has no user nobody-at-all, which its pool's job_user asks for",
        ),
        (
            {"runner_kind": "forgejo-runner"},
            "exit the image carries gitea-runner, the forge needs forgejo-runner",
        ),
    ],
)
def test_an_image_that_can_not(guest: Guest, told: dict[str, Any], end: str) -> None:
    assert run(guest, job(guest, **told))[0] == end


def test_a_runner_that_is_missing(guest: Guest) -> None:
    assert (
        run(guest, job(guest, runner_path="/nowhere/runner"))[0]
        == "exit /nowhere/runner does not start: No such file or directory"
    )


def test_what_it_says_of_itself(guest: Guest) -> None:
    """What its kernel's own lines go by, and the most memory that it had in use."""
    memory = "MemTotal: {} kB\nMemFree: 1 kB\nMemAvailable: 1024 kB\n"
    told = iter([memory.format(kib) for kib in (2048, 6144)])
    guest.MEMORY = types.SimpleNamespace(read_text=lambda: next(told, memory.format(3072)))
    guest.LOOK = 0.01
    (guest.WORK.parent / "gitea-runner").write_text("#!/bin/sh\nsleep 0.2\n")
    run(guest, job(guest))
    words = {line.split()[0]: line.split()[2] for line in guest.EVENTS.read_text().splitlines()}
    assert words["used"] == "5"
    assert abs(float(words["clock"]) - time.monotonic()) < 60


@pytest.mark.parametrize("has_port", [True, False])
def test_what_its_runner_prints_is_apart_from_the_console(guest: Guest, has_port: bool) -> None:
    """In a machine that an older vmrunner has made there is no port for it."""
    if has_port:
        guest.LOG.touch()
    (guest.WORK.parent / "gitea-runner").write_text("#!/bin/sh\necho one; echo two >&2\n")
    run(guest, job(guest))
    path, other = (guest.LOG, guest.CONSOLE) if has_port else (guest.CONSOLE, guest.LOG)
    assert path.read_text() == "one\ntwo\n"
    assert not other.exists() or not other.read_text()


def test_a_runner_that_the_forge_refused_tries_again(guest: Guest) -> None:
    (guest.WORK.parent / "codes").write_text("1\n1\n0\n")
    assert run(guest, job(guest)) == ["runner", "exit 0"]
    assert said(guest).count("config") == 3


def test_but_not_for_ever_and_not_after_another_end(guest: Guest) -> None:
    (guest.WORK.parent / "codes").write_text("1\n" * 5)
    assert run(guest, job(guest, pickup_seconds=-1)) == ["runner", "exit 1"]
    (guest.WORK.parent / "codes").write_text("2\n0\n")
    assert run(guest, job(guest))[-1] == "exit 2"


def test_a_runner_that_is_killed_has_a_shells_exit_code(guest: Guest) -> None:
    (guest.WORK.parent / "gitea-runner").write_text("#!/bin/sh\nkill -9 $$\n")
    assert run(guest, job(guest)) == ["runner", "exit 137"]


def test_a_machine_that_is_told_to_end_says_nothing(guest: Guest) -> None:
    """No end of its runner is reported, which might be a success."""
    told = {}
    guest.signal.signal = told.__setitem__
    run(guest, job(guest))
    guest.EVENTS.unlink()
    assert set(told) == {guest.signal.SIGTERM, guest.signal.SIGINT}
    for handler in told.values():
        with pytest.raises(Ended):
            handler(15, None)
    assert not guest.EVENTS.exists()


def test_the_forges_address(guest: Guest, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    guest.open = lambda path, mode: {"/etc/hosts": hosts}[path].open(mode)
    run(guest, job(guest, forge_address="203.0.113.10"))
    run(guest, job(guest))
    assert hosts.read_text() == "127.0.0.1 localhost\n203.0.113.10 forge.example\n"


def test_what_a_pool_says_wins_over_what_the_recipe_says(guest: Guest) -> None:
    guest.ENVIRONMENT.write_text("export http_proxy=http://recipe\nexport HOME=/srv\n")
    run(guest, job(guest, environment={"http_proxy": "http://pool"}))
    assert {"http_proxy=http://pool", "HOME=/srv"} <= set(said(guest))


def test_a_further_runner_needs_nothing_of_the_images_own(guest: Guest, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (tmp_path / "gitea-runner").rename(other)
    guest.IMAGE.unlink()
    told = job(guest, runner_kind="forgejo-runner", runner_path=str(other))
    assert run(guest, told) == ["runner", "exit 0"]


def test_where_packages_come_from(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = guest.WORK.parent
    users = {"root": os.geteuid(), "nobody": pwd.getpwnam("nobody").pw_uid}
    for name in users:
        (folder / name).mkdir()

    def known(name: str) -> pwd.struct_passwd:
        found = pwd.getpwnam("root")
        home = str(folder / name)
        return pwd.struct_passwd((*found[:2], users[name], found.pw_gid, "", home, "/bin/sh"))

    monkeypatch.setattr(guest, "pwd", types.SimpleNamespace(getpwnam=known))
    (folder / "root/.npmrc").write_text("the image's")
    before = os.umask(0o022)
    for name in ("~/.config/go/env", "~/.npmrc", f"{folder}/etc/pip.conf"):
        guest.told_of_packages(name, "told", "nobody")
    os.umask(before)
    assert (folder / "root/.npmrc").read_text() == "the image's"
    for path in ("root/.config/go/env", "nobody/.config/go/env", "nobody/.npmrc", "etc/pip.conf"):
        assert (folder / path).read_text() == "told"
        assert stat.S_IMODE((folder / path).stat().st_mode) == 0o644
    for path in (".config", ".config/go", ".config/go/env", ".npmrc"):
        assert (folder / "nobody" / path).stat().st_uid == users["nobody"]


def test_packages_are_told_of_before_the_runner_starts(guest: Guest) -> None:
    path = guest.WORK.parent / "etc/apt.conf"
    assert run(guest, job(guest, packages={str(path): "told"})) == ["runner", "exit 0"]
    assert path.read_text() == "told"


def test_a_runner_that_does_not_end(guest: Guest) -> None:
    program = guest.WORK.parent / "gitea-runner"
    program.write_text("#!/bin/sh\nexec sleep 30\n")
    assert run(guest, job(guest, seconds=0.2)) == ["runner"], "the machine goes without a word"


def is_stopped(process: int) -> bool:
    return "\nState:\tT" in Path(f"/proc/{process}/status").read_text()


class Forge:
    """Answers each call with `status`, or with nothing that is HTTP where that is 0."""

    def __init__(self) -> None:
        outer, self.status, self.asked = self, 200, list[str]()

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if outer.status:
                    self.send_response(outer.status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def forge() -> Iterator[Forge]:
    found = Forge()
    yield found
    found.close()


def eventually(is_so: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < until, what
        time.sleep(0.01)


@pytest.fixture
def runner() -> Iterator[subprocess.Popen[bytes]]:
    """One that does nothing, and has no children."""
    found = subprocess.Popen(["sleep", "60"])
    yield found
    found.kill()
    found.wait()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 0])
def test_a_runner_is_held_while_the_forge_is_away(
    guest: Guest, forge: Forge, runner: subprocess.Popen[bytes], status: int
) -> None:
    """Its tries to deliver the job's end are counted: ten, and it leaves it."""
    hold, folder = guest.Hold(runner.pid, f"{forge.url}/git/"), "/git"
    hold.look()
    assert (is_stopped(runner.pid), hold.rest, hold.seconds) == (False, guest.LOOK, 0)
    forge.status, guest.SILENT = status, 1000
    began = time.monotonic()
    hold.look()
    assert (is_stopped(runner.pid), hold.rest) == (False, guest.LOOK_AGAIN), "it may be a moment"
    guest.SILENT = 0
    hold.look()
    eventually(lambda: is_stopped(runner.pid), "the runner is stopped")
    hold.look()
    assert 0 < hold.seconds < time.monotonic() - began
    forge.status = 200
    hold.look()
    eventually(lambda: not is_stopped(runner.pid), "the runner goes on")
    assert hold.rest == guest.LOOK
    held = hold.seconds
    time.sleep(0.01)
    assert hold.seconds == held, "that is over"
    assert set(forge.asked) == {folder + guest.PING}


def test_a_runner_is_held_where_nobody_listens(
    guest: Guest, forge: Forge, runner: subprocess.Popen[bytes]
) -> None:
    forge.close()
    hold = guest.Hold(runner.pid, forge.url)
    hold.look()
    time.sleep(guest.SILENT)
    hold.look()
    eventually(lambda: is_stopped(runner.pid), "the runner is stopped")


@pytest.mark.parametrize("status", [301, 401, 403, 404, 405, 429])
def test_a_forge_that_answers_something_else_is_there(
    guest: Guest, forge: Forge, runner: subprocess.Popen[bytes], status: int
) -> None:
    forge.status = status
    assert guest.answers(forge.url)


class Gateway(BaseHTTPRequestHandler):
    """What stands before a forge."""

    status: ClassVar[int]

    def do_POST(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody is to read of it."""


@pytest.mark.parametrize(("status", "is_there"), [(501, False), (502, False), (200, True)])
def test_any_certificate_will_do(guest: Guest, status: int, is_there: bool) -> None:
    """The runner may have been told to take it; what is said behind it counts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("192.0.2.1").configure_cert(context)
    handler = type("Answer", (Gateway,), {"status": status})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        assert guest.answers(f"https://127.0.0.1:{server.server_port}") is is_there
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_runner_with_a_step_goes_on(guest: Guest, forge: Forge) -> None:
    """What the step says is not kept from it, nor the next step."""
    step = "sleep 60 & read -r line; kill $!; wait; exec sleep 60"
    with subprocess.Popen(["sh", "-c", step], stdin=subprocess.PIPE) as runner:
        assert runner.stdin
        try:
            eventually(lambda: bool(guest.has_children(runner.pid)), "the step")
            forge.status = 502
            hold = guest.Hold(runner.pid, forge.url)
            hold.look()
            time.sleep(guest.SILENT)
            hold.look()
            time.sleep(0.05)
            assert not is_stopped(runner.pid)
            runner.stdin.write(b"\n")
            runner.stdin.flush()
            eventually(lambda: not guest.has_children(runner.pid), "the step's end")
            hold.look()
            eventually(lambda: is_stopped(runner.pid), "all that is left to do is to report")
        finally:
            runner.kill()


def test_a_machine_that_nobody_asks_for_goes(guest: Guest, forge: Forge) -> None:
    """Neither host nor forge come back."""
    forge.status, guest.LONGEST_HOLD = 502, 0.3
    (guest.WORK.parent / "gitea-runner").write_text("#!/bin/sh\nexec sleep 60\n")
    assert run(guest, job(guest, url=forge.url, seconds=0.3)) == ["runner"]


def test_a_held_runner_has_its_time(guest: Guest, forge: Forge, tmp_path: Path) -> None:
    """A runner of which the forge takes no end: without being held it would leave it, and with the
    deadline running on it would be gone.
    """
    forge.status, passed = 502, [0.0]
    guest.time = types.SimpleNamespace(
        **{**vars(time), "monotonic": lambda: time.monotonic() + passed[0]}
    )
    program, ends = tmp_path / "gitea-runner", tmp_path / "ends"
    os.mkfifo(ends)
    program.write_text(f"#!/bin/sh\necho $$ >{tmp_path}/pid\nread -r line <{ends}\n")

    def back() -> None:
        told = tmp_path / "pid"
        eventually(lambda: told.exists() and told.read_text().endswith("\n"), "the runner")
        runner = int(told.read_text())
        eventually(lambda: is_stopped(runner), "the hold")
        passed[0] = 1000.0
        time.sleep(0.2)
        forge.status = 200
        ends.write_text("now\n")

    waits = Thread(target=back)
    waits.start()
    told = job(guest, url=forge.url, seconds=100.0, runner_path=str(program))
    assert run(guest, told) == ["runner", "exit 0"]
    waits.join()


@pytest.mark.parametrize(
    ("around", "is_watched"),
    [
        ({}, True),
        ({"http_proxy": "http://p"}, False),
        ({"HTTP_PROXY": "http://p"}, False),
        ({"https_proxy": "http://p"}, True),
        ({"http_proxy": "http://p", "no_proxy": "localhost,forge.example"}, True),
        ({"http_proxy": "http://p", "NO_PROXY": "forge.example"}, True),
    ],
)
def test_a_forge_behind_a_proxy_is_not_watched(
    guest: Guest, around: dict[str, str], is_watched: bool
) -> None:
    """The proxy may get further than we do."""
    url = "http://forge.example/git"
    told = job(guest, url=url, environment=around)
    assert guest.watched(told) == (url if is_watched else "")


def test_a_runner_that_is_not_watched_is_not_held(
    guest: Guest, runner: subprocess.Popen[bytes]
) -> None:
    hold = guest.Hold(runner.pid, "")
    hold.look()
    time.sleep(guest.SILENT)
    hold.look()
    assert not is_stopped(runner.pid)


def test_the_console_is_nobodys_terminal(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session's first terminal is its controlling one, and a login prompt that begins there hangs
    up whoever has it.
    """
    flags = []
    monkeypatch.setattr(
        guest,
        "os",
        types.SimpleNamespace(
            **vars(os) | {"open": lambda path, how: flags.append(how) or os.open(path, how)}
        ),
    )
    with guest.console() as output:
        output.write(b"x")
    assert flags[0] & os.O_NOCTTY
    assert "open(CONSOLE" not in render.guest("job.py").replace("os.open(CONSOLE", "")


def test_a_private_authority(guest: Guest) -> None:
    guest.SYSTEM_CERTIFICATES.write_text("SYSTEM\n")
    guest.subprocess = types.SimpleNamespace(
        **vars(guest.subprocess) | {"run": lambda *_, **__: None}
    )
    run(guest, job(guest, ca="FORGE"))
    assert guest.FORGE_CERTIFICATE.read_text() == "FORGE\n"
    assert (guest.WORK.parent / "bundle/ca.pem").read_text().split() == ["SYSTEM", "FORGE"]


@pytest.mark.parametrize("ready", [True, False])
def test_hooks(guest: Guest, ready: bool) -> None:
    if not ready:
        guest.IS_READY.unlink()
    for folder in (guest.BEFORE_READY, guest.BEFORE_JOB):
        folder.mkdir()
        (folder / "one").write_text(
            f'#!/bin/sh\necho "{folder.name} $* $VMRUNNER_REGISTRY_MIRROR $http_proxy" '
            f">>{guest.WORK.parent}/hooks\n"
        )
        (folder / "one").chmod(0o755)
        (folder / "not").write_text("#!/bin/sh\nexit 1\n")
    run(
        guest,
        job(
            guest,
            settings={"VMRUNNER_REGISTRY_MIRROR": "http://m"},
            environment={"http_proxy": "http://p"},
        ),
    )
    lines = (guest.WORK.parent / "hooks").read_text().splitlines()
    assert [" ".join(line.split()) for line in lines] == (
        [] if ready else ["before_ready boots"]
    ) + ["before_job http://m http://p"]
    (guest.BEFORE_JOB / "one").write_text("#!/bin/sh\nexit 3\n")
    assert (
        "before_job/one, which sets up the pool's"
        in run(guest, job(guest, settings={"VMRUNNER_REGISTRY_MIRROR": ""}))[2]
    )


def test_a_runner_that_waits_is_taken(guest: Guest) -> None:
    waiting = guest.runners()
    (root,) = [each for each in waiting if each.user == "root"]
    told = job(guest)
    found = guest.chosen(told, waiting)
    assert found is root
    assert run(guest, told, found) == ["runner", "exit 0"]
    assert said(guest).count("config") == 1
    for each in waiting:
        each.drop()


@pytest.mark.parametrize(
    "told",
    [{"environment": {"http_proxy": "http://p"}}, {"runner_path": "/other"}, {"user": "nobody"}],
)
def test_but_not_where_it_is_another(guest: Guest, told: dict[str, Any]) -> None:
    waiting = guest.runners()
    assert guest.chosen(job(guest, **told), waiting) is None
    for each in waiting:
        each.drop()
        assert each.process.returncode == -9


def test_one_that_waits_and_dies_is_replaced(guest: Guest) -> None:
    waiting = guest.runners()
    for each in waiting:
        each.process.kill()
        each.process.wait()
    told = job(guest)
    assert guest.chosen(told, waiting) is None
    assert run(guest, told) == ["runner", "exit 0"]


def test_what_is_told_is_read_from_the_same_code_alone(guest: Guest) -> None:
    told = json.dumps(json.dumps({"a": 1}))
    script = f"#!/usr/bin/python3\nJOB = {told}\nCODE = 'c0de'\nrest"
    assert guest.job_in(script, "c0de") == {"a": 1}
    assert guest.job_in(script, "other") is None
    assert guest.job_in("#!/bin/sh\necho\n", "c0de") is None


def test_protocol_buffers(guest: Guest) -> None:
    message = b"\x08\x96\x01" + guest.field(3, b"row") + guest.field(3, b"row") + b"\x10\x02"
    assert guest.fields(message) == [(1, 150), (3, 3), (3, 3), (2, 2)]
    assert guest.varint(300) == b"\xac\x02"


def test_the_forge_of_a_rehearsal(guest: Guest) -> None:
    """It hands out its job, and takes as many lines of the log as it was sent."""
    forge = ThreadingHTTPServer(("127.0.0.1", 0), guest.RehearsalForge)
    Thread(target=forge.serve_forever, daemon=True).start()

    def ask(method: str, content: bytes = b"") -> bytes:
        url = f"http://127.0.0.1:{forge.server_port}/api/actions/runner.v1.RunnerService/{method}"
        with urllib.request.urlopen(url, content) as answer:
            found: bytes = answer.read()
        return found

    try:
        assert guest.REHEARSED_JOB in ask("FetchTask")
        assert ask("UpdateLog", b"\x08\x01\x10\xac\x02" + guest.field(3, b"row") * 2) == (
            b"\x08" + guest.varint(302)
        )
        assert (ask("Declare"), ask("UpdateTask")) == (b"\x0a\x00", b"")
    finally:
        forge.shutdown()
        forge.server_close()


def test_a_rehearsal_leaves_nothing(guest: Guest, tmp_path: Path) -> None:
    """Its runner is ended when it does not end by itself, and hooks come after it."""
    program = tmp_path / "gitea-runner"
    program.write_text(
        f'#!/bin/sh\nls -A >{tmp_path}/files\ngrep -o "http://127.0.0.1:[0-9]*" .runner '
        f">>{tmp_path}/files\nexec sleep 30\n"
    )
    guest.REHEARSAL_HOOKS.mkdir()
    for name, mode in (("one", 0o755), ("two", 0o644)):
        (guest.REHEARSAL_HOOKS / name).write_text(
            f"#!/bin/sh\necho {name} >>{tmp_path}/files\nexit 1\n"
        )
        (guest.REHEARSAL_HOOKS / name).chmod(mode)
    told = json.loads(rehearsal_script("gitea", MachineId("m", "00000000"), "root")) | {
        "folder": str(tmp_path / "rehearsal"),
        "seconds": 0.5,
    }
    guest.rehearse(told)
    *files, address, hook = (tmp_path / "files").read_text().split()
    assert (files, hook) == ([".runner", "config.yaml"], "one")
    assert address != "http://127.0.0.1:9", "the forge that the guest plays"
    assert not (tmp_path / "rehearsal").exists()
