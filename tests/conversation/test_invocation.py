"""Blocks of code that are invocations of their own: where they are in Bedrock, and what history tells of them."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent

from llama_index_bedrock_sessions import BedrockSessionsMemory, ConfigurationError, ServiceError
from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions.cli.demo import query_metrics, scripted_model
from tests.support.service import IDLE, KEY, Service, picture, texts, users

DAY_2 = "Day 2, database specialist"


@pytest.fixture
def service() -> Service:
    return Service()


def told(chat: Conversation) -> list[tuple[int, str | None, str | None]]:
    return [(len(entry.added), entry.description, entry.by) for entry in chat.history()]


def test_a_block_is_an_invocation_of_its_own(service: Service) -> None:
    """What is written in a block is in one invocation, by one call more; no reader needs to know."""
    store = service.store()
    chat = store.conversation(KEY)
    chat.add(users("before"))
    with chat.invocation(DAY_2, by="Grace"):
        with service.counting() as calls:
            chat.add(users("one"))
        assert calls == {"CreateInvocation": 1, "PutInvocationStep": 1, "total": 2}
        assert json.loads(service.calls[0].request_body)["description"] == DAY_2
        with service.counting() as calls:
            store.add_message(KEY, users("two")[0])
        assert calls == {"PutInvocationStep": 1, "total": 1}
        chat.state["x"] = 1
    chat.add(users("after"))
    reader = service.store().conversation(KEY)
    assert (
        told(reader)
        == told(chat)
        == [
            (1, None, None),
            (1, DAY_2, "Grace"),
            (1, DAY_2, "Grace"),
            (0, DAY_2, "Grace"),
            (1, None, None),
        ]
    )
    assert texts(service.store()) == ["before", "one", "two", "after"]
    (session,) = (s["sessionId"] for s in service.sessions())
    first, second = dict.fromkeys(entry.invocation for entry in reader.history())
    assert first == default_invocation(session)
    listed = service.boto3.list_invocation_steps(sessionIdentifier=session, invocationIdentifier=second)
    assert [s["invocationStepId"] for s in listed["invocationStepSummaries"]][::-1] == [
        entry.step for entry in reader.history()[1:4]
    ]


def test_an_empty_block_makes_nothing(service: Service) -> None:
    """A block in which nothing is written costs nothing, and the first block of a key needs no session before."""
    chat = service.store().conversation(KEY)
    with service.counting() as calls, chat.invocation(DAY_2):
        pass
    assert calls["total"] == 0
    with chat.invocation(DAY_2):
        chat.add(users("one"))
    assert told(service.store().conversation(KEY)) == [(1, DAY_2, None)]


def test_a_block_goes_on_in_the_next_session(service: Service) -> None:
    """The conversation was continued meanwhile: the block is an invocation of the new session, of the same name."""
    chat = service.store().conversation(KEY)
    with chat.invocation(DAY_2, by="Grace"):
        chat.add([*users("one"), picture()])
        service.later(IDLE)
        chat.add(users("two"))
        chat.add([picture(number) for number in range(25)])
    assert told(service.store().conversation(KEY)) == [(2, DAY_2, "Grace"), (1, DAY_2, "Grace"), (25, DAY_2, "Grace")]
    assert len({entry.invocation for entry in chat.history()}) == len(service.sessions()) == 2
    assert len(chat.messages()) == 28


def test_a_session_that_expires_in_a_block_loses_nothing(service: Service) -> None:
    """The service's clock jumps, which the process does not know: the refused CreateInvocation is made up for."""
    chat = service.store().conversation(KEY)
    chat.add(users("before"))
    service.clock.advance(IDLE)
    with chat.invocation(DAY_2):
        chat.add(users("one"))
    assert told(service.store().conversation(KEY)) == [(1, None, None), (1, DAY_2, None)]


