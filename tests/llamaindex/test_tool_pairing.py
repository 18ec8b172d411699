"""Healing of tool calls, held against the pairing rule of Bedrock's Converse API and the real converter to it."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock

from llama_index_bedrock_sessions import heal_tool_calls
from llama_index_bedrock_sessions.tool_calls import NO_RESULT

bedrock_converse = pytest.importorskip(
    "llama_index.llms.bedrock_converse.utils",
    reason="needs llama-index-llms-bedrock-converse, whose boto3 is newer than the lowest",
)

if TYPE_CHECKING:
    from collections.abc import Sequence


def user(text: str = "go on") -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def said(text: str = "fine") -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def calls(*ids: str | None) -> ChatMessage:
    blocks: list[Any] = [TextBlock(text="let me look")]
    blocks += [ToolCallBlock(tool_call_id=i, tool_name="look", tool_kwargs={"at": str(i)}) for i in ids]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)


def result(call: str, text: str = "42") -> ChatMessage:
    return ChatMessage(role=MessageRole.TOOL, content=text, additional_kwargs={"tool_call_id": call})


def converse(messages: Sequence[ChatMessage]) -> Sequence[dict[str, Any]]:
    """Convert as the Bedrock LLM package does before it calls the API."""
    converted: Sequence[dict[str, Any]] = bedrock_converse.messages_to_converse_messages(messages)[0]
    return converted


def breaks_the_rule(messages: Sequence[dict[str, Any]]) -> list[str]:
    """Say what Converse refuses: every `toolUse` needs its `toolResult` in the very next message, and vice versa."""
    wrong = []
    open_calls: Counter[str] = Counter()
    for message in messages:
        given = Counter(block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block)
        wrong += [f"no toolResult for {call}" for call in open_calls - given]
        wrong += [f"a toolResult without toolUse: {call}" for call in given - open_calls]
        open_calls = Counter(block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block)
    return wrong + [f"no toolResult for {call}" for call in open_calls]


BROKEN = {
    "a call without a result, at the tail": [user(), calls("1")],
    "a call without a result, in the middle": [user(), calls("1"), user("still there?"), said()],
    "a call without a result, before another turn with tools": [user(), calls("1"), user(), calls("2"), result("2")],
    "parallel calls, one without a result": [user(), calls("1", "2", "3"), result("1"), result("3"), said()],
    "parallel calls, none with a result": [user(), calls("1", "2"), user()],
    "a result without a call": [user(), result("1"), said()],
    "a result without a call, first": [result("1"), said(), user()],
    "a result without a call, beside one with": [user(), calls("1"), result("2"), result("1"), said()],
    "two results of one call": [user(), calls("1"), result("1"), result("1", "43"), said()],
    "a result that came late": [user(), calls("1"), user("hello?"), said(), result("1"), user()],
    "an id used again, the first time without a result": [user(), calls("1"), user(), calls("1"), result("1"), said()],
    "calls where older packages keep them": [
        user(),
        ChatMessage(
            role=MessageRole.ASSISTANT,
            content="",
            additional_kwargs={"tool_calls": [{"toolUseId": "1", "name": "look", "input": {}}]},
        ),
        user(),
    ],
}


@pytest.mark.parametrize("messages", BROKEN.values(), ids=BROKEN)
def test_what_converse_refuses_is_healed(messages: list[ChatMessage]) -> None:
    """Each broken conversation, converted as it is, breaks Converse's rule; paired it does not, and no text is lost."""
    assert breaks_the_rule(converse(messages)) != []
    paired = heal_tool_calls(messages)
    assert breaks_the_rule(converse(paired)) == []
    results = (MessageRole.TOOL,)
    assert [m for m in paired if m.role not in results] == [m for m in messages if m.role not in results]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [user(), said()],
        [user(), calls("1"), result("1"), said(), user(), calls("2", "3"), result("3"), result("2"), said()],
        [user(), calls("1"), result("1"), calls("1"), result("1"), said()],
        [user(), calls(None), ChatMessage(role=MessageRole.TOOL, content="42"), said()],
    ],
    ids=["empty", "without tools", "parallel, in another order", "an id used again", "without ids"],
)
def test_what_is_whole_is_left_alone(messages: list[ChatMessage], caplog: pytest.LogCaptureFixture) -> None:
    """A list in which calls and results are paired comes back as a new, equal list, and nothing is logged."""
    paired = heal_tool_calls(messages)
    assert paired == messages
    assert paired is not messages
    assert caplog.records == []


def unnamed(*tools: str) -> ChatMessage:
    """Call tools as Ollama does, without ids."""
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[ToolCallBlock(tool_name=tool) for tool in tools])


def older(*tool_calls: dict[str, Any]) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content="", additional_kwargs={"tool_calls": list(tool_calls)})


