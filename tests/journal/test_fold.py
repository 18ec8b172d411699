"""What the steps of a conversation add up to, compared with a plain list, and what it takes to read them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from llama_index.core.base.llms.types import ChatMessage, ImageBlock

from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.compaction import COVERED_AGE, OVERHEAD, SAFE_AGE
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.draft import Composed, Draft, Placed
from llama_index_bedrock_sessions._journal.encoding import carried_json, envelope, opening_json
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.ids import Home, Kind, MessageId, new_id, parse_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import BUDGET, ENDED, HIDDEN, MARK, Inherited, Mark, Opening, Step
from llama_index_bedrock_sessions._journal.values import dump
from tests.support.strategies import picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llama_index_bedrock_sessions._journal.message_codec import ContentBlock

NOW = 1_767_323_045_678
DAY = 24 * 3600 * 1000
NOTHING = Opening(0, {}, {}, frozenset(), (), None)


def session(number: int) -> str:
    """The id of a session."""
    return f"00000000-0000-4000-8000-{number:012}"


A, B, C, D = (session(n) for n in range(4))


def says(*contents: str, **facts: Any) -> Draft:
    """A change that adds texts, and whatever else it says."""
    return Draft(message_codec.encode([ChatMessage(content) for content in contents]), **facts)


def place(of: str) -> tuple[str, str]:
    """A session and its default invocation."""
    return of, default_invocation(of)


class Service:
    """The steps of some sessions, as lists and gets show them."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, tuple[Listed, Sequence[ContentBlock]]]] = {}
        self.read: dict[Home, Step] = {}
        self.created: dict[str, int] = {}
        self.gets = 0
        self.rounds = 0

    def put(self, home: Home, payload: Sequence[ContentBlock], time: int = NOW) -> None:
        self.steps.setdefault(home.session, {})[home.step] = Listed(home, time), payload

    def listed(self, of: str) -> list[Listed]:
        return [listed for listed, _ in self.steps.get(of, {}).values()]

    def get(self, home: Home) -> Step | None:
        found = self.steps.get(home.session, {}).get(home.step)
        if found is None:
            return None
        if home not in self.read:
            self.read[home] = read_step(home, found[1], found[0].time)
        return self.read[home]

    def refresh(self, journal: Journal, *, parents: bool = False, whole: bool = True) -> Journal:
        """Read all that is new, as `reader.py` does; count what that takes."""
        self.gets = self.rounds = 0
        for head in journal.heads:
            journal.plan.saw_list(head, self.listed(head))
        for parent in (
            {p for h in journal.heads for o in journal.plan.openings[h] for p in o.parents} if parents else ()
        ):
            journal.plan.saw_list(parent, self.listed(parent))
        while True:
            for wanted in journal.plan.rounds(with_archived=whole):
                for parent in journal.plan.unlisted_parents():
                    journal.plan.saw_list(parent, self.listed(parent))
                self.rounds += bool(wanted)
                assert self.rounds < 20
                for home in wanted:
                    self.gets += 1
                    step = self.get(home)
                    if step is None:
                        journal.plan.lost(home)
                    else:
                        journal.absorb(step)
            unlisted = journal.plan.unlisted_parents()
            if not unlisted:
                return journal
            for parent in unlisted:
                journal.plan.saw_list(parent, self.listed(parent))

    def cold(self, *heads: str) -> Journal:
        """What somebody knows who has just read all."""
        return self.refresh(Journal(heads))

    def window(self, *heads: str) -> Journal:
        """What somebody knows who has just read the active messages."""
        return self.refresh(Journal(heads), whole=False)

    def append(self, journal: Journal, draft: Draft | None, now: int = NOW) -> Composed:
        """Store a change in the head."""
        composed = journal.compaction.compose(place(journal.heads[0]), draft, Placed(), now)
        self.put(composed.step.home, composed.payload, now)
        journal.stored(composed)
        return composed

    def open(self, journal: Journal, following: str, draft: Draft | None = None, now: int = NOW) -> Composed:
        """Store the opening of a session that continues what was read."""
        created = {head: self.created[head] for head in journal.heads}
        self.created.setdefault(following, now)
        *groups, last = journal.compaction.expiring_segments(created, now)
        copies = []
        for group in groups:
            composed, inherited = journal.compaction.copy(place(following), group, now)
            self.put(composed.step.home, composed.payload, now)
            copies.append(inherited)
        opening = dataclasses.replace(journal.compaction.opening(created, now), segments=tuple(copies))
        copied = [segment for group in groups for segment in group]
        composed = journal.compaction.compose(
            place(following), draft, Placed(), now, opening=opening, forced=last, copied=copied
        )
        self.put(composed.step.home, composed.payload, now)
        return composed

    def started(self, *contents: str) -> Journal:
        """Open the first session with an opening, and a step for each text."""
        self.open(Journal([]), A)
        journal = self.cold(A)
        for content in contents:
            self.append(journal, says(content))
        return journal


def shown(journal: Journal) -> list[str]:
    """The texts that are there, in order."""
    return [str(message.record["b"][0]) for message in journal.fold.alive()]


def ids_of(journal: Journal) -> list[MessageId]:
    """The ids of what is there, in order."""
    return [message.id for message in journal.fold.alive()]


def knows(journal: Journal) -> Any:
    """All that a reader can be asked."""
    archived = [journal.fold.is_archived(m) for m in ids_of(journal)]
    there = list(zip(ids_of(journal), shown(journal), archived, strict=True))
    return (
        there,
        [message.id for message in journal.fold.visible()],
        journal.fold.state(),
        journal.fold.hidden(),
        journal.fold.ended(),
    )


def active(journal: Journal) -> Any:
    """All that somebody can be asked who has read the active messages."""
    there, visible, *rest = knows(journal)
    archived = {message for message, _, is_archived in there if is_archived}
    seen = [message for message in visible if message not in archived]
    return [each for each in there if each[0] not in archived], seen, *rest


# Against a plain list


@dataclasses.dataclass
class Said:
    """A change as the plain list knows it."""

    key: tuple[int, str]
    contents: list[str]
    is_set: bool = False


