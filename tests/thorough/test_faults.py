"""Every fault at every call of every public method that talks to the service.

A method gets its cases by one line of `CASES`: `Case(Conversation, "remove", 1)` runs `conversation.remove(1)` in every
one of `SITUATIONS`. First without a fault, which says what calls it makes and what it changes; then once for each call
and each kind of fault. What a kind of fault has to lead to is known by the state a process leaves behind that is killed
at that call. A public method that neither has a case nor is in `WITHOUT_CALLS` fails a test. Fields of `Case` that a
line may set:

    where      the names of the `SITUATIONS` it runs in; with `FAULTS=all` in the environment it is all of them
    partly     the method takes several steps: what a reader may find when it stopped between them, as a function of
               what it finds before, after, and then
    afterwards what is called to make the conversation take messages again, for a method after which it takes none
    make       how to get the object from a store, where `MAKE[cls]` does not do
    proof      what asserts, of a boto3 client, what has to be in the service once the method has succeeded, and whether
               that was when it was done `again`, with no fault
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import os
import pickle
import random
from collections.abc import AsyncIterator, Callable, ItemsView, Iterator, KeysView, MutableMapping, Sequence, ValuesView
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import BaseComponent
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.workflow import Context
from pydantic import BaseModel

from llama_index_bedrock_sessions import (
    AccessDeniedError,
    BedrockSessionsChatStore,
    BedrockSessionsError,
    BedrockSessionsMemory,
    BedrockSessionsMemoryStore,
    Conversation,
    ThrottledError,
    UnavailableError,
    UsageError,
)
from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._bedrock.connection import timestamp
from llama_index_bedrock_sessions._conversation import contexts, continuation
from llama_index_bedrock_sessions._conversation.state import State
from llama_index_bedrock_sessions._journal.encoding import envelope, opening_json
from llama_index_bedrock_sessions._journal.ids import Home, Kind, new_id
from llama_index_bedrock_sessions._journal.model import Opening
from llama_index_bedrock_sessions.emulator import FAULTS, Emulator
from tests.conversation.test_contexts import Refund
from tests.support.service import DAY, IDLE, KEY, QUICK, picture, sessions, stored, user, users

pytestmark = pytest.mark.thorough

CONTINUE_AT = continuation.CONTINUE_AT
START = datetime(2026, 1, 1, tzinfo=UTC)
ARCHIVED = MessageStatus.ARCHIVED

KINDS = (*sorted(FAULTS), "killed")
"""What can happen to a call. "killed": the service carries it out, and the process never hears of it nor of anything
else; the faults of the emulator are those of `emulator.faults`."""
CARRIED_OUT = {"lost_reply", "read_timeout", "torn_body", "slow", "killed"}
ERRORS: dict[str, type[BedrockSessionsError]] = {"throttle": ThrottledError, "access_denied": AccessDeniedError}
"""What a fault is called in our tree, if it is not an `UnavailableError`."""


class View(NamedTuple):
    """What a reader finds under the key."""

    active: list[ChatMessage]
    archived: list[ChatMessage]
    state: dict[str, Any]
    ended: bool


class Killed(BaseException):
    """Ends a process: nothing may catch it."""


class Moment(NamedTuple):
    """What the service holds, table by table, and its time in seconds since 1970."""

    tables: tuple[tuple[tuple[Any, ...], ...], ...]
    time: float


class Client:
    """A boto3 client that tells which calls are made. One of them may fail, or be the last."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.begin()

    def begin(self, *, last: int | None = None, fault: str | None = None, on: range = range(0)) -> None:
        """Count from here: the `fault` is to fall on some calls; the process is killed after the `last` one."""
        self.made: list[str] = []
        self.refused: list[int] = []
        self._last, self._fault, self._on = last, fault, on

    def __getattr__(self, operation: str) -> Any:
        return functools.partial(self._call, operation)

    def _call(self, operation: str, **arguments: Any) -> Any:
        if self._last is not None and len(self.made) >= self._last:
            raise Killed
        self.made.append("".join(word.title() for word in operation.split("_")))
        number = len(self.made)
        try:
            reply = self._world.call(operation, arguments, self._fault if number in self._on else None)
        except ClientError:
            self.refused.append(number)
            raise
        if number == self._last:
            raise Killed
        return reply


