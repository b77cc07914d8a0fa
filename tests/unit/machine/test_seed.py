"""The seed: a real NoCloud ISO, read back, with a script that a real shell accepts."""

import ast
import io
import json
import subprocess
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Interface, IPv6Interface
from typing import Any

import pycdlib
import pytest

from vmrunner.errors import ConfigError
from vmrunner.hypervisor.seam import SEED_SIZE
from vmrunner.machine.seed import (
    RUNNERS,
    Job,
    exec_script,
    iso,
    job_script,
    rehearsal_script,
    wait_script,
)
from vmrunner.model.job import Credentials
from vmrunner.model.label import Label
from vmrunner.model.machine import MachineId

MACHINE = MachineId("ci-1", "00c0ffee")
ADDRESS = IPv4Interface("10.87.0.9/24")


JOB = Job(
    kind="gitea",
    url="https://forge.example",
    machine=MACHINE,
    credentials=Credentials(5, "the-uuid", "t0ken"),
    labels=[Label("debian-12")],
    job_timeout=timedelta(minutes=1),
    pickup_timeout=timedelta(minutes=2),
)


def told(script: str) -> dict[str, Any]:
    """What the guest is told to do, as it reads it."""
    line = script.splitlines()[1]
    found: dict[str, Any] = json.loads(ast.literal_eval(line.removeprefix("JOB = ")))
    return found


def config(script: str) -> dict[str, Any]:
    """The runner's configuration."""
    found: dict[str, Any] = json.loads(told(script)["files"]["config.yaml"])
    return found


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
    head = (
        f"version: 2\nethernets:\n  vmrunner:\n    match:\n      macaddress: {MACHINE.mac}\n    "
        "addresses:\n      - 10.87.0.9/24\n"
    )
    route = "    routes:\n      - to: 0.0.0.0/0\n        via: 10.87.0.1\n"
    tail = "    nameservers:\n      addresses:\n        - 10.87.0.1\n"
    assert inside(iso(MACHINE, "#!/bin/sh\n", ADDRESS), "network-config").rstrip("\n") == (
        head + route + tail
    ).rstrip("\n")
    also, another = (
        '      - "fd87::9/64"\n    accept-ra: false\n',
        "".join(f'      - to: "{half}"\n        via: "fd87::1"\n' for half in ("::/1", "8000::/1")),
    )
    found = inside(
        iso(MACHINE, "#!/bin/sh\n", ADDRESS, IPv6Interface("fd87::9/64")), "network-config"
    )
    assert found.rstrip("\n") == (head + also + route + another + tail).rstrip("\n")
    assert "::" not in inside(
        iso(MACHINE, "#!/bin/sh\n", None, IPv6Interface("fd87::9/64")), "network-config"
    )


def test_seeds_are_of_one_size_and_begin_differently() -> None:
    first, second = iso(MACHINE, "#!/bin/sh\n", ADDRESS), iso(MACHINE, "#!/bin/sh\n", None)
    assert len(first) == len(second) == SEED_SIZE
    descriptor = slice(16 * 2048, 17 * 2048)
    assert first[descriptor] != second[descriptor], (
        "so that a machine which waits for another seed sees it"
    )
    with pytest.raises(ConfigError, match="bigger than 1024 KiB"):
        iso(MACHINE, "#" * SEED_SIZE, ADDRESS)


def test_a_rehearsal_says_so() -> None:
    assert "\nvmrunner-rehearsal: true\n" in inside(
        iso(MACHINE, "#!/bin/sh\n", None, rehearsal=True), "meta-data"
    )
    assert "rehearsal" not in inside(iso(MACHINE, "#!/bin/sh\n", None), "meta-data")


def test_scripts_are_valid() -> None:
    subprocess.run(
        ["/bin/sh", "-n"], input=exec_script(["echo", "a'b"], timedelta(1)).encode(), check=True
    )
    for script in (
        job_script(JOB),
        job_script(replace(JOB, kind="forgejo", handle="h'1", ca="'\n\"")),
        wait_script(),
    ):
        assert script.startswith("#!/usr/bin/python3\n")
        ast.parse(script)


