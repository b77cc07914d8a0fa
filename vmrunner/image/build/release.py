"""The forges' own runner programs, as their projects publish them: where one is, and fetching it
with its checksum.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

from vmrunner import files
from vmrunner.errors import ImageError, NotFetched, WrongCommand
from vmrunner.image.build import downloads
from vmrunner.machine.seed import RUNNERS
from vmrunner.support import Fit, fit, least
from vmrunner.text import dotted, presentable

_SITES = {
    # Of all releases; below it, the folder of one.
    "forgejo-runner": ("https://code.forgejo.org/forgejo/runner/releases/download", "v{version}"),
    "gitea-runner": ("https://dl.gitea.com/gitea-runner", "{version}"),
}
_VERSION = re.compile(r"v?(\d{1,6}\.\d{1,6}\.\d{1,6})")
_SUM = re.compile(r"([0-9a-fA-F]{64})(?:\s+\*?(\S+))?\s*")
_MOST = 4096  # bytes of a checksum's file


class Arch(StrEnum):
    """Processors, in the projects' words."""

    AMD64 = "amd64"
    ARM64 = "arm64"


def this_arch() -> Arch:
    """This host's; its machines have the same."""
    return Arch.ARM64 if platform.machine() in {"aarch64", "arm64"} else Arch.AMD64


@dataclass(frozen=True)
class Release:
    """One program, published for one kind of processor."""

    program: str
    version: str  # three numbers
    arch: Arch
    site: str  # a URL without a slash at its end

    @property
    def file(self) -> str:
        """The name of the program's file."""
        return f"{self.program}-{self.version}-linux-{self.arch}"

    @property
    def url(self) -> str:
        """Where the file is."""
        folder = _SITES[self.program][1].format(version=self.version)
        return f"{self.site}/{folder}/{self.file}"

    @property
    def checksum(self) -> str:
        """Where its sha256 is."""
        return f"{self.url}.sha256"

    @property
    def untried(self) -> str:
        """What is to be said of a version that nobody has tried with vmrunner; else empty."""
        if fit(self.program, self.version) is not Fit.UNTRIED:
            return ""
        return f"{self.program} {self.version}: nobody has tried it with vmrunner."

    def script(self, folder: Path) -> str:
        """A shell's commands that fetch and check it."""
        path = folder / self.file
        return (
            f"mkdir -p {shlex.quote(str(folder))} && cd {shlex.quote(str(folder))} &&\n"
            f"curl -fL -o {path.name} {shlex.quote(self.url)} &&\n"
            f"curl -fL -o {path.name}.sha256 {shlex.quote(self.checksum)} &&\n"
            f"sha256sum -c {path.name}.sha256 && chmod 755 {path.name}\n"
        )

    def fetch(self, folder: Path, sha256: str = "") -> Fetched:
        """Have it in `folder`, as a whole or not at all; a file that is there already and right
        stays.

        `sha256`: what it must be; without it, what is published beside it. Raises ImageError.
        """
        wanted = sha256 or self._published()
        path = folder / self.file
        try:
            if path.is_file() and files.digest(path) == wanted:
                return Fetched(self, path, wanted, new=False)
            folder.mkdir(parents=True, exist_ok=True)
            files.sweep(folder)
            with files.replacing(path) as part:
                found = self._get(part)
                if found != wanted:
                    raise ImageError(
                        f"{self.url} has the sha256 {found}, and it should be {wanted}.",
                        "Nothing was kept. Try again; if it stays so, ask the project.",
                    )
                part.chmod(0o755)
        except OSError as error:
            raise ImageError(
                f"{path} can't be written: {error.strerror}.",
                "Run it as root, or name another folder with --to.",
            ) from None
        return Fetched(self, path, wanted, new=True)

    def _get(self, target: Path) -> str:
        try:
            return downloads.fetch(self._name, self.url, target, "sha256")
        except NotFetched as why:
            raise self._missing(why) from None

    def _published(self) -> str:
        try:
            told = downloads.read(f"The checksum of {self._name}", self.checksum, _MOST)
        except NotFetched as why:
            raise self._missing(why) from None
        found = _SUM.fullmatch(told.decode("ascii", "replace").strip())
        if found is None or found[2] not in {None, self.file}:
            raise ImageError(
                f"What {self.checksum} gives is not the checksum of {self.file}.",
                "Is there a login page or a proxy in between?",
            )
        return found[1].lower()

    @property
    def _name(self) -> str:
        return f"{self.program} {self.version} for {self.arch}"

    def _missing(self, why: NotFetched) -> NotFetched:
        if why.status == 404:
            return NotFetched(
                f"There is no {self._name} at {self.site} (404 for {self.file}).",
                f"Look at {_SITES[self.program][0].removesuffix('/download')} which versions there "
                "are.",
                status=why.status,
            )
        hint = (
            "Is this host's way to it open? A proxy is taken from https_proxy; another server is "
            "named with --mirror; --print says what to run on a host that can fetch it."
        )
        return NotFetched(presentable(why.sentence, 500), hint, status=why.status)


@dataclass(frozen=True)
class Fetched:
    """A release that is on this host."""

    release: Release
    path: Path
    sha256: str
    new: bool  # by this call

    @property
    def recipe(self) -> str:
        """The recipe's lines."""
        release = self.release
        lines = recipe(release.program, self.path, self.sha256, release.version)
        url = json.dumps(release.url)
        return (
            f"{lines}# In place of path, where builds shall fetch it themselves:\n# url = {url}\n"
        )


def recipe(program: str, path: Path, sha256: str = "", version: str = "") -> str:
    """A recipe's lines for a runner that is a file of this host."""
    lines = {"kind": program, "path": str(path), "sha256": sha256, "version": version}
    return "[runner]\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in lines.items() if value
    )


def release(forge: str, version: str, arch: Arch, mirror: str = "") -> Release:
    """The runner of "forgejo" or "gitea" in this version. Raises WrongCommand for what is none, and
    ImageError for one that is too old.
    """
    program = RUNNERS.get(forge)
    if program is None:
        raise WrongCommand(f"There is no forge {forge!r}.", f"There are: {', '.join(RUNNERS)}.")
    numbers = _VERSION.fullmatch(version)
    if numbers is None:
        raise WrongCommand(
            f"{version!r} is not a version of {program}.",
            'Three numbers, like "12.8.2"; docs/support.md names those that are known.',
        )
    if fit(program, numbers[1]) is Fit.OLD:
        raise ImageError(
            f"{program} {numbers[1]} is too old.",
            f"vmrunner needs {dotted(least(program))} or newer (docs/support.md).",
        )
    return Release(program, numbers[1], arch, _site(mirror) if mirror else _SITES[program][0])


def _site(mirror: str) -> str:
    try:
        parts = urlsplit(mirror)
        good = parts.scheme in {"http", "https"} and parts.hostname and not parts.query
    except ValueError:
        good = False
    if not good or "#" in mirror or not mirror.isprintable() or " " in mirror:
        raise WrongCommand(
            f"{presentable(mirror)!r} is not the address of a mirror.",
            'It is written like "https://mirror.example/forgejo-runner", and has the folders of '
            "the project's own site below it.",
        )
    return mirror.rstrip("/")
