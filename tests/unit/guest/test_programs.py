"""What all programs of machines have in common: they stand alone, are linted, and act when run."""

from __future__ import annotations

import ast
import json
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes import FakeHypervisor
from tests.goldens import publish
from tests.unit.guest.programs import GUEST, PYTHON, load
from tests.unit.machine.test_seed import JOB, told
from vmrunner.config import HostConfig
from vmrunner.image.versions import verify
from vmrunner.machine.seed import job_script, rehearsal_script

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", PYTHON)
def test_it_needs_pythons_own_library_alone(name: str) -> None:
    imports = [
        alias.name if isinstance(node, ast.Import) else node.module or ""
        for node in ast.walk(ast.parse((GUEST / name).read_bytes(), feature_version=(3, 11)))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    ]
    assert {each.partition(".")[0] for each in imports} <= sys.stdlib_module_names


@pytest.mark.parametrize("name", PYTHON)
def test_it_acts_when_it_is_run_alone(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name])
    load(name)
    assert capsys.readouterr() == ("", "")
    if name != "job.py":  # behind which the host writes what to call
        assert (GUEST / name).read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')


def test_make_lint_looks_at_each() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    others = {f"images/guest/{name}" for name in PYTHON if not name.endswith(".py")}
    assert others <= set(settings["ruff"]["extend-include"])
    assert others | {"images/guest"} <= set(settings["mypy"]["files"])


def test_what_the_host_tells_is_what_the_guest_reads() -> None:
    """As job.py's types have it, which only mypy sees."""
    module = ModuleType("guest")
    source = (GUEST / "job.py").read_text()
    typed = source.replace("TYPE_CHECKING = False", "TYPE_CHECKING = True")
    assert typed != source
    exec(typed, module.__dict__)  # noqa: S102 — ours
    assert set(told(job_script(JOB))) == module.Job.__required_keys__
    rehearsal = json.loads(rehearsal_script("gitea", JOB.machine, "root"))
    assert set(rehearsal) == module.Rehearsal.__required_keys__


def test_what_verifying_asks_is_what_its_probe_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = HostConfig(manager="m", state_dir=tmp_path / "state", runtime_dir=tmp_path / "run")
    golden = publish(settings.images_dir, "1", promote=False, verified=None)
    asked: list[str] = []

    def run(*arguments: Any, **_: Any) -> int:
        asked.append(arguments[2].words[-1])
        return 0

    monkeypatch.setattr(verify.oneshot, "run", run)
    verify.verify(FakeHypervisor(), settings, golden, say=print)
    assert set(json.loads(asked[0])) == load("probe_image.py").Asked.__required_keys__
