"""The quick starts of docs/setups.md: what an admin would copy out of the page."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "setups.md"
_FORGE = 'url = "https://forge.example"'
_IMAGE = 'image = "debian-12-runner"'


@dataclass(frozen=True)
class QuickStart:
    """A configuration, and the commands below it."""

    title: str  # of its chapter
    configuration: str
    commands: tuple[str, ...]

    def at(self, folder: Path, url: str, *, manager: str, image: str, subnet: str) -> str:
        """The configuration for the tests' forge and image, with its files in `folder`. All of
        what the page says is in it.
        """
        changes = {
            'manager = "ci-1"': f'manager = "{manager}"\nstate_dir = "{folder / "state"}"\n'
            f'runtime_dir = "{folder / "run"}"',
            _FORGE: f'url = "{url}"\ntoken_file = "{folder / "forge-token"}"',
            _IMAGE: f'image = "{image}"\nmemory = "1GiB"\ndisk = "6GiB"',
        }
        text = self.configuration
        for before, after in changes.items():
            assert before in text, f"{self.title}: {before}"
            text = text.replace(before, after)
        return f'{text}[libvirt]\nsubnet = "{subnet}"\n'


def quick_starts(text: str) -> list[QuickStart]:
    """Every configuration of a page that has commands below it; a configuration without any, or
    commands without one, is an error.
    """
    found = []
    for chapter in re.split(r"(?m)^#{2,3} ", text)[1:]:
        title = re.split(r"[:,\n]", chapter)[0]
        blocks = re.findall(r"(?ms)^```(toml|sh)\n(.*?)^```$", chapter)
        assert [kind for kind, _ in blocks] in ([], ["toml", "sh"]), title
        if blocks:
            found.append(QuickStart(title, blocks[0][1], tuple(blocks[1][1].splitlines())))
    return found


def quick_start(title: str) -> QuickStart:
    """The one of this chapter."""
    return {found.title: found for found in quick_starts(PAGE.read_text())}[title]
