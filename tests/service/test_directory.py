"""Finding the sessions of a key by their metadata, and never touching those of anybody else."""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import PrivateAttr

from llama_index_bedrock_sessions import (
    AccessDeniedError,
    BedrockSessionsChatStore,
    Conversation,
    DirectoryTooLarge,
    ForeignSessionError,
    InvalidKeyError,
    SessionClosed,
    ThrottledError,
)
from llama_index_bedrock_sessions._bedrock.directory.base import BATCH, MANY, RateLimiter
from llama_index_bedrock_sessions._conversation import continuation, writer
from llama_index_bedrock_sessions.conformance import ChatStoreContract
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.histories import short_sessions
from tests.support.service import DAY, IDLE, KEY, Service, texts, user, users

pytestmark = pytest.mark.thorough


@pytest.fixture
def service() -> Service:
    return Service()


def by_hand(service: Service, **metadata: str) -> str:
    """Make a session with plain boto3, with a step in it; return its id."""
    session: str = service.boto3.create_session(sessionMetadata={k.replace("_", "-"): v for k, v in metadata.items()})[
        "sessionId"
    ]
    service.put(session, [{"text": "by hand"}])
    return session


def exercise(service: Service, **arguments: Any) -> None:
    """Do to a key whatever a store can do."""
    store = service.store(**arguments)
    store.add_message(KEY, user("one"))
    store.set_messages(KEY, users("two", "three"))
    store.delete_message(KEY, 0)
    service.later(IDLE)
    store.add_message(KEY, user("four"))
    assert texts(store) == ["three", "four"]
    store.delete_messages(KEY)


def test_sessions_of_others_are_never_touched(service: Service) -> None:
    """Sessions of other keys, namespaces and tools stay as they are, whatever is done to a key."""
    service.store().add_message("another key", user("stays"))
    service.store(namespace="another").add_message(KEY, user("stays"))
    by_hand(service)
    by_hand(service, owner="somebody")
    by_hand(service, llama_index_key=KEY)
    by_hand(service, llama_index_key=KEY, llama_index_namespace="another")
    by_hand(service, llama_index_key="x", llama_index_namespace="default")

    def without_status() -> list[Any]:
        return [({**session, "sessionStatus": None}, steps) for session, steps in service.everything()]

    before = without_status()
    exercise(service)
    assert without_status() == before
    assert texts(service.store(), "another key") == ["stays"]
    assert texts(service.store(namespace="another")) == ["stays"]


def test_namespaces_are_apart(service: Service) -> None:
    """One key in two namespaces is two conversations, and each namespace lists its own keys."""
    shop, desk = service.store(namespace="shop"), service.store(namespace="desk")
    shop.add_message(KEY, user("shop"))
    desk.add_message(KEY, user("desk"))
    desk.add_message("only here", user("desk"))
    assert (texts(shop), texts(desk)) == (["shop"], ["desk"])
    assert (shop.get_keys(), desk.get_keys()) == ([KEY], ["only here", KEY])
    shop.delete_messages(KEY)
    assert (shop.get_keys(), texts(desk)) == ([], ["desk"])


def test_keys_are_listed_once_however_many_sessions_they_have(service: Service) -> None:
    """`get_keys` names each key once, sorted, also in a process that never saw it."""
    for _ in range(3):
        for key in ("b", "a"):
            service.store().add_message(key, user("hello"))
        service.later(IDLE)
    assert service.store().get_keys() == ["a", "b"]


def test_what_was_looked_at_is_not_asked_again(service: Service) -> None:
    """A session is asked for its metadata once; after that a scan is one ListSessions."""
    for number in range(5):
        service.store().add_message(f"k{number}", user("hello"))
    store = service.store()
    store.get_keys()
    with service.counting() as calls:
        store.get_keys()
    assert calls == {"ListSessions": 1, "total": 1}
    with service.counting() as calls:
        store.get_messages("k3")
    assert calls == {"ListSessions": 1, "ListInvocationSteps": 1, "GetInvocationStep": 1, "total": 3}


def test_sessions_that_are_gone_are_no_keys(service: Service) -> None:
    """After retention a key is no longer listed, although the store knew its session."""
    store = service.store()
    store.add_message("old", user("hello"))
    service.later(29 * DAY)
    store.add_message("new", user("hello"))
    service.later(2 * DAY)
    assert store.get_keys() == service.store().get_keys() == ["new"]


