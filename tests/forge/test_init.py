"""`vmrunner init`: each answer is checked, nothing is overwritten, and what it writes works."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.forge.double import Double
from tests.forge.gitea import URL, Site
from vmrunner.cli.main import main
from vmrunner.config import load
from vmrunner.image.recipe import recipe

ADDRESS = "203.0.113.10"
"""One of this host that is not loopback, as a forge's may not be."""


class Done(NamedTuple):
    """What came of a call."""

    code: int
    out: str
    err: str


Init = Callable[..., Done]


@pytest.fixture
def forge() -> Iterator[Double]:
    with Double(address=ADDRESS) as double:
        double.version = "15.0.9+gitea-1.22.0"
        yield double


@pytest.fixture
def init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Init:
    """`vmrunner init` with these options, where nobody can be asked."""
    (tmp_path / "runner").write_bytes(b"\x7fELF")

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(
            "sys.argv", ["vmrunner", "init", *arguments, "-c", str(config(tmp_path))]
        )
        with open(os.devnull) as nothing, pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", nothing)
            with pytest.raises(SystemExit) as ended:
                main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


def config(folder: Path) -> Path:
    return folder / "etc" / "vmrunner" / "vmrunner.toml"


def token(folder: Path, value: str) -> str:
    path = folder / "token"
    path.write_text(f"{value}\n")
    path.chmod(0o600)
    return str(path)


def refused(folder: Path, done: Done, code: int, said: str) -> None:
    assert (done.code, done.out) == (code, ""), done
    assert said in done.err
    assert "Traceback" not in done.err
    assert not config(folder).parent.exists(), "nothing is written"


def test_what_it_writes_works(init: Init, forge: Double, tmp_path: Path) -> None:
    done = init(
        "--yes",
        *("--url", f"HTTP://{ADDRESS}:{forge.url.rpartition(':')[2]}/"),
        *("--token-file", token(tmp_path, forge.token)),
        *("--runner", str(tmp_path / "runner")),
        *("--labels", "debian-12, ubuntu-latest"),
        *("--scope", "organisation:org1 repository:org1/r1"),
    )
    assert done.code == 0, done.err
    home = config(tmp_path).parent
    assert sorted(os.listdir(home)) == ["forge-token", "recipes", "vmrunner.toml"]
    secret = home / "forge-token"
    assert (secret.read_text().strip(), secret.stat().st_mode & 0o777) == (forge.token, 0o600)
    assert (secret.stat().st_uid, config(tmp_path).stat().st_mode & 0o777) == (os.geteuid(), 0o644)
    settings = load(config(tmp_path))
    assert (settings.forge.kind, settings.forge.url) == ("forgejo", forge.url)
    assert (settings.forge.token_file, settings.recipes_dir) == (secret, home / "recipes")
    ((name, pool),) = settings.pools.items()
    assert (name, pool.image, pool.label_names) == (
        "debian-12",
        "debian-12-runner",
        ("debian-12", "ubuntu-latest"),
    )
    assert list(map(str, pool.scope)) == ["organisation:org1", "repository:org1/r1"]
    made = recipe.load("debian-12-runner", home / "recipes")
    assert made.runner
    assert (made.runner.kind, made.runner.path) == ("forgejo-runner", tmp_path / "runner")
    assert "nodejs" in made.packages
    for said in (
        f"wrote {config(tmp_path)}",
        "forge: forgejo 15.0.9",  # doctor's
        "vmrunner image build debian-12-runner",
        "vmrunner systemd install",
        "runs-on: debian-12",
    ):
        assert said in done.out
    assert forge.token not in done.out + done.err


def test_nothing_is_overwritten(init: Init, forge: Double, tmp_path: Path) -> None:
    home = config(tmp_path).parent
    files = {
        "vmrunner.toml": home / "vmrunner.toml",
        "forge-token": home / "forge-token",
        "recipes/debian-12-runner.toml": home / "recipes" / "debian-12-runner.toml",
    }
    for path in files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        done = init(
            "--yes",
            *("--url", forge.url, "--token-file", token(tmp_path, forge.token)),
            *("--runner", str(tmp_path / "runner")),
        )
        assert (done.code, f"{path} exists, and" in done.err) == (3, True), done.err
        assert [each for each in home.rglob("*") if each.is_file()] == [path]
        assert path.read_text() == "mine"
        path.unlink()
    assert "--image debian-12-runner" in done.err, "a recipe can be taken as it is"


