"""The systemd units: systemd itself finds no fault with them, and no value can leave its line."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Main
from vmrunner.cli import systemd_units
from vmrunner.cli.systemd_units import Installation, Way
from vmrunner.config import Config
from vmrunner.errors import ConfigError

PROGRAM = Path("/usr/local/bin/vmrunner")
CONFIG = """
manager = "ci-1"
{top}
[forge]
kind = "forgejo"
url = "https://forge.example"
{forge}
[pools.debian-12]
labels = ["debian-12"]
image = "debian-12"
"""
# Measured: 1.1 for both, with systemd 257 (Debian 13) and 252 (Debian 12). What is left: the
# network (0.5 + 0.3 + 0.2) above all, then libvirt's group and socket, /proc/cpuinfo, and no root
# folder of its own. A remote libvirt needs no group: 1.0. The filter of the machines' network costs
# 0.5: CAP_NET_ADMIN, netlink, and no user namespace.
EXPOSURE = 1.6
Run = Callable[..., tuple[int, str, str]]


def settings(*, forge: dict[str, str] | None = None, **more: object) -> Config:
    pools = {"p": {"labels": ["a"], "image": "a"}}
    return Config.model_validate(
        {
            "forge": {"kind": "forgejo", "url": "https://f", **(forge or {})},
            "pools": pools,
            "manager": "m",
            **more,
        }
    )


def lines(unit: str) -> list[str]:
    return [line for line in unit.splitlines() if line and not line.startswith("#")]


def written(folder: Path, installation: Installation, way: Way) -> list[Path]:
    units = {folder / name: content for name, content in installation.units(way).items()}
    for path, content in units.items():
        path.write_text(content)
    return list(units)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program, and a world in which a service may see the tests' folders."""
    monkeypatch.setattr(systemd_units, "HIDDEN", ())
    monkeypatch.setattr(systemd_units, "TOKEN", tmp_path / "forge-token")
    path = tmp_path / "bin" / "vmrunner"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def units(tmp_path: Path) -> Path:
    return tmp_path / "etc" / "systemd" / "system"


@pytest.fixture
def run(
    tmp_path: Path,
    units: Path,
    program: Path,
    as_main: Main,
) -> Run:
    """`vmrunner systemd install`, as main() runs it: exit code, stdout, stderr."""
    config_path = tmp_path / "vmrunner.toml"

    def install(
        *arguments: str, forge: str = "", top: str = "", directory: Path = units
    ) -> tuple[int, str, str]:
        config_path.write_text(CONFIG.format(forge=forge, top=top))
        command = [
            "systemd",
            "install",
            "--config",
            str(config_path),
            "--directory",
            str(directory),
            *arguments,
        ]
        return as_main(*command, program=str(program))

    return install


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "state_dir": "/srv/vm 100%/state",
            "runtime_dir": "/srv/run",
            "metrics": {"textfile": "/srv/metrics/vmrunner.prom"},
        },
        {
            "libvirt": {"uri": "qemu+ssh://host.example/system"},
            "forge": {"token_file": "/etc/vmrunner/token"},
        },
    ],
)
def test_systemd_finds_no_fault(
    tmp_path: Path, program: Path, way: Way, more: dict[str, object]
) -> None:
    installation = Installation(settings(**more), program, Path("/etc/vm runner/50%.toml"))  # type: ignore[arg-type]
    paths = written(tmp_path, installation, way)
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("way", Way)
def test_exposure(tmp_path: Path, program: Path, way: Way) -> None:
    service = written(tmp_path, Installation(settings(), program), way)[0]
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(service)]
    done = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE, done.stdout


