"""What a conversation was: its history, its messages at a point, and forks of it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
import threading
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, ImageBlock, MessageRole, VideoBlock
from llama_index.core.storage.chat_store.base_db import MessageStatus

from llama_index_bedrock_sessions import (
    ConfigurationError,
    ConversationExists,
    InvalidKeyError,
    InvalidPointError,
    S3MediaStore,
    ServiceError,
)
from tests.support.histories import short_sessions
from tests.support.s3 import S3
from tests.support.service import DAY, IDLE, KEY, Service, picture, png, user, users

pytestmark = pytest.mark.thorough

if TYPE_CHECKING:
    from llama_index_bedrock_sessions import Conversation

ARN = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"


@pytest.fixture
def service() -> Service:
    return Service()


def seen(chat: Conversation, **point: Any) -> list[tuple[ChatMessage, MessageStatus]]:
    """Return what a conversation shows, with the status of each message."""
    return [(record.message, record.status) for record in chat.records(status=None, **point)]


def contents(messages: list[ChatMessage]) -> list[str | None]:
    return [message.content for message in messages]


# History


def test_history_is_complete_and_equal_for_all_readers(service: Service) -> None:
    """What was removed, replaced or archived sessions ago is told, by the process that did it as by a new one."""
    chat = service.store().conversation(KEY)
    chat.add(users("a", "b"), state={"x": 1, "y": 1})
    chat.state["x"] = 2
    chat.remove(0)
    chat.add(users("c"))
    for _ in range(3):
        service.later(IDLE)
        chat.remove_last()
        chat.add(users("d"))
    chat.state["y"] = 2
    chat.archive_oldest(1)
    told = chat.history()
    assert told == service.store().conversation(KEY).history()
    assert [(len(e.added), len(e.removed), e.state) for e in told] == [
        (2, 0, ("x", "y")),
        (0, 0, ("x",)),
        (0, 1, ()),
        (1, 0, ()),
        *[(0, 1, ()), (1, 0, ())] * 3,
        (0, 0, ("y",)),
        (0, 0, ()),
    ]
    assert told[0].texts == (None, "user: b")
    assert told[2].removed == told[0].added[:1]
    assert told[-1].archived == told[0].added[1:]
    assert len({entry.session for entry in told}) == 4
    for entry in told:
        assert service.boto3.get_invocation_step(
            sessionIdentifier=entry.session, invocationIdentifier=entry.invocation, invocationStepId=entry.step
        )


def test_history_of_a_conversation_in_use_is_one_call(service: Service) -> None:
    """As long as there is one session, nothing is read twice."""
    chat = service.store().conversation(KEY)
    for text in "abcdefgh":
        chat.add(users(text))
    chat.remove_last()
    with service.counting() as calls:
        assert len(chat.history()) == 9
    assert calls == {"ListInvocationSteps": 1, "total": 1}


def test_describe_and_history_are_one_json_value(service: Service) -> None:
    """What somebody needs who takes over: the incident, who did what and said what, the hypotheses, as JSON."""
    chat = service.store().conversation("INC-4711", session_metadata={"severity": "high"})
    chat.add([user("Checkout is slow."), picture(text="the dashboard")], state={"hypotheses": ["pool exhausted"]})
    service.later(IDLE)
    chat.add(users("It was the pool."))
    context = {"describe": chat.describe(), "history": [entry.as_dict() for entry in chat.history()]}
    told: Any = json.loads(json.dumps(context))
    assert told == context
    assert told["describe"]["state"] == {"hypotheses": ["pool exhausted"]}
    assert [s["metadata"]["severity"] for s in told["describe"]["sessions"]] == ["high", "high"]
    assert [line for entry in told["history"] for line in entry["texts"]] == [
        "user: Checkout is slow.",
        "user: the dashboard [image]",
        "user: It was the pool.",
    ]


# At a point


def test_a_point_is_a_change_a_step_a_message_or_a_time(service: Service) -> None:
    """`at` includes the point and `before` does not, whatever names it, inside of a step too."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"))
    service.later(5)
    between = service.clock.now()
    service.later(5)
    chat.add(users("b", "c", "d"))
    first, second = chat.history()
    assert second.step == second.id
    step = str(second.step)
    points: list[tuple[str | datetime, str, str]] = [
        (first.id, "a", ""),
        (first.added[0], "a", ""),
        (second.id, "abcd", "a"),
        (step, "abcd", "a"),
        (second.added[0], "ab", "a"),
        (second.added[1], "abc", "ab"),
        (second.added[2], "abcd", "abc"),
        (between, "a", "a"),
        (between.astimezone(timezone(timedelta(hours=9))), "a", "a"),
        (datetime(1999, 1, 1, tzinfo=UTC), "", ""),
        (datetime.max.replace(tzinfo=UTC), "abcd", "abcd"),
    ]
    for point, at, before in points:
        assert contents(chat.messages(at=point)) == list(at), point
        assert contents(chat.messages(before=point)) == list(before), point
    moment = datetime.fromisoformat(second.time)
    assert contents(chat.messages(at=moment)) == list("abcd")
    assert contents(chat.messages(before=moment)) == ["a"]
    assert contents(chat.messages(before=moment + timedelta(microseconds=1))) == list("abcd")


