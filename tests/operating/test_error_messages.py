"""Every error message and log line of `memory`, `cli`, `copying`, `tool_calls` and `events`, complete.

Each row has an id, the input that produces a message, and the message. Log lines contain no keys and no texts.
"""

from __future__ import annotations

import importlib.util
import logging
import runpy
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click import ClickException
from click.testing import CliRunner
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.memory import BaseMemoryBlock
from llama_index.core.storage.chat_store import SimpleChatStore
from pydantic import Field

from llama_index_bedrock_sessions import (
    AuditEvent,
    BedrockSessionsError,
    BedrockSessionsMemory,
    copy_conversations,
    heal_tool_calls,
)
from llama_index_bedrock_sessions._conversation.state import TURN, ReservedName
from llama_index_bedrock_sessions.cli import commands, demo, demo_view
from llama_index_bedrock_sessions.events import emit, key_hash, record_call
from llama_index_bedrock_sessions.memory import autosave
from llama_index_bedrock_sessions.memory.block_state import BLOCK
from tests.support.service import KEY, Service, user, users

LOGGER = "llama_index_bedrock_sessions"
TEXT = "a text that no log line may contain"
HASH = key_hash(KEY)


@dataclass
class Setting:
    """The emulator, an empty folder, and pytest's patches, for the inputs of the table."""

    service: Service
    folder: Path
    patch: pytest.MonkeyPatch

    def memory(self, *blocks: BaseMemoryBlock[Any], **arguments: Any) -> BedrockSessionsMemory:
        store = self.service.store()
        return BedrockSessionsMemory.from_defaults(KEY, chat_store=store, memory_blocks=list(blocks), **arguments)


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    return Setting(Service(), tmp_path, monkeypatch)


Produce = Callable[[Setting], Any]


class Words(BaseMemoryBlock[str]):
    """A memory block with a field that JSON can hold, and one for what it cannot."""

    words: dict[str, int] = Field(default_factory=dict)
    held: Any = None

    async def _aget(self, messages: list[ChatMessage] | None = None, **_: Any) -> str:
        return ""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        """Learn nothing."""


def rows(*table: tuple[Any, ...]) -> Any:
    """Return rows as parameters; the first column is the id."""
    return [pytest.param(*columns, id=name) for name, *columns in table]


# Errors


def of_another_conversation(setting: Setting) -> None:
    memory = setting.memory(block := Words(name="words"))
    store = memory.sql_store.chat_store
    BedrockSessionsMemory.from_defaults("other", chat_store=store, memory_blocks=[block])


def without_its_block(setting: Setting) -> None:
    data = setting.memory(Words(name="words", held=object())).to_dict()
    BedrockSessionsMemory.from_dict({**data, "instance": "of another process"})


def without_its_tokenizer(setting: Setting) -> None:
    data = setting.memory(tokenizer_fn=list).to_dict()
    BedrockSessionsMemory.from_dict({**data, "instance": "of another process"})


@pytest.mark.parametrize(
    ("produce", "message"),
    rows(
        (
            "copying one key",
            lambda s: copy_conversations(SimpleChatStore(), s.service.store(), "ada"),
            "Expected keys= to be a list of keys, got one key. Pass keys=['ada'].",
        ),
        (
            "a memory without a chat store",
            lambda _: BedrockSessionsMemory.from_defaults(KEY),
            "Expected chat_store= to be a BedrockSessionsChatStore, got NoneType.",
        ),
        (
            "a block of another conversation",
            of_another_conversation,
            (
                "The memory block 'words' already belongs to another conversation or chat store, and would reveal its "
                "content in 'other'. Create a new block for each conversation."
            ),
        ),
        (
            "a dict without a block",
            without_its_block,
            (
                "The dict of the memory does not contain memory_blocks: words "
                "(tests.operating.test_error_messages:Words). Pass it to from_dict. "
                "Before Context.from_dict, create a memory that has it, with the same session_id "
                "and chat_store, and keep that memory."
            ),
        ),
        (
            "a dict without a tokenizer",
            without_its_tokenizer,
            (
                "The dict of the memory does not contain tokenizer_fn. Pass it to from_dict. Before Context.from_dict, "
                "create a memory that has it, with the same session_id and chat_store, and keep that memory."
            ),
        ),
    ),
)
def test_errors(setting: Setting, produce: Produce, message: str) -> None:
    """The error has this message."""
    with pytest.raises(BedrockSessionsError) as caught:
        produce(setting)
    assert str(caught.value) == message


