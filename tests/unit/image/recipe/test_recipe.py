"""Recipes: inheritance, digests, and one clear sentence for each fault."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vmrunner.errors import ImageError
from vmrunner.image.recipe import recipe, tools


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.toml").write_text(text)


def test_the_recipe_that_comes_with_vmrunner_loads() -> None:
    found = recipe.load("debian-12")
    assert found.suite == "bookworm"
    assert found.size == 4096
    assert b"cidata" in found.files["/usr/lib/vmrunner/guest"].content()


@pytest.mark.parametrize("name", ["debian-12-full", "debian-13-full", "debian-13-docker-full"])
def test_what_actions_start_is_in_the_images_that_are_for_them(name: str) -> None:
    """Each of these was missed by an action, which is written in JavaScript: by checkout, by one
    that packs a cache, by setup-python, and by install scripts.
    """
    wanted = {"nodejs", "git", "zstd", "lsb-release", "sudo"}
    assert wanted <= set(recipe.load(name).packages)


def test_debian_13_is_debian_12_with_another_suite() -> None:
    old, new = recipe.load("debian-12"), recipe.load("debian-13")
    assert new.suite == "trixie"
    assert (new.packages, new.size, new.kernel_arguments) == (
        old.packages,
        old.size,
        old.kernel_arguments,
    )
    assert new.files.keys() - old.files.keys() == {"/etc/systemd/system/tmp.mount"}


def test_a_recipe_inherits_packages_and_files(tmp_path: Path) -> None:
    (tmp_path / "runner").write_bytes(b"#!/bin/sh\n")
    write(
        tmp_path,
        "mine",
        'extends = "debian-12"\npackages = ["jq"]\nsize = "8GiB"\n[runner]\nkind = '
        '"forgejo-runner"\npath = "runner"\n',
    )
    base, mine = recipe.load("debian-12"), recipe.load("mine", tmp_path)
    assert mine.packages == (*base.packages, "jq")
    assert mine.files == base.files
    assert mine.size == 8192
    assert mine.runner is not None
    assert mine.runner.path == tmp_path / "runner"


def test_the_digest_follows_content_and_not_place(tmp_path: Path) -> None:
    digests = []
    for folder, content in (("a", "1"), ("b", "1"), ("c", "2")):
        here = tmp_path / folder
        here.mkdir()
        (here / "runner").write_text(content)
        write(
            here,
            "mine",
            'extends = "debian-12"\n[runner]\nkind = "forgejo-runner"\npath = "runner"\n',
        )
        digests.append(recipe.load("mine", here).digest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("packages = [", "can't be read"),
        (
            'extends = "mine"',
            "mine.toml: line 1: the recipe mine inherits from itself: mine -> mine",
        ),
        (
            'extends = "nothing"',
            "There is no recipe 'nothing'. There are: debian-12, debian-12-full,",
        ),
        (
            'extends = "debian-12"\nsise = "1GiB"',
            "mine.toml: line 2: sise: is not a key that vmrunner knows; did you mean size?",
        ),
        ('extends = "debian-12"\nsize = 4', "size: a size is written like"),
        ('suite = "bookworm"', "is missing"),
        (
            'extends = "debian-12"\n[runner]\nkind = "forgejo-runner"\nurl = '
            '"https://forge.example/r"',
            "needs the sha256",
        ),
        ('extends = "debian-12"\n[runner]\nkind = "forgejo-runner"', "name either a path or a url"),
        (
            'extends = "debian-12"\nsnapshot = "2026-11-01"',
            "snapshot: a time of the archive is written like",
        ),
        ('extends = "debian-12"\nlock = 1', "lock: has to be a path in quotes"),
        ('extends = "debian-12"\n[files."../x"]\ntext = ""', "files.../x"),
    ],
)
def test_a_wrong_recipe_is_one_sentence_with_a_hint(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, "mine", text)
    with pytest.raises(ImageError) as caught:
        recipe.load("mine", tmp_path)
    assert said in caught.value.sentence
    assert caught.value.hint


def test_all_faults_are_told_at_once_each_with_its_file_and_line(tmp_path: Path) -> None:
    """Those of what it inherits from, too, where they stand; its own first."""
    write(
        tmp_path,
        "base",
        'extends = "debian-12"\n[users.ci]\nuid = 0\n[[scripts]]\nname = "one"\n'
        '[runner]\nkind = "forgejo"\npath = "r"\n',
    )
    write(
        tmp_path,
        "mine",
        'extends = "base"\npackage = ["jq"]\nsize = "big"\nlistens = [0]\n'
        '[files."/etc/motd"]\ntext = "a"\nmod = "0644"\n[environment]\n"A-B" = "1"\n',
    )
    with pytest.raises(ImageError) as caught:
        recipe.load("mine", tmp_path)
    mine, base = tmp_path / "mine.toml", tmp_path / "base.toml"
    assert caught.value.sentence.splitlines() == [
        "The recipe mine has 8 faults:",
        f"  {mine}: line 2: package: is not a key that vmrunner knows; did you mean packages?",
        f'  {mine}: line 3: size: a size is written like "2GiB" or "512MiB"',
        f"  {mine}: line 4: listens.0: has to be 1 or more",
        f"  {mine}: line 7: files./etc/motd.mod: is not a key that vmrunner knows; did you mean "
        "mode?",
        f'  {mine}: line 9: environment.A-B: a variable\'s name has letters, digits and "_"',
        f"  {base}: line 3: users.ci.uid: has to be 1 or more",
        f"  {base}: line 4: scripts.0: name either a source or a text",
        f"  {base}: line 7: runner.kind: has to be 'forgejo-runner' or 'gitea-runner'; did you "
        "mean forgejo-runner?",
    ]


def test_what_a_recipe_lacks_has_no_line(tmp_path: Path) -> None:
    write(tmp_path, "mine", 'suite = "bookworm"\nextra = 1\n')
    with pytest.raises(ImageError) as caught:
        recipe.load("mine", tmp_path)
    said = caught.value.sentence.splitlines()
    assert f"  {tmp_path}/mine.toml: size: is missing" in said
    assert f"  {tmp_path}/mine.toml: line 2: extra: is not a key that vmrunner knows" in said


def test_every_rule_of_a_text_is_told_in_words() -> None:
    """Nobody is shown a regular expression."""
    for model, known in ((recipe.Recipe, recipe.PATTERNS), (tools.ToolsRecipe, tools._PATTERNS)):
        schema = json.dumps(model.model_json_schema())
        found = {
            json.loads(f'"{each}"')
            for each in re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', schema)
        }
        assert len(found) > 5
        assert found <= set(known)


def test_what_is_inherited_is_added_to(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base",
        'extends = "debian-12"\n[[scripts]]\nname = "one"\ntext = "true"\n[users.ci]\nuid = '
        '1000\n[environment]\nA = "1"\n',
    )
    write(
        tmp_path,
        "mine",
        'extends = "base"\n[[scripts]]\nname = "two"\ntext = "true"\n[environment]\nA = "2"\nB = '
        '"3"\n',
    )
    mine = recipe.load("mine", tmp_path)
    assert [script.name for script in mine.scripts] == ["one", "two"]
    assert (mine.users["ci"].uid, mine.environment) == (1000, {"A": "2", "B": "3"})
    assert mine.digest() != recipe.load("base", tmp_path).digest()


def test_images_that_were_built_before_a_key_existed_are_not_built_again() -> None:
    older = recipe.load("debian-12").model_dump(
        mode="json", exclude={"files", "lock", "keyring", "runner", *recipe._ADDED_LATER}
    )
    assert list(older) == ["name", "suite", "mirror", "size", "packages", "kernel_arguments"]


def test_the_digest_follows_scripts_and_further_runners(tmp_path: Path) -> None:
    write(
        tmp_path,
        "mine",
        'extends = "debian-12"\n[[scripts]]\nname = "one"\nsource = "script"\n[runners.old]\nkind '
        '= "gitea-runner"\npath = "old"\n',
    )
    digests = []
    for script, runner in (("1", "1"), ("2", "1"), ("2", "2")):
        (tmp_path / "script").write_text(script)
        (tmp_path / "old").write_text(runner)
        digests.append(recipe.load("mine", tmp_path).digest())
    assert len(set(digests)) == 3


def test_keys_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path, "mine", 'extends = "ubuntu-24.04"\nkeyring = "gone.gpg"\n')
    with pytest.raises(
        ImageError, match=r"The keyring .*gone\.gpg can't be read: No such file"
    ) as caught:
        recipe.load("mine", tmp_path).digest()
    assert "ubuntu-keyring" in caught.value.hint


def test_a_fault_is_named_where_it_stands_also_in_a_recipe_that_is_inherited(
    tmp_path: Path,
) -> None:
    write(tmp_path, "base", 'extends = "debian-12"\n\n[files."/etc/a"]\ntext = "a"\nmode = "9"\n')
    write(tmp_path, "mine", 'extends = "base"\n[[scripts]]\nname = "one"\n')
    with pytest.raises(ImageError, match=r"base\.toml: line 5: files\./etc/a\.mode: "):
        recipe.load("base", tmp_path)
    with pytest.raises(
        ImageError, match=r"mine\.toml: line 2: scripts\.0: name either a source or a text"
    ):
        recipe.load("mine", tmp_path)
    write(tmp_path, "mine", 'extends = "base"\n')
    with pytest.raises(ImageError, match=r"base\.toml: line 5: "):
        recipe.load("mine", tmp_path)
