"""`vmrunner image` where a version goes live, or does not: building without libvirt, renewing, what
is said and the exit codes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fakes import FakeHypervisor
from tests.goldens import publish
from vmrunner.cli.main import main
from vmrunner.errors import HypervisorError, ImageError
from vmrunner.hypervisor import host as host_module
from vmrunner.image.build import build as builder
from vmrunner.image.recipe import recipe, tools
from vmrunner.image.versions import promotion, store, verify
from vmrunner.image.versions.promotion import Why
from vmrunner.image.versions.store import MANIFEST
from vmrunner.model.image import Golden

CONFIG = """
manager = "m"
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[forge]
kind = "gitea"
url = "http://forge.example"
[pools.p]
labels = ["a"]
image = "web"
start = "boot"
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    publish(tmp_path / "state" / "images", "1")
    return tmp_path / "state" / "images"


@pytest.fixture
def run(
    tmp_path: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Run]:
    """The program on a host whose builds give the version 2, with the `changed` manifest, and whose
    machines say that all is `good`.
    """
    config_path, on_terminate = tmp_path / "vmrunner.toml", signal.getsignal(signal.SIGTERM)
    config_path.write_text(CONFIG.format(folder=tmp_path))
    host = FakeHypervisor()

    def command(
        *arguments: str, libvirt: bool = True, good: bool = True, fails: str = "", **changed: Any
    ) -> tuple[int, str, str]:
        def build(*_: object, promote: bool, **__: object) -> Golden:
            if fails:
                raise ImageError(fails, "The mirror?")
            golden = publish(images, "2", promote=False, verified=None)
            manifest = (
                json.loads((golden.directory / MANIFEST).read_text()) | {"inputs": {}} | changed
            )
            (golden.directory / MANIFEST).write_text(json.dumps(manifest))
            if promote:
                with promotion.changing(images, print):
                    promotion.switch(images, "web", "2", Why.BUILT, forced=True)
            return store.version(images, "web", "2")

        def open_host(*_: object) -> object:
            if not libvirt:
                raise HypervisorError("libvirt does not answer.", "Start it.")
            return host

        def probe(*_: object, **options: Any) -> int:
            lines: list[dict[str, object]] = [{"now": 0}]
            lines += [{"check": name, "passed": good, "measured": "so"} for name in verify.OURS]
            options["write"](
                verify.Output.STDOUT, "".join(json.dumps(line) + "\n" for line in lines).encode()
            )
            return 0

        monkeypatch.setattr(verify, "_SKEW", 1e12)
        monkeypatch.setattr(verify.oneshot, "run", probe)
        monkeypatch.setattr(builder, "build", build)
        monkeypatch.setattr(host_module, "open_host", open_host)
        monkeypatch.setattr(tools, "load", lambda *_: SimpleNamespace(digest=lambda: "1"))
        monkeypatch.setattr(verify, "_is_unusable", lambda *_: False)
        monkeypatch.setattr(
            "sys.argv", ["vmrunner", "image", *arguments, "--config", str(config_path)]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    yield command
    signal.signal(signal.SIGTERM, on_terminate)  # main() set it


def test_a_build_goes_live_when_it_is_good(run: Run, images: Path) -> None:
    code, out, _ = run("build", "web")
    assert (
        code,
        "web 2: verified, new machines use it" in out,
        promotion.current(images, "web"),
    ) == (0, True, "2")
    last = promotion.history(images, "web")[-1]
    assert (last.why, last.forced) == (Why.BUILT, False)


def test_a_build_that_is_bad_stays_beside_the_current_one(run: Run, images: Path) -> None:
    code, _, err = run("build", "web", good=False)
    assert (code, promotion.current(images, "web")) == (ImageError.exit_code, "1")
    assert "The image web 2 is not good, and was not promoted: seed: so;" in err


def test_a_build_without_libvirt_is_not_promoted(run: Run, images: Path) -> None:
    code, _, err = run("build", "web", libvirt=False)
    assert (code, promotion.current(images, "web"), store.versions(images, "web")) == (
        HypervisorError.exit_code,
        "1",
        ["1", "2"],
    )
    assert (
        "The image web 2 is built, but not verified and so not promoted: libvirt does not answer."
        in err
    )
    assert (
        "`vmrunner image verify web/2` and `vmrunner image promote web 2`; or build it with "
        "--no-verify" in err
    )


def test_a_build_that_nobody_shall_verify(run: Run, images: Path) -> None:
    code, _, _ = run("build", "web", "--no-verify", libvirt=False)
    assert (
        code,
        promotion.current(images, "web"),
        promotion.history(images, "web")[-1].forced,
    ) == (0, "2", True)


def test_fresh_and_compress(
    tmp_path: Path, images: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, built = recipe.load("debian-12"), list[tuple[bool, bool, bool]]()
    publish(images, "1", name="debian-12")
    manifest = images / "debian-12" / "1" / MANIFEST
    manifest.write_text(
        json.dumps(json.loads(manifest.read_text()) | {"recipe_digest": wanted.digest()})
    )

    def build(what: recipe.Recipe, *_: object, fresh: bool, **__: object) -> Golden:
        built.append((fresh, what.compress, what.model_copy(update={"compress": False}) == wanted))
        raise ImageError("That was all.", "")

    def command(*options: str) -> int:
        monkeypatch.setattr(
            "sys.argv",
            [
                "vmrunner",
                "image",
                "build",
                "debian-12",
                *options,
                "--config",
                str(tmp_path / "vmrunner.toml"),
            ],
        )
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0)

    monkeypatch.setattr(builder, "build", build)
    assert [command(*options) for options in ((), ("--no-compress",))] == [0, 0], (
        "the current version has this recipe"
    )
    assert built == []
    assert {command(*options) for options in (("--fresh",), ("--compress",), ("--force",))} == {
        ImageError.exit_code
    }
    assert built == [(True, False, True), (False, True, True), (False, False, True)]


def test_refresh(run: Run, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = run("refresh")
    assert (code, out, "web: there is no recipe of it" in err) == (0, "", True)
    monkeypatch.setattr(recipe, "exists", lambda *_: True)
    code, _, err = run("refresh", fails="The bootstrap failed.")
    assert (code, "vmrunner: The bootstrap failed." in err, promotion.current(images, "web")) == (
        ImageError.exit_code,
        True,
        "1",
    )
    code, _, err = run("refresh", good=False)
    assert (code, "is not good, and was not promoted" in err, promotion.current(images, "web")) == (
        ImageError.exit_code,
        True,
        "1",
    )
    store.version(images, "web", "2").directory.rename(images / "web" / "bad")
    code, out, _ = run("refresh", kernel="6.2")
    assert (code, out.startswith("web: 2 is current"), promotion.current(images, "web")) == (
        0,
        True,
        "2",
    )


def test_verify_prints_what_was_measured(run: Run, images: Path) -> None:
    code, out, _ = run("verify", "web", "--json")
    found = json.loads(out)
    assert (code, found["good"], found["version"], found["checks"][2]) == (
        0,
        True,
        "1",
        {"name": "seed", "passed": True, "measured": "so", "noted": False},
    )
    code, out, err = run("verify", "web/1", good=False)
    assert (code, "BAD" in out, "The image web 1 is not good: seed: so;" in err) == (
        ImageError.exit_code,
        True,
        True,
    )
    assert run("verify", "web", "--files-only", libvirt=False)[0] == 0


def test_promoting_wants_it_verified(run: Run, images: Path) -> None:
    publish(images, "3", promote=False, verified=None)
    code, _, err = run("promote", "web", "3")
    assert (code, "The image web 3 was not verified." in err) == (ImageError.exit_code, True)
    assert run("promote", "web", "3", "--force", libvirt=False)[0] == 0
    listed = {row["version"]: row for row in json.loads(run("list", "--json")[1])}
    assert ([each["found"] for each in listed["3"]["forced"]], listed["3"]["verified"]) == (
        [""],
        None,
    )
    assert (listed["1"]["forced"], listed["1"]["verified"]) == ([], True)
    assert "no, forced" in run("list")[1]


def test_prune_as_json(run: Run, images: Path) -> None:
    publish(images, "2")
    code, out, _ = run("prune", "--keep", "1", "--json")
    assert (code, json.loads(out)) == (
        0,
        {
            "versions": [["web", "1"]],
            "snapshots": [],
            "volumes": [],
            "leftovers": [],
            "removed": True,
        },
    )


def test_prune_keeps_what_the_configuration_says(run: Run, images: Path, tmp_path: Path) -> None:
    for version in "2345":
        publish(images, version)
    assert [
        version for _, version in json.loads(run("prune", "--dry-run", "--json")[1])["versions"]
    ] == ["1", "2"]
    config_path = tmp_path / "vmrunner.toml"
    config_path.write_text(f"{config_path.read_text()}[images]\nkeep = 4\n")
    assert [
        version for _, version in json.loads(run("prune", "--dry-run", "--json")[1])["versions"]
    ] == ["1"]
    assert [
        version for _, version in json.loads(run("prune", "--keep", "2", "--json")[1])["versions"]
    ] == ["1", "2", "3"]


def test_who_may_not_look_into_the_services_folder_is_told_so(tmp_path: Path) -> None:
    # Not below pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "state/images").mkdir(parents=True)
        (folder / "state").chmod(0o700)
        (folder / "vmrunner.toml").write_text(CONFIG.format(folder=folder))
        program = "import sys; from vmrunner.cli.main import main; sys.exit(main())"
        words = [
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            sys.executable,
            "-c",
            program,
            "image",
            "list",
        ]
        done = subprocess.run(
            [*words, "--config", folder / "vmrunner.toml"],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr.splitlines()[0]) == (
        1,
        f"vmrunner: This user may not open {folder}/state/images.",
    )
    assert "sudo" in done.stderr
