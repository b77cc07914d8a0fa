"""On which line a key stands."""

from __future__ import annotations

import pytest

from vmrunner.lines import line_of

TEXT = '''\
# comment
name = "x" # not = this
packages = [
  "a", # b = 1
  "c = d",
]
text = """
[no.table]
key = 1
"""
a.b = 1

[files."/etc/x"]
mode = "0644"
text = ""
[[scripts]]
name = "one"
[[scripts]]
# nothing = here
name = "two"
[users.ci]
uid = 1
'''


@pytest.mark.parametrize(
    ("wanted", "line"),
    [
        (("name",), 2),
        (("packages", 1), 3),
        (("text",), 7),
        (("a", "b"), 11),
        (("files", "/etc/x", "mode"), 14),
        (("files", "/etc/x", "nothing"), 13),
        (("scripts", 0, "name"), 17),
        (("scripts", 1, "name"), 20),
        (("scripts", 1), 18),
        (("users", "ci", "uid"), 22),
        (("nowhere",), 1),
        ((), 1),
    ],
)
def test_the_line(wanted: tuple[str | int, ...], line: int) -> None:
    assert line_of(TEXT, wanted) == line
