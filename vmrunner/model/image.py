"""Golden images: what a version is made of, as its manifest has it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vmrunner.errors import ImageError, ToolsError

DISK = "disk.qcow2"
TOOL_CACHE = "/opt/hostedtoolcache"
"""Where jobs find the tools of a disk of tools, in machines as in containers of theirs."""
CONTAINERS = "usr/lib/vmrunner/containers"
"""Where in a machine the archives of the container images are that its image brings."""
_DOCKER = {"docker.io", "docker-ce", "moby-engine", "podman-docker"}


class Package(BaseModel):
    """One installed package."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    architecture: str = ""  # empty, like the digest, in images of a vmrunner that did not note it
    sha256: str = ""  # of its .deb

    @model_validator(mode="before")
    @classmethod
    def _version_alone(cls, data: Any) -> Any:
        """Older manifests have the version in the package's place.

        Machines start from such images, so they stay readable.
        """
        return {"version": data} if isinstance(data, str) else data


class Runner(BaseModel):
    """The runner program that an image carries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str  # forgejo-runner or gitea-runner
    path: str  # in the guest
    sha256: str
    version: str = ""  # as its --version tells it, where the recipe says which


class Input(BaseModel):
    """A file that the recipe added."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: str
    sha256: str


class Forced(BaseModel):
    """A promotion of a version that was not verified, or was found bad."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    at: str  # ISO 8601, UTC
    by: str  # a user's name
    found: str = ""  # what was bad; empty: nobody had looked


Place = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")]


class Manifest(BaseModel):
    """What an image is made of, written beside its disk. Only `forced` is added to after that, and
    no digest of it counts that.

    What has a default is unknown to manifests of an older vmrunner: an upgrade must not take the
    images away that machines start from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    recipe_digest: str  # sha256 over the resolved recipe and every file it names
    files: dict[str, str]  # file name -> sha256
    packages: dict[str, Package]  # by name
    distribution: str = "debian"  # whose archive its packages are of, as the ID in its os-release
    suite: str = ""  # of that distribution
    # Path in the guest -> the recipe's file; None: not noted.
    inputs: dict[str, Input] | None = None
    # sha256 of the lock that it was built with, which lies beside it; empty: it was built without.
    lock: str = ""
    kernel: str = ""  # version
    kernel_arguments: str = ""  # empty: the disk has a boot loader of its own
    runner: Runner | None = None
    runners: dict[str, Runner] = {}  # further ones, by their names in the recipe
    # Path of an archive in the guest, as in `inputs` -> what jobs call it; None: not noted.
    containers: dict[str, str] | None = None
    # Name -> a shell command that exits with 0 in a machine of the image.
    checks: dict[str, str] = {}
    listens: tuple[int, ...] = ()  # ports that may be open in a machine of the image
    # Of a disk of tools, which has no system: `name/version/arch` -> sha256 of the archive that the
    # tool came as. Empty: it is an image.
    tools: dict[Place, str] = {}
    built_at: str  # ISO 8601, UTC
    vmrunner_version: str
    forced: tuple[Forced, ...] = ()  # the last one last

    @property
    def lacks_docker(self) -> bool:
        """Whether neither a package nor a check, which could be about one that a script installed,
        speaks of Docker.
        """
        checked = any("docker" in command for command in self.checks.values())
        return bool(self.packages) and not checked and self.packages.keys().isdisjoint(_DOCKER)


@dataclass(frozen=True)
class Golden:
    """One published image, or one disk of tools."""

    name: str
    version: str
    directory: Path
    manifest: Manifest
    # The disk of tools that machines of it have beside their own.
    tools: Golden | None = None

    @property
    def parts(self) -> tuple[Golden, ...]:
        """All that has to be on the host for a machine of it."""
        return (self, self.tools) if self.tools else (self,)

    @property
    def tools_id(self) -> str:
        """`name/version` of the disk of tools; empty where there is none."""
        return self.tools.id if self.tools else ""

    @property
    def id(self) -> str:
        """`name/version`, as people and machines' metadata name it."""
        return f"{self.name}/{self.version}"

    def damaged(self, file: str) -> ImageError:
        """What to raise where a file of it has another sha256 than its manifest says."""
        return self._broken(
            f"The image {self.name} {self.version} is damaged: {file} has another sha256 than its "
            "manifest says.",
            f"Build it again: `vmrunner image build {self.name} --force`.",
        )

    def unreadable(self, file: str, error: OSError) -> ImageError:
        """What to raise where a file of it can't be read: `image prune` may have taken it since it
        was found.
        """
        return self._broken(
            f"The image {self.name} {self.version} can't be read: {file}: {error.strerror}.",
            "Try again.",
        )

    def _broken(self, sentence: str, hint: str) -> ImageError:
        return (ToolsError if self.manifest.tools else ImageError)(sentence, hint)
