"""`vmrunner serve`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
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
    from vmrunner import beside, config, lock
    from vmrunner.cache.figures import Kept
    from vmrunner.cache.service import Service
    from vmrunner.cache.teller import running
    from vmrunner.doctor.page import missing
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

        def command(module: str) -> list[str]:
            return beside.command(module, config_path, log_format, log_level)

        cache = stack.enter_context(Service(command("vmrunner.cache.main"), log))
        cache.follow(settings)
        page = _page(settings, log, command("vmrunner.page.main"), stack)

        def saw(seen: Seen) -> None:
            page(seen)
            cache.follow(seen.manager.settings)
            cache.saw(seen.manager.forge, lambda: running(seen.survey))

        server = Server(
            lambda: open_manager(config.load(config_path), log, warn, serves_cache=not missing()),
            log,
            make_snapshot=lambda pool: make_snapshot(["--pool", pool], config_path),
            saw=saw,
        )
        stack.enter_context(
            status_socket.StatusSocket(
                status_socket.path(settings), lambda: _told(server.seen), log
            )
        )
        others: list[Collector] = [Kept(lambda: cache.place)]
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


def _page(
    settings: Config, log: Log, command: list[str], stack: ExitStack
) -> Callable[[Seen], object]:
    """Start the page's process, where there is to be one; what tells it of a pass. Raises
    ConfigError.
    """
    from vmrunner import beside, config
    from vmrunner.cli import surveyed
    from vmrunner.doctor.page import INSTALL, missing
    from vmrunner.page.seen import Writer

    if settings.page.listen is None:
        return lambda _: None
    if absent := missing():
        log.error("no page is served", missing=", ".join(absent), hint=INSTALL)
        return lambda _: None
    if settings.page.token_file:
        config.page_token(settings.page.token_file, warn)
    writer = Writer(settings.seen_file, log)
    stack.enter_context(beside.Keeper("page", command, log))

    def saw(seen: Seen) -> None:
        if writer.is_due:
            writer.write(lambda: surveyed.status(seen.manager, seen.survey, seen.at), seen.at)

    return saw
