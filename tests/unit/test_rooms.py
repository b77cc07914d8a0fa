"""The rooms of vmrunner: none uses what stands above or beside it, as pyproject.toml lists them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contracts of the tree in this folder."""
    linter = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [linter, "--no-cache", "--config", "pyproject.toml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )


def test_the_contracts_are_kept() -> None:
    done = lint(ROOT)
    assert (done.returncode, "2 kept, 0 broken" in done.stdout) == (0, True), done


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("model/job.py", "from vmrunner.config import Config"),
        ("forge/http.py", "from vmrunner.hypervisor import seam"),
        ("image/versions/store.py", "from vmrunner.image.build import build"),
        ("image/recipe/recipe.py", "def later() -> None:\n    import vmrunner.cli.app"),
    ],
)
def test_an_import_against_them_is_found(tmp_path: Path, module: str, line: str) -> None:
    shutil.copytree(ROOT / "vmrunner", tmp_path / "vmrunner")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "vmrunner" / module).open("a") as text:
        text.write(f"\n{line}\n")
    done = lint(tmp_path)
    assert (done.returncode, "is not allowed to import" in done.stdout) == (1, True), done
