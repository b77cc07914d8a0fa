"""A checkout, by the commands that actions/checkout gives to git; and the reference for it that
docs/howto/caches.md has an admin put into an image.
"""

from __future__ import annotations

import os
import re
import subprocess
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

PAGE = Path(__file__).parents[1] / "docs" / "howto" / "caches.md"
REPOSITORY, PLACE = "https://forge.example/acme/large", "/usr/share/reference"
"""What the page calls them."""


def reference_script(url: str, folder: Path | str = PLACE) -> str:
    """The script of the page's recipe, for the repository with this address."""
    found = re.search(r'(?s)\[\[scripts\]\]\n[^[]*?text = """\n(.*?)"""', PAGE.read_text())
    assert found, f"{PAGE} has no such script"
    assert REPOSITORY in found[1]
    assert PLACE in found[1]
    return found[1].replace(REPOSITORY, url).replace(PLACE, str(folder))


def template(folder: Path | str = PLACE) -> str:
    """What the page's workflow gives to git."""
    found = re.search(r"GIT_TEMPLATE_DIR: (\S+)", PAGE.read_text())
    assert found, f"{PAGE} has no such variable"
    return found[1].replace(PLACE, str(folder))


def login(token: str) -> str:
    """The header that a job's git sends."""
    return f"AUTHORIZATION: basic {b64encode(f'x-access-token:{token}'.encode()).decode()}"


def git(folder: Path, *words: str, **environment: str) -> str:
    """Its output. Neither the user's nor the system's settings are read."""
    names = ("NAME", "EMAIL")
    people = {f"GIT_{who}_{what}": "t@forge.example" for who in _PEOPLE for what in names}
    plain = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "LANG": "C"}
    done = subprocess.run(
        ["git", *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "GIT_TERMINAL_PROMPT": "0"} | people | plain | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"git {' '.join(words)}: {done.stderr}"
    return done.stdout.strip()


_PEOPLE = ("AUTHOR", "COMMITTER")


@dataclass(frozen=True)
class Checkout:
    """What a workflow says of it; by default what it says with no input at all."""

    depth: int = 1  # 0: all branches and tags with their history
    filter: str = ""
    sparse: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, url: str, commit: str, token: str, folder: Path) -> None:
        """Have this commit in an empty folder. Raises AssertionError where git does not."""
        site = urlsplit(url)
        header = f"http.{site.scheme}://{site.netloc}/.extraheader"
        self._git(folder, "init", str(folder))
        self._git(folder, "remote", "add", "origin", url)
        self._git(folder, "config", "--local", "gc.auto", "0")
        self._git(folder, "config", "--local", header, login(token))
        words = ["-c", "protocol.version=2", "fetch"]
        words += ["--no-tags"] if self.depth else []
        words += ["--prune", "--no-recurse-submodules"]
        chosen = self.filter or ("blob:none" if self.sparse else "")
        words += [f"--filter={chosen}"] if chosen else []
        words += [f"--depth={self.depth}"] if self.depth else []
        one = [f"+{commit}:refs/remotes/origin/main"]
        every = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"]
        self._git(folder, *words, "origin", *(one if self.depth else every))
        if self.sparse:
            self._git(folder, "sparse-checkout", "set", *self.sparse)
        self._git(folder, "checkout", "--force", "-B", "main", "refs/remotes/origin/main")

    def _git(self, folder: Path, *words: str) -> None:
        git(folder, *words, **self.environment)
