"""Where packages come from: those of a build by this host's way, those of a job by the recipe's.

None of this host's settings stays.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmrunner.image.build import apt_source
from vmrunner.image.build.apt_source import Source
from vmrunner.image.build.paths import place, within
from vmrunner.image.recipe.recipe import Recipe

_SNAPSHOTS = "https://snapshot.debian.org/archive"
_KEYRINGS = "/usr/share/keyrings"
_DEBIANS = "debian-archive-"  # what the names of its keyrings begin with, in there
# What Debian's suites are called beside their codenames.
_RELEASES = {"stable", "oldstable", "oldoldstable", "testing"}
_SETTINGS = "/etc/apt/apt.conf.d/99vmrunner-build"
_OWN_KEYRING = "/etc/apt/keyrings/vmrunner-archive"
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


def build_sources(recipe: Recipe) -> list[Source]:
    """What a build takes its packages from: the recipe's snapshot or mirror, or Debian's mirror
    that this host's apt uses.
    """
    if recipe.snapshot:
        archive = (recipe.mirror or _SNAPSHOTS).rstrip("/")
        mirrors = Mirrors(
            f"{archive}/debian/{recipe.snapshot}", f"{archive}/debian-security/{recipe.snapshot}"
        )
        # What was signed to be valid for a week has expired.
        return [replace(each, may_be_expired=True) for each in _of_debian(recipe, mirrors)]
    if recipe.mirror:
        return _of_mirror(recipe, recipe.mirror)
    return _of_debian(recipe, of_host(recipe.suite))


def job_sources(recipe: Recipe) -> list[Source]:
    """What jobs take packages from: never this host's mirrors. One for each of the build's, so that
    jobs find whatever their image was built from.
    """
    wanted = recipe.jobs_mirror
    if recipe.mirror and not recipe.snapshot:
        return _of_mirror(recipe, wanted or recipe.mirror)
    if wanted:
        beside = re.sub(r"/debian/?$", "/debian-security", wanted)
        return _of_debian(
            recipe, Mirrors(wanted, Mirrors().security if beside == wanted else beside)
        )
    return build_sources(recipe) if recipe.snapshot else _of_debian(recipe, Mirrors())


def of_host(suite: str, etc: Path = Path("/etc")) -> Mirrors:
    """The mirrors of Debian that this host's apt uses; Debian's own where it uses none.

    Which entries are Debian's is told by their keyring and their suites. What an address looks like
    tells nothing: other vendors' end in /debian, too. Where an entry names no keyring the archive
    has to have what only Debian has beside a release: its updates.
    """
    entries = [
        each
        for each in apt_source.read(etc)
        if "main" in each.components and each.is_for_this_machine
    ]
    names = {suite, *_RELEASES, *_codename(etc)}
    updates = {f"{name}-updates" for name in names}
    own = [each for each in entries if _is_debians(each.signed_by)]
    unnamed = [each for each in entries if not each.signed_by]
    with_updates = {each.uri.rstrip("/") for each in unnamed if each.suite in updates}
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
    place(tree, _file(tree), _text(recipe, tree, job_sources(recipe)).encode(), 0o644)


@contextmanager
def lent(recipe: Recipe, tree: Path) -> Iterator[None]:
    """While programs of the tree may fetch something, it has this host's resolver and apt settings,
    and the build's sources.

    Afterwards it has the sources of jobs, with whatever else was written into their file meanwhile.
    """
    file, began = _file(tree), _text(recipe, tree, build_sources(recipe))
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
    return [each.uri for each in build_sources(recipe)] != [
        each.uri for each in job_sources(recipe)
    ]


def _of_mirror(recipe: Recipe, uri: str) -> list[Source]:
    """The suite and the `updates` of one archive that has it all."""
    return [Source(uri, each, recipe.components) for each in (recipe.suite, *recipe.updates)]


def _of_debian(recipe: Recipe, mirrors: Mirrors) -> list[Source]:
    """The suite, its updates and its security fixes, as Debian spreads them over two archives."""
    places = (
        (mirrors.main, recipe.suite),
        (mirrors.main, f"{recipe.suite}-updates"),
        (mirrors.security, f"{recipe.suite}-security"),
    )
    return [Source(uri, suite, recipe.components) for uri, suite in places]


def _of_jobs(recipe: Recipe, text: str) -> str:
    """The sources of a build, changed by a script of the recipe's, with the jobs' archives in the
    place of the build's.
    """
    for ours, theirs in zip(build_sources(recipe), job_sources(recipe), strict=True):
        there = theirs.uri.replace("\\", "\\\\")
        text = re.sub(rf"{re.escape(ours.uri)}(?=[\s/]|$)", there, text)
    return text


def _text(recipe: Recipe, tree: Path, sources: list[Source]) -> str:
    """As Debian and Ubuntu lay their own sources into their images."""
    keyring = _keyring(recipe, tree)
    return _HEAD + apt_source.stanzas(replace(each, signed_by=keyring) for each in sources)


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


def _is_debians(keys: str) -> bool:
    """Whether all the keyrings of a Signed-By are Debian's."""
    named = re.split(r"[\s,]+", keys.strip()) if keys else []
    return bool(named) and all(
        os.path.dirname(each) == _KEYRINGS and os.path.basename(each).startswith(_DEBIANS)
        for each in named
    )


def _uris(sources: Iterable[Source], suites: set[str]) -> list[str]:
    return [
        each.uri
        for each in sources
        if each.suite in suites and each.uri.startswith(("http://", "https://"))
    ]
