"""The contract over LlamaIndex's own store, and each of its claims shown able to fail.

`ReferenceStore` meets every claim in a few lines. Each store after it is the reference broken in exactly one way;
`BROKEN` says which claim must notice.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import threading
import unicodedata
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.loading import RECOGNIZED_CHAT_STORES
from pydantic import Field, PrivateAttr
from pydantic_core import PydanticSerializationError

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions.conformance import ChatStoreContract

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOCK = threading.RLock()


class ReferenceStore(BaseChatStore):
    """A correct chat store: JSON in a dictionary, under one lock."""

    data: dict[str, list[str]] = Field(default_factory=dict)

    @classmethod
    def class_name(cls) -> str:
        return cls.__name__

    def encode(self, message: ChatMessage) -> str:
        return message.model_dump_json()

    def decode(self, text: str) -> ChatMessage:
        return ChatMessage.model_validate_json(text)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        with LOCK:
            self.data[key] = [self.encode(message) for message in messages]

    def get_messages(self, key: str) -> list[ChatMessage]:
        with LOCK:
            return [self.decode(text) for text in self.data.get(key, [])]

    def add_message(self, key: str, message: ChatMessage) -> None:
        with LOCK:
            self.data.setdefault(key, []).append(self.encode(message))

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        with LOCK:
            texts = self.data.pop(key, None)
            return None if texts is None else [self.decode(text) for text in texts]

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        with LOCK:
            texts = self.data.get(key, [])
            return self.decode(texts.pop(idx)) if -len(texts) <= idx < len(texts) else None

    def delete_last_message(self, key: str) -> ChatMessage | None:
        return self.delete_message(key, -1)

    def get_keys(self) -> list[str]:
        with LOCK:
            return list(self.data)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LlamaIndex load this module's stores by their class names."""
    stores: set[type[ReferenceStore]] = {ReferenceStore, *BROKEN.values()}
    for cls in stores - {IsNotRegistered}:
        monkeypatch.setitem(RECOGNIZED_CHAT_STORES, cls.class_name(), cls)


class TestReferenceStore(ChatStoreContract):
    """Every claim can be met at once."""

    @pytest.fixture
    def store(self) -> BaseChatStore:
        return ReferenceStore()


class TestSimpleChatStore(ChatStoreContract):
    """LlamaIndex's own store; what it does differently is named, and asserted so that the list stays true."""

    @pytest.fixture
    def store(self) -> BaseChatStore:
        return SimpleChatStore()

    def test_changing_a_returned_list_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """SimpleChatStore hands out the very list it keeps."""
        store.set_messages("k", [ChatMessage("one")])
        assert store.get_messages("k") is store.get_messages("k")

    def test_changing_a_returned_message_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """SimpleChatStore hands out the very messages it keeps."""
        store.add_message("k", ChatMessage("one"))
        assert store.get_messages("k")[0] is store.get_messages("k")[0]

    def test_changing_an_added_message_later_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """SimpleChatStore keeps the very message it was given to add."""
        message = ChatMessage("one")
        store.add_message("k", message)
        assert store.get_messages("k")[0] is message

    def test_changing_a_set_list_later_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """SimpleChatStore keeps the very list it was given to set."""
        given = [ChatMessage("one")]
        store.set_messages("k", given)
        assert store.get_messages("k") is given

    def test_changing_a_set_message_later_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """SimpleChatStore keeps the very messages it was given to set."""
        message = ChatMessage("one")
        store.set_messages("k", [message])
        assert store.get_messages("k")[0] is message

    def test_delete_message_before_the_beginning_is_none(self, store: BaseChatStore) -> None:
        """SimpleChatStore checks the index on the upper side only."""
        store.set_messages("k", [ChatMessage("zero"), ChatMessage("one")])
        with pytest.raises(IndexError):
            store.delete_message("k", -3)

    def test_delete_last_message_of_empty_list_is_none(self, store: BaseChatStore) -> None:
        """SimpleChatStore raises when the list is empty."""
        store.set_messages("k", [])
        with pytest.raises(IndexError):
            store.delete_last_message("k")

    def test_memory_survives_json(self, store: BaseChatStore) -> None:
        """SimpleChatStore cannot be dumped with pydantic 2.14 or later; with earlier ones it meets the claim."""
        with dump_fails_or_not():
            super().test_memory_survives_json(store)

    def test_memory_survives_a_context(self, store: BaseChatStore) -> None:
        """SimpleChatStore cannot be dumped with pydantic 2.14 or later; with earlier ones it meets the claim."""
        with dump_fails_or_not():
            super().test_memory_survives_a_context(store)


