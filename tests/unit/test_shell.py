"""No shell script of ours escapes `make lint`."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (".ci", "images", "rig", "templates", "tests", "vmrunner")


def beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(40)


def test_make_lint_looks_at_every_shell_script() -> None:
    files = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".j2", ".pyc")
    ]
    scripts = {
        str(path.relative_to(ROOT))
        for path in files
        if re.match(rb"#!\s*/(usr/)?bin/(env )?(ba|da)?sh\b", beginning(path))
    }
    listed = re.search(r"(?m)^shell_scripts = (.*)$", (ROOT / "Makefile").read_text())
    assert listed
    assert set(listed[1].split()) == scripts
