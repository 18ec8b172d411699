"""What it takes for a conversation to outlive its sessions: each of these histories went wrong once."""

from __future__ import annotations

import multiprocessing
import threading
import uuid
from io import BytesIO
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from PIL import Image

from llama_index_bedrock_sessions import ConversationEnded, RequestRefusedError, UnavailableError
from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._journal.encoding import envelope, opening_json
from llama_index_bedrock_sessions._journal.ids import Home, Kind, new_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import Inherited, Opening
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.service import DAY, IDLE, KEY, Service


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def picture() -> ChatMessage:
    file = BytesIO()
    Image.new("RGB", (8, 8), "teal").save(file, "PNG")
    return ChatMessage(role="user", blocks=[TextBlock(text="look"), ImageBlock(image=file.getvalue())])


def texts(service: Service, key: str = KEY) -> list[str | None]:
    return [m.content for m in service.store().get_messages(key)]


def put(service: Service, session: str, step: str, content: list[dict[str, Any]]) -> None:
    invocation = default_invocation(session)
    service.boto3.put_invocation_step(
        sessionIdentifier=session,
        invocationIdentifier=invocation,
        invocationStepId=step,
        invocationStepTime=service.clock.now(),
        payload={"contentBlocks": content},
    )


@pytest.mark.parametrize("retention", [True, False])
def test_what_was_removed_stays_removed_for_months(retention: bool) -> None:
    """A message removed on the second day is not back after 70, where sessions are deleted and where they stay."""
    service = Service(retention=retention)
    store = service.store()
    for text in ("secret", "stays"):
        store.add_message(KEY, user(text))
    service.later(2 * DAY)
    store.delete_message(KEY, 0)
    expected = ["stays"]
    for day in range(2, 70, 5):
        service.later(5 * DAY)
        store.add_message(KEY, user(f"day {day}"))
        expected.append(f"day {day}")
        assert texts(service) == expected
    assert len(service.store().conversation(KEY).describe()["sessions"]) > 1


def test_a_pause_of_forty_days_leaves_one_head() -> None:
    """Where nothing is ever deleted, a conversation left alone for longer than 31 days goes on as one."""
    service = Service(retention=False)
    service.store().add_message(KEY, user("one"))
    service.later(40 * DAY)
    service.store().add_message(KEY, user("two"))
    sessions = service.store().conversation(KEY).describe()["sessions"]
    assert [s["head"] for s in sessions] == [False, True]
    assert texts(service) == ["one", "two"]


@pytest.mark.parametrize("how", ["segments", "parents"])
def test_a_forged_opening_shows_nothing_of_another_conversation(how: str) -> None:
    """An opening that names steps or sessions of another key or namespace gets nothing of them into this one."""
    service = Service()
    service.store(namespace="hr").add_message("victim", user("SECRET salary"))
    (victim,) = service.sessions()
    (step,) = service.steps(victim["sessionId"])
    service.store().add_message("mal", user("mine"))
    session = next(s["sessionId"] for s in service.sessions() if s["sessionId"] != victim["sessionId"])
    home = Home(victim["sessionId"], step["invocationId"], step["invocationStepId"])
    forged = Opening(
        generation=9,
        covers={victim["sessionId"]: 0},
        parents={victim["sessionId"]: frozenset()} if how == "parents" else {},
        removed=frozenset(),
        segments=(Inherited(home, {}, {}, own=False),) if how == "segments" else (),
        last_set=None,
    )
    now = int(service.clock.now().timestamp() * 1000)
    content = [envelope({}, {"opening": opening_json(forged)})]
    put(service, session, new_id(now, Kind.OPENING), content)
    assert texts(service, "mal") == ["mine"]
    described = str(service.store().conversation("mal").describe()["messages"])
    assert described == "1"


