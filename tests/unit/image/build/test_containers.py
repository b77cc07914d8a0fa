"""Container images that a recipe brings: what gets into the tree, and what is refused."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext
from pathlib import Path

import httpx
import pytest

from tests.building import begin
from tests.containers import archive
from vmrunner.errors import ImageError
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
    with pytest.raises(ImageError, match="is no docker-archive or oci-archive"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "a.tar"))
    with pytest.raises(ImageError, match=r"The archive .*none.tar can't be read"):
        lay(tmp_path, ContainerSource(name="a", archive=tmp_path / "none.tar"))


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
