"""The seed: a real NoCloud ISO, read back, with a script that a real shell accepts."""

import io
import json
import os
import subprocess
from datetime import timedelta
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from vmrunner.errors import ConfigError
from vmrunner.forge import Credentials
from vmrunner.label import Label
from vmrunner.model import MachineId
from vmrunner.seed import RUNNERS, SIZE, exec_script, iso, job_script, rehearsal_script

MACHINE = MachineId("ci-1", "00c0ffee")
ADDRESS = IPv4Interface("10.87.0.9/24")


WITHOUT: dict[str, Any] = {
    "kind": "gitea",
    "url": "https://forge.example",
    "ca": "",
    "machine": MACHINE,
    "credentials": Credentials(5, "the-uuid", "t0ken"),
    "labels": [Label("debian-12")],
    "handle": "",
    "job_timeout": timedelta(minutes=1),
}


def script(kind: str, label: str = "debian-12", runner: str = "") -> str:
    return job_script(
        kind=kind,
        url="https://forge.example",
        ca="",
        machine=MACHINE,
        credentials=Credentials(5, "the-uuid", "t0ken"),
        labels=[Label.parse(label)],
        handle="h-1",
        job_timeout=timedelta(minutes=1),
        runner=runner,
    )


def test_iso_is_a_nocloud_seed() -> None:
    seed = iso(MACHINE, "#!/bin/sh\n", ADDRESS)
    for name, content in (
        ("meta-data", str(MACHINE)),
        ("user-data", "#!/bin/sh"),
        ("network-config", MACHINE.mac),
        ("network-config", "- 10.87.0.9/24\n"),
    ):
        assert content in inside(seed, name)


def inside(seed: bytes, name: str) -> str:
    """One of the seed's files."""
    image, out = pycdlib.PyCdlib(), io.BytesIO()
    image.open_fp(io.BytesIO(seed))
    assert image.pvd.volume_identifier.decode().strip() == "cidata"
    image.get_file_from_iso_fp(out, rr_path=f"/{name}")
    image.close()
    return out.getvalue().decode()


def test_ipv6_is_in_a_seed_where_it_is_asked_for() -> None:
    head = f"version: 2\nethernets:\n  vmrunner:\n    match:\n      macaddress: {MACHINE.mac}\n    addresses:\n      - 10.87.0.9/24\n"
    route = "    routes:\n      - to: 0.0.0.0/0\n        via: 10.87.0.1\n"
    tail = "    nameservers:\n      addresses:\n        - 10.87.0.1\n"
    assert inside(iso(MACHINE, "#!/bin/sh\n", ADDRESS), "network-config").rstrip("\n") == (head + route + tail).rstrip("\n")
    also, another = (
        '      - "fd87::9/64"\n    accept-ra: false\n',
        "".join(f'      - to: "{half}"\n        via: "fd87::1"\n' for half in ("::/1", "8000::/1")),
    )
    found = inside(iso(MACHINE, "#!/bin/sh\n", ADDRESS, IPv6Interface("fd87::9/64")), "network-config")
    assert found.rstrip("\n") == (head + also + route + another + tail).rstrip("\n")
    assert "::" not in inside(iso(MACHINE, "#!/bin/sh\n", None, IPv6Interface("fd87::9/64")), "network-config")


def test_seeds_are_of_one_size_and_begin_differently() -> None:
    first, second = iso(MACHINE, "#!/bin/sh\n", ADDRESS), iso(MACHINE, "#!/bin/sh\n", None)
    assert len(first) == len(second) == SIZE
    descriptor = slice(16 * 2048, 17 * 2048)
    assert first[descriptor] != second[descriptor], "so that a machine which waits for another seed sees it"
    with pytest.raises(ConfigError, match="bigger than 1024 KiB"):
        iso(MACHINE, "#" * SIZE, ADDRESS)


def test_a_rehearsal_says_so() -> None:
    assert "\nvmrunner-rehearsal: true\n" in inside(iso(MACHINE, "#!/bin/sh\n", None, rehearsal=True), "meta-data")
    assert "rehearsal" not in inside(iso(MACHINE, "#!/bin/sh\n", None), "meta-data")


@pytest.mark.parametrize(
    "text",
    [
        script("forgejo"),
        script("gitea"),
        script("forgejo", "b:docker://node:22"),
        exec_script(["echo", "a'b"], timedelta(1)),
        rehearsal_script("forgejo", MACHINE, [Label("debian-12")]),
        rehearsal_script("gitea", MACHINE, [Label("debian-12")], "12.8"),
    ],
)
def test_scripts_are_valid_shell(text: str) -> None:
    assert text.startswith("#!/bin/sh\n")
    subprocess.run(["/bin/sh", "-n"], input=text.encode(), check=True)


def test_forgejo_gets_its_handle_and_a_verbatim_token() -> None:
    text = script("forgejo")
    assert "--handle h-1" in text
    assert "printf %s t0ken >token" in text


def test_a_pool_may_take_another_of_the_images_runners() -> None:
    """What runs in the place of the image's own is the one that the recipe calls so."""
    lines = script("forgejo", runner="12.8").splitlines()
    chosen = "RUNNER_KIND=forgejo-runner RUNNER_PATH=/usr/local/lib/vmrunner/runners/12.8/forgejo-runner"
    assert lines.index(". /etc/vmrunner/image") + 1 == lines.index(chosen)
    assert "RUNNER_PATH=" not in script("forgejo")


