"""Large contents in S3: where they go, what comes back, and that nothing else is ever touched.

S3 is moto's server: its API over HTTP, and no more of AWS.
"""

from __future__ import annotations

import base64
import dataclasses
import gc
import hashlib
import json
import os
import pickle
import threading
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import pytest
from botocore.config import Config
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    AudioBlock,
    ChatMessage,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    VideoBlock,
)

from llama_index_bedrock_sessions import (
    AccessDeniedError,
    BedrockSessionsChatStore,
    ConfigurationError,
    CredentialsError,
    RequestRefusedError,
    S3MediaStore,
    StepTooLargeError,
    ThrottledError,
    UnavailableError,
)
from llama_index_bedrock_sessions._bedrock import media
from llama_index_bedrock_sessions._bedrock.fork import reset_inherited
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.encoding import envelope
from llama_index_bedrock_sessions._journal.ids import Kind, new_id
from llama_index_bedrock_sessions.conformance import ChatStoreContract
from llama_index_bedrock_sessions.emulator import Behaviour
from tests.support import strategies
from tests.support.s3 import S3, answer, endpoint, refusal
from tests.support.service import DAY, KEY, Service, picture, png, run, texts, user
from tests.support.strategies import shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from botocore.awsrequest import AWSResponse
    from llama_index.core.storage.chat_store.base import BaseChatStore

    from llama_index_bedrock_sessions._journal.message_codec import ContentBlock

MISSING = "whose content is not in S3 any more, or was changed there]"
LARGE = bytes(range(256)) * 8
NINE_DAYS = timedelta(days=9)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def s3() -> S3:
    return S3()


def kept(s3: S3, **arguments: Any) -> S3MediaStore:
    """Return a media store on a bucket that takes all of 1,000 bytes or more."""
    return S3MediaStore(s3.bucket, "chats", client=s3.client, **{"threshold": 1000, **arguments})


def video(content: bytes = LARGE) -> ChatMessage:
    return ChatMessage(role="user", blocks=[TextBlock(text="see"), VideoBlock(video=content)])


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def folder(s3: S3) -> str:
    """Return what the keys of the one conversation in a bucket begin with."""
    (found,) = {key.rpartition("/")[0] + "/" for key in s3.names()}
    return found


def shown(store: BaseChatStore, key: str = KEY) -> list[Any]:
    return [shape(message) for message in store.get_messages(key)]


class TestContract(ChatStoreContract):
    """All that has bytes goes to S3."""

    @pytest.fixture
    def store(self, s3: S3) -> BaseChatStore:
        return Service().store(media=kept(s3, threshold=1))


# The codec


def encoded(message: ChatMessage, threshold: int | None) -> message_codec.Encoded:
    offload = message_codec.Offload(threshold, ("s3://bucket/place/",)) if threshold else None
    return message_codec.encode([message], offload=offload)


def native(found: message_codec.Encoded) -> Callable[[Any], ContentBlock | None]:
    return lambda item: found.blocks[item["n"] if isinstance(item, dict) else item]


def raw(content: message_codec.Content) -> bytes:
    return content.source if isinstance(content.source, bytes) else content.source.read_bytes()


@given(strategies.messages_of(strategies.blocks | strategies.stream_blocks), st.integers(1, 100))
def test_what_comes_back_is_what_went_in(message: ChatMessage, threshold: int) -> None:
    """decode(encode(m)) == normal(m), whatever is in objects; and nothing of that is in the step."""
    wanted = shape(message_codec.normal(message))
    found = encoded(message, threshold)
    (record,) = json.loads(json.dumps(found.records))
    assert list(found.contents) == list(dict.fromkeys(message_codec.objects(record)))
    assert shape(message_codec.decode(record, native(found), lambda digest: raw(found.contents[digest]))) == wanted
    assert all(content.size >= threshold for content in found.contents.values())


@given(strategies.messages, strategies.messages, st.sampled_from([None, 1, 20]), st.sampled_from([None, 1, 20]))
def test_outlines_are_equal_if_the_messages_are(
    one: ChatMessage, other: ChatMessage, threshold: int | None, another: int | None
) -> None:
    """What is compared without reading any object says what reading all would, wherever contents are kept."""
    first, second, again = encoded(one, threshold), encoded(other, another), encoded(one, another)
    outline = message_codec.outline(first.records[0], native(first))
    assert shape(outline) == shape(message_codec.outline(again.records[0], native(again)))
    are_equal = shape(message_codec.normal(one)) == shape(message_codec.normal(other))
    assert (shape(outline) == shape(message_codec.outline(second.records[0], native(second)))) is are_equal


@given(strategies.json_values | st.recursive(st.just("0" * 64), lambda inner: st.fixed_dictionaries({"~o": inner})))
@example("0" * 63)
@example(["0" * 64])
def test_hostile_references(value: Any) -> None:
    """Whatever stands for an object, decoding gives a message, and asks for nothing but SHA-256."""
    asked: list[str] = []
    items = [
        {"block_type": "video", "video": {"~o": value}},
        {"block_type": "video", "video": value},
        {"n": 0, "o": value},
        {"block_type": "citable", "title": "", "source": "", "content": [{"block_type": "image", "image": value}]},
    ]
    record = {"r": "user", "b": items}
    message = message_codec.decode(record, lambda _: {"image": {"format": "png", "source": {}}}, asked.append)
    assert len(message.blocks) == len(items)
    assert all(message_codec._SHA256.fullmatch(digest) for digest in asked)
    assert set(asked) == set(message_codec.objects(record))
    message_codec.outline(record, lambda _: None)


