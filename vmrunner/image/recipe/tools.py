"""Recipes of disks of tools: which versions of which tools are on one, declared in TOML."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from vmrunner.errors import ImageError
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import (
    PATTERNS,
    Recipe,
    RecipeTable,
    Sha256,
    Url,
    check_source,
    digest_of,
)

_NAME, _TOOL = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", r"^[A-Za-z0-9][A-Za-z0-9_-]{0,40}$"
_VERSION = r"^(0|[1-9]\d{0,9})(\.(0|[1-9]\d{0,9})){2}(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?$"
_ARCH = r"^[a-z0-9]{1,20}$"
_PATTERNS = PATTERNS | {
    _TOOL: 'a tool is called as actions look for it, like "node", "go" or "Python"',
    _VERSION: 'a version here has three numbers, like "1.22.0": actions find no other',
    _ARCH: 'a processor is called as actions do it, like "x64"',
}


class ToolSource(RecipeTable):
    """One version of a tool: an archive (tar, packed or not) of this host, or a URL with the sha256
    that the download must have.
    """

    name: Annotated[str, Field(pattern=_TOOL)]
    """As actions call it: `node`, `go`, `Python`, …"""
    version: Annotated[str, Field(pattern=_VERSION)]
    """Its version, with three numbers."""
    arch: Annotated[str, Field(pattern=_ARCH)] = "x64"
    """The processor, as actions call it."""
    path: Path | None = None
    """The archive, by its path from the recipe's folder; or:"""
    url: Url | None = None
    """Where it is fetched from, once."""
    sha256: Sha256 | None = None
    """What the archive must be. Needed with `url`, possible with `path`."""
    strip: Annotated[int, Field(ge=0, le=20)] = 0
    """How many folders at the beginning of each path in the archive are left out."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        check_source(self.path, self.url, self.sha256)
        return self

    @property
    def place(self) -> str:
        """Its folder on the disk."""
        return f"{self.name}/{self.version}/{self.arch}"

    def digest(self) -> str:
        """The sha256 of its archive; raises ImageError where that can't be read."""
        return digest_of(self.path) if self.path else str(self.sha256)


class ToolsRecipe(RecipeTable):
    """One disk of tools, with everything that it inherits resolved."""

    name: Annotated[str, Field(pattern=_NAME)]
    tools: Annotated[tuple[ToolSource, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        places = [each.place for each in self.tools]
        if twice := next((each for each in places if places.count(each) > 1), ""):
            raise ValueError(f"{twice} is in it twice")
        return self

    def digest(self) -> str:
        """The sha256 over the recipe and the archives of this host that it names."""
        plain = [(each.place, each.digest(), each.strip) for each in self.tools]
        return hashlib.sha256(json.dumps([self.name, plain]).encode()).hexdigest()


def load(name: str, own: Path | None = None) -> Recipe | ToolsRecipe:
    """The recipe `name`, of an image or of a disk of tools: which, its key `tools` says. See
    `recipe.load`.
    """
    keys = recipe.keys(name, own)
    if "tools" in keys:
        if of_image := sorted(keys & Recipe.model_fields.keys()):
            raise ImageError(
                f"The recipe {name} has [[tools]], and an image's keys: {', '.join(of_image)}.",
                "Tools are on a disk of their own, with a recipe of its own: docs/howto/tools.md.",
            )
        return recipe.load_as(ToolsRecipe, name, own, _PATTERNS)
    return recipe.load(name, own)
