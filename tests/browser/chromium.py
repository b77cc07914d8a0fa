"""Debian's Chromium, driven by playwright; `rig/rig browser` brings both."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOOLS = Path("/opt/pictures")
AXE = TOOLS / "axe" / "node_modules" / "axe-core" / "axe.min.js"


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser."""
    sys.path.append(str(TOOLS))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox"],  # it is root here
        )
        try:
            yield browser
        finally:
            browser.close()
