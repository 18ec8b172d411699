"""The codec of messages: its law for every block type, hostile records, and what its docstring says of each oddity."""

import base64
import json
import logging
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.schema import ImageDocument
from pydantic import AnyUrl, BaseModel, HttpUrl

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.message_codec import (
    ContentBlock,
    Encoded,
    carried,
    decode,
    encode,
    foreign,
    normal,
    placeholder,
)
from llama_index_bedrock_sessions._journal.records import own_references
from llama_index_bedrock_sessions.errors import InvalidMessageError
from tests.support.strategies import (
    BLOCKS,
    FORMATS,
    json_objects,
    json_values,
    messages,
    messages_of,
    picture,
    shape,
    stream_blocks,
    text_messages,
    texts,
)

PNG = picture()
PNG64 = base64.b64encode(PNG)
DATA_URL = "data:image/png;base64," + PNG64.decode()
ALL_BLOCKS = {**BLOCKS, "stream": stream_blocks}


def index_of(item: Any) -> Any:
    return item["n"] if isinstance(item, dict) else item


def by_index(encoded: Encoded) -> Callable[[Any], ContentBlock | None]:
    """Resolve references as the step that holds the native blocks does."""
    return lambda item: encoded.blocks[index_of(item)]


def images_only(encoded: Encoded) -> Callable[[Any], ContentBlock | None]:
    """Resolve references as another step that carries the record does."""
    return lambda item: block if "image" in (block := encoded.blocks[index_of(item)]) else None


def through(message: ChatMessage, **options: Any) -> ChatMessage:
    encoded = encode([message], **options)
    return decode(encoded.records[0], by_index(encoded))


def only_block(message: ChatMessage) -> Any:
    assert len(message.blocks) == 1
    return message.blocks[0]


def user(*blocks: Any, **kwargs: Any) -> ChatMessage:
    return ChatMessage(role="user", blocks=list(blocks), additional_kwargs=kwargs)


def behind_the_back(block: Any) -> ChatMessage:
    """A message with a block that LlamaIndex would have refused or changed."""
    message = user()
    message.blocks.append(block)
    return message


class TestTheLaw:
    @pytest.mark.parametrize("block_type", sorted(ALL_BLOCKS))
    @given(data=st.data())
    def test_decoding_what_was_encoded_gives_the_normal_form(self, data: st.DataObject, block_type: str) -> None:
        """decode(encode(m)) == normal(m) == normal(normal(m)), for every block type."""
        message = data.draw(messages_of(ALL_BLOCKS[block_type]))
        assert shape(through(message)) == shape(normal(message)) == shape(normal(normal(message)))

    @given(message=messages)
    def test_json_values_and_bytes_are_normal(self, message: ChatMessage) -> None:
        """A message that holds nothing but JSON values, bytes and URLs is its own normal form."""
        assert shape(normal(message)) == shape(message)

    @given(message=messages, ascii_only=st.booleans())
    def test_records_survive_json_and_utf8(self, message: ChatMessage, ascii_only: bool) -> None:
        """A record is the same after strict JSON in UTF-8, escaped or not."""
        [record] = encode([message]).records
        written = json.dumps(record, allow_nan=False, ensure_ascii=ascii_only).encode()
        assert shape(json.loads(written)) == shape(record)

    @given(message=messages)
    def test_carried_records_need_only_the_images(self, message: ChatMessage) -> None:
        """A carried record has its texts in place, refers to images, and means the same message."""
        encoded = encode([message])
        record = carried(encoded.records[0], by_index(encoded))
        assert shape(decode(record, images_only(encoded))) == shape(normal(message))
        assert own_references(record) == [n for n, block in enumerate(encoded.blocks) if "image" in block]
        assert carried(record, images_only(encoded)) == record

    @given(group=st.lists(messages, max_size=4))
    def test_messages_of_a_step_share_its_blocks(self, group: list[ChatMessage]) -> None:
        """Several messages are encoded together, and every native block is referred to once, in order."""
        encoded = encode(group)
        decoded = [decode(record, by_index(encoded)) for record in encoded.records]
        assert shape(decoded) == shape([normal(message) for message in group])
        assert [n for record in encoded.records for n in own_references(record)] == list(range(len(encoded.blocks)))

    @given(message=text_messages)
    def test_texts_are_native(self, message: ChatMessage) -> None:
        """Anyone can read the texts of a message in its content blocks."""
        shown = [block.text for block in message.blocks if isinstance(block, TextBlock) and block.text.strip()]
        assert encode([message]).blocks == [{"text": text} for text in shown]

    @given(message=messages)
    def test_decoded_messages_equal_constructed_ones(self, message: ChatMessage) -> None:
        """LlamaIndex's constructor takes what was decoded and changes nothing."""
        decoded = through(message)
        built = ChatMessage(role=decoded.role, blocks=decoded.blocks, additional_kwargs=decoded.additional_kwargs)
        assert shape(built) == shape(decoded)


