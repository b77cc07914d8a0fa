"""`vmrunner cache`: its commands are in modules of their own."""

from __future__ import annotations

from vmrunner.cli import cache_kept as cache_kept
from vmrunner.cli import cache_setup as cache_setup
