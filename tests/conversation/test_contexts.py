"""Paused workflows: saved in one process, loaded once in another, whatever happens in between."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import pickle
import random
import subprocess
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.workflow import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from workflows.context.serializers import PickleSerializer
from workflows.errors import WorkflowCancelledByUser

from llama_index_bedrock_sessions import (
    AlreadyResumed,
    BedrockSessionsChatStore,
    BedrockSessionsMemory,
    Conversation,
    InvalidContextError,
    InvalidStateError,
    SavedContext,
    StepTooLargeError,
    StoredDataError,
    UnavailableError,
)
from llama_index_bedrock_sessions._bedrock import client
from llama_index_bedrock_sessions._conversation import claims, contexts
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.llamaindex.test_agents import approving, calls
from tests.support import histories
from tests.support.histories import History
from tests.support.ops import Op
from tests.support.service import DAY, HOUR, KEY, Service, python, run, user


class Order(Workflow):
    """Asks before it orders."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        if await ctx.store.get("cart", default=None) is None:
            await ctx.store.set("cart", ev.get("cart", ["tea"]))
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        return StopEvent(result=[answer.response, await ctx.store.get("cart")])


class Refund(Workflow):
    """Another workflow."""

    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=None)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.emulator.close()


async def paused(workflow: Workflow, save: Callable[[Context[Any]], Any], **start: Any) -> Any:
    """Run a workflow to its question, give its context to `save`, and end the run."""
    handler = workflow.run(**start)
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    try:
        return await save(handler.ctx)
    finally:
        await handler.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await handler


def save(chat: Conversation, name: str = "default", **start: Any) -> SavedContext:
    async def do() -> SavedContext:
        saved = await paused(Order(timeout=None), lambda ctx: chat.asave_context(ctx, name), **start)
        assert isinstance(saved, SavedContext)
        return saved

    return asyncio.run(do())


def answer(workflow: Workflow, ctx: Context[Any], response: str = "yes") -> Any:
    async def do() -> Any:
        handler = workflow.run(ctx=ctx)
        assert handler.ctx is not None
        handler.ctx.send_event(HumanResponseEvent(response=response))  # type: ignore[call-arg] # pydantic's
        return await handler

    return asyncio.run(do())


def load(chat: Conversation, name: str = "default", **more: Any) -> Any:
    """Load a context and answer its question."""
    workflow = Order(timeout=None)
    return answer(workflow, chat.load_context(workflow, name, **more))


# -- one after another


def test_a_workflow_goes_on_days_later(service: Service) -> None:
    """What another process saved is loaded when its sessions have long expired, with all that was in it."""
    saved = save(service.store().conversation(KEY), "order")
    service.later(8 * DAY)
    chat = service.store().conversation(KEY)
    assert chat.contexts() == [saved]
    assert (saved.name, saved.taken, saved.taken_by) == ("order", None, None)
    assert saved.workflow.endswith(".Order")
    assert load(chat, "order", by="Ada") == ["yes", ["tea"]]
    (listed,) = service.store().conversation(KEY).contexts()
    assert (listed.taken_by, listed.saved) == ("Ada", saved.saved)
    assert listed.taken is not None
    assert listed.taken > saved.saved


def test_it_is_taken_once(service: Service) -> None:
    """Who loads it again is told who has it since when, in every process; `again=True` gives it nevertheless."""
    save(service.store().conversation(KEY))
    chat = service.store().conversation(KEY)
    load(chat, by="Ada")
    (listed,) = chat.contexts()
    for other in (chat, service.store().conversation(KEY)):
        with pytest.raises(AlreadyResumed, match=r"by Ada at .*again=True") as caught:
            load(other)
        assert (caught.value.by, caught.value.at) == ("Ada", listed.taken)
        assert pickle.loads(pickle.dumps(caught.value)).by == "Ada"
    assert load(chat, again=True, by="Bob") == ["yes", ["tea"]]
    assert chat.contexts()[0].taken_by == "Bob"
    with pytest.raises(AlreadyResumed, match="by Bob"):
        load(chat)


def test_claimed_context_stays_claimed_after_continuations(service: Service) -> None:
    """Weeks later, in another session, it is still known to be taken; and what was not taken is still there."""
    chat = service.store().conversation(KEY)
    save(chat, "mine")
    save(chat, "open")
    load(chat, "mine", by="Ada")
    for _ in range(4):
        service.later(10 * DAY)
        service.store().add_message(KEY, user("Still here."))
    late = service.store().conversation(KEY)
    with pytest.raises(AlreadyResumed, match="by Ada"):
        load(late, "mine")
    assert load(late, "open") == ["yes", ["tea"]]