class Conversations(RuleBasedStateMachine):
    """Several writers who list when they like, and a list that is always right."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service()
        self.now = NOW
        self.head = A
        self.changes: dict[str, Said] = {}
        self.removed: set[MessageId] = set()
        self.archived: set[MessageId] = set()
        self.state: dict[str, tuple[tuple[int, str], list[Any]]] = {}
        self.marks = {name: ((-1, ""), Mark(on=False)) for name in (HIDDEN, ENDED)}
        self.count = 0

    @initialize(skews=st.lists(st.integers(-900, 900), min_size=3, max_size=3))
    def begin(self, skews: list[int]) -> None:
        self.service.open(Journal([]), A, now=self.now)
        self.skews = skews
        self.writers = [self.cold(number) for number, _ in enumerate(skews)]

    def cold(self, number: int) -> Journal:
        """What a writer knows who has just read: the last of them reads what is active."""
        return (self.service.window if number == 2 else self.service.cold)(self.head)

    def write(self, number: int, draft: Draft, contents: Sequence[str] = ()) -> None:
        journal = self.writers[number]
        composed = self.service.append(journal, draft, self.now + self.skews[number])
        self.note(composed.step.home.step, draft, contents)

    def note(self, change: str, draft: Draft, contents: Sequence[str]) -> None:
        parsed = parse_id(change)
        assert parsed
        key = (parsed.ms, change)
        self.changes[change] = Said(key, list(contents), draft.is_set)
        self.removed |= draft.removed
        self.archived |= draft.archived
        for name, value in draft.state.items():
            self.state[name] = max(self.state.get(name, ((-1, ""), [])), (key, value), key=lambda x: x[0])
        for name, mark in draft.marks.items():
            self.marks[name] = max(self.marks[name], (key, mark), key=lambda each: each[0])
        self.now += 7

    def texts(self, sizes: Sequence[int]) -> list[str]:
        self.count += 1
        return [f"{self.count}.{n} ".ljust(size, "x") for n, size in enumerate(sizes)]

    writers_of = st.integers(0, 2)
    sizes = st.lists(st.sampled_from([8, 8, 30, 500, 3000]), min_size=1, max_size=3)

    @rule(writer=writers_of, sizes=sizes, times=st.integers(1, 6))
    def append(self, writer: int, sizes: list[int], times: int) -> None:
        for _ in range(times):
            contents = self.texts(sizes)
            self.write(writer, says(*contents), contents)

    @rule(writer=writers_of, sizes=sizes, chosen=st.randoms(use_true_random=False))
    def remove_and_append(self, writer: int, sizes: list[int], chosen: Any) -> None:
        known = ids_of(self.writers[writer])
        gone = frozenset(chosen.sample(known, min(len(known), 2)))
        contents = self.texts(sizes)
        self.write(writer, says(*contents, removed=gone), contents)

    @rule(writer=writers_of, sizes=sizes)
    def replace(self, writer: int, sizes: list[int]) -> None:
        contents = self.texts(sizes)
        if not self.writers[writer].plan.is_complete():
            self.service.refresh(self.writers[writer])
        self.write(writer, says(*contents, removed=frozenset(ids_of(self.writers[writer])), is_set=True), contents)

    @rule(writer=writers_of, number=st.sampled_from([0, 1, 3, 40, 40]))
    def archive(self, writer: int, number: int) -> None:
        self.write(writer, Draft(archived=frozenset(ids_of(self.writers[writer])[:number]), by="somebody"))

    @rule(writer=writers_of, name=st.sampled_from("abc"), value=st.lists(st.integers(), max_size=1))
    def keep_state(self, writer: int, name: str, value: list[int]) -> None:
        self.write(writer, Draft(state={name: value}))

    @rule(writer=writers_of, name=st.sampled_from([HIDDEN, ENDED]), on=st.booleans())
    def mark(self, writer: int, name: str, on: bool) -> None:
        self.write(writer, Draft(marks={name: Mark(on, {"by": f"writer {writer}"})}))

    @rule(time=st.integers(-2000, 2000), number=st.uuids(version=4).map(str))
    def another_tool(self, time: int, number: str) -> None:
        (content,) = self.texts([20])
        at = self.now + time
        self.service.put(Home(*place(self.head), number), [{"text": content}], at)
        self.changes[number] = Said((at, number), [content])

    @rule(writer=writers_of)
    def list_anew(self, writer: int) -> None:
        # Stragglers are found by who lists the parents, as a cold reader does and whoever continues.
        journal = self.service.refresh(self.writers[writer], parents=True, whole=writer != 2)
        if journal.heads == [self.head]:
            assert active(journal) == active(self.service.cold(self.head))
            assert not journal.plan.is_complete() or knows(journal) == self.expected()

    @rule(writer=writers_of)
    def move_on(self, writer: int) -> None:
        if self.writers[writer].heads != [self.head]:
            self.writers[writer] = self.cold(writer)

    @rule(
        writer=writers_of,
        sizes=st.none() | sizes,
        days=st.sampled_from([0, 0, 1, 8, 12]),
        warm=st.booleans(),
        archives=st.booleans(),
    )
    def continue_elsewhere(self, writer: int, sizes: list[int] | None, days: int, warm: bool, archives: bool) -> None:
        is_there = self.writers[writer].heads == [self.head]
        if is_there and archives:
            self.write(writer, Draft(archived=frozenset(ids_of(self.writers[writer]))))
        journal = self.writers[writer] if warm and is_there else Journal([self.head])
        self.now += days * DAY
        self.service.refresh(journal, parents=True)
        contents = self.texts(sizes) if sizes else []
        draft = says(*contents) if sizes else None
        following = session(len(self.service.created))
        opened = self.now
        composed = self.service.open(journal, following, draft, opened)
        if draft:
            self.note(composed.step.home.step, draft, contents)
        before, self.head = self.head, following
        self.writers[writer] = self.cold(writer)
        # What was older than nine days then may be gone: everything alive has been carried.
        for old, created in self.service.created.items():
            if opened - created > SAFE_AGE:
                self.service.steps.pop(old, None)
        for number, other in enumerate(self.writers):
            # Who still writes to the session before leaves a straggler; to one before that, nobody can.
            if other.heads not in ([following], [before]) or before not in self.service.steps:
                self.writers[number] = self.cold(number)

    def expected(self) -> Any:
        last_set = max((c.key for c in self.changes.values() if c.is_set), default=(-1, ""))
        alive = [
            ((change, position), content, (change, position) in self.archived)
            for change, said in sorted(self.changes.items(), key=lambda x: x[1].key)
            if not said.is_set or said.key >= last_set
            for position, content in enumerate(said.contents)
            if (change, position) not in self.removed
        ]
        (hidden_at, hiding), (ended_at, ending) = self.marks[HIDDEN], self.marks[ENDED]
        until = hidden_at if hiding.on else (-1, "")
        state = {name: value[0] for name, (key, value) in sorted(self.state.items()) if value and key > until}
        ended = (ended_at[0], ending.said) if ending.on else None
        return alive, [m for m, _, _ in alive if self.changes[m[0]].key > until], state, hiding.on, ended

    @invariant()
    def a_cold_reader_knows_all(self) -> None:
        if self.service.created:
            assert knows(self.service.cold(self.head)) == self.expected()
            assert self.service.rounds <= 3

    @invariant()
    def who_reads_what_is_active_need_not_read_all(self) -> None:
        if self.service.created:
            window = self.service.window(self.head)
            seen = active(window)
            assert knows(self.service.refresh(window)) == self.expected()
            assert seen == active(window)


TestConversations = Conversations.TestCase
TestConversations.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)


# What reading takes


def test_one_writers_messages_are_read_in_few_gets() -> None:
    """Of n equal messages a cold reader gets about log2(n) steps, at most 12 of 1,000, in at most two rounds."""
    service = Service()
    journal = service.started()
    for n in range(1, 1001):
        service.append(journal, says(f"{n:01000}"))
        if n < 40 or n % 97 == 0 or n > 995:
            assert len(shown(service.cold(A))) == n
            assert service.gets <= min(math.log2(n) + 5, 12)
            assert service.rounds <= 2
    assert shown(service.cold(A)) == [f"{n:01000}" for n in range(1, 1001)]


def test_a_warm_reader_gets_only_what_is_new() -> None:
    """After a list that shows nothing new there is nothing to get, and one new step is one get."""
    service = Service()
    writer = service.started(*"abcdefg")
    reader = service.cold(A)
    service.refresh(reader)
    assert service.gets == 0
    service.append(writer, says("h"))
    service.refresh(reader)
    assert (service.gets, shown(reader)) == (1, [*"abcdefgh"])


def test_reader_that_writes_carries_changes_of_all_writers() -> None:
    """Writers who never list cost a get each step at worst; the next who has read carries what they left."""
    service = Service()
    writers = [service.started(), service.cold(A)]
    for n in range(40):
        service.append(writers[n % 2], says(f"{n:0500}"), NOW + n)
    service.cold(A)
    before = service.gets
    service.refresh(writers[0])
    for n in range(3):
        service.append(writers[0], says(f"{n:09000}"), NOW + 100)
    service.cold(A)
    assert service.gets < before
    assert service.gets <= 6
    assert service.rounds <= 3


def test_state_that_is_replaced_is_read_in_few_gets() -> None:
    """State written again and again costs a reader no more gets than messages: what was replaced weighs nothing."""
    service = Service()
    journal = service.started()
    for n in range(200):
        service.append(journal, Draft(state={"memory": [f"{n}" * 5000]}))
    assert service.cold(A).fold.state() == {"memory": "199" * 5000}
    assert service.gets <= math.log2(200) + 5


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(
        st.sampled_from([10, 1000, 20_000, 100_000, 200_000, 260_000, 400_000, 600_000]), min_size=1, max_size=14
    )
)
def test_what_a_step_carries_is_bounded(sizes: list[int]) -> None:
    """A step carries at most 512 KB, no segment over half of that, and its hint counts what directly precedes it."""
    service = Service()
    journal = service.started()
    order = [listed.home.step for listed in service.listed(A)]
    for n, size in enumerate(sizes):
        composed = service.append(journal, says(f"{n}".rjust(size, "x")), NOW + n)
        carried = [(source_step, change) for source_step, change in composed.step.contents[1:] if change]
        assert len(dump(carried_json(carried))) <= BUDGET
        assert all(
            sum(journal.compaction._size(c) for c in segment.changes) <= BUDGET // 2 for segment in composed.taken
        )
        hint = parse_id(composed.step.home.step)
        directly = [source_step in {c for c, _ in carried} for source_step in reversed(order)]
        assert hint
        assert hint.hint == [*directly, False].index(False)
        order.append(composed.step.home.step)
    assert shown(service.cold(A)) == [f"{n}".rjust(size, "x") for n, size in enumerate(sizes)]


def test_a_hint_stops_at_1023() -> None:
    """A step may carry more than its id can say: a hint is only a hint."""
    journal = Journal([A])
    small = Home(*place(A), new_id(NOW, Kind.CHANGE))
    steps = [new_id(NOW + n, Kind.CHANGE) for n in range(1, 1100)]
    journal.plan.saw_list(A, [Listed(small._replace(step=step), 0) for step in steps])
    packed = {"carried": [{"id": step, "by": "x"} for step in steps]}
    home = Home(*place(A), new_id(NOW + 2000, Kind.CHANGE))
    journal.plan.saw_list(A, [Listed(home, 0)])
    journal.absorb(read_step(home, [envelope({"change": {"by": "x"}}, packed)], 0))
    composed = journal.compaction.compose(place(A), says("x" * 200_000), Placed(), NOW)
    assert len(composed.step.contents) == 1101
    parsed = parse_id(composed.step.home.step)
    assert parsed
    assert parsed.hint == 1023


def test_a_wrong_hint_costs_a_get_and_loses_nothing() -> None:
    """A step between those a hint counts, which its writer had not seen, is read all the same."""
    service = Service()
    writer = service.started(*"abc")
    late = service.cold(A)
    service.append(writer, says("d"), NOW + 100)
    service.append(late, says("e"), NOW + 50)
    service.append(writer, says("f" * 900), NOW + 200)
    assert shown(service.cold(A)) == [*"abced", "f" * 900]


# One rule after the other


def test_removed_messages_stay_removed_in_carried_copies() -> None:
    """A writer who has not seen a removal carries the message on; no reader shows it."""
    service = Service()
    one, other = service.started("a", "b"), service.cold(A)
    service.append(one, Draft(removed=frozenset({ids_of(one)[0]})))
    service.append(other, says("c" * 2000))
    assert shown(service.cold(A)) == ["b", "c" * 2000]
    assert shown(service.refresh(one)) == ["b", "c" * 2000]


def test_a_removal_may_be_read_before_what_it_removes() -> None:
    """In whatever order steps are read, the union is the same."""
    service = Service()
    service.started("a", "b")
    one = service.cold(A)
    service.append(one, says("c", removed=frozenset({ids_of(one)[0]})))
    steps = [step for listed in service.listed(A) if (step := service.get(listed.home))]
    for order in (steps, steps[::-1]):
        journal = Journal([A])
        journal.plan.saw_list(A, service.listed(A))
        for step in order:
            journal.absorb(step)
        assert shown(journal) == ["b", "c"]
        assert journal.fold.changes() == one.fold.changes()


def test_greatest_set_wins_and_unseen_messages_stay() -> None:
    """What smaller sets added is dead; a message that no set had seen is not."""
    service = Service()
    one = service.started("a")
    other, third = service.cold(A), service.cold(A)
    service.append(third, says("unseen"), NOW + 5)
    service.append(one, says("one", removed=frozenset(ids_of(one)), is_set=True), NOW + 10)
    service.append(other, says("two", removed=frozenset(ids_of(other)), is_set=True), NOW + 20)
    assert shown(service.cold(A)) == ["unseen", "two"]
    assert shown(service.refresh(one)) == ["unseen", "two"]
    service.append(one, says("c" * 3000), NOW + 30)
    assert "one" not in shown(service.cold(A))


def test_state_is_kept_by_name_and_may_be_deleted() -> None:
    """The greatest change counts for each name, in whatever order they are read."""
    service = Service()
    one = service.started()
    other = service.cold(A)
    service.append(one, Draft(state={"a": [1], "b": [2]}), NOW + 20)
    service.append(other, Draft(state={"a": [3], "c": [4]}), NOW + 10)
    assert service.cold(A).fold.state() == service.refresh(other).fold.state() == {"a": 1, "b": 2, "c": 4}
    service.append(one, Draft(state={"a": []}), NOW + 30)
    assert service.refresh(other).fold.state() == {"b": 2, "c": 4}


def test_a_change_keeps_its_id_in_another_step() -> None:
    """A change sent again under another step id, in the same session or the next, is there once."""
    service = Service()
    journal = service.started("a")
    draft = says("b")
    first = service.append(journal, draft)
    assert draft.id == first.step.home.step
    service.append(journal, draft, NOW + 1000)
    assert shown(journal) == shown(service.cold(A)) == ["a", "b"]
    service.open(service.cold(A), B, draft, NOW + 2000)
    assert ids_of(service.cold(B)) == ids_of(journal)


def test_a_writer_orders_after_what_it_has_read() -> None:
    """A clock that is behind does not matter: a change comes after every change its writer had read."""
    service = Service()
    ahead = service.started()
    service.append(ahead, says("a"), NOW + 10**6)
    behind = service.cold(A)
    service.append(behind, says("b"), NOW)
    assert shown(service.cold(A)) == ["a", "b"]


def test_a_step_in_which_nothing_is_said_changes_nothing() -> None:
    """An empty change, and none, are steps like others."""
    service = Service()
    journal = service.started("a")
    service.append(journal, None)
    service.append(journal, Draft())
    assert shown(service.cold(A)) == ["a"]
    assert [c.id for c in service.cold(A).fold.changes()] == [ids_of(journal)[0][0]]


def test_a_damaged_step_is_not_carried() -> None:
    """It stays where it is, as it is, and what it was to say can be had from a step that carries it."""
    service = Service()
    journal = service.started("a")
    copy = service.append(journal, says("b" * 900))
    home = Home(*place(A), new_id(journal.clock.ms + 1, Kind.CHANGE))
    service.put(home, [{"text": f'{{"{MARK}":1,"change":7}}'}])
    reader = service.cold(A)
    placeholder = "[unreadable message: a damaged step]"
    assert shown(reader) == ["a", "b" * 900, placeholder]
    later = service.append(reader, says("c" * 9000))
    assert {source_step for source_step, _ in later.step.contents} >= {copy.step.home.step}
    assert home.step not in {source_step for source_step, _ in later.step.contents}
    assert shown(service.cold(A)) == ["a", "b" * 900, placeholder, "c" * 9000]
    service.created[A] = NOW
    service.open(service.cold(A), B)
    assert shown(service.cold(B)) == ["a", "b" * 900, placeholder, "c" * 9000]


def test_damaged_carried_copy_falls_back_to_own_step() -> None:
    """What cannot be read of what a step carries is read where it was written."""
    service = Service()
    journal = service.started("a")
    home = Home(*place(A), new_id(journal.clock.ms + 1, Kind.CHANGE, hint=1))
    service.put(home, [envelope({"change": {"by": "x"}}, {"carried": [{"id": 7}]})])
    assert shown(service.cold(A)) == ["a"]


# Reading what is not there


def test_a_step_that_is_listed_and_not_there_is_looked_for_again() -> None:
    """What is not there yet ends the reading, not the looking: the next read asks again."""
    service = Service()
    writer = service.started("a")
    composed = service.append(writer, says("b" * 50_000))
    found = service.steps[A].pop(composed.step.home.step)
    reader = Journal([A])
    reader.plan.saw_list(A, [found[0]])
    service.refresh(reader)
    assert shown(reader) == ["a"]
    assert composed.step.home.step not in reader.compaction.opening({A: NOW}, NOW).parents[A]
    service.steps[A][composed.step.home.step] = found
    assert shown(service.refresh(reader)) == ["a", "b" * 50_000]
    assert composed.step.home.step in reader.compaction.opening({A: NOW}, NOW).parents[A]


def test_an_opening_that_is_not_there_ends_the_reading() -> None:
    """A listed opening that cannot be got is asked for once a read, and the session is not open."""
    service = Service()
    home = Home(*place(A), new_id(NOW, Kind.OPENING))
    journal = Journal([A])
    journal.plan.saw_list(A, [Listed(home, NOW)])
    service.refresh(journal)
    assert service.gets == 1
    assert not journal.plan.is_open(A)
    service.refresh(journal)
    assert service.gets == 1


def test_what_an_opening_names_and_is_gone_is_asked_for_once() -> None:
    """A segment whose session was deleted by hand is lost, and costs nothing from then on."""
    service = Service()
    service.created[A] = NOW
    journal = service.started("a" * 50_000, "b" * 60_000)
    service.open(journal, B, says("c"))
    del service.steps[A]
    reader = service.cold(B)
    assert shown(reader) == ["c"]
    service.refresh(reader)
    assert service.gets == 0


# Openings


def continued(service: Service, following: str, draft: Draft | None = None, now: int = NOW, head: str = A) -> Journal:
    """Read a head to its end, continue it in another session, and read that."""
    service.open(service.refresh(Journal([head])), following, draft, now)
    return service.cold(following)


def test_what_is_alive_is_inherited_and_nothing_else() -> None:
    """Messages, archived marks, state and sets are as they were; what was removed is not there."""
    service = Service()
    journal = service.started("a", "b" * 30_000, "c", "d" * 40_000)
    service.append(journal, Draft(archived=frozenset(ids_of(journal)[1:3]), state={"x": [1], "y": [2]}))
    service.append(
        journal, Draft(removed=frozenset({ids_of(journal)[3]}), state={"y": []}, marks={HIDDEN: Mark(on=True)})
    )
    service.append(journal, Draft(invocations={A: "night"}, origin={"from": "x"}))
    before = knows(journal)
    for generation, (head, following) in enumerate([(A, B), (B, C), (C, D)]):
        journal = continued(service, following, now=NOW + generation, head=head)
        assert knows(journal) == before
        assert journal.plan.generation() == generation + 1
        assert set(journal.plan.covers()) == {A, B, C, D} - {D, following} - {s for s in (C, D) if s >= following}
    assert any(c.invocations == {A: "night"} for c in journal.fold.changes())
    assert any(c.origin == {"from": "x"} for c in journal.fold.changes())


def test_set_left_in_a_parent_outweighs_a_smaller_one() -> None:
    """The greatest set is remembered by openings even where nothing of it is alive."""
    service = Service()
    journal = service.started("a")
    slow = service.cold(A)
    service.append(journal, says("set", removed=frozenset(ids_of(journal)), is_set=True), NOW + 50)
    gone = frozenset(ids_of(journal))
    service.append(journal, Draft(removed=gone), NOW + 60)
    reader = continued(service, B, says("b"), NOW + 100)
    service.append(slow, says("smaller", removed=frozenset(ids_of(slow)), is_set=True), NOW + 20)
    assert shown(reader) == shown(service.cold(B)) == ["b"]
    assert shown(continued(service, C, says("c"), NOW + 200, head=B)) == ["b", "c"]


def test_carried_message_stays_archived_without_its_archiving() -> None:
    """Marks are handed down with the messages, whether those are carried or stay where they are."""
    service = Service()
    journal = service.started("small", "large" * 30_000)
    archive = says("n" * 100_000, archived=frozenset(ids_of(journal)))
    service.append(journal, archive)
    composed = service.open(journal, B, says("next"))
    assert archive.id not in {source_step for source_step, _ in composed.step.contents}
    reader = service.cold(B)
    assert [reader.fold.is_archived(m) for m in ids_of(reader)] == [True, True, False, False]


def test_stragglers_are_read_for_their_own_change_only() -> None:
    """A step that arrives in a session after it was continued adds and removes; what it carries does not count."""
    service = Service()
    journal = service.started("a", "b")
    straggler = service.cold(A)
    service.append(journal, Draft(removed=frozenset({ids_of(journal)[0]})))
    reader = continued(service, B, says("c"), NOW + 1000)
    late = service.append(straggler, says("late" * 500, removed=frozenset({ids_of(straggler)[1]})), NOW + 2000)
    assert len(late.step.contents) == 3
    reader = service.cold(B)
    assert shown(reader) == ["c", "late" * 500]
    # In the next generation it is inherited as its own change alone.
    following = continued(service, C, None, NOW + 3000, head=B)
    assert shown(following) == ["c", "late" * 500]
    own = [s for o in following.plan.openings[C] for s in o.segments if s.own]
    assert all(s.home == late.step.home for s in own)


def test_large_late_step_is_inherited_as_own_change() -> None:
    """What an opening names of a straggler is marked `own`, generation after generation."""
    service = Service()
    service.started("a")
    straggler = service.cold(A)
    continued(service, B, says("c"), NOW + 1000)
    late = service.append(straggler, says("late" * 100_000), NOW + 2000)
    for head, following in ((B, C), (C, D)):
        reader = continued(service, following, None, NOW + 3000, head=head)
        assert shown(reader) == ["a", "c", "late" * 100_000]
        (own,) = [s for o in reader.plan.openings[following] for s in o.segments if s.own]
        assert own.home == late.step.home


def test_an_opening_among_the_stragglers_adds_its_own_change() -> None:
    """Who opens a session that another has opened before adds what it had to say; without a change, nothing."""
    for draft, expected in ((says("other"), ["a", "b", "other"]), (None, ["a", "b"])):
        service = Service()
        service.started("a")
        service.created[A] = NOW
        two = service.cold(A)
        reader = continued(service, B, says("b"), NOW + 1000)
        stale = service.cold(B)
        service.open(two, B, draft, NOW + 2000)
        assert shown(service.refresh(reader)) == shown(service.cold(B)) == expected
        # Whoever has not seen the second opening continues; it is a straggler then.
        service.open(stale, C, None, NOW + 3000)
        assert shown(service.cold(C)) == expected
        assert shown(continued(service, D, None, NOW + 4000, head=C)) == expected


def test_two_openings_of_a_session_are_a_union() -> None:
    """Two writers who open one session at once lose nothing, even if one had seen less than the other."""
    service = Service()
    first = service.started("a", "b" * 70_000)
    service.append(first, says("c" * 80_000))
    less = Journal([A])
    less.plan.saw_list(A, service.listed(A)[:-1])
    for home in [listed.home for listed in service.listed(A)[:-1]]:
        step = service.get(home)
        assert step
        less.absorb(step)
    service.open(less, B, says("x"), NOW + 1000)
    warm = service.cold(B)
    service.open(first, B, says("y"), NOW + 2000)
    expected = ["a", "b" * 70_000, "c" * 80_000, "x", "y"]
    assert shown(service.cold(B)) == shown(service.refresh(warm)) == expected
    assert shown(continued(service, C, None, NOW + 3000, head=B)) == expected


def test_two_heads_are_a_union_and_are_joined_again() -> None:
    """Two sessions that continue the same one are both read, and the next covers both."""
    service = Service()
    service.started("a" * 60_000, "b" * 70_000)
    one, two = service.cold(A), service.cold(A)
    service.open(one, B, says("in B", removed=frozenset({ids_of(one)[0]})), NOW + 1000)
    service.open(two, C, says("in C", archived=frozenset({ids_of(two)[1]})), NOW + 2000)
    both = service.cold(B, C)
    assert shown(both) == ["b" * 70_000, "in B", "in C"]
    assert both.fold.is_archived(ids_of(both)[0])
    assert set(both.compaction.opening(service.created, NOW + 3000).parents) == {B, C}
    assert set(both.compaction.opening(service.created, NOW + 3000, late=60_000).parents) == {A, B, C}
    service.open(both, D, says("joined"), NOW + 3000)
    joined = service.cold(D)
    assert shown(joined) == ["b" * 70_000, "in B", "in C", "joined"]
    assert set(joined.plan.covers()) == {A, B, C}
    assert joined.fold.is_archived(ids_of(joined)[0])


@pytest.mark.parametrize("parents_first", [False, True])
def test_step_inherited_by_one_of_two_heads_is_read_once(parents_first: bool) -> None:
    """It is a segment to one and a straggler to the other: what it removes counts, what is dead in it does not."""
    service = Service()
    journal = service.started("a", "b")
    less = service.cold(A)
    late = service.append(journal, says("gone", "late" * 30_000, removed=frozenset({ids_of(journal)[1]})), NOW + 500)
    service.append(journal, Draft(removed=frozenset({(late.step.home.step, 0)})), NOW + 600)
    service.open(journal, B, None, NOW + 1000)
    service.open(service.cold(B), C, says("in C"), NOW + 2000)
    service.open(less, D, says("in D"), NOW + 3000)
    both = Journal([C, D])
    if parents_first:
        both.plan.saw_list(A, service.listed(A))
    service.refresh(both)
    assert shown(both) == ["a", "late" * 30_000, "in C", "in D"]
    service.open(both, session(9), None, NOW + 4000)
    assert shown(service.cold(session(9))) == ["a", "late" * 30_000, "in C", "in D"]


def test_opening_that_inherits_a_whole_step_counts() -> None:
    """Where one opening names only the own change of a step, and another all of it, nothing of it is lost."""
    step = Home(*place(A), new_id(NOW, Kind.CHANGE))
    carried = new_id(NOW - 5, Kind.CHANGE)
    body = {"change": {"add": [{"r": "user", "b": ["own"]}]}}
    service = Service()
    service.put(step, [envelope(body, {"carried": [{"id": carried, "add": [{"r": "user", "b": ["carried"]}]}]})])
    for own in (True, False), (False, True):
        for late in (False, True):
            service.steps.pop(B, None)
            reader = Journal([B])
            for n, flag in enumerate(own):
                opening = dataclasses.replace(NOTHING, covers={A: NOW}, segments=(Inherited(step, {}, {}, own=flag),))
                home = Home(*place(B), new_id(NOW + n, Kind.OPENING))
                service.put(home, [envelope({}, {"opening": opening_json(opening)})])
                if late:
                    service.refresh(reader)
            service.refresh(reader)
            assert shown(reader) == ["carried", "own"]
            service.created = {A: NOW, B: NOW}
            service.open(reader, C, None, NOW + 10)
            assert shown(service.cold(C)) == ["carried", "own"]


def test_what_is_old_or_mostly_dead_is_carried_whatever_its_size() -> None:
    """Sessions older than nine days are not needed any more once they are continued."""
    service = Service()
    journal = service.started(*(f"{n}" * 100_000 for n in range(6)))
    composed = service.open(journal, B, None, NOW + SAFE_AGE)
    assert composed.step.opening
    assert composed.step.opening.segments
    del service.steps[B]
    composed = service.open(journal, B, None, NOW + SAFE_AGE + 1)
    assert composed.step.opening
    assert {s.home.session for s in composed.step.opening.segments} == {B}
    del service.steps[A]
    reader = service.cold(B)
    assert shown(reader) == shown(journal)
    assert service.gets == 2
    # Most of what is in B is removed: the next session takes the rest.
    service.append(reader, Draft(removed=frozenset(ids_of(reader)[1:])))
    reader = continued(service, C, None, NOW + SAFE_AGE + 2, head=B)
    del service.steps[B]
    assert shown(service.cold(C)) == shown(reader) == shown(journal)[:1]


def test_references_follow_copied_native_blocks() -> None:
    """Images about to leave retention are copied; the messages that show them refer to the copies, the others stay."""
    service = Service()
    journal = service.started("text")
    image = ChatMessage(role="user", blocks=[ImageBlock(image=picture(), detail="low"), ImageBlock(image=picture())])
    old = service.append(journal, Draft(message_codec.encode([image, ChatMessage("beside")]))).step.home
    assert journal.compaction.old_native_blocks(service.created, NOW + SAFE_AGE) == []
    assert journal.compaction.old_native_blocks(service.created, NOW + SAFE_AGE + 1) == [(old, 0), (old, 1)]
    reader = continued(service, B, Draft(message_codec.encode([image])), NOW + SAFE_AGE)
    late = NOW + SAFE_AGE + 1
    assert reader.compaction.old_native_blocks(service.created, late) == [(old, 0), (old, 1)]
    copy = Home(*place(C), new_id(late, Kind.ATTACHMENT))
    reader.fold.relocate_blocks({(old, 0): (copy, 1), (old, 1): (copy, 0)})
    mine = [reference for message in reader.fold.alive() for reference in message.references()]
    assert mine[:2] == [(copy, 1), (copy, 0)]
    assert {home.session for home, _ in mine[2:]} == {B}
    service.open(reader, C, None, late)
    del service.steps[A]
    following = service.cold(C)
    assert [reference for message in following.fold.alive() for reference in message.references()] == mine
    assert following.native_homes(following.fold.alive())[copy] == {0, 1}


def test_a_session_is_covered_for_31_days() -> None:
    """A head always; one before it longer than the service keeps it, and for as long as it is there: none is a head."""
    service = Service()
    journal = service.started("a")
    assert journal.compaction.opening({A: NOW}, NOW + COVERED_AGE + 1).covers == {A: NOW}
    service.open(journal, B, None, NOW + 1)
    following = service.cold(B)
    late = NOW + COVERED_AGE
    assert following.compaction.opening(service.created, late).covers == service.created
    assert following.compaction.opening(service.created, late + 1).covers == {B: NOW + 1}
    assert following.compaction.opening(service.created, late + 1, [A, B]).covers == service.created


def test_steps_carried_from_earlier_session_are_not_read() -> None:
    """Once a step of the head carries an inherited segment, that segment is not fetched any more."""
    service = Service()
    service.started("a" * 3000, "b" * 4000)
    reader = continued(service, B, says("c"), NOW + 1000)
    assert shown(service.cold(B)) == ["a" * 3000, "b" * 4000, "c"]
    before = service.gets
    service.append(reader, says("d" * 9000), NOW + 2000)
    assert before > 1
    cold = service.cold(B)
    assert shown(cold) == ["a" * 3000, "b" * 4000, "c", "d" * 9000]
    assert cold.plan._taken
    assert service.gets <= 2


def test_a_segment_may_be_an_attachment_of_the_session_itself() -> None:
    """What an opening has no room for is copied into attachments before it, and is carried on from there."""
    attachment = Home(*place(B), new_id(NOW, Kind.ATTACHMENT))
    change = new_id(NOW - 9, Kind.CHANGE)
    service = Service()
    packed = {"carried": [{"id": change, "add": [{"r": "user", "b": ["old"]}, {"r": "user", "b": ["dead"]}]}]}
    service.put(attachment, [envelope({"attachment": True}, packed)])
    opening = dataclasses.replace(
        NOTHING, segments=(Inherited(attachment, {1: frozenset({1})}, {1: frozenset({0})}, own=False),)
    )
    service.put(Home(*place(B), new_id(NOW + 1, Kind.OPENING)), [envelope({}, {"opening": opening_json(opening)})])
    reader = service.cold(B)
    assert shown(reader) == ["old"]
    assert reader.fold.is_archived((change, 0))
    service.append(reader, says("n" * 900), NOW + 2)
    reader = service.cold(B)
    assert (shown(reader), service.gets) == (["old", "n" * 900], 2)
    assert reader.fold.is_archived((change, 0))


def test_closings_are_seen_and_not_read() -> None:
    """A closing step is known by its id: it is not fetched to read a conversation, and does no harm if it is."""
    service = Service()
    journal = service.started("a")
    home = Home(*place(A), new_id(NOW + 10**6, Kind.CLOSING))
    service.put(home, [envelope({"closing": {"reason": "ended"}}, {})])
    reader = service.cold(A)
    assert [listed.home for listed in reader.plan.closings] == [home]
    assert home.step not in reader.plan.read
    assert journal.plan.closings == []
    step = service.get(home)
    assert step
    reader.absorb(step)
    assert shown(reader) == ["a"]


def test_a_conversation_without_sessions_is_empty() -> None:
    """Before its first session a conversation has nothing, and generation 0 follows."""
    journal = Service().refresh(Journal([]))
    assert (
        shown(journal),
        journal.fold.state(),
        journal.fold.hidden(),
        journal.plan.generation(),
        journal.plan.covers(),
    ) == ([], {}, False, -1, {})
    assert journal.compaction.opening({}, NOW) == NOTHING
    assert Journal([A]).plan.generation() == 0


# What is archived


def put_away(service: Service, **facts: Any) -> Journal:
    """A conversation in B; of large segments in A only archived messages count, but for what else they say."""
    journal = service.started()
    service.append(journal, says("x" * 90_000, **facts))
    for n in range(12):
        service.append(journal, says(f"{n}".ljust(40_000, "x")))
    service.append(journal, Draft(archived=frozenset(ids_of(journal)[:-1])))
    return continued(service, B, says("new"), NOW + 1000)


def is_left_out(service: Service, head: str = B) -> bool:
    """Whether somebody who reads what is active reads less than all; all the same, he knows that as others do."""
    whole = service.cold(head)
    gets = service.gets
    window = service.window(head)
    assert active(window) == active(whole)
    assert window.plan.is_complete() is (service.gets == gets)
    left_out = not window.plan.is_complete()
    assert knows(service.refresh(window)) == knows(whole)
    return left_out


def test_who_reads_what_is_active_does_not_get_what_is_archived() -> None:
    """Who wants the archived messages afterwards gets exactly what was left out."""
    service = Service()
    put_away(service)
    whole = service.cold(B)
    gets = service.gets
    window = service.window(B)
    assert (shown(window)[-1], len(shown(whole))) == ("new", 14)
    assert len(shown(window)) < 4
    before = service.gets
    assert knows(service.refresh(window)) == knows(whole)
    assert before + service.gets == gets
    assert is_left_out(service)


def test_what_is_done_to_messages_that_were_not_read_counts() -> None:
    """Who has read what is active writes on; what others remove of the rest stays removed, in the next session too."""
    service = Service()
    whole = put_away(service)
    window = service.window(B)
    gone = ids_of(whole)[0]
    assert gone[0] not in window.fold.known
    service.append(whole, says("more", removed=frozenset({gone})), NOW + 1500)
    service.append(service.refresh(window, whole=False), says("and more" * 9000), NOW + 1600)
    for reader in (service.cold(B), service.refresh(window), continued(service, C, None, NOW + 2000, head=B)):
        assert gone not in ids_of(reader)
        assert shown(reader)[-3:] == ["new", "more", "and more" * 9000]
    assert is_left_out(service, C)


def test_who_has_not_read_what_is_archived_names_it_all_the_same() -> None:
    """So that a cold reader of a step he writes gets it in the second round."""
    service = Service()
    put_away(service)
    window = service.window(B)
    service.append(window, says("more"), NOW + 1500)
    service.cold(B)
    assert service.rounds <= 2


def test_a_change_of_which_a_message_is_active_is_read() -> None:
    """However much else of it is archived."""
    service = Service()
    journal = service.started()
    service.append(journal, says("x" * 90_000, "active"))
    service.append(journal, Draft(archived=frozenset(ids_of(journal)[:1])))
    continued(service, B, None, NOW + 1000)
    assert [message for message, _, _ in active(service.window(B))[0]] == ids_of(journal)[1:]


@pytest.mark.parametrize(
    "facts", [{"state": {"name": ["value"]}}, {"state": {"name": []}}, {"marks": {ENDED: Mark(on=True)}}]
)
def test_what_says_more_than_archived_messages_is_read(facts: dict[str, Any]) -> None:
    """Named state, its deletion and a hiding count, whatever becomes of the messages beside them."""
    service = Service()
    put_away(service, **facts)
    first = service.cold(B).fold.changes()[0]
    assert first.id in service.window(B).fold.known
    assert is_left_out(service)


def test_what_is_damaged_is_read() -> None:
    """The placeholder of what a step carried, and cannot be read, was not archived with the step's own messages."""
    service = Service()
    journal = service.started()
    own = {"add": [{"r": "user", "b": ["x" * 90_000]}]}
    torn = Home(*place(A), new_id(NOW + 10, Kind.CHANGE))
    service.put(torn, [envelope({"change": own, "zip": "torn"}, {})])
    service.refresh(journal)
    service.append(journal, Draft(archived=frozenset(ids_of(journal))))
    continued(service, B, None, NOW + 1000)
    assert torn.step in service.window(B).plan.read
    assert len(active(service.window(B))[0]) == 1
    assert is_left_out(service)


