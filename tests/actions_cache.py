"""The client that actions use, `@actions/cache` of npm, and Node.js for it: into the rig, and into
the cache folder. With the host's network: `rig/rig run --outside -- python -m tests.actions_cache`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(os.environ.get("VMRUNNER_CACHE", "/cache")) / "actions-cache"
VERSIONS = ("3.2.4", "4.1.0", "5.3.0", "6.3.0")
"""One of each line: those of actions/cache@v3 and v4, and of newer ones."""
BUNDLED = "4.1.0"
LIBRARY = Path("node_modules/@actions/cache/lib/cache.js")


BUNDLER = "esbuild@0.25.9"


def folder(version: str) -> Path:
    """Where this version is, or will be."""
    return CACHE / version


def bundle(version: str) -> Path:
    """The same in one file, as an action brings it, at the place of the library's own."""
    return CACHE / f"{version}-bundle"


def _install(*packages: str) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], check=True)
    subprocess.run(
        ["apt-get", "-qqy", "install", "--no-install-recommends", *packages],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def need_npm() -> None:
    """Install it into the rig, where it is not there."""
    if not shutil.which("npm"):
        _install("npm")


def install(package: str, whole: Path) -> None:
    """A package of npm and all that it needs, into a folder that is there when all of it is."""
    part = whole.with_name(f".{whole.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([*command, package], cwd=part, check=True)
    part.rename(whole)


def main() -> None:
    """Install what is missing."""
    if not shutil.which("node"):
        _install("nodejs")
    for version in VERSIONS:
        if not folder(version).exists():
            need_npm()
            install(f"@actions/cache@{version}", folder(version))
    if not bundle(BUNDLED).exists():
        make_bundle(folder(BUNDLED) / LIBRARY, bundle(BUNDLED), LIBRARY)


def make_bundle(source: Path, whole: Path, place: Path) -> None:
    """A script and all that it needs as one file, at this place in a folder that is there when all
    of it is.
    """
    need_npm()
    with tempfile.TemporaryDirectory() as work:
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", BUNDLER]
        subprocess.run(command, cwd=work, check=True)
        part = Path(work) / "part" / place
        command = [f"{work}/node_modules/.bin/esbuild", str(source)]
        options = ["--bundle", "--platform=node", "--format=cjs", "--log-level=warning"]
        subprocess.run([*command, *options, f"--outfile={part}"], check=True)
        shutil.move(Path(work) / "part", whole)


if __name__ == "__main__":
    main()
