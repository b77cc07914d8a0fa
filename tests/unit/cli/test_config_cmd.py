"""`vmrunner config check`: what is wrong, but plausible, is one sentence, a hint and a code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme

from vmrunner.cli.main import main
from vmrunner.config import Config, HostConfig, PoolConfig, Section, WebhookConfig, load
from vmrunner.doctor.examine import examine
from vmrunner.errors import ConfigError, HypervisorError
from vmrunner.hypervisor.seam import Hypervisor

GOOD = """manager = "m"
[forge]
kind = "forgejo"
url = "http://192.0.2.7:3000"
token_file = "{folder}/token"
[pools.p]
labels = ["debian-12"]
image = "debian-12"
"""


class Done(NamedTuple):
    """What came of a call."""

    code: int
    out: str
    err: str


Check = Callable[[str], Done]


@pytest.fixture
def check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Check:
    """`vmrunner config check` of this text."""

    def call(text: str) -> Done:
        path = tmp_path / "vmrunner.toml"
        path.write_text(text.replace("{folder}", str(tmp_path)))
        monkeypatch.setattr("sys.argv", ["vmrunner", "config", "check", "--config", str(path)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return call


def token(folder: Path, content: bytes = b"s3cret\n", mode: int = 0o600) -> None:
    path = folder / "token"
    path.write_bytes(content)
    path.chmod(mode)


def refused(done: Done, code: int, said: str) -> None:
    """One sentence, or a line for each fault, and a hint; and never what the token is."""
    assert (done.code, done.out, said in done.err) == (code, "", True), done
    first, *more = done.err.splitlines()
    assert first.startswith("vmrunner: ")
    assert first.endswith((".", "?") if len(more) == 1 else " faults:"), done.err
    assert all(line.startswith("  ") for line in more)
    assert "s3cret" not in done.err
    for library in ("pattern", "Input should", "should be", "valid dict", "Value error", "tuple"):
        assert library not in done.err
    assert ".." not in done.err.replace("...", "")


def test_what_is_right(check: Check, tmp_path: Path) -> None:
    token(tmp_path)
    done = check(GOOD)
    assert done.code == 0
    assert done.out.endswith("vmrunner.toml is valid: manager m, pools p.\n")
    assert done.err == (
        "warning: pools.p.image: there is no image debian-12 on this host yet. `vmrunner image "
        "build debian-12` makes it.\n"
    )


@pytest.mark.parametrize("content", [b"s3cret", b"s3cret\n", b"s3cret\r\n", b"\n s3cret \n\n"])
def test_a_tokens_file_as_editors_leave_it(check: Check, tmp_path: Path, content: bytes) -> None:
    token(tmp_path, content)
    assert check(GOOD).code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not hold one token"),
        (b"s3cret s3cret\n", "does not hold one token"),
        (b"token s3cret\n", "does not hold one token"),
        (b"s3cret\ns3cret\n", "does not hold one token"),
        (b"s3\x00cret\n", "does not hold one token"),
        (b'"s3cret"\n', "has quotes around it"),
        (b"'s3cret'\r\n", "has quotes around it"),
        (b"\xef\xbb\xbfs3cret\n", "it is not plain text"),
        ("s3cret".encode("utf-16"), "it is not plain text"),
    ],
)
def test_a_tokens_file_that_holds_none(
    check: Check, tmp_path: Path, content: bytes, said: str
) -> None:
    token(tmp_path, content)
    refused(check(GOOD), 3, said)


def test_a_token_that_others_can_read(check: Check, tmp_path: Path) -> None:
    token(tmp_path, mode=0o644)
    done = check(GOOD)
    assert (done.code, "chmod 600" in done.err) == (0, True)


def test_no_tokens_file(check: Check, tmp_path: Path) -> None:
    refused(check(GOOD), 3, "does not exist")


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("//192.0.2.7:3000", "//nowhere.invalid", 4, "nowhere.invalid is not known on this host"),
        ("//192.0.2.7:3000", "//localhost:3000", 3, "to a machine that is itself"),
        ("//192.0.2.7:3000", "//0.0.0.0:3000", 3, "to a machine that is itself"),
        ("//192.0.2.7:3000", "//[2001:db8::7]:3000", 3, "machines have no IPv6"),
        ("//192.0.2.7:3000", "//10.87.0.9:3000", 3, "own network 10.87.0.0/24"),
        ("//192.0.2.7:3000", "//u:s3cret@192.0.2.7", 3, "forge.url: it has a user or a password"),
        (
            "//192.0.2.7:3000",
            "//192.0.2.7/api/v1",
            3,
            "forge.url: it is the address of the forge's",
        ),
        ("http://192.0.2.7", "192.0.2.7", 3, "forge.url: it is written like"),
        ('"forgejo"', '"Forgejo"', 3, "forge.kind: "),
        ('"forgejo"', '"github"', 3, "forge.kind: "),
        ('"forgejo"', "forgejo", 3, "is not valid TOML"),
        ("[forge]\n", "", 3, "vmrunner.toml has 4 faults:"),
        ("token_file", "token", 3, "forge.token: is not a key that vmrunner knows"),
        ("[pools.p]", "[pool.p]", 3, "vmrunner.toml has 2 faults:"),
        ("[pools.p]", "[pools.P]", 3, "pools.P"),
        ('["debian-12"]', '"debian-12"', 3, "pools.p.labels: "),
        ('["debian-12"]', "[]", 3, "pools.p.labels: "),
        ('["debian-12"]', '["a", "a:docker://b"]', 3, "pools.p.labels: the label a has two places"),
        ('["debian-12"]', '["self hosted"]', 3, "pools.p.labels.0: a label is written like"),
        ('image = "debian-12"', 'image = "debian-12"\nscope = "org:a"', 3, "There is no scope"),
        ('image = "debian-12"', 'image = "a"\nscope = "repository:a"', 3, "There is no scope"),
        ('image = "debian-12"', 'image = "a"\nmemory = 2048', 3, "pools.p.memory: a size is"),
        ('image = "debian-12"', 'image = "a"\njob_timeout = 60', 3, "pools.p.job_timeout: a dur"),
        (
            'image = "debian-12"',
            'image = "a"\njob_timeout = "99999999999999d"',
            3,
            'pools.p.job_timeout: a duration is "36500d" at most',
        ),
        ('image = "debian-12"', 'image = "a"\nmax = 0', 3, "pools.p.max: "),
        ('image = "debian-12"', f'image = "a"\nmax = {"9" * 5000}', 3, "is not valid TOML"),
        ('image = "debian-12"', f"image = {'[' * 5000}", 3, "is not valid TOML"),
        ('image = "debian-12"', 'image = "debian 12"', 3, "pools.p.image: "),
        ('manager = "m"', 'manager = "Host_1"', 3, "manager: "),
        ("token_file", 'ca_file = "{folder}/ca.pem"\ntoken_file', 3, "ca.pem can't be read"),
    ],
)
def test_what_is_wrong(
    check: Check, tmp_path: Path, old: str, new: str, code: int, said: str
) -> None:
    token(tmp_path)
    refused(check(GOOD.replace(old, new, 1)), code, said)


FAULTY = """manager = "Host_1"

