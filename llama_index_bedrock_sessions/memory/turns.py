"""Track agents' turns and the tasks that manage a memory's queue. Both decide whether a read calls the service.

An agent reads its memory many times in one turn. Only the first read of a turn calls the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index_instrumentation.dispatcher import active_instrument_tags

from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions.tool_calls import has_calls


@dataclasses.dataclass
class Turn:
    """A turn of a workflow run in one conversation.

    `is_read` is True once the turn has read the service. `answered_in` is the task that stored the answer.
    """

    run: str
    is_read: bool = False
    answered_in: weakref.ref[asyncio.Task[Any]] | None = None

    def is_active(self, run: str | None) -> bool:
        """Check whether the current task of this run is inside the turn.

        An agent reads its memory once more in the task that stored the answer. In any other task the turn has ended.
        """
        return self.run == run and (self.answered_in is None or self.answered_in() is asyncio.current_task())


class QueueManager(NamedTuple):
    """The function that archives a conversation's oldest messages in the task that manages its queue."""

    conversation: Conversation
    archive: Callable[[int], Awaitable[list[ChatMessage]]]


_turns: weakref.WeakKeyDictionary[Conversation, Turn] = weakref.WeakKeyDictionary()
# Not a context variable: a task that a memory block starts inherits the context, and may run longer than its parent.
_managers: weakref.WeakKeyDictionary[asyncio.Task[Any], QueueManager] = weakref.WeakKeyDictionary()


def current_turn(conversation: Conversation) -> Turn | None:
    """Return the active turn of the current task, or None."""
    turn = _turns.get(conversation)
    return turn if turn and turn.is_active(current_run()) else None


def begin_turn(conversation: Conversation) -> None:
    """Begin a turn of the current run. Outside a run, there are no turns."""
    _turns.pop(conversation, None)
    run = current_run()
    if run is not None:
        _turns[conversation] = Turn(run)


def record_added(conversation: Conversation, messages: Sequence[ChatMessage]) -> None:
    """Begin a turn if the last added message is a user's, and end it if that message is the agent's answer."""
    turn = current_turn(conversation)
    if messages and messages[-1].role == MessageRole.USER:
        begin_turn(conversation)
    elif messages and turn and messages[-1].role == MessageRole.ASSISTANT and not has_calls(messages[-1]):
        task = asyncio.current_task()
        turn.answered_in = weakref.ref(task) if task else None


@contextlib.contextmanager
def managing_queue(manager: QueueManager) -> Iterator[None]:
    """Let the current task manage a conversation's queue: its reads make no calls, and the manager archives."""
    task = asyncio.current_task()
    assert task is not None
    _managers[task] = manager
    try:
        yield
    finally:
        _managers.pop(task, None)


def queue_manager(conversation: Conversation) -> QueueManager | None:
    """Return the manager if the current task manages this conversation's queue, or None."""
    task = asyncio.current_task()
    manager = _managers.get(task) if task else None
    return manager if manager is not None and manager.conversation is conversation else None


def current_run() -> str | None:
    """Return the id of the workflow run that the caller belongs to; None outside a run."""
    run = active_instrument_tags.get().get("llamaindex.run_id")
    return str(run) if run else None
