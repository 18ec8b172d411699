"""docs/format.md specifies what is stored: its example decodes as it says, and it names everything a writer writes.

`python -m tests.journal.test_format` writes the JSON of the example, with the library.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import random
import re
import uuid
import zlib
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock, VideoBlock
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.workflow import Context, StartEvent, StopEvent, Workflow, step

from llama_index_bedrock_sessions import BedrockSessionsChatStore, Conversation, S3MediaStore
from llama_index_bedrock_sessions._bedrock import session_metadata
from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._conversation.state import RESERVED
from llama_index_bedrock_sessions._journal import decoding, encoding, ids, message_codec, model, records
from llama_index_bedrock_sessions._journal.draft import Draft, Placed
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.ids import Home, Kind
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import ENDED, MARK, Change, Inherited, Mark, Message, Opening
from llama_index_bedrock_sessions._journal.values import is_unicode
from llama_index_bedrock_sessions.emulator import Emulator
from llama_index_bedrock_sessions.emulator import store as emulator_store
from tests import golden
from tests.support.format_decoder import Service, claim, decode, object_key
from tests.support.s3 import S3

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llama_index_bedrock_sessions._journal.message_codec import ContentBlock

PATH = Path(__file__).parents[2] / "docs" / "format.md"
PAGE = PATH.read_text("utf-8")
EXAMPLE = "## A worked example\n"
FIRST, NEXT = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
START = 1_767_348_000_000
PNG = "iVBORw0KGgoAAAANSUhEUgAAAAMAAAACCAIAAAASFvFNAAAAEElEQVR4nGM4oTQJghggFAA4jAYjW0mEsgAAAABJRU5ErkJggg=="


def json_blocks() -> list[Any]:
    """The JSON of the example, in order."""
    found = re.findall(r"^```json\n(.*?)^```$", PAGE[PAGE.index(EXAMPLE) :], re.DOTALL | re.MULTILINE)
    return [json.loads(text) for text in found]


def example() -> tuple[dict[str, Any], dict[Home, tuple[int, list[ContentBlock]]], dict[str, Any]]:
    """The sessions, the steps with their bytes, and each `zip` as the page shows it."""
    sessions, *others = json_blocks()
    steps: dict[Home, tuple[int, list[ContentBlock]]] = {}
    unpacked: dict[str, Any] = {}
    for block in others:
        if "content" in block:
            home = Home(*block["home"])
            steps[home] = block["time"], [with_bytes(b) for b in block["content"]]
        else:
            unpacked[home.step] = block  # pyright: ignore[reportPossiblyUnboundVariable]
    return {session["session"]: session for session in sessions}, steps, unpacked


def with_bytes(block: dict[str, Any]) -> dict[str, Any]:
    """A content block with its bytes, which the page shows as base64."""
    if "image" not in block:
        return block
    image = block["image"]
    return {"image": {**image, "source": {"bytes": base64.b64decode(image["source"]["bytes"])}}}


def read_by_page() -> Any:
    """The conversation, read with the decoder that was written from the page."""
    sessions, steps, _ = example()
    metadata = {session: each["sessionMetadata"] for session, each in sessions.items()}
    return Service(metadata, {(*home,): step for home, step in steps.items()}).read("order 4711", "default")  # pyright: ignore[reportArgumentType]


# The example


def test_every_zip_is_shown_unpacked() -> None:
    """What stands beside a step is what its `zip` unpacks to."""
    _, steps, unpacked = example()
    for home, (_, content) in steps.items():
        packed = json.loads(content[-1]["text"]).get("zip")
        assert (json.loads(zlib.decompress(base64.b64decode(packed))) if packed else None) == unpacked.get(home.step)


def test_the_page_is_enough_to_decode_its_example() -> None:
    """Without the package, the steps add up to the table and to the sentences below it."""
    read = read_by_page()
    result = PAGE[PAGE.index("### The conversation") :]
    rows = re.findall(r"^\| `(\S+)` \| (\w+) \| `(\w+)` \| `([^`]*)`", result, re.MULTILINE)
    assert [(name, status, role, shown[0]) for name, status, role, shown, _ in read.messages] == rows
    assert read.messages[1][3][1]["image"] == base64.b64decode(PNG)
    state = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|$", result, re.MULTILINE)
    assert read.state == {name: json.loads(value) for name, value in state}
    marks = re.findall(r"^\| `(\w+)` \| `(\w+)` \| `(\d+)` \| `([^`]*)` \|$", result, re.MULTILINE)
    assert read.marks == {m: (int(at), json.loads(on), json.loads(said)) for m, on, at, said in marks}
    assert [step[-1] for step in read.fetched] == ["6"]


def test_the_package_reads_the_same_conversation() -> None:
    """The store reads the same messages, statuses, state and marks from a service that holds these steps."""
    read = read_by_page()
    sessions, steps, _ = example()
    with serving(sessions, steps) as emulator:
        chat = BedrockSessionsChatStore(client=emulator.client(), settling_time=0).conversation("order 4711")
        records = chat.records(status=None)
        assert [(r.id, r.status.value, r.message.role.value) for r in records] == [m[:3] for m in read.messages]
        assert [[plain(block) for block in r.message.blocks] for r in records] == [m[3] for m in read.messages]
        assert [r.message.additional_kwargs for r in records] == [m[4] for m in read.messages]
        assert dict(chat.state.copy()) == read.state
        described = chat.describe()
        ended_at, _, said = read.marks["ended"]
        assert described["ended"] == {**said, "at": iso(ended_at)}
        assert described["hidden"] is False


def test_every_step_of_the_example_reads_alike() -> None:
    """The package and the decoder agree on each step, removed messages included."""
    _, steps, _ = example()
    for home, (time, content) in steps.items():
        assert by_decoder(home, time, content) == by_package(home, time, content)


def test_the_example_is_what_the_library_writes() -> None:
    """The page shows what the library writes today; `python -m tests.journal.test_format` writes it again."""

    def comparable(found: list[Any]) -> list[Any]:
        # How zlib packs differs from one implementation to another.
        return [re.sub(r'\\"zip\\":\\"[^"]*', "", json.dumps(block)) for block in found]

    assert comparable(json_blocks()) == comparable(written())


@pytest.mark.parametrize("path", golden.paths(), ids=lambda path: path.stem)
def test_the_page_is_enough_to_decode_golden_files(path: Path) -> None:
    """What was stored is read without the package as the package has to read it."""
    stored = golden.load(path)
    found = decode(stored.home, stored.time, stored.content)
    assert [source_step for source_step, _ in found.changes] == [
        source_step for source_step, _ in stored.reads["changes"]
    ]
    for (_, change), (_, expected) in zip(found.changes, stored.reads["changes"], strict=True):
        assert (change is None) == (expected is None)
        if change:
            assert (change.id, change.time, change.written) == tuple(expected[k] for k in ("id", "time", "written"))
            assert change.facts() == expected["facts"]
            messages = {m["position"]: (m["record"], targets(m["record"], m["homes"])) for m in expected["messages"]}
            assert {p: (r, targets(r, homes)) for p, (r, homes) in change.messages.items()} == messages
    assert found.named == stored.reads["named"]
    assert sorted(found.taken) == stored.reads["taken"]
    assert found.opening == stored.reads["opening"]


def test_the_page_is_enough_to_refuse_a_newer_version() -> None:
    """A step of version 2 is refused, with the release that reads it."""
    stored = golden.load(golden.FUTURE)
    with pytest.raises(ValueError, match=r"version 2: 2\.0\.0"):
        decode(stored.home, stored.time, stored.content)


KEY = "a life"


class Flow(Workflow):
    """A workflow whose context is saved."""

    @step
    async def only(self, event: StartEvent) -> StopEvent:
        """End at once."""
        return StopEvent(event)


def life(store: BedrockSessionsChatStore, emulator: Emulator) -> Iterator[str]:
    """A conversation in which everything happens; yields after each operation what it was."""
    chat, clock, raw = store.conversation(KEY), emulator.clock, base64.b64decode(PNG)
    chat.add([ChatMessage("one"), ChatMessage("two \ud83d"), ChatMessage(role="assistant", content="")])
    yield "add"
    images = [ImageBlock(image=raw), ImageBlock(url=f"data:image/x;a=b;base64,{PNG}"), VideoBlock(video=b"\xff" * 3000)]
    call = ToolCallBlock(tool_call_id="c", tool_name="t", tool_kwargs={"half": "\ud83d", "~": 1})
    chat.add([ChatMessage(role="user", blocks=images), ChatMessage(role="assistant", blocks=[call])], state={"a": 1})
    yield "add images and a tool call"
    chat.add([ChatMessage("x" * 9000, additional_kwargs={"big": -(2**80), "bytes": b"b", "~d": float("inf")})])
    yield "add a long message"
    chat.add([ChatMessage("put away")], status=MessageStatus.ARCHIVED, state={"b": {"~s": 1}})
    yield "add an archived one"
    put_foreign(emulator, chat)
    yield "a step of another tool, and a checkpoint of LangGraph"
    chat.messages()
    chat.remove(0)
    yield "remove"
    chat.archive_oldest(2)
    yield "archive"
    clock.advance(2 * 3600)
    chat.add([ChatMessage("later")], forget=["a"])
    yield "add in a second session"
    clock.advance(10 * 86_400)
    chat.add([ChatMessage("much later")])
    yield "add in a third session, which copies what is old"
    chat.set([*chat.messages()[-2:], ChatMessage("set")])
    yield "set some"
    chat.set([ChatMessage("all"), ChatMessage("anew")])
    yield "set all"
    chat.hide(reason="asked", approver="Ada")
    yield "hide"
    chat.add([ChatMessage("after hiding")])
    yield "add after hiding"
    chat.restore()
    yield "restore"
    chat.end("done", kind="fix", by="Ada")
    yield "end"
    chat.reopen(reason="not done")
    yield "reopen"
    chat.redact(chat.last_id() or "")
    yield "redact"
    chat.fork("fork")
    store.conversation("fork").add([ChatMessage("in the fork")])
    yield "fork"


def put_foreign(emulator: Emulator, chat: Conversation) -> None:
    """Write as other tools do into the session of a conversation."""
    client, session = emulator.client(), chat.describe()["sessions"][-1]["session"]
    name = "CHECKPOINTS#space"
    checkpoint = json.dumps({"checkpoint_ns": "space", "checkpoint_id": "1"})
    saver = str(uuid.UUID(hashlib.md5(name.encode()).hexdigest()))
    client.create_invocation(sessionIdentifier=session, invocationId=saver)
    for invocation, text in ((default_invocation(session), "a note"), (saver, checkpoint)):
        client.put_invocation_step(
            sessionIdentifier=session,
            invocationIdentifier=invocation,
            invocationStepTime=emulator.clock.now(),
            payload={"contentBlocks": [{"text": text}]},
        )


def test_the_page_is_enough_to_decode_a_whole_life() -> None:
    """After every operation a reader of the page and the package find the same in the service."""
    bucket = S3()
    media = S3MediaStore(bucket.bucket, prefix="media", client=bucket.client, threshold=1000)
    with Emulator() as emulator:
        emulator.clock.stop(moment(START))
        store = BedrockSessionsChatStore(client=emulator.client(), settling_time=0, media=media)
        for done in life(store, emulator):
            emulator.clock.advance(1)
            if done == "add images and a tool call":
                video = object_key("media", "default", KEY, hashlib.sha256(b"\xff" * 3000).hexdigest())
                head = bucket.client.head_object(Bucket=bucket.bucket, Key=video)
                assert head["ContentLength"] == 3000
            for key in (KEY, "fork") if done == "fork" else (KEY,):
                assert_alike(Service(*everything(emulator)).read(key, "default"), store.conversation(key), done)


def assert_alike(read: Any, chat: Conversation, done: str) -> None:
    """Whether the decoder and the package read the same."""
    records = [
        (r.id, r.status.value, r.message.role.value, [*map(plain, r.message.blocks)], r.message.additional_kwargs)
        for r in chat.records(status=None)
    ]
    assert read.messages == records, done
    assert {n: v for n, v in read.state.items() if not n.startswith(tuple(RESERVED))} == chat.state.copy(), done
    described = chat.describe()
    assert described["hidden"] == read.marks.get("hidden", (0, False))[1], done
    at, is_on, said = read.marks.get("ended", (0, False, {}))
    assert described["ended"] == ({**said, "at": iso(at)} if is_on else None), done


def test_the_page_is_enough_where_no_golden_file_is() -> None:
    """`taken`, `own`, `dead`, `at`, `of`, `step`, `h`, an own `id` and a late step, with what each of them leaves out.

    Of the other members without a golden file, the whole life has `~d` and `data_url`, the saved context `~parts` and
    a claim.
    """
    parent, head = (FIRST, default_invocation(FIRST)), (NEXT, default_invocation(NEXT))
    opened, inherited, carried, late = (step_id(n, kind) for n, kind in enumerate((1, 0, 0, 0)))
    second, last, sent, retried = step_id(10, 1), step_id(20), step_id(4), step_id(5)
    homes = [[*parent, inherited], [*parent, carried]]
    segments = [{"home": homes[0], "own": True, "dead": {"0": [0]}, "archived": {"0": [2]}}, {"home": homes[1]}]
    opening = {"covers": {FIRST: START}, "parents": {FIRST: [opened, inherited, carried]}, "segments": segments}
    first = {"id": opened, "add": [{"r": "user", "b": ["not of the segment"]}]}
    again = {"id": sent, "step": carried, "at": [1], "of": 2, "homes": homes}
    again["add"] = [{"r": "user", "b": ["carried", {"n": 1, "h": 1}]}]
    steps = {
        Home(*parent, opened): stored({}, ["not of the segment"], {"opening": {"covers": {}}}),
        Home(*parent, inherited): stored({}, ["dead", "active", "archived"], {"carried": [first]}),
        Home(*parent, carried): stored({"id": sent}, ["left out", b"picture"], {}),
        Home(*parent, late): stored({"id": retried}, ["late"], {}),
        Home(*head, second): stored({}, ["opening"], {"opening": opening}),
        Home(*head, last): stored({}, ["last"], {"carried": [again], "taken": [carried]}),
    }
    timed = {home: (START + n, content) for n, (home, content) in enumerate(steps.items())}
    found = {session["session"]: session for session in sessions()}
    metadata = {session: each["sessionMetadata"] for session, each in found.items()}
    read = Service(metadata, {(*home,): step for home, step in timed.items()}).read("order 4711", "default")  # pyright: ignore[reportArgumentType]
    shown = [(name, status, shown[0]) for name, status, _, shown, _ in read.messages]
    assert shown == [
        (f"{inherited}/1", "active", "active"),
        (f"{inherited}/2", "archived", "archived"),
        (f"{sent}/1", "active", "carried"),
        (f"{retried}/0", "active", "late"),
        (f"{second}/0", "active", "opening"),
        (f"{last}/0", "active", "last"),
    ]
    with serving(found, timed) as emulator:
        store = BedrockSessionsChatStore(client=emulator.client(), settling_time=0)
        assert_alike(read, store.conversation("order 4711"), "by hand")


def step_id(ms: int, kind: int = 0) -> str:
    """An id of the library's form."""
    return str(uuid.UUID(int=START + ms << 80 | 8 << 76 | kind << 74 | 2 << 62 | ms))


