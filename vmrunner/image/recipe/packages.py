"""The Debian packages of an image: their versions, and the sha256 of the .deb that each came from,
as apt's lists say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vmrunner.errors import ImageError
from vmrunner.model.image import Package
from vmrunner.text import some

# For `dpkg-query --showformat`.
FORMAT = "${Package}\t${Version}\t${Architecture}\t${db:Status-Status}\n"
_FIELDS = ("Package", "Version", "Architecture", "SHA256")


def installed(listed: str, lists: Path, *, all_known: bool = True) -> dict[str, Package]:
    """The packages that dpkg lists in FORMAT, by name, with their digests from the folder of apt's
    lists.

    apt has compared the lists with their signatures, and each .deb with its list. Raises ImageError
    where the lists don't know a package; unless `all_known` is false: it has no digest then.
    """
    rows = [line.split("\t") for line in listed.splitlines()]
    wanted = {
        (name, version, architecture)
        for name, version, architecture, status in rows
        if status == "installed"
    }
    digests = _digests(wanted, lists)
    unknown = sorted(name for name, version, architecture in wanted - digests.keys())
    if unknown and all_known:
        raise ImageError(
            f"apt's lists have no digest for {some(unknown)}.",
            "Lists that apt keeps compressed can't be read: look for Acquire::GzipIndexes in "
            "/etc/apt/apt.conf.d/99*.",
        )
    return {
        key[0]: Package(version=key[1], architecture=key[2], sha256=digests.get(key, ""))
        for key in sorted(wanted)
    }


def _digests(wanted: set[tuple[str, str, str]], lists: Path) -> dict[tuple[str, str, str], str]:
    found: dict[tuple[str, str, str], str] = {}
    for path in sorted(lists.glob("*_Packages")):
        for name, version, architecture, sha256 in _stanzas(path):
            key = (name, version, architecture)
            # Which one apt has taken can't be told any more.
            if key in wanted and found.setdefault(key, sha256) != sha256:
                raise ImageError(
                    f"Two of apt's lists have a different {name} {version}.",
                    "Leave one of the apt sources out.",
                )
    return found


def _stanzas(path: Path) -> Iterator[tuple[str, ...]]:
    """The fields of each package of a list; those without a sha256 are left out."""
    fields: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line == "\n":
                if len(fields) == len(_FIELDS):
                    yield tuple(fields[field] for field in _FIELDS)
                fields = {}
                continue
            field, _, value = line.partition(": ")
            if field in _FIELDS:
                fields[field] = value.strip()
    if len(fields) == len(_FIELDS):
        yield tuple(fields[field] for field in _FIELDS)
