"""`BedrockSessionsMemory` and its store: the contract of `AsyncDBChatStore`, turns, round trips, blocks, autosave.

What is claimed to differ from LlamaIndex's own memories is shown of those too, on LlamaIndex's own stores.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import pickle
import threading
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms import MockFunctionCallingLLM, MockLLM
from llama_index.core.memory import (
    BaseMemory,
    BaseMemoryBlock,
    ChatMemoryBuffer,
    FactExtractionMemoryBlock,
    InsertMethod,
    Memory,
    StaticMemoryBlock,
)
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from llama_index.core.workflow import Context
from pydantic import Field, PrivateAttr, SecretStr, ValidationError

from llama_index_bedrock_sessions import (
    BedrockSessionsChatStore,
    BedrockSessionsMemory,
    BedrockSessionsMemoryStore,
    ConfigurationError,
    InvalidStateError,
    StepTooLargeError,
    ThrottledError,
)
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._conversation.state import TURN, ReservedName
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions.cli.demo import query_metrics, scripted_model, search_logs
from llama_index_bedrock_sessions.events import key_hash
from llama_index_bedrock_sessions.memory.block_state import BLOCK
from tests.support.service import HOUR, KEY, Service, picture, run, user, users

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

REPORT = "INC-4711: checkout is slow"


@pytest.fixture
def service() -> Service:
    return Service()


def memory(store: BedrockSessionsChatStore, **arguments: Any) -> BedrockSessionsMemory:
    return BedrockSessionsMemory.from_defaults(**{"session_id": KEY, "chat_store": store, **arguments})


def said(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def named(memory: BedrockSessionsMemory) -> dict[str, Any]:
    """Give all named state, that of the memory too, which no application sees."""
    return memory.conversation._named(fresh=True)


def call(number: int) -> ChatMessage:
    block = ToolCallBlock(tool_call_id=str(number), tool_name="look", tool_kwargs={})
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[block])


def result(number: int, text: str = "42") -> ChatMessage:
    return ChatMessage(role=MessageRole.TOOL, content=text, additional_kwargs={"tool_call_id": str(number)})


def contents(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


def agent(*tools: Callable[..., Any]) -> FunctionAgent:
    return FunctionAgent(llm=scripted_model(), tools=list(tools or (query_metrics, search_logs)))


# -- the store below


async def everything(store: AsyncDBChatStore) -> list[Any]:
    """Do everything a store is asked to, and give what it answers."""
    one, two, three, four = users("one", "two", "three", "four")
    done: list[Any] = [await store.get_messages(KEY), await store.count_messages(KEY)]
    await store.add_message(KEY, one)
    await store.add_messages(KEY, [two, three])
    done += [await store.get_messages(KEY), await store.get_keys()]
    done.append(await store.get_messages(KEY, limit=1, offset=1))
    done.append(contents(await store.archive_oldest_messages(KEY, 1)))
    done.append([await store.get_messages(KEY, status=s) for s in (MessageStatus.ACTIVE, MessageStatus.ARCHIVED, None)])
    done.append(
        [await store.count_messages(KEY, status=s) for s in (MessageStatus.ACTIVE, MessageStatus.ARCHIVED, None)]
    )
    await store.add_message(KEY, four)
    done.append(contents(await store.delete_oldest_messages(KEY, 1)))
    done.append([await store.get_messages(KEY, status=s) for s in (MessageStatus.ACTIVE, MessageStatus.ARCHIVED, None)])
    await store.delete_messages(KEY, status=MessageStatus.ARCHIVED)
    done.append(contents(await store.get_messages(KEY, status=None)))
    await store.add_message(KEY, one, status=MessageStatus.ARCHIVED)
    done.append([contents(await store.get_messages(KEY, status=s)) for s in MessageStatus])
    await store.set_messages(KEY, [three, four])
    done.append(contents(await store.get_messages(KEY, status=None)))
    await store.delete_messages(KEY)
    done.append(await store.get_messages(KEY, status=None))
    return done


def test_the_store_does_what_llamaindex_sql_store_does(service: Service) -> None:
    """Every method of `AsyncDBChatStore` but `delete_message` gives what LlamaIndex's own SQL store gives."""
    ours = asyncio.run(everything(BedrockSessionsMemoryStore(service.store())))
    theirs = asyncio.run(everything(SQLAlchemyChatStore(table_name="t")))
    assert ours == theirs


def test_a_message_is_deleted_by_its_position(service: Service) -> None:
    """`delete_message` takes a position as chat stores do (the SQL store: a row's number), None if none is there."""

    async def flow() -> None:
        store = BedrockSessionsMemoryStore(service.store())
        await store.add_messages(KEY, users("one", "two", "three"))
        assert await store.delete_message(KEY, 1) == user("two")
        assert await store.delete_message(KEY, 7) is None
        assert contents(await store.get_messages(KEY)) == ["one", "three"]

    asyncio.run(flow())


def test_a_batch_is_one_step_and_an_empty_one_is_none(service: Service) -> None:
    """`add_messages` makes one call whatever their number, none if there is no message."""
    store = BedrockSessionsMemoryStore(service.store())
    asyncio.run(store.add_message(KEY, user("first")))
    with service.counting() as calls:
        asyncio.run(store.add_messages(KEY, users(*"abcdefgh")))
        asyncio.run(store.add_messages(KEY, []))
    assert calls == {"PutInvocationStep": 1, "total": 1}


def test_archiving_means_the_list_last_seen(service: Service) -> None:
    """Archiving twice, as `Memory` does without reading again, archives the next oldest of the list it has seen."""

    async def flow() -> None:
        store = BedrockSessionsMemoryStore(service.store())
        await store.add_messages(KEY, users("one", "two", "three", "four"))
        await store.get_messages(KEY)
        assert contents(await store.archive_oldest_messages(KEY, 1)) == ["one"]
        assert contents(await store.archive_oldest_messages(KEY, 2)) == ["two", "three"]
        assert contents(await store.get_messages(KEY)) == ["four"]
        assert await store.archive_oldest_messages(KEY, 0) == []
        assert await store.delete_oldest_messages(KEY, -1) == []

    asyncio.run(flow())


def test_what_another_process_archived_is_not_archived_instead(service: Service) -> None:
    """If the oldest of the list was removed by somebody else, no other message is archived in its place."""

    async def flow() -> None:
        mine, others = BedrockSessionsMemoryStore(service.store()), BedrockSessionsMemoryStore(service.store())
        await mine.add_messages(KEY, users("one", "two", "three"))
        await mine.get_messages(KEY)
        await others.get_messages(KEY)
        await others.delete_oldest_messages(KEY, 1)
        await mine.archive_oldest_messages(KEY, 2)
        assert contents(await mine.get_messages(KEY)) == ["three"]
        assert contents(await mine.get_messages(KEY, status=MessageStatus.ARCHIVED)) == ["two"]

    asyncio.run(flow())


# -- named state


def test_named_state_is_a_mapping_that_everybody_shares(service: Service) -> None:
    """What one process sets, another reads; a deletion is seen too; what is read belongs to the caller."""
    here, there = service.store().conversation(KEY).state, service.store().conversation(KEY).state
    here["cart"] = [{"item": "tea", "price": 3.5}]
    here.update(theme="dark", nothing=None)
    assert dict(there.items()) == {"cart": [{"item": "tea", "price": 3.5}], "nothing": None, "theme": "dark"}
    there["cart"].append("stolen")
    assert there["cart"] == [{"item": "tea", "price": 3.5}]
    assert (len(there), sorted(there), "theme" in there, there.get("lost", 7)) == (
        3,
        ["cart", "nothing", "theme"],
        True,
        7,
    )
    assert there.pop("theme") == "dark"
    assert here.pop("theme", "gone") == "gone"
    del there["cart"]
    with pytest.raises(KeyError):
        del here["cart"]
    with pytest.raises(KeyError):
        here["cart"]
    assert here == {"nothing": None}
    here.clear()
    assert there.copy() == {}
    assert repr(here) == f"State({KEY!r})"


