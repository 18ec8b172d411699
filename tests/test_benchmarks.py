"""The benchmarks run; what they measure is asserted where it is promised, not here."""

from __future__ import annotations

import pytest

from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import directory


def test_the_benchmarks_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest profile prints its table and the command that prints it again."""
    monkeypatch.setenv("COLUMNS", "120")
    benchmarks.main(["--quick"])
    output = capsys.readouterr().out
    assert "warm append at 10" in output
    assert "first write after an idle hour" in output
    assert "Again: python -m tests.benchmarks --quick" in output


def test_the_calls_to_find_a_conversation_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest number of sessions prints its table and the command that prints it again."""
    directory.main(["--quick"])
    output = capsys.readouterr().out
    assert "that does not exist" in output
    assert "Again: python -m tests.benchmarks.directory --quick" in output
