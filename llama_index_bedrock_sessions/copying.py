"""Copy conversations from one LlamaIndex chat store to another, and compare the copies."""

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
"""Messages in one step, if the target is a `BedrockSessionsChatStore`."""


@dataclasses.dataclass(frozen=True)
class CopyProblem:
    """Why a conversation was not copied.

    `position` is that of the message with the problem, or None if the problem is not in one message.
    """

    key: Any
    position: int | None
    reason: str


@dataclasses.dataclass(frozen=True)
class CopyReport:
    """The result of `copy_conversations`.

    - `copied`: the keys of the conversations in which messages were written.
    - `unchanged`: the keys of the conversations that the target already had in full.
    - `messages`: the number of messages written.
    - `problems`: one entry for each other key.

    Each conversation in `copied` or `unchanged` was read back from the target and compared equal.
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
    """Copy conversations between any two LlamaIndex chat stores, and compare each copy with its source.

    If the call is interrupted, call it again. It skips complete copies, completes partial ones and overwrites nothing.
    If the target has other messages under a key, that conversation is left unchanged. The report lists each
    conversation that cannot be copied; the others are still copied. No other process may write to these keys of the
    target during the call.

    From a `BedrockSessionsChatStore`, only the active messages are copied: no archived messages and no named state.

    Two messages are equal if this library stores them in the same form. An image given as a file therefore equals an
    image with the same bytes.

    Args:
        source: The store to read.
        target: The store to write.
        keys: The keys of the conversations to copy; None copies all.
        progress: Called after each conversation with its key, the number of conversations done, and their total.

    Raises:
        InvalidKeyError: `keys` is a single string.
        AccountError, ServiceError: the target cannot be read or written. Any other error of the target that is not a
            `UsageError` is also raised, and so is any error of `source.get_keys`.

    """
    if isinstance(keys, str):
        raise InvalidKeyError(f"Expected keys= to be a list of keys, got one key. Pass keys=[{keys!r}].")
    copied: list[str] = []
    unchanged: list[str] = []
    problems: list[CopyProblem] = []
    written = 0
    chosen = list(dict.fromkeys(source.get_keys() if keys is None else keys))
    for done, key in enumerate(chosen, 1):
        try:
            count = _copy(source, target, key)
            (copied if count else unchanged).append(key)
            written += count
        except _Problem as problem:
            problems.append(CopyProblem(key, *problem.args))
        if progress:
            progress(key, done, len(chosen))
    return CopyReport(tuple(copied), tuple(unchanged), written, tuple(problems))


class _Problem(Exception):  # noqa: N818 - never leaves this module
    """A conversation cannot be copied; the arguments are the position and the reason."""


def _copy(source: BaseChatStore, target: BaseChatStore, key: Any) -> int:
    """Copy a conversation and return the number of messages written. Raises _Problem."""
    if not isinstance(key, str):
        raise _Problem(None, f"the key is not a string but {type(key).__name__}")
    try:
        messages = list(source.get_messages(key))
    except Exception as error:
        # The text of the error may contain messages.
        raise _Problem(None, f"the source could not read the conversation ({type(error).__name__})") from error
    for position, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise _Problem(position, f"the message is not a ChatMessage but {type(message).__name__}")
    expected = [_form(message) for message in messages]
    try:
        already = _copied_count(target, key, expected, "nothing was written")
        if already < len(messages):
            _write(target, key, messages[already:], begins=already == 0)
            if _copied_count(target, key, expected, "the copy was written, but is not equal") < len(messages):
                raise _Problem(None, "the target returned fewer messages than were written")
    except UsageError as error:
        raise _Problem(None, f"the target rejected the conversation: {error}") from error
    return len(messages) - already


def _copied_count(target: BaseChatStore, key: str, expected: Sequence[Any], outcome: str) -> int:
    """Return how many messages the target has.

    Raises _Problem, with the outcome in its reason, unless they are equal to the first of the expected ones.
    """
    found = [_form(message) for message in _read(target, key)]
    for position, form in enumerate(found):
        if position == len(expected):
            raise _Problem(position, f"the target has more messages than the source; {outcome}")
        if form != expected[position]:
            raise _Problem(position, f"the target has a different message here; {outcome}")
    return len(found)


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
