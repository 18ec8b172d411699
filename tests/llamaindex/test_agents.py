"""Every agent, chat engine and memory of LlamaIndex on our store does what it does on LlamaIndex's own."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.agent.workflow import (
    AgentWorkflow,
    CodeActAgent,
    FunctionAgent,
    ReActAgent,
)
from llama_index.core.base.llms.types import ChatMessage, MessageRole, ToolCallBlock
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.chat_engine.multi_modal_condense_plus_context import MultiModalCondensePlusContextChatEngine
from llama_index.core.chat_engine.multi_modal_context import MultiModalContextChatEngine
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory
from llama_index.core.memory.simple_composable_memory import SimpleComposableMemory
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory, BedrockSessionsMemoryStore
from tests.support.service import KEY, Service, run, user, users

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@pytest.fixture
def service() -> Service:
    return Service()


# -- memories, ours and LlamaIndex's own


def buffer(store: BaseChatStore) -> BaseMemory:
    return ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key=KEY, token_limit=100_000)


def composed(store: BaseChatStore) -> BaseMemory:
    return SimpleComposableMemory.from_defaults(primary_memory=buffer(store))


def summary(store: BaseChatStore) -> BaseMemory:
    return ChatSummaryMemoryBuffer.from_defaults(
        chat_store=store, chat_store_key=KEY, token_limit=100_000, llm=model("summed up")
    )


def ours(store: BaseChatStore) -> BaseMemory:
    if isinstance(store, BedrockSessionsChatStore):
        return BedrockSessionsMemory.from_defaults(session_id=KEY, chat_store=store)
    return Memory.from_defaults(session_id=KEY, chat_store=SQLAlchemyChatStore(table_name="t"))


def autosaved(store: BaseChatStore) -> BaseMemory:
    if isinstance(store, BedrockSessionsChatStore):
        return BedrockSessionsMemory.from_defaults(session_id=KEY, chat_store=store, autosave=True)
    return ours(store)


def plain(store: BaseChatStore) -> BaseMemory:
    if isinstance(store, BedrockSessionsChatStore):
        return Memory.from_defaults(session_id=KEY, chat_store=BedrockSessionsMemoryStore(store))
    return ours(store)


MEMORIES = [buffer, composed, summary, ours, autosaved, plain]
by_memory = pytest.mark.parametrize("make", MEMORIES, ids=lambda make: make.__name__)


# -- a model that says what a script says


def model(*script: str | ChatMessage) -> MockFunctionCallingLLM:
    """Return a model that says one line of a script after the other, over and over."""
    lines = itertools.cycle(script)

    def answer(_messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
        line = next(lines)
        return line.model_copy(deep=True) if isinstance(line, ChatMessage) else says(line)

    return MockFunctionCallingLLM(response_generator=answer, is_chat_model=True)


def says(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def calls(*tools: str, **arguments: Any) -> ChatMessage:
    blocks: list[Any] = [
        ToolCallBlock(tool_call_id=f"call-{tool}-{number}", tool_name=tool, tool_kwargs=arguments)
        for number, tool in enumerate(tools)
    ]
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=blocks)


def weather() -> str:
    """Tell the weather."""
    return "sunny"


def news() -> str:
    """Tell the news."""
    return "none"


def execute(code: str) -> str:
    """Run code."""
    return f"ran {code}"


def function_agent(*script: str | ChatMessage, **arguments: Any) -> FunctionAgent:
    return FunctionAgent(llm=model(*script), tools=[weather, news], **arguments)


def sequential() -> Any:
    return function_agent(calls("weather"), calls("news"), "It is sunny, there is no news.")


def parallel() -> Any:
    return function_agent(calls("weather", "weather", "weather"), "It is sunny.")


def react() -> Any:
    line = 'Thought: I need a tool.\nAction: weather\nAction Input: {"x": 1}'
    done = "Thought: I can answer.\nAnswer: It is sunny."
    return ReActAgent(llm=model(line, done), tools=[weather])


def code() -> Any:
    return CodeActAgent(code_execute_fn=execute, llm=model("<execute>print(1)</execute>", "It prints 1."))


def handoff() -> Any:
    first = function_agent(
        calls("handoff", to_agent="second", reason="it knows"),
        name="first",
        description="asks",
        can_handoff_to=["second"],
    )
    second = function_agent(calls("weather"), "It is sunny.", name="second", description="answers", can_handoff_to=[])
    return AgentWorkflow(agents=[first, second], root_agent="first")


def handoff_to_react() -> Any:
    first = function_agent(calls("handoff", to_agent="second", reason="it thinks"), name="first", description="asks")
    second = ReActAgent(
        llm=model("Thought: I can answer.\nAnswer: It is sunny."), name="second", description="thinks", tools=[weather]
    )
    return AgentWorkflow(agents=[first, second], root_agent="first")


AGENTS = [sequential, parallel, react, code, handoff, handoff_to_react]


def kept(messages: Sequence[ChatMessage]) -> list[Any]:
    """Give what two runs have in common: all but random ids."""
    return [(m.role.value, [b.model_dump() for b in m.blocks], sorted(m.additional_kwargs)) for m in messages]


async def talk(build: Callable[[], Any], memory: Callable[[], BaseMemory]) -> list[Any]:
    """Ask an agent twice, each time as a new process would: a new agent, a new memory. Give what is stored then."""
    for question in ("What is new?", "And now?"):
        await build().run(question, memory=memory())
    return kept(await memory().aget_all())


@by_memory
@pytest.mark.parametrize("build", AGENTS, ids=lambda build: build.__name__)
def test_agents_store_what_they_store_elsewhere(
    service: Service, build: Callable[[], Any], make: Callable[[BaseChatStore], BaseMemory]
) -> None:
    """Two turns of each kind of agent, each with a new store, leave in each memory what they leave elsewhere."""
    reference = SimpleChatStore()
    memory = make(reference)
    expected = asyncio.run(talk(build, lambda: memory))
    assert asyncio.run(talk(build, lambda: make(service.store()))) == expected
    assert len(expected) >= 4


def test_handoff_in_code_leaves_no_unpaired_call(service: Service) -> None:
    """CodeActAgent stores the result of a handoff without its call: our memory does not show it, LlamaIndex's does."""
    orphan = ChatMessage(role=MessageRole.TOOL, content="over to you", additional_kwargs={"tool_call_id": "1"})
    shown = []
    for memory in (ours(service.store()), ours(SimpleChatStore())):
        memory.put_messages([user("hello"), says("handing off"), orphan])
        shown.append([m.role.value for m in memory.get()])
    assert shown == [["user", "assistant"], ["user", "assistant", "tool"]]


