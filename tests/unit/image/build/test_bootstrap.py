"""The recipe ubuntu-24.04 with another mirror and keyring, as an admin would: an archive like
Ubuntu's, of the test's own.

Bootstrap, tree and disk are what every build does; the packages are empty but for what that needs.
`make images` takes the real archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pysequoia import Tsk

from tests.archive import Package, Site, base, publish, served
from tests.interrupted import fill_at_sizes, kill_at_random, left
from tests.unit.cli.test_image_cmd import CONFIG
from vmrunner.errors import ImageError
from vmrunner.image.build import apt, build, programs
from vmrunner.image.recipe import recipe
from vmrunner.image.versions import promotion, sbom, store
from vmrunner.model.image import DISK, Golden

KERNEL = "6.8.0-31-generic"
ESSENTIAL = {"Essential": "yes", "Priority": "required"}
INITRD = "#!/bin/sh\necho an initrd >/boot/initrd.img-$1\n"
FULL_KERNEL = "6.8.0-9-generic"
OS_RELEASE = b'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n'
PAGE, PAGES_FILE = "/usr/share/man/man7/psql.7", "/usr/lib/psql/psql.7"
PASSWORD = "hunter2"
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
    named = {"apt", "initramfs-tools", "systemd-resolved"}
    main = [
        base("update-alternatives"),
        Package("libc6", "2.39-0ubuntu8", ESSENTIAL),
        Package("dpkg", "1.22.6ubuntu6", ESSENTIAL),
        Package("apt", "2.7.14build2", files={"usr/lib/os-release": OS_RELEASE}),
        *(Package(name) for name in recipe.load("ubuntu-24.04").packages if name not in named),
        Package(
            "systemd-resolved",
            files={"usr/lib/systemd/system/systemd-resolved.service": UNIT.encode()},
        ),
        Package(
            "initramfs-tools",
            files={"usr/sbin/update-initramfs": INITRD.encode()},
            scripts={"postinst": "chmod 755 /usr/sbin/update-*"},
        ),
        Package("linux-image-virtual", "6.8.0-31.31", {"Depends": f"linux-image-{KERNEL}"}),
        Package(
            f"linux-image-{KERNEL}",
            "6.8.0-31.31",
            {"Depends": "initramfs-tools"},
            files={f"boot/vmlinuz-{KERNEL}": b"a kernel"},
            scripts={"postinst": f"update-initramfs {KERNEL}"},
        ),
        # Older than the other, with all drivers; and what can't be installed where its man page's
        # folder is missing.
        Package("linux-image-generic", "6.8.0-9.9", {"Depends": f"linux-image-{FULL_KERNEL}"}),
        Package(
            f"linux-image-{FULL_KERNEL}",
            "6.8.0-9.9",
            {"Depends": "initramfs-tools"},
            files={f"boot/vmlinuz-{FULL_KERNEL}": b"a full kernel"},
            scripts={"postinst": f"update-initramfs {FULL_KERNEL}"},
        ),
        Package(
            "psql",
            files={
                "usr/lib/psql/psql": b"#!/bin/sh\n",
                "usr/lib/psql/psql.7": b"a page",
                "usr/share/man/man1/psql.1": b"a page",
                "usr/share/doc/psql/README": b"words",
            },
            scripts={
                "postinst": "update-alternatives --install /usr/bin/psql psql /usr/lib/psql/psql "
                f"50 --slave {PAGE} psql.7 {PAGES_FILE}"
            },
        ),
    ]
    # Not below pytest's own folder, which apt's user may not enter.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        owner = Tsk.generate("archive@example")
        (folder / "key.gpg").write_bytes(bytes(owner.extract_certificate()))
        (folder / "other.gpg").write_bytes(
            bytes(Tsk.generate("somebody@example").extract_certificate())
        )
        root = folder / "site" / "ubuntu"
        publish(root, owner, {"main": main, "universe": [Package("jq", "1.7.1")]}, suite="noble")
        publish(
            root,
            owner,
            {"main": [Package("curl", "8.5.0-2ubuntu10.4")], "universe": []},
            suite="noble-updates",
            codename="noble",
        )
        fixed = [
            Package("libc6", "2.39-0ubuntu8.3", ESSENTIAL),
            Package("git", "1:2.43.0-1ubuntu7.1"),
        ]
        publish(
            root, owner, {"main": fixed, "universe": []}, suite="noble-security", codename="noble"
        )
        yield folder


@pytest.fixture
def mirror(archive: Path) -> Iterator[Mirror]:
    with served(archive / "site") as site:
        yield Mirror(site, archive)


def quiet(_: str) -> None: ...


def nothing(images: Path) -> bool:
    """Whether a failed build left nothing but its log."""
    return left("mine", images, after=True) == [] and {path.name for path in images.iterdir()} <= {
        ".log",
        ".cache",
    }


def asked(golden: Golden, work: Path, questions: list[str]) -> list[str]:
    """What debugfs answers about the image's disk."""
    raw = work / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", golden.directory / DISK, raw], check=True)
    read = [
        subprocess.run(
            ["debugfs", "-R", question, raw], capture_output=True, text=True, check=True
        ).stdout
        for question in questions
    ]
    raw.unlink()
    return read


