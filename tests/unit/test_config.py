"""The configuration: the example loads, and every fault is one sentence that names the key."""

from pathlib import Path

import pytest

from vmrunner.config import Config, example, forge_token, load
from vmrunner.errors import ConfigError
from vmrunner.forge import ScopeKind

MINIMAL = '[forge]\nkind = "gitea"\nurl = "https://forge.example/"\n[pools.p]\nlabels = ["debian-12"]\nimage = "debian-12"\n'


def write(folder: Path, text: str) -> Path:
    path = folder / "vmrunner.toml"
    path.write_text(text)
    return path


def test_the_example_loads_and_its_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    shown = load(write(tmp_path, example()))
    lines = [line.removeprefix("# ") if " = " in line and line.startswith("# ") else line for line in example().splitlines()]
    spelled_out = load(write(tmp_path, "\n".join(line for line in lines if "ca_file" not in line)))
    assert spelled_out == shown


def test_every_field_is_in_the_example() -> None:
    for name in Config.model_fields:
        assert name in example()


def test_minimal(tmp_path: Path) -> None:
    config = load(write(tmp_path, MINIMAL))
    assert config.forge.url == "https://forge.example"
    assert config.pools["p"].scope.kind is ScopeKind.INSTANCE
    assert config.pools["p"].shape.memory_mib == 2048


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("image =", "imagf ="), "pools.p.image: is missing"),
        (('"gitea"', '"github"'), "forge.kind"),
        (("[forge]", "[forge"), "not valid TOML"),
        (('image = "debian-12"', 'image = "debian-12"\nmax = "two"'), "pools.p.max"),
        (('image = "debian-12"', 'image = "debian-12"\nmemory = "2 gigs"'), "a size is written like"),
        (('image = "debian-12"', 'image = "../../etc"'), "pools.p.image"),
        (('image = "debian-12"', 'image = "a"\nscope = "repository:a/../b"'), "There is no scope"),
        (('image = "debian-12"', 'image = "a"\ncolour = "red"'), "pools.p.colour: is not a key that vmrunner knows"),
    ],
)
def test_faults_name_the_key(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, MINIMAL.replace(*change)))
    assert says in caught.value.sentence
    assert caught.value.hint


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="There is no configuration at"):
        load(tmp_path / "none.toml")


def test_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    forge = load(write(tmp_path, MINIMAL)).forge
    with pytest.raises(ConfigError, match="does not exist"):
        forge_token(forge, warnings.append)
    token = tmp_path / "forge-token"
    token.write_text("s3cret\n")
    token.chmod(0o600)
    secret = forge_token(forge, warnings.append)
    assert secret.value == "s3cret"
    assert "s3cret" not in repr(secret)
    assert not warnings
    token.chmod(0o644)
    forge_token(forge, warnings.append)
    assert "chmod 600" in warnings[0]