def stored(change: dict[str, Any], added: list[str | bytes], packed: dict[str, Any]) -> list[ContentBlock]:
    """The content of a step that adds native blocks, each in a message of its own."""
    picture = {"image": {"format": "png", "source": {"bytes": base64.b64decode(PNG)}}}
    change = {**change, "add": [{"r": "user", "b": [n]} for n in range(len(added))]}
    content = [{"text": each} if isinstance(each, str) else picture for each in added]
    packs = base64.b64encode(zlib.compress(json.dumps(packed).encode())).decode()
    return [*content, {"text": json.dumps({MARK: 1, "change": change, "zip": packs}, separators=(",", ":"))}]


def test_the_page_is_enough_to_decode_a_saved_context() -> None:
    """The content of a saved context is put together, and the claim of it found where the page says."""
    with Emulator() as emulator:
        chat = BedrockSessionsChatStore(client=emulator.client(), settling_time=0).conversation(KEY)
        flow = Flow()
        context: Context[Any] = Context(flow)
        secret = random.Random(1).randbytes(40_000).hex()
        asyncio_run(context.store.set("secret", secret))
        chat.save_context(context, "later")
        chat.load_context(flow, "later", by="Ada")
        sessions, steps = everything(emulator)
        (session,) = sessions
        state = Service(sessions, steps).read(KEY, "default").state
    content = zlib.decompress(base64.b64decode(state["context/content/later"]))
    assert secret in content.decode()
    saved, taken = state["context/saved/later"], state["context/taken/later"]
    assert (saved["size"], taken["of"], taken["by"]) == (len(content), saved["id"], "Ada")
    assert claim(session, saved["id"]) in steps


