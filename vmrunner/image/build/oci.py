"""An oci-archive, as skopeo and podman write it, so that each Docker loads it: one that keeps its
images in containerd reads its index.json, one with overlay2 (Docker 26, Debian's default) looks for
a manifest.json alone, as docker-archives have it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_INDEX, _MANIFEST = "index.json", "manifest.json"
_MOST = 16 << 20  # bytes of a JSON file
_DEEPEST = 3  # an index may name one for each platform
_PLATFORM = ("linux", "amd64")


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
        blobs = [manifest["config"], *manifest["layers"]]
        config, *layers = (_blob(each) for each in blobs)
        if not {config, *layers} <= members.keys():
            raise NoImage
        _add(path, [{"Config": config, "RepoTags": [name], "Layers": layers}])
    except (tarfile.TarError, EOFError, AttributeError, LookupError, TypeError, ValueError):
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
    fitting = [each for each in index["manifests"] if _fits(each.get("platform"))]
    if len(fitting) != 1 or depth == _DEEPEST:
        raise NoImage
    found = _json(archive, members, _blob(fitting[0]))
    return _image(archive, members, found, depth + 1) if "manifests" in found else found


def _fits(platform: Mapping[str, str] | None) -> bool:
    return platform is None or (platform["os"], platform["architecture"]) == _PLATFORM


def _blob(descriptor: Mapping[str, str]) -> str:
    kind, _, digest = descriptor["digest"].partition(":")
    return f"blobs/{kind}/{digest}"


def _json(archive: tarfile.TarFile, members: Members, name: str) -> Mapping[str, Any]:
    member = members[name]
    file = archive.extractfile(member)
    if file is None or member.size > _MOST:
        raise NoImage
    found = json.loads(file.read())
    if not isinstance(found, dict):
        raise NoImage
    return found
