"""Each part of a conversation works alone, made of what it needs and of nothing that uses it."""

from __future__ import annotations

import functools
import math

import pytest

from llama_index_bedrock_sessions._bedrock.client import SessionClient
from llama_index_bedrock_sessions._bedrock.directory.metadata import MetadataDirectory
from llama_index_bedrock_sessions._bedrock.pool import Pool
from llama_index_bedrock_sessions._conversation import claims, fork, lifecycle, timeline
from llama_index_bedrock_sessions._conversation.continuation import Continuation, noop, template_of
from llama_index_bedrock_sessions._conversation.deletion import Deletion
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import ConversationSessions, SessionTemplate, Settings
from llama_index_bedrock_sessions._conversation.steps import StepWriter
from llama_index_bedrock_sessions._conversation.writer import Writer
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.compaction import Compaction
from llama_index_bedrock_sessions._journal.draft import Draft, Placed
from llama_index_bedrock_sessions._journal.fetch_plan import FetchPlan, Listed
from llama_index_bedrock_sessions._journal.fold import Fold
from llama_index_bedrock_sessions._journal.ids import Home, IdClock, Kind, new_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.limits import Copy
from llama_index_bedrock_sessions._journal.model import ENDED, Mark, Message, Segment
from llama_index_bedrock_sessions.errors import ConversationEnded
from tests.support.service import DAY, KEY, Service, user

SESSION = "00000000-0000-4000-8000-000000000001"


@pytest.fixture
def service() -> Service:
    return Service()


def sessions_of(service: Service, key: str = KEY) -> ConversationSessions:
    client = SessionClient(service.client, Pool(4), 0.0)
    directory = MetadataDirectory(client, "default", math.inf, math.inf)
    return ConversationSessions(key, client, directory, Settings("default", {}, {}, None))


def added(text: str) -> Draft:
    return Draft(message_codec.encode([user(text)]))


def _given(draft: Draft, _: Journal) -> Draft:
    return draft


def test_a_fold_alone() -> None:
    """A fold unites the changes that it learns, in any order, without steps or sessions."""
    clock = IdClock()
    first, second = new_id(1000, Kind.CHANGE), new_id(2000, Kind.CHANGE)
    changes = [
        added("hello").change(first, {0: Message((first, 0), {"b": ["hello"]}, (), 15)}, None),
        Draft(removed=frozenset({(first, 0)}), state={"name": ["Ada"]}).change(second, {}, None),
    ]
    for order in (changes, changes[::-1]):
        fold = Fold(clock)
        for change in order:
            fold.learn(change)
        assert (fold.alive(), fold.state(), clock.ms) == ([], {"name": "Ada"}, 2000)


def test_a_fetch_plan_alone() -> None:
    """A plan names the listed steps that are not covered, and nothing more once they are."""
    step = Home(SESSION, SESSION, new_id(1000, Kind.CHANGE))
    plan = FetchPlan([SESSION], {}, IdClock())
    plan.saw_list(SESSION, [Listed(step, 1000)])
    assert next(plan.rounds()) == [step]
    plan.cover(step.step, None)
    assert list(plan.rounds()) == [[], []]


def test_a_compaction_alone() -> None:
    """The next step carries a small change that was read, and leaves a large one."""
    clock = IdClock()
    fold, small, large = Fold(clock), new_id(1000, Kind.CHANGE), new_id(2000, Kind.CHANGE)
    plan = FetchPlan([SESSION], fold.known, clock)
    compaction = Compaction([SESSION], fold, plan, clock)
    for change_id, size in ((small, 10), (large, 100_000)):
        fold.learn(Draft().change(change_id, {0: Message((change_id, 0), {"b": ["x"]}, (), size)}, None))
        plan.cover(change_id, fold.known[change_id])
        compaction.add_source(Segment(Home(SESSION, SESSION, change_id), (change_id,), frozenset(), own=False))
    composed = compaction.compose((SESSION, SESSION), added("more"), Placed(), 3000)
    assert [change for segment in composed.taken for change in segment.changes] == [small]
    assert [home.step for home in composed.step.named] == [large]