def test_an_unknown_point_is_refused_by_name(service: Service) -> None:
    """What is no change, no message, no aware time or two points at once is refused, and says what it was."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"))
    known = chat.history()[0].id
    for point in ("nonsense", f"{known}/1", f"{known}/-1", f"{known}/", f"{known}/x", "", "/0", "9" * 5000):
        for word in ("at", "before"):
            with pytest.raises(InvalidPointError, match=re.escape(repr(point))):
                chat.messages(**{word: point})  # type: ignore[arg-type]
    with pytest.raises(InvalidPointError, match="time zone"):
        chat.messages(at=datetime(2026, 1, 1))  # noqa: DTZ001 - what is refused
    with pytest.raises(InvalidPointError, match="not both"):
        chat.messages(at=known, before=known)
    with pytest.raises(InvalidPointError, match="int"):
        chat.messages(at=5)  # type: ignore[arg-type]
    with pytest.raises(InvalidPointError, match="-1"):
        chat.messages(last=-1)
    with pytest.raises(InvalidPointError, match=known):
        service.store().conversation("nobody").messages(at=known)


def test_the_last_messages(service: Service) -> None:
    """`last` counts from the end of what is asked for, and does not change what a position means."""
    chat = service.store().conversation(KEY)
    chat.add(users(*"abcd"))
    chat.archive_oldest(1)
    chat.messages()
    assert contents(chat.messages(last=2)) == ["c", "d"]
    assert contents(chat.messages(last=3, status=None)) == ["b", "c", "d"]
    assert contents(chat.messages(last=9, status=MessageStatus.ARCHIVED)) == ["a"]
    assert contents(chat.messages(last=1, before=chat.records()[-1].id, status=None)) == ["c"]
    assert chat.messages(last=0) == []
    removed = chat.remove(0)
    assert removed is not None
    assert removed.content == "b"


def test_records_tell_ids_and_times(service: Service) -> None:
    """The ids and times of messages are those of `history()`, and nothing is put into the messages."""
    chat = service.store().conversation(KEY)
    chat.add(users("a", "b"))
    service.later(IDLE)
    chat.add([picture()])
    records = chat.records()
    told = chat.history()
    assert [record.id for record in records] == [i for entry in told for i in entry.added]
    assert [record.time for record in records] == [told[0].time] * 2 + [told[1].time]
    assert [record.message for record in records] == chat.messages() == [*users("a", "b"), picture()]
    assert chat.records(at=records[0].id) == records[:1]


async def _twins(chat: Conversation) -> list[Any]:
    return [await chat.amessages(last=1), await chat.arecords(last=1), await chat.ahistory()]


def test_twins(service: Service) -> None:
    """The async forms say the same."""
    chat = service.store().conversation(KEY)
    chat.add(users("a", "b"))
    assert asyncio.run(_twins(chat)) == [chat.messages(last=1), chat.records(last=1), chat.history()]


def test_removed_text_past_retention_is_shown_as_gone(service: Service) -> None:
    """Removed in a session that is there, written in one that is not: a message in its place says so."""
    store = service.store()
    chat = store.conversation(KEY)
    chat.add(users("a" * 5000, "b" * 5000))
    service.later(5 * DAY)
    chat.add(users("c"))
    point = chat.history()[-1].id
    chat.remove(0)
    chat.remove(0)
    service.later(6 * DAY)
    chat.add(users("d"))
    assert contents(chat.messages(at=point)) == ["a" * 5000, "b" * 5000, "c"]
    service.later(20 * DAY)
    for reader in (service.store().conversation(KEY), chat):
        assert contents(reader.messages()) == ["c", "d"]
        shown = contents(reader.messages(at=point))
        assert shown == ["[unreadable message: its text is no longer in the service]"] * 2 + ["c"]


def test_what_is_hidden_is_hidden_at_every_point(service: Service) -> None:
    """Nobody looks past a soft deletion: not at a point before it, not in history, not by a fork; until restored."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"), state={"x": 1})
    point = chat.history()[-1].id
    chat.hide()
    assert chat.messages(at=point) == []
    assert chat.history()[0].texts == (None,)
    for when in ({}, {"at": point}, {"before": service.clock.now() + timedelta(seconds=5)}):
        with pytest.raises(InvalidPointError, match=r"hidden.*restore\(\)"):
            chat.fork("fork", **when)
    assert service.store().get_keys() == [KEY]
    chat.restore()
    assert contents(chat.messages(at=point)) == ["a"]
    assert contents(chat.fork("fork", at=point).messages()) == ["a"]
    assert [entry.hidden for entry in chat.history()] == [None, True, False]


