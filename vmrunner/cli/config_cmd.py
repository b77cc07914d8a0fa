"""`vmrunner config`."""

from __future__ import annotations

import json

from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, JsonOption, config_app, out, show, warn
from vmrunner.cli.shown import Checked
from vmrunner.errors import ConfigError


@config_app.command("example")
def example() -> None:
    """Print a configuration with every key explained."""
    from vmrunner import config

    print(config.example(), end="")


@config_app.command("show")
def show_values(as_json: JsonOption = False, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """Print the values that are in force, defaults included, as a file that means the same.

    No secret is in it: tokens are in files of their own.
    """
    from vmrunner import config
    from vmrunner.cli import config_text

    settings = config.load(config_path)
    if as_json:
        show(config_text.plain(settings))
    else:
        print(config_text.toml(settings), end="")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of the file, by which editors complete and check it."""
    from vmrunner import config
    from vmrunner.cli import config_text

    print(json.dumps(config_text.schema(config.example()), indent=1))


@config_app.command("check")
def check(as_json: JsonOption = False, config_path: ConfigOption = DEFAULT_PATH) -> None:
    """Read the configuration and the files that it names, look up the forge's name, and say whether
    all that is right. Nobody else is asked: `vmrunner doctor` does that.
    """
    from vmrunner import config
    from vmrunner.doctor import configuration
    from vmrunner.doctor.findings import Level
    from vmrunner.forge.connect import connect

    settings = config.load(config_path)
    connect(settings.forge, config.forge_token(settings.forge, warn)).close()
    settings.forge.ca()
    if secret := settings.serve.webhook.secret_file:
        config.webhook_secret(secret, warn)
    if secret := settings.notify.secret_file:
        config.notify_secret(secret, warn)
    if wrong := settings.forge_fault():
        raise wrong
    doubts = list(configuration.look(settings, configuration.this_host(settings)))
    faults = [each.said for each in doubts if each.level is Level.ERROR]
    if faults:
        raise ConfigError(config.listed(config_path, faults), "See `vmrunner config example`.")
    notes = [f"{each.said} {each.fix}" for each in doubts]
    for note in notes:
        warn(note)
    manager, pools = settings.manager, tuple(settings.pools)
    if as_json:
        show(Checked(str(config_path), manager, pools, tuple(notes)))
    else:
        out.print(f"{config_path} is valid: manager {manager}, pools {', '.join(pools)}.")
