"""Promoted versions whose first machines fail: found in history, and rolled back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from vmrunner.config import Config
from vmrunner.errors import DiskFull, NameClash, NotPermitted, ToolsError, VmrunnerError
from vmrunner.image.versions import promotion
from vmrunner.image.versions.promotion import Why
from vmrunner.log import Log
from vmrunner.manager.figures import Counted
from vmrunner.manager.history import History
from vmrunner.manager.trial import Trial


class Rollback:
    """Watches over the images that pools use."""

    def __init__(self, settings: Config, history: History, log: Log) -> None:
        self._settings, self._history, self._log = settings, history, log
        # Promotions whose version has worked: name/version, since when.
        self._trusted: set[tuple[str, float]] = set()

    def current(self, name: str) -> str:
        """The version of an image that machines are made of, as name/version, be it whole or
        not.
        """
        return f"{name}/{promotion.current(self._settings.images_dir, name)}"

    def blamed(self, name: str, error: VmrunnerError) -> str:
        """The version that a failed start may be the fault of; empty where only the host can be to
        blame, or the disk of tools.
        """
        others = DiskFull | NameClash | NotPermitted | ToolsError
        return "" if isinstance(error, others) else self.current(name)

    def trial(self, name: str) -> Trial | None:
        """How the machines of an image's current version have done since its promotion; None for
        one that was gone back to.
        """
        told = promotion.history(self._settings.images_dir, name)
        if not told or told[-1].is_back:
            return None
        image, since = f"{name}/{told[-1].to}", datetime.fromisoformat(told[-1].at).timestamp()
        if (image, since) in self._trusted:
            return Trial(image, worked=True)
        trial = self._history.trial(image, since)
        if trial.worked:
            self._trusted.add((image, since))
        return trial

    def note(self, name: str) -> str:
        """What `status` says of an image: that it was rolled back, or should have been, or that a
        newer one is bad; else nothing.
        """
        told = promotion.history(self._settings.images_dir, name)
        if told and told[-1].why is Why.STEPPED_BACK:
            return f"rolled back automatically at {told[-1].at}: {told[-1].cause}"
        trial = self.trial(name)
        if trial and self._is_lost(trial):
            return f"{trial.cause}; there is no version to go back to"
        bad = promotion.newest_bad(self._settings.images_dir, name)
        return (
            f"the newer version {bad} was found bad and is not used; `vmrunner image verify "
            f"{name}/{bad}` says why"
            if bad
            else ""
        )

    def roll_back(self) -> Iterator[VmrunnerError]:
        """Where the first machines of a promoted version have failed, the one before is current
        again. Yields what went wrong with that.
        """
        images = self._settings.images_dir
        for name in dict.fromkeys(section.image for section in self._settings.pools.values()):
            trial = self.trial(name)
            if trial is None or not self._is_lost(trial):
                continue
            try:
                golden = promotion.step_back(
                    images, name, trial.image.removeprefix(f"{name}/"), trial.cause, self._log.info
                )
            except VmrunnerError as error:
                yield error
                continue
            if golden:
                self._history.count(Counted.IMAGE_ROLLBACKS, label=name)
                self._log.warning(
                    "image rolled back automatically",
                    image=name,
                    to=golden.version,
                    reason=trial.cause,
                )

    def done(self) -> dict[str, tuple[str, str]]:
        """Images that go back to an older version since one was rolled back automatically: when
        that was (ISO 8601), and why.
        """
        images = self._settings.images_dir
        names = dict.fromkeys(section.image for section in self._settings.pools.values())
        last = {name: told[-1] for name in names if (told := promotion.history(images, name))}
        return {
            name: (each.at, each.cause)
            for name, each in last.items()
            if each.why is Why.STEPPED_BACK
        }

    def _is_lost(self, trial: Trial) -> bool:
        return trial.is_lost(self._settings.images.rollback_after)
