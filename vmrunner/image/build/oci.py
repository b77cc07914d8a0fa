"""An oci-archive, as skopeo and podman write it, so that each Docker loads it: one that keeps its
images in containerd reads its index.json, one with overlay2 (Docker 26, Debian's default) looks for
a manifest.json alone, as docker-archives have it.
"""

from __future__ import annotations

import io
import json
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INDEX, _MANIFEST = "index.json", "manifest.json"
_MOST = 16 << 20  # bytes of a JSON file
_DEEPEST = 3  # an index may name one for each platform
_PLATFORM = ("linux", "amd64")


_WRONG = (
    *(tarfile.TarError, EOFError, zlib.error, lzma.LZMAError),
    *(AttributeError, LookupError, RecursionError, TypeError, ValueError),
)
Members = Mapping[str, tarfile.TarInfo]


class NoImage(Exception):
    """It is no archive of one image that machines can run."""


def complete(path: Path, name: str) -> None:
    """Add what is missing: a manifest.json with this name. An archive that has one stays as it is;
    one that lacks it must not be packed. Raises NoImage, OSError.

    Formats: the OCI image layout 1.0, and docker-archive, as `docker save` writes both.
    """
    try:
        with tarfile.open(path) as archive:
            members = {member.name.removeprefix("./"): member for member in archive}
            if _MANIFEST in members:
                return
            manifest = _image(archive, members, _json(archive, members, _INDEX))
            config, *layers = map(_blob, [manifest["config"], *manifest["layers"]])
            if not _fits(_json(archive, members, config)):
                raise NoImage
        if not {config, *layers} <= members.keys():
            raise NoImage
        # Docker takes a name for one only with its tag.
        tagged = name if ":" in name.rpartition("/")[2] else f"{name}:latest"
        _add(path, [{"Config": config, "RepoTags": [tagged], "Layers": layers}])
    except OSError as error:
        if error.errno is None:  # of gzip: it is broken
            raise NoImage from None
        raise
    except _WRONG:
        raise NoImage from None


def _add(path: Path, told: object) -> None:
    content = json.dumps(told).encode()
    with tarfile.open(path, "a:") as archive:
        member = tarfile.TarInfo(_MANIFEST)
        member.size, member.mode = len(content), 0o644
        archive.addfile(member, io.BytesIO(content))


def _image(
    archive: tarfile.TarFile, members: Members, index: Mapping[str, Any], depth: int = 0
) -> Mapping[str, Any]:
    """The manifest of the image for this platform, or for all."""
    # One image may be there by several names.
    fitting = {_blob(each) for each in index["manifests"] if _fits(each.get("platform"))}
    if len(fitting) != 1 or depth == _DEEPEST:
        raise NoImage
    found = _json(archive, members, fitting.pop())
    return _image(archive, members, found, depth + 1) if "manifests" in found else found


def _fits(platform: Mapping[str, str] | None) -> bool:
    return platform is None or (platform["os"], platform["architecture"]) == _PLATFORM


def _blob(descriptor: Mapping[str, str]) -> str:
    kind, _, digest = descriptor["digest"].partition(":")
    return f"blobs/{kind}/{digest}"


def _json(archive: tarfile.TarFile, members: Members, name: str) -> Mapping[str, Any]:
    member = members[name]
    if not member.isreg() or member.size > _MOST:
        raise NoImage
    file = archive.extractfile(member)
    assert file  # noqa: S101 — it is a file
    found = json.loads(file.read())
    if not isinstance(found, dict):
        raise NoImage
    return found
