"""The soak in short, and that it finds what is broken: `python -m tests.soak` runs it for long."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.thorough


def soak(*arguments: str) -> dict[str, Any]:
    # In a process of its own: it forks others, which one with threads should not.
    command = [sys.executable, "-m", "tests.soak", *arguments]
    run = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert run.returncode in {0, 1}, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_processes_under_faults_and_kills_keep_every_promise() -> None:
    """Eight processes on one service, with faults, kills and hours that pass, break no promise of a history."""
    found = soak("--operations", "500", "--processes", "8", "--seed", "5")
    assert not found["anomalies"]
    happened = found["happened"]
    assert min(happened[what] for what in ("kill", "freeze", "hours", "openings")) > 0
    assert any(what.startswith("fault: ") for what in happened)


@pytest.mark.parametrize("sabotage", ["written_again_without_a_look", "removals_are_not_carried"])
def test_the_soak_finds_what_is_broken_on_purpose(sabotage: str) -> None:
    """Without one of the protections, some round breaks a promise: the check above can fail."""
    found = soak("--operations", "3000", "--round", "300", "--processes", "4", "--seed", "1", "--broken", sabotage)
    assert found["anomalies"]
