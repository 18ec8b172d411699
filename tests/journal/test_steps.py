"""What a step means: what was written is read again, and whatever else is stored never stops a conversation."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import random
import re
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock

from llama_index_bedrock_sessions._journal import decoding, message_codec
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.draft import Composed, Draft, Placed
from llama_index_bedrock_sessions._journal.encoding import envelope, opening_json
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.ids import STEP_ID, YEAR_2100, Home, Kind, StepId, new_id, parse_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import (
    ENDED,
    HIDDEN,
    MARK,
    Change,
    Inherited,
    Mark,
    Message,
    Opening,
    Step,
)
from llama_index_bedrock_sessions._journal.records import text_value
from llama_index_bedrock_sessions._journal.values import dump, to_json
from llama_index_bedrock_sessions.errors import NewerFormatError
from tests import golden
from tests.support.strategies import BLOCKS, messages_of, picture, plain_values, unicode_texts
from tests.support.strategies import messages as any_messages

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llama_index_bedrock_sessions._journal.message_codec import ContentBlock

SESSION, INVOCATION = "11111111-1111-4111-8111-111111111111", "22222222-2222-5222-8222-222222222222"
PLACE = (SESSION, INVOCATION)
OTHER = ("33333333-3333-4333-8333-333333333333", "44444444-4444-5444-8444-444444444444")
NOW = 1_767_323_045_678
CHANGE = "019b7c44-ff00-8000-8000-00000000000a"
ids = st.uuids(version=4).map(str)
integers = st.integers(0, 1000)
message_ids = st.frozensets(st.tuples(ids, integers), max_size=4)
json_values = plain_values.map(to_json)
said = st.dictionaries(st.sampled_from(["summary", "kind", "by", "reason"]), unicode_texts, max_size=2)
drafts = st.builds(
    Draft,
    messages=st.lists(any_messages, max_size=3).map(message_codec.encode),
    removed=message_ids,
    archived=message_ids,
    is_set=st.booleans(),
    state=st.dictionaries(unicode_texts, st.lists(json_values, max_size=1), max_size=3),
    marks=st.dictionaries(st.sampled_from([HIDDEN, ENDED]), st.builds(Mark, st.booleans(), said), max_size=2),
    invocations=st.dictionaries(ids, unicode_texts, max_size=2),
    origin=json_values.filter(bool) | st.none(),
    rewind=json_values.filter(bool) | st.none(),
    by=st.none() | unicode_texts,
)


def home(ms: int = NOW, kind: Kind = Kind.CHANGE, place: tuple[str, str] = PLACE) -> Home:
    """The place of a new step."""
    return Home(*place, new_id(ms, kind))


def again(payload: Sequence[ContentBlock]) -> list[ContentBlock]:
    """What a payload is after it was sent as JSON and read by botocore."""
    parsed: list[ContentBlock] = json.loads(json.dumps(payload, default=lambda raw: {"raw": raw.hex()}))
    for block in parsed:
        if "image" in block:
            block["image"]["source"]["bytes"] = bytes.fromhex(block["image"]["source"]["bytes"]["raw"])
    return parsed


def reread(composed: Composed) -> Step:
    """What another process reads of a step."""
    return read_step(composed.step.home, again(composed.payload), 0)


def decoded(message: Message, native_blocks: Mapping[Home, Sequence[ContentBlock]]) -> ChatMessage:
    """The message that a record and the steps it refers to make."""

    def resolve(item: Any) -> ContentBlock | None:
        n, h = (item, 0) if isinstance(item, int) else (item["n"], item.get("h", 0))
        usable = type(n) is int and type(h) is int and 0 <= h < len(message.homes) and n >= 0
        payload = native_blocks.get(message.homes[h], ()) if usable else ()
        return payload[n] if usable and n < len(payload) else None

    return message_codec.decode(message.record, resolve)


def same(one: Sequence[ChatMessage], other: Sequence[ChatMessage]) -> bool:
    """Whether messages are equal, NaN to NaN."""
    return message_codec.encode(one) == message_codec.encode([message_codec.normal(m) for m in other])


def only(step: Step) -> Change:
    """The one change of a step."""
    ((step_id, change),) = step.contents
    assert step_id == step.home.step
    assert change is not None
    return change


def texts(step: Step) -> list[str | None]:
    """The texts of the messages of a step's own change."""
    change = step.contents[0][1]
    assert change is not None
    return [decoded(m, {}).content for _, m in sorted(change.messages.items())]


def step_with(body: Mapping[str, Any], packed: Mapping[str, Any] | None = None, kind: Kind = Kind.CHANGE) -> Step:
    """What a step with such an envelope is read as."""
    return read_step(home(kind=kind), [envelope(body, packed or {})], 0)


# Ids


@given(ms=st.integers(0, YEAR_2100), kind=st.sampled_from(Kind), hint=st.integers(0, 5000))
def test_an_id_says_when_what_and_how_much(ms: int, kind: Kind, hint: int) -> None:
    """An id has the form the service takes, is a UUIDv8, and holds time, kind, and a hint of at most 1,023."""
    step = new_id(ms, kind, hint)
    assert STEP_ID.fullmatch(step)
    assert (step[14], step[19] in "89ab") == ("8", True)
    assert parse_id(step) == StepId(ms, kind, min(hint, 1023))