def test_named_state_has_twins(service: Service) -> None:
    """Under asyncio the same is done by the methods with an `a`."""

    async def flow() -> list[Any]:
        state = service.store().conversation(KEY).state
        await state.aupdate(a=1, b=2)
        done = [await state.aget("a"), await state.aget("c", 3), await state.apop("a"), await state.acopy()]
        await state.aclear()
        return [*done, await state.acopy()]

    assert asyncio.run(flow()) == [1, 3, 1, {"b": 2}, {}]


def test_named_state_costs_one_call_to_read_and_two_to_write(service: Service) -> None:
    """A read is one list, all of it together; a write one list and one step."""
    state = service.store().conversation(KEY).state
    state["x"] = 0
    with service.counting() as reading:
        dict(state.items())
    with service.counting() as writing:
        state.update(x=1, y=2)
    assert reading == {"ListInvocationSteps": 1, "total": 1}
    assert writing == {"ListInvocationSteps": 1, "PutInvocationStep": 1, "total": 2}


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1.5, "", "naïve \ud800", [1, [2, {}]], {"~b": "x"}, float("inf"), 10**40, b"\x00\xff"],
    ids=repr,
)
def test_named_state_comes_back_as_it_went_in(service: Service, value: Any) -> None:
    """Every JSON value comes back equal, and a few more that JSON itself cannot say."""
    service.store().conversation(KEY).state["x"] = value
    assert service.store().conversation(KEY).state["x"] == value


def test_what_named_state_cannot_have_is_refused(service: Service) -> None:
    """An object or a name that is no string is an `InvalidStateError`, which is a TypeError, and nothing is stored."""
    state = service.store().conversation(KEY).state
    with pytest.raises(InvalidStateError, match="'x' is not a JSON value"):
        state["x"] = object()
    with pytest.raises(TypeError, match="a string, not int"):
        state[1] = 0  # type: ignore[index]
    assert service.calls.count() == 0


def test_memory_state_is_hidden_from_the_application(service: Service) -> None:
    """Names that begin with "memory/" are refused, hidden, and stay when an application clears its state."""
    conversation = service.store().conversation(KEY)
    conversation.add([], state={ReservedName(BLOCK + "facts"): {"facts": ["tea"]}})
    state = conversation.state
    state["theme"] = "dark"
    writes: list[Callable[[], Any]] = [
        lambda: state.update({BLOCK + "facts": {}}),
        lambda: state.__setitem__(str(TURN), 1),
        lambda: asyncio.run(state.aupdate({str(TURN): 1})),
        lambda: state.setdefault(str(TURN), 1),
        lambda: conversation.add([user("hello")], state={str(TURN): 1}),
        lambda: conversation.add([user("hello")], forget=[BLOCK + "facts"]),
        lambda: asyncio.run(conversation.aadd([user("hello")], forget=[BLOCK + "facts"])),
    ]
    for write in writes:
        with pytest.raises(InvalidStateError, match="cannot be the name of a state"):
            write()
    with pytest.raises(KeyError):
        del state[BLOCK + "facts"]
    with pytest.raises(KeyError):
        state[BLOCK + "facts"]
    assert (state.pop(BLOCK + "facts", None), state.get(BLOCK + "facts")) == (None, None)
    assert (dict(state), len(state), BLOCK + "facts" in state) == ({"theme": "dark"}, 1, False)
    state.clear()
    assert state.copy() == {}
    assert state.copy(reserved=BLOCK) == {BLOCK + "facts": {"facts": ["tea"]}}
    assert conversation.count() == 0


def test_state_that_fits_no_step_is_refused(service: Service) -> None:
    """State larger than a step is refused before anything is asked of the service, beside messages too."""
    conversation = service.store().conversation(KEY)
    huge = {"x": "x" * 50_000_000}
    with pytest.raises(StepTooLargeError, match="do not fit into one invocation step"):
        conversation.state.update(huge)
    with pytest.raises(StepTooLargeError, match="do not fit into one invocation step"):
        conversation.add([user("hello")], state=huge)
    assert service.calls.count() == 0


def test_messages_and_state_are_written_at_once(service: Service) -> None:
    """`add` takes both into one step: either both are there or none."""
    conversation = service.store().conversation(KEY)
    conversation.state["draft"] = "x"
    with service.counting() as calls:
        conversation.add([user("buy")], state={"cart": ["tea"]}, forget=["draft"])
    assert calls == {"PutInvocationStep": 1, "total": 1}
    other = service.store().conversation(KEY)
    assert (contents(other.messages()), other.state.copy()) == (["buy"], {"cart": ["tea"]})


def test_named_state_outlives_its_session(service: Service) -> None:
    """State set before an idle hour is there in the session that continues the conversation."""
    conversation = service.store().conversation(KEY)
    conversation.state["x"] = {"deep": [1, 2]}
    for _ in range(3):
        service.clock.advance(2 * HOUR)
        conversation.add([user("hello")])
    assert service.store().conversation(KEY).state.copy() == {"x": {"deep": [1, 2]}}


# -- a turn


def turn_calls(service: Service, memory: BaseMemory) -> dict[str, int]:
    """Run one turn with two tool calls to warm up and one to count."""

    async def turn() -> None:
        await agent().run(REPORT, memory=memory)

    asyncio.run(turn())
    with service.counting() as calls:
        asyncio.run(turn())
    return dict(calls)


def test_a_turn_takes_three_calls(service: Service) -> None:
    """An agent's turn with two tool calls: the user's message, one list, all the rest in one step."""
    calls = {"PutInvocationStep": 2, "ListInvocationSteps": 1, "total": 3}
    assert turn_calls(service, memory(service.store())) == calls
    plain = Memory.from_defaults(session_id="plain", chat_store=BedrockSessionsMemoryStore(service.store()))
    assert turn_calls(service, plain) == calls
    buffer = ChatMemoryBuffer.from_defaults(chat_store=service.store(), chat_store_key="buffer")
    assert turn_calls(service, buffer)["total"] == 10


def test_a_turn_sees_what_others_wrote_before_it(service: Service) -> None:
    """The read after a user's message contains what another process had written, however short a time before."""
    mine, others = memory(service.store()), memory(service.store())

    async def flow() -> list[str | None]:
        await agent().run("hello", memory=mine)
        await others.aput(user("INC-4711 is what this is about"))
        await agent().run("so?", memory=mine)
        return contents(await mine.aget())

    assert asyncio.run(flow())[2] == "INC-4711 is what this is about"


def test_reads_outside_of_a_run_are_strict(service: Service) -> None:
    """Without an agent every `get` shows what another process has written meanwhile, also after an agent's turn."""
    mine, others = memory(service.store()), memory(service.store())
    asyncio.run(_turn(mine))
    for number in range(3):
        others.put(user(f"news {number}"))
        assert mine.get()[-1].content == f"news {number}"


async def _turn(memory: BaseMemory, text: str = "hello") -> None:
    await agent().run(text, memory=memory)


def test_a_turn_is_over_with_its_answer(service: Service) -> None:
    """In a run that goes on after the answer (a workflow around a chat), later reads ask the service again."""
    mine, others = memory(service.store()), memory(service.store())
    seen: list[list[str | None]] = []

    async def tool() -> str:
        """Do a turn of one's own inside the run of an agent."""
        await mine.aput(user("inner question"))
        await mine.aget()
        await mine.aput(said("inner answer"))
        await others.aput(user("news"))
        seen.append(contents(await mine.aget()))
        seen.append(contents(await asyncio.create_task(mine.aget())))
        return "{}"

    async def flow() -> None:
        outer = ChatMemoryBuffer.from_defaults(chat_store=SimpleChatStore())
        await FunctionAgent(llm=_caller("tool"), tools=[tool]).run("go", memory=outer)

    asyncio.run(flow())
    assert [shown[-1] for shown in seen] == ["inner answer", "news"]