@pytest.mark.parametrize("build", AGENTS, ids=lambda build: build.__name__)
def test_no_agent_reads_more_than_once_a_turn(service: Service, build: Callable[[], Any]) -> None:
    """Whatever the agent, a turn costs one list, and one call for each time it stores something.

    ChatMemoryBuffer asks each time it is read.
    """
    memory, store = ours(service.store()), service.store()
    other = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="other")
    for used in (memory, other):
        asyncio.run(_ask(build(), used))
    with service.counting() as counted:
        asyncio.run(_ask(build(), other))
    assert counted["ListInvocationSteps"] > 1
    with service.counting() as counted:
        asyncio.run(_ask(build(), memory))
    assert counted["ListInvocationSteps"] == 1
    assert counted["PutInvocationStep"] == counted["total"] - 1 <= 3


async def _ask(agent: Any, memory: BaseMemory) -> None:
    await agent.run("What is new?", memory=memory)


def test_an_agent_that_gives_up_leaves_the_users_message(service: Service) -> None:
    """After too many iterations only the user's message is there, and the next turn is answered."""
    memory = ours(service.store())

    async def flow() -> None:
        with pytest.raises(Exception, match="Max iterations"):
            await function_agent(calls("weather")).run("Loop!", memory=memory, max_iterations=3)
        await function_agent("Sorry.").run("And now?", memory=memory)

    asyncio.run(flow())
    assert [m.content for m in memory.get()] == ["Loop!", "And now?", "Sorry."]


# -- a human in the loop

PAUSE = """
import asyncio, json, sys
from llama_index.core.memory import Memory
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent
from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory
from tests.llamaindex.test_agents import approving, calls

async def pause(database, kind):
    if kind == "ours":
        store = BedrockSessionsChatStore.local(database)
        memory = BedrockSessionsMemory.from_defaults(session_id="user-42", chat_store=store)
    else:
        memory = Memory.from_defaults(session_id="user-42", async_database_uri=f"sqlite+aiosqlite:///{database}")
    handler = approving(calls("delete")).run("Delete it all.", memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            print(json.dumps(handler.ctx.to_dict()))
            await handler.cancel_run()
            return

async def resume(saved):
    agent = approving("It is done.")
    handler = agent.run(ctx=Context.from_dict(agent, json.loads(saved)))
    handler.ctx.send_event(HumanResponseEvent(response="yes"))
    print(await handler)

asyncio.run(pause(*sys.argv[2:]) if sys.argv[1] == "pause" else resume(sys.argv[2]))
"""


