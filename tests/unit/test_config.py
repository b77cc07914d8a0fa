"""The configuration: the example loads, and every fault is one sentence that names the key."""

import re
from datetime import UTC, datetime
from ipaddress import IPv6Network
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from vmrunner.config import (
    Config,
    ForgeConfig,
    PoolConfig,
    example,
    forge_token,
    is_local,
    load,
    page_token,
    webhook_secret,
)
from vmrunner.errors import ConfigError
from vmrunner.model.job import ScopeKind
from vmrunner.network.policy import Destination

MINIMAL = (
    '[forge]\nkind = "gitea"\nurl = "https://forge.example/"\n[pools.p]\nlabels = '
    '["debian-12"]\nimage = "debian-12"\n'
)


def write(folder: Path, text: str) -> Path:
    path = folder / "vmrunner.toml"
    path.write_text(text)
    return path


def test_the_example_loads_and_its_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    shown = load(write(tmp_path, example()))
    lines = [
        line.removeprefix("# ") if " = " in line and line.startswith("# ") else line
        for line in example().splitlines()
    ]
    without_default = (
        "runner",
        "token_file",
        "ca_file",
        "listen",
        "textfile",
        "schedule",
        "allow",
        "disk_bandwidth",
        "disk_iops",
        "ipv6",
        "mtu",
    )
    without_default += ("registry_mirror", "proxy", "no_proxy", "runner_config", "secret_file")
    without_default += (
        "listen_port",
        "groups",
        "flavors",
        "user_header",
        "hosts",
        "hold_failed",
        "job_may_hold",
        "tools",
    )
    without_default += ('url = "https://alerts',)  # of the forge there has to be one
    spelled_out = load(
        write(tmp_path, "\n".join(line for line in lines if not line.startswith(without_default)))
    )
    assert spelled_out == shown
    assert load(write(tmp_path, "\n".join(lines))) != shown, (
        "and the keys without a default load, too"
    )


def test_every_key_is_in_the_example() -> None:
    text, tables = example(), [Config]
    for table in tables:
        for name, field in table.model_fields.items():
            said = re.search(rf"\b{name}(\.[A-Za-z0-9.-]+)?( =|\])", text)
            assert said, f"{table.__name__}: {name}"
            inside = [field.annotation, *get_args(field.annotation)]
            tables += [
                each
                for each in inside
                if isinstance(each, type) and issubclass(each, BaseModel) and each not in tables
            ]
    assert PoolConfig in tables


def test_minimal(tmp_path: Path) -> None:
    config = load(write(tmp_path, MINIMAL))
    assert config.forge.url == "https://forge.example"
    assert [scope.kind for scope in config.pools["p"].scope] == [ScopeKind.INSTANCE]
    assert config.pools["p"].shape.memory_mib == 2048


