"""What doctor says of a forge's version, and of its token, asked over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.forge.double import Double
from tests.forge.gitea import Site
from vmrunner.config import Config
from vmrunner.doctor import forge
from vmrunner.doctor.findings import Level


@pytest.mark.parametrize(
    ("version", "level", "said"),
    [
        ("15.0.9+gitea-1.22.0", Level.GOOD, "vmrunner knows it from a double"),
        ("16.0.1+gitea-1.22.0", Level.GOOD, "vmrunner knows it from what is published of it"),
        ("15.0.3+gitea-1.22.0", Level.ERROR, "forgejo 15.0.3+gitea-1.22.0 is too old."),
        ("18.0.0+gitea-1.22.0", Level.WARNING, "nobody has tried it with vmrunner."),
        ("development", Level.WARNING, "forgejo does not tell its version (development)."),
    ],
)
def test_the_version_is_judged(
    double: Double, tmp_path: Path, version: str, level: Level, said: str
) -> None:
    double.version = version
    token = tmp_path / "token"
    token.write_text(double.token)
    token.chmod(0o600)
    settings = Config.model_validate(
        {
            "manager": "m",
            "runtime_dir": str(tmp_path),
            "forge": {"kind": "forgejo", "url": double.url, "token_file": str(token)},
            "pools": {"p": {"labels": ["a"], "image": "a"}},
        }
    )
    (found,) = [each for each in forge.look(settings, None) if each.check == "forge"]
    assert (found.level, said in found.said) == (level, True), found.said


@pytest.mark.long
@pytest.mark.parametrize(
    ("scopes", "cached", "is_said"),
    [
        (("write:admin",), True, True),
        (("write:admin", "read:repository"), True, False),
        (("write:admin",), False, False),
    ],
)
def test_a_cache_needs_a_token_that_reads_repositories(
    site: Site, tmp_path: Path, scopes: tuple[str, ...], cached: bool, is_said: bool
) -> None:
    token = tmp_path / "token"
    token.write_text(site.grant(*scopes, admin=True))
    token.chmod(0o600)
    settings = Config.model_validate(
        {
            "manager": "m",
            "runtime_dir": str(tmp_path),
            "forge": {"kind": "gitea", "url": site.url, "token_file": str(token)},
            "pools": {"p": {"labels": ["a"], "image": "a"}},
            "cache": {"listen_port": 8485} if cached else {},
        }
    )
    said = [each.said for each in forge.look(settings, None) if each.level is not Level.GOOD]
    assert ("no job may use the cache" in " ".join(said)) is is_said, said
