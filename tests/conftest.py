"""What every test shares: no AWS account within reach, and in CI no test that quietly skips."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

pytest_plugins = ["pytester"]
pytest.register_assert_rewrite("llama_index_bedrock_sessions.conformance")

ALLOWED_SKIPS = (
    "needs an AWS account",
    "needs llama-index-llms-bedrock-converse, whose boto3 is newer",
    "needs llama-index-storage-chat-store-dynamodb, whose boto3 is older",
)
"""What a skip's reason may begin with in CI. All else is a missing package or tool, which `.ci/run` has to install."""

# Whoever runs the tests may have credentials: no test finds them, nor does a process that a test starts.
for variable in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[variable]
os.environ |= {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that hold long tests: no process ends with one of them while the other has nothing to do."""
    long = {item.path for item in items if item.get_closest_marker("thorough")}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish() -> None:
    """Leave what was imported out of every garbage collection from here on: a fifth of the tests' time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what tests have counted, whichever process they ran in: `record_property("counted", ...)`."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "counted":
                terminalreporter.write_line(str(text))


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI (`CI=true`), turn a skip for a reason that is not allowed into a failure."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(ALLOWED_SKIPS):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report
