"""Which version of an image is the current one, when that has changed, and by whom: promotion, and
the way back.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from vmrunner import lock
from vmrunner.errors import ImageError
from vmrunner.image.versions import diff, proof, store
from vmrunner.image.versions.store import CURRENT
from vmrunner.log import Say
from vmrunner.model.image import Forced, Golden

HISTORY = "promotions.jsonl"
_LOCK, _LOCK_WAIT = ".lock", 120.0  # seconds; whoever holds it reads or deletes some GiB


class Why(StrEnum):
    """What made a version the current one."""

    BUILT = "built"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    STEPPED_BACK = "rolled back automatically"  # its first machines failed


@dataclass(frozen=True)
class Promotion:
    """One change of an image's current version: one line of its history."""

    at: str  # ISO 8601, UTC
    before: str  # the version that was current; empty where there was none
    to: str
    why: Why
    by: str  # a user's name
    forced: bool = False  # nobody had verified it, or it was found bad
    cause: str = ""  # why it was rolled back, where vmrunner did
    content: str = ""  # the digest of what it was rolled back from

    @property
    def is_back(self) -> bool:
        """Whether it was to a version that had been current before."""
        return self.why in {Why.ROLLED_BACK, Why.STEPPED_BACK}

    @classmethod
    def from_line(cls, line: bytes) -> Promotion | None:
        """None for a line that whoever wrote it could not finish."""
        try:
            plain = json.loads(line)
            more = (
                plain.get("forced") is True,
                str(plain.get("cause", "")),
                str(plain.get("content", "")),
            )
            return cls(
                str(plain["at"]),
                str(plain["from"]),
                str(plain["to"]),
                Why(plain["why"]),
                str(plain["by"]),
                *more,
            )
        except (ValueError, TypeError, KeyError):
            return None

    def line(self) -> bytes:
        """As it is written down."""
        plain: dict[str, object] = {
            "at": self.at,
            "from": self.before,
            "to": self.to,
            "why": self.why.value,
            "by": self.by,
        }
        plain |= {
            key: value for key in ("forced", "cause", "content") if (value := getattr(self, key))
        }
        return json.dumps(plain).encode() + b"\n"


@contextmanager
def changing(images: Path, say: Say) -> Iterator[None]:
    """The store's lock: held by whoever adds, removes or promotes a version.

    What the file system refuses becomes an ImageError.
    """
    if not os.access(images, os.W_OK):
        raise ImageError(
            f"The images in {images} can't be changed: this user may not write there.",
            "Run it with sudo.",
        )
    other = f"Another vmrunner changes the images in {images}"
    with lock.held(images / _LOCK, other, "Wait for it, then try again.", wait=_LOCK_WAIT, say=say):
        try:
            yield
        except OSError as error:
            raise ImageError(
                f"The images in {images} can't be changed: {error}.",
                "Is there space, and may this user write there?",
            ) from None