def approving(*script: str | ChatMessage) -> FunctionAgent:
    """Return an agent whose tool waits for a human."""

    async def delete(ctx: Context) -> str:
        """Delete everything, if a human agrees."""
        response = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        return f"the human says {response.response}"

    delete.__annotations__["ctx"] = Context  # LlamaIndex looks for the class, not for its name
    return FunctionAgent(llm=model(*script), tools=[delete])


@pytest.mark.thorough
def test_a_human_answers_in_another_process(tmp_path: Path) -> None:
    """A paused agent is saved as JSON and resumed elsewhere; the memory comes along, and the turn is stored once.

    LlamaIndex's `Memory` does not come along: its agent cannot be resumed.
    """
    database = tmp_path / "chats.db"
    plain = run(PAUSE, "pause", str(tmp_path / "plain.db"), "plain")
    with pytest.raises(AssertionError, match="'memory' not found in state"):
        run(PAUSE, "resume", plain.strip())
    saved = run(PAUSE, "pause", str(database), "ours")
    store = BedrockSessionsChatStore.local(database)
    assert [m.content for m in store.get_messages(KEY)] == ["Delete it all."]
    assert "It is done." in run(PAUSE, "resume", saved.strip())
    assert [m.content for m in store.get_messages(KEY)] == ["Delete it all.", None, "the human says yes", "It is done."]


# -- chat engines


class Library(BaseRetriever):
    """A retriever that finds one node."""

    def _retrieve(self, query_bundle: Any) -> list[NodeWithScore]:
        return [NodeWithScore(node=TextNode(text="It rains.", id_="node"), score=1.0)]


ENGINES: dict[str, Callable[[BaseMemory], Any]] = {
    "simple": lambda memory: SimpleChatEngine.from_defaults(llm=model("Fine."), memory=memory),
    "context": lambda memory: ContextChatEngine.from_defaults(Library(), llm=model("Fine."), memory=memory),
    "condense question": lambda memory: CondenseQuestionChatEngine.from_defaults(
        RetrieverQueryEngine.from_args(Library(), llm=model("Fine.")), llm=model("Fine."), memory=memory
    ),
    "condense plus context": lambda memory: CondensePlusContextChatEngine.from_defaults(
        Library(), llm=model("Fine."), memory=memory
    ),
    "pictures": lambda memory: MultiModalContextChatEngine.from_defaults(
        Library(), multi_modal_llm=model("Fine."), memory=memory
    ),
    "condensed pictures": lambda memory: MultiModalCondensePlusContextChatEngine.from_defaults(
        Library(), multi_modal_llm=model("Fine."), memory=memory
    ),
}


def chat(engine: Any, question: str) -> None:
    engine.chat(question)


def stream_chat(engine: Any, question: str) -> None:
    before = set(threading.enumerate())
    list(engine.stream_chat(question).response_gen)
    for thread in set(threading.enumerate()) - before:
        if "write_response_to_history" in thread.name:
            thread.join()


def achat(engine: Any, question: str) -> None:
    asyncio.run(engine.achat(question))


def astream_chat(engine: Any, question: str) -> None:
    async def flow() -> None:
        response = await engine.astream_chat(question)
        assert [token async for token in response.async_response_gen()] != []
        if response.awrite_response_to_history_task:
            await response.awrite_response_to_history_task

    asyncio.run(flow())


@by_memory
@pytest.mark.parametrize("ask", [chat, stream_chat, achat, astream_chat], ids=lambda ask: ask.__name__)
@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_chat_engines_store_what_they_store_elsewhere(
    service: Service,
    engine: Callable[[BaseMemory], Any],
    ask: Callable[[Any, str], None],
    make: Callable[[BaseChatStore], BaseMemory],
) -> None:
    """Two turns of each chat engine, in its four forms, leave in each kind of memory what they leave elsewhere."""
    reference = SimpleChatStore()
    memory = make(reference)
    for question in ("How is it?", "And now?"):
        ask(engine(memory), question)
        ask(engine(make(service.store())), question)
    assert kept(make(service.store()).get_all()) == kept(memory.get_all())
    assert len(memory.get_all()) == 4


