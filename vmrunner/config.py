"""The configuration: one TOML file, read here and nowhere else."""

from __future__ import annotations

import os
import re
import socket
import stat
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from vmrunner.errors import ConfigError, VmrunnerError
from vmrunner.forge import Scope
from vmrunner.model import Shape
from vmrunner.resources import folder

DEFAULT_PATH = Path("/etc/vmrunner/vmrunner.toml")

_SIZES = {"MiB": 1, "GiB": 1024, "TiB": 1024 * 1024}
_DURATIONS = {"s": 1, "m": 60, "h": 3600}


def parse_size(value: object) -> int:
    """`"2GiB"` -> 2048, in MiB. Only binary units, so that nobody has to guess."""
    found = re.fullmatch(r"(\d+)\s*(MiB|GiB|TiB)", value) if isinstance(value, str) else None
    if not found:
        raise ValueError('a size is written like "2GiB" or "512MiB"')
    return int(found[1]) * _SIZES[found[2]]


def parse_duration(value: object) -> timedelta:
    """`"90s"`, `"15m"` or `"3h"`."""
    found = re.fullmatch(r"(\d+)\s*([smh])", value) if isinstance(value, str) else None
    if not found or not int(found[1]):
        raise ValueError('a duration is written like "90s", "15m" or "3h"')
    return timedelta(seconds=int(found[1]) * _DURATIONS[found[2]])


def _scope(value: object) -> Scope:
    if not isinstance(value, str):
        raise ValueError('a scope is written like "instance" or "organisation:NAME"')
    try:
        return Scope.parse(value)
    except VmrunnerError as error:
        raise ValueError(f"{error.sentence} {error.hint}") from None


Mebibytes = Annotated[int, BeforeValidator(parse_size)]
Duration = Annotated[timedelta, BeforeValidator(parse_duration)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]
ManagerId = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?$")]


class Section(BaseModel):
    """A table of the file: unknown keys are errors, values don't change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class ForgeConfig(Section):
    """The forge that the jobs wait at."""

    kind: Literal["forgejo", "gitea"]
    url: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/[^\s]*)?$")]
    token_file: Path | None = None
    ca_file: Path | None = None

    @field_validator("url")
    @classmethod
    def _no_trailing_slash(cls, url: str) -> str:
        return url.rstrip("/")


class LibvirtConfig(Section):
    """The libvirt host, and what on it is ours."""

    uri: str = "qemu:///system"
    storage_path: Path = Path("/var/lib/libvirt/vmrunner")
    subnet: IPv4Network = IPv4Network("10.87.0.0/24")
    accelerator: Literal["auto", "kvm", "software"] = "auto"

    @field_validator("subnet")
    @classmethod
    def _room_for_guests(cls, subnet: IPv4Network) -> IPv4Network:
        if subnet.prefixlen > 29:
            raise ValueError("a subnet needs room for machines: /29 or wider")
        return subnet


class PoolConfig(Section):
    """One kind of machine."""

    labels: Annotated[tuple[Label, ...], Field(min_length=1)]
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    scope: Annotated[Scope, BeforeValidator(_scope)] = Field(default_factory=lambda: Scope.parse("instance"))
    max: Annotated[int, Field(ge=1, le=10_000)] = 1
    vcpus: Annotated[int, Field(ge=1, le=1024)] = 2
    memory: Mebibytes = 2048
    disk: Mebibytes = 20 * 1024
    boot_timeout: Duration = timedelta(minutes=5)
    pickup_timeout: Duration = timedelta(minutes=2)
    job_timeout: Duration = timedelta(hours=3)

    @property
    def shape(self) -> Shape:
        """The machine's size in libvirt's units."""
        return Shape(self.vcpus, self.memory, max(1, self.disk // 1024))


class Config(Section):
    """The whole file."""

    forge: ForgeConfig
    pools: Annotated[dict[ManagerId, PoolConfig], Field(min_length=1)]
    libvirt: LibvirtConfig = LibvirtConfig()
    manager: ManagerId = Field(default_factory=lambda: default_manager())
    state_dir: Path = Path("/var/lib/vmrunner")
    runtime_dir: Path = Path("/run/vmrunner")

    @property
    def images_dir(self) -> Path:
        """Where `vmrunner image build` publishes golden images."""
        return self.state_dir / "images"


def default_manager() -> str:
    """The host's short name, reduced to what libvirt, DNS and both forges accept in a name."""
    short = re.sub(r"[^a-z0-9-]", "-", socket.gethostname().partition(".")[0].lower()).strip("-")[:24].strip("-")
    return short or "host"


def example() -> str:
    """The commented example that `vmrunner config example` prints."""
    return (folder("templates") / "vmrunner.toml").read_text(encoding="utf-8")


def load(path: Path) -> Config:
    """Read and check the file; every fault is one ConfigError that names the key."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"There is no configuration at {path}.", "Start from `vmrunner config example`, or name a file with --config."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {path} can't be read: {error}.", "It must be a UTF-8 file that this user may read.") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.", "Compare with `vmrunner config example`.") from None
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = "is not a key that vmrunner knows" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
        what = "is missing" if first["type"] == "missing" else what
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{path}: {key}: {what}{more}.", "Every key is described in `vmrunner config example`.") from None


@dataclass(frozen=True)
class Secret:
    """A token that repr() and logs never show."""

    value: str

    def __repr__(self) -> str:
        return "Secret(…)"


def forge_token(config: ForgeConfig, warn: Callable[[str], None]) -> Secret:
    """The forge token, from `token_file` or from systemd's `$CREDENTIALS_DIRECTORY/forge-token`.

    `warn` is called with one sentence where others on this host can read the file.
    """
    hint = "Put the token into a file of mode 0600 and name it as forge.token_file, or use systemd's LoadCredential=forge-token:…"
    path = config.token_file
    if path is None:
        if not (credentials := os.environ.get("CREDENTIALS_DIRECTORY")):
            raise ConfigError("The configuration names no forge.token_file.", hint)
        path = Path(credentials) / "forge-token"
    try:
        value = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise ConfigError(f"The token file {path} does not exist.", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not plain text"
        raise ConfigError(f"The token file {path} can't be read: {reason}.", hint) from None
    if not value or any(c.isspace() or not c.isprintable() for c in value):
        raise ConfigError(f"The token file {path} does not hold one token.", hint)
    if mode & (stat.S_IROTH | stat.S_IRGRP):
        warn(f"The token file {path} can be read by others; run `chmod 600 {path}`.")
    return Secret(value)
