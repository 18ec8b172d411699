"""Finding the sessions of a key by their metadata, and never touching those of anybody else."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from llama_index_bedrock_sessions import AccessDeniedError, DirectoryTooLarge
from tests.service import DAY, IDLE, KEY, Service, texts, user, users


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
