"""An archive of old packages: what it signed has expired, and is taken for a recipe with a
`snapshot` alone; unsigned it is never taken.

The archive is the test's own, with one package and signed by a key of its own: no real one can be
reached here.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pysequoia import Tsk

from tests.archive import Package, publish, served
from vmrunner.errors import ImageError
from vmrunner.image.build import bootstrap, build
from vmrunner.image.build.apt import build_sources
from vmrunner.image.build.apt_source import Source, lines
from vmrunner.image.recipe import packages, recipe
from vmrunner.image.recipe.recipe import Recipe

SNAPSHOT = "20200101T000000Z"
BASE = Package("base", "1:1+b1", {"Essential": "yes"})


@dataclass(frozen=True)
class Archive:
    """Where it is, whose signature it bears, and the sha256 of its package."""

    url: str
    folder: Path
    key: Path
    deb: str

    def sources(self, wanted: Recipe) -> list[Source]:
        """Those of a build, with the test's key in the place of Debian's."""
        return [replace(each, signed_by=str(self.key)) for each in build_sources(wanted)]


@pytest.fixture(scope="module")
def archive() -> Iterator[Archive]:
    # Not below pytest's own folder, which apt's user may not enter.
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        home.chmod(0o755)
        owner = Tsk.generate("archive@example")
        key = home / "key.gpg"
        key.write_bytes(bytes(owner.extract_certificate()))
        for folder, suite in (
            ("debian", "bookworm"),
            ("debian", "bookworm-updates"),
            ("debian-security", "bookworm-security"),
        ):
            packages = [BASE] if suite == "bookworm" else []
            root = home / "site" / folder / SNAPSHOT
            publish(
                root,
                owner,
                {"main": packages},
                suite=suite,
                day="Wed, 01 Jan 2020",
                until="Wed, 08 Jan 2020",
            )
        (deb,) = (home / "site").rglob("*.deb")
        with served(home / "site") as site:
            yield Archive(
                site.url, home / "site", key, hashlib.sha256(deb.read_bytes()).hexdigest()
            )


def with_snapshot(archive: Archive) -> Recipe:
    return recipe.load("debian-12").model_copy(update={"mirror": archive.url, "snapshot": SNAPSHOT})


def with_mirror(archive: Archive) -> Recipe:
    return recipe.load("debian-12").model_copy(
        update={"mirror": f"{archive.url}/debian/{SNAPSHOT}"}
    )


def apt(home: Path, wanted: list[Source], *command: str) -> subprocess.CompletedProcess[str]:
    """Run apt with these sources in a root of the test's own, where no setting of the host's
    counts.
    """
    for folder in (
        "etc/apt/apt.conf.d",
        "etc/apt/preferences.d",
        "var/lib/apt/lists/partial",
        "var/lib/dpkg",
        "var/cache/apt/archives/partial",
    ):
        (home / folder).mkdir(parents=True, exist_ok=True)
    (home / "var/lib/dpkg/status").touch()
    (home / "etc/apt/sources.list").write_text(lines(wanted))
    settings = home / "apt.conf"
    status = home / "var/lib/dpkg/status"
    settings.write_text(
        f'Dir "{home}";\nDir::State::status "{status}";\nAPT::Sandbox::User '
        '"root";\nAPT::Architecture "amd64";\n'
    )
    environment = os.environ | {"APT_CONFIG": str(settings)}
    return subprocess.run(
        ["apt-get", *command], cwd=home, capture_output=True, text=True, env=environment, timeout=60
    )


def test_debians_own_archive_is_the_default() -> None:
    wanted = recipe.load("debian-13").model_copy(update={"snapshot": SNAPSHOT})
    assert lines(build_sources(wanted)) == (
        f"deb [check-valid-until=no] https://snapshot.debian.org/archive/debian/{SNAPSHOT} trixie "
        "main\n"
        f"deb [check-valid-until=no] https://snapshot.debian.org/archive/debian/{SNAPSHOT} "
        "trixie-updates main\n"
        "deb [check-valid-until=no] "
        f"https://snapshot.debian.org/archive/debian-security/{SNAPSHOT} trixie-security main\n"
    )


def test_apt_takes_a_snapshot_and_its_lists_give_the_digest(
    archive: Archive, tmp_path: Path
) -> None:
    sources = archive.sources(with_snapshot(archive))
    updated = apt(tmp_path, sources, "update", "--error-on=any")
    assert updated.returncode == 0, updated.stderr
    found = packages.installed("base\t1:1+b1\tall\tinstalled\n", tmp_path / "var/lib/apt/lists")
    assert found["base"].sha256 == archive.deb
    fetched = apt(tmp_path, sources, "download", "base=1:1+b1")
    assert fetched.returncode == 0, fetched.stderr
    (deb,) = tmp_path.glob("*.deb")
    assert hashlib.sha256(deb.read_bytes()).hexdigest() == archive.deb


def test_the_same_archive_as_a_mirror_has_expired(archive: Archive, tmp_path: Path) -> None:
    updated = apt(tmp_path, archive.sources(with_mirror(archive)), "update", "--error-on=any")
    assert (updated.returncode, "expired" in updated.stderr) == (100, True), updated.stderr


def test_a_bootstrap_takes_a_snapshot_that_is_signed_and_no_other(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = with_snapshot(archive)
    with pytest.raises(ImageError, match="The bootstrap failed") as caught:
        build.build(wanted, tmp_path / "images", lambda _: None)
    assert "is not signed" in caught.value.hint, "by nobody whom this host knows"
    signed = archive.sources(wanted)
    monkeypatch.setattr(bootstrap.apt, "build_sources", lambda _: signed)
    with pytest.raises(ImageError, match="The bootstrap failed") as caught:
        build.build(wanted, tmp_path / "images", lambda _: None)
    assert "dpkg --install" in caught.value.hint, "it has the package, which is no Debian"
