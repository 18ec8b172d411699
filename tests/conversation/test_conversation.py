"""Conversations over sessions: what they cost, how they continue, what they survive, what a position means."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from llama_index.core.storage.chat_store.base_db import MessageStatus

from llama_index_bedrock_sessions import (
    BedrockSessionsChatStore,
    BedrockSessionsError,
    ForeignSessionError,
    ServiceError,
)
from llama_index_bedrock_sessions._journal import values
from llama_index_bedrock_sessions.emulator import Behaviour, Emulator
from tests.support.service import (
    DAY,
    HOUR,
    IDLE,
    KEY,
    Service,
    chinese,
    english,
    picture,
    png,
    python,
    texts,
    user,
    users,
)

if TYPE_CHECKING:
    from pathlib import Path

ARN = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
OTHER_ARN = "arn:aws:kms:us-east-1:123456789012:key/99999999-2222-3333-4444-555555555555"


@pytest.fixture
def service() -> Service:
    return Service()


# What it costs


def test_a_warm_append_is_one_call(service: Service) -> None:
    """Adding to a conversation in use is one PutInvocationStep, for one message as for a batch of five."""
    store = service.store()
    store.add_message(KEY, user("one"))
    for messages in (users("two"), users(*"abcde")):
        with service.counting() as calls:
            store.conversation(KEY).add(messages)
        assert calls == {"PutInvocationStep": 1, "total": 1}


@pytest.mark.parametrize("length", [5, 900_000])
def test_an_append_dumps_each_form_of_a_record_once(
    service: Service, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """A record is dumped once as written and once as carried, however large; then comes the step, in two dumps."""
    store, text = service.store(), "x" * length
    store.add_message(KEY, user("one"))
    dumped: list[Any] = []

    class Counting(json.JSONEncoder):
        def encode(self, o: Any) -> str:
            dumped.append(o)
            return super().encode(o)

    monkeypatch.setattr(values, "_ENCODER", Counting(ensure_ascii=False, separators=(",", ":")))
    store.add_message(KEY, user(text))
    assert dumped[:2] == [{"r": "user", "b": [0]}, {"r": "user", "b": [text]}]
    assert ["zip" in each for each in dumped[2:]] == [False, True]


def test_a_warm_read_is_one_call(service: Service) -> None:
    """Reading a conversation in use is one ListInvocationSteps, also right after a write."""
    store = service.store()
    for text in ("one", "two"):
        store.add_message(KEY, user(text))
        with service.counting() as calls:
            store.get_messages(KEY)
        assert calls == {"ListInvocationSteps": 1, "total": 1}


def test_the_first_message_of_a_key_takes_six_calls(service: Service) -> None:
    """A new conversation needs at most six calls for its first message."""
    with service.counting() as calls:
        service.store().add_message(KEY, user("one"))
    assert calls["total"] <= 6
    assert calls["CreateSession"] == calls["PutInvocationStep"] == 1


@pytest.mark.parametrize("verb", ["set", "remove", "remove_last", "clear"])
def test_what_replaces_or_removes_takes_two_calls(service: Service, verb: str) -> None:
    """Setting, deleting one and clearing list first, then write one step."""
    store = service.store()
    store.set_messages(KEY, users("one", "two", "three"))
    conversation = store.conversation(KEY)
    given: dict[str, tuple[Any, ...]] = {"set": (users("three", "four"),), "remove": (1,)}
    with service.counting() as calls:
        getattr(conversation, verb)(*given.get(verb, ()))
    assert calls == {"ListInvocationSteps": 1, "PutInvocationStep": 1, "total": 2}


def test_a_write_after_an_idle_hour_takes_eleven_calls(service: Service) -> None:
    """The process that goes on after an idle hour needs at most eleven calls, in a later generation as in the first."""
    store = service.store()
    for number in range(6):
        store.add_message(KEY, user(f"{number}"))
        store.add_message(KEY, user(f"{number}, again"))
        service.clock.advance(IDLE)
        with service.counting() as calls:
            store.add_message(KEY, user("after a pause"))
        assert calls["total"] <= 11, calls
        assert calls["CreateSession"] == 1
    assert store.conversation(KEY).describe()["generation"] == 6
    assert len(texts(service.store())) == 18


def test_whoever_is_behind_creates_one_session_at_most(service: Service) -> None:
    """A process that remembers an old session finds the present one, and leaves no session nobody opens."""
    store, behind = service.store(), service.store()
    store.add_message(KEY, user("one"))
    behind.get_messages(KEY)
    for text in ("two", "three"):
        service.later(IDLE)
        store.add_message(KEY, user(text))
    service.later(IDLE)
    with service.counting() as calls:
        behind.add_message(KEY, user("four"))
    assert texts(service.store()) == ["one", "two", "three", "four"]
    assert calls["CreateSession"] == 1
    assert len(service.sessions()) == 4


def test_a_cold_read_of_200_steps(service: Service) -> None:
    """A process that never saw a conversation of 200 single messages needs at most 2 lists and 10 gets."""
    writer = service.store()
    for number in range(200):
        writer.add_message(KEY, user(f"message {number}"))
    with service.counting() as calls:
        assert texts(service.store()) == [f"message {number}" for number in range(200)]
    assert calls["ListInvocationSteps"] <= 2
    assert calls["GetInvocationStep"] <= 10
    assert (calls["ListSessions"], calls["GetSession"]) == (1, 1)


class Thousand:
    """1,000 messages of 1 KB, stored one by one, beside a plain put of each."""

    def __init__(self, contents: list[str]) -> None:
        self.contents = contents
        self.service = Service()
        store = self.service.store(settling_time=0)  # as over minutes, and not within one
        self.service.calls.clear()
        for text in contents:
            store.add_message(KEY, user(text))
        sizes = [call.request_size for call in self.service.calls]
        self.bytes, self.largest = sum(sizes), max(sizes)
        self.plain = plain_bytes(contents)


def plain_bytes(contents: list[str]) -> int:
    """Return what goes over the wire when each text is put by hand, a step each."""
    service, session, invocation = Service(), "", ""
    for number, text in enumerate(contents):
        if number % 1000 == 0:
            session = service.boto3.create_session()["sessionId"]
            invocation = service.boto3.create_invocation(sessionIdentifier=session)["invocationId"]
        service.boto3.put_invocation_step(
            sessionIdentifier=session,
            invocationIdentifier=invocation,
            invocationStepTime=service.clock.now(),
            payload={"contentBlocks": [{"text": text}]},
        )
    return sum(call.request_size for call in service.calls if call.operation == "PutInvocationStep")


@pytest.fixture(scope="module", params=["English", "Chinese"])
def thousand(request: pytest.FixtureRequest) -> Thousand:
    return Thousand(english(1000) if request.param == "English" else chinese(1000))


@pytest.mark.thorough
def test_bytes_of_1000_messages(thousand: Thousand, request: pytest.FixtureRequest) -> None:
    """Storing 1,000 messages of 1 KB sends at most 5 times (Chinese: 7) what putting them by hand would."""
    limit = 7 if "Chinese" in request.node.name else 5
    assert thousand.bytes / thousand.plain <= limit
    assert thousand.largest <= 600_000


@pytest.mark.thorough
def test_a_cold_read_of_1000_messages(thousand: Thousand) -> None:
    """A cold read of 1,000 messages of 1 KB needs at most 2 lists and 12 gets."""
    with thousand.service.counting() as calls:
        assert texts(thousand.service.store()) == thousand.contents
    assert calls["ListInvocationSteps"] <= 2
    assert calls["GetInvocationStep"] <= 12
    assert calls["ListSessions"] == 1
    assert calls["GetSession"] == len(thousand.service.sessions())


def test_cold_read_cost_does_not_grow_with_archive(service: Service) -> None:
    """It fetches as much of a session before whatever was archived there; the rest is fetched when it is wanted."""
    gets: list[int] = []
    fetched: list[int] = []
    archived: list[list[str]] = [[random.Random(n).randbytes(20_000).hex() for n in range(many)] for many in (8, 32)]
    for contents in archived:
        key = f"{len(contents)} archived"
        chat = service.store().conversation(key)
        for text in contents:
            chat.add(users(text))
        chat.archive_oldest(len(contents))
        chat.add(users("active"))
        service.later(IDLE)
        chat.add(users("next"))
        reader = service.store(settling_time=0)
        with service.counting() as calls:
            assert texts(reader, key) == ["active", "next"]
        gets.append(calls["GetInvocationStep"])
        fetched.append(sum(call.response_size for call in service.calls if call.operation == "GetInvocationStep"))
        with service.counting() as calls:
            reader.add_message(key, user("last"))
        assert calls == {"PutInvocationStep": 1, "total": 1}
        assert texts(service.store(), key) == texts(reader, key) == ["active", "next", "last"]
        with service.counting() as calls:
            assert [m.content for m in reader.conversation(key).messages(status=None)][:-3] == contents
        assert calls["GetInvocationStep"] == calls["total"] - calls["ListInvocationSteps"] - calls["GetSession"] > 0
        with service.counting() as calls:
            assert reader.conversation(key).count(MessageStatus.ARCHIVED) == len(contents)
            assert len(reader.conversation(key).messages(status=None, fresh=False)) == len(contents) + 3
        assert calls == {"ListInvocationSteps": 1, "total": 1}
    assert gets[1] <= gets[0] + 1
    grown = sum(map(len, archived[1])) - sum(map(len, archived[0]))
    assert fetched[1] - fetched[0] < grown / 100


@pytest.mark.thorough
def test_bytes_with_a_pause_after_every_ten() -> None:
    """2,000 messages with a pause after every ten cost at most 8 plain puts, openings 64 KB on average."""
    contents, service = english(2000), Service()
    store = service.store()
    service.calls.clear()
    total, openings = 0, []
    for number, text in enumerate(contents):
        if number and number % 10 == 0:
            service.clock.advance(IDLE)
            total += sum(call.request_size for call in service.calls)
            service.calls.clear()
            store.add_message(KEY, user(text))
            puts = [c.request_size for c in service.calls if c.operation == "PutInvocationStep" and c.status < 300]
            openings.append(puts[-1])
        else:
            store.add_message(KEY, user(text))
    total += sum(call.request_size for call in service.calls)
    assert total / plain_bytes(contents) <= 8, total / plain_bytes(contents)
    assert sum(openings) / len(openings) <= 64_000, sum(openings) / len(openings)
    assert texts(service.store()) == contents


# Continuing


def test_a_conversation_goes_on_after_an_idle_hour(service: Service) -> None:
    """Once its session has expired a conversation goes on in another, for the same process and for others."""
    store = service.store()
    store.add_message(KEY, user("one"))
    service.later(IDLE)
    assert texts(store) == ["one"]
    store.add_message(KEY, user("two"))
    service.later(IDLE)
    service.store().add_message(KEY, user("three"))
    assert texts(store) == texts(service.store()) == ["one", "two", "three"]
    assert len(service.sessions()) == 3


@pytest.mark.parametrize("verb", ["add", "set", "remove", "remove_last", "clear"])
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
def test_every_write_continues(service: Service, verb: str, cold: bool) -> None:
    """Whatever is asked of a conversation whose session takes no writes is done in the next session."""
    store = service.store()
    store.set_messages(KEY, users("one", "two"))
    (session,) = service.sessions()
    service.boto3.end_session(sessionIdentifier=session["sessionId"])
    conversation = (service.store() if cold else store).conversation(KEY)
    given: dict[str, Any] = {"add": (users("three"),), "set": (users("two", "three"),), "remove": (0,)}
    expected = {"add": ["one", "two", "three"], "set": ["two", "three"], "remove": ["two"], "remove_last": ["one"]}
    getattr(conversation, verb)(*given.get(verb, ()))
    assert texts(service.store()) == expected.get(verb, [])
    service.later(51 * 60)
    assert texts(store) == expected.get(verb, [])
    assert len(service.sessions()) == 2


def test_reader_notices_continuation_within_50_minutes(service: Service) -> None:
    """Where another tool ends a young session and a process goes on elsewhere, who remembers it learns of it in time.

    An ended session takes no closing step, and a read of a young one is one list: this is the limit that is documented.
    """
    store = service.store()
    store.add_message(KEY, user("one"))
    (session,) = service.sessions()
    service.boto3.end_session(sessionIdentifier=session["sessionId"])
    service.store().add_message(KEY, user("two"))
    assert texts(service.store()) == ["one", "two"]
    service.later(51 * 60)
    assert texts(store) == ["one", "two"]


def test_a_reader_whose_clock_is_behind_notices(service: Service) -> None:
    """A process that learns from the reply to its list that an hour has passed does not trust its old session."""
    store = service.store()
    store.add_message(KEY, user("one"))
    service.clock.advance(IDLE)
    service.store().add_message(KEY, user("two"))
    assert texts(store) == ["one", "two"]


def test_a_conversation_goes_on_when_somebody_ends_its_session(service: Service) -> None:
    """A session ended with plain boto3 ends no conversation."""
    store = service.store()
    for number in range(4):
        store.add_message(KEY, user(f"{number}"))
        service.boto3.end_session(sessionIdentifier=service.sessions()[-1]["sessionId"])
    assert texts(store) == texts(service.store()) == ["0", "1", "2", "3"]


def test_a_long_conversation_goes_on_in_another_session(service: Service) -> None:
    """After about 250 steps a conversation continues in a new session, so that no list is long."""
    store = service.store()
    for number in range(600):
        store.add_message(KEY, user(f"{number}"))
    assert texts(store) == texts(service.store()) == [f"{number}" for number in range(600)]
    steps = [len(service.steps(session["sessionId"])) for session in service.sessions()]
    assert len(steps) == 3
    assert max(steps) <= 260


@pytest.mark.thorough
def test_a_session_full_by_quota_is_continued(service: Service) -> None:
    """A session in which another tool has used up all 1,000 steps is continued, also with nothing seen of that."""
    store = service.store()
    store.add_message(KEY, user("one"))
    (session,) = service.sessions()
    invocation = service.boto3.create_invocation(sessionIdentifier=session["sessionId"])["invocationId"]
    for number in range(999):
        service.boto3.put_invocation_step(
            sessionIdentifier=session["sessionId"],
            invocationIdentifier=invocation,
            invocationStepTime=service.clock.now(),
            payload={"contentBlocks": [{"text": f"{number}"}]},
        )
    store.add_message(KEY, user("two"))
    found = texts(service.store())
    assert (found[0], found[-1], len(found)) == ("one", "two", 1001)
    assert texts(store) == found


def test_a_session_older_than_a_day_is_continued(service: Service) -> None:
    """A session in constant use is continued after a day, so that nothing alive is ever in an old one."""
    store = service.store()
    expected = []
    for number in range(30):
        store.add_message(KEY, user(f"{number}"))
        expected.append(f"{number}")
        service.later(50 * 60)
    assert texts(store) == texts(service.store()) == expected
    assert len(service.sessions()) == 2


def test_after_retention_a_conversation_is_gone_and_starts_again(service: Service) -> None:
    """Thirty days after its last write a conversation is gone, for a process that remembers it too, and begins anew."""
    store = service.store()
    store.set_messages(KEY, users("one", "two"))
    service.later(30 * DAY + 60)
    assert texts(store) == texts(service.store()) == []
    store.add_message(KEY, user("three"))
    assert texts(store) == texts(service.store()) == ["three"]
    assert service.store().get_keys() == [KEY]


def test_a_stale_process_brings_nothing_back_after_retention(service: Service) -> None:
    """A process that adds without reading after retention begins anew: nothing is written from memory."""
    store = service.store()
    store.set_messages(KEY, users("one", "two"))
    service.later(30 * DAY + 60)
    store.add_message(KEY, user("three"))
    assert texts(store) == texts(service.store()) == ["three"]


def test_twenty_days_after_the_last_write_all_is_there(service: Service) -> None:
    """A conversation written to every two days for two months is complete twenty days after its last write."""
    store = service.store()
    expected = [f"{number}" for number in range(30)]
    for text in expected:
        store.add_message(KEY, user(text))
        service.later(2 * DAY)
    service.later(18 * DAY - HOUR)
    assert texts(store) == texts(service.store()) == expected


@pytest.mark.thorough
def test_pictures_survive_daily_writes(service: Service) -> None:
    """A picture is there, byte for byte, after 29 and 45 days of daily writes in ever new sessions."""
    store = service.store()
    store.add_message(KEY, picture(text="the dashboard"))
    for number in range(1, 46):
        service.later(DAY)
        (store if number % 2 else service.store()).add_message(KEY, user(f"day {number}"))
        for reader in (store, service.store()) if number in {29, 45} else ():
            first, *rest = reader.get_messages(KEY)
            assert first == picture(text="the dashboard")
            assert [message.content for message in rest] == [f"day {day}" for day in range(1, number + 1)]


def test_pictures_survive_continuing_and_cold_reads(service: Service) -> None:
    """Pictures come back byte for byte after pauses, set_messages and deletions, in every process."""
    store = service.store()
    for number in range(5):
        store.add_message(KEY, picture(number, f"{number}"))
        store.add_message(KEY, user(f"after {number}"))
        service.later(IDLE)
    store.delete_message(KEY, 0)
    expected = [message for number in range(5) for message in (picture(number, f"{number}"), user(f"after {number}"))]
    assert store.get_messages(KEY) == service.store().get_messages(KEY) == expected[1:]
    service.later(IDLE)
    changed = [*expected[3:], picture(9, "new")]
    store.set_messages(KEY, changed)
    assert store.get_messages(KEY) == service.store().get_messages(KEY) == changed


# What the next session inherits


def test_the_next_session_inherits_what_the_first_had(service: Service) -> None:
    """KMS key, tags and metadata go on to the next session, also when a process without those arguments continues."""
    first = service.store(
        encryption_key_arn=ARN, tags={"Environment": "Production"}, session_metadata={"severity": "high"}
    )
    first.add_message(KEY, user("one"))
    for text in ("two", "three"):
        service.later(IDLE)
        service.store().add_message(KEY, user(text))
    sessions = service.sessions()
    assert len(sessions) == 3
    for session in sessions:
        assert session["encryptionKeyArn"] == ARN
        assert session["sessionMetadata"]["severity"] == "high"
        tags = service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"]
        assert tags == {"Environment": "Production"}
    assert texts(first) == ["one", "two", "three"]


def test_new_metadata_and_tags_add_to_the_inherited(service: Service) -> None:
    """What a later process says about a conversation counts for the sessions it creates, beside what was inherited."""
    service.store(session_metadata={"a": "1", "b": "1"}, tags={"t": "1"}).add_message(KEY, user("one"))
    service.later(IDLE)
    conversation = service.store().conversation(KEY, session_metadata={"b": "2"}, tags={"u": "2"})
    conversation.add(users("two"))
    session = service.sessions()[-1]
    own = {k: v for k, v in session["sessionMetadata"].items() if not k.startswith("llama-index-")}
    assert own == {"a": "1", "b": "2"}
    assert service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"] == {"t": "1", "u": "2"}


@pytest.mark.parametrize("before", [None, OTHER_ARN], ids=["none", "another"])
def test_another_encryption_key_is_refused(service: Service, before: str | None) -> None:
    """A conversation is never continued under another KMS key than it began with: that raises, and loses nothing."""
    service.store(encryption_key_arn=before).add_message(KEY, user("one"))
    service.later(IDLE)
    with pytest.raises(ForeignSessionError, match="encrypted"):
        service.store(encryption_key_arn=ARN).add_message(KEY, user("two"))
    assert texts(service.store()) == ["one"]
    service.store().add_message(KEY, user("three"))
    assert texts(service.store()) == ["one", "three"]
    assert [session.get("encryptionKeyArn") for session in service.sessions()] == [before, before]


# What others write


def test_steps_of_other_tools_are_messages(service: Service) -> None:
    """What plain boto3 wrote between our steps is read as messages, in the order of time, by every process."""
    store = service.store()
    store.add_message(KEY, user("one"))
    (session,) = service.sessions()
    service.later(10)
    service.put(session["sessionId"], [{"text": "note"}, {"image": {"format": "png", "source": {"bytes": png()}}}])
    service.later(10)
    store.get_messages(KEY)
    store.add_message(KEY, user("two"))
    service.later(10)
    service.put(session["sessionId"], [{"text": "last"}])
    found = service.store().get_messages(KEY)
    assert store.get_messages(KEY) == found
    note = ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text="note"), image_of(found[1])])
    assert found == [user("one"), note, user("two"), user("last")]
    assert image_of(found[1]).resolve_image().read() == png()
    service.later(IDLE)
    store.add_message(KEY, user("three"))
    assert store.get_messages(KEY) == service.store().get_messages(KEY) == [*found, user("three")]
    assert store.delete_message(KEY, 1) == note
    assert texts(service.store()) == ["one", "two", "last", "three"]


def image_of(message: ChatMessage) -> ImageBlock:
    (block,) = [block for block in message.blocks if isinstance(block, ImageBlock)]
    return block


# Deleting


def test_erased_conversations_leave_nothing(service: Service) -> None:
    """After an erase nothing of a key is in the service, whichever state its sessions were in, and it begins anew."""
    store = service.store()
    for number in range(3):
        store.add_message(KEY, picture(number))
        service.later(IDLE)
    other = service.store()
    other.get_messages(KEY)
    assert store.delete_messages(KEY) == [picture(0), picture(1), picture(2)]
    assert service.sessions() == []
    assert texts(other) == []
    store.add_message(KEY, user("anew"))
    assert texts(store) == texts(other) == ["anew"]
    assert store.conversation(KEY).describe()["generation"] == 0


def test_a_process_that_remembers_brings_nothing_back(service: Service) -> None:
    """A process that adds after another has erased the conversation adds to a new one."""
    store, other = service.store(), service.store()
    store.set_messages(KEY, users("one", "two"))
    other.get_messages(KEY)
    store.delete_messages(KEY)
    other.add_message(KEY, user("three"))
    assert texts(store) == texts(other) == texts(service.store()) == ["three"]


def test_delete_by_index_means_the_list_this_caller_saw(service: Service) -> None:
    """An index counts in the list this thread was last given, whatever others have done since."""
    store, other = service.store(), service.store()
    store.set_messages(KEY, users("a", "b", "c", "d"))
    store.get_messages(KEY)
    other.delete_message(KEY, 0)
    assert store.delete_message(KEY, 1) == user("b")
    # What is gone already is not removed twice, and no neighbour goes in its place.
    assert store.delete_message(KEY, 0) is None
    assert store.delete_message(KEY, -1) == user("d")
    assert texts(store) == texts(other) == ["c"]


def test_each_task_has_its_own_positions(service: Service) -> None:
    """Of two tasks on one store each deletes what it saw at that position."""
    store = service.store()
    store.set_messages(KEY, users("a", "b", "c"))

    async def both() -> list[ChatMessage | None]:
        first_read, second_done = asyncio.Event(), asyncio.Event()

        async def first() -> ChatMessage | None:
            await store.aget_messages(KEY)
            first_read.set()
            await second_done.wait()
            return await store.adelete_message(KEY, 1)

        async def second() -> ChatMessage | None:
            await first_read.wait()
            await store.aget_messages(KEY)
            removed = await store.adelete_message(KEY, 0)
            await store.aget_messages(KEY)
            second_done.set()
            return removed

        return list(await asyncio.gather(first(), second()))

    assert asyncio.run(both()) == [user("b"), user("a")]
    assert texts(service.store()) == ["c"]


def test_each_thread_has_its_own_positions(service: Service) -> None:
    """Of two threads on one store each deletes what it saw at that position, without waiting for the other."""
    store = service.store()
    store.set_messages(KEY, users("a", "b", "c"))
    store.get_messages(KEY)
    removed: list[ChatMessage | None] = []

    def other() -> None:
        store.get_messages(KEY)
        removed.append(store.delete_message(KEY, 0))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert (removed, store.delete_message(KEY, 1), store.delete_message(KEY, -1)) == ([user("a")], user("b"), user("c"))
    assert texts(store) == []


def test_positions_go_on_after_a_pause(service: Service) -> None:
    """A position still means the list that was read when the conversation has to continue to delete it."""
    store = service.store()
    store.set_messages(KEY, users("a", "b", "c"))
    store.get_messages(KEY)
    service.later(IDLE)
    service.store().add_message(KEY, user("d"))
    assert [store.delete_message(KEY, 0), store.delete_message(KEY, -1)] == [user("a"), user("c")]
    assert texts(store) == ["b", "d"]


# Replacing


@pytest.mark.parametrize(
    ("wanted", "added", "removed", "whole"),
    [
        (["a", "b", "c"], 0, 0, False),
        (["a", "b", "c", "d"], 1, 0, False),
        (["a", "c"], 0, 1, False),
        (["a", "c", "d"], 1, 1, False),
        (["b"], 0, 2, False),
        ([], 0, 3, False),
        (["c", "b", "a"], 3, 3, True),
        (["x", "a", "b", "c"], 4, 3, True),
        (["x", "y"], 2, 3, True),
    ],
)
def test_set_writes_the_least(service: Service, wanted: list[str], added: int, removed: int, whole: bool) -> None:
    """`set_messages` writes nothing, or removals and additions, or replaces the list: whatever is least."""
    store = service.store()
    store.set_messages(KEY, users("a", "b", "c"))
    before = len(store.conversation(KEY).history())
    with service.counting() as calls:
        store.set_messages(KEY, users(*wanted))
    assert calls["PutInvocationStep"] == (1 if added or removed else 0)
    entries = store.conversation(KEY).history()[before:]
    assert [(len(e.added), len(e.removed), e.replaced_all) for e in entries] == (
        [(added, removed, whole)] if added or removed else []
    )
    assert texts(store) == texts(service.store()) == wanted


# Looking at a conversation


def test_history_tells_every_change(service: Service) -> None:
    """`history()` lists every change over all sessions, oldest first, as JSON, with ids that tell what it removed."""
    store = service.store()
    conversation = store.conversation(KEY)
    conversation.add(users("a", "b"))
    service.later(IDLE)
    conversation.remove(0)
    conversation.add(users("c"))
    for reader in (conversation, service.store().conversation(KEY)):
        first, second, third = reader.history()
        assert [len(first.added), len(second.added), len(third.added)] == [2, 0, 1]
        assert second.removed == first.added[:1]
        ours = [session["sessionId"] for session in service.sessions()]
        assert [first.session, second.session, third.session] == [ours[0], ours[1], ours[1]]
        assert first.time < second.time <= third.time
        assert json.loads(json.dumps([entry.as_dict() for entry in (first, second, third)]))[0]["added"] == list(
            first.added
        )


def test_describe_tells_how_a_conversation_stands(service: Service) -> None:
    """`describe()` gives, as JSON, the messages, the generation, and each session with its status and metadata."""
    conversation = service.store(session_metadata={"severity": "high"}).conversation(KEY)
    conversation.add(users("a", "b"))
    service.later(IDLE)
    conversation.add(users("c"))
    for reader in (conversation, service.store().conversation(KEY)):
        told: Any = json.loads(json.dumps(reader.describe()))
        assert (told["key"], told["namespace"], told["messages"], told["generation"]) == (KEY, "default", 3, 1)
        old, new = told["sessions"]
        assert (old["head"], new["head"], new["status"], new["steps"]) == (False, True, "ACTIVE", 1)
        assert old["status"] in {"ENDED", "EXPIRED"}
        assert old["metadata"]["severity"] == new["metadata"]["severity"] == "high"
        assert [old["session"], new["session"]] == [session["sessionId"] for session in service.sessions()]


def test_an_unknown_key_is_described_without_being_made(service: Service) -> None:
    """Looking at a key nobody wrote to says that nothing is there, and writes nothing."""
    conversation = service.store().conversation("nobody")
    assert (conversation.messages(), conversation.history()) == ([], [])
    told = conversation.describe()
    assert (told["messages"], told["sessions"]) == (0, [])
    assert service.sessions() == []


# What is larger than a step


def test_many_pictures_are_stored_at_once(service: Service) -> None:
    """45 pictures in one call, more than two steps hold, come back exactly, in every process, and after a pause."""
    album = [picture(number, f"{number}") for number in range(45)]
    store = service.store()
    store.set_messages(KEY, [user("before")])
    store.set_messages(KEY, album)
    assert store.get_messages(KEY) == service.store().get_messages(KEY) == album
    service.later(IDLE)
    store.add_message(KEY, user("after"))
    assert store.get_messages(KEY) == service.store().get_messages(KEY) == [*album, user("after")]


def test_more_bytes_than_a_step_are_stored_at_once(service: Service) -> None:
    """Messages of more than 50 MB together, each of which fits, come back exactly."""
    large = [user(letter * 20_000_000) for letter in "abc"]
    store = service.store()
    store.set_messages(KEY, large)
    assert store.get_messages(KEY) == large
    assert service.store().get_messages(KEY) == large


@pytest.mark.parametrize("fault", ["throttle", "internal", "reset", "refused"])
def test_attachments_are_visible_all_at_once_or_not_at_all(service: Service, fault: str) -> None:
    """Where the last of several puts fails, nothing of the change is seen; said again, all of it."""
    store = service.store()
    store.set_messages(KEY, users("before"))
    album = [picture(number) for number in range(45)]
    service.faults.add("PutInvocationStep", 3, fault)
    with pytest.raises(BedrockSessionsError):
        store.conversation(KEY).add(album)
    assert [f.fault for f in service.faults.fired] == [fault]
    assert texts(service.store()) == texts(store) == ["before"]
    store.conversation(KEY).add(album)
    assert service.store().get_messages(KEY) == store.get_messages(KEY) == [user("before"), *album]


def test_a_change_keeps_its_attachments_when_it_has_to_move(service: Service) -> None:
    """Where the session ends between the puts of a large change, it is stored whole in the next."""
    store = service.store()
    store.set_messages(KEY, users("before"))
    album = [picture(number) for number in range(45)]
    (session,) = service.sessions()
    puts = Counter[str]()

    def end_after_two(**_: Any) -> None:
        puts["n"] += 1
        if puts["n"] == 3:
            service.boto3.end_session(sessionIdentifier=session["sessionId"])

    store.client.meta.events.register_first("before-call.bedrock-agent-runtime.PutInvocationStep", end_after_two)
    store.conversation(KEY).add(album)
    assert service.store().get_messages(KEY) == store.get_messages(KEY) == [user("before"), *album]


# Freshness


def test_refresh_interval_saves_reads(service: Service) -> None:
    """With a refresh interval reads within it ask nothing, and what this store writes is seen at once."""
    store = service.store(refresh_interval=10_000)
    store.add_message(KEY, user("one"))
    store.get_messages(KEY)
    with service.counting() as calls:
        store.get_messages(KEY)
        store.add_message(KEY, user("two"))
        assert texts(store) == ["one", "two"]
    assert calls == {"PutInvocationStep": 1, "total": 1}


def test_without_an_interval_reads_are_strict(service: Service) -> None:
    """By default a read sees what another process has just written, however often it has read."""
    store, other = service.store(), service.store()
    for number in range(5):
        other.get_messages(KEY)
        other.add_message(KEY, user(f"{number}"))
        assert len(texts(store)) == number + 1


def test_what_was_read_belongs_to_the_caller(service: Service) -> None:
    """Changing what was returned, pictures too, changes nothing in later reads or writes."""
    store = service.store()
    store.add_message(KEY, picture())
    service.later(IDLE)
    for _ in range(2):
        (message,) = store.get_messages(KEY)[:1]
        image_of(message).image = b""
        message.blocks.clear()
    store.add_message(KEY, user("after"))
    assert store.get_messages(KEY) == service.store().get_messages(KEY) == [picture(), user("after")]


# Any history


class Histories(RuleBasedStateMachine):
    """Two processes, one emulator, anything that may happen, against a plain list.

    A process that has not read what the other wrote reads before it writes, for only then is the order promised.
    """

    def __init__(self) -> None:
        super().__init__()
        self.service = Service()
        self.stores = [self.service.store(), self.service.store()]
        self.model: list[str] = []
        self.read = [True, True]
        self.days = 0.0
        self.number = 0

    def begin(self, who: int) -> BedrockSessionsChatStore:
        if not self.read[who]:
            assert texts(self.stores[who]) == self.model
        return self.stores[who]

    def wrote(self, who: int) -> None:
        self.read = [who == 0, who == 1]
        self.days = 0

    def new(self) -> str:
        self.number += 1
        return f"m{self.number}"

    who = st.integers(0, 1)

    @initialize(count=st.integers(0, 3), who=who)
    def begun(self, count: int, who: int) -> None:
        for _ in range(count):
            self.add(who)

    @rule(who=who)
    def add(self, who: int) -> None:
        text = self.new()
        self.begin(who).add_message(KEY, user(text))
        self.model.append(text)
        self.wrote(who)

    @rule(who=who, count=st.integers(2, 5))
    def batch(self, who: int, count: int) -> None:
        given = [self.new() for _ in range(count)]
        self.begin(who).conversation(KEY).add(users(*given))
        self.model += given
        self.wrote(who)

    @rule(who=who, data=st.data())
    def set_some(self, who: int, data: st.DataObject) -> None:
        kept = data.draw(st.permutations(self.model)) if data.draw(st.booleans()) else list(self.model)
        kept = kept[: data.draw(st.integers(0, len(kept)))]
        kept += [self.new() for _ in range(data.draw(st.integers(0, 2)))]
        self.begin(who).set_messages(KEY, users(*kept))
        self.model = list(kept)
        self.wrote(who)

    @rule(who=who, index=st.integers(-4, 4))
    def delete_one(self, who: int, index: int) -> None:
        assert texts(self.stores[who]) == self.model
        valid = -len(self.model) <= index < len(self.model)
        expected = user(self.model.pop(index)) if valid else None
        assert self.stores[who].delete_message(KEY, index) == expected
        if valid:
            self.wrote(who)

    @rule(who=who)
    def delete_last(self, who: int) -> None:
        store = self.begin(who)
        expected = user(self.model.pop()) if self.model else None
        assert store.delete_last_message(KEY) == expected
        if expected:
            self.wrote(who)

    @rule(who=who)
    def clear(self, who: int) -> None:
        found = self.begin(who).conversation(KEY).clear()
        assert (found or []) == users(*self.model)
        if self.model:
            self.wrote(who)
        self.model = []

    @rule(who=who)
    def erase(self, who: int) -> None:
        found = self.begin(who).delete_messages(KEY)
        assert (found or []) == users(*self.model)
        assert self.service.sessions() == []
        self.model = []
        self.wrote(who)

    @rule()
    def both_add(self) -> None:
        """Two that have not read each other: each message once, all before them as it was."""
        given = [self.new(), self.new()]
        for store, text in zip(self.stores, given, strict=True):
            store.add_message(KEY, user(text))
        found = [str(text) for text in texts(self.service.store())]
        assert sorted(found) == sorted(self.model + given)
        assert [text for text in found if text not in given] == self.model
        self.model, self.read, self.days = found, [False, False], 0

    @rule(who=who)
    def read_all(self, who: int) -> None:
        assert texts(self.stores[who]) == self.model
        self.read[who] = True

    @rule(minutes=st.sampled_from([1, 20, 61, 61, 61]))
    def minutes_pass(self, minutes: int) -> None:
        self.service.later(minutes * 60)
        self.days += minutes / 1440

    @precondition(lambda self: self.days < 14)
    @rule(days=st.sampled_from([1, 5]))
    def days_pass(self, days: int) -> None:
        self.service.later(days * DAY)
        self.days += days

    @precondition(lambda self: self.number > 0)
    @rule(data=st.data())
    def somebody_ends_a_session(self, data: st.DataObject) -> None:
        ids = [session["sessionId"] for session in self.service.sessions()]
        if ids:
            self.service.boto3.end_session(sessionIdentifier=data.draw(st.sampled_from(ids[-2:])))
            # Only a session older than that is asked how it is beside every list.
            self.minutes_pass(51)

    @rule(who=who)
    def restart(self, who: int) -> None:
        self.stores[who], self.read[who] = self.service.store(), True

    @rule(who=who, nth=st.integers(1, 3), fault=st.sampled_from(["lost_reply", "throttle", "reset"]))
    def faulty(self, who: int, nth: int, fault: str) -> None:
        """Any put may fail: what returned is stored, what raised is stored once or, if it says so, not at all."""
        store, text = self.begin(who), self.new()
        self.service.faults.add("PutInvocationStep", nth, fault)
        error: ServiceError | None = None
        try:
            store.add_message(KEY, user(text))
        except ServiceError as raised:
            error = raised
        self.service.faults.clear()
        there = text in texts(self.service.store())
        assert there or error is not None
        assert not there or error is None or error.may_have_happened
        if there:
            self.model.append(text)
            self.wrote(who)

    @invariant()
    def a_new_process_agrees(self) -> None:
        assert texts(self.service.store()) == self.model

    def teardown(self) -> None:
        assert [texts(store) for store in self.stores] == [self.model, self.model]


TestHistories = pytest.mark.thorough(Histories.TestCase)
TestHistories.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


APPEND = """
import sys
from llama_index.core.base.llms.types import ChatMessage
from llama_index_bedrock_sessions import BedrockSessionsChatStore
store = BedrockSessionsChatStore.local(sys.argv[1])
sys.stdin.readline()
for number in range(60):
    store.add_message(sys.argv[2], ChatMessage(f"{sys.argv[3]}-{number}"))
