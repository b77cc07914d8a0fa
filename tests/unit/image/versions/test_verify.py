"""What verifying makes of what a machine says, and that only what was found good is promoted."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import FakeHypervisor
from tests.goldens import publish
from tests.unit.guest.programs import load
from vmrunner.config import Config, HostConfig
from vmrunner.errors import DiskFull, HypervisorError, ImageError, MachineError, VmrunnerError
from vmrunner.hypervisor.seam import Output
from vmrunner.image.upkeep import rotation
from vmrunner.image.upkeep.rotation import Stage
from vmrunner.image.versions import promotion, proof, store, verify
from vmrunner.image.versions.proof import Proof
from vmrunner.image.versions.store import MANIFEST
from vmrunner.machine.oneshot import Command
from vmrunner.model.image import DISK, Golden
from vmrunner.model.machine import MachineId, Shape
from vmrunner.resources import folder

GOOD = dict.fromkeys(verify.OURS, (True, "fine"))


@pytest.fixture
def settings(tmp_path: Path) -> HostConfig:
    return HostConfig(manager="m", state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")


def answers(found: dict[str, tuple[bool, str]], *, now: float | None = None) -> bytes:
    """As the probe prints them."""
    lines: list[dict[str, object]] = [{"now": time.time() if now is None else now}]
    lines += [
        {"check": name, "passed": passed, "measured": measured}
        for name, (passed, measured) in found.items()
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What the next machines print, in small pieces, before they end with this code or error."""

    def speak(output: bytes, code: int = 0, error: VmrunnerError | None = None) -> None:
        def run(_: object, __: object, command: Command, **options: object) -> int:
            if error:
                raise error
            started, write = options["started"], options["write"]
            assert callable(started)
            assert callable(write)
            assert not command.snapshot
            started(MachineId.new("m", "0a0b0c0d"))
            for begin in range(0, len(output), 7):
                write(Output.STDOUT, output[begin : begin + 7])
                write(Output.STDERR, b"noise\n")
            return code

        monkeypatch.setattr(verify.oneshot, "run", run)

    return speak


def verified(settings: HostConfig, golden: Golden) -> Proof:
    return verify.verify(FakeHypervisor(), settings, golden, say=print)


def test_a_good_one_is_written_down_and_promoted(
    settings: HostConfig, machine: Callable[..., None]
) -> None:
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    with pytest.raises(ImageError, match="The image web 1 was not verified"):
        promotion.promote(settings.images_dir, "web", "1", print)
    machine(answers(GOOD))
    found = verified(settings, golden)
    assert (found.is_good, found.said, [check.name for check in found.checks]) == (
        True,
        "",
        ["boot", "clock", *verify.OURS],
    )
    assert proof.read(golden) == found
    assert (found.qemu, found.libvirt, found.boot_seconds > 0) == ("10.0.0", "11.3.0", True)
    promotion.promote(settings.images_dir, "web", "1", print)
    assert promotion.history(settings.images_dir, "web")[-1].forced is False


@pytest.mark.parametrize("name", verify.OURS)
def test_each_check_that_fails_or_is_not_answered_is_the_end(
    settings: HostConfig, machine: Callable[..., None], name: str
) -> None:
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    machine(answers(GOOD | {name: (False, "it \x1b[31mis not\n")}))
    assert verified(settings, golden).said == f"{name}: it [31mis not"
    machine(answers({key: value for key, value in GOOD.items() if key != name}), code=1)
    assert verified(settings, golden).said == f"{name}: the probe ended with exit code 1"
    with pytest.raises(ImageError, match="was verified and is not good"):
        promotion.promote(settings.images_dir, "web", "1", print)
    promotion.promote(settings.images_dir, "web", "1", print, force=True)
    assert promotion.history(settings.images_dir, "web")[-1].forced is True


