"""`vmrunner cache setup`: what it writes, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fetching import registry
from tests.forge.gitea import until
from tests.unit.cli.conftest import Main
from vmrunner.cli import cache_setup, systemd_units
from vmrunner.cli.packages_files import Proxy, name_servers
from vmrunner.model.packages import Ecosystem, Mirror

CONFIG = """
{manager}
[forge]
kind = "gitea"
url = "https://forge.example"
[cache.packages]
{packages}
[libvirt]
{libvirt}
[pools.p]
labels = ["p"]
image = "p"
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def resolv_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "resolv.conf"
    path.write_text("# a comment\nsearch example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    monkeypatch.setattr(cache_setup, "_RESOLV_CONF", path)
    return path


@pytest.fixture
def run(
    tmp_path: Path,
    resolv_conf: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_main: Main,
) -> Run:
    """`vmrunner cache setup`, as main() runs it: exit code, stdout, stderr."""
    monkeypatch.setattr(systemd_units, "HIDDEN", ())
    config_path = tmp_path / "vmrunner.toml"

    def setup(
        *arguments: str, packages: str = "", libvirt: str = "", manager: str = ""
    ) -> tuple[int, str, str]:
        config_path.write_text(CONFIG.format(packages=packages, libvirt=libvirt, manager=manager))
        command = ["cache", "setup", "--config", str(config_path)]
        command += ["--directory", str(tmp_path / "units"), *arguments]
        return as_main(*command)

    return setup


@pytest.mark.parametrize("kind", Ecosystem)
def test_it_is_shown_first_then_written_and_never_again(
    tmp_path: Path, run: Run, kind: Ecosystem
) -> None:
    code, out, _ = run(kind)
    assert (code, (tmp_path / "packages").exists()) == (0, False)
    assert f"vmrunner cache setup {kind} --yes" in out
    code, out, _ = run(kind, "--yes")
    unit = tmp_path / f"units/vmrunner-packages-{kind}.service"
    config, *script = sorted((tmp_path / "packages").iterdir(), reverse=True)
    count = 3 if kind is Ecosystem.OCI else 2
    assert (code, out.count("wrote "), 2 + len(script)) == (0, count, count)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (unit, config, *script)} == {0o644}
    assert f"[cache.packages]\n  {kind} = true" in out
    assert f"systemctl enable --now {unit.name}" in out
    code, out, _ = run(kind, "--yes", packages=f"{kind} = true")
    assert (code, out.count("is as it should be"), "[cache.packages]" in out) == (0, count, False)
    config.write_text("mine\n")
    code, _, err = run(kind, "--yes")
    assert (code, config.read_text()) == (3, "mine\n")
    assert f"{config} is there with other content, and nothing is overwritten." in err


def test_two_managers_of_one_host_have_their_own(tmp_path: Path, run: Run) -> None:
    run("npm", "--yes")
    other = {"manager": 'manager = "ci-2"', "libvirt": 'subnet = "10.95.0.0/24"'}
    code, out, _ = run("npm", "--yes", **other)
    assert (code, out.count("wrote ")) == (0, 2)
    assert "systemctl enable --now vmrunner-packages-ci-2-npm.service" in out
    assert {path.name for path in (tmp_path / "packages").iterdir()} == {
        "npm.conf",
        "ci-2-npm.conf",
    }
    units = {path.name: path.read_text() for path in (tmp_path / "units").iterdir()}
    assert units.keys() == {f"vmrunner-packages-{name}.service" for name in ("npm", "ci-2-npm")}
    assert (
        "CacheDirectory=vmrunner-packages-ci-2-npm" in units["vmrunner-packages-ci-2-npm.service"]
    )
    config = (tmp_path / "packages/ci-2-npm.conf").read_text()
    assert "listen 10.95.0.1:" in config
    assert "/var/cache/vmrunner-packages-ci-2-npm" in config
    assert "/run/vmrunner-packages-ci-2-npm" in config
    assert "packages-npm" not in config


def test_what_is_kept_gives_way_before_machines_find_no_room(tmp_path: Path, run: Run) -> None:
    run("go", "--yes")
    assert "max_size=20480m min_free=5120m" in (tmp_path / "packages/go.conf").read_text()