def mutable_parts(value: Any) -> Iterator[int]:
    if isinstance(value, (BaseModel, dict, list)):
        yield id(value)
        items = value if isinstance(value, list) else (vars(value) if isinstance(value, BaseModel) else value).values()
        for item in items:
            yield from mutable_parts(item)


class TestOwnership:
    @given(message=messages_of(stream_blocks | BLOCKS["citable"] | BLOCKS["thinking"] | BLOCKS["tool_call"]))
    def test_the_callers_message_is_left_alone(self, message: ChatMessage) -> None:
        """Encoding changes nothing of what it is given, and moves no stream."""
        for block in message.blocks:
            for value in vars(block).values():
                if isinstance(value, BytesIO):
                    value.seek(min(3, len(value.getvalue())))
        before = shape(message)
        through(message)
        normal(message)
        assert shape(message) == before

    @given(message=messages)
    def test_normal_messages_share_nothing_mutable(self, message: ChatMessage) -> None:
        """The normal form is made of objects of its own."""
        assert not set(mutable_parts(message)) & set(mutable_parts(normal(message)))

    @given(message=messages)
    def test_each_decoding_is_a_message_of_its_own(self, message: ChatMessage) -> None:
        """Two decodings of one record share nothing that a caller could change, nor does the record."""
        encoded = encode([message])
        one, two = (decode(encoded.records[0], by_index(encoded)) for _ in range(2))
        assert not set(mutable_parts(one)) & set(mutable_parts(two))
        assert not set(mutable_parts(encoded.records)) & set(mutable_parts(one))


