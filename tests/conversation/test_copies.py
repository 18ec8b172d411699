"""Sessions that are begun as copies, by redact() and fork(), while other processes are stopped at a chosen call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from llama_index_bedrock_sessions._bedrock.session_metadata import KEY
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.broken import BROKEN
from tests.support.histories import KEY as CHAT
from tests.support.histories import MINUTE, History
from tests.support.service import sessions, steps, stored

pytestmark = pytest.mark.thorough


def calls(history: History, process: str, operation: str) -> int:
    """Count the calls of a process by the log of a history."""
    return sum(line.split()[1:3] == [process, operation] for line in history.log)


@pytest.mark.parametrize("writers", [0, 1, 3])
def test_redacting_takes_one_pass_while_others_write(writers: int) -> None:
    """The removal is written first, so that nothing another process opens at the same time has to be copied again."""
    history = History(0, processes=1 + writers)
    history.do(0, "add")
    for writer in range(1, 1 + writers):
        history.do(writer, "read")
    before = calls(history, "P0", "create_session")
    history.start(0, "redact")
    while history.step(0):
        for writer in range(1, 1 + writers):
            if not history.step(writer):
                history.start(writer, "add")
    assert calls(history, "P0", "create_session") - before == 1
    assert not history.conclude(), "\n".join(history.log)


def stopped_before_its_opening() -> History:
    """Return a history in which a process has read all and created a session, which lists do not show yet."""
    history = History(0, processes=2, behaviour=Behaviour(sessions_listed_after_seconds=1.5))
    history.do(0, "add")
    history.advance(2)
    history.do(1, "read")
    history.advance(61 * MINUTE)
    history.do(1, "add", until="create_invocation")
    return history


def redact_around(history: History) -> None:
    """Redact in one process; the other opens its session after the removal was written, and before the copy is made."""
    history.start(0, "redact")
    while history.processes[0].gate and history.processes[0].gate.waiting_for != "settle":
        history.step(0)
    history.go_on(1)
    history.go_on(0)


def test_a_session_opened_without_the_removal_is_copied_again() -> None:
    """Neither process sees the other's new session: the look after the deletion finds what holds the text."""
    history = stopped_before_its_opening()
    redact_around(history)
    assert [op.outcome for op in history.ops if op.kind in {"redact", "add"}] == ["ok"] * 3
    (text,) = history.ops[0].tokens[:1]
    assert repr(text) not in stored(history.client)
    assert not history.conclude(), "\n".join(history.log)


def test_an_opened_session_is_never_deleted_by_a_fork() -> None:
    """Another process writes a first message, stopped before any call of the fork: both stay, for all readers."""
    outcomes: Counter[str] = Counter()
    for stopped in count():
        history = History(0, processes=3)
        history.do(0, "add")
        history.start(0, "fork", key="fork")
        if not all(history.step(0) for _ in range(stopped)) or history.processes[0].op is None:
            break
        history.start(1, "add", key="fork")
        while history.step(1):
            pass
        while history.step(0):
            pass
        forked, added = history.ops[-2:]
        assert added.outcome == "ok"
        outcomes[forked.outcome] += 1
        for process in (0, 1, 2):
            history.start(process, "read", key="fork")
            while history.step(process):
                pass
            assert set(added.tokens) <= set(history.ops[-1].result), "\n".join(history.log)
            copied = set(history.ops[0].tokens) <= set(history.ops[-1].result)
            assert copied is (forked.outcome == "ok"), "\n".join(history.log)
    assert outcomes["ok"] > 0
    assert outcomes["failed"] > 0


def test_what_is_beside_a_copy_reads_from_the_copy() -> None:
    """A process continues the conversation just before it is copied: what it refers to is deleted, and in the copy."""
    history = History(0, processes=2)
    history.do(0, "add")
    history.start(0, "save", 0, name="cart")  # large: its content is an attachment
    while history.step(0):
        pass
    history.do(1, "read")
    before = calls(history, "P0", "create_session")
    history.start(0, "redact")
    for nth in range(3):
        while history.processes[0].gate and history.processes[0].gate.waiting_for != "settle":
            history.step(0)
        if nth == 0:
            history.do(1, "add")  # in a session of its own, which refers to the one that is closed
        if nth < 2:
            history.step(0)
    history.start(1, "load", name="cart")
    while history.step(1):
        pass
    assert history.ops[-1].outcome == "ok", "\n".join(history.log)
    history.go_on(0)
    assert calls(history, "P0", "create_session") == before + 1  # it had read the removal, which is written first
    assert not history.conclude(), "\n".join(history.log)


def test_what_a_killed_fork_left_is_opened_by_no_process() -> None:
    """It may hold copies of messages: other processes pass over it, and the next that copies deletes it."""
    history = History(0, processes=2)
    history.do(0, "add")
    history.start(0, "fork", key="fork")
    while history.processes[0].gate and history.processes[0].gate.waiting_for != "create_invocation":
        history.step(0)
    history.crash(0)
    (left,) = [s["sessionId"] for s in sessions(history.client) if s["sessionMetadata"][KEY] == "fork"]
    for kind in ("add", "read", "redact"):
        assert steps(history.client, left) == []
        history.start(1, kind, key="fork")
        while history.step(1):
            pass
        assert history.ops[-1].outcome == "ok"
    assert left not in {s["sessionId"] for s in sessions(history.client)}


def test_history_deleted_during_read_restores_nothing() -> None:
    """Another process redacts between any two calls: what a session removed is not shown because that one is gone."""
    shown: Counter[int] = Counter()
    stopped, before = 0, []
    for stopped in count():
        history = History(0, processes=2)
        for kind in ("add", "add", "renew", "clear", "add", "renew"):
            history.do(0, kind)
        history.do(1, "read")
        before, process = history.ops[-1].result, history.processes[1]
        point = process.store.conversation(CHAT).records()[-1].id
        history.start(1, "at", name=point)
        if not all(history.step(1) for _ in range(stopped)) or process.op is None:
            break
        history.do(0, "redact")
        while history.step(1):
            pass
        seen = history.ops[-1 if history.ops[-1].kind == "at" else -2]
        assert seen.outcome != "unknown", "\n".join(history.log)
        if seen.outcome == "ok":
            assert set(seen.result) <= {*before, "[unreadable message: its text is no longer in the service]"}
            shown[len(seen.result)] += 1
    assert stopped > 6
    assert shown[len(before)] > 0


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (
            "redacting_does_not_look_for_what_is_left",
            test_a_session_opened_without_the_removal_is_copied_again,
        ),
        ("redacting_does_not_remove_first", test_what_is_beside_a_copy_reads_from_the_copy),
        ("others_beside_a_copy_are_not_closed", test_an_opened_session_is_never_deleted_by_a_fork),
        ("copies_are_opened_by_others", test_what_a_killed_fork_left_is_opened_by_no_process),
    ],
)
def test_these_tests_can_fail(broken: str, test: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of the protections, one of the tests above notices."""
    BROKEN[broken](monkeypatch)
    with pytest.raises(AssertionError):
        test()
