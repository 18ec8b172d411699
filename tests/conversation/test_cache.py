"""What a store keeps in memory: bounded in bytes and in number, and nobody who holds a conversation notices."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole

from llama_index_bedrock_sessions._conversation import cache
from tests.support.service import KEY, Service, png, user, users

if TYPE_CHECKING:
    from llama_index_bedrock_sessions import BedrockSessionsChatStore

PICTURE = png(128, 128)


def visit(store: BedrockSessionsChatStore, number: int) -> None:
    """Add a text and two pictures to a conversation of its own, and read it."""
    chat = store.conversation(f"user-{number}")
    chat.add([user("look at these " + "x" * 2000), *(_picture(2 * number + n) for n in range(2))])
    assert len(chat.messages()) == 3


def _picture(seed: int) -> ChatMessage:
    image = ImageBlock(image=png(128, 128, seed), image_mimetype="image/png")
    return ChatMessage(role=MessageRole.USER, blocks=[image])


def test_the_bytes_of_many_conversations_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many conversations with pictures are used, what they hold is bounded; those used last stay."""
    monkeypatch.setattr(cache, "BUDGET", 10 * len(PICTURE))
    service = Service()
    store = service.store()
    figures = []
    for number in range(12):
        visit(store, number)
        figures.append(store._cache.bytes)
    assert figures[0] > 2 * len(PICTURE)
    assert max(figures) <= cache.BUDGET < 12 * figures[0]
    with service.counting() as calls:
        store.get_messages("user-11")
    assert calls == {"ListInvocationSteps": 1, "total": 1}
    with service.counting() as calls:
        assert len(store.get_messages("user-0")) == 3
    assert calls["GetInvocationStep"] > 0


def test_the_figure_is_what_memory_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python has allocated for all conversations grows no further than the budget allows."""
    monkeypatch.setattr(cache, "BUDGET", 10 * len(PICTURE))
    service = Service()
    store = service.store()
    for number in range(24):
        visit(store, number)
    other = service.store()
    other.get_messages("somebody else")
    service.calls.clear()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(24):
            other.get_messages(f"user-{number}")
            service.calls.clear()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    figure = other._cache.bytes
    assert figure <= cache.BUDGET
    assert figure / 2 < grown < 2 * figure < 24 * 2 * len(PICTURE)


def test_a_conversation_larger_than_the_budget_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is kept while it is the only one: a warm read is one list. When another is used it is dropped."""
    monkeypatch.setattr(cache, "BUDGET", 1000)
    service = Service()
    store = service.store()
    visit(store, 1)
    with service.counting() as calls:
        assert len(store.get_messages("user-1")) == 3
    assert calls == {"ListInvocationSteps": 1, "total": 1}
    assert store._cache.bytes > cache.BUDGET
    visit(store, 2)
    assert store.conversation("user-1")._engine.reader.journal is None
    assert len(store.get_messages("user-1")) == 3


def test_positions_outlive_what_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A position means the list that was last returned, although what was read has been dropped meanwhile."""
    service = Service()
    store = service.store()
    chat = store.conversation(KEY)
    chat.add(users("a", "b", "c"))
    chat.messages()
    service.store().conversation(KEY).remove(0)
    monkeypatch.setattr(cache, "BUDGET", 1)
    visit(store, 1)
    assert chat._engine.reader.journal is None
    removed = chat.remove(1)
    assert removed is not None
    assert removed.content == "b"
    assert [message.content for message in chat.messages()] == ["c"]


def test_what_somebody_is_using_is_not_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a conversation in order to drop it; it counts again when it has been used."""
    monkeypatch.setattr(cache, "BUDGET", 1)
    store = Service().store()
    chat = store.conversation(KEY)
    chat.add([user("a")])
    entered, go = threading.Event(), threading.Event()

    def use() -> None:
        with chat._engine.lock:
            entered.set()
            go.wait()

    thread = threading.Thread(target=use)
    thread.start()
    entered.wait()
    visit(store, 1)
    assert chat._engine.reader.journal is not None
    go.set()
    thread.join()
    assert store._cache.bytes > 0
    with chat._engine.lock:
        visit(store, 2)  # an application may use another conversation where it is told of this one
        assert chat._engine.reader.journal is not None
    visit(store, 3)
    assert chat._engine.reader.journal is None


def test_one_conversation_per_key_while_referenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the number that is kept, one that somebody holds is found again; what it has read is dropped."""
    monkeypatch.setattr(cache, "CONVERSATIONS", 2)
    store = Service().store()
    chat = store.conversation(KEY, tags={"Environment": "Production"})
    chat.add([user("a")])
    others = [id(store.conversation(f"user-{number}")) for number in range(3)]
    assert len(set(others)) > 1
    assert chat._engine.reader.journal is None
    assert store._cache.bytes == 0
    assert store.conversation(KEY) is chat
    assert [message.content for message in chat.messages()] == ["a"]
    assert store._cache.bytes > 0


def test_a_failure_leaves_a_conversation_free() -> None:
    """Where something fails, and even counting does, the lock is released."""

    def fail() -> None:
        raise ZeroDivisionError

    lock = cache.ReleaseHookLock(fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), lock:
            pass
    done: list[bool] = []
    assert lock.if_free(lambda: done.append(True))
    assert done == [True]


def test_a_function_of_the_application_may_use_the_store() -> None:
    """What makes the metadata of a new conversation can read another conversation of the same store."""
    service = Service()

    def metadata(key: str) -> dict[str, str]:
        return {} if key == "settings" else {"team": str(store.conversation("settings").state["team"])}

    store = service.store(session_metadata=metadata)
    store.conversation("settings").state["team"] = "blue"
    store.conversation(KEY).add([user("a")])
    assert [s.get("sessionMetadata", {}).get("team") for s in service.sessions()] == [None, "blue"]


def test_two_threads_that_make_one_conversation_get_the_same() -> None:
    """The first that is finished is the conversation of the key."""
    both = threading.Barrier(2, timeout=30)

    def metadata(_: str) -> dict[str, str]:
        both.wait()
        return {}

    store = Service().store(session_metadata=metadata)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(store.conversation(KEY))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]
    assert store.conversation(KEY) is found[0]


def test_what_is_in_use_keeps_its_bytes_and_others_are_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the budget the least recently used goes first, and one in use is passed over."""
    store = Service().store()
    visit(store, 1)
    size = store._cache.bytes
    visit(store, 2)
    monkeypatch.setattr(cache, "BUDGET", 2 * size + size // 2)
    with store.conversation("user-1")._engine.lock:
        visit(store, 3)
    assert store.conversation("user-1")._engine.reader.journal is not None
    assert store.conversation("user-2")._engine.reader.journal is None
    assert store._cache.bytes <= cache.BUDGET
