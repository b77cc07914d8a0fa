#!/usr/bin/python3
"""The program `vmrunner` of the Debian package."""

import os
import sys

# Debian 12 lacks some modules, or has older ones: the package vmrunner-modules has them.
MODULES = "/usr/lib/vmrunner/modules"
if os.path.isdir(MODULES):
    sys.path.insert(0, MODULES)
    os.environ["PYTHONPATH"] = MODULES  # of the processes that it starts of itself

from vmrunner.cli.main import main  # noqa: E402 — they have to be found first

main()
