"""The wheel alone is a working program: templates and recipes travel inside.

Whoever builds it gets the same bytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest

from vmrunner.image.recipe.recipe import load

ROOT = Path(__file__).parents[2]
# By the build.
READ = ("pyproject.toml", "README.md", "LICENSE", ".gitignore", "vmrunner", "images", "templates")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `vmrunner` in an environment that holds nothing but the wheel; its dependencies
    are this environment's.
    """
    place = tmp_path_factory.mktemp("wheel")
    wheel = built(ROOT, 0o022, "", place)
    (place / "version").write_text(wheel.name.split("-")[1])
    venv.create(place / "venv", with_pip=False, system_site_packages=True)
    python = place / "venv" / "bin" / "python"
    asked = [str(python), "-c", "import site; print(site.getsitepackages()[0])"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = [
        path for path in sys.path if path.endswith("site-packages") and not path.startswith("/usr")
    ]
    # Not this environment's link to the checkout: an editable install is a .pth file, and those are
    # read in site folders only.
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    script = place / "venv" / "bin" / "vmrunner"
    script.write_text(
        f"#!{python}\nimport sys\nfrom vmrunner.cli.main import main\nsys.exit(main())\n"
    )
    script.chmod(0o755)
    return script


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments],
        cwd="/",
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_runs_from_the_wheel(program: Path) -> None:
    assert "Usage: vmrunner" in run(program, "--help")
    assert run(program, "config", "example") == (ROOT / "templates" / "vmrunner.toml").read_text()


def test_it_knows_its_version(program: Path) -> None:
    said = run(program, "--version").removeprefix("vmrunner ").strip()
    assert said == program.parents[2].joinpath("version").read_text()
    assert "checkout" not in said


def test_the_code_and_the_recipes_are_the_wheels(program: Path) -> None:
    code = (
        "import vmrunner; from vmrunner.image.recipe import recipe; print(vmrunner.__file__, "
        "*recipe.load('debian-12').files.values())"
    )
    python = program.with_name("python")
    said = subprocess.run(
        [python, "-c", code], cwd="/", capture_output=True, text=True, check=True
    ).stdout
    assert said.count(str(program.parents[1])) == 1 + len(load("debian-12").files)


def copied(folder: Path, *, mask: int, age: float, compiled: bool) -> Path:
    """A copy of what the build reads, with other modes, times, and order in its folders."""
    before = os.umask(mask)
    try:
        for name in READ:
            for path in sorted([ROOT / name, *(ROOT / name).rglob("*")], reverse=mask == 0o077):
                if path.is_file() and "__pycache__" not in path.parts:
                    there = folder / path.relative_to(ROOT)
                    there.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, there)
                    there.chmod(path.stat().st_mode & ~mask)
                    os.utime(there, (age, age))
        for compiled_at in ("vmrunner", "templates", "images/guest") if compiled else ():
            (folder / compiled_at / "__pycache__").mkdir()
            (folder / compiled_at / "__pycache__" / "probe.cpython-311.pyc").write_bytes(
                b"of somebody who ran it"
            )
    finally:
        os.umask(before)
    return folder


def built(tree: Path, mask: int, epoch: str, into: Path | None = None) -> Path:
    into = into or tree / "dist"
    code = (
        "import hatchling.build, os, sys; os.umask(int(sys.argv[1])); "
        "print(hatchling.build.build_wheel(sys.argv[2]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"}
    environment |= {"SOURCE_DATE_EPOCH": epoch} if epoch else {}
    said = subprocess.run(
        [sys.executable, "-c", code, str(mask), str(into)],
        cwd=tree,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return into / said.stdout.split()[-1]


def described(entry: zipfile.ZipInfo) -> tuple[object, ...]:
    return entry.filename, entry.date_time, oct(entry.external_attr >> 16), entry.CRC


@pytest.mark.parametrize(
    ("tag", "later", "version"),
    [
        (None, 0, "0.1.dev1"),
        ("v1.2.3", 0, "1.2.3"),
        ("v1.2.3", 2, "1.2.4.dev2"),
        ("v2.0rc1", 0, "2.0rc1"),
        ("v2.0rc1", 1, "2.0rc2.dev1"),
    ],
)
def test_the_version_is_the_tags(tmp_path: Path, tag: str | None, later: int, version: str) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=n@forge.example"]
        subprocess.run(["git", *who, *arguments], cwd=tree, check=True, capture_output=True)

    tree = copied(tmp_path / "tree", mask=0o022, age=time.time(), compiled=False)
    git("init")
    git("add", ".")
    git("commit", "-m", "m")
    if tag:
        git("tag", tag)
    for _ in range(later):
        git("commit", "--allow-empty", "-m", "m")
    name = built(tree, 0o022, "").name.split("-")[1]
    assert name.partition("+")[0] == version
    assert ("+" in name) == (not tag or later > 0)


@pytest.mark.parametrize(
    "epoch", ["", "1700000000"], ids=["hatchling's own date", "SOURCE_DATE_EPOCH"]
)
def test_it_is_the_same_bytes_wherever_it_is_built(tmp_path: Path, epoch: str) -> None:
    one = built(copied(tmp_path / "one", mask=0o022, age=time.time(), compiled=False), 0o022, epoch)
    other = built(
        copied(tmp_path / "another" / "place", mask=0o077, age=86_400 * 5000, compiled=True),
        0o077,
        epoch,
    )
    assert one.name == other.name
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        assert [described(entry) for entry in first.infolist()] == [
            described(entry) for entry in second.infolist()
        ]
        names = set(first.namelist())
        assert not epoch or {entry.date_time for entry in first.infolist()} == {
            time.gmtime(int(epoch))[:6]
        }
    assert one.read_bytes() == other.read_bytes()
    for folder in ("images", "templates"):
        files = [
            path.relative_to(ROOT)
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
        assert {f"vmrunner/_data/{path}" for path in files} <= names
