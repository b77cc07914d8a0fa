"""Whether who is to be told of what happens can be told."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from vmrunner.config import Config, notify_secret
from vmrunner.doctor.findings import Finding, good, secret, warning

_HERE = {"localhost", "127.0.0.1", "::1"}


def look(settings: Config) -> Iterator[Finding]:
    """Nothing is sent for it. Without `notify.url` there is nothing to say."""
    section = settings.notify
    if section.url is None or section.secret_file is None:
        return
    if not (yield from secret("notify", notify_secret, section.secret_file)):
        return
    url = urlsplit(section.url)
    if url.scheme == "http" and url.hostname not in _HERE:
        yield warning(
            "notify",
            f"Notices travel to {url.netloc} where others can read them.",
            "Take an https address as notify.url, if the receiver has one.",
        )
    waiting = len(list(settings.notices_dir.glob("*.json")))
    if waiting:
        yield warning(
            "notify",
            f"{waiting} notices were not sent to {url.netloc} yet.",
            "The log of `vmrunner serve`, or of `vmrunner up`, says why.",
        )
    else:
        yield good("notify", f"{len(section.events)} kinds of notices go to {url.netloc}")
