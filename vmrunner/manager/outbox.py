"""Notices on their way out: written down by a pass, sent by somebody else, so that no receiver
delays a pass and no end of a process loses one (ADR 29).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from vmrunner import __version__, files, lock
from vmrunner.config import Config, notify_secret
from vmrunner.errors import VmrunnerError
from vmrunner.log import Log
from vmrunner.model.notice import Known, Notice
from vmrunner.model.secret import Secret
from vmrunner.text import presentable
from vmrunner.waiting import retry_at

MOST = 100  # notices that wait at the same time; of more the oldest go
_KEPT = 86400.0  # seconds after which what could not be sent is no news any more
_TIMEOUT = 10.0  # seconds for each step of a request
_FIRST_REST, _LONGEST_REST = 1.0, 300.0  # seconds between two tries
_LOOK = 1.0  # seconds between two looks at what waits
_LONGEST_TEXT = 1000
_DIGITS = 12  # of the number that a notice's file begins with
# The receiver says that it will never want this one; anything else may be over later.
_NEVER = {400, 413, 415, 422}


class Outbox:
    """The folder of notices that wait, each in a file of its own, and what was told until now."""

    def __init__(self, folder: Path, manager: str, log: Log) -> None:
        self._folder, self._manager, self._log = folder, manager, log
        self._known = folder / "known"

    def known(self) -> Known | None:
        """What was told until now; None where that can't be read."""
        try:
            plain = json.loads(self._known.read_bytes())
            return Known(
                float(plain["away_since"]),
                bool(plain["away_told"]),
                frozenset(map(str, plain["backed_off"])),
                {str(name): str(at) for name, at in plain["rolled_back"].items()},
                bool(plain["storage_low"]),
                frozenset(map(str, plain.get("held", ()))),  # an older vmrunner's has none
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, notices: Iterable[Notice], known: Known, at: float) -> None:
        """Write down what is to be sent, and then that it was told. What can't be written is
        logged: a full disk must not stop a pass.
        """
        try:
            files.make_folder(self._folder)
            files.sweep(self._folder)
            last = max((_number(path) for path in self.waiting()), default=0)
            for number, notice in enumerate(notices, last + 1):
                self._write(notice, at, number)
            sets = {"backed_off": sorted(known.backed_off), "held": sorted(known.held)}
            plain = asdict(known) | sets
            files.write_whole(self._known, json.dumps(plain))
        except OSError as error:
            self._log.warning("notice not written", reason=error.strerror)
        waiting = self.waiting()
        for path in waiting[: max(0, len(waiting) - MOST)]:
            self._log.warning("notice dropped: too many wait", file=path.name)
            path.unlink(missing_ok=True)

    def _write(self, notice: Notice, at: float, number: int) -> None:
        name = secrets.token_hex(8)
        body = {
            "id": name,
            "event": notice.kind.value,
            "at": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
            "manager": self._manager,
            "subject": presentable(notice.subject),
            "text": presentable(notice.text, _LONGEST_TEXT),
        }
        path = self._folder / f"{number:0{_DIGITS}}-{name}.json"
        files.write_whole(path, json.dumps(body))

    def waiting(self) -> list[Path]:
        """What is to be sent, oldest first."""
        return sorted(self._folder.glob("*.json"))


@dataclass(frozen=True)
class Problem:
    """Why a notice did not arrive, and whether it never will."""

    said: str
    is_final: bool = False


class Sender:
    """Sends what waits in an outbox, one after the other, in a thread of its own while it is
    entered.
    """

    def __init__(self, settings: Config, url: str, secret: Secret, log: Log) -> None:
        self._outbox = Outbox(settings.notices_dir, settings.manager, log)
        self._lock = settings.runtime_dir / f"{settings.manager}.notices.lock"
        self._url, self._secret, self._log = url, secret, log
        self._receiver = urlsplit(url).netloc  # the path may be a secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is on its way is not waited for: it is sent again, with the same id.
        self._stop.set()

    def flush(self, seconds: float) -> None:
        """Try each of what waits once, for so long at most. For a process that ends then."""
        if self._outbox.waiting():
            worker = threading.Thread(target=self.send_all, name="notices", daemon=True)
            worker.start()
            worker.join(seconds)

    def _run(self) -> None:
        failed = 0
        while not self._stop.is_set():
            failed = 0 if self.send_all() else failed + 1
            rest = retry_at(0.0, failed, _FIRST_REST, _LONGEST_REST, 0.0) if failed else _LOOK
            self._stop.wait(rest)

    def send_all(self) -> bool:
        """Send what waits, up to the first that does not arrive; whether all did."""
        if not self._outbox.waiting():
            return True
        with suppress(VmrunnerError), lock.held(self._lock, "", "", wait=0, say=self._log.debug):
            return all(self._send(path) for path in self._outbox.waiting())
        return True  # another process sends

    def _send(self, path: Path) -> bool:
        """Whether this one needs no more tries."""
        try:
            body = path.read_bytes()
            plain = json.loads(body)
            at, event = datetime.fromisoformat(plain["at"]), str(plain["event"])
            notice = str(plain["id"])
        except FileNotFoundError:
            return True  # dropped meanwhile
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log.warning("notice can't be read", file=path.name, reason=str(error))
            path.unlink(missing_ok=True)
            return True
        problem = self._post(body, event, notice)
        is_over = (datetime.now(UTC) - at).total_seconds() > _KEPT
        if not problem:
            self._log.info("notice sent", event_kind=event, id=notice)
        elif problem.is_final or is_over:
            self._log.warning("notice given up", event_kind=event, id=notice, reason=problem.said)
        else:
            self._log.warning(
                "notice not sent; tried again", event_kind=event, id=notice, reason=problem.said
            )
            return False
        path.unlink(missing_ok=True)
        return True

    def _post(self, body: bytes, event: str, notice: str) -> Problem | None:
        import httpx  # here: most managers tell nobody

        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"vmrunner/{__version__}",
            "X-Vmrunner-Event": event,
            "X-Vmrunner-Delivery": notice,
            "X-Vmrunner-Signature": f"sha256={signature(self._secret, body)}",
        }
        try:
            # The answer's body is nobody's business, and may never end.
            with httpx.stream(
                "POST", self._url, content=body, headers=headers, timeout=_TIMEOUT
            ) as answer:
                status = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Problem(f"{self._receiver}: {type(error).__name__}")
        if 200 <= status < 300:
            return None
        return Problem(f"{self._receiver} answered {status}", is_final=status in _NEVER)


def _number(path: Path) -> int:
    """By which notices are in order: times are not, as a clock may be set."""
    number = path.name.partition("-")[0]
    return int(number) if number.isdecimal() and len(number) == _DIGITS else 0


def open_sender(settings: Config, log: Log, warn: Callable[[str], None]) -> Sender | None:
    """None where nobody is to be told. Raises ConfigError."""
    section = settings.notify
    if section.url is None or section.secret_file is None:
        return None
    return Sender(settings, section.url, notify_secret(section.secret_file, warn), log)


def signature(secret: Secret, body: bytes) -> str:
    """By which a receiver knows that a notice is ours: HMAC-SHA256 of the body, as hex."""
    return hmac.new(secret.value.encode(), body, hashlib.sha256).hexdigest()
