"""The workflows that are measured: what each fetches and installs, and what actions/cache keeps."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from textwrap import indent

_HERE = Path(__file__).parent
CLIENT = "client.mjs"
BROUGHT = "brought.tgz"
"""What checkout and the actions bring: it is the same on each side, and not measured."""


@dataclass(frozen=True)
class Kind:
    """A workflow. What it needs is got by `get`, and used by `use`; actions/cache keeps `kept`, of
    which `again` makes use where that is not all.
    """

    name: str
    kept: str
    get: str
    use: str
    keep: str = ""
    again: str = ""

    @property
    def folder(self) -> Path:
        """Its sources."""
        return _HERE / self.name

    @property
    def key(self) -> str:
        """That of the entry: another one where anything of it is changed."""
        content = b"".join(path.read_bytes() for path in sorted(self.folder.iterdir()))
        return f"{self.name}-{hashlib.sha256(content).hexdigest()}"

    def workflow(self, label: str, forge: str, repository: str, *, cached: bool) -> str:
        """For machines of this label."""
        client = f'node client.mjs "$PWD" WHAT {self.key} {self.kept}'
        script = f"""\
took=
now() {{ read -r uptime _ </proc/uptime; took="$took $uptime"; }}
get() {{
{indent(self.get, "  ")}
}}
curl -sSf {forge}/{repository}/raw/branch/main/{BROUGHT} | tar xz
found=
now
{f"found=$({client.replace('WHAT', 'restore')})" if cached else ""}
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
    {client.replace("WHAT", "save")} ;;
esac
now
echo "found: $found"
echo "took:$took"
"""
        return f"""\
on: workflow_dispatch
jobs:
  it:
    runs-on: [{label}]
    steps:
      - run: |
{indent(script, " " * 10)}"""


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            "python",
            kept="venv",
            get="python3 -m venv venv\nvenv/bin/pip install -q -r requirements.txt",
            use="venv/bin/python -c 'import numpy, requests; print(numpy.arange(3).sum())'",
        ),
        Kind(
            "node",
            kept="node_modules",
            get="npm ci --no-audit --no-fund",
            use='node -e \'require("express"); require("lodash")\'',
        ),
        Kind(
            "go",
            kept='"$HOME/go"',
            get='GOCACHE="$HOME/go/cache" go build -o cached .',
            again='GOCACHE="$HOME/go/cache" go build -o cached .',
            use="./cached",
        ),
        Kind(
            "docker",
            kept="images.tar",
            get="docker build -q -t built .",
            keep="docker save -o images.tar a:latest built",
            again="docker load -q -i images.tar; docker build -q --cache-from built -t built .",
            use="docker run --rm built curl --version",
        ),
    )
}