def test_a_session_one_may_not_look_at_is_skipped(service: Service) -> None:
    """A session that IAM lets nobody look at hides no other; if none may be looked at, that is said."""
    service.store().add_message(KEY, user("hello"))
    service.store().add_message("other", user("hello"))
    store = service.store()
    service.faults.add("GetSession", 1, "access_denied")
    assert len(store.get_keys()) == 1
    store = service.store()
    service.faults.add("GetSession", 1, "access_denied", times=None)
    with pytest.raises(AccessDeniedError, match="bedrock:GetSession"):
        store.get_keys()


def test_too_many_sessions_are_refused(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Beyond `scan_limit` sessions a scan is refused with the way out; beyond 200 it warns."""
    for _ in range(201):
        service.boto3.create_session()
    with pytest.raises(DirectoryTooLarge, match="scan_limit"):
        service.store(scan_limit=200).get_keys()
    with caplog.at_level(logging.WARNING):
        assert service.store(scan_limit=201).get_keys() == []
    assert "201 sessions" in caplog.text


def test_a_session_nobody_opened_is_taken(service: Service) -> None:
    """A session of the key that a crash left without an opening is used, not left beside a second one."""
    session = service.boto3.create_session(
        sessionMetadata={"llama-index-key": KEY, "llama-index-namespace": "default", "llama-index-format": "1"}
    )["sessionId"]
    service.store().add_message(KEY, user("hello"))
    assert [s["sessionId"] for s in service.sessions()] == [session]
    assert texts(service.store()) == ["hello"]


def test_a_lost_reply_to_create_leaves_no_second_session(service: Service) -> None:
    """A session whose creation got no answer is found and used by the next attempt."""
    store = service.store()
    service.faults.add("CreateSession", 1, "lost_reply")
    with pytest.raises(Exception, match="did not answer") as lost:
        store.add_message(KEY, user("one"))
    assert getattr(lost.value, "retryable", False)
    store.add_message(KEY, user("one"))
    assert texts(service.store()) == ["one"]
    assert len(service.sessions()) == 1


def sessions_of_others(service: Service, number: int) -> None:
    """Make sessions of nobody we know."""
    for _ in range(number):
        service.boto3.create_session()


def test_sessions_long_before_the_open_one_are_not_read(service: Service) -> None:
    """Newest first: once an open session is found, only those of the two hours before it are looked at besides."""
    service.store().add_message("old", user("hello"))
    sessions_of_others(service, 200)
    service.later(DAY)
    service.store().add_message(KEY, user("hello"))
    sessions_of_others(service, 10)
    store = service.store()
    with service.counting() as calls:
        assert texts(store) == ["hello"]
    assert calls["ListSessions"] == 1
    assert calls["GetSession"] <= BATCH
    with service.counting() as calls:
        assert texts(store, "old") == ["hello"]
    assert calls["GetSession"] >= 201 + 11 - BATCH
    with service.counting() as calls:
        assert texts(store, "no such key") == []
    assert calls == {"ListSessions": 1, "total": 1}


def test_sessions_of_one_time_are_all_looked_at(service: Service) -> None:
    """Of two open sessions of one key, made within two hours and by writers unaware of each other, both are read."""
    service.store().add_message(KEY, user("first"))
    [first] = service.sessions()
    sessions_of_others(service, 2 * BATCH)
    service.later(IDLE)
    # As a writer does who cannot see the first.
    service.store(namespace="unaware").add_message(KEY, user("second"))
    second = service.sessions()[-1]
    ours = {**first["sessionMetadata"]}
    service.boto3.update_session(sessionIdentifier=second["sessionId"], sessionMetadata=ours)
    assert texts(service.store()) == ["first", "second"]


def test_a_scan_is_told_of_and_warned_about(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """Past 200 sessions a warning names what to set; while it goes on, how far it is."""
    sessions_of_others(service, 2 * MANY + 1)
    with caplog.at_level(logging.INFO):
        service.store(scan_rate=1e6).get_keys()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "up to 401 sessions" in warning
    assert "directory=" in warning
    looked = [record.getMessage() for record in caplog.records if record.getMessage().startswith("read ")]
    assert looked == ["read 256 of 401 sessions", "read 401 of 401 sessions"]


def test_too_many_sessions_name_the_directories(service: Service) -> None:
    """The error says which directories need no scan, and looks at no session first."""
    sessions_of_others(service, 3)
    with (
        service.counting() as calls,
        pytest.raises(DirectoryTooLarge, match=r"DynamoDBKVStore.*rebuild_directory.*session-id.*scan_limit"),
    ):
        service.store(scan_limit=2).get_messages(KEY)
    assert calls == {"ListSessions": 1, "total": 1}


def test_every_page_of_the_list_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session on the last page, in whatever order the service lists, is found."""
    for order in ("newest", "oldest", "id"):
        service = Service(behaviour=Behaviour(session_order=order, largest_page=2, pages="empty"))
        service.store().add_message(KEY, user("hello"))
        sessions_of_others(service, 5)
        service.store().add_message("another", user("hello"))
        assert texts(service.store()) == texts(service.store(), "another") == ["hello"]


def test_what_a_failed_scan_has_learnt_is_kept(service: Service) -> None:
    """A scan that is throttled in the middle does not begin anew."""
    sessions_of_others(service, 3 * BATCH)
    store = service.store()
    service.faults.add("GetSession", 2 * BATCH + 1, "throttle", times=None)
    with pytest.raises(ThrottledError):
        store.get_keys()
    service.faults.clear()
    with service.counting() as calls:
        store.get_keys()
    assert calls["GetSession"] <= BATCH


def test_requests_keep_to_the_rate() -> None:
    """A second's worth begins at once, what is more waits for its time; a pause earns one second's worth again."""
    now, pauses = [100.0], list[float]()

    def sleep(seconds: float) -> None:
        pauses.append(round(seconds, 6))
        now[0] += seconds

    pace = RateLimiter(10, lambda: now[0], sleep)
    for _ in range(13):
        pace.wait()
    assert pauses == [0.1, 0.1, 0.1]
    now[0] += 60
    for _ in range(11):
        pace.wait()
    assert pauses == [0.1] * 4


def test_a_scan_keeps_to_the_rate(service: Service) -> None:
    """Each look at a session waits for its turn."""
    sessions_of_others(service, 5)
    store = service.store(scan_rate=2)
    waited: list[float] = []
    store._where._limiter._sleep = waited.append
    store.get_keys()
    assert len(waited) == 3


# What the listing knows


DIRECTORIES: dict[str, Callable[[], Any]] = {"metadata": lambda: "metadata", "a key-value store": SimpleKVStore}


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_conversations_are_listed_with_what_is_known(service: Service, directory: str) -> None:
    """Each key once, the newest session's times and status, and the application's metadata; the newest first."""
    where = DIRECTORIES[directory]()
    for severity in ("low", "high"):
        for key in ("INC-1", "INC-2", "chat"):
            chat = service.store(directory=where).conversation(key, session_metadata={"severity": severity, "of": key})
            chat.add([user("hello")])
            service.later(60)
        service.later(IDLE)
    store = service.store(directory=where)
    found = list(store.conversations())
    assert [one.key for one in found] == ["chat", "INC-2", "INC-1"]
    newest = {s["sessionMetadata"]["of"]: s for s in service.sessions()}
    for one in found:
        session = newest[one.key]
        assert (one.session, one.status) == (session["sessionId"], "EXPIRED")
        [described] = [s for s in store.conversation(one.key).describe()["sessions"] if s["session"] == one.session]
        assert (one.created, one.updated) == (described["created"], described["updated"])
        assert one.metadata == {"severity": "high", "of": one.key}
    assert [one.key for one in store.conversations(prefix="INC-")] == ["INC-2", "INC-1"]
    assert [one.key for one in store.conversations("INC-", {"of": "INC-1"})] == ["INC-1"]
    assert list(store.conversations(session_metadata={"severity": "low"})) == []

    async def listed() -> list[str]:
        return [one.key async for one in store.aconversations("INC-", {"severity": "high"})]

    assert asyncio.run(listed()) == ["INC-2", "INC-1"]
    assert store.get_keys() == ["INC-1", "INC-2", "chat"]


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_conversations_are_found_by_the_metadata_they_have_now(service: Service, directory: str) -> None:
    """Whatever a process has learnt of their sessions before."""
    where = DIRECTORIES[directory]()
    mine, other = service.store(directory=where), service.store(directory=where)
    chat = mine.conversation(KEY, session_metadata={"severity": "high"})
    chat.add([user("hello")])
    for severity in ("high", "low"):
        service.later(60)
        chat.update_metadata({"severity": severity})
        for store in (mine, other):
            [found] = store.conversations(session_metadata={"severity": severity})
            assert (found.key, found.metadata) == (KEY, {"severity": severity})
    with service.counting() as calls:
        list(other.conversations())
    assert calls["GetSession"] == 0


def test_conversations_are_looked_for_as_they_are_asked_for(service: Service) -> None:
    """The first conversations of many cost a few looks, not one at every session."""
    sessions_of_others(service, 3 * BATCH)
    service.later(60)
    service.store().add_message(KEY, user("hello"))
    with service.counting() as calls:
        assert next(service.store().conversations()).key == KEY
    assert calls["GetSession"] <= BATCH


# Keys that are session ids


def test_an_attached_session_is_read_and_continued(service: Service) -> None:
    """Under any directory: what another tool wrote is there, what is added is read by boto3 and by who attaches."""
    for directory in ("metadata", "session-id", SimpleKVStore()):
        session = by_hand(service, owner="somebody")
        store = service.store(directory=directory)
        with service.counting() as calls:
            chat = store.attach(session)
        assert calls == {"GetSession": 1, "total": 1}
        assert [message.content for message in chat.messages()] == ["by hand"]
        chat.add([user("added")])
        chat.state["name"] = "value"
        with service.counting() as calls:
            chat.messages()
        assert calls == {"ListInvocationSteps": 1, "total": 1}
        other = asyncio.run(service.store(directory=directory).aattach(session))
        assert [message.content for message in other.messages()] == ["by hand", "added"]
        assert other.state["name"] == "value"
        assert store.attach(session) is chat
        assert any({"text": "added"} in step["payload"]["contentBlocks"] for step in service.steps(session))
        [described] = chat.describe()["sessions"]
        assert described["session"] == session
        assert session not in store.get_keys() or directory == "session-id"


def test_under_session_id_a_key_is_a_session(service: Service) -> None:
    """LlamaIndex's verbs take session ids; those of no conversation of ours are the keys; deleting deletes it."""
    service.store().add_message(KEY, user("not listed"))
    first, second = sorted([by_hand(service), by_hand(service, owner="somebody")])
    store = service.store(directory="session-id")
    assert store.get_keys() == [first, second]
    assert {one.key: dict(one.metadata) for one in store.conversations()} in (
        {first: {}, second: {"owner": "somebody"}},
        {second: {}, first: {"owner": "somebody"}},
    )
    store.add_message(first, user("hello"))
    assert texts(service.store(directory="session-id"), first) == ["by hand", "hello"]
    store.set_messages(first, users("only this"))
    assert texts(service.store(directory="session-id"), first) == ["only this"]
    assert store.delete_messages(first) == users("only this")
    assert store.get_keys() == [second]
    assert texts(store, first) == []
    assert store.delete_messages(first) is None
    assert texts(service.store()) == ["not listed"]


@pytest.mark.parametrize("why", ["EXPIRED", "ENDED", "full", "is not there"])
@pytest.mark.parametrize("attached", [True, False])
def test_a_session_that_takes_no_writes_is_closed(why: str, monkeypatch: pytest.MonkeyPatch, *, attached: bool) -> None:
    """Writing says why, names the other directories and makes no session; what is there is still read."""
    service = Service(behaviour=Behaviour(steps_per_session=3))
    session = by_hand(service)
    store = service.store(directory="metadata" if attached else "session-id")
    chat = store.attach(session) if attached else store.conversation(session)
    chat.add([user("hello")])
    if why == "EXPIRED":
        service.later(IDLE)
    if why in {"ENDED", "is not there"}:
        service.boto3.end_session(sessionIdentifier=session)
    if why == "is not there":
        service.boto3.delete_session(sessionIdentifier=session)
    if why == "full":
        for module in (continuation, writer):
            monkeypatch.setattr(module, "STEPS_PER_SESSION", 3)
        chat.add([user("hello")])
    read = [] if why == "is not there" else ["by hand", "hello", *(["hello"] if why == "full" else [])]
    for _ in range(2):
        with pytest.raises(SessionClosed, match=rf'{why}.*directory="metadata".*key-value store'):
            chat.add([user("more")])
        assert [message.content for message in chat.messages()] == read
    with service.counting() as calls:
        chat.messages()
    assert calls["total"] <= 2
    assert len(service.sessions()) == (why != "is not there")


def test_a_long_attached_conversation_stays_in_its_session(service: Service) -> None:
    """Days and hundreds of steps after which any other conversation is continued change nothing here."""
    service = Service(behaviour=Behaviour(idle_timer_reset_by="nothing", write_to_expired="accepted"))
    session = by_hand(service)
    store = service.store(directory="session-id")
    with short_sessions(5):
        for number in range(12):
            store.add_message(session, user(str(number)))
        service.later(2 * DAY)
        store.add_message(session, user("12"))
    assert [s["sessionId"] for s in service.sessions()] == [session]
    assert texts(service.store(directory="session-id"), session) == ["by hand", *map(str, range(13))]


def test_sessions_of_conversations_are_not_attached(service: Service) -> None:
    """A session with a key, of whatever namespace, belongs to its conversation, which the error names."""
    service.store().add_message(KEY, user("hello"))
    service.store(namespace="another").add_message("theirs", user("hello"))
    partly = by_hand(service, llama_index_key="half")
    before = service.everything()
    sessions = [s["sessionId"] for s in service.sessions()]
    for session, key in zip(sessions, (KEY, "theirs", "half"), strict=True):
        with pytest.raises(ForeignSessionError, match=key):
            service.store().attach(session)
        store = service.store(directory="session-id")
        for verb in (store.get_messages, store.delete_messages, lambda s, store=store: store.add_message(s, user("x"))):
            with pytest.raises(ForeignSessionError, match=key):
                verb(session)
    assert partly in sessions
    assert service.everything() == before


@pytest.mark.parametrize(
    "key", ["chat_history", "", 5, None, "0B5A1D6E-8C1F-4C37-9F59-0A4A4D6E8C1F", "arn:aws:bedrock:x", "0" * 36]
)
def test_what_is_no_session_id_is_refused(service: Service, key: Any) -> None:
    """Other texts are no ids: nothing is asked of the service, and the error says what an id looks like."""
    store = service.store(directory="session-id")
    with service.counting() as calls:
        for verb in (store.attach, store.get_messages, store.conversation, service.store().attach):
            with pytest.raises(InvalidKeyError):
                verb(key)
    assert calls["total"] == 0


def test_a_key_that_looks_like_a_session_id_is_a_key(service: Service) -> None:
    """Under the other directories an id is a key like any other: LlamaIndex's default one is a UUID."""
    session = by_hand(service)
    store = service.store()
    store.add_message(session, user("by key"))
    assert texts(store, session) == ["by key"]
    assert [message.content for message in store.attach(session).messages()] == ["by hand"]


def test_a_session_that_is_not_there_is_not_attached(service: Service) -> None:
    """Attaching to nothing says so; under "session-id" it reads as empty, as with any chat store, and takes nothing."""
    nowhere = str(uuid.uuid4())
    with pytest.raises(SessionClosed, match=nowhere):
        service.store().attach(nowhere)
    store = service.store(directory="session-id")
    assert texts(store, nowhere) == []
    with pytest.raises(SessionClosed, match="not there"):
        store.add_message(nowhere, user("hello"))
    assert service.sessions() == []


class _Named(BedrockSessionsChatStore):
    """A store of session ids that takes names for them, and makes a session by plain boto3 where one is needed."""

    _ids: dict[str, str] = PrivateAttr(default_factory=dict)
    _making: Any = PrivateAttr(default_factory=threading.Lock)

    def _make(self, name: str) -> None:
        with self._making:
            if name and name not in self._ids:
                self._ids[name] = self.client.create_session()["sessionId"]

    def conversation(self, key: str, **more: Any) -> Conversation:
        return super().conversation(self._ids.get(key, str(uuid.uuid4()) if key else key), **more)

    def add_message(self, key: str, message: ChatMessage) -> None:
        self._make(key)
        super().add_message(key, message)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        self._make(key)
        super().set_messages(key, messages)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        deleted = super().delete_messages(key)
        self._ids.pop(key, None)
        return deleted

    def get_keys(self) -> list[str]:
        there = super().get_keys()
        return sorted(name for name, session in self._ids.items() if session in there)


class TestSessionIds(ChatStoreContract):
    """What any chat store has to do, where each key is the id of a session that was made before."""

    @pytest.fixture
    def store(self, service: Service) -> BaseChatStore:
        return _Named(client=service.client(), directory="session-id")
