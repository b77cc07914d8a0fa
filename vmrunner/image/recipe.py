"""Recipes: what goes into a golden image, declared in TOML."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vmrunner.config import Mebibytes
from vmrunner.errors import ImageError
from vmrunner.image import lock
from vmrunner.resources import folder

GuestPath = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._@+-]+)+$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunnerSource(_Section):
    """The runner program: a file of this host, or a URL with the sha256 that the download must have."""

    kind: Literal["forgejo-runner", "gitea-runner"]
    path: Path | None = None
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("name either a path or a url")
        if self.url and not self.sha256:
            raise ValueError("a url needs the sha256 of what it must give")
        return self


class FileSource(_Section):
    """One file to add: another file, or its text."""

    source: Path | None = None
    text: str | None = None
    mode: Annotated[str, Field(pattern=r"^0?[0-7]{3}$")] = "0644"

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
                f"The recipe's file {self.source} can't be read: {error.strerror}.", "Its path is relative to the recipe."
            ) from None


class ContainerSource(_Section):
    """A container image that machines have from the start: an archive (docker-archive or oci-archive), or a reference in a registry."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/:-]{0,254}$")]  # what jobs call it, like "debian:13"
    archive: Path | None = None
    url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    reference: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*@sha256:[0-9a-f]{64}$")] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.archive, self.url, self.reference].count(None) != 2:
            raise ValueError("name either an archive, a url or a reference with its digest")
        if self.url and not self.sha256:
            raise ValueError("a url needs the sha256 of what it must give")
        return self

    def archive_digest(self) -> str:
        """The sha256 of the archive that this host has, empty where it is fetched; raises ImageError where it can't be read."""
        if self.archive is None:
            return ""
        try:
            with self.archive.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ImageError(
                f"The archive {self.archive} can't be read: {error.strerror}.", "Its path is relative to the recipe."
            ) from None


class Recipe(_Section):
    """One golden image, with everything that it inherits resolved."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    suite: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    mirror: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    snapshot: Annotated[str, Field(pattern=r"^\d{8}T\d{6}Z$")] | None = None
    lock: Path | None = None
    size: Mebibytes
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.+-]+$")], ...]
    kernel_arguments: Annotated[str, Field(pattern=r"^[ -~]+$")]
    files: dict[GuestPath, FileSource] = {}
    runner: RunnerSource | None = None
    containers: tuple[ContainerSource, ...] = ()

    def digest(self) -> str:
        """The sha256 over the recipe and the content of every file that it names, so that equal digests mean equal inputs."""
        left_out: dict[str, Any] = {"files": True, "lock": True, "runner": {"path": True}, "containers": {"__all__": {"archive"}}}
        if not self.containers:
            left_out["containers"] = True
        if self.snapshot is None:  # younger than some image: unset it must not change the digest, or that image would be built again
            left_out["snapshot"] = True
        total = hashlib.sha256(self.model_dump_json(exclude=left_out).encode())
        contents = {path: (file.mode, file.content()) for path, file in self.files.items()}
        if self.runner and self.runner.path:
            contents["runner"] = ("0755", FileSource(source=self.runner.path).content())
        if self.lock:
            contents["lock"] = ("0644", lock.read(self.lock).encode())
        for path, (mode, content) in sorted(contents.items()):
            total.update(f"{path}\0{mode}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        for container in self.containers:
            total.update(f"{container.name}\0{container.archive_digest()}\n".encode())
        return total.hexdigest()


def load(name: str, own: Path | None = None) -> Recipe:
    """The recipe `name`, from the folder `own` if it is there, else from those that vmrunner brings.

    Raises ImageError for an unknown name, a cycle, broken TOML, an unknown key or a wrong value, naming the file and the key.
    """
    data = _resolve(name, _folders(own), ())
    origin = data.pop("_origin")
    try:
        return Recipe.model_validate(data | {"name": name})
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = {"extra_forbidden": "is not a key that recipes have", "missing": "is missing"}.get(
            first["type"], first["msg"].removeprefix("Value error, ")
        )
        raise ImageError(f"{origin}: {key or 'the recipe'}: {what}.", "Compare with the recipe debian-12 that vmrunner brings.") from None


def locked_by(name: str, own: Path | None) -> Path:
    """The lock that the recipe `name` has; raises ImageError where it has none, or is one that vmrunner brings."""
    if _file(name, _folders(own)).parent == folder("images"):
        raise ImageError(
            f"The recipe {name} comes with vmrunner, and is not yours to lock.",
            f'A recipe of your own with `extends = "{name}"` and `lock = "my-{name}.lock"` is found with --recipes FOLDER.',
        )
    found = load(name, own).lock
    if found is None:
        raise ImageError(f"The recipe {name} names no lock.", f'Add `lock = "{name}.lock"` to it.')
    return found


def _folders(own: Path | None) -> list[Path]:
    return [own, folder("images")] if own else [folder("images")]


def _file(name: str, folders: list[Path]) -> Path:
    file = next((path for each in folders if (path := each / f"{name}.toml").is_file()), None)
    if file is None or Path(name).name != name:
        known = sorted({path.stem for each in folders if each.is_dir() for path in each.glob("*.toml")})
        raise ImageError(
            f"There is no recipe {name!r}. There are: {', '.join(known)}.", "A recipe of your own is found with --recipes FOLDER."
        )
    return file


def _resolve(name: str, folders: list[Path], seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ImageError(f"The recipe {seen[0]} inherits from itself: {' -> '.join((*seen, name))}.", "Remove one `extends`.")
    file = _file(name, folders)
    try:
        data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ImageError(f"The recipe {file} can't be read: {error}.", "It must be valid TOML.") from None
    _absolute(data, file.parent)
    base = _resolve(str(data.pop("extends")), folders, (*seen, name)) if "extends" in data else {"packages": [], "files": {}}
    base.pop("lock", None)  # it lists all packages of one image; who inherits has others
    inherited = {"packages": [*base["packages"], *data.get("packages", [])], "files": base["files"] | data.get("files", {})}
    if isinstance(own := data.get("containers", []), list):
        inherited["containers"] = [*base.get("containers", []), *own]
    return base | data | inherited | {"_origin": file}


def _absolute(data: dict[str, Any], beside: Path) -> None:
    """Paths in a recipe are relative to it."""
    files = data.get("files")
    sources = [(file, "source") for file in files.values() if isinstance(file, dict)] if isinstance(files, dict) else []
    if isinstance(runner := data.get("runner"), dict):
        sources.append((runner, "path"))
    if isinstance(containers := data.get("containers"), list):
        sources += [(container, "archive") for container in containers if isinstance(container, dict)]
    sources.append((data, "lock"))
    for table, key in sources:
        if isinstance(table.get(key), str):
            table[key] = str(beside / table[key])