def with_header(width: int, height: int) -> bytes:
    """A PNG that says it has this size, and has no picture to show for it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG[:8] + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + PNG[33:]


GONE = ImageBlock.model_construct(image=None, path=Path("gone.png"), url=None, image_mimetype="image/png", detail=None)
READABLE = GONE.model_copy(update={"path": Path("here.png"), "image_mimetype": None, "detail": "low"})
FILES = {
    "here.png": PNG,
    "tune": b"ID3\x04\x00\x00",
    "clip": b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom",
    "page": b"%PDF-1.7",
}
LIMIT = 3_750_000

# name: (block, the item of its record or None for an object with a block_type, native images, the normal form or None)
IMAGES: dict[str, tuple[ImageBlock, Any, int]] = {
    "raw bytes": (ImageBlock(image=PNG), 0, 1),
    "base64": (ImageBlock(image=PNG64), 0, 1),
    "with detail": (ImageBlock(image=PNG, detail="high"), {"n": 0, "detail": "high"}, 1),
    "stream": (ImageBlock(image=BytesIO(PNG)), 0, 1),
    "stream of base64": (ImageBlock(image=BytesIO(PNG64)), 0, 1),
    **{f"format {name}": (ImageBlock(image=picture(name)), 0, 1) for name in FORMATS},
    "wrong mimetype": (ImageBlock(image=PNG, image_mimetype="image/gif"), {"n": 0, "image_mimetype": "image/gif"}, 1),
    "mimetype taken away": (
        ImageBlock(image=PNG).model_copy(update={"image_mimetype": None}),
        {"n": 0, "image_mimetype": None},
        1,
    ),
    "bytes and a URL": (
        ImageBlock(image=PNG, url="https://example.com/a"),
        {"n": 0, "url": "https://example.com/a"},
        1,
    ),
    "data URL": (ImageBlock(url=DATA_URL), {"n": 0, "data_url": "data:image/png;base64,"}, 1),
    "data URL that lies": (
        ImageBlock(url="data:image/gif;base64," + PNG64.decode()),
        {"n": 0, "data_url": "data:image/gif;base64,", "image_mimetype": "image/gif"},
        1,
    ),
    "data URL not in base64": (ImageBlock(url="data:image/png,abc"), None, 0),
    "data URL in sloppy base64": (ImageBlock(url=DATA_URL + "="), None, 0),
    "data URL of no image": (ImageBlock(url="data:image/png;base64,AAAA"), None, 0),
    "https URL": (ImageBlock(url="https://example.com/a.png"), None, 0),
    "s3 URL": (ImageBlock(url="s3://bucket/a.png"), None, 0),
    "readable path": (READABLE, {"n": 0, "detail": "low"}, 1),
    "path that is gone": (GONE, None, 0),
    "bytes and a path": (
        ImageBlock(image=PNG).model_copy(update={"path": Path("here.png")}),
        {"n": 0, "path": "here.png"},
        1,
    ),
    "as many bytes as allowed": (ImageBlock(image=PNG.ljust(LIMIT, b"\0")), 0, 1),
    "too many bytes": (ImageBlock(image=PNG.ljust(LIMIT + 1, b"\0")), None, 0),
    "as wide as allowed": (ImageBlock(image=picture("PNG", 8000, 1)), 0, 1),
    "too wide": (ImageBlock(image=picture("PNG", 8001, 1)), None, 0),
    "too high": (ImageBlock(image=picture("PNG", 1, 8001)), None, 0),
    "decompression bomb": (ImageBlock(image=with_header(60_000, 60_000)), None, 0),
    "corrupt": (ImageBlock(image=PNG[:12] + b"garbage"), None, 0),
    "another format": (ImageBlock(image=picture("BMP")), None, 0),
    "no image at all": (ImageBlock(image=b"\xffnothing"), None, 0),
    "empty bytes": (ImageBlock(image=b""), None, 0),
    "empty block": (ImageBlock(), None, 0),
}


class TestImages:
    @pytest.mark.parametrize("name", IMAGES)
    def test_every_kind_of_image_comes_back(self, name: str) -> None:
        """An image is native exactly if Bedrock takes it, and everything about it comes back either way."""
        block, item, native_blocks = IMAGES[name]
        encoded = encode([user(TextBlock(text="")), behind_the_back(block)], FILES.get)
        record = encoded.records[1]
        decoded = only_block(decode(record, by_index(encoded)))
        assert len(encoded.blocks) == native_blocks
        if item is not None:
            assert record["b"] == [item]
        else:
            assert record["b"][0]["block_type"] == "image"
        assert shape(decoded) == shape(only_block(normal(behind_the_back(block), FILES.get)))
        if isinstance(block.image, bytes) or block.url or name in {"path that is gone", "empty block"}:
            assert shape(decoded) == shape(block)
        else:
            assert shape(decoded) == shape(ImageBlock(image=PNG, detail=block.detail))

    @pytest.mark.parametrize("name", FORMATS)
    def test_native_images_are_what_boto3_takes(self, name: str) -> None:
        """A native image has the format its bytes say, and its raw bytes."""
        block = ImageBlock(image=picture(name), image_mimetype="made/up")
        image = {"format": name.lower(), "source": {"bytes": picture(name)}}
        assert encode([user(block)]).blocks == [{"image": image}]

    def test_bytes_behind_the_constructors_back_become_base64(self) -> None:
        """Raw bytes and sloppy base64 in a constructed block become what the constructor makes of them."""
        for data in (PNG, b"QR==", b"QQ==\n"):
            block = ImageBlock.model_construct(image=data)
            assert only_block(normal(behind_the_back(block))).image == ImageBlock(image=data).image

    @pytest.mark.parametrize(
        ("block", "field", "guessed"),
        [
            (AudioBlock, "audio", {"path": "tune", "format": "mp3"}),
            (VideoBlock, "video", {"path": "clip", "video_mimetype": "video/mp4"}),
            (DocumentBlock, "data", {"path": "page", "document_mimetype": "application/pdf"}),
        ],
    )
    def test_files_and_streams_become_bytes(
        self, block: type[BaseContentBlock], field: str, guessed: dict[str, str]
    ) -> None:
        """A block of any kind holds the bytes of its file or stream, and the type LlamaIndex guesses from them."""
        path, [(name, mime)] = guessed["path"], [item for item in guessed.items() if item[0] != "path"]
        want = block(**{field: FILES[path], name: mime})
        from_path = block().model_copy(update={"path": Path(path)})
        from_stream = block(**{field: BytesIO(FILES[path])}).model_copy(update={name: None})
        for given_block in (from_path, from_stream):
            assert shape(only_block(normal(behind_the_back(given_block), FILES.get))) == shape(want)

    def test_a_known_mimetype_is_kept_when_a_file_is_read(self) -> None:
        """What the caller says of a file is believed."""
        block = READABLE.model_copy(update={"image_mimetype": "image/gif"})
        assert only_block(normal(behind_the_back(block), FILES.get)).image_mimetype == "image/gif"

    def test_the_content_of_a_file_is_never_taken_for_base64(self) -> None:
        """A file of four letters holds four bytes, though they could be base64 of three."""
        block = GONE.model_copy(update={"path": Path("text")})
        assert only_block(normal(behind_the_back(block), lambda _: b"abcd")).image == base64.b64encode(b"abcd")

    def test_paths_are_of_the_type_llamaindex_gives_them(self) -> None:
        """A path that is kept is a `Path` in images and a `str` in documents."""
        document = DocumentBlock(path="/nowhere/a.pdf")
        assert through(behind_the_back(GONE)).blocks == [GONE]
        assert through(user(document)).blocks == [document]
        by_path = document.model_copy(update={"path": Path("a.pdf")})
        assert only_block(through(behind_the_back(by_path))).path == "a.pdf"

    def test_text_streams_and_streams_that_cannot_seek_are_read(self) -> None:
        """A stream of text is its UTF-8, and one that cannot seek is read from where it is."""

        class Pipe(BytesIO):
            def seekable(self) -> bool:
                return False

        stream = Pipe(b"0123")
        stream.read(1)
        assert only_block(normal(user(AudioBlock(audio=StringIO("é"))))).audio == base64.b64encode("é".encode())
        assert only_block(normal(user(AudioBlock(audio=stream)))).audio == base64.b64encode(b"123")

    def test_a_closed_stream_is_shown(self, caplog: pytest.LogCaptureFixture) -> None:
        """A stream that cannot be read hides neither its block nor the others."""
        stream = BytesIO(PNG)
        message = user(TextBlock(text="see"), ImageBlock(image=stream, detail="high"))
        stream.close()
        first, second = through(message).blocks
        assert (first, "high" in second.text) == (TextBlock(text="see"), True)  # type: ignore[union-attr]
        assert "a block of type image that breaks its declaration" in caplog.text

    def test_urls_are_any_urls(self) -> None:
        """A more special URL type becomes the one LlamaIndex makes of text."""
        block = ImageBlock(url=HttpUrl("https://example.com"))
        assert only_block(through(user(block))).url == AnyUrl("https://example.com")


class TestNormalForm:
    def test_images_in_additional_kwargs_are_taken_out(self) -> None:
        """LlamaIndex has made blocks of `images`; they are neither kept twice nor made again when decoded."""
        message = user(TextBlock(text="look"), images=[ImageDocument(image=PNG64.decode())], other=1)
        decoded = through(message)
        assert decoded.blocks == [TextBlock(text="look"), ImageBlock(image=PNG)]
        assert decoded.additional_kwargs == {"other": 1}
        assert ChatMessage.model_validate(decoded.model_dump()).blocks == decoded.blocks

    def test_images_that_came_too_late_become_blocks(self) -> None:
        """Image documents put in after construction are not lost; those without inline data are left to LlamaIndex."""
        message = user()
        late = ImageDocument(image=PNG64.decode())
        message.additional_kwargs["images"] = [late, late, ImageDocument()]
        assert through(message).blocks == [ImageBlock(image=PNG)]

    @pytest.mark.parametrize("images", [["x"], "x", [ImageDocument(), 1], {"a": 1}])
    def test_images_that_are_none_are_renamed(self, images: Any) -> None:
        """What LlamaIndex would stumble over at each validation is kept under another name."""
        message = user()
        message.additional_kwargs["images"] = images
        decoded = through(message)
        assert shape(decoded) == shape(normal(message))
        assert list(decoded.additional_kwargs) == ["legacy_images"]
        ChatMessage.model_validate(decoded.model_dump())

    @pytest.mark.parametrize("images", [[], None, "", 0])
    def test_empty_images_are_kept(self, images: Any) -> None:
        """Nothing is taken out where there is nothing."""
        assert through(user(images=images)).additional_kwargs == {"images": images}

    def test_lone_surrogates_are_not_joined(self) -> None:
        """Two lone surrogates stay two, in texts, names, keys and values, where JSON would make them one character."""
        pair = "\ud83d\ude00"
        message = user(TextBlock(text=pair), ToolCallBlock(tool_name=pair, tool_kwargs={pair: pair}), **{pair: pair})
        assert through(message) == message
        assert encode([message]).blocks == []

    @pytest.mark.parametrize("text", ["", " ", "\n\t", "\u3000"])
    def test_blank_text_is_in_the_record(self, text: str) -> None:
        """Bedrock is not asked what it thinks of blank text."""
        encoded = encode([user(TextBlock(text=text))])
        assert (encoded.blocks, encoded.records) == ([], [{"r": "user", "b": [text]}])

    def test_subclasses_are_their_base(self) -> None:
        """Subclasses of messages and blocks come back as the base that LlamaIndex names."""

        class Mine(ChatMessage):
            extra: int = 1

        class Bold(TextBlock):
            weight: int = 700

        class Word(str):
            __slots__ = ()

        decoded = through(Mine(role=MessageRole.USER, blocks=[Bold(text=Word("hi"))]))
        assert shape(decoded) == shape(user(TextBlock(text="hi")))

    @pytest.mark.parametrize(
        ("block", "shown"),
        [
            (TextBlock.model_construct(text=5), '"text": 5'),
            (TextBlock.model_construct(), '"block_type": "text"'),
            (VideoBlock.model_construct(fps="often"), '"fps": "often"'),
            (ImageBlock.model_construct(url="not a url"), '"url": "not a url"'),
            (ToolCallBlock.model_construct(tool_name="f", tool_kwargs=[1]), '"tool_kwargs": [1]'),
            (CachePoint.model_construct(cache_control=None), '"block_type": "cache"'),
            (CitableBlock.model_construct(title="t", source="s", content=[AudioBlock()]), '"title": "t"'),
            ("just text", "just text"),
            ({"block_type": "text"}, '{"block_type": "text"}'),
            (None, "null"),
        ],
    )
    def test_what_is_no_block_is_shown(self, block: Any, shown: str, caplog: pytest.LogCaptureFixture) -> None:
        """What LlamaIndex would have refused as a block becomes visible text, and is logged."""
        decoded = through(behind_the_back(block))
        assert shown in only_block(decoded).text
        assert decoded == normal(behind_the_back(block))
        assert "shown as text" in caplog.text

    def test_what_a_declaration_can_be_made_of_is_made(self) -> None:
        """Fields that pydantic converts are converted."""
        block = VideoBlock.model_construct(fps="24", detail=b"low", video="abcd")
        assert only_block(through(behind_the_back(block))) == VideoBlock(fps=24, detail="low", video=b"abcd")

    def test_blocks_may_contain_themselves(self) -> None:
        """Citable blocks in citable blocks, even in themselves, are shown and end somewhere."""
        block = CitableBlock(title="t", source="s", content=[TextBlock(text="first")])
        block.content.append(block)  # type: ignore[arg-type]
        decoded = through(user(block))
        first, second = only_block(decoded).content
        assert (first.text, "contains itself" in second.text) == ("first", True)
        assert decoded == normal(user(block))

    @pytest.mark.parametrize(
        ("fields", "want"),
        [
            ({"role": "assistant"}, ChatMessage(role="assistant")),
            ({"role": "wizard"}, ChatMessage(role="user")),
            ({"role": None}, ChatMessage(role="user")),
            ({"blocks": None}, user()),
            ({"blocks": (TextBlock(text="a"),)}, user(TextBlock(text="a"))),
            ({"blocks": "a"}, user(TextBlock(text="a"))),
            ({"additional_kwargs": None}, user()),
            ({"additional_kwargs": [1]}, user(additional_kwargs=[1])),
        ],
    )
    def test_messages_changed_past_recognition(self, fields: dict[str, Any], want: ChatMessage) -> None:
        """A message whose fields were assigned at will is still stored."""
        message = user().model_copy(update=fields)
        assert shape(through(message)) == shape(normal(message)) == shape(want)

    def test_messages_in_additional_kwargs_keep_their_streams(self) -> None:
        """Messages and blocks inside of values are dumped without moving the caller's streams."""
        stream = BytesIO(PNG)
        stream.seek(5)
        inner = user(ImageBlock(image=stream), sig=b"\xff")
        decoded = through(user(message=inner, block=inner.blocks[0]))
        assert decoded.additional_kwargs["message"]["blocks"][0]["image"] in (PNG64, PNG64.decode())
        assert decoded.additional_kwargs["block"]["image"] == PNG64.decode()
        assert stream.tell() == 5

    def test_a_message_may_contain_itself(self) -> None:
        """A message among its own keywords ends somewhere."""
        message = user(TextBlock(text="a"))
        message.additional_kwargs["self"] = message
        assert shape(through(message)) == shape(normal(message))
        assert "contains itself" in json.dumps(encode([message]).records)

    def test_a_message_below_a_hundred_levels_is_still_a_message(self) -> None:
        """Where a nested message is too deep, its keywords are left out."""
        deep: Any = user(a=1)
        for _ in range(97):
            deep = [deep]
        message = user(deep=deep)
        assert shape(through(message)) == shape(normal(message))
        assert "left out" in json.dumps(encode([message]).records)

    def test_what_is_no_message_is_refused(self) -> None:
        """The error names the index and the type."""
        with pytest.raises(InvalidMessageError, match="message 1 is a dict, not a"):
            encode([user(), {"role": "user"}])  # type: ignore[list-item]

    def test_the_log_says_what_changed_and_no_content(self, caplog: pytest.LogCaptureFixture) -> None:
        """One warning a message, with counts, types and no content."""
        secret = "hunter2"

        class Opaque:
            def __repr__(self) -> str:
                return secret

        encode([behind_the_back(GONE.model_copy(update={"path": Path(secret)})), user(a=Opaque(), b=Opaque())])
        texts_logged = [record.getMessage() for record in caplog.records]
        assert texts_logged == [
            "a message was changed to be stored: the file of a block of type image could not be read: its path is kept",
            "a message was changed to be stored: an object of type Opaque became its repr (2)",
        ]
        assert {record.name for record in caplog.records} == {"llama_index_bedrock_sessions"}