def test_a_step_that_the_opening_has_not_seen_has_all_be_read() -> None:
    """It may tell again of a message that only who has read all knows to be archived."""
    service = Service()
    journal = service.started()
    late = service.append(journal, says("y" * 20_000)).step.home.step
    service.append(journal, says("x" * 50_000))
    service.append(journal, Draft(archived=frozenset(ids_of(journal))))
    unlisted = service.steps[A].pop(late)
    continued(service, B, None, NOW + 1000)
    assert is_left_out(service)
    service.steps[A][late] = unlisted
    assert not is_left_out(service)


def test_a_change_that_was_sent_again_has_all_be_read() -> None:
    """The same where the open session tells again of a message that was first sent to one before."""
    service = Service()
    put_away(service)
    window = service.window(B)
    before = active(window)
    service.put(Home(*place(B), new_id(NOW + 1900, Kind.CHANGE)), tells_again(service), NOW + 1900)
    assert not is_left_out(service)
    assert active(service.refresh(window, whole=False)) == before


def test_what_another_tool_writes_has_all_be_read() -> None:
    """Nothing but its id could tell that it is not the copy of a step that was archived."""
    service = Service()
    journal = service.started()
    foreign = "11111111-2222-4333-8444-555555555555"
    service.put(Home(*place(A), foreign), [{"text": "y" * 20_000}])
    service.refresh(journal)
    service.append(journal, says("x" * 50_000))
    service.append(journal, Draft(archived=frozenset(ids_of(journal))))
    continued(service, B, None, NOW + 1000)
    assert is_left_out(service)
    service.put(Home(*place(B), foreign), [{"text": "y" * 20_000}])
    assert not is_left_out(service)


