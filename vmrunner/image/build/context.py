"""One build, as its steps get it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmrunner.hypervisor.seam import Output
from vmrunner.image.build.downloads import Downloads
from vmrunner.image.build.programs import Programs
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.model.image import Golden

BootStock = Callable[[Golden, Sequence[str], Callable[[Output, bytes], None]], int]
"""Boots a machine of a stock image, runs a command in it as the first thing that cloud-init does,
and returns its exit code; its output comes from two threads. Raises ImageError where the machine
doesn't come up.
"""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where something is built, and with what."""

    recipe_digest: str
    version: str
    images: Path  # the store
    work: Path  # a hidden folder beside the images, which goes with the build
    programs: Programs

    @property
    def tree(self) -> Path:
        """The image's files, in a folder of this host."""
        return self.work / "tree"

    @property
    def out(self) -> Path:
        """The folder that is published."""
        return self.work / "out"

    @property
    def downloads(self) -> Downloads:
        """Files from the net that the recipe names."""
        return Downloads(self.images, self.programs.log)

    def step(self, text: str) -> None:
        """A step begins: into the log, and to whoever watches the build."""
        self.programs.log.step(text)


@dataclass(frozen=True, kw_only=True)
class Build(Site):
    """An image that is built."""

    recipe: Recipe
    lock: str  # the text of the recipe's lock; empty: it has none
    fresh: bool = False  # whether packages that an earlier build kept are left alone
    boot_stock: BootStock | None = None  # None: no machine can be booted here

    def run_in_tree(self, what: str, *command: str, logged: bool = True) -> str:
        """Run a program of the tree, see Programs.run_in_tree."""
        return self.programs.run_in_tree(what, self.tree, *command, logged=logged)