class World:
    """One emulator, and the processes on it.

    Its time stands still and its ids follow from `phase`, so the same call of the same stored data has the same answer.
    The emulator is asked for it once, with the fault if one falls on it; then it is remembered, with what is stored
    afterwards. A fault that does not fire where it is to fall fails there and then.
    """

    def __init__(self, attempts: int = 1) -> None:
        self.emulator = Emulator()
        self.emulator.clock.stop(START)
        retries: Any = {"total_max_attempts": attempts, "mode": "standard"}
        # The emulator checks what botocore checks.
        config = Config(retries=retries, parameter_validation=False, **QUICK)
        self.boto3: Any = self.emulator.client(config=config, timestamp_parser=timestamp)
        self.now = self._inside = self._begun = self._look()
        self._stored: dict[Callable[[World], None], Moment] = {}
        self.forget()

    def forget(self) -> None:
        """Forget the answers, which would take more and more memory."""
        self._answers: dict[Any, tuple[Any, Moment]] = {}
        self._views: dict[Moment, View] = {}

    def _look(self) -> Moment:
        with self.emulator._database.reading() as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            tables = tuple(tuple(map(tuple, database.execute(f"SELECT * FROM {name}"))) for name in names)
        return Moment(tables, self.emulator.clock.now().timestamp())

    def enter(self) -> None:
        """Bring the emulator to the present moment."""
        if self._inside is self.now:
            return
        with self.emulator._database.writing() as database:
            names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for name in reversed(names):
                database.execute(f"DELETE FROM {name}")
            for name, rows in zip(names, self.now.tables, strict=True):
                database.execute(f"DELETE FROM {name}")  # of SQLite's own table: what was inserted before it
                for row in rows:
                    database.execute(f"INSERT INTO {name} VALUES ({', '.join('?' * len(row))})", row)
        self._inside = self.now

    def _remember(self, asked: Any, ask: Callable[[], Any]) -> Any:
        found = self._answers.get((self.now, asked))
        if found is None:
            self.enter()
            answer = ask()
            self._inside = self._look()
            found = self._answers[self.now, asked] = answer, self._inside
        answer, self.now = found
        return answer

    def call(self, operation: str, arguments: dict[str, Any], fault: str | None) -> Any:
        """Call an operation of the service, with a fault or without."""
        asked = operation, repr(arguments), fault
        answer = self._remember(asked, functools.partial(self._ask, operation, arguments, fault))
        if isinstance(answer, Exception):
            raise copy.copy(answer)
        return pickle.loads(answer)

    def _ask(self, operation: str, arguments: dict[str, Any], fault: str | None) -> Any:
        faults = self.emulator.faults
        faults.clear()
        if fault:
            faults.add(None, 1, fault, seconds=0)
        # An answer that is remembered takes no random bits of the caller's, so that one that is new takes none either.
        of_caller = os.urandom
        os.urandom = random.Random(repr((self.now, operation, arguments, fault))).randbytes
        try:
            return pickle.dumps(getattr(self.boto3, operation)(**arguments))
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            return error.with_traceback(None)
        finally:
            os.urandom = of_caller
            assert [fired.fault for fired in faults.fired] == ([fault] if fault else [])
            faults.clear()

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._remember(seconds, lambda: self.emulator.clock.advance(seconds))

    def phase(self, name: str) -> None:
        """Begin what takes its random bits and its time from a name, whatever came before."""
        os.urandom = random.Random(name).randbytes
        self.advance(3)

    def begin(self, stored: Callable[[World], None]) -> None:
        """Go to a moment when this, and nothing else, is stored."""
        if stored not in self._stored:
            self.now = self._begun
            self.phase(stored.__name__)  # ids of its own, whatever was tried before
            stored(self)
            self._stored[stored] = self.now
        self.now = self._stored[stored]

    def store(self, client: Any = None) -> BedrockSessionsChatStore:
        """Return a store as another process has one; its calls come one after the other unless it has a `client`."""
        store = BedrockSessionsChatStore(client=client or Client(self))
        store._sessions.clock = Clock(lambda: self.now.time)
        store._sessions.sleep = self.advance
        if client is None:
            store._sessions.pool.map = lambda function, items: [function(item) for item in items]  # type: ignore[method-assign]
        return store

    def view(self) -> View:
        """Return what a new process finds."""
        if self.now not in self._views:
            self._views[self.now] = view(self.store())
        return self._views[self.now]