def _caller(tool: str) -> Any:
    """Return a model that calls a tool once in each turn, then answers."""

    def answer(messages: list[ChatMessage], **_: Any) -> ChatMessage:
        if messages[-1].role == MessageRole.TOOL:
            return said("done")
        block = ToolCallBlock(tool_call_id=uuid.uuid4().hex, tool_name=tool, tool_kwargs={})
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[block])

    return MockFunctionCallingLLM(response_generator=answer, is_chat_model=True)


def test_a_turn_is_stored_whole_or_not_at_all(service: Service) -> None:
    """If storing a turn fails, no part of it is there; ChatMemoryBuffer leaves a tool call without its result."""

    class Failing(OtherStore):
        stored: ClassVar[dict[str, list[ChatMessage]]] = {}

        def add_message(self, key: str, message: ChatMessage) -> None:
            if message.role == MessageRole.TOOL:
                raise ThrottledError("too many requests")
            super().add_message(key, message)

    async def fail(memory: BaseMemory, nth: int) -> None:
        await memory.aput(user(REPORT))
        service.faults.clear()
        service.faults.add("PutInvocationStep", nth, "throttle")
        with pytest.raises(ThrottledError):
            await memory.aput_messages([call(1), result(1), said("done")])

    ours = memory(service.store())
    asyncio.run(fail(ours, 1))
    assert contents(ours.get_all()) == [REPORT]
    for store in (service.store(), Failing()):
        buffer = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="buffer")
        asyncio.run(fail(buffer, 2))
        assert [m.role.value for m in buffer.get_all()] == ["user", "assistant"]


def test_reset_is_one_clearing_step_and_keeps_named_state(service: Service) -> None:
    """`reset` empties the conversation by a list and a step; its sessions and its named state stay."""
    mine = memory(service.store())
    mine.put_messages(users("one", "two"))
    mine.conversation.state["theme"] = "dark"
    with service.counting() as calls:
        mine.reset()
    assert calls == {"ListInvocationSteps": 1, "PutInvocationStep": 1, "total": 2}
    assert memory(service.store()).get_all() == []
    assert mine.conversation.state.copy() == {"theme": "dark"}


def test_the_oldest_messages_are_archived(service: Service) -> None:
    """Over the token limit the oldest turns leave what a model sees; all of them stay to be read."""
    mine = memory(service.store(), token_limit=60, token_flush_size=20, chat_history_token_ratio=1.0)
    for number in range(8):
        mine.put(user(f"question {number} with some words in it"))
        mine.put(said(f"answer {number} with as many words in it"))
    active = contents(memory(service.store(), token_limit=60).get())
    everything = contents(mine.get_all())
    assert len(everything) == 16
    assert 0 < len(active) < 16
    assert active == everything[-len(active) :]
    assert len(mine.get_all(status=MessageStatus.ARCHIVED)) == 16 - len(active)
    theirs = Memory.from_defaults(
        session_id=KEY,
        token_limit=60,
        token_flush_size=20,
        chat_history_token_ratio=1.0,
        chat_store=SQLAlchemyChatStore(table_name="t"),
    )
    for message in mine.get_all():
        theirs.put(message)
    assert contents(theirs.get()) == active


# -- round trips


async def three_runs(memory: BaseMemory, count: Callable[[], int]) -> list[int]:
    """Run an agent three times on one Context, giving the memory once; count what is stored after each."""
    one = agent(query_metrics)
    context = Context(one)
    counts = []
    for number in range(3):
        await one.run(REPORT, ctx=context, memory=None if number else memory)
        counts.append(await asyncio.to_thread(count))
    return counts


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plain_memory_forgets_in_a_context(service: Service) -> None:
    """On one Context, LlamaIndex's `Memory` stores 4, 4, 4 messages: it is dropped, on its own store and on ours."""
    for store in (SQLAlchemyChatStore(table_name="t"), BedrockSessionsMemoryStore(service.store())):
        plain = Memory.from_defaults(session_id=KEY, chat_store=store)
        assert asyncio.run(three_runs(plain, lambda: len(plain.get_all()))) == [4, 4, 4]  # noqa: B023 - called at once


def test_our_memory_survives_a_context(service: Service) -> None:
    """On one Context, ours stores 4, 8, 12 messages."""
    store = service.store()
    assert asyncio.run(three_runs(memory(store), lambda: len(store.get_messages(KEY)))) == [4, 8, 12]


class OtherStore(BaseChatStore):
    """A chat store that is not LlamaIndex's own: what a buffer needs of one."""

    stored: ClassVar[dict[str, list[ChatMessage]]] = {}

    @classmethod
    def class_name(cls) -> str:
        return "OtherStore"

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        self.stored[key] = list(messages)

    def get_messages(self, key: str) -> list[ChatMessage]:
        return list(self.stored.get(key, []))

    def add_message(self, key: str, message: ChatMessage) -> None:
        self.stored.setdefault(key, []).append(message)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        return self.stored.pop(key, None)

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        return self.stored[key].pop(idx)

    def delete_last_message(self, key: str) -> ChatMessage | None:
        return self.stored[key].pop()

    def get_keys(self) -> list[str]:
        return list(self.stored)


def test_a_buffer_on_another_store_crashes_in_a_context(service: Service) -> None:
    """On one Context, ChatMemoryBuffer over a third party's store raises in the second run; over ours it does not."""
    other = OtherStore()
    buffer = ChatMemoryBuffer.from_defaults(chat_store=other, chat_store_key=KEY)
    with pytest.raises(ValueError, match="Invalid ChatStore name"):
        asyncio.run(three_runs(buffer, lambda: len(other.get_messages(KEY))))
    store = service.store()
    buffer = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key=KEY)
    assert asyncio.run(three_runs(buffer, lambda: len(store.get_messages(KEY)))) == [4, 8, 12]


RESUME = """
import asyncio, json, sys
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.workflow import Context
from llama_index_bedrock_sessions.cli.demo import query_metrics, scripted_model

async def go():
    agent = FunctionAgent(llm=scripted_model(), tools=[query_metrics])
    context = Context.from_dict(agent, json.loads(sys.argv[1]))
    await agent.run("And what do we know?", ctx=context)
    memory = await context.store.get("memory")
    print(type(memory).__name__, len(await memory.aget_all()))

asyncio.run(go())
"""


async def begin(memory: BaseMemory) -> str:
    """Run an agent with tools on a Context, and save that as JSON."""
    one = agent(query_metrics)
    context = Context(one)
    await one.run(REPORT, ctx=context, memory=memory)
    return json.dumps(context.to_dict())


@pytest.mark.thorough
def test_a_context_goes_on_in_another_process(tmp_path: Path) -> None:
    """A Context saved as JSON is loaded by another process, which goes on and is given nothing."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")
    saved = asyncio.run(begin(memory(store)))
    assert run(RESUME, saved).split() == ["BedrockSessionsMemory", "6"]
    assert len(store.get_messages(KEY)) == 6


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_plain_memory_does_not_go_on_in_another_process(tmp_path: Path) -> None:
    """LlamaIndex's `Memory`, with its messages in a file, is dropped from the Context: the agent begins anew."""
    uri = f"sqlite+aiosqlite:///{tmp_path / 'chats.db'}"
    saved = asyncio.run(begin(Memory.from_defaults(session_id=KEY, async_database_uri=uri)))
    assert run(RESUME, saved).split() == ["ChatMemoryBuffer", "2"]
    assert len(Memory.from_defaults(session_id=KEY, async_database_uri=uri).get_all()) == 4


