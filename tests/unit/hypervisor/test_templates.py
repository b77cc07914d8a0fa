"""XML templates: well-formed, and hostile values stay values."""

from collections import Counter
from xml.etree import ElementTree

import pytest

from vmrunner.hypervisor.domain import parse_metadata
from vmrunner.model.machine import NO_LIMITS, Limits, MachineId, Metadata, Shape
from vmrunner.render import xml

MACHINE = MachineId("ci-1", "00c0ffee")


def domain(
    job: str = "1",
    limits: Limits = NO_LIMITS,
    *,
    kvm: bool = False,
    nested: bool = False,
    mtu: int | None = None,
    hides_svm: bool = True,
    tools: str = "",
) -> ElementTree.Element:
    return ElementTree.fromstring(  # noqa: S314 — our own output
        xml(
            "domain.xml.j2",
            kvm=kvm,
            name=str(MACHINE),
            manager="ci-1",
            metadata=Metadata(MACHINE, "p", "debian-12/1", 1.0, job_key=job),
            shape=Shape(2, 1024, 10, nested),
            limits=limits,
            kernel="/k",
            initrd="/i",
            cmdline="root=/dev/vda",
            overlay="/o",
            backing=("/snapshot", "/golden"),
            tools=tools,
            qemu_arguments=("-incoming", "defer"),
            seed="/s",
            mac=MACHINE.mac,
            tap=MACHINE.tap,
            network="n",
            mtu=mtu,
            console="/c",
            runner_log="/l",
            events="/e",
            streams=["stdout"],
            hides_svm=hides_svm,
        )
    )


def test_with_kvm_the_processor_is_the_hosts_as_far_as_it_can_be_saved() -> None:
    tree = domain("1", kvm=True)
    processor = tree.find("cpu")
    assert processor is not None
    assert tree.get("type") == "kvm"
    assert processor.attrib == {"mode": "host-passthrough", "check": "none", "migratable": "on"}
    emulated = domain("1")
    assert emulated.get("type") == "qemu"
    assert emulated.find("cpu").attrib == {"mode": "maximum"}  # type: ignore[union-attr]


@pytest.mark.parametrize("kvm", [True, False])
def test_virtual_machines_in_machines_only_where_that_is_said(kvm: bool) -> None:
    def taken_away(tree: ElementTree.Element) -> dict[str | None, str | None]:
        return {each.get("name"): each.get("policy") for each in tree.iterfind("cpu/feature")}

    assert taken_away(domain("1", kvm=kvm)) == {"vmx": "disable", "svm": "disable"}
    assert taken_away(domain("1", kvm=kvm, nested=True)) == {}
    assert taken_away(domain("1", kvm=kvm, hides_svm=False)) == {"vmx": "disable"}


def test_domain_escapes_what_the_forge_says() -> None:
    hostile = '"/><devices>&<!--'
    tree = domain(hostile)
    assert tree.find("metadata")[0].get("job") == hostile  # type: ignore[index]
    assert len(tree.findall("devices")) == 1


def test_domain_dies_with_its_guest_and_is_isolated() -> None:
    tree = domain("1")
    assert [tree.findtext(f"on_{event}") for event in ("poweroff", "reboot", "crash")] == [
        "destroy"
    ] * 3
    assert tree.find("devices/interface/port").get("isolated") == "yes"  # type: ignore[union-attr]
    shared = {
        source.get("file"): source.find("seclabel")
        for source in tree.iterfind(".//backingStore/source")
    }
    assert {file: label.get("relabel") for file, label in shared.items() if label is not None} == {
        "/snapshot": "no",
        "/golden": "no",
    }


def test_a_disk_of_tools_can_only_be_read_and_stays_roots() -> None:
    source = domain(tools="/t").find("devices/disk[3]/source")
    disk = domain(tools="/t").find("devices/disk[3]")
    assert disk is not None
    assert source is not None
    assert source.get("file") == "/t"
    assert disk.findtext("serial") == "vmrunner-tools"
    assert disk.find("readonly") is not None
    label = source.find("seclabel")
    assert label is not None
    assert label.attrib == {"model": "dac", "relabel": "no"}


def test_a_machine_says_which_tools_it_has() -> None:
    def said(tools: str) -> str:
        metadata = Metadata(MACHINE, "p", "debian-12/1", 1.0, tools=tools)
        element = xml("metadata.xml.j2", metadata=metadata, in_domain=True)
        found = parse_metadata(f"<domain><metadata>{element}</metadata></domain>", MACHINE)
        assert found is not None
        return found.tools

    assert said("tools/2") == "tools/2"
    assert said("") == ""


def test_a_disk_is_as_fast_as_its_limits_say() -> None:
    assert domain("1").find(".//iotune") is None
    bounds = domain("1", Limits(disk_bandwidth_mib=20, disk_iops=100))
    assert [(each.tag, each.text) for each in bounds.iterfind(".//iotune/*")] == [
        ("total_bytes_sec", str(20 << 20)),
        ("total_iops_sec", "100"),
    ]


def test_a_machines_card_is_told_how_big_packets_are() -> None:
    sizes = [domain(mtu=mtu).find("devices/interface/mtu") for mtu in (None, 1400)]
    assert [size is not None and size.get("size") for size in sizes] == [False, "1400"]


def test_a_machine_has_no_more_devices_than_docs_security_lists() -> None:
    tree = domain("1")
    assert Counter(each.tag for each in tree.iterfind("devices/*")) == {
        "disk": 2,
        "interface": 1,
        "serial": 1,
        "channel": 3,  # the reports, the runner's log, and one output in this domain
        "rng": 1,
        "controller": 2,  # no USB; the PCI Express root
        "memballoon": 1,  # none
    }
    assert {each.get("model") for each in tree.iterfind("devices/controller[@type='usb']")} == {
        "none"
    }
    assert tree.find("devices/memballoon").get("model") == "none"  # type: ignore[union-attr]
    assert tree.find("features/vmport").get("state") == "off"  # type: ignore[union-attr]
    arguments = [
        each.get("value") for each in tree.iter("{http://libvirt.org/schemas/domain/qemu/1.0}arg")
    ]
    assert arguments == ["-machine", "sata=off,smbus=off,i8042=off", "-incoming", "defer"]