def view(store: BedrockSessionsChatStore) -> View:
    """Return what a store finds by a strict read."""
    chat = store.conversation(KEY)
    active = chat.messages()
    journal = chat._engine.reader.known()
    archived = chat.messages(status=ARCHIVED, fresh=False)
    return View(active, archived, _without_times(journal.fold.named("")), journal.fold.ended() is not None)


def _without_times(state: dict[str, Any]) -> dict[str, Any]:
    """Return named state without the ids and times of saved contexts, which are others when it is done again."""

    def plain(name: str, value: Any) -> Any:
        is_told = isinstance(value, dict) and name.startswith(contexts.PREFIX)
        return {k: v for k, v in value.items() if k not in {"id", "of", "time"}} if is_told else value

    return {name: plain(name, value) for name, value in state.items()}


# What is there before


def nothing(_: World) -> None:
    """Do nothing."""


def some(world: World) -> None:
    """Store a conversation that has everything a conversation can have."""
    chat = world.store().conversation(KEY)
    chat.add(users("zero"), status=ARCHIVED)
    chat.add([user("one"), picture(), user("two")], state={"likes": "tea", "cart": [1, 2]})


def old(world: World) -> None:
    """Store one whose first session is about to leave retention."""
    some(world)
    for day in range(4):
        world.advance(2 * DAY)
        world.store().add_message(KEY, user(f"day {day}"))
    world.advance(2 * DAY)


def continued(world: World) -> None:
    """Store one that has gone on in a second session."""
    some(world)
    world.advance(IDLE)
    world.store().add_message(KEY, user("later"))


def hidden(world: World) -> None:
    some(world)
    world.store().conversation(KEY).hide()


def ended(world: World) -> None:
    some(world)
    world.store().conversation(KEY).end("solved")


def another(world: World) -> None:
    """Store one under another key."""
    other(world.store()).add([user("one"), picture()], state={"likes": "tea"})


def paused(world: World) -> None:
    """Store one with a saved context."""
    some(world)
    world.store().conversation(KEY).save_context(Context(Refund()))


def attachable(world: World) -> None:
    """Store one beside a session that another tool made."""
    some(world)
    Client(world).create_session()


def two_heads(world: World) -> None:
    """Store one that two processes have begun at the same moment, each in a session of its own."""
    some(world)
    client = Client(world)
    first = client.list_sessions()["sessionSummaries"][0]["sessionId"]
    metadata = client.get_session(sessionIdentifier=first)["sessionMetadata"]
    other = client.create_session(sessionMetadata=metadata)["sessionId"]
    client.create_invocation(sessionIdentifier=other, invocationId=default_invocation(other))
    now = datetime.fromtimestamp(world.now.time, UTC)
    opening = Opening(0, covers={}, parents={}, removed=frozenset(), segments=(), last_set=None)
    home = Home(other, default_invocation(other), new_id(int(now.timestamp() * 1000), Kind.OPENING))
    client.put_invocation_step(
        sessionIdentifier=other,
        invocationIdentifier=home.invocation,
        invocationStepId=home.step,
        invocationStepTime=now,
        payload={"contentBlocks": [envelope({}, {"opening": opening_json(opening)})]},
    )


def an_hour(world: World) -> None:
    """Let the session expire."""
    world.advance(IDLE)


def somebody_ends(world: World) -> None:
    """End the session with another tool, which the process does not know."""
    client = Client(world)
    for session in client.list_sessions()["sessionSummaries"]:
        client.end_session(sessionIdentifier=session["sessionId"])


@dataclass(frozen=True)
class Situation:
    """What is stored, whether the process has read it, and what happens then before it acts."""

    stored: Callable[[World], None] = some
    reads: bool = True
    meanwhile: Callable[[World], None] = nothing
    steps: int | None = None

    def begin(self, world: World) -> BedrockSessionsChatStore:
        """Bring the stored data back, and return the store of a process that is about to act."""
        world.begin(self.stored)
        world.phase("begin")
        store = world.store()
        if self.reads:
            store.get_messages(KEY)
        self.meanwhile(world)
        store.client.begin()
        return store


