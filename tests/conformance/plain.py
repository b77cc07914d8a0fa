"""The side without machines: Gitea's runner in a Debian tree, which is that of the very image, with
a fresh copy for every job.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.forge.gitea import Site
from vmrunner.model.image import DISK, Golden

RUNNER = Path(__file__).parents[1] / "runner" / "gitea-runner"
_SCRIPT = Path(__file__).with_name("plain.sh")


@contextmanager
def tree(golden: Golden, folder: Path) -> Iterator[Path]:
    """An image's files, read only."""
    raw, mounted = folder / "tree.raw", folder / "tree"
    mounted.mkdir(parents=True, exist_ok=True)
    if mounted.is_mount():  # by a run that was killed
        subprocess.run(["umount", "--lazy", mounted], check=True)
    raw.unlink(missing_ok=True)
    subprocess.run(["qemu-img", "convert", "-O", "raw", golden.directory / DISK, raw], check=True)
    subprocess.run(["mount", "-o", "loop,ro", raw, mounted], check=True)
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)
        raw.unlink()


class Runners:
    """So many runners at a time, each for one job, then the next in its place."""

    def __init__(
        self, site: Site, root: Path, folder: Path, label: str, config: str, count: int
    ) -> None:
        self._site, self._root, self._folder, self._label, self._config = (
            site,
            root,
            folder,
            label,
            config,
        )
        self._stopping = threading.Event()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._records: dict[int, dict[str, Any]] = {}
        self._threads = [
            threading.Thread(target=self._loop, args=(slot,), daemon=True) for slot in range(count)
        ]

    def __enter__(self) -> Runners:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for process in list(self._processes.values()):
            process.kill()
        for thread in self._threads:
            thread.join()
        for record in self._records.values():
            self._site.call("DELETE", f"/admin/actions/runners/{record['id']}", fine=(404,))

    def _loop(self, slot: int) -> None:
        number = 0
        while not self._stopping.is_set():
            number += 1
            self._one(slot, f"plain-{slot}-{number}")

    def _one(self, slot: int, name: str) -> None:
        record = self._register(name)
        self._records[slot] = record
        files, place = self._folder / f"{slot}.files", self._folder / f"{slot}.place"
        for each in (files, place):
            each.mkdir(parents=True, exist_ok=True)
        (files / ".runner").write_text(json.dumps(record))
        (files / "config.yaml").write_text(self._config)
        command = [
            "bash",
            str(_SCRIPT),
            str(self._root),
            str(place),
            str(RUNNER),
            str(files / ".runner"),
            str(files / "config.yaml"),
        ]
        unshared = [
            "unshare",
            "--mount",
            "--pid",
            "--uts",
            "--ipc",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            "--",
            *command,
        ]
        with (self._folder / f"{slot}.log").open("ab") as log:
            process = subprocess.Popen(unshared, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            self._processes[slot] = process
            process.wait()
        if process.returncode and not self._stopping.wait(1):
            last = (
                (self._folder / f"{slot}.log")
                .read_text(errors="replace")
                .strip()
                .rpartition("\n")[2]
            )
            print(
                f"a runner of the plain tree ended with {process.returncode}: {last}",
                file=sys.stderr,
                flush=True,
            )

    def _register(self, name: str) -> dict[str, Any]:
        """Its file, as the runner reads it."""
        token = self._site.call("POST", "/admin/actions/runners/registration-token")["token"]
        body = {"name": name, "token": token, "labels": [self._label], "ephemeral": True}
        answer = httpx.post(
            f"{self._site.url}/api/actions/runner.v1.RunnerService/Register", json=body, timeout=30
        )
        made = answer.raise_for_status().json()["runner"]
        return {
            "id": int(made["id"]),
            "uuid": made["uuid"],
            "name": name,
            "token": made["token"],
            "address": self._site.url,
            "labels": [f"{self._label}:host"],
            "ephemeral": True,
        }
