"""Builds that are killed at any moment, or whose disk is full: no half image, no mount, no process
is left, and the next build succeeds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from vmrunner.image.versions import store
from vmrunner.image.versions.workshop import CACHE
from vmrunner.resources import folder

BUILD = """
import sys
from pathlib import Path
from vmrunner.errors import VmrunnerError
from vmrunner.image.build.build import build
from vmrunner.image.recipe.recipe import load
name, images, recipes = sys.argv[1:]
try:
    build(load(name, Path(recipes)), Path(images), lambda step: print(step, flush=True))
except VmrunnerError as error:
    sys.exit(f"{error.sentence}\\n{error.hint}")
"""
OURS = folder("images")


def begin(name: str, images: Path, recipes: Path) -> subprocess.Popen[str]:
    """A build in a process of its own."""
    command = [sys.executable, "-c", BUILD, name, images, recipes]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def kill_at_random(
    name: str, images: Path, *, kills: int, cold: int, seed: int, recipes: Path = OURS
) -> dict[str, Any]:
    """Kill -9 a build of this recipe again and again, `cold` times one that has to bootstrap; then
    build. Raises AssertionError.
    """
    chance = random.Random(seed)  # noqa: S311 — moments, not secrets
    shutil.rmtree(images, ignore_errors=True)
    whole = _finish(begin(name, images, recipes))
    shutil.rmtree(images / name)
    warm, killed, wrong = _finish(begin(name, images, recipes)), 0, list[str]()
    for number in range(kills):
        is_cold = number < cold
        if is_cold:
            shutil.rmtree(images / CACHE, ignore_errors=True)
        shutil.rmtree(images / name, ignore_errors=True)
        build = begin(name, images, recipes)
        try:
            build.communicate(timeout=chance.uniform(0, whole if is_cold else warm))
        except subprocess.TimeoutExpired:
            build.send_signal(signal.SIGKILL)
            build.communicate()
            killed += 1
        wrong += [f"kill {number}: {each}" for each in left(name, images)]
    time.sleep(1)  # a version is named by its second, and the last one that was killed may be there
    _finish(begin(name, images, recipes))
    wrong += left(name, images, after=True)
    assert not wrong, wrong
    return {
        "kills": kills,
        "of them before the end": killed,
        "seconds of a build with its packages": round(warm),
    }


def fill_at_sizes(
    name: str, images: Path, sizes: list[int], recipes: Path = OURS
) -> dict[str, Any]:
    """Build in a file system of each of these sizes, in MiB; then in one that is big enough.

    Raises AssertionError.
    """
    images.mkdir(parents=True, exist_ok=True)
    sentences: list[str] = []
    for size in sizes:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "tmpfs", images], check=True
        )
        try:
            build = begin(name, images, recipes)
            said = build.communicate()[1]
            assert build.returncode == 1, f"with {size} MiB: exit {build.returncode}, {said}"
            assert "Traceback" not in said, said
            assert "Free some space." in said, said
            sentences.append(said.splitlines()[0])
            wrong = left(name, images, after=True)
            assert not wrong, f"with {size} MiB: {wrong}"
        finally:
            subprocess.run(["umount", images], check=True)
    return {"full disks": len(sizes), "said": sorted(set(sentences))}


def left(name: str, images: Path, *, after: bool = False) -> list[str]:
    """What is there of a build that must not be: half a version, a mount, a process; `after` one
    that could clean up, its folder, too.
    """
    wrong = []
    for version in store.versions(images, name):
        try:
            store.verify(store.version(images, name, version))
        except Exception as error:  # whatever it is, it is listed
            wrong.append(f"{version}: {error}")
    deadline = time.monotonic() + 10  # the kernel takes a moment to end a whole namespace
    while (running := _processes(images)) and time.monotonic() < deadline:
        time.sleep(0.05)
    wrong += [f"process {each}" for each in running]
    wrong += [
        f"mount {line}"
        for line in Path("/proc/mounts").read_text().splitlines()
        if f"{images}/." in line
    ]
    if after:
        wrong += [
            str(path)
            for pattern in (".building-*", f"{CACHE}/.part-*")
            for path in images.glob(pattern)
        ]
    return wrong


def _processes(images: Path) -> list[str]:
    """Those that have a file of the store open, or that name one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            places = [os.readlink(entry / each) for each in ("cwd", "root")]
        except OSError:
            continue
        if f"{images}/." in words or any(place.startswith(f"{images}/") for place in places):
            found.append(words)
    return found


def _finish(build: subprocess.Popen[str]) -> float:
    began = time.monotonic()
    said = build.communicate()[1]
    assert build.returncode == 0, said
    return time.monotonic() - began
