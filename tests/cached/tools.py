"""The tools of the workflows, as archives: Node.js of npm, Go and Python of the proxy of Go, pip of
PyPI; and the library by which actions look for tools. With the host's network:
`rig/rig run --outside -- python -m tests.cached.tools`.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests import actions_cache, tooling
from tests.prepare import CACHE

FOLDER = CACHE / "cached"
LIBRARY = Path("node_modules/@actions/tool-cache/lib/tool-cache.js")
BUNDLE = FOLDER / f"tool-cache-{tooling.LIBRARY}-bundle"
_PROXY = "https://proxy.golang.org"
_PIP = "25.2"
_PYTHON = "github.com/kluctl/go-embed-python/@v/v0.0.0-{}-20241219-1"
Files = Iterator[tuple[tarfile.TarInfo, bytes]]


@dataclass(frozen=True)
class Tool:
    """One as actions call it."""

    name: str
    version: str

    @property
    def archive(self) -> Path:
        """With its one folder, in which everything is."""
        if self == NODE:
            return tooling.NODE_ARCHIVE
        return FOLDER / f"{self.name}-{self.version}.tar.gz"


NODE = Tool("node", tooling.NODE)
GO = Tool("go", "1.26.5")
PYTHON = Tool("Python", "3.13.1")
TOOLS = (NODE, GO, PYTHON)


def recipe(tools: tuple[Tool, ...] = TOOLS) -> str:
    """Of the disk with these."""
    return "".join(
        tooling.RECIPE.format(
            name=tool.name, version=tool.version, source=f'path = "{tool.archive}"'
        )
        for tool in tools
    )


def _module(path: str) -> tuple[zipfile.ZipFile, str]:
    """What Go's proxy has by this path, and the folder in it."""
    with urllib.request.urlopen(f"{_PROXY}/{path}.zip") as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
    name, _, version = path.partition("/@v/")
    return archive, f"{name}@{version}/"


def _entry(name: str, mode: int, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(f"tool/{name}")
    member.mode, member.size = mode, len(content)
    return member, content


def _go() -> Files:
    archive, head = _module(f"golang.org/toolchain/@v/v0.0.1-go{GO.version}.linux-amd64")
    for name in archive.namelist():  # no mode is kept there
        content, path = archive.read(name), name.removeprefix(head)
        yield _entry(path, 0o755 if content.startswith((b"\x7fELF", b"#!")) else 0o644, content)


def _python() -> Files:
    """As it is embedded into programs, some files packed by gzip; and pip."""
    archive, head = _module(_PYTHON.format(PYTHON.version))
    head += "python/internal/data/linux-amd64/"
    for each in json.loads(archive.read(f"{head}files.json"))["files"]:
        name = each["name"]
        if target := each.get("symlink"):
            member, content = _entry(name, 0o777, b"")
            member.type, member.linkname = tarfile.SYMTYPE, target
            yield member, content
        elif f"{head}{name}.gz" in archive.NameToInfo:
            yield _entry(name, each["perm"], gzip.decompress(archive.read(f"{head}{name}.gz")))
        elif f"{head}{name}" in archive.NameToInfo:
            yield _entry(name, each["perm"], archive.read(f"{head}{name}"))
    yield from _pip("lib/python{}.{}/site-packages".format(*PYTHON.version.split(".")))


def _pip(place: str) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, f"--dest={folder}", f"pip=={_PIP}"], check=True)
        (wheel,) = Path(folder).iterdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                yield _entry(f"{place}/{name}", 0o644, archive.read(name))


def _pack(tool: Tool, files: Callable[[], Files]) -> None:
    if tool.archive.exists():
        return
    part = tool.archive.with_suffix(".part")
    with tarfile.open(part, "w:gz", compresslevel=6) as archive:
        for member, content in files():
            archive.addfile(member, io.BytesIO(content))
    part.rename(tool.archive)


def main() -> None:
    """Make what is missing."""
    tooling.main()
    FOLDER.mkdir(exist_ok=True)
    _pack(GO, _go)
    _pack(PYTHON, _python)
    if not BUNDLE.exists():
        actions_cache.make_bundle(tooling.CLIENT / LIBRARY, BUNDLE, LIBRARY)


if __name__ == "__main__":
    main()
