"""A container image that a recipe names by its reference: Debian's skopeo, and docker-registry in
place of a public one.
"""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.building import begin
from tests.containers import tar
from tests.fetching import as_registry, digest, push, registry, running
from vmrunner.errors import ImageError
from vmrunner.image.build import containers
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import ContainerSource

pytestmark = pytest.mark.long  # `make long` has these programs
NAME = "registry.example:5000/tools/node:22"


def laid(work: Path, reference: str) -> dict[str, bytes]:
    source = ContainerSource(name=NAME, reference=reference)
    wanted = recipe.load("debian-12").model_copy(update={"containers": (source,)})
    (made,) = containers.lay(begin(work, wanted))
    assert made.name == NAME
    with tarfile.open(work / "tree" / made.path.removeprefix("/")) as found:
        return {each.name: found.extractfile(each).read() for each in found if each.isfile()}  # type: ignore[union-attr]


def test_a_reference_is_laid_as_the_registry_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = registry(tmp_path / "registry")
    place = f"127.0.0.1:{one.mirror.port}"
    settings = tmp_path / ".config/containers/registries.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[[registry]]\nlocation = "{place}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    layer = gzip.compress(tar({"hello": b"x" * 100_000}), mtime=0)
    work = tmp_path / "work"
    work.mkdir()
    with running(one, as_registry):
        name = push(one, "latest", layer)
        files = laid(work, f"{place}/library/a@{name}")
        with pytest.raises(ImageError, match=f"{'0' * 64} failed"):
            laid(work, f"{place}/library/a@sha256:{'0' * 64}")
    told: list[dict[str, Any]] = json.loads(files["manifest.json"])
    assert [each["RepoTags"] for each in told] == [[NAME]]
    assert [files[each] for each in told[0]["Layers"]] == [layer]
    assert told[0]["Layers"] == [f"blobs/sha256/{digest(layer).removeprefix('sha256:')}"]
    (named,) = json.loads(files["index.json"])["manifests"]
    assert named["annotations"] == {"org.opencontainers.image.ref.name": NAME}