def files_of(golden: Golden, work: Path, *paths: str) -> list[str]:
    """What these files of the image's disk hold."""
    return asked(golden, work, [f"cat {path}" for path in paths])


def listed(golden: Golden, work: Path, *folders: str) -> list[set[str]]:
    """The names in these folders of the image's disk."""
    return [
        {line.split("/")[5] for line in text.splitlines() if line.startswith("/")} - {".", ".."}
        for text in asked(golden, work, [f"ls -p {each}" for each in folders])
    ]


def test_ubuntu_with_a_mirror_and_a_keyring(mirror: Mirror, tmp_path: Path) -> None:
    wanted = mirror.recipe()
    golden = build.build(wanted, tmp_path / "images", quiet)
    store.verify(store.find(tmp_path / "images", "mine"))
    manifest, url = golden.manifest, f"{mirror.site.url}/ubuntu"
    assert (manifest.suite, manifest.kernel) == ("noble", KERNEL)
    parts = json.loads(sbom.text(golden))["components"]
    assert {each["purl"].rpartition("/")[0] for each in parts} == {"pkg:deb/ubuntu"}
    assert (golden.directory / "vmlinuz").read_text() == "a kernel"
    assert (golden.directory / "initrd").read_text() == "an initrd\n"
    versions = {name: each.version for name, each in manifest.packages.items()}
    assert set(wanted.all_packages) | {
        f"linux-image-{KERNEL}",
        "base-files",
        "libc6",
        "dpkg",
    } == set(versions)
    assert (versions["libc6"], versions["git"]) == ("2.39-0ubuntu8.3", "1:2.43.0-1ubuntu7.1"), (
        "of noble-security"
    )
    assert (versions["curl"], versions["jq"]) == ("8.5.0-2ubuntu10.4", "1.7.1"), (
        "of noble-updates, and of universe"
    )
    for name, each in manifest.packages.items():
        deb = mirror.folder / "site/ubuntu/pool" / f"{name}_{each.version}.deb"
        assert each.sha256 == hashlib.sha256(deb.read_bytes()).hexdigest(), name
    (keys,) = listed(golden, tmp_path, "/etc/apt/keyrings")
    sources, fstab = files_of(
        golden, tmp_path, "/etc/apt/sources.list.d/ubuntu.sources", "/etc/fstab"
    )
    assert sources.splitlines()[1:] == [
        "Types: deb",
        f"URIs: {url}",
        "Suites: noble noble-updates noble-security",
        "Components: main universe",
        "Signed-By: /etc/apt/keyrings/vmrunner-archive.gpg",
    ]
    assert keys == {"vmrunner-archive.gpg"}
    assert fstab.startswith("/dev/vda / ext4 ")


