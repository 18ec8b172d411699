"""What a person on call sees: logs without content, an event for each call, and how a conversation stands."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index_instrumentation import get_dispatcher
from pydantic import Field

from llama_index_bedrock_sessions import (
    BedrockSessionsChatStore,
    BedrockSessionsError,
    ServiceCallEvent,
    events,
)
from llama_index_bedrock_sessions._journal.encoding import envelope
from llama_index_bedrock_sessions._journal.ids import Kind, new_id
from llama_index_bedrock_sessions.events import key_hash
from tests.journal.test_hostile import now, put
from tests.support.service import DAY, IDLE, KEY, Service, picture, texts, user, users

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_index.core.instrumentation.events import BaseEvent

LOGGER = "llama_index_bedrock_sessions"
TEXT = "my blood pressure is 180 over 110"
KEYS = ("patient-4711", "arn-of-a-secret", "AKIDSECRET", "hunter2", "token-of-mine")


class Gathering(BaseEventHandler):
    """Keeps the events of ours."""

    events: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Gathering"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        if isinstance(event, ServiceCallEvent):
            self.events.append(event)


@pytest.fixture
def gathering() -> Iterator[Gathering]:
    """A handler of events, as an application adds one."""
    handler, root = Gathering(), get_dispatcher()
    root.add_event_handler(handler)
    yield handler
    root.event_handlers.remove(handler)


# Logs


def test_logs_tell_what_was_decided_and_nothing_of_what_was_said(caplog: pytest.LogCaptureFixture) -> None:
    """A conversation of many accidents: every decision is logged with the hashed key; no key, text or credential is."""
    caplog.set_level(logging.DEBUG, LOGGER)
    service = Service()
    key = KEYS[0]
    with service.emulator.serve() as server:
        store = BedrockSessionsChatStore(
            endpoint_url=server.url,
            region_name="us-west-2",
            aws_access_key_id=KEYS[2],
            aws_secret_access_key=KEYS[3],
            aws_session_token=KEYS[4],
            max_retries=0,
        )
        store.conversation(key).add([user(TEXT), picture(text=TEXT)], state={TEXT: TEXT})
        (first,) = (s["sessionId"] for s in service.sessions())
        put(service, first, new_id(now(service), Kind.CHANGE), [{"text": TEXT}, {"text": '{"' + LOGGER + '":' + TEXT}])
        put(service, first, "00000000-0000-4000-8000-000000000000", [{"text": TEXT}])
        service.boto3.create_session(sessionMetadata=service.sessions()[0]["sessionMetadata"])
        orphan = service.sessions()[1]["sessionId"]
        service.faults.add("PutInvocationStep", 1, "lost_reply")
        store.add_message(key, user(TEXT))
        service.boto3.end_session(sessionIdentifier=first)
        store.add_message(key, user(TEXT))
        service.faults.add("ListInvocationSteps", 1, "throttle")
        with pytest.raises(BedrockSessionsError):
            store.get_messages(key)
        assert len(store.get_messages(key)) == 6
        store.delete_messages(key)
    logged = "\n".join(f"{r.getMessage()} {r.exc_text or ''}" for r in caplog.records)
    name = f"conversation {key_hash(key)}"
    for fact in (
        f"{name}: begins in session {first}",
        f"of session {first} is stored, in spite of",
        f"{name}: session {first}, which is ENDED, has refused a write",
        f"{name}: continues in session {orphan} after {first}",
        f"of session {first} cannot be read",
        "ListInvocationSteps: ThrottlingException, session",
        f"{name}: session {first} is deleted",
    ):
        assert fact in logged
    for secret in (*KEYS, TEXT, "blood"):
        assert secret not in logged


def test_a_warm_append_is_logged_at_debug_only(caplog: pytest.LogCaptureFixture) -> None:
    """What goes well every day is one line for who wants to see it."""
    service = Service()
    store = service.store()
    store.add_message(KEY, user("one"))
    caplog.set_level(logging.DEBUG, LOGGER)
    caplog.clear()
    store.add_message(KEY, user("two"))
    (record,) = caplog.records
    (session,) = service.sessions()
    step = service.steps(session["sessionId"])[-1]["invocationStepId"]
    assert record.levelno == logging.DEBUG
    assert record.getMessage().startswith(f"PutInvocationStep: ok, session {session['sessionId']}, step {step}, ")


# Events


def test_every_call_is_an_event(gathering: Gathering) -> None:
    """Each call to the service is told once: what was called, of which session and step, how long, and how it went."""
    service = Service()
    with service.counting():
        service.store().add_message(KEY, user("one"))
        assert texts(service.store()) == ["one"]
    assert [e.operation for e in gathering.events] == [c.operation for c in service.calls]
    assert [e.response_bytes for e in gathering.events] == [c.response_size for c in service.calls]
    assert {(e.outcome, e.retries) for e in gathering.events} == {("ok", 0)}
    (session,) = service.sessions()
    told = {e.operation: e for e in gathering.events}
    assert told["CreateSession"].session == told["PutInvocationStep"].session == session["sessionId"]
    assert told["PutInvocationStep"].step == service.steps(session["sessionId"])[0]["invocationStepId"]
    assert told["ListSessions"].session is None
    assert all(e.duration > 0 for e in gathering.events)
    assert json.loads(told["PutInvocationStep"].model_dump_json())["operation"] == "PutInvocationStep"


def test_an_event_tells_how_a_call_failed(gathering: Gathering) -> None:
    """The outcome is the service's code, or the class of the error where there was no answer; retries are counted."""
    service = Service()
    client = service.emulator.client(config=Config(retries={"total_max_attempts": 2}))
    store = BedrockSessionsChatStore(client=client)
    store.add_message(KEY, user("one"))
    for fault, outcome, retries in (
        ("throttle", "ThrottlingException", 1),
        ("refused", "EndpointConnectionError", None),
    ):
        gathering.events.clear()
        service.faults.add("ListInvocationSteps", 1, fault, times=None)
        with pytest.raises(BedrockSessionsError):
            store.get_messages(KEY)
        service.faults.clear()
        assert [(e.outcome, e.retries) for e in gathering.events] == [(outcome, retries)]