@pytest.mark.parametrize(
    ("output", "code", "error", "said"),
    [
        (b"", 127, None, "boot: the image has no python3, and the checks need it"),
        (b"", 0, None, "boot: the probe said nothing"),
        (
            b"",
            0,
            MachineError("The guest did not come up within 90 s.", console="dracut#"),
            "did not come up within 90 s",
        ),
        (
            b"",
            0,
            MachineError("The machine ended.", console="Kernel panic - not"),
            "boot: its kernel panicked: The machine",
        ),
        (
            b"",
            0,
            HypervisorError("libvirt refused it: invalid kernel header.", ""),
            "boot: libvirt refused it: invalid kernel header",
        ),
        (
            b"x" * 100_000 + b'\n{"now": "?"}\n[]\n{"check": 1}\n',
            0,
            None,
            "boot: the probe said nothing",
        ),
        (answers(GOOD, now=1.0), 0, None, "s from the host's"),
    ],
)
def test_machines_that_do_not_come_up(
    settings: HostConfig,
    machine: Callable[..., None],
    output: bytes,
    code: int,
    error: VmrunnerError | None,
    said: str,
) -> None:
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    machine(output, code, error)
    found = verified(settings, golden)
    assert said in found.said
    assert not found.is_good


def test_the_hosts_faults_are_not_the_images(
    settings: HostConfig, machine: Callable[..., None]
) -> None:
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    machine(b"", 0, DiskFull("The storage pool has no room.", ""))
    with pytest.raises(DiskFull):
        verified(settings, golden)
    assert proof.read(golden) is None


def test_damaged_files_are_found_before_anything_is_booted(settings: HostConfig) -> None:
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    (golden.directory / DISK).write_bytes(b"di")
    with pytest.raises(ImageError, match=r"is damaged: disk\.qcow2"):
        verified(settings, golden)


def test_a_record_of_another_manifest_counts_for_nothing(settings: HostConfig) -> None:
    golden = publish(settings.images_dir, "1", promote=False)
    assert proof.read(golden)
    manifest = json.loads((golden.directory / MANIFEST).read_text())
    (golden.directory / MANIFEST).write_text(json.dumps(manifest | {"kernel": "6.2"}))
    assert proof.read(golden) is None


def test_a_pools_image_needs_the_runner_of_its_forge(
    tmp_path: Path, machine: Callable[..., None]
) -> None:
    pools = {"p": {"labels": ["a"], "image": "web", "vcpus": 1, "memory": "1GiB", "disk": "7GiB"}}
    forge = {"kind": "gitea", "url": "http://f"}
    settings = Config.model_validate(
        {
            "manager": "m",
            "state_dir": tmp_path,
            "runtime_dir": tmp_path / "run",
            "forge": forge,
            "pools": pools,
        }
    )
    golden = publish(settings.images_dir, "1", verified=None)
    machine(answers(GOOD))
    assert (
        verified(settings, golden).said
        == "runner: no runner, and the pools that use the image need gitea-runner"
    )
    assert verify.shape_for(settings, "web") == Shape(1, 1024, 7)
    assert verify.shape_for(settings, "other") == Shape(2, 2048, 20)


# ---- rotation ----


@pytest.fixture
def stage(settings: HostConfig) -> Stage:
    """A host on which the version 1 is current and has a snapshot for `exec`."""
    hypervisor = FakeHypervisor()
    golden = publish(settings.images_dir, "1")
    hypervisor.snapshots.make(
        golden, Shape(1, 512, 3), MachineId.new("m", "0a0b0c0d"), b"", 1, print
    )
    return Stage(hypervisor, settings, say=print)


def candidate(stage: Stage, version: str, *, differs: bool = True) -> Golden:
    golden = publish(stage.settings.images_dir, version, promote=False, verified=None)
    manifest = (
        json.loads((golden.directory / MANIFEST).read_text())
        | {"inputs": {}}
        | ({"kernel": version} if differs else {})
    )
    (golden.directory / MANIFEST).write_text(json.dumps(manifest))
    return store.version(stage.settings.images_dir, "web", version)