def test_systemd_makes_the_user_and_its_membership(tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "sysusers.d"
    folder.mkdir(parents=True)
    installation = Installation(settings(state_dir="/srv/a b"), PROGRAM, user="ci")
    (folder / "vmrunner.conf").write_text(installation.sysusers())
    subprocess.run(["systemd-sysusers", f"--root={tmp_path}"], check=True, capture_output=True)
    account = next(
        line
        for line in (tmp_path / "etc" / "passwd").read_text().splitlines()
        if line.startswith("ci:")
    )
    assert account.endswith(":/srv/a b:/usr/sbin/nologin")
    assert any(
        line.startswith("libvirt:") and line.endswith(":ci")
        for line in (tmp_path / "etc" / "group").read_text().splitlines()
    )


def test_the_service() -> None:
    unit = lines(Installation(settings(), PROGRAM).units(Way.SERVE)["vmrunner.service"])
    assert "ExecStart=/usr/local/bin/vmrunner serve" in unit
    for line in (
        "Type=notify",
        "User=vmrunner",
        "SupplementaryGroups=libvirt",
        "StateDirectory=vmrunner",
        "RuntimeDirectory=vmrunner",
        "RuntimeDirectoryPreserve=yes",
        "LoadCredential=forge-token:/etc/vmrunner/forge-token",
        "UMask=0077",
        "CapabilityBoundingSet=CAP_NET_ADMIN",
        "AmbientCapabilities=CAP_NET_ADMIN",
        "Conflicts=vmrunner-up.timer",
    ):
        assert line in unit
    assert "ReadWritePaths=-/var/log/libvirt/qemu" in unit
    assert not any(line.startswith("PrivateUsers") for line in unit)


def test_without_the_filter_it_needs_no_capability() -> None:
    unit = lines(
        Installation(settings(network={"filter": False}), PROGRAM).units(Way.SERVE)[
            "vmrunner.service"
        ]
    )
    assert {
        "CapabilityBoundingSet=",
        "PrivateUsers=yes",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
    } <= set(unit)
    assert not any(line.startswith("AmbientCapabilities") for line in unit)


def test_the_timer() -> None:
    units = Installation(settings(), PROGRAM, user="ci").units(Way.TIMER)
    service, timer = lines(units["vmrunner-up.service"]), lines(units["vmrunner-up.timer"])
    assert {
        "Type=oneshot",
        "ExecStart=/usr/local/bin/vmrunner up",
        "User=ci",
        "RuntimeDirectoryPreserve=yes",
    } <= set(service)
    assert {
        "OnUnitInactiveSec=10s",
        "AccuracySec=1s",
        "Conflicts=vmrunner.service",
        "WantedBy=timers.target",
    } <= set(timer)
    # Or a pass would stop the service.
    assert not any(line.startswith("Conflicts") for line in service)


def test_images_are_renewed_by_root_without_the_forges_token() -> None:
    units = Installation(settings(), PROGRAM, Path("/etc/v.toml")).units(Way.SERVE)
    service, timer = (lines(units[name]) for name in systemd_units.REFRESH)
    assert {
        "Type=oneshot",
        "ExecStart=/usr/local/bin/vmrunner image refresh --config /etc/v.toml",
    } <= set(service)
    assert not any(line.startswith(("User=", "LoadCredential=")) for line in service)
    assert {"OnCalendar=Sun *-*-* 03:00:00", "Persistent=yes", "WantedBy=timers.target"} <= set(
        timer
    )


def test_both_have_one_sandbox() -> None:
    installation = Installation(settings(), PROGRAM)
    sandboxes = [
        unit[unit.index("# Who it is") :].replace(name, "").partition("[Install]")[0].rstrip()
        for way in Way
        for name, unit in installation.units(way).items()
        if name.endswith(".service") and name not in systemd_units.REFRESH
    ]
    assert len(sandboxes) == 4, "vmrunner-halt.service comes with both"
    assert len(set(sandboxes)) == 1


@pytest.mark.parametrize("way", Way)
def test_machines_end_after_the_manager_and_before_libvirt_guests(way: Way) -> None:
    units = Installation(settings(), PROGRAM, Path("/etc/v.toml")).units(way)
    manager, halt = (lines(units[name]) for name in (way.units[0], systemd_units.HALT))
    assert {"Wants=vmrunner-halt.service", "After=vmrunner-halt.service"} <= set(manager)
    assert {
        "After=libvirt-guests.service",
        "RemainAfterExit=yes",
        "ExecStop=/usr/local/bin/vmrunner down --halt --config /etc/v.toml",
    } <= set(halt)
    assert not any(line.startswith(("ExecStart", "WantedBy", "DefaultDep")) for line in halt)


def test_the_machines_of_another_host_do_not_end_with_this_one() -> None:
    installation = Installation(
        settings(libvirt={"uri": "qemu+ssh://host.example/system"}), PROGRAM
    )
    units = installation.units(Way.SERVE)
    assert systemd_units.HALT not in units
    assert "halt" not in "".join(lines(units["vmrunner.service"]))
    assert installation.tmpfiles() == ""


def test_systemd_lets_the_user_delete_logs_of_libvirt() -> None:
    folder = Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        (folder / "m.log").touch()
        as_user = ["setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups"]
        delete = [*as_user, "rm", str(folder / "m.log")]
        assert subprocess.run(delete, capture_output=True).returncode != 0
        text = Installation(settings(), PROGRAM, user="daemon").tmpfiles()
        assert "/var/log/libvirt/qemu " in text
        (folder / "conf").write_text(text.replace("/var/log/libvirt/qemu", str(folder)))
        subprocess.run(["systemd-tmpfiles", "--create", str(folder / "conf")], check=True)
        subprocess.run(delete, check=True)
    finally:
        shutil.rmtree(folder)


def test_folders_of_the_configuration() -> None:
    installation = Installation(
        settings(
            state_dir="/var/lib/ci/state",
            runtime_dir="/srv/ci run",
            metrics={"textfile": "/srv/50%/v.prom"},
            page={"listen": "/run/vmrunner-page/socket"},
        ),
        PROGRAM,
    )
    unit = lines(installation.units(Way.SERVE)["vmrunner.service"])
    assert "StateDirectory=ci/state" in unit
    assert not any(line.startswith("RuntimeDirectory") for line in unit)
    assert 'ReadWritePaths="/srv/ci run" /srv/50%% /run/vmrunner-page' in unit
    assert installation.elsewhere == (
        ("runtime_dir", Path("/srv/ci run")),
        ("metrics.textfile", Path("/srv/50%")),
        ("page.listen", Path("/run/vmrunner-page")),
    )


def test_a_folder_inside_systemds_own_needs_nothing() -> None:
    installation = Installation(settings(runtime_dir="/var/lib/vmrunner/run"), PROGRAM)
    assert installation.elsewhere == ()


def test_a_token_file_is_the_configurations_and_no_credential() -> None:
    installation = Installation(settings(forge={"token_file": "/etc/vmrunner/token"}), PROGRAM)
    assert not any(
        line.startswith("LoadCredential")
        for line in lines(installation.units(Way.SERVE)["vmrunner.service"])
    )


def test_a_remote_libvirt_needs_no_group() -> None:
    installation = Installation(
        settings(libvirt={"uri": "qemu+ssh://host.example/system"}), PROGRAM
    )
    assert "libvirtd" not in "".join(lines(installation.units(Way.SERVE)["vmrunner.service"]))
    assert not any(line.startswith("m ") for line in lines(installation.sysusers()))


@pytest.mark.parametrize(
    "user",
    [
        "",
        "root",
        "nobody",
        "a b",
        "a\nExecStartPre=/bin/sh",
        "100%",
        "0",
        "1000",
        "-a",
        "a" * 32,
        "ü",
        "a:b",
    ],
)
def test_bad_user_name(user: str) -> None:
    with pytest.raises(ConfigError, match="can't be the service's user"):
        Installation(settings(), PROGRAM, user=user)


@pytest.mark.parametrize(
    "path",
    [
        "/opt/a\nUser=root",
        '/opt/a"b',
        "/opt/a'b",
        "/opt/a\\b",
        "/opt/$HOME",
        "/opt/a:b",
        "/opt/\udcff",
    ],
)
def test_a_path_that_would_leave_its_word(path: str) -> None:
    for program, config_path, state_dir in (
        (path, "/c", "/s"),
        ("/p", path, "/s"),
        ("/p", "/c", path),
    ):
        with pytest.raises(ConfigError, match="can't be written into a unit"):
            Installation(settings(state_dir=state_dir), Path(program), Path(config_path))


@pytest.mark.parametrize(
    "path", [str(Path("/root") / ".local/bin/vmrunner"), "/home/me/bin/vmrunner", "/tmp/vmrunner"]
)
def test_a_program_that_the_service_could_not_see(path: str) -> None:
    with pytest.raises(ConfigError, match="which the service can't see") as raised:
        Installation(settings(), Path(path))
    assert "PIPX_HOME=/opt/pipx" in raised.value.hint


@pytest.mark.parametrize("path", ["state", "/srv/../root"])
def test_a_path_that_is_not_absolute(path: str) -> None:
    with pytest.raises(ConfigError, match="is not an absolute path"):
        Installation(settings(state_dir=path), PROGRAM)


@pytest.mark.parametrize(
    ("folder", "sysusers"),
    [
        ("/etc/systemd/system", "/etc/sysusers.d/vmrunner.conf"),
        ("/build/usr/lib/systemd/system", "/build/usr/lib/sysusers.d/vmrunner.conf"),
        ("/out", "/out/vmrunner.conf"),
    ],
)
def test_where_the_sysusers_file_goes(folder: str, sysusers: str) -> None:
    assert systemd_units.sysusers_path(Path(folder)) == Path(sysusers)
    tmpfiles = systemd_units.tmpfiles_path(Path(folder))
    assert tmpfiles.parent == Path(sysusers.replace("sysusers.d", "tmpfiles.d")).parent
    assert tmpfiles != Path(sysusers)


def test_install(run: Run, units: Path, program: Path, tmp_path: Path) -> None:
    code, out, _ = run()
    assert code == 0
    sysusers = tmp_path / "etc" / "sysusers.d" / "vmrunner.conf"
    tmpfiles = tmp_path / "etc" / "tmpfiles.d" / "vmrunner.conf"
    names = (
        "vmrunner-halt.service",
        "vmrunner-image-refresh.service",
        "vmrunner-image-refresh.timer",
        "vmrunner.service",
    )
    assert sorted(path for path in (tmp_path / "etc").rglob("*") if path.is_file()) == [
        *(units / name for name in names),
        sysusers,
        tmpfiles,
    ]
    assert (units / "vmrunner.service").stat().st_mode & 0o777 == 0o644
    assert f"ExecStart={program} serve --config {tmp_path}/vmrunner.toml" in lines(
        (units / "vmrunner.service").read_text()
    )
    wanted = [
        f"wrote {units}/vmrunner.service",
        f"wrote {units}/vmrunner-image-refresh.service",
        f"wrote {units}/vmrunner-image-refresh.timer",
        f"wrote {units}/vmrunner-halt.service",
        f"wrote {sysusers}",
        f"wrote {tmpfiles}",
        "",
        "Next, as root:",
        f"  systemd-sysusers {sysusers}",
        f"  systemd-tmpfiles --create {tmpfiles}",
        f"  install -m 0600 /dev/stdin {tmp_path}/forge-token   # the forge's token",
        "  systemctl daemon-reload",
        "  systemctl enable --now vmrunner.service",
        "  systemctl enable --now vmrunner-image-refresh.timer   # images are built anew every "
        "week",
    ]
    assert out.splitlines() == wanted


def test_again(run: Run, units: Path) -> None:
    run()
    first = (units / "vmrunner.service").read_text()
    code, out, _ = run()
    assert code == 0
    assert "systemctl restart vmrunner.service" in out
    assert (units / "vmrunner.service").read_text() == first


def test_dry_run_writes_nothing(run: Run, units: Path, tmp_path: Path) -> None:
    code, out, _ = run("--dry-run", "--timer")
    assert code == 0
    assert not (tmp_path / "etc").exists()
    for name in ("vmrunner-up.service", "vmrunner-up.timer"):
        assert f"# {units}/{name}\n{systemd_units.MARK}" in out
    assert f"# {tmp_path}/etc/sysusers.d/vmrunner.conf\n" in out


@pytest.mark.parametrize("way", Way)
def test_the_other_way_is_disabled_first_and_removed_last(run: Run, units: Path, way: Way) -> None:
    arguments = {Way.SERVE: [], Way.TIMER: ["--timer"]}
    run(*arguments[way.other])
    code, out, _ = run(*arguments[way])
    steps = [
        line.strip() for line in out.partition("Next")[2].splitlines() if line.startswith("  ")
    ]
    assert code == 0
    assert steps[0].startswith(f"systemctl disable --now {way.other.enabled} ")
    assert steps[-3] == f"systemctl enable --now {way.enabled}"
    assert steps[-1] == "rm " + " ".join(f"{units}/{name}" for name in way.other.units)
    # What runs keeps its unit until the admin stops it: without its file, systemd would forget its
    # settings at the next daemon-reload.
    assert all((units / name).exists() for name in (*way.units, *way.other.units))


def test_an_admins_own_units_are_left(run: Run, units: Path) -> None:
    units.mkdir(parents=True)
    own = units / "vmrunner.service"
    own.write_text("[Service]\nExecStart=/usr/local/bin/mine\n")
    code, _, err = run()
    assert code == 3
    assert "exists, and vmrunner did not write it" in err
    assert "mine" in own.read_text()
    code, out, _ = run("--timer")
    assert code == 0
    assert "systemctl disable --now vmrunner.service" in out
    assert "rm " not in out


def test_a_masked_unit_is_left(run: Run, units: Path) -> None:
    units.mkdir(parents=True)
    (units / "vmrunner.service").symlink_to("/dev/null")
    code, _, err = run()
    assert (code, "vmrunner did not write it" in err) == (3, True)
    assert (units / "vmrunner.service").is_symlink()


def test_not_writable(run: Run, tmp_path: Path) -> None:
    # Not even root makes a folder there.
    code, out, err = run(directory=Path("/sys/systemd/system"))
    assert (code, out) == (3, "")
    assert "/sys/systemd/system/vmrunner.service can't be written: Operation not permitted." in err
    assert "Run it as root, or only look with --dry-run." in err


def test_all_files_or_none(run: Run, units: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "sysusers.d").write_text("in the way")
    assert run()[0] == 3
    assert list(units.iterdir()) == []


def test_bad_user_name_is_one_sentence(run: Run) -> None:
    code, out, err = run("--user", "a b", "--dry-run")
    assert (code, out) == (3, "")
    assert err.startswith("vmrunner: 'a b' can't be the service's user.\n")


def test_folders_elsewhere_are_a_step(run: Run, tmp_path: Path) -> None:
    _, out, _ = run("--user", "ci", top=f'state_dir = "{tmp_path}/state"')
    assert f"  install -d -m 0700 -o ci {tmp_path}/state   # state_dir" in out.splitlines()


def test_a_token_that_the_user_can_not_read(run: Run, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    code, out, err = run(forge=f'token_file = "{token}"')
    assert code == 0
    assert f"The user vmrunner can't read forge.token_file, {token}:" in err
    assert "take the key out" in err
    assert "/dev/stdin" not in out


def test_a_webhooks_secret_that_the_user_can_not_read(run: Run, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    code, _, err = run(
        forge=f'[serve.webhook]\nlisten = "192.0.2.5:8484"\nsecret_file = "{secret}"\n'
        f'[notify]\nurl = "https://alerts.example"\nsecret_file = "{secret}"\n'
        f'[page]\nlisten = "127.0.0.1:8480"\ntoken_file = "{secret}"'
    )
    assert code == 0
    assert f"The user vmrunner can't read serve.webhook.secret_file, {secret}:" in err
    assert f"The user vmrunner can't read notify.secret_file, {secret}:" in err
    assert f"The user vmrunner can't read page.token_file, {secret}:" in err


def test_a_program_that_is_not_there(
    run: Run, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.unlink()
    monkeypatch.setenv("PATH", "")
    code, _, err = run()
    assert code == 3
    assert "The program vmrunner can't be found." in err


def test_a_link_into_a_home_folder(
    run: Run, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    program.replace(home / "vmrunner")
    program.symlink_to(home / "vmrunner")
    monkeypatch.setattr(systemd_units, "HIDDEN", (str(home),))
    code, _, err = run()
    assert code == 3
    assert f"{home}/vmrunner is below {home}, which the service can't see" in err
