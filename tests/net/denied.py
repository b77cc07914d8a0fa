"""Run without CAP_NET_ADMIN by a test: prints the hint of the error that the firewall raises."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.net.test_firewall import build
from vmrunner.errors import HypervisorError


def main() -> None:
    """Once."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            build(Path(folder)).ensure()
        except HypervisorError as error:
            print(error.hint)


if __name__ == "__main__":
    main()