# What goes where


def test_images_are_native_wherever_they_are(service: Service, s3: S3) -> None:
    """A large image is a native block that names its object; a small one is in the step as without `media=`."""
    store = service.store(media=kept(s3))
    small, large = png(), png(40, 40)
    content = [ImageBlock(image=small), ImageBlock(image=large)]
    store.add_message(KEY, ChatMessage(role="user", blocks=content))
    (session,) = service.sessions()
    (step,) = service.steps(session["sessionId"])
    (first, second, _) = step["payload"]["contentBlocks"]
    assert first["image"]["source"] == {"bytes": small}
    uri = second["image"]["source"]["s3Location"]["uri"]
    assert uri == f"s3://{s3.bucket}/{folder(s3)}{sha256(large)}"
    assert s3.content(folder(s3) + sha256(large)) == large
    (message,) = service.store(media=kept(s3)).get_messages(KEY)
    assert shape(message.blocks) == shape(content)


def test_each_kind_of_content_comes_back(service: Service, s3: S3, tmp_path: Path) -> None:
    """Bytes, streams and files of every kind of block, nested ones too, are objects, and come back as bytes."""
    file = tmp_path / "film.mp4"
    file.write_bytes(b"\0\0\0\x18ftypmp42" + LARGE)
    huge = tmp_path / "huge.png"
    huge.write_bytes(png() + bytes(4_000_000))
    content = [
        AudioBlock(audio=BytesIO(b"RIFF" + LARGE)),
        DocumentBlock(data=b"%PDF-1.4" + LARGE, title="a.pdf"),
        VideoBlock(path=file),
        ImageBlock(path=huge),
        ImageBlock(image=b"no picture" + LARGE),
        ImageBlock(url="data:image/png;base64," + base64.b64encode(png(40, 40)).decode()),
        CitableBlock(title="t", source="s", content=[DocumentBlock(data=b"%PDF-1.5" + LARGE)]),
    ]
    message = ChatMessage(role="user", blocks=content, additional_kwargs={"id": 7})
    wanted = shape(message_codec.normal(message, lambda path: Path(path).read_bytes()))
    service.store(media=kept(s3)).add_message(KEY, message)
    assert len(s3.names()) == len(content)
    file.unlink()
    huge.unlink()
    assert shown(service.store(media=kept(s3))) == [wanted]


