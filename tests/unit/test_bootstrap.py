"""The recipe ubuntu-24.04 with another mirror and keyring, as an admin would: an archive like Ubuntu's, of the test's own.

Bootstrap, tree and disk are what every build does; the packages are empty but for what that needs. `make images` takes the real archive.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pysequoia import Tsk

from tests.archive import Package, Site, base, publish, served
from tests.interrupted import fill_at_sizes, kill_at_random, left
from tests.unit.test_image_cmd import CONFIG
from vmrunner.errors import ImageError
from vmrunner.image import build, promotion, recipe, store

KERNEL = "6.8.0-31-generic"
ESSENTIAL = {"Essential": "yes", "Priority": "required"}
INITRD = "#!/bin/sh\necho an initrd >/boot/initrd.img-$1\n"
UNIT = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
MINE = """
extends = "ubuntu-24.04"
mirror = "{url}/ubuntu"
keyring = "{key}"
packages = ["jq"]
"""


@dataclass(frozen=True)
class Mirror:
    """The archive, and the folder with the recipe `mine` and the keys."""

    site: Site
    folder: Path

    def recipe(self, name: str = "mine", key: str = "key.gpg") -> recipe.Recipe:
        """An own recipe that takes this mirror, and trusts this key."""
        (self.folder / f"{name}.toml").write_text(MINE.format(url=self.site.url, key=key))
        return recipe.load(name, self.folder)


@pytest.fixture(scope="module")
def archive() -> Iterator[Path]:
    """A folder with the archive in `site`, the key of its owner, and that of somebody else."""
    named = {"apt", "linux-image-virtual", "initramfs-tools", "systemd-resolved"}
    main = [
        base(),
        Package("libc6", "2.39-0ubuntu8", ESSENTIAL),
        Package("dpkg", "1.22.6ubuntu6", ESSENTIAL),
        Package("apt", "2.7.14build2"),
        *(Package(name) for name in recipe.load("ubuntu-24.04").packages if name not in named),
        Package("systemd-resolved", files={"usr/lib/systemd/system/systemd-resolved.service": UNIT.encode()}),
        Package(
            "initramfs-tools", files={"usr/sbin/update-initramfs": INITRD.encode()}, scripts={"postinst": "chmod 755 /usr/sbin/update-*"}
        ),
        Package("linux-image-virtual", "6.8.0-31.31", {"Depends": f"linux-image-{KERNEL}"}),
        Package(
            f"linux-image-{KERNEL}",
            "6.8.0-31.31",
            {"Depends": "initramfs-tools"},
            files={f"boot/vmlinuz-{KERNEL}": b"a kernel"},
            scripts={"postinst": f"update-initramfs {KERNEL}"},
        ),
    ]
    # Not below pytest's own folder, which apt's user may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        owner = Tsk.generate("archive@example")
        (folder / "key.gpg").write_bytes(bytes(owner.extract_certificate()))
        (folder / "other.gpg").write_bytes(bytes(Tsk.generate("somebody@example").extract_certificate()))
        root = folder / "site" / "ubuntu"
        publish(root, owner, {"main": main, "universe": [Package("jq", "1.7.1")]}, suite="noble")
        publish(root, owner, {"main": [Package("curl", "8.5.0-2ubuntu10.4")], "universe": []}, suite="noble-updates", codename="noble")
        fixed = [Package("libc6", "2.39-0ubuntu8.3", ESSENTIAL), Package("git", "1:2.43.0-1ubuntu7.1")]
        publish(root, owner, {"main": fixed, "universe": []}, suite="noble-security", codename="noble")
        yield folder


@pytest.fixture
def mirror(archive: Path) -> Iterator[Mirror]:
    with served(archive / "site") as site:
        yield Mirror(site, archive)


def quiet(_: str) -> None: ...


def nothing(images: Path) -> bool:
    """Whether a failed build left nothing but its log."""
    return left("mine", images, after=True) == [] and {path.name for path in images.iterdir()} <= {".log", ".cache"}


def files_of(golden: store.Golden, work: Path, *paths: str) -> list[str]:
    """What these files of the image's disk hold."""
    raw = work / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", golden.directory / store.DISK, raw], check=True)
    read = [subprocess.run(["debugfs", "-R", f"cat {path}", raw], capture_output=True, text=True, check=True).stdout for path in paths]
    raw.unlink()
    return read