# Records that nearly are some, and anything else.
items = (
    st.integers(-2, 9)
    | texts
    | st.builds(lambda n, more: {"n": n, **more}, st.integers(-2, 9) | json_values, json_objects)
    | st.builds(
        lambda t, more: {"block_type": t, **more},
        st.sampled_from([*message_codec._KINDS, "hologram"]) | json_values,
        st.dictionaries(
            st.sampled_from(sorted({name for kind in message_codec._KINDS.values() for name in kind.names})),
            json_values,
        ),
    )
    | json_values
)
records = (
    st.fixed_dictionaries(
        {},
        optional={
            "r": st.sampled_from([*message_codec._ROLES, "wizard"]) | json_values,
            "b": st.lists(items, max_size=5) | json_values,
            "k": json_objects | json_values,
        },
    )
    | json_values
)
native_blocks: st.SearchStrategy[Any] = (
    st.none()
    | st.fixed_dictionaries({"text": texts})
    | st.fixed_dictionaries(
        {
            "image": st.fixed_dictionaries(
                {},
                optional={
                    "format": st.sampled_from(["png", "tiff"]) | json_values,
                    "source": st.fixed_dictionaries(
                        {},
                        optional={
                            "bytes": st.just(PNG) | st.binary(max_size=9) | json_values,
                            "s3Location": st.fixed_dictionaries({"uri": st.just("s3://a/b") | json_values})
                            | json_values,
                        },
                    )
                    | json_values,
                },
            )
            | json_values
        }
    )
    | json_values
)