def test_what_differs_and_is_good_goes_live_with_its_snapshots(
    stage: Stage, machine: Callable[..., None]
) -> None:
    machine(answers(GOOD))
    for version in "23456":
        golden = candidate(stage, version)
        said = stage.settle(golden)
        assert said.startswith(f"{version} is current")
        assert stage.hypervisor.snapshots.find(golden, Shape(1, 512, 3)), "made before the switch"
    assert store.versions(stage.settings.images_dir, "web") == ["4", "5", "6"]
    assert {each.image for each in stage.hypervisor.snapshots.all()} >= {"web/4", "web/5", "web/6"}


def test_nothing_new_is_dropped(stage: Stage) -> None:
    first = candidate(stage, "2")
    promotion.promote(stage.settings.images_dir, "web", "2", print, force=True)
    same = candidate(stage, "3", differs=False)
    (same.directory / MANIFEST).write_text(
        (first.directory / MANIFEST).read_text().replace('"version": "2"', '"version": "3"')
    )
    assert (
        stage.settle(store.version(stage.settings.images_dir, "web", "3")) == "nothing new, 2 stays"
    )
    assert store.versions(stage.settings.images_dir, "web") == ["1", "2"]


def test_a_bad_one_stays_beside_the_current_one_and_goes_with_prune(
    stage: Stage, machine: Callable[..., None]
) -> None:
    machine(answers(GOOD | {"dns": (False, "no answer")}))
    with pytest.raises(
        ImageError, match=r"web 2 is not good, and was not promoted: dns: no answer"
    ):
        stage.settle(candidate(stage, "2"))
    assert promotion.current(stage.settings.images_dir, "web") == "1"
    assert store.versions(stage.settings.images_dir, "web") == ["1", "2"]
    machine(answers(GOOD))
    stage.settle(candidate(stage, "3"))
    assert store.versions(stage.settings.images_dir, "web") == ["1", "3"], (
        "what was found bad is none of those that are kept"
    )


def test_what_was_rolled_back_is_not_promoted_again(
    stage: Stage, machine: Callable[..., None]
) -> None:
    images = stage.settings.images_dir
    bad = candidate(stage, "2")
    promotion.promote(images, "web", "2", print, force=True)
    assert promotion.step_back(images, "web", "2", "3 machines failed", print)
    (again := candidate(stage, "3")).directory.joinpath(MANIFEST).write_text(
        (bad.directory / MANIFEST).read_text().replace('"version": "2"', '"version": "3"')
    )
    assert (
        stage.settle(store.version(images, "web", "3"))
        == "what there is was rolled back before, 1 stays"
    )
    assert not again.directory.exists()
    machine(answers(GOOD))
    assert stage.settle(candidate(stage, "4")).startswith("4 is current"), "another one is"


def test_two_refreshes_at_once(settings: HostConfig) -> None:
    settings.images_dir.mkdir(parents=True)
    again = rotation.only_one(settings.images_dir, print)
    with (
        rotation.only_one(settings.images_dir, print),
        pytest.raises(VmrunnerError, match="Another vmrunner renews the images"),
        again,
    ):
        pass


# ---- the probe's own parts ----


@pytest.fixture(scope="module")
def probe() -> Any:
    return load("probe_image.py")


