"""What the site's hook does to pages, and what it finds in what was built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests import site

MKDOCS = site.ROOT / "mkdocs.yml"
MADE = {"start.md", "changelog.md"}


def named() -> list[str]:
    """The pages in the navigation."""
    return re.findall(r"(?m)[ :]([\w/.-]+\.md)$", MKDOCS.read_text().partition("\nnav:")[2])


def test_every_page_is_in_the_navigation_once() -> None:
    docs = site.ROOT / "docs"
    pages = {str(each.relative_to(docs)) for each in docs.rglob("*.md")}
    decisions = set(site.decisions()[site.DECISIONS])
    assert sorted(named()) == sorted(pages - decisions | MADE)
    assert decisions <= pages


def test_the_first_steps_are_the_readmes() -> None:
    page = site.start((site.ROOT / "README.md").read_text())
    assert page.startswith("# On your own Forgejo")
    assert "\n## One command, no forge\n" in page
    assert "](docs/" not in page
    assert "## When something goes wrong" not in page


def test_links_out_of_docs_lead_to_where_the_site_has_them() -> None:
    text = "[a](../README.md#x) [b](../findings/f.sh) [c](jobs.md)"
    assert site.beside(text, 0) == "[a](start.md#x) [b](findings/f.sh) [c](jobs.md)"
    deep = "[a](../../README.md) [b](../../findings/f.sh) [c](../jobs.md)"
    assert site.beside(deep, 1) == "[a](../start.md) [b](../findings/f.sh) [c](../jobs.md)"


def test_what_a_page_loads_from_elsewhere() -> None:
    html = (
        '<link rel="canonical" href="https://docs.example/x"><script src="assets/a.js"></script>'
        '<a href="https://forge.example/">a link is not loaded</a>'
        '<script src="https://cdn.example/a.js"></script><img src="//pics.example/p.png">'
        '<link rel="stylesheet" href="http://fonts.example/f.css">'
    )
    assert site.outside(html) == [
        "https://cdn.example/a.js",
        "//pics.example/p.png",
        "http://fonts.example/f.css",
    ]


def test_a_table_or_list_that_became_a_paragraph() -> None:
    assert site.unread("<p>| a | b |\n|---|---|</p>")
    assert site.unread("<p>These:\n- one\n- two</p>")
    assert site.unread("<p>These:\n1. one</p>")
    assert not site.unread("<p>one - two</p><pre>These:\n- one</pre><li>one</li>")


def test_the_site_builds_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=site.ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "search" / "search_index.json").exists()
    assert "In five steps".casefold() in (tmp_path / "start.html").read_text().casefold()
