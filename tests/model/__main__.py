"""`make model`: the model test with as many examples as wanted; the last line is its figures as
JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import pytest

# Not imported from there: pytest wants to be the first to import hypothesis.
EXAMPLES = int(os.environ.get("VMRUNNER_TEST_MODEL_EXAMPLES", "500"))


def main() -> None:
    """Run it; exits as pytest does."""
    began = time.monotonic()
    code = pytest.main(["-q", "-x", "tests/model"])
    print(
        json.dumps(
            {
                "examples": EXAMPLES,
                "passed": code == 0,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )
    sys.exit(code)


if __name__ == "__main__":
    main()
