"""apt's sources as records: read from a host's files, and written in apt's two formats."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby, product
from pathlib import Path

_OFF = {"no", "false", "without", "off", "disable"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)


@dataclass(frozen=True)
class Source:
    """One suite of one archive."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""  # paths of keyrings, or a key itself; empty: any key that apt trusts
    architectures: tuple[str, ...] = ()  # empty: all
    may_be_expired: bool = False  # apt still checks the signature

    @property
    def is_for_this_machine(self) -> bool:
        """Whether it has packages of this host's architecture."""
        machine = os.uname().machine
        return not self.architectures or _ARCHITECTURES.get(machine, machine) in self.architectures


def lines(sources: Iterable[Source]) -> str:
    """One line a source, as in sources.list."""
    text = ""
    for each in sources:
        options = [
            *(["check-valid-until=no"] if each.may_be_expired else []),
            *([f"arch={','.join(each.architectures)}"] if each.architectures else []),
            *([f"signed-by={each.signed_by}"] if each.signed_by else []),
        ]
        words = ["deb", *([f"[{' '.join(options)}]"] if options else [])]
        text += " ".join([*words, each.uri, each.suite, *each.components]) + "\n"
    return text


def stanzas(sources: Iterable[Source]) -> str:
    """deb822, as in a .sources file: one stanza for sources in a row that differ in their suites
    only.
    """
    found = []
    for each, alike in groupby(sources, key=lambda source: replace(source, suite="")):
        fields = {
            "Types": "deb",
            "URIs": each.uri,
            "Suites": " ".join(source.suite for source in alike),
            "Components": " ".join(each.components),
            "Architectures": " ".join(each.architectures),
            "Signed-By": each.signed_by,
            "Check-Valid-Until": "no" if each.may_be_expired else "",
        }
        found.append("".join(f"{name}: {value}\n" for name, value in fields.items() if value))
    return "\n".join(found)


def read(etc: Path) -> Iterator[Source]:
    """The sources of packages that are in use in this /etc, in apt's order."""
    folder = etc / "apt" / "sources.list.d"
    for path in (
        etc / "apt" / "sources.list",
        *sorted(folder.glob("*.list")),
        *sorted(folder.glob("*.sources")),
    ):
        if path.is_file():
            text = path.read_text(errors="replace")
            yield from _of_stanzas(text) if path.suffix == ".sources" else _of_lines(text)


def _of_lines(text: str) -> Iterator[Source]:
    """`deb [signed-by=…] http://… bookworm main`"""
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.partition("#")[0].strip()):
            words = (each.partition("=")[::2] for each in (match["options"] or "").split())
            options = {name.lower(): value for name, value in words}
            yield Source(
                match["uri"],
                match["suite"],
                tuple(match["components"].split()),
                options.get("signed-by", ""),
                tuple(options["arch"].lower().split(",")) if "arch" in options else (),
                options.get("check-valid-until", "").lower() in _OFF,
            )


def _of_stanzas(text: str) -> Iterator[Source]:
    """`URIs: http://…`, and so on; a field may go on in the next lines."""
    for stanza in re.split(
        r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    ):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[last] = f"{fields.get(last, '')}\n{line}"
            elif ":" in line:
                last, _, value = line.partition(":")
                last = last.strip().lower()
                fields[last] = value
        uris, suites, components, types, architectures = (
            tuple(fields.get(each, "").split())
            for each in ("uris", "suites", "components", "types", "architectures")
        )
        is_on = fields.get("enabled", "").strip().lower() not in _OFF
        if "deb" in types and is_on:
            keys = fields.get("signed-by", "").strip()
            expired = fields.get("check-valid-until", "").strip().lower() in _OFF
            for uri, suite in product(uris, suites):
                yield Source(uri, suite, components, keys, architectures, expired)
