"""Moving in: conversations copied between LlamaIndex's chat stores and ours, completed, compared, never overwritten."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.storage.chat_store import SimpleChatStore

from llama_index_bedrock_sessions import CopyProblem, CopyReport, InvalidKeyError, UnavailableError, copy_conversations
from tests.operating.test_examples import EXAMPLES
from tests.support.service import IDLE, Service, picture, png, texts, user, users
from tests.support.strategies import messages


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.emulator.close()


def simple(**conversations: list[ChatMessage]) -> SimpleChatStore:
    store = SimpleChatStore()
    for key, stored in conversations.items():
        store.set_messages(key, stored)
    return store


def a_turn() -> list[ChatMessage]:
    call = ToolCallBlock(tool_call_id="1", tool_name="look", tool_kwargs={"at": "it", "times": 1.5})
    return [
        picture(text="What is it?"),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text="I look."), call]),
        ChatMessage(role=MessageRole.TOOL, content="noise", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role=MessageRole.ASSISTANT, content="Noise."),
    ]


def test_everything_is_copied_and_read_back(service: Service) -> None:
    """Texts, tool calls and pictures of every key are in the target, which another process reads."""
    source = simple(ada=a_turn(), bob=users(*(f"message {number}" for number in range(250))))
    report = copy_conversations(source, service.store())
    assert report == CopyReport(("ada", "bob"), (), 254, ())
    cold = service.store()
    for key in ("ada", "bob"):
        assert cold.get_messages(key) == source.get_messages(key)


def test_what_is_there_already_is_left_alone(service: Service) -> None:
    """A second copy writes nothing, and says so."""
    source, target = simple(ada=a_turn()), service.store()
    copy_conversations(source, target)
    before = service.everything()
    with service.counting() as counted:
        assert copy_conversations(source, target) == CopyReport((), ("ada",), 0, ())
    assert counted["PutInvocationStep"] == 0
    assert service.everything() == before


def test_what_was_interrupted_is_completed(service: Service) -> None:
    """After a failure in the middle, calling again adds what is missing, once."""
    source = simple(ada=users(*map(str, range(350))))
    service.faults.add("PutInvocationStep", 3, "internal")
    with pytest.raises(UnavailableError):
        copy_conversations(source, service.store())
    there = len(service.store().get_messages("ada"))
    assert 0 < there < 350
    service.later(IDLE)
    assert copy_conversations(source, service.store()) == CopyReport(("ada",), (), 350 - there, ())
    assert texts(service.store(), "ada") == [str(number) for number in range(350)]


def test_other_messages_are_never_overwritten(service: Service) -> None:
    """Where the target has something else, or more, its conversation stays and the first difference is told."""
    target = service.store()
    target.set_messages("other", users("a", "x"))
    target.set_messages("longer", users("a", "b", "c"))
    before = service.everything()
    report = copy_conversations(simple(other=users("a", "b"), longer=users("a", "b"), new=users("a")), target)
    assert (report.copied, report.messages) == (("new",), 1)
    assert report.problems == (
        CopyProblem("other", 1, "the target has a different message here; nothing was written"),
        CopyProblem("longer", 2, "the target has more messages than the source; nothing was written"),
    )
    assert service.everything()[:2] == before


class Odd(SimpleChatStore):
    """A source that fails at one key, and has things that are no messages and no keys."""

    def get_keys(self) -> list[Any]:
        return ["first", "broken", 7, "mixed", "long" * 2000, "last"]

    def get_messages(self, key: str) -> list[Any]:
        if key == "broken":
            raise ValueError("a secret")
        return [user("a"), {"role": "user"}] if key == "mixed" else [user("a")]


def test_what_cannot_be_copied_is_told_and_the_rest_is_copied(service: Service) -> None:
    """A source that raises, keys that are none, and what is no message: each is told, without what it says."""
    report = copy_conversations(Odd(), service.store())
    assert report.copied == ("first", "last")
    assert report.problems[:3] == (
        CopyProblem("broken", None, "the source could not read the conversation (ValueError)"),
        CopyProblem(7, None, "the key is not a string but int"),
        CopyProblem("mixed", 1, "the message is not a ChatMessage but dict"),
    )
    assert "the target rejected the conversation" in report.problems[3].reason
    assert service.store().get_keys() == ["first", "last"]


def test_only_the_keys_that_are_asked_for(service: Service) -> None:
    """Keys can be chosen, one that is unknown has nothing to copy, and a single string is no list of keys."""
    source = simple(ada=users("a"), bob=users("b"))
    report = copy_conversations(source, service.store(), ["bob", "nobody", "bob"])
    assert report == CopyReport(("bob",), ("nobody",), 1, ())
    assert service.store().get_keys() == ["bob"]
    with pytest.raises(InvalidKeyError, match=r"keys=\['bob'\]"):
        copy_conversations(source, service.store(), "bob")


class Forgetful(SimpleChatStore):
    """A target that loses the last message, or changes it."""

    becomes: str | None = None

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        super().set_messages(key, messages[:-1] + (users(self.becomes) if self.becomes else []))


@pytest.mark.parametrize(
    ("becomes", "problem"),
    [
        (None, CopyProblem("ada", None, "the target returned fewer messages than were written")),
        ("x", CopyProblem("ada", 1, "the target has a different message here; the copy was written, but is not equal")),
    ],
)
def test_what_is_not_there_afterwards_is_told(becomes: str | None, problem: CopyProblem) -> None:
    """A target that does not hold what was written is not believed."""
    report = copy_conversations(simple(ada=users("a", "b")), Forgetful(becomes=becomes))
    assert (report.copied, report.problems) == ((), (problem,))


def test_moving_out_and_completing_there(service: Service) -> None:
    """From ours to LlamaIndex's own store; what is there in part is completed message by message."""
    store = service.store()
    store.set_messages("ada", a_turn())
    target = simple(ada=a_turn()[:1])
    assert copy_conversations(store, target) == CopyReport(("ada",), (), 3, ())
    assert target.get_messages("ada") == a_turn()


