"""The chat store that LlamaIndex's `Memory` takes, and the turns of agents that read through it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import weakref
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index_instrumentation.dispatcher import active_instrument_tags
from pydantic import PrivateAttr

from llama_index_bedrock_sessions._bedrock.pool import in_pool
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.tool_calls import has_calls


@dataclasses.dataclass
class _Turn:
    """A turn over one conversation: the run it belongs to, whether it was read, and the task that gave the answer."""

    run: str
    read: bool = False
    answered_in: weakref.ref[asyncio.Task[Any]] | None = None

    def is_on(self, run: str | None) -> bool:
        """Whether it goes on here: an agent looks at its answer in the step that gave it, then the turn is over."""
        return self.run == run and (self.answered_in is None or self.answered_in() is asyncio.current_task())


class Keeper(NamedTuple):
    """Who looks after the queue of a conversation in a task, and archives its oldest messages."""

    key: str
    archive: Callable[[int], Awaitable[list[ChatMessage]]]


class BedrockSessionsMemoryStore(AsyncDBChatStore):
    """The chat store LlamaIndex's `Memory` takes, over a `BedrockSessionsChatStore`.

    `Memory.from_defaults(chat_store=BedrockSessionsMemoryStore(store))` works; `BedrockSessionsMemory` does more.
    """

    chat_store: BedrockSessionsChatStore

    _turns: weakref.WeakKeyDictionary[Conversation, _Turn] = PrivateAttr(default_factory=weakref.WeakKeyDictionary)
    # By task, not by context: a task that a memory block starts inherits the context, and may live for ever.
    _keepers: weakref.WeakKeyDictionary[asyncio.Task[Any], Keeper] = PrivateAttr(
        default_factory=weakref.WeakKeyDictionary
    )

    def __init__(self, chat_store: BedrockSessionsChatStore) -> None:
        super().__init__(chat_store=chat_store)  # type: ignore[call-arg] # pydantic's own

    @classmethod
    def class_name(cls) -> str:
        """Return the class's name."""
        return "BedrockSessionsMemoryStore"

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """Return the messages of a status (None: all), oldest first, `limit` of them from position `offset` on."""
        conversation = self.chat_store.conversation(key)
        turn = self._turn(conversation)
        fresh = self._keeper(key) is None and not (turn and turn.read)
        messages = await conversation.amessages(status=status, fresh=fresh)
        if turn and fresh:
            turn.read = True
        start = offset or 0
        return messages[start:] if limit is None else messages[start : start + limit]

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages of a status (None: all) there are."""
        return await self.chat_store.conversation(key).acount(status)

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Add a message."""
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add messages, all or none, by one step."""
        await self._add(self.chat_store.conversation(key), messages, status)

    async def _add(
        self,
        conversation: Conversation,
        messages: Sequence[ChatMessage],
        status: MessageStatus = MessageStatus.ACTIVE,
        forget: Iterable[str] = (),
    ) -> None:
        add = functools.partial(conversation._add, messages, status=status, forget=forget)  # noqa: SLF001 - names of the memory
        await in_pool(conversation.sessions.pool, add)
        run, turn = current_run(), self._turn(conversation)
        if messages and messages[-1].role == MessageRole.USER:
            self._begin(conversation, run)
        elif messages and turn and messages[-1].role == MessageRole.ASSISTANT and not has_calls(messages[-1]):
            task = asyncio.current_task()
            turn.answered_in = weakref.ref(task) if task else None

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Make these all the messages of a key; archived ones go as well, as with LlamaIndex's SQL store."""
        conversation = self.chat_store.conversation(key)
        await conversation.aset(messages, status=status)
        self._begin(conversation, current_run())

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove the message at a position of the list this task was last given, and return it; None if none is."""
        return await self.chat_store.conversation(key).aremove(idx)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Remove every message of a status (None: all) by one step; named state stays."""
        await self.chat_store.conversation(key).aclear(status)

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Remove the n oldest messages of the list this task was last given, and return them."""
        return await self.chat_store.conversation(key).aremove_oldest(n)

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the n oldest messages of the list this task was last given, and return them."""
        keeper = self._keeper(key)
        if keeper is not None:
            return await keeper.archive(n)
        return await self.chat_store.conversation(key).aarchive_oldest(n)

    async def get_keys(self) -> list[str]:
        """Return every key that has a session, sorted."""
        return await self.chat_store.aget_keys()

    @contextlib.contextmanager
    def _kept_by(self, keeper: Keeper) -> Iterator[None]:
        """Let this task's reads make no call, and its archiving be the keeper's: it looks after its queue."""
        task = asyncio.current_task()
        assert task is not None
        self._keepers[task] = keeper
        try:
            yield
        finally:
            self._keepers.pop(task, None)

    def _keeper(self, key: str) -> Keeper | None:
        task = asyncio.current_task()
        keeper = self._keepers.get(task) if task else None
        return keeper if keeper is not None and keeper.key == key else None

    def _turn(self, conversation: Conversation) -> _Turn | None:
        turn = self._turns.get(conversation)
        return turn if turn and turn.is_on(current_run()) else None

    def _begin(self, conversation: Conversation, run: str | None) -> None:
        self._turns.pop(conversation, None)
        if run is not None:
            self._turns[conversation] = _Turn(run)

    def __copy__(self) -> BedrockSessionsMemoryStore:
        """Return the store itself, as `BedrockSessionsChatStore` does."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> BedrockSessionsMemoryStore:
        """Return the store itself, as `BedrockSessionsChatStore` does."""
        return self


def current_run() -> str | None:
    """Return the id of the workflow's run this is called in; None outside of one."""
    run = active_instrument_tags.get().get("llamaindex.run_id")
    return str(run) if run else None
