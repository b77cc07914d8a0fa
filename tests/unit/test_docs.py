"""What the documentation lists is what there is."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.pictures import DRAWING
from vmrunner.cli.meanings import ENDINGS, WAITS
from vmrunner.config import Config
from vmrunner.manager.actions import WaitKind
from vmrunner.model.machine import Ending

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("explained", "kinds"), [(WAITS, WaitKind), (ENDINGS, Ending)], ids=["waits", "endings"]
)
def test_every_kind_is_explained_in_its_order(
    explained: Mapping[WaitKind | Ending, object], kinds: type[WaitKind | Ending]
) -> None:
    assert list(explained) == list(kinds)


def test_every_file_that_the_documentation_names_is_there() -> None:
    root, missing = DOCS.parent, []
    pages = [root / "README.md", root / "CONTRIBUTING.md", *DOCS.glob("*.md")]
    for page in pages:
        for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md|toml|j2))", page.read_text()):
            places = (root / name, root / "vmrunner" / name, root / "docs" / name)
            if not any(place.exists() for place in places):
                missing.append(f"{page.name}: {name}")
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as the forges make them: small letters, blanks as hyphens."""
    headings = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```$", "", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    root, broken = DOCS.parent, []
    for page in (root / "README.md", root / "CONTRIBUTING.md", *DOCS.rglob("*.md")):
        text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text())
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            if link.startswith(("http://", "https://")):
                continue
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(root)}: {link}")
    assert broken == []


def test_every_drawing_has_its_source() -> None:
    drawings = [each for page in DOCS.glob("*.md") for each in DRAWING.findall(page.read_text())]
    names = {name for name, _ in drawings}
    assert names == {f"diagrams/{path.name}" for path in (DOCS / "diagrams").glob("*.easy")}
    assert all("\u2500" in drawn for _, drawn in drawings)


_TABLE = re.compile(
    r"\[(?:pools|garm\.flavors|libvirt|network|capacity|serve|notify|page|metrics)\b"
)
_LEAST = {"forge": {"kind": "gitea", "url": "https://forge.example"}, "manager": "m"}


def samples(text: str) -> list[str]:
    """The parts of a page's code that are tables of the configuration."""
    found: list[list[str]] = []
    is_inside = False
    for line in filter(str.strip, text.splitlines()):
        said = line.strip()
        is_table = said.startswith("[")
        if is_table or not re.match(r" {4}|\w+ = ", line):
            is_inside = bool(_TABLE.match(said))
            found += [[]] if is_inside else []
        if is_inside and re.match(r"\[|\w+ = ", said) and "…" not in said:
            found[-1].append(said)
    return ["\n".join(lines) for lines in found]


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_every_table_of_the_configuration_is_one(page: Path) -> None:
    if "adr" in page.parts:
        return
    for sample in samples(page.read_text()):
        said: dict[str, Any] = tomllib.loads(sample)
        for pool in said.setdefault("pools", {"a": {}}).values():
            pool.setdefault("labels", ["a"])
            pool.setdefault("image", "a")
        Config.model_validate(_LEAST | said)


def test_a_table_with_a_wrong_key_is_found() -> None:
    (sample,) = samples(
        'Say\n\n    [pools.a]\n    netwrok = "none"   # and\n\nand\n\n    max = false\n'
    )
    assert tomllib.loads(sample) == {"pools": {"a": {"netwrok": "none"}}}
