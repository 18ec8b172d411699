"""The measurement of the event loop runs; its numbers are for people, not for a test."""

from __future__ import annotations

import pytest

from tests.benchmarks import loop

pytestmark = pytest.mark.thorough


def test_the_measurement_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """A quick measurement, with the emulator in another process, prints a row for our store and one for boto3 alone."""
    loop.main(["--quick"])
    said = capsys.readouterr().out
    assert "our store" in said
    assert "boto3 alone" in said
    assert "4 conversations at once" in said
