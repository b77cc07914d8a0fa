"""What the Docker build begins from: a small Debian, into the cache. With the host's network:
`rig/rig run --outside -- python -m tests.cached.base`.
"""

from __future__ import annotations

import gzip

from tests import containers
from tests.prepare import CACHE

LAYER = CACHE / "cached" / "base.tar.gz"


def main() -> None:
    """Make it where it is missing."""
    if LAYER.exists():
        return
    LAYER.parent.mkdir(parents=True, exist_ok=True)
    part = LAYER.with_suffix(".part")
    part.write_bytes(gzip.compress(containers.debian(("bash", "ca-certificates")), 6))
    part.rename(LAYER)


if __name__ == "__main__":
    main()
