"""Single histories with processes stopped at a chosen call, or lists that are late: each keeps one promise."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from llama_index_bedrock_sessions import ConversationExists, ForeignSessionError
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.broken import BROKEN
from tests.support.histories import FORKS, KEY, MINUTE, History
from tests.support.service import Service, sessions, stored, user

pytestmark = pytest.mark.thorough

LATE_STEPS = Behaviour(steps_listed_after_seconds=1.5)
FIRST, SECOND = (f"arn:aws:kms:us-east-1:123456789012:key/{n * 8}-1111-1111-1111-111111111111" for n in "12")


def holds(history: History, text: str) -> bool:
    """Whether a text is anywhere in the service, as a block or in JSON."""
    there = stored(history.client)
    return repr(text) in there or json.dumps(text) in there


def test_late_step_is_found_after_two_continuations() -> None:
    """A step is listed after the next session was opened, and the one after that: its message is there."""
    history = History(0, processes=2, behaviour=LATE_STEPS)
    history.do(0, "add")
    history.advance(10)
    history.do(1, "read")
    added = history.do(1, "add", 1)
    for _ in range(2):
        history.do(0, "renew")
    history.advance(MINUTE)
    assert added.tokens[0] in history.cold("read").result, "\n".join(history.log)
    assert not history.conclude(), "\n".join(history.log)


def test_late_claim_is_found_after_two_continuations() -> None:
    """A context is loaded once, though the claim is listed after two more sessions were opened."""
    history = History(0, processes=3, behaviour=LATE_STEPS)
    history.do(0, "add")
    history.do(0, "save", 1, name="cart")
    history.advance(10)
    for process in range(3):
        history.do(process, "read")
    first = history.do(1, "load", name="cart")
    for _ in range(2):
        history.do(0, "renew")
    second = history.do(2, "load", name="cart")
    assert (first.outcome, second.outcome) == ("ok", "failed"), "\n".join(history.log)


def test_a_claim_is_found_while_another_process_redacts() -> None:
    """The claim is in a session that is closed, copied and deleted; who loads next had not seen it listed."""
    history = History(0, processes=3, behaviour=LATE_STEPS)
    history.do(0, "add")
    history.do(0, "add", 1)
    history.do(0, "save", 1, name="cart")
    history.advance(10)
    for process in range(3):
        history.do(process, "read")
    history.do(0, "redact", until="put_invocation_step")
    history.step(0)  # the removal is stored
    history.go_on(0, "put_invocation_step")  # about to close the session
    first = history.do(2, "load", name="cart")
    history.go_on(0, "settle")
    history.do(1, "add", 1)  # in a session of its own
    history.step(0)
    history.go_on(0, "delete_session")
    history.step(0)
    second = history.do(1, "load", name="cart")
    assert (first.outcome, second.outcome) == ("ok", "failed"), "\n".join(history.log)


def test_a_copy_opened_much_later_brings_nothing_back() -> None:
    """A redactor is stopped before the opening of its copy; three sessions later what was removed stays removed."""
    history = History(0, processes=2)
    history.do(0, "add")
    history.do(0, "add", 1)
    for process in (1, 0):
        history.do(process, "read")
    history.do(1, "redact", 1, until="create_session")
    history.step(1)
    history.go_on(1, "put_invocation_step")
    history.do(0, "add", 1)
    removed = history.do(0, "remove", 0)
    for _ in range(2):
        history.do(0, "renew")
    history.go_on(1)
    assert not {*removed.result} & {*history.cold("read").result}, "\n".join(history.log)
    assert not history.conclude(), "\n".join(history.log)


def test_stopped_redactor_does_not_restore_redacted_text() -> None:
    """It has read all and is about to create its copy when the other returns; then it is killed."""
    history = History(0, processes=2)
    history.do(0, "add")
    history.do(0, "add", 1)
    for process in (1, 0):
        history.do(process, "read")
    history.do(1, "redact", 1, until="create_session")
    done = history.do(0, "redact", 0)
    (text,) = done.result
    assert not holds(history, text)
    for _ in range(2):
        history.go_on(1, "settle")
        assert not holds(history, text), "\n".join(history.log)
        history.step(1)
    history.crash(1)
    assert not history.conclude(), "\n".join(history.log)


def test_a_slow_list_of_the_session_before_is_made_again() -> None:
    """The list is answered late, and shows what it would have shown at once: a late step is found all the same."""
    history = History(0, processes=2, behaviour=LATE_STEPS)
    history.do(0, "add")
    history.advance(10)
    for number in (1, 0):
        history.do(number, "read")
    (session,) = (summary["sessionId"] for summary in sessions(history.client))
    history.do(1, "add", 1)
    history.do(0, "renew")
    process = history.processes[0]
    call = process.call

    def slow(operation: str, **arguments: Any) -> Any:
        reply = call(operation, **arguments)
        if operation == "list_invocation_steps" and arguments["sessionIdentifier"] == session:
            history.emulator.clock.advance(7)
            process.call = call  # type: ignore[method-assign]
        return reply

    process.call = slow  # type: ignore[method-assign]
    history.do(0, "read")
    history.advance(5 * MINUTE)
    assert history.do(0, "read").result == history.cold("read").result
    assert not history.conclude(), "\n".join(history.log)


@pytest.mark.parametrize("other", [None, SECOND])
def test_renewing_and_forking_keep_the_encryption_key(other: str | None) -> None:
    """A store with another key, or none, continues nothing under its own; nothing is written."""
    service = Service()
    chat = service.store(encryption_key_arn=FIRST).conversation("x")
    chat.add([user("one")])
    store = service.store(encryption_key_arn=other)
    if other:
        with pytest.raises(ForeignSessionError):
            store.conversation("x").renew(timedelta(0))
    chat.clear()
    store.conversation("source").add([user("hello")])
    if other:
        with pytest.raises(ForeignSessionError):
            store.conversation("source").fork("x")
    else:
        store.conversation("source").fork("x")
    of_x = [s for s in service.sessions() if s["sessionMetadata"]["llama-index-key"] == "x"]
    assert {session["encryptionKeyArn"] for session in of_x} == {FIRST}


@pytest.mark.parametrize("until", ["create_invocation", "put_invocation_step"])
def test_a_fork_whose_session_a_tool_ends_begins_again(until: str) -> None:
    """Its session takes no opening, and no other process has begun the key: the fork goes to another session."""
    history = History(0, processes=1, keys=(KEY, FORKS[0]))
    added = history.do(0, "add")
    fork = history.do(0, "fork", key=FORKS[0], until=until)
    (created,) = (s for s in sessions(history.client) if s["sessionMetadata"]["llama-index-key"] == FORKS[0])
    history.client.end_session(sessionIdentifier=created["sessionId"])
    history.go_on(0)
    assert (fork.outcome, fork.error) == ("ok", ""), "\n".join(history.log)
    assert history.cold("read", key=FORKS[0]).result == added.tokens
    assert len(sessions(history.client)) == 2
    assert not history.conclude(), "\n".join(history.log)


def test_a_key_that_holds_hidden_state_is_taken() -> None:
    """restore() would mix it with what a fork brings."""
    store = Service().store()
    chat = store.conversation("x")
    chat.state["mood"] = "old"
    chat.hide()
    store.conversation("source").add([user("hello")])
    with pytest.raises(ConversationExists):
        store.conversation("source").fork("x")


def test_stopped_writer_does_not_write_to_ended_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session is ended when end() returns; without that the message would be stored."""
    for is_broken in (False, True):
        if is_broken:
            BROKEN["ending_leaves_sessions_open"](monkeypatch)
        history = History(0, processes=2)
        for number, kind in ((0, "add"), (1, "read"), (0, "end")):
            history.do(number, kind)
        added = history.do(1, "add")
        assert (added.outcome, added.error) == (("ok", "") if is_broken else ("failed", "ConversationEnded"))
        assert is_broken or not history.conclude(), "\n".join(history.log)
