"""A container image that a recipe names by its reference: Debian's skopeo, and docker-registry in
place of a public one.
"""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.building import begin
from tests.containers import contents, tar
from tests.fetching import as_registry, push, registry, running
from vmrunner.errors import ImageError
from vmrunner.image.build import containers
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import ContainerSource

pytestmark = pytest.mark.long  # `make long` has these programs
NAME = "registry.example:5000/tools/node:22"


def archive_of(work: Path) -> Path:
    return work / "tree/usr/lib/vmrunner/containers/00.tar"


def laid(work: Path, reference: str) -> dict[str, bytes]:
    source = ContainerSource(name=NAME, reference=reference)
    wanted = recipe.load("debian-12").model_copy(update={"containers": (source,)})
    (made,) = containers.lay(begin(work, wanted))
    assert made.name == NAME
    return contents(archive_of(work).read_bytes())


def test_a_reference_is_laid_by_its_name_and_the_same_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = registry(tmp_path / "registry")
    place = f"127.0.0.1:{one.mirror.port}"
    settings = tmp_path / ".config/containers/registries.conf"
    settings.parent.mkdir(parents=True)
    settings.write_text(f'[[registry]]\nlocation = "{place}"\ninsecure = true\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    layer = gzip.compress(tar({"hello": b"x" * 100_000}), mtime=0)
    one_build, another = tmp_path / "one", tmp_path / "another"
    one_build.mkdir()
    another.mkdir()
    with running(one, as_registry):
        name = push(one, "latest", layer)
        files = laid(one_build, f"{place}/library/a@{name}")
        time.sleep(1.1)  # archives know seconds
        again = laid(another, f"{place}/library/a@{name}")
        with pytest.raises(ImageError, match=f"{'0' * 64} failed"):
            laid(tmp_path, f"{place}/library/a@sha256:{'0' * 64}")
    told: list[dict[str, Any]] = json.loads(files["manifest.json"])
    assert [each["RepoTags"] for each in told] == [[NAME]]
    assert [files[each] for each in told[0]["Layers"]] == [gzip.decompress(layer)]
    assert again == files
    assert archive_of(another).read_bytes() == archive_of(one_build).read_bytes()