@pytest.mark.parametrize(
    ("name", "content", "secret"),
    [
        ("id_ed25519", "-----BEGIN OPENSSH " + "PRIVATE KEY-----\n", True),
        (".netrc", "", True),
        (".docker/config.json", "{}", True),
        ("auth.json", '{"auths": {}}', True),
        (".npmrc", "//registry.example/:_authToken=x", True),
        ("cert.pem", "-----BEGIN CERTIFICATE-----\n", False),
        ("notes", "", False),
    ],
)
def test_what_a_secret_is(
    probe: Any, tmp_path: Path, name: str, content: str, secret: bool
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert probe.is_secret(str(path)) is secret


def test_the_probe_looks_at_all_that_is_asked_for(probe: Any) -> None:
    text = (folder("images") / "guest" / "probe_image.py").read_text()
    assert all(f'"{name}": ' in text for name in verify.OURS)


CHECKED = [f"usr/share/man/man{section}" for section in range(1, 9)]


@pytest.fixture
def root(
    probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, str]], Path]:
    """A function that makes an image with these files the one that is looked at."""
    monkeypatch.setattr(probe, "ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(probe, "is_packaged", lambda path: "packaged" in path)

    def lay(files: dict[str, str]) -> Path:
        for folder_ in CHECKED:
            (tmp_path / "root" / folder_).mkdir(parents=True)
        for path, text in files.items():
            (tmp_path / "root" / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "root" / path).write_text(text)
        return tmp_path / "root"

    return lay


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        (
            "etc/apt/apt.conf.d/99mmdebstrap",
            'Acquire::http::Proxy "http://proxy.lan:3128";',
            "/etc/apt/apt.conf.d/99mmdebstrap (a proxy)",
        ),
        (
            "etc/apt/apt.conf",
            'acquire { http { proxy "http://proxy.lan"; }; };',
            "/etc/apt/apt.conf (a proxy)",
        ),
        (
            "etc/apt/apt.conf.d/99host",
            'Acquire::Check-Valid-Until "false";',
            "/etc/apt/apt.conf.d/99host (a check that is off)",
        ),
        (
            "etc/apt/apt.conf.d/99host",
            'Acquire::https::CAInfo "/etc/lan.pem";',
            "/etc/apt/apt.conf.d/99host (certificates)",
        ),
        (
            "etc/apt/apt.conf.d/99host",
            'APT::Get::AllowUnauthenticated "true";',
            "/etc/apt/apt.conf.d/99host (unsigned packages)",
        ),
        (
            "etc/apt/apt.conf.d/99host",
            '// Proxy "http://a"\n# CaInfo x\n/* Check-Date\n"no" */\nAcquire::Retries "3";',
            "",
        ),
        ("etc/apt/apt.conf.d/99proxy", 'Acquire::http::Proxy "DIRECT";', ""),
        ("etc/apt/apt.conf.d/50packaged", 'Acquire::Check-Date "no";', ""),
        ("etc/apt/apt.conf.d/of-recipe", 'Acquire::http::Proxy "http://proxy.lan";', ""),
        (
            "etc/apt/apt.conf.d/of-recipe",
            'Acquire::http::Proxy "http://a:b@proxy.lan";',
            "/etc/apt/apt.conf.d/of-recipe (a password)",
        ),
        (
            "etc/apt/apt.conf.d/99old",
            '# Acquire::http::Proxy "http://a:b@proxy.lan";',
            "/etc/apt/apt.conf.d/99old (a password)",
        ),
        (
            "etc/apt/sources.list",
            "deb http://token@mirror.lan/debian bookworm main",
            "/etc/apt/sources.list (a password)",
        ),
        (
            "etc/apt/auth.conf.d/lan.conf",
            "machine m.lan\nlogin a\npassword b\n",
            "/etc/apt/auth.conf.d/lan.conf (a password)",
        ),
        ("etc/apt/sources.list.d/debian.sources", "URIs: http://deb.debian.org/debian\n", ""),
        (
            "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
            "force-unsafe-io\npath-exclude=/usr/share/man/*",
            "99mmdebstrap (force-, path-exclude)",
        ),
        ("etc/dpkg/dpkg.cfg.d/mine", "# path-exclude=/a\nno-debsig\n", ""),
        ("etc/dpkg/dpkg.cfg.d/of-recipe", "path-exclude=/a\n", ""),
        (
            "etc/environment",
            'http_proxy="http://proxy.lan"\nHTTPS_PROXY=x\n',
            "/etc/environment (http_proxy); /etc/environment (HTTPS_PROXY)",
        ),
        ("etc/environment", 'own_proxy="http://proxy.lan"\nLANG=C\n', ""),
        ("etc/environment", "OWN=http://a:b@c/\n", "/etc/environment (a password)"),
    ],
)
def test_what_a_build_leaves_is_found(
    probe: Any, root: Callable[[dict[str, str]], Path], path: str, text: str, said: str
) -> None:
    root({"etc/vmrunner/environment": "export own_proxy=http://proxy.lan\n", path: text})
    passed, measured = probe.settings(
        {"files": ["/etc/apt/apt.conf.d/of-recipe", "/etc/dpkg/dpkg.cfg.d/of-recipe"]}
    )
    assert (passed, said in measured) == (not said, True), measured


