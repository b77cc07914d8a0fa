"""Recipes of disks of tools: which recipe is one, and one clear sentence for each fault."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tooling
from vmrunner.errors import ImageError
from vmrunner.image.recipe import tools
from vmrunner.image.recipe.recipe import Recipe
from vmrunner.image.recipe.tools import ToolsRecipe


def load(folder: Path, name: str = "tools") -> ToolsRecipe:
    found = tools.load(name, folder)
    assert isinstance(found, ToolsRecipe)
    return found


def test_its_key_says_which_kind_a_recipe_is(tmp_path: Path) -> None:
    tooling.lay(tmp_path, "tools", [("go", "1.26.0")])
    assert [each.place for each in load(tmp_path).tools] == ["go/1.26.0/x64"]
    assert isinstance(tools.load("debian-12", tmp_path), Recipe)


def test_who_inherits_adds_tools(tmp_path: Path) -> None:
    tooling.lay(tmp_path, "base", [("go", "1.26.0")])
    path = tooling.lay(tmp_path, "more", [("go", "1.27.0")])
    path.write_text(f'extends = "base"\n{path.read_text()}')
    found = load(tmp_path, "more")
    assert [each.version for each in found.tools] == ["1.26.0", "1.27.0"]
    assert found.tools[0].path == tmp_path / "go-1.26.0.tar.gz"


def test_the_digest_follows_content_and_not_place(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        tooling.lay(tmp_path / folder, "tools", [("go", "1.26.0")])
    (tmp_path / "c" / "go-1.26.0.tar.gz").write_bytes(tooling.archive("go", "1.26.1"))
    a, b, c = (load(tmp_path / each).digest() for each in "abc")
    assert a == b
    assert a != c
    recipe = tmp_path / "b" / "tools.toml"
    recipe.write_text(recipe.read_text().replace("strip = 1", "strip = 0"))
    assert load(tmp_path / "b").digest() != a


GOOD = '[[tools]]\nname = "go"\nversion = "1.26.0"\npath = "go.tar.gz"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tools = []\n", "line 1: tools: is empty."),
        (GOOD.replace("1.26.0", "1.26"), 'a version here has three numbers, like "1.22.0"'),
        (GOOD.replace("1.26.0", "v1.26.0"), "three numbers"),
        (GOOD.replace("1.26.0", "1.26.0/../.."), "three numbers"),
        (GOOD.replace('"go"', '"../go"'), "a tool is called as actions look for it"),
        (GOOD + 'arch = "x64/.."\n', "a processor is called"),
        (GOOD + 'url = "https://forge.example/go"\n', "name either a path or a url"),
        (GOOD.replace('path = "go.tar.gz"', 'url = "https://forge.example/go"'), "sha256"),
        (GOOD + "strip = -1\n", "has to be 0 or more"),
        (GOOD + "stripp = 1\n", "did you mean strip?"),
        (GOOD + GOOD, "go/1.26.0/x64 is in it twice"),
        ('suite = "bookworm"\n' + GOOD, "has [[tools]], and an image's keys: suite."),
        ('extends = "debian-12"\n' + GOOD, "an image's keys: files, kernel, kernel_arguments, "),
        ('sweet = "bookworm"\n' + GOOD, "line 1: sweet: is not a key that vmrunner knows"),
        (GOOD.replace("go.tar.gz", "none.tar.gz"), ""),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "tools.toml").write_text(text)
    if not said:
        with pytest.raises(ImageError, match="can't be read: No such file"):
            load(tmp_path).digest()
        return
    with pytest.raises(ImageError) as caught:
        load(tmp_path)
    assert said in caught.value.sentence
