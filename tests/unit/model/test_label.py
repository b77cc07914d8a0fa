"""Which labels' jobs need Docker."""

from __future__ import annotations

from vmrunner.model.label import Label, without_docker


def test_which_labels_need_it() -> None:
    labels = [
        Label.parse(text)
        for text in ("a", "b:host", "docker", "c:docker://node:22", "d:docker://e")
    ]
    assert [label.name for label in labels if label.needs_docker] == ["c", "d"]
    assert without_docker(labels[:3], "x") == ""
