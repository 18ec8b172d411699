"""Hypothesis strategies for everything LlamaIndex lets one put into a message."""

import base64
from collections.abc import Callable
from functools import cache
from io import BytesIO
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from llama_index.core.base.llms.types import (
    AudioBlock,
    BaseContentBlock,
    CacheControl,
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
from PIL import Image
from pydantic import BaseModel

settings.register_profile("no deadline", deadline=None)  # a machine that does other things too is slow at times
settings.load_profile("no deadline")

FORMATS = ("PNG", "JPEG", "GIF", "WEBP")


@cache
def picture(format_name: str = "PNG", width: int = 3, height: int = 2) -> bytes:
    """Bytes of a real image."""
    file = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 90)).save(file, format_name)
    return file.getvalue()


# Any code point, lone surrogates and what looks like a tag of ours included.
texts: SearchStrategy[str] = (
    st.text(max_size=12)
    | st.text(st.sampled_from("a~\0é🙂\ud83d\ude00\udfff"), max_size=5)
    | st.sampled_from(["", " ", "\ud83d\ude00", "~b", "~d", "n", "block_type", "Größe 日本 🙂", "hello world"])
)
unicode_texts: SearchStrategy[str] = st.text(min_size=1, max_size=30)
optional_texts = st.none() | texts
integers = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**53 + 1, 2**63, -(2**63), 2**3000])
finite = st.none() | st.booleans() | integers | st.floats(allow_nan=False) | texts
keys = texts | st.sampled_from(["~b", "~s", "~i", "~f", "~d", "~x", "tool_call_id", "block_type", "n", "h"])


def nested(leaves: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Lists and dicts of leaves."""
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
    )


json_values = nested(finite)  # what compares equal to itself and survives JSON
plain_values = nested(finite | st.floats() | st.binary(max_size=20))  # and NaN, infinities, bytes
json_objects = st.dictionaries(keys, json_values, max_size=3)
plain_objects = st.dictionaries(keys, plain_values, max_size=3)

pictures = st.sampled_from(FORMATS).map(picture)
contents = st.binary(max_size=40) | pictures | st.binary(max_size=20).map(base64.b64encode)
urls = st.sampled_from(
    [
        "https://example.com/a.png",
        "s3://bucket/key.webp",
        "data:text/plain,hello",
        "data:image/png;base64,AAAA",
        "data:;base64," + base64.b64encode(picture()).decode(),
        "data:image/png;base64," + base64.b64encode(picture()).decode(),
        "data:image/gif;base64," + base64.b64encode(picture("GIF")).decode(),
    ]
)
mimetypes = st.none() | st.sampled_from(["image/png", "image/jpeg", "application/pdf", "made/up", "\udc00"])


def _given(build: Callable[..., BaseContentBlock], **fields: SearchStrategy[Any]) -> SearchStrategy[Any]:
    """Blocks built with any part of the given fields, as bytes or as a stream."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda given: build(**given))


streams = contents.map(BytesIO)
media = st.none() | contents
text_blocks = st.builds(TextBlock, text=texts)
image_blocks = _given(ImageBlock, image=media, url=urls, image_mimetype=mimetypes, detail=optional_texts)
audio_blocks = _given(AudioBlock, audio=media, url=urls, format=mimetypes)
video_blocks = _given(
    VideoBlock, video=media, url=urls, video_mimetype=mimetypes, detail=optional_texts, fps=st.integers() | st.none()
)
document_blocks = _given(
    DocumentBlock,
    data=media,
    url=urls,
    title=optional_texts,
    document_mimetype=mimetypes,
    path=st.just("/nowhere/a.pdf"),
)
cache_points = st.builds(CachePoint, cache_control=st.builds(CacheControl, type=texts, ttl=texts))
citable_blocks = st.builds(
    CitableBlock,
    title=texts,
    source=texts,
    content=st.lists(text_blocks | image_blocks | document_blocks, max_size=3),
)
citation_blocks = st.builds(
    CitationBlock,
    cited_content=text_blocks | image_blocks,
    source=texts,
    title=texts,
    additional_location_info=st.dictionaries(keys, st.integers(), max_size=2),
)
thinking_blocks = st.builds(
    ThinkingBlock, content=optional_texts, num_tokens=st.none() | st.integers(), additional_information=plain_objects
)
tool_call_blocks = st.builds(
    ToolCallBlock, tool_call_id=optional_texts, tool_name=texts, tool_kwargs=plain_objects | texts
)
stream_blocks = (
    st.builds(ImageBlock, image=streams, detail=optional_texts)
    | st.builds(AudioBlock, audio=streams)
    | st.builds(VideoBlock, video=streams)
    | st.builds(DocumentBlock, data=streams)
)

BLOCKS: dict[str, SearchStrategy[Any]] = {
    "text": text_blocks,
    "image": image_blocks,
    "audio": audio_blocks,
    "video": video_blocks,
    "document": document_blocks,
    "cache": cache_points,
    "citable": citable_blocks,
    "citation": citation_blocks,
    "thinking": thinking_blocks,
    "tool_call": tool_call_blocks,
}
blocks = st.one_of(*BLOCKS.values())
roles = st.sampled_from(MessageRole)


def messages_of(
    block: SearchStrategy[Any], kwargs: SearchStrategy[dict[str, Any]] = plain_objects
) -> SearchStrategy[ChatMessage]:
    """Messages of any role, made of such blocks."""
    return st.builds(ChatMessage, role=roles, blocks=st.lists(block, max_size=4), additional_kwargs=kwargs)


messages = messages_of(blocks)
text_messages = messages_of(st.builds(TextBlock, text=unicode_texts), st.just({}))  # what chats are mostly made of


def shape(value: Any) -> Any:
    """What two values have in common exactly if they are the same: `==` that knows NaN, types and streams."""
    if isinstance(value, BaseModel):
        return type(value), {name: shape(item) for name, item in vars(value).items()}
    if isinstance(value, dict):
        return dict, {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return list, [shape(item) for item in value]
    if isinstance(value, BytesIO):
        return BytesIO, value.getvalue(), value.tell()
    return type(value), repr(value) if isinstance(value, float) else value