def switch(
    images: Path,
    name: str,
    to: str,
    why: Why,
    *,
    forced: bool = False,
    cause: str = "",
    content: str = "",
) -> None:
    """Make a published version the current one, and write that down.

    Call it with the store's lock held.
    """
    home = images / name
    for half in home.glob(f".{CURRENT}-*"):  # of one that was killed: nobody else is at it now
        half.unlink()
    # The line comes first and is on the disk before the link is renamed, which alone decides.
    # Killed before the rename, the old version is current, and the line says of itself that it came
    # to nothing: what follows it does not begin where it ends (see `history`). The other way round
    # a version could be current without a line, and nobody would know since when, by whom, and what
    # was there before.
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    if forced:  # first of all: no version is current by force without its manifest saying so
        found = proof.read(store.version(images, name, to))
        store.note_forced(
            home / to, Forced(at=moment, by=_user(), found=found.said if found else "")
        )
    _append(
        home / HISTORY,
        Promotion(moment, current(images, name), to, why, _user(), forced, cause, content).line(),
    )
    link = home / f".{CURRENT}-{os.getpid()}"
    link.symlink_to(to)
    link.rename(home / CURRENT)
    folder = os.open(home, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    _share(images, home)


def _share(images: Path, home: Path) -> None:
    """What root does by hand must not keep the service's own user, who owns the folder above, from
    rolling back.
    """
    if os.geteuid() == 0:
        owner = images.parent.stat()
        for path in (images, home, home / HISTORY):
            os.chown(path, owner.st_uid, owner.st_gid)


def history(images: Path, name: str) -> list[Promotion]:
    """The promotions that took effect, the last one last; empty for an image that has had none
    since they are written down.

    Each begins with the version that the one before has made current. One that its successor, or
    the link, does not know was cut short.
    """
    try:
        lines = (images / name / HISTORY).read_bytes().splitlines()
    except OSError:
        return []
    written = [each for line in lines if (each := Promotion.from_line(line))]
    then = [*(each.before for each in written[1:]), current(images, name)]
    return [each for each, after in zip(written, then, strict=True) if each.to == after]


def promote(
    images: Path, name: str, version: str, say: Say, *, why: Why = Why.PROMOTED, force: bool = False
) -> Golden:
    """Make a version current, named by itself or by a beginning that no other has. Raises
    ImageError where it is unknown, damaged, or, without `force`, not verified.
    """
    # First of all, so that an unknown image leaves nothing, not even a lock.
    _chosen(images, name, version)
    with changing(images, say):
        golden = chosen(images, name, version)
        if golden.version == current(images, name):
            say(f"{name} {golden.version} is the current version already")
        else:
            store.verify(golden)
            if not force:
                proof.demand(golden)
            found = proof.read(golden)
            switch(images, name, golden.version, why, forced=not (found and found.is_good))
    return golden


def chosen(images: Path, name: str, version: str) -> Golden:
    """The version that `promote` would make current; raises ImageError where it is unknown or
    damaged.
    """
    return store.version(images, name, _chosen(images, name, version))


def step_back(images: Path, name: str, bad: str, cause: str, say: Say) -> Golden | None:
    """Make the version current that was so before the version `bad`, and is whole; None where `bad`
    is not current any more, or there is none. `cause` is written down, and what `bad` was made of.
    """
    if not can_step_back(images, name):
        return None
    with changing(images, say):
        if current(images, name) != bad:
            return None
        for target in reversed(_behind(images, name)):
            try:
                golden = store.version(images, name, target)
                store.verify(golden)
            except ImageError:
                continue
            switch(
                images,
                name,
                target,
                Why.STEPPED_BACK,
                cause=cause,
                content=_content(images, name, bad),
            )
            return golden
    return None


def can_step_back(images: Path, name: str) -> bool:
    """Whether the current version came by a promotion, and one that was current before is there.

    After a rollback it goes no further.
    """
    told = history(images, name)
    if not told or told[-1].is_back:
        return False
    return not (set(store.versions(images, name)) - {current(images, name)}).isdisjoint(
        _behind(images, name)
    )


def stepped_back_from(images: Path, name: str) -> set[str]:
    """The contents (see `diff.content`) of the versions that were rolled back automatically."""
    return {each.content for each in history(images, name) if each.content}


def _content(images: Path, name: str, version: str) -> str:
    try:
        return diff.content(store.version(images, name, version).manifest)
    except ImageError:
        return ""  # its manifest is what is broken


def newest_bad(images: Path, name: str) -> str:
    """A version that is newer than the current one, and was found bad; empty where the newest is no
    such.
    """
    newest = next(reversed(store.versions(images, name)), "")
    return newest if newest > current(images, name) and proof.is_bad(images / name / newest) else ""


def current(images: Path, name: str) -> str:
    """The version that is current, be it whole, there, or not; empty where none is."""
    try:
        return (images / name / CURRENT).readlink().name
    except OSError:
        return ""


def rollback(images: Path, name: str, say: Say) -> Golden:
    """Make the version current that was so before the current one, and is still there. Again, it
    goes one further back.

    Raises ImageError where there is none, or where it is damaged.
    """
    if not store.versions(images, name):
        store.find(images, name)  # says which there are
    with changing(images, say):
        there = set(store.versions(images, name)) - {current(images, name)}
        target = next(
            (version for version in reversed(_behind(images, name)) if version in there), None
        )
        if target is None:
            raise ImageError(
                f"There is no version that the image {name!r} could go back to.",
                f"`vmrunner image list` shows all; `vmrunner image promote {name} VERSION` makes "
                "any of them current.",
            )
        golden = store.version(images, name, target)
        store.verify(golden)
        switch(images, name, target, Why.ROLLED_BACK)
    return golden


def _behind(images: Path, name: str) -> list[str]:
    """The versions that lie behind the current one, the nearest last; what was rolled back is not
    among them.
    """
    found: list[str] = []
    for each in history(images, name):
        if each.is_back and each.to in found:
            while found.pop() != each.to:
                pass
        elif each.before:
            found.append(each.before)
    return found


def _chosen(images: Path, name: str, wanted: str) -> str:
    known = store.versions(images, name)
    if not known:
        store.find(images, name)  # says which there are
    fitting = (
        [wanted]
        if wanted in known
        else [version for version in known if version.startswith(wanted)]
    )
    if not fitting:
        raise ImageError(
            f"The image {name!r} has no version {wanted!r}.", f"It has: {', '.join(known)}."
        )
    if len(fitting) > 1:
        raise ImageError(
            f"{wanted!r} is the beginning of {len(fitting)} versions of the image {name!r}.",
            f"Say more of one: {', '.join(fitting)}.",
        )
    return fitting[0]


def _append(path: Path, line: bytes) -> None:
    with path.open("ab+") as file:
        if end := file.seek(0, os.SEEK_END):
            file.seek(end - 1)
            if file.read(1) != b"\n":  # its writer was killed, or the disk was full
                line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _user() -> str:
    """Who does this; with sudo, who called it."""
    user = os.geteuid()
    if user == 0 and (caller := os.environ.get("SUDO_USER")):
        return caller
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
