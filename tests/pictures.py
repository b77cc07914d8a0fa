"""`make pictures`: for docs/setups.md Gitea's own page of runners with a static set-up, for
docs/page.md our own page (see browser/demo.py), both in Chromium, and for all pages the drawings of
docs/diagrams (`rig/rig browser` brings what it takes).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.browser import demo
from tests.browser.chromium import chromium
from tests.forge.gitea import URL, Site, until
from tests.forge.process import GiteaProcess
from tests.ground import lay

OWNER = "acme"
IDLE = 3
DEADLINE = 240.0  # seconds
CUSTOM = Path("/var/lib/gitea/custom/public/assets")  # Gitea looks here before its own files
DRAWING = re.compile(r"(?s)<!-- (\S+\.easy) -->\n```text\n(.*?)```")
SIZE = {"width": 1100, "height": 600}


def dress(site: Site) -> None:
    """Gitea has its style sheets, scripts and icons; the last it reads when it starts."""
    if not CUSTOM.exists():
        CUSTOM.parent.mkdir(parents=True, exist_ok=True)
        version = site.call("GET", "/version")["version"]
        CUSTOM.symlink_to(Path(os.environ["VMRUNNER_CACHE"]) / "gitea" / f"assets-{version}")
        gitea = GiteaProcess()
        gitea.stop()
        gitea.start()


def draw(page: Path) -> str:
    """The page with each of its drawings made anew: the block below the name of a diagram."""

    def drawn(found: re.Match[str]) -> str:
        program = ["graph-easy", "--as=boxart", str(page.parent / found[1])]
        text = subprocess.run(program, check=True, capture_output=True, text=True).stdout
        lines = "\n".join(line.rstrip() for line in text.rstrip().split("\n"))
        return f"<!-- {found[1]} -->\n```text\n{lines}\n```"

    return DRAWING.sub(drawn, page.read_text())


def idle(site: Site) -> list[str]:
    """The names of the runners that Gitea shows as ready for a job."""
    return [
        runner["name"]
        for runner in site.runners()
        if runner["status"] == "online" and not runner["busy"]
    ]


@contextmanager
def logged_in(site: Site) -> Iterator[Any]:
    """A page of a browser that an administrator has logged in with."""
    name, password = site.user("viewer")
    site.call("PATCH", f"/admin/users/{name}", {"login_name": name, "source_id": 0, "admin": True})
    with chromium() as browser:
        shown = browser.new_page(viewport=SIZE)
        shown.goto(f"{URL}/user/login")
        shown.fill("input[name=user_name]", name)
        shown.fill("input[name=password]", password)
        shown.click("form[action*=login] button")
        shown.wait_for_url(f"{URL}/")
        yield shown


def main() -> None:
    """Take the picture; exits non-zero unless the page shows as many idle runners as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of setups.md, where runners.png goes")
    options = parser.parse_args()
    for page in options.folder.glob("*.md"):
        page.write_text(draw(page))
    demo.pictures(options.folder)
    with closing(Site()) as site:
        dress(site)
        site.clear()
        site.organisation(OWNER)
        ground = lay(
            Path("/tmp/vmrunner-pictures"),
            "ci-1",
            "10.92.0.0/24",
            token=site.token,
            start="auto",
            most=IDLE,
            more=f'register_idle = {IDLE}\nscope = "organisation:{OWNER}"',
        )
        ground.run("snapshot", "create", "--pool", "main")
        ground.run("up", "main")  # a run that was ended may have left it drained
        server = ground.serve()
        try:
            until(lambda: len(idle(site)) == IDLE, DEADLINE, f"{IDLE} idle runners")
            with logged_in(site) as shown:
                shown.goto(f"{URL}/org/{OWNER}/settings/actions/runners")
                rows = shown.locator("table tbody tr").all_inner_texts()
                shown.screenshot(path=options.folder / "runners.png")
        finally:
            server.terminate()
            server.wait()
            ground.run("down", "--now", "--all", "--purge")
    said = [row for row in rows if "Idle" in row and "vmr-ci-1-" in row]
    if len(said) != IDLE:
        sys.exit(f"the page shows {rows}")


if __name__ == "__main__":
    main()
