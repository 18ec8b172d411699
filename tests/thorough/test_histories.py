"""Several processes on one key at once, interleaved between any two calls, with faults, crashes and days that pass."""

from __future__ import annotations

import os
from itertools import count
from typing import Any

import pytest

from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.broken import BROKEN
from tests.support.histories import DAY, FORKS, HOUR, KEY, MINUTE, SETTLE, TOOL, History, Process, random_history

pytestmark = pytest.mark.thorough

HISTORIES = int(os.environ.get("HISTORIES", "3"))
"""Histories of each suite; set the variable for a longer search."""

ALL = "add add add add read read remove set clear"
LATE = Behaviour(steps_listed_after_seconds=1.0, sessions_listed_after_seconds=1.5, late_lists="up to")
"""Lists are later than many calls take, and earlier than the library waits before it deletes."""
SUITES: dict[str, dict[str, Any]] = {
    "every kind of operation": {"kinds": ALL, "times": (MINUTE, 30 * MINUTE, 61 * MINUTE)},
    "appends across idle hours": {"kinds": "add add add add read", "times": (61 * MINUTE,), "processes": 4},
    "a crowd that crashes": {
        "kinds": "add add add read remove",
        "times": (61 * MINUTE,),
        "processes": 5,
        "crashes": 0.05,
    },
    "clocks wrong by minutes": {"kinds": ALL, "times": (MINUTE, 61 * MINUTE), "skews": (0, -120, 180)},
    "deletion of everything": {"kinds": f"{ALL} erase", "times": (MINUTE, 61 * MINUTE)},
    "days between": {"kinds": ALL, "times": (61 * MINUTE, 4 * DAY)},
    "steps listed late": {
        "kinds": ALL,
        "times": (MINUTE, 61 * MINUTE),
        "behaviour": Behaviour(steps_listed_after_seconds=0.5, late_lists="up to"),
    },
    "sessions listed late": {
        "kinds": ALL,
        "times": (MINUTE, 61 * MINUTE),
        "behaviour": Behaviour(steps_listed_after_seconds=0.5, sessions_listed_after_seconds=2.0, late_lists="up to"),
    },
    "expired sessions revive": {
        "kinds": ALL,
        "times": (MINUTE, 61 * MINUTE),
        "behaviour": Behaviour(write_to_expired="accepted", end_when_closed="ConflictException"),
    },
    "sessions that never refuse": {
        "kinds": "add add add read remove",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "behaviour": Behaviour(
            write_to_expired="accepted", end_when_closed="ValidationException", idle_timer_reset_by="nothing"
        ),
    },
    "every refusal a ValidationException, ids overwritten": {
        "kinds": ALL,
        "times": (MINUTE, 61 * MINUTE),
        "faults": 0.15,
        "behaviour": Behaviour(
            write_to_expired="ValidationException",
            write_to_ended="ValidationException",
            known_step_id="overwrite",
            idle_timer_reset_by="nothing",
            step_quota_error="ValidationException",
        ),
    },
    "expired sessions are not found, known ids ignored": {
        "kinds": ALL,
        "times": (MINUTE, 61 * MINUTE),
        "faults": 0.15,
        "behaviour": Behaviour(
            write_to_expired="ResourceNotFoundException",
            write_to_ended="ValidationException",
            known_step_id="no-op",
            idle_timer_reset_by="any call",
            step_ids_unique_per="account",
        ),
    },
    "redacting and renewing": {
        "kinds": f"{ALL} redact redact renew",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "processes": 4,
        "actions": 250,
        "faults": 0.02,
    },
    "redacting, listed late": {
        "kinds": f"{ALL} redact redact renew",
        "times": (MINUTE, 61 * MINUTE),
        "actions": 250,
        "faults": 0.02,
        "behaviour": Behaviour(steps_listed_after_seconds=0.5, sessions_listed_after_seconds=0.5, late_lists="up to"),
    },
    "cold readers while others redact": {
        "kinds": "add read read read redact redact renew",
        "times": (1.0,),
        "begin": "add add renew",
        "processes": 5,
        "actions": 200,
        "faults": 0.0,
        "crashes": 0.08,
        "days": (2 * HOUR,),
    },
    "sessions that begin at the same moment": {
        "kinds": "add add read read",
        "times": (1.0, 61 * MINUTE, 61 * MINUTE),
        "processes": 4,
        "actions": 200,
        "faults": 0.0,
        "days": (2 * HOUR,),
    },
    "archiving": {
        "kinds": "add add add read all archive archive remove set renew",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY, 10 * DAY),
        "actions": 120,
    },
    "archiving, redacting and erasing": {
        "kinds": "add add add read all archive archive redact renew erase",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "processes": 4,
        "actions": 250,
        "faults": 0.02,
    },
    "ending and reopening": {
        "kinds": "add add add read remove end reopen reopen renew",
        "times": (MINUTE, 61 * MINUTE),
        "actions": 250,
        "faults": 0.02,
    },
    "hiding and restoring": {
        "kinds": "add add add read read remove set hide restore restore renew erase",
        "times": (MINUTE, 61 * MINUTE),
        "actions": 250,
        "faults": 0.02,
    },
    "entries in a key-value store": {
        "kinds": f"{ALL} erase redact",
        "times": (MINUTE, 61 * MINUTE),
        "processes": 4,
        "faults": 0.1,
        "crashes": 0.05,
        "kv": True,
    },
    "named state": {
        "kinds": "add add read name name name named named remove redact renew erase",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "actions": 150,
    },
    "named state, hidden": {
        "kinds": "add read name name named named hide restore restore renew",
        "times": (MINUTE, 61 * MINUTE),
        "actions": 150,
    },
    "forks": {
        "kinds": "add add read all fork fork fork remove archive",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "keys": (*3 * [KEY], *FORKS),
        "begin": "add add add archive add remove",
        "actions": 150,
    },
    "forks of all that is done": {
        "kinds": "add add set read all name named fork fork fork remove archive redact renew erase hide restore",
        "times": (MINUTE, 61 * MINUTE),
        "keys": (*3 * [KEY], *FORKS),
        "begin": "add name add archive",
        "actions": 200,
        "faults": 0.02,
    },
    "forks onto one key": {
        "kinds": "fork fork fork add read name named erase erase",
        "times": (MINUTE,),
        "keys": (KEY, FORKS[0], FORKS[0]),
        "begin": "add name archive add",
        "processes": 4,
        "actions": 120,
        "crashes": 0.03,
    },
    "contexts": {
        "kinds": "add add read save save load load load_again remove renew",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "actions": 150,
    },
    "contexts while redacting": {
        "kinds": "add add read save save load load load_again redact redact renew erase",
        "times": (MINUTE, 61 * MINUTE),
        "actions": 250,
        "faults": 0.02,
    },
    "contexts loaded at the same moment": {
        "kinds": "save load load load load load renew",
        "times": (1.0, 61 * MINUTE),
        "begin": "save save",
        "processes": 4,
        "actions": 150,
        "crashes": 0.01,
    },
    "contexts, listed late": {
        "kinds": "add read save load load load_again renew redact",
        "times": (1.0, MINUTE, 61 * MINUTE),
        "begin": "add save",
        "actions": 200,
        "faults": 0.02,
        "behaviour": LATE,
    },
    "forks, listed late": {
        "kinds": "add add read all name named fork fork fork remove archive redact",
        "times": (1.0, MINUTE, 61 * MINUTE),
        "keys": (*3 * [KEY], *FORKS),
        "begin": "add name add archive",
        "actions": 150,
        "faults": 0.02,
        "behaviour": LATE,
    },
    "deletion of everything, listed late": {
        "kinds": f"{ALL} erase name named archive",
        "times": (1.0, MINUTE, 61 * MINUTE),
        "actions": 150,
        "faults": 0.02,
        "behaviour": LATE,
    },
    "a session of another tool": {
        "kinds": "add add tool tool read read remove set clear archive name named",
        "times": (MINUTE, MINUTE, 20 * MINUTE, 50 * MINUTE),
        "keys": (TOOL,),
        "processes": 4,
        "actions": 150,
        "days": (2 * HOUR,),
    },
    "a session of another tool that is ended": {
        "kinds": "add add add add tool tool read read name named remove end erase",
        "times": (MINUTE, 61 * MINUTE),
        "keys": (TOOL,),
        "actions": 150,
        "days": (2 * HOUR,),
    },
    "media": {
        "kinds": "add add add read read remove set redact renew erase archive",
        "times": (MINUTE, 61 * MINUTE, 4 * DAY),
        "media": True,
        "actions": 150,
        "faults": 0.03,
    },
    "media in forks": {
        "kinds": "add add add read all fork fork remove redact erase",
        "times": (MINUTE, 61 * MINUTE),
        "keys": (*3 * [KEY], *FORKS),
        "begin": "add add add",
        "media": True,
        "actions": 200,
        "faults": 0.02,
    },
    "a tool ends sessions": {"kinds": ALL, "times": (MINUTE, 61 * MINUTE), "users": True},
}


