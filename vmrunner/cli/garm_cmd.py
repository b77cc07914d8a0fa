"""`vmrunner garm`."""

from __future__ import annotations

from vmrunner.cli.app import app
from vmrunner.garm.main import main


@app.command("garm")
def garm() -> None:
    """Carry out one call of GARM's, which says by its environment what it wants; docs/garm.md has
    how to set GARM up. `garm-provider-vmrunner` is the same, for GARM's configuration.
    """
    main()