def test_files_become_bytes(service: Service, tmp_path: Path) -> None:
    """A picture that is named by its file is copied as the file's bytes, which is no difference."""
    file = tmp_path / "noise.png"
    file.write_bytes(png())
    source = simple(ada=[ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(path=file)])])
    assert copy_conversations(source, service.store()).copied == ("ada",)
    file.unlink()
    assert service.store().get_messages("ada")[0].blocks[0].image is not None  # type: ignore[union-attr]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages)
def test_any_message_is_equal_to_its_copy(service: Service, message: ChatMessage) -> None:
    """Whatever LlamaIndex lets one build is copied without a difference, NaN and half of a surrogate pair too."""
    key = f"key-{len(service.sessions())}"
    assert copy_conversations(simple(**{key: [message]}), service.store()) == CopyReport((key,), (), 1, ())


def test_progress_is_told_after_each_conversation(service: Service) -> None:
    """Whoever waits is told each key, those with problems too, and how many there are."""
    told: list[tuple[Any, int, int]] = []
    copy_conversations(Odd(), service.store(), ["first", "broken"], progress=lambda *now: told.append(now))
    assert told == [("first", 1, 2), ("broken", 2, 2)]


DYNAMODB = """
import boto3
from moto import mock_aws
from llama_index.core.llms import ChatMessage
from llama_index.storage.chat_store.dynamodb import DynamoDBChatStore
from llama_index_bedrock_sessions import BedrockSessionsChatStore, CopyReport, copy_conversations

{move_from_dynamodb}

with mock_aws():
    boto3.client("dynamodb", region_name="us-east-1").create_table(
        TableName="chats", BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "SessionId", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "SessionId", "AttributeType": "S"}])
    source = DynamoDBChatStore(table_name="chats", region_name="us-east-1")
    for key in ("ada", "bob"):
        source.set_messages(key, [ChatMessage("hello"), ChatMessage(role="assistant", content="hi " + key)])
    target = BedrockSessionsChatStore.local()
    report = move_from_dynamodb("chats", target)
    assert sorted(report.copied) == ["ada", "bob"] and not report.problems, report
    assert target.get_messages("bob") == source.get_messages("bob")
    target.add_message("bob", ChatMessage("more"))
    back = copy_conversations(target, source)
    assert (back.copied, back.unchanged) == (("bob",), ("ada",)), back
    assert len(source.get_messages("bob")) == 3
"""


def test_from_dynamodb_and_back() -> None:
    """LlamaIndex's store on DynamoDB is moved from, as the notebook does it, and to; in a process of moto's own."""
    try:
        found = importlib.util.find_spec("llama_index.storage.chat_store.dynamodb")
    except ModuleNotFoundError:
        found = None
    if found is None:
        pytest.skip("needs llama-index-storage-chat-store-dynamodb, whose boto3 is older than that of the test extra")
    environment = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
    moving_in = (EXAMPLES / "moving_in.py").read_text("utf-8")
    function = next(
        ast.unparse(node)
        for node in ast.parse(moving_in).body
        if isinstance(node, ast.FunctionDef) and node.name == "move_from_dynamodb"
    )
    script = [sys.executable, "-c", DYNAMODB.replace("{move_from_dynamodb}", function)]
    done = subprocess.run(script, env=os.environ | environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
