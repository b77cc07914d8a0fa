"""Domain XML: from records to text, and from a live domain's text back to what we know about it."""

from __future__ import annotations

from xml.etree import ElementTree

from vmrunner.errors import ConfigError
from vmrunner.hypervisor.seam import Output, Way
from vmrunner.model.job import Scope
from vmrunner.model.machine import Limits, MachineId, Metadata, Shape
from vmrunner.render import xml

NAMESPACE = "https://vmrunner.dev/xmlns/1"


def domain_xml(
    *,
    kvm: bool,
    shape: Shape,
    metadata: Metadata,
    network: str,
    mtu: int | None = None,
    files: dict[str, str],
    boot: tuple[str, str, str] | None,
    backing: tuple[str, ...],
    tools: str = "",
    qemu_arguments: tuple[str, ...] = (),
    limits: Limits,
    hides_svm: bool = True,
) -> str:
    """The transient domain of one machine.

    `files` are the paths of `overlay`, `seed`, `events`, `console` and `runner_log` on the libvirt
    host, `backing` what the overlay lies on, topmost first, `tools` a disk of tools, or empty;
    `boot` is kernel, initrd and kernel command line for a direct boot, or None for an image with a
    boot loader. All machines of one
    shape have the same devices, so that they can be clones of one snapshot. `hides_svm`: a machine
    that is not to have machines of its own lacks AMD's way to them, as it lacks Intel's.
    """
    kernel, initrd, cmdline = boot or ("", "", "")
    return xml(
        "domain.xml.j2",
        kvm=kvm,
        name=str(metadata.machine),
        mac=metadata.machine.mac,
        tap=metadata.machine.tap,
        metadata=metadata,
        shape=shape,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        network=network,
        mtu=mtu,
        streams=(*Output, Way.DOOR),
        backing=backing,
        tools=tools,
        qemu_arguments=qemu_arguments,
        limits=limits,
        hides_svm=hides_svm,
        **files,
    )


def metadata_xml(metadata: Metadata) -> str:
    """The element of our namespace, as libvirt's setMetadata wants it."""
    return xml("metadata.xml.j2", metadata=metadata, in_domain=False)


def parse_metadata(text: str, machine: MachineId) -> Metadata | None:
    """What the domain says about itself, or None where it carries no (readable) metadata of this
    machine's manager.
    """
    try:
        found = ElementTree.fromstring(text).find(f"./metadata/{{{NAMESPACE}}}machine")  # noqa: S314 — libvirt's own words
        if found is None or found.get("manager") != machine.manager:
            return None
        if any(found.get(name) is None for name in ("pool", "image", "created")):
            return None  # every vmrunner has written these
        if found.get("scope"):
            Scope.parse(found.get("scope", ""))
        return Metadata(
            machine=machine,
            pool=found.get("pool", ""),
            image=found.get("image", ""),
            created_at=float(found.get("created", "0")),
            overlay_at=float(found.get("overlay", "0")),
            bound_at=float(found.get("bound", "0")),
            running_at=float(found.get("running", "0")),
            over_at=float(found.get("over", "0")),
            silent_at=float(found.get("silent", "0")),
            parked_at=float(found.get("parked", "0")),
            address=found.get("address", ""),
            network=found.get("network", ""),
            snapshot=found.get("snapshot", ""),
            tools=found.get("tools", ""),
            offset=float(found.get("offset", "0")),
            boot=found.get("boot", ""),
            queued_at=float(found.get("queued", "0")),
            runner_id=int(found.get("runner", "0")),
            scope=found.get("scope", ""),
            job_key=found.get("job", ""),
            seen_key=found.get("seen", ""),
            repository=found.get("repository", ""),
            instance=found.get("instance", ""),
            stays=found.get("stays", "") == "yes",
            held_at=float(found.get("held", "0")),
            held_for=float(found.get("held-for", "0")),
            held_why=found.get("held-why", ""),
        )
    except (ElementTree.ParseError, ValueError, ConfigError):
        return None
