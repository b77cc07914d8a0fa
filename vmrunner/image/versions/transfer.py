"""A version of an image as one file, for another host: a tar of its manifest and of the files that
the manifest names.
"""

from __future__ import annotations

import errno
import hashlib
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.image.versions import store, workshop
from vmrunner.image.versions.proof import RECORD
from vmrunner.image.versions.store import CURRENT, LOCK, MANIFEST
from vmrunner.log import Say
from vmrunner.model.image import Golden, Manifest

_CHUNK = 1 << 20  # bytes
_LONGEST_MANIFEST = 16 << 20  # bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_FILES = {MANIFEST, LOCK, RECORD}  # of an image, but about it


def export(golden: Golden, target: Path) -> int:
    """Write a version into the file `target`, which appears when all of it is there; returns its
    size in bytes.

    Raises ImageError where a file differs from the manifest, or `target` can't be written.
    """
    store.verify(golden)
    locked = [LOCK] if golden.manifest.lock else []
    try:
        with (
            files.replacing(target) as part,
            tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive,
        ):
            for name in (MANIFEST, *locked, *sorted(golden.manifest.files)):
                archive.add(golden.directory / name, name, filter=_anonymous)
        return target.stat().st_size
    except OSError as error:
        raise ImageError(
            f"{target} can't be written: {error.strerror}.",
            "Name a file in a folder that exists and has room.",
        ) from None


def fetch(source: Path, images: Path, say: Say) -> Golden:
    """Publish the version that the file `source` holds, under its own name; it is not made current.

    Nothing of it can be seen in the store before every file is found to be as the manifest says.
    Raises ImageError where it is not an exported image, is damaged, or is another one than the
    version of that name here.
    """
    with _archive(source) as archive, workshop.opened(images) as work:
        out = work / "out"
        out.mkdir()
        manifest = _manifest(source, archive)
        if manifest.version in store.versions(images, manifest.name):
            return _known(images, manifest, say)
        (out / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
        wanted = manifest.files | ({LOCK: manifest.lock} if manifest.lock else {})
        for name, content in _members(source, archive):
            if wanted.pop(name, "") != _copy(content, out / name):
                raise _damaged(source, f"{name} is not as its manifest says")
        if wanted:
            raise _damaged(source, f"it lacks {', '.join(sorted(wanted))}")
        golden = Golden(manifest.name, manifest.version, out, manifest)
        store.verify(golden)  # what was written, and that the lock lists its packages
        return workshop.publish(out, images, manifest, say, promote=False)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who built it, and when, is in the manifest."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode, member.mtime = 0o444, 0
    return member


@contextmanager
def _archive(source: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(source, "r:*") as archive:
            yield archive
    except OSError as error:
        hints = {errno.ENOSPC: "Free some space.", errno.EACCES: "Run it with sudo."}
        hint = hints.get(error.errno or 0, "`vmrunner image export` makes such files.")
        raise ImageError(f"{source} can't be imported: {error.strerror or error}.", hint) from None
    except (
        tarfile.TarError,
        EOFError,
        ValueError,
        zlib.error,
        lzma.LZMAError,
    ) as error:  # the last three from what somebody compressed
        if _is_qcow2(source):
            raise ImageError(
                f"{source} is a disk, and not what `vmrunner image export` wrote.",
                "A recipe makes an image of it: name it as the `path` of its table [stock].",
            ) from None
        raise _damaged(source, str(error)) from None


def _is_qcow2(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(4) == b"QFI\xfb"


def _damaged(source: Path, what: str) -> ImageError:
    return ImageError(
        f"{source} is no image, or is damaged: {what}.",
        "Copy it again, or make it again with `vmrunner image export`.",
    )


def _manifest(source: Path, archive: tarfile.TarFile) -> Manifest:
    """It comes first. Whoever wrote the archive must not choose where files go."""
    first = archive.next()
    content = (
        archive.extractfile(first) if first and first.isfile() and first.name == MANIFEST else None
    )
    if content is None or first is None or first.size > _LONGEST_MANIFEST:
        raise _damaged(source, "it does not begin with a manifest")
    try:
        manifest = Manifest.model_validate_json(content.read())
    except ValidationError:
        raise _damaged(source, "its manifest is not one that this vmrunner can read") from None
    named = (manifest.name, manifest.version, *manifest.files)
    if (
        not all(_NAME.fullmatch(each) for each in named)
        or manifest.version == CURRENT
        or _NOT_FILES & manifest.files.keys()
    ):
        raise _damaged(source, "its manifest has names that no image has")
    # Promotions of another host are none of this one.
    return manifest.model_copy(update={"forced": ()})


def _members(source: Path, archive: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    while member := archive.next():
        content = archive.extractfile(member) if member.isfile() else None
        if content is None or not _NAME.fullmatch(member.name):
            raise _damaged(source, f"{member.name!r} has no place in it")
        yield member.name, content


def _copy(content: IO[bytes], target: Path) -> str:
    """Returns the sha256 of what was copied."""
    total = hashlib.sha256()
    with target.open("xb") as out:
        while chunk := content.read(_CHUNK):
            total.update(chunk)
            out.write(chunk)
    target.chmod(0o444)
    return total.hexdigest()


def _known(images: Path, manifest: Manifest, say: Say) -> Golden:
    golden = store.version(images, manifest.name, manifest.version)
    if golden.manifest.files != manifest.files:
        raise ImageError(
            f"There is another image {manifest.name} {manifest.version} here.",
            "Remove that one, or export one of another version.",
        )
    say(f"{manifest.name} {manifest.version} is here already")
    return golden
