"""The Debian packages want what pyproject.toml wants; a version is the same to both."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
DEBIAN = ROOT / "packaging" / "debian"
# Debian's names, where they are not python3-NAME.
NAMES = {"libvirt-python": "python3-libvirt"}
# What the modules of vmrunner-modules need of each other.
BELOW = {"annotated-types", "httpcore", "pydantic-core", "typing-extensions"}


def wanted() -> dict[str, str]:
    """Each package and its smallest version, as Debian writes it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = {}
    for requirement in map(Requirement, project["dependencies"]):
        (specifier,) = requirement.specifier
        assert specifier.operator == ">="
        name = NAMES.get(requirement.name, f"python3-{requirement.name}")
        found[name] = specifier.version
    return found


def field(name: str, number: int = 0) -> list[str]:
    text = (DEBIAN / "control").read_text()
    found = re.findall(rf"(?m)^{name}:((?: .*)?(?:\n .*)*)", text)[number]
    return [each.strip() for each in found.split(",") if each.strip()]


@pytest.mark.parametrize("name", ["Build-Depends-Indep", "Depends"])
def test_the_package_needs_what_the_project_needs(name: str) -> None:
    pattern = r"(python3-[a-z0-9-]+) \(>= ([0-9.]+)\)"
    found = [match.groups() for each in field(name) if (match := re.match(pattern, each))]
    assert dict(found) == wanted()
    assert len(found) == len(wanted())


def test_the_second_package_has_what_debian_12_lacks() -> None:
    lines = (DEBIAN / "modules.txt").read_text().splitlines()
    pinned = dict(line.split()[0].split("==") for line in lines if not line.startswith("#"))
    alternatives = {each.split()[0] for each in field("Depends") if "| vmrunner-modules" in each}
    assert {f"python3-{name}" for name in pinned.keys() - BELOW} == alternatives
    for name in pinned.keys() - BELOW:
        assert Requirement(f"{name}>={wanted()[f'python3-{name}']}").specifier.contains(
            pinned[name]
        )
    for line in lines:
        assert line.startswith("#") or "--hash=sha256:" in line


@pytest.mark.parametrize(
    ("version", "debian"),
    [
        ("1.2.3", "1.2.3"),
        ("1.2.3rc1", "1.2.3~rc1"),
        ("1.2.4.dev3+g0a1b2c3", "1.2.4~dev3+g0a1b2c3"),
        ("1.2a1.dev3", "1.2~a1~dev3"),
        ("1.2.3+gdeadb1", "1.2.3+gdeadb1"),
        ("1.2.4.dev3+gdeva1rc2", "1.2.4~dev3+gdeva1rc2"),
    ],
)
def test_a_version_that_is_not_yet_the_release_is_less_to_debian(version: str, debian: str) -> None:
    function = re.search(r"(?m)^debian_version\(\).*$", (ROOT / "packaging/build").read_text())
    assert function
    said = subprocess.run(
        ["bash", "-c", f'{function[0]}\ndebian_version "$1"', "-", version],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == debian