def test_what_begins_anew_after_a_hiding_is_forked(service: Service) -> None:
    """Also from before its first message, where a replay begins; from before the hiding it is refused."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"))
    hidden = chat.history()[-1].id
    chat.hide()
    chat.add(users("b"))
    assert contents(chat.fork("fork").messages()) == ["b"]
    assert chat.fork("replay", before=chat.records()[0].id).messages() == []
    with pytest.raises(InvalidPointError, match=r"restore\(\)"):
        chat.fork("third", at=hidden)


# Forks


def test_what_is_wanted_is_not_guessed(service: Service) -> None:
    """A status is also taken as its text; what is none, and a number that is none, is refused."""
    chat = service.store().conversation(KEY)
    chat.add(users("a", "b"))
    chat.archive_oldest(1)
    archived: Any = "archived"
    assert contents(chat.messages(status=archived)) == ["a"]
    assert chat.count(archived) == 1
    wrong: Any = "old"
    refused: list[tuple[str, Any]] = [("status", wrong), ("last", wrong), ("last", 1.5), ("last", -1)]
    for name, value in refused:
        with pytest.raises(InvalidPointError, match=re.escape(f"{name}={value!r}")):
            chat.messages(**{name: value})
    with pytest.raises(InvalidPointError, match="'active', 'archived'"):
        chat.count(wrong)


def test_a_key_that_has_nothing_cannot_be_forked(service: Service) -> None:
    """A key misspelt makes no empty conversation; one that is there, from before its first message, does."""
    store = service.store()
    store.conversation(KEY).add(users("a"))
    with pytest.raises(InvalidPointError, match="no conversation 'misspelt'"):
        store.conversation("misspelt").fork("fork")
    assert store.get_keys() == [KEY]
    chat = store.conversation(KEY)
    assert chat.fork("fork", before=chat.records()[0].id).messages() == []


def test_a_fork_has_what_there_was_and_goes_its_own_way(service: Service) -> None:
    """Messages, pictures, statuses and state as of the point; each goes on by itself, and neither knows the other."""
    chat = service.store().conversation(KEY)
    chat.add([user("a"), picture(1)], state={"cart": ["tea"], "theme": "dark"})
    chat.archive_oldest(1)
    chat.state.update(cart=["tea", "wrong"])
    chat.add(users("b"))
    point = chat.history()[-1].id
    chat.remove(0)
    chat.state.clear()
    fork = chat.fork("other", at=point)
    assert fork is not chat
    assert fork.key == "other"
    for reader in (fork, service.store().conversation("other")):
        assert seen(reader) == seen(chat, at=point)
        assert [record.status.value for record in reader.records(status=None)] == ["archived", "active", "active"]
        assert reader.state.copy() == {"cart": ["tea", "wrong"], "theme": "dark"}
    fork.add(users("c"))
    chat.add(users("d"))
    assert contents(service.store().conversation("other").messages()) == ["look", "b", "c"]
    assert contents(chat.messages()) == ["b", "d"]
    assert seen(chat.fork("third", before=chat.history()[1].id)) == seen(chat, at=chat.history()[0].id)


def test_a_fork_tells_its_origin(service: Service) -> None:
    """The key and the point, in `history()` and `describe()`; messages have ids of their own, which are points too."""
    chat = service.store().conversation(KEY)
    chat.add(users("a", "b"))
    first = chat.history()[0]
    fork = chat.fork("one", before=first.added[1])
    assert fork.describe()["origin"] == {"key": KEY, "before": first.added[1]}
    (entry,) = service.store().conversation("one").history()
    assert entry.origin == {"key": KEY, "before": first.added[1]}
    assert not set(entry.added) & set(first.added)
    moment = service.clock.now() + timedelta(seconds=5)
    told = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert chat.fork("two", at=moment).history()[0].origin == {"key": KEY, "at": told}
    assert chat.fork("three").history()[0].origin == {"key": KEY, "at": first.id}
    assert chat.describe()["origin"] is None


def test_a_fork_before_the_wrong_tool_call(service: Service) -> None:
    """Inside of a turn that was stored as one step: what was before the call is there, its state is not."""
    chat = service.store().conversation(KEY)
    chat.add(users("question", "call", "result", "answer"), state={"cart": ["wrong"]})
    fork = chat.fork("again", before=chat.records()[1].id)
    assert contents(fork.messages()) == ["question"]
    assert fork.state.copy() == {}
    assert chat.fork("whole", at=chat.records()[3].id).state.copy() == {"cart": ["wrong"]}


def test_forks_of_forks_outlive_their_source(service: Service) -> None:
    """Over 60 days, with the source deleted at once and the first fork after a month, all of it is there."""
    chat = service.store().conversation(KEY)
    chat.add([user("a"), picture(1), user("b" * 5000)], state={"x": 1})
    chat.archive_oldest(1)
    what = seen(chat)
    fork = chat.fork("fork 0")
    chat.delete()
    for month in range(1, 4):
        for _ in range(3):
            service.later(9 * DAY)
            fork.add([])
            fork.state["now"] = month
            assert seen(fork) == what
        fork = fork.fork(f"fork {month}", at=fork.history()[-1].id)
        service.store().delete_messages(f"fork {month - 1}")
    assert seen(service.store().conversation("fork 3")) == what
    assert fork.state.copy() == {"x": 1, "now": 3}
    assert service.store().get_keys() == ["fork 3"]


def test_a_small_fork_is_one_step(service: Service) -> None:
    """Hundreds of messages and 20 pictures are one step, in a session like those of the source, in native blocks."""
    store = service.store()
    chat = store.conversation(KEY, session_metadata={"severity": "high"}, tags={"Team": "db"}, encryption_key_arn=ARN)
    for number in range(20):
        chat.add([*users(*(f"{number} {n}" for n in range(20))), picture(number)])
    with service.counting() as calls:
        fork = chat.fork("fork")
    assert calls["PutInvocationStep"] == calls["CreateSession"] == 1
    assert fork.messages() == chat.messages() == service.store().conversation("fork").messages()
    (session,) = (s for s in service.sessions() if s["sessionMetadata"]["llama-index-key"] == "fork")
    assert session["sessionMetadata"]["severity"] == "high"
    assert session["encryptionKeyArn"] == ARN
    assert service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"] == {"Team": "db"}
    (step,) = service.steps(session["sessionId"])
    *native_blocks, _ = step["payload"]["contentBlocks"]
    assert native_blocks.count({"text": "look"}) == 20
    assert sum("image" in block for block in native_blocks) == 20
    assert {"text": "7 7"} in native_blocks


def large(service: Service) -> Conversation:
    """Return a conversation of more than 50 MB, with more pictures than three steps hold."""
    chat = service.store().conversation(KEY)
    for number in range(3):
        blob = DocumentBlock(data=base64.b64encode(random.Random(number).randbytes(13_000_000)), title=f"{number}")
        chat.add([ChatMessage(role=MessageRole.USER, blocks=[blob]), *(picture(20 * number + n) for n in range(20))])
        chat.add([user(f"{number}")], state={"step": number})
    chat.add([ChatMessage(role=MessageRole.USER, blocks=[block for n in range(25) for block in picture(n).blocks])])
    chat.archive_oldest(30)
    return chat


def test_a_large_fork(service: Service) -> None:
    """More than 50 MB, many pictures, some archived: all of it, by steps that are seen once the last is stored."""
    chat = large(service)
    with service.counting() as calls:
        fork = chat.fork("fork")
    assert calls["PutInvocationStep"] <= 7
    what = seen(chat)
    assert seen(fork) == seen(service.store().conversation("fork")) == what
    chat.delete()
    first = next(record for record in fork.records())
    point = fork.history()[-1].id
    fork.messages()
    fork.remove(0)
    service.later(10 * DAY)
    fork.add(users("later"))
    assert seen(fork, at=point) == what
    service.later(25 * DAY)
    left = [one for one in what if one != (first.message, first.status)]
    assert seen(service.store().conversation("fork")) == [*left, (user("later"), MessageStatus.ACTIVE)]


@pytest.mark.parametrize("operation", ["CreateSession", "CreateInvocation", "PutInvocationStep", "GetInvocationStep"])
@pytest.mark.parametrize("fault", ["internal", "lost_reply", "reset"])
def test_a_fork_that_failed_is_not_there_and_can_be_repeated(service: Service, operation: str, fault: str) -> None:
    """Whichever call fails, nobody reads half a fork; the same or another process repeats it, and has it once."""
    chat = service.store().conversation(KEY)
    chat.add([picture(number) for number in range(45)], state={"x": 1})
    chat.remove(3)
    what, point = seen(chat), chat.history()[0].id
    failed = 0
    for nth in range(1, 5):
        key = f"fork {nth}"
        forking = service.store().conversation(KEY)
        service.faults.add(operation, nth, fault)
        try:
            forking.fork(key)
        except ServiceError:
            failed += 1
        service.faults.clear()
        there = seen(service.store().conversation(key))
        assert there in ([], what)
        if not there:
            assert seen((forking if nth % 2 else chat).fork(key)) == what
        assert seen(service.store().conversation(key)) == what
    assert failed or (operation, fault) == ("PutInvocationStep", "lost_reply")
    assert len(chat.messages(at=point)) == 45


def test_a_key_that_is_taken_is_refused(service: Service) -> None:
    """A fork never mixes with what is there; a key that was emptied or deleted can be taken again."""
    store = service.store()
    chat, other, named = (store.conversation(key) for key in (KEY, "other", "named"))
    chat.add(users("a"))
    other.add(users("b"))
    named.state["x"] = 1
    for key in (KEY, "other", "named"):
        with pytest.raises(ConversationExists, match=key):
            service.store().conversation(KEY).fork(key)
    with pytest.raises(InvalidKeyError):
        chat.fork("")
    assert (contents(chat.messages()), contents(other.messages())) == (["a"], ["b"])
    other.clear()
    named.delete()
    for key in ("other", "named"):
        assert contents(chat.fork(key).messages()) == ["a"]
    assert contents(service.store().conversation("other").messages()) == ["a"]


@pytest.mark.parametrize("operation", ["CreateSession", "CreateInvocation", "PutInvocationStep"])
def test_of_two_forks_at_once_the_later_is_refused(service: Service, operation: str) -> None:
    """Somebody else forks onto the key in the middle: his fork stays as it is, and nothing of ours is left."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"), state={"x": "a"})
    first = chat.history()[-1].id
    chat.add(users("b"), state={"x": "b"})
    store = service.store()
    others: list[Conversation] = []

    def meanwhile(**_: Any) -> None:
        if not others:
            others.append(chat.fork("fork", at=first))

    store.client.meta.events.register(f"before-call.bedrock-agent-runtime.{operation}", meanwhile)
    with pytest.raises(ConversationExists):
        store.conversation(KEY).fork("fork")
    assert others
    for reader in (others[0], store.conversation("fork"), service.store().conversation("fork")):
        assert contents(reader.messages(status=None)) == ["a"]
        assert reader.state.copy() == {"x": "a"}