def test_from_dict_finds_the_memory_that_is_alive(service: Service) -> None:
    """In the process that made it, a dict stands for the memory itself, with all it holds."""
    mine = memory(service.store(), memory_blocks=[FactExtractionMemoryBlock(llm=MockLLM())], tokenizer_fn=list)
    data = json.loads(json.dumps(mine.to_dict()))
    assert BedrockSessionsMemory.from_dict(data) is mine
    assert data == mine.model_dump()


def test_plain_memory_comes_back_from_no_dict_copy_or_pickle() -> None:
    """LlamaIndex's `Memory` is refused by its own `from_dict`, cannot be copied deeply, and is empty from a pickle."""
    plain = Memory.from_defaults(session_id=KEY, chat_store=SQLAlchemyChatStore(table_name="t"))
    plain.put(user("hello"))
    with pytest.raises(ValidationError):
        Memory.from_dict(plain.to_dict())
    with pytest.raises(TypeError, match="cannot pickle"):
        copy.deepcopy(plain)
    assert pickle.loads(pickle.dumps(plain)).get() == []
    assert asyncio.run(edited(plain)) is not plain


async def edited(memory: BaseMemory) -> BaseMemory:
    """Give what is in a Context after `edit_state`."""
    context = Context(agent())
    await context.store.set("memory", memory)
    async with context.store.edit_state() as state:
        state["x"] = 1
    found: BaseMemory = await context.store.get("memory")
    return found


def test_from_dict_makes_it_again(tmp_path: Path) -> None:
    """Where it is not alive, all settings come back, and blocks that JSON can say."""
    block = StaticMemoryBlock(name="rules", static_content=[TextBlock(text="be kind")], priority=2)
    arguments: dict[str, Any] = {
        "token_limit": 5000,
        "token_flush_size": 77,
        "chat_history_token_ratio": 0.5,
        "insert_method": InsertMethod.USER,
        "image_token_size_estimate": 1,
        "audio_token_size_estimate": 2,
        "video_token_size_estimate": 3,
        "document_token_size_estimate": 4,
        "memory_blocks_template": RichPromptTemplate("{% for n, c in memory_blocks %}{{ n }}{% endfor %}"),
        "autosave": True,
    }
    mine = memory(BedrockSessionsChatStore.local(tmp_path / "chats.db"), memory_blocks=[block], **arguments)
    data = json.loads(json.dumps(mine.to_dict())) | {"instance": "of another process"}
    again = BedrockSessionsMemory.from_dict(data)
    assert again is not mine
    assert {**again.to_dict(), "instance": None} == {**mine.to_dict(), "instance": None}
    assert again.memory_blocks == [block]
    assert again.sql_store.chat_store is mine.sql_store.chat_store


