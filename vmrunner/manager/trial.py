"""Whether the version that was promoted last has to go again: decided from what its machines did.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Trial:
    """A version since it was made current."""

    image: str  # name/version
    failed: int = 0  # machines of it that failed in a way that blames it
    last: str = ""  # why the last one did
    worked: bool = False  # whether a job ever ran on one
    together: int = 0  # of those that failed: who went with another one, for the same cause

    def is_lost(self, after: int) -> bool:
        """Whether its machines failed `after` times one after the other, and none has worked; 0: it
        may fail for ever.
        """
        return 0 < after <= self.failed - self.together and not self.worked

    @property
    def cause(self) -> str:
        """In words."""
        return (
            f"{self.failed} machine{'' if self.failed == 1 else 's'} of {self.image} failed and "
            f"none worked; last: {self.last}"
        )