@pytest.mark.parametrize("fault", ["lost_reply", "throttle", "internal"])
def test_failed_invocation_is_created_at_the_next_write(service: Service, fault: str) -> None:
    """A failed CreateInvocation fails the write, and nothing else."""
    chat = service.store().conversation(KEY)
    chat.add(users("before"))
    service.faults.add("CreateInvocation", 1, fault)
    with chat.invocation(DAY_2):
        with pytest.raises(ServiceError):
            chat.add(users("one"))
        chat.add(users("one"))
    assert texts(service.store()) == ["before", "one"]
    assert told(service.store().conversation(KEY))[-1] == (1, DAY_2, None)


def test_blocks_nest_and_end(service: Service) -> None:
    """The innermost block of a key counts, other keys are not affected, and an error ends a block too."""
    store = service.store()
    chat, other = store.conversation(KEY), store.conversation("other")
    outer = chat.invocation("outer")
    with outer:
        with chat.invocation("inner"), other.invocation("of another key"):
            chat.add(users("1"))
            other.add(users("o"))
            service.store().conversation(KEY).add(users("another process"))
        chat.add(users("2"))
    with pytest.raises(ZeroDivisionError), chat.invocation("failed"):
        raise ZeroDivisionError
    chat.add(users("3"))
    with outer:
        chat.add(users("4"))
    assert [d for _, d, _ in told(chat)] == ["inner", None, "outer", None, "outer"]
    assert [d for _, d, _ in told(other)] == ["of another key"]
    entries = chat.history()
    assert entries[2].invocation == entries[4].invocation


def test_tasks_belong_to_the_block_they_were_started_in(service: Service) -> None:
    """Two shifts at once in one event loop, each with tasks of its own, and threads that are given the context."""
    store = service.store()
    chat = store.conversation(KEY)

    async def shift(name: str) -> None:
        async with chat.invocation(name, by=name):
            await asyncio.gather(*(store.async_add_message(KEY, m) for m in users(*"ab")))
            await asyncio.create_task(chat.aadd(users("c")))

    async def both() -> None:
        await asyncio.gather(shift("day"), shift("night"), chat.aadd(users("nobody")))

    asyncio.run(both())
    with chat.invocation("in a thread"):
        for target in (contextvars.copy_context().run, lambda work: work()):
            thread = threading.Thread(target=target, args=(lambda: chat.add(users("t")),))
            thread.start()
            thread.join()
    names = sorted(str(entry.description) for entry in chat.history())
    assert names == ["None"] * 2 + ["day"] * 3 + ["in a thread"] + ["night"] * 3
    assert all(entry.by == entry.description for entry in chat.history() if entry.by)


def test_an_agent_in_a_block(service: Service) -> None:
    """All that an agent and its memory write in a block is in its invocation."""
    store = service.store()
    memory = BedrockSessionsMemory.from_defaults(session_id=KEY, chat_store=store, autosave=True)

    async def turn() -> None:
        async with memory.conversation.invocation(DAY_2, by="Grace"):
            await FunctionAgent(llm=scripted_model(), tools=[query_metrics]).run(
                "INC-4711: checkout is slow", memory=memory
            )

    asyncio.run(turn())
    assert {(d, by) for _, d, by in told(memory.conversation)} == {(DAY_2, "Grace")}
    assert len(memory.get_all()) > 2  # with calls of tools


@pytest.mark.parametrize("description", ["", "x" * 201, None, 5])
def test_a_description_bedrock_would_not_take_is_refused(service: Service, description: Any) -> None:
    """1 to 200 characters: said before anything is written."""
    chat = service.store().conversation(KEY)
    with pytest.raises(ConfigurationError, match="1 to 200"):
        chat.invocation(description)
    with pytest.raises(ConfigurationError, match="by="):
        chat.invocation("x", by=5)  # type: ignore[arg-type]


def test_the_longest_description(service: Service) -> None:
    """200 characters of any kind come back."""
    chat = service.store().conversation(KEY)
    with chat.invocation("数" * 200, by='"Ada" \\ \n'):
        chat.add(users("one"))
    assert told(service.store().conversation(KEY)) == [(1, "数" * 200, '"Ada" \\ \n')]
