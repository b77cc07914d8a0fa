"""/etc/hosts when a machine gets its name, by the shell where it boots and by Python in a clone:
what the image has there stays.
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vmrunner.resources import folder

NAME = "vmr-ci-1-00c0ffee"
OURS = [
    f"{line} # vmrunner" for line in ("127.0.0.1 localhost", f"127.0.1.1 {NAME}", "::1 localhost")
]
RECIPES = [
    "# of the recipe",
    "192.0.2.7\tregistry.example r # e.g.",
    "",
    "  192.0.2.8 *.example \\n %s",
    "127.0.0.10 notlocalhost",
]


def booted(hosts: Path) -> None:
    """By the function of the guest's seed reader."""
    text = (folder("images") / "guest/vmrunner-guest").read_text()
    function = text[
        text.index("name_hosts() {") : text.index("\n}\n", text.index("name_hosts() {")) + 3
    ]
    script = 'mount --bind "$0" /etc/hosts\n' if hosts.exists() else ""
    function = function if hosts.exists() else function.replace("/etc/hosts", str(hosts))
    subprocess.run(
        ["unshare", "--mount", "sh", "-euc", f"{script}{function}name_hosts {NAME}", hosts],
        check=True,
    )


def cloned(hosts: Path) -> None:
    """By the function of the script that waits in clones."""
    tree = ast.parse((folder("images") / "guest" / "job.py").read_text())
    (function,) = [
        each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == "identify"
    ]

    class Elsewhere(type(hosts)):  # type: ignore[misc]  # all that is written is beside our file
        def __new__(cls, path: str) -> Any:
            return hosts if path == "/etc/hosts" else hosts.with_name(Path(path).name)

    known = {
        "Path": Elsewhere,
        "libc": SimpleNamespace(sethostname=lambda *_: 0),
        "mount": lambda *_: None,
        "MS_BIND": 0,
    }
    hosts.with_name("machine-id").touch()
    code = compile(ast.Module([function], []), "identify", "exec")
    exec(code, known | {"os": __import__("os")}, known)  # noqa: S102 — ours
    known["identify"]({"local-hostname": NAME, "vmrunner-machine-id": "0"})  # type: ignore[operator]


@pytest.mark.parametrize("named", [booted, cloned])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, OURS),
        ("", OURS),
        ("".join(f"{line}\n" for line in RECIPES), [*OURS, *RECIPES]),
        ("192.0.2.7 unended.example", [*OURS, "192.0.2.7 unended.example"]),
        # Of the machine that this is a clone of, or of the boot before.
        (
            "127.0.0.1 localhost # vmrunner\n127.0.1.1 vmr-old # vmrunner\n192.0.2.7 a\n::1 "
            "localhost # vmrunner\n",
            [*OURS, "192.0.2.7 a"],
        ),
        # Nothing twice: who listens on "localhost" would fail for the second one.
        (
            "127.0.0.1\tme localhost\n127.0.1.1 build\n",
            [*OURS[1:], "127.0.0.1\tme localhost", "127.0.1.1 build"],
        ),
        ("::1 ip6-localhost localhost # both\n", [*OURS[:2], "::1 ip6-localhost localhost # both"]),
        ("::1 ip6-localhost # localhost\n", [*OURS, "::1 ip6-localhost # localhost"]),
    ],
)
def test_the_recipes_lines_stay_and_ours_are_replaced(
    tmp_path: Path, named: Any, before: str | None, after: list[str]
) -> None:
    hosts = tmp_path / "hosts"
    if before is not None:
        hosts.write_text(before)
    for _ in range(2):
        named(hosts)
        assert hosts.read_text().splitlines() == after