def test_a_command_with_tools_has_them_mounted_by_the_code_that_mounts_them_for_jobs() -> None:
    script = exec_script(["true"], timedelta(1), tools=True)
    head, begins, rest = script.partition("python3 - <<'END_OF_TOOLS'\n")
    program, ends, after = rest.partition("\nEND_OF_TOOLS\n")
    assert (bool(begins), bool(ends)) == (True, True)
    assert head.endswith("mountpoint -q /opt/hostedtoolcache || "), "a clone has it already"
    assert "before-ready.d" in head, "Docker is there by then, for its volume"
    assert isinstance(ast.parse(program).body[-1], ast.Expr)
    assert program.endswith("\nmount_tools()")
    place = "/opt/hostedtoolcache"
    assert f"export RUNNER_TOOL_CACHE={place} AGENT_TOOLSDIRECTORY={place}\n" in after
    assert after.index("AGENT_TOOLSDIRECTORY") < after.index("say runner")
    plain = exec_script(["true"], timedelta(1))
    assert not any(word in plain for word in ("hostedtoolcache", "mount_tools", "TOOLSDIRECTORY"))


def test_a_command_that_may_not_ask_dns_is_told_where_the_forge_is() -> None:
    script = exec_script(["true"], timedelta(1), hosts="203.0.113.10 forge.example")
    line = "\necho '203.0.113.10 forge.example' >>/etc/hosts\n"
    assert line in script
    assert script.index(line) < script.index("say runner\n")
    assert "/etc/hosts" not in exec_script(["true"], timedelta(1))


def test_forgejo_gets_its_handle_and_a_verbatim_token() -> None:
    found = told(
        job_script(
            replace(
                JOB,
                kind="forgejo",
                handle="h 1",
                labels=[Label("debian-12"), Label("vm", "docker://node:22@sha256:0f")],
            )
        )
    )
    words = [
        "one-job",
        "--config",
        "config.yaml",
        "--url",
        "https://forge.example",
        "--uuid",
        "the-uuid",
    ]
    words += [
        "--token-url",
        "file:/var/lib/vmrunner-job/root/token",
        "--label",
        "debian-12:host",
        "--label",
        "vm:docker://node:22@sha256:0f",
    ]
    assert found["arguments"] == [*words, "--handle", "h 1", "--wait"]
    assert found["files"]["token"] == "t0ken", "verbatim: a newline would break the header"
    assert "--handle" not in told(job_script(replace(JOB, kind="forgejo")))["arguments"]


def test_gitea_gets_a_registration() -> None:
    found = told(
        job_script(
            replace(JOB, labels=[Label("debian-12"), Label("vm", "docker://node:22@sha256:0f")])
        )
    )
    assert found["arguments"] == ["daemon", "--once", "--config", "config.yaml"]
    known = json.loads(found["files"][".runner"])
    assert (known["uuid"], known["labels"], known["ephemeral"]) == (
        "the-uuid",
        ["debian-12:host", "vm:docker://node:22@sha256:0f"],
        True,
    )
    assert (known["token"], known["address"]) == ("t0ken", "https://forge.example")


def test_a_pool_may_take_another_of_the_images_runners() -> None:
    """What runs in the place of the image's own is the one that the recipe calls so."""
    assert (
        told(job_script(replace(JOB, kind="forgejo", runner="12.8")))["runner_path"]
        == "/usr/local/lib/vmrunner/runners/12.8/forgejo-runner"
    )
    assert told(job_script(JOB))["runner_path"] == ""


def test_the_pools_limit_is_the_runners() -> None:
    for kind in RUNNERS:
        runner = config(job_script(replace(JOB, kind=kind, job_timeout=timedelta(hours=5))))[
            "runner"
        ]
        assert (runner["timeout"], runner["shutdown_timeout"]) == ("18300s", "18300s"), (
            "the host's own deadline comes first"
        )
    found = told(job_script(JOB))
    assert (found["seconds"], found["pickup_seconds"]) == (360, 420)


def test_what_a_pool_configures_comes_on_top() -> None:
    more = {
        "container": {"privileged": True},
        "runner": {"envs": {"A": "1"}, "fetch_interval": "3s"},
    }
    found = config(job_script(replace(JOB, runner_config=more)))
    assert (
        found["container"]["privileged"],
        found["runner"]["envs"],
        found["runner"]["fetch_interval"],
    ) == (True, {"A": "1"}, "3s")
    assert (found["runner"]["fetch_timeout"], found["cache"]) == ("60s", {"enabled": False})


