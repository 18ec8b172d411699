"""Migration: copies conversations from one LlamaIndex chat store to another, and compares the result."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base import BaseChatStore

from llama_index_bedrock_sessions._conversation.messages import read_file
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.errors import InvalidKeyError, UsageError

BATCH = 100
"""Messages that one step writes to a BedrockSessionsChatStore."""


@dataclasses.dataclass(frozen=True)
class CopyProblem:
    """Why a conversation was not copied: its key, the position of the message (None: all), and the reason."""

    key: Any
    position: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class CopyReport:
    """The result of `copy_conversations`.

    - `copied`: the keys under which messages were written (`messages` is their number).
    - `unchanged`: the keys that were equal before.
    - `problems`: one for each other key.

    Every key in `copied` and `unchanged` was read back and is equal.
    """

    copied: tuple[str, ...]
    unchanged: tuple[str, ...]
    messages: int
    problems: tuple[CopyProblem, ...]


def copy_conversations(
    source: BaseChatStore,
    target: BaseChatStore,
    keys: Iterable[str] | None = None,
    *,
    progress: Callable[[Any, int, int], None] | None = None,
) -> CopyReport:
    """Copy conversations between any two LlamaIndex chat stores, and compare the copies with the source.

    The copy can be interrupted and called again. Conversations that are equal are left unchanged, and partial copies
    are completed. If the target has other messages under a key, nothing is written there. The report lists every
    conversation that was not copied; all others are copied. From a BedrockSessionsChatStore the active messages are
    copied, not archived messages or named state.

    Messages are equal if their normal forms are equal (see `message_codec.py`): a picture's file counts as its bytes.
    No other process should write to the target's keys during the copy.

    Args:
        source: the store to read.
        target: the store to write.
        keys: the keys to copy; None for all.
        progress: called after each conversation with its key, the number of conversations done, and of all.

    Raises:
        InvalidKeyError: `keys` is a single key.
        AccountError, ServiceError: the target cannot write at all. `source.get_keys` may raise errors of its own.

    """
    if isinstance(keys, str):
        raise InvalidKeyError(f"keys= takes a list of keys, got one key. Pass keys=[{keys!r}].")
    copied: list[str] = []
    unchanged: list[str] = []
    problems: list[CopyProblem] = []
    written = 0
    wanted = list(dict.fromkeys(source.get_keys() if keys is None else keys))
    for done, key in enumerate(wanted, 1):
        try:
            count = _copy(source, target, key)
            (copied if count else unchanged).append(key)
            written += count
        except _Problem as problem:
            problems.append(CopyProblem(key, *problem.args))
        if progress:
            progress(key, done, len(wanted))
    return CopyReport(tuple(copied), tuple(unchanged), written, tuple(problems))


class _Problem(Exception):  # noqa: N818 - never leaves this module
    """A conversation cannot be copied; its arguments are the position and the reason."""


def _copy(source: BaseChatStore, target: BaseChatStore, key: Any) -> int:
    """Copy a conversation; return the number of messages written. Raises _Problem."""
    if not isinstance(key, str):
        raise _Problem(None, f"expected a key of type str, got {type(key).__name__}")
    try:
        messages = list(source.get_messages(key))
    except Exception as error:
        # The text of the error may contain messages.
        raise _Problem(None, f"the source cannot read it ({type(error).__name__})") from error
    for position, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise _Problem(position, f"expected a ChatMessage, got {type(message).__name__}")
    wanted = [_form(message) for message in messages]
    try:
        there = _differences(target, key, wanted)
        if there < len(messages):
            _write(target, key, messages[there:], begins=there == 0)
            if _differences(target, key, wanted) < len(messages):
                raise _Problem(None, "the target contains fewer messages than were written")
    except UsageError as error:
        raise _Problem(None, f"the target refuses it: {error}") from error
    return len(messages) - there


def _differences(target: BaseChatStore, key: str, wanted: Sequence[Any]) -> int:
    """Return how many of the messages the target has, from the first on. Raises _Problem if it has others."""
    there = [_form(message) for message in _read(target, key)]
    for position, form in enumerate(there):
        if position == len(wanted):
            raise _Problem(position, "the target has more messages; it was left unchanged")
        if form != wanted[position]:
            raise _Problem(position, "the target has another message here; it was left unchanged")
    return len(there)


def _read(target: BaseChatStore, key: str) -> list[ChatMessage]:
    if isinstance(target, BedrockSessionsChatStore):
        return target.uncached(key).messages()
    return target.get_messages(key)


def _write(target: BaseChatStore, key: str, messages: Sequence[ChatMessage], *, begins: bool) -> None:
    if isinstance(target, BedrockSessionsChatStore):
        for start in range(0, len(messages), BATCH):
            target.conversation(key).add(messages[start : start + BATCH])
    elif begins:
        target.set_messages(key, list(messages))
    else:
        for message in messages:
            target.add_message(key, message)


def _form(message: ChatMessage) -> Any:
    return message_codec.encode([message], read_file)