def assert_usable(message: ChatMessage) -> None:
    """LlamaIndex can work with the message: show it, validate it again, and it can be stored again."""
    assert isinstance(message.content, str | None)
    ChatMessage(role=message.role, blocks=message.blocks, additional_kwargs=message.additional_kwargs)
    assert shape(through(message)) == shape(normal(message))


def nest(inner: Any, levels: int, wrap: Callable[[Any], Any]) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


class TestHostileRecords:
    @given(record=records, native=native_blocks)
    def test_anything_decodes_to_a_usable_message(self, record: Any, native: Any) -> None:
        """Whatever a record and the blocks it refers to are, a message that LlamaIndex can use comes back."""
        assert_usable(decode(record, lambda _: native))

    @given(message=messages, data=st.data())
    def test_damaged_records_decode(self, message: ChatMessage, data: st.DataObject) -> None:
        """A record of which one value was replaced by another still decodes to a usable message."""
        encoded = encode([message])
        record = json.loads(json.dumps(encoded.records[0]))
        holder, key = data.draw(st.sampled_from(list(places(record))))
        holder[key] = data.draw(json_values)
        assert_usable(decode(record, lambda item: encoded.blocks[0] if encoded.blocks else None))

    @given(record=records, native=native_blocks)
    def test_any_record_can_be_carried(self, record: Any, native: Any) -> None:
        """Carrying never raises, keeps what it does not know, and changes nothing of what it is given."""
        before = shape(record)
        result = carried(record, lambda _: native)
        assert all(type(n) is int for n in own_references(result))
        assert shape(record) == before
        assert shape(carried(result, lambda _: native)) == shape(result)

    @given(st.lists(native_blocks, max_size=4))
    def test_steps_of_other_tools_are_read(self, content: list[Any]) -> None:
        """Whatever content blocks another tool wrote, they are one usable user message."""
        message = decode(foreign(content), lambda item: content[item["n"]])
        assert message.role is MessageRole.USER
        assert_usable(message)

    def test_what_cannot_be_read_is_visible_and_logged_once(self, caplog: pytest.LogCaptureFixture) -> None:
        """Each unreadable block is a placeholder in its place, and one warning counts them."""
        record = {"r": "user", "b": [0, "kept", {"block_type": "hologram", "x": 1}, {"n": 3}, 4.5]}
        message = decode(record, lambda _: None)
        assert [block.text for block in message.blocks] == [  # type: ignore[union-attr]
            "[unreadable block: missing, or neither text nor image]",
            "kept",
            "[unreadable block: of the unknown type 'hologram']",
            "[unreadable block: missing, or neither text nor image]",
            "[unreadable block: of no known form]",
        ]
        [logged] = caplog.records
        assert (logged.levelno, logged.name) == (logging.WARNING, "llama_index_bedrock_sessions")
        assert "block missing, or neither text nor image (2)" in logged.getMessage()

    @pytest.mark.parametrize(
        ("record", "want"),
        [
            (None, placeholder("its record is not an object")),
            ([], placeholder("its record is not an object")),
            ({"r": "user", "b": []}, user()),
            ({"r": "user"}, user(TextBlock(text="[unreadable block: no list of blocks]"))),
            ({"r": "wizard", "b": ["x"]}, user(TextBlock(text="x"))),
            ({"r": ["user"], "b": ["x"]}, user(TextBlock(text="x"))),
            ({"r": "user", "b": [], "k": [1]}, user()),
            ({"r": "user", "b": [], "k": {"images": [1]}}, user(legacy_images=[1])),
            ({"r": "user", "b": [], "k": {"a": {"~b": "?"}}}, user(a="[unreadable value]")),
        ],
    )
    def test_odd_records(self, record: Any, want: ChatMessage) -> None:
        """What is odd about a record costs only the odd part."""
        assert shape(decode(record, lambda _: None)) == shape(want)

    @pytest.mark.parametrize(
        ("native", "item", "want"),
        [
            ({"text": "a"}, {"n": 0}, TextBlock(text="a")),
            ({"image": {"format": "png", "source": {"bytes": PNG}}}, 0, ImageBlock(image=PNG)),
            ({"image": {"format": "tiff", "source": {"bytes": PNG}}}, 0, ImageBlock(image=PNG)),
            ({"image": {"source": {"bytes": PNG}}}, {"n": 0, "detail": "low", "new": 1}, None),
            (
                {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://a/b"}}}},
                0,
                ImageBlock(url="s3://a/b", image_mimetype="image/png"),
            ),
            (
                {"image": {"format": "png", "source": {"bytes": PNG}}},
                {"n": 0, "data_url": "not a url"},
                TextBlock(text="[unreadable block: image with fields that are not its own]"),
            ),
            (
                {"image": {"format": "png", "source": {}}},
                {"n": 0, "image": "x"},
                TextBlock(text="[unreadable block: image without a source]"),
            ),
        ],
    )
    def test_odd_native_blocks(self, native: Any, item: Any, want: BaseContentBlock | None) -> None:
        """A reference takes what it finds: text, image, an S3 location, or nothing it can use."""
        decoded = only_block(decode({"r": "user", "b": [item]}, lambda _: native))
        assert shape(decoded) == shape(want or ImageBlock(image=PNG, detail="low"))

    @pytest.mark.parametrize(
        "wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: {"~d": [["a", inner]]}]
    )
    def test_depth_is_bounded(self, wrap: Callable[[Any], Any]) -> None:
        """Records nested as deeply as JSON can be are decoded, down to a placeholder."""
        deep = nest(1, 100_000, wrap)
        message = decode(
            {"r": "user", "b": [{"block_type": "thinking", "additional_information": {"x": deep}}, deep]}, {}.get
        )
        assert "[unreadable value]" in repr(message)

    def test_nested_blocks_do_not_nest(self) -> None:
        """Blocks nested in nested blocks are placeholders, however deep they go."""
        inner = nest(
            "x", 100_000, lambda inner: {"block_type": "citable", "title": "", "source": "", "content": [inner]}
        )
        [nested] = only_block(decode({"r": "user", "b": [inner]}, lambda _: None)).content
        assert nested.text == "[unreadable block: of the unknown type 'citable']"

    def test_an_image_referred_to_often_is_held_once(self) -> None:
        """A small record cannot multiply a large image."""
        native: ContentBlock = {"image": {"format": "png", "source": {"bytes": PNG}}}
        record = {"r": "user", "b": [0, {"n": 0}, {"n": 0, "data_url": "data:,"}, {"n": 0, "data_url": "data:,"}]}
        one, two, three, four = decode(record, lambda _: native).blocks
        assert one.image is two.image  # type: ignore[union-attr]
        assert three.url is four.url  # type: ignore[union-attr]

    def test_what_resolving_raises_is_passed_on(self) -> None:
        """An error of the service is not turned into a placeholder."""

        def resolve(_: Any) -> ContentBlock | None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            decode({"r": "user", "b": [0]}, resolve)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, (dict, list)):
            yield from places(item)