def test_saving_again_under_a_name_is_another_context(service: Service) -> None:
    """A workflow that pauses once more can be saved under the same name, and be loaded once more."""
    chat = service.store().conversation(KEY)
    save(chat, cart=["tea"])
    load(chat)
    save(chat, cart=["coffee"])
    assert load(chat) == ["yes", ["coffee"]]
    with pytest.raises(AlreadyResumed):
        load(chat)


def test_it_can_be_deleted(service: Service) -> None:
    """A deleted context is neither listed nor loaded; deleting what is not there does nothing."""
    chat = service.store().conversation(KEY)
    save(chat, "order")
    chat.delete_context("order")
    with service.counting() as counted:
        chat.delete_context("order")
    assert counted["PutInvocationStep"] == 0
    assert service.store().conversation(KEY).contexts() == []
    with pytest.raises(InvalidContextError, match=r"no saved context 'order'. There are no saved contexts"):
        load(chat, "order")


def test_a_fork_has_no_saved_contexts(service: Service) -> None:
    """What is taken once is taken from the conversation it was saved in, also if that was forked while it waited."""
    chat = service.store().conversation(KEY)
    chat.state["cart"] = ["tea"]
    save(chat, "small")
    save(chat, "large", cart=[os.urandom(50_000).hex()])
    fork = chat.fork("fork")
    assert (fork.state.copy(), fork.contexts()) == ({"cart": ["tea"]}, [])
    assert [saved.name for saved in chat.contexts()] == ["large", "small"]


def test_the_application_neither_sees_nor_writes_what_is_saved(service: Service) -> None:
    """Named state does not show saved contexts, does not take their names, and clearing it leaves them."""
    chat = service.store().conversation(KEY)
    chat.state["cart"] = ["tea"]
    save(chat, "order")
    name = contexts.PREFIX + "saved/order"
    assert dict(chat.state) == chat.describe()["state"] == {"cart": ["tea"]}
    with pytest.raises(InvalidStateError, match="cannot be the name"):
        chat.state[name] = 1
    wrong: tuple[dict[str, Any], ...] = ({"state": {name: 1}}, {"forget": [name]})
    for given in wrong:
        with pytest.raises(InvalidStateError, match="cannot be the name"):
            chat.add([], **given)
    with pytest.raises(KeyError):
        del chat.state[name]
    chat.state.clear()
    assert load(chat, "order") == ["yes", ["tea"]]


# -- what is refused


def test_what_is_wrong_is_found_before_it_is_taken(service: Service) -> None:
    """Another workflow, other agents, lost steps, another serializer: refused by name, and still there for the next."""

    class Later(Workflow):
        @step
        async def ask_twice(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=None)

    chat = service.store().conversation(KEY)
    save(chat)
    with pytest.raises(InvalidContextError, match=r"of the workflow .*\.Order, not of .*\.Refund"):
        chat.load_context(Refund())
    Later.__module__, Later.__qualname__ = Order.__module__, Order.__qualname__
    with pytest.raises(InvalidContextError, match=r"with the steps \['ask'\]"):
        chat.load_context(Later())
    with pytest.raises(InvalidContextError, match="saved without a serializer"):
        chat.load_context(Order(), serializer=PickleSerializer())
    with pytest.raises(InvalidContextError, match=r"no saved context 'other'. Saved contexts: .'default'"):
        chat.load_context(Order(), "other")
    wrong: tuple[dict[str, Any], ...] = ({"name": ""}, {"by": 7})
    for given in wrong:
        with pytest.raises(InvalidContextError, match=r"is a (non-empty )?string"):
            chat.load_context(Order(), **given)
    with pytest.raises(InvalidContextError, match="Expected a workflow, got str"):
        chat.load_context("Order")  # type: ignore[arg-type]
    assert load(chat) == ["yes", ["tea"]]


def test_agents_are_told_apart_by_their_names(service: Service) -> None:
    """Two agents of one class are two workflows: the context of one is not loaded as the other's."""
    chat = service.store().conversation(KEY)
    asyncio.run(paused(approving(calls("delete")), chat.asave_context, user_msg="Delete it."))
    other = approving("Done.")
    other.name = "shop"
    with pytest.raises(InvalidContextError, match=r"of the agents \['Agent'\], not of \['shop'\]"):
        chat.load_context(other)
    chat.load_context(approving("Done."))


