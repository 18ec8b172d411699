"""What others write between our steps, and what somebody forges: it is read, shown as lost, or refused by name."""

from __future__ import annotations

import base64
import collections
import contextlib
import hashlib
import json
import logging
import random
import re
import uuid
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import TextBlock

from llama_index_bedrock_sessions import ConversationEnded, NewerFormatError
from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._journal import decoding, encoding, ids, message_codec, model
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.draft import Draft, Placed
from llama_index_bedrock_sessions._journal.encoding import envelope, opening_json
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.fold import Fold
from llama_index_bedrock_sessions._journal.ids import Home, Kind, new_id, parse_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import MARK
from llama_index_bedrock_sessions._journal.values import dump
from tests import golden
from tests.support.service import IDLE, KEY, Service, picture, texts, user

pytestmark = pytest.mark.thorough

LANGGRAPH = json.loads(Path(__file__).parent.joinpath("foreign", "langgraph.json").read_text("utf-8"))["steps"]
"""Steps as LangGraph's saver wrote them into an emulator."""
SECRET = "the salary of somebody else"


def put(
    service: Service, session: str, step: str, content: list[dict[str, Any]], invocation: str | None = None
) -> Home:
    """Write a step with plain boto3, under any id and in any invocation."""
    home = Home(session, invocation or default_invocation(session), step)
    with contextlib.suppress(service.boto3.exceptions.ConflictException):
        service.boto3.create_invocation(sessionIdentifier=session, invocationId=home.invocation)
    service.boto3.put_invocation_step(
        sessionIdentifier=session,
        invocationIdentifier=home.invocation,
        invocationStepId=step,
        invocationStepTime=service.clock.now(),
        payload={"contentBlocks": content},
    )
    return home


def now(service: Service) -> int:
    return int(service.clock.now().timestamp() * 1000)


def only_session(service: Service) -> str:
    (session,) = service.sessions()
    return str(session["sessionId"])


def changed(block: dict[str, Any], **members: Any) -> dict[str, Any]:
    """Return an envelope with other members; None takes one away."""
    body = {**json.loads(block["text"]), **members}
    return {"text": dump({name: value for name, value in body.items() if value is not None})}


# Steps of LangGraph


def langgraph(service: Service, session: str) -> list[Home]:
    """Let LangGraph's saver have used a session."""
    return [
        put(service, session, s["invocationStepId"], [{"text": text} for text in s["texts"]], s["invocationId"])
        for s in LANGGRAPH
    ]


def test_checkpoints_of_langgraph_are_no_messages(caplog: pytest.LogCaptureFixture) -> None:
    """What LangGraph's saver wrote is not shown to a model; the history and the log tell of it, not of its content."""
    caplog.set_level(logging.DEBUG, "llama_index_bedrock_sessions")
    service = Service()
    service.store().add_message(KEY, user("before"))
    written = langgraph(service, only_session(service))
    service.store().add_message(KEY, user("after"))
    reader = service.store().conversation(KEY)
    assert [m.content for m in reader.messages()] == ["before", "after"]
    told = {entry.id: entry for entry in reader.history() if entry.foreign}
    assert set(told) == {home.step for home in written}
    assert {(entry.added, entry.invocation) for entry in told.values()} == {((), home.invocation) for home in written}
    for home in written:
        assert f"step {home.step} of session {home.session} is a checkpoint of LangGraph" in caplog.text
    assert "Hello from LangGraph" not in caplog.text
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_checkpoints_are_carried_like_other_steps() -> None:
    """A cold reader does not get them again and again: a step of ours says that they were read."""
    service = Service()
    store = service.store()
    store.add_message(KEY, user("before"))
    langgraph(service, only_session(service))
    assert texts(store) == ["before"]
    store.add_message(KEY, user("after" * 1000))
    with service.counting() as calls:
        assert len(texts(service.store())) == 2
    assert calls["GetInvocationStep"] < len(LANGGRAPH)


