"""Files of a tree, by their paths in the image: whatever symlinks are in there, none of this host
is read or written.
"""

from __future__ import annotations

from pathlib import Path

from vmrunner.errors import ImageError


def within(tree: Path, path: str) -> Path:
    """Where a path of the image is on this host.

    Raises ImageError where it leads out of the tree, as an absolute symlink in it does.
    """
    target = tree / path.lstrip("/")
    if not target.resolve().is_relative_to(tree.resolve()):
        raise ImageError(
            f"The path {path} leads out of the image.",
            "It, or a folder on the way, is a symlink to an absolute path.",
        )
    return target


def place(tree: Path, path: str, content: bytes, mode: int) -> None:
    """Write a file into the tree, in the place of what is there.

    Raises ImageError where its folder leads out of it.
    """
    folder, _, name = path.rpartition("/")
    target = within(tree, folder) / name
    for missing in reversed([each for each in target.parents if not each.exists()]):
        missing.mkdir()
        missing.chmod(0o755)  # whatever umask a build is started with
    target.unlink(missing_ok=True)
    target.write_bytes(content)
    target.chmod(mode)
