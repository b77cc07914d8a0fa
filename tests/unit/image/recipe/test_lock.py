"""A recipe's lock: written from an image, compared by the next build and by verify."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from tests.golden import PACKAGES, package, publish, sha
from vmrunner.cli import image_cmd
from vmrunner.config import HostConfig
from vmrunner.errors import ConfigError, ImageError
from vmrunner.image.build import build
from vmrunner.image.build.programs import Programs
from vmrunner.image.recipe import lock, packages, recipe
from vmrunner.image.versions import store
from vmrunner.model.image import DISK, Golden, Input

LOCKED = 'extends = "debian-12"\nlock = "mine.lock"\n'


def write(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.toml").write_text(text)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands find images."""
    monkeypatch.setattr("vmrunner.config.load_host", lambda _: HostConfig(state_dir=tmp_path))
    return tmp_path / "images"


def test_a_lock_is_one_sorted_line_for_each_package_and_reads_back() -> None:
    text = lock.text(PACKAGES)
    assert text.splitlines() == [
        f"{name} {PACKAGES[name].version} {PACKAGES[name].sha256}"
        for name in ("curl", "git", "libc6")
    ]
    read = lock.parse(f"# why\n\n{text}", "x")
    assert lock.differences(read, PACKAGES) == []


def test_what_differs_is_named_by_kind() -> None:
    found = {
        "curl": package("8.2"),
        "git": package("1:2.39.5-0+deb12u2", "rebuilt"),
        "jq": package("1"),
        "vim": package("9"),
    }
    assert lock.differences(PACKAGES, found) == [
        "2 added (jq, vim)",
        "1 missing (libc6)",
        "1 of another version (curl 8.2, locked is 8.1)",
        "1 with other content (git)",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("curl 8.1\n", "mine.lock: line 1 is not `name version sha256`."),
        (f"# ok\ncurl 8.1 {'x' * 64}\n", "line 2 is not"),
        (f"curl 8.1 {'a' * 64}\ncurl 8.2 {'a' * 64}\n", "line 2 names curl again"),
    ],
)
def test_a_broken_lock_is_one_sentence_with_a_hint(text: str, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        lock.parse(text, "mine.lock")
    assert said in caught.value.sentence
    assert caught.value.hint


def test_the_digest_of_a_recipe_follows_its_lock_which_is_not_inherited(tmp_path: Path) -> None:
    write(tmp_path, "plain", 'extends = "debian-12"')
    write(tmp_path, "mine", LOCKED)
    write(tmp_path, "child", 'extends = "mine"')
    mine = recipe.load("mine", tmp_path)
    assert mine.lock == tmp_path / "mine.lock"
    assert recipe.load("child", tmp_path).lock is None
    with pytest.raises(ImageError, match="can't be read: No such file"):
        mine.digest()
    (tmp_path / "mine.lock").write_text("")
    empty = mine.digest()
    (tmp_path / "mine.lock").write_text(lock.text(PACKAGES))
    unlocked = mine.model_copy(update={"lock": None})
    assert len({empty, mine.digest(), unlocked.digest()}) == 3
    plain = recipe.load("plain", tmp_path).model_copy(update={"name": "mine"})
    assert unlocked.digest() == plain.digest()


def test_keys_that_are_not_set_do_not_change_a_digest() -> None:
    """Else every image that an older vmrunner built would be out of date."""
    simple = recipe.Recipe(
        name="x", suite="bookworm", size="1GiB", packages=("a1",), kernel_arguments="quiet"
    )
    older = '{"name":"x","suite":"bookworm","mirror":null,"size":1024,"packages":["a1"],'
    older += '"kernel_arguments":"quiet","runner":null}'
    assert simple.digest() == sha(older)
    assert simple.model_copy(update={"snapshot": "20261101T000000Z"}).digest() != sha(older)


def test_lock_writes_what_the_current_image_has(tmp_path: Path, images: Path) -> None:
    publish(images, version="1", packages={"curl": package("8.0")})
    publish(images, version="2")
    write(tmp_path / "own", "mine", LOCKED)
    image_cmd.lock("mine", tmp_path / "own")
    assert (tmp_path / "own" / "mine.lock").read_text() == lock.text(PACKAGES)
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == ["mine.lock", "mine.toml"]


def test_what_can_not_be_locked(tmp_path: Path, images: Path) -> None:
    own = tmp_path / "own"
    write(own, "mine", 'extends = "debian-12"')
    write(own, "elsewhere", 'extends = "debian-12"\nlock = "gone/mine.lock"')
    write(own, "below", 'extends = "debian-12"\nlock = "mine.toml/mine.lock"')
    for name in ("mine", "elsewhere", "below"):
        publish(images, name)
    publish(images, "old", packages={"curl": "8.1", "git": "2"})
    write(own, "old", LOCKED)
    for name, recipes, said in (
        ("debian-12", None, "The recipe debian-12 comes with vmrunner"),
        ("debian-12", own, "The recipe debian-12 comes with vmrunner"),
        ("nothing", own, "There is no recipe 'nothing'"),
        ("mine", own, "The recipe mine names no lock"),
        ("elsewhere", own, "mine.lock can't be written: No such file"),
        ("below", own, "mine.lock can't be written: Not a directory"),
        ("old", own, "does not say which .deb curl, git came from"),
    ):
        with pytest.raises(ImageError) as caught:
            image_cmd.lock(name, recipes)
        assert said in caught.value.sentence
        assert caught.value.hint
    with pytest.raises(ConfigError, match="There is no folder"):
        image_cmd.lock("mine", tmp_path / "nowhere")


@pytest.fixture
def whats(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Builds get the tree of a bootstrap that never ran, with PACKAGES in it; what the programs
    that they ran were for.
    """
    seen, whats = list[str](), list[str]()

    def run(_programs: Programs, what: str, *command: str | Path, **_options: object) -> str:
        whats.append(what)
        if what in {"The bootstrap", "Unpacking the bootstrapped packages"}:
            tree = Path(
                command[-2]
                if what == "The bootstrap"
                else command[command.index("--directory") + 1]
            )
            lists = tree / "var/lib/apt/lists"
            for folder in (
                lists / "partial",
                tree / "boot",
                tree / "etc",
                tree / "var/lib/dpkg/info",
            ):
                folder.mkdir(parents=True)
            (tree / "boot" / "vmlinuz-6.1").write_text("a kernel")
            (tree / "var/lib/dpkg/status").write_text(
                "Package: linux-image-cloud-amd64\nStatus: install ok installed\n"
            )
            (tree / "var/lib/dpkg/info/linux-image-cloud-amd64.list").write_text(
                "/boot/vmlinuz-6.1\n"
            )
            (tree / "boot" / "initrd.img-6.1").write_text("an initrd")
            stanzas = (
                f"Package: {name}\nVersion: {each.version}\nArchitecture: amd64\nSHA256: "
                f"{each.sha256}\n"
                for name, each in PACKAGES.items()
            )
            (lists / "x_Packages").write_text("\n".join(stanzas))
        elif what == "Making the file system":
            seen[:] = [path.name for path in (Path(command[-2]) / "var/lib/apt/lists").iterdir()]
        elif what == "Making the disk":
            Path(command[-1]).write_text(f"apt's lists: {' '.join(seen)}")
        elif what == "Keeping the bootstrapped packages":
            Path(command[-2]).write_text("a tar")
        listed = "".join(
            f"{name}\t{each.version}\tamd64\tinstalled\n" for name, each in PACKAGES.items()
        )
        return listed if what == "Listing packages" else ""

    monkeypatch.setattr(Programs, "run", run)
    return whats


@pytest.mark.usefixtures("whats")
def test_a_build_with_its_lock(tmp_path: Path) -> None:
    write(tmp_path, "mine", LOCKED + '[files."/etc/motd"]\ntext = "hello"\nmode = "0600"\n')
    (tmp_path / "mine.lock").write_text(f"# as of today\n{lock.text(PACKAGES)}")
    golden = build.build(recipe.load("mine", tmp_path), tmp_path / "images", lambda _: None)
    assert golden.manifest.packages == PACKAGES
    assert golden.manifest.inputs is not None
    assert golden.manifest.inputs["/etc/motd"] == Input(mode="0600", sha256=sha("hello"))
    assert golden.manifest.lock == sha((tmp_path / "mine.lock").read_text())
    assert (golden.directory / DISK).read_text() == "apt's lists: partial", (
        "the lists are gone from the image"
    )
    store.verify(store.find(tmp_path / "images", "mine"))


@pytest.mark.usefixtures("whats")
def test_a_build_that_differs_from_its_lock_publishes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "mine", LOCKED)
    (tmp_path / "mine.lock").write_text(lock.text({"curl": package("8.0"), "git": PACKAGES["git"]}))
    wanted = recipe.load("mine", tmp_path)
    with pytest.raises(ImageError) as caught:
        build.build(wanted, tmp_path / "images", lambda _: None)
    assert (
        "1 added (libc6); 1 of another version (curl 8.1, locked is 8.0)" in caught.value.sentence
    )
    assert "--ignore-lock" in caught.value.hint
    assert not list((tmp_path / "images").glob("[!.]*"))
    golden = build.build(
        wanted.model_copy(update={"lock": None}), tmp_path / "images", lambda _: None
    )
    assert golden.manifest.lock == ""


def test_the_same_packages_are_bootstrapped_once_a_day(tmp_path: Path, whats: list[str]) -> None:
    images = tmp_path / "images"

    def bootstrapped(text: str, **options: bool) -> bool:
        whats.clear()
        write(tmp_path, "mine", f'extends = "debian-12"\n{text}')
        golden = build.build(recipe.load("mine", tmp_path), images, lambda _: None, **options)
        assert golden.manifest.packages == PACKAGES
        shutil.rmtree(golden.directory)  # the next one may be of the same second
        return "The bootstrap" in whats

    script = '[[scripts]]\nname = "one"\ntext = "true"\n'
    assert [
        bootstrapped(""),
        bootstrapped(script),
        bootstrapped('packages = ["jq"]'),
        bootstrapped(script, fresh=True),
    ] == [
        True,
        False,
        True,
        True,
    ]
    (note,) = [
        path
        for path in (images / ".cache").glob("*.json")
        if path.stat().st_mtime_ns == max(_times(images))
    ]
    note.with_suffix(".tar").write_text("damaged")
    assert [bootstrapped(""), bootstrapped("")] == [True, False]
    note.write_text(json.dumps(json.loads(note.read_text()) | {"made_at": time.time() - 90_000}))
    assert bootstrapped(""), "yesterday's"
    note.write_text("{")
    assert bootstrapped("")
    shutil.rmtree(images / ".cache")
    assert bootstrapped("")


def _times(images: Path) -> list[int]:
    return [path.stat().st_mtime_ns for path in (images / ".cache").glob("*.json")]


def test_verify_compares_the_packages_with_the_lock(tmp_path: Path) -> None:
    golden = publish(tmp_path, locked=True)
    store.verify(golden)
    swapped = golden.manifest.model_copy(
        update={"packages": PACKAGES | {"curl": package("8.1", "another")}}
    )
    with pytest.raises(
        ImageError, match=r"is not what its lock says: 1 with other content \(curl\)"
    ):
        store.verify(Golden("mine", "1", golden.directory, swapped))
    (golden.directory / store.LOCK).write_text(lock.text(swapped.packages))
    with pytest.raises(ImageError, match=r"packages\.lock has another sha256"):
        store.verify(golden)
    (golden.directory / store.LOCK).unlink()
    with pytest.raises(ImageError, match=r"lacks its file packages\.lock"):
        store.verify(golden)


def test_the_manifest_of_an_older_vmrunner_still_loads(tmp_path: Path) -> None:
    """Machines start from its image; refusing it would stop a host that was upgraded."""
    publish(tmp_path)
    path = tmp_path / "mine" / "1" / store.MANIFEST
    older = {
        "name": "mine",
        "version": "1",
        "recipe_digest": "0",
        "files": {DISK: sha("a disk")},
        "packages": {"curl": "8.1"},
        "built_at": "2026-01-01T00:00:00+00:00",
        "vmrunner_version": "0",
    }
    path.write_text(json.dumps(older))
    golden = store.find(tmp_path, "mine")
    store.verify(golden)
    assert golden.manifest.packages == {"curl": packages.Package(version="8.1")}
    assert (golden.manifest.inputs, golden.manifest.lock) == (None, "")