def test_ipv6_is_for_those_who_ask(tmp_path: Path) -> None:
    assert load(write(tmp_path, MINIMAL)).network.ipv6 is None
    for prefix in ("fd87::/64", "2001:db8:87::/80", "fd87::/112"):
        asked = (
            MINIMAL.replace("[forge]", f'[network]\nipv6 = "{prefix}"\n[forge]')
            + 'allow = ["[2001:db8::7]:443"]\n'
        )
        assert load(write(tmp_path, asked)).network.ipv6 == IPv6Network(prefix)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("image =", "imagf ="), "pools.p.image: is missing"),
        (("[pools.p]", "[garm.flavors.p]"), "garm.flavors.p.image: is not a key"),
        (('"gitea"', '"github"'), "forge.kind"),
        (("[forge]", "[forge"), "not valid TOML"),
        (('image = "debian-12"', 'image = "debian-12"\nmax = "two"'), "pools.p.max"),
        (
            ('image = "debian-12"', 'image = "debian-12"\nmemory = "2 gigs"'),
            "a size is written like",
        ),
        (('image = "debian-12"', 'image = "../../etc"'), "pools.p.image"),
        (('image = "debian-12"', 'image = "a"\nscope = "repository:a/../b"'), "There is no scope"),
        (
            ('image = "debian-12"', 'image = "a"\ncolour = "red"'),
            "pools.p.colour: is not a key that vmrunner knows",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nproxy = "proxy.example:3128"'),
            "pools.p.proxy: it is written like",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nproxy = "http://a:b@proxy.example:3128"'),
            "pools.p.proxy: it has a password in it",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nregistry_mirror = "http://m_.example"'),
            "pools.p.registry_mirror: a destination is",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nproxy = "http://proxy.example:99999"'),
            "pools.p.proxy",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nproxy = "http://[2001:db8::7]"'),
            "pools.p names an IPv6 address",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nno_proxy = ["a.example"]'),
            "pools.p: no_proxy is for pools with a proxy",
        ),
        (('image = "debian-12"', 'image = "a"\nno_proxy = ["a,b"]'), "pools.p.no_proxy.0"),
        (
            ('image = "debian-12"', 'image = "a"\nnetwork = "none"\nproxy = "http://a.example"'),
            "no registry_mirror, and no proxy",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nrunner_config = { runner = { timeout = "9h" } }'),
            "pools.p.runner_config: runner.timeout can't",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nrunner_config = { run = 1 }'),
            "pools.p.runner_config: the runner of a gitea forge knows no key",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nproxy = "http://p:1/$x"'),
            "pools.p.proxy has a $ in it",
        ),
        (('image = "debian-12"', 'image = "a"\njob_user = "www-data"'), "pools.p.job_user"),
        (
            ('image = "debian-12"', 'image = "a"\ntakes_unlabelled = 3'),
            "pools.p.takes_unlabelled",
        ),
        (('["debian-12"]', '["a b"]'), "pools.p.labels.0: a label is written like"),
        (('["debian-12"]', '["a:lxc://b"]'), 'pools.p.labels.0: "a" alone will do'),
        (('["debian-12"]', '["a:lxc"]'), 'pools.p.labels.0: "a" alone will do'),
        (('["debian-12"]', '["a:vm://b"]'), "pools.p.labels.0: a label is written like"),
        (('["debian-12"]', '["a:docker://"]'), "pools.p.labels.0: a label is written like"),
        (
            ('["debian-12"]', '["a:docker://b --privileged"]'),
            "pools.p.labels.0: a label is written like",
        ),
        (
            ('["debian-12"]', '["a", "b", "a:docker://c"]'),
            "pools.p.labels: the label a has two places, host and docker://c",
        ),
        (("[forge]", '[network]\nipv6 = "fd87::1/64"\n[forge]'), "network.ipv6"),
        (("[forge]", "[network]\nmtu = 1279\n[forge]"), "network.mtu"),
        (("[forge]", "[network]\nmtu = 9217\n[forge]"), "network.mtu"),
        (("[forge]", '[network]\nmtu = "big"\n[forge]'), "network.mtu"),
        (
            ("[forge]", '[network]\nipv6 = "fd87::/48"\n[forge]'),
            "an IPv6 network for machines is a /64 to /112",
        ),
        (
            ("[forge]", '[network]\nipv6 = "fd87::/113"\n[forge]'),
            "an IPv6 network for machines is a /64 to /112",
        ),
        (("[forge]", '[network]\nipv6 = "10.0.0.0/24"\n[forge]'), "network.ipv6"),
        (("[forge]", '[network]\nipv6 = "fe80::/64"\n[forge]'), "is a unique local one"),
        (("[forge]", '[network]\nipv6 = "64:ff9b:1::/64"\n[forge]'), "is a unique local one"),
        (("[forge]", '[network]\nipv6 = "ff02::/64"\n[forge]'), "is a unique local one"),
        (
            (
                "[forge]",
                '[network]\nipv6 = "fd87::/112"\n[libvirt]\nsubnet = "10.0.0.0/12"\n[forge]',
            ),
            "as many addresses as libvirt.subnet",
        ),
        (
            ('image = "debian-12"', 'image = "a"\nallow = ["[2001:db8::7]:443"]'),
            "pools.p names an IPv6 address",
        ),
        (
            ("[forge]", '[serve.webhook]\nlisten = "192.0.2.5:8484"\n[forge]'),
            "serve.webhook: listen and secret_file go together",
        ),
        (
            ("[forge]", '[serve.webhook]\nsecret_file = "/s"\n[forge]'),
            "serve.webhook: listen and secret_file go together",
        ),
        (
            ("[forge]", '[serve.webhook]\nlisten = "192.0.2.5"\nsecret_file = "/s"\n[forge]'),
            "serve.webhook.listen: an address to listen at",
        ),
        (
            ("[forge]", '[serve.webhook]\nlisten = "[::]:70000"\nsecret_file = "/s"\n[forge]'),
            "serve.webhook.listen: an address to listen at",
        ),
        # What Python takes for a number or for yes, people do not mean as one.
        *(
            (
                ('image = "debian-12"', f'image = "a"\nmax = {value}'),
                "pools.p.max: has to be a whole",
            )
            for value in ("true", '"2"', "2.0")
        ),
        *(
            (
                ('image = "debian-12"', f'image = "a"\nnested = {value}'),
                "pools.p.nested: has to be true or false",
            )
            for value in ("1", '"yes"')
        ),
        (
            ("[forge]", '[notify]\nurl = "https://alerts.example/x"\n[forge]'),
            "notify: url and secret_file go together",
        ),
        (
            (
                "[forge]",
                '[notify]\nurl = "https://a.example"\nsecret_file = "/s"\nevents = ["x"]\n[forge]',
            ),
            "notify.events",
        ),
    ],
)
def test_faults_name_the_key(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, MINIMAL.replace(*change)))
    assert says in caught.value.sentence
    assert caught.value.hint