class TestCarrying:
    def test_unknown_members_are_kept(self) -> None:
        """What the journal or a later release adds to a record or a reference stays there."""
        others = [{"n": 1, "h": 2, "new": 3}, {"block_type": "x", "new": 1}]
        record = {"r": "user", "b": [0, *others], "later": True}
        assert carried(record, lambda _: {"text": "a"}) == {"r": "user", "b": ["a", *others], "later": True}

    def test_items_are_given_to_resolve_whole(self) -> None:
        """A reference that says which step it is to says so to `resolve`."""
        seen: list[Any] = []
        decode({"r": "user", "b": [3, {"n": 1, "h": 2}]}, seen.append)
        assert seen == [3, {"n": 1, "h": 2}]

    def test_what_is_missing_stays_a_reference(self) -> None:
        """A native block that cannot be had now may be had later."""
        assert carried({"b": [0]}, lambda _: None) == {"b": [{"n": 0}]}

    def test_text_from_elsewhere_stays_writable(self) -> None:
        """A native text that UTF-8 cannot write is carried as a block that it can."""
        record = carried({"r": "user", "b": [0]}, lambda _: {"text": "\ud800"})
        json.dumps(record, ensure_ascii=False).encode()
        assert decode(record, lambda _: None) == user(TextBlock(text="\ud800"))

    def test_references_are_indices(self) -> None:
        """Only what is an index of a native block is listed."""
        assert own_references(
            {"b": [2, "3", {"n": 1, "h": 7}, {"n": "x"}, {"block_type": "t", "n": 4}, True, None]}
        ) == [
            2,
            1,
        ]
        assert own_references({"b": 5}) == own_references([1]) == own_references(None) == []