@given(times=st.lists(st.integers(0, YEAR_2100), min_size=2, max_size=2, unique=True), kinds=st.data())
def test_ids_sort_by_time(times: list[int], kinds: st.DataObject) -> None:
    """Compared as text, ids are in the order of their times, whatever else they say."""
    made = [new_id(ms, kinds.draw(st.sampled_from(Kind)), kinds.draw(st.integers(0, 1023))) for ms in sorted(times)]
    assert made == sorted(made)


def test_ids_of_one_moment_differ() -> None:
    """Two ids of the same millisecond are never the same."""
    assert len({new_id(NOW, Kind.CHANGE) for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "step",
    [
        "00000000-0000-4000-8000-000000000000",
        "019b7c44-ff00-7000-8000-00000000000a",
        "019b7c44-ff00-8000-c000-00000000000a",
        "019b7c44-ff00-8000-0000-00000000000a",
        pytest.param(new_id(YEAR_2100 + 1, Kind.CHANGE), id="of the far future"),
        pytest.param(new_id((1 << 48) - 1, Kind.CHANGE), id="of the last moment"),
        CHANGE.upper(),
        CHANGE + "0",
        CHANGE[:-1],
        CHANGE.replace("-", "0"),
        CHANGE[:-2] + "0 ",
        CHANGE[:-1] + "\u0661",
        CHANGE[:-1] + "g",
        CHANGE[:-1] + "\n",
        CHANGE[:-3] + "0_0",
        "",
    ],
)
def test_an_id_of_another_form_is_not_ours(step: str) -> None:
    """Other versions and variants, times after 2100, and what is malformed is not ours."""
    assert parse_id(step) is None


# What was written is read


@settings(max_examples=50)
@given(draft=drafts, moved=st.booleans())
def test_what_is_written_is_read(draft: Draft, moved: bool) -> None:
    """A step says to its reader what it says to its writer: messages of all kinds, and every kind of change."""
    draft.id = CHANGE if moved else None
    composed = Journal([SESSION]).compaction.compose(PLACE, draft, Placed(), NOW)
    step = reread(composed)
    assert step == composed.step
    change = only(step) if step.contents[0][1] else None
    if change is None:
        assert composed.payload == [envelope({}, {})]
        return
    assert (change.id == CHANGE) is moved
    assert change.written == PLACE
    journal = Journal([SESSION])
    journal.plan.saw_list(SESSION, [Listed(step.home, 0)])
    journal.absorb(step)
    assert journal.fold.state() == {name: value[0] for name, value in draft.state.items() if value}
    assert journal.fold.hidden() is (HIDDEN in draft.marks and draft.marks[HIDDEN].on)
    ended = ENDED in draft.marks and draft.marks[ENDED].on
    assert journal.fold.ended() == ((change.time, draft.marks[ENDED].said) if ended else None)


@settings(max_examples=40)
@given(messages=st.lists(any_messages, min_size=1, max_size=4))
def test_messages_come_back_as_they_were(messages: list[ChatMessage]) -> None:
    """Messages of every block type are what went in, up to the normal form of `message_codec.py`."""
    composed = Journal([SESSION]).compaction.compose(PLACE, Draft(message_codec.encode(messages)), Placed(), NOW)
    change = only(reread(composed))
    native_blocks = {composed.step.home: composed.payload}
    assert same([decoded(m, native_blocks) for m in change.messages.values()], messages)


@settings(max_examples=40)
@given(messages=st.lists(any_messages, min_size=1, max_size=4), others=st.lists(any_messages, min_size=1, max_size=2))
def test_messages_carried_by_a_later_step_come_back_as_they_were(
    messages: list[ChatMessage], others: list[ChatMessage]
) -> None:
    """Carried twice, a message is what it was: texts are in place, images are fetched from where they were written."""
    journal = Journal([SESSION])
    native_blocks: dict[Home, list[ContentBlock]] = {}
    steps: list[Step] = []
    for n, added in enumerate([messages, others, [ChatMessage("a"), *others], [ChatMessage("b" * 100_000)]]):
        composed = journal.compaction.compose(PLACE, Draft(message_codec.encode(added)), Placed(), NOW + n)
        journal.stored(composed)
        native_blocks[composed.step.home] = composed.payload
        steps.append(reread(composed))
    carried = dict(steps[3].contents)
    assert list(carried) == [steps[3].home.step, *sorted(s.home.step for s in steps[:3])]
    change = carried[steps[0].home.step]
    assert change is not None
    assert same([decoded(m, native_blocks) for m in change.messages.values()], messages)
    texts_only = {h: [{} if "text" in b else b for b in payload] for h, payload in native_blocks.items()}
    assert same([decoded(m, texts_only) for m in change.messages.values()], messages)


@settings(max_examples=40)
@given(messages=st.lists(messages_of(BLOCKS["text"] | BLOCKS["image"]), min_size=1, max_size=4), cuts=st.data())
def test_blocks_in_attachments_are_found(messages: list[ChatMessage], cuts: st.DataObject) -> None:
    """Native blocks may be in steps before, which the change names; it is the same to who reads it or carries it."""
    encoded = message_codec.encode(messages)
    native_blocks = encoded.blocks
    first = cuts.draw(st.integers(0, len(native_blocks)))
    second = cuts.draw(st.integers(first, len(native_blocks)))
    attachments = [home(kind=Kind.ATTACHMENT), home(kind=Kind.ATTACHMENT)]
    place = [(1, i) for i in range(first)] + [(2, i) for i in range(second - first)]
    place += [(0, i) for i in range(len(native_blocks) - second)]
    placed = Placed((None, *attachments), tuple(place), tuple(native_blocks[second:]))
    journal = Journal([SESSION])
    composed = journal.compaction.compose(PLACE, Draft(encoded), placed, NOW)
    journal.stored(composed)
    later = journal.compaction.compose(
        PLACE, Draft(message_codec.encode([ChatMessage("later " * 2000)])), Placed(), NOW
    )
    where: dict[Home, Sequence[ContentBlock]] = {
        attachments[0]: native_blocks[:first],
        attachments[1]: native_blocks[first:second],
        composed.step.home: composed.payload,
    }
    assert reread(composed) == composed.step
    for change in (only(reread(composed)), reread(later).contents[1][1]):
        assert change is not None
        assert same([decoded(m, where) for m in change.messages.values()], messages)


openings = st.builds(
    Opening,
    generation=integers,
    covers=st.dictionaries(ids, integers, max_size=3),
    parents=st.dictionaries(ids, st.frozensets(ids, max_size=3), max_size=3),
    removed=message_ids,
    segments=st.lists(
        st.builds(
            Inherited,
            home=st.builds(Home, ids, ids, ids),
            dead=st.dictionaries(integers, st.frozensets(integers, min_size=1, max_size=3), max_size=3),
            archived=st.dictionaries(integers, st.frozensets(integers, min_size=1, max_size=3), max_size=3),
            own=st.booleans(),
            archive_only=st.booleans(),
        ),
        max_size=3,
    ).map(tuple),
    last_set=st.none() | ids,
)


@settings(max_examples=50)
@given(opening=openings, named=st.lists(st.builds(Home, ids, ids, ids), max_size=3), taken=st.frozensets(ids))
def test_what_an_opening_says_is_read(opening: Opening, named: list[Home], taken: frozenset[str]) -> None:
    """An opening is read as it was written, as are the steps that are named and taken."""
    packed = {"opening": opening_json(opening), "named": [list(h) for h in named], "taken": sorted(taken)}
    step = step_with({}, packed, Kind.OPENING)
    assert (step.opening, step.named, step.taken) == (opening, tuple(named), taken)
    assert step.contents == ((step.home.step, None),)
    assert step_with({}, packed).opening is None


@pytest.mark.parametrize("said", [{"reason": "continued"}, {"reason": "deleted"}, []])
def test_a_closing_step_changes_nothing(said: Any) -> None:
    """It is known by its id; what it contains is for people who look at the session."""
    step = step_with({"closing": said}, kind=Kind.CLOSING)
    assert step.contents == ((step.home.step, None),)


def test_native_blocks_come_first_and_the_envelope_last() -> None:
    """Anyone can read a step: texts and images are native, and our envelope is one text after them."""
    image = ImageBlock(image=picture())
    message = ChatMessage(role="assistant", blocks=[TextBlock(text="see"), image, TextBlock(text="this")])
    payload = (
        Journal([SESSION]).compaction.compose(PLACE, Draft(message_codec.encode([message])), Placed(), NOW).payload
    )
    assert payload[:3] == [
        {"text": "see"},
        {"image": {"format": "png", "source": {"bytes": picture()}}},
        {"text": "this"},
    ]
    assert [*json.loads(payload[3]["text"])] == [MARK, "change"]
    assert payload[3]["text"].startswith('{"llama_index_bedrock_sessions":1,')
    assert len(payload) == 4


@pytest.mark.parametrize("content", ["价格是多少", "🙂", "Größe", "\ud83d", "a\udfffb", "\0", "\u2028", '"\\'])
def test_an_envelope_can_be_sent_whatever_it_holds(content: str) -> None:
    """Chinese and emoji are written as they are, lone surrogates escaped: every envelope is valid UTF-8."""
    journal = Journal([SESSION])
    message = ChatMessage(role="user", content=content, additional_kwargs={"name": content})
    for n in range(2):
        composed = journal.compaction.compose(
            PLACE, Draft(message_codec.encode([message]), by=content), Placed(), NOW + n
        )
        journal.stored(composed)
        composed.payload[-1]["text"].encode()
        step = reread(composed)
        for _, change in step.contents:
            assert change is not None
            assert change.by == content
            assert same([decoded(change.messages[0], {step.home: composed.payload})], [message])
        escaped = "\\u" in composed.payload[-1]["text"]
        assert escaped is (content in {"\ud83d", "a\udfffb", "\0"})


def test_a_pair_of_copies_of_a_change_is_their_union() -> None:
    """Copies of a change may each lack what was removed; together they say all of it, in either order."""
    one = only(step_with({"change": {"id": CHANGE, "add": [{"r": "user", "b": ["a"]}], "state": {"x": [1]}}}))
    body = {
        "id": CHANGE,
        "add": [{"r": "user", "b": ["a"]}, {"r": "user", "b": ["b"]}],
        "at": [0, 3],
        "marks": {"hidden": [True], "ended": [False, {"by": "me"}]},
        "rewind": {"before": CHANGE},
        "origin": 1,
        "by": "me",
    }
    other = only(step_with({"change": {**body, "set": True, "remove": {CHANGE: [0]}, "archive": {CHANGE: [1]}}}))
    assert one.merged(other) == dataclasses.replace(other.merged(one), written=one.written)
    both = one.merged(other)
    assert [*both.messages] == [0, 3]
    assert (both.state, both.origin, both.by, both.is_set) == ({"x": [1]}, 1, "me", True)
    assert both.marks == {HIDDEN: Mark(on=True), ENDED: Mark(on=False, said={"by": "me"})}
    assert both.rewind == {"before": CHANGE}
    assert (both.removed, both.archived) == (frozenset({(CHANGE, 0)}), frozenset({(CHANGE, 1)}))


def test_newer_step_wins_for_two_copies_of_a_state() -> None:
    """Where a copy refers to may be deleted by who made the newer one; in a journal, too, whichever is read first."""
    before, after = ([text_value([(home(ms), 0)])] for ms in (NOW, NOW + 1))
    one, other = (only(step_with({"change": {"id": CHANGE, "state": {"x": x, "y": [1]}}})) for x in (before, after))
    assert one.merged(other).state == other.merged(one).state == {"x": after, "y": [1]}
    for copies in ((before, after), (after, before)):
        journal = Journal([SESSION])
        for x in copies:
            journal.absorb(step_with({"change": {"id": CHANGE, "state": {"x": x}}}))
        assert journal.fold.state() == {"x": after[0]}


def test_a_message_keeps_its_position_where_others_are_left_out() -> None:
    """Removed messages are not carried, what removed them is, and the others keep their ids."""
    journal = Journal([SESSION])
    first = journal.compaction.compose(
        PLACE, Draft(message_codec.encode([ChatMessage(c) for c in "abc"])), Placed(), NOW
    )
    journal.stored(first)
    gone = (first.step.home.step, 1)
    journal.stored(journal.compaction.compose(PLACE, Draft(removed=frozenset({gone})), Placed(), NOW))
    step = reread(
        journal.compaction.compose(PLACE, Draft(message_codec.encode([ChatMessage("d" * 900)])), Placed(), NOW)
    )
    changes = {c.id: c for _, c in step.contents[1:] if c}
    assert [*changes[gone[0]].messages] == [0, 2]
    assert [c.removed for c in changes.values()] == [frozenset(), frozenset({gone})]


def test_of_two_copies_the_one_that_can_be_read_counts() -> None:
    """A placeholder gives way to a copy of the same change from elsewhere, and never replaces one."""
    damaged = dataclasses.replace(only(step_with({"change": 7})), id=CHANGE, time=1)
    whole = only(step_with({"change": {"id": CHANGE, "remove": {"x": [0]}}}))
    assert damaged.damaged
    assert damaged.merged(whole) == whole.merged(damaged) == whole


# Steps of other tools


def test_a_step_of_another_tool_is_a_message() -> None:
    """Text and images are the blocks of one user message, ordered by its invocation step time."""
    there = Home(*PLACE, "00000000-0000-4000-8000-000000000000")
    payload: list[ContentBlock] = [
        {"text": "hi"},
        {"image": {"format": "png", "source": {"bytes": picture()}}},
        {"video": {}},
    ]
    change = only(read_step(there, payload, 123))
    assert (change.id, change.time, change.foreign, change.written) == (there.step, 123, True, PLACE)
    message = decoded(change.messages[0], {there: payload})
    assert message.role == "user"
    assert [b.block_type for b in message.blocks] == ["text", "image", "text"]


@pytest.mark.parametrize("time", [-1, -62_135_596_800_000, 0, NOW, 253_402_300_799_999])
def test_a_foreign_step_is_carried_with_its_time(time: int) -> None:
    """What another tool wrote keeps its place in the order when a step of ours carries it, even before 1970."""
    there = Home(*PLACE, "00000000-0000-4000-8000-000000000000")
    journal = Journal([SESSION])
    journal.plan.saw_list(SESSION, [Listed(there, time)])
    journal.absorb(read_step(there, [{"text": "hi"}], time))
    assert journal.clock.ms == 0
    step = reread(
        journal.compaction.compose(PLACE, Draft(message_codec.encode([ChatMessage("x" * 2000)])), Placed(), NOW)
    )
    change = step.contents[1][1]
    assert change is not None
    assert (change.id, change.time, change.foreign) == (there.step, time, True)
    assert change == journal.fold.known[there.step]


@pytest.mark.parametrize(
    ("step", "payload"),
    [
        ("00000000-0000-4000-8000-000000000000", [envelope({"change": {"add": []}}, {})]),
        (CHANGE, [envelope({"change": {"add": []}}, {}), {"text": "after"}]),
        (CHANGE, [{"text": f'{{"{MARK}x":1}}'}]),
        (CHANGE, [{"text": " " + envelope({"change": {}}, {})["text"]}]),
        (CHANGE, [{"image": {"format": "png", "source": {"bytes": picture()}}}]),
        (CHANGE, []),
        (CHANGE, ["nonsense"]),
    ],
)
def test_an_envelope_counts_only_where_it_must_be(step: str, payload: list[Any]) -> None:
    """Only the last text of a step whose id is ours is an envelope; all else is somebody's message."""
    change = only(read_step(Home(*PLACE, step), payload, 5))
    message = decoded(change.messages[0], {Home(*PLACE, step): payload})
    assert len(message.blocks) == len(payload)
    assert change.foreign is (step != CHANGE)
    assert not change.damaged


# Steps of a newer release


def test_a_newer_format_is_refused_by_name() -> None:
    """The error says which step of which session it is, and which release reads it."""
    there = home()
    payload = [{"text": "native"}, {"text": dump({MARK: 2, "release": "3.1.0", "new": []})}]
    with pytest.raises(NewerFormatError, match=r"llama-index-bedrock-sessions 3\.1\.0 or later") as raised:
        read_step(there, payload, 0)
    assert there.step in str(raised.value)
    assert SESSION in str(raised.value)


@pytest.mark.parametrize("release", [None, 3, "", "x" * 41, "1\nforged log line", "\ud800"])
def test_newer_format_without_release_is_refused(release: Any) -> None:
    """Whatever stands where the release should, it is not repeated in the error."""
    with pytest.raises(NewerFormatError, match=r"Upgrade to a newer release, or") as raised:
        read_step(home(), [{"text": dump({MARK: 10**50, "release": release})}], 0)
    assert "\n" not in str(raised.value)


def test_a_newer_format_can_be_read_around(caplog: pytest.LogCaptureFixture) -> None:
    """With `skip_newer` the step is one visible placeholder that names the release, and nothing is carried over it."""
    step = read_step(home(), [{"text": dump({MARK: 2, "release": "3.1.0"})}], 0, skip_newer=True)
    assert step.newer
    assert texts(step) == ["[unreadable message: a step of format 2, which llama-index-bedrock-sessions 3.1.0 reads]"]
    assert "3.1.0" in caplog.text
    journal = Journal([SESSION])
    for n in range(3):
        journal.stored(
            journal.compaction.compose(PLACE, Draft(message_codec.encode([ChatMessage("hi")])), Placed(), NOW + n)
        )
    assert (
        len(
            journal.compaction.compose(
                PLACE, Draft(message_codec.encode([ChatMessage("hi")])), Placed(), NOW
            ).step.contents
        )
        > 1
    )
    journal.absorb(step)
    assert (
        len(
            journal.compaction.compose(
                PLACE, Draft(message_codec.encode([ChatMessage("hi")])), Placed(), NOW
            ).step.contents
        )
        == 1
    )


def test_unknown_members_are_ignored() -> None:
    """A member that a later release adds without need of a new version changes nothing."""
    record = {"r": "user", "b": ["hi"], "new": 1}
    body = {"change": {"add": [record], "new": {}}, "new": [], "release": "9"}
    packed = {"carried": [{"id": CHANGE, "add": [record], "new": 1}], "new": 1, "places": []}
    step = step_with(body, packed)
    assert [change and [m.record for m in change.messages.values()] for _, change in step.contents] == [[record]] * 2


# Damage


def zipped(value: Any) -> str:
    """What `zip` holds for a JSON value."""
    return base64.b64encode(zlib.compress(json.dumps(value).encode())).decode()


def zeros(size: int) -> str:
    """A zip that unpacks to many zeros, made of one compressed megabyte again and again."""
    compress = zlib.compressobj(9)
    megabyte = bytes(1 << 20)
    head = compress.compress(megabyte) + compress.flush(zlib.Z_FULL_FLUSH)
    again = compress.compress(megabyte) + compress.flush(zlib.Z_FULL_FLUSH)
    return base64.b64encode(head + again * (size >> 20)).decode()


DAMAGED: dict[str, str] = {
    "no JSON": "x",
    "a list": ":[]",
    "cut short": ':1,"change":{"add":[{"r":"user"',
    "no version": ':null,"change":{}}',
    "a version that is true": ':true,"change":{}}',
    "a version with a fraction": ':1.0,"change":{}}',
    "a negative version": ":-1}",
    "a version of 5,000 digits": ":" + "9" * 5000 + "}",
    "NaN": ':1,"change":{"state":{"a":[NaN]}}}',
    "infinity": ':1,"change":{"state":{"a":[-Infinity]}}}',
    "a number beyond floats": ':1,"change":{"state":{"a":[1e999]}}}',
    "an integer of 5,000 digits": ':1,"change":{"state":{"a":[' + "9" * 5000 + "]}}}",
    "nesting that Python cannot parse": ':1,"change":' + "[" * 100_000,
    "nesting that Python can parse": ':1,"change":{"state":{"a":[' + "[" * 600 + "]" * 600 + "]}}}",
    "version 0": ':0,"change":{}}',
    "change": ':1,"change":[]}',
    "marks": ':1,"change":{"marks":[]}}',
    "a mark": ':1,"change":{"marks":{"ended":true}}}',
    "a mark that is neither on nor off": ':1,"change":{"marks":{"ended":[1]}}}',
    "a mark that says too much": ':1,"change":{"marks":{"ended":[true,{},{}]}}}',
    "what a mark says": ':1,"change":{"marks":{"ended":[true,{"by":1}]}}}',
    "add": ':1,"change":{"add":{}}}',
    "at": ':1,"change":{"add":[{}],"at":[]}}',
    "at that is negative": ':1,"change":{"add":[{}],"at":[-1]}}',
    "id that is none": ':1,"change":{"id":7}}',
    "id that is not ours": ':1,"change":{"id":"00000000-0000-4000-8000-000000000000"}}',
    "homes": ':1,"change":{"homes":[1]}}',
    "homes without a step": ':1,"change":{"homes":[["a","b"]]}}',
    "homes that are no ids": ':1,"change":{"homes":[["a","b","\ud800"]]}}',
    "remove": ':1,"change":{"remove":[]}}',
    "archive": ':1,"change":{"archive":{"a":[true]}}}',
    "state": ':1,"change":{"state":{"a":1}}}',
    "invocations": ':1,"change":{"invocations":{"a":1}}}',
    "by": ':1,"change":{"by":null}}',
    "zip that is none": ':1,"zip":7}',
    "zip that is no base64": ':1,"zip":"!"}',
    "zip that is not ASCII": ':1,"zip":"ä"}',
    "zip that is not compressed": ':1,"zip":"aGVsbG8="}',
    "zip that is cut short": f':1,"zip":"{base64.b64encode(zlib.compress(b"{}")[:-5]).decode()}"}}',
    "zip without JSON": f':1,"zip":"{base64.b64encode(zlib.compress(b"{")).decode()}"}}',
    "zip that is not UTF-8": f':1,"zip":"{base64.b64encode(zlib.compress(bytes([255, 34]))).decode()}"}}',
    "zip of a list": f':1,"zip":"{zipped([])}"}}',
    "zip nested without end": f':1,"zip":"{base64.b64encode(zlib.compress(b"[" * 10**6)).decode()}"}}',
    "carried": f':1,"zip":"{zipped({"carried": {}})}"}}',
    "places": f':1,"zip":"{zipped({"places": [[SESSION]]})}"}}',
    "places that are no ids": f':1,"zip":"{zipped({"places": [[SESSION, ""]]})}"}}',
    "named": f':1,"zip":"{zipped({"named": [[SESSION]]})}"}}',
    "taken": f':1,"zip":"{zipped({"taken": [1]})}"}}',
    "opening": f':1,"zip":"{zipped({"opening": 7})}"}}',
    "opening with parents that are no ids": f':1,"zip":"{zipped({"opening": {"parents": {"": []}}})}"}}',
    "opening with covers that are no ids": f':1,"zip":"{zipped({"opening": {"covers": {"x": 1}}})}"}}',
    "opening with positions that are none": f':1,"zip":"{zipped({"opening": {"segments": [{"dead": {"x": []}}]}})}"}}',
    "opening with homeless segments": f':1,"zip":"{zipped({"opening": {"segments": [{}]}})}"}}',
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_step_is_one_visible_placeholder(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with an envelope, its step is one message that says so, and is logged without its content."""
    text = '{"' + MARK + '"' + DAMAGED[damage]
    step = read_step(home(kind=Kind.OPENING), [{"text": "native"}, {"text": text}], 0)
    change = only(step)
    assert change.damaged
    assert texts(step) == ["[unreadable message: a damaged step]"]
    (record,) = caplog.records
    assert step.home.step in record.getMessage()
    assert "native" not in record.getMessage()
    absorbed(step)


def test_a_zip_bomb_is_not_unpacked() -> None:
    """However much a zip would unpack to, memory is bounded, and the step is damaged."""
    bomb = zeros(1 << 32)
    payload = [{"text": '{"' + MARK + '":1,"zip":"' + bomb + '"}'}]
    tracemalloc.start()
    step = read_step(home(), payload, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert only(step).damaged
    assert peak < 4 * decoding.DECOMPRESSED


def test_a_damaged_opening_opens_its_session_all_the_same() -> None:
    """A session whose opening cannot be read is open, and continues nothing: those before it are read as heads."""
    for payload in ([{"text": f'{{"{MARK}":1,"zip":7}}'}], [{"text": "overwritten"}], [envelope({}, {})], []):
        step = read_step(home(kind=Kind.OPENING), payload, 0)
        assert step.opening == Opening(0, {}, {}, frozenset(), (), None)
        journal = absorbed(step)
        assert journal.plan.is_open(SESSION)
        assert journal.plan.generation() == 0
    newer = read_step(home(kind=Kind.OPENING), [{"text": dump({MARK: 2})}], 0, skip_newer=True)
    assert newer.opening
    assert newer.newer


@pytest.mark.parametrize(
    "body",
    [
        None,
        {},
        {"id": 7},
        {"id": "foreign"},
        {"id": "foreign", "time": "now"},
        {"id": "foreign", "time": 10**18},
        {"id": CHANGE, "in": 3},
        {"id": CHANGE, "in": -1},
        {"id": CHANGE, "add": 7},
        {"id": CHANGE, "homes": [None]},
        {"id": CHANGE, "step": 7},
    ],
)
def test_a_damaged_carried_change_is_left_to_the_step_it_came_in(body: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One carried change that cannot be read hides no other, and does not count as read."""
    good = {"id": CHANGE, "add": [{"r": "user", "b": ["hi"]}], "step": "elsewhere"}
    step = step_with({"change": {"by": "me"}}, {"carried": [body, good], "places": [list(PLACE)]})
    assert [source_step for source_step, _ in step.contents] == [step.home.step, "", "elsewhere"]
    assert [change is None for _, change in step.contents] == [False, True, False]
    assert "cannot be read" in caplog.text
    absorbed(step)


@pytest.mark.parametrize("h", [-1, 1.5, "x", None, True, [0], {}, 1, 10**30])
@pytest.mark.parametrize("n", [-1, "x", None, True, [0], 10**30, 0])
def test_a_forged_reference_refers_to_nothing(n: Any, h: Any) -> None:
    """A reference that has no home never comes to refer to what another message has, carried however often."""
    record = {"r": "user", "b": [{"n": 0}, {"n": n, "h": h}, 7, True]}
    there = Home(*OTHER, CHANGE)
    other = {"r": "user", "b": [{"n": 0, "h": k} for k in range(3)]}
    change = {"add": [record, other], "homes": [list(there)]}
    journal = absorbed(step_with({"change": change}))
    forged = journal.fold.alive()[0].id[0]
    for size in (4_000, 20_000, 100_000):
        composed = journal.compaction.compose(
            PLACE, Draft(message_codec.encode([ChatMessage("x" * size)])), Placed(), NOW
        )
        journal.stored(composed)
    message = {c.id: c for _, c in reread(composed).contents if c}[forged].messages[0]
    assert {place for place, _ in message.references()} == {there}
    native_blocks = {there: [{"text": "mine"}], message.homes[0]: [{"text": "mine"}]}
    shown = [b.text for b in decoded(message, native_blocks).blocks if isinstance(b, TextBlock)]
    assert (shown[0], shown.count("mine")) == ("mine", 1)
    copied(journal)


def test_a_number_in_a_carried_record_is_no_reference() -> None:
    """Only a step's own records have bare numbers; where a carried one has them, they refer to nothing."""
    carried = {"id": CHANGE, "add": [{"r": "user", "b": [0, {"n": 0}]}], "homes": [[*OTHER, CHANGE]]}
    journal = absorbed(step_with({}, {"carried": [carried]}))
    assert journal.native_homes(journal.fold.alive()) == {}
    assert [*journal.fold.alive()[0].references()] == [(Home(*OTHER, CHANGE), 0)]


def absorbed(step: Step) -> Journal:
    """A conversation in which a step was read, and in which all that can be done still can be."""
    journal = Journal([SESSION])
    journal.plan.saw_list(SESSION, [Listed(step.home, 5)])
    journal.absorb(step)
    for number, wanted in enumerate(journal.plan.rounds()):
        assert number < 10
        for place in wanted:
            journal.plan.lost(place)
    for parent in journal.plan.unlisted_parents():
        journal.plan.saw_list(parent, [])
    for message in journal.fold.alive():
        decoded(message, {})
    journal.native_homes(journal.fold.alive())
    journal.fold.state()
    journal.fold.hidden()
    for opening in (None, journal.compaction.opening({SESSION: NOW}, NOW)):
        draft = Draft(message_codec.encode([ChatMessage("x" * 3000)]))
        forced = journal.compaction.expiring_segments({SESSION: NOW}, NOW)[-1]
        composed = journal.compaction.compose(
            PLACE, draft, Placed(), NOW, opening=opening, forced=forced if opening else ()
        )
        composed.payload[-1]["text"].encode()
        assert not (reread(composed).contents[0][1] or Change("", 0, damaged=True)).damaged
    return journal


def copied(journal: Journal) -> None:
    """Copy all that a conversation refers to, and all it carries, as is done when its sessions get old."""
    there = Home(*PLACE, CHANGE)
    journal.fold.relocate_blocks(
        {old: (there, n) for n, old in enumerate(journal.compaction.old_native_blocks({}, 10**14))}
    )
    for message in journal.fold.alive():
        assert {place for place, _ in message.references()} <= {there}
    journal.compaction.copy(PLACE, journal.compaction.segments(), NOW)


MEMBERS = re.findall(
    r"\w+",
    "n h b r k id add at homes in step time remove archive set state was marks rewind invocations origin by "
    "home dead archived own rest generation covers parents removed segments last_set reason 0 1",
)
anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([SESSION, CHANGE, "archived", "~b", "user", NOW, *PLACE, *OTHER]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*MEMBERS, CHANGE, SESSION]),
            inner,
            max_size=5,
        )
        | st.just([SESSION, INVOCATION, CHANGE])
    ),
    max_leaves=12,
)
packed_bodies = st.fixed_dictionaries(
    {},
    optional={
        name: anything | st.lists(anything, max_size=3) for name in ("carried", "places", "named", "taken", "opening")
    },
)