@pytest.mark.parametrize(
    "url",
    [
        *("alerts.example", "ftp://alerts.example/", "https://", "https://alerts.example:x/"),
        *("https://user:canary@alerts.example/", "https://alerts.example/canary#1"),
        *("https://[::1/canary", "https://alerts.example/a b", "https://alerts.example:0/"),
        *("https://:8080/canary", "https://alerts.example/\\canary", "https://alerts.exämple/"),
    ],
)
def test_where_no_notice_can_go(tmp_path: Path, url: str) -> None:
    section = f"[notify]\nurl = '{url}'\nsecret_file = \"/s\"\n[forge]"
    with pytest.raises(ConfigError, match=r"notify\.url") as caught:
        load(write(tmp_path, MINIMAL.replace("[forge]", section)))
    assert "canary" not in caught.value.sentence


@pytest.mark.parametrize(
    "url",
    [
        "https://alerts.example",
        "http://[2001:db8::7]:8080/a?token=1",
        "http://192.0.2.7/hooks/a%20b",
    ],
)
def test_where_notices_can_go(tmp_path: Path, url: str) -> None:
    section = f"[notify]\nurl = '{url}'\nsecret_file = \"/s\"\n[forge]"
    assert load(write(tmp_path, MINIMAL.replace("[forge]", section))).notify.url == url


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
    token.chmod(0o644)
    forge_token(forge, warnings.append)
    assert not warnings, "systemd guards its copy by an ACL, which shows as a readable group"
    forge_token(forge.model_copy(update={"token_file": token}), warnings.append)
    assert "chmod 600" in warnings[0]


