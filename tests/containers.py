"""Container images of the tests' own, as archives that Docker loads: Debian's static busybox, and a
small Debian that jobs can run in.

There is no registry to pull one from.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vmrunner.files import digest
from vmrunner.image.build import apt, apt_source
from vmrunner.image.recipe import recipe

NAME = "tests/base:1"
ARCHIVE = Path(__file__).parent / "images" / "base.tar"
"""Where the recipe test-docker looks for it."""
JOB_NAME = "tests/job:1"
JOB_ARCHIVE = ARCHIVE.with_name("job.tar")
"""Where the recipe test-jobs-docker looks for it."""
JOB_PACKAGES = (
    "bash",
    "ca-certificates",
    "curl",
    "git",
    "nodejs",
    "perl-base",
    "procps",
    "python3",
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OCI = "application/vnd.oci.image"
PROGRAMS = ("cat", "echo", "id", "ls", "nslookup", "sh", "sleep", "tail", "test", "wget")


def prepare(cache: Path) -> None:
    """Make the archive if the cache has none, and lay it into the checkout.

    Needs the network of the host.
    """
    _lay(cache, ARCHIVE, lambda: oci_archive(packed(_layer(_busybox())), NAME, "/bin", "/bin/sh"))


def base_layer() -> bytes:
    """Its layer, as it is there."""
    return max(contents(ARCHIVE.read_bytes()).values(), key=len)


def packed(layer: bytes) -> bytes:
    """A layer as registries have it."""
    return gzip.compress(layer, 6, mtime=0)


def prepare_job(folder: Path) -> None:
    """The same for the Debian that jobs run in, in this folder of the cache."""
    key = hashlib.sha256(" ".join(JOB_PACKAGES).encode()).hexdigest()[:16]
    _lay(
        folder / f"job-{key}.tar",
        JOB_ARCHIVE,
        lambda: archive(debian(JOB_PACKAGES), JOB_NAME, path=PATH, command="/bin/bash"),
    )


def _lay(cache: Path, place: Path, make: Callable[[], bytes]) -> None:
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        part = cache.with_suffix(".part")
        part.write_bytes(make())
        part.replace(cache)
    if not place.exists() or digest(place) != digest(cache):
        shutil.copyfile(cache, place)


def debian(packages: Sequence[str]) -> bytes:
    """Debian 12's tree with these, as a tar."""
    wanted = recipe.load("debian-12")
    with tempfile.TemporaryDirectory() as work:
        sources, tree = Path(work, "sources.list"), Path(work, "tree.tar")
        sources.write_text(apt_source.lines(apt.build_sources(wanted)))
        settings = [f"--aptopt={path}" for path in apt.host_settings()]
        excluded = [
            f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in ("doc", "locale", "man")
        ]
        options = [
            "--quiet",
            "--mode=root",
            "--variant=minbase",
            *excluded,
            *settings,
            f"--include={','.join(packages)}",
        ]
        subprocess.run(
            ["mmdebstrap", *options, wanted.suite, tree, sources],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return tree.read_bytes()


def archive(layer: bytes, name: str, path: str = "/bin", command: str = "/bin/sh") -> bytes:
    """A docker-archive with this one layer."""
    config = _config(layer, path, command)
    config_name = f"{_sha256(config)}.json"
    manifest = json.dumps(
        [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    ).encode()
    return tar({config_name: config, "layer.tar": layer, "manifest.json": manifest})


def oci_archive(layer: bytes, name: str, path: str = PATH, command: str = "/bin/bash") -> bytes:
    """An oci-archive with this one layer, which is packed by gzip."""
    config = _config(gzip.decompress(layer), path, command)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{_OCI}.manifest.v1+json",
            "config": _descriptor(f"{_OCI}.config.v1+json", config),
            "layers": [_descriptor(f"{_OCI}.layer.v1.tar+gzip", layer)],
        }
    ).encode()
    named = _descriptor(f"{_OCI}.manifest.v1+json", manifest) | {
        "annotations": {"org.opencontainers.image.ref.name": name}
    }
    blobs = {f"blobs/sha256/{_sha256(blob)}": blob for blob in (config, manifest, layer)}
    index = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    return tar({"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index, **blobs})


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "size": len(blob), "digest": f"sha256:{_sha256(blob)}"}


def _sha256(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _config(layer: bytes, path: str, command: str) -> bytes:
    return json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": [f"PATH={path}"], "Cmd": [command]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_sha256(layer)}"]},
            "history": [{"created_by": "the tests"}],
        }
    ).encode()


def contents(archive: bytes) -> dict[str, bytes]:
    """The files of an archive, by name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {member.name: file.read() for member in found if (file := found.extractfile(member))}


def tar(files: dict[str, bytes], mode: int = 0o644, links: dict[str, str] | None = None) -> bytes:
    """An archive of these files."""
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
    return tar(
        {"bin/busybox": busybox}, 0o755, {f"bin/{program}": "busybox" for program in PROGRAMS}
    )


def _busybox() -> bytes:
    with tempfile.TemporaryDirectory() as work:
        # As root apt would read through its own user, who may not enter this folder.
        options = ["-qq", "-o", "APT::Sandbox::User=root"]
        subprocess.run(["apt-get", *options, "update"], check=True, stdin=subprocess.DEVNULL)
        subprocess.run(
            ["apt-get", *options, "download", "busybox-static"],
            check=True,
            stdin=subprocess.DEVNULL,
            cwd=work,
        )
        (package,) = Path(work).glob("*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, f"{work}/tree"], check=True)
        return next(
            path
            for path in Path(work, "tree").rglob("busybox")
            if path.is_file() and not path.is_symlink()
        ).read_bytes()
