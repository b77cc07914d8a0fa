"""Recipes: what goes into a golden image, declared in TOML."""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from vmrunner import faults, files
from vmrunner.config import parse_size
from vmrunner.errors import ImageError
from vmrunner.image.recipe import lock
from vmrunner.lines import line_of
from vmrunner.resources import folder
from vmrunner.text import sentence

_GUEST_PATH, _USER = r"^(/[A-Za-z0-9._@+-]+)+$", r"^[a-z_][a-z0-9_-]{0,30}$"
_SUITE, _WORD, _TITLE = r"^[a-z0-9][a-z0-9-]*$", r"^[a-z0-9][a-z0-9.+-]+$", r"^[ -~]{1,60}$"
_RUNNER, _VARIABLE = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$", r"^[A-Za-z_][A-Za-z0-9_]*$"
_URL, _SHA256, _SHA512 = r"^https?://\S+$", r"^[0-9a-f]{64}$", r"^[0-9a-f]{128}$"
_VERSION, _MODE, _SNAPSHOT = r"^[0-9A-Za-z][0-9A-Za-z.+~_-]*$", r"^0?[0-7]{3}$", r"^\d{8}T\d{6}Z$"
_NAME, _CONTAINER = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", r"^[a-z0-9][a-z0-9._/:-]{0,254}$"
_REFERENCE = r"^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$"
_ARGUMENTS, _LINE = r"^[ -~]+$", r"^[ -~]*$"
PATTERNS = {
    _GUEST_PATH: 'has to be a whole path in the image, like "/etc/motd"',
    _USER: 'a name of an account has small letters, digits, "_" and "-"',
    _SUITE: 'a suite is written like "bookworm"',
    _WORD: 'a name of Debian\'s has small letters, digits, ".", "+" and "-"',
    _TITLE: "has to be 1 to 60 letters of ASCII, in one line",
    _RUNNER: 'a name here has letters, digits, ".", "_" and "-", and 31 of them at most',
    _VARIABLE: 'a variable\'s name has letters, digits and "_"',
    _URL: 'has to be an address like "https://mirror.example/file"',
    _SHA256: "has to be a sha256: 64 digits from 0 to 9 and a to f",
    _SHA512: "has to be a sha512: 128 digits from 0 to 9 and a to f",
    _VERSION: 'a version is written like "12.8.2"',
    _MODE: 'a mode is written like "0644"',
    _SNAPSHOT: 'a time of the archive is written like "20261101T000000Z"',
    _NAME: 'a name here has letters, digits, ".", "_" and "-", and 63 of them at most',
    _CONTAINER: 'a container image\'s name is written like "debian:13", in small letters',
    _REFERENCE: 'a reference is written like "registry.example/image@sha256:" and 64 digits',
    _ARGUMENTS: "has to be letters of ASCII, in one line",
    _LINE: "has to be letters of ASCII, in one line",
}
"""The rules of texts, in words."""

GuestPath = Annotated[str, Field(pattern=_GUEST_PATH)]
UserName = Annotated[str, Field(pattern=_USER)]
Suite = Annotated[str, Field(pattern=_SUITE)]
Word = Annotated[str, Field(pattern=_WORD)]
Title = Annotated[str, Field(pattern=_TITLE)]
RunnerName = Annotated[str, Field(pattern=_RUNNER)]
Variable = Annotated[str, Field(pattern=_VARIABLE)]
Url = Annotated[str, Field(pattern=_URL)]
Sha256 = Annotated[str, Field(pattern=_SHA256)]

_ADDED_LATER = {
    "snapshot",
    "updates",
    "components",
    "scripts",
    "users",
    "environment",
    "compress",
    "runners",
    "containers",
    "checks",
    "listens",
    "stock",
    "kernel",
    "jobs_mirror",
}
"""The keys that were added since the first images were built."""
_KERNEL = re.compile(r"linux-image-(?!extra-|.*-(dbg|template)$).+")
_RELATIVE = "Its path is relative to the recipe."
_APPENDED, _MERGED = (
    {"packages", "scripts", "containers", "tools"},
    {"files", "users", "environment", "runners", "checks"},
)
"""What an inheriting recipe adds to; every other key it replaces."""


