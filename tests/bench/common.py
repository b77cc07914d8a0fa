"""What all benchmarks share: one ground, a clock that jobs stop, and figures."""

from __future__ import annotations

import ctypes
import os
import select
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

from tests import tooling
from tests.forge.gitea import Site, until
from tests.ground import Ground, lay
from tests.prepare import GITEA

MANAGER, SUBNET = "bench", "10.84.0.0/24"
FOLDER = Path("/tmp/vmrunner-bench")
GATE, PORT = "203.0.113.10", 3002  # the forge's own address in the rig
_IN_MODIFY = 0x2
LIFE = 240.0  # seconds that one machine may take on a slow day


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


class Gate:
    """Notes when something in a machine asks for a page: the host's clock stops the time, not the
    guest's.
    """

    def __init__(self, site: Site) -> None:
        self.host = urlsplit(site.url).hostname or ""
        self.arrivals: dict[str, float] = {}  # page -> unix seconds
        arrivals = self.arrivals

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                arrivals.setdefault(self.path.strip("/"), time.time())
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer((self.host, PORT), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def visit(self, page: str) -> str:
        """The shell command that asks for a page, with nothing but bash."""
        return (
            f"exec 3<>/dev/tcp/{self.host}/{PORT}; printf 'GET /{page} HTTP/1.0\\r\\n\\r\\n' "
            ">&3; cat <&3 >/dev/null"
        )


class Ear:
    """When each word of a guest, and what it tells with it, was on the host (unix seconds), until
    it is closed; what was said before is not heard.

    The guest's events and its seed are in the files of a folder that these patterns fit. The kernel
    tells of each write (inotify(7)): nothing is looked at in between.
    """

    def __init__(self, folder: Path, events: str, seed: str) -> None:
        self._folder, self._events, self._seed = folder, events, seed
        self._known = {path.name: len(self._lines(path)) for path in folder.glob(events)}
        self.heard: dict[str, float] = {}
        self.said: dict[str, float] = {}  # by the guest's clock
        self.written = 0.0  # the seed, before the guest has read it
        libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = libc.inotify_init1(os.O_CLOEXEC)
        if libc.inotify_add_watch(self._inotify, os.fsencode(folder), _IN_MODIFY) < 0:
            raise OSError(ctypes.get_errno(), f"watching {folder}")
        self._over, self._end = os.pipe()
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no longer."""
        os.close(self._end)
        self._thread.join()
        os.close(self._over)
        os.close(self._inotify)

    def _listen(self) -> None:
        while self._over not in select.select([self._inotify, self._over], [], [])[0]:
            for name in _written(os.read(self._inotify, 1 << 16)):
                path = self._folder / name
                if path.match(self._seed) and "seed" not in self.heard:
                    with suppress(OSError):
                        self.written = path.stat().st_mtime
                elif path.match(self._events):
                    self._hear(path)

    def _hear(self, path: Path) -> None:
        now = time.time()
        lines = self._lines(path)
        for line in lines[self._known.get(path.name, 0) :]:
            word, at, *more = line.split()
            self.heard.setdefault(word, now)
            self.said.setdefault(word, float(at))
            for mark in more:
                name, _, before = mark.partition("=")
                if before:
                    self.heard.setdefault(name, now - float(before) / 1000)
        self._known[path.name] = len(lines)

    @staticmethod
    def _lines(path: Path) -> list[str]:
        """The whole ones."""
        try:
            return path.read_text().split("\n")[:-1]
        except OSError:
            return []


def _written(told: bytes) -> set[str]:
    """The names of a folder's files, as inotify(7) tells them."""
    names, at = set(), 0
    while at < len(told):
        (length,) = struct.unpack_from("I", told, at + 12)
        names.add(os.fsdecode(told[at + 16 : at + 16 + length].rstrip(b"\0")))
        at += 16 + length
    return names


def ground(
    site: Site,
    start: str,
    *,
    most: int = 1,
    warm: int = 0,
    vcpus: int = 2,
    user: str = "root",
    idle: int = 0,
    beside: str = "",
    more: str = "",
    subnet: str = SUBNET,
) -> Ground:
    """A pool that starts machines in this way; nothing is left of an earlier run, and its snapshot
    is there if it needs one, and the disk of tools that it names. `beside` others it has a name and
    a subnet of its own.
    """
    made = lay(
        FOLDER / beside,
        MANAGER + beside,
        subnet,
        token=site.token,
        most=most,
        start=start,
        more=f"warm = {warm}\nregister_idle = {idle}\nvcpus = {vcpus}\n"
        f'job_user = "{user}"\nallow = ["{GATE}:{PORT}"]\n{more}',
    )
    made.run("down", "--now")
    (made.folder / "state" / "history.sqlite").unlink(missing_ok=True)
    if "tools = " in more:
        tooling.beside_images(made, GITEA)
        recipe = tooling.lay(made.folder / "vendor", "tools", [("go", "1.26.0")])
        made.run("image", "build", "tools", "--recipes", str(recipe.parent))
    if start == "snapshot":
        made.run("snapshot", "create", "--pool", "main")
    return made


@contextmanager
def serving(ground: Ground) -> Iterator[subprocess.Popen[bytes]]:
    """`vmrunner serve`, as an admin runs it."""
    ground.run("up", "main")  # "down" holds until then
    ground.log.unlink(missing_ok=True)
    server = ground.serve()
    try:
        until(lambda: b"serving" in ground.log.read_bytes(), 60, "it serves")
        yield server
    finally:
        server.terminate()
        server.wait()
        ground.run("down", "--now")


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return round(statistics.median(values), 2)


def p95(values: Sequence[float]) -> float:
    """The value that 95 of 100 do not exceed, by nearest rank."""
    ranked = sorted(values)
    return round(ranked[max(0, -(-95 * len(ranked) // 100) - 1)], 2)