def everything(emulator: Emulator) -> tuple[dict[str, Any], dict[Any, Any]]:
    """All metadata and all steps of the service."""
    client = emulator.client()
    sessions: dict[str, Any] = {}
    found: dict[Any, Any] = {}
    for summary in (s for p in client.get_paginator("list_sessions").paginate() for s in p["sessionSummaries"]):
        session = summary["sessionId"]
        sessions[session] = client.get_session(sessionIdentifier=session).get("sessionMetadata", {})
        pages = client.get_paginator("list_invocation_steps").paginate(sessionIdentifier=session)
        for listed in (s for page in pages for s in page["invocationStepSummaries"]):
            home = session, listed["invocationId"], listed["invocationStepId"]
            one = client.get_invocation_step(
                sessionIdentifier=session, invocationIdentifier=home[1], invocationStepId=home[2]
            )["invocationStep"]
            found[home] = round(one["invocationStepTime"].timestamp() * 1000), one["payload"]["contentBlocks"]  # pyright: ignore[reportTypedDictNotRequiredAccess]
    return sessions, found


def targets(record: dict[str, Any], homes: list[Any]) -> list[Any]:
    """The blocks of other steps that a record refers to."""
    references = (item for item in record["b"] if isinstance(item, dict) and "block_type" not in item)
    return [(tuple(homes[item.get("h", 0)]), item["n"]) for item in references]