class RecipeTable(BaseModel):
    """A table of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Kind = TypeVar("Kind", bound=RecipeTable)


def check_source(path: Path | None, url: str | None, sha256: str | None) -> None:
    """Raises ValueError unless there is one place, and a digest of what is fetched."""
    if (path is None) == (url is None):
        raise ValueError("name either a path or a url")
    if url and not sha256:
        raise ValueError("a url needs the sha256 of what it must give")


class RunnerSource(RecipeTable):
    """The runner program: a file of this host, or a URL with the sha256 that the download must
    have.
    """

    kind: Literal["forgejo-runner", "gitea-runner"]
    """Whose it is."""
    path: Path | None = None
    """The program's file on the building host; or:"""
    url: Url | None = None
    """Where it is fetched from, once."""
    sha256: Sha256 | None = None
    """What the file must be. Needed with `url`, possible with `path`."""
    version: Annotated[str, Field(pattern=_VERSION)] | None = None
    """What its --version must tell when the image is verified."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        check_source(self.path, self.url, self.sha256)
        return self


class StockSource(RecipeTable):
    """A distribution's cloud image (qcow2 or raw), in the place of a bootstrap: a file, or a URL
    with the digest that it must have.
    """

    path: Path | None = None
    """The image's file, qcow2 or raw; or:"""
    url: Url | None = None
    """Where it is fetched from, once."""
    sha256: Sha256 | None = None
    """What the file must be. With `url` this or `sha512` is needed."""
    sha512: Annotated[str, Field(pattern=_SHA512)] | None = None
    """The same by another digest."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("name either a path or a url")
        if self.sha256 and self.sha512:
            raise ValueError("one digest is enough, sha256 or sha512")
        if self.url and not (self.sha256 or self.sha512):
            raise ValueError("a url needs the sha256 or sha512 of what it must give")
        return self

    def digest(self) -> str:
        """What the image is, as a word: equal words mean an equal image.

        Raises ImageError where its file can't be read.
        """
        return str(self.sha512 or self.sha256) if self.path is None else digest_of(self.path)


class _Content(RecipeTable):
    """What another file holds, or a text."""

    source: Path | None = None
    """A file, by its path from the recipe's folder; or:"""
    text: str | None = None
    """The content itself."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.source is None) == (self.text is None):
            raise ValueError("name either a source or a text")
        return self

    def content(self) -> bytes:
        """What the file will hold; raises ImageError where its source can't be read."""
        if self.text is not None:
            return self.text.encode()
        try:
            return Path(str(self.source)).read_bytes()
        except OSError as error:
            raise ImageError(
                f"The recipe's file {self.source} can't be read: {error.strerror}.", _RELATIVE
            ) from None


class FileSource(_Content):
    """One file to add."""

    mode: Annotated[str, Field(pattern=_MODE)] = "0644"
    """Its permissions; root owns it."""


class Script(_Content):
    """A program that is run in the image, as root, when its packages are there and before the
    recipe's files are.
    """

    name: Title
    """What the build calls it."""


class User(RecipeTable):
    """An account beside root's, without a password."""

    uid: Annotated[int, Field(ge=1, le=59999)] | None = None
    """Its number. Default: the next that is free."""
    groups: tuple[UserName, ...] = ()
    """Groups that it is in, beside its own. They are made where they are missing."""
    shell: GuestPath = "/bin/bash"
    """Its login shell."""
    sudo: bool = False
    """Whether it may do anything by sudo, without a password. The recipe needs the package sudo."""


class ContainerSource(RecipeTable):
    """A container image that machines have from the start: an archive (docker-archive or
    oci-archive), or a reference in a registry.
    """

    name: Annotated[str, Field(pattern=_CONTAINER)]
    """What jobs call it, like "debian:13"."""
    archive: Path | None = None
    """Its file, by its path from the recipe's folder (docker-archive or oci-archive); or:"""
    url: Url | None = None
    """Where such a file is fetched from, once; or `reference`."""
    sha256: Sha256 | None = None
    """What that file must be. Needed with `url`."""
    reference: Annotated[str, Field(pattern=_REFERENCE)] | None = None
    """The image in a registry, with its digest; skopeo fetches it."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.archive, self.url, self.reference].count(None) != 2:
            raise ValueError("name either an archive, a url or a reference with its digest")
        if self.url and not self.sha256:
            raise ValueError("a url needs the sha256 of what it must give")
        return self

    def archive_digest(self) -> str:
        """The sha256 of the archive that this host has, empty where it is fetched; raises
        ImageError where it can't be read.
        """
        if self.archive is None:
            return ""
        return digest_of(self.archive)


def has_password(url: str) -> bool:
    """Whether whoever reads the URL can use somebody's account with it."""
    return "@" in urlsplit(url).netloc