def test_a_token_that_is_there_already_is_taken(init: Init, forge: Double, tmp_path: Path) -> None:
    home = config(tmp_path).parent
    home.mkdir(parents=True)
    (home / "forge-token").write_text(forge.token)
    (home / "forge-token").chmod(0o600)
    done = init("--yes", "--url", forge.url, "--runner", str(tmp_path / "runner"))
    assert done.code == 0, done.err
    assert f"wrote {home / 'forge-token'}" not in done.out


def test_an_image_with_a_runner_needs_no_recipe(init: Init, forge: Double, tmp_path: Path) -> None:
    own = config(tmp_path).parent / "recipes"
    own.mkdir(parents=True)
    for kind in ("forgejo", "gitea"):
        (own / f"ci-{kind}.toml").write_text(
            f'extends = "debian-12-full"\n[runner]\nkind = "{kind}-runner"\npath = "/srv/r"\n'
        )
    base = ("--yes", "--url", forge.url, "--token-file", token(tmp_path, forge.token))
    wrong = init(*base, "--image", "ci-gitea")
    assert (wrong.code, "has gitea-runner, and the forge needs forgejo-runner" in wrong.err) == (
        6,
        True,
    ), wrong.err
    done = init(*base, "--image", "ci-forgejo")
    assert done.code == 0, done.err
    (pool,) = load(config(tmp_path)).pools.values()
    assert (pool.image, pool.label_names) == ("ci-forgejo", ("ci-forgejo",))
    assert len(list(own.iterdir())) == 2


def test_every_missing_answer_is_named(init: Init, tmp_path: Path) -> None:
    done = init()
    refused(tmp_path, done, 2, "Nobody is asked here")
    for option in ("url", "token-file", "scope", "image", "labels", "runner"):
        assert f"  --{option} is missing: " in done.err
    done = init("--url", "http://forge.invalid", "--image", "ci")
    refused(tmp_path, done, 2, "--labels is missing")
    assert "--runner" not in done.err, "the image may have one"
    done = init("--yes")
    refused(tmp_path, done, 2, "--token-file is missing")
    assert "--scope" not in done.err


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--url", "forge.example"), 3, "The forge's address can't be that"),
        (("--url", "http://127.0.0.1:9"), 3, "a machine that is itself"),
        (("--url", f"http://{ADDRESS}:9"), 4, "can't be reached"),
        (("--url", "http://nowhere.invalid"), 4, "is not known on this host"),
        (("--kind", "gitea"), 2, "is forgejo 15.0.9+gitea-1.22.0, and --kind says gitea"),
        (("--kind", "github"), 2, "There is no kind of forge 'github'."),
        (("--scope", "galaxy"), 3, "There is no scope 'galaxy'."),
        (("--image", "debian-1"), 6, "There is no recipe 'debian-1'."),
        (("--labels", "a:lxc://b"), 3, "each job has a machine of its own"),
        (("--labels", "node:docker://node:22"), 3, "the image debian-12-full has no Docker"),
        (("--runner", "12.0.0"), 6, "forgejo-runner 12.0.0 is too old."),
        (("--runner", "newest"), 2, "'newest' is not a version"),
        (("--runner", "/nowhere/runner"), 3, "The runner /nowhere/runner can't be read"),
        (("--runner", "12.8.2", "--mirror", f"http://{ADDRESS}:9"), 6, "can't be fetched"),
        (("--token-file", "/nowhere/token"), 3, "The token file /nowhere/token does not exist."),
        (("--ca-file", "/nowhere/ca"), 3, "The certificates /nowhere/ca can't be read"),
    ],
)
def test_a_wrong_answer_is_one_sentence(
    init: Init, forge: Double, tmp_path: Path, options: tuple[str, ...], code: int, said: str
) -> None:
    right = ("--url", forge.url, "--token-file", token(tmp_path, forge.token))
    runner = ("--runner", str(tmp_path / "runner"))
    refused(tmp_path, init("--yes", *right, *runner, *options), code, said)


def test_the_token_is_tried(init: Init, forge: Double, tmp_path: Path) -> None:
    for value, scope, said in (
        ("t0ken", "instance", "does not know the access token"),
        (forge.grant("read:admin"), "instance", "needs the scope write:admin"),
        (forge.grant("write:admin"), "organisation:org1", "organization"),
    ):
        done = init(
            *("--yes", "--url", forge.url, "--scope", scope),
            *("--token-file", token(tmp_path, value)),
        )
        refused(tmp_path, done, 4, said)