def test_credentials_do_not_show_the_token() -> None:
    assert "t0ken" not in repr(Credentials(5, "u", "t0ken"))


def ran(kind: str, tmp_path: Path, handle: str = "") -> list[str]:
    """The arguments that the runner gets from the user-data of a job, which runs here with its paths changed."""
    program = tmp_path / "runner"
    program.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    program.chmod(0o755)
    (tmp_path / "image").write_text(f"RUNNER_KIND={RUNNERS[kind]}\nRUNNER_PATH={program}\n")
    script = job_script(
        kind=kind,
        url="https://forge.example/a b",
        ca="",
        machine=MachineId("ci-1", "00c0ffee"),
        credentials=Credentials(7, "the-uuid", "the-token"),
        labels=[Label("debian-12"), Label("vm", "docker://node:22@sha256:0f")],
        handle=handle,
        job_timeout=timedelta(hours=1),
    )
    changes = {
        "/etc/vmrunner/image": f"{tmp_path}/image",
        "/var/lib/vmrunner-job": f"{tmp_path}/job",
        "/dev/console": f"{tmp_path}/said",
        "/dev/virtio-ports/org.vmrunner.events": f"{tmp_path}/events",
        "(sleep 3900; systemctl poweroff --force --force) &": "",
        "systemctl poweroff --force --force || poweroff -f": ":",
    }
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    subprocess.run(["sh", "-eu", "-c", script], check=True, env={"PATH": os.environ["PATH"]})
    return (tmp_path / "said").read_text().splitlines()


def test_forgejos_runner_gets_exactly_its_arguments(tmp_path: Path) -> None:
    words = ["one-job", "--url", "https://forge.example/a b", "--uuid", "the-uuid", "--token-url", f"file:{tmp_path}/job/token"]
    words += ["--label", "debian-12:host", "--label", "vm:docker://node:22@sha256:0f", "--handle", "a handle", "--wait"]
    assert ran("forgejo", tmp_path, "a handle") == words
    assert (tmp_path / "job" / "token").read_text() == "the-token", "verbatim: a newline would break the header"
    assert (tmp_path / "job" / "token").stat().st_mode & 0o077 == 0


def test_giteas_runner_gets_exactly_its_arguments(tmp_path: Path) -> None:
    assert ran("gitea", tmp_path) == ["daemon", "--once"]
    known = json.loads((tmp_path / "job" / ".runner").read_text())
    assert (known["uuid"], known["labels"], known["ephemeral"]) == ("the-uuid", ["debian-12:host", "vm:docker://node:22@sha256:0f"], True)


@pytest.mark.parametrize("kind", RUNNERS)
def test_a_rehearsal_is_a_jobs_start_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    """Its runner is ended when it does not end by itself."""
    program, said = tmp_path / "runner", tmp_path / "said"
    program.write_text(f'#!/bin/sh\npwd\nls -A\nfor word; do echo "$word"; done\n: >{said}.began\nexec sleep 60\n')
    program.chmod(0o755)
    (tmp_path / "image").write_text(f"RUNNER_KIND={RUNNERS[kind]}\nRUNNER_PATH={program}\n")
    (tmp_path / "hooks").mkdir()
    for name, mode in (("one", 0o755), ("two", 0o644), ("three", 0o755)):
        (tmp_path / "hooks" / name).write_text(f"#!/bin/sh\necho hook {name}\nexit 1\n")
        (tmp_path / "hooks" / name).chmod(mode)
    script = rehearsal_script(kind, MACHINE, [Label("debian-12")])
    for old, new in {
        "/etc/vmrunner/image": f"{tmp_path}/image",
        "/usr/lib/vmrunner/rehearsal.d": f"{tmp_path}/hooks",
        "sleep 2\n": "",
        "foreground 3 ": "foreground 0.5 ",
    }.items():
        assert old in script
        script = script.replace(old, new)
    done = subprocess.run(["sh", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    clock, git, folder, *lines = done.stdout.splitlines()
    assert float(clock) > 0
    assert git.startswith("git version")
    assert not Path(folder).exists()
    here = ["--url", "http://127.0.0.1:9", "--uuid", "00000000-0000-0000-0000-000000000000", "--token-url", f"file:{folder}/token"]
    words = {
        "forgejo": ["token", "one-job", *here, "--label", "debian-12:host", "--wait"],
        "gitea": [".runner", "daemon", "--once"],
    }
    assert lines == [*words[kind], "hook one", "hook three"]


def test_a_proxy_and_a_mirror_are_set_up_before_the_runner() -> None:
    plain = job_script(**WITHOUT)
    assert "proxy" not in plain
    assert "before-job.d" not in plain
    text = job_script(**WITHOUT, registry_mirror="http://mirror.example:5000", proxy="http://proxy.example:3128", no_proxy=["a.example"])
    subprocess.run(["/bin/sh", "-n"], input=text.encode(), check=True)
    setting, runner = text.index("VMRUNNER_REGISTRY_MIRROR=http://mirror.example:5000"), text.index('"$RUNNER_PATH" daemon')
    assert text.index("export http_proxy=http://proxy.example:3128 https_proxy=http://proxy.example:3128") < setting < runner
    assert "no_proxy=localhost,127.0.0.1,::1,forge.example,a.example\n" in text
