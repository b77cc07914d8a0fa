"""The packages of an image in a folder: bootstrapped, or as they were bootstrapped a while ago for
the same ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmrunner import files
from vmrunner.errors import ImageError
from vmrunner.image.build import apt, apt_source, stock
from vmrunner.image.build.apt_source import Source
from vmrunner.image.build.context import Build
from vmrunner.image.build.paths import place, within
from vmrunner.image.build.stock import TAR
from vmrunner.image.recipe import packages
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.image.versions import workshop
from vmrunner.log import Say
from vmrunner.model.image import Package

_FRESH = 86400.0  # seconds that what a mirror had is taken for what it has
_KEPT = 7 * 86400.0  # seconds after its last use
_MOST = 4  # of them are kept
_EXCLUDED = ("man/*/*", "doc/*", "locale/*")  # of /usr/share; a job's own packages bring theirs
_INCLUDED = ("locale/locale.alias",)  # without which no locale can be made
_LEFT = (
    "/etc/apt/apt.conf.d/99mmdebstrap",
    "/etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "/etc/apt/sources.list.d/0000sources.list",
    "/etc/resolv.conf",
)
"""What mmdebstrap leaves: this host's apt settings and resolver, and how dpkg was made quick and
its packages small.
"""


@dataclass(frozen=True)
class Layer:
    """A bootstrapped tree as a tar, and what it consists of, as a small file beside it."""

    sha256: str  # of the tar
    made_at: float  # unix seconds
    packages: dict[str, Package]
    lasts: bool  # it is of a snapshot, which does not change

    @property
    def is_fresh(self) -> bool:
        """Whether a build may take it for what it would bootstrap."""
        return self.lasts or 0 <= time.time() - self.made_at < _FRESH

    @classmethod
    def read(cls, path: Path) -> Layer | None:
        """None where there is none, or none that can be read."""
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            found = {name: Package.model_validate(each) for name, each in plain["packages"].items()}
            return cls(str(plain["sha256"]), float(plain["made_at"]), found, plain["lasts"] is True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def text(self) -> str:
        """As it is written down."""
        packages = {name: each.model_dump() for name, each in self.packages.items()}
        return json.dumps(
            {
                "sha256": self.sha256,
                "made_at": self.made_at,
                "packages": packages,
                "lasts": self.lasts,
            }
        )


@dataclass(frozen=True)
class _Cached:
    """Where the layer for one set of packages is kept, or will be."""

    tar: Path
    note: Path

    @classmethod
    def of(cls, images: Path, key: str) -> _Cached:
        """In this store, by the key of what the tree depends on."""
        folder = images / workshop.CACHE
        return cls(folder / f"{key}.tar", folder / f"{key}.json")


def bootstrap(build: Build) -> dict[str, Package]:
    """Fill the build's tree with the recipe's packages, and return them.

    A tree that was made in the last day is taken again, or of any age with a `snapshot` in the
    recipe, unless it has to be `fresh`.
    """
    sources = apt.build_sources(build.recipe)
    cached = _Cached.of(build.images, _key(build.recipe, apt_source.lines(sources)))
    if not build.fresh and (layer := _unpack(build, cached)):
        return layer.packages
    if build.recipe.stock:
        stock.unpack(build, build.recipe.stock)
    else:
        _mmdebstrap(build, sources)
    found = _packages(build)
    _keep(build, cached, found)
    return found


def _unpack(build: Build, cached: _Cached) -> Layer | None:
    """Take the layer of an earlier build, if there is a whole one that is fresh."""
    layer = Layer.read(cached.note)
    if not (layer and layer.is_fresh and (held := _hold(cached.tar, layer.sha256, build.work))):
        return None
    build.step(
        f"taking {build.recipe.suite} with {len(layer.packages)} packages, bootstrapped before"
    )
    build.tree.mkdir(mode=0o755)
    build.programs.run(
        "Unpacking the bootstrapped packages",
        *("tar", "--extract", *TAR, "--directory", build.tree, "--file", held),
    )
    with suppress(OSError):
        os.utime(cached.note)
    return layer


def _mmdebstrap(build: Build, sources: list[Source]) -> None:
    recipe, tree, listed = build.recipe, build.tree, build.work / "sources.list"
    build.step(f"bootstrapping {recipe.suite} with {len(recipe.all_packages)} packages")
    listed.write_text(apt_source.lines(sources), encoding="utf-8")
    settings = [f"--aptopt={path}" for path in apt.host_settings()]
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{each}" for each in _EXCLUDED]
    excluded += [f"--dpkgopt=path-include=/usr/share/{each}" for each in _INCLUDED]
    options = [
        "--mode=root",
        "--variant=minbase",
        "--format=directory",
        "--dpkgopt=force-unsafe-io",
        *excluded,
        *settings,
    ]
    options.append(f'--setup-hook=cd "$1" && {apt.MAKE_MAN_FOLDERS}')
    if recipe.keyring:
        options.append(f"--keyring={recipe.keyring}")
    # apt's lists stay until the packages' digests have been read in them.
    options += [f"--include={','.join(recipe.all_packages)}", "--skip=cleanup/apt/lists"]
    build.programs.run(
        "The bootstrap",
        "mmdebstrap",
        *options,
        recipe.suite,
        tree,
        listed,
        in_namespaces=True,
        on_line=_Progress(build.step),
    )
    for path in _LEFT:
        folder, _, name = path.rpartition("/")
        left = within(tree, folder) / name
        if not left.is_symlink():  # a package's own, as resolved's
            left.unlink(missing_ok=True)
    place(tree, "/etc/hostname", b"localhost\n", 0o644)  # it is that of this host


def stale(images: Path) -> list[Path]:
    """The layers that no build would take or nobody took for a week, all but the few last ones, and
    what killed builds began.
    """
    folder = images / workshop.CACHE
    whole = [path for suffix in ("json", "tar") for path in folder.glob(f"[!.]*.{suffix}")]
    notes = workshop.used(path for path in whole if path.suffix == ".json")
    used = {
        path.stem: at
        for path, at in notes.items()
        if (layer := Layer.read(path)) and layer.is_fresh
    }
    last = sorted(used, key=lambda name: used[name], reverse=True)[:_MOST]
    kept = {name for name in last if time.time() - used[name] < _KEPT}
    return sorted([*files.abandoned(folder), *(path for path in whole if path.stem not in kept)])


class _Progress:
    """Says what mmdebstrap is at."""

    def __init__(self, say: Say) -> None:
        self._say, self._last = say, ""

    def __call__(self, line: str) -> None:
        if (found := re.match(r"I: (\w[\w -]+?)\.\.\.$", line)) and found[1] != self._last:
            self._last = found[1]
            self._say(found[1])


def _key(recipe: Recipe, listed: str) -> str:
    """What a tree depends on, as a word."""
    keyring = hashlib.sha256(recipe.keys()).hexdigest() if recipe.keyring else ""
    all_of_it: list[object] = [
        "2",
        os.uname().machine,
        listed,
        recipe.suite,
        keyring,
        _EXCLUDED,
        sorted(set(recipe.all_packages)),
    ]
    # Also what it should be: a layer is not taken for an image that would be refused.
    if recipe.stock:
        all_of_it += [recipe.stock.digest(), recipe.stock.sha256, recipe.stock.sha512]
    return hashlib.sha256(json.dumps(all_of_it).encode()).hexdigest()[:24]


def _packages(build: Build) -> dict[str, Package]:
    """The installed packages with their digests; those of a stock image may not be in the archive
    any more.

    apt's lists, which know them, are gone from the tree afterwards.
    """
    lists = within(build.tree, "/var/lib/apt/lists")
    listed = build.run_in_tree(
        "Listing packages", "dpkg-query", "-W", "-f", packages.FORMAT, logged=False
    )
    found = packages.installed(listed, lists, all_known=build.recipe.stock is None)
    for path in lists.iterdir():
        if path.is_file():
            path.unlink()
    return found


def _hold(tar: Path, sha256: str, work: Path) -> Path | None:
    """The tar if it is this one, by a name of our own: another build may put its own in that place,
    or remove it.
    """
    held = work / "packages.tar"
    try:
        os.link(tar, held)
    except OSError:  # on another file system, say
        held = tar
    try:
        return held if files.digest(held) == sha256 else None
    except OSError:
        return None


def _keep(build: Build, cached: _Cached, found: dict[str, Package]) -> None:
    """Keep the tree for the next build. Without room for it that one bootstraps again."""
    cached.tar.parent.mkdir(exist_ok=True)
    try:
        with files.replacing(cached.tar) as part:
            build.programs.run(
                "Keeping the bootstrapped packages",
                *("tar", "--create", "--sparse", *TAR),
                *("--directory", build.tree, "--file", part, "."),
            )
            lasts = bool(build.recipe.snapshot)
            layer = Layer(files.digest(part), time.time(), found, lasts)
            cached.note.unlink(missing_ok=True)
        files.write_whole(cached.note, layer.text())
    except (OSError, ImageError):
        build.step("there is no room to keep the bootstrapped packages for the next build")
    with suppress(OSError):
        for path in stale(build.images):
            path.unlink(missing_ok=True)
