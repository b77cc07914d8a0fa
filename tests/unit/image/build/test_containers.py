"""Container images that a recipe brings: what gets into the tree, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.building import begin
from tests.containers import archive, contents, oci_archive, packed, tar
from vmrunner.errors import ImageError
from vmrunner.files import digest
from vmrunner.image.build import containers, downloads
from vmrunner.image.recipe import recipe
from vmrunner.image.recipe.recipe import ContainerSource

ARCHIVE = archive(b"a layer", "other:1")
REQUEST = httpx.Request("GET", "https://registry.example/")
RIGHT, WRONG = hashlib.sha256(ARCHIVE).hexdigest(), "0" * 64


def lay(work: Path, *sources: ContainerSource) -> dict[str, str]:
    """Into the tree in this folder, with a server that has ARCHIVE under any URL; the archives'
    sha256.
    """
    wanted = recipe.load("debian-12").model_copy(update={"containers": sources})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            downloads.httpx,
            "stream",
            lambda *_, **__: nullcontext(httpx.Response(200, content=ARCHIVE, request=REQUEST)),
        )
        return {each.path: each.sha256 for each in containers.lay(begin(work, wanted))}


def test_archives_are_laid_beside_their_names(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(ARCHIVE)
    here = ContainerSource(name="debian:13", archive=tmp_path / "a.tar")
    there = ContainerSource(
        name="registry.example:5000/node:22", url="https://registry.example/node.tar", sha256=RIGHT
    )
    found = lay(tmp_path, here, there)
    assert found == {f"/usr/lib/vmrunner/containers/{number}.tar": RIGHT for number in ("00", "01")}
    folder = tmp_path / "tree" / "usr/lib/vmrunner/containers"
    assert [(folder / f"{number}.name").read_text() for number in ("00", "01")] == [
        "debian:13\n",
        "registry.example:5000/node:22\n",
    ]
    assert (folder / "01.tar").read_bytes() == ARCHIVE
    laid = sorted(path.name for path in (tmp_path / "tree").rglob("*") if not path.is_dir())
    assert laid == ["00.name", "00.tar", "01.name", "01.tar"], "nothing of them is unpacked"
    (tmp_path / "without").mkdir()
    assert lay(tmp_path / "without") == {}
    assert not (tmp_path / "without/tree").exists()


def test_what_is_not_the_recipes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(ARCHIVE)
    with pytest.raises(ImageError, match=f"has the sha256 {RIGHT}, the recipe wants {WRONG}"):
        lay(
            tmp_path,
            ContainerSource(name="a", url="https://registry.example/a.tar", sha256=WRONG),
        )
    with pytest.raises(ImageError, match="has the sha256"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar", sha256=WRONG))
    (tmp_path / "a.tar").write_bytes(ARCHIVE[:700])
    with pytest.raises(ImageError, match="is no docker-archive, and no oci-archive of one image"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar"))
    with pytest.raises(ImageError, match=r"The archive .*none.tar can't be read"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "none.tar"))
    (tmp_path / "a.tar").write_bytes(gzip.compress(oci_archive(packed(b"a layer"), "a")))
    with pytest.raises(ImageError, match="no oci-archive of one image") as caught:
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar"))
    assert "must not be packed" in str(caught.value.hint)


def test_an_oci_archive_is_laid_so_that_each_docker_loads_it(tmp_path: Path) -> None:
    layer = packed(b"a layer")
    plain = oci_archive(layer, "other:1")
    (tmp_path / "a.tar").write_bytes(plain)
    sha256 = hashlib.sha256(plain).hexdigest()
    source = ContainerSource(name="debian:13", archive=tmp_path / "a.tar", sha256=sha256)
    (laid,) = lay(tmp_path, source).items()
    target = tmp_path / "tree" / laid[0].removeprefix("/")
    assert laid[1] == digest(target) != sha256
    before, after = contents(plain), contents(target.read_bytes())
    assert (tmp_path / "a.tar").read_bytes() == plain
    (told,) = json.loads(after.pop("manifest.json"))
    assert after == before
    assert told["RepoTags"] == ["debian:13"]
    assert [after[name] for name in told["Layers"]] == [layer]
    assert json.loads(after[told["Config"]])["rootfs"]["type"] == "layers"
    # It stays as it is now.
    (tmp_path / "a.tar").write_bytes(target.read_bytes())
    (again,) = lay(tmp_path, ContainerSource(name="b", archive=tmp_path / "a.tar")).values()
    assert again == laid[1]


def rewritten(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    files = contents(content)
    change(files)
    return tar(files)


def index(files: dict[str, bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files["index.json"])
    return found


def for_platforms(files: dict[str, bytes], *platforms: str) -> None:
    """As a registry has an image for several platforms, with what tells where it is from."""
    (named,) = index(files)["manifests"]
    named.pop("annotations")
    listed = []
    for each in platforms:
        system, architecture = each.split("/")
        listed.append(named | {"platform": {"os": system, "architecture": architecture}})
    inner = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    sha256 = hashlib.sha256(inner).hexdigest()
    files[f"blobs/sha256/{sha256}"] = inner
    files["index.json"] = json.dumps({"manifests": [{"digest": f"sha256:{sha256}"}]}).encode()


def test_of_several_platforms_the_machines_own_is_taken(tmp_path: Path) -> None:
    content = rewritten(
        oci_archive(packed(b"a layer"), "a"),
        lambda files: for_platforms(files, "linux/arm64", "linux/amd64", "unknown/unknown"),
    )
    (tmp_path / "a.tar").write_bytes(content)
    (path,) = lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar"))
    assert "manifest.json" in contents((tmp_path / "tree" / path.removeprefix("/")).read_bytes())


def twice(files: dict[str, bytes]) -> None:
    (named,) = index(files)["manifests"]
    files["index.json"] = json.dumps({"manifests": [named, named]}).encode()


@pytest.mark.parametrize(
    ("name", "tagged"),
    [
        ("debian", "debian:latest"),
        ("registry.example:5000/debian", "registry.example:5000/debian:latest"),
        ("my__image:1", "my__image:1"),
    ],
)
def test_docker_is_told_a_name_with_its_tag(tmp_path: Path, name: str, tagged: str) -> None:
    content = rewritten(oci_archive(packed(b"a layer"), "other"), twice)
    (tmp_path / "a.tar").write_bytes(content)
    (path,) = lay(tmp_path, ContainerSource(name=name, archive=tmp_path / "a.tar"))
    told = json.loads(
        contents((tmp_path / "tree" / path.removeprefix("/")).read_bytes())["manifest.json"]
    )
    assert told[0]["RepoTags"] == [tagged]


def for_another_processor(files: dict[str, bytes]) -> None:
    """As its config alone says."""
    for name, content in files.items():
        files[name] = content.replace(b'"amd64"', b'"arm64"')


def without_layer(files: dict[str, bytes]) -> None:
    del files[max(files, key=lambda name: len(files[name]))]


def itself(files: dict[str, bytes]) -> None:
    """An index that names itself has no end."""
    (named,) = index(files)["manifests"]
    name = f"blobs/sha256/{named['digest'].removeprefix('sha256:')}"
    files[name] = files["index.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("index.json"),
        lambda files: files.update({"index.json": b"[]"}),
        lambda files: files.update({"index.json": b"{"}),
        lambda files: files.update({"index.json": b'{"manifests": []}'}),
        lambda files: files.update({"index.json": b'{"manifests": [1]}'}),
        lambda files: files.update(
            {"index.json": b'{"manifests": [{"digest": "sha256:../../index.json"}]}'}
        ),
        lambda files: for_platforms(files, "linux/arm64"),
        lambda files: files.update(
            {"index.json": b'{"manifests": [{"digest": "sha256:0"}, {"digest": "sha256:1"}]}'}
        ),
        lambda files: files.update({"index.json": b'{"manifests":' + b"[" * 200_000}),
        for_another_processor,
        without_layer,
        itself,
    ],
)
def test_an_archive_that_no_machine_could_load_is_refused(
    tmp_path: Path, change: Callable[[dict[str, bytes]], None]
) -> None:
    layer = packed(os.urandom(4096))
    (tmp_path / "a.tar").write_bytes(rewritten(oci_archive(layer, "a"), change))
    with pytest.raises(ImageError, match="no oci-archive of one image for linux/amd64"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_what_it_says_is_a_file(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("index.json")
        member.type, member.linkname = kind, "index.json"
        archive.addfile(member)
    with pytest.raises(ImageError, match="no oci-archive"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar"))


@pytest.mark.parametrize(("code", "said"), [(0, ""), (1, "level=fatal msg=manifest unknown")])
def test_a_reference_is_pulled_by_skopeo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    source = ContainerSource(name="debian:13", reference=f"docker.io/library/debian@sha256:{WRONG}")
    monkeypatch.setattr(containers.shutil, "which", lambda _: None)
    with pytest.raises(ImageError, match="needs skopeo"):
        lay(tmp_path, source)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    (tmp_path / "archive").write_bytes(ARCHIVE)
    program = tmp_path / "skopeo"
    # As the real one is called: to=docker-archive:FILE:NAME.
    program.write_text(
        f'#!/bin/sh\n[ -z "{said}" ] || {{ echo "{said}" >&2; exit {code}; }}\n'
        f'[ "$1 $2 $3" = "copy --quiet docker://docker.io/library/debian@sha256:{WRONG}" ] || exit '
        "9\n"
        f'to=${{4#docker-archive:}}; [ "${{to#*:}}" = debian:13 ] || exit 8; cp {tmp_path}/archive '
        f'"${{to%%:*}}"\n'
    )
    program.chmod(0o755)
    if code:
        with pytest.raises(
            ImageError, match=r"Fetching the container image .*debian@sha256:0+ failed \(exit 1\)"
        ) as caught:
            lay(tmp_path, source)
        assert said in str(caught.value.hint)
        assert said in (tmp_path / "log").read_text(), (
            "with all else that the build's programs print"
        )
    else:
        assert lay(tmp_path, source) == {"/usr/lib/vmrunner/containers/00.tar": RIGHT}


def test_recipes_inherit_them_and_their_digest_knows_the_content(tmp_path: Path) -> None:
    text = 'extends = "debian-13-docker"\n[[containers]]\nname = "a:1"\narchive = "a.tar"\n'
    (tmp_path / "mine.toml").write_text(text)
    (tmp_path / "more.toml").write_text(
        text.replace("debian-13-docker", "mine").replace("a:1", "b:1")
    )
    (tmp_path / "a.tar").write_bytes(ARCHIVE)
    assert [each.name for each in recipe.load("more", tmp_path).containers] == ["a:1", "b:1"]
    before = recipe.load("mine", tmp_path).digest()
    (tmp_path / "a.tar").write_bytes(ARCHIVE + b"\0")
    assert recipe.load("mine", tmp_path).digest() != before
    (tmp_path / "a.tar").unlink()
    with pytest.raises(ImageError, match="can't be read"):
        recipe.load("mine", tmp_path).digest()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('name = "a"', "name either an archive, a url or a reference"),
        ('name = "a"\narchive = "a"\nreference = "a@sha256:0"', "containers.0"),
        ('name = "a"\nurl = "https://registry.example/a"', "a url needs the sha256"),
        (
            'name = "a"\nreference = "docker.io/library/debian:13"',
            "containers.0.reference: a reference is written like",
        ),
        ('name = "a b"\narchive = "a"', "containers.0.name"),
    ],
)
def test_wrong_ones_name_the_key(tmp_path: Path, keys: str, said: str) -> None:
    (tmp_path / "mine.toml").write_text(f'extends = "debian-13-docker"\n[[containers]]\n{keys}\n')
    with pytest.raises(ImageError) as caught:
        recipe.load("mine", tmp_path)
    assert said in caught.value.sentence
