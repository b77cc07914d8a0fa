"""The page's own process, which `vmrunner serve` starts: `python -m vmrunner.page.main`."""

from __future__ import annotations

import sys

from vmrunner import beside, config
from vmrunner.config import Config
from vmrunner.log import Log
from vmrunner.manager.logbook import open_logbook
from vmrunner.page import server
from vmrunner.page.access import Guard, Rules
from vmrunner.page.app import Host, Views, application, draw
from vmrunner.page.guests import Guests
from vmrunner.page.past import Past
from vmrunner.page.said import Logs
from vmrunner.page.seen import Reader
from vmrunner.page.summary import Summary


def rules(settings: Config, log: Log) -> Rules:
    """Who may look. Raises ConfigError."""
    page = settings.page

    def warn(sentence: str) -> None:
        log.warning(sentence)

    return Rules(
        frozenset(name.lower() for name in page.hosts),
        config.page_token(page.token_file, warn) if page.token_file else None,
        page.user_header or "",
    )


def logs(settings: Config) -> Logs | None:
    """What was said about machines; None where the configuration does not want it shown."""
    if not settings.page.logs:
        return None
    teller = [sys.executable, "-m", "vmrunner.page.teller", *sys.argv[1:]]  # our own options
    return Logs(open_logbook(settings), Guests(teller))


def run(settings: Config, log: Log) -> None:
    """Serve the page. Raises ConfigError."""
    listen = settings.page.listen
    assert listen is not None, "it is not started without"  # noqa: S101
    may_look, past = rules(settings, log), Past(settings.history_file)
    most = {name: pool.max for name, pool in settings.pools.items()}
    with (
        server.bind(listen) as listening,
        Summary(past, most, draw, log) as summary,
    ):
        views = Views(
            Host(settings.manager, settings.images_dir, most),
            Reader(settings.seen_file),
            past,
            summary,
            log,
            logs=logs(settings),
        )
        log.info("the page is served", listen=listen)
        server.serve(Guard(application(views), may_look), listening)


if __name__ == "__main__":
    sys.exit(beside.main(run))