def test_the_webhooks_secret(tmp_path: Path) -> None:
    warnings: list[str] = []
    path = tmp_path / "secret"
    with pytest.raises(ConfigError, match=r"The secret file .* does not exist") as raised:
        webhook_secret(path, warnings.append)
    assert str(path) in raised.value.hint
    for content in (b"", b"two words\n", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="The secret file"):
            webhook_secret(path, warnings.append)
    path.write_text("s3cret\n")
    path.chmod(0o600)
    assert (webhook_secret(path, warnings.append).value, warnings) == ("s3cret", [])
    path.chmod(0o640)
    webhook_secret(path, warnings.append)
    assert "The secret file" in warnings[0]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        ('token_file = "/t"', "page: there is no page without listen"),
        ('hosts = ["ci.example"]', "page: there is no page without listen"),
        ('listen = "192.0.2.5:8480"', "page: whoever reaches it from outside"),
        ('listen = "0.0.0.0:8480"', "page: whoever reaches it from outside"),
        ('listen = "[::]:8480"', "page: whoever reaches it from outside"),
        ('listen = "ci.example:8480"', "page: whoever reaches it from outside"),
        (
            'listen = "192.0.2.5:8480"\ntoken_file = "/t"\nuser_header = "X-User"',
            "page: a user_header is believed on this host alone",
        ),
        ("logs = true", "page: there is no page without listen"),
        *(
            (f"{page}\nlogs = true", "page: logs may show what a job keeps to itself")
            for page in (
                'listen = "127.0.0.1:1"',
                'listen = "127.0.0.1:1"\nuser_header = "X-User"',
                'listen = "[::1]:1"\nuser_header = "X-User"\ntoken_file = "/t"',
                'listen = "/run/vmrunner-page/socket"',
            )
        ),
        *(
            (f"listen = {listen}", "page.listen: it is written like")
            for listen in (
                "8480",
                '"8480"',
                '"page.sock"',
                '""',
                f'"/{"x" * 108}"',
                '"[::1]:70000"',
            )
        ),
        *(
            (f'listen = "127.0.0.1:1"\nuser_header = "{name}"', "page.user_header: the name")
            for name in ("", "a b", "x:y", "1", "é")
        ),
        *(
            (f'listen = "127.0.0.1:1"\nhosts = ["{name}"]', "page.hosts")
            for name in ("", "a b", "ci.example:443", "https://ci.example", "*.example")
        ),
    ],
)
def test_a_page_that_can_not_be_meant(tmp_path: Path, page: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, MINIMAL.replace("[forge]", f"[page]\n{page}\n[forge]")))
    assert says in caught.value.sentence


@pytest.mark.parametrize(
    "page",
    [
        'listen = "127.0.0.1:8480"',
        'listen = "[::1]:8480"',
        'listen = "localhost:8480"\nuser_header = "X-Forwarded-User"',
        'listen = "/run/vmrunner-page/socket"\nhosts = ["ci.example", "ci"]',
        'listen = "0.0.0.0:8480"\ntoken_file = "/t"',
        'listen = "127.0.0.1:8480"\ntoken_file = "/t"\nlogs = true',
        'listen = "192.0.2.5:8480"\ntoken_file = "/t"\nlogs = true',
        'listen = "/run/vmrunner-page/socket"\nuser_header = "X-User"\nlogs = true',
        'listen = "/run/vmrunner-page/socket"\ntoken_file = "/t"\nlogs = true',
    ],
)
def test_pages(tmp_path: Path, page: str) -> None:
    assert load(write(tmp_path, MINIMAL.replace("[forge]", f"[page]\n{page}\n[forge]"))).page.listen


