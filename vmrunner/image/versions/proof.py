"""Whether a version was booted and found good: `verified.json` in its folder, beside the files that
never change.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from vmrunner.errors import ImageError
from vmrunner.image.versions import store
from vmrunner.model.image import Golden

RECORD = "verified.json"


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    passed: bool
    measured: str = ""
    noted: bool = False  # good, and yet something that whoever uses the image has to know


class Proof(BaseModel):
    """What a machine of the version showed, be it good or bad."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    manifest: str  # the identity of the manifest that it is about
    at: str  # ISO 8601, UTC
    vmrunner: str  # version
    qemu: str  # version
    libvirt: str  # version
    boot_seconds: float  # from the machine's start to its first command; 0: it did not come up
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of it although it is good."""
        return tuple(
            f"{check.name}: {check.measured}"
            for check in self.checks
            if check.passed and check.noted
        )

    @property
    def is_good(self) -> bool:
        """Whether there were checks, and all of them passed."""
        return bool(self.checks) and not self.failed

    @property
    def said(self) -> str:
        """What is wrong, on one line; empty where nothing is."""
        return "; ".join(f"{check.name}: {check.measured or 'no answer'}" for check in self.failed)


def read(golden: Golden) -> Proof | None:
    """The version's record; None where there is none, or where it is about another manifest."""
    found = _recorded(golden.directory)
    try:
        return found if found and found.manifest == store.identity(golden.directory) else None
    except (OSError, ValueError):
        return None


def write(golden: Golden, proof: Proof) -> None:
    """Put the record beside the manifest, all of it or nothing of it. Raises ImageError."""
    try:
        store.replace(golden.directory / RECORD, proof.model_dump_json(indent=1) + "\n")
    except OSError as error:
        raise ImageError(
            f"That {golden.name} {golden.version} was verified can't be written down: "
            f"{error.strerror}.",
            "Run it with sudo.",
        ) from None


def demand(golden: Golden) -> None:
    """Raises ImageError unless the version was verified and found good."""
    proof, what = read(golden), golden.id
    again = f"`vmrunner image verify {what}` boots a machine of it; `--force` promotes it as it is."
    if proof is None:
        raise ImageError(f"The image {golden.name} {golden.version} was not verified.", again)
    if not proof.is_good:
        raise ImageError(
            f"The image {golden.name} {golden.version} was verified and is not good: {proof.said}.",
            again,
        )


def is_bad(directory: Path) -> bool:
    """Whether the version in this folder was verified and found bad."""
    found = _recorded(directory)
    return found is not None and not found.is_good


def _recorded(directory: Path) -> Proof | None:
    try:
        return Proof.model_validate_json((directory / RECORD).read_bytes())
    except (OSError, ValidationError):
        return None
