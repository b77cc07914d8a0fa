"""Domain XML: from records to text, and from a live domain's text back to what we know about it."""

from __future__ import annotations

from xml.etree import ElementTree

from vmrunner.model import MachineId, Metadata, Shape
from vmrunner.render import xml

NAMESPACE = "https://vmrunner.dev/xmlns/1"


def domain_xml(
    *,
    kvm: bool,
    shape: Shape,
    metadata: Metadata,
    network: str,
    files: dict[str, str],
    boot: tuple[str, str, str] | None,
    outputs: tuple[str, ...],
) -> str:
    """The transient domain of one machine.

    `files` are the paths of `overlay`, `golden`, `seed`, `events` and `console` on the libvirt host; `boot` is kernel, initrd and
    kernel command line for a direct boot, or None for an image with a boot loader.
    """
    kernel, initrd, cmdline = boot or ("", "", "")
    return xml(
        "domain.xml.j2",
        kvm=kvm,
        name=str(metadata.machine),
        manager=metadata.machine.manager,
        mac=metadata.machine.mac,
        metadata=metadata,
        shape=shape,
        kernel=kernel,
        initrd=initrd,
        cmdline=cmdline,
        network=network,
        streams=outputs,
        **files,
    )


def parse_metadata(text: str, machine: MachineId) -> Metadata | None:
    """What the domain says about itself, or None where it carries no (readable) metadata of this machine's manager."""
    try:
        found = ElementTree.fromstring(text).find(f"./metadata/{{{NAMESPACE}}}machine")  # noqa: S314 — libvirt's own words
        if found is None or found.get("manager") != machine.manager:
            return None
        return Metadata(
            machine=machine,
            pool=found.get("pool", ""),
            image=found.get("image", ""),
            created_at=float(found.get("created", "0")),
            overlay_at=float(found.get("overlay", "0")),
            queued_at=float(found.get("queued", "0")),
            runner_id=int(found.get("runner", "0")),
            job_key=found.get("job", ""),
        )
    except (ElementTree.ParseError, ValueError):
        return None