def cached(cache: str, more: str = "") -> str:
    return MINIMAL.replace("[forge]", f"[cache]\n{cache}\n{more}\n[forge]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (cached("listen_port = 0"), "cache.listen_port: has to be 1 or more"),
        (cached("listen_port = 65536"), "cache.listen_port: has to be 65535 at most"),
        (cached('listen_port = "8485"'), "cache.listen_port"),
        (cached("listen_port = 53"), "cache: listen_port: at 53 the machines' resolver listens"),
        (cached('max = "20GB"'), "cache.max: a size is written like"),
        (
            cached('max = "1GiB"\nmax_per_repository = "2GiB"'),
            "cache: max_per_repository is more than max",
        ),
        (cached('groups = { a = ["o/r"] }'), "cache: there is no cache without listen_port"),
        *(
            (
                cached(f"listen_port = 1\ngroups = {{ a = [{name}] }}"),
                "a repository is written like",
            )
            for name in ('"r"', '"o/r/s"', '"../r"', '"o/.."', '"o/"', "1", '"o/r\\n"')
        ),
        (
            cached('listen_port = 1\ngroups = { a = ["o/r"], b = ["O/R"] }'),
            "cache: O/R is in two groups, a and b",
        ),
        (
            cached("listen_port = 1", "[network]\nfilter = false"),
            "without network.filter a machine could take another one's address",
        ),
        (
            cached("listen_port = 1") + 'network = "none"\n',
            'no pool may reach a cache, each has network = "none"',
        ),
        (
            cached("listen_port = 1").partition("[pools.p]")[0] + "[garm.flavors.f]\n",
            "machines for GARM have no cache, and there are no pools",
        ),
    ],
)
def test_a_cache_that_can_not_be_meant(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(write(tmp_path, text))


def test_the_cache_is_for_pools_that_reach_more_than_the_forge(tmp_path: Path) -> None:
    closed = '[pools.q]\nlabels = ["q"]\nimage = "q"\nnetwork = "none"\n'
    flavor = "[garm.flavors.f]\n"
    settings = load(write(tmp_path, cached("listen_port = 8485") + closed + flavor))
    assert settings.cache_url(settings.pools["p"]) == "http://10.87.0.1:8485/"
    assert settings.cache_url(settings.pools["q"]) == ""
    ports = {policy.name: policy.host_ports for policy in settings.policies}
    assert ports == {
        "internet": (),
        "none": (),
        "pool-p": (8485,),
        "pool-q": (),
        "garm-f": (),
    }
    without = load(write(tmp_path, MINIMAL))
    assert without.cache_url(without.pools["p"]) == ""
    assert not any(policy.host_ports for policy in without.policies)


def packages(lines: str) -> str:
    return MINIMAL.replace("[forge]", f"[cache.packages]\n{lines}\n[forge]")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (packages("apt = 1"), "cache.packages.apt: it is true, or where the packages come from"),
        (packages('npm = "npm.example"'), "it is true, or where the packages come from"),
        (packages('npm = "https://a:b@npm.example"'), "it is true, or where the packages"),
        (packages('npm = "https://npm.example/a?b"'), "it is true, or where the packages"),
        (packages('npm = "https://npm.example/;return 200"'), "it is true, or where"),
        (packages('npm = "https://npm.example:99999"'), "cache.packages.npm: "),
        (packages('apt = "https://mirror.example/debian"'), "goes past any cache"),
        (packages('oci = "https://registry.example/v2"'), "a registry's address, without a path"),
        (packages("go = true\nfirst_port = 50"), "at 53 the machines' resolver listens"),
        (packages("first_port = 65532"), "has to be 65529 at most"),
        (packages('max = "1MiB"'), "cache.packages.max"),
        (packages("nuget = true"), "cache.packages.nuget"),
        (
            packages("go = true\n[cache]\nlisten_port = 8493"),
            "listen_port is where machines fetch go packages, too",
        ),
        (
            packages('go = true\n[libvirt]\nuri = "qemu+ssh://host.example/system"'),
            "machines at another host's libvirt do not reach this host",
        ),
    ],
)
def test_packages_that_can_not_be_fetched_so(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load(write(tmp_path, text))


def test_packages_are_for_machines_that_reach_more_than_the_forge(tmp_path: Path) -> None:
    closed = '[pools.q]\nlabels = ["q"]\nimage = "q"\nnetwork = "none"\n'
    wanted = 'apt = true\nnpm = "https://npm.example/repo/"\noci = true\npypi = false'
    text = packages(f"{wanted}\n[cache]\nlisten_port = 8485")
    settings = load(write(tmp_path, text + closed + "[garm.flavors.f]\n"))
    ports = {policy.name: policy.host_ports for policy in settings.policies}
    assert ports == {
        "internet": (),
        "none": (),
        "pool-p": (8485, 8490, 8491, 8494),
        "pool-q": (),
        "garm-f": (8490, 8491, 8494),
    }
    apt, npm, oci = settings.mirrors(settings.pools["p"])
    assert (apt.upstream, npm.upstream) == (
        "http://deb.debian.org/debian",
        "https://npm.example/repo",
    )
    assert (npm.url, oci.url) == ("http://10.87.0.1:8491/repo", "http://10.87.0.1:8494")
    assert settings.mirrors(settings.pools["q"]) == ()


def test_the_pages_token(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("short\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is too short") as raised:
        page_token(path, print)
    assert "openssl rand -hex 32" in raised.value.hint
    path.write_text("0123456789abcdef0123\n")
    assert page_token(path, print).value == "0123456789abcdef0123"


def test_the_forges_certificates(tmp_path: Path) -> None:
    forge = ForgeConfig(kind="gitea", url="https://forge.example")
    assert forge.ca() == ""
    file = tmp_path / "ca.pem"
    forge = forge.model_copy(update={"ca_file": file})
    with pytest.raises(ConfigError, match=r"certificates .*ca.pem can't be read: .*No such file"):
        forge.ca()
    file.write_bytes("no PEM: \u00e9".encode())
    with pytest.raises(ConfigError, match=r"certificates .*ca.pem can't be read"):
        forge.ca()
    file.write_text("PEM")
    assert forge.ca() == "PEM"


def test_several_scopes_and_a_schedule(tmp_path: Path) -> None:
    more = 'scope = ["organisation:a", "repository:b/c"]\nwarm = 1\n'
    more += 'schedule = [{ cron = "0 8 * * 1-5", warm = 4 }, { cron = "0 19 * * *", warm = 0 }]\n'
    pool = load(write(tmp_path, MINIMAL + more)).pools["p"]
    assert [str(scope) for scope in pool.scope] == ["organisation:a", "repository:b/c"]
    wednesday = datetime(2026, 7, 1, tzinfo=UTC)
    assert [pool.warm_at(wednesday.replace(hour=hour)) for hour in (7, 9, 18, 20)] == [0, 4, 4, 0]
    assert pool.warm_at(datetime(2026, 7, 5, 12, tzinfo=UTC)) == 0, (
        "on a Sunday the evening before counts"
    )
    with pytest.raises(ConfigError, match="cron expression"):
        load(write(tmp_path, MINIMAL + 'schedule = [{ cron = "sometimes", warm = 4 }]\n'))


def test_a_mirror_and_a_proxy_are_reached_without_more_words(tmp_path: Path) -> None:
    more = (
        'network = "allowlist"\nallow = ["a.example:22"]\nregistry_mirror = '
        '"http://192.0.2.7:5000/"\nproxy = "https://proxy.example"\n'
    )
    config = load(write(tmp_path, MINIMAL + more))
    assert config.pools["p"].registry_mirror == "http://192.0.2.7:5000"
    (policy,) = [each for each in config.policies if each.name == "pool-p"]
    assert policy.allow == tuple(
        Destination.parse(each) for each in ("a.example:22", "192.0.2.7:5000", "proxy.example:443")
    )


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("qemu:///system", True),
        ("qemu:///session?socket=/a/b", True),
        ("qemu+ssh://root@192.0.2.7/system", False),
        ("qemu", False),
        ("", False),
    ],
)
def test_whether_libvirt_is_on_this_host(uri: str, local: bool) -> None:
    assert is_local(uri) is local
