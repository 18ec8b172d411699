"""Pair tool calls with their results, as models require.

Bedrock's Converse API and other providers have two rules. A message with tool calls is followed at once by the results
of all these calls, and each result follows its call. A provider rejects the entire conversation if one message breaks a
rule, so every later turn fails too. Pairing changes only the list of messages that a model is given, never the stored
messages. This module does no I/O and modifies no message.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock

from llama_index_bedrock_sessions.events import key_hash

logger = logging.getLogger("llama_index_bedrock_sessions")
NO_RESULT = "[No result: the turn was interrupted before this tool call returned.]"
"""The content of the message that replaces a missing result."""
_RESULTS = (MessageRole.TOOL, MessageRole.FUNCTION)
_ID_NAMES = ("call_id", "toolUseId", "tool_call_id", "id")
"""The names that LLM packages use for the id of a call in `additional_kwargs["tool_calls"]`.

If a call has several of them, results refer to the first in this order.
"""


class PairingNote(NamedTuple):
    """A change that pairing made, and the id of the tool call (None if it has none)."""

    what: str
    call: str | None


class _Call(NamedTuple):
    """A tool call. `id` is None if the model assigns no ids, as Ollama does."""

    id: str | None
    tool: str | None = None

    @property
    def key(self) -> str | None:
        """The value that the call's result refers to: the id, or the tool's name if LlamaIndex has no id."""
        return self.id or self.tool


def heal_tool_calls(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return the messages with every tool call followed by its result, and log what changed.

    - A call without a result gets a result that states this.
    - A result that comes too late moves to its call.
    - A result without a call is left out.

    Calls are read from `ToolCallBlock`s and from `additional_kwargs["tool_calls"]`. The returned list is new and holds
    the same message objects. If all calls are already paired, it equals the given list.
    """
    paired, notes = pair(messages)
    log_pairing(notes)
    return paired


def log_pairing(notes: Sequence[PairingNote], key: str | None = None) -> None:
    """Log the changes that pairing made; `key` is the conversation's key, if it is known."""
    if notes:
        of = "" if key is None else f" of conversation {key_hash(key)}"
        changes = "; ".join(f"{count} x {what}" for what, count in Counter(note.what for note in notes).items())
        ids = ", ".join(sorted({note.call for note in notes if note.call}))
        logger.warning("paired tool calls%s for the model: %s (call ids: %s)", of, changes, ids or "none")


def pair(messages: Sequence[ChatMessage]) -> tuple[list[ChatMessage], list[PairingNote]]:
    """Return the messages with every tool call followed by its result, and the changes made."""
    paired: list[ChatMessage] = []
    notes: list[PairingNote] = []
    placed: set[int] = set()
    for position, message in enumerate(messages):
        if position in placed:
            continue
        if message.role in _RESULTS:
            notes.append(PairingNote("left out a result without a call", _result_id(message)))
            continue
        paired.append(message)
        if not (calls := _calls(message)):
            continue
        results, missing = _results(messages, position, calls, placed)
        last = position + len(results)
        notes += [PairingNote("moved a result to its call", _result_id(messages[i])) for i in results if i > last]
        paired += [messages[i] for i in results]
        placed.update(results)
        for call in missing:
            notes.append(PairingNote("added a missing result", call))
            paired.append(
                ChatMessage(role=MessageRole.TOOL, content=NO_RESULT, additional_kwargs={"tool_call_id": call})
            )
    return paired, notes


def _results(
    messages: Sequence[ChatMessage], position: int, calls: Sequence[_Call], placed: set[int]
) -> tuple[list[int], list[str]]:
    """Return the positions of the results of a message's calls, and the ids of the calls without a result."""
    wanted = Counter(call.key for call in calls)
    missing: list[str | None] = []
    found: list[int] = []
    for later in range(position + 1, len(messages)):
        if not wanted:
            break
        message = messages[later]
        if message.role in _RESULTS:
            key = _result_key(message)
            if later not in placed and wanted[key] > 0:
                found.append(later)
                wanted[key] -= 1
            wanted += Counter()  # removes entries with a count of zero
        else:
            # Results with this id that come later belong to the later call.
            missing += [key for key in {call.key for call in _calls(message)} for _ in range(wanted.pop(key, 0))]
    missing += wanted.elements()
    unpaired = [call for call in calls if _take(missing, call.key)]
    without_id = sum(call.id is None for call in unpaired)
    found += _next_results(messages, position, placed.union(found), without_id)
    return sorted(found), [call.id for call in unpaired if call.id is not None]


def _next_results(messages: Sequence[ChatMessage], position: int, taken: set[int], count: int) -> list[int]:
    """Return the positions of the results of `count` calls without an id.

    These results do not identify their call, so the next results in order are taken.
    """
    found: list[int] = []
    direct = True
    for later in range(position + 1, len(messages)):
        if len(found) == count:
            break
        message = messages[later]
        if message.role not in _RESULTS:
            direct = False
            if any(call.id is None for call in _calls(message)):
                break
        elif later not in taken and (direct or _result_key(message) is None):
            found.append(later)
    return found


def _take(items: list[str | None], item: str | None) -> bool:
    if item not in items:
        return False
    items.remove(item)
    return True


def has_calls(message: ChatMessage) -> bool:
    """Check whether a message calls tools."""
    return bool(_calls(message))


def _calls(message: ChatMessage) -> list[_Call]:
    """Return a message's tool calls. A call that is both in a block and in `additional_kwargs` counts once."""
    if message.role in _RESULTS:
        return []
    calls = [
        _Call(block.tool_call_id or None, block.tool_name)
        for block in message.blocks
        if isinstance(block, ToolCallBlock)
    ]
    if not message.additional_kwargs:
        return calls
    in_blocks = {call.id for call in calls}
    older = message.additional_kwargs.get("tool_calls")
    for call in older if isinstance(older, (list, tuple)) else ():
        ids = [_text(call, name) for name in _ID_NAMES]
        ids = [value for value in ids if value] or [None]
        if in_blocks.isdisjoint(ids):
            calls.append(_Call(ids[0], _text(call, "name") or _text(_member(call, "function"), "name")))
    function = message.additional_kwargs.get("function_call")
    if function and not calls:
        calls.append(_Call(None, _text(function, "name")))
    return calls


def _result_key(message: ChatMessage) -> str | None:
    return _result_id(message) or _text(message.additional_kwargs, "name")


def _result_id(message: ChatMessage) -> str | None:
    call = message.additional_kwargs.get("tool_call_id")
    return str(call) if call else None


def _text(call: Any, name: str) -> str | None:
    value = _member(call, name)
    return value if isinstance(value, str) and value else None


def _member(call: Any, name: str) -> Any:
    return call.get(name) if isinstance(call, Mapping) else getattr(call, name, None)