def test_ubuntu_with_a_mirror_and_a_keyring(mirror: Mirror, tmp_path: Path) -> None:
    wanted = mirror.recipe()
    golden = build.build(wanted, tmp_path / "images", quiet)
    store.verify(store.find(tmp_path / "images", "mine"))
    manifest, url = golden.manifest, f"{mirror.site.url}/ubuntu"
    assert (manifest.suite, manifest.kernel) == ("noble", KERNEL)
    assert (golden.directory / "vmlinuz").read_text() == "a kernel"
    assert (golden.directory / "initrd").read_text() == "an initrd\n"
    versions = {name: each.version for name, each in manifest.packages.items()}
    assert set(wanted.packages) | {f"linux-image-{KERNEL}", "base-files", "libc6", "dpkg"} == set(versions)
    assert (versions["libc6"], versions["git"]) == ("2.39-0ubuntu8.3", "1:2.43.0-1ubuntu7.1"), "of noble-security"
    assert (versions["curl"], versions["jq"]) == ("8.5.0-2ubuntu10.4", "1.7.1"), "of noble-updates, and of universe"
    for name, each in manifest.packages.items():
        deb = mirror.folder / "site/ubuntu/pool" / f"{name}_{each.version}.deb"
        assert each.sha256 == hashlib.sha256(deb.read_bytes()).hexdigest(), name
    sources, fstab = files_of(golden, tmp_path, "/etc/apt/sources.list.d/0000sources.list", "/etc/fstab")
    assert sources.splitlines() == [f"deb {url} {suite} main universe" for suite in ("noble", "noble-updates", "noble-security")]
    assert fstab.startswith("/dev/vda / ext4 ")


def test_an_archive_that_another_key_signed(mirror: Mirror, tmp_path: Path) -> None:
    images = tmp_path / "images"
    with pytest.raises(ImageError) as caught:
        build.build(mirror.recipe(key="other.gpg"), images, quiet)
    assert caught.value.sentence == f"The bootstrap failed: {mirror.site.url}/ubuntu noble is signed by nobody whom this host trusts."
    assert "`keyring`" in caught.value.hint
    assert nothing(images)
    with pytest.raises(ImageError, match=r"nowhere\.gpg can't be read"):
        build.build(mirror.recipe(key="nowhere.gpg"), images, quiet)


def test_a_mirror_that_is_gone_while_it_sends_a_package(archive: Path, tmp_path: Path) -> None:
    """Through the program; its next build is a whole one, although a connection of it is reset."""
    config = tmp_path / "vmrunner.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    images = tmp_path / "state" / "images"

    def built() -> subprocess.CompletedProcess[str]:
        words = ["image", "build", "mine", "--recipes", str(archive), "--no-verify", "--config", str(config)]
        program = "import sys; from vmrunner.cli.main import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=dict(os.environ), timeout=120)

    with served(archive / "site") as site:
        Mirror(site, archive).recipe()
        site.cut, site.cuts, site.is_last = f"linux-image-{KERNEL}", 1, True
        done = built()
    assert done.returncode == ImageError.exit_code, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("vmrunner: ")]
    assert f"The bootstrap failed: {site.url}/ubuntu/pool/linux-image-{KERNEL}_6.8.0-31.31.deb can't be fetched." in sentence
    assert "Is that server up" in done.stderr
    assert "Traceback" not in done.stderr
    assert nothing(images)
    with served(archive / "site", site.server_port) as site:
        site.cut, site.cuts = "base-files", 1
        done = built()
        assert (done.returncode, site.cuts) == (0, 0), done.stderr
    golden = store.find(images, "mine")
    store.verify(golden)
    assert promotion.current(images, "mine") == golden.version
    assert left("mine", images, after=True) == []


def test_a_few_kills_and_a_full_disk(mirror: Mirror, tmp_path: Path) -> None:
    """A sample of what `make images` does with a real Debian."""
    mirror.recipe()
    done = kill_at_random("mine", tmp_path / "images", kills=3, cold=1, seed=9, recipes=mirror.folder)
    assert done["of them before the end"] > 0
    fill_at_sizes("mine", tmp_path / "full", [30, 70], mirror.folder)
