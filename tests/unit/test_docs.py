"""What the documentation lists is what there is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.pictures import DRAWING
from vmrunner.cli.meanings import ENDINGS, WAITS
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