def digest_of(path: Path) -> str:
    """The sha256 of a file that a recipe names; raises ImageError where it can't be read."""
    try:
        return files.digest(path)
    except OSError as error:
        raise ImageError(f"The file {path} can't be read: {error.strerror}.", _RELATIVE) from None


class Recipe(RecipeTable):
    """One golden image, with everything that it inherits resolved."""

    name: Annotated[str, Field(pattern=_NAME)]
    suite: Suite
    """The release that it is made of, like "bookworm"."""
    stock: StockSource | None = None  # of that suite
    updates: tuple[Suite, ...] = ()
    """Further suites of the same mirror, like "noble-updates"."""
    components: tuple[Word, ...] = ("main",)
    """Parts of the archive."""
    keyring: Path | None = None
    """Who signs the mirror: a file, by its path from the recipe's folder. Default: apt's keys."""
    mirror: Url | None = None
    """Where packages come from, for the build and for jobs. Default: for the build the Debian
    mirror that the building host's apt uses, for jobs Debian's own servers.
    """
    jobs_mirror: Url | None = None
    """Another mirror for jobs. Without a password: every job can read it."""
    snapshot: Annotated[str, Field(pattern=_SNAPSHOT)] | None = None
    """Debian as it was then, from snapshot.debian.org or an archive like it at `mirror`."""
    lock: Path | None = None
    """A file with each package's version and digest, which `vmrunner image lock` writes. A build
    that differs fails.
    """
    size: Annotated[int, BeforeValidator(parse_size)]  # in MiB
    """Of the image's file system: packages, files and containers have to fit. A machine's disk is
    as big as its pool's `disk` says, and the file system grows to it.
    """
    packages: tuple[Word, ...] = ()
    """Packages of the archive; what they need comes along."""
    kernel: Word | None = None
    """The package of the kernel that is booted. Default: the newest kernel among the packages."""
    kernel_arguments: Annotated[str, Field(pattern=_ARGUMENTS)]
    """The kernel's command line."""
    scripts: tuple[Script, ...] = ()
    users: dict[UserName, User] = {}
    environment: dict[Variable, Annotated[str, Field(pattern=_LINE)]] = {}
    """Variables of every job, of `vmrunner exec`, and (/etc/environment) of who logs in."""
    compress: bool = False
    """Whether the disk is compressed: smaller, and slower to read."""
    files: dict[GuestPath, FileSource] = {}
    runner: RunnerSource | None = None
    runners: dict[RunnerName, RunnerSource] = {}
    """Further runners beside that one, with the same keys. A pool takes one of them by its name."""
    checks: dict[Title, Annotated[str, Field(min_length=1)]] = {}
    """Shell commands, each under a title of yours, that have to exit with 0 in a machine of it."""
    listens: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = ()
    """Ports that may be open in a machine of it. `image verify` wants no others."""
    containers: tuple[ContainerSource, ...] = ()

    @model_validator(mode="after")
    def _one_kernel(self) -> Self:
        other = next(
            (each for each in self.packages if _KERNEL.fullmatch(each) and each != self.kernel),
            None,
        )
        if self.kernel and other:
            raise ValueError(
                f"it has {other} beside the kernel {self.kernel}, and one is booted: name it with "
                "`kernel` alone"
            )
        return self

    @model_validator(mode="after")
    def _no_password(self) -> Self:
        if has_password(self.jobs_mirror or ""):
            raise ValueError("every job can read the password in jobs_mirror")
        if has_password(self.mirror or "") and not self.jobs_mirror:
            raise ValueError(
                "every job could read the password in mirror: say with jobs_mirror what jobs use"
            )
        return self

    @property
    def all_packages(self) -> tuple[str, ...]:
        """The kernel's as well."""
        return (
            (*self.packages, self.kernel)
            if self.kernel and self.kernel not in self.packages
            else self.packages
        )

    def digest(self) -> str:
        """The sha256 over the recipe and the content of every file that it names, so that equal
        digests mean equal inputs.
        """
        plain = self.model_dump(
            mode="json",
            exclude={
                "files": True,
                "lock": True,
                "keyring": True,
                "runner": {"path"},
                "stock": {"path"},
            },
        )
        # Younger than some image: unset they must not change the digest, or that image would be
        # built again.
        for key, field in Recipe.model_fields.items():
            if key in _ADDED_LATER and getattr(self, key) == field.get_default():
                plain.pop(key, None)
        if self.runner and self.runner.version is None:
            plain["runner"].pop("version")
        if self.scripts:
            plain["scripts"] = [
                (script.name, hashlib.sha256(script.content()).hexdigest())
                for script in self.scripts
            ]
        for each in plain.get("runners", {}).values():
            each.pop("path")
        for each in plain.get("containers", []):
            each.pop("archive")
        total = hashlib.sha256(
            json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()
        )
        contents = {path: (file.mode, file.content()) for path, file in self.files.items()}
        sources = {"runner": self.runner} | {
            f"runners/{name}": each for name, each in self.runners.items()
        }
        for name, source in sources.items():
            if source and source.path:
                contents[name] = ("0755", FileSource(source=source.path).content())
        if self.stock and self.stock.path:
            contents["stock"] = ("0644", self.stock.digest().encode())
        if self.keyring:
            contents["keyring"] = ("0644", self.keys())
        if self.lock:
            contents["lock"] = ("0644", lock.read(self.lock).encode())
        for path, (mode, content) in sorted(contents.items()):
            total.update(f"{path}\0{mode}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        for container in self.containers:
            total.update(f"{container.name}\0{container.archive_digest()}\n".encode())
        return total.hexdigest()

    def keys(self) -> bytes:
        """What is in the keyring; raises ImageError where it can't be read."""
        if self.keyring is None:
            return b""
        try:
            return self.keyring.read_bytes()
        except OSError as error:
            hint = f"A package may bring it, as ubuntu-keyring does for Ubuntu. {_RELATIVE}"
            raise ImageError(
                f"The keyring {self.keyring} can't be read: {error.strerror}.", hint
            ) from None


def load(name: str, own: Path | None = None) -> Recipe:
    """The recipe `name`, from the folder `own` if it is there, else from those that vmrunner
    brings.

    Raises ImageError for an unknown name, a cycle, broken TOML, an unknown key or a wrong value,
    naming the file and the key.
    """
    return load_as(Recipe, name, own, PATTERNS)


def keys(name: str, own: Path | None = None) -> frozenset[str]:
    """The keys that the recipe `name` has, with those that it inherits. Raises ImageError."""
    return frozenset(_resolve(name, _folders(own), ())[0])


def load_as(model: type[Kind], name: str, own: Path | None, patterns: Mapping[str, str]) -> Kind:
    """The recipe `name` as a recipe of this kind; see `load`. `patterns` has the rules of its
    texts, in words.
    """
    data, origins = _resolve(name, _folders(own), ())
    try:
        return model.model_validate(data | {"name": name})
    except ValidationError as error:
        leaf, found = _file(name, _folders(own)), []
        for key, said in faults.named(error, model, patterns):
            file, line = _where(key, origins, leaf)
            place = f"{file}: line {line}" if line else str(file)
            shown = ".".join(map(str, key)) or "the recipe"
            found.append((file != leaf, line, f"{place}: {shown}: {said}"))
        lines = [line for *_, line in sorted(found)]
        raise ImageError(
            sentence(lines[0]) if len(lines) == 1 else faults.listed(f"The recipe {name}", lines),
            "docs/reference/recipe.md describes every key; the recipe debian-12 is an example.",
        ) from None


def _where(loc: faults.Key, origins: dict[str, Path], leaf: Path) -> tuple[Path, int]:
    """The recipe's file, or that of one that it inherits from, and the line in there; 0 where the
    file as a whole lacks something.
    """
    key = ".".join(str(part) for part in loc[:2])
    file = origins.get(key) or origins.get(str(loc[0]) if loc else "") or leaf
    try:
        text = file.read_text(encoding="utf-8")
        own = tomllib.loads(text)
    except (OSError, ValueError):  # it has changed since
        return file, 0
    if loc and loc[0] in _APPENDED and isinstance(loc[1] if len(loc) > 1 else None, int):
        # Elements are counted from the first recipe's on; of this one they are the last.
        return file, line_of(text, (loc[0],))
    return file, line_of(text, loc) if loc and loc[0] in own else 0


def locked_by(name: str, own: Path | None) -> Path:
    """The lock that the recipe `name` has; raises ImageError where it has none, or is one that
    vmrunner brings.
    """
    if _file(name, _folders(own)).parent == folder("images"):
        raise ImageError(
            f"The recipe {name} comes with vmrunner, and is not yours to lock.",
            f'A recipe of your own with `extends = "{name}"` and `lock = "my-{name}.lock"` is '
            "found with --recipes FOLDER.",
        )
    found = load(name, own).lock
    if found is None:
        raise ImageError(f"The recipe {name} names no lock.", f'Add `lock = "{name}.lock"` to it.')
    return found


def exists(name: str, own: Path | None = None) -> bool:
    """Whether there is a recipe of this name."""
    return any((each / f"{name}.toml").is_file() for each in _folders(own))


def _folders(own: Path | None) -> list[Path]:
    return [own, folder("images")] if own else [folder("images")]


def _file(name: str, folders: list[Path]) -> Path:
    file = next((path for each in folders if (path := each / f"{name}.toml").is_file()), None)
    if file is None or Path(name).name != name:
        known = sorted(
            {path.stem for each in folders if each.is_dir() for path in each.glob("*.toml")}
        )
        raise ImageError(
            f"There is no recipe {name!r}. There are: {', '.join(known)}.",
            "A recipe of your own is found with --recipes FOLDER.",
        )
    return file


def _resolve(
    name: str, folders: list[Path], seen: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, Path]]:
    """What a recipe says with all that it inherits, and which file says it, by key and by
    key.subkey.
    """
    file = _file(name, folders)
    try:
        text = file.read_text(encoding="utf-8")
        data: dict[str, Any] = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ImageError(
            f"The recipe {file} can't be read: {error}.", "It must be valid TOML."
        ) from None
    if name in seen:
        line = f"{file}: line {line_of(text, ('extends',))}"
        raise ImageError(
            f"{line}: the recipe {seen[0]} inherits from itself: {' -> '.join((*seen, name))}.",
            "Remove one `extends`.",
        )
    _absolute(data, file.parent)
    base, origins = (
        _resolve(str(data.pop("extends")), folders, (*seen, name))
        if "extends" in data
        else ({}, {})
    )
    base.pop("lock", None)  # it lists all packages of one image; who inherits has others
    for key, own in data.items():
        before = base.get(key)
        if key in _APPENDED and isinstance(own, list) and isinstance(before, list):
            base[key] = [*before, *own]
        elif key in _MERGED and isinstance(own, dict) and isinstance(before, dict):
            base[key] = before | own
        else:
            base[key] = own
        origins[key] = file
        if isinstance(own, dict):
            origins |= {f"{key}.{sub}": file for sub in own}
    return base, origins


def _absolute(data: dict[str, Any], beside: Path) -> None:
    """Paths in a recipe are relative to it."""
    tables: list[tuple[Any, str]] = [
        (data, "lock"),
        (data, "keyring"),
        (data.get("runner"), "path"),
        (data.get("stock"), "path"),
    ]
    for key, name in (("files", "source"), ("runners", "path")):
        if isinstance(named := data.get(key), dict):
            tables += [(each, name) for each in named.values()]
    for key, name in (("scripts", "source"), ("containers", "archive"), ("tools", "path")):
        if isinstance(listed := data.get(key), list):
            tables += [(each, name) for each in listed]
    for table, key in tables:
        if isinstance(table, dict) and isinstance(table.get(key), str):
            table[key] = str(beside / table[key])
