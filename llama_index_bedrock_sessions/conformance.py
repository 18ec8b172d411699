"""The claims any LlamaIndex chat store should meet, for anyone to run.

`BaseChatStore` names methods and says little about what they do. These tests say it: each method of
`ChatStoreContract` is one claim, and its docstring is the sentence that must be true of a store before an agent
can rely on it. The module imports nothing of this library, so it judges every store alike.

Override the `store` fixture in a subclass; pytest does the rest::

    import pytest
    from llama_index_bedrock_sessions.conformance import ChatStoreContract

    class TestMyStore(ChatStoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            return MyChatStore(tmp_path / "chats")

`store` gives an empty store, a new one for each test. A store that differs on purpose overrides that one method
and says in its docstring what it does instead. pytest is needed to run the claims, not to import them;
`pytest.register_assert_rewrite("llama_index_bedrock_sessions.conformance")` in a conftest makes failures show
both sides.

Sources of the claims: the docstrings of `BaseChatStore`, the calls that `ChatMemoryBuffer`, the agents and
`Context` of llama-index-core 0.14 make, and Python's own rules for list indexes.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import JsonSerializer

if TYPE_CHECKING:
    from collections.abc import Callable

    from llama_index.core.storage.chat_store.base import BaseChatStore

__all__ = ["ChatStoreContract"]

_Function = TypeVar("_Function", bound="Callable[..., Any]")

ASYNC_METHODS = (
    "aset_messages",
    "aget_messages",
    "async_add_message",
    "adelete_messages",
    "adelete_message",
    "adelete_last_message",
    "aget_keys",
)

# Keys that a store must not mistake for one another: case, spaces, URL and path syntax, separators that stores
# build their own keys with, and two spellings of the same visible letter.
DISTINCT_KEYS = (
    "user",
    "User",
    "user ",
    "user/1",
    "user%2F1",
    "user:1",
    "user#1",
    "user*",
    "../user",
    "caf\u00e9",
    "cafe\u0301",
    "会話",
    "🙂",
)

# A 1 x 1 pixel PNG.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)


def _fixture(function: _Function) -> _Function:
    """Make a pytest fixture where pytest is installed; leave the function as it is elsewhere."""
    try:
        import pytest  # noqa: PLC0415 - only who runs the claims needs pytest
    except ImportError:
        return function
    return pytest.fixture(function)  # type: ignore[return-value,unused-ignore]


def _user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def _users(*texts: str) -> list[ChatMessage]:
    return [_user(text) for text in texts]


def _contents(store: BaseChatStore, key: str) -> list[str | None]:
    return [message.content for message in store.get_messages(key)]


def _comes_back(store: BaseChatStore, make: Callable[[], ChatMessage]) -> None:
    """Store one message by each of the two ways there are, and compare with one the store never saw."""
    store.add_message("added", make())
    assert store.get_messages("added") == [make()]
    store.set_messages("set", [make()])
    assert store.get_messages("set") == [make()]


class ChatStoreContract:
    """One method, one claim; subclasses give the store."""

    if TYPE_CHECKING:
        store: Any  # in a subclass a fixture, which is of another type than the method it decorates
    else:

        @_fixture
        def store(self) -> BaseChatStore:
            """Give an empty store."""
            raise NotImplementedError("override the `store` fixture with one that returns an empty chat store")

    def test_unknown_key_reads_as_empty(self, store: BaseChatStore) -> None:
        """A key nobody wrote to reads as an empty list."""
        assert store.get_messages("nobody") == []

    def test_messages_come_back_in_order(self, store: BaseChatStore) -> None:
        """Messages come back in the order in which they were added."""
        for number in range(12):
            store.add_message("k", _user(f"message {number}"))
        assert _contents(store, "k") == [f"message {number}" for number in range(12)]

    def test_equal_messages_are_all_kept(self, store: BaseChatStore) -> None:
        """The same words said twice are two messages, however they are stored."""
        message = _user("yes")
        store.add_message("k", message)
        store.add_message("k", message)
        assert _contents(store, "k") == ["yes", "yes"]
        store.set_messages("k", [message, message, message])
        assert _contents(store, "k") == ["yes", "yes", "yes"]

    def test_keys_are_kept_apart(self, store: BaseChatStore) -> None:
        """What is written under one key is not read under another."""
        store.add_message("a", _user("for a"))
        store.add_message("b", _user("for b"))
        assert _contents(store, "a") == ["for a"]
        assert _contents(store, "b") == ["for b"]

    def test_keys_are_compared_exactly(self, store: BaseChatStore) -> None:
        """Any text is a key, and keys that merely look alike are different conversations."""
        for key in DISTINCT_KEYS:
            store.add_message(key, _user(f"under {key}"))
        assert {key: _contents(store, key) for key in DISTINCT_KEYS} == {key: [f"under {key}"] for key in DISTINCT_KEYS}
        assert sorted(store.get_keys()) == sorted(DISTINCT_KEYS)

    def test_empty_store_has_no_keys(self, store: BaseChatStore) -> None:
        """A store nobody wrote to lists no keys, not even those that were read."""
        store.get_messages("only read")
        assert store.get_keys() == []

    def test_each_key_is_listed_once(self, store: BaseChatStore) -> None:
        """Every key with messages is listed exactly once, however it was written."""
        for _ in range(3):
            store.add_message("added", _user("hello"))
        store.set_messages("set", _users("hello", "again"))
        store.set_messages("set", _users("replaced"))
        assert sorted(store.get_keys()) == ["added", "set"]

    def test_deleted_key_is_not_listed(self, store: BaseChatStore) -> None:
        """A key is no longer listed once its messages were deleted."""
        store.add_message("a", _user("goes"))
        store.add_message("b", _user("stays"))
        store.delete_messages("a")
        assert store.get_keys() == ["b"]

    def test_set_replaces_everything(self, store: BaseChatStore) -> None:
        """`set_messages` replaces all there was, whether the new list is shorter, longer or in another order."""
        store.set_messages("k", _users("one", "two", "three"))
        for texts in (["four"], ["five", "four", "six", "seven"], ["seven", "six", "four", "five"]):
            store.set_messages("k", _users(*texts))
            assert _contents(store, "k") == texts

    def test_set_of_nothing_empties(self, store: BaseChatStore) -> None:
        """After `set_messages(key, [])` the key reads as an empty list."""
        store.set_messages("k", _users("one", "two"))
        store.set_messages("k", [])
        assert store.get_messages("k") == []

    def test_set_leaves_other_keys_alone(self, store: BaseChatStore) -> None:
        """`set_messages` changes its own key only."""
        store.set_messages("a", _users("for a"))
        store.set_messages("b", _users("for b"))
        store.set_messages("b", [])
        assert _contents(store, "a") == ["for a"]

    def test_add_after_set_goes_to_the_end(self, store: BaseChatStore) -> None:
        """A message added after `set_messages` follows those that were set."""
        store.set_messages("k", _users("one", "two"))
        store.add_message("k", _user("three"))
        assert _contents(store, "k") == ["one", "two", "three"]

    def test_delete_messages_returns_them(self, store: BaseChatStore) -> None:
        """`delete_messages` returns what it deleted, in order."""
        store.set_messages("k", _users("one", "two"))
        assert store.delete_messages("k") == _users("one", "two")

    def test_delete_messages_deletes(self, store: BaseChatStore) -> None:
        """After `delete_messages` the key reads as an empty list."""
        store.set_messages("k", _users("one", "two"))
        store.delete_messages("k")
        assert store.get_messages("k") == []

    def test_delete_messages_leaves_other_keys_alone(self, store: BaseChatStore) -> None:
        """`delete_messages` deletes its own key only, also where another begins with the same letters."""
        store.set_messages("user-1", _users("goes"))
        store.set_messages("user-10", _users("stays"))
        store.delete_messages("user-1")
        assert _contents(store, "user-10") == ["stays"]

    def test_delete_messages_of_unknown_key_is_none(self, store: BaseChatStore) -> None:
        """Deleting a key nobody wrote to returns None."""
        assert store.delete_messages("nobody") is None

    def test_key_is_usable_right_after_delete(self, store: BaseChatStore) -> None:
        """A deleted key takes new messages at once, and holds nothing of the old ones."""
        store.set_messages("k", _users("old"))
        store.delete_messages("k")
        store.add_message("k", _user("new"))
        assert _contents(store, "k") == ["new"]
        store.delete_messages("k")
        store.set_messages("k", _users("newer", "newest"))
        assert _contents(store, "k") == ["newer", "newest"]

    def test_delete_message_takes_out_that_one(self, store: BaseChatStore) -> None:
        """`delete_message` returns the message at the index, a `ChatMessage`, and keeps the others in order."""
        store.set_messages("k", _users("zero", "one", "two", "three"))
        assert store.delete_message("k", 1) == _user("one")
        assert _contents(store, "k") == ["zero", "two", "three"]
        assert store.delete_message("k", 0) == _user("zero")
        assert _contents(store, "k") == ["two", "three"]

    def test_delete_message_counts_negative_indexes_from_the_end(self, store: BaseChatStore) -> None:
        """A negative index that a Python list would take counts from the end."""
        store.set_messages("k", _users("zero", "one", "two", "three"))
        assert store.delete_message("k", -1) == _user("three")
        assert store.delete_message("k", -3) == _user("zero")
        assert _contents(store, "k") == ["one", "two"]

    def test_delete_message_beyond_the_end_is_none(self, store: BaseChatStore) -> None:
        """An index beyond the last message returns None and deletes nothing."""
        store.set_messages("k", _users("zero", "one"))
        assert store.delete_message("k", 2) is None
        assert store.delete_message("k", 99) is None
        assert _contents(store, "k") == ["zero", "one"]

    def test_delete_message_before_the_beginning_is_none(self, store: BaseChatStore) -> None:
        """A negative index before the first message returns None and deletes nothing."""
        store.set_messages("k", _users("zero", "one"))
        assert store.delete_message("k", -3) is None
        assert store.delete_message("k", -99) is None
        assert _contents(store, "k") == ["zero", "one"]

    def test_delete_message_of_unknown_key_is_none(self, store: BaseChatStore) -> None:
        """Deleting by index under a key nobody wrote to returns None."""
        assert store.delete_message("nobody", 0) is None

    def test_delete_last_message_takes_out_the_last(self, store: BaseChatStore) -> None:
        """`delete_last_message` returns the last message and keeps the others."""
        store.set_messages("k", _users("one", "two", "three"))
        assert store.delete_last_message("k") == _user("three")
        assert _contents(store, "k") == ["one", "two"]

    def test_delete_last_message_of_empty_list_is_none(self, store: BaseChatStore) -> None:
        """Once all messages are gone, `delete_last_message` returns None."""
        store.add_message("k", _user("only"))
        store.delete_last_message("k")
        assert store.delete_last_message("k") is None
        store.set_messages("k", [])
        assert store.delete_last_message("k") is None

    def test_delete_last_message_of_unknown_key_is_none(self, store: BaseChatStore) -> None:
        """Deleting the last message under a key nobody wrote to returns None."""
        assert store.delete_last_message("nobody") is None

    # LlamaIndex appends to what `get_messages` returned and edits messages in place, so nothing may be shared.

    def test_changing_a_returned_list_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """Who changes the list that was read changes no later read."""
        store.set_messages("k", _users("one", "two"))
        returned = store.get_messages("k")
        returned.append(_user("three"))
        returned.pop(0)
        assert _contents(store, "k") == ["one", "two"]

    def test_changing_a_returned_message_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """Who edits a message that was read, however deep inside, changes no later read."""
        store.add_message("k", self._nested_message())
        returned = store.get_messages("k")[0]
        self._change(returned)
        assert store.get_messages("k") == [self._nested_message()]

    def test_changing_an_added_message_later_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """Who edits a message after adding it does not edit what is stored."""
        message = self._nested_message()
        store.add_message("k", message)
        self._change(message)
        assert store.get_messages("k") == [self._nested_message()]

    def test_changing_a_set_list_later_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """Who changes the list given to `set_messages` afterwards does not change what is stored."""
        given = _users("one", "two")
        store.set_messages("k", given)
        given.append(_user("three"))
        assert _contents(store, "k") == ["one", "two"]

    def test_changing_a_set_message_later_changes_nothing_stored(self, store: BaseChatStore) -> None:
        """Who edits a message given to `set_messages` afterwards does not edit what is stored."""
        message = self._nested_message()
        store.set_messages("k", [message])
        self._change(message)
        assert store.get_messages("k") == [self._nested_message()]

    @staticmethod
    def _nested_message() -> ChatMessage:
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            blocks=[TextBlock(text="before"), ToolCallBlock(tool_name="look", tool_kwargs={"at": ["logs"]})],
            additional_kwargs={"trace": {"ids": [1, 2]}},
        )

    @staticmethod
    def _change(message: ChatMessage) -> None:
        for block in message.blocks:
            if isinstance(block, TextBlock):
                block.text = "after"
            elif isinstance(block, ToolCallBlock) and isinstance(block.tool_kwargs, dict):
                block.tool_kwargs["at"].append("metrics")
        message.additional_kwargs["trace"]["ids"].append(3)
        message.additional_kwargs["session_id"] = "added later"
        message.role = MessageRole.USER

    def test_every_role_comes_back(self, store: BaseChatStore) -> None:
        """Each of LlamaIndex's roles comes back as it was."""
        for role in MessageRole:
            store.add_message("k", ChatMessage(role=role, content=role.value))
        assert [message.role for message in store.get_messages("k")] == list(MessageRole)

    def test_text_comes_back_exactly(self, store: BaseChatStore) -> None:
        """Text comes back character for character: no stripping, no normalising, no lost emoji."""
        for number, text in enumerate(
            [" leading and trailing \n", "tab\tand\r\nnewline", "café and cafe\u0301", "会話 🙂 שלום", '{"json": "\\"}']
        ):
            store.add_message(f"k{number}", _user(text))
            assert _contents(store, f"k{number}") == [text]

    def test_long_text_comes_back(self, store: BaseChatStore) -> None:
        """A tool result of 200,000 characters comes back whole."""
        text = "".join(f"{number:07d} GET /orders 200\n" for number in range(8_000))
        _comes_back(store, lambda: ChatMessage(role=MessageRole.TOOL, content=text))

    def test_empty_messages_come_back(self, store: BaseChatStore) -> None:
        """A message without blocks and a message of empty text stay what they are, and stay two."""
        store.set_messages("k", [ChatMessage(role=MessageRole.ASSISTANT, blocks=[]), _user("")])
        assert store.get_messages("k") == [ChatMessage(role=MessageRole.ASSISTANT, blocks=[]), _user("")]

    def test_additional_kwargs_come_back(self, store: BaseChatStore) -> None:
        """`additional_kwargs` of any JSON value come back with their types: floats, nested lists, null."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.TOOL,
                content="p99 is 0.912 s",
                additional_kwargs={
                    "tool_call_id": "call-1",
                    "score": 0.1,
                    "big": 2**53 + 1,
                    "flag": True,
                    "nothing": None,
                    "nested": {"list": [1, [2.5, "three"], {}], "名前": "値"},
                },
            ),
        )

    def test_tool_calls_come_back(self, store: BaseChatStore) -> None:
        """Tool calls come back with their ids and their arguments, dictionaries as well as raw text."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[
                    ToolCallBlock(
                        tool_call_id="call-1",
                        tool_name="query_metrics",
                        tool_kwargs={"service": "payments", "percentile": 99.9, "tags": ["eu", None], "deep": {"a": 1}},
                    ),
                    ToolCallBlock(tool_call_id=None, tool_name="search_logs", tool_kwargs='{"partial": "argu'),
                ],
            ),
        )

    def test_tool_result_stays_linked_to_its_call(self, store: BaseChatStore) -> None:
        """A call and its result come back as two messages that name the same id."""
        store.add_message(
            "k",
            ChatMessage(role=MessageRole.ASSISTANT, blocks=[ToolCallBlock(tool_call_id="call-7", tool_name="look")]),
        )
        store.add_message(
            "k", ChatMessage(role=MessageRole.TOOL, content="42", additional_kwargs={"tool_call_id": "call-7"})
        )
        call, result = store.get_messages("k")
        assert [block.tool_call_id for block in call.blocks if isinstance(block, ToolCallBlock)] == ["call-7"]
        assert result.additional_kwargs == {"tool_call_id": "call-7"}

    def test_image_blocks_come_back(self, store: BaseChatStore) -> None:
        """A picture comes back byte for byte, with its mimetype and level of detail."""

        def make() -> ChatMessage:
            return ChatMessage(
                role=MessageRole.USER, blocks=[ImageBlock(image=PNG, image_mimetype="image/png", detail="high")]
            )

        _comes_back(store, make)
        block = store.get_messages("added")[0].blocks[0]
        assert isinstance(block, ImageBlock)
        assert block.resolve_image().read() == PNG

    def test_image_links_come_back(self, store: BaseChatStore) -> None:
        """A picture given by its address comes back as that address."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.USER, blocks=[ImageBlock(url="https://example.com/graphs/p99.png?from=now-1h")]
            ),
        )

    def test_audio_blocks_come_back(self, store: BaseChatStore) -> None:
        """Sound comes back byte for byte, with its format."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.USER, blocks=[AudioBlock(audio=b"RIFF\x24\x00\x00\x00WAVEfmt ", format="wav")]
            ),
        )

    def test_video_blocks_come_back(self, store: BaseChatStore) -> None:
        """A video comes back byte for byte, with its mimetype and frame rate."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.USER,
                blocks=[VideoBlock(video=b"\x00\x00\x00\x18ftypmp42", video_mimetype="video/mp4", fps=2)],
            ),
        )

    def test_document_blocks_come_back(self, store: BaseChatStore) -> None:
        """A document comes back byte for byte, with its title and mimetype."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.USER,
                blocks=[
                    DocumentBlock(data=b"%PDF-1.7\n\xff\xfe", title="runbook", document_mimetype="application/pdf")
                ],
            ),
        )

    def test_cache_points_come_back(self, store: BaseChatStore) -> None:
        """A cache point comes back between the blocks where it was."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.SYSTEM,
                blocks=[
                    TextBlock(text="long instructions"),
                    CachePoint(cache_control=CacheControl(type="default", ttl="1h")),
                    TextBlock(text="short ones"),
                ],
            ),
        )

    def test_citable_blocks_come_back(self, store: BaseChatStore) -> None:
        """Citable content comes back with its nested text, picture and document."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.USER,
                blocks=[
                    CitableBlock(
                        title="Post-mortem",
                        source="wiki/4711",
                        content=[
                            TextBlock(text="The pool was full."),
                            ImageBlock(image=PNG),
                            DocumentBlock(data=b"%PDF-1.7", title="raw"),
                        ],
                    )
                ],
            ),
        )

    def test_citations_come_back(self, store: BaseChatStore) -> None:
        """A citation comes back with the words it cites and where they stand."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[
                    TextBlock(text="The pool was full."),
                    CitationBlock(
                        cited_content=TextBlock(text="pool was full"),
                        source="wiki/4711",
                        title="Post-mortem",
                        additional_location_info={"start": 4, "end": 17},
                    ),
                ],
            ),
        )

    def test_thinking_blocks_come_back(self, store: BaseChatStore) -> None:
        """Reasoning comes back with its signature, without which a provider refuses the next turn."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[
                    ThinkingBlock(
                        content="The latency began at 14:02.",
                        num_tokens=9,
                        additional_information={"signature": "EqQBCgIYAh==", "weights": [0.25, 0.75]},
                    ),
                    TextBlock(text="Since 14:02."),
                ],
            ),
        )

    def test_mixed_blocks_keep_their_order(self, store: BaseChatStore) -> None:
        """Text, pictures and calls in one message come back in the order they were in."""
        _comes_back(
            store,
            lambda: ChatMessage(
                role=MessageRole.ASSISTANT,
                blocks=[
                    TextBlock(text="Before:"),
                    ImageBlock(image=PNG),
                    ThinkingBlock(content="Compare."),
                    TextBlock(text="after:"),
                    ImageBlock(url="https://example.com/after.png"),
                    ToolCallBlock(tool_call_id="c", tool_name="diff", tool_kwargs={}),
                    TextBlock(text="end."),
                ],
            ),
        )

    def test_async_methods_have_their_exact_names(self, store: BaseChatStore) -> None:
        """The seven async methods exist under LlamaIndex's names, `async_add_message` among them, as coroutines."""
        assert [name for name in ASYNC_METHODS if not inspect.iscoroutinefunction(getattr(store, name, None))] == []

    def test_async_does_what_sync_does(self, store: BaseChatStore) -> None:
        """Each async method returns and leaves behind exactly what its sync twin does."""

        def by_sync() -> list[Any]:
            store.set_messages("sync", _users("zero", "one", "two", "three"))
            store.add_message("sync", self._nested_message())
            return [
                store.get_messages("sync"),
                store.delete_message("sync", 1),
                store.delete_message("sync", 99),
                store.delete_last_message("sync"),
                store.get_messages("sync"),
                store.get_keys(),
                store.delete_messages("sync"),
                store.get_messages("sync"),
            ]

        async def by_async() -> list[Any]:
            await store.aset_messages("async", _users("zero", "one", "two", "three"))
            await store.async_add_message("async", self._nested_message())
            return [
                await store.aget_messages("async"),
                await store.adelete_message("async", 1),
                await store.adelete_message("async", 99),
                await store.adelete_last_message("async"),
                await store.aget_messages("async"),
                ["sync" if key == "async" else key for key in await store.aget_keys()],
                await store.adelete_messages("async"),
                await store.aget_messages("async"),
            ]

        assert asyncio.run(by_async()) == by_sync()

    def test_async_of_unknown_key_raises_nothing(self, store: BaseChatStore) -> None:
        """Under a key nobody wrote to, the async methods answer as the sync ones: empty list and None."""

        async def ask() -> list[Any]:
            return [
                await store.aget_messages("nobody"),
                await store.adelete_messages("nobody"),
                await store.adelete_message("nobody", 0),
                await store.adelete_last_message("nobody"),
                await store.aget_keys(),
            ]

        assert asyncio.run(ask()) == [[], None, None, None, []]

    def test_sync_methods_work_inside_a_running_loop(self, store: BaseChatStore) -> None:
        """The sync methods can be called where an event loop runs, as in a notebook."""

        async def in_a_notebook() -> list[str | None]:
            store.add_message("k", _user("one"))
            store.set_messages("k", _users("one", "two"))
            store.delete_last_message("k")
            return _contents(store, "k")

        assert asyncio.run(in_a_notebook()) == ["one"]

    def test_one_store_serves_several_event_loops(self, store: BaseChatStore) -> None:
        """A store used in one event loop works in the next: LlamaIndex starts new loops in threads."""
        for text in ("first loop", "second loop"):
            asyncio.run(store.async_add_message("k", _user(text)))
        assert [message.content for message in asyncio.run(store.aget_messages("k"))] == ["first loop", "second loop"]

    def test_concurrent_coroutines_lose_nothing(self, store: BaseChatStore) -> None:
        """Twenty coroutines that each add a message at the same time leave twenty messages."""

        async def add_all() -> None:
            await asyncio.gather(*(store.async_add_message("k", _user(f"{number}")) for number in range(20)))

        asyncio.run(add_all())
        assert sorted(map(str, _contents(store, "k"))) == sorted(str(number) for number in range(20))

    def test_concurrent_threads_lose_nothing(self, store: BaseChatStore) -> None:
        """Twenty threads that each add a message at the same time leave twenty messages."""
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda number: store.add_message("k", _user(f"{number}")), range(20)))
        assert sorted(map(str, _contents(store, "k"))) == sorted(str(number) for number in range(20))

    def test_concurrent_new_keys_lose_nothing(self, store: BaseChatStore) -> None:
        """Twenty threads that each begin a conversation at the same time leave twenty conversations."""
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda number: store.add_message(f"k{number}", _user(f"{number}")), range(20)))
        assert [_contents(store, f"k{number}") for number in range(20)] == [[f"{number}"] for number in range(20)]

    def test_chat_memory_buffer_remembers(self, store: BaseChatStore) -> None:
        """`ChatMemoryBuffer` puts, reads, replaces and resets through the store, under its own key only."""
        memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="k", token_limit=10_000)
        other = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="other", token_limit=10_000)
        other.put(_user("stays"))
        memory.put_messages(_users("one", "two"))
        assert [message.content for message in memory.get()] == ["one", "two"]
        memory.set(_users("three"))
        assert memory.get_all() == _users("three")
        memory.reset()
        assert memory.get() == []
        assert other.get_all() == _users("stays")

    def test_chat_memory_buffer_remembers_async(self, store: BaseChatStore) -> None:
        """The async methods of `ChatMemoryBuffer` do the same through the store."""

        async def talk() -> list[list[str | None]]:
            memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="k", token_limit=10_000)
            await memory.aput(_user("one"))
            await memory.aput_messages(_users("two"))
            seen = [await memory.aget(), await memory.aget_all()]
            await memory.aset(_users("three"))
            seen.append(await memory.aget())
            await memory.areset()
            seen.append(await memory.aget())
            return [[message.content for message in messages] for messages in seen]

        assert asyncio.run(talk()) == [["one", "two"], ["one", "two"], ["three"], []]

    def test_given_chat_history_replaces_what_is_stored(self, store: BaseChatStore) -> None:
        """`ChatMemoryBuffer.from_defaults(chat_history=...)` replaces what the key held, an empty one as well."""
        store.set_messages("k", _users("old"))
        ChatMemoryBuffer.from_defaults(_users("new"), chat_store=store, chat_store_key="k")
        assert _contents(store, "k") == ["new"]
        ChatMemoryBuffer.from_defaults([], chat_store=store, chat_store_key="k")
        assert _contents(store, "k") == []

    def test_memory_survives_json(self, store: BaseChatStore) -> None:
        """A memory dumped to JSON and loaded again goes on with the conversation.

        `ChatMemoryBuffer.from_dict` looks the store up by its `class_name()` in `RECOGNIZED_CHAT_STORES` of
        `llama_index.core.storage.chat_store.loading`: a store registers itself there.
        """
        memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="k", token_limit=10_000)
        memory.put(_user("one"))
        loaded = ChatMemoryBuffer.from_dict(json.loads(json.dumps(memory.to_dict())))
        loaded.put(_user("two"))
        assert loaded.get_all() == _users("one", "two")

    def test_memory_survives_a_context(self, store: BaseChatStore) -> None:
        """A memory goes through the serializer by which a workflow's `Context` is saved, and goes on.

        Agents make this round trip whenever a `Context` is used for a second run.
        """
        memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="k", token_limit=10_000)
        memory.put(_user("one"))
        serializer = JsonSerializer()
        loaded = serializer.deserialize(serializer.serialize(memory))
        loaded.put(_user("two"))
        assert loaded.get_all() == _users("one", "two")

    def test_deep_copy_goes_on(self, store: BaseChatStore) -> None:
        """A deep copy, such as `ctx.store.edit_state()` makes, reads what is stored and takes new messages."""
        store.add_message("k", _user("one"))
        copied = copy.deepcopy(store)
        copied.add_message("k", _user("two"))
        assert _contents(copied, "k") == ["one", "two"]

    def test_pickling_never_empties(self, store: BaseChatStore) -> None:
        """A pickled copy holds what was stored; a store that cannot promise that refuses to be pickled."""
        store.add_message("k", _user("one"))
        try:
            pickled = pickle.dumps(store)
        except Exception:  # noqa: BLE001 - any refusal will do, silence will not
            return
        assert _contents(pickle.loads(pickled), "k") == ["one"]  # noqa: S301 - our own bytes