@pytest.mark.parametrize(
    "lacking",
    [
        {"memory_blocks": [FactExtractionMemoryBlock(llm=MockLLM())]},
        {"tokenizer_fn": str.split},
        {"memory_blocks_template": RichPromptTemplate("x", function_mappings={"a": str})},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_what_a_dict_cannot_hold_is_given_again(service: Service, lacking: dict[str, Any]) -> None:
    """Where it is missing that is said by name; it is taken from the call, or from a memory made before."""
    store = service.store()
    (name,) = lacking
    data = memory(store, **lacking).to_dict() | {"instance": "of another process"}
    with pytest.raises(ConfigurationError, match=name):
        BedrockSessionsMemory.from_dict(data)
    given = BedrockSessionsMemory.from_dict(data, **lacking)
    assert getattr(given, name) == lacking[name]
    del given
    made = memory(store, **lacking)
    assert getattr(BedrockSessionsMemory.from_dict(data), name) == getattr(made, name)


class Guarded(BaseMemoryBlock[str]):
    """A block with what a dict does not hold: a secret, an excluded field, a private attribute."""

    name: str = "guarded"
    token: SecretStr = SecretStr("")
    hidden: str = Field(default="", exclude=True)
    _cache: list[str] = PrivateAttr(default_factory=list)

    async def _aget(self, messages: list[ChatMessage] | None = None, **_: Any) -> str:
        return "".join(self._cache)

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self._cache += [str(m.content) for m in messages]


class Alike(Guarded):
    """One that says it equals every other."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


def cached(block: Guarded) -> Guarded:
    block._cache.append("tea")
    return block


@pytest.mark.parametrize(
    "make",
    [
        lambda: Guarded(token=SecretStr("open sesame")),
        lambda: Guarded(hidden="x"),
        lambda: cached(Guarded()),
        lambda: Alike(token=SecretStr("open sesame")),
    ],
    ids=["secret", "excluded", "private", "equal to all"],
)
def test_a_block_that_would_come_back_incomplete_is_given_again(service: Service, make: Callable[[], Guarded]) -> None:
    """Of a block with more than its dict says nothing is made but an error that names it; no secret is in the dict."""
    store = service.store()
    data = json.loads(json.dumps(memory(store, memory_blocks=[make()]).to_dict())) | {"instance": "elsewhere"}
    assert "open sesame" not in json.dumps(data)
    with pytest.raises(ConfigurationError, match=r"memory_blocks: guarded \(tests.llamaindex.test_memory:"):
        BedrockSessionsMemory.from_dict(data)
    block = make()
    assert BedrockSessionsMemory.from_dict(data, memory_blocks=[block]).memory_blocks[0] is block


def test_a_block_that_loses_nothing_is_made_again(service: Service) -> None:
    """What is excluded, private or secret does not matter where it is as the class makes it."""
    store = service.store()
    data = memory(store, memory_blocks=[Guarded(priority=3)]).to_dict() | {"instance": "elsewhere"}
    assert BedrockSessionsMemory.from_dict(data).memory_blocks == [Guarded(priority=3)]


@pytest.mark.parametrize(
    "other",
    [
        {"class": "tests.nowhere:Guarded"},
        {"class": "tests.llamaindex.test_memory:Service"},
        {"class": ":Guarded"},
        {"class": ".test_memory:Guarded"},
        {"fields": {"priority": "x"}},
    ],
)
def test_a_block_whose_class_is_another_by_now_is_given_again(service: Service, other: dict[str, Any]) -> None:
    """A class that is gone, is no block, or does not take what was saved: the error says what to give."""
    store = service.store()
    data: dict[str, Any] = memory(store, memory_blocks=[Guarded()]).to_dict() | {"instance": "elsewhere"}
    data["memory_blocks"][0] |= other
    with pytest.raises(ConfigurationError, match="memory_blocks: guarded"):
        BedrockSessionsMemory.from_dict(data)


class Tenanted(BedrockSessionsMemory):
    """A memory with fields of its own."""

    tenant: str
    groups: set[str] = Field(default_factory=set)
    token: SecretStr | None = None
    client: Any = Field(default=None, exclude=True)


def tenanted(store: BedrockSessionsChatStore, **fields: Any) -> Tenanted:
    below = BedrockSessionsMemoryStore(store)
    return Tenanted(session_id=KEY, sql_store=below, token_limit=500, tenant="acme", **fields)


def test_fields_of_a_subclass_come_back(service: Service) -> None:
    """What a subclass adds is in the dict too, in its type; what JSON cannot say is given again, or refused by name."""
    store = service.store()
    data = json.loads(json.dumps(tenanted(store, groups={"a", "b"}).to_dict())) | {"instance": "elsewhere"}
    again = Tenanted.from_dict(data)
    assert (type(again), again.tenant, again.groups, again.token_limit) == (Tenanted, "acme", {"a", "b"}, 500)
    assert Tenanted.from_dict(data, tenant="other").tenant == "other"
    for name, lost in {"token": SecretStr("open sesame"), "client": object()}.items():
        data = json.loads(json.dumps(tenanted(store, **{name: lost}).to_dict())) | {"instance": "elsewhere"}
        assert "open sesame" not in json.dumps(data)
        with pytest.raises(ConfigurationError, match=f"does not contain {name}"):
            Tenanted.from_dict(data)
        assert getattr(Tenanted.from_dict(data, **{name: lost}), name) is lost
        kept = tenanted(store, **{name: lost})
        assert getattr(Tenanted.from_dict(data), name) == getattr(kept, name)
        del kept


def test_a_store_that_a_dict_cannot_hold_is_constructed_first() -> None:
    """A memory whose store is not in this process and not in the dict is refused: the error says what to construct."""
    data = memory(BedrockSessionsChatStore.local()).to_dict()
    data = data | {"instance": "of another process", "chat_store": data["chat_store"] | {"instance": "too"}}
    with pytest.raises(ConfigurationError, match="Construct the same BedrockSessionsChatStore first"):
        BedrockSessionsMemory.from_dict(data)
    other = BedrockSessionsChatStore.local()
    assert BedrockSessionsMemory.from_dict(data, chat_store=other).sql_store.chat_store is other


def test_copies_and_pickles_stand_for_the_memory(service: Service) -> None:
    """A copy is the memory itself, so is what comes out of a pickle here, and `edit_state` leaves it in its Context."""
    mine = memory(service.store())
    mine.put(user("hello"))
    assert copy.copy(mine) is mine
    assert copy.deepcopy(mine) is mine
    assert pickle.loads(pickle.dumps(mine)) is mine
    assert copy.deepcopy(mine.sql_store) is copy.copy(mine.sql_store) is mine.sql_store
    other = mine.model_copy(update={"session_id": "other"})
    assert (contents(mine.get()), other.get()) == (["hello"], [])
    assert asyncio.run(edited(mine)) is mine


def test_a_chat_store_is_needed(service: Service) -> None:
    """Without a chat store, or with another one, the error says what to pass; a store for `Memory` is taken as well."""
    with pytest.raises(ConfigurationError, match="Expected chat_store= to be a BedrockSessionsChatStore"):
        BedrockSessionsMemory.from_defaults(session_id=KEY)
    with pytest.raises(ConfigurationError, match="got SQLAlchemyChatStore"):
        memory(SQLAlchemyChatStore(table_name="t"))  # type: ignore[arg-type]
    below = BedrockSessionsMemoryStore(service.store())
    mine = BedrockSessionsMemory.from_defaults(chat_store=below, chat_history=users("old", "new"))
    assert mine.sql_store is below
    assert contents(mine.get()) == ["old", "new"]
    assert uuid.UUID(mine.session_id)
    assert (mine.class_name(), below.class_name()) == ("BedrockSessionsMemory", "BedrockSessionsMemoryStore")


# -- pairing


def test_a_model_sees_whole_pairs_and_the_store_keeps_the_truth(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """`get` gives the orphaned call a result and logs that once; plain `Memory` shows it as it is, and so do stores."""
    mine = memory(service.store())
    broken = [user("look"), call(1), user("still there?")]
    mine.put_messages(broken)
    with caplog.at_level(logging.WARNING):
        shown = mine.get()
        assert mine.get() == shown
    assert [m.role.value for m in shown] == ["user", "assistant", "tool", "user"]
    assert [r.getMessage() for r in caplog.records if "paired" in r.getMessage()] == [
        f"paired tool calls of conversation {key_hash(KEY)} for the model: 1 x added a missing result (call ids: 1)"
    ]
    assert mine.get_all() == broken
    plain = Memory.from_defaults(session_id=KEY, chat_store=SQLAlchemyChatStore(table_name="t"))
    plain.put_messages(broken)
    assert plain.get() == broken


# -- memory blocks


class Facts(MockLLM):
    """A model that finds one fact in what it is given."""

    async def achat(self, messages: Any, **_: Any) -> Any:
        from llama_index.core.llms import ChatResponse

        said = " ".join(m.content or "" for m in messages)
        fact = "likes tea" if "tea" in said else "likes nothing"
        return ChatResponse(message=ChatMessage(content=f"<facts><fact>{fact}</fact></facts>"))


def facts() -> FactExtractionMemoryBlock:
    return FactExtractionMemoryBlock(llm=Facts(max_tokens=None))


SMALL: dict[str, Any] = {"token_limit": 40, "token_flush_size": 10, "chat_history_token_ratio": 0.5}


def learn(memory: Memory) -> None:
    for text in ("I like tea a lot, really", "what is there to eat for us", "and what is there to see here"):
        memory.put_messages([user(text), said("something to say about it")])


def test_facts_are_remembered_in_another_process(service: Service) -> None:
    """What FactExtractionMemoryBlock has extracted is shown by a new memory elsewhere; plain `Memory` has forgotten."""
    mine = memory(service.store(), memory_blocks=[facts()], **SMALL)
    learn(mine)
    assert named(mine)[BLOCK + "ExtractedFacts"]["facts"][0] == "likes tea"
    elsewhere = memory(service.store(), memory_blocks=[facts()], **SMALL)
    assert "<fact>likes tea</fact>" in str(elsewhere.get()[0].content)
    table = SQLAlchemyChatStore(table_name="t")
    shown: list[bool | None] = []
    for _ in range(2):
        plain = Memory.from_defaults(session_id=KEY, chat_store=table, memory_blocks=[facts()], **SMALL)
        shown.append("likes tea" in str(plain.get()[0].content) if shown else None)
        learn(plain)
    assert shown == [None, False]


def test_facts_survive_reset_and_cost_no_extra_call(service: Service) -> None:
    """Facts stay when the messages go, and reading them costs nothing beside the messages."""
    mine = memory(service.store(), memory_blocks=[facts()], **SMALL)
    learn(mine)
    mine.reset()
    elsewhere = memory(service.store(), memory_blocks=[facts()], **SMALL)
    elsewhere.get()
    with service.counting() as calls:
        assert "likes tea" in str(elsewhere.get()[0].content)
    assert calls == {"ListInvocationSteps": 1, "total": 1}


def test_messages_are_learnt_from_once(service: Service) -> None:
    """A process that has not seen what another archived neither archives it again nor overwrites what that learnt."""
    first = memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL)
    late = memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL)
    first.put_messages([user("I like tea a lot, really"), said("something to say about it")])
    late.get()
    learn(first)
    late.put(user("and now something so long that the oldest messages are archived"))
    words = named(late)[BLOCK + "words"]["words"]
    assert (words["tea"], words["eat"]) == (2, 1)
    table = SQLAlchemyChatStore(table_name="t")
    one, other = (
        Memory.from_defaults(session_id=KEY, chat_store=table, memory_blocks=[Counting(name="words")], **SMALL)
        for _ in range(2)
    )
    one.put_messages([user("I like tea a lot, really"), said("something to say about it")])
    learn(one)
    other.put(user("and now something so long that the oldest messages are archived"))
    assert "tea" not in other.memory_blocks[0].words  # type: ignore[attr-defined]


class Counting(BaseMemoryBlock[str]):
    """A block with state of several kinds, configuration, and things that JSON cannot say."""

    made: ClassVar[int] = 0
    words: dict[str, int] = Field(default_factory=dict)
    seen: set[str] = Field(default_factory=set)
    limit: int = 3
    secret: str = Field(default="", exclude=True)
    client: Any = None

    async def _aget(self, messages: list[ChatMessage] | None = None, **_: Any) -> str:
        return ", ".join(f"{word}: {count}" for word, count in sorted(self.words.items()))

    async def _aput(self, messages: list[ChatMessage]) -> None:
        self.secret = "changed"
        for word in " ".join(m.content or "" for m in messages).split():
            self.words[word] = self.words.get(word, 0) + 1
            self.seen.add(word)


async def at_once(memory: Memory) -> dict[str, int]:
    """Put messages from several tasks at once, over the limit; give how often the block was given each word."""
    for number in range(4):
        await memory.aput(user(f"first-{number} and some more words"))
    await asyncio.gather(*(memory.aput(user(f"later-{number} and some more words")) for number in range(12)))
    return {w: c for w, c in memory.memory_blocks[0].words.items() if "-" in w}  # type: ignore[attr-defined]


def test_tasks_that_put_at_once_teach_each_message_once(service: Service) -> None:
    """Blocks are given what was archived, once, however many tasks are at it; LlamaIndex's `Memory` repeats some."""
    mine = memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL)
    given = asyncio.run(at_once(mine))
    archived = [str(m.content).split()[0] for m in mine.get_all(status=MessageStatus.ARCHIVED)]
    assert given == dict.fromkeys(archived, 1)
    assert archived
    plain = Memory.from_defaults(
        session_id=KEY,
        chat_store=SQLAlchemyChatStore(table_name="t"),
        memory_blocks=[Counting(name="words")],
        **SMALL,
    )
    assert max(asyncio.run(at_once(plain)).values()) > 1


def test_what_a_block_learns_while_another_task_saves_stays(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that reads just after a save was stored does not take it for the save of another process."""
    block = Counting(name="words")
    mine = memory(service.store(), memory_blocks=[block], **SMALL)
    add, reads = Conversation.aadd, []

    async def add_then_learn(self: Conversation, messages: Sequence[ChatMessage], **options: Any) -> None:
        await add(self, messages, **options)
        if options.get("state"):
            block.words["later"] = 1
            reads.append(asyncio.create_task(mine.aget()))
            await asyncio.sleep(0.05)

    async def flow() -> None:
        for text in ("I like tea a lot, really", "what is there to eat for us", "and what is there to see here"):
            await mine.aput_messages([user(text), said("something to say about it")])
        await asyncio.gather(*reads)

    monkeypatch.setattr(Conversation, "aadd", add_then_learn)
    asyncio.run(flow())
    assert reads
    assert block.words["later"] == 1


def test_a_task_that_a_block_starts_reads_what_is_new(service: Service) -> None:
    """Only the memory itself reads without a call while it archives; what a block has begun meanwhile asks."""
    later = asyncio.Event()
    tasks: list[asyncio.Task[list[ChatMessage]]] = []

    class Starting(Counting):
        async def _aput(self, messages: list[ChatMessage]) -> None:
            tasks.append(asyncio.create_task(self.read()))

        async def read(self) -> list[ChatMessage]:
            await later.wait()
            return await mine.aget_all()

    mine = memory(service.store(), memory_blocks=[Starting(name="words")], **SMALL)

    async def flow() -> list[str | None]:
        for text in ("I like tea a lot, really", "what is there to eat for us", "and what is there to see here"):
            await mine.aput_messages([user(text), said("something to say about it")])
        await memory(service.store()).aput(user("news"))
        later.set()
        return [(await task)[-1].content for task in tasks]

    seen = asyncio.run(flow())
    assert seen
    assert set(seen) == {"news"}


@pytest.mark.parametrize("again", ["from_defaults", "model_copy", "another store", "put later", "get later"])
def test_a_block_belongs_to_one_conversation(service: Service, again: str) -> None:
    """A block that has learnt of one user is refused for another, before anything is stored or shown."""
    store, blocks = service.store(), [facts()]
    mine = memory(store, memory_blocks=blocks, **SMALL)
    learn(mine)
    other = memory(store, session_id="other")
    other.memory_blocks = list(blocks)
    uses: dict[str, Callable[[], Any]] = {
        "from_defaults": lambda: memory(store, session_id="other", memory_blocks=[Counting(name="words"), *blocks]),
        "model_copy": lambda: mine.model_copy(update={"session_id": "other"}),
        "another store": lambda: memory(service.store(), memory_blocks=blocks),
        "put later": lambda: other.put(user("hello")),
        "get later": other.get,
    }
    with pytest.raises(ConfigurationError, match="Create a new block for each conversation"):
        uses[again]()
    assert store.conversation("other").messages() == []
    assert store.conversation("other")._named(fresh=True) == {}


def test_blocks_that_were_refused_or_are_new_can_be_used(service: Service) -> None:
    """Another memory of the conversation takes its blocks; of a list that was refused, the others are free."""
    store, mine, free = service.store(), facts(), Counting(name="words")
    one = memory(store, memory_blocks=[mine])
    assert memory(store, memory_blocks=[mine]).memory_blocks[0] is mine
    with pytest.raises(ConfigurationError):
        memory(store, session_id="other", memory_blocks=[free, mine])
    third = one.model_copy(update={"session_id": "third", "memory_blocks": [free]})
    assert third.memory_blocks == [free]


def test_plain_memory_tells_one_user_what_another_said() -> None:
    """With LlamaIndex's `Memory`, a list of blocks that is used for two users shows each what the other has said."""
    table, blocks = SQLAlchemyChatStore(table_name="t"), list[BaseMemoryBlock[Any]]([facts()])
    learn(Memory.from_defaults(session_id="one", chat_store=table, memory_blocks=blocks, **SMALL))
    other = Memory.from_defaults(session_id="other", chat_store=table, memory_blocks=blocks, **SMALL)
    assert "likes tea" in str(other.get()[0].content)


class Whole(Counting):
    """One whose dict says all of it."""

    async def _aput(self, messages: list[ChatMessage]) -> None:
        await super()._aput(messages)
        self.secret = ""


def test_a_dict_holds_nothing_of_what_is_stored(service: Service) -> None:
    """What a block has learnt is in the conversation, not in dicts: erased there it does not come back from one."""
    store = service.store()
    mine = memory(store, memory_blocks=[Whole(name="words", limit=9)], **SMALL)
    learn(mine)
    data = mine.to_dict() | {"instance": "elsewhere"}
    assert "tea" not in json.dumps(data)
    mine.memory_blocks[0].limit = 8  # type: ignore[attr-defined]
    unsaved = mine.to_dict() | {"instance": "elsewhere"}
    del mine
    again = BedrockSessionsMemory.from_dict(data)
    assert again.memory_blocks[0].limit == 9  # type: ignore[attr-defined]
    assert "tea: 1" in str(again.get()[0].content)
    del again
    assert BedrockSessionsMemory.from_dict(unsaved).memory_blocks[0].limit == 8  # type: ignore[attr-defined]
    store.conversation(KEY).delete()
    assert BedrockSessionsMemory.from_dict(data).get() == []


@pytest.mark.parametrize(("operation", "nth"), [("ListInvocationSteps", 1), ("PutInvocationStep", 2)])
def test_what_was_stored_does_not_look_unstored(
    service: Service, caplog: pytest.LogCaptureFixture, operation: str, nth: int
) -> None:
    """If archiving fails behind a message that was stored, that is logged, not raised; the next put archives."""
    mine = memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL)
    mine.put_messages([user("I like tea a lot, really"), said("something to say")])
    service.faults.add(operation, nth, "throttle")
    mine.put_messages([user("what is there to eat for us"), said("something to say about it")])
    assert any("could not archive old ones" in record.getMessage() for record in caplog.records)
    assert len(mine.get_all()) == 4
    assert mine.get_all(status=MessageStatus.ARCHIVED) == []
    service.faults.clear()
    mine.put(user("and to see"))
    assert contents(mine.get_all(status=MessageStatus.ARCHIVED))[0] == "I like tea a lot, really"
    assert named(mine)[BLOCK + "words"]["words"]["tea"] == 1


def test_block_error_is_raised_after_messages_are_stored(service: Service) -> None:
    """An error of a block is the application's own: as with LlamaIndex's `Memory`, put raises it, behind the store."""

    class Raising(Counting):
        async def _aput(self, messages: list[ChatMessage]) -> None:
            raise CrashError

    mine = memory(service.store(), memory_blocks=[Raising(name="words")], **SMALL)
    with pytest.raises(CrashError):
        learn(mine)
    stored = contents(mine.get_all())
    plain = Memory.from_defaults(
        session_id=KEY, chat_store=SQLAlchemyChatStore(table_name="t"), memory_blocks=[Raising(name="words")], **SMALL
    )
    with pytest.raises(CrashError):
        learn(plain)
    assert stored == contents(plain.get_all())


def test_any_block_that_pydantic_can_say_is_remembered(service: Service) -> None:
    """Fields that change are stored and come back in their types; configuration, clients and excluded fields do not."""
    mine = memory(service.store(), memory_blocks=[Counting(name="words", client=object())], **SMALL)
    learn(mine)
    stored = named(mine)[BLOCK + "words"]
    assert sorted(stored) == ["seen", "words"]
    block = Counting(name="words", limit=9, client=object())
    elsewhere = memory(service.store(), memory_blocks=[block], **SMALL)
    elsewhere.get()
    assert (block.words["tea"], "tea" in block.seen, type(block.seen), block.limit) == (1, True, set, 9)
    assert block.secret == ""


def test_what_was_restored_is_not_written_again(service: Service) -> None:
    """A process that only restores what blocks have learnt writes nothing of it, in whatever order a set comes."""
    learn(memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL))
    mine = memory(service.store(), memory_blocks=[Counting(name="words")])
    mine.get()
    turned = list(mine.memory_blocks[0].seen)[::-1]  # type: ignore[attr-defined]
    mine.memory_blocks[0].seen = set(turned)  # type: ignore[attr-defined]
    with service.counting() as calls:
        mine.put(user("x"))
    assert calls == {"PutInvocationStep": 1, "total": 1}