def test_pictures_survive_an_opening_that_fails() -> None:
    """Pictures copied into a session that is never opened are not referred to there."""
    service = Service()
    store = service.store()
    store.add_message(KEY, picture())
    for _ in range(4):
        service.later(2 * DAY)
        store.add_message(KEY, user("on"))
    service.later(2 * DAY)
    # The closing step, its look, the copy of the picture, and then the opening.
    service.faults.add("PutInvocationStep", 3, "unavailable", times=None)
    with pytest.raises(UnavailableError):
        store.add_message(KEY, user("fails"))
    service.faults.clear()
    assert store.get_messages(KEY)[0] == picture()
    service.later(IDLE)
    store.add_message(KEY, user("again"))
    assert store.get_messages(KEY)[0] == service.store().get_messages(KEY)[0] == picture()


def test_refused_change_is_reported_in_a_new_session_too() -> None:
    """The first message of a key that the service refuses raises so, and leaves no row of sessions behind."""
    service = Service(behaviour=Behaviour(image_bytes=10))
    with pytest.raises(RequestRefusedError, match="refused"):
        service.store().add_message(KEY, picture())
    assert len(service.sessions()) == 1
    service.store().add_message(KEY, user("fine"))
    assert texts(service) == ["fine"]
    assert len(service.sessions()) == 1


def test_an_id_of_the_far_future_moves_no_clock() -> None:
    """A forged step of the year 2100 does not stop later messages from being ours, nor from being in order."""
    service = Service()
    service.store().add_message(KEY, user("one"))
    (session,) = service.sessions()
    put(service, session["sessionId"], new_id(4_102_444_800_000, Kind.CHANGE), [{"text": "forged"}])
    store = service.store()
    for text in ("two", "three"):
        store.add_message(KEY, user(text))
    store.delete_message(KEY, 0)
    assert texts(service) == ["two", "three", "forged"]


def test_late_arrival_is_ordered_by_when_it_was_sent() -> None:
    """A message whose request is delayed stands before the next one of its store, whose clock was set back since."""
    service = Service()
    service.clock.stop()
    now = service.clock.now().timestamp()
    store, other = service.store(), service.store()
    delayed: list[dict[str, Any]] = []
    store._sessions.clock = Clock(lambda: now - 0.4 if delayed else now + 0.4)
    other._sessions.clock = Clock(lambda: now - 0.4)
    store.client.meta.events.register(
        "provide-client-params.bedrock-agent-runtime.PutInvocationStep", lambda params, **_: delayed.append(params)
    )
    service.faults.add("PutInvocationStep", 1, "reset")
    with pytest.raises(UnavailableError, match="did not answer"):
        store.add_message(KEY, user("first"))
    other.add_message(KEY, user("another's"))
    store.add_message(KEY, user("second"))
    service.boto3.put_invocation_step(**delayed[0])
    assert texts(service) == ["another's", "first", "second"]


def test_conversation_ended_elsewhere_is_not_continued() -> None:
    """A writer that had read the conversation before it was ended on purpose learns so, as a new one does."""
    service = Service()
    warm = service.store()
    warm.add_message(KEY, user("one"))
    assert service.store().conversation(KEY).end()
    for store in (warm, service.store()):
        with pytest.raises(ConversationEnded):
            store.add_message(KEY, user("two"))
    assert texts(service) == ["one"]


@pytest.mark.parametrize("expired", ["ConflictException", "ResourceNotFoundException"])
@pytest.mark.parametrize("closed", ["accepted", "ConflictException", "ValidationException"])
def test_what_has_expired_can_be_deleted(expired: Any, closed: Any) -> None:
    """Deleting works on expired sessions whatever the service answers to writes and to EndSession."""
    service = Service(behaviour=Behaviour(write_to_expired=expired, end_when_closed=closed))
    service.store().add_message(KEY, user("one"))
    service.later(IDLE)
    assert [m.content for m in service.store().delete_messages(KEY) or ()] == ["one"]
    assert service.sessions() == []