# Reasons of a copy's problems


class Source(SimpleChatStore):
    """A source with one conversation, which can fail, and have any key and any messages."""

    key: Any = "ada"
    messages: Any = ()

    def get_keys(self) -> list[str]:
        return [self.key]

    def get_messages(self, key: str) -> list[ChatMessage]:
        if self.messages == TEXT:
            raise ValueError(self.messages)
        return list(self.messages)


class Target(SimpleChatStore):
    """A target that stores other messages than it is given."""

    stores: list[ChatMessage] = Field(default_factory=list)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        super().set_messages(key, self.stores)


def holding(*texts: str) -> SimpleChatStore:
    """Return a target that already has messages."""
    target = SimpleChatStore()
    target.set_messages("ada", users(*texts))
    return target


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    rows(
        ("a key of another type", Source(key=7), SimpleChatStore(), "the key is not a string but int"),
        (
            "a source that fails",
            Source(messages=TEXT),
            SimpleChatStore(),
            "the source could not read the conversation (ValueError)",
        ),
        (
            "a message of another type",
            Source(messages=[{}]),
            SimpleChatStore(),
            "the message is not a ChatMessage but dict",
        ),
        (
            "more messages before",
            Source(messages=users("a")),
            holding("a", "b"),
            "the target has more messages than the source; nothing was written",
        ),
        (
            "another message before",
            Source(messages=users("a", "b")),
            holding("x"),
            "the target has a different message here; nothing was written",
        ),
        (
            "fewer messages after",
            Source(messages=users("a")),
            Target(),
            "the target returned fewer messages than were written",
        ),
        (
            "more messages after",
            Source(messages=users("a")),
            Target(stores=users("a", "b")),
            "the target has more messages than the source; the copy was written, but is not equal",
        ),
        (
            "another message after",
            Source(messages=users("a")),
            Target(stores=users("x")),
            "the target has a different message here; the copy was written, but is not equal",
        ),
    ),
)
def test_reasons_of_copy_problems(source: Source, target: SimpleChatStore, reason: str) -> None:
    """The report of the copy has one problem, with this reason."""
    (problem,) = copy_conversations(source, target).problems
    assert problem.reason == reason


def test_a_rejected_copy_has_the_error_of_the_target(setting: Setting) -> None:
    """The reason of a conversation that the target rejects contains the target's own error."""
    target = setting.service.store()
    with pytest.raises(BedrockSessionsError) as caught:
        target.get_messages("")
    (problem,) = copy_conversations(Source(key="", messages=users("a")), target).problems
    assert problem.reason == f"the target rejected the conversation: {caught.value}"


# Logs


def call(number: str) -> ChatMessage:
    return ChatMessage(
        role=MessageRole.ASSISTANT, blocks=[ToolCallBlock(tool_call_id=number, tool_name="look", tool_kwargs={})]
    )


def result(number: str | None) -> ChatMessage:
    return ChatMessage(role=MessageRole.TOOL, content=TEXT, additional_kwargs={"tool_call_id": number})


def unpaired_in_memory(setting: Setting) -> None:
    memory = setting.memory()
    memory.put_messages([user(TEXT), call("1"), user(TEXT)])
    memory.get()


def archiving_fails(setting: Setting) -> None:
    memory = setting.memory(token_limit=20, token_flush_size=5, chat_history_token_ratio=0.5)
    memory.put(user("one two three four five six"))
    setting.service.faults.add("PutInvocationStep", 2, "throttle")
    memory.put_messages(users("one two three four five six", "one two three four five six"))


def saving_blocks_fails(setting: Setting) -> None:
    memory = setting.memory(block := Words(name="words"))
    memory.put(user(TEXT))
    block.words = {"tea": 1}
    setting.service.faults.add("PutInvocationStep", 2, "throttle")
    memory.put(user(TEXT))


def restoring_a_block_fails(setting: Setting) -> None:
    memory = setting.memory(Words(name="words"))
    memory.conversation.add([], state={ReservedName(BLOCK + "words"): {"words": TEXT}})
    memory.get()


def saving_a_turn_fails(setting: Setting) -> None:
    async def unfinished(_: BedrockSessionsMemory) -> list[ChatMessage]:
        return [call("1"), result("1")]

    memory = setting.memory(autosave=True)
    memory.put(user(TEXT))
    setting.patch.setattr(BedrockSessionsMemory, "_unfinished", unfinished)
    setting.service.faults.add("PutInvocationStep", 1, "throttle")
    memory.get()


