"""`vmrunner config`."""

from __future__ import annotations

from vmrunner import config
from vmrunner.cli.app import ConfigOption, config_app, out


@config_app.command("example")
def example() -> None:
    """Print a configuration with every key explained."""
    print(config.example(), end="")


@config_app.command("check")
def check(config_path: ConfigOption = config.DEFAULT_PATH) -> None:
    """Read the configuration and say whether it is right."""
    settings = config.load(config_path)
    out.print(
        f"{config_path}: manager {settings.manager}, pools {', '.join(settings.pools)}.",
        markup=False,
    )
