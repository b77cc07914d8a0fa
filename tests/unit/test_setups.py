"""Every quick start of docs/setups.md is a configuration that `vmrunner config check` is content
with; tests/vm/test_setups.py has jobs run in them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fenced import PAGE, QuickStart, quick_starts
from vmrunner.cli.main import main
from vmrunner.config import load

FOUND = quick_starts(PAGE.read_text())
COMMANDS = {"vmrunner config check", "vmrunner serve", "vmrunner up"}


def test_each_way_to_run_it_has_one() -> None:
    titles = [found.title for found in FOUND]
    assert titles == ["Static", "Serve", "Timer", "Several hosts", "For whom"]
    assert {command for found in FOUND for command in found.commands} == COMMANDS


@pytest.mark.parametrize("found", FOUND, ids=lambda found: found.title)
def test_config_check_is_content_with_it(
    found: QuickStart, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "forge-token"
    secret.write_text("a" * 40 + "\n")
    secret.chmod(0o600)
    path = tmp_path / "vmrunner.toml"
    path.write_text(
        found.at(
            tmp_path,
            "http://192.0.2.7:3000",
            manager="ci-1",
            image="debian-12",
            subnet="10.87.0.0/24",
        )
    )
    monkeypatch.setattr("sys.argv", ["vmrunner", "config", "check", "--config", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_what_they_say(tmp_path: Path) -> None:
    """The page's own words about them."""
    path = tmp_path / "vmrunner.toml"

    def pools(title: str) -> dict[str, tuple[str, int, int, int]]:
        path.write_text(next(each.configuration for each in FOUND if each.title == title))
        return {
            name: (str(pool.scope[0]), pool.register_idle, pool.warm, pool.max)
            for name, pool in load(path).pools.items()
        }

    assert pools("Static") == {"static": ("organisation:acme", 3, 0, 6)}
    assert pools("Serve") == {"debian": ("instance", 0, 1, 4)}
    assert {name: scope for name, (scope, *_) in pools("For whom").items()} == {
        "everybody": "instance",
        "acme": "organisation:acme",
        "release": "repository:acme/site",
    }


def test_a_page_with_half_a_quick_start_is_an_error() -> None:
    with pytest.raises(AssertionError, match="Half"):
        quick_starts("# A page\n### Half: it has no commands\n```toml\nmax = 1\n```\n")
    with pytest.raises(AssertionError, match="Loose"):
        quick_starts("# A page\n## Loose\n```sh\nvmrunner up\n```\n")