@pytest.mark.parametrize("name", ["simple", "context"])
def test_a_chat_engines_turn_takes_three_calls(service: Service, name: str) -> None:
    """One list and two steps: the question and the answer; with ChatMemoryBuffer as well."""
    for memory in (ours(service.store()), buffer(service.store())):
        ENGINES[name](memory).chat("How is it?")
        with service.counting() as counted:
            ENGINES[name](memory).chat("And now?")
        assert counted == {"ListInvocationSteps": 1, "PutInvocationStep": 2, "total": 3}


# -- a memory that rewrites its history whenever it is read


def summing(store: BaseChatStore) -> ChatSummaryMemoryBuffer:
    return ChatSummaryMemoryBuffer.from_defaults(
        chat_store=store, chat_store_key=KEY, token_limit=12, llm=model("summed up"), tokenizer_fn=str.split
    )


@pytest.mark.parametrize("on_delete", ["erase", "clear"])
def test_a_summary_stands_first(service: Service, on_delete: str) -> None:
    """ChatSummaryMemoryBuffer reads, deletes and sets at every read: the summary is first, all else in order."""
    reference, shown = summing(SimpleChatStore()), list[ChatMessage]()
    for number in range(6):
        memory = summing(service.store(on_delete=on_delete))
        for message in (user(f"question {number} has five words"), says(f"answer {number} has five words")):
            memory.put(message)
            reference.put(message)
        shown = memory.get()
        assert kept(shown) == kept(reference.get())
        assert kept(service.store().get_messages(KEY)) == kept(shown)
    assert [m.role.value for m in shown] == ["system", "user", "assistant"]
    assert shown[0].content == "summed up"


def test_a_summary_is_cheap_where_deleting_is_clearing(service: Service) -> None:
    """With `on_delete="clear"` such a read is three lists and two steps, whatever the length; no session is lost."""
    memory = summing(service.store(on_delete="clear"))
    for message in users(*(f"question {number} has five words" for number in range(8))):
        memory.put(message)
    with service.counting() as counted:
        memory.get()
    assert counted == {"ListInvocationSteps": 3, "PutInvocationStep": 2, "total": 5}
    assert len(service.sessions()) == 1


# -- loops, threads, contexts, forks


def test_sync_methods_work_inside_a_running_loop(service: Service) -> None:
    """As in a notebook: `put`, `get`, `set` and `reset` in a coroutine, between turns of an agent."""

    async def notebook() -> list[str | None]:
        memory = ours(service.store())
        memory.put(user("hello"))
        await sequential().run("What is new?", memory=memory)
        memory.put(user("thanks"))
        shown = [m.content for m in memory.get() if m.role == MessageRole.USER]
        memory.set(users("anew"))
        shown += [m.content for m in memory.get()]
        memory.reset()
        return [*shown, *(m.content for m in memory.get())]

    assert asyncio.run(notebook()) == ["hello", "What is new?", "thanks", "anew"]


def test_a_memory_belongs_to_no_loop(service: Service) -> None:
    """One memory is used from several event loops, one after the other and at once, and loses nothing."""
    memory = ours(service.store())

    def other_loop(number: int) -> None:
        asyncio.run(memory.aput(user(str(number))))

    other_loop(0)
    threads = [threading.Thread(target=other_loop, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(str(m.content) for m in ours(service.store()).get_all()) == [str(number) for number in range(9)]


trace: contextvars.ContextVar[str] = contextvars.ContextVar("trace", default="")


def test_the_context_passes_through_the_pool(service: Service) -> None:
    """Every call of an agent's turn is made in the context of who runs the agent: traces belong together."""
    store = service.store()
    memory, seen = ours(store), set()
    store.client.meta.events.register("before-call.bedrock-agent-runtime", lambda **_: seen.add(trace.get()))

    async def flow(name: str) -> None:
        trace.set(name)
        await sequential().run("What is new?", memory=memory)

    async def both() -> None:
        await asyncio.gather(flow("one"), flow("two"))

    asyncio.run(both())
    assert seen == {"one", "two"}


FORK = """
import asyncio, os, sys
from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory
from tests.support.service import user

memory = BedrockSessionsMemory.from_defaults(
    session_id="user-42", chat_store=BedrockSessionsChatStore.local(sys.argv[1]), autosave=True
)
asyncio.run(memory.aput(user("parent")))
child = os.fork()
if child == 0:
    asyncio.run(memory.aput(user("child")))
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
asyncio.run(memory.aput(user("parent again")))
print([m.content for m in memory.get()])
"""


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_memory_survives_a_fork(tmp_path: Path) -> None:
    """A forked child goes on with the memory of its parent, and the parent sees what the child wrote."""
    assert run(FORK, str(tmp_path / "chats.db")).strip() == "['parent', 'child', 'parent again']"
