"""The bill of materials: valid CycloneDX with every package, and a sentence where its library is
missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclonedx.schema import OutputFormat
from cyclonedx.validation import make_schemabased_validator

from tests.golden import PACKAGES, publish
from vmrunner.image.versions import sbom

RUNNER = {"kind": "gitea-runner", "path": "/usr/local/bin/gitea-runner", "sha256": "f" * 64}


def test_it_is_valid_and_names_everything(tmp_path: Path) -> None:
    golden = publish(tmp_path, runner=RUNNER)
    text = sbom.text(golden)
    assert text == sbom.text(golden), "the same whenever it is asked for"
    assert make_schemabased_validator(OutputFormat.JSON, sbom.VERSION).validate_str(text) is None
    told = json.loads(text)
    assert told["metadata"]["component"]["version"] == "1"
    parts = {each["name"]: each for each in told["components"]}
    assert parts.keys() == {*PACKAGES, "gitea-runner"}
    assert (
        parts["git"]["purl"] == "pkg:deb/debian/git@1:2.39.5-0%2Bdeb12u2?arch=amd64&distro=bookworm"
    )
    assert parts["git"]["hashes"] == [{"alg": "SHA-256", "content": PACKAGES["git"].sha256}]
    assert parts["gitea-runner"]["hashes"] == [{"alg": "SHA-256", "content": "f" * 64}]


def test_further_runners_and_container_images_are_in_it(tmp_path: Path) -> None:
    further = {"old": RUNNER | {"path": "/usr/lib/vmrunner/runners/old", "sha256": "e" * 64}}
    archives = {
        f"/usr/lib/vmrunner/containers/{n:02}.tar": {"mode": "0644", "sha256": f"{n}" * 64}
        for n in range(2)
    }
    inputs = archives | {"/etc/motd": {"mode": "0644", "sha256": "d" * 64}}
    named = {path: f"debian:{12 + n}" for n, path in enumerate(archives)}
    text = sbom.text(
        publish(
            tmp_path, packages={}, runner=RUNNER, runners=further, inputs=inputs, containers=named
        )
    )
    assert make_schemabased_validator(OutputFormat.JSON, sbom.VERSION).validate_str(text) is None
    told = {
        (each["type"], each["name"], each["properties"][0]["value"], each["hashes"][0]["content"])
        for each in json.loads(text)["components"]
    }
    assert told == {
        ("application", "gitea-runner", RUNNER["path"], "f" * 64),
        ("application", "gitea-runner", "/usr/lib/vmrunner/runners/old", "e" * 64),
        *(("container", named[path], path, file["sha256"]) for path, file in archives.items()),
    }
    unnamed = json.loads(sbom.text(publish(tmp_path, version="2", packages={}, inputs=inputs)))
    assert {each["name"] for each in unnamed["components"]} == archives.keys(), (
        "an older vmrunner noted no names"
    )


def test_tools_are_named_by_their_versions(tmp_path: Path) -> None:
    tools = {"go/1.26.0/x64": "a" * 64, "go/1.27.0/x64": "b" * 64}
    text = sbom.text(publish(tmp_path, packages={}, tools=tools))
    assert make_schemabased_validator(OutputFormat.JSON, sbom.VERSION).validate_str(text) is None
    assert [
        (each["name"], each["version"], each["hashes"][0]["content"])
        for each in json.loads(text)["components"]
    ] == [("go", "1.26.0", "a" * 64), ("go", "1.27.0", "b" * 64)]


def test_the_packages_are_of_the_images_distribution(tmp_path: Path) -> None:
    told = json.loads(sbom.text(publish(tmp_path, distribution="ubuntu", suite="noble")))
    assert {each["purl"].rpartition("@")[0] for each in told["components"]} == {
        f"pkg:deb/ubuntu/{name}" for name in PACKAGES
    }


def test_an_image_of_an_older_vmrunner_has_versions_alone(tmp_path: Path) -> None:
    text = sbom.text(publish(tmp_path, packages={"curl": "8.1"}, suite="", inputs=None))
    assert make_schemabased_validator(OutputFormat.JSON, sbom.VERSION).validate_str(text) is None
    (curl,) = json.loads(text)["components"]
    assert (curl["purl"], "hashes" in curl) == ("pkg:deb/debian/curl@8.1", False)


def test_a_disk_of_tools_is_no_system_and_its_tools_have_versions(tmp_path: Path) -> None:
    tools = {"go/1.26.0/x64": "a" * 64, "Python/3.14.6/x64": "b" * 64}
    text = sbom.text(publish(tmp_path, packages={}, name="tools", kernel="", tools=tools))
    assert make_schemabased_validator(OutputFormat.JSON, sbom.VERSION).validate_str(text) is None
    told = json.loads(text)
    disk = told["metadata"]["component"]
    assert (disk["type"], disk["name"]) == ("file", "tools")
    assert "vmrunner:kernel" not in {each["name"] for each in disk["properties"]}
    assert {
        (each["type"], each["name"], each["version"], each["properties"][0]["value"])
        for each in told["components"]
    } == {
        ("application", "go", "1.26.0", "/opt/hostedtoolcache/go/1.26.0/x64"),
        ("application", "Python", "3.14.6", "/opt/hostedtoolcache/Python/3.14.6/x64"),
    }
    assert {each["hashes"][0]["content"] for each in told["components"]} == {"a" * 64, "b" * 64}


def test_without_its_library_only_the_bill_is_missing() -> None:
    program = """
import sys
sys.modules["cyclonedx"] = None
from vmrunner.cli import image_cmd
from vmrunner.errors import ImageError
try:
    image_cmd.sbom("mine")
except ImageError as error:
    print(error.sentence, error.hint)
"""
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    assert "needs the Python package cyclonedx-python-lib" in said
    assert "pip install 'vmrunner[sbom]'" in said


def test_a_bad_schema_would_be_told() -> None:
    """The validator can fail."""
    with pytest.raises(AssertionError):
        assert (
            make_schemabased_validator(OutputFormat.JSON, sbom.VERSION).validate_str(
                '{"bomFormat": "CycloneDX"}'
            )
            is None
        )
