"""A sample of `make conformance`: the workflows that are marked for it, in the plain tree and in
clones.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance import cases, mirror
from tests.conformance.rounds import differ, faults, run
from tests.conformance.sides import PLAIN, SIDES
from tests.forge.gitea import Site

pytestmark = [pytest.mark.vm, pytest.mark.long]


def test_a_sample_ends_in_clones_as_it_does_without_a_machine(site: Site, tmp_path: Path) -> None:
    sample = [case for case in cases.load_all() if case.sample]
    cloned = next(side for side in SIDES if side.name == "cloned")
    mirror.publish(site)
    seen, wrong = {}, list[str]()
    for side in (PLAIN, cloned):
        seen[side.name], stuck = run(site, side, sample, tmp_path)
        wrong += stuck + faults(side, sample, seen[side.name])
    site.clear()
    assert wrong == []
    assert differ(seen)[1] == []