SITUATIONS = {
    "a new key": Situation(nothing, reads=False),
    "a process that has read": Situation(),
    "a process that has not": Situation(reads=False),
    "an hour later": Situation(meanwhile=an_hour),
    "a session that somebody has ended": Situation(meanwhile=somebody_ends),
    "a session that is full": Situation(steps=2),
    "two heads": Situation(two_heads),
    "about to leave retention": Situation(old),
    "hidden": Situation(hidden),
    "another key": Situation(another),
    "a saved context": Situation(paused),
    "a saved context an hour later": Situation(paused, meanwhile=an_hour),
    "a session of another tool": Situation(attachable),
    "in a second session": Situation(continued),
    "ended": Situation(ended),
}
READ, COLD, LATER, CLOSED, FULL, HEADS, OLD, HIDDEN, OTHER, PAUSED, PAUSED_LATER, FOREIGN, SECOND, ENDED = list(
    SITUATIONS
)[1:]
WRITABLE = tuple(SITUATIONS)[:-1]
"""The situations in which a conversation takes messages."""
USUAL = ("a new key", READ, COLD, LATER)
FEW = (READ,)
"""Situations for what only passes on to a method that has cases of its own."""


# What is called


def other(store: BedrockSessionsChatStore) -> Conversation:
    return store.conversation("another key")


def memory(store: BedrockSessionsChatStore) -> BedrockSessionsMemory:
    return BedrockSessionsMemory.from_defaults(session_id=KEY, chat_store=store)


def crowded_memory(store: BedrockSessionsChatStore) -> BedrockSessionsMemory:
    """Return a memory that archives the oldest messages at every turn."""
    return BedrockSessionsMemory.from_defaults(
        session_id=KEY, chat_store=store, token_limit=300, token_flush_size=10, chat_history_token_ratio=0.1
    )


class Block:
    """Writes in an invocation of its own."""

    def __init__(self, store: BedrockSessionsChatStore) -> None:
        self.chat = store.conversation(KEY)

    def add(self, messages: list[ChatMessage]) -> None:
        with self.chat.invocation("Investigate", by="ana"):
            self.chat.add(messages)


class Job:
    """Renews all conversations, and raises what kept it from renewing one."""

    def __init__(self, store: BedrockSessionsChatStore) -> None:
        self.store = store

    def renew(self) -> tuple[str, ...]:
        renewed = self.store.renew(older_than=timedelta(0))
        for error in renewed.failed.values():
            raise error
        return renewed.keys


def indexed(store: BedrockSessionsChatStore) -> BedrockSessionsChatStore:
    """Return a store with the same client that has its directory in a key-value store, which is empty."""
    other = BedrockSessionsChatStore(client=store.client, directory=SimpleKVStore())
    other._sessions.sleep = store._sessions.sleep
    other._sessions.clock, other._sessions.pool.map = store._sessions.clock, store._sessions.pool.map  # type: ignore[method-assign]
    return other


MAKE: dict[type, Callable[[BedrockSessionsChatStore], Any]] = {
    BedrockSessionsChatStore: lambda store: store,
    Conversation: lambda store: store.conversation(KEY),
    State: lambda store: store.conversation(KEY).state,
    BedrockSessionsMemoryStore: BedrockSessionsMemoryStore,
    BedrockSessionsMemory: memory,
}


class Case:
    """A call of a public method. An argument that is a function is called with what is stored, as a store has it."""

    def __init__(
        self,
        cls: type,
        method: str,
        *arguments: Any,
        where: tuple[str, ...] = USUAL,
        partly: Callable[[View, View, View], bool] | None = None,
        afterwards: Callable[[Conversation], object] = lambda _: None,
        make: Callable[[BedrockSessionsChatStore], Any] | None = None,
        proof: Callable[[Any, bool], None] | None = None,
        **named: Any,
    ) -> None:
        self.cls, self.method = cls, method
        self.where = WRITABLE if os.environ.get("FAULTS") == "all" else where
        self.arguments, self.named = arguments, named
        self.partly, self.afterwards, self.proof = partly, afterwards, proof
        self.make = make or MAKE[cls]

    def __str__(self) -> str:
        words = [str(a) for a in self.named.values() if isinstance(a, (str, int))]
        maker = f" of a {self.make.__name__}" if self.make is not MAKE[self.cls] else ""
        return " ".join([f"{self.cls.__name__}.{self.method}", *words]) + maker

    def given(self, world: World) -> list[Any]:
        """Return the arguments."""
        return [given(world.store()) if inspect.isfunction(given) else given for given in self.arguments]

    def act(self, store: BedrockSessionsChatStore, arguments: Sequence[Any], *, twin: bool = False) -> Any:
        """Call the method, or its async twin where it has one; return what it returns as something to compare."""
        thing = self.make(store)
        names = [f"a{self.method}", f"async_{self.method}"] if twin else []
        method = next((m for name in names if (m := getattr(thing, name, None))), getattr(thing, self.method))
        try:
            result = method(*arguments, **self.named)
            if inspect.isasyncgen(result):
                result = _all(result)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
        except (KeyError, UsageError) as error:
            return repr(error)
        if isinstance(result, Conversation):
            return result.key
        if isinstance(result, Context):
            return result.to_dict()
        return list(result) if isinstance(result, (KeysView, ItemsView, ValuesView, Iterator)) else result


