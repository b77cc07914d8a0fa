"""What the history is summed up by: loaded with the command line, so apart from the history."""

from __future__ import annotations

from enum import StrEnum


class By(StrEnum):
    """What machines are summed up by."""

    REPOSITORY = "repository"
    ORGANISATION = "organisation"
    POOL = "pool"
    LABEL = "label"