@pytest.mark.parametrize("suite", SUITES)
def test_no_history_breaks_a_promise(suite: str) -> None:
    """Nothing acknowledged is lost or doubled, nothing removed is back, order holds, and all readers agree."""
    operations = 0
    for seed in range(HISTORIES):
        history = random_history(seed, **SUITES[suite])
        operations += sum(op.outcome == "ok" for op in history.ops)
        assert not history.anomalies, "\n".join([f"seed {seed}", *map(str, history.anomalies), *history.log])
        history.emulator.close()
    assert operations > 0


@pytest.mark.parametrize(
    ("broken", "suite"),
    [
        ("entries_are_not_put", "entries in a key-value store"),
        ("only_the_newest_session", "every kind of operation"),
        ("sessions_are_not_closed", "every kind of operation"),
        ("removals_are_not_carried", "clocks wrong by minutes"),
        ("archived_messages_are_handed_down_bare", "archiving"),
        ("all_that_is_inherited_is_at_rest", "archiving"),
        ("local_clocks", "clocks wrong by minutes"),
        ("marks_are_not_carried", "hiding and restoring"),
        ("marks_are_not_carried", "ending and reopening"),
        ("nothing_waits_for_lists", "redacting, listed late"),
        ("nothing_is_looked_for_once_lists_have_settled", "sessions listed late"),
        ("redacting_copies_nothing", "redacting and renewing"),
        ("contexts_are_loaded_without_a_claim", "contexts loaded at the same moment"),
        ("attachments_of_state_are_not_copied", "contexts while redacting"),
        ("forks_do_not_copy_what_is_archived", "forks"),
        ("forks_do_not_copy_state", "forks onto one key"),
        ("forks_do_not_copy_media", "media in forks"),
        ("referenced_media_are_deleted", "media"),
        ("media_stay_in_s3", "media"),
        ("state_is_not_carried", "named state"),
        ("a_writer_does_not_list_after_creating_a_session", "sessions that begin at the same moment"),
    ],
)
def test_the_judge_finds_what_is_broken_on_purpose(broken: str, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of the protections, some history breaks a promise: the check above can fail."""
    BROKEN[broken](monkeypatch)
    settings = {**SUITES[suite], "days": (2 * HOUR,)}
    if broken == "attachments_of_state_are_not_copied":
        settings |= {"kinds": "save save load_again redact redact", "begin": "add save"}
    if broken == "local_clocks":
        settings |= {"kinds": "add", "times": (20.0, 40.0), "faults": 0.0, "actions": 90}
    for seed in range(40):
        history = random_history(seed, **settings)
        history.emulator.close()
        assert not [each for each in history.anomalies if each.what == "an error not of our tree"]
        if history.anomalies:
            return
    pytest.fail("no anomaly in 40 histories")


@pytest.mark.parametrize("seconds", [3 * SETTLE + 0.1, MINUTE])
def test_sessions_begun_at_once_are_found(seconds: float) -> None:
    """Two begin at the same moment, and sessions are listed late: three settling times later each finds both."""
    history = History(0, processes=2, behaviour=Behaviour(sessions_listed_after_seconds=2.0))
    for process in (0, 1):
        history.do(process, "add", until="create_session")
    for process in (0, 1):
        history.step(process)
    for process in (0, 1):
        history.go_on(process)
    history.advance(seconds)
    history.do(0, "read")
    assert not history.conclude(), "\n".join(history.log)


@pytest.fixture
def expired() -> History:
    """Return a history in which two processes know a conversation whose session has expired."""
    history = History(0, processes=2)
    history.do(0, "add")
    history.do(1, "read")
    history.advance(61 * MINUTE)
    return history


def test_session_opened_and_ended_concurrently_is_read(expired: History) -> None:
    """Two continue at once, and a tool ends the session that one of them has just opened: the other goes on there."""
    expired.do(1, "add", until="create_session")
    expired.do(0, "clear", until="create_session")
    expired.step(0)
    expired.go_on(1, "list_invocation_steps")
    expired.step(1)  # nobody has opened the session of the other
    expired.go_on(0)  # who does it now
    (*_, opened, _) = sorted(expired.client.list_sessions()["sessionSummaries"], key=lambda s: s["createdAt"])
    expired.client.end_session(sessionIdentifier=opened["sessionId"])
    expired.go_on(1)
    expired.advance(51 * MINUTE)
    expired.do(1, "read")
    assert not expired.conclude(), "\n".join(expired.log)


def test_who_was_stopped_for_two_sessions_brings_nothing_back(expired: History) -> None:
    """Three continue at once, one of them much later: the sessions that he has found unopened are used up by then."""
    expired.processes.append(Process(expired, 2, 0.0))
    for process, kind in enumerate(("remove", "add", "add")):
        expired.do(process, kind, until="create_session")
    for process in (0, 2, 1):
        expired.step(process)
    expired.go_on(1, "create_invocation")  # in the session of the first: nobody has opened it yet
    expired.go_on(0)  # who removes a message there
    expired.do(0, "renew")
    expired.do(0, "renew")
    expired.go_on(1)
    expired.do(0, "read")
    assert not expired.conclude(), "\n".join(expired.log)


def test_concurrent_opener_stops_when_the_other_ends(expired: History) -> None:
    """Two continue at once in one session, and one of them to end the conversation: the other learns so."""
    expired.do(0, "end", until="create_session")
    expired.step(0)
    expired.do(1, "add", until="create_invocation")  # nobody has opened the session yet
    expired.go_on(0, "end_session")  # its opening, which says the end, is stored
    expired.go_on(1)
    expired.go_on(0)
    expired.do(1, "add")
    assert expired.ops[-1].error == "ConversationEnded"
    assert not expired.conclude(), "\n".join(expired.log)


def test_concurrent_opener_respects_the_others_reopen(expired: History) -> None:
    """Two continue what was ended at once in one session, one of them to reopen it: it takes messages."""
    expired.do(0, "end")
    expired.advance(61 * MINUTE)
    expired.do(0, "reopen", until="create_session")
    expired.step(0)
    expired.do(1, "renew", until="create_invocation")  # nobody has opened the session yet
    expired.go_on(0)
    expired.go_on(1)
    for process in (0, 1):
        expired.do(process, "add")
        assert expired.ops[-1].outcome == "ok"
    assert not expired.conclude(), "\n".join(expired.log)


@pytest.mark.parametrize("until", ["create_session", "create_invocation", "put_invocation_step"])
def test_paused_writer_restores_nothing_redacted(expired: History, until: str) -> None:
    """One goes on, and is stopped before the step that opens the next session, with what it will carry in memory."""
    expired.do(1, "add", until="create_session")
    if until != "create_session":
        expired.step(1)
        expired.go_on(1, until)
    expired.do(0, "redact")
    assert expired.ops[-1].outcome == "ok"
    assert expired.ops[-1].result == expired.ops[0].tokens[:1]
    expired.go_on(1)
    assert not expired.conclude(), "\n".join(expired.log)


@pytest.mark.parametrize("kv", [False, True])
@pytest.mark.parametrize("kind", ["read", "clear", "add"])
def test_reader_before_redact_reads_again(kind: str, *, kv: bool) -> None:
    """One who remembers nothing is stopped before any of his calls, and what he was about to read is gone by then."""
    stopped = 0
    for calls in count():
        history = History(0, processes=2, kv=kv)
        history.do(0, "add")
        history.do(0, "add")
        history.do(0, "renew")
        history.start(1, kind)
        is_stopped = all(history.step(1) for _ in range(calls))
        if not is_stopped or history.processes[1].op is None:
            break
        stopped += 1
        history.do(0, "redact")
        history.go_on(1)
        assert all(op.outcome == "ok" for op in history.ops)
        before = [*history.ops[0].tokens, *history.ops[1].tokens]
        assert kind != "read" or history.ops[3].result in (before, before[1:])
        assert not history.conclude(), "\n".join(history.log)
    assert stopped > 4


def test_a_reader_that_does_not_list_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the list after a session was found deleted, the check above fails."""
    BROKEN["a_reader_of_a_deleted_session_does_not_list_again"](monkeypatch)
    with pytest.raises(AssertionError):
        test_reader_before_redact_reads_again("read", kv=False)


@pytest.mark.parametrize("writers", [1, 3])
def test_redacting_comes_to_an_end_while_others_write(writers: int) -> None:
    """Others append without a pause, a call each in turn: they go on in new sessions as often as they are closed."""
    history = History(0, processes=1 + writers)
    history.do(0, "add")
    for writer in range(1, 1 + writers):
        history.do(writer, "read")
    history.start(0, "redact")
    while history.step(0):
        for writer in range(1, 1 + writers):
            if not history.step(writer):
                history.start(writer, "add")
    (redact,) = [op for op in history.ops if op.kind == "redact"]
    assert redact.result == history.ops[0].tokens[:1]
    assert not history.conclude(), "\n".join(history.log)


def test_what_is_being_saved_while_another_redacts_can_be_loaded() -> None:
    """What takes steps of its own is written before the step that refers to it, and the other may be anywhere then."""
    stopped = 0
    for calls in count():
        history = History(0, processes=2)
        history.do(0, "add")
        history.do(1, "read")
        history.do(1, "save", until="put_invocation_step")
        history.step(1)  # the attachment is there, what refers to it is not
        history.start(0, "redact")
        if not all(history.step(0) for _ in range(calls)) or history.processes[0].op is None:
            break
        stopped += 1
        history.go_on(1)
        history.go_on(0)
        assert [op.outcome for op in history.ops] == ["ok"] * 4
        assert history.cold("load").outcome == "ok", "\n".join(history.log)
    assert stopped > 12


def test_two_redact_at_once() -> None:
    """Each deletes what the other has begun, a call each in turn; both come to an end."""
    tried = 0
    for ahead in count(step=3):
        history = History(0, processes=3)
        history.do(2, "add")
        history.do(2, "add")
        for process in (0, 1):
            history.do(process, "read")
        history.start(0, "redact", 0)
        if not all(history.step(0) for _ in range(ahead)) or history.processes[0].op is None:
            break
        history.start(1, "redact", 1)
        while any([history.step(0), history.step(1)]):
            pass
        assert [op.outcome for op in history.ops[4:6]] == ["ok", "ok"], "\n".join(history.log)
        assert not history.conclude(), "\n".join(history.log)
        tried = ahead
    assert tried > 12
