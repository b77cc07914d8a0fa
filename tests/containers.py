"""A container image of the tests' own: Debian's static busybox, as an archive that Docker loads. There is no registry to pull one from."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

NAME = "tests/base:1"
ARCHIVE = Path(__file__).parent / "images" / "base.tar"
"""Where the recipe test-docker looks for it."""
PROGRAMS = ("cat", "echo", "id", "ls", "nslookup", "sh", "sleep", "tail", "test", "wget")


def prepare(cache: Path) -> None:
    """Make the archive if the cache has none, and lay it into the checkout. Needs the network of the host."""
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        part.write_bytes(archive(_layer(_busybox()), NAME))
        part.replace(cache)
    if not ARCHIVE.exists() or ARCHIVE.read_bytes() != cache.read_bytes():
        shutil.copyfile(cache, ARCHIVE)


def archive(layer: bytes, name: str) -> bytes:
    """A docker-archive with this one layer."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
            "history": [{"created_by": "the tests"}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]).encode()
    return _tar({config_name: config, "layer.tar": layer, "manifest.json": manifest})


def _tar(files: dict[str, bytes], mode: int = 0o644, links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), mode
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return out.getvalue()


def _layer(busybox: bytes) -> bytes:
    return _tar({"bin/busybox": busybox}, 0o755, {f"bin/{program}": "busybox" for program in PROGRAMS})


def _busybox() -> bytes:
    with tempfile.TemporaryDirectory() as work:
        # As root apt would read through its own user, who may not enter this folder.
        options = ["-qq", "-o", "APT::Sandbox::User=root"]
        subprocess.run(["apt-get", *options, "update"], check=True, stdin=subprocess.DEVNULL)
        subprocess.run(["apt-get", *options, "download", "busybox-static"], check=True, stdin=subprocess.DEVNULL, cwd=work)
        (package,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, f"{work}/tree"], check=True)
        return next(path for path in Path(work, "tree").rglob("busybox") if path.is_file() and not path.is_symlink()).read_bytes()
