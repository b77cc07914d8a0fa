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
from vmrunner.image.build.build_log import BuildLog
from vmrunner.image.build.downloads import Downloads
from vmrunner.image.build.paths import place, within
from vmrunner.image.build.programs import Programs
from vmrunner.image.build.stock import TAR, Run
from vmrunner.image.recipe import packages
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.image.versions import workshop
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


def bootstrap(
    recipe: Recipe,
    images: Path,
    work: Path,
    downloads: Downloads,
    programs: Programs,
    *,
    fresh: bool,
    run: Run | None = None,
) -> tuple[Path, dict[str, Package]]:
    """The tree, in the folder `work`, and its packages.

    One that was made in the last day is taken again, or of any age with a `snapshot` in the recipe,
    unless it has to be `fresh`.
    """
    tree, listed = work / "tree", apt_source.lines(apt.build_sources(recipe))
    key = _key(recipe, listed)
    tar, note = (images / workshop.CACHE / f"{key}.{suffix}" for suffix in ("tar", "json"))
    known = None if fresh else Layer.read(note)
    if known and known.is_fresh and (held := _hold(tar, known.sha256, work)):
        programs.log.step(
            f"taking {recipe.suite} with {len(known.packages)} packages, bootstrapped before"
        )
        tree.mkdir(mode=0o755)
        programs.run(
            "Unpacking the bootstrapped packages",
            "tar",
            "--extract",
            *TAR,
            "--directory",
            tree,
            "--file",
            held,
        )
        with suppress(OSError):
            os.utime(note)
        return tree, known.packages
    if recipe.stock:
        stock.unpack(recipe, tree, work, downloads, programs, run)
    else:
        _mmdebstrap(recipe, listed, tree, work, programs)
    found = _packages(tree, programs, is_bootstrapped=recipe.stock is None)
    _keep(tree, tar, note, found, programs, lasts=bool(recipe.snapshot))
    return tree, found


def _mmdebstrap(recipe: Recipe, listed: str, tree: Path, work: Path, programs: Programs) -> None:
    programs.log.step(f"bootstrapping {recipe.suite} with {len(recipe.all_packages)} packages")
    (work / "sources.list").write_text(listed, encoding="utf-8")
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
    programs.run(
        "The bootstrap",
        "mmdebstrap",
        *options,
        recipe.suite,
        tree,
        work / "sources.list",
        in_namespaces=True,
        on_line=_Progress(programs.log),
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

    def __init__(self, log: BuildLog) -> None:
        self._log, self._last = log, ""

    def __call__(self, line: str) -> None:
        if (found := re.match(r"I: (\w[\w -]+?)\.\.\.$", line)) and found[1] != self._last:
            self._last = found[1]
            self._log.step(found[1])


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


def _packages(tree: Path, programs: Programs, *, is_bootstrapped: bool) -> dict[str, Package]:
    """The installed packages with their digests; those of a stock image may not be in the archive
    any more.

    apt's lists, which know them, are gone from the tree afterwards.
    """
    lists = within(tree, "/var/lib/apt/lists")
    listed = programs.run_in_tree(
        "Listing packages", tree, "dpkg-query", "-W", "-f", packages.FORMAT, logged=False
    )
    found = packages.installed(listed, lists, all_known=is_bootstrapped)
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


def _keep(
    tree: Path, tar: Path, note: Path, found: dict[str, Package], programs: Programs, *, lasts: bool
) -> None:
    """Keep the tree for the next build. Without room for it that one bootstraps again."""
    tar.parent.mkdir(exist_ok=True)
    try:
        with files.replacing(tar) as part:
            programs.run(
                "Keeping the bootstrapped packages",
                "tar",
                "--create",
                "--sparse",
                *TAR,
                "--directory",
                tree,
                "--file",
                part,
                ".",
            )
            layer = Layer(files.digest(part), time.time(), found, lasts)
            note.unlink(missing_ok=True)
        files.write_whole(note, layer.text())
    except (OSError, ImageError):
        programs.log.step("there is no room to keep the bootstrapped packages for the next build")
    with suppress(OSError):
        for path in stale(tar.parent.parent):
            path.unlink(missing_ok=True)