def test_sessions_alone(service: Service) -> None:
    """A session is created, found, closed and deleted without a reader."""
    sessions = sessions_of(service)
    info = sessions.create(SessionTemplate(metadata={"team": "a"}, tags={"cost": "b"}))
    assert sessions.found().keys() == {info.session}
    assert service.sessions()[0]["sessionMetadata"]["team"] == "a"
    assert (sessions.is_active(info.session), sessions.has_opening(info.session)) == (True, False)
    assert sessions.delete_unopened(info.session)
    assert (service.sessions(), sessions.effects) == ([], 0)


def test_a_reader_alone(service: Service) -> None:
    """A reader reads what a store has written, and finds a session that no process has opened."""
    service.store().add_message(KEY, user("hello"))
    other = sessions_of(service).create(SessionTemplate())
    reader = Reader(sessions_of(service))
    journal = reader.refresh()
    assert len(journal.fold.alive()) == 1
    assert [info.session for info in reader.unopened_sessions(journal)] == [other.session]
    assert len(timeline.read_alone(reader, journal.heads[0]).fold.alive()) == 1
    assert len(timeline.read_timeline(reader).known) == 1


def test_a_step_writer_alone(service: Service) -> None:
    """A step is put into the session that was read."""
    service.store().add_message(KEY, user("one"))
    reader = Reader(sessions_of(service))
    StepWriter(reader).write(reader.refresh(), added("two"))
    assert [message.content for message in service.store().get_messages(KEY)] == ["one", "two"]
    assert reader.sessions.effects == 1


def test_a_continuation_alone(service: Service) -> None:
    """A conversation is continued in its first session, and in the next once that is a day old."""
    reader = Reader(sessions_of(service))
    continuation = Continuation(reader, StepWriter(reader))
    assert continuation.continue_in_new_session(reader.refresh(), lambda _: added("one"))
    first = reader.known().heads
    assert not continuation.is_due(reader.known())
    service.later(DAY + 60)
    assert continuation.is_due(reader.refresh())
    assert continuation.continue_in_new_session(reader.known(), noop)
    assert template_of(reader.known()).heads != first
    assert [message.content for message in service.store().get_messages(KEY)] == ["one"]


def test_a_writer_alone(service: Service) -> None:
    """Changes are appended until the conversation has ended; a claim is given once."""
    reader = Reader(sessions_of(service))
    steps = StepWriter(reader)
    continuation = Continuation(reader, steps)
    writer = Writer(reader, steps, continuation)
    for draft in (added("one"), added("two")):
        writer.append(functools.partial(_given, draft))
    claimed = new_id(1, Kind.CHANGE)
    assert claims.claim(reader, writer, continuation, claimed, lambda _: added("mine")) is None
    theirs = claims.claim(reader, writer, continuation, claimed, lambda _: added("mine too"))
    assert theirs is not None
    assert len(theirs.messages) == 1
    assert lifecycle.end(reader, writer, Draft(marks={ENDED: Mark(on=True)}))
    with pytest.raises(ConversationEnded):
        writer.append(lambda _: added("three"))
    assert len(service.store().get_messages(KEY)) == 3


def test_deletion_and_fork_alone(service: Service) -> None:
    """A copy is started on an empty key; one of its messages is deleted for good, and then the rest."""
    reader = Reader(sessions_of(service))
    steps = StepWriter(reader)
    continuation = Continuation(reader, steps)
    writer = Writer(reader, steps, continuation)
    deletion = Deletion(reader, steps, writer, continuation)
    copy = Copy(message_codec.encode([user("copied")]), False)
    fork.start_with(reader, writer, continuation, [copy], Draft(), inherits=SessionTemplate(), prepare=noop)
    (message,) = reader.known().fold.alive()
    before = reader.known().heads
    deleted: dict[str, None] = {}
    deletion.rewrite_without(frozenset({message.id}), deleted)
    assert list(deleted) == before
    assert reader.refresh().fold.alive() == []
    deletion.erase(deleted)
    assert service.sessions() == []
