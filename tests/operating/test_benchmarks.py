"""The benchmarks run, and what they count is right; no time is asserted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from PIL import Image

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions.emulator import Emulator
from tests.benchmarks import __main__ as benchmarks
from tests.benchmarks import comparison, directory
from tests.benchmarks.measurement import Case, Cell, Profile, compare
from tests.benchmarks.peers import Said, asks, chat, said, turn_of
from tests.benchmarks.wire import wire
from tests.support.service import user

pytestmark = pytest.mark.thorough


def test_the_benchmarks_run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest profile compares who is installed, and prints its tables and the command that prints them again."""
    findings: list[comparison.Finding] = []
    measure = comparison.measure

    def measured(profile: Profile, dynamodb: Path | None, tell: Callable[[str], None]) -> list[comparison.Finding]:
        findings.extend(measure(profile, dynamodb, tell))
        return findings

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(comparison, "measure", measured)
    benchmarks.main(["--quick"])
    output = capsys.readouterr().out
    assert "warm append at 10" in output
    assert "first write after an idle hour" in output
    assert "To measure again, run: python -m tests.benchmarks --quick" in output
    assert [finding.name for finding in findings] == [peer.name for peer in comparison.PEERS]
    assert all(finding.name in output for finding in findings)
    assert all(finding.cases or finding.note for finding in findings)

    by_name = {finding.name: finding for finding in findings}
    ours, by_hand = by_name[comparison.OURS], by_name["by hand"]
    for finding in (ours, by_hand):
        assert [(case.length, case.pictures, case.kept) for case in finding.cases] == [
            (10, False, "all"),
            (10, True, "all"),
        ]
        assert finding.race == "18 of 18"
    assert {case.warm.calls for case in ours.cases} == {3}  # the design's promise: one list, two steps
    # a list, a get for each message, and a step for each of the turn
    assert {case.warm.calls for case in by_hand.cases} == {1 + 10 + 6}
    assert all(case.warm.bytes for finding in (ours, by_hand) for case in finding.cases)


def test_the_wire_counts_every_call_and_its_bytes() -> None:
    """What the wire counted is what the emulator at its end has served, and more bytes than the bodies have."""
    with Emulator() as emulator, emulator.serve() as server, wire(server.port) as line:
        keys: dict[str, Any] = {"aws_access_key_id": "AKIDTESTS", "aws_secret_access_key": "tests"}
        store = BedrockSessionsChatStore(region_name="us-east-1", endpoint_url=f"http://127.0.0.1:{line.port}", **keys)
        for text in ("hello", "x" * 1_000_000):
            store.add_message("ada", user(text))
            store.get_messages("ada")
        calls, size = line.count()
        assert calls == len(emulator.calls) > 4
        assert size > sum(call.request_size + call.response_size for call in emulator.calls) > 1_000_000
        assert line.count() == (0, 0)


def test_what_was_lost_is_found_by_comparing() -> None:
    """Nothing lost is "all"; tool calls, pictures, texts and messages that did not come back are named."""
    expected = [*chat(4, pictures=True), *turn_of(asks("What is new?", picture=True))]
    found = [said(message) for message in expected]
    assert compare(expected, found) == "all"
    assert compare(expected, [one._replace(calls=()) for one in found]) == "10 of 10 messages; loses tool calls"
    assert compare(expected, [one._replace(pictures=()) for one in found]) == "10 of 10 messages; loses pictures"
    assert compare(expected, found[:-1]) == "9 of 10 messages; loses texts"
    swapped = [Said("assistant", *one[1:]) for one in found]
    assert compare(expected, swapped) == "10 of 10 messages; loses their order or roles"


def test_a_peer_that_cannot_be_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not installed, or has no server here, or fails altogether, gets a note in place of its figures."""

    def no_server() -> nullcontext[int]:
        raise FileNotFoundError("needs a-server")

    absent = comparison.Peer("absent", comparison.emulator, "no_such_package.of_a_store", "not installed: really")
    stranded = comparison.Peer("stranded", no_server)
    unknown = comparison.Peer("unknown", lambda: nullcontext(0))
    monkeypatch.setattr(comparison, "PEERS", (absent, stranded, unknown))
    notes = [finding.note for finding in comparison.measure(comparison.QUICK, None, lambda _: None)]
    assert notes == ["not installed: really", "not run: needs a-server", "not measured: KeyError: 'unknown'"]


def test_the_tables_and_the_picture(tmp_path: Path) -> None:
    """A raise stands in its row, a figure that there is not is a dash, and the picture is a picture."""
    pytest.importorskip("matplotlib")
    figures = Cell(3, 10_400, {"0.0": 0.5})
    unwired = Cell(12, None, {"0.0": 0.25})
    raises = Cell(raised="ValueError: item|too large")
    findings = [
        comparison.Finding("one", [Case(10, False, figures, unwired, "all"), Case(100, False, raises, raises, "x")]),
        comparison.Finding("none", [], note="not installed"),
    ]
    costs, _, kept = comparison.sheets(findings, comparison.QUICK)
    assert costs[2][0] == ["one", "10", "3", "10.4", "0.50", "12", "-", "0.25"]
    assert comparison.sheets(findings, comparison.COUNTS)[0][2][0] == ["one", "10", "3", "10.4", "12", "-"]
    assert costs[2][1][:3] == ["one", "100", "ValueError: item|too large"]
    assert costs[2][2][:3] == ["none", "", "not installed"]
    assert {len(row) for row in costs[2]} == {len(costs[1])}
    assert kept[2] == [["one", "all; x", "", "", ""], ["none", "", "", "", "not installed"]]
    assert "| one | 100 | ValueError: item\\|too large |" in comparison.markdown(costs)
    heights = []
    for latencies in ((), (0.0,)):
        comparison.picture(findings, tmp_path / "picture.png", latencies)
        with Image.open(tmp_path / "picture.png") as picture:
            assert picture.width >= 1500
            heights.append(picture.height)
    assert heights[0] < heights[1]  # by the seconds


def test_a_turn_is_what_an_agent_stores() -> None:
    """The messages that are compared have two tool calls and their results, between a question and an answer."""
    roles = [message.role for message in turn_of(ChatMessage("What is new?"))]
    tool = [MessageRole.ASSISTANT, MessageRole.TOOL]
    assert roles == [MessageRole.USER, *tool, *tool, MessageRole.ASSISTANT]


def test_the_calls_to_find_a_conversation_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """The smallest number of sessions prints its table and the command that prints it again."""
    directory.main(["--quick"])
    output = capsys.readouterr().out
    assert "that does not exist" in output
    assert "Again: python -m tests.benchmarks.directory --quick" in output
