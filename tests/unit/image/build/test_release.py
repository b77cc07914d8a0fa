"""The forges' runner programs: where they are published, and that only the right file is kept."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archive import Site, served
from tests.unit.cli.schemas import checked
from vmrunner.errors import ImageError, NotFetched, VmrunnerError, WrongCommand
from vmrunner.image.build import downloads
from vmrunner.image.build.release import Arch, Release, release
from vmrunner.image.recipe import recipe

PROGRAM = b"\x7fELF" + bytes(20_000)
SUM = hashlib.sha256(PROGRAM).hexdigest()
NAME = "gitea-runner-1.0.8-linux-amd64"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A mirror of both projects' releases."""
    root = tmp_path / "site"
    for folder, name in (("1.0.8", NAME), ("v12.8.2", "forgejo-runner-12.8.2-linux-arm64")):
        (root / folder).mkdir(parents=True)
        (root / folder / name).write_bytes(PROGRAM)
        (root / folder / f"{name}.sha256").write_text(f"{SUM}  {name}")
    with served(root) as site:
        yield site


def run(*arguments: str, most: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vmrunner.cli.main", "runner", "fetch", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: most and resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )


@pytest.mark.parametrize(
    ("forge", "version", "url"),
    [
        (
            "forgejo",
            "12.8.2",
            "https://code.forgejo.org/forgejo/runner/releases/download/v12.8.2/"
            "forgejo-runner-12.8.2-linux-amd64",
        ),
        ("gitea", "v1.0.8", f"https://dl.gitea.com/gitea-runner/1.0.8/{NAME}"),
    ],
)
def test_it_is_where_the_project_publishes_it(forge: str, version: str, url: str) -> None:
    wanted = release(forge, version, Arch.AMD64)
    assert (wanted.url, wanted.checksum) == (url, f"{url}.sha256")


@pytest.mark.parametrize(
    ("forge", "version", "mirror", "kind", "said"),
    [
        ("github", "1.0.8", "", WrongCommand, "There is no forge 'github'."),
        ("gitea", "latest", "", WrongCommand, "'latest' is not a version of gitea-runner."),
        ("gitea", "1.0", "", WrongCommand, "'1.0' is not a version"),
        ("gitea", "1.0.8/../..", "", WrongCommand, "is not a version"),
        ("gitea", "1.0.7", "", ImageError, "gitea-runner 1.0.7 is too old."),
        ("forgejo", "12.7.3", "", ImageError, "forgejo-runner 12.7.3 is too old."),
        ("gitea", "1.0.8", "ftp://mirror.example", WrongCommand, "not the address of a mirror"),
        ("gitea", "1.0.8", "https://[", WrongCommand, "not the address of a mirror"),
        ("gitea", "1.0.8", "mirror.example", WrongCommand, "not the address of a mirror"),
    ],
)
def test_what_can_not_be_fetched(
    forge: str, version: str, mirror: str, kind: type[VmrunnerError], said: str
) -> None:
    with pytest.raises(kind) as refused:
        release(forge, version, Arch.AMD64, mirror)
    assert said in refused.value.sentence
    assert refused.value.hint


def test_a_version_that_nobody_has_tried_is_named() -> None:
    assert release("forgejo", "12.8.2", Arch.AMD64).untried == ""
    assert "nobody has tried it" in release("forgejo", "99.0.0", Arch.AMD64).untried


def test_it_is_fetched_once_and_as_a_whole(site: Site, tmp_path: Path) -> None:
    wanted, folder = release("gitea", "1.0.8", Arch.AMD64, site.url + "/"), tmp_path / "a" / "b"
    found = wanted.fetch(folder)
    assert (found.path, found.new) == (folder / NAME, True)
    assert (found.path.read_bytes(), found.path.stat().st_mode & 0o777) == (PROGRAM, 0o755)
    assert not wanted.fetch(folder).new
    assert site.asked.count(f"/1.0.8/{NAME}") == 1
    found.path.write_bytes(b"damaged")
    (folder / f".part-{2**22 + 1}.a").touch()  # of a process that was killed
    assert wanted.fetch(folder).new
    assert os.listdir(folder) == [NAME]


def test_the_recipe_s_lines_are_a_recipe_s(site: Site, tmp_path: Path) -> None:
    found = release("forgejo", "12.8.2", Arch.ARM64, site.url).fetch(tmp_path / "it's")
    (tmp_path / "ci.toml").write_text(f'extends = "debian-13-full"\n{found.recipe}')
    source = recipe.load("ci", tmp_path).runner
    assert source is not None
    assert (source.kind, source.path, source.sha256, source.version) == (
        "forgejo-runner",
        found.path,
        SUM,
        "12.8.2",
    )
    text = (tmp_path / "ci.toml").read_text().replace("path =", "# path =")
    (tmp_path / "ci.toml").write_text(text.replace("# url =", "url ="))
    other = recipe.load("ci", tmp_path).runner
    assert other is not None
    assert (other.path, other.url) == (None, found.release.url)


def fails(site: Site, folder: Path, sha256: str = "", version: str = "1.0.8") -> ImageError:
    with pytest.raises(ImageError) as failed:
        release("gitea", version, Arch.AMD64, site.url).fetch(folder, sha256)
    assert not folder.exists() or list(folder.iterdir()) == [], "nothing half, nothing wrong"
    assert failed.value.hint
    assert "\n" not in failed.value.sentence
    return failed.value


def test_what_is_not_there_or_is_another_file(site: Site, tmp_path: Path) -> None:
    to, files = tmp_path / "to", tmp_path / "site" / "1.0.8"
    missing = fails(site, to, version="1.0.9")
    assert "There is no gitea-runner 1.0.9 for amd64 at http://127.0.0.1" in missing.sentence
    assert isinstance(missing, NotFetched)
    assert "it should be " + "0" * 64 in fails(site, to, "0" * 64).sentence
    (files / NAME).write_bytes(PROGRAM[:-1])
    assert f"it should be {SUM}" in fails(site, to).sentence
    (files / NAME).unlink()
    assert "There is no gitea-runner 1.0.8" in fails(site, to).sentence


@pytest.mark.parametrize(
    "told", ["<html>Log in", "", "abc", f"{SUM}  another-file", f"{SUM} {SUM}", "é" * 64]
)
def test_what_is_no_checksum(site: Site, tmp_path: Path, told: str) -> None:
    (tmp_path / "site" / "1.0.8" / f"{NAME}.sha256").write_text(told)
    assert "is not the checksum of" in fails(site, tmp_path / "to").sentence


@pytest.mark.parametrize("told", [SUM, SUM.upper() + "\n", f"{SUM} *{NAME}\n"])
def test_what_is_one(site: Site, tmp_path: Path, told: str) -> None:
    (tmp_path / "site" / "1.0.8" / f"{NAME}.sha256").write_text(told)
    assert release("gitea", "1.0.8", Arch.AMD64, site.url).fetch(tmp_path / "to").new


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    wanted = Release("gitea-runner", "1.0.8", Arch.AMD64, "http://127.0.0.1:9")
    with pytest.raises(NotFetched, match="can't be fetched from http://127") as failed:
        wanted.fetch(tmp_path)
    assert "--mirror" in failed.value.hint


def test_a_full_disk(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="It can't be written to /dev: No space left on device"):
        downloads.fetch("It", f"{site.url}/1.0.8/{NAME}", Path("/dev/full"), "sha256")
    to = tmp_path / "to"
    done = run("gitea", "1.0.8", "--arch=amd64", f"--mirror={site.url}", f"--to={to}", most=5000)
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 3), done.stderr
    assert f"can't be written to {to}: File too large." in done.stderr
    assert list(to.iterdir()) == []