"""


@pytest.mark.thorough
def test_two_processes_append_to_one_file(tmp_path: Path) -> None:
    """Two operating-system processes that add to one new key at once lose nothing and repeat nothing."""
    path = tmp_path / "chats.db"
    processes = [python(APPEND, str(path), KEY, name) for name in "ab"]
    complaints = [process.communicate("go\n")[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], complaints
    found = [str(text) for text in texts(BedrockSessionsChatStore.local(path))]
    for name in "ab":
        assert [text for text in found if text.startswith(name)] == [f"{name}-{number}" for number in range(60)]
    assert len(found) == 120


def test_an_emulator_may_be_late() -> None:
    """Where lists show new steps late, nothing is lost, and everybody agrees in the end."""
    service = Service(behaviour=Behaviour(steps_listed_after_seconds=1, sessions_listed_after_seconds=1))
    store = service.store()
    for number in range(10):
        store.add_message(KEY, user(f"{number}"))
        if number % 4 == 3:
            service.later(IDLE)
    late = service.store()
    late.get_messages(KEY)
    service.later(1)
    assert texts(late) == texts(store) == [f"{number}" for number in range(10)]


def test_the_clock_of_the_file_counts(tmp_path: Path) -> None:
    """A store on a file lives in the time of the file: another process may let hours pass."""
    path = tmp_path / "chats.db"
    store = BedrockSessionsChatStore.local(path)
    store.add_message(KEY, user("one"))
    with Emulator(path) as emulator:
        emulator.clock.advance(400 * DAY)
    store.add_message(KEY, user("two"))
    assert texts(store) == texts(BedrockSessionsChatStore.local(path)) == ["one", "two"]
