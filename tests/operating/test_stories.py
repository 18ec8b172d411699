"""The stories among the examples: what must be so in each, and that they are told on AWS as well as here.

What a notebook prints is what is kept in it (`tests/operating/test_examples.py`): that is looked at here.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llama_index_bedrock_sessions.emulator import Emulator
from tests.operating.test_examples import EXAMPLES, kept, printed, run

pytestmark = pytest.mark.thorough


@pytest.fixture(params=["here", "on AWS"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def told(name: str, where: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give what a story prints, as it is kept in its notebook, or as a script where boto3 looks for AWS.

    That is an emulator behind HTTP. Nobody moves its clock.
    """
    if where == "here":
        return printed(kept(name))
    with Emulator() as emulator, emulator.serve() as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "example")
        monkeypatch.setenv("AWS_SESSIONS_REGION", "us-west-2")
        output = run(folder, str(EXAMPLES / f"{name}.py"))
        assert emulator.client().list_sessions()["sessionSummaries"] == []
    return output


def test_the_incident_is_handed_over(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third shift is told what the first two found and saw; the end, the search and the deletion leave their trail.

    Here every visit is a session of its own, and on AWS, where no hour passes, all are one.
    """
    text = told("diagnostic_assistant", where, tmp_path, monkeypatch)
    taken_over = text.split("> I am taking over. What do we know?\n")[1].split("\n")[0]
    assert "p99 was 191 ms until 14:03" in taken_over
    assert "2 screenshots show it" in taken_over
    assert "revision 41" in taken_over
    hours = [int(hour) for hour in re.findall(r"^hour +(\d+), engineer-1, Day 1, on call", text, re.MULTILINE)]
    assert hours == ([0, 0, 8, 8, 8] if where == "here" else [0] * 5)
    assert "The plan: ['create the index, concurrently', 'watch p99 for an hour']" in text
    sessions = re.findall(r"^(EXPIRED|ACTIVE) .* byte for byte: (\w+)", text, re.MULTILINE)
    before = [("EXPIRED", "True"), ("EXPIRED", "False"), ("EXPIRED", "False"), ("ACTIVE", "False")]
    assert sessions == (before if where == "here" else [("ACTIVE", "True")])
    tagged = re.findall(r"^ +PerformanceDegradation Production \| encrypted with (.+)$", text, re.MULTILINE)
    assert tagged == (["1234abcd-12ab-34cd-56ef-1234567890ab"] * 4 if where == "here" else ["a key of AWS"])
    assert "expires after 1 idle hour\nStepTooLargeError retryable: False\n" in text
    assert "Faults: [('ListInvocationSteps', 'lost_reply'), ('PutInvocationStep', 'throttle')]\n" in text
    assert "Stored: {'user': 1, 'assistant': 3, 'tool': 2}\n31 days later: [] []\n" in text
    assert "fix by engineer-3 | An index on orders.customer_id was missing" in text
    assert "| the ticket: ended\n" in text
    assert "INC-4712 holds ['Search returns nothing.'] {}\n" in text
    assert "ConversationEnded retryable: False" in text
    assert "severity high: ['INC-4711', 'INC-4712']" in text
    outcomes = "[('a bad deployment', 'failed'), ('the database is the bottleneck', 'confirmed')]"
    assert f"INC-4711 Closed {outcomes}\ncommands: 6 screenshots: 3 lessons:" in text
    trail = re.findall(r"^INC-4711 (ended|hidden|restored|deleted) +(.*)$", text, re.MULTILINE)
    office = "by privacy office"
    assert trail == [
        ("ended", "fix, by engineer-3"),
        ("hidden", f"retention policy, {office}"),
        ("restored", f"the review goes on, {office}"),
        ("deleted", f"retention policy, {office}"),
    ]
    assert text.endswith("Bedrock: ResourceNotFoundException\nleft: [] [] []\n")


def test_the_shop_survives_a_crash_and_orders_once(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cart and history outlive a turn, a replay says the same, a fork changes nothing, one of two clicks counts."""
    text = told("shopping_assistant", where, tmp_path, monkeypatch)
    assert "The turn has broken off.\nThe cart: ['stride']\nYes, and so is your cart: stride." in text
    assert "['user', 'assistant', 'tool', 'assistant', 'user', 'assistant', 'tool', 'user', 'assistant']" in text
    assert "Reading it again: {'ListInvocationSteps': 1}" in text
    warm = "{'PutInvocationStep': 1, 'ListInvocationSteps': 1}"
    assert f"Visit 2:  {warm}\nVisit 40: {warm}\nThe carts: ['stride'] ['ridge']\n" in text
    assert "came by {'app': 1, 'web': 1} | tools {'search_shoes': 1, 'add_to_cart': 1}\n" in text
    assert "The same answer: True" in text
    assert "['stride'] ['comet']" in text
    clicked = text.split("customer-42 orders stride for 129 euros. Approve?\n")[1].splitlines()
    assert clicked[0].endswith("FunctionAgent', None)]")
    assert clicked[1:4] == [
        "Ordered yet: False",
        "Thank you! Ordered: stride, 129 euros.",
        "AlreadyResumed: the shop has answered it.",
    ]
    assert "The orders: [['stride']] The stage: ordered" in text
    assert text.endswith("sold | one pair ordered\nLeft: [] []\n")


def test_the_application_has_moved() -> None:
    """All is copied, what was interrupted is completed, nothing is overwritten, and the agent knows what it knew."""
    text = printed(kept("moving_in"))
    assert "8 messages of 2 conversations, 0 problems\nEqual: True\ncompleted: ('hello',)\n" in text
    assert "INC-4711, message 6: the target has more messages than the source; nothing was written" in text
    assert "INC-4711, as we left it: The dashboard you sent is a picture of 960 x 540 pixels." in text
    assert text.endswith("moved out: ('INC-4711', 'hello')\n")