def test_foreign_steps_are_user_messages(caplog: pytest.LogCaptureFixture) -> None:
    """Texts, images and S3 images of another tool are read; what they hold beside is visible."""
    content: list[Any] = [
        {"text": "hi"},
        {"image": {"format": "webp", "source": {"bytes": picture("WEBP")}}},
        {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://bucket/key"}}}},
        {"SDK_UNKNOWN_MEMBER": {"name": "video"}},
    ]
    assert decode(foreign(content), lambda item: content[item["n"]]) == user(
        TextBlock(text="hi"),
        ImageBlock(image=picture("WEBP")),
        ImageBlock(url="s3://bucket/key", image_mimetype="image/png"),
        TextBlock(text="[unreadable block: missing, or neither text nor image]"),
    )
    assert len(caplog.records) == 1


def test_a_placeholder_says_why() -> None:
    """A step that cannot be decoded is one user message that says so."""
    assert placeholder("of a newer format") == ChatMessage(
        role="user", content="[unreadable message: of a newer format]"
    )


def test_the_record_is_as_documented() -> None:
    """The written form, which other releases read, is what the docstring says."""
    message = ChatMessage(
        role="assistant",
        blocks=[
            TextBlock(text="Look:"),
            ImageBlock(image=PNG, detail="low"),
            ThinkingBlock(content="hm", additional_information={"signature": b"\x00\xff"}),
            ToolCallBlock(tool_call_id="1", tool_name="f", tool_kwargs={"x": float("nan"), "n": 2**64}),
            CitationBlock(
                cited_content=TextBlock(text="c"), source="s", title="t", additional_location_info={"page": 1}
            ),
        ],
        additional_kwargs={"tool_call_id": "1", "odd": {"~b": ""}},
    )
    encoded = encode([message])
    assert encoded.blocks == [{"text": "Look:"}, {"image": {"format": "png", "source": {"bytes": PNG}}}]
    assert encoded.records == [
        {
            "r": "assistant",
            "b": [
                0,
                {"n": 1, "detail": "low"},
                {"block_type": "thinking", "content": "hm", "additional_information": {"signature": {"~b": "AP8="}}},
                {
                    "block_type": "tool_call",
                    "tool_call_id": "1",
                    "tool_name": "f",
                    "tool_kwargs": {"x": {"~f": "nan"}, "n": {"~i": "0x10000000000000000"}},
                },
                {
                    "block_type": "citation",
                    "cited_content": {"block_type": "text", "text": "c"},
                    "source": "s",
                    "title": "t",
                    "additional_location_info": {"page": 1},
                },
            ],
            "k": {"tool_call_id": "1", "odd": {"~d": [["~b", ""]]}},
        }
    ]
