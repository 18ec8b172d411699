"""Ending, hiding, redacting, renewing, deleting: what is done to a whole conversation."""

from __future__ import annotations

import contextlib
import json
import logging
import runpy
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import pytest
from click.testing import CliRunner
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock

from llama_index_bedrock_sessions import (
    AuditEvent,
    BedrockSessionsChatStore,
    BedrockSessionsError,
    ConfigurationError,
    ConversationEnded,
    InvalidMessageError,
    InvalidStateError,
    SessionClosed,
    StepTooLargeError,
    UnavailableError,
)
from llama_index_bedrock_sessions._conversation import lifecycle
from llama_index_bedrock_sessions._journal.ids import Kind, new_id
from llama_index_bedrock_sessions.cli.commands import main
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support.service import DAY, IDLE, KEY, Service, png, stored, texts, user, users

pytestmark = pytest.mark.thorough

NO_ACCOUNT = {"AWS_ACCESS_KEY_ID": None, "AWS_PROFILE": None, "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
NO_ACCOUNT |= {"AWS_CONFIG_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"}
SECRET = "my number is 4111-1111"
EXPIRED = ["ConflictException", "ValidationException", "ResourceNotFoundException", "accepted"]


@pytest.fixture
def service() -> Service:
    return Service()


def picture(seed: int) -> ChatMessage:
    return ChatMessage(role="user", blocks=[TextBlock(text=f"picture {seed}"), ImageBlock(image=png(seed=seed))])


def said_by(operation: Callable[[], object]) -> bool | None:
    """Whether the error of an operation says that it may have happened; None if it had none."""
    try:
        operation()
    except BedrockSessionsError as error:
        return error.may_have_happened
    return None


def statuses(service: Service) -> list[str]:
    return [session["sessionStatus"] for session in service.sessions()]


# Ending


@pytest.mark.parametrize("expired", [None, *EXPIRED])
def test_what_was_ended_takes_no_messages_until_it_is_reopened(expired: Any) -> None:
    """Also where its session has expired, whatever the service answers to a write then; reading goes on."""
    service = Service(behaviour=Behaviour(**({"write_to_expired": expired} if expired else {})))
    warm, other = service.store(), service.store()
    warm.add_message(KEY, user("it is slow"))
    other.get_messages(KEY)
    if expired:
        service.later(IDLE)
    chat = service.store().conversation(KEY)
    assert chat.end("an index was missing", kind="resolved", by="database specialist")
    assert not chat.end("again")
    for store in (warm, other, service.store()):
        with pytest.raises(ConversationEnded, match="reopen"):
            store.add_message(KEY, user("too late"))
    with pytest.raises(ConversationEnded, match="reopen"):
        chat.add(users("too late"))
    assert texts(service.store()) == texts(warm) == ["it is slow"]
    ended: Any = service.store().conversation(KEY).describe()["ended"]
    assert {"summary": "an index was missing", "kind": "resolved", "by": "database specialist"}.items() <= ended.items()
    assert statuses(service)[-1] == "ENDED"
    assert service.store().conversation(KEY).reopen()
    assert not chat.reopen()
    for store in (warm, other, service.store()):
        store.add_message(KEY, user("it is slow again"))
    assert texts(service.store()) == ["it is slow", *["it is slow again"] * 3]
    assert chat.describe()["ended"] is None


def test_a_key_nobody_wrote_to_cannot_be_ended(service: Service) -> None:
    chat = service.store().conversation(KEY)
    assert not chat.end()
    assert not chat.reopen()
    assert chat.hide() is None
    assert not chat.restore()
    assert not chat.renew()
    assert chat.delete() is None
    assert service.sessions() == []


def test_ended_stays_ended_after_renew_or_hide(service: Service) -> None:
    """What continues an ended conversation without reopening it is born ended."""
    chat = service.store().conversation(KEY)
    chat.add(users("hello"))
    chat.end("solved")
    for _ in range(3):
        service.later(11 * DAY)
        assert service.store().conversation(KEY).renew()
    chat.hide()
    assert chat.restore()
    chat.redact(chat.history()[0].added[0])
    with pytest.raises(ConversationEnded):
        service.store().add_message(KEY, user("too late"))
    ended: Any = service.store().conversation(KEY).describe()["ended"]
    assert ended["summary"] == "solved"
    assert set(statuses(service)) == {"ENDED"}


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_ending_that_fails_half_way_is_finished_by_ending_again(nth: int) -> None:
    """Whichever call fails: it is ended or it is not, and once it is, no session stays open for writing."""
    service = Service()
    chat = service.store().conversation(KEY)
    chat.add(users("hello"))
    service.faults.add("*", nth, "lost_reply")
    try:
        chat.end("solved")
    except BedrockSessionsError:
        chat.end("solved")
    service.faults.clear()
    with pytest.raises(ConversationEnded):
        service.store().add_message(KEY, user("too late"))
    assert statuses(service) == ["ENDED"]


@pytest.mark.parametrize("nth", range(1, 5))
def test_who_ended_is_told_whatever_fails(nth: int) -> None:
    """An error when the conversation was ended, or may be, says so, and the audit knows who did it: rather twice."""
    service, told = Service(), list[AuditEvent]()
    chat = service.store(audit=told.append).conversation(KEY)
    chat.add(users("hello"))
    service.faults.add("*", nth, "unavailable", times=None)
    said = said_by(lambda: chat.end("solved"))
    assert said is not False or not told
    service.faults.clear()
    chat.end("solved")
    assert [event.action for event in told] in (["ended"], ["ended", "ended"] if said else [])


def test_a_message_that_is_stored_is_not_said_to_have_failed() -> None:
    """Where a conversation goes on in another session and cannot be read right afterwards, its message is there."""
    failed = 0
    for nth in range(1, 25):
        service = Service()
        store = service.store()
        store.add_message(KEY, picture(1))
        service.later(9.5 * DAY)
        service.faults.add("*", nth, "unavailable", times=None)
        said = said_by(partial(service.store().add_message, KEY, user("two")))
        service.faults.clear()
        failed += said is not None
        assert said is not False or "two" not in texts(service.store())
    assert failed > 5


def test_who_ends_while_another_continues(service: Service) -> None:
    """The session that a writer has just opened is the one that is ended."""
    ender, writer = service.store(), service.store()
    writer.add_message(KEY, user("one"))
    ender.get_messages(KEY)
    service.later(IDLE)
    writer.add_message(KEY, user("two"))
    assert ender.conversation(KEY).end()
    with pytest.raises(ConversationEnded):
        writer.add_message(KEY, user("three"))
    assert texts(service.store()) == ["one", "two"]


# Hiding


@pytest.mark.parametrize("pause", [0.0, IDLE, 8 * DAY])
def test_what_is_hidden_can_be_restored(service: Service, pause: float) -> None:
    """A hidden conversation looks like none, begins anew, and comes back whole and in order."""
    chat = service.store().conversation(KEY)
    chat.set(users("one", "two"))
    chat.add([picture(1)])
    chat.state["cart"] = ["shoes"]
    warm = service.store()
    warm.get_messages(KEY)
    assert [m.content for m in chat.hide() or ()] == ["one", "two", "picture 1"]
    assert chat.hide() == []
    assert set(statuses(service)) == {"ENDED"}
    service.later(pause)
    for store in (warm, service.store()):
        assert store.get_messages(KEY) == []
        assert dict(store.conversation(KEY).state) == {}
    warm.add_message(KEY, user("three"))
    service.later(pause)
    warm.conversation(KEY).set(users("three", "four"))
    warm.conversation(KEY).set(users("four", "three"))
    warm.conversation(KEY).state["cart"] = []
    assert texts(service.store()) == ["four", "three"]
    service.later(pause)
    assert service.store().conversation(KEY).restore()
    assert not chat.restore()
    assert service.store().get_messages(KEY) == [*users("one", "two"), picture(1), *users("four", "three")]
    assert dict(warm.conversation(KEY).state) == {"cart": []}


def test_delete_messages_may_hide(service: Service) -> None:
    """`on_delete="hide"`: LlamaIndex's verb as for every store, and nothing is gone."""
    store = service.store(on_delete="hide")
    assert store.delete_messages(KEY) is None
    store.add_message(KEY, user("one"))
    assert store.delete_messages(KEY) == users("one")
    assert store.delete_messages(KEY) == []
    store.add_message(KEY, user("two"))
    assert texts(store) == ["two"]
    assert store.delete_message(KEY, 0) == user("two")
    assert store.conversation(KEY).restore()
    assert texts(store) == ["one"]


# Redacting


@pytest.mark.parametrize("pause", [0.0, IDLE, 8 * DAY])
@pytest.mark.parametrize("removed", [False, True])
def test_what_is_redacted_is_gone_from_the_service(service: Service, pause: float, removed: bool) -> None:
    """In every step of every session, packed or not, with its pictures; all else is as it was."""
    chat = service.store().conversation(KEY)
    secret = ChatMessage(role="user", blocks=[TextBlock(text=SECRET), ImageBlock(image=png(seed=9))])
    chat.add([*users("one"), secret, picture(1)])
    chat.add(users("old"))
    chat.archive_oldest(1)
    chat.state["cart"] = ["shoes"]
    doomed = chat.history()[0].added[1]
    for number in range(4):
        chat.add(users(f"turn {number}"))
        service.later(pause)
    if removed:
        service.store().delete_message(KEY, 0)
    warm = service.store()
    warm.get_messages(KEY)
    assert SECRET in stored(service.boto3)
    chat.redact(doomed)
    assert SECRET not in stored(service.boto3)
    assert repr(png(seed=9)) not in stored(service.boto3)
    assert len(service.sessions()) == 1
    expected = [picture(1), *users("old", "turn 0", "turn 1", "turn 2", "turn 3")]
    for store in (warm, service.store()):
        assert store.get_messages(KEY) == chat.messages() == expected
        assert store.conversation(KEY).messages(status=None)[0] == user("one")
        assert dict(store.conversation(KEY).state) == {"cart": ["shoes"]}
        store.add_message(KEY, user("more"))
        expected.append(user("more"))


def test_redacting_a_long_conversation(service: Service) -> None:
    """What is more than a step holds goes into several; nothing of the secret is in any."""
    chat = service.store().conversation(KEY)
    for number in range(30):
        chat.add([user(f"{number} " + "".join(chr(97 + (number * n) % 26) for n in range(60_000)))])
    chat.add([user(SECRET), *(picture(n) for n in range(25))])
    before = chat.messages()
    chat.redact(chat.history()[30].added[0])
    assert service.store().get_messages(KEY) == [m for m in before if m.content != SECRET]
    assert SECRET not in stored(service.boto3)
    assert len(service.sessions()) == 1


@pytest.mark.parametrize("late", [0.5, 1, 2, 3, 12])
def test_what_was_listed_late_is_not_redacted_with_the_rest(late: float) -> None:
    """A step that the first list does not show is carried like the others before its session is deleted."""
    service = Service(behaviour=Behaviour(steps_listed_after_seconds=late))
    chat = service.store(settling_time=late).conversation(KEY)
    chat.add(users(SECRET))
    service.later(late)
    chat.messages()
    doomed = chat.history()[0].added[0]
    service.store().add_message(KEY, picture(1))
    chat.redact(doomed)
    assert SECRET not in stored(service.boto3)
    service.emulator.behaviour = Behaviour()
    assert service.store().get_messages(KEY) == [picture(1)]


@pytest.mark.parametrize("late", [1, 15, 17, 60])
def test_redacting_deletes_nothing_before_its_copy_is_found(late: float) -> None:
    """A session that is listed later than eight settling times is no copy to rely on: all stays, and it says so."""
    service = Service(behaviour=Behaviour(sessions_listed_after_seconds=late))
    chat = service.store().conversation(KEY)
    chat.add(users("one", SECRET))
    service.later(late)
    doomed = str(chat.last_id())
    if late > 16:
        with pytest.raises(UnavailableError, match="is not listed"):
            chat.redact(doomed)
        assert SECRET in stored(service.boto3)
    else:
        chat.redact(doomed)
        service.later(late)
        assert SECRET not in stored(service.boto3)
    service.later(late)
    assert service.store().get_messages(KEY) == users("one")


def test_pictures_of_a_copy_survive_a_join(service: Service) -> None:
    """Another process continues just before the copy is opened: its session refers to pictures that are deleted."""
    store, other = service.store(), service.store()
    chat = store.conversation(KEY)
    chat.add([user(SECRET), picture(1)])
    other.get_messages(KEY)
    expected = [picture(1)]
    calls: list[str] = []

    def continues(event_name: str, **_: Any) -> None:
        calls.append(event_name.rpartition(".")[2])
        # The attachment with the picture, and then the opening, whose id is chosen by now.
        if calls[-3:] == ["CreateInvocation", "PutInvocationStep", "PutInvocationStep"]:
            expected.append(user("beside " * 1000))  # so large that its step carries the message before
            other.add_message(KEY, expected[-1])

    store.client.meta.events.register("before-call.bedrock-agent-runtime", continues)
    chat.redact(chat.records()[0].id)
    for pause in (0.0, 10.0, IDLE, IDLE, 10 * DAY):
        service.later(pause)
        for reader in (store, other, service.store()):
            assert reader.get_messages(KEY) == expected
        service.store().add_message(KEY, user(f"after {pause}"))
        expected.append(user(f"after {pause}"))
    assert SECRET not in stored(service.boto3)


def test_what_others_have_begun_to_copy_is_redacted_too() -> None:
    """One dies while he goes on in a new session, where he has copied what is old: nobody goes on there."""
    fired = 0
    for nth in count(1):
        service = Service()
        chat = service.store().conversation(KEY)
        secret = ChatMessage(role="user", blocks=[TextBlock(text=SECRET), ImageBlock(image=png(seed=9))])
        chat.add([user("one"), secret])
        doomed = chat.history()[0].added[1]
        service.later(10 * DAY)
        service.faults.add("*", nth, "unavailable")
        with contextlib.suppress(BedrockSessionsError):
            service.store().add_message(KEY, user("two"))
        done = not service.faults.fired
        service.faults.clear()
        if done:
            break
        fired += 1
        chat.redact(doomed)
        assert SECRET not in stored(service.boto3)
        assert repr(png(seed=9)) not in stored(service.boto3)
        assert texts(service.store())[0] == "one"
    assert fired >= 10


def test_a_damaged_step_is_a_placeholder_after_redacting_too(service: Service) -> None:
    chat = service.store().conversation(KEY)
    chat.add(users(SECRET, "one"))
    (session,) = service.sessions()
    step = new_id(int(service.clock.now().timestamp() * 1000), Kind.CHANGE)
    service.put(
        session["sessionId"], [{"text": '{"llama_index_bedrock_sessions": 1, "change": 7}'}], invocationStepId=step
    )
    before = texts(service.store())
    chat.redact(chat.history()[0].added[0])
    assert texts(service.store()) == before[1:]
    assert len(before) == 3


def test_what_was_removed_in_an_early_session_can_be_redacted(service: Service) -> None:
    """History tells its id, and the service has its text, for as long as its session is there."""
    chat = service.store().conversation(KEY)
    chat.add(users(SECRET, "one"))
    doomed = chat.history()[0].added[0]
    chat.remove(0)
    for number in range(3):
        service.later(DAY)
        chat.add(users(f"turn {number}"))
    assert SECRET in stored(service.boto3)
    other = service.store().conversation(KEY)
    assert other.messages(at=doomed) == users(SECRET)
    other.redact(doomed)
    assert SECRET not in stored(service.boto3)
    assert texts(service.store()) == ["one", "turn 0", "turn 1", "turn 2"]


@pytest.mark.parametrize("text", ["", "nonsense", "nonsense/0", "/", "0/-1", None, 7])
def test_only_a_message_of_the_conversation_can_be_redacted(service: Service, text: Any) -> None:
    chat = service.store().conversation(KEY)
    chat.add(users("one"))
    before = service.everything()
    with pytest.raises(InvalidMessageError, match="history"):
        chat.redact(chat.history()[0].added[0], text)
    record: Any = chat.records()[0]
    with pytest.raises(InvalidMessageError, match=r"^A value of type Record is not") as refused:
        chat.redact(record)
    assert "one" not in str(refused.value)
    assert service.everything() == before
    chat.redact()
    assert service.everything() == before


# Renewing


def test_who_is_renewed_keeps_everything_for_months(service: Service) -> None:
    """A job every week keeps a conversation nobody writes to; without it the service deletes it."""
    service.store().set_messages("kept", [*users("one", "two"), picture(1)])
    kept = service.store().conversation("kept")
    kept.archive_oldest(1)
    kept.state["cart"] = ["shoes"]
    service.store().set_messages("left", users("one"))
    for _ in range(15):
        service.later(7 * DAY)
        service.store().conversation("kept").renew()
    assert service.store().conversation("kept").messages(status=None) == [*users("one", "two"), picture(1)]
    assert service.store().get_messages("kept") == [user("two"), picture(1)]
    assert dict(service.store().conversation("kept").state) == {"cart": ["shoes"]}
    assert service.store().get_messages("left") == []
    assert len(service.sessions()) < 6


def test_a_job_renews_what_is_old_enough(service: Service) -> None:
    """One conversation that cannot be renewed does not keep the others from it."""
    for key in ("a", "b", "c"):
        service.store().add_message(key, user("hello"))
    service.store(on_delete="clear").delete_messages("c")
    service.later(9 * DAY)
    service.store().add_message("d", user("young"))
    assert service.store().renew().keys == ()
    service.later(2 * DAY)
    service.faults.add("CreateSession", 1, "access_denied")
    first = service.store(max_concurrency=1).renew()
    assert len(first.keys) == 1
    assert [type(error).__name__ for error in first.failed.values()] == ["AccessDeniedError"]
    assert service.store().renew().keys == tuple(first.failed)
    service.clock.advance(60)
    told: list[tuple[int, int]] = []
    assert service.store().renew(older_than=timedelta(0), progress=lambda *n: told.append(n)).keys == ("a", "b", "d")
    assert sorted(told) == [(n, 4) for n in range(1, 5)]
    with service.counting() as calls:
        assert service.store().renew().keys == ()
    assert calls["ListInvocationSteps"] == 1, "only what is old is read: c, of which nothing is left"
    with pytest.raises(ConfigurationError, match="cannot be renewed"):
        service.store(directory="session-id").renew()
    with pytest.raises(ConfigurationError, match="timedelta"):
        service.store().conversation("a").renew(10)  # type: ignore[arg-type]


def test_attached_session_is_hidden_and_restored_in_place(service: Service) -> None:
    """It cannot go on in another session: what needs one is refused, and changes nothing."""
    session = service.boto3.create_session()["sessionId"]
    chat = service.store().attach(session)
    chat.add(users("one"))
    for refused in (lambda: chat.redact(str(chat.last_id())), lambda: chat.renew(timedelta(0))):
        with pytest.raises(SessionClosed, match="would have to be left"):
            refused()
    chat.hide()
    chat.add(users("two"))
    assert service.store().attach(session).messages() == users("two")
    assert chat.restore()
    assert service.store().attach(session).messages() == users("one", "two")
    assert chat.end()
    with pytest.raises(ConversationEnded, match="cannot be reopened"):
        chat.add(users("three"))


# Metadata


@pytest.mark.parametrize("update", ["replace", "merge"])
@pytest.mark.parametrize("pause", [0.0, IDLE])
def test_metadata_can_be_changed_and_is_inherited(update: Any, pause: float) -> None:
    """By every process, whatever it has learnt before, and before what the store's constructor says."""
    service = Service(behaviour=Behaviour(update_metadata=update))
    other = service.store(session_metadata={"severity": "high", "team": "a"})
    other.add_message(KEY, user("one"))
    service.later(pause)
    service.store().conversation(KEY).update_metadata({"severity": "low"}, tags={"Closed": "yes"})
    for _ in range(2):
        session = service.sessions()[-1]
        assert session["sessionMetadata"]["severity"] == "low"
        assert session["sessionMetadata"]["team"] == "a"
        tags = service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"]
        assert tags == {"Closed": "yes"}
        service.later(IDLE)
        other.add_message(KEY, user("two"))
    with pytest.raises(ConfigurationError, match="used by this library"):
        other.conversation(KEY).update_metadata({"llama-index-key": "somebody else"})


def test_metadata_given_before_the_first_message(service: Service) -> None:
    chat = service.store().conversation(KEY)
    chat.update_metadata({"severity": "high"})
    chat.add(users("one"))
    assert service.sessions()[0]["sessionMetadata"]["severity"] == "high"


@pytest.mark.parametrize(
    ("metadata", "tags"),
    [
        ({f"more {number}": "x" for number in range(30)}, {}),
        ({"long": "x" * 5001}, {}),
        ({"": "x"}, {}),
        ({"x" * 101: "x"}, {}),
        ({}, {f"more {number}": "x" for number in range(150)}),
        ({}, {"": "x"}),
        ({}, {"long": "x" * 257}),
        ({}, {"a*": "x"}),
    ],
)
def test_invalid_metadata_is_refused_and_not_kept(
    service: Service, metadata: dict[str, str], tags: dict[str, str]
) -> None:
    """It would be inherited: the conversation could never be continued again."""
    chat = service.store().conversation(KEY)
    chat.add(users("one"))
    chat.update_metadata(
        {f"name {number}": "x" for number in range(30)}, tags={f"name {number}": "x" for number in range(100)}
    )
    before = service.everything()
    with pytest.raises(ConfigurationError):
        chat.update_metadata(metadata, tags=tags)
    assert service.everything() == before
    service.later(IDLE)
    chat.add(users("two"))
    assert texts(service.store()) == ["one", "two"]


def test_changed_metadata_is_not_overwritten_by_first_value(service: Service) -> None:
    """A handler that says it at every request does not undo what somebody has found out since."""
    first = {"severity": "high"}
    service.store().conversation(KEY, session_metadata=first, tags=first).add(users("one"))
    low = {"severity": "low"}
    service.store().conversation(KEY).update_metadata(low, tags=low)
    service.later(IDLE)
    service.store().conversation(KEY, session_metadata=first, tags=first).add(users("two"))
    session = service.sessions()[-1]
    assert session["sessionMetadata"]["severity"] == "low"
    assert service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"] == low


def test_excess_metadata_does_not_block_writing(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """What was said of the conversation counts most, then what its sessions had, then what the store says of all."""
    first = service.store(session_metadata={f"first-{n:02}": "1" for n in range(40)})
    first.add_message(KEY, user("one"))
    service.later(IDLE)
    second = service.store(session_metadata={f"second-{n:02}": "2" for n in range(40)})
    second.conversation(KEY, session_metadata={"severity": "high"}).add(users("two"))
    assert texts(service.store()) == ["one", "two"]
    names = {name for name in service.sessions()[-1]["sessionMetadata"] if not name.startswith("llama-index-")}
    assert names == {"severity", *(f"first-{n:02}" for n in range(40)), *(f"second-{n:02}" for n in range(3))}
    assert "second-39" in caplog.text


def test_metadata_is_changed_where_another_has_just_continued(service: Service) -> None:
    """Whoever continued had not read the change: his session gets it too."""
    chat, other = service.store().conversation(KEY), service.store().conversation(KEY)
    chat.add(users("one"))
    other.messages()
    client: Any = chat._engine.client.client()
    put = client.put_invocation_step
    puts: list[Any] = []

    def interrupted(**arguments: Any) -> Any:
        if not puts:
            puts.append(arguments)
            lifecycle.leave_session(other._engine.reader)
            other.add(users("two"))
        return put(**arguments)

    client.put_invocation_step = interrupted
    chat.update_metadata({"severity": "low"}, tags={"closed": "yes"})
    assert puts
    session = service.sessions()[-1]
    assert len(service.sessions()) == 2
    assert session["sessionMetadata"]["severity"] == "low"
    assert service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"] == {"closed": "yes"}


# Who did it


def test_every_such_thing_is_told(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """To the log without the key or a message, and to a function of the application."""
    told: list[AuditEvent] = []
    chat = service.store(audit=told.append).conversation(KEY)
    with caplog.at_level(logging.DEBUG, "llama_index_bedrock_sessions"):
        chat.add(users("one", SECRET))
        chat.end("solved", kind="resolved", by="on call")
        chat.reopen(reason="again", approver="lead")
        chat.hide()
        chat.restore()
        chat.redact(chat.history()[0].added[1], reason="asked to", approver="privacy")
        chat.delete(reason="retention policy", approver="privacy")
        chat.delete()
    assert [event.action for event in told] == ["ended", "reopened", "hidden", "restored", "redacted", "deleted"]
    assert all(event.key == KEY and event.sessions and event.time.endswith("Z") for event in told)
    assert (told[-1].reason, told[-1].approver) == ("retention policy", "privacy")
    assert len(told[4].messages) == 1
    logged = [r.getMessage() for r in caplog.records if r.name == "llama_index_bedrock_sessions.audit"]
    assert [json.loads(line)["action"] for line in logged] == [event.action for event in told]
    assert KEY not in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("method", ["hide", "delete"])
def test_what_failed_half_way_is_told_too(method: str) -> None:
    """Whoever calls again finds that it is done: the first call has told it, and says that it may be."""
    told_by_the_first = 0
    for nth in count(1):
        service, events = Service(), list[AuditEvent]()
        chat = service.store(audit=events.append).conversation(KEY)
        chat.add(users("one"))
        [session] = [s["sessionId"] for s in service.sessions()]
        service.faults.add("*", nth, "lost_reply")
        failures: list[tuple[bool, bool]] = []
        try:
            getattr(chat, method)()
        except BedrockSessionsError as error:
            failures.append((error.may_have_happened, bool(events)))
            getattr(chat, method)()
        assert all(may_have_happened or not told for may_have_happened, told in failures)
        told_by_the_first += (True, True) in failures
        done = not service.faults.fired
        service.faults.clear()
        assert {event.sessions for event in events} == {(session,)}
        assert service.store().get_messages(KEY) == []
        if done:
            break
    assert told_by_the_first


def test_a_callback_that_fails_undoes_nothing(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    def fails(event: AuditEvent) -> None:
        raise RuntimeError(event.action)

    chat = service.store(audit=fails).conversation(KEY)
    chat.add(users("one"))
    assert chat.delete() == users("one")
    assert service.sessions() == []
    assert "audit callback failed" in caplog.text


def test_store_with_audit_callback_needs_it_again(tmp_path: Any) -> None:
    data = BedrockSessionsChatStore.local(tmp_path / "chats.db", audit=print).to_dict()
    data = {**data, "instance": "of a process that has ended", "namespace": "other"}
    with pytest.raises(ConfigurationError, match="function"):
        BedrockSessionsChatStore.from_dict(data)
    plain = BedrockSessionsChatStore.local(tmp_path / "chats.db").to_dict()
    assert BedrockSessionsChatStore.from_dict({**plain, "instance": "gone"}).database == plain["database"]


@pytest.mark.parametrize("method", ["end", "reopen", "hide", "restore", "delete"])
def test_what_is_said_of_it_is_text(service: Service, method: str) -> None:
    chat = service.store().conversation(KEY)
    chat.add(users("one"))
    name = "kind" if method == "end" else "reason"
    with pytest.raises(InvalidStateError, match=f"{name}= takes a string"):
        getattr(chat, method)(**{name: 7})
    assert texts(service.store()) == ["one"]


def test_a_summary_larger_than_a_step_is_refused(service: Service) -> None:
    chat = service.store().conversation(KEY)
    chat.add(users("one"))
    with pytest.raises(StepTooLargeError):
        chat.end("x" * 50_000_000)
    chat.add(users("two"))


def test_a_job_on_the_command_line(tmp_path: Any) -> None:
    """`bedrock-sessions renew` says how many it renewed, and fails if one could not be."""
    database = str(tmp_path / "chats.db")
    BedrockSessionsChatStore.local(database).add_message(KEY, user("hello"))
    run = CliRunner().invoke
    assert run(main, ["renew", "--database", database]).output == "0 conversations renewed.\n"
    assert run(main, ["renew", "--database", database, "--namespace", "other", "--older-than", "0"]).output.startswith(
        "0"
    )
    BedrockSessionsChatStore.local(database).conversation(KEY).end("solved")
    renewed = run(main, ["renew", "--database", database, "--older-than", "0"])
    assert (renewed.exit_code, renewed.output) == (0, "1 conversation renewed.\n")
    assert BedrockSessionsChatStore.local(database).conversation(KEY).describe()["generation"] == 1
    nowhere = run(main, ["renew", "--endpoint-url", "http://127.0.0.1:9", "--region", "us-east-1"], env=NO_ACCOUNT)
    assert nowhere.exit_code == 1
    assert "Error: No usable AWS credentials" in nowhere.output


def test_the_scheduled_function(monkeypatch: pytest.MonkeyPatch, service: Service) -> None:
    """The example's handler renews, and raises if a conversation could not be."""
    handler = runpy.run_path("examples/renew_lambda.py")["handler"]
    service.store().add_message(KEY, user("hello"))
    service.later(11 * DAY)
    monkeypatch.setitem(handler.__globals__, "store", service.store())
    service.faults.add("CreateSession", 1, "access_denied")
    with pytest.raises(RuntimeError, match="1 conversations were not renewed: AccessDeniedError"):
        handler({}, None)
    assert handler({}, None) == {"renewed": 1}
