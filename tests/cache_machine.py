"""`make cache CACHE=--machine`: from a real machine into the cache and out of it, in turns with the
same bytes through bare connections to the same port, by the same client: 32 MiB at a time on four
connections up, one connection down. The last line is JSON, with what the cache is of the bare ones.

What the machine's own work takes of both is the same; seconds of a processor are the service's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.cache_pace import MIB, processor_seconds
from tests.ground import lay
from tests.page import free_port
from tests.prepare import GITEA
from vmrunner import beside, config
from vmrunner.cache.lab import Lab as Jobs
from vmrunner.config import Config
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.seam import Output
from vmrunner.image.versions import store
from vmrunner.log import Format, Level
from vmrunner.machine import oneshot
from vmrunner.machine.identity import fresh
from vmrunner.model.job import JobFacts
from vmrunner.network.addresses import gateway
from vmrunner.network.policy import pool_policy

MANAGER, SUBNET = "pace", "10.91.0.0/24"
LIFE = timedelta(minutes=50)
UP, DOWN, BARE, CACHE, BEGIN = "up", "down", "bare", "cache", "begin"
_GUEST = Path(__file__).with_name("cache_guest.py")


def _serve_bare(listening: socket.socket) -> None:
    """Whoever asks for bytes gets them, whoever brings some is told when they are there."""

    def serve(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            asked = b""
            while not asked.endswith(b"\n"):
                if not (came := connection.recv(1)):
                    return
                asked += came
            word, left = asked.split()[0], asked.split()[1]
            content = memoryview(bytearray(MIB))
            if word == b"up":
                much = int(left)
                while much and (read := connection.recv_into(content)):
                    much -= read
                connection.sendall(b"done\n")
            elif word == b"down":
                for _ in range(int(left) // MIB):
                    connection.sendall(content)
            else:
                connection.recv(1024)  # the rest: what is closed unread is a reset
                connection.sendall(b"bare\n")

    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


class Turns:
    """What answers at the port: one after the other, as the machine asks for them."""

    def __init__(self, settings: Config, path: Path) -> None:
        self._settings, self._path = settings, path
        self._end: Callable[[], object] = lambda: None
        self._cpu: subprocess.Popen[bytes] | None = None
        self._mark = 0.0
        self._text = b""
        self.seconds: list[dict[str, float]] = []
        self.work: dict[str, list[float]] = {UP: [], DOWN: []}

    def hear(self, stream: Output, data: bytes) -> None:
        """What the machine prints."""
        if stream is not Output.STDOUT:
            sys.stderr.write(data.decode(errors="replace"))
            return
        *lines, self._text = (self._text + data).split(b"\n")
        for line in lines:
            self._heard(line.decode())

    def _heard(self, word: str) -> None:
        if word == BARE:
            self._end()
            self._begin_bare()
        elif word == CACHE:
            self._end()
            self._begin_cache()
        elif word == BEGIN:  # without the service's own start
            self._mark = self._spent()
        elif word in self.work:
            now = self._spent()
            self.work[word].append(now - self._mark)
            self._mark = now
        else:
            self.seconds.append(json.loads(word))
            print(word, file=sys.stderr)

    def _begin_bare(self) -> None:
        address = str(gateway(self._settings.libvirt.subnet))
        listening = socket.create_server((address, self._settings.cache.listen_port or 0))
        threading.Thread(target=_serve_bare, args=(listening,), daemon=True).start()

        def end() -> None:
            listening.shutdown(socket.SHUT_RDWR)
            listening.close()

        self._end = end

    def _begin_cache(self) -> None:
        command = beside.command("vmrunner.cache.main", self._path, Format.TEXT, Level.INFO)
        process = subprocess.Popen(command, stdin=subprocess.PIPE)

        def end() -> None:
            assert process.stdin
            process.stdin.close()
            process.wait(20)

        self._cpu, self._end = process, end

    def _spent(self) -> float:
        assert self._cpu
        return processor_seconds(self._cpu.pid)

    def close(self) -> None:
        """Nothing answers any more."""
        self._end()


@contextmanager
def _place() -> Iterator[tuple[Config, Path]]:
    folder = Path(tempfile.mkdtemp(prefix="vmrunner-pace-", dir="/cache"))
    try:
        port = f"[cache]\nlisten_port = {free_port()}\n"
        ground = lay(folder, MANAGER, SUBNET, token="none", more=port)
        settings = config.load(ground.config)
        settings.runtime_dir.mkdir()
        yield settings, ground.config
    finally:
        shutil.rmtree(folder)


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def measure(size: int, runs: int) -> dict[str, Any]:
    """Medians of the rates, in MiB/s, and of the ratios of each turn."""
    with _place() as (settings, path), closing(Turns(settings, path)) as turns:
        jobs, machine = Jobs(settings), fresh(settings)
        main = "refs/heads/main"
        facts = JobFacts("org/pace", main, "push", None, "main", from_fork=False)
        jobs.tell({str(machine): facts})
        words = ["python3", "-c", _GUEST.read_text(), str(gateway(settings.libvirt.subnet))]
        words += [str(settings.cache.listen_port), str(size), str(runs)]
        pool = settings.pools["main"]
        with closing(
            open_host(settings, lambda sentence: print(sentence, file=sys.stderr))
        ) as host:
            code = oneshot.run(
                host,
                settings,
                oneshot.Command(
                    store.find(settings.images_dir, GITEA),
                    words,
                    pool.shape,
                    LIFE,
                    network=pool_policy("main"),
                    machine=machine,
                    snapshot=False,
                ),
                write=turns.hear,
                say=_say,
            )
        assert code == 0, code
        assert len(turns.seconds) == runs
    rates = {
        f"{who} {way}": [size / MIB / each[f"{who} {way}"] for each in turns.seconds]
        for who in (BARE, CACHE)
        for way in (UP, DOWN)
    }
    ratios = {
        way: [
            ours / bare
            for ours, bare in zip(rates[f"{CACHE} {way}"], rates[f"{BARE} {way}"], strict=True)
        ]
        for way in (UP, DOWN)
    }
    work = {way: statistics.median(each) * 1024 * MIB / size for way, each in turns.work.items()}
    return {
        "mib": size // MIB,
        "runs": runs,
        "mib_per_second": {name: round(statistics.median(each), 1) for name, each in rates.items()},
        "ratio": {way: round(statistics.median(each), 2) for way, each in ratios.items()},
        "ratios": {way: [round(ratio, 2) for ratio in each] for way, each in ratios.items()},
        "cpu_seconds_per_gib": {way: round(each, 2) for way, each in work.items()},
    }


def main() -> None:
    """Measure; the last line is the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="how much, in MiB")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(measure(options.mib * MIB, options.runs)))


if __name__ == "__main__":
    main()