def test_a_private_authority_is_everybodys() -> None:
    found = config(job_script(replace(JOB, ca="PEM")))
    bundle = "/usr/local/share/vmrunner/ca-bundle.pem"
    assert {"NODE_EXTRA_CA_CERTS": bundle, "GIT_SSL_CAINFO": bundle}.items() <= found["runner"][
        "envs"
    ].items()
    assert (found["container"]["valid_volumes"], found["container"]["options"]) == (
        [bundle],
        f"--volume {bundle}:{bundle}:ro",
    )
    assert config(job_script(JOB))["runner"]["envs"] == {}
    # Whatever else a pool wants for its containers.
    more = {"container": {"options": "--memory 1g", "valid_volumes": ["/srv"], "privileged": True}}
    found = config(job_script(replace(JOB, ca="PEM", runner_config=more)))["container"]
    assert found == {
        "force_pull": False,
        "options": f"--volume {bundle}:{bundle}:ro --memory 1g",
        "valid_volumes": [bundle, "/srv"],
        "privileged": True,
    }


def test_credentials_do_not_show_the_token() -> None:
    assert "t0ken" not in repr(Credentials(5, "u", "t0ken"))


def test_a_proxy_and_a_mirror_are_set_up_before_the_runner() -> None:
    plain = told(job_script(JOB))
    assert (plain["environment"], plain["settings"]) == ({}, {})
    found = told(
        job_script(
            replace(
                JOB,
                registry_mirror="http://mirror.example:5000",
                proxy="http://proxy.example:3128",
                no_proxy=["a.example"],
            )
        )
    )
    assert found["settings"] == {"VMRUNNER_REGISTRY_MIRROR": "http://mirror.example:5000"}
    assert {found["environment"][name] for name in ("http_proxy", "HTTPS_PROXY")} == {
        "http://proxy.example:3128"
    }
    assert found["environment"]["no_proxy"] == "localhost,127.0.0.1,::1,forge.example,a.example"
    assert json.loads(found["files"]["config.yaml"])["runner"]["envs"] == found["environment"], (
        "for jobs in containers"
    )


@pytest.mark.parametrize("kind", RUNNERS)
def test_jobs_are_told_where_the_cache_is(kind: str) -> None:
    url = "http://10.87.0.1:8485/"
    job = replace(JOB, kind=kind, cache_url=url)
    found = told(job_script(job))
    # In the configuration alone: a variable of the runner's own would make its start slower.
    assert found["environment"] == {}
    runner = json.loads(found["files"]["config.yaml"])
    assert (runner["runner"]["envs"], runner["cache"]) == (
        {"ACTIONS_CACHE_URL": url},
        {"enabled": False},
    )
    own = replace(job, runner_config={"runner": {"envs": {"ACTIONS_CACHE_URL": "http://own/"}}})
    assert config(job_script(own))["runner"]["envs"] == {"ACTIONS_CACHE_URL": "http://own/"}
    proxied = replace(job, proxy="http://proxy.example:3128", no_proxy=["a.example"])
    direct = "localhost,127.0.0.1,::1,forge.example,10.87.0.1,a.example"
    assert config(job_script(proxied))["runner"]["envs"]["no_proxy"] == direct


def test_files_about_packages_travel_along() -> None:
    assert told(job_script(JOB))["packages"] == {}
    found = told(job_script(replace(JOB, packages={"/etc/pip.conf": "[global]\n"})))
    assert found["packages"] == {"/etc/pip.conf": "[global]\n"}


def test_a_rehearsal_has_nothing_of_the_forge() -> None:
    for kind in RUNNERS:
        found = json.loads(rehearsal_script(kind, MACHINE, "runner"))
        assert found["url"] == "http://127.0.0.1:9"
        assert "forge.example" not in json.dumps(found)
        assert all("/var/lib/vmrunner-job" not in word for word in found["arguments"])
        assert json.loads(found["files"]["config.yaml"])["host"]["workdir_parent"].startswith(
            found["folder"]
        )
