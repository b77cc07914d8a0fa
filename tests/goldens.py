"""Golden images published without building anything: of a few bytes, or another one under a new
version.
"""

from __future__ import annotations

import json
from pathlib import Path

from vmrunner import files
from vmrunner.image.versions import promotion, proof, store
from vmrunner.image.versions.promotion import Why
from vmrunner.image.versions.proof import Check, Proof
from vmrunner.image.versions.store import MANIFEST
from vmrunner.model.image import DISK, Golden


def publish(
    images: Path,
    version: str,
    *,
    name: str = "web",
    disk: bytes = b"disk",
    promote: bool = True,
    verified: bool | None = True,
    **changed: object,
) -> Golden:
    """As a build does it in the end; `verified`: whether it was found good, None: nobody has
    looked. `changed` is of its manifest.
    """
    folder = images / name / version
    folder.mkdir(parents=True)
    (folder / DISK).write_bytes(disk)
    manifest = {
        "name": name,
        "version": version,
        "recipe_digest": "0",
        "files": {DISK: files.digest(folder / DISK)},
        "packages": {},
        "built_at": "2026-01-01T00:00:00+00:00",
        "vmrunner_version": "0",
        **changed,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    if verified is not None:
        golden = store.version(images, name, version)
        checks = (Check(name="boot", passed=verified, measured="1.0 s"),)
        digest, at = store.identity(folder), "2026-01-01T00:00:00+00:00"
        proof.write(
            golden,
            Proof(
                manifest=digest,
                at=at,
                vmrunner="0",
                qemu="0",
                libvirt="0",
                boot_seconds=1.0,
                checks=checks,
            ),
        )
    if promote:
        with promotion.changing(images, print):
            promotion.switch(images, name, version, Why.BUILT)
    return store.version(images, name, version)


def linked(images: Path, origin: Path, name: str, version: str, **changed: object) -> Path:
    """A version whose files are links to those of the version at `origin`; its folder.

    Nobody has verified or promoted it.
    """
    folder, origin = images / name / version, origin.resolve()
    folder.mkdir(parents=True)
    manifest = (
        json.loads((origin / MANIFEST).read_text()) | {"name": name, "version": version} | changed
    )
    for part in manifest["files"]:
        (folder / part).symlink_to(origin / part)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder
