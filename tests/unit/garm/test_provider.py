"""A provider's life on the fakes: what is made, what is left, and what GARM is told."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pycdlib
import pytest
from rich.console import Console

from tests.fakes import FakeHypervisor, Killed
from tests.garm.double import CONTROLLER, INSTANCE, POOL, REGISTRATION, RUNNER, Double
from tests.goldens import publish
from tests.world import POOL as OUR_POOL
from tests.world import World
from vmrunner.cli import status_cmd, surveyed
from vmrunner.errors import UnknownInstance, VmrunnerError
from vmrunner.garm import handshake, provider
from vmrunner.garm.contract import Bootstrap
from vmrunner.garm.provider import Provider
from vmrunner.hypervisor.seam import File
from vmrunner.machine.identity import host
from vmrunner.machine.instances import Instances, machine_of, owner
from vmrunner.manager import metrics
from vmrunner.model.machine import EventKind, MachineId
from vmrunner.model.moment import Moment
from vmrunner.waiting import Deadline, boot

OWNER = owner(CONTROLLER, POOL)


class Site:
    """A host with flavors, GARM and a forge."""

    def __init__(self, folder: Path, double: Double) -> None:
        self.double, self.folder = double, folder
        self.snapshots: list[tuple[str, str]] = []
        self.world = World(folder)
        self.world.configure(
            {"p": OUR_POOL},
            forge={"kind": "gitea", "url": double.url},
            garm={
                "flavors": {
                    "small": {"memory": "1GiB", "labels": ["node:docker://n"]},
                    "own": {"memory": "1GiB", "install": "machine"},
                }
            },
        )

    @property
    def host(self) -> FakeHypervisor:
        return self.world.hypervisor

    def provider(self, controller: str = CONTROLLER) -> Provider:
        clock = self.world.clock
        return Provider(
            self.world.settings,
            self.host,
            self.world.history,
            controller,
            lambda: Moment(clock.now, clock.steady(), boot()),
            lambda flavor, image: self.snapshots.append((flavor, image)),
            processor="x86_64",
        )

    def create(self, name: str = "garm-aB1", **more: Any) -> dict[str, Any]:
        raw = json.dumps(self.double.bootstrap(name, **more)).encode()
        return self.provider().create(Bootstrap.read(raw))

    @property
    def instances(self) -> Instances:
        settings = self.world.settings
        return Instances(settings.state_dir, settings.runtime_dir, "m")

    def machine(self) -> MachineId:
        (machine,) = self.host.domains
        return machine

    def left(self) -> list[str]:
        """Of machines, wherever."""
        settings, residue = self.world.settings, self.host.machines.residue()
        found = [*residue.domains, *residue.files]
        found += [path.name for path in (settings.state_dir / "garm").glob("*")]
        for folder in ("addresses", "exec", "bindings"):
            found += [path.name for path in (settings.runtime_dir / folder).glob("*")]
        return found


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(handshake, "_PATIENCE", 0.0)
    with Double() as double:
        made = Site(tmp_path, double)
        yield made
        made.world.history.close()


def seed_of(site: Site, machine: MachineId) -> str:
    image, out = pycdlib.PyCdlib(), io.BytesIO()
    image.open_fp(io.BytesIO(site.host.files[machine, File.SEED]))
    image.get_file_from_iso_fp(out, joliet_path="/user-data")
    image.close()
    return out.getvalue().decode()


def test_a_machine_is_made_registered_and_told(site: Site) -> None:
    told = site.create()
    assert (told["provider_id"], told["name"], told["status"]) == ("garm-aB1",) * 2 + ("running",)
    assert told["addresses"][0]["type"] == "private"
    said = [(path.rpartition("/v1/")[2], body) for path, body in site.double.said]
    assert [path for path, _ in said] == [
        "callbacks/status",
        "metadata/runner-registration-token/",
        "/api/actions/runner.v1.RunnerService/Register",
        "callbacks/system-info/",
        "callbacks/status",
    ] or [path for path, _ in said][2].endswith("Register")
    registered = said[2][1]
    assert registered["ephemeral"]
    assert registered["name"] == "garm-aB1"
    assert registered["labels"] == site.double.bootstrap()["labels"]
    assert (said[0][1]["status"], said[4][1]["status"]) == ("installing", "idle")
    assert said[3][1]["agent_id"] == said[4][1]["agent_id"] == 41


def test_what_enters_the_machine(site: Site) -> None:
    site.create(labels=["debian-12", "node", "runner-pool-id=x"])
    seed = seed_of(site, site.machine())
    assert RUNNER in seed
    assert "node:docker://n" in seed
    assert "runner-pool-id=x:host" in seed
    assert REGISTRATION not in seed
    assert INSTANCE not in seed
    metadata = site.host.domains[site.machine()]
    assert (metadata.pool, metadata.instance, metadata.runner_id) == (OWNER, "garm-aB1", 41)
    assert metadata.network == "garm-small"
    for path in site.folder.rglob("*"):
        if path.is_file():
            kept = path.read_bytes()
            assert not any(word.encode() in kept for word in (REGISTRATION, INSTANCE, RUNNER)), path


@pytest.mark.parametrize("install", ["host", "machine"])
def test_a_flavors_tools_are_in_its_machines_and_their_job_is_told(
    site: Site, install: str
) -> None:
    tooled = {"memory": "1GiB", "install": install, "tools": "tools"}
    settings = site.world.settings
    site.world.configure(
        {"p": OUR_POOL},
        forge={"kind": "gitea", "url": site.double.url},
        garm={"flavors": {"small": tooled}},
    )
    with pytest.raises(VmrunnerError, match="There is no image 'tools'"):
        site.create()
    assert site.left() == []
    publish(settings.images_dir, "7", name="tools", tools={"go/1.26.0/x64": "0" * 64})
    site.create()
    assert site.host.domains[site.machine()].tools == "tools/7"
    assert "image-tools-7.disk.qcow2" in site.host.published
    assert "AGENT_TOOLSDIRECTORY" in seed_of(site, site.machine())


GITHUB = {"repo_url": "https://github.example/org", "jit_config_enabled": True, "labels": []}


@pytest.mark.parametrize("more", [{}, GITHUB], ids=["Gitea", "GitHub"])
def test_a_machine_that_makes_its_runner_itself(site: Site, more: dict[str, Any]) -> None:
    """Gitea's and GitHub's alike: nobody is asked from here, and the machine asks GARM."""
    assert site.create(flavor="own", **more)["status"] == "running"
    assert site.double.said == [], "its registration token is good for one: it is the machine's"
    seed = seed_of(site, site.machine())
    assert f"{site.double.url}/api/v1/metadata {INSTANCE} ''" in seed
    assert "install-script" in seed
    metadata = site.host.domains[site.machine()]
    assert (metadata.pool, metadata.instance, metadata.runner_id) == (OWNER, "garm-aB1", 0)
    assert [each["name"] for each in site.provider().listed(POOL)] == ["garm-aB1"]
    for path in site.folder.rglob("*"):
        assert not path.is_file() or INSTANCE.encode() not in path.read_bytes(), path
    site.provider().delete("garm-aB1")
    assert site.left() == []


def test_its_image_needs_no_runner_and_this_hosts_forge_is_any(site: Site) -> None:
    site.world.configure(
        {"p": OUR_POOL},
        forge={"kind": "forgejo", "url": site.double.url},
        garm={"flavors": {"small": {}, "own": {"install": "machine"}}},
    )
    with pytest.raises(VmrunnerError, match="is forgejo"):
        site.create()
    assert site.create(flavor="own")["status"] == "running"


def test_delete_leaves_nothing_and_may_come_twice(site: Site) -> None:
    site.provider().delete("never-was")
    site.create()
    site.provider().delete("garm-aB1")
    site.provider().delete("garm-aB1")
    assert site.left() == []
    (record,) = site.world.history.all()
    assert (record.pool, record.ending, record.reason) == (OWNER, "unneeded", "GARM deleted it")


def test_create_create_delete(site: Site) -> None:
    site.create()
    first = site.host.domains[site.machine()].created_at
    site.world.clock.now += 5
    site.create()
    assert site.host.domains[site.machine()].created_at == first + 5
    site.provider().delete("garm-aB1")
    assert site.left() == []


def test_list_get_start_and_stop(site: Site) -> None:
    provider = site.provider()
    assert provider.listed(POOL) == []
    site.create("a")
    site.create("b", pool_id="another")
    assert [each["name"] for each in provider.listed(POOL)] == ["a"]
    assert provider.get("b")["status"] == "running"
    assert site.provider("22222222-0000-4000-8000-000000000000").listed(POOL) == []
    provider.start("a")  # which changes nothing
    provider.stop("a")
    assert provider.get("a")["status"] == "stopped"
    assert provider.listed(POOL) == []
    for ask in (provider.get, provider.start, provider.stop):
        with pytest.raises(UnknownInstance) as caught:
            ask("c")
        assert caught.value.exit_code == 30
    site.provider("22222222-0000-4000-8000-000000000000").remove_all()
    assert provider.get("b")["status"] == "running"
    provider.remove_all()
    assert site.left() == []


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ({"flavor": "huge"}, 3, "no flavor 'huge'.*There are: small"),
        ({"image": "plan-9"}, 6, "no image 'plan-9'"),
        ({"image": "debian-12/7"}, 6, "no version"),
        ({"os_type": "windows"}, 1, "wants windows"),
        ({"os_type": ""}, 1, "wants no system"),
        ({"arch": "arm64"}, 1, "wants the processor arm64"),
        ({"arch": "sparc"}, 1, "wants the processor sparc"),
        ({"jit_config_enabled": True}, 1, "made in the machine alone"),
        ({"extra_specs": {"pre_install_scripts": {"a": "Yg=="}}}, 1, "pre_install_scripts"),
        ({"user_data_options": {"extra_packages": ["vim"]}}, 1, "extra_packages"),
        ({"repo_url": "https://other.example/a/b"}, 3, "https://other.example"),
    ],
)
def test_what_cannot_be_made(site: Site, more: dict[str, Any], code: int, says: str) -> None:
    with pytest.raises(VmrunnerError, match=says) as caught:
        site.create(**more)
    assert caught.value.exit_code == code
    assert site.left() == []
    assert site.double.said == []  # GARM's token for a registration is not spent


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/status", 401, "GARM answered 401 for a status"),
        ("/status", 500, "GARM answered 500 for a status"),
        ("/runner-registration-token/", 401, "GARM answered 401 for a token"),
        ("/Register", 500, "did not register a runner"),
        ("/system-info/", 409, "GARM answered 409 for the system's name"),
    ],
)
def test_a_handshake_that_fails(site: Site, path: str, status: int, says: str) -> None:
    site.double.refuses[path] = status
    with pytest.raises(VmrunnerError, match=says) as caught:
        site.create()
    assert not {INSTANCE, REGISTRATION, RUNNER} & {*str(caught.value).split()}
    assert INSTANCE not in f"{caught.value.sentence}{caught.value.hint}"
    assert site.left() == []


@pytest.mark.parametrize("step", ["prepare", "create_overlay", "put seed.iso", "start"])
def test_a_host_that_fails(site: Site, step: str) -> None:
    site.host.fail_at = step
    with pytest.raises(VmrunnerError, match=f"The fake fails at {step}"):
        site.create()
    assert site.left() == []
    (record,) = site.world.history.all()
    assert (record.ending, record.pool) == ("start-failed", OWNER)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"memory_mib": 1500}, "the host lacks 548 MiB of memory"),
        ({"cores": 0}, "the host lacks 2 vCPUs"),
        ({"free_disk_mib": 100}, "the storage pool is 5020 MiB below the floor"),
    ],
)
def test_a_host_without_room(
    site: Site, monkeypatch: pytest.MonkeyPatch, change: dict[str, int], says: str
) -> None:
    monkeypatch.setattr(provider, "_ROOM", 0.0)
    for name, value in change.items():
        setattr(site.host, name, value)
    with pytest.raises(VmrunnerError, match=f"There is no room for a machine: {says}"):
        site.create()
    assert site.left() == []
    assert site.double.said == []


def test_room_is_waited_for(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.host.memory_mib = 0
    looks: list[float] = []

    def looked(_deadline: Deadline, seconds: float) -> None:
        looks.append(seconds)
        site.host.memory_mib = 1 << 20

    monkeypatch.setattr(Deadline, "pause", looked)
    site.create()
    assert len(looks) == 1


def test_garm_that_is_away(site: Site) -> None:
    with pytest.raises(VmrunnerError, match="GARM can't be reached for a status"):
        site.create(**{"callback-url": "http://127.0.0.1:9"})
    assert site.left() == []


def test_garm_is_asked_again_where_it_stumbles(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def recovers(seconds: float) -> None:
        asked.append(seconds)
        site.double.refuses.clear()

    site.double.refuses["/status"] = 503
    wanted = Bootstrap.read(json.dumps(site.double.bootstrap()).encode())
    garm = handshake.Garm(wanted, patience=lambda: Deadline(9.0, sleep=recovers))
    garm.installing()
    garm.close()
    assert len(asked) == 1


@pytest.mark.parametrize("after", range(12))
def test_killed_in_create_then_delete_by_name(site: Site, after: int) -> None:
    """Or a pass, where nobody deletes it."""
    site.host.doom.after = after
    with suppress(Killed):
        site.create()
    site.host.doom.after, site.host.doom.dead = None, False
    # What a context manager of Python's has undone here, a killed process would not have.
    machine = machine_of("m", host(site.folder), CONTROLLER, "garm-aB1")
    folder = site.world.settings.runtime_dir / "exec"
    folder.mkdir(exist_ok=True)
    (folder / f"{machine}.lock").touch()
    site.provider().delete("garm-aB1")
    assert site.left() == []


def test_a_pass_leaves_them_alone_and_knows_them(site: Site) -> None:
    site.create()
    machine = site.machine()
    site.world.up()
    assert machine in site.host.domains
    survey = site.world.manager.survey()
    assert survey.observed.machines == ()
    (lent,) = survey.observed.lent
    assert (lent.instance.name, lent.machine.alive) == ("garm-aB1", True)
    assert [path.name for path in (site.world.settings.runtime_dir / "addresses").iterdir()]


def test_status_history_and_figures_show_controller_and_pool(site: Site) -> None:
    site.create()
    machine = site.machine()
    site.host.report(machine, EventKind.RUNNER)
    manager, survey = site.world.manager, site.world.manager.survey()
    status = surveyed.status(manager, survey, site.world.clock.now)
    console = Console(file=io.StringIO(), width=300, color_system=None)
    console.print(status_cmd._picture(status))
    seen = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"GARM pool {POOL} of controller {CONTROLLER}: 1 machines, 1 with a runner" in seen
    assert f"{machine}" in seen
    assert "garm-aB1" in seen
    (shown,) = status.garm
    assert (shown.controller, shown.pool) == (CONTROLLER, POOL)
    assert [(each.instance, each.phase) for each in shown.machines] == [("garm-aB1", "idle")]
    figures = metrics.Figures(site.world.history)
    figures.saw(survey, site.world.clock.now)
    (gauge,) = (each for each in figures.collect() if each.name == "vmrunner_pool_machines")
    assert [(each.labels["pool"], each.value) for each in gauge.samples] == [(OWNER, 1)]
    site.host.power_off(machine)
    site.world.up()
    (record,) = site.world.history.all()
    assert (record.pool, record.made_for, record.ending) == (OWNER, "garm-aB1", "done")
    assert (record.scope, record.runner_id) == ("repository:org/repo", 41)  # the forge is asked


@pytest.mark.parametrize("by_pass", [True, False])
def test_one_that_powered_off_is_swept(site: Site, by_pass: bool) -> None:
    site.create()
    machine = site.machine()
    site.host.report(machine, EventKind.RUNNER)
    site.host.power_off(machine)
    assert site.provider().get("garm-aB1")["status"] == "stopped"
    assert site.provider().listed(POOL) == []
    if by_pass:
        site.world.up()
    else:
        site.create("another")
        site.provider().delete("another")
    assert site.left() == []
    with pytest.raises(UnknownInstance):
        site.provider().get("garm-aB1")
    site.provider().delete("garm-aB1")


def test_a_lifetime_ends(site: Site) -> None:
    site.create()
    site.world.clock.jump(30 * 86400.0)  # somebody sets the clock
    site.world.clock.now += 2 * 86400 - 1
    site.world.up()
    assert site.host.domains
    site.world.clock.now += 2
    site.world.up()
    assert site.left() == []
    (record,) = site.world.history.all()
    assert (record.ending, record.pool) == ("job-timeout", OWNER)


def test_list_during_create(site: Site) -> None:
    """GARM forgets what is missing."""
    seen: list[dict[str, Any]] = []
    site.double.during = lambda: seen.extend(site.provider().listed(POOL))
    site.create()
    assert [(each["name"], each["status"]) for each in seen] == [("garm-aB1", "running")]


def test_delete_during_create(site: Site) -> None:
    """GARM was killed and started again meanwhile: what is made then goes as well."""
    deleter = Thread(target=lambda: site.provider().delete("garm-aB1"))
    site.double.during = deleter.start
    site.create()
    deleter.join(30)
    assert site.left() == []


def test_a_pass_during_create(site: Site) -> None:
    """It neither waits for it nor takes what is half made."""
    site.double.during = site.world.up
    site.create()
    site.world.up()
    assert [machine.alive for machine in site.host.machines.all()] == [True]


@pytest.mark.parametrize("then", ["delete", "create", "pass"])
def test_after_a_reboot(site: Site, then: str) -> None:
    """Domains and what is in the runtime folder are gone, the files are not."""
    site.create()
    site.host.domains.clear()
    shutil.rmtree(site.world.settings.runtime_dir)
    site.world.restart()
    assert site.provider().get("garm-aB1")["status"] == "stopped"
    assert site.provider().listed(POOL) == []
    if then == "delete":
        site.provider().delete("garm-aB1")
    elif then == "create":
        site.create("another")
        site.provider().delete("another")
    else:
        site.world.up()
    assert site.left() == []


def test_a_purge_leaves_nothing_of_them(site: Site) -> None:
    site.create()
    site.world.manager.purge()
    assert [each for each in site.left() if "." not in each] == []
    assert not list((site.folder / "garm").iterdir())
    (record,) = site.world.history.all()
    assert record.ending == "died"


def test_a_record_that_was_lost_hides_no_machine(site: Site) -> None:
    """Its domain's metadata says whose it is: no pass takes it for an orphan of its own."""
    site.create()
    for path in (site.folder / "garm").iterdir():
        path.unlink()
    site.world.up()
    assert site.host.domains
    site.provider().delete("garm-aB1")
    assert site.host.domains == {}


def test_clones_and_the_snapshot_for_the_next(site: Site) -> None:
    site.create("a")
    assert site.snapshots == [("small", "debian-12")]
    golden_id = site.host.domains[site.machine()].image
    assert golden_id == "debian-12/1"


def test_the_same_name_is_the_same_machine_on_each_call() -> None:
    one = MachineId.derived("m", "0a0b0c0d", "x")
    assert one == MachineId.derived("m", "0a0b0c0d", "x")
    assert one != MachineId.derived("m", "0a0b0c0d", "y")
    assert MachineId.of("m", str(one)) == one
    assert not one.mac.replace(":", "").isdecimal()
    assert replace(one).host == "0a0b0c0d"