@settings(max_examples=150)
@given(
    body=st.fixed_dictionaries({}, optional={"change": anything, "closing": anything, "release": anything}),
    version=st.sampled_from([1, 1, 1, 2, None]),
    packed=packed_bodies,
    kind=st.sampled_from(Kind),
    native_blocks=st.lists(st.just({"text": "hi"}) | st.dictionaries(st.just("image"), anything), max_size=2),
)
def test_any_envelope_is_read_or_refused_by_name(
    body: dict[str, Any], version: int | None, packed: dict[str, Any], kind: Kind, native_blocks: list[dict[str, Any]]
) -> None:
    """Whatever JSON an envelope is, it decodes, becomes a placeholder, or is newer; and the conversation goes on."""
    text = json.dumps({MARK: version, **body, **({"zip": zipped(packed)} if packed else {})})
    payload = [*native_blocks, {"text": text}]
    if version == 2:
        with pytest.raises(NewerFormatError):
            read_step(home(kind=kind), payload, 0)
    copied(absorbed(read_step(home(kind=kind), payload, 0, skip_newer=True)))


def real_steps() -> list[Composed]:
    """Steps as they are written: messages, images, facts, carried changes, an opening."""
    journal = Journal([SESSION])
    steps = []
    image = ChatMessage(role="user", blocks=[ImageBlock(image=picture()), TextBlock(text="look")])
    for n, draft in enumerate(
        [
            Draft(message_codec.encode([image, ChatMessage("hello", additional_kwargs={"a": [1, {"b": None}]})])),
            Draft(state={"x": [1.5]}, removed=frozenset({(CHANGE, 0)}), by="me", marks={HIDDEN: Mark(on=True)}),
            Draft(
                message_codec.encode([ChatMessage("x" * 1000)]), is_set=True, invocations={CHANGE: "d"}, origin={"a": 1}
            ),
        ]
    ):
        composed = journal.compaction.compose(PLACE, draft, Placed(), NOW + n)
        journal.stored(composed)
        steps.append(composed)
    opening = journal.compaction.opening({SESSION: NOW}, NOW)
    return [
        *steps,
        journal.compaction.compose(OTHER, Draft(message_codec.encode([image])), Placed(), NOW, opening=opening),
    ]


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), which=st.integers(0, 3), inside=st.booleans(), times=st.integers(1, 3))
def test_corrupted_envelope_is_read_or_refused_by_name(seed: int, which: int, inside: bool, times: int) -> None:
    """Bytes changed, cut out or put in, in the envelope or in what it has compressed, never raise another error."""
    chance = random.Random(seed)
    composed = REAL[which]
    text = composed.payload[-1]["text"]
    body = json.loads(text)
    raw = zlib.decompress(base64.b64decode(body["zip"])) if inside and "zip" in body else text.encode()
    for _ in range(times):
        at = chance.randrange(len(raw))
        put = chance.choice([b"", bytes([chance.randrange(256)]), b"[", b"1", b'"', b"null", b"{}", b"-", b"e9"])
        raw = raw[:at] + put + raw[at + chance.randrange(3) :]
    if inside and "zip" in body:
        text = dump({**body, "zip": base64.b64encode(zlib.compress(raw)).decode()})
    else:
        text = raw.decode("utf-8", "replace")
    there = composed.step.home._replace(session=SESSION)
    try:
        read_step(there, [*composed.payload[:-1], {"text": text}], 0)
    except NewerFormatError:
        assert f'"{MARK}"' in text
    copied(absorbed(read_step(there, [*composed.payload[:-1], {"text": text}], 0, skip_newer=True)))