def test_a_script_and_a_module_are_one_workflow(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python app.py` has saved, a process that imports `app` may load: the module's name does not count then."""
    chat = service.store().conversation(KEY)
    with monkeypatch.context() as patch:
        patch.setattr(Order, "__module__", "__main__")
        save(chat)
    assert load(chat) == ["yes", ["tea"]]


def test_pickle_only_where_it_is_asked_for_on_both_sides(service: Service) -> None:
    """Without a serializer nothing is pickled, even of a workflow that pickles; with one, it is needed to load too."""
    chat = service.store().conversation(KEY)
    workflow = Order(timeout=None)

    async def keep(ctx: Context[Any]) -> None:
        await ctx.store.set("rates", {1.5, 2.5})  # no JSON
        with pytest.raises(InvalidContextError, match=r"the value of 'rates' in ctx.store") as caught:
            chat.save_context(ctx)
        assert caught.value.__cause__ is None
        assert "1.5" not in str(caught.value)
        await chat.asave_context(ctx, serializer=PickleSerializer())

    asyncio.run(paused(workflow, keep))
    with pytest.raises(InvalidContextError, match=r"saved with serializer=.*PickleSerializer"):
        chat.load_context(workflow)
    ctx = chat.load_context(workflow, serializer=PickleSerializer())
    assert asyncio.run(ctx.store.get("rates")) == {1.5, 2.5}


def test_nothing_is_unpickled_that_somebody_put_into_the_session(service: Service, tmp_path: Path) -> None:
    """A workflow that pickles by itself is read as JSON: pickled bytes in the store of a context run no code."""
    if "serializer" not in Workflow.__init__.__annotations__:
        pytest.skip("before llama-index-workflows 2.20 a workflow has no serializer")
    chat = service.store().conversation(KEY)

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    async def keep(ctx: Context[Any]) -> None:
        await ctx.store.set("bomb", Bomb())
        data = ctx.to_dict(PickleSerializer())
        snapshot = contexts.snapshot(Context(Order()), None)
        await asyncio.to_thread(chat._save_context, dataclasses.replace(snapshot, text=json.dumps(data)), "default")

    asyncio.run(paused(Order(timeout=None), keep))
    with pytest.raises(InvalidContextError, match="not restorable here"):
        chat.load_context(Order(serializer=PickleSerializer()))
    assert not (tmp_path / "exploded").exists()


def test_only_contexts_seen_from_outside_are_saved(service: Service) -> None:
    """What is no Context, and the one inside of a step, are refused with what to give instead."""
    chat = service.store().conversation(KEY)
    with pytest.raises(InvalidContextError, match=r"such as handler.ctx, got dict"):
        chat.save_context({})  # type: ignore[arg-type]

    class Inside(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(InvalidContextError, match="from outside of the workflow's steps"):
                chat.save_context(ctx)
            return StopEvent(result="refused")

    async def flow() -> Any:
        return await Inside().run()

    assert asyncio.run(flow()) == "refused"
    assert service.sessions() == []


# -- large ones


def noise(size: int) -> str:
    """Return text of which a part cannot be told from the rest: it is not compressed to less than three quarters."""
    return "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ+/", k=size))


def test_a_large_context_is_not_carried(service: Service) -> None:
    """What is large is put once, read only when it is loaded, and copied only before its session goes."""
    chat = service.store().conversation(KEY)
    text = noise(2_000_000)
    with service.counting():
        save(chat, cart=[text])
    size = sum(call.request_size for call in service.calls)
    for _ in range(7):
        service.later(DAY)
        service.store().add_message(KEY, user("Another day."))
    service.calls.clear()
    reader = service.store().conversation(KEY)
    reader.messages()
    reader.contexts()
    carried = sum(call.request_size + call.response_size for call in service.calls)
    assert size > len(text)
    assert carried < len(text) / 100
    for _ in range(3):
        service.later(11 * DAY)  # retention takes the session it was saved in
        service.store().add_message(KEY, user("Another week."))
    assert load(service.store().conversation(KEY)) == ["yes", [text]]


def test_a_failed_continuation_loses_no_content(service: Service) -> None:
    """Where the content has been copied and then the new session does not open, it can still be loaded."""
    save(service.store().conversation(KEY), cart=[noise(40_000)])
    service.later(10 * DAY)
    store = service.store()
    service.faults.add("PutInvocationStep", 3, "internal")  # after the closing step and the copy: the opening
    with pytest.raises(UnavailableError):
        store.add_message(KEY, user("one"))
    store.add_message(KEY, user("two"))
    service.later(22 * DAY)
    assert load(service.store().conversation(KEY)) == ["yes", [noise(40_000)]]


def test_more_than_50_mb_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context beyond the limit is refused with its size, and nothing is stored."""
    monkeypatch.setattr(contexts, "LIMIT", 1_000_000)
    with pytest.raises(StepTooLargeError, match=r"takes 2\.\d MB as JSON; the limit is 1 MB. Nothing was stored"):
        save(service.store().conversation(KEY), cart=["a" * 1_100_000])
    assert service.sessions() == []


def test_content_of_another_conversation_is_not_read(service: Service) -> None:
    """A reference into a session of another key is not followed, whoever has written it."""
    other, chat = service.store().conversation("other"), service.store().conversation(KEY)
    save(other, cart=[noise(40_000)])
    save(chat, cart=[noise(40_000)])
    theirs = other._engine.reader.known().fold.state()[contexts._CONTENT + "default"]
    chat._engine.writer.append(lambda _: Draft(state={contexts._CONTENT + "default": [theirs]}))
    with pytest.raises(StoredDataError, match="A part of the content is missing"):
        load(chat)
    assert chat.contexts()[0].taken is None


@pytest.mark.parametrize("content", ["!", "", 7, {"~parts": [["no home"]]}, {"~parts": []}])
def test_damaged_content_is_said(service: Service, content: Any) -> None:
    """Content that is none is refused as such, and the context is not taken."""
    chat = service.store().conversation(KEY)
    save(chat)
    chat._engine.writer.append(lambda _: Draft(state={contexts._CONTENT + "default": [content]}))
    with pytest.raises(StoredDataError):
        load(chat)
    assert chat.contexts()[0].taken is None


def test_a_damaged_record_is_said(service: Service) -> None:
    """A record that this library did not write is refused as stored data."""
    chat = service.store().conversation(KEY)
    chat._engine.writer.append(lambda _: Draft(state={contexts._SAVED + "default": [{"id": 1}]}))
    with pytest.raises(StoredDataError, match="cannot be read"):
        load(chat)


# -- an agent that waits for a human

AGENT = """
import asyncio, sys
from llama_index.core.workflow import HumanResponseEvent, InputRequiredEvent
from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory
from tests.llamaindex.test_agents import approving, calls

async def pause(chat, store):
    memory = BedrockSessionsMemory.from_defaults(session_id="user-42", chat_store=store)
    handler = approving(calls("delete")).run("Delete it all.", memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            await chat.asave_context(handler.ctx)
            await handler.cancel_run()
            return

async def resume(chat):
    agent = approving("It is done.")
    handler = agent.run(ctx=await chat.aload_context(agent, by="Ada"))
    handler.ctx.send_event(HumanResponseEvent(response="yes"))
    print(await handler)

store = BedrockSessionsChatStore(endpoint_url=sys.argv[2], region_name="us-east-1",
    aws_access_key_id="emulator", aws_secret_access_key="emulator")
chat = store.conversation("user-42")
asyncio.run(pause(chat, store) if sys.argv[1] == "pause" else resume(chat))
"""


@pytest.mark.thorough
def test_an_agent_waits_for_a_human_over_processes_and_days(service: Service) -> None:
    """One process pauses and exits; eight days later one that never saw it goes on: each message is stored once."""
    with service.emulator.serve() as server:
        run(AGENT, "pause", server.url)
        assert [m.content for m in service.store().get_messages(KEY)] == ["Delete it all."]
        service.clock.advance(8 * DAY)
        store = "aws_access_key_id"
        # a store with keys can be made again only where one with the same keys is alive: the script makes it first
        assert store in AGENT
        assert "It is done." in run(AGENT, "resume", server.url)
    stored = [m.content for m in service.store().get_messages(KEY)]
    assert stored == ["Delete it all.", None, "the human says yes", "It is done."]


def test_a_tool_is_run_again_from_its_top(service: Service) -> None:
    """What a tool did before it waited is done once more when the context is loaded; what comes after, once."""
    done: list[str] = []

    async def order(ctx: Context) -> str:
        """Order the cart, if a human agrees."""
        done.append("before")
        response = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        done.append("after")
        return str(response.response)

    order.__annotations__["ctx"] = Context  # LlamaIndex looks for the class, not for its name
    store = service.store()
    memory = BedrockSessionsMemory.from_defaults(session_id=KEY, chat_store=store)

    def agent(*script: Any) -> FunctionAgent:
        from tests.llamaindex.test_agents import model

        return FunctionAgent(llm=model(*script), tools=[order])

    chat = memory.conversation
    asyncio.run(paused(agent(calls("order")), chat.asave_context, user_msg="Order.", memory=memory))
    assert done == ["before"]
    again = agent("Done.")
    answer(again, chat.load_context(again))
    assert done == ["before", "before", "after"]


# -- at the same moment


class Race(History):
    """Processes that load one saved context, interleaved between any two calls."""

    def __init__(self, seed: int, pause: float, *cart: str, **settings: Any) -> None:
        super().__init__(seed, **settings)
        self.told: list[AlreadyResumed] = []
        chat = BedrockSessionsChatStore(client=self.client).conversation(histories.KEY)
        chat._save_context(snapshot_of_an_order(*cart), "default")
        self.advance(self.lateness)  # lists show what was saved
        if self.random.random() < 0.5:
            for number in range(len(self.processes)):
                self.start(number, "read")
                self.finish(number)
        self.advance(pause)

    def _perform(self, store: BedrockSessionsChatStore, op: Op, argument: int) -> Any:
        if op.kind == "load":
            try:
                store.conversation(histories.KEY).load_context(Order(), by=op.process)
            except AlreadyResumed as error:
                self.told.append(error)
                raise
            return True
        return super()._perform(store, op, argument)

    def run(self, faults: float = 0.0, crashes: float = 0.0) -> Race:
        """Have each process load once, with other work in between."""
        waiting = list(range(len(self.processes)))
        while waiting or any(process.op for process in self.processes):
            number = self.random.randrange(len(self.processes))
            if self.processes[number].op:
                fault = self.random.choice(("lost reply", "never arrives", "arrives late"))
                for _ in range(self.random.choice((1, 1, 1, 2, 5, 20))):
                    if not self.step(number, fault if self.random.random() < faults else None):
                        break
                if self.random.random() < crashes:
                    self.crash(number)
            elif self.random.random() < 0.2:
                self.start(number, "add")
            elif number in waiting:
                waiting.remove(number)
                self.start(number, "load")
            if self.random.random() < 0.05:
                self.arrive()
        self.emulator.close()
        return self

    def winners(self) -> list[str]:
        return [op.process for op in self.ops if op.kind == "load" and op.outcome == "ok"]


@functools.cache
def snapshot_of_an_order(*cart: str) -> contexts.Snapshot:
    async def keep(ctx: Context[Any]) -> contexts.Snapshot:
        return contexts.snapshot(ctx, None)

    snapshot = asyncio.run(paused(Order(timeout=None), keep, cart=list(cart)))
    assert isinstance(snapshot, contexts.Snapshot)
    return snapshot


RACES = int(os.environ.get("HISTORIES", "3"))
"""Races of each kind; set the variable for a longer search."""
PAUSES = (60.0, 2 * HOUR, 9.5 * DAY)
BEHAVIOURS = {
    "as documented": Behaviour(),
    "known ids overwritten": Behaviour(
        write_to_expired="ValidationException", write_to_ended="ValidationException", known_step_id="overwrite"
    ),
    "known ids ignored, one for the account": Behaviour(
        write_to_expired="ResourceNotFoundException", known_step_id="no-op", step_ids_unique_per="account"
    ),
    "expired sessions revive": Behaviour(write_to_expired="accepted", end_when_closed="ConflictException"),
    "steps listed late": Behaviour(steps_listed_after_seconds=0.05, known_step_id="overwrite"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("pause", PAUSES)
def test_one_of_those_who_load_at_the_same_moment_has_it(behaviour: str, pause: float) -> None:
    """In any interleaving one process gets the context, whether its session takes writes still or not."""
    for seed in range(RACES):
        race = Race(seed, pause, behaviour=BEHAVIOURS[behaviour], skews=(0.0, -120.0, 180.0)).run()
        assert len(race.winners()) == 1, "\n".join(race.log)
        assert [error.by for error in race.told] == race.winners() * 2


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_no_fault_gives_it_to_two(behaviour: str) -> None:
    """With replies lost, requests lost or late, and processes that die, it is given to one at most."""
    won = 0
    for seed in range(2 * RACES):
        race = Race(seed, PAUSES[seed % 3], behaviour=BEHAVIOURS[behaviour]).run(faults=0.1, crashes=0.02)
        assert len(race.winners()) <= 1, "\n".join(race.log)
        won += len(race.winners())
    assert won


def test_context_moved_during_load_is_loaded() -> None:
    """Who loads is stopped before any of his calls, and the session that he was about to read from is gone by then."""
    stopped = 0
    for ahead in count():
        race = Race(0, 0.0, noise(40_000))
        race.start(0, "add")
        race.finish(0)
        race.start(1, "load")
        if not all(race.step(1) for _ in range(ahead)) or race.processes[1].op is None:
            break
        stopped += 1
        race.start(0, "redact")
        race.finish(0)
        race.finish(1)
        assert [op.outcome for op in race.ops if op.kind != "read"] == ["ok"] * 3, "\n".join(race.log)
    assert stopped > 8


def _created_is_not_asked(patch: pytest.MonkeyPatch) -> None:
    create = client.SessionClient.create_invocation
    patch.setattr(client.SessionClient, "create_invocation", lambda self, *a: (create(self, *a), True)[1])


def _parents_are_not_asked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(claims, "claims", lambda *_: [])


@pytest.mark.parametrize(
    ("broken", "behaviour"),
    [(_created_is_not_asked, "known ids overwritten"), (_parents_are_not_asked, "steps listed late")],
)
def test_without_a_protection_two_have_it(
    broken: Callable[[pytest.MonkeyPatch], None], behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody cares who created the invocation, or looks for claims that are listed late, some race has two."""
    broken(monkeypatch)
    for seed in range(60):
        if len(Race(seed, PAUSES[seed % 3], behaviour=BEHAVIOURS[behaviour]).run().winners()) > 1:
            return
    pytest.fail("one winner in each of 60 races")


def test_a_reply_that_was_lost_takes_it_from_nobody(service: Service) -> None:
    """Whose invocation was created although the reply never came cannot know it, and still gets the context."""
    save(service.store().conversation(KEY))
    service.faults.add("CreateInvocation", 1, "lost_reply")
    client = service.emulator.client()  # this one tries again, as by default
    chat = BedrockSessionsChatStore(client=client).conversation(KEY)
    assert load(chat) == ["yes", ["tea"]]
    assert len(service.faults.fired) == 1


def test_who_dies_while_he_claims_leaves_it_to_others(service: Service) -> None:
    """An invocation that was created, and nothing claimed in it, keeps nobody from the context."""
    save(service.store().conversation(KEY))
    service.faults.add("PutInvocationStep", 1, "internal")
    with pytest.raises(UnavailableError):
        load(service.store().conversation(KEY))
    assert load(service.store().conversation(KEY)) == ["yes", ["tea"]]


LOADER = """
import sys
from llama_index_bedrock_sessions import AlreadyResumed, BedrockSessionsChatStore
from tests.conversation.test_contexts import Order

store = BedrockSessionsChatStore(endpoint_url=sys.argv[1], region_name="us-east-1",
    aws_access_key_id="emulator", aws_secret_access_key="emulator")
print("ready", flush=True)
for name in map(str.strip, sys.stdin):
    try:
        store.conversation(name).load_context(Order(), by=sys.argv[2])
        print("mine", flush=True)
    except AlreadyResumed as error:
        print(error.by, flush=True)
"""


@pytest.mark.thorough
def test_a_double_click_orders_once(service: Service) -> None:
    """Two operating-system processes load at the same moment, often: each time one has it, and the other is told."""
    rounds = [f"order-{number}" for number in range(8)]
    for name in rounds:
        service.store().conversation(name)._save_context(snapshot_of_an_order(), "default")
    service.clock.advance(3 * DAY)
    with (
        service.emulator.serve() as server,
        python(LOADER, server.url, "Ada") as ada,
        python(LOADER, server.url, "Bob") as bob,
    ):
        both = (ada, bob)
        assert [ask(process) for process in both] == ["ready", "ready"]
        told = []
        for name in rounds:
            for process in both:
                assert process.stdin
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
            told.append(tuple(ask(process) for process in both))
        for process in both:
            assert process.stdin
            process.stdin.close()
    assert set(told) <= {("mine", "Ada"), ("Bob", "mine")}


def ask(process: subprocess.Popen[str]) -> str:
    """Return the next line a process prints."""
    assert process.stdout
    line = process.stdout.readline().strip()
    assert line, process.stderr and process.stderr.read()
    return line