def test_a_forge_that_is_too_old(init: Init, forge: Double, tmp_path: Path) -> None:
    forge.version = "15.0.3+gitea-1.22.0"
    done = init("--yes", "--url", forge.url, "--token-file", token(tmp_path, forge.token))
    refused(tmp_path, done, 4, "15.0.3+gitea-1.22.0, which is too old.")


def test_without_a_terminal_a_default_is_wanted_or_not_taken(
    init: Init, forge: Double, tmp_path: Path
) -> None:
    right = ("--url", forge.url, "--token-file", token(tmp_path, forge.token))
    done = init(*right, "--scope=user", "--image=debian-12-full", "--labels=a")
    refused(tmp_path, done, 2, "--runner is missing")


def test_a_forge_that_tells_no_version(init: Init, forge: Double, tmp_path: Path) -> None:
    forge.version = "development"
    right = ("--yes", "--url", forge.url, "--token-file", token(tmp_path, forge.token))
    right = (*right, "--runner", str(tmp_path / "runner"))
    refused(tmp_path, init(*right), 2, "does not tell whether it is Forgejo or Gitea")
    assert init(*right, "--kind", "forgejo").code == 0
    assert load(config(tmp_path)).forge.kind == "forgejo"


def typed(arguments: list[str], answers: list[tuple[str, str]]) -> tuple[int, str]:
    """The program at a terminal, where each question gets its answer; what is seen there."""
    process, terminal = pty.fork()
    if process == 0:
        program = [sys.executable, "-m", "vmrunner.cli.main", *arguments]
        os.execv(sys.executable, program)  # noqa: S606 — this very Python
    seen, at, deadline = "", 0, time.monotonic() + 60
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            seen += os.read(terminal, 4096).decode()
        except OSError:  # it has ended
            break
        if answers and answers[0][0] in seen[at:]:
            at = len(seen)
            os.write(terminal, f"{answers.pop(0)[1]}\n".encode())
    os.close(terminal)
    assert answers == [], seen
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), seen


def test_at_a_terminal_it_asks_until_the_answer_is_right(forge: Double, tmp_path: Path) -> None:
    (tmp_path / "runner").write_bytes(b"\x7fELF")
    code, seen = typed(
        ["init", "-c", str(config(tmp_path))],
        [
            ("The forge's address: ", "forge"),
            ("The forge's address: ", forge.url),
            ("Whose jobs [instance]: ", "organization:org1"),
            ("write:organization (on Gitea with read:repository, too; it is not shown): ", "t0ken"),
            ("it is not shown): ", forge.grant("write:user")),
            ("Whose jobs [organisation:org1]: ", "instance"),
            ("write:admin (on Gitea with read:repository, too; it is not shown): ", forge.token),
            ("The recipe of the machines' image [debian-12-full]: ", "nothing"),
            ("The recipe of the machines' image [debian-12-full]: ", ""),
            ("[debian-12]: ", "node:docker://node:22"),
            ("[debian-12]: ", ""),
            ("[12.8.2]: ", "1.0"),
            ("[12.8.2]: ", str(tmp_path / "runner")),
        ],
    )
    assert code == 0, seen
    assert forge.token not in seen, "it is not shown"
    assert load(config(tmp_path)).forge.url == forge.url
    code, seen = typed(["init", "-c", str(tmp_path / "other.toml")], [("address: ", "\x04")])
    assert (code, "Nothing was done." in seen) == (1, True), seen


def test_with_gitea(init: Init, tmp_path: Path) -> None:
    site = Site()
    right = ("--yes", "--url", URL, "--token-file", token(tmp_path, site.token))
    right = (*right, "--runner", str(tmp_path / "runner"), "--image", "debian-13-full")
    site.close()
    for scope in ("organisation:nobody-here", "repository:nobody/here"):
        done = init(*right, "--scope", scope)
        refused(tmp_path, done, 4, f"Does {scope} exist")
    done = init(*right)
    assert done.code == 0, done.err
    found = tomllib.loads(config(tmp_path).read_text())
    assert (found["forge"]["kind"], *found["pools"]) == ("gitea", "debian-13")
    made = recipe.load("debian-13-runner", config(tmp_path).parent / "recipes").runner
    assert made
    assert made.kind == "gitea-runner"
