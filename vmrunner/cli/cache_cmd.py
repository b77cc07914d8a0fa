"""`vmrunner cache`: its commands, in the order in which help lists them."""

from __future__ import annotations

from vmrunner.cli import cache_kept, cache_setup
from vmrunner.cli.app import cache_app

for _name, _command in (
    ("stats", cache_kept.stats),
    ("prune", cache_kept.prune),
    ("clear", cache_kept.clear),
    ("setup", cache_setup.setup),
):
    cache_app.command(_name)(_command)