def archived_late(before: View, after: View, seen: View) -> bool:
    """Whether messages are there that are not archived yet."""
    return sorted(map(str, seen.active + seen.archived)) == sorted(map(str, after.active + after.archived))


async def _all(generator: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in generator]


def some_gone(before: View, after: View, seen: View) -> bool:
    """Whether nothing is there that was not."""
    return all(m in before.active for m in seen.active) and seen.archived in ([], before.archived)


def first_message(store: BedrockSessionsChatStore) -> str:
    return store.conversation(KEY).history()[0].added[0]


def redacted(client: Any, again: bool) -> None:
    assert "zero" not in stored(client)
    # The copy; what fails after it was opened leaves a session to be deleted, or one that goes on after the copy.
    assert len(sessions(client)) in ([1] if again else [1, 2])


def of_another_tool(store: BedrockSessionsChatStore) -> str:
    sessions = [session["sessionId"] for session in store.client.list_sessions()["sessionSummaries"]]
    found = [id_ for id_ in sessions if not store.client.get_session(sessionIdentifier=id_).get("sessionMetadata")]
    return str(found[0])


def context(_: BedrockSessionsChatStore) -> Context[Any]:
    return Context(Refund())


def workflow(_: BedrockSessionsChatStore) -> Refund:
    return Refund()