class TestBedrockSessionsChatStore(ChatStoreContract):
    """Our store, on the embedded service in a file."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> BaseChatStore:
        return BedrockSessionsChatStore.local(tmp_path / "chats.db")


class TestBedrockSessionsChatStoreInMemory(ChatStoreContract):
    """Our store, on the embedded service in memory."""

    @pytest.fixture
    def store(self) -> BaseChatStore:
        return BedrockSessionsChatStore.local()


def dump_fails_or_not() -> contextlib.AbstractContextManager[Any]:
    """Expect the serialisation error exactly where SimpleChatStore's own dump raises it."""
    try:
        SimpleChatStore(store={"k": [ChatMessage("one")]}).model_dump()
    except PydanticSerializationError:
        return pytest.raises(ValueError, match="serializ")
    return contextlib.nullcontext()


class RaisesOnUnknownKey(ReferenceStore):
    def get_messages(self, key: str) -> list[ChatMessage]:
        return [self.decode(text) for text in self.data[key]]


class ReversesOnRead(ReferenceStore):
    def get_messages(self, key: str) -> list[ChatMessage]:
        return super().get_messages(key)[::-1]


class DropsDuplicates(ReferenceStore):
    def get_messages(self, key: str) -> list[ChatMessage]:
        return [self.decode(text) for text in dict.fromkeys(self.data.get(key, []))]


class KnowsOneConversation(ReferenceStore):
    def add_message(self, key: str, message: ChatMessage) -> None:
        super().add_message("", message)

    def get_messages(self, key: str) -> list[ChatMessage]:
        return super().get_messages("")


class NormalisesKeys(ReferenceStore):
    def add_message(self, key: str, message: ChatMessage) -> None:
        super().add_message(unicodedata.normalize("NFC", key), message)

    def get_messages(self, key: str) -> list[ChatMessage]:
        return super().get_messages(unicodedata.normalize("NFC", key))


class CreatesKeysByReading(ReferenceStore):
    def get_messages(self, key: str) -> list[ChatMessage]:
        self.data.setdefault(key, [])
        return super().get_messages(key)


class ListsAKeyPerMessage(ReferenceStore):
    def get_keys(self) -> list[str]:
        return [key for key, texts in self.data.items() for _ in texts]


class ListsDeletedKeys(ReferenceStore):
    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        deleted = super().delete_messages(key)
        self.data[key] = []
        return deleted


class AppendsOnSet(ReferenceStore):
    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        for message in messages:
            self.add_message(key, message)


class IgnoresAnEmptySet(ReferenceStore):
    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        if messages:
            super().set_messages(key, messages)


class EmptiesAllOnEmptySet(ReferenceStore):
    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        if not messages:
            self.data.clear()
        super().set_messages(key, messages)


class AddsInFront(ReferenceStore):
    def add_message(self, key: str, message: ChatMessage) -> None:
        self.data.setdefault(key, []).insert(0, self.encode(message))


class DeletesWithoutReturning(ReferenceStore):
    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        super().delete_messages(key)
        return None


class ReturnsWithoutDeleting(ReferenceStore):
    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        return self.get_messages(key) if key in self.data else None


class DeletesByPrefix(ReferenceStore):
    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        deleted = [super(DeletesByPrefix, self).delete_messages(k) for k in list(self.data) if k.startswith(key)]
        return deleted[0] if deleted else None


class ReturnsAnEmptyListForUnknownKey(ReferenceStore):
    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        return super().delete_messages(key) or []