def tells_again(service: Service) -> list[ContentBlock]:
    """The payload of a step that tells of an archived change that is not read by who reads what is active."""
    known = service.window(B).fold.known
    message = next(m for m in service.cold(B).fold.alive() if m.id[0] not in known)
    return [envelope({"change": {"id": message.id[0], "add": [message.record]}}, {})]


def test_two_openings_have_all_be_read() -> None:
    """What one opening found to be archived, another may not have seen."""
    service = Service()
    put_away(service)
    service.open(service.cold(A), B, says("other"), NOW + 2000)
    assert not is_left_out(service)
    service.open(service.cold(A), C, says("third"), NOW + 2000)
    assert knows(service.window(B, C)) == knows(service.cold(B, C))


# What is fetched for images


def test_only_images_in_sessions_of_ours_are_fetched() -> None:
    """A forged reference to another conversation's session is not followed; one to a session before the head is."""
    service = Service()
    journal = service.started()
    image = ChatMessage(role="user", blocks=[ImageBlock(image=picture())])
    composed = service.append(journal, Draft(message_codec.encode([image, image])))
    assert journal.native_homes(journal.fold.alive()) == {composed.step.home: {0, 1}}
    reader = continued(service, B, None, NOW + 1000)
    assert reader.native_homes(reader.fold.alive()) == {composed.step.home: {0, 1}}
    forged = {"add": [{"r": "user", "b": [{"n": 0}]}], "homes": [[*place(D), composed.step.home.step]]}
    service.put(Home(*place(B), new_id(NOW + 2000, Kind.CHANGE)), [envelope({"change": forged}, {})])
    reader = service.cold(B)
    assert len(reader.fold.alive()) == 3
    assert reader.native_homes(reader.fold.alive()) == {composed.step.home: {0, 1}}


