"""`vmrunner config`."""

from __future__ import annotations

from vmrunner.cli.app import DEFAULT_PATH, ConfigOption, config_app, out, warn


@config_app.command("example")
def example() -> None:
    """Print a configuration with every key explained."""
    from vmrunner import config

    print(config.example(), end="")


@config_app.command("check")
def check(config_path: ConfigOption = DEFAULT_PATH) -> None:
    """Read the configuration and the files that it names, look up the forge's name, and say whether
    all that is right. Nobody else is asked: `vmrunner doctor` does that.
    """
    from vmrunner import config
    from vmrunner.forge.connect import connect

    settings = config.load(config_path)
    connect(settings.forge, config.forge_token(settings.forge, warn)).close()
    settings.forge.ca()
    if secret := settings.serve.webhook.secret_file:
        config.webhook_secret(secret, warn)
    if wrong := settings.forge_fault():
        raise wrong
    out.print(
        f"{config_path}: manager {settings.manager}, pools {', '.join(settings.pools)}.",
        markup=False,
    )