def put_after_a_saved_turn(setting: Setting, turn: Any) -> None:
    memory = setting.memory(autosave=True)
    memory.conversation.add([], state={ReservedName(TURN): turn})
    memory.put(user(TEXT))


def audit(_: Setting) -> None:
    def fails(event: AuditEvent) -> None:
        raise RuntimeError(event.action)

    time = "2026-01-02T03:04:05Z"
    emit(AuditEvent("ended", KEY, "default", time, sessions=("one",), reason="done", approver="Ada"), fails)


def refused(_: Setting) -> None:
    answer = {"ResponseMetadata": {"RetryAttempts": 2}, "Error": {"Code": "ThrottlingException"}}
    sent = {"sessionIdentifier": "one", "invocationStepId": "two", "payload": TEXT}
    record_call("put_invocation_step", sent, answer, RuntimeError(TEXT), 0.0123)


@pytest.mark.parametrize(
    ("level", "produce", "messages"),
    rows(
        (
            "a missing result",
            logging.WARNING,
            lambda _: heal_tool_calls([user(TEXT), call("1"), user(TEXT), call("2"), user(TEXT)]),
            ["paired tool calls for the model: 2 x added a missing result (call ids: 1, 2)"],
        ),
        (
            "a late result",
            logging.WARNING,
            lambda _: heal_tool_calls([user(TEXT), call("1"), user(TEXT), result("1")]),
            ["paired tool calls for the model: 1 x moved a result to its call (call ids: 1)"],
        ),
        (
            "a result without a call or an id",
            logging.WARNING,
            lambda _: heal_tool_calls([user(TEXT), result(None)]),
            ["paired tool calls for the model: 1 x left out a result without a call (call ids: none)"],
        ),
        (
            "pairing in a memory",
            logging.WARNING,
            unpaired_in_memory,
            [f"paired tool calls of conversation {HASH} for the model: 1 x added a missing result (call ids: 1)"],
        ),
        (
            "archiving fails",
            logging.WARNING,
            archiving_fails,
            [
                (
                    f"stored the messages of conversation {HASH}, but could not archive old ones; the next put tries "
                    "again: ThrottledError"
                )
            ],
        ),
        (
            "saving blocks fails",
            logging.WARNING,
            saving_blocks_fails,
            [f"could not save the memory blocks of conversation {HASH}; the next put tries again: ThrottledError"],
        ),
        (
            "restoring a block fails",
            logging.WARNING,
            restoring_a_block_fails,
            ["the field words of the memory block 'words' was not restored: ValidationError"],
        ),
        (
            "a block without a JSON form",
            logging.DEBUG,
            lambda s: s.memory(Words(name="words", held=object())).to_dict(),
            ["the memory block 'words' has no JSON form: PydanticSerializationError"],
        ),
        (
            "saving a turn fails",
            logging.WARNING,
            saving_a_turn_fails,
            [f"could not save the running turn of conversation {HASH}: ThrottledError"],
        ),
        (
            "a damaged turn",
            logging.WARNING,
            lambda s: put_after_a_saved_turn(s, TEXT),
            [f"ignored a saved turn of conversation {HASH} that cannot be read"],
        ),
        (
            "a restored turn",
            logging.WARNING,
            lambda s: put_after_a_saved_turn(s, {"after": None, "messages": autosave._records([user(TEXT)])}),
            [f"the last turn of conversation {HASH} never ended; restored 1 of its messages"],
        ),
        (
            "an audit event and a callback that fails",
            logging.INFO,
            audit,
            [
                (
                    f'{{"action": "ended", "key": "{HASH}", "namespace": "default", "time": "2026-01-02T03:04:05Z", '
                    '"sessions": ["one"], "reason": "done", "approver": "Ada"}'
                ),
                "the audit callback failed after the conversation was ended",
            ],
        ),
        (
            "a service call",
            logging.DEBUG,
            refused,
            ["PutInvocationStep: ThrottlingException, session one, step two, 0.012 s, retries 2"],
        ),
    ),
)
def test_log_lines(
    setting: Setting, caplog: pytest.LogCaptureFixture, level: int, produce: Produce, messages: list[str]
) -> None:
    """These lines are logged, and no key and no text."""
    with caplog.at_level(level, LOGGER):
        produce(setting)
    assert [record.getMessage() for record in caplog.records if record.name.startswith(LOGGER)] == messages
    assert TEXT not in caplog.text
    assert KEY not in caplog.text