def test_a_folder_of_man_pages_that_is_not_there(
    probe: Any, root: Callable[[dict[str, str]], Path]
) -> None:
    (root({}) / CHECKED[6]).rmdir()
    assert probe.settings({"files": []}) == (
        False,
        "no /usr/share/man/man7, which update-alternatives needs",
    )


def test_an_image_without_node_is_good_and_noted(
    probe: Any,
    settings: HostConfig,
    machine: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        probe.shutil, "which", lambda name: None if name in ("node", "jq") else f"/usr/bin/{name}"
    )
    passed, measured, noted = probe.tools({"runners": [{"path": "/r"}]})
    assert (passed, noted) == (True, True)
    assert measured.startswith(
        "no node, so that actions written in JavaScript do not run, and hashFiles() is always "
        "empty; not there: jq"
    )
    assert probe.tools({"runners": []})[2] is False, "it runs no jobs of a forge"

    lines = [
        {"now": time.time()},
        *(
            {"check": name, "passed": True, "measured": "fine"}
            for name in verify.OURS
            if name != "tools"
        ),
    ]
    said = [*lines, {"check": "tools", "passed": True, "measured": measured, "noted": True}]
    machine("".join(json.dumps(each) + "\n" for each in said).encode())
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    found = verified(settings, golden)
    assert (found.is_good, found.said, found.notes) == (True, "", (f"tools: {measured}",))
    Stage(FakeHypervisor(), settings, say=print).go_live(golden)
    assert f"web 1: tools: {measured}" in capsys.readouterr().out


def test_the_user_of_jobs(probe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: dict[str, object] = {"runners": [{"path": "/r"}]}
    found = SimpleNamespace(pw_dir=str(tmp_path / "home"), pw_uid=os.getuid())
    monkeypatch.setattr(probe.shutil, "which", lambda _: None)
    assert probe.job_user({"runners": []}) == (True, "no runner, so no user of its jobs", False)
    monkeypatch.setattr(probe, "JOB_USER", "vmrunner-nobody")
    assert probe.job_user(jobs) == (
        True,
        "no user vmrunner-nobody: a pool can't have it as its job_user",
        True,
    )
    monkeypatch.setattr(probe.pwd, "getpwnam", lambda _: found)
    assert probe.job_user(jobs)[:2] == (False, f"vmrunner-nobody has no {tmp_path}/home")
    (tmp_path / "home").mkdir()
    assert probe.job_user(jobs)[0] is True
    monkeypatch.setattr(probe.shutil, "which", lambda _: "/usr/bin/sudo")
    monkeypatch.setattr(
        probe,
        "run",
        lambda *_: subprocess.CompletedProcess((), 1, "", "sudo: a password is required"),
    )
    assert probe.job_user(jobs)[:2] == (
        False,
        "sudo as vmrunner-nobody: exit 1: sudo: a password is required",
    )


def test_a_program_for_another_processor(probe: Any, tmp_path: Path) -> None:
    program = tmp_path / "runner"
    program.write_bytes(b"\x7fELF" + bytes(14) + b"\xb7\x00" + bytes(40))
    program.chmod(0o755)
    assert probe.runner_at(str(program), "") == (False, f"{program} is for another processor")
    program.write_text("#!/bin/sh\necho runner 1.2.3\n")
    assert probe.runner_at(str(program), "1.2.3")[0] is True
    assert probe.runner_at(str(program), "2.0") == (False, "runner 1.2.3 (wanted: 2.0)")
    assert (
        probe.runners(
            {
                "runners": [
                    {"path": str(program), "version": ""},
                    {"path": "/nowhere", "version": ""},
                ]
            }
        )[0]
        is False
    )
    program.chmod(0o644)
    assert probe.runner_at("/nowhere", "") == (False, "/nowhere is missing")
