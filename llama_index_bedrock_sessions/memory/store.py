"""The adapter that lets LlamaIndex's `Memory` use a `BedrockSessionsChatStore`."""

from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus

from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.memory.turns import begin_turn, current_turn, queue_manager, record_added


class BedrockSessionsMemoryStore(AsyncDBChatStore):
    """A chat store for LlamaIndex's `Memory` that stores messages in a `BedrockSessionsChatStore`.

    Use it as `Memory.from_defaults(chat_store=BedrockSessionsMemoryStore(store))`. `BedrockSessionsMemory` also saves
    memory blocks and unfinished turns, and pairs tool calls with their results.
    """

    chat_store: BedrockSessionsChatStore

    def __init__(self, chat_store: BedrockSessionsChatStore) -> None:
        super().__init__(chat_store=chat_store)  # type: ignore[call-arg] # pydantic generates __init__

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
        """Return the messages with a status (None: with any), oldest first.

        At most `limit` messages are returned, from position `offset`.
        """
        conversation = self.chat_store.conversation(key)
        turn = current_turn(conversation)
        fresh = queue_manager(conversation) is None and not (turn and turn.is_read)
        messages = await conversation.amessages(status=status, fresh=fresh)
        if turn and fresh:
            turn.is_read = True
        start = offset or 0
        return messages[start:] if limit is None else messages[start : start + limit]

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return the number of messages with a status (None: with any)."""
        return await self.chat_store.conversation(key).acount(status)

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Add a message."""
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add messages in one step: either all of them are stored, or none."""
        conversation = self.chat_store.conversation(key)
        await conversation.aadd(messages, status=status)
        record_added(conversation, messages)

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Replace all messages of a key, including archived ones, as LlamaIndex's SQL store does."""
        conversation = self.chat_store.conversation(key)
        await conversation.aset(messages, status=status)
        begin_turn(conversation)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove and return the message at a position of the list that this task last read; None without one."""
        return await self.chat_store.conversation(key).aremove(idx)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Remove all messages with a status (None: with any) in one step. Named state is unchanged."""
        await self.chat_store.conversation(key).aclear(status)

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Remove and return the n oldest messages of the list that this task last read."""
        return await self.chat_store.conversation(key).aremove_oldest(n)

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive and return the n oldest messages of the list that this task last read."""
        conversation = self.chat_store.conversation(key)
        manager = queue_manager(conversation)
        return await (manager.archive(n) if manager else conversation.aarchive_oldest(n))

    async def get_keys(self) -> list[str]:
        """Return the keys of all conversations that have a session, sorted."""
        return await self.chat_store.aget_keys()

    def __copy__(self) -> "BedrockSessionsMemoryStore":
        """Return the store itself, as `BedrockSessionsChatStore` does."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "BedrockSessionsMemoryStore":
        """Return the store itself, as `BedrockSessionsChatStore` does."""
        return self