ADD = Case(Conversation, "add", [user("new")], where=WRITABLE)
CASES = [
    Case(Conversation, "messages", where=(*USUAL, HEADS)),
    Case(Conversation, "count", where=FEW),
    Case(Conversation, "history", where=FEW),
    Case(Conversation, "describe", where=FEW),
    Case(Conversation, "last_id", where=FEW),
    ADD,
    Case(Conversation, "add", users("new", "newer"), status=ARCHIVED, where=FEW),
    Case(Conversation, "set", users("one", "other"), where=(*USUAL, HEADS)),
    Case(Conversation, "remove", 1),
    Case(Conversation, "remove_last", where=FEW),
    Case(Conversation, "remove_oldest", 2, where=FEW),
    Case(Conversation, "archive_oldest", 2, where=(*USUAL, OLD)),
    Case(Conversation, "clear", where=(*USUAL, FULL)),
    Case(Conversation, "delete", where=(*USUAL, HEADS), partly=some_gone),
    Case(Conversation, "end", "solved", where=(*USUAL, HEADS), afterwards=Conversation.reopen),
    Case(Conversation, "reopen", where=(ENDED,), afterwards=Conversation.reopen),
    Case(Conversation, "hide", where=(READ, LATER)),
    Case(Conversation, "restore", where=(HIDDEN,)),
    Case(Conversation, "renew", timedelta(0), where=(READ, LATER)),
    Case(Conversation, "update_metadata", {"severity": "high"}, where=FEW),
    Case(Conversation, "records", where=FEW),
    Case(Conversation, "add", users("new"), make=Block),
    Case(Conversation, "contexts", where=FEW),
    Case(Conversation, "save_context", context, where=(READ, LATER, PAUSED)),
    Case(Conversation, "load_context", workflow, where=(PAUSED, PAUSED_LATER)),
    Case(Conversation, "delete_context", where=(PAUSED,)),
    Case(Conversation, "fork", KEY, where=(OTHER,), make=other),
    Case(Conversation, "redact", first_message, where=(READ, LATER, SECOND), proof=redacted),
    Case(State, "copy", where=FEW),
    Case(State, "update", {"likes": "coffee", "new": 1}, where=(*USUAL, CLOSED)),
    Case(State, "get", "likes", where=FEW),
    Case(State, "items", where=FEW),
    Case(State, "keys", where=FEW),
    Case(State, "values", where=FEW),
    Case(State, "pop", "likes", None, where=FEW),
    Case(State, "popitem", where=FEW),
    Case(State, "setdefault", "new", 1, where=FEW),
    Case(State, "clear", where=FEW),
    Case(State, "__getitem__", "likes", where=FEW),
    Case(State, "__setitem__", "likes", "coffee", where=FEW),
    Case(State, "__delitem__", "likes", where=FEW),
    Case(State, "__contains__", "likes", where=FEW),
    Case(State, "__iter__", where=FEW),
    Case(State, "__len__", where=FEW),
    Case(BedrockSessionsChatStore, "get_messages", KEY, where=FEW),
    Case(BedrockSessionsChatStore, "get_keys", where=FEW),
    Case(BedrockSessionsChatStore, "conversations", where=FEW),
    Case(BedrockSessionsChatStore, "attach", of_another_tool, where=(FOREIGN,)),
    Case(BedrockSessionsChatStore, "rebuild_directory", where=FEW, make=indexed),
    Case(BedrockSessionsChatStore, "renew", where=(READ, LATER), make=Job),
    Case(BedrockSessionsChatStore, "add_message", KEY, user("new"), where=FEW),
    Case(BedrockSessionsChatStore, "set_messages", KEY, users("one", "other"), where=FEW),
    Case(BedrockSessionsChatStore, "delete_message", KEY, 1, where=FEW),
    Case(BedrockSessionsChatStore, "delete_last_message", KEY, where=FEW),
    Case(BedrockSessionsChatStore, "delete_messages", KEY, where=FEW, partly=some_gone),
    Case(BedrockSessionsMemoryStore, "get_messages", KEY, where=FEW),
    Case(BedrockSessionsMemoryStore, "count_messages", KEY, where=FEW),
    Case(BedrockSessionsMemoryStore, "add_message", KEY, user("new"), where=FEW),
    Case(BedrockSessionsMemoryStore, "add_messages", KEY, users("new", "newer"), where=FEW),
    Case(BedrockSessionsMemoryStore, "set_messages", KEY, users("other"), ARCHIVED, where=FEW),
    Case(BedrockSessionsMemoryStore, "delete_message", KEY, 1, where=FEW),
    Case(BedrockSessionsMemoryStore, "delete_messages", KEY, where=FEW),
    Case(BedrockSessionsMemoryStore, "delete_oldest_messages", KEY, 2, where=FEW),
    Case(BedrockSessionsMemoryStore, "archive_oldest_messages", KEY, 2, where=FEW),
    Case(BedrockSessionsMemoryStore, "get_keys", where=FEW),
    Case(BedrockSessionsMemory, "get", where=FEW),
    Case(BedrockSessionsMemory, "get_all", where=FEW),
    Case(BedrockSessionsMemory, "put", user("new"), where=FEW),
    Case(BedrockSessionsMemory, "put", user("new"), where=(READ, LATER), partly=archived_late, make=crowded_memory),
    Case(BedrockSessionsMemory, "put_messages", users("new", "newer"), where=FEW),
    Case(BedrockSessionsMemory, "set", users("other"), where=FEW),
    Case(BedrockSessionsMemory, "reset", where=FEW),
]
WITHOUT_CALLS = {
    BedrockSessionsChatStore: {"conversation", "local", "uncached"},
    Conversation: {"invocation"},
    State: set[str](),
    BedrockSessionsMemory: {"from_defaults", "validate_memory"},
    BedrockSessionsMemoryStore: set[str](),
}
"""Public methods that make no call."""
PARAMETERS = [
    (case, where, twin)
    for number, case in enumerate(CASES)
    for place, where in enumerate(case.where)
    for twin in ((False, True) if case.cls is BedrockSessionsChatStore else (bool((number + place) % 2),))
]
"""Each case in each of its situations, by the method or by its async twin in turn; those of the store are written out,
and both are tried."""


# The judge


