"""Operating-system processes that do one thing to one key at the same moment, over one served emulator."""

from __future__ import annotations

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._journal.ids import Kind, new_id
from tests.support.service import DAY, IDLE, KEY, Service, texts, users

pytestmark = pytest.mark.thorough

PATIENCE = 300
"""Seconds after which a process that another one waits for counts as dead."""
Action = Callable[[Conversation], object]

_processes = multiprocessing.get_context("forkserver")  # what they import is imported once
_processes.set_forkserver_preload([__name__])


def act(url: str, skew: float, action: Action, gate: Any, answer: Any, *, warm: bool) -> None:
    """Be one of the processes: come to the gate, do it when all may, and say what is there afterwards."""
    store = BedrockSessionsChatStore(
        endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b", on_delete="clear"
    )
    store._sessions.clock = Clock(lambda: time.time() + skew)
    chat = store.conversation(KEY)
    if warm:
        chat.messages()
    gate.wait(PATIENCE)
    gate.wait(PATIENCE)
    action(chat)
    answer.send([message.content for message in chat.messages()])


class Barrier:
    """Starts processes that know the conversation, or (`warm=False`) nothing, and lets them do something at once."""

    def __init__(self, url: str) -> None:
        self.url = url

    def at_once(
        self,
        *actions: Action,
        warm: bool = True,
        skews: tuple[float, ...] = (0.0,),
        meanwhile: Callable[[], object] = lambda: None,
    ) -> list[list[str]]:
        """Do each action in a process of its own, after `meanwhile`; return what each of them reads afterwards."""
        gate = _processes.Barrier(len(actions) + 1)
        processes, answers = [], []
        for number, action in enumerate(actions):
            ours, theirs = _processes.Pipe(duplex=False)
            arguments = (self.url, skews[number % len(skews)], action, gate, theirs)
            process = _processes.Process(target=act, args=arguments, kwargs={"warm": warm})
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            processes.append(process)
            answers.append(ours)
        gate.wait(PATIENCE)
        meanwhile()
        gate.wait(PATIENCE)
        found = [answer.recv() for answer in answers]
        for process in processes:
            process.join()
        return found


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def barrier(service: Service) -> Iterator[Barrier]:
    with service.emulator.serve() as server:
        yield Barrier(server.url)


def add(chat: Conversation, name: str, count: int) -> None:
    for number in range(count):
        chat.add(users(f"{name}-{number}"))


def adds(name: str, count: int = 5) -> Action:
    return functools.partial(add, name=name, count=count)


def replace(chat: Conversation, wanted: tuple[str, ...]) -> None:
    chat.set(users(*wanted))


def own(found: list[Any], name: str) -> list[str]:
    return [text for text in found if text.startswith(name)]


def expected(name: str, count: int = 5) -> list[str]:
    return [f"{name}-{number}" for number in range(count)]


def test_the_very_first_message_of_a_key(service: Service, barrier: Barrier) -> None:
    """Eight processes that begin one conversation at once begin one: every message once, one session open."""
    names = "abcdefgh"
    barrier.at_once(*(adds(name, 2) for name in names), warm=False)
    found = texts(service.store())
    assert sorted(map(str, found)) == sorted(text for name in names for text in expected(name, 2))
    for name in names:
        assert own(found, name) == expected(name, 2)
    described: Any = service.store().conversation(KEY).describe()
    assert [session["head"] for session in described["sessions"]] == [True]


@pytest.mark.parametrize("pause", [IDLE, 2 * DAY], ids=["an idle hour", "days"])
def test_two_writers_continue_at_the_same_moment(service: Service, barrier: Barrier, pause: float) -> None:
    """Processes that find the session expired at the same moment go on in one session and lose nothing."""
    service.store().conversation(KEY).add(users("old"))
    barrier.at_once(adds("a"), adds("b"), adds("c"), meanwhile=lambda: service.clock.advance(pause))
    found = texts(service.store())
    assert found[0] == "old"
    assert [own(found, name) for name in "abc"] == [expected(name) for name in "abc"]
    assert len(found) == 16
    described: Any = service.store().conversation(KEY).describe()
    assert [session["head"] for session in described["sessions"]] == [False, True]


OTHERS: dict[str, tuple[Action, list[str]]] = {
    "set_messages": (functools.partial(replace, wanted=("old-1", "new")), ["old-1", "new"]),
    "set_messages, moved": (functools.partial(replace, wanted=("old-2", "old-1", "new")), ["old-2", "old-1", "new"]),
    "delete_messages": (Conversation.clear, []),
    "delete_message": (functools.partial(Conversation.remove, index=0), ["old-1", "old-2"]),
    "archive": (functools.partial(Conversation.archive_oldest, n=2), ["old-2"]),
}


@pytest.mark.parametrize("pause", [0, IDLE], ids=["in one session", "while it is continued"])
@pytest.mark.parametrize("other", OTHERS)
def test_appends_beside_what_replaces_or_removes(service: Service, barrier: Barrier, other: str, pause: float) -> None:
    """What replaces or removes takes away what it has seen, and none of what others append at the same moment."""
    action, left = OTHERS[other]
    service.store().conversation(KEY).add(users(*expected("old", 3)))
    # What it saw of the appends is gone, and those came first: what is left of each writer is the end of it.
    barrier.at_once(adds("a"), adds("b"), action, meanwhile=lambda: service.clock.advance(pause))
    found = texts(service.store())
    assert [text for text in found if text in left] == left
    assert not [text for text in expected("old", 3) if text not in left and text in found]
    for name in "ab":
        there = own(found, name)
        assert there == expected(name)[5 - len(there) :]
        if other in {"delete_message", "archive"}:
            assert len(there) == 5
    later = barrier.at_once(Conversation.count, Conversation.count)
    assert later == [found, found]


def test_clocks_wrong_by_minutes(service: Service, barrier: Barrier) -> None:
    """Whatever the clocks of their machines say, who has read a message writes after it, and nothing is lost."""
    skews = (0.0, -300.0, 420.0)
    for turn in range(3):
        names = [f"{name}{turn}" for name in "abc"]
        barrier.at_once(*(adds(name, 3) for name in names), skews=skews)
    found = texts(service.store())
    assert len(found) == 27
    assert [str(text)[1] for text in found] == sorted(str(text)[1] for text in found)
    for name in "abc":
        assert own(found, name) == [f"{name}{turn}-{number}" for turn in range(3) for number in range(3)]


def test_an_id_of_the_far_future(service: Service, barrier: Barrier) -> None:
    """A step whose id is years ahead is kept, and does not spoil the order of the others, nor in the next session."""
    service.store().conversation(KEY).add(users("first"))
    (session,) = service.sessions()
    service.boto3.put_invocation_step(
        sessionIdentifier=session["sessionId"],
        invocationIdentifier=default_invocation(session["sessionId"]),
        invocationStepId=new_id(4_000_000_000_000, Kind.CHANGE),
        invocationStepTime=service.clock.now(),
        payload={"contentBlocks": [{"text": "future"}]},
    )
    for turn in range(2):
        barrier.at_once(adds(f"a{turn}", 2), adds(f"b{turn}", 2), skews=(0.0, 600.0))
        service.clock.advance(IDLE)
    found = texts(service.store())
    rest = [str(text) for text in found if text not in {"first", "future"}]
    assert (found[0], len(found), "future" in found) == ("first", 10, True)
    assert [text[1] for text in rest] == ["0"] * 4 + ["1"] * 4
