"""Tracebacks are for bugs, and go to logs that others read: whatever breaks, no credentials are in
one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.world import World
from vmrunner import config
from vmrunner.forge.forgejo import Forgejo
from vmrunner.forge.gitea import Gitea
from vmrunner.forge.http import Http
from vmrunner.forge.seam import Forge
from vmrunner.model.job import Scope
from vmrunner.model.secret import Secret

CANARY = "canary-5e3b1f"


def traced(call: Callable[[], object]) -> str:
    """The traceback of a call that must fail, with everything that is chained to it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 — whatever it is
        call()
    return "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("step", ["put seed.iso", "start", "create_overlay"])
def test_a_bug_while_a_machine_is_made(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path)
    world.forge.queue(1)

    def broken(name: str) -> None:
        if name == step:
            raise ZeroDivisionError(name)

    monkeypatch.setattr(world.hypervisor, "step", broken)
    said = traced(world.up)
    assert "ZeroDivisionError" in said
    assert "token-1" not in said
    assert world.forge.runners_ == {}, "and what it had made is undone"


ANSWERS: list[Any] = [
    {"id": 1, "uuid": "u", "token": [CANARY]},
    {"runner": {"id": "x", "uuid": "u", "token": CANARY}},
    {"token": {"a": CANARY}},
    [CANARY],
]


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
@pytest.mark.parametrize("kind", [Gitea, Forgejo])
def test_a_forge_whose_answer_can_not_be_read(kind: Callable[[Http], Forge], answer: Any) -> None:
    http = Http("https://forge.example", Secret(CANARY))
    http.close()
    http._client = httpx.Client(
        transport=httpx.MockTransport(lambda _: httpx.Response(200, json=answer))
    )
    forge = kind(http)
    try:
        said = traced(
            lambda: forge.create_runner(Scope.parse("instance"), "vmr-m-00000000", ["debian-12"])
        )
    finally:
        http.close()
    assert "ForgeUnreachable" in said
    assert CANARY not in said


def test_a_token_file_that_can_not_be_used(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{CANARY} {CANARY}")
    section = config.ForgeConfig(kind="gitea", url="https://forge.example", token_file=file)
    assert CANARY not in traced(lambda: config.forge_token(section, lambda _: None))