def test_a_session_that_is_listed_late_is_deleted_too() -> None:
    """Who knows of a session deletes it, even while lists do not show it yet."""
    service = Service(behaviour=Behaviour(sessions_listed_after_seconds=60))
    store = service.store()
    store.add_message(KEY, user("one"))
    store.delete_messages(KEY)
    assert store.get_messages(KEY) == []
    for seconds in (0, 60):
        service.later(seconds)
        assert service.boto3.list_sessions()["sessionSummaries"] == []


def test_session_seen_during_a_scan_is_kept() -> None:
    """Two threads that look for sessions at once learn of the same ones."""
    service = Service()
    store = service.store()
    for number in range(5):
        service.store().add_message(f"key {number}", user("hello"))
    found: dict[str, list[ChatMessage]] = {}

    def read(key: str) -> None:
        found[key] = store.get_messages(key)

    with service.counting() as calls:
        threads = [threading.Thread(target=read, args=(f"key {number}",)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [len(messages) for messages in found.values()] == [1] * 5
    assert calls["GetSession"] == 5


def test_tags_are_inherited_from_an_uncached_session() -> None:
    """The next session has the tags of the one before, although the conversation was dropped from memory between."""
    service = Service()
    store = service.store()
    store.conversation(KEY, tags={"Environment": "Production"}).add([user("one")])
    store._caches.take()
    service.later(IDLE)
    store.add_message(KEY, user("two"))
    tags = [service.boto3.list_tags_for_resource(resourceArn=s["sessionArn"])["tags"] for s in service.sessions()]
    assert tags == [{"Environment": "Production"}] * 2


def test_an_answer_about_tags_that_is_cut_off_loses_none() -> None:
    """The next session inherits the tags, although botocore shows a torn answer as one without tags."""
    service = Service()
    service.store().conversation(KEY, tags={"Environment": "Production"}).add([user("one")])
    service.later(IDLE)
    service.faults.add("ListTagsForResource", 1, "torn_body")
    service.store().add_message(KEY, user("two"))
    assert [fired.fault for fired in service.faults.fired] == ["torn_body"]
    tags = [service.boto3.list_tags_for_resource(resourceArn=s["sessionArn"])["tags"] for s in service.sessions()]
    assert tags == [{"Environment": "Production"}] * 2


def test_writing_lists_first_even_where_reads_may_be_old() -> None:
    """`refresh_interval` lets reads be old, never what is removed or replaced."""
    service = Service()
    store = service.store(refresh_interval=3600, on_delete="clear")
    assert store.get_messages(KEY) == []
    service.store().add_message(KEY, user("one"))
    assert [m.content for m in store.delete_messages(KEY) or ()] == ["one"]
    assert texts(service) == []


def _read_in_child(store: Any, result: Any) -> None:
    result.put([m.content for m in store.get_messages(KEY)])


@pytest.mark.skipif(not hasattr(multiprocessing, "get_context"), reason="needs fork")
def test_a_fork_while_the_directory_is_looked_through(tmp_path: Any) -> None:
    """A child forked while another thread holds the directory's locks can read."""
    from llama_index_bedrock_sessions import BedrockSessionsChatStore

    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")
    store.add_message(KEY, user("one"))
    context = multiprocessing.get_context("fork")
    result = context.Queue()
    with store._where._scanning, store._where._lock:
        child = context.Process(target=_read_in_child, args=(store, result))
        child.start()
    assert result.get(timeout=60) == ["one"]
    child.join()


def test_a_fold_takes_ids_up_to_its_horizon() -> None:
    """Only ids that an honest clock can give move the clock of a journal."""
    journal = Journal(["s"])
    journal.clock.horizon = 1000
    journal.clock.saw(999)
    journal.clock.saw(5000)
    assert journal.clock.ms == 999


def test_an_unknown_session_id_is_not_ours() -> None:
    """A session that does not exist belongs to no key."""
    store = Service().store()
    assert not store._where.owned(str(uuid.uuid4()), KEY)
