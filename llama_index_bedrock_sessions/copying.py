"""Moving in, and out: conversations copied from one LlamaIndex chat store to another, and compared afterwards."""

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
"""Messages that are written to a store of ours by one step."""


@dataclasses.dataclass(frozen=True)
class CopyProblem:
    """Why a conversation is not copied: its key, the position in it (None: all of it), and what is wrong there."""

    key: Any
    position: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class CopyReport:
    """What `copy_conversations` has done.

    `copied` are the keys of which something was written (`messages` in all), `unchanged` those that were there
    already, `problems` tell of all others. A key in `copied` or `unchanged` was read back and is equal.
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
    """Copy conversations (None: all) between any LlamaIndex chat stores, and compare what was written.

    It may be interrupted and called again: what is equal is left alone, and what is there in part is completed. Where
    the target has other messages under a key, nothing is written there. What cannot be copied is told in the report,
    and all else is copied. Of a store of ours the active messages are copied, not archived ones or named state.

    Messages are equal if they have one normal form: that of `message_codec.py`, in which a picture's file is its bytes.
    `progress` is called after each conversation with its key, how many are done, and how many there are. Nobody else
    should write to the target's keys meanwhile. Raises what the target raises when it cannot write at all
    (`AccountError`, `ServiceError`), and what `source.get_keys` raises.

    Raises:
        InvalidKeyError: `keys` is one key.

    """
    if isinstance(keys, str):
        raise InvalidKeyError(f"keys= is a list of keys, not one key: keys=[{keys!r}]")
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
    """Copy a conversation, and return how many messages were written. Raises _Problem."""
    if not isinstance(key, str):
        raise _Problem(None, f"the key is no string but {type(key).__name__}")
    try:
        messages = list(source.get_messages(key))
    except Exception as error:
        # Its text may hold the messages.
        raise _Problem(None, f"the source cannot read it ({type(error).__name__})") from error
    for position, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise _Problem(position, f"it is no ChatMessage but {type(message).__name__}")
    wanted = [_form(message) for message in messages]
    try:
        there = _differences(target, key, wanted)
        if there < len(messages):
            _write(target, key, messages[there:], begins=there == 0)
            if _differences(target, key, wanted) < len(messages):
                raise _Problem(None, "the target has less of it than was written")
    except UsageError as error:
        raise _Problem(None, f"the target refuses it: {error}") from error
    return len(messages) - there


def _differences(target: BaseChatStore, key: str, wanted: Sequence[Any]) -> int:
    """Return how many of the messages are there, which are the first ones. Raises _Problem if others are there."""
    there = [_form(message) for message in _read(target, key)]
    for position, form in enumerate(there):
        if position == len(wanted):
            raise _Problem(position, "the target has more messages here, and is left as it is")
        if form != wanted[position]:
            raise _Problem(position, "the target has another message here, and is left as it is")
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
