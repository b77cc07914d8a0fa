"""The workflows that are measured: what each fetches and installs, and what actions/cache keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

from tests.cached.tools import GO, NODE, PYTHON, Tool

_HERE = Path(__file__).parent
ACTION = Path("action")
"""Where it looks for its library: `npm ci` removes the job's own."""
BROUGHT = "brought.tgz"
"""What checkout and the actions bring: it is the same on each side, and not measured."""


@dataclass(frozen=True)
class Kind:
    """A workflow. What it needs is got by `get`, with its tool, and used by `use`; actions/cache
    keeps `kept`, if anything, of which `again` makes use where that is not all. `$caching` is empty
    where nothing is kept.
    """

    name: str
    tool: Tool | None
    get: str
    use: str
    kept: str = ""
    keep: str = ""
    again: str = ""

    sources: str = ""  # whose, where it has none of its own

    @property
    def folder(self) -> Path:
        """Its sources."""
        return _HERE / (self.sources or self.name)

    @property
    def key(self) -> str:
        """That of the entry: another one where anything of it is changed."""
        content = b"".join(path.read_bytes() for path in sorted(self.folder.iterdir()))
        return f"{self.name}-{hashlib.sha256(content).hexdigest()}"

    def workflow(self, forge: str, repository: str, place: Place) -> str:
        """For this side."""
        client = f'node client.mjs "$PWD/{ACTION}" WHAT {self.key} {self.kept}'
        tool = ""
        if self.tool:
            url = f"{place.tools}/{self.tool.archive.name}"
            tool = f"tool=$(node tool.cjs {self.tool.name} {self.tool.version} {url})"
        by_action = place.is_cached and self.kept
        script = f"""\
took= caching={"yes" if place.is_cached else ""}
now() {{ read -r uptime _ </proc/uptime; took="$took $uptime"; }}
get() {{
{indent(self.get, "  ")}
}}
curl -sSf {forge}/{repository}/raw/branch/main/{BROUGHT} | tar xz
{f"export ACTIONS_CACHE_URL={place.cache}" if place.cache else ""}
found=
now
{tool}
now
{f"found=$({client.replace('WHAT', 'restore')})" if by_action else ""}
now
case $found in
  *'"result":"'*) {self.again or ":"} ;;
  *) get ;;
esac
now
{self.use}
now
case $found in
  *'"result":null'*)
    {self.keep or ":"}
    {client.replace("WHAT", "save") if by_action else ""} ;;
esac
now
echo "found: $found"
echo "took:$took"
"""
        return f"""\
on: workflow_dispatch
jobs:
  it:
    runs-on: [{place.label}]
    steps:
      - run: |
{indent(script, " " * 10)}"""


@dataclass(frozen=True)
class Place:
    """What the workflows of one side are told."""

    label: str
    tools: str  # where those are fetched from that are not there
    is_cached: bool = True
    cache: str = ""  # that of another host


_BUILD = 'GOTOOLCHAIN=local GOCACHE="$HOME/go/cache" $tool/bin/go build -o cached .'
_CURL = "docker run --rm built curl --version"
KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "python",
            PYTHON,
            kept="venv",
            get="$tool/bin/python3 -m venv --without-pip venv\n"
            "$tool/bin/python3 -m pip --python venv/bin/python install -q -r requirements.txt",
            use="venv/bin/python -c 'import numpy, requests; print(numpy.arange(3).sum())'",
        ),
        Kind(
            "node",
            NODE,
            kept="node_modules",
            get='PATH="$tool/bin:$PATH" npm ci --no-audit --no-fund',
            use='$tool/bin/node -e \'require("express"); require("lodash")\'',
        ),
        Kind(
            "go",
            GO,
            kept='"$HOME/go"',
            get=_BUILD,
            again=_BUILD,
            use="./cached",
        ),
        Kind(
            "docker",
            None,
            get="docker build ${caching:+--cache-from type=gha --cache-to type=gha} -t built .",
            use=_CURL,
        ),
        Kind(
            "docker-saved",
            None,
            sources="docker",
            kept="images.tar",
            get="docker build -t built .",
            keep="docker save -o images.tar built",
            again="docker load -q -i images.tar",
            use=_CURL,
        ),
    )
}