def test_events_are_of_the_span_that_asked(gathering: Gathering) -> None:
    """A call that is made in a thread of the pool belongs to the span of the code that wanted it."""
    service = Service()
    service.store().set_messages(KEY, [picture(seed) for seed in range(3)])
    for number in range(3):
        service.store().add_message(f"key {number}", user("hello"))
    dispatcher = get_dispatcher("an.application")
    gathering.events.clear()

    @dispatcher.span
    def read() -> None:
        service.store().get_messages(KEY)

    read()
    assert len(gathering.events) > 4
    (span,) = {e.span_id for e in gathering.events}
    assert span.startswith("test_events_are_of_the_span_that_asked.<locals>.read")


def test_nothing_is_made_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens and nobody logs, no event is made."""

    def made(*_: Any, **__: Any) -> None:
        raise AssertionError("an event was made")

    monkeypatch.setattr(events, "ServiceCallEvent", made)
    monkeypatch.setattr(events.dispatcher, "event_handlers", [])
    service = Service()
    service.store().add_message(KEY, user("one"))
    assert texts(service.store()) == ["one"]


# How a conversation stands


def at(time: str) -> datetime:
    return datetime.strptime(time, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def test_describe_tells_how_near_each_limit_is() -> None:
    """Steps of 1,000, the idle hour, and the 30 days, of each session; all of it is JSON."""
    service = Service()
    store = service.store()
    for number in range(3):
        store.add_message(KEY, user(str(number) * 300_000))  # too large to be carried
    service.later(2 * IDLE)
    store.add_message(KEY, user("later"))
    service.later(120)
    told: Any = json.loads(json.dumps(service.store().conversation(KEY).describe()))
    old, new = told["sessions"]
    assert (old["steps"], old["steps_left"], new["steps"], new["steps_left"]) == (3, 997, 1, 999)
    assert old["idle_at"] is None
    assert 60 <= new["age"] < old["age"] - 2 * IDLE + 60
    for each in (old, new):
        assert at(each["deleted_at"]) - at(each["created"]) == timedelta(days=30)
    assert at(new["idle_at"]) - at(new["updated"]) == timedelta(hours=1)
    assert told["complete_until"] == old["deleted_at"] < new["deleted_at"]
    assert told["unopened_sessions"] == []
    assert told["name"] == key_hash(KEY)


def test_a_session_that_was_not_listed_has_no_number_of_steps() -> None:
    """Who has continued a conversation himself knows what was in the session before without a list of it."""
    service = Service()
    chat = service.store(settling_time=0).conversation(KEY)
    chat.add(users("one"))
    service.later(IDLE)
    chat.add(users("two"))
    old, new = chat.describe()["sessions"]
    assert (old["steps"], old["steps_left"], new["steps"]) == (None, None, 1)


def test_what_is_complete_for_longer_says_so() -> None:
    """Once what an old session held is in a new one, the conversation is complete for as long as that."""
    service = Service()
    store = service.store()
    store.add_message(KEY, user("old"))
    for _ in range(2):
        service.later(5 * DAY)
        store.add_message(KEY, user("on"))
    told: Any = store.conversation(KEY).describe()
    assert told["complete_until"] > told["sessions"][0]["deleted_at"]
    service.later(19 * DAY)
    assert texts(service.store()) == ["old", "on", "on"]


def test_describe_names_unopened_sessions() -> None:
    """Sessions of the key that nobody has opened are listed apart; those of others are not."""
    service = Service()
    store = service.store()
    service.store().add_message("another", user("hello"))
    store.add_message(KEY, user("one"))
    session = next(s for s in service.sessions() if s["sessionMetadata"]["llama-index-key"] == KEY)
    for ended in (False, True):
        orphan = service.boto3.create_session(sessionMetadata=session["sessionMetadata"])["sessionId"]
        if ended:
            service.boto3.end_session(sessionIdentifier=orphan)
    for reader in (store, service.store()):
        told: Any = reader.conversation(KEY).describe()
        assert [s["session"] for s in told["sessions"]] == [session["sessionId"]]
        assert {o["status"] for o in told["unopened_sessions"]} == {"ACTIVE", "ENDED"}
        assert len(told["unopened_sessions"]) == 2


def test_describe_ignores_session_of_a_forged_step() -> None:
    """A step may claim that the conversation went on from anybody's session: that one is not described."""
    from llama_index_bedrock_sessions._journal.encoding import opening_json
    from llama_index_bedrock_sessions._journal.model import Opening

    service = Service()
    service.store().add_message("victim", user("hello"))
    (victim,) = service.sessions()
    service.store().add_message(KEY, user("mine"))
    session = next(s["sessionId"] for s in service.sessions() if s["sessionId"] != victim["sessionId"])
    forged = opening_json(Opening(0, {victim["sessionId"]: 0}, {}, frozenset(), (), None))
    put(service, session, new_id(now(service), Kind.OPENING), [envelope({}, {"opening": forged})])
    assert "victim" not in str(service.store().conversation(KEY).describe())


def test_a_local_conversation_is_complete_for_ever(tmp_path: Any) -> None:
    """The embedded service deletes nothing by itself."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")
    store.set_messages(KEY, users("one"))
    told: Any = store.conversation(KEY).describe()
    assert (told["complete_until"], told["sessions"][0]["deleted_at"]) == (None, None)
