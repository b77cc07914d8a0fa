"""Golden images through the program: a damaged one is refused before a machine is made of it, a
failed build leaves nothing.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.archive import Package
from tests.broken import panics
from tests.forge.gitea import Site, until
from tests.goldens import linked
from tests.ground import Ground
from tests.prepare import FORGEJO, GITEA, IMAGES, RECIPES
from tests.vm.test_failing import image_with
from tests.vm.test_jobs import ONCE, records
from tests.vm.test_snapshot import RECIPES_HOST
from vmrunner.errors import ImageError, MachineError
from vmrunner.image.versions import promotion, verify
from vmrunner.image.versions.promotion import Why

pytestmark = pytest.mark.vm


def test_a_digest_that_differs_from_the_manifest(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    image_with(ground, "damaged", files={"disk.qcow2": "0" * 64})
    for command in (
        ("exec", "--image", "damaged", "--", "true"),
        ("image", "verify", "damaged", "--files-only"),
    ):
        done = ground.run(*command, check=False)
        assert (done.returncode, "is damaged: disk.qcow2 has another sha256" in done.stderr) == (
            ImageError.exit_code,
            True,
        ), done.stderr
    assert ground.leftovers() == []


def test_a_manifest_that_is_corrupt_or_lacks_a_file(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    image_with(ground, "lacking", files={"disk.qcow2": "0", "gone": "0"})
    assert (
        "lacks its file gone"
        in ground.run("exec", "--image", "lacking", "--", "true", check=False).stderr
    )
    (ground.folder / "state" / "images" / "lacking" / "current" / "manifest.json").write_text("{")
    assert (
        "is corrupt" in ground.run("exec", "--image", "lacking", "--", "true", check=False).stderr
    )


def test_a_job_whose_pool_names_an_unknown_image_keeps_waiting(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    ground = lay_ground(image="nowhere")
    repository = site.repository("rig", "imageless", ONCE)
    until(site.queued, 30, "the job")
    done = ground.run("up", check=False)
    assert (done.returncode, "There is no image 'nowhere'" in done.stderr) == (
        ImageError.exit_code,
        True,
    ), done.stderr
    assert (ground.leftovers(), records(site, ground), site.queued()) == ([], [], 1)
    repository.delete()


def test_a_build_that_fails_leaves_no_image(
    lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    ground = lay_ground()
    (ground.folder / "state" / "images").unlink()
    mirrorless = tmp_path / "recipes"
    mirrorless.mkdir()
    (mirrorless / "offline.toml").write_text(
        'extends = "debian-12"\nmirror = "http://127.0.0.1:9/debian"\n'
    )
    done = ground.run("image", "build", "offline", "--recipes", str(mirrorless), check=False)
    assert (done.returncode, "The bootstrap failed" in done.stderr) == (
        ImageError.exit_code,
        True,
    ), done.stderr
    assert not list((ground.folder / "state" / "images").glob("[!.]*"))
    assert ground.run("image", "list", "--json").stdout.strip() == "[]"


def test_list_and_an_up_to_date_build(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    assert GITEA in ground.run("image", "list").stdout
    assert "is up to date" in ground.run("image", "build", GITEA, "--recipes", str(RECIPES)).stdout
    assert (
        "files are as the manifest says"
        in ground.run("image", "verify", GITEA, "--files-only").stdout
    )


def test_what_is_in_an_image(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground()
    parts = json.loads(ground.run("image", "sbom", GITEA).stdout)["components"]
    assert {"git", "systemd", "gitea-runner"} <= {part["name"] for part in parts}
    assert all(part["hashes"][0]["alg"] == "SHA-256" for part in parts), (
        "of each .deb, and of the runner"
    )
    found = json.loads(ground.run("image", "diff", GITEA, FORGEJO, "--json").stdout)
    assert (found["runner"]["first"].split()[0], found["runner"]["second"].split()[0]) == (
        "gitea-runner",
        "forgejo-runner",
    )
    for command, said in (
        (("diff", GITEA, f"{GITEA}/0"), "There is no version '0'"),
        (("sbom", "nothing"), "There is no image 'nothing'"),
        (("lock", GITEA, "--recipes", str(RECIPES)), f"The recipe {GITEA} names no lock"),
    ):
        done = ground.run("image", *command, check=False)
        assert (done.returncode, said in done.stderr) == (ImageError.exit_code, True), done.stderr


INSTALL = """set -e
base64 -d >/tmp/tool.deb <<'END'
{deb}
END
dpkg --install /tmp/tool.deb
cd /usr/share
cat man/man1/tool.1 man/de/man1/tool.1 man/man7/tool.7 doc/tool/README locale/de/LC_MESSAGES/tool.mo
ls -A /etc/dpkg/dpkg.cfg.d
grep -v vmrunner /etc/hosts
"""


@pytest.mark.long
def test_a_job_installs_what_has_man_pages_and_alternatives(
    lay_ground: Callable[..., Ground], tmp_path: Path
) -> None:
    """As postgresql-client and default-jre-headless do it, whose folders for man pages the image
    has to have.
    """
    pages = (
        "man/man1/tool.1",
        "man/de/man1/tool.1",
        "doc/tool/README",
        "locale/de/LC_MESSAGES/tool.mo",
    )
    files: dict[str, bytes | Path] = {f"usr/share/{path}": f"{path}\n".encode() for path in pages}
    files |= {"usr/lib/tool/tool": b"#!/bin/sh\n", "usr/lib/tool/tool.7": b"man/man7/tool.7\n"}
    slave = "--slave /usr/share/man/man7/tool.7 tool.7 /usr/lib/tool/tool.7"
    script = f"update-alternatives --install /usr/bin/tool tool /usr/lib/tool/tool 50 {slave}"
    Package("tool", files=files, scripts={"postinst": script}).build(tmp_path / "tool.deb")
    encoded = base64.b64encode((tmp_path / "tool.deb").read_bytes()).decode()
    done = lay_ground().run(
        "exec", "--image", GITEA, "--boot", "--", "sh", "-c", INSTALL.format(deb=encoded)
    )
    lines = [*pages[:2], "man/man7/tool.7", *pages[2:], RECIPES_HOST]
    assert done.stdout.splitlines()[-len(lines) :] == lines


@pytest.mark.long
def test_a_version_that_panics_is_refused_and_when_forced_rolled_back(
    site: Site, lay_ground: Callable[..., Ground]
) -> None:
    """One kind of tests/broken.py, with one machine instead of three; and what a good version
    shows.
    """
    ground = lay_ground(image="trial", most=1)
    ground.config.write_text(ground.config.read_text() + "[images]\nrollback_after = 1\n")
    images = ground.folder / "state" / "images"
    images.unlink()
    for version in ("good", "panics"):
        linked(images, IMAGES / GITEA / "current", "trial", version)
    panics(images / "trial" / "panics")
    with promotion.changing(images, print):
        promotion.switch(images, "trial", "good", Why.BUILT)

    found = json.loads(ground.run("image", "verify", "trial/good", "--json").stdout)
    assert (found["good"], [check["name"] for check in found["checks"]]) == (
        True,
        ["boot", "clock", *verify.OURS],
    )
    refused = ground.run("image", "verify", "trial/panics", check=False)
    assert (refused.returncode, "its kernel panicked" in refused.stderr) == (
        ImageError.exit_code,
        True,
    ), refused.stderr
    assert ground.leftovers() == []
    promoted = ground.run("image", "promote", "trial", "panics", check=False)
    assert (promoted.returncode, "was verified and is not good" in promoted.stderr) == (
        ImageError.exit_code,
        True,
    ), promoted.stderr
    ground.run("image", "promote", "trial", "panics", "--force")

    repository = site.repository("rig", "rolled-back", ONCE)
    until(site.queued, 30, "the job")
    codes = [until(lambda: ground.run("up", check=False), 60, "a pass").returncode]
    until(
        lambda: (
            codes.append(ground.run("up", check=False).returncode)
            or MachineError.exit_code in codes
        ),
        120,
        "the machine",
        every=1,
    )
    until(
        lambda: ground.run("up", check=False) and repository.jobs()[0]["status"] == "completed",
        240,
        "the job on the other",
        every=1,
    )
    assert repository.jobs()[0]["conclusion"] == "success"
    until(lambda: ground.run("up") and not ground.leftovers(), 60, "the end", every=1)
    (pool,) = ground.status()["pools"]
    assert (pool["image"], pool["backoff"]) == ("trial/good", None)
    assert (
        "1 machine of trial/panics failed and none worked; last: its guest's kernel panicked"
        in pool["image_note"]
    )
    listed = {
        row["version"]: row for row in json.loads(ground.run("image", "list", "--json").stdout)
    }
    assert (listed["good"]["current"], listed["good"]["promoted_why"]) == (
        True,
        "rolled back automatically",
    )
    assert (len(listed["panics"]["forced"]), listed["panics"]["verified"]) == (1, False)
    repository.delete()
    assert records(site, ground) == []
