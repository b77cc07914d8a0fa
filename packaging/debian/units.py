"""Writes the units of a host with the default configuration below a folder, for the package."""

import sys
from pathlib import Path

from vmrunner.cli import systemd_units
from vmrunner.cli.systemd_units import MARK, Installation, Way
from vmrunner.config import Config

SETTINGS = Config.model_validate(
    {
        "manager": "host",
        "forge": {"kind": "forgejo", "url": "https://forge.example"},
        "pools": {"pool": {"labels": ["label"], "image": "image"}},
    }
)


def main() -> None:
    """The folder is the first argument."""
    folder = Path(sys.argv[1]) / "usr/lib/systemd/system"
    wanted = Installation(SETTINGS, Path("/usr/bin/vmrunner"))
    files = {folder / name: unit for way in Way for name, unit in wanted.units(way).items()}
    files[systemd_units.sysusers_path(folder)] = wanted.sysusers()
    files[systemd_units.tmpfiles_path(folder)] = wanted.tmpfiles()
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = content.replace(f"{MARK}, which overwrites it.", "# Of the package vmrunner.")
        path.write_text(ours, encoding="utf-8")


main()
