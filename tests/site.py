"""What `make docs` does beside mkdocs itself (mkdocs.yml names it as a hook): pages that lie
outside of docs/, the list of decisions, and a look at what was built.
"""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SITE = ROOT / "dist" / "site"
DECISIONS = "Why it is so"
_LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}

log = logging.getLogger("mkdocs.hooks.site")  # its warnings fail a strict build


def decisions() -> dict[str, list[str]]:
    """The entry of the navigation with every page of docs/adr."""
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    return {DECISIONS: [f"adr/{page.name}" for page in pages]}


def start(readme: str) -> str:
    """The README's chapters that lead to a first job and a first command, as a page of the site."""
    found = re.search(r"(?ms)^## On your own .*?(?=^## When something goes wrong)", readme)
    if not found:
        log.warning("the README has no chapter that begins with: On your own")
        return ""
    return inside(found[0]).replace("## ", "# ", 1)  # its first heading is the page's


def inside(text: str) -> str:
    """A page of the repository's root, as one of the site's root."""
    return text.replace("](docs/", "](")


def beside(text: str, depth: int) -> str:
    """A page, so many folders below docs/, whose links to files outside of docs/ lead to where the
    site has them.
    """
    up = "../" * depth
    text = re.sub(r"\]\((?:\.\./)+README\.md", f"]({up}start.md", text)
    return re.sub(r"\]\((?:\.\./)+findings/", f"]({up}findings/", text)


class Outside(HTMLParser):
    """What a page loads from another place: `found` has the addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        values = dict(attrs)
        address = values.get(_LOADED.get(tag, "")) or ""
        if re.match(r"(https?:)?//", address) and values.get("rel") != "canonical":
            self.found.append(address)


def outside(html: str) -> list[str]:
    """The addresses elsewhere that a browser would ask when it shows the page."""
    parser = Outside()
    parser.feed(html)
    return parser.found


def unread(html: str) -> list[str]:
    """Paragraphs that were meant as a table or a list: Markdown wants an empty line before one."""
    text = re.sub(r"(?s)<pre.*?</pre>", "", html)
    return re.findall(r"<p>\|[^<]*|<p>[^<]*\n(?:\||- |\d+\. )[^<\n]*", text)


def on_config(config: Any) -> Any:
    """mkdocs calls it when it has read mkdocs.yml."""
    config.nav[-1]["Background"].append(decisions())
    return config


def on_files(files: Any, config: Any) -> Any:
    """mkdocs calls it when it knows the files of docs/."""
    from mkdocs.structure.files import File

    made = {
        "start.md": start((ROOT / "README.md").read_text()),
        "changelog.md": inside((ROOT / "CHANGELOG.md").read_text()),
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for path in sorted((ROOT / "findings").iterdir()):
        files.append(File.generated(config, f"findings/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls it with the text of each page."""
    return beside(markdown, page.file.src_uri.count("/"))


def on_post_build(config: Any) -> None:
    """mkdocs calls it when the site is there."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        html = path.read_text(encoding="utf-8")
        for address in outside(html):
            log.warning("%s loads %s, which is not in the site", path.name, address)
        for words in unread(html):
            log.warning("%s shows as a paragraph: %s", path.name, words[:80])
    for path in sorted(Path(config.site_dir).rglob("*.css")):
        for address in re.findall(r"url\([\"']?((?:https?:)?//[^)\"']+)", path.read_text("utf-8")):
            log.warning("%s loads %s, which is not in the site", path.name, address)
