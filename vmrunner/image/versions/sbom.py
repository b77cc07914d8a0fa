"""The bill of materials of an image, or of a disk of tools, in CycloneDX.

Needs the extra `sbom`; nothing else imports its library.
"""

from __future__ import annotations

from datetime import datetime
from uuid import NAMESPACE_URL, uuid5

from vmrunner.errors import ImageError
from vmrunner.model.image import CONTAINERS, TOOL_CACHE, Golden, Input, Manifest, Package, Runner

try:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion
    from packageurl import PackageURL
except ImportError:
    raise ImageError(
        "A bill of materials needs the Python package cyclonedx-python-lib.",
        "pip install 'vmrunner[sbom]', or with pipx: pipx inject vmrunner cyclonedx-python-lib",
    ) from None

VERSION = SchemaVersion.V1_6


def text(golden: Golden) -> str:
    """CycloneDX as JSON, the same for the same image whenever it is asked for."""
    manifest = golden.manifest
    notes = {
        "recipe_digest": manifest.recipe_digest,
        "kernel": manifest.kernel,
        "vmrunner_version": manifest.vmrunner_version,
    }
    image = Component(
        name=golden.name,
        version=golden.version,
        # A disk of tools has no system, and starts nothing: it is a file with others in it.
        type=ComponentType.FILE if manifest.tools else ComponentType.OPERATING_SYSTEM,
        bom_ref=golden.id,
        properties=[
            Property(name=f"vmrunner:{name}", value=value) for name, value in notes.items() if value
        ],
    )
    bom = Bom(serial_number=uuid5(NAMESPACE_URL, f"vmrunner:{golden.id}/{manifest.recipe_digest}"))
    bom.metadata.component = image
    bom.metadata.timestamp = datetime.fromisoformat(manifest.built_at)
    parts = [_package(name, package, manifest) for name, package in manifest.packages.items()]
    if manifest.runner:
        parts.append(_runner(manifest.runner, manifest.runner.kind))
    parts += [_runner(runner, f"runners/{name}") for name, runner in manifest.runners.items()]
    parts += [
        _container(path, file, manifest)
        for path, file in (manifest.inputs or {}).items()
        if path.startswith(f"/{CONTAINERS}/")
    ]
    parts += [_tool(place, sha256) for place, sha256 in manifest.tools.items()]
    for part in parts:
        bom.components.add(part)
    bom.register_dependency(image, parts)
    return make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=1)


def _package(name: str, package: Package, manifest: Manifest) -> Component:
    known = {
        key: value
        for key, value in (("arch", package.architecture), ("distro", manifest.suite))
        if value
    }
    purl = PackageURL("deb", manifest.distribution, name, package.version, known)
    return Component(
        name=name,
        version=package.version,
        type=ComponentType.LIBRARY,
        purl=purl,
        bom_ref=purl.to_string(),
        hashes=_hashes(package.sha256),
    )


def _runner(runner: Runner, ref: str) -> Component:
    hashes = _hashes(runner.sha256)
    return Component(
        name=runner.kind,
        type=ComponentType.APPLICATION,
        bom_ref=ref,
        hashes=hashes,
        properties=_at(runner.path),
    )


def _container(path: str, file: Input, manifest: Manifest) -> Component:
    """An archive as a whole: what is in it vmrunner does not look at."""
    name, hashes = (manifest.containers or {}).get(path, path), _hashes(file.sha256)
    return Component(
        name=name, type=ComponentType.CONTAINER, bom_ref=path, hashes=hashes, properties=_at(path)
    )


def _tool(place: str, sha256: str) -> Component:
    """A tool, with the digest of the archive that it came as."""
    name, version, _ = place.split("/")
    return Component(
        name=name,
        version=version,
        type=ComponentType.APPLICATION,
        bom_ref=place,
        hashes=_hashes(sha256),
        properties=_at(f"{TOOL_CACHE}/{place}"),
    )


def _at(path: str) -> list[Property]:
    return [Property(name="vmrunner:path", value=path)]


def _hashes(sha256: str) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else []
