"""What `doctor --isolation` tries of the cache, at a real service: machines are processes here,
with addresses of 127.0.0.0/8. Each cell opens when the rule is gone that closes it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.page import free_port
from vmrunner import config
from vmrunner.cache.lab import Lab as Jobs
from vmrunner.cache.rights import Rights
from vmrunner.cache.store import Limits, Store
from vmrunner.config import Config
from vmrunner.doctor.cache import _is_ours
from vmrunner.doctor.isolation.cache import cells
from vmrunner.machine.identity import fresh
from vmrunner.model.machine import MachineId
from vmrunner.render import guest
from vmrunner.waiting import Deadline

CONFIG = """\
manager = "m"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[libvirt]
subnet = "127.0.9.0/24"
[forge]
kind = "gitea"
url = "https://forge.example"
[cache]
listen_port = {port}
[pools.p]
labels = ["a"]
image = "web"
"""
SERVICE = """\
import sys
from dataclasses import replace
from vmrunner import beside
from vmrunner.cache import main, rights, server, store, uploads, who
who.Who.__init__.__kwdefaults__["patience"] = 0.2
{without}
sys.exit(beside.main(main.run))
"""
MACHINE = """\
import http.client, subprocess, sys
class Connection(http.client.HTTPConnection):
    def connect(self):
        self.source_address = (self.source_address[0] or {own!r}, 0)
        if {spoofs} or self.source_address[0] == {own!r}:
            return super().connect()
        raise OSError("the host lets no other address through")
http.client.HTTPConnection = Connection
subprocess.run = lambda *_, **__: None
"""
WITHOUT = {
    "whose an archive is": "store._may_read = lambda *_: True",
    "whose an upload is": "uploads.Uploads._of = lambda self, _, __, id_: self._all[id_]",
    "whose a ref is": "rights._writes = lambda facts: 'refs/heads/main'",
    "that headers say nothing": """
answer = server.Service._answer
def believing(self, request):
    request.address = request.headers.get("x-forwarded-for") or request.address
    answer(self, request)
server.Service._answer = believing""",
    "whose an entry is": """
judged = who.rights
def alike(facts, groups):
    return judged(replace(facts, repository=facts.repository.split("/")[0] + "/all"), groups)
who.rights = alike""",
    "that nobody has nothing": """
of = who.Who.of
def anybody(self, address):
    facts = next(iter(self._told().values()))
    return of(self, address) or rights.rights(replace(facts, ref="refs/heads/main"), {})
who.Who.of = anybody""",
    "that a job ends": """
of, known = who.Who.of, dict()
def remembered(self, address):
    return known.setdefault(address, of(self, address))
who.Who.of = remembered""",
}


@dataclass
class FakeLab:
    """Machines that are processes of the probe, each at the address that it has taken."""

    settings: Config
    spoofs: bool = False
    running: dict[MachineId, subprocess.Popen[bytes]] = field(default_factory=dict)

    def open_host(self) -> Any:
        return SimpleNamespace(machines=SimpleNamespace(destroy=self.destroy), close=lambda: None)

    def destroy(self, machine: MachineId) -> None:
        self.running[machine].kill()

    def run(
        self,
        program: str,
        *arguments: str,
        write: Callable[[bytes], object],
        policy: str,
        machine: MachineId | None = None,
        host: Any = None,
        started: Callable[[MachineId], None] = lambda _: None,
    ) -> int:
        machine = machine or fresh(self.settings)
        assert policy == "pool-p"
        addresses = self.settings.addresses()
        own = str(addresses.take(machine).ip)
        text = MACHINE.format(own=own, spoofs=self.spoofs) + guest(program)
        command = [sys.executable, "-c", text.replace("REST = 0.5", "REST = 0.05"), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            self.running[machine] = process
            started(machine)
            assert process.stdout
            for line in process.stdout:
                write(line)
        addresses.release(machine, lambda _: None)
        return process.returncode

    def answers(self, program: str, *arguments: str, **more: Any) -> Any:
        output = bytearray()
        self.run(program, *arguments, write=output.extend, **more)
        return json.loads(output)


@contextmanager
def service(folder: Path, without: str) -> Iterator[Config]:
    port, file = free_port(), folder / "c.toml"
    for name in ("state", "run"):
        (folder / name).mkdir()
    file.write_text(CONFIG.format(folder=folder, port=port))
    command = [sys.executable, "-c", SERVICE.format(without=without), "--config", str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        deadline = Deadline(30)
        while _is_ours("127.0.9.1", port) is None and not deadline.is_over:
            time.sleep(0.05)
        yield config.load(file)
        assert process.stdin
        process.stdin.close()


def opened(folder: Path, *rules: str, spoofs: bool = False) -> set[str]:
    """What is not as it should be without these rules."""
    with service(folder, "\n".join(WITHOUT[rule] for rule in rules)) as settings:
        with closing(Store(settings.cache_dir, Limits(), print)) as store:
            for name in ("vmrunner-isolation-dead/one", "org/tool"):  # a killed run's; a job's
                store.recognise(Rights(name, None, (), repository_id=1))
        found = list(cells(FakeLab(settings, spoofs), Jobs(settings)))  # type: ignore[arg-type]  # all that it needs of one
        assert not settings.cache_lab_file.exists()
        with closing(Store(settings.cache_dir, Limits(), print)) as store:
            assert [each.repository for each in store.figures()] == ["org/tool"]
    assert len({each.what for each in found}) == len(found) == 11
    assert {each.group for each in found} == {"cache"}
    return {each.what for each in found if not each.is_right}


ENTRY = "another repository's entry, "


@pytest.mark.parametrize(
    ("rules", "spoofs", "wrong"),
    [
        ((), False, set()),
        (
            (
                "whose an archive is",
                "whose an upload is",
                "whose a ref is",
                "that headers say nothing",
            ),
            True,
            {
                f"{ENTRY}by its number",
                f"{ENTRY}by headers that name its machine",
                f"{ENTRY}from its machine's address",
                "another repository's upload, by its number",
                "what a fork's pull request kept, for its base's branch",
            },
        ),
        pytest.param(
            ("whose an entry is",),
            False,
            {
                f"{ENTRY}by its key",
                f"{ENTRY}by how its key begins",
                f"{ENTRY}by its number",
                f"{ENTRY}by headers that name its machine",
            },
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("that nobody has nothing",),
            False,
            {
                "an entry, for a machine without a job",
                "to keep something, for a machine without a job",
                "its own entry, after the job",
            },
            marks=pytest.mark.long,
        ),
        pytest.param(
            ("that a job ends",),
            False,
            {"its own entry, after the job"},
            marks=pytest.mark.long,
        ),
    ],
)
def test_each_cell_opens_without_its_rule(
    tmp_path: Path, rules: tuple[str, ...], spoofs: bool, wrong: set[str]
) -> None:
    assert opened(tmp_path, *rules, spoofs=spoofs) == wrong
