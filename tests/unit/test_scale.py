"""The small version of `make scale`: what a pass costs per machine does not grow with their number,
and `serve` keeps its memory.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from tests import scale

FEW, MANY = 100, 300
WORSE = 1.3  # how much more a machine may cost among many; what is quadratic makes it up to 3


def steps(act: Callable[[], object]) -> int:
    """How many instructions the interpreter carries out: unlike seconds, the same on every
    machine.
    """
    count = 0

    def step(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if event == "call":
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return step

    act()  # caches are filled once
    before = sys.gettrace()
    sys.settrace(step)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_a_pass_is_linear(binds_jobs: bool) -> None:
    costs = {}
    for machines in (FEW, MANY):
        with scale.crowd(machines, binds_jobs=binds_jobs) as world:
            costs[machines] = steps(lambda: scale.one_pass(world.manager)) / machines
    assert costs[MANY] <= WORSE * costs[FEW], costs


def test_a_pass_reads_no_table_as_a_whole() -> None:
    asked: list[str] = []
    with scale.crowd(FEW, binds_jobs=False) as world:
        database = world.history._database
        database.set_trace_callback(asked.append)
        scale.one_pass(world.manager)
        database.set_trace_callback(None)
        for query in dict.fromkeys(asked):
            plan = [step for *_, step in database.execute(f"EXPLAIN QUERY PLAN {query}")]
            assert not any(step.startswith("SCAN") for step in plan), f"{query}: {plan}"
    assert {query.partition(" ")[0] for query in asked} == {"SELECT", "DELETE"}


def test_looking_at_a_host_is_linear() -> None:
    costs = {}
    for machines in (FEW, MANY):
        with scale.crowd(machines, binds_jobs=False) as world, scale.mock_host(world) as host:
            assert len(host.machines.all()) == machines
            costs[machines] = steps(host.machines.all) / machines
    assert costs[MANY] <= WORSE * costs[FEW], costs


@pytest.mark.parametrize("kind", scale.RUSHES)
def test_the_plan_is_linear_whatever_comes_at_once(kind: str) -> None:
    costs = {machines: steps(scale.decision(kind, machines)) / machines for machines in (FEW, MANY)}
    assert costs[MANY] <= WORSE * costs[FEW], costs


@pytest.mark.parametrize("binds_jobs", [False, True], ids=["gitea", "forgejo"])
def test_memory_is_flat_over_many_jobs(binds_jobs: bool) -> None:
    held: dict[int, int] = {}

    def look(done: int) -> None:
        if done in (500, 1500):
            gc.collect()
            held[done] = sys.getallocatedblocks()

    assert scale.serve_jobs(1500, look, binds_jobs=binds_jobs)["jobs"] == 1500
    # Whatever is kept of each job is a block at least. Tables that grow once, as that of all
    # strings, are one each.
    assert held[1500] - held[500] < 800, held