REAL = real_steps()


@given(text=st.text(st.characters(codec=None, categories=None)), kind=st.sampled_from(Kind))
def test_any_text_after_our_mark_is_read(text: str, kind: Kind) -> None:
    """What begins like an envelope and is none is a placeholder."""
    absorbed(read_step(home(kind=kind), [{"text": '{"' + MARK + '"' + text}], 0, skip_newer=True))


def test_nothing_of_a_damaged_step_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Logs are kept longer than conversations: they name steps, never what is in them."""
    caplog.set_level(logging.DEBUG)
    secret = "a secret of the user"
    for body in (
        {"change": {"add": secret}},
        {"change": {"by": {"x": secret}}},
        {"change": {"marks": {"ended": [secret]}}},
        {"zip": secret},
    ):
        read_step(home(), [{"text": secret}, {"text": dump({MARK: 1, **body})}], 0)
    assert len(caplog.records) == 4
    assert secret not in caplog.text


# Golden files


def golden_files() -> list[Any]:
    """The frozen steps of every released format."""
    return [pytest.param(path, id=f"{path.parent.name}/{path.stem}") for path in golden.paths()]


def test_there_are_golden_files() -> None:
    """A folder that was moved or left out of a checkout does not pass for one whose files are all read."""
    assert len(golden_files()) >= 10


@pytest.mark.parametrize("path", golden_files())
def test_what_was_stored_by_a_release_is_read_by_this_one(path: Any) -> None:
    """A step that was ever written reads as it did when it was frozen."""
    stored = golden.load(path)
    assert golden.described(read_step(stored.home, stored.content, stored.time), stored.native_blocks) == stored.reads


def test_the_future_is_refused_by_name() -> None:
    """A frozen step of a format that does not exist yet is refused, with the release that reads it."""
    stored = golden.load(golden.FUTURE)
    refused: Callable[[], Step] = lambda: read_step(stored.home, stored.content, stored.time)  # noqa: E731
    with pytest.raises(NewerFormatError, match=stored.reads["refused"]):
        refused()
