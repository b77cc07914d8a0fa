"""A recipe's lock: the packages that its image must consist of, one a line, so that a change is a
line of a diff.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.model.image import Package
from vmrunner.text import some

_LINE = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.+-]+) (?P<version>[A-Za-z0-9.+~:-]+) (?P<sha256>[0-9a-f]{64})"
)


def parse(text: str, origin: str) -> dict[str, Package]:
    """The packages of a lock's text; raises ImageError that names the origin and the line."""
    found: dict[str, Package] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.rstrip())
        if match is None or match["name"] in found:
            what = (
                "is not `name version sha256`" if match is None else f"names {match['name']} again"
            )
            raise ImageError(
                f"{origin}: line {number} {what}.", "`vmrunner image lock` writes it anew."
            )
        found[match["name"]] = Package(version=match["version"], sha256=match["sha256"])
    return found


def read(path: Path) -> str:
    """The text of a recipe's lock; raises ImageError where it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ImageError(
            f"The lock {path} can't be read: {reason}.",
            "`vmrunner image build --ignore-lock`, then `vmrunner image lock` make it.",
        ) from None


def text(packages: Mapping[str, Package]) -> str:
    """The lock for these packages."""
    return "".join(
        f"{name} {package.version} {package.sha256}\n" for name, package in sorted(packages.items())
    )


def write(path: Path, name: str, packages: Mapping[str, Package]) -> None:
    """Lock the image `name` to these packages; the file changes at once or not at all."""
    unknown = [each for each, package in sorted(packages.items()) if not package.sha256]
    if unknown:
        raise ImageError(
            f"The image {name} does not say which .deb {some(unknown)} came from.",
            "A stock image brought it, and no archive of the recipe has this version; or an older "
            "vmrunner built the image: "
            f"then `vmrunner image build {name} --force --ignore-lock` builds it again.",
        )
    try:
        files.write_whole(path, text(packages))
    except OSError as error:
        raise ImageError(
            f"The lock {path} can't be written: {error.strerror}.",
            "Its path is relative to the recipe.",
        ) from None


def differences(wanted: Mapping[str, Package], found: Mapping[str, Package]) -> list[str]:
    """What of the packages found is not as the lock wants it, one phrase for each kind; empty where
    they agree.
    """
    both = sorted(wanted.keys() & found.keys())
    versions = [each for each in both if found[each].version != wanted[each].version]
    contents = [
        each for each in both if each not in versions and found[each].sha256 != wanted[each].sha256
    ]
    kinds: list[tuple[str, Iterable[str]]] = [
        ("added", sorted(found.keys() - wanted.keys())),
        ("missing", sorted(wanted.keys() - found.keys())),
        (
            "of another version",
            [
                f"{each} {found[each].version}, locked is {wanted[each].version}"
                for each in versions
            ],
        ),
        ("with other content", contents),
    ]
    return [
        f"{len(names)} {kind} ({some(names)})" for kind, listed in kinds if (names := list(listed))
    ]