# The command line


def existing(setting: Setting) -> list[str]:
    setting.patch.chdir(setting.folder)
    Path("incident.db").touch()
    return ["demo", "--database", "incident.db"]


def without_converse(setting: Setting) -> list[str]:
    setting.patch.setattr(importlib.util, "find_spec", lambda _: None)
    return ["demo", "--region", "us-west-2", "--model", "a-model"]


@pytest.mark.parametrize(
    ("arguments", "status", "line"),
    rows(
        (
            "a region and a database",
            lambda _: ["demo", "--region", "us-west-2", "--database", "a.db"],
            2,
            "Error: --region and --profile use AWS: leave out --database and --forget.",
        ),
        (
            "forgetting in a database",
            lambda _: ["demo", "--forget", "--database", "a.db"],
            2,
            "Error: --forget stores nothing in a file: leave out --database.",
        ),
        (
            "a model without AWS",
            lambda _: ["demo", "--model", "a-model"],
            2,
            "Error: --model needs AWS: add --region or --profile.",
        ),
        (
            "a model without its package",
            without_converse,
            1,
            "Error: --model needs another package: pip install llama-index-llms-bedrock-converse",
        ),
        ("an existing file", existing, 1, "Error: incident.db already exists. Choose a new file for --database."),
    ),
)
def test_errors_of_commands(
    setting: Setting, arguments: Callable[[Setting], list[str]], status: int, line: str
) -> None:
    """The command fails with this status, and its last line is this one."""
    outcome = CliRunner().invoke(commands.main, arguments(setting))
    assert outcome.exit_code == status
    assert outcome.output.splitlines()[-1] == line


def test_a_missing_package(setting: Setting) -> None:
    """Without click, the command names the package and what to install."""
    setting.patch.setitem(sys.modules, "click", None)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(commands.__file__))
    message = "bedrock-sessions needs the package click: pip install 'llama-index-bedrock-sessions[cli]'"
    assert caught.value.code == message


def days_that_end(*events: dict[str, Any]) -> Callable[[Setting], None]:
    """Let the process of a day report these events."""

    def produce(setting: Setting) -> None:
        setting.patch.setattr(demo, "in_another_process", lambda _: [dict(event) for event in events])
        demo_view._ForgettingDemo(setting.folder / "picture.png").spend_day(1)

    return produce


def another_picture(setting: Setting) -> None:
    (setting.folder / "picture.png").write_bytes(b"picture")
    demo_view._LocalDemo(setting.folder / "picture.png", setting.folder / "incident.db").show_held([])


@pytest.mark.parametrize(
    ("produce", "message"),
    rows(
        (
            "a process that fails",
            days_that_end({"event": "end", "status": 1, "stderr": "Traceback"}),
            "The process of day 1 failed:\nTraceback",
        ),
        (
            "a process with an error of the library",
            days_that_end({"event": "error", "text": "ThrottledError: x"}, {"event": "end", "status": 1, "stderr": ""}),
            "ThrottledError: x",
        ),
        ("another picture", another_picture, "The picture in Bedrock differs from the file on disk."),
    ),
)
def test_errors_of_the_demo(setting: Setting, produce: Produce, message: str) -> None:
    """The demo ends with this message."""
    with pytest.raises(ClickException) as caught:
        produce(setting)
    assert caught.value.message == message


def test_what_may_be_left_on_aws(setting: Setting, capsys: pytest.CaptureFixture[str]) -> None:
    """If the demo cannot delete its sessions, it names their namespace and the error."""

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no network")

    setting.patch.setenv("COLUMNS", "200")
    setting.patch.setattr(demo, "held", fails)
    view = demo_view._AwsDemo(setting.folder / "picture.png", "us-west-2", None, None)
    view.namespace = "demo-1"
    view.delete()
    line = "Sessions may be left on AWS, in namespace demo-1: no network"
    assert [found.strip("│ ") for found in capsys.readouterr().out.splitlines()[1:-1]] == [line]


def test_how_many_were_renewed(setting: Setting) -> None:
    """`renew` prints how many conversations it has renewed."""
    database = setting.folder / "chats.db"
    demo.open_store(demo.Request(1, "local", "", database=str(database)), Counter()).add_message(KEY, user(TEXT))
    outcome = CliRunner().invoke(commands.main, ["renew", "--database", str(database), "--older-than", "0"])
    assert outcome.output.splitlines()[-1] == "1 conversation renewed."