def test_checkpoints_of_langgraph_in_javascript_are_no_messages() -> None:
    """The same saver in JavaScript names its members in camel case and its invocation `CHECKPOINT#`."""
    service = Service()
    service.store().add_message(KEY, user("before"))
    session, checkpoint = only_session(service), "1f1e69ce-b0d9-6519-8000-8bcf9ee98048"
    said = {"checkpointNs": "", "checkpointId": checkpoint}
    for name, body in (
        ("CHECKPOINT#", {"stepType": "checkpoint", "threadId": session, **said, "checkpoint": "{}"}),
        (f"WRITES##{checkpoint}", {"threadId": 0, "taskId": "t", "channel": "c", "stepType": "WRITES", **said}),
    ):
        invocation = str(uuid.UUID(bytes=hashlib.md5(name.encode()).digest()))
        put(service, session, str(uuid.uuid4()), [{"text": json.dumps(body)}], invocation)
    assert texts(service.store()) == ["before"]


@pytest.mark.parametrize("how", ["elsewhere", "with a word", "in another's place", "no JSON", "an image too"])
def test_a_text_that_looks_like_a_checkpoint_is_a_message(how: str) -> None:
    """Somebody may talk about a checkpoint, and paste it: only what is where a saver puts it is one."""
    service = Service()
    service.store().add_message(KEY, user("before"))
    session, step = only_session(service), LANGGRAPH[0]
    content: list[dict[str, Any]] = [{"text": text} for text in step["texts"]]
    invocation = step["invocationId"]
    if how == "elsewhere":
        invocation = str(uuid.uuid4())
    elif how == "with a word":
        content.append({"text": "look at this"})
    elif how == "in another's place":
        content = [changed(content[0], checkpoint_ns="other")]
    elif how == "no JSON":
        content = [{"text": content[0]["text"] + "?"}]
    else:
        content.append(message_codec.encode([picture()]).blocks[1])
    put(service, session, str(uuid.uuid4()), content, invocation)
    shown = service.store().get_messages(KEY)[-1]
    assert [getattr(b, "text", "an image") for b in shown.blocks] == [b.get("text", "an image") for b in content]


# Damage


def rot(service: Service, step: str, content: list[dict[str, Any]]) -> None:
    """Change what is stored as a step, whatever has become of its session."""
    with service.emulator._database.writing() as database:
        database.execute(
            "UPDATE payloads SET payload = ? WHERE step = (SELECT arrival FROM steps WHERE invocation_step_id = ?)",
            (json.dumps({"contentBlocks": content}), step),
        )


def damage_zips(service: Service, session: str) -> list[str]:
    """Damage all that the steps of a session carry; return the steps."""
    damaged = []
    for step in service.steps(session):
        (envelope,) = step["payload"]["contentBlocks"][-1:]
        if "zip" in json.loads(envelope["text"]):
            native_blocks = step["payload"]["contentBlocks"][:-1]
            rot(service, step["invocationStepId"], [*native_blocks, changed(envelope, zip="damaged")])
            damaged.append(step["invocationStepId"])
    return damaged