def test_a_registrys_mirror_has_a_bound_by_a_script(tmp_path: Path, run: Run) -> None:
    run("oci", "--yes")
    script = tmp_path / "packages/oci.sh"
    subprocess.run(["sh", "-n", script], check=True)
    text = script.read_text()
    assert f"over=$((taken - {20 << 30}))" in text
    assert f"lacks=$(({5 << 30} - free))" in text
    assert text.endswith(f"exec /usr/bin/docker-registry serve {tmp_path}/packages/oci.yml\n")
    unit = (tmp_path / "units/vmrunner-packages-oci.service").read_text()
    assert f"ExecStart=/bin/sh {script}\n" in unit


def test_what_is_half_there_is_made_whole(tmp_path: Path, run: Run) -> None:
    run("go", "--yes")
    (unit,) = (tmp_path / "units").iterdir()
    unit.unlink()
    code, out, _ = run("go", "--yes")
    assert (code, f"wrote {unit}" in out) == (0, True)


def test_a_link_to_nowhere_is_somebodys(tmp_path: Path, run: Run) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/npm.conf").symlink_to("/nowhere/at/all")
    code, _, err = run("npm", "--yes")
    assert (code, "nothing is overwritten" in err) == (3, True)
    assert not (tmp_path / "units").exists()


@pytest.mark.parametrize(
    ("arguments", "more", "code", "says"),
    [
        (["nuget"], {}, 2, "is not one of 'apt', 'npm', 'pypi', 'go', 'oci', 'crates', 'maven'"),
        (["apt"], {"packages": 'apt = "https://a.example"'}, 3, "goes past any cache"),
        (["npm"], {"libvirt": 'uri = "qemu+ssh://h/system"'}, 3, "do not reach this host"),
        (["go", "--yes", "--directory", "/proc/no"], {}, 3, "can't be written"),
    ],
)
def test_what_can_not_be(
    run: Run, arguments: list[str], more: dict[str, str], code: int, says: str
) -> None:
    got, _, err = run(*arguments, **more)
    assert (got, says in err) == (code, True), err
    assert "Traceback" not in err


def test_nothing_is_left_of_what_could_not_be_written_whole(tmp_path: Path, run: Run) -> None:
    assert run("go", "--yes", "--directory", "/proc/no")[0] == 3
    assert not list((tmp_path / "packages").iterdir())


def test_nobody_to_ask_for_names(run: Run, resolv_conf: Path) -> None:
    resolv_conf.write_text("search example\n")
    code, _, err = run("npm")
    assert (code, "names nobody who could be asked" in err) == (3, True)


def proxy(kind: Ecosystem, upstream: str = "") -> Proxy:
    mirror = Mirror(kind, upstream or kind.public, "10.87.0.1", 8490)
    return Proxy(mirror, 1024, 5120, ["192.0.2.53"], Path("/etc/vmrunner/packages"))


def test_name_servers() -> None:
    found = name_servers("nameserver 192.0.2.53\n#nameserver 192.0.2.1\nnameserver\t2001:db8::1 \n")
    assert found == ["192.0.2.53", "[2001:db8::1]"]


@pytest.mark.parametrize("kind", [each for each in Ecosystem if each is not Ecosystem.OCI])
def test_nothing_of_a_request_but_its_path_goes_on(kind: Ecosystem) -> None:
    config = proxy(kind).config()
    assert "listen 10.87.0.1:8490;" in config
    for line in (
        "proxy_pass_request_headers off;",
        "proxy_pass_request_body off;",
        "proxy_ssl_verify on;",
        "resolver 192.0.2.53 valid=1m;",
        "max_size=1024m min_free=5120m",
    ):
        assert line in config
    for told in ("$args", "$query_string", "$http_authorization", "$http_cookie", "$request_body"):
        assert told not in config