def test_the_command(site: Site, tmp_path: Path) -> None:
    base = ("gitea", "1.0.8", "--arch", "amd64", "--mirror", site.url)
    done = run(*base, "--to", str(tmp_path / "to"))
    assert (done.returncode, "is there, with the right sha256" in done.stdout) == (0, True), done
    lines = tomllib.loads(done.stdout.partition("In the recipe:")[2])
    assert lines["runner"]["path"] == str(tmp_path / "to" / NAME)
    found = checked("runner fetch", run(*base, "--to", str(tmp_path / "to"), "--json").stdout)
    assert (found["sha256"], found["fetched"]) == (SUM, False)
    (tmp_path / "file").touch()
    for arguments, code in (
        ((*base, "--to", str(tmp_path / "file" / "to")), 6),
        ((*base, "--sha256", "abc"), 2),
        (("gitea", "1.0.8", "--arch", "sparc"), 2),
        (("gitea", "0.2.11"), 6),
    ):
        refused = run(*arguments)
        assert (refused.returncode, "Traceback" in refused.stderr) == (code, False), refused.stderr
        assert "vmrunner: " in refused.stderr


CURL = f"""#!{sys.executable}
import sys, urllib.request
assert sys.argv[1:3] == ["-fL", "-o"], sys.argv
urllib.request.urlretrieve(sys.argv[4], sys.argv[3])
"""
"""In place of curl, which the rig has not."""


def shell(script: str, programs: Path) -> subprocess.CompletedProcess[str]:
    programs.mkdir(exist_ok=True)
    (programs / "curl").write_text(CURL)
    (programs / "curl").chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    return subprocess.run(
        ["sh", "-c", script],
        env={"PATH": path, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_what_is_printed_does_the_same_on_another_host(site: Site, tmp_path: Path) -> None:
    to = tmp_path / "to 'here'"
    base = ("gitea", "1.0.8", "--arch", "amd64", "--mirror", site.url, "--to", str(to), "--print")
    printed = run(*base)
    assert (printed.returncode, site.asked, to.exists()) == (0, [], False), printed.stderr
    script, _, lines = printed.stdout.partition("# In the recipe:\n")
    done = shell(script, tmp_path / "bin")
    assert done.returncode == 0, done.stderr
    path = Path(tomllib.loads(lines)["runner"]["path"])
    assert (path.read_bytes(), os.access(path, os.X_OK)) == (PROGRAM, True)
    assert json.loads(run(*base, "--json").stdout)["sha256"] == ""
    (tmp_path / "site" / "1.0.8" / NAME).write_bytes(b"another")
    assert shell(script, tmp_path / "bin").returncode != 0
