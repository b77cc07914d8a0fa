"""Where packages come from: those of a build by this host's way, those of a job by the recipe's.

None of this host's settings stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from vmrunner.image.build.paths import place, within
from vmrunner.image.recipe.recipe import Recipe

_SNAPSHOTS = "https://snapshot.debian.org/archive"
_KEYRINGS = "/usr/share/keyrings"
_DEBIANS = "debian-archive-"  # what the names of its keyrings begin with, in there
# What Debian's suites are called beside their codenames.
_RELEASES = {"stable", "oldstable", "oldoldstable", "testing"}
_OFF = {"no", "false", "without", "off", "disable"}
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SETTINGS = "/etc/apt/apt.conf.d/99vmrunner-build"
_OWN_KEYRING = "/etc/apt/keyrings/vmrunner-archive"
_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)
HOST_SETTINGS = Path("/etc/apt/apt.conf.d")
MAN_FOLDERS = tuple(f"usr/share/man/man{section}" for section in range(1, 9))
"""What packages with alternatives (Java, PostgreSQL's client) want to be there: update-alternatives
makes no folder.
"""
MAKE_MAN_FOLDERS = f"umask 022 && mkdir -p {' '.join(MAN_FOLDERS)}"
"""For a shell in the tree's root."""
_HEAD = "# As the image's recipe says.\n"


@dataclass(frozen=True)
class Mirrors:
    """Debian's two archives, as this host or everybody reaches them."""

    main: str = "http://deb.debian.org/debian"
    security: str = "http://deb.debian.org/debian-security"


@dataclass(frozen=True)
class _Entry:
    """One of a host's sources."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keys: str  # its Signed-By; empty: whatever apt trusts
    architectures: tuple[str, ...]  # empty: all


def sources(recipe: Recipe) -> str:
    """What a build takes its packages from, for apt: the recipe's snapshot or mirror, or Debian's
    mirror that this host's apt uses.
    """
    option, components = (
        "[check-valid-until=no] " if recipe.snapshot else "",
        " ".join(recipe.components),
    )
    return "".join(
        f"deb {option}{uri} {suite} {components}\n" for uri, suite in _parts(recipe, building=True)
    )


def of_host(suite: str, etc: Path = Path("/etc")) -> Mirrors:
    """The mirrors of Debian that this host's apt uses; Debian's own where it uses none.

    Which entries are Debian's is told by their keyring and their suites. What an address looks like
    tells nothing: other vendors' end in /debian, too. Where an entry names no keyring the archive
    has to have what only Debian has beside a release: its updates.
    """
    entries = [
        each for each in _entries(etc) if "main" in each.components and _is_ours(each.architectures)
    ]
    names = {suite, *_RELEASES, *_codename(etc)}
    updates = {f"{name}-updates" for name in names}
    own = [each for each in entries if _is_debians(each.keys)]
    unnamed = [each for each in entries if not each.keys]
    with_updates = {
        uri.rstrip("/") for each in unnamed if updates & set(each.suites) for uri in each.uris
    }
    mains = [
        *_uris(own, names),
        *(uri for uri in _uris(unnamed, names) if uri.rstrip("/") in with_updates),
    ]
    fixes = _uris(
        [*own, *unnamed],
        {f"{name}-security" for name in names} | {f"{name}/updates" for name in names},
    )
    known = Mirrors()
    return Mirrors(next(iter(mains), known.main), next(iter(fixes), known.security))


def host_settings() -> list[Path]:
    """What this host's apt is told of proxies, certificates and the like: a build needs it, and no
    image has it.
    """
    return sorted(HOST_SETTINGS.glob("99*"))


def lay(recipe: Recipe, tree: Path) -> None:
    """Put the sources into the tree that jobs have: the recipe's, or Debian's own; never this
    host's.
    """
    place(tree, _file(tree), _text(recipe, tree, building=False).encode(), 0o644)


@contextmanager
def lent(recipe: Recipe, tree: Path) -> Iterator[None]:
    """While programs of the tree may fetch something, it has this host's resolver and apt settings,
    and the build's sources.

    Afterwards it has the sources of jobs, with whatever else was written into their file meanwhile.
    """
    file, began = _file(tree), _text(recipe, tree, building=True)
    settings = b"".join(path.read_bytes() + b"\n" for path in host_settings())
    place(tree, file, began.encode(), 0o644)
    place(tree, _SETTINGS, settings, 0o644)
    place(tree, "/etc/resolv.conf", Path("/etc/resolv.conf").read_bytes(), 0o644)
    try:
        yield
    finally:
        for path in (_SETTINGS, "/etc/resolv.conf"):
            (within(tree, os.path.dirname(path)) / os.path.basename(path)).unlink(missing_ok=True)
        left = within(tree, file)
        if left.is_file():
            text = left.read_text(encoding="utf-8", errors="surrogateescape")
            if text == began:
                lay(recipe, tree)
            else:
                place(tree, file, _of_jobs(recipe, text).encode(errors="surrogateescape"), 0o644)


def distribution(tree: Path) -> str:
    """Whose packages a tree consists of: its name as its own files have it."""
    return _release(within(tree, "/usr/lib/os-release")).get("ID", "debian")


def is_elsewhere(recipe: Recipe) -> bool:
    """Whether jobs take their packages from another place than the build: the build's lists of
    packages are of no use to them.
    """
    return _parts(recipe, building=True) != _parts(recipe, building=False)


def _parts(recipe: Recipe, *, building: bool) -> list[tuple[str, str]]:
    """URI and suite of each; as many for jobs as for a build, so that jobs find whatever their
    image was built from.
    """
    suite, wanted = recipe.suite, None if building else recipe.jobs_mirror
    if recipe.mirror and not recipe.snapshot:
        return [(wanted or recipe.mirror, each) for each in (suite, *recipe.updates)]
    if wanted:
        beside = re.sub(r"/debian/?$", "/debian-security", wanted)
        mirrors = Mirrors(wanted, Mirrors().security if beside == wanted else beside)
    elif recipe.snapshot:
        archive = (recipe.mirror or _SNAPSHOTS).rstrip("/")
        mirrors = Mirrors(
            f"{archive}/debian/{recipe.snapshot}", f"{archive}/debian-security/{recipe.snapshot}"
        )
    else:
        mirrors = of_host(suite) if building else Mirrors()
    return [
        (mirrors.main, suite),
        (mirrors.main, f"{suite}-updates"),
        (mirrors.security, f"{suite}-security"),
    ]


def _of_jobs(recipe: Recipe, text: str) -> str:
    """The sources of a build, changed by a script of the recipe's, with the jobs' archives in the
    place of the build's.
    """
    for (ours, _), (theirs, _) in zip(
        _parts(recipe, building=True), _parts(recipe, building=False), strict=True
    ):
        text = re.sub(rf"{re.escape(ours)}(?=[\s/]|$)", theirs.replace("\\", "\\\\"), text)
    return text


def _text(recipe: Recipe, tree: Path, *, building: bool) -> str:
    """As Debian and Ubuntu lay their own sources into their images."""
    key, text = _keyring(recipe, tree), _HEAD
    # What a snapshot signed to be valid for a week has expired. The signature itself is checked as
    # ever.
    expired = recipe.snapshot and (building or not recipe.jobs_mirror)
    for uri, parts in groupby(_parts(recipe, building=building), key=lambda part: part[0]):
        text += f"Types: deb\nURIs: {uri}\nSuites: {' '.join(suite for _, suite in parts)}\n"
        text += f"Components: {' '.join(recipe.components)}\n"
        text += (
            (f"Signed-By: {key}\n" if key else "")
            + ("Check-Valid-Until: no\n" if expired else "")
            + "\n"
        )
    return text.rstrip("\n") + "\n"


def _keyring(recipe: Recipe, tree: Path) -> str:
    """Which of the tree's keyrings signs the archive; the recipe's is put there, unless a package
    of the tree has brought it.
    """
    content = recipe.keys()
    if not content:
        own = f"{_KEYRINGS}/{distribution(tree)}-archive-keyring.gpg"
        return own if within(tree, own).exists() else ""
    if recipe.keyring and within(tree, packaged := f"{_KEYRINGS}/{recipe.keyring.name}").exists():
        return packaged
    path = f"{_OWN_KEYRING}.{'asc' if content.startswith(b'-----BEGIN') else 'gpg'}"
    place(tree, path, content, 0o644)
    return path


def _file(tree: Path) -> str:
    return f"/etc/apt/sources.list.d/{distribution(tree)}.sources"


def _codename(etc: Path) -> set[str]:
    """This host's release, if it is one of Debian's."""
    found = _release(etc / "os-release")
    return (
        {found["VERSION_CODENAME"]}
        if found.get("ID") == "debian" and found.get("VERSION_CODENAME")
        else set()
    )


def _release(file: Path) -> dict[str, str]:
    try:
        text = file.read_text(errors="replace")
    except OSError:
        return {}
    return dict(re.findall(r"(?m)^(\w+)=[\"']?([a-z0-9._-]+)[\"']?\s*$", text))


def _is_ours(architectures: tuple[str, ...]) -> bool:
    machine = os.uname().machine
    return not architectures or _ARCHITECTURES.get(machine, machine) in architectures


def _is_debians(keys: str) -> bool:
    """Whether all the keyrings that an entry names are Debian's."""
    named = re.split(r"[\s,]+", keys.strip()) if keys else []
    return bool(named) and all(
        os.path.dirname(each) == _KEYRINGS and os.path.basename(each).startswith(_DEBIANS)
        for each in named
    )


def _uris(entries: Iterable[_Entry], suites: set[str]) -> list[str]:
    return [
        uri
        for each in entries
        if suites & set(each.suites)
        for uri in each.uris
        if uri.startswith(("http://", "https://"))
    ]


def _entries(etc: Path) -> Iterator[_Entry]:
    """Those that are in use, in apt's order."""
    folder = etc / "apt" / "sources.list.d"
    for path in (
        etc / "apt" / "sources.list",
        *sorted(folder.glob("*.list")),
        *sorted(folder.glob("*.sources")),
    ):
        if path.is_file():
            text = path.read_text(errors="replace")
            yield from _stanzas(text) if path.suffix == ".sources" else _lines(text)


def _lines(text: str) -> Iterator[_Entry]:
    """`deb [signed-by=…] http://… bookworm main`"""
    for line in text.splitlines():
        if match := _LINE.fullmatch(line.partition("#")[0].strip()):
            options = dict(
                each.partition("=")[::2] for each in (match["options"] or "").lower().split()
            )
            # The case of a path counts.
            named = re.search(r"(?i)signed-by=(\S+)", match["options"] or "")
            architectures = tuple(options["arch"].split(",")) if "arch" in options else ()
            yield _Entry(
                (match["uri"],),
                (match["suite"],),
                tuple(match["components"].split()),
                named[1] if named else "",
                architectures,
            )


def _stanzas(text: str) -> Iterator[_Entry]:
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
        if "deb" in types and fields.get("enabled", "").strip().lower() not in _OFF:
            yield _Entry(
                uris, suites, components, fields.get("signed-by", "").strip(), architectures
            )
