"""`vmrunner top`: what a real machine at work takes, and a key that ends it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.forge.gitea import Site, until
from tests.ground import Ground
from tests.screen import screen
from tests.vm.test_endings import serving
from tests.vm.test_jobs import LIFE
from tests.vm.test_logs import running

pytestmark = pytest.mark.vm

JOB = """\
on: [push]
jobs:
  works:
    runs-on: [debian-12]
    steps:
      - run: |
          for n in $(seq 600); do
            dd if=/dev/zero of=/big bs=1M count=4 conv=fsync 2>/dev/null; sleep 0.5
          done
"""


@pytest.mark.long
def test_a_machine_at_work(site: Site, lay_ground: Callable[..., Ground]) -> None:
    """Beside `serve`, which measures it; and without it."""
    ground = lay_ground(cloned=True)
    command = ground.command("top", "-c", str(ground.config))
    with serving(ground) as server:
        site.repository("rig", "works", JOB)
        (machine,) = until(lambda: running(ground), LIFE, "a machine with a job")
        short = machine[-8:].encode()
        busy = re.compile(short + rb" running +\S+ +\d+% +\d+ MiB +[\d.]+ .iB")  # and no ~
        with screen(*command) as top:
            top.until(b"rig/works: works")
            top.until(busy)
            top.type(b"q")
            assert top.ended() == 0
        server.kill()
        server.wait()
        with screen(*command) as top:
            at = top.until(busy)
            top.type(b"l")
            at = top.until(b"job on it: rig/works: works", at)
            top.type(b"d")
            at = top.until(b"[y/n]", at)
            top.type(b"y")
            at = top.until(b"is destroyed", at)
            top.type(b"q")
            assert top.ended() == 0
    assert "`vmrunner destroy`" in ground.run("history", "show", machine).stdout
    assert ground.leftovers() == []
