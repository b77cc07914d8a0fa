"""A build that has just begun, for tests of its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.context import Build
from vmrunner.image.build.programs import Programs
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.log import Say


def begin(
    work: Path, wanted: Recipe | None = None, say: Say = lambda _: None, **more: Any
) -> Build:
    """A build of the recipe, or of debian-12, in an existing folder: `tree`, `images` and `log` are
    in there.
    """
    return Build(
        recipe=wanted or recipe.load("debian-12"),
        recipe_digest="0" * 64,
        version="1",
        lock="",
        images=work / "images",
        work=work,
        programs=Programs(BuildLog(work / "log", say)),
        **more,
    )