def test_a_step_whose_zip_is_damaged_says_what_it_says_itself(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is lost, neither messages nor what was removed: what is carried is in its own steps as well."""
    service = Service()
    store = service.store()
    for text in ("one", "two", "three", "four"):
        store.add_message(KEY, user(text))
    store.delete_message(KEY, 1)
    store.add_message(KEY, user("five"))
    opening = service.steps(only_session(service))[0]
    _, *damaged = damage_zips(service, only_session(service))
    rot(service, opening["invocationStepId"], opening["payload"]["contentBlocks"])
    assert len(damaged) == 5
    for reader in (service.store(), store):
        assert texts(reader) == ["one", "three", "four", "five"]
    for step in damaged:
        assert f"what step {step} of session {only_session(service)} carries cannot be read" in caplog.text
    service.store().add_message(KEY, user("six"))
    assert texts(service.store()) == texts(store) == ["one", "three", "four", "five", "six"]


def test_what_only_a_damaged_opening_had_is_shown_as_lost() -> None:
    """An opening's own message is kept, and after it stands that something is lost; sessions before it are read."""
    service = Service()
    for text in ("one", "two"):
        service.store().add_message(KEY, user(text))
        service.later(IDLE)
    session = service.sessions()[-1]["sessionId"]
    damage_zips(service, session)
    shown = service.store().get_messages(KEY)
    assert [b.text for m in shown for b in m.blocks if isinstance(b, TextBlock)] == [
        "one",
        "two",
        "[unreadable message: what a damaged step carried]",
    ]
    service.store().add_message(KEY, user("three"))
    assert texts(service.store())[-1] == "three"


def test_what_a_session_before_lost_is_shown_as_lost() -> None:
    """Of an earlier session only what the opening names is read: a step that is damaged there shows so."""
    service = Service()
    store = service.store()
    for number in range(4):
        store.add_message(KEY, user(f"{number} " + "x" * 200_000))
    (first,) = service.sessions()
    service.later(IDLE)
    store.add_message(KEY, user("next"))
    before = texts(service.store())
    damaged = damage_zips(service, first["sessionId"])
    assert damaged
    shown = texts(service.store())
    lost = "[unreadable message: what a damaged step carried]"
    assert lost in shown
    assert [t for t in shown if t != lost] == [t for t in before if t in shown]
    service.store().add_message(KEY, user("more"))
    assert texts(service.store()) == [*shown, "more"]


@pytest.mark.parametrize(
    "change",
    [{"add": [{"r": "user", "b": ["x"]}], "at": [10**12]}, {"of": 10**12}],
)
def test_a_change_cannot_claim_messages_without_end(change: dict[str, Any]) -> None:
    """The history lists what a change added: positions nobody ever wrote are damage."""
    service = Service()
    service.store().add_message(KEY, user("one"))
    many = [{**change, "id": new_id(1000 + n, Kind.CHANGE), "of": decoding.MANY // 2} for n in range(3)]
    for carried in ([{**change, "id": new_id(1000, Kind.CHANGE)}], many):
        put(service, only_session(service), new_id(now(service), Kind.CHANGE), [envelope({}, {"carried": carried})])
    chat = service.store().conversation(KEY)
    assert sum(len(entry.added) for entry in chat.history()) == 1
    assert texts(service.store())[0] == "one"


def test_a_session_cannot_come_before_itself() -> None:
    """An opening that covers its own session does not make the conversation vanish."""
    service = Service()
    service.store().add_message(KEY, user("one"))
    session = only_session(service)
    forged = model.Opening(0, {session: 0}, {session: frozenset()}, frozenset(), (), None)
    content = [envelope({}, {"opening": opening_json(forged)})]
    put(service, session, new_id(now(service), Kind.OPENING), content)
    assert texts(service.store()) == ["one"]


# Work


def step_of(count: int) -> list[dict[str, Any]]:
    """A step that carries so many changes, of one message each."""
    carried = [{"id": new_id(1000 + n, Kind.CHANGE), "add": [{"r": "user", "b": ["x"]}]} for n in range(count)]
    return [envelope({}, {"carried": carried})]


def test_a_step_carries_no_more_than_steps_do() -> None:
    """As many changes as fit into 512 KB are read; more are damage."""
    home = Home("1" * 8, "2" * 8, new_id(1000, Kind.CHANGE))
    assert len(read_step(home, step_of(decoding.CARRIED), 0).contents) == decoding.CARRIED + 1
    assert [c and c.damaged for _, c in read_step(home, step_of(decoding.CARRIED + 1), 0).contents] == [True]
    assert model.BUDGET // 80 < decoding.CARRIED


def test_naming_a_step_often_does_not_have_it_read_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening that names one step ten thousand times is damaged: each time all of it would be taken in."""
    learnt = collections.Counter[str]()
    learn = Fold.learn

    def counting(fold: Fold, change: Any) -> None:
        learnt["changes"] += 1
        learn(fold, change)

    monkeypatch.setattr(Fold, "learn", counting)
    service = Service()
    service.store().add_message(KEY, user("one"))
    session = only_session(service)
    home = put(service, session, new_id(now(service), Kind.ATTACHMENT), step_of(100))
    named = tuple(model.Inherited(home, {}, {}, own=False) for _ in range(10_000))
    forged = model.Opening(0, {}, {}, frozenset(), named, None)
    put(service, session, new_id(now(service), Kind.OPENING), [envelope({}, {"opening": opening_json(forged)})])
    assert texts(service.store())[0] == "one"
    assert learnt["changes"] < 100


def looked_at(count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a step was looked at by who reads an opening that names so many, of a parent it has not seen."""
    counted = collections.Counter[str]()
    kind = ids.parse_id

    def counting(step: str) -> Any:
        counted["steps"] += 1
        return kind(step)

    for module in ("fetch_plan", "ids"):
        monkeypatch.setattr(f"llama_index_bedrock_sessions._journal.{module}.parse_id", counting)
    head, parent, invocation = (str(uuid.uuid4()) for _ in range(3))
    journal = Journal([head])
    homes = [Home(parent, invocation, new_id(1000 + n, Kind.CHANGE)) for n in range(count)]
    named = tuple(model.Inherited(h, {}, {}, own=False) for h in homes)
    forged = model.Opening(1, {parent: 0}, {parent: frozenset()}, frozenset(), named, None)
    opening = Home(head, invocation, new_id(5000, Kind.OPENING))
    journal.plan.saw_list(head, [Listed(opening, 5000)])
    journal.plan.saw_list(parent, [Listed(h, 1000) for h in homes])
    payloads = dict.fromkeys(homes, step_of(1)) | {opening: [envelope({}, {"opening": opening_json(forged)})]}
    for wanted in journal.plan.rounds():
        for home in wanted:
            journal.absorb(read_step(home, payloads[home], 0))
    assert len(journal.plan.read) == count + 1
    return counted["steps"]


def test_the_work_of_a_forged_opening_grows_with_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many steps are twice the work, not four times."""
    few, many = looked_at(100, monkeypatch), looked_at(200, monkeypatch)
    assert many <= 2.2 * few


# Two releases


def test_an_old_and_a_new_release_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the new release writes its format, the old one refuses by name and changes nothing; both still append."""
    service = Service()
    old, new = service.store(), service.store()
    old.add_message(KEY, user("one"))
    assert texts(new) == ["one"]
    session = only_session(service)
    content = [{"text": dump({MARK: 2, "release": "2.0.0", "change": {"add": [{"r": "user", "b": ["two"]}]}})}]
    put(service, session, new_id(now(service), Kind.CHANGE), content)
    everything = service.everything()
    for refused in (old.get_messages, old.delete_messages, service.store().get_messages):
        with pytest.raises(NewerFormatError, match=r"2\.0\.0"):
            refused(KEY)
    assert service.everything() == everything
    around = service.store(skip_newer=True)
    assert texts(around) == [
        "one",
        "[unreadable message: a step of format 2, which llama-index-bedrock-sessions 2.0.0 reads]",
    ]
    around.add_message(KEY, user("three"))
    with monkeypatch.context() as upgraded:
        for reads_or_writes in (decoding, encoding):
            upgraded.setattr(reads_or_writes, "VERSION", 2)
        assert texts(new) == texts(service.store()) == ["one", "two", "three"]
    service.later(IDLE)
    with pytest.raises(NewerFormatError, match="left behind"):
        around.add_message(KEY, user("would leave two behind"))
    with monkeypatch.context() as upgraded:
        for reads_or_writes in (decoding, encoding):
            upgraded.setattr(reads_or_writes, "VERSION", 2)
        new.add_message(KEY, user("four"))
        assert texts(service.store()) == ["one", "two", "three", "four"]


def test_what_a_newer_release_wrote_can_be_deleted() -> None:
    """Deleting with `skip_newer=True` needs no other release."""
    service = Service()
    service.store().add_message(KEY, user("one"))
    put(service, only_session(service), new_id(now(service), Kind.CHANGE), [{"text": dump({MARK: 2})}])
    assert service.store(skip_newer=True).delete_messages(KEY)
    assert service.sessions() == []


# Sessions of others


@pytest.mark.parametrize(
    ("name", "value"), [("llama-index-key", "somebody else"), ("llama-index-namespace", "another application")]
)
def test_a_session_whose_metadata_name_another_is_not_touched(name: str, value: str) -> None:
    """What somebody relabelled is no longer of this conversation: it is not read, not written, and not deleted."""
    service = Service()
    service.store().add_message(KEY, user("one"))
    session = only_session(service)
    metadata = {**service.sessions()[0]["sessionMetadata"], name: value}
    service.boto3.update_session(sessionIdentifier=session, sessionMetadata=metadata)
    before = service.everything()
    store = service.store()
    assert texts(store) == []
    store.add_message(KEY, user("two"))
    store.delete_messages(KEY)
    assert service.everything() == before


# Anything

UUIDS = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
GOLDEN = [golden.load(path) for path in golden.paths()]
HOMES = sorted({stored.home[:2] for stored in GOLDEN})


def inside(block: dict[str, Any]) -> str:
    """Return the JSON a step has compressed, "" if it has none."""
    with contextlib.suppress(ValueError, KeyError, TypeError, zlib.error):
        return zlib.decompress(base64.b64decode(json.loads(block["text"])["zip"])).decode()
    return ""


def rewritten(block: dict[str, Any], change: Any) -> dict[str, Any]:
    """Return a block with a function applied to its text, and to what is compressed in it."""
    if "text" not in block:
        return block
    packed = inside(block)
    text = change(block["text"]) or " "
    if packed:
        with contextlib.suppress(ValueError):
            again = base64.b64encode(zlib.compress(change(packed).encode())).decode()
            text = changed({"text": text}, zip=again)["text"]
    return {"text": text}


def mutated(seed: int, text: str) -> str:
    """Return a text of which a few characters were changed, cut out or put in, or which is cut short."""
    chance = random.Random(seed)
    for _ in range(chance.randrange(3)):
        at = chance.randrange(len(text) + 1)
        put_in = chance.choice(["", "0", "[", "]", '"', "null", "{}", "-", "e9", "true", chr(chance.randrange(0x3000))])
        text = text[:at] + put_in + text[at + chance.randrange(4) :]
    return text[: chance.randrange(len(text) + 1)] if chance.random() < 0.1 else text


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([MARK, "zip", "change", "a"]), inner),
    max_leaves=8,
).map(json.dumps)
stored_steps = st.tuples(
    st.sampled_from([*Kind, "foreign", "its own", "future"]),
    st.sampled_from(GOLDEN),
    st.integers(0, 2**32),
    st.sampled_from(["mine", "other", "nowhere"]),
    st.none() | json_texts,
)


def hostile(step: Any, place: tuple[str, str], other: Home, number: int, at: int) -> tuple[str, list[dict[str, Any]]]:
    """Return the id and the content of a step: `other` is one of another conversation."""
    kind, stored, seed, where, text = step

    def forged(text: str) -> str:
        named = {"mine": place, "other": other[:2]}.get(where, ())
        for home in HOMES if named else ():
            for was, becomes in zip(home, named, strict=True):
                text = text.replace(was, becomes)
        for each in GOLDEN if where == "other" else ():
            text = text.replace(each.home.step, other.step)
        return mutated(seed, text)

    *native_blocks, last = stored.content if text is None else [{"text": text}]
    named = {
        "foreign": str(uuid.UUID(int=seed)),
        "its own": stored.home.step,
        "future": new_id(ids.YEAR_2100 - number, Kind.CHANGE),
    }
    return named.get(kind) or new_id(at + number, kind, seed % 5), [*native_blocks, rewritten(last, forged)]


@settings(max_examples=50, deadline=None)
@given(steps=st.lists(stored_steps, min_size=1, max_size=8))
def test_any_steps_make_a_fold(steps: list[Any]) -> None:
    """Each step is read once, whatever the others say of it; and what comes next can be composed."""
    place, other = (str(uuid.uuid4()), str(uuid.uuid4())), Home(*(str(uuid.uuid4()) for _ in range(3)))
    made = [hostile(step, place, other, number, 1000) for number, step in enumerate(steps)]
    payloads = {Home(*place, step): content for step, content in made}
    journal = Journal([place[0]])
    journal.clock.horizon = 10_000
    journal.plan.saw_list(place[0], [Listed(home, 1000) for home in payloads])
    asked: list[Home] = []
    while not asked or journal.plan.unlisted_parents():
        for parent in journal.plan.unlisted_parents():
            journal.plan.saw_list(parent, [])
        for wanted in journal.plan.rounds():
            asked += wanted
            for home in wanted:
                if home in payloads:
                    journal.absorb(read_step(home, payloads[home], 1000, skip_newer=True))
                else:
                    journal.plan.lost(home)
        asked = asked or [other]
    assert all(asked.count(home) <= 1 for home in payloads)
    assert {home for home in payloads if parse_id(home.step) is None} <= {
        step.home for step in journal.plan.read.values()
    }
    for opening in (None, journal.compaction.opening({place[0]: 1000}, 2000)):
        composed = journal.compaction.compose(
            place, Draft(message_codec.encode([user("next")])), Placed(), 2000, opening=opening
        )
        assert read_step(composed.step.home, composed.payload, 0).contents[0][1] == composed.step.contents[0][1]


@settings(max_examples=25, deadline=None)
@given(steps=st.lists(stored_steps, min_size=1, max_size=5))
def test_any_steps_are_read_or_refused_by_name_and_written_after(steps: list[Any]) -> None:
    """Real steps damaged, swapped, under any id, and naming others' stop nobody and show nothing of others."""
    service = Service()
    service.store().conversation("victim").add([user(SECRET), picture(text=SECRET)], state={"x": SECRET})
    (victim,) = service.sessions()
    (theirs,) = service.steps(victim["sessionId"])
    service.store().add_message(KEY, user("mine"))
    session = next(s["sessionId"] for s in service.sessions() if s["sessionId"] != victim["sessionId"])
    other = Home(victim["sessionId"], theirs["invocationId"], theirs["invocationStepId"])
    references: set[str] = set()
    for number, each in enumerate(steps):
        step, content = hostile(each, (session, default_invocation(session)), other, number, now(service))
        references |= set(UUIDS.findall(str(content) + inside(content[-1])))
        with contextlib.suppress(service.boto3.exceptions.ConflictException):
            put(service, session, step, content)
    with contextlib.suppress(NewerFormatError):
        service.store().get_messages(KEY)
    reader = service.store(skip_newer=True)
    with service.counting() as calls:
        before = texts(reader)
    asked = collections.Counter(call.path for call in service.calls if call.operation == "GetInvocationStep")
    assert max(asked.values()) <= 2
    assert calls["total"] <= 20 + 3 * (len(steps) + len(references))
    writer = service.store(skip_newer=True)
    try:
        writer.add_message(KEY, user("written after"))
    except (ConversationEnded, NewerFormatError):
        assert texts(service.store(skip_newer=True)) == before
    else:
        assert texts(service.store(skip_newer=True)).count("written after") == 1
    chat = service.store(skip_newer=True).conversation(KEY)
    told = [chat.messages(status=None), chat.history(), chat.state.copy(), chat.describe()]
    assert SECRET not in str(told)
    assert "victim" not in str(told)
    assert service.store().get_messages("victim")[0] == user(SECRET)