@pytest.mark.parametrize(
    "messages",
    [
        [user(), unnamed("look"), result("look"), said()],
        [user(), unnamed("look"), result("look"), unnamed("look"), result("look", "43"), said()],
        [user(), unnamed("look", "hear", "look"), result("look"), result("look", "43"), result("hear"), said()],
        [user(), unnamed("look", "hear"), result("made-up-1"), result("made-up-2"), said()],
        [user(), older({"function": {"name": "look"}}), result("look"), said()],
        [user(), older({"id": "fc_1", "call_id": "call_1"}), result("call_1"), said()],
        [user(), older({"id": "1"}, {"id": "1"}), result("1"), result("1", "43"), said()],
    ],
    ids=["by name", "again", "parallel", "in their order", "older", "OpenAI Responses", "one id twice"],
)
def test_calls_of_other_models_are_left_alone(messages: list[ChatMessage], caplog: pytest.LogCaptureFixture) -> None:
    """Whole histories of models that give no ids, two kinds of ids, or one id twice, come back as they are."""
    assert heal_tool_calls(messages) == messages
    assert caplog.records == []


def test_a_result_of_a_call_without_an_id_comes_back_to_it() -> None:
    """A late result is moved to its call by the tool's name, or if it says nothing; one too many is left out."""
    for late in (result("look"), ChatMessage(role=MessageRole.TOOL, content="42")):
        messages = [user(), unnamed("look"), user("hello?"), late, late]
        assert heal_tool_calls(messages) == [user(), unnamed("look"), late, user("hello?")]


def test_call_stored_twice_is_one_and_function_calls_pair() -> None:
    """A block and an older entry of one call want one result; a function's result is found by the function's name."""
    both = calls("call_1")
    both.additional_kwargs["tool_calls"] = [{"id": "fc_1", "call_id": "call_1"}]
    function = ChatMessage(
        role=MessageRole.ASSISTANT, content="", additional_kwargs={"function_call": {"name": "look", "arguments": "{}"}}
    )
    returned = ChatMessage(role=MessageRole.FUNCTION, content="42", additional_kwargs={"name": "look"})
    messages = [user(), both, result("call_1"), said(), user(), function, returned, said()]
    assert heal_tool_calls(messages) == messages


def test_a_later_call_without_an_id_keeps_its_result() -> None:
    """What follows a second call without an id is the result of that one, not of the first, which has none."""
    messages = [user(), unnamed("look"), user("hello?"), unnamed("hear"), result("made-up"), said()]
    assert heal_tool_calls(messages) == messages


def test_a_missing_result_says_so() -> None:
    """The result put in place of a missing one stands right behind those there are, and says that there is none."""
    paired = heal_tool_calls([user(), calls("1", "2"), result("2"), user("and?")])
    assert [m.content for m in paired] == ["go on", "let me look", "42", NO_RESULT, "and?"]
    assert paired[3].additional_kwargs == {"tool_call_id": "1"}


def test_a_late_result_is_moved_not_made_up() -> None:
    """A result that was stored after other messages is shown at its call, as it was."""
    late = result("1", "the truth")
    assert heal_tool_calls([user(), calls("1"), user("hello?"), late, said()])[2] == late


def test_nothing_given_is_changed() -> None:
    """Healing changes neither the list nor the messages it is given."""
    messages = [user(), calls("1", "2"), user(), result("2")]
    before = [m.model_dump() for m in messages]
    heal_tool_calls(messages)
    assert [m.model_dump() for m in messages] == before


def test_healing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """One warning says what was paired and of which calls."""
    with caplog.at_level(logging.WARNING):
        heal_tool_calls([user(), calls("one"), user(), result("two"), user()])
    (record,) = caplog.records
    assert "added a missing result" in record.getMessage()
    assert "left out a result without a call" in record.getMessage()
    assert "one, two" in record.getMessage()


IDS = st.sampled_from("abc")
MESSAGES = st.lists(
    st.one_of(
        st.builds(user),
        st.builds(said),
        st.lists(IDS, min_size=1, max_size=3, unique=True).map(lambda ids: calls(*ids)),
        st.builds(result, IDS),
    ),
    max_size=12,
)


@given(MESSAGES)
def test_any_conversation_is_healed(messages: list[ChatMessage]) -> None:
    """Whatever is stored, what comes out is accepted, healing it again changes nothing, all else is kept in order."""
    paired = heal_tool_calls(messages)
    assert breaks_the_rule(converse(paired)) == []
    assert heal_tool_calls(paired) == paired
    assert [m for m in paired if m.role != MessageRole.TOOL] == [m for m in messages if m.role != MessageRole.TOOL]
    if breaks_the_rule(converse(messages)) == [] and not any(m.role == MessageRole.TOOL for m in messages):
        assert paired == messages
