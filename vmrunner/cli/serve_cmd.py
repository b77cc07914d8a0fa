"""`vmrunner serve`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from vmrunner.cli import shown
from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, LevelOption, LogOption, app, warn
from vmrunner.log import Format, Level, Log, open_log
from vmrunner.machine.background import make_snapshot

if TYPE_CHECKING:
    from prometheus_client.registry import Collector

    from vmrunner.config import Config
    from vmrunner.manager.serve import Seen


@app.command("serve")
def serve(
    log_format: LogOption = Format.TEXT,
    log_level: LevelOption = Level.INFO,
    config_path: ConfigOption = DEFAULT_PATH,
) -> None:
    """Run until stopped: start a machine for each waiting job as soon as it waits. For systemd:
    Type=notify, SIGHUP reads the configuration again.

    SIGTERM leaves running machines alone (the next start adopts them), or waits for their jobs: see
    serve.on_stop.
    """
    from vmrunner import config, lock
    from vmrunner.hypervisor import events
    from vmrunner.manager import metrics, outbox, status_socket, webhook
    from vmrunner.manager.chores import Chores
    from vmrunner.manager.manager import open_manager
    from vmrunner.manager.serve import Server

    log, settings = open_log(log_format, log_level), config.load(config_path)
    with ExitStack() as stack:
        stack.enter_context(
            lock.exclusive(settings.runtime_dir, f"{settings.manager}.serve", wait=0, say=log.info)
        )
        events.start()
        server = Server(
            lambda: open_manager(config.load(config_path), log, warn),
            log,
            make_snapshot=lambda pool: make_snapshot(["--pool", pool], config_path),
            saw=_beside(settings, config_path, log_format, log_level, log, stack),
        )
        stack.enter_context(
            status_socket.StatusSocket(
                status_socket.path(settings), lambda: _told(server.seen), log
            )
        )
        others: list[Collector] = []
        if settings.cache.listen_port:
            from vmrunner.cache.figures import Kept
            from vmrunner.cache.store import Limits

            most = Limits.of(settings.cache).most
            others.append(Kept(settings.cache_dir, settings.history_file, most))
        if (listen := settings.serve.webhook.listen) and (
            secret_file := settings.serve.webhook.secret_file
        ):
            secret = config.webhook_secret(secret_file, warn)
            others.append(
                stack.enter_context(
                    webhook.Listener(listen, secret, server.wake, log, settings.webhook_heard)
                )
            )
        if sender := outbox.open_sender(settings, log, warn):
            stack.enter_context(sender)
        stack.enter_context(Chores(server.chores))
        metrics.serve(server.figures, settings.metrics, *others)
        server.run()


def _told(seen: Seen | None) -> bytes:
    """What `status` is told; nothing before the first pass is over."""
    from vmrunner.cli import surveyed

    if seen is None:
        return b""
    status = surveyed.status(seen.manager, seen.survey, time.time(), seen.at)
    return json.dumps(shown.plain(status)).encode()


def _beside(
    settings: Config,
    config_path: Path,
    log_format: Format,
    log_level: Level,
    log: Log,
    stack: ExitStack,
) -> Callable[[Seen], object]:
    """Start the processes that there are to be beside this one; what has to be told of each pass
    for them.

    Raises ConfigError.
    """
    from vmrunner import beside
    from vmrunner.doctor.page import INSTALL, missing

    told: list[Callable[[Seen], object]] = []
    for what, module, is_wanted, open_ in (
        ("page", "vmrunner.page.main", settings.page.listen is not None, _page),
        ("cache", "vmrunner.cache.main", settings.cache.listen_port is not None, _cache),
    ):
        if not is_wanted:
            continue
        if absent := missing():
            log.error(f"no {what} is served", missing=", ".join(absent), hint=INSTALL)
            continue
        told.append(open_(settings, log, stack))
        command = beside.command(module, config_path, log_format, log_level)
        stack.enter_context(beside.Keeper(what, command, log))

    def saw(seen: Seen) -> None:
        for tell in told:
            tell(seen)

    return saw


def _page(settings: Config, log: Log, _: ExitStack) -> Callable[[Seen], object]:
    """What tells the page of a pass."""
    from vmrunner import config
    from vmrunner.cli import surveyed
    from vmrunner.page.seen import Writer

    if settings.page.token_file:
        config.page_token(settings.page.token_file, warn)
    writer = Writer(settings.seen_file, log)

    def saw(seen: Seen) -> None:
        if writer.is_due:
            writer.write(lambda: surveyed.status(seen.manager, seen.survey, seen.at), seen.at)

    return saw


def _cache(settings: Config, log: Log, stack: ExitStack) -> Callable[[Seen], object]:
    """What tells the cache of a pass."""
    from vmrunner.cache.teller import Teller, running

    teller = stack.enter_context(Teller(settings.cache_jobs_file, log))
    return lambda seen: teller.saw(seen.manager.forge, tuple(running(seen.survey)))
