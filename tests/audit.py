"""Known vulnerabilities of what vmrunner runs on: `python -m tests.audit`, with the network.

It ends with 0 only if every package was looked up: pip-audit by itself calls it a success when the
service knew none of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# Vulnerable, and known to be since 2014: a service that does not say so would not say anything.
KNOWN = "jinja2==2.4.1"


def main() -> int:
    """Resolve, look up, print; 0 for nothing known, 1 for something, 2 where that could not be
    found out.
    """
    with tempfile.TemporaryDirectory() as folder:
        pinned = resolved(Path(folder))
        print(f"audit: {' '.join(pinned)}")
        sentence, code = judge(looked_up(pinned, Path(folder)), looked_up([KNOWN], Path(folder)))
    print(f"audit: {sentence}", file=sys.stderr)
    return code


def resolved(folder: Path) -> list[str]:
    """What pip takes today for pyproject's dependencies and theirs; libvirt-python is Debian's, as
    in the README.
    """
    venv.create(folder / "venv", with_pip=True, system_site_packages=True)
    pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip"]
    subprocess.run([*pip, "install", "--quiet", str(ROOT)], check=True)
    said = subprocess.run([*pip, "inspect"], check=True, capture_output=True, text=True).stdout
    return below("vmrunner", [each["metadata"] for each in json.loads(said)["installed"]])


def below(name: str, installed: Iterable[dict[str, Any]]) -> list[str]:
    """The packages that one needs, directly or not, as `name==version`."""
    known = {canonicalize_name(each["name"]): each for each in installed}
    found: set[str] = set()
    ahead = {canonicalize_name(name)}
    while ahead:
        found |= ahead
        needed = [
            Requirement(text) for each in ahead for text in known[each].get("requires_dist", [])
        ]
        ahead = {
            canonicalize_name(each.name)
            for each in needed
            if not each.marker or each.marker.evaluate({"extra": ""})
        } - found
    return sorted(f"{each}=={known[each]['version']}" for each in found - {canonicalize_name(name)})


def looked_up(pinned: list[str], folder: Path) -> dict[str, Any]:
    """What pip-audit reports; nothing where it failed."""
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(pinned))
    options = ["--disable-pip", "--no-deps", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *options, "-r", wanted], capture_output=True, text=True
    )
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        print(*done.stderr.splitlines()[-1:], file=sys.stderr)
        return {}
    return report


def judge(report: dict[str, Any], control: dict[str, Any]) -> tuple[str, int]:
    """A sentence and an exit code; `control` is the report about KNOWN."""
    packages = report.get("dependencies", [])
    missed = [each["name"] for each in packages if "skip_reason" in each]
    found = {
        f"{each['name']} {each['version']}": each["vulns"] for each in packages if each.get("vulns")
    }
    if found:
        listed = "; ".join(
            f"{name}: {', '.join(flaw['id'] for flaw in flaws)}"
            for name, flaws in sorted(found.items())
        )
        return f"known vulnerabilities in {listed}.", 1
    if not any(each.get("vulns") for each in control.get("dependencies", [])):
        return (
            "nothing was audited: from here the vulnerability service (pypi.org) does not even "
            f"know those of {KNOWN}.",
            2,
        )
    if missed or not packages:
        return (
            f"the vulnerability service could not tell about {', '.join(missed) or 'any package'}.",
            2,
        )
    return f"no known vulnerabilities in {len(packages)} packages.", 0


if __name__ == "__main__":
    sys.exit(main())
