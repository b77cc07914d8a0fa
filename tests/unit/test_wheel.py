"""The wheel alone is a working program: templates and recipes travel inside."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import hatchling.build
import pytest

from vmrunner.image.recipe import load

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program `vmrunner` in an environment that holds nothing but the wheel; its dependencies are this environment's."""
    place = tmp_path_factory.mktemp("wheel")
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        wheel = place / hatchling.build.build_wheel(str(place))
    finally:
        os.chdir(before)
    venv.create(place / "venv", with_pip=False, system_site_packages=True)
    python = place / "venv" / "bin" / "python"
    asked = [str(python), "-c", "import site; print(site.getsitepackages()[0])"]
    site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = [path for path in sys.path if path.endswith("site-packages") and not path.startswith("/usr")]
    # Not this environment's link to the checkout: an editable install is a .pth file, and those are read in site folders only.
    (site / "dependencies.pth").write_text("\n".join(dependencies))
    script = place / "venv" / "bin" / "vmrunner"
    script.write_text(f"#!{python}\nimport sys\nfrom vmrunner.cli.main import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return script


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], cwd="/", capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_program_runs_from_the_wheel(program: Path) -> None:
    assert "Usage: vmrunner" in run(program, "--help")
    assert run(program, "config", "example") == (ROOT / "templates" / "vmrunner.toml").read_text()


def test_the_code_and_the_recipes_are_the_wheels(program: Path) -> None:
    code = "import vmrunner; from vmrunner.image import recipe; print(vmrunner.__file__, *recipe.load('debian-12').files.values())"
    python = program.with_name("python")
    said = subprocess.run([python, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout
    assert said.count(str(program.parents[1])) == 1 + len(load("debian-12").files)
