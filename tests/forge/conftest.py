"""The doubles, and clients that are closed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.forge.double import Double
from tests.forge.double_gitea import Gitea
from vmrunner.config import ForgeConfig
from vmrunner.forge.connect import connect
from vmrunner.forge.seam import Forge
from vmrunner.model.secret import Secret


@pytest.fixture
def double() -> Iterator[Double]:
    with Double() as double:
        yield double


@pytest.fixture
def gitea() -> Iterator[Gitea]:
    """Gitea 1.27."""
    with Gitea() as double:
        yield double


@pytest.fixture
def client() -> Iterator[Callable[..., Forge]]:
    """Make a client: `client(url, token, ca_file=None, kind="forgejo")`."""
    with ExitStack() as stack:

        def make(url: str, token: str, ca_file: Path | None = None, kind: Any = "forgejo") -> Forge:
            forge = connect(ForgeConfig(kind=kind, url=url, ca_file=ca_file), Secret(token))
            stack.callback(forge.close)
            return forge

        yield make