class RefusesDeletedKeys(ReferenceStore):
    gone: list[str] = Field(default_factory=list)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        self.gone.append(key)
        return super().delete_messages(key)

    def add_message(self, key: str, message: ChatMessage) -> None:
        if key not in self.gone:
            super().add_message(key, message)


class ReturnsRawText(ReferenceStore):
    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        message = super().delete_message(key, idx)
        return None if message is None else self.encode(message)  # type: ignore[return-value]


class RefusesNegativeIndexes(ReferenceStore):
    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        return super().delete_message(key, idx) if idx >= 0 else None


class RaisesBeyondTheEnd(ReferenceStore):
    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        return self.decode(self.data[key].pop(idx))


class WrapsNegativeIndexes(ReferenceStore):
    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        count = len(self.data.get(key, []))
        return super().delete_message(key, idx % count if idx < 0 < count else idx)


class RaisesOnDeletingByIndexUnderUnknownKey(ReferenceStore):
    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        return self.decode(self.data[key].pop(idx)) if idx < len(self.data[key]) else None


class DeletesTheFirstAsLast(ReferenceStore):
    def delete_last_message(self, key: str) -> ChatMessage | None:
        return self.delete_message(key, 0)


class RaisesOnDeletingLastOfEmptyList(ReferenceStore):
    def delete_last_message(self, key: str) -> ChatMessage | None:
        return self.decode(self.data[key].pop()) if key in self.data else None


class RaisesOnDeletingLastUnderUnknownKey(ReferenceStore):
    def delete_last_message(self, key: str) -> ChatMessage | None:
        return self.decode(self.data[key].pop()) if self.data[key] else None


class Keeping(ReferenceStore):
    """Meets the claims, and keeps lists of messages by identity for the stores that share them."""

    kept: dict[str, list[ChatMessage]] = Field(default_factory=dict)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        self.kept[key] = copy.deepcopy(messages)

    def get_messages(self, key: str) -> list[ChatMessage]:
        return copy.deepcopy(self.kept.get(key, []))

    def add_message(self, key: str, message: ChatMessage) -> None:
        self.kept.setdefault(key, []).append(message.model_copy(deep=True))


class SharesTheReturnedList(Keeping):
    def get_messages(self, key: str) -> list[ChatMessage]:
        return self.kept.get(key, [])


class SharesReturnedMessages(Keeping):
    def get_messages(self, key: str) -> list[ChatMessage]:
        return [message.model_copy() for message in self.kept.get(key, [])]


class SharesAddedMessages(Keeping):
    def add_message(self, key: str, message: ChatMessage) -> None:
        self.kept.setdefault(key, []).append(message)


class SharesTheSetList(Keeping):
    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        self.kept[key] = messages


class SharesSetMessages(Keeping):
    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        self.kept[key] = list(messages)


