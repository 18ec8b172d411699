"""redact(), delete() and fork() killed before each of their calls in turn, and what others find then."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.broken import BROKEN
from tests.support.histories import FORKS, HOUR, KEY, History
from tests.support.ops import Op
from tests.support.service import stored

pytestmark = pytest.mark.thorough

AT_ONCE = Behaviour()
LATE = Behaviour(sessions_listed_after_seconds=1.5)
"""Sessions are listed later than they are written, and earlier than the library waits before it deletes."""
LISTS = pytest.mark.parametrize("behaviour", [AT_ONCE, LATE], ids=["immediate lists", "sessions listed late"])


def do(history: History, number: int, kind: str, *, name: str = "") -> Op:
    """Have a process carry out an operation to its end."""
    op = history.do(number, kind, name=name)
    assert op.outcome == "ok", op
    return op


def grown(behaviour: Behaviour, *keys: str) -> History:
    """Return a conversation over four sessions, in three of which a message was removed; process 1 has read it."""
    history = History(0, processes=2, behaviour=behaviour, keys=(KEY, *keys))
    for _ in range(3):
        for kind in ("add", "remove", "renew"):
            do(history, 0, kind)
    history.advance(history.lateness)
    do(history, 1, "read")
    return history


def killed(behaviour: Behaviour, kind: str, *keys: str) -> Iterator[tuple[History, Op]]:
    """Yield the conversation after an operation on it was killed, before its first call, its second, and so on."""
    calls = 0
    for calls in count():
        history = grown(behaviour, *keys)
        history.start(0, kind, 0, keys[0] if keys else KEY)
        op = history.ops[-1]
        for _ in range(calls):
            history.step(0)
        if history.processes[0].op is None:
            assert op.outcome == "ok"
            break
        history.crash(0)
        yield history, op
        history.emulator.close()
    assert calls > 15


@LISTS
def test_redact_killed_before_any_call(behaviour: Behaviour) -> None:
    """Whenever it dies, all else is there for readers and writers, and a second redact() ends it."""
    for history, op in killed(behaviour, "redact"):
        do(history, 1, "read")
        assert history.cold("read").outcome == "ok"
        assert history.cold("add", 1).outcome == "ok"
        do(history, 1, "read")
        if op.name:
            again = history.cold("redact", name=op.name)
            is_gone = again.error == "InvalidMessageError" and repr(op.name.split()[1]) not in stored(history.client)
            assert again.outcome == "ok" or is_gone, "\n".join(history.log)
        assert not history.conclude(), "\n".join(history.log)


@LISTS
def test_delete_killed_before_any_call(behaviour: Behaviour) -> None:
    """Whenever it dies, what was removed stays removed, others can write, and a second delete() ends it."""
    for history, _ in killed(behaviour, "erase"):
        do(history, 1, "read")
        assert history.cold("read").outcome == "ok"
        written = history.cold("add", 1)
        assert written.outcome == "ok"
        history.advance(history.lateness)
        assert written.tokens[0] in history.cold("read").result
        assert history.cold("erase").outcome == "ok", "\n".join(history.log)
        assert not history.cold("read").result, "\n".join(history.log)
        assert not history.conclude(), "\n".join(history.log)


@LISTS
def test_fork_killed_before_any_call(behaviour: Behaviour) -> None:
    """Whenever it dies, the new key holds all of it or nothing, and a second fork() is refused only in that case."""
    for history, _ in killed(behaviour, "fork", FORKS[0]):
        history.advance(history.lateness)
        found = history.cold("read", key=FORKS[0])
        source = do(history, 1, "read")
        assert found.result in ([], source.result)
        again = history.cold("fork", key=FORKS[0])
        history.advance(history.lateness)
        assert (again.outcome, again.error) == (("failed", "ConversationExists") if found.result else ("ok", ""))
        assert history.cold("read", key=FORKS[0]).result == source.result
        assert not history.conclude(), "\n".join(history.log)


@LISTS
def test_contexts_saved_beside_any_call_of_redact_stay(behaviour: Behaviour) -> None:
    """A large context is there, and another process saves one, before any call of redact(): both can be loaded."""
    calls = 0
    for calls in count():
        history = History(0, processes=2, behaviour=behaviour)
        do(history, 0, "add")
        do(history, 0, "save", name="cart")
        history.advance(history.lateness)
        do(history, 1, "read")
        history.start(0, "redact")
        for _ in range(calls):
            history.step(0)
        if history.processes[0].op is None:
            break
        do(history, 1, "save", name="mood")
        history.finish(0)
        assert not history.conclude(days=(2 * HOUR,)), "\n".join(history.log)
        history.emulator.close()
    assert calls > 15


def test_a_first_message_beside_any_call_of_a_fork_stays() -> None:
    """Another process writes first under the new key, before any call of fork(): its message is never lost."""
    calls = 0
    for calls in count():
        history = grown(AT_ONCE, FORKS[0])
        history.start(0, "fork", 0, FORKS[0])
        for _ in range(calls):
            history.step(0)
        if history.processes[0].op is None:
            break
        written = history.cold("add", 1, key=FORKS[0])
        fork = history.finish(0)
        assert fork.outcome == "ok" or fork.error == "ConversationExists"
        assert written.tokens[0] in history.cold("read", key=FORKS[0]).result
        assert not history.conclude(), "\n".join(history.log)
        history.emulator.close()
    assert calls > 5


def test_two_forks_onto_one_key_between_any_calls() -> None:
    """A second fork onto the same key, before any call of the first one: at most one of them succeeds."""
    calls = 0
    for calls in count():
        history = grown(AT_ONCE, FORKS[0])
        history.start(0, "fork", 0, FORKS[0])
        for _ in range(calls):
            history.step(0)
        if history.processes[0].op is None:
            break
        other, fork = history.cold("fork", key=FORKS[0]), history.finish(0)
        assert sorted([other.outcome, fork.outcome]) != ["ok", "ok"]
        assert not history.conclude(), "\n".join(history.log)
        history.emulator.close()
    assert calls > 5


def test_a_fork_that_does_not_look_for_others_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look for other forks, the check above fails."""
    BROKEN["forks_do_not_look_for_others"](monkeypatch)
    with pytest.raises(AssertionError):
        test_two_forks_onto_one_key_between_any_calls()