def test_a_named_step_of_another_session_is_not_fetched() -> None:
    """Steps of this session are found by its list: what is named and not listed is not asked for."""
    service = Service()
    journal = service.started("a")
    secret = Home(*place(D), new_id(NOW, Kind.CHANGE))
    service.put(secret, [envelope({"change": {"add": [{"r": "user", "b": ["secret"]}]}}, {})])
    forged = Home(*place(A), new_id(journal.clock.ms + 1, Kind.CHANGE))
    service.put(forged, [envelope({"change": {"by": "x"}}, {"named": [list(secret)]})])
    assert shown(service.cold(A)) == ["a"]


def test_the_weight_of_a_draft_counts_all_it_says() -> None:
    """Messages in bytes of UTF-8, and state, removals and the rest as they are written."""
    assert Draft().size() == len("{}")
    assert says("é" * 1000).size() > 2000
    assert Draft(state={"x": ["y" * 1000]}).size() > 1000
    image = ChatMessage(role="user", blocks=[ImageBlock(image=picture())])
    assert Draft(message_codec.encode([image])).size() < OVERHEAD


def sources(journal: Journal) -> Iterable[str]:
    """Every change that is in some segment."""
    return (change for segment in journal.compaction.segments() for change in segment.changes)


def test_every_change_is_in_one_segment() -> None:
    """Segments are disjoint and hold all that is known, found anew or kept up as steps are stored."""
    service = Service()
    journal = service.started(*(f"{n}" * (n % 7 + 1) * 50 for n in range(40)))
    kept = list(journal.compaction.segments())
    assert sorted(sources(journal)) == sorted(journal.fold.known)
    cold = service.cold(A)
    assert sorted(sources(cold)) == sorted(cold.fold.known) == sorted(journal.fold.known)
    assert {s.home for s in cold.compaction.segments()} == {s.home for s in kept}