class Trial:
    """A case in a situation: what it does without a fault, and whether it keeps its promises with one."""

    def __init__(self, world: World, case: Case, where: str, *, twin: bool = False) -> None:
        self.world, self.case, self.situation, self.twin = world, case, SITUATIONS[where], twin
        world.forget()
        store = self.begin()
        self.before, self.arguments = self.world.view(), case.given(world)
        self.result = self.act(store)
        self.calls, self.refused = list(store.client.made), list(store.client.refused)
        self.after = self.world.view()
        self.act(store, "again")
        self.twice = self.world.view()
        self.left = [self.before]
        """What a process leaves behind that is killed at the nth call."""
        self._looked: set[tuple[Any, ...]] = set()

    def begin(self) -> BedrockSessionsChatStore:
        return self.situation.begin(self.world)

    def act(self, store: BedrockSessionsChatStore, phase: str = "act") -> Any:
        self.world.phase(phase)
        return self.case.act(store, self.arguments, twin=self.twin)

    def killed(self, call: int) -> None:
        """Kill the process at a call: nothing is torn, others go on, and so does it, if it was only interrupted."""
        store = self.begin()
        store.client.begin(last=call)
        with pytest.raises(Killed):
            self.act(store)
        store.client.begin()
        seen = self.world.view()
        self.left.append(seen)
        assert seen in (self.before, self.after) or self.is_part(self.before, self.after, seen), seen
        if self.is_new("killed"):
            self.goes_on(self.world.store(), seen, "on")
        self.goes_on(store, self.world.view(), "on too")

    def meets(self, kind: str, call: int, times: int = 1) -> None:
        """Let a fault fall on a call: one effect, or an error that says what is known; then repeat it as that says."""
        store = self.begin()
        store.client.begin(fault=kind, on=range(call, call + times))
        try:
            result = self.act(store)
        except BedrockSessionsError as error:
            self.fired(store, call)
            self.failed(error, kind, call)
            if self.is_new(call, type(error), error.may_have_happened):
                self.act(store, "again")
                self.repeated(error)
                self.goes_on(store, self.world.view(), "on")
        else:
            self.fired(store, call)
            assert result == self.result
            seen = self.world.view()
            assert seen == self.after or self.is_part(self.before, self.after, seen), seen
            self.proven(again=False)
            if self.is_new(call):
                self.goes_on(store, seen, "on")

    def fired(self, store: BedrockSessionsChatStore, call: int) -> None:
        assert store.client.made[:call] == self.calls[:call], "it fell on another call, or on none"
        store.client.begin()

    def is_new(self, *outcome: Any) -> bool:
        """Whether it remains to be seen how all goes on: of one outcome, with the same stored, it goes on alike."""
        before = len(self._looked)
        self._looked.add((*outcome, self.world.now))
        return len(self._looked) > before

    def failed(self, error: BedrockSessionsError, kind: str, call: int) -> None:
        assert type(error) is ERRORS.get(kind, UnavailableError)
        assert error.retryable is (kind != "access_denied")
        seen = self.world.view()
        assert seen == self.left[call if kind in CARRIED_OUT else call - 1]
        if error.may_have_happened:
            # Of a step that is refused, and is looked for then, one cannot know.
            unknown = {*self.refused, *(n + 1 for n in self.refused)}
            # Nor is everything seen here: that a session without messages is gone, or that there is another.
            is_seen = self.after != self.before and not self.case.partly
            possible = not is_seen or self.left[call] != self.before or call in unknown
            assert possible, "said to be possible, which it is not"
        else:
            assert seen == self.before, "it is said not to have happened, but has"

    def repeated(self, error: BedrockSessionsError) -> None:
        seen = self.world.view()
        if error.may_have_happened:
            assert seen in (self.after, self.twice) or self.is_part(self.before, self.twice, seen), seen
        else:
            assert seen == self.after
        self.proven(again=True)

    def proven(self, *, again: bool) -> None:
        if self.case.proof:
            self.world.enter()
            self.case.proof(self.world.boto3, again)

    def is_part(self, before: View, after: View, seen: View) -> bool:
        return bool(self.case.partly and self.case.partly(before, after, seen))

    def goes_on(self, store: BedrockSessionsChatStore, seen: View, text: str) -> None:
        """Write and read on: all of it is there once, and another process finds the same."""
        self.case.afterwards(store.conversation(KEY))
        self.world.phase(text)
        store.add_message(KEY, user(text))
        assert view(store) == self.world.view() == seen._replace(active=[*seen.active, user(text)], ended=False)