def test_of_two_forks_at_the_same_moment_one_succeeds(service: Service) -> None:
    """Both have created a session before either looks: one is refused, and nothing of it is left."""
    service.store().conversation(KEY).add(users("a"), state={"x": 1})
    both = threading.Barrier(2, timeout=60)
    refused = []

    def fork() -> None:
        store = service.store()
        met: set[str] = set()

        def wait(event_name: str, **_: Any) -> None:
            if event_name not in met:
                met.add(event_name)
                both.wait()

        store.client.meta.events.register("after-call.bedrock-agent-runtime.CreateSession", wait)
        try:
            store.conversation(KEY).fork("fork")
        except ConversationExists as error:
            refused.append(error)

    threads = [threading.Thread(target=fork) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1
    made = service.store().conversation("fork")
    assert (contents(made.messages(status=None)), made.state.copy()) == (["a"], {"x": 1})
    assert len([s for s in service.sessions() if s["sessionMetadata"]["llama-index-key"] == "fork"]) == 1


def test_a_message_added_at_the_moment_of_a_fork_is_kept(service: Service) -> None:
    """Another process writes a first message just before the fork is opened: both stay."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"))
    store = service.store()
    added: list[str] = []

    def meanwhile(**_: Any) -> None:
        if not added:
            added.append("b")
            service.store().add_message("fork", user("b"))

    store.client.meta.events.register("before-call.bedrock-agent-runtime.PutInvocationStep", meanwhile)
    fork = store.conversation(KEY).fork("fork")
    for reader in (fork, service.store().conversation("fork")):
        assert sorted(map(str, contents(reader.messages()))) == ["a", "b"]


def test_a_fork_has_the_metadata_of_today_and_keeps_it(service: Service) -> None:
    """What was said of the source last, unless the fork was told otherwise; of any point, for as long as it goes on."""

    def of(key: str) -> tuple[str, str]:
        session = [s for s in service.sessions() if s["sessionMetadata"]["llama-index-key"] == key][-1]
        tags = service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"]
        return session["sessionMetadata"]["severity"], tags["severity"]

    store = service.store()
    chat = store.conversation(KEY)
    chat.add(users("a"))
    for severity in ("high", "low"):
        chat.update_metadata({"severity": severity}, tags={"severity": severity})
        chat.add(users(severity))
    none = {"severity": "none"}
    store.conversation("other", session_metadata=none, tags=none)
    for key in ("fork", "other"):
        chat.fork(key, at=chat.records()[1].id)
    for _ in range(2):
        assert of("fork") == ("low", "low")
        assert of("other") == ("none", "none")
        service.later(IDLE)
        for key in ("fork", "other"):
            service.store().add_message(key, user("b"))


def test_a_fork_of_what_other_tools_wrote(service: Service) -> None:
    """Steps of other tools are messages of the fork, with what could not be read as placeholders."""
    chat = service.store().conversation(KEY)
    chat.add(users("a"))
    (session,) = service.sessions()
    image = {"image": {"format": "png", "source": {"bytes": png()}}}
    service.put(session["sessionId"], [{"text": "theirs"}, image])
    assert seen(chat.fork("fork")) == seen(chat)
    assert len(chat.messages()) == 2


def test_a_fork_has_its_own_contents_in_s3(service: Service) -> None:
    """What is in S3 is copied for the new key, and stays when the source is deleted; without `media=` it is refused."""
    s3 = S3()
    media = S3MediaStore(s3.bucket, "chats", client=s3.client, threshold=1000)
    chat = service.store(media=media).conversation(KEY)
    album = [picture(number) for number in range(3)]
    video = ChatMessage(role=MessageRole.USER, blocks=[VideoBlock(video=bytes(5000))])
    large = ImageBlock(image=png(40, 40), image_mimetype="image/png")
    chat.add([*album, video, ChatMessage(role=MessageRole.USER, blocks=[large])])
    what = seen(chat)
    before = s3.names()
    assert before
    with pytest.raises(ConfigurationError, match="media="):
        service.store().conversation(KEY).fork("fork")
    with pytest.raises(ConversationExists):
        chat.fork(KEY)
    assert s3.names() == before
    chat.fork("fork")
    assert len(s3.names()) == 2 * len(before)
    chat.delete()
    assert seen(service.store(media=media).conversation("fork")) == what
    (session,) = service.sessions()
    (step,) = service.steps(session["sessionId"])
    sources = [b["image"]["source"] for b in step["payload"]["contentBlocks"] if "image" in b]
    uris = [source["s3Location"]["uri"] for source in sources if "s3Location" in source]
    assert uris
    assert {uri.removeprefix(f"s3://{s3.bucket}/") for uri in uris} <= set(s3.names())


# Random histories

OPS = "add add add picture remove remove_last set reorder archive clear state forget other pause"
steps = st.lists(st.tuples(st.sampled_from(OPS.split()), st.integers(0, 5), st.booleans()), min_size=1, max_size=14)


def perform(service: Service, chat: Conversation, op: str, number: int) -> None:
    texts = [f"{service.clock.now():%d %H:%M:%S} {n}" for n in range(number % 3 + 1)]
    if op == "add":
        chat.add(users(*texts))
    elif op == "picture":
        chat.add([picture(number, texts[0])], state={"picture": texts[0]})
    elif op == "remove":
        chat.messages()
        chat.remove(number)
    elif op == "remove_last":
        chat.remove_last()
    elif op == "set":
        chat.set([*chat.messages()[:number], *users(*texts)])
    elif op == "reorder":
        chat.set(chat.messages()[::-1])
    elif op == "archive":
        chat.messages()
        chat.archive_oldest(number)
    elif op == "clear":
        chat.clear()
    elif op == "state":
        chat.state.update({f"s{number % 2}": texts[0], "t": number})
    elif op == "forget":
        chat.state.pop("t", None)
    elif op == "other":
        active = [s for s in service.sessions() if s["sessionStatus"] == "ACTIVE"]
        for session in active[-1:]:
            service.put(session["sessionId"], [{"text": texts[0]}])
    else:
        service.later(IDLE)


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(ops=steps, length=st.sampled_from([3, 6, 250]))
def test_any_point_shows_what_was_seen_then(ops: list[tuple[str, int, bool]], length: int) -> None:
    """Whatever happens afterwards, a conversation at a point is what everybody saw at that point."""
    service = Service()
    chats = [service.store().conversation(KEY), service.store().conversation(KEY)]
    noted: list[tuple[Any, Any]] = []
    with short_sessions(length):
        for op, number, other in ops:
            perform(service, chats[other], op, number)
            service.later(3)
            told = chats[other].history()
            noted.append((service.clock.now(), seen(chats[other])))
            if told:
                noted.append((told[-1].id, seen(chats[other])))
            service.later(3)
        for chat in (*chats, service.store().conversation(KEY)):
            assert chat.history() == chats[0].history()
            for point, what in noted:
                assert seen(chat, at=point) == what
        if not service.sessions():
            with pytest.raises(InvalidPointError):
                chats[0].fork("fork")
            return
        for number, (point, what) in enumerate(noted[-3:]):
            assert seen(chats[number % 2].fork(f"fork {number}", at=point)) == what
            assert seen(service.store().conversation(f"fork {number}")) == what
