"""What all tests with a forge share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.forge.gitea import Site

ONE_AT_A_TIME = ("tests/forge", "tests/libvirt", "tests/net", "tests/vm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What shares the rig's forge and host runs on one worker, beside the unit tests on others."""
    for item in items:
        if item.nodeid.startswith(ONE_AT_A_TIME):
            item.add_marker(pytest.mark.xdist_group("rig"))


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    with closing(Site()) as site:
        site.clear()
        yield site
