"""What tests of commands share."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from vmrunner.cli.main import main

Main = Callable[..., tuple[int, str, str]]


@pytest.fixture
def as_main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """A command line as main() runs it: its exit code, stdout, stderr."""
    on_terminate = signal.getsignal(signal.SIGTERM)

    def call(*words: str, program: str = "vmrunner") -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", [program, *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said, code = capsys.readouterr(), ended.value.code or 0
        assert isinstance(code, int)
        return code, said.out, said.err

    yield call
    signal.signal(signal.SIGTERM, on_terminate)  # main() set it