def test_what_a_block_unlearns_is_stored_too(service: Service) -> None:
    """A block emptied again is empty everywhere, and what another process learnt since is taken over."""
    mine = memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL)
    others = memory(service.store(), memory_blocks=[Counting(name="words")], **SMALL)
    learn(mine)
    others.get()
    assert others.memory_blocks[0].words == mine.memory_blocks[0].words  # type: ignore[attr-defined]
    mine.memory_blocks[0].words = {}  # type: ignore[attr-defined]
    mine.put(user("x"))
    others.get()
    assert others.memory_blocks[0].words == {}  # type: ignore[attr-defined]


def test_state_that_does_not_fit_a_block_is_logged(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """What an older or another block left under the name is not forced into this one; what fits is restored."""
    mine = memory(service.store(), memory_blocks=[Counting(name="words")])
    damaged = {"words": "not a dict", "seen": ["tea"], "unknown": 1}
    mine.conversation.add([], state={ReservedName(BLOCK + "words"): damaged})
    mine.get()
    assert mine.memory_blocks[0].seen == {"tea"}  # type: ignore[attr-defined]
    assert mine.memory_blocks[0].words == {}  # type: ignore[attr-defined]
    assert sum("was not restored" in record.getMessage() for record in caplog.records) == 2


def test_what_was_erased_is_neither_shown_nor_stored_again(service: Service) -> None:
    """Facts of a conversation that was erased are gone from the blocks too, and learning goes on from nothing."""
    mine = memory(service.store(), memory_blocks=[facts(), Counting(name="words", words={"set": 1})], **SMALL)
    learn(mine)
    mine.conversation.delete()
    mine.memory_blocks[1].words["more"] = 1  # type: ignore[attr-defined]
    mine.put(user("x"))
    assert named(mine) == {}
    assert "likes tea" not in "".join(str(m.content) for m in mine.get())
    assert mine.memory_blocks[1].words == {"set": 1}  # type: ignore[attr-defined]
    learn(mine)
    others = memory(service.store())
    others.conversation._name({}, named(others))
    assert "likes tea" not in "".join(str(m.content) for m in mine.get())
    mine.put(user("y"))
    assert named(mine) == {}


def test_what_was_not_saved_of_a_block_is_saved_later(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """If what a block has learnt cannot be stored, the put that taught it stands, and the next one stores it."""
    mine = memory(service.store(), memory_blocks=[Counting(name="words")])
    mine.put(user("one"))
    mine.memory_blocks[0].words = {"tea": 1}  # type: ignore[attr-defined]
    service.faults.add("PutInvocationStep", 2, "throttle")
    mine.put(user("two"))
    assert any("could not save the memory blocks" in record.getMessage() for record in caplog.records)
    assert contents(mine.get_all()) == ["one", "two"]
    assert named(mine) == {}
    service.faults.clear()
    mine.put(user("three"))
    assert named(mine)[BLOCK + "words"] == {"words": {"tea": 1}}


# -- a turn that never ends


class CrashError(Exception):
    pass


def crashing(messages: list[ChatMessage], tools: Any = (), **_: Any) -> ChatMessage:
    """Be the scripted model until the second tool has returned; then fail."""
    from llama_index_bedrock_sessions.cli.demo import answer

    if sum(m.role == MessageRole.TOOL for m in messages) == 2:
        raise CrashError
    return answer(messages, tools)


async def crash(memory: BaseMemory) -> None:
    llm = MockFunctionCallingLLM(response_generator=crashing, is_chat_model=True)
    with pytest.raises(CrashError):
        await FunctionAgent(llm=llm, tools=[query_metrics, search_logs]).run(REPORT, memory=memory)


def test_a_turn_that_fails_leaves_the_users_message_only(service: Service) -> None:
    """Without `autosave` nothing of a turn is stored until it ends: that is LlamaIndex's way, on every store."""
    mine = memory(service.store())
    asyncio.run(crash(mine))
    assert contents(mine.get_all()) == [REPORT]
    assert named(mine) == {}
    plain = Memory.from_defaults(session_id=KEY, chat_store=SQLAlchemyChatStore(table_name="t"))
    asyncio.run(crash(plain))
    assert contents(plain.get_all()) == [REPORT]


def test_autosave_offers_what_tools_returned_to_the_next_turn(service: Service) -> None:
    """After a turn that failed behind two tools, the next turn, elsewhere, finds calls and results in the history."""
    asyncio.run(crash(memory(service.store(), autosave=True)))
    mine = memory(service.store(), autosave=True)
    assert contents(mine.get()) == [REPORT]
    ((name, turn),) = named(mine).items()
    assert name.startswith(TURN + "/")
    assert len(turn["messages"]) == 4
    asyncio.run(_turn(mine, "What do we know so far?"))
    roles = [m.role.value for m in memory(service.store()).get()]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "user", "assistant"]
    assert "connections were in use" in str(mine.get()[-1].content)
    assert named(mine) == {}


def test_a_fork_leaves_an_unfinished_turn_where_it_is(service: Service) -> None:
    """What agents have learnt goes along; a turn that may go on in another process is not offered twice."""
    mine = memory(service.store(), autosave=True)
    asyncio.run(crash(mine))
    mine.conversation._name({BLOCK + "facts": {"facts": ["slow"]}}, ())
    fork = mine.conversation.fork("fork")
    assert fork._named(fresh=True) == {BLOCK + "facts": {"facts": ["slow"]}}
    asyncio.run(_turn(memory(service.store(), autosave=True), "What do we know so far?"))
    assert "connections were in use" in str(mine.get_all()[-1].content)


def test_reused_context_carries_its_unfinished_turn(service: Service) -> None:
    """On the Context of the turn that failed, LlamaIndex goes on with what it had: nothing of it is stored twice."""
    mine = memory(service.store(), autosave=True)
    one = agent()

    async def flow() -> None:
        context = Context(one)
        one.llm = MockFunctionCallingLLM(response_generator=crashing, is_chat_model=True)
        with pytest.raises(CrashError):
            await one.run(REPORT, memory=mine, ctx=context)
        one.llm = scripted_model()
        await one.run("And now?", ctx=context)

    asyncio.run(flow())
    assert [m.role.value for m in mine.get_all()] == ["user", "user", *["assistant", "tool"] * 2, "assistant"]
    assert named(mine) == {}


def test_autosave_keeps_pictures_of_tools(service: Service) -> None:
    """A picture that a tool returned is in what the next turn is offered, byte for byte."""
    mine = memory(service.store(), autosave=True)
    shot = picture()
    pictured = ChatMessage(role=MessageRole.TOOL, blocks=shot.blocks, additional_kwargs={"tool_call_id": "1"})

    async def flow() -> None:
        await mine.aput(user(REPORT))
        records = await _records([call(1), pictured])
        turn = {"after": mine.conversation.last_id(), "messages": records}
        mine.conversation._name({TURN: turn}, ())
        await mine.aput(user("and?"))

    asyncio.run(flow())
    assert mine.get_all()[2].blocks == shot.blocks


async def _records(messages: list[ChatMessage]) -> list[Any]:

    encoded = message_codec.encode(messages, native_blocks=False)
    return [message_codec.carried(record, encoded.blocks.__getitem__) for record in encoded.records]


@pytest.mark.parametrize("several", [False, True], ids=["agent", "workflow"])
def test_autosave_knows_the_names_an_agent_uses(service: Service, several: bool) -> None:
    """An agent that keeps its turn in the context under a name of its own is saved in the middle of it all the same."""
    llm = MockFunctionCallingLLM(response_generator=crashing, is_chat_model=True)
    one = FunctionAgent(
        llm=llm, tools=[query_metrics, search_logs], scratchpad_key="mine", name="one", description="looks"
    )
    mine = memory(service.store(), autosave=True)

    async def flow() -> None:
        with pytest.raises(CrashError):
            await (AgentWorkflow(agents=[one], root_agent="one") if several else one).run(REPORT, memory=mine)

    asyncio.run(flow())
    ((_, turn),) = named(mine).items()
    assert len(turn["messages"]) == 4


def test_autosave_encodes_in_the_pool_and_writes_what_is_new(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are encoded by a thread, not on the event loop; a turn that is kept already is not written again."""

    mine, encode, threads = memory(service.store(), autosave=True), message_codec.encode, set()

    def spy(*arguments: Any, **more: Any) -> Any:
        threads.add(threading.current_thread())
        return encode(*arguments, **more)

    async def looking(service: str, contains: str) -> str:
        for _ in range(3):
            await mine.aget()
        return search_logs(service, contains)

    looking.__name__ = "search_logs"

    async def flow() -> dict[str, int]:
        await mine.aput(user("hello"))
        with service.counting() as calls:
            await agent(query_metrics, looking).run(REPORT, memory=mine)
        return calls

    monkeypatch.setattr(message_codec, "encode", spy)
    assert asyncio.run(flow())["PutInvocationStep"] == 5
    assert threads
    assert threading.main_thread() not in threads


def test_autosave_forgets_a_turn_that_ended(service: Service) -> None:
    """When the turn is stored, what was kept of it is deleted by the same step; the calls are counted."""
    mine = memory(service.store(), autosave=True)
    assert turn_calls(service, mine) == {"ListInvocationSteps": 2, "PutInvocationStep": 4, "total": 6}
    assert named(mine) == {}
    assert len(mine.get_all()) == 12


@pytest.mark.parametrize("end", ["reset", "set", "put"])
def test_autosave_offers_a_turn_only_where_it_stopped(service: Service, end: str) -> None:
    """If the conversation was emptied, replaced or went on without it, an unfinished turn is dropped."""
    asyncio.run(crash(memory(service.store(), autosave=True)))
    other = memory(service.store())
    if end == "reset":
        other.reset()
    elif end == "set":
        other.set(users("new"))
    else:
        other.put(said("sorry"))
    before = contents(other.get_all())
    mine = memory(service.store(), autosave=True)
    mine.put(user("next"))
    assert contents(mine.get_all()) == [*before, "next"]
    assert named(mine) == {}


def test_a_turn_goes_on_if_it_cannot_be_saved(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Saving in between is a help: if the service fails then, that is logged, and the turn itself is stored."""
    mine = memory(service.store(), autosave=True)
    asyncio.run(_turn(mine))
    service.faults.add("PutInvocationStep", 2, "throttle")
    asyncio.run(_turn(mine, REPORT))
    assert len(mine.get_all()) == 8
    assert any("could not save the running turn" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "malformed",
    [
        "x",
        1,
        [],
        {},
        {"after": None, "messages": None},
        {"after": [], "messages": []},
        {"after": None, "messages": [1]},
    ],
    ids=json.dumps,
)
def test_a_malformed_unfinished_turn_is_ignored(
    service: Service, caplog: pytest.LogCaptureFixture, malformed: Any
) -> None:
    """Whatever JSON stands where an unfinished turn is kept, the conversation goes on, and that is logged."""
    mine = memory(service.store(), autosave=True)
    mine.conversation._name({TURN: malformed}, ())
    mine.put(user("hello"))
    assert contents(mine.get_all()) == ["hello"]
    assert any("cannot be read" in record.getMessage() for record in caplog.records)
    assert named(mine) == {}


def test_autosave_is_of_the_runs_own_memory(service: Service) -> None:
    """A tool that reads another conversation, with autosave too, does not leave the agent's turn in that one."""
    store = service.store()
    other = memory(store, session_id="other", autosave=True)

    async def looking(service: str, contains: str) -> str:
        await other.aput(user("noted"))
        await other.aget()
        return search_logs(service, contains)

    looking.__name__ = "search_logs"

    async def flow() -> None:
        await agent(query_metrics, looking).run(REPORT, memory=memory(store, autosave=True))

    asyncio.run(flow())
    assert contents(other.get_all())[:1] == ["noted"]
    assert named(other) == {}


def test_a_turn_goes_on_if_it_cannot_be_said(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished turn too large for a step is not saved, which is logged; the turn ends as ever."""
    from llama_index_bedrock_sessions._conversation.conversation import Conversation

    add = Conversation.add

    def refusing(self: Conversation, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("state"):
            raise StepTooLargeError("too large")
        add(self, *args, **kwargs)

    monkeypatch.setattr(Conversation, "add", refusing)
    mine = memory(service.store(), autosave=True)
    asyncio.run(_turn(mine, REPORT))
    assert len(mine.get_all()) == 6
    assert any(
        "running turn" in (text := record.getMessage()) and "StepTooLargeError" in text for record in caplog.records
    )


def test_autosave_keeps_the_turns_of_two_runs_apart(service: Service) -> None:
    """A run that begins and ends beside another is not offered its turn, and leaves it kept for when that one fails."""
    store = service.store()
    mine, other = memory(store, autosave=True), memory(store, autosave=True)
    kept: list[list[str]] = []

    async def looking(service: str, contains: str) -> str:
        before = list(await asyncio.to_thread(named, mine))
        await _turn(other, REPORT)
        kept.extend([before, list(await asyncio.to_thread(named, mine))])
        return search_logs(service, contains)

    looking.__name__ = "search_logs"

    async def flow() -> None:
        await agent(query_metrics, looking).run(REPORT, memory=mine)

    asyncio.run(flow())
    before, after = kept
    assert len(before) == 1
    assert after == before
    roles = [m.role.value for m in mine.get_all()]
    assert roles == ["user", "user", *["assistant", "tool"] * 2, "assistant", *["assistant", "tool"] * 2, "assistant"]
    assert named(mine) == {}


def test_a_run_that_failed_is_offered_to_the_next_one_at_once(service: Service) -> None:
    """In one process, and while the error is still held, a run that failed counts as ended."""
    mine = memory(service.store(), autosave=True)

    async def flow() -> None:
        llm = MockFunctionCallingLLM(response_generator=crashing, is_chat_model=True)
        handler = FunctionAgent(llm=llm, tools=[query_metrics, search_logs]).run(REPORT, memory=mine)
        with pytest.raises(CrashError):
            await handler
        await _turn(mine, "What do we know so far?")
        assert handler.is_done()

    asyncio.run(flow())
    roles = [m.role.value for m in mine.get_all()]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "user", "assistant"]
    assert named(mine) == {}
