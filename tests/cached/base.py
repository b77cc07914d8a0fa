"""What the Docker build begins from: a small Debian, into the cache, and beside the recipe of the
image that brings it. With the host's network:
`rig/rig run --outside -- python -m tests.cached.base`.
"""

from __future__ import annotations

from pathlib import Path

from tests import containers
from tests.prepare import CACHE

NAME = "a:latest"
LAYER = CACHE / "cached" / "base.tar.gz"
ARCHIVE = Path(__file__).with_name("base.tar")


def main() -> None:
    """Make it where it is missing."""
    if not LAYER.exists():
        LAYER.parent.mkdir(parents=True, exist_ok=True)
        part = LAYER.with_suffix(".part")
        part.write_bytes(containers.packed(containers.debian(("bash", "ca-certificates"))))
        part.rename(LAYER)
    # Packed, as a registry has it: else Docker packs it for the cache, in each job.
    ARCHIVE.write_bytes(containers.oci_archive(LAYER.read_bytes(), NAME))


if __name__ == "__main__":
    main()
