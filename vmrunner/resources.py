"""Where things are: templates and image recipes (inside the installed package, or beside it in a
checkout), and the configuration.
"""

from __future__ import annotations

from pathlib import Path

CONFIG = Path("/etc/vmrunner/vmrunner.toml")
"""The configuration, where no other one is named."""

_PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """The folder `templates` or `images`; the wheel carries both under `_data`."""
    packaged = _PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else _PACKAGE.parent / name