def by_decoder(home: Home, time: int, content: list[Any]) -> Any:
    """The changes of a step: id, time, facts and records."""
    changes = [change for _, change in decode(home, time, content).changes if change]
    return [(c.id, c.time, c.facts(), {p: record for p, (record, _) in c.messages.items()}) for c in changes]


def by_package(home: Home, time: int, content: list[Any]) -> Any:
    """The same, as the package reads them."""
    changes = [change for _, change in decoding.read_step(home, content, time).contents if change]
    return [(c.id, c.time, encoding.facts_json(c), {p: m.record for p, m in c.messages.items()}) for c in changes]


def plain(block: Any) -> Any:
    """A block of LlamaIndex as the decoder shows it."""
    if isinstance(block, TextBlock):
        return block.text if is_unicode(block.text) else {"block_type": "text", "text": block.text}
    fields = {name: value for name, value in vars(block).items() if value is not None}
    for name in ("image", "video"):
        if name in fields:
            raw = base64.b64decode(fields[name])
            fields[name] = raw if len(raw) < 1000 else {"sha256": hashlib.sha256(raw).hexdigest()}
    return {name: str(value) if name == "url" else value for name, value in fields.items()}


def iso(ms: int) -> str:
    """A time in ISO 8601."""
    return moment(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@contextmanager
def serving(sessions: dict[str, Any], steps: dict[Home, Any]) -> Iterator[Emulator]:
    """An emulator that holds these sessions and steps under their ids."""
    with Emulator() as emulator:
        client = emulator.client()
        for session, each in sessions.items():
            emulator.clock.stop(moment(each["createdAt"]))
            with mock.patch.object(emulator_store, "uuid", SimpleNamespace(uuid4=lambda s=session: uuid.UUID(s))):
                client.create_session(sessionMetadata=each["sessionMetadata"])
            client.create_invocation(sessionIdentifier=session, invocationId=default_invocation(session))
        for home, (time, content) in steps.items():
            emulator.clock.stop(moment(time))
            client.put_invocation_step(
                sessionIdentifier=home.session,
                invocationIdentifier=home.invocation,
                invocationStepId=home.step,
                invocationStepTime=moment(time),
                payload={"contentBlocks": content},
            )
        yield emulator


def moment(ms: int) -> datetime:
    """A time as boto3 takes it."""
    return datetime.fromtimestamp(ms / 1000, UTC)


# Everything is named


def test_every_member_that_is_written_is_named() -> None:
    """A change, a carried change, an opening and an envelope with every member there is."""
    change, opening = full_change(), full_opening()
    held = [getattr(each, field.name) for each in (change, opening) for field in dataclasses.fields(each)]
    assert all([*held, *opening.segments[0]]), "a field has no value here: give it one"
    packed = {**encoding.carried_json([(Home(*PLACE, ID).step, change)]), "named": [1], "taken": [1], "opening": 1}
    body = {"change": 1, "closing": {"reason": "continued"}, "attachment": True}
    envelope = json.loads(encoding.envelope(body, packed)["text"])
    (segment,) = encoding.opening_json(opening)["segments"]
    written = [
        envelope,
        envelope["closing"],
        packed,
        packed["carried"][0],
        encoding.facts_json(change),
        encoding.own_json(change, "", [1], [1]),
        encoding.opening_json(opening),
        segment,
    ]
    names = {name for each in written for name in each} | {records.PARTS, "release"}
    assert [name for name in sorted(names) if not is_named(name)] == []


def test_every_block_is_named() -> None:
    """All block types of LlamaIndex with their fields, all roles, and all tags of values."""
    kinds = message_codec._KINDS.values()
    names = {kind.block_type for kind in kinds} | {name for kind in kinds for name in kind.names}
    names |= {kind.data for kind in kinds if kind.data} | set(message_codec._ROLES) | {"data_url", "o", "n", "h"}
    assert [name for name in sorted(names) if not is_named(name)] == []
    assert all(f'`{{"{tag}": ' in PAGE for tag in ("~b", "~s", "~i", "~f", "~d", "~o", "~parts"))


def test_every_reserved_name_and_metadata_entry_is_named() -> None:
    """The entries of sessionMetadata, how many are left, and the named state that is not the application's."""
    assert [name for name in session_metadata.OURS if f"| `{name}` |" not in PAGE] == []
    assert f"so {session_metadata.MAX_METADATA} entries are left to the application" in PAGE
    assert [prefix for prefix in RESERVED if f"| `{prefix}" not in PAGE] == []
    assert all(is_named(mark) for mark in (model.HIDDEN, model.ENDED))


def test_every_limit_is_the_code_s() -> None:
    """The numbers of the page are those a reader holds to."""
    numbers = [decoding.DECOMPRESSED, decoding.CONTAINERS, decoding.CARRIED, decoding.MANY, model.BUDGET]
    assert [number for number in numbers if f"{number:,}" not in PAGE] == []
    assert str(ids.YEAR_2100) in PAGE
    assert f"{decoding._NESTING} levels" in PAGE
    assert f"{message_codec.MAX_IMAGE_BYTES:,} bytes" in PAGE


def is_named(name: str) -> bool:
    """Whether the page names a member in code."""
    return re.search(rf'`{re.escape(name)}`|"{re.escape(name)}"', PAGE) is not None


PLACE = (FIRST, NEXT)
ID = "019b7e26-5500-8000-8000-000000000001"


def full_change() -> Change:
    """A change in which every member has a value."""
    record = {"r": "user", "b": [{"n": 0}]}
    return Change(
        id="1f0c9d3e-7c1b-4e55-8f6a-2b3c4d5e6f70",
        time=START,
        messages={1: Message((ID, 1), record, (Home(*PLACE, ID),), 1)},
        removed=frozenset({(ID, 0)}),
        archived=frozenset({(ID, 1)}),
        is_set=True,
        state={"name": [1]},
        replaced=frozenset({"other"}),
        marks={ENDED: Mark(on=True)},
        invocations={NEXT: "why"},
        origin={"key": "k"},
        rewind={"before": ID},
        by="Ada",
        written=PLACE,
        count=3,
        foreign=True,
        damaged=True,
    )


def full_opening() -> Opening:
    """An opening in which every member has a value."""
    segment = Inherited(Home(*PLACE, ID), {0: frozenset({1})}, {0: frozenset({2})}, own=True, archive_only=True)
    return Opening(1, {FIRST: START}, {FIRST: frozenset({ID})}, frozenset({(ID, 1)}), (segment,), ID)


# Writing the example


class Writer:
    """Writes the steps of the example with the library; ids have small numbers for random bits."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.numbers = iter(range(1, 100))

    def bits(self, size: int) -> bytes:
        """The next number, in place of random bits."""
        return (next(self.numbers) << 2).to_bytes(size, "big")

    def show(self, home: Home, time: int, content: list[ContentBlock]) -> None:
        """Add a step, and what its `zip` holds."""
        self.written.append({"home": list(home), "time": time, "content": [golden.text(b) for b in content]})
        if packed := json.loads(content[-1]["text"]).get("zip"):
            self.written.append(json.loads(zlib.decompress(base64.b64decode(packed))))

    def put(self, journal: Journal, place: tuple[str, str], draft: Draft, now: int, **more: Any) -> model.Step:
        """Compose a step and show it."""
        composed = journal.compaction.compose(place, draft, Placed(), now, **more)
        self.show(composed.step.home, now, composed.payload)
        if "opening" not in more:
            journal.stored(composed)
        return composed.step


def opened(opening: model.Step, now: int, *others: model.Step) -> Journal:
    """The journal of a session that was just opened, after `others` of the sessions before."""
    journal = Journal([opening.home.session])
    for parent in opening.opening.parents if opening.opening else ():
        journal.plan.saw_list(parent, ())
    journal.plan.saw_list(opening.home.session, [Listed(opening.home, now)])
    journal.absorb(opening)
    for homes in journal.plan.rounds():
        for other in others:
            if other.home in homes:
                journal.absorb(other)
    return journal


def written() -> list[Any]:
    """The JSON of the example."""
    w = Writer()
    with mock.patch("os.urandom", w.bits):
        return [list(sessions()), *steps(w)]


def sessions() -> Iterator[Any]:
    """The two sessions, as the library creates them."""
    for session, created in ((FIRST, START - 1000), (NEXT, START + 7000)):
        values = ("order 4711", "default", str(model.VERSION), "metadata", None, None)
        metadata = session_metadata.metadata(dict(zip(session_metadata.OURS, values, strict=True)), {"team": "support"})
        yield {"session": session, "createdAt": created, "sessionMetadata": metadata}


def steps(w: Writer) -> list[Any]:
    """The six steps."""
    one, two = (FIRST, default_invocation(FIRST)), (NEXT, default_invocation(NEXT))
    nothing = Journal([])
    opening = nothing.compaction.opening({}, START)
    draft = Draft(message_codec.encode([ChatMessage("My order 4711 arrived broken.")]))
    first = w.put(nothing, one, draft, START, opening=opening)
    journal = opened(first, START)
    picture = [TextBlock(text="This is how it looks:"), ImageBlock(image=base64.b64decode(PNG))]
    answer = [
        TextBlock(text="I am sorry to see that. Let me look up what we can do about it."),
        ToolCallBlock(tool_call_id="call-1", tool_name="find_order", tool_kwargs={"order": 4711}),
    ]
    turn = [
        ChatMessage(role="user", blocks=picture),
        ChatMessage(role="assistant", blocks=answer, additional_kwargs={"confidence": float("inf")}),
    ]
    second = w.put(journal, one, Draft(message_codec.encode(turn), state={"topic": ["refund"]}), START + 2000)
    removed, archived = frozenset({(second.home.step, 1)}), frozenset({(first.home.step, 0)})
    draft = Draft(removed=removed, archived=archived, state={"topic": ["exchange"]}, by="Ada")
    third = w.put(journal, one, draft, START + 4000)
    closing = Home(*one, ids.new_id(START + 6000, Kind.CLOSING))
    w.show(closing, START + 6000, [encoding.envelope({"closing": {"reason": "continued"}}, {})])
    journal.plan.saw_list(FIRST, [Listed(closing, START + 6000)])
    opening = journal.compaction.opening({FIRST: START - 1000}, START + 8000)
    draft = Draft(message_codec.encode([ChatMessage("Can I get another one instead?")]))
    fifth = w.put(journal, two, draft, START + 8000, opening=opening)
    said = {"summary": "a new one is on its way", "kind": "exchange", "by": "Ada"}
    w.put(
        opened(fifth, START + 8000, second, third), two, Draft(marks={ENDED: Mark(on=True, said=said)}), START + 10_000
    )
    return w.written


def pretty(value: Any, indent: str = "") -> str:
    """JSON in as few lines as 130 columns allow."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent + line) <= 130 or not isinstance(value, (dict, list)) or not value:
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        inner = [f"{deeper}{json.dumps(name)}: {pretty(item, deeper)}" for name, item in value.items()]
    else:
        inner = [deeper + pretty(item, deeper) for item in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n" + ",\n".join(inner) + f"\n{indent}{end}"


def main() -> None:
    """Write the JSON of the example into the page."""
    head, example_text = PAGE[: PAGE.index(EXAMPLE)], PAGE[PAGE.index(EXAMPLE) :]
    values = iter(written())
    text = re.sub(
        r"^```json\n.*?^```$",
        lambda _: f"```json\n{pretty(next(values))}\n```",
        example_text,
        flags=re.DOTALL | re.MULTILINE,
    )
    assert next(values, None) is None, "the page has fewer places than there are values"
    PATH.write_text(head + text, "utf-8")


if __name__ == "__main__":
    assert MARK in PAGE
    main()
