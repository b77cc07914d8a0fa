"""Which .deb each package of an image came from, out of apt's lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmrunner.errors import ImageError
from vmrunner.image.recipe import packages
from vmrunner.model.image import Package
from vmrunner.text import some

A, B, C = "a" * 64, "b" * 64, "c" * 64
LISTED = "curl\t8.1\tamd64\tinstalled\ntzdata\t2026a\tall\tinstalled\nold\t1\tamd64\tconfig-files\n"


def stanza(name: str, version: str, architecture: str, sha256: str) -> str:
    description = f"Description: a package\n SHA256: {C}\n Package: nothing\n"
    return (
        f"Package: {name}\nArchitecture: {architecture}\nVersion: "
        f"{version}\n{description}SHA256: {sha256}\n\n"
    )


def lists(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"mirror.example_dists_{name}_main_binary-amd64_Packages").write_text(text)
    (folder / "mirror.example_dists_bookworm_InRelease").write_text("Package: curl\n")
    return folder


def test_each_package_has_the_digest_of_its_version_and_architecture(tmp_path: Path) -> None:
    main = (
        stanza("curl", "8.0", "amd64", C)
        + stanza("curl", "8.1", "arm64", C)
        + stanza("tzdata", "2026a", "all", B)
    )
    lists(tmp_path, bookworm=main, security=stanza("curl", "8.1", "amd64", A).rstrip("\n"))
    assert packages.installed(LISTED, tmp_path) == {
        "curl": Package(version="8.1", architecture="amd64", sha256=A),
        "tzdata": Package(version="2026a", architecture="all", sha256=B),
    }


def test_a_package_that_no_list_knows(tmp_path: Path) -> None:
    lists(tmp_path, bookworm=stanza("curl", "8.0", "amd64", A))
    with pytest.raises(ImageError, match="apt's lists have no digest for curl, tzdata"):
        packages.installed(LISTED, tmp_path)


def test_one_version_with_two_contents(tmp_path: Path) -> None:
    lists(tmp_path, one=stanza("curl", "8.1", "amd64", A), two=stanza("curl", "8.1", "amd64", B))
    with pytest.raises(ImageError, match=r"have a different curl 8\.1"):
        packages.installed(LISTED, tmp_path)


def test_the_first_few_of_many() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(list("abcdefg")) == "a, b, c, d and 3 more"