def test_a_builds_log_has_every_command_that_it_ran(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    class Spied(subprocess.Popen[str]):
        def __init__(self, words: Sequence[str | Path], **options: Any) -> None:
            ran.append([str(each) for each in words])
            super().__init__(words, **options)

    monkeypatch.setattr(programs.subprocess, "Popen", Spied)
    build.build(mirror.recipe(), tmp_path / "images", quiet)
    (log,) = (tmp_path / "images/.log").iterdir()
    logged = [line for line in log.read_text().splitlines() if line.startswith("$ (cd ")]
    assert len(logged) == len(ran)
    for words, line in zip(ran, logged, strict=True):
        last = " ".join(map(programs._quoted, words[-2:]))
        assert last in line, "its last words, which no wrapper of ours has"
    for name in ("mmdebstrap", "dpkg-query", "systemctl mask", "tar", "mke2fs", "qemu-img"):
        assert any(f" {name} " in line for line in logged), name


@pytest.mark.long
def test_a_recipe_chooses_its_kernel_and_nothing_of_this_host_is_left(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that has a proxy with a password; its scripts reach what they fetch by it, and its
    jobs know nothing of it.
    """
    (tmp_path / "host").mkdir()
    proxy = (
        "Acquire::http::Proxy "
        f'"http://ci:{PASSWORD}@127.0.0.1:9";\nAcquire::http::Proxy::127.0.0.1 "DIRECT";\n'
    )
    (tmp_path / "host/99proxy").write_text(proxy)
    monkeypatch.setattr(apt, "HOST_SETTINGS", tmp_path / "host")
    look = (
        "read -r line </etc/apt/apt.conf.d/99vmrunner-build\ncase $line in *ci:*) ;; *) exit 1 "
        ";; esac\n[ -s /etc/resolv.conf ]"
    )
    more = {
        "kernel": "linux-image-generic",
        "scripts": (recipe.Script(name="looks", text=look),),
        "jobs_mirror": "http://jobs.example/ubuntu",
    }
    wanted = mirror.recipe().model_copy(update=more)
    wanted = wanted.model_copy(update={"packages": (*wanted.packages, "psql")})
    golden = build.build(wanted, tmp_path / "images", quiet)
    assert (golden.manifest.kernel, (golden.directory / "vmlinuz").read_text()) == (
        FULL_KERNEL,
        "a full kernel",
    )
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", golden.directory / DISK, raw], check=True)
    assert PASSWORD.encode() not in raw.read_bytes(), "nor in a block that no file has any more"
    raw.unlink()
    folders = listed(
        golden,
        tmp_path,
        "/etc/apt/apt.conf.d",
        "/etc/dpkg/dpkg.cfg.d",
        "/usr/share/man",
        "/usr/share/man/man1",
        "/usr/share/doc",
    )
    assert folders == [set(), set(), {f"man{section}" for section in range(1, 9)}, set(), set()]
    sources, name, page, alternative = files_of(
        golden,
        tmp_path,
        "/etc/apt/sources.list.d/ubuntu.sources",
        "/etc/hostname",
        PAGES_FILE,
        "/var/lib/dpkg/alternatives/psql",
    )
    assert "URIs: http://jobs.example/ubuntu\n" in sources
    assert mirror.site.url not in sources
    assert (name, page, PAGE in alternative) == ("localhost\n", "a page", True)


def test_an_archive_that_another_key_signed(mirror: Mirror, tmp_path: Path) -> None:
    images = tmp_path / "images"
    with pytest.raises(ImageError) as caught:
        build.build(mirror.recipe(key="other.gpg"), images, quiet)
    assert (
        caught.value.sentence
        == f"The bootstrap failed: {mirror.site.url}/ubuntu noble is signed by nobody whom this "
        "host trusts."
    )
    assert "`keyring`" in caught.value.hint
    assert nothing(images)
    with pytest.raises(ImageError, match=r"nowhere\.gpg can't be read"):
        build.build(mirror.recipe(key="nowhere.gpg"), images, quiet)


@pytest.mark.long
def test_a_mirror_that_is_gone_while_it_sends_a_package(archive: Path, tmp_path: Path) -> None:
    """Through the program; its next build is a whole one, although a connection of it is reset."""
    config = tmp_path / "vmrunner.toml"
    config.write_text(CONFIG.format(folder=tmp_path))
    images = tmp_path / "state" / "images"

    def built() -> subprocess.CompletedProcess[str]:
        words = [
            "image",
            "build",
            "mine",
            "--recipes",
            str(archive),
            "--no-verify",
            "--config",
            str(config),
        ]
        program = "import sys; from vmrunner.cli.main import main; sys.exit(main())"
        return subprocess.run(
            [sys.executable, "-c", program, *words],
            capture_output=True,
            text=True,
            env=dict(os.environ),
            timeout=120,
        )

    with served(archive / "site") as site:
        Mirror(site, archive).recipe()
        site.cut, site.cuts, site.is_last = f"linux-image-{KERNEL}", 1, True
        done = built()
    assert done.returncode == ImageError.exit_code, done.stderr
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("vmrunner: ")]
    assert (
        f"The bootstrap failed: {site.url}/ubuntu/pool/linux-image-{KERNEL}_6.8.0-31.31.deb can't "
        "be fetched." in sentence
    )
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


@pytest.mark.long
def test_a_few_kills_and_a_full_disk(mirror: Mirror, tmp_path: Path) -> None:
    """A sample of what `make images` does with a real Debian."""
    mirror.recipe()
    done = kill_at_random(
        "mine", tmp_path / "images", kills=3, cold=1, seed=9, recipes=mirror.folder
    )
    assert done["of them before the end"] > 0
    fill_at_sizes("mine", tmp_path / "full", [30, 70], mirror.folder)