[forge]
kind = "github"
url = "http://192.0.2.7:3000"
[libvirt]
subnet = "10.87.0.1/24"
uri = 7
[pools.p]
lables = ["debian-12"]
image = "debian 12"
max = 0
warm = 1.5
schedule = [
  { cron = "0 8 * * 1-5", warm = 4 },
  { cron = "0 8 * * 1-5", warm = "many" },
]
"""


def test_all_faults_at_once_each_with_its_line(check: Check) -> None:
    assert [line.strip() for line in check(FAULTY).err.splitlines()[1:-1]] == [
        'line 1, manager: a name here has small letters, digits and "-", and 24 of them at most',
        "line 4, forge.kind: has to be 'forgejo' or 'gitea'",
        'line 7, libvirt.subnet: has to be an IPv4 network, like "10.87.0.0/24"',
        'line 8, libvirt.uri: has to be a text in quotes, like "this"',
        "line 9, pools.p.labels: is missing",
        "line 10, pools.p.lables: is not a key that vmrunner knows; did you mean labels?",
        'line 11, pools.p.image: a name here has letters, digits, ".", "_" and "-"',
        "line 12, pools.p.max: has to be 1 or more",
        "line 13, pools.p.warm: has to be a whole number, without quotes",
        "line 14, pools.p.schedule.1.warm: has to be a whole number, without quotes",
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("[forg]\n", "forge"),
        ("[poool.x]\n", "pools"),
        ("[serve]\nwebhok = {}\n", "webhook"),
        ("[serve.webhook]\nlissten = 1\n", "listen"),
        ("[pools.q]\nimages = 1\n", "image"),
        ("[[pools.q.schedule]]\ncorn = 1\n", "cron"),
        ("[forge]\nKind = 1\n", "kind"),
    ],
)
def test_a_near_name_is_offered_at_every_depth(check: Check, written: str, meant: str) -> None:
    assert f"is not a key that vmrunner knows; did you mean {meant}?\n" in check(written).err


VALUES = (
    "text",
    "7",
    "-7",
    "1.5",
    "nan",
    "true",
    "[]",
    "[1]",
    "{}",
    "{ a = 1 }",
    "'('",
    "1979-05-27",
)


@pytest.mark.parametrize("value", VALUES)
def test_whatever_stands_there_is_answered_in_our_words(tmp_path: Path, value: str) -> None:
    """Every key of every table, with values of every kind."""
    tables = {"": Config, "pools.p": PoolConfig, "serve.webhook": WebhookConfig}
    tables |= {
        name: field.annotation
        for name, field in Config.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }
    for table, model in tables.items():
        for name in model.model_fields:
            key = f"{table}.{name}".removeprefix(".")
            path = tmp_path / "c.toml"
            path.write_text(f"{key} = {value}\n" if value != "text" else f'{key} = "text"\n')
            with pytest.raises(ConfigError) as caught:
                load(path)
            said = caught.value.sentence
            for library in ("nput", "should", "alid", "attern", "type=", "Error", "uple", "regex"):
                assert library not in said, (key, said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('memory = "1MiB"', "pools.p.memory is less than 256MiB: no image boots with that."),
        ('memory = "900000GiB"', "pools.p.memory is 921600000MiB, and this host has "),
        ("vcpus = 1024", "pools.p.vcpus is 1024, and this host has "),
        ('disk = "1MiB"', "pools.p.disk is less than 1024MiB: no image is that small."),
        ("warm = 2", "pools.p.warm is 2, and max is 1: raise max."),
        ("register_idle = 3", "pools.p.register_idle is 3, and max is 1: raise max."),
        (
            'schedule = [{ cron = "0 8 * * *", warm = 4 }]',
            "pools.p.schedule.warm is 4, and max is 1: raise max.",
        ),
        ('[libvirt]\nsubnet = "8.8.8.0/24"', "libvirt.subnet 8.8.8.0/24 is not one of private"),
        ('[libvirt]\nsubnet = "127.0.0.0/24"', "libvirt.subnet 127.0.0.0/24 is not one of private"),
        ('[libvirt]\nsubnet = "0.0.0.0/8"', "libvirt.subnet 0.0.0.0/8 is not one of private"),
    ],
)
def test_what_can_be_read_but_not_be_meant(
    check: Check, tmp_path: Path, more: str, said: str
) -> None:
    token(tmp_path)
    refused(check(GOOD + more), 3, said)
    other_host = '\n[libvirt]\nuri = "qemu+ssh://other.example/system"\n'
    if "this host has" in said:
        assert check(GOOD + more + other_host).code == 0, "it may be a larger one"


def test_an_image_that_nothing_makes(check: Check, tmp_path: Path) -> None:
    token(tmp_path)
    done = check(GOOD.replace('image = "debian-12"', 'image = "mine"'))
    assert (done.code, "Write its recipe, /etc/vmrunner/recipes/mine.toml" in done.err) == (0, True)


def test_a_host_without_a_configuration_is_looked_at_alone() -> None:
    def open_host() -> Hypervisor:
        raise HypervisorError("libvirt does not answer.", "Start it.")

    findings = list(examine(HostConfig(), open_host))
    assert findings[0].check == "configuration"
    assert {each.check for each in findings} == {"configuration", "permissions", "libvirt"}


@pytest.mark.parametrize(
    ("own", "key"),
    [
        ("cache = { enabled = true }", "cache.enabled"),
        (
            'runner = { envs = { ACTIONS_CACHE_URL = "http://c/" } }',
            "runner.envs.ACTIONS_CACHE_URL",
        ),
        ("cache = { enabled = false, port = 1 }", ""),
        ('runner = { envs = { A = "b" } }', ""),
        ("container = { privileged = true }", ""),
    ],
)
def test_another_cache_of_a_pool_wins_and_is_said(
    check: Check, tmp_path: Path, own: str, key: str
) -> None:
    token(tmp_path)
    text = GOOD.replace("[forge]", "[cache]\nlisten_port = 8485\n[forge]", 1)
    done = check(text + f"runner_config = {{ {own} }}\n")
    assert done.code == 0
    said = f"pools.p.runner_config: by {key} its jobs do not use vmrunner's cache."
    assert (said in done.err, "vmrunner's cache" in done.err) == (bool(key), bool(key))
    assert "vmrunner's cache" not in check(GOOD + f"runner_config = {{ {own} }}\n").err


def test_a_guess_ends_as_a_question(check: Check, tmp_path: Path) -> None:
    token(tmp_path)
    done = check(GOOD + "runner_config = { container = { privilegd = true } }\n")
    assert done.code == 3
    assert "; did you mean container.privileged?\n" in done.err


def test_a_label_that_is_written_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "vmrunner.toml").write_text(GOOD.replace('"]', '", "b", "debian-12:host"]'))
    assert load(tmp_path / "vmrunner.toml").pools["p"].label_names == ("debian-12", "b")


def test_certificates_that_are_none(check: Check, tmp_path: Path) -> None:
    token(tmp_path)
    (tmp_path / "ca.pem").write_text("no certificate")
    text = GOOD.replace("token_file", 'ca_file = "{folder}/ca.pem"\ntoken_file')
    refused(check(text), 3, "The certificates ")


def test_certificates_with_their_key_would_be_every_jobs(check: Check, tmp_path: Path) -> None:
    token(tmp_path)
    authority = trustme.CA()
    pem = authority.cert_pem.bytes() + authority.private_key_pem.bytes()
    (tmp_path / "ca.pem").write_bytes(pem)
    text = GOOD.replace("token_file", 'ca_file = "{folder}/ca.pem"\ntoken_file')
    refused(check(text), 3, "ca.pem has a private key in it")
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    assert check(text).code == 0
