"""A part of `make images`: images that are broken in five ways: each is refused by `verify` and
`promote`, and when it is forced, rolled back without a job lost. Real Gitea, and `vmrunner serve`.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests import recipes
from tests.forge.gitea import Site, until
from tests.goldens import linked
from tests.ground import Ground, lay
from tests.prepare import GITEA, IMAGES
from vmrunner.errors import ImageError
from vmrunner.files import digest
from vmrunner.image.versions import promotion
from vmrunner.image.versions.promotion import Why
from vmrunner.image.versions.store import MANIFEST
from vmrunner.model.image import DISK

NAME, GOOD, BAD = "trial", "20260101-good", "20260102-bad"
JOB = "  job{number}:\n    runs-on: [debian-12]\n    steps:\n      - run: echo job{number} ran\n"
ORIGIN = IMAGES / GITEA / "current"
RUNNER = "/usr/local/bin/gitea-runner"


def with_file(folder: Path, part: str, content: Path) -> None:
    """Another file in a version, and in its manifest: whoever built it knew no better."""
    (folder / part).unlink()
    shutil.move(content, folder / part)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][part] = digest(folder / part)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def edited(folder: Path, *commands: str) -> None:
    """The version's disk, changed by debugfs."""
    raw, disk = folder / "raw", folder / "new"
    subprocess.run(["qemu-img", "convert", "-O", "raw", folder / DISK, raw], check=True)
    for command in commands:
        if "{free}" in command:
            told = subprocess.run(
                ["dumpe2fs", "-h", raw], check=True, capture_output=True, text=True
            ).stdout
            command = command.format(free=int(re.findall(r"Free blocks:\s+(\d+)", told)[0]) - 64)
        subprocess.run(["debugfs", "-w", "-R", command, raw], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, disk], check=True)
    raw.unlink()
    with_file(folder, DISK, disk)


def panics(folder: Path) -> None:
    """No init."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["kernel_arguments"] += " init=/bin/false"
    (folder / MANIFEST).write_text(json.dumps(manifest))


def lacks_its_runner(folder: Path) -> None:
    """The manifest says that there is one."""
    edited(folder, f"rm {RUNNER}")


def is_of_another_architecture(folder: Path) -> None:
    """The kernel of an ARM machine, by its header."""
    kernel = folder / "new"
    kernel.write_bytes(bytes(56) + b"ARM\x64" + bytes(1 << 20))
    with_file(folder, "vmlinuz", kernel)


def is_truncated(folder: Path) -> None:
    """Two thirds of its disk."""
    disk = folder / "new"
    shutil.copyfile(folder / DISK, disk)
    os.truncate(disk, disk.stat().st_size * 2 // 3)
    with_file(folder, DISK, disk)


def is_full(folder: Path) -> None:
    """A root without a free block."""
    edited(folder, "write /dev/null /fill", "fallocate /fill 0 {free}")


KINDS: dict[str, Callable[[Path], None]] = {
    "kernel panic": panics,
    "no runner": lacks_its_runner,
    "wrong architecture": is_of_another_architecture,
    "truncated disk": is_truncated,
    "full root": is_full,
}


def prepared(folder: Path, kind: str, token: str) -> Ground:
    """A ground whose image has a good version, which is current, and a bad one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    images = folder / "state" / "images"
    images.mkdir(parents=True)
    more = 'boot_timeout = "60s"\npickup_timeout = "20s"'
    ground = lay(folder, "broken", "10.84.0.0/24", token=token, image=NAME, most=1, more=more)
    # As big as the image, so that a full root stays full.
    text = ground.config.read_text().replace('disk = "6GiB"', 'disk = "4GiB"')
    ground.config.write_text(f'{text}[images]\nboot_timeout = "90s"\n')
    linked(images, ORIGIN, NAME, GOOD)
    KINDS[kind](linked(images, ORIGIN, NAME, BAD))
    with promotion.changing(images, print):
        promotion.switch(images, NAME, GOOD, Why.BUILT)
    return ground


def refused(ground: Ground) -> str:
    """What `verify` says of the bad version; it and `promote` must refuse it."""
    verified = ground.run("image", "verify", f"{NAME}/{BAD}", check=False)
    assert verified.returncode == ImageError.exit_code, verified.stdout + verified.stderr
    promoted = ground.run("image", "promote", NAME, BAD, check=False)
    assert (promoted.returncode, promotion.current(ground.folder / "state" / "images", NAME)) == (
        ImageError.exit_code,
        GOOD,
    )
    return next(line for line in verified.stderr.splitlines() if line.startswith("vmrunner: "))


def forced(site: Site, ground: Ground, jobs: int) -> dict[str, object]:
    """Promote the bad version all the same, while jobs wait; they all have to run in the end."""
    ground.run("image", "promote", NAME, BAD, "--force")
    repository = site.repository(
        "rig",
        "broken",
        "on: [push]\njobs:\n" + "".join(JOB.format(number=number) for number in range(jobs)),
    )
    until(lambda: len(repository.jobs()) == jobs, 60, "every job queued")
    began, manager = time.monotonic(), ground.serve()
    try:
        until(
            lambda: all(job["status"] == "completed" for job in repository.jobs()),
            600,
            "every job done",
            every=2,
        )
        seconds = time.monotonic() - began
        until(lambda: not ground.leftovers(), 60, "nothing left", every=1)
        (pool,) = ground.status()["pools"]
        ended = json.loads(ground.run("history", "--json").stdout)
    finally:
        manager.kill()
        manager.wait()
    good = sum(job["conclusion"] == "success" for job in repository.jobs())
    repository.delete()
    assert pool["image"] == f"{NAME}/{GOOD}"
    assert "rolled back automatically" in pool["image_note"], pool
    assert pool["backoff"] is None, pool
    failed = [row for row in ended if row["image"] == f"{NAME}/{BAD}"]
    assert len(failed) == 3, failed
    return {
        "lost": jobs - good,
        "machines_failed": len(failed),
        "seconds": round(seconds),
        "cause": failed[-1]["reason"],
    }


def main() -> None:
    """Each kind, or `--only` one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    figures: list[dict[str, object]] = []
    with closing(Site()) as site:
        for kind in [options.only] if options.only else KINDS:
            ground = prepared(Path("/tmp/vmrunner-broken"), kind, site.token)
            ground.run("down", "--now", check=False)
            ground.run("up", "main", check=False)
            said = refused(ground)
            print(f"{kind}: {said}", file=sys.stderr, flush=True)
            figures.append({"kind": kind} | forced(site, ground, options.jobs) | {"verify": said})
            print(f"{kind}: {figures[-1]}", file=sys.stderr, flush=True)
            ground.run("down", "--all", "--purge")
    print(json.dumps(recipes.noted({"broken": figures})))
    if any(each["lost"] for each in figures):
        sys.exit(1)


if __name__ == "__main__":
    main()