class TurnsDevelopersIntoSystem(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        return super().decode(text.replace('"developer"', '"system"'))


class StripsText(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        message.blocks = [TextBlock(text=b.text.strip()) if isinstance(b, TextBlock) else b for b in message.blocks]
        return message


class CutsLongText(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        message.blocks = [TextBlock(text=b.text[:65_535]) if isinstance(b, TextBlock) else b for b in message.blocks]
        return message


class DropsEmptyMessages(ReferenceStore):
    def get_messages(self, key: str) -> list[ChatMessage]:
        return [message for message in super().get_messages(key) if message.content]


class MakesFloatsText(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        kwargs = message.additional_kwargs
        message.additional_kwargs = {k: str(v) if isinstance(v, float) else v for k, v in kwargs.items()}
        return message


class DropsToolCallIds(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        message.additional_kwargs.pop("tool_call_id", None)
        return message


class ParsesToolArguments(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        for block in message.blocks:
            if isinstance(block, ToolCallBlock) and isinstance(block.tool_kwargs, str):
                block.tool_kwargs = {}
        return message


class EncodesImagesTwice(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        for block in message.blocks:
            if isinstance(block, ImageBlock) and isinstance(block.image, bytes):
                block.image = base64.b64encode(block.image)
        return message


class DropsImageLinks(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        message.blocks = [b for b in message.blocks if not (isinstance(b, ImageBlock) and b.url)]
        return message


class DropsThinkingSignatures(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        for block in message.blocks:
            if isinstance(block, ThinkingBlock):
                block.additional_information.pop("signature", None)
        return message


class PutsTextFirst(ReferenceStore):
    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        message.blocks.sort(key=lambda block: not isinstance(block, TextBlock))
        return message


class DropsBlocks(ReferenceStore):
    """Drops the blocks of one type; the subclasses name the type."""

    dropped: str = ""

    def decode(self, text: str) -> ChatMessage:
        message = super().decode(text)
        message.blocks = [block for block in message.blocks if block.block_type != self.dropped]
        return message


class DropsAudio(DropsBlocks):
    dropped: str = "audio"


class DropsVideo(DropsBlocks):
    dropped: str = "video"


class DropsDocuments(DropsBlocks):
    dropped: str = "document"


class DropsCachePoints(DropsBlocks):
    dropped: str = "cache"


class DropsCitableBlocks(DropsBlocks):
    dropped: str = "citable"


class DropsCitations(DropsBlocks):
    dropped: str = "citation"


class NamesAsyncAddOtherwise(ReferenceStore):
    def async_add_message(self, key: str, message: ChatMessage) -> None:  # type: ignore[override]
        self.add_message(key, message)

    async def aadd_message(self, key: str, message: ChatMessage) -> None:
        self.add_message(key, message)


class ReturnsNothingFromAsyncDelete(ReferenceStore):
    async def adelete_message(self, key: str, idx: int) -> ChatMessage | None:
        await super().adelete_message(key, idx)
        return None


class RaisesOnUnknownKeyInAsync(ReferenceStore):
    async def aget_messages(self, key: str) -> list[ChatMessage]:
        return [self.decode(text) for text in self.data[key]]


class RunsALoopInSyncMethods(ReferenceStore):
    def get_messages(self, key: str) -> list[ChatMessage]:
        with contextlib.closing(self.aget_messages(key)) as coroutine:
            return asyncio.run(coroutine)

    async def aget_messages(self, key: str) -> list[ChatMessage]:
        return super().get_messages(key)


class IsBoundToOneLoop(ReferenceStore):
    _loop: asyncio.AbstractEventLoop | None = PrivateAttr(default=None)

    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        running = asyncio.get_running_loop()
        self._loop = self._loop or running
        if self._loop is not running:
            raise RuntimeError("attached to a different loop")
        self.add_message(key, message)


class LosesConcurrentCoroutines(ReferenceStore):
    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        texts = list(self.data.get(key, []))
        await asyncio.to_thread(lambda: None)
        self.data[key] = [*texts, self.encode(message)]


class LosesConcurrentAdds(ReferenceStore):
    """Reads, lets another thread read too, then writes: what a read-modify-write without a lock may do."""

    _both_have_read: threading.Barrier = PrivateAttr(default_factory=lambda: threading.Barrier(2))

    def add_message(self, key: str, message: ChatMessage) -> None:
        texts = list(self.data.get(key, []))
        self._both_have_read.wait()
        self.data[key] = [*texts, self.encode(message)]


class LosesConcurrentKeys(ReferenceStore):
    """Rewrites all conversations to add one, as a store in a single file may do."""

    _both_have_read: threading.Barrier = PrivateAttr(default_factory=lambda: threading.Barrier(2))

    def add_message(self, key: str, message: ChatMessage) -> None:
        everything = dict(self.data)
        self._both_have_read.wait()
        self.data = everything | {key: [*everything.get(key, []), self.encode(message)]}


class DeletesAllKeys(ReferenceStore):
    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        deleted = super().delete_messages(key)
        self.data.clear()
        return deleted


class AppendsOnAsyncSet(ReferenceStore):
    async def aset_messages(self, key: str, messages: list[ChatMessage]) -> None:
        for message in messages:
            self.add_message(key, message)


class SetsOnlyWhatIsEmpty(ReferenceStore):
    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        if not self.data.get(key):
            super().set_messages(key, messages)


class IsNotRegistered(ReferenceStore):
    pass


class LoadsEmpty(ReferenceStore):
    data: dict[str, list[str]] = Field(default_factory=dict, exclude=True)


class CannotBeDeepCopied(ReferenceStore):
    _lock: Any = PrivateAttr(default_factory=threading.Lock)


class UnpicklesEmpty(ReferenceStore):
    def __reduce__(self) -> Any:
        return type(self), ()


BROKEN: dict[Callable[..., None], type[ReferenceStore]] = {
    ChatStoreContract.test_unknown_key_reads_as_empty: RaisesOnUnknownKey,
    ChatStoreContract.test_messages_come_back_in_order: ReversesOnRead,
    ChatStoreContract.test_equal_messages_are_all_kept: DropsDuplicates,
    ChatStoreContract.test_keys_are_kept_apart: KnowsOneConversation,
    ChatStoreContract.test_keys_are_compared_exactly: NormalisesKeys,
    ChatStoreContract.test_empty_store_has_no_keys: CreatesKeysByReading,
    ChatStoreContract.test_each_key_is_listed_once: ListsAKeyPerMessage,
    ChatStoreContract.test_deleted_key_is_not_listed: ListsDeletedKeys,
    ChatStoreContract.test_set_replaces_everything: AppendsOnSet,
    ChatStoreContract.test_set_of_nothing_empties: IgnoresAnEmptySet,
    ChatStoreContract.test_set_leaves_other_keys_alone: EmptiesAllOnEmptySet,
    ChatStoreContract.test_add_after_set_goes_to_the_end: AddsInFront,
    ChatStoreContract.test_delete_messages_returns_them: DeletesWithoutReturning,
    ChatStoreContract.test_delete_messages_deletes: ReturnsWithoutDeleting,
    ChatStoreContract.test_delete_messages_leaves_other_keys_alone: DeletesByPrefix,
    ChatStoreContract.test_delete_messages_of_unknown_key_is_none: ReturnsAnEmptyListForUnknownKey,
    ChatStoreContract.test_key_is_usable_right_after_delete: RefusesDeletedKeys,
    ChatStoreContract.test_delete_message_takes_out_that_one: ReturnsRawText,
    ChatStoreContract.test_delete_message_counts_negative_indexes_from_the_end: RefusesNegativeIndexes,
    ChatStoreContract.test_delete_message_beyond_the_end_is_none: RaisesBeyondTheEnd,
    ChatStoreContract.test_delete_message_before_the_beginning_is_none: WrapsNegativeIndexes,
    ChatStoreContract.test_delete_message_of_unknown_key_is_none: RaisesOnDeletingByIndexUnderUnknownKey,
    ChatStoreContract.test_delete_last_message_takes_out_the_last: DeletesTheFirstAsLast,
    ChatStoreContract.test_delete_last_message_of_empty_list_is_none: RaisesOnDeletingLastOfEmptyList,
    ChatStoreContract.test_delete_last_message_of_unknown_key_is_none: RaisesOnDeletingLastUnderUnknownKey,
    ChatStoreContract.test_changing_a_returned_list_changes_nothing_stored: SharesTheReturnedList,
    ChatStoreContract.test_changing_a_returned_message_changes_nothing_stored: SharesReturnedMessages,
    ChatStoreContract.test_changing_an_added_message_later_changes_nothing_stored: SharesAddedMessages,
    ChatStoreContract.test_changing_a_set_list_later_changes_nothing_stored: SharesTheSetList,
    ChatStoreContract.test_changing_a_set_message_later_changes_nothing_stored: SharesSetMessages,
    ChatStoreContract.test_every_role_comes_back: TurnsDevelopersIntoSystem,
    ChatStoreContract.test_text_comes_back_exactly: StripsText,
    ChatStoreContract.test_long_text_comes_back: CutsLongText,
    ChatStoreContract.test_empty_messages_come_back: DropsEmptyMessages,
    ChatStoreContract.test_additional_kwargs_come_back: MakesFloatsText,
    ChatStoreContract.test_tool_calls_come_back: ParsesToolArguments,
    ChatStoreContract.test_tool_result_stays_linked_to_its_call: DropsToolCallIds,
    ChatStoreContract.test_image_blocks_come_back: EncodesImagesTwice,
    ChatStoreContract.test_image_links_come_back: DropsImageLinks,
    ChatStoreContract.test_audio_blocks_come_back: DropsAudio,
    ChatStoreContract.test_video_blocks_come_back: DropsVideo,
    ChatStoreContract.test_document_blocks_come_back: DropsDocuments,
    ChatStoreContract.test_cache_points_come_back: DropsCachePoints,
    ChatStoreContract.test_citable_blocks_come_back: DropsCitableBlocks,
    ChatStoreContract.test_citations_come_back: DropsCitations,
    ChatStoreContract.test_thinking_blocks_come_back: DropsThinkingSignatures,
    ChatStoreContract.test_mixed_blocks_keep_their_order: PutsTextFirst,
    ChatStoreContract.test_async_methods_have_their_exact_names: NamesAsyncAddOtherwise,
    ChatStoreContract.test_async_does_what_sync_does: ReturnsNothingFromAsyncDelete,
    ChatStoreContract.test_async_of_unknown_key_raises_nothing: RaisesOnUnknownKeyInAsync,
    ChatStoreContract.test_sync_methods_work_inside_a_running_loop: RunsALoopInSyncMethods,
    ChatStoreContract.test_one_store_serves_several_event_loops: IsBoundToOneLoop,
    ChatStoreContract.test_concurrent_coroutines_lose_nothing: LosesConcurrentCoroutines,
    ChatStoreContract.test_concurrent_threads_lose_nothing: LosesConcurrentAdds,
    ChatStoreContract.test_concurrent_new_keys_lose_nothing: LosesConcurrentKeys,
    ChatStoreContract.test_chat_memory_buffer_remembers: DeletesAllKeys,
    ChatStoreContract.test_chat_memory_buffer_remembers_async: AppendsOnAsyncSet,
    ChatStoreContract.test_given_chat_history_replaces_what_is_stored: SetsOnlyWhatIsEmpty,
    ChatStoreContract.test_memory_survives_json: IsNotRegistered,
    ChatStoreContract.test_memory_survives_a_context: LoadsEmpty,
    ChatStoreContract.test_deep_copy_goes_on: CannotBeDeepCopied,
    ChatStoreContract.test_pickling_never_empties: UnpicklesEmpty,
}


@pytest.mark.parametrize(("claim", "broken"), BROKEN.items(), ids=[claim.__name__ for claim in BROKEN])
def test_claim_fails_on_a_store_broken_in_that_way(claim: Callable[..., None], broken: type[ReferenceStore]) -> None:
    """Each claim fails on a store that breaks it and is otherwise correct."""
    with pytest.raises(Exception):  # noqa: B017, PT011 - a broken store may fail in any way, passing is the fault
        claim(ChatStoreContract(), broken())


def test_every_claim_is_shown_able_to_fail() -> None:
    """No claim is without a store that breaks it, and none without its sentence."""
    claims = {name: claim for name, claim in vars(ChatStoreContract).items() if name.startswith("test_")}
    assert set(claims.values()) == set(BROKEN)
    assert [name for name, claim in claims.items() if not (claim.__doc__ or "").strip().endswith(".")] == []


def test_without_a_store_the_contract_says_what_to_override(pytester: pytest.Pytester) -> None:
    """A subclass that gives no store is told to override the fixture."""
    pytester.makepyfile(
        """
        from llama_index_bedrock_sessions.conformance import ChatStoreContract
        class TestNothing(ChatStoreContract):
            pass
        """
    )
    result = pytester.runpytest_inprocess("-k", "test_unknown_key", "-p", "no:randomly")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*override the `store` fixture*"])