def test_without_media_nothing_changes(service: Service, s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads without `media=` sees where images are, and that the rest is in S3."""
    content = [ImageBlock(image=png(40, 40)), ImageBlock(image=png())]
    service.store(media=kept(s3)).set_messages(KEY, [ChatMessage(role="user", blocks=content), video()])
    first, second = service.store().get_messages(KEY)
    link = f"s3://{s3.bucket}/{folder(s3)}{sha256(png(40, 40))}"
    assert first.blocks == [ImageBlock(url=link, image_mimetype="image/png"), content[1]]
    assert second.blocks[1] == TextBlock(text="[unreadable block: video in S3: the chat store was made without media=]")
    assert "replaced by placeholders" in caplog.text


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(strategies.messages, max_size=4))
def test_round_trips(s3: S3, messages: list[ChatMessage]) -> None:
    """A store with `media=` gives back what it was given; given that again, it writes and asks S3 for nothing."""
    service = Service()
    store = service.store(media=kept(s3, threshold=10))
    store.set_messages(KEY, messages)
    assert shown(store) == [shape(message_codec.normal(message)) for message in messages]
    reader = service.store(media=kept(s3, threshold=10))
    again = reader.get_messages(KEY)
    s3.calls.clear()
    with service.counting() as calls:
        if all(message == message for message in again):  # not NaN  # noqa: PLR0124
            reader.set_messages(KEY, again)
            assert calls["PutInvocationStep"] == 0
            assert s3.calls["GetObject"] == s3.calls["PutObject"] == s3.calls["HeadObject"] == 0


@pytest.mark.parametrize("threshold", [1000, 10_000_000])
def test_what_is_stored_otherwise_is_not_written_again(service: Service, s3: S3, threshold: int) -> None:
    """Giving a store `media=`, or another threshold, rewrites nothing of what it has."""
    messages = [video(), user("and"), picture(), ChatMessage(role="user", blocks=[ImageBlock(image=png(40, 40))])]
    service.store(media=kept(s3, threshold=11_001_000 - threshold)).set_messages(KEY, messages)
    before = service.everything()
    service.store(media=kept(s3, threshold=threshold)).set_messages(KEY, messages)
    assert service.everything() == before


@pytest.mark.parametrize("read", ["s3", "presigned"])
def test_urls(service: Service, s3: S3, read: str) -> None:
    """Messages hold URLs if so wanted; given back they are what was stored, in a new message too."""
    messages = [
        video(),
        ChatMessage(role="user", blocks=[ImageBlock(image=png(40, 40)), DocumentBlock(data=LARGE, title="a.pdf")]),
    ]
    service.store(media=kept(s3)).set_messages(KEY, messages)
    store = service.store(media=kept(s3, read=read))
    s3.calls.clear()
    given = store.get_messages(KEY)
    assert s3.calls.total() == 0
    links = [str(block.url) for m in given for block in m.blocks if not isinstance(block, TextBlock)]  # type: ignore[union-attr]
    places = [link.partition("?")[0].rpartition("/") for link in links]
    assert [digest for _, _, digest in places] == [sha256(LARGE), sha256(png(40, 40)), sha256(LARGE)]
    root = f"s3://{s3.bucket}" if read == "s3" else f"{endpoint()}/{s3.bucket}"
    assert {f"{place}/" for place, _, _ in places} == {f"{root}/{folder(s3)}"}
    assert all(("X-Amz-Signature" in link or "Signature=" in link) is (read == "presigned") for link in links)
    before = service.everything()
    store.set_messages(KEY, given)
    assert service.everything() == before
    store.add_message(KEY, ChatMessage(role="user", blocks=given[0].blocks))
    assert shown(service.store(media=kept(s3))) == [shape(message_codec.normal(m)) for m in [*messages, video()]]


@pytest.mark.parametrize(
    ("setting", "kind"), [("ValidationException", RequestRefusedError), ("AccessDeniedException", AccessDeniedError)]
)
def test_where_bedrock_takes_no_image_in_s3(s3: S3, setting: Any, kind: type[Exception]) -> None:
    """It is an error, nothing is half stored, and a threshold above the limit of images keeps them in the steps."""
    service = Service(behaviour=Behaviour(image_in_s3=setting))
    message = ChatMessage(role="user", blocks=[ImageBlock(image=png(40, 40)), VideoBlock(video=bytes(4_000_000))])
    with pytest.raises(kind):
        service.store(media=kept(s3)).add_message(KEY, message)
    store = service.store(media=kept(s3, threshold=3_750_001))
    assert store.get_messages(KEY) == []
    store.add_message(KEY, message)
    assert shown(service.store(media=kept(s3))) == [shape(message_codec.normal(message))]
    store.delete_messages(KEY)
    assert s3.names() == []


# Uploads


def test_what_is_there_is_not_uploaded_again(service: Service, s3: S3) -> None:
    """The same content in another message, or from another process, is one object, uploaded once.

    The second writer copies it onto itself, so that a process that deletes objects sees that it is wanted.
    """
    service.store(media=kept(s3)).add_message(KEY, video())
    s3.later(timedelta(hours=1))
    s3.calls.clear()
    service.store(media=kept(s3)).add_message(KEY, video())
    assert len(s3.names()) == 1
    assert (s3.calls["PutObject"], s3.calls["CopyObject"]) == (0, 1)
    assert s3.age(s3.names()[0]) < timedelta(hours=1)


def test_what_is_old_or_cut_short_is_stored_again(service: Service, s3: S3) -> None:
    """An object that a lifecycle rule is about to delete is copied onto itself, and one cut short uploaded."""
    service.store(media=kept(s3)).add_message(KEY, video())
    (key,) = s3.names()
    s3.later(NINE_DAYS)
    service.store(media=kept(s3)).add_message(KEY, video())
    assert s3.age(key) < NINE_DAYS
    s3.put(key, LARGE[:-1])
    service.store(media=kept(s3)).add_message(KEY, video())
    assert s3.content(key) == LARGE


def test_nothing_is_stored_before_its_content(service: Service, s3: S3) -> None:
    """Where S3 fails, no message is written, the same call succeeds later, and nothing is left behind by deleting."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, user("first"))
    s3.fail("PutObject", 503, "SlowDown")
    with pytest.raises(ThrottledError) as error:
        store.add_message(KEY, video())
    assert (error.value.retryable, error.value.may_have_happened) == (True, False)
    assert texts(store) == ["first"]
    s3.before.clear()
    store.add_message(KEY, video())
    assert shown(store) == [shape(m) for m in [user("first"), message_codec.normal(video())]]


@pytest.mark.parametrize("is_there", [True, False])
def test_what_is_deleted_meanwhile_is_uploaded_again(service: Service, s3: S3, *, is_there: bool) -> None:
    """An object that is deleted before the step that refers to it is written is there afterwards, old or new."""
    if is_there:
        service.store(media=kept(s3)).add_message(KEY, video())
    store = service.store(media=kept(s3))
    before = store.get_messages(KEY)
    s3.calls.clear()

    store.client.meta.events.register("before-call.*.PutInvocationStep", lambda **_: s3.remove())
    store.add_message(KEY, video())
    assert s3.calls["PutObject"] == (1 if is_there else 2)
    assert shown(service.store(media=kept(s3))) == [shape(message_codec.normal(video()))] * (len(before) + 1)


def test_a_changed_file_is_refused(service: Service, s3: S3, tmp_path: Path) -> None:
    """S3 is told the SHA-256 of what it gets: a file that changes while it is stored is refused, not stored wrongly."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, video())
    file = tmp_path / "film"
    file.write_bytes(bytes(5_000_000))
    sent: list[bytes] = []

    def check(request: Any) -> AWSResponse:
        sent.append(base64.b64decode(request.headers["x-amz-checksum-sha256"]))
        return refusal(request, 400, "BadDigest")

    s3.before["PutObject"] = check
    with pytest.raises(RequestRefusedError, match="changed while"):
        store.add_message(KEY, ChatMessage(role="user", blocks=[VideoBlock(path=file)]))
    assert sent == [hashlib.sha256(bytes(5_000_000)).digest()]
    s3.before["HeadObject"] = lambda request: file.unlink() or refusal(request, 404, "404")  # type: ignore[func-returns-value]
    with pytest.raises(RequestRefusedError, match="cannot be read any more"):
        store.add_message(KEY, ChatMessage(role="user", blocks=[VideoBlock(path=file)]))
    assert len(store.get_messages(KEY)) == 1


def test_too_large_for_an_object(service: Service, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than S3 takes at once is refused before anything is sent."""
    monkeypatch.setattr(media, "MAX_OBJECT", len(LARGE) - 1)
    with pytest.raises(StepTooLargeError, match="Nothing was stored"):
        service.store(media=kept(s3)).add_message(KEY, video())
    assert s3.calls.total() == 0


MEMORY = """
import resource, sys
from pathlib import Path
import boto3
from botocore.config import Config
from llama_index.core.base.llms.types import ChatMessage, TextBlock, VideoBlock
from llama_index_bedrock_sessions import BedrockSessionsChatStore, S3MediaStore
url, bucket, small, large = sys.argv[1:]
keys = {"aws_access_key_id": "AKIDS3", "aws_secret_access_key": "secret"}
config = Config(s3={"addressing_style": "path"})
client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=config, **keys)
store = BedrockSessionsChatStore.local(media=S3MediaStore(bucket, client=client))
store.add_message("k", ChatMessage(role="user", blocks=[TextBlock(text="x"), VideoBlock(path=Path(small))]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
message = ChatMessage(role="user", blocks=[VideoBlock(path=Path(large))])
store.add_message("k", message)
store.set_messages("k", [ChatMessage("only"), message])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024))
"""


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs `resource`, which Windows has not")
def test_a_large_file_is_streamed(s3: S3, tmp_path: Path) -> None:
    """Storing a file of 200 MB by its path takes less than 64 MB more memory than storing a small one."""
    small, large = tmp_path / "small.mp4", tmp_path / "large.mp4"
    small.write_bytes(bytes(4_000_000))
    with large.open("wb") as file:
        file.truncate(200_000_000)
    grown = int(run(MEMORY, endpoint(), s3.bucket, str(small), str(large)))
    assert grown < 64_000_000
    assert sorted(len(s3.content(key)) for key in s3.names()) == [4_000_000, 200_000_000]


# Reading


def test_what_was_read_lately_is_not_read_again(service: Service, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second read asks S3 for nothing, as far as the memory for it goes; equal contents are read once."""
    contents = [bytes([n]) * 10_000 for n in range(4)]
    service.store(media=kept(s3)).set_messages(KEY, [video(c) for c in [*contents, contents[0]]])
    monkeypatch.setattr(media, "CACHE", 20_000)
    store = service.store(media=kept(s3))
    s3.calls.clear()
    expected = shown(store)
    assert s3.calls == {"GetObject": 4}
    monkeypatch.setattr(media, "CACHE", 64_000_000)
    assert shown(store) == expected
    assert s3.calls == {"GetObject": 4 + 2}
    assert shown(store) == expected
    assert s3.calls == {"GetObject": 4 + 2}
    assert store._bucket is not None
    known = store._bucket.contents()
    assert known._bytes == sum(map(len, known._by_name.values())) == 40_000


def test_objects_are_read_in_parallel(service: Service, s3: S3) -> None:
    """Four objects are under way at once: the first waits for the fourth."""
    service.store(media=kept(s3)).set_messages(KEY, [video(bytes([n]) * 2000) for n in range(4)])
    meeting = threading.Barrier(4, timeout=60)

    def meet(_: Any) -> None:
        meeting.wait()

    s3.before["GetObject"] = meet
    assert len(service.store(media=kept(s3)).get_messages(KEY)) == 4
    assert not meeting.broken


@pytest.mark.parametrize("wrong", [None, b"", LARGE[:-1], LARGE + b"!", bytes(len(LARGE))])
def test_missing_and_changed_objects(
    service: Service, s3: S3, wrong: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What is gone, cut short or changed is a visible placeholder in its message, logged; the rest is as it was."""
    picture_of_size = ChatMessage(role="user", blocks=[TextBlock(text="look"), ImageBlock(image=png(40, 40))])
    service.store(media=kept(s3)).set_messages(KEY, [user("before"), video(), picture_of_size, video(LARGE * 2)])
    for content in (LARGE, png(40, 40)):
        s3.remove(folder(s3) + sha256(content)) if wrong is None else s3.put(folder(s3) + sha256(content), wrong)
    first, second, third, fourth = service.store(media=kept(s3)).get_messages(KEY)
    assert second.blocks == [TextBlock(text="see"), TextBlock(text=f"[unreadable block: video {MISSING}")]
    assert third.blocks == [TextBlock(text="look"), TextBlock(text=f"[unreadable block: image {MISSING}")]
    assert [shape(m) for m in (first, fourth)] == [
        shape(m) for m in (user("before"), message_codec.normal(video(LARGE * 2)))
    ]
    assert "replaced by placeholders" in caplog.text
    assert ("is not that of its name" in caplog.text) is (wrong is not None)


def test_nothing_foreign_is_read(service: Service, s3: S3) -> None:
    """References to other buckets, prefixes and conversations, native or in our envelope, are never followed."""
    store = service.store(media=kept(s3))
    store.add_message("other", video())
    other = folder(s3)
    store.add_message(KEY, user("mine"))
    session = next(s for s in service.sessions() if KEY in s["sessionMetadata"].values())["sessionId"]
    uris = [f"s3://{s3.bucket}/{other}{sha256(LARGE)}", "s3://secret-bucket/password", f"s3://{s3.bucket}/chats/x"]
    for uri in uris:
        service.put(session, [{"image": {"format": "png", "source": {"s3Location": {"uri": uri}}}}])
    digests = (sha256(LARGE), f"../{other}", other, 7)
    forged: list[Any] = [{"block_type": "video", "video": {"~o": digest}} for digest in digests]
    forged += [{"block_type": "video", "url": uri} for uri in uris]
    step = new_id(store._sessions.clock.now() + 5, Kind.CHANGE)
    envelope_of = envelope({"change": {"add": [{"r": "user", "b": forged}]}}, {})
    service.put(session, [envelope_of], invocationStepId=step)
    s3.calls.clear()
    asked: list[str] = []
    s3.before["GetObject"] = lambda request: asked.append(request.url)
    messages = service.store(media=kept(s3)).get_messages(KEY)
    # The one digest is looked for among the conversation's own objects.
    assert [url.rpartition("/")[2] for url in asked] == [sha256(LARGE)]
    assert other not in asked[0]
    assert s3.calls == {"GetObject": 1}
    urls = {str(b.url) for m in messages for b in m.blocks if isinstance(b, (ImageBlock, VideoBlock)) and b.url}
    assert urls == set(uris)


def test_a_foreign_url_stays_a_url(service: Service, s3: S3) -> None:
    """A URL of another place is stored as the URL it is, also if it looks like one of ours."""
    store = service.store(media=kept(s3, read="s3"))
    store.add_message("other", video())
    links = [f"s3://{s3.bucket}/{folder(s3)}{sha256(LARGE)}", f"https://example.com/{sha256(LARGE)}"]
    message = ChatMessage(role="user", blocks=[VideoBlock(url=link) for link in links])
    store.add_message(KEY, message)
    assert shown(store) == [shape(message)]
    store.delete_messages("other")


def test_failed_second_look_does_not_fail_the_message(
    service: Service, s3: S3, caplog: pytest.LogCaptureFixture
) -> None:
    """Where S3 has no answer after the message was written, it is stored, once, and its positions are known."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, user("first"))
    store.client.meta.events.register("before-call.*.PutInvocationStep", lambda **_: s3.fail("HeadObject", 503, "503"))
    store.add_message(KEY, video())
    assert "was not looked for again" in caplog.text
    s3.before.clear()
    assert shown(service.store(media=kept(s3))) == [shape(m) for m in [user("first"), message_codec.normal(video())]]


# Deleting, copying, keeping


def test_deleting_deletes_the_objects(service: Service, s3: S3) -> None:
    """A conversation's objects go with it, orphans too; nobody else's, and nothing that is not named as ours are."""
    store = service.store(media=kept(s3))
    store.add_message("other", video())
    other = folder(s3)
    store.add_message(KEY, video())
    service.faults.add("PutInvocationStep", 1, "throttle")
    with pytest.raises(ThrottledError):
        store.add_message(KEY, video(LARGE * 2))
    (mine,) = {key.rpartition("/")[0] for key in s3.names()} - {other.rstrip("/")}
    s3.put(f"{mine}/notes.txt", b"not ours")
    s3.put(f"{mine}-2/{sha256(LARGE)}", LARGE)
    assert len(s3.names()) == 5
    deleted = store.delete_messages(KEY)
    assert [shape(m) for m in deleted or ()] == [shape(message_codec.normal(video()))]
    assert s3.names() == sorted([f"{other}{sha256(LARGE)}", f"{mine}/notes.txt", f"{mine}-2/{sha256(LARGE)}"])
    assert store._bucket is not None
    assert not [name for name in store._bucket.contents()._by_name if name.startswith(mine)]


@pytest.mark.parametrize(
    ("operation", "code", "kind"),
    [("DeleteObjects", "AccessDenied", AccessDeniedError), ("ListObjectsV2", "InternalError", UnavailableError)],
)
def test_deleting_again_deletes_the_rest(
    service: Service, s3: S3, operation: str, code: str, kind: type[Exception]
) -> None:
    """Where S3 fails while a conversation is deleted, an error says so, and the next call deletes what is left."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, video())
    s3.fail(operation, 500, code)
    with pytest.raises(kind) as error:
        store.delete_messages(KEY)
    # The messages have left the conversation by then, whatever fails first.
    assert getattr(error.value, "may_have_happened", None) is True
    s3.before.clear()
    service.store(media=kept(s3)).delete_messages(KEY)
    assert (s3.names(), service.sessions()) == ([], [])


def test_one_object_that_cannot_be_deleted(service: Service, s3: S3) -> None:
    """S3 answers a list of deletions with 200 and names those it did not do."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, video())
    body = b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code><Message>no</Message></Error></DeleteResult>"
    s3.before["DeleteObjects"] = lambda request: answer(request, 200, body)
    with pytest.raises(AccessDeniedError, match="s3:DeleteObject"):
        store.delete_messages(KEY)


@pytest.mark.parametrize("content", [LARGE, LARGE * 2])
def test_whoever_begins_anew_keeps_his_objects(service: Service, s3: S3, content: bytes) -> None:
    """A message stored by another process while its key is deleted keeps its content, the same or another."""
    store, other = service.store(media=kept(s3)), service.store(media=kept(s3))
    store.add_message(KEY, video())
    begin = "after-call.*.DeleteSession"
    store.client.meta.events.register(begin, lambda **_: other.add_message(KEY, video(content)))
    store.delete_messages(KEY)
    assert shown(service.store(media=kept(s3))) == [shape(message_codec.normal(video(content)))]
    assert s3.names() == [folder(s3) + sha256(content)]


def test_what_lives_on_is_renewed(service: Service, s3: S3) -> None:
    """Objects of messages that are continued past nine days are copied onto themselves; no others are."""
    store = service.store(media=kept(s3))
    store.set_messages(KEY, [video(), picture(1), video(LARGE * 2)])
    store.delete_message(KEY, 2)
    service.later(5 * DAY)
    s3.later(timedelta(days=5))
    s3.calls.clear()
    store.add_message(KEY, user("after five days"))
    assert s3.calls.total() == 0
    service.later(5 * DAY)
    s3.later(timedelta(days=5))
    store.add_message(KEY, user("after ten days"))
    ages = {key.rpartition("/")[2]: s3.age(key) for key in s3.names()}
    assert ages[sha256(LARGE)] < timedelta(days=1)
    assert ages[sha256(LARGE * 2)] > NINE_DAYS
    assert s3.calls["ListObjectsV2"] == 1
    assert shape(service.store(media=kept(s3)).get_messages(KEY)[0]) == shape(message_codec.normal(video()))
    s3.remove(folder(s3) + sha256(LARGE))
    s3.later(timedelta(days=10))
    service.later(10 * DAY)
    store.add_message(KEY, user("what is missing is passed over"))


def test_a_native_image_is_carried_past_nine_days(service: Service, s3: S3) -> None:
    """A native image whose content is in S3 is copied to the next session as what it is."""
    message = ChatMessage(role="user", blocks=[ImageBlock(image=png(40, 40))])
    store = service.store(media=kept(s3))
    store.add_message(KEY, message)
    for _ in range(4):
        service.later(10 * DAY)
        s3.later(timedelta(days=10))
        store.add_message(KEY, user("go on"))
    assert shown(service.store(media=kept(s3)))[0] == shape(message)


def test_who_has_no_media_is_told(service: Service, s3: S3, caplog: pytest.LogCaptureFixture) -> None:
    """A writer without `media=` that continues a conversation with contents in S3 logs that it cannot renew them."""
    service.store(media=kept(s3)).add_message(KEY, video())
    service.later(10 * DAY)
    service.store().add_message(KEY, user("go on"))
    assert "1 contents in S3 are not renewed" in caplog.text


def test_redacting_takes_the_bucket_too(service: Service, s3: S3) -> None:
    """Without `media=` what is in S3 would stay there: redacting its message is refused, and changes nothing."""
    store = service.store(media=kept(s3))
    store.set_messages(KEY, [video(), user("stays")])
    first, second = (record.id for record in store.conversation(KEY).records())
    without = service.store().conversation(KEY)
    before = service.everything()
    with pytest.raises(ConfigurationError, match="Construct the chat store with the media="):
        without.redact(first)
    assert service.everything() == before
    without.redact(second)
    store.conversation(KEY).redact(first)
    assert (s3.names(), texts(service.store())) == ([], [])


@pytest.mark.parametrize("operation", ["redact", "delete"])
def test_content_of_a_step_that_is_listed_late_stays(s3: S3, operation: str) -> None:
    """A content that another process stores again while objects are deleted stays, though no list shows its step."""
    service = Service(behaviour=Behaviour(steps_listed_after_seconds=1))
    store, other = (service.store(media=kept(s3), settling_time=2) for _ in range(2))
    store.set_messages(KEY, [video(), user("stays")])
    first, _ = (record.id for record in store.conversation(KEY).records())
    service.later(10)
    s3.later(timedelta(hours=1))
    # The last moment before the references are read.
    moment = "before-call.*.ListSessions" if operation == "delete" else "after-call.*.DeleteSession"

    def add_again(**_: Any) -> None:
        if service.sessions() and operation == "delete":
            return
        if len(stored) == 0:
            stored.append(video())
            other.add_message(KEY, video())

    stored: list[ChatMessage] = []
    store.client.meta.events.register(moment, add_again)
    if operation == "redact":
        store.conversation(KEY).redact(first)
    else:
        store.delete_messages(KEY)
    service.later(60)
    assert stored
    assert shown(service.store(media=kept(s3)))[-1] == shape(message_codec.normal(video()))


@pytest.mark.parametrize("late", [0.5, 1, 2, 12])
def test_redact_keeps_live_media_when_lists_are_late(s3: S3, late: float) -> None:
    """Where the copy is not listed yet when the old sessions are gone, what its messages refer to is not deleted."""
    service = Service(behaviour=Behaviour(sessions_listed_after_seconds=late))
    store = service.store(media=kept(s3), settling_time=late)
    store.set_messages(KEY, [video(LARGE * 2), video()])
    service.later(late)
    store.conversation(KEY).redact(store.conversation(KEY).records()[0].id)
    assert [name.rpartition("/")[2] for name in s3.names()] == [sha256(LARGE)]
    service.emulator.behaviour = Behaviour()
    assert shown(service.store(media=kept(s3))) == [shape(message_codec.normal(video()))]


def test_copying(service: Service, s3: S3) -> None:
    """Objects are copied to another conversation, as S3 copies; what is missing is passed over."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, video())
    assert store._bucket is not None
    one, two = store._bucket.objects("default", KEY), store._bucket.objects("default", "copy")
    s3.calls.clear()
    one.copy(two, [sha256(LARGE), sha256(b"missing"), sha256(LARGE)])
    assert two.fetch([sha256(LARGE)]) == {sha256(LARGE): LARGE}
    assert s3.calls == {"CopyObject": 2, "GetObject": 1}
    two.delete(two.listed())
    assert list(one.listed()) == [sha256(LARGE)]


def test_many_objects(service: Service, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists are read to their last page, and deletions go in as many requests as they take."""
    monkeypatch.setattr(media, "_DELETE", 2)
    store = service.store(media=kept(s3))
    store.set_messages(KEY, [video(bytes([n]) * 2000) for n in range(5)])
    with_pages = s3_pages(s3, 2)
    assert store._bucket is not None
    assert len(store._bucket.objects("default", KEY).listed()) == 5
    assert s3.calls["ListObjectsV2"] == with_pages
    store.delete_messages(KEY)
    assert s3.names() == []
    assert s3.calls["DeleteObjects"] == 3


def s3_pages(s3: S3, size: int) -> int:
    """Have lists of five come in pages of a size; return how many these are."""

    def paged(request: Any) -> None:
        request.url += f"&max-keys={size}"

    s3.before["ListObjectsV2"] = paged
    return -(-5 // size)


# Errors and configuration


@pytest.mark.parametrize(
    ("status", "code", "kind", "match"),
    [
        (403, "AccessDenied", AccessDeniedError, "s3:PutObject"),
        (400, "KMS.DisabledException", AccessDeniedError, "s3:PutObject"),
        (404, "NoSuchBucket", ConfigurationError, "There is no bucket"),
        (301, "PermanentRedirect", ConfigurationError, "another region"),
        (403, "InvalidAccessKeyId", CredentialsError, "does not accept"),
        (400, "ExpiredToken", CredentialsError, "does not accept"),
        (503, "SlowDown", ThrottledError, "throttled"),
        (500, "InternalError", UnavailableError, "failed"),
        (400, "EntityTooLarge", RequestRefusedError, "refused"),
    ],
)
def test_errors_of_uploads(
    service: Service, s3: S3, status: int, code: str, *, kind: type[Exception], match: str
) -> None:
    """What S3 answers is an error of ours that says whose fault it is; nothing is stored."""
    store = service.store(media=kept(s3))
    s3.fail("PutObject", status, code)
    with pytest.raises(kind, match=match) as error:
        store.add_message(KEY, video())
    assert getattr(error.value, "retryable", None) is issubclass(kind, (ThrottledError, UnavailableError))
    assert getattr(error.value, "may_have_happened", None) is False
    assert store.get_messages(KEY) == []


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", AccessDeniedError),
        (503, "SlowDown", ThrottledError),
        (404, "NoSuchBucket", ConfigurationError),
    ],
)
def test_errors_of_reads(service: Service, s3: S3, status: int, code: str, kind: type[Exception]) -> None:
    """What may be there is no placeholder: that S3 fails is told."""
    service.store(media=kept(s3)).add_message(KEY, video())
    s3.fail("GetObject", status, code)
    with pytest.raises(kind):
        service.store(media=kept(s3)).get_messages(KEY)


def test_no_answer(service: Service) -> None:
    """An endpoint where nobody listens is the service's fault, and can be tried again."""
    client = boto3.client(
        "s3",
        endpoint_url="http://127.0.0.1:9",
        region_name="us-east-1",
        aws_access_key_id="A",
        aws_secret_access_key="S",
        config=Config(retries={"total_max_attempts": 1}),
    )
    store = service.store(media=S3MediaStore("a-bucket", client=client, threshold=1))
    with pytest.raises(UnavailableError, match="S3 did not answer"):
        store.add_message(KEY, video())


def test_an_endpoint_that_makes_no_client(service: Service) -> None:
    """What boto3 raises for an endpoint that is not an address is a matter of configuration."""
    store = service.store(media=S3MediaStore("a-bucket", endpoint_url="nonsense", region_name="us-east-1", threshold=1))
    with pytest.raises(ConfigurationError, match="nonsense"):
        store.add_message(KEY, video())


def test_who_may_not_list_can_store(service: Service, s3: S3) -> None:
    """Without s3:ListBucket S3 answers a question for a missing object with 403: it is uploaded."""
    s3.fail("HeadObject", 403, "403")
    store = service.store(media=kept(s3))
    store.add_message(KEY, video())
    assert shown(store) == [shape(message_codec.normal(video()))]


def test_kms(service: Service, s3: S3) -> None:
    """Objects are encrypted with the key that was given, when they are renewed too."""
    arn = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
    store = service.store(media=kept(s3, kms_key_arn=arn))
    store.add_message(KEY, video())
    (key,) = s3.names()
    asked: list[Any] = []
    s3.before["CopyObject"] = lambda request: asked.append(request.headers)
    assert s3.client.head_object(Bucket=s3.bucket, Key=key)["SSEKMSKeyId"] == arn
    s3.later(NINE_DAYS)
    assert store._bucket is not None
    store._bucket.objects("default", KEY).renew([sha256(LARGE)])
    assert asked[0]["x-amz-server-side-encryption-aws-kms-key-id"].decode() == arn


@pytest.mark.parametrize(
    "arguments",
    [
        {"bucket": "No Bucket"},
        {"bucket": "arn:aws:s3:us-east-1:123456789012:accesspoint/a"},
        {"bucket": 7},
        {"prefix": "a b"},
        {"prefix": "p" * 701},
        {"threshold": 0},
        {"threshold": "large"},
        {"read": "text"},
        {"client": object(), "region_name": "us-east-1"},
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any]) -> None:
    """What cannot work is refused when it is constructed."""
    with pytest.raises(ConfigurationError, match="S3MediaStore"):
        S3MediaStore(**{"bucket": "a-bucket", **arguments})


def test_a_dict_brings_the_store_back(s3: S3, tmp_path: Path) -> None:
    """What a dict can hold of `media=` is in it, and makes the same store; a client is not, and is asked for."""
    plain = S3MediaStore(s3.bucket, "/chats/", threshold=1000, endpoint_url=endpoint(), region_name="us-east-1")
    store = BedrockSessionsChatStore.local(tmp_path / "a.db", media=plain)
    data = json.loads(json.dumps(store.to_dict()))
    assert data["media"] == {
        "bucket": s3.bucket,
        "prefix": "chats",
        "threshold": 1000,
        "read": "bytes",
        "region_name": "us-east-1",
        "endpoint_url": endpoint(),
    }
    assert BedrockSessionsChatStore.from_dict(data) is store
    assert pickle.loads(pickle.dumps(store)) is store
    del store
    gc.collect()
    assert BedrockSessionsChatStore.from_dict(data).media == plain
    with_client = BedrockSessionsChatStore.local(tmp_path / "b.db", media=kept(s3))
    data = json.loads(json.dumps(with_client.to_dict()))
    everything = f"{data}{with_client!r}{with_client.media!r}"
    assert "AKIDS3" not in everything
    assert BedrockSessionsChatStore.from_dict({**data, "instance": "another"}) is with_client
    other = BedrockSessionsChatStore.local(tmp_path / "b.db", media=kept(S3()))
    del with_client
    gc.collect()
    with pytest.raises(ConfigurationError, match="Construct the same"):
        BedrockSessionsChatStore.from_dict(data)
    assert other.media is not None


def test_credentials_of_the_store_are_those_for_the_bucket(s3: S3, tmp_path: Path) -> None:
    """Without `client=` the bucket is used with the chat store's own region and credentials."""
    where = S3MediaStore(s3.bucket, threshold=1000, endpoint_url=endpoint())
    arguments: dict[str, Any] = {
        "region_name": "eu-west-1",
        "aws_access_key_id": "AKIDOWN",
        "aws_secret_access_key": "secret",
    }
    store = BedrockSessionsChatStore(media=where, **arguments)
    assert store._bucket is not None
    client = store._bucket.client()
    assert client.meta.region_name == "eu-west-1"
    assert client._request_signer._credentials.access_key == "AKIDOWN"
    elsewhere = BedrockSessionsChatStore(media=dataclasses.replace(where, region_name="us-east-1"), **arguments)
    assert elsewhere._bucket is not None
    assert elsewhere._bucket.client().meta.region_name == "us-east-1"


def test_a_forked_child_has_a_client_of_its_own(s3: S3, service: Service) -> None:
    """What a child inherits is dropped: a client that the store made, and what was read."""
    store = service.store(media=kept(s3))
    store.add_message(KEY, video())
    store.get_messages(KEY)
    assert store._bucket is not None
    assert store._bucket.contents()._by_name
    reset_inherited()
    assert not store._bucket.contents()._by_name
    assert shown(store) == [shape(message_codec.normal(video()))]
