"""`vmrunner doctor` on a real host and forge: what is well is said to be, and what is broken is
found, with its fix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing

import libvirt
import pytest

from tests.forge.gitea import Site
from tests.ground import STORAGE, Ground
from tests.prepare import GITEA, IMAGES
from tests.vm.test_failing import image_with
from vmrunner import config
from vmrunner.forge.connect import connect
from vmrunner.hypervisor.host import open_host
from vmrunner.hypervisor.network import network_xml, remove_network
from vmrunner.image.versions import store
from vmrunner.machine.identity import fresh
from vmrunner.model.job import Scope

pytestmark = pytest.mark.vm
WELL = (
    "libvirt",
    "storage",
    "logs",
    "locale",
    "network",
    "image",
    "snapshot",
    "forge",
    "clock",
    "token",
)


def findings(ground: Ground) -> tuple[int, dict[str, list[tuple[str, str, str]]]]:
    """The exit code, and (level, sentence, fix) by check."""
    done = ground.run("doctor", "--json", check=False)
    found: dict[str, list[tuple[str, str, str]]] = {}
    for each in json.loads(done.stdout):
        found.setdefault(each["check"], []).append((each["level"], each["said"], each["fix"]))
    return done.returncode, found


def worst(found: dict[str, list[tuple[str, str, str]]], check: str) -> tuple[str, str, str]:
    return min(found[check], key=lambda each: ["error", "warning", "good"].index(each[0]))


def test_a_host_that_is_well(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(token=site.grant("write:admin", "read:repository", admin=True), cloned=True)
    ground.run("up")  # the rules may be another test's, with a runtime_dir of its own
    code, found = findings(ground)
    bad = {check: each for check, listed in found.items() for each in listed if each[0] != "good"}
    kvm = worst(found, "accelerator")[1] == "KVM"
    assert bad.keys() <= {"accelerator", "permissions", "bounds"}, (
        f"no KVM, a runtime_dir in /tmp, a rig without cgroups: {bad}"
    )
    assert code == (10 if bad else 0)
    assert kvm or "software emulation" in bad["accelerator"][1]
    assert {check: worst(found, check)[0] for check in WELL} == dict.fromkeys(WELL, "good")
    shown = ground.run("doctor", check=False).stdout
    assert "snapshot: pool main starts machines from" in shown


def test_what_is_broken_is_found(site: Site, lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(image="damaged", start="boot")
    settings = config.load(ground.config)
    open_host(settings, print).prepare(store.find(IMAGES, GITEA))
    image_with(ground, "damaged", files={"disk.qcow2": "0" * 64})
    ground.config.write_text(ground.config.read_text() + '[capacity]\ndisk_floor = "900TiB"\n')
    stray, orphan = fresh(settings), fresh(settings)
    (STORAGE / ground.manager / f"{stray}.qcow2").write_bytes(b"")
    with closing(connect(settings.forge, config.Secret(site.token))) as forge:
        forge.create_runner(Scope.parse("instance"), str(orphan), ["debian-12"])
    with closing(libvirt.open("qemu:///system")) as connection:
        remove_network(connection, ground.manager)
        text = network_xml(ground.manager, settings.libvirt.subnet).replace(
            'mode="nat"', 'mode="route"'
        )
        network = connection.networkDefineXML(text)
        try:
            code, found = findings(ground)
        finally:
            network.undefine()
    assert code == 11
    expected = {
        "image": ("error", "disk.qcow2 has another sha256", "image build damaged --force"),
        "storage": ("error", "below the floor", "capacity.disk_floor"),
        "network": (
            "error",
            "it is not active; forwarding is mode=route instead of mode=nat",
            "virsh net-undefine vmr-suite",
        ),
        "token": ("warning", "it has the scopes issue, notification, user", "only the scopes"),
    }
    for check, (level, said, fix) in expected.items():
        seen = worst(found, check)
        assert (seen[0], said in seen[1], fix in seen[2]) == (level, True, True), seen
    left = " ".join(said for _, said, _ in found["leftovers"])
    assert (str(stray) in left, str(orphan) in left) == (True, True), left


def test_an_old_image_is_a_warning(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(image="aged", start="boot")
    image_with(ground, "aged", built_at="2020-01-01T00:00:00+00:00")
    level, said, fix = worst(findings(ground)[1], "image")
    assert (
        level,
        "nothing in it was updated since" in said,
        "`sudo vmrunner image refresh aged`" in fix,
    ) == ("warning", True, True)


def test_no_forge_and_no_libvirt(lay_ground: Callable[..., Ground]) -> None:
    ground = lay_ground(url="http://127.0.0.1:9")
    ground.config.write_text(
        ground.config.read_text().replace(
            "[libvirt]", '[libvirt]\nuri = "qemu+unix:///system?socket=/nowhere"'
        )
    )
    code, found = findings(ground)
    assert code == 11
    assert (worst(found, "libvirt")[0], worst(found, "forge")[0]) == ("error", "error")
    assert "can't be reached" in worst(found, "forge")[1]