def name(case: Case, where: str, twin: bool) -> str:
    return f"{case}{' by its twin' if twin else ''}: {where}".replace(" ", "-")


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back what `World.phase` and the situations set."""
    monkeypatch.setattr(os, "urandom", os.urandom)
    monkeypatch.setattr(continuation, "CONTINUE_AT", continuation.CONTINUE_AT)


@functools.cache
def trial(case: Case, where: str, twin: bool = False, attempts: int = 1) -> Trial:
    continuation.CONTINUE_AT = SITUATIONS[where].steps or CONTINUE_AT
    return Trial(_world(attempts), case, where, twin=twin)


_world = functools.cache(World)


@pytest.mark.parametrize(("case", "where", "twin"), PARAMETERS, ids=[name(*p) for p in PARAMETERS])
def test_every_fault_at_every_call(case: Case, where: str, twin: bool) -> None:
    """Each ends with its effect once, or with an error that is right; then everybody goes on."""
    tried = trial(case, where, twin)
    continuation.CONTINUE_AT = SITUATIONS[where].steps or CONTINUE_AT
    for call in range(1, len(tried.calls) + 1):
        tried.killed(call)
    for call in range(1, len(tried.calls) + 1):
        for kind in sorted(FAULTS):
            tried.meets(kind, call)


@pytest.mark.parametrize("kind", ["lost_reply", "refused", "throttle"])
def test_a_service_that_stays_away(kind: str) -> None:
    """Where every call fails from one on, the error is as right, and afterwards all is as before."""
    for where in (READ, COLD, LATER):
        tried = trial(ADD, where)
        for call in range(len(tried.left), len(tried.calls) + 1):
            tried.killed(call)
        for call in range(1, len(tried.calls) + 1):
            tried.meets(kind, call, times=1000)


@pytest.mark.parametrize("kind", sorted(FAULTS - {"access_denied", "torn_body"}))
def test_botocores_retries_hide_what_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With retries, as by default, a fault that passes is no error, and its effect is there once."""
    monkeypatch.setattr("time.sleep", lambda _: None)  # botocore's pause before a retry
    for where in (READ, LATER):
        tried = trial(ADD, where, attempts=5)
        for call in range(1, len(tried.calls) + 1):
            store = tried.begin()
            store.client.begin(fault=kind, on=range(call, call + 1))
            tried.act(store)
            tried.fired(store, call)
            assert tried.world.view() == tried.after


@pytest.mark.parametrize("operation", ["ListSessions", "GetSession", "ListInvocationSteps", "GetInvocationStep"])
def test_a_fault_among_parallel_calls(operation: str) -> None:
    """Where calls are made at once, one that fails is the error of all, and none is still under way."""
    world = _world()
    world.begin(old)
    world.enter()
    world.emulator.calls.clear()
    expected = view(world.store(world.boto3))
    for number in range(1, 1 + [call.operation for call in world.emulator.calls].count(operation)):
        store = world.store(world.boto3)
        world.emulator.faults.add(operation, number, "unavailable")
        with pytest.raises(UnavailableError):
            view(store)
        assert len(world.emulator.faults.fired) == 1
        world.emulator.faults.clear()
        assert view(store) == expected


def test_the_number_of_cases(record_property: Callable[[str, object], None]) -> None:
    """A case for every kind of fault at every call of every method: so many that none has quietly gone."""
    calls = {parameters: len(trial(*parameters).calls) for parameters in PARAMETERS}
    assert [name(*parameters) for parameters, number in calls.items() if not number] == []
    number = sum(calls.values()) * len(KINDS)
    record_property("counted", f"{number} cases: {len(KINDS)} kinds of fault at {sum(calls.values())} calls")
    assert number > 8000


def public_methods(cls: type) -> set[str]:
    """Return the public methods of a class, those it inherits from LlamaIndex too; of a mapping all of a mapping's."""
    found = {name for name in dir(cls) if not name.startswith("_") and callable(getattr(cls, name))}
    if issubclass(cls, MutableMapping):
        return found | {"__contains__", "__delitem__", "__getitem__", "__iter__", "__len__", "__setitem__"}
    return found - set(dir(BaseComponent)) if issubclass(cls, BaseModel) else found


@pytest.mark.parametrize("cls", MAKE, ids=lambda cls: cls.__name__)
def test_every_public_method_has_a_case(cls: type) -> None:
    """A public method that may talk to the service is in `CASES`, itself or as the twin of one that is."""
    covered = {case.method for case in CASES if case.cls is cls}
    twins = {twin for name in covered for twin in (f"a{name}", f"async_{name}")}
    methods = public_methods(cls)
    assert methods - covered - twins - WITHOUT_CALLS[cls] == set()
    assert covered | WITHOUT_CALLS[cls] <= methods