def test_an_upstream_of_ones_own() -> None:
    config = proxy(Ecosystem.PYPI, "https://pypi.example:8443/root/simple").config()
    assert "map $path $there { default https://pypi.example:8443; }" in config
    assert "map $there $asked { default pypi.example:8443; }" in config
    assert "pypi.org" not in config
    apt = proxy(Ecosystem.APT, "http://mirror.example:3142/debian").config()
    assert "    mirror.example:3142 http://mirror.example:3142;\n" in apt
    assert "    security.debian.org http://security.debian.org;\n" in apt
    crates = proxy(Ecosystem.CRATES, "https://crates.example/index").config()
    assert 'location = "/index/config.json" {' in crates
    assert 'sub_filter "https://crates.example/" "http://10.87.0.1:8490/";' in crates
    assert "index.crates.io" not in crates
    oci = proxy(Ecosystem.OCI, "https://registry.example").config()
    assert "remoteurl: https://registry.example\n" in oci


@pytest.mark.parametrize("kind", Ecosystem)
@pytest.mark.parametrize("configs", ["/etc/vmrunner/packages", "/srv/vm 100%/packages"])
def test_systemd_finds_no_fault_with_the_unit(
    tmp_path: Path, kind: Ecosystem, configs: str
) -> None:
    mirror = Mirror(kind, kind.public, "10.87.0.1", 8490)
    made = Proxy(mirror, 1024, 5120, ["192.0.2.53"], Path(configs))
    path = tmp_path / made.unit
    text = made.files(tmp_path)[path]
    # Whether the program is installed here is not the question.
    path.write_text(text.replace(made.command[0], shutil.which("true") or ""))
    for arguments in (["verify"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(
            ["systemd-analyze", *arguments, str(path)], capture_output=True, text=True
        )
        assert (done.returncode, "Unknown" in done.stderr) == (0, False), done.stdout + done.stderr
    for word in made.command[1:]:
        assert word.replace("%", "%%") in text


FIND = """#!/bin/sh
case "$*" in *-type*) echo >>{looks} ;; *) echo >>{glances} ;; esac
exec {find} "$@"
"""


@pytest.mark.parametrize(
    ("max_mib", "free_mib", "kept"),
    [(1, 0, 1), (9, 0, 3), (9, 1 << 40, 0)],
)
def test_all_that_a_registrys_mirror_keeps_is_looked_at_only_when_something_changed(
    tmp_path: Path, max_mib: int, free_mib: int, kept: int
) -> None:
    made = replace(registry(tmp_path / "a mirror"), max_mib=max_mib, free_mib=free_mib, rest=0.05)
    blobs = made.folder / "docker/registry/v2/blobs"
    place = blobs / "sha256" / "ab"
    looks, glances, find = tmp_path / "looks", tmp_path / "glances", tmp_path / "bin" / "find"
    find.parent.mkdir()
    find.write_text(FIND.format(looks=looks, glances=glances, find=shutil.which("find")))
    find.chmod(0o755)

    def add(name: str) -> None:
        (place / name).mkdir(parents=True)
        (place / name / "data").write_bytes(b"x" * 600_000)

    def age() -> None:
        """Nothing came in the last minute."""
        for each in (blobs, blobs / "sha256", place):
            os.utime(each, (time.time() - 60,) * 2)

    def many(path: Path) -> int:
        return len(path.read_text()) if path.exists() else 0

    def settled(wanted: int) -> bool:
        return len(list(place.rglob("data"))) == wanted

    for name in "abc":
        add(name)
    script = made.script().replace(f"exec {made.program}", "exec sleep 60 #")
    environment = os.environ | {"PATH": f"{find.parent}:{os.environ['PATH']}"}
    with subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=True) as process:
        try:
            until(lambda: settled(kept) and many(looks), 20, "it has its bound", every=0.05)
            if free_mib:
                return  # as long as there is no room all of it is looked at
            before = -1
            while before != many(looks):  # the look after that is over
                age()
                before, glanced = many(looks), many(glances)
                until(lambda: many(glances) > glanced + 3, 20, "some glances", every=0.05)  # noqa: B023 — it is called in this turn
            add("d")
            wanted = min(kept + 1, max_mib)
            until(lambda: many(looks) > before, 20, "a look", every=0.05)
            until(lambda: settled(wanted), 20, "its bound again", every=0.05)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
