"""Chat messages as Bedrock content blocks, and back.

The law: **decode(encode(m)) == normal(m)**, and `normal` is idempotent and the identity on JSON values and bytes.
Nothing here does I/O or asks the time: a caller that wants the content of local files passes `read`; URLs are never
fetched. `encode` refuses nothing LlamaIndex lets one build; `decode` is total: whatever it is given, it returns a
message, with a visible, logged placeholder where a block cannot be read. What is logged never holds content.

What a message loses on the way, and all that it loses (`normal` does it, and logs what a reader could miss):

- A block that holds a stream holds the bytes of the stream, from its start, as if they had been given; the stream keeps
  its position. (A stream that cannot seek is read from where it is, once.)
- A block with a readable `path` and no bytes holds the file's bytes; the path means nothing on another machine. If the
  file cannot be read, the path is kept. A missing mimetype is guessed from the bytes by LlamaIndex's own rule.
- Bytes put into a block behind the constructor's back become what the constructor makes of them: canonical base64.
- URLs are `AnyUrl`, as the constructor makes them; paths are `Path` (`str` in a `DocumentBlock`).
- Subclasses of messages and blocks are their nearest base that LlamaIndex names. A block whose fields break its class's
  declaration (only assignment and `model_construct` can do that), or that is no block, is shown as text.
- `additional_kwargs["images"]`, unless empty, is taken out: LlamaIndex has made blocks of it and would do it again at
  every validation. Documents with inline images that no block holds become blocks; what is no image document is kept as
  `additional_kwargs["legacy_images"]`.
- In `additional_kwargs` and wherever a block takes any value: keys become strings as in JSON; tuples, deques, ranges
  and sets (sorted if they can be) become lists; streams bytes; enums their value; models, dataclasses, dates, UUIDs,
  decimals, paths and URLs what pydantic's JSON mode makes of them; arrays what their `tolist` says; anything else its
  repr. What contains itself, or is nested more than 100 levels deep, is replaced by a sentence that says so.

NaN, infinities, integers of any size, bytes and lone surrogates are all kept exactly.

The record of a message is `{"r": role, "b": [item, ...], "k": additional_kwargs}`, `k` left out when empty. An item is

    n                          native block n: a text, or an image that has nothing else to say
    "text"                     a text in place: what is empty or blank, and every text once carried
    {"n": n, ...}              native image n and its other fields; `data_url` is the prefix of the data URL it came in
    {"block_type": t, ...}     a block that Bedrock has no form for; fields that are None are left out

JSON has no form for some values; they are objects of one key: `~b` bytes (base64), `~s` text with lone surrogates
(base64 of UTF-8 that lets surrogates pass), `~i` an integer of 64 bits or more (hexadecimal), `~f` nan, inf or -inf,
`~d` an object, as pairs, that looks like one of these or has a key with lone surrogates.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from enum import Enum
from io import BytesIO, IOBase
from pathlib import Path
from typing import Any, get_args

import filetype
from llama_index.core.base.llms.types import (
    BaseContentBlock,
    BaseRecursiveContentBlock,
    ChatMessage,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
)
from PIL import Image
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from llama_index_bedrock_sessions.errors import InvalidMessageError

JSON = Any
ContentBlock = dict[str, Any]
Read = Callable[[str], "bytes | None"]
Resolve = Callable[[Any], "ContentBlock | None"]

logger = logging.getLogger("llama_index_bedrock_sessions")

MAX_IMAGES = 20  # in one step; this and the next two: Bedrock user guide, quotas of session management
_MAX_IMAGE_BYTES = 3_750_000  # "3.75 MB", read as the smaller of its two meanings
_MAX_IMAGE_SIDE = 8_000  # pixels
_FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}

_MAX_DEPTH = 100  # levels; half of what json and copy.deepcopy manage on a stack that is already in use
_MAX_SHARED = 1_000_000  # times objects are met again: without any cycle, 60 lists can still spell 2**60 values

_ROLES = {role.value: role for role in MessageRole}
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_FLOATS = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, slots=True)
class Encoded:
    """What `encode` returns: one JSON record a message, and the native blocks the records refer to, in order."""

    records: list[JSON]
    blocks: list[ContentBlock]


def _unread(_path: str) -> bytes | None:
    return None


def normal(message: ChatMessage, read: Read = _unread) -> ChatMessage:
    """Return the normal form of a message: a new object that shares nothing mutable with it.

    `read` gives the content of a local file, or None if it cannot be read.
    """
    walk = _Walk(read)
    result = walk.message(message)
    walk.report()
    return result


def encode(messages: Sequence[ChatMessage], read: Read = _unread, *, max_images: int = MAX_IMAGES) -> Encoded:
    """Turn messages into native content blocks and JSON records (safe with `allow_nan=False`).

    At most `max_images` images are native; the others are in the records. Raises `InvalidMessageError` for what is not
    a `ChatMessage`, before anything is read.
    """
    for index, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise InvalidMessageError(
                f"message {index} is a {type(message).__name__}, not a llama_index.core.llms.ChatMessage"
            )
    writer = _Writer(max_images)
    walk = _Walk(read)
    records = [writer.record(walk.message(message)) for message in messages]
    walk.report()
    return Encoded(records, writer.blocks)


def decode(record: JSON, resolve: Resolve) -> ChatMessage:
    """Turn a record into a new message, whatever the record is.

    `resolve` gives the native block an item refers to, or None; what it raises is passed on. Nothing else is raised.
    """
    reader = _Reader(resolve)
    message = reader.message(record)
    if reader.problems:
        logger.warning("unreadable parts of a message were replaced by placeholders: %s", _counted(reader.problems))
    return message


def carried(record: JSON, resolve: Resolve) -> JSON:
    """Return the record as another step carries it: native texts in place, native images as references.

    Items that `resolve` does not know stay references; unknown members of the record and of its items are kept.
    """
    if not isinstance(record, dict) or not isinstance(record.get("b"), list):
        return record
    return {**record, "b": [_carried_item(item, resolve) for item in record["b"]]}


def references(record: JSON) -> list[int]:
    """List the indices of the native blocks a record refers to, in its order."""
    items = record.get("b") if isinstance(record, dict) else None
    indices = [item["n"] if _is_reference(item) else item for item in items] if isinstance(items, list) else []
    return [index for index in indices if type(index) is int]


def foreign(blocks: Sequence[ContentBlock]) -> ChatMessage:
    """Read the content blocks of a step that another tool wrote as one user message."""
    reader = _Reader(lambda block: block)
    message = ChatMessage.model_construct(
        role=MessageRole.USER, blocks=[reader.native(block, {}) for block in blocks], additional_kwargs={}
    )
    if reader.problems:
        logger.warning("content blocks of another tool were replaced by placeholders: %s", _counted(reader.problems))
    return message


def placeholder(reason: str) -> ChatMessage:
    """Return the visible message that stands for a step that cannot be decoded."""
    return ChatMessage(role=MessageRole.USER, content=f"[unreadable message: {reason}]")


@dataclass(frozen=True, slots=True)
class _Kind:
    """What there is to know about a block type: its class, its fields, and which of them are special."""

    block_type: str
    cls: type[BaseContentBlock]
    names: tuple[str, ...]
    data: str | None  # the field of bytes held as base64
    mime: str | None  # the field LlamaIndex guesses from those bytes
    nested: str | None  # the field of nested blocks


_DATA = {
    "image": ("image", "image_mimetype"),
    "audio": ("audio", "format"),
    "video": ("video", "video_mimetype"),
    "document": ("data", "document_mimetype"),
}


def _block_classes(annotation: Any) -> Iterator[type[BaseContentBlock]]:
    if arguments := get_args(annotation):
        for argument in arguments:
            yield from _block_classes(argument)
    elif isinstance(annotation, type) and issubclass(annotation, BaseContentBlock):
        yield annotation


def _kind(cls: type[BaseContentBlock]) -> _Kind:
    block_type = cls.model_fields["block_type"].default
    names = tuple(name for name in cls.model_fields if name != "block_type")
    data, mime = _DATA.get(block_type, (None, None))
    nested = cls.nested_blocks_field_name() if issubclass(cls, BaseRecursiveContentBlock) else None
    return _Kind(block_type, cls, names, data, mime, nested)


# Asked of LlamaIndex, so that a block type of a later 0.14 is stored like the others.
_KINDS = {kind.block_type: kind for kind in map(_kind, _block_classes(ChatMessage.model_fields["blocks"].annotation))}
_BY_CLASS = {kind.cls: kind for kind in _KINDS.values()}
_IMAGE = _BY_CLASS[ImageBlock]


def _build(kind: _Kind, fields: dict[str, Any]) -> BaseContentBlock:
    """Make a block of plain fields as its constructor would, but without looking for files or guessing anew.

    Binary data is given as blocks hold it, as base64. Raises for fields that break the class's declaration.
    """
    fields, apart = dict(fields), dict[str, Any]()
    if kind.data and type(fields.get(kind.data)) is bytes:
        apart[kind.data] = fields.pop(kind.data)
    if kind.data and "path" in fields:
        path = str(fields.pop("path"))
        apart["path"] = path if kind.cls is DocumentBlock else Path(path)
    block = kind.cls.model_validate(fields)
    if kind.mime and kind.mime not in fields:
        vars(block)[kind.mime] = None
    vars(block).update(apart)
    block.model_fields_set.update(apart)
    return block


def _raw(data: bytes) -> bytes:
    """Return what bytes in a block stand for: LlamaIndex takes all that is valid base64 as base64."""
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error:
        return data


def _stream_content(stream: Any) -> bytes:
    position = stream.tell() if stream.seekable() else None
    if position is not None:
        stream.seek(0)
    try:
        content = stream.read()
    finally:
        if position is not None:
            stream.seek(position)
    return content.encode("utf-8", "surrogatepass") if isinstance(content, str) else bytes(content)


def _counted(reasons: Sequence[str]) -> str:
    return "; ".join(f"{reason} ({count})" if count > 1 else reason for reason, count in Counter(reasons).items())


class _Walk:
    """One walk over messages that makes them normal, and notes what a reader could miss."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._notes: list[str] = []
        self._parents: set[int] = set()
        self._met: set[int] = set()
        self._shared = 0

    def report(self) -> None:
        if self._notes:
            logger.warning("a message was changed to be stored: %s", _counted(self._notes))

    def message(self, message: ChatMessage) -> ChatMessage:
        held = vars(message)
        blocks = held.get("blocks") or []
        normal_blocks = [self.block(block) for block in (blocks if isinstance(blocks, (list, tuple)) else [blocks])]
        kwargs = held.get("additional_kwargs") or {}
        if not isinstance(kwargs, dict):
            kwargs = {"additional_kwargs": kwargs}
        if kwargs.get("images"):
            kwargs = self._without_images(kwargs, normal_blocks)
        return ChatMessage.model_construct(
            role=self._role(held.get("role")),
            blocks=normal_blocks,
            additional_kwargs=self.plain(kwargs) if kwargs else {},
        )

    def _role(self, role: Any) -> MessageRole:
        known = _ROLES.get(role) if isinstance(role, str) else None
        if known is None:
            self._notes.append("an unknown role became user")
        return known or MessageRole.USER

    def _without_images(self, kwargs: dict[Any, Any], blocks: list[Any]) -> dict[Any, Any]:
        images = kwargs["images"]
        kwargs = {key: value for key, value in kwargs.items() if key != "images"}
        if not isinstance(images, (list, tuple)) or not all(hasattr(image, "resolve_image") for image in images):
            self._notes.append("additional_kwargs['images'] became 'legacy_images'")
            return {**kwargs, "legacy_images": images}
        for image in images:
            data = getattr(image, "image", None)
            block = ImageBlock(image=data.encode()) if isinstance(data, str) else None
            if block and all(vars(other).get("image") != block.image for other in blocks):
                blocks.append(block)
        return kwargs

    def block(self, block: Any, *, nested: bool = False) -> BaseContentBlock:
        if type(block) is TextBlock and type(text := vars(block).get("text")) is str:
            return TextBlock(text=text)
        kind = next((_BY_CLASS[cls] for cls in type(block).__mro__ if cls in _BY_CLASS), None)
        if kind and not (nested and kind.nested):
            try:
                return _build(kind, self._fields(kind, block))
            except Exception:  # noqa: BLE001 - pydantic, streams and foreign objects raise what they like
                self._notes.append(f"a {kind.block_type} block that breaks its declaration is shown as text")
        else:
            self._notes.append(f"an object of type {type(block).__name__} among the blocks is shown as text")
        shown = self.plain(vars(block) if kind else block)
        return TextBlock(text=shown if type(shown) is str else json.dumps(_tagged(shown)))

    def _fields(self, kind: _Kind, block: BaseContentBlock) -> dict[str, Any]:
        fields = {name: value for name in kind.names if (value := vars(block).get(name)) is not None}
        if kind.data:
            self._materialise(kind, kind.data, fields)
        for name, value in fields.items():
            if name == kind.nested:
                items = [self.block(item, nested=True) for item in (value if isinstance(value, list) else [value])]
                fields[name] = items if isinstance(value, list) else items[0]
            else:
                fields[name] = self.plain(value)
        return fields

    def _materialise(self, kind: _Kind, data: str, fields: dict[str, Any]) -> None:
        value, found = fields.get(data), None
        if isinstance(value, bytes):
            fields[data] = base64.b64encode(_raw(value))
        elif isinstance(value, IOBase):
            found = _raw(_stream_content(value))
        elif value is None and "path" in fields:
            found = self._read(str(fields["path"]))
            if found is None:
                self._notes.append(f"the file of a {kind.block_type} block could not be read: its path is kept")
            else:
                del fields["path"]
        if found is not None:
            fields[data] = base64.b64encode(found)
            if kind.mime and kind.mime not in fields:
                fields[kind.mime] = vars(kind.cls(**{data: found}))[kind.mime]

    def plain(self, value: Any) -> Any:
        """Return a value as JSON types and bytes."""
        if type(value) in _SCALARS:
            return value
        key = id(value)
        self._shared += key in self._met
        if key in self._parents or len(self._parents) >= _MAX_DEPTH or self._shared > _MAX_SHARED:
            return self._cut("contains itself" if key in self._parents else "is nested too deeply or shared too often")
        self._met.add(key)
        self._parents.add(key)
        try:
            if type(value) is list:
                return [self.plain(item) for item in value]
            if isinstance(value, Mapping):
                return self._object(list(value.items()))
            return self._other(value)
        except Exception:  # noqa: BLE001 - serialisers and conversions of foreign objects raise what they like
            self._notes.append(f"an object of type {type(value).__name__} became its repr")
            return _repr(value)
        finally:
            self._parents.discard(key)

    def _cut(self, reason: str) -> str:
        self._notes.append(f"a value that {reason} was left out")
        return f"[left out: this value {reason}]"

    def _object(self, items: list[tuple[Any, Any]]) -> dict[str, Any]:
        result = {self._key(key): self.plain(value) for key, value in items}
        if len(result) < len(items):
            self._notes.append("of keys that became equal as strings the last was kept")
        return result

    def _key(self, key: Any) -> str:
        if type(key) is str:
            return key
        if key is None or (isinstance(key, (bool, int, float)) and not isinstance(key, Enum)):
            return json.dumps(key) if not isinstance(key, int) or key.bit_length() < 1024 else hex(key)
        plain = self.plain(key)
        return self._key(plain) if type(plain) in _SCALARS and type(plain) is not bytes else _repr(key)

    def _other(self, value: Any) -> Any:
        if isinstance(value, Enum):
            return self.plain(value.value)
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, (bytes, bytearray, memoryview)):
            return bytes(value)
        if isinstance(value, (set, frozenset)):
            return _sorted([self.plain(item) for item in value])
        if isinstance(value, (list, tuple, deque, range)):
            return [self.plain(item) for item in value]
        if isinstance(value, IOBase):
            return _stream_content(value)
        if isinstance(value, BaseModel):
            return self.plain(self._dumped(value))
        if isinstance(listed := getattr(value, "tolist", lambda: None)(), (list, bool, int, float, str)):
            return self.plain(listed)
        if isinstance(value, Iterator):
            raise TypeError("reading an iterator would use it up")
        try:
            return self.plain(to_jsonable_python(value))
        except ValueError:
            if not is_dataclass(value):
                raise
            return self.plain({field.name: getattr(value, field.name) for field in dataclass_fields(value)})

    def _dumped(self, model: BaseModel) -> Any:
        if isinstance(model, ChatMessage):  # their serialisers move the streams of the caller
            model = self.message(model)
        elif isinstance(model, BaseContentBlock):
            model = self.block(model)
        try:
            return model.model_dump(mode="json", warnings=False)
        except Exception:  # noqa: BLE001 - bytes that are not UTF-8, lone surrogates
            return model.model_dump(warnings=False)


def _sorted(items: list[Any]) -> list[Any]:
    try:
        return sorted(items)
    except TypeError:
        return items


def _repr(value: Any) -> str:
    try:
        return str.__str__(repr(value))
    except Exception:  # noqa: BLE001 - a repr of somebody else's
        return f"[an object of type {type(value).__name__}]"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tagged(value: Any) -> JSON:
    """Return the JSON form of a plain value; of URLs and paths their text."""
    kind = type(value)
    if kind is str:
        if _is_unicode(value):
            return value
        return {"~s": base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()}
    if value is None or kind is bool:
        return value
    if kind is int:
        return value if value.bit_length() < 64 else {"~i": hex(value)}
    if kind is float:
        return value if math.isfinite(value) else {"~f": str(value)}
    if kind is bytes:
        return {"~b": base64.b64encode(value).decode()}
    if kind is list:
        return [_tagged(item) for item in value]
    if isinstance(value, (dict, BaseModel)):
        pairs = value if isinstance(value, dict) else vars(value)
        if all(map(_is_unicode, pairs)) and not (len(pairs) == 1 and next(iter(pairs)).startswith("~")):
            return {key: _tagged(item) for key, item in pairs.items()}
        return {"~d": [[_tagged(key), _tagged(item)] for key, item in pairs.items()]}
    return _tagged(str(value))


def _block_json(kind: _Kind, block: BaseContentBlock) -> dict[str, JSON]:
    """Return the JSON form of a normal block."""
    result: dict[str, JSON] = {"block_type": kind.block_type}
    for name in kind.names:
        value = vars(block)[name]
        if value is None:
            continue
        if name == kind.data:
            result[name] = {"~b": value.decode("ascii")}
        elif name == kind.nested:
            nested = [
                _block_json(_BY_CLASS[type(item)], item) for item in (value if isinstance(value, list) else [value])
            ]
            result[name] = nested if isinstance(value, list) else nested[0]
        else:
            result[name] = _tagged(value)
    return result


def _sniff(raw: bytes) -> str | None:
    """Return the mimetype of an image from its bytes."""
    guess = filetype.guess(raw) if raw else None
    return str(guess.mime) if guess else None


def _native_format(raw: bytes) -> str | None:
    """Return the format of an image within Bedrock's limits; only the header is read."""
    found = _FORMATS.get(_sniff(raw) or "") if len(raw) <= _MAX_IMAGE_BYTES else None
    if found is None:
        return None
    try:
        with Image.open(BytesIO(raw), formats=[found.upper()]) as image:
            return found if max(image.size) <= _MAX_IMAGE_SIDE else None
    except Exception:  # noqa: BLE001 - pillow's decoders raise what they like on corrupt headers
        return None


class _Writer:
    """Writes the records of normal messages, and gathers their native blocks."""

    def __init__(self, max_images: int) -> None:
        self.blocks: list[ContentBlock] = []
        self._images_left = max_images

    def record(self, message: ChatMessage) -> JSON:
        record = {"r": message.role.value, "b": [self._item(block) for block in message.blocks]}
        if message.additional_kwargs:
            record["k"] = _tagged(message.additional_kwargs)
        return record

    def _item(self, block: BaseContentBlock) -> JSON:
        if isinstance(block, TextBlock) and _is_unicode(block.text):
            # Bedrock asks for one character; whether blank text counts as one is not documented.
            return self._add({"text": block.text}) if block.text.strip() else block.text
        if isinstance(block, ImageBlock) and self._images_left > 0 and (item := self._image(block)) is not None:
            self._images_left -= 1
            return item
        return _block_json(_BY_CLASS[type(block)], block)

    def _image(self, block: ImageBlock) -> JSON | None:
        raw, prefix = (base64.b64decode(block.image), None) if block.image else _from_data_url(block)  # type: ignore[arg-type]
        if not raw or not (found := _native_format(raw)):
            return None
        fields = _block_json(_IMAGE, block)
        for name in ("block_type", "image") if prefix is None else ("block_type", "url"):
            fields.pop(name, None)
        if block.image_mimetype == f"image/{found}":
            del fields["image_mimetype"]
        elif block.image_mimetype is None:
            fields["image_mimetype"] = None
        if prefix is not None:
            fields["data_url"] = prefix
        index = self._add({"image": {"format": found, "source": {"bytes": raw}}})
        return {"n": index, **fields} if fields else index

    def _add(self, block: ContentBlock) -> int:
        self.blocks.append(block)
        return len(self.blocks) - 1


def _from_data_url(block: ImageBlock) -> tuple[bytes | None, str]:
    """Split the data URL of an image with no other source, if it can be put together again exactly."""
    url = str(block.url) if block.url and block.image is None and block.path is None else ""
    head, separator, data = url.partition(";base64,")
    raw = _raw(data.encode()) if url.startswith("data:") and separator else b""
    return (raw if base64.b64encode(raw).decode() == data else None), head + separator


def _is_reference(item: JSON) -> bool:
    return isinstance(item, dict) and "n" in item and "block_type" not in item


def _carried_item(item: JSON, resolve: Resolve) -> JSON:
    if type(item) is not int:
        return item
    content = resolve(item)
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        return {"n": item}
    return text if _is_unicode(text) else {"block_type": "text", "text": _tagged(text)}


class _Reader:
    """Reads one record or foreign step; what cannot be read becomes a placeholder and a problem."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve
        self.problems: list[str] = []
        self._encoded: dict[tuple[int, str], tuple[bytes, bytes]] = {}  # with the raw bytes, so that ids stay theirs

    def message(self, record: JSON) -> ChatMessage:
        if not isinstance(record, dict):
            self.problems.append("the record is not an object")
            return placeholder("its record is not an object")
        items = record.get("b")
        blocks = [self.item(item) for item in items] if isinstance(items, list) else [self._bad("no list of blocks")]
        kwargs = self.value(record["k"]) if "k" in record else {}
        if not isinstance(kwargs, dict):
            self.problems.append("additional_kwargs are not an object")
            kwargs = {}
        if kwargs.get("images"):  # LlamaIndex would read it as image documents, and raise
            kwargs["legacy_images"] = kwargs.pop("images")
        return ChatMessage.model_construct(role=self._role(record.get("r")), blocks=blocks, additional_kwargs=kwargs)

    def _role(self, role: JSON) -> MessageRole:
        known = _ROLES.get(role) if isinstance(role, str) else None
        if known is None:
            self.problems.append("an unknown role was read as user")
        return known or MessageRole.USER

    def item(self, item: JSON) -> BaseContentBlock:
        if type(item) is int:
            return self.native(self._resolve(item), {})
        if type(item) is str:
            return TextBlock(text=item)
        if _is_reference(item):
            return self.native(self._resolve(item), item)
        return self.block(item)

    def block(self, item: JSON, *, nested: bool = False) -> BaseContentBlock:
        block_type = item.get("block_type") if isinstance(item, dict) else None
        if not isinstance(block_type, str):
            return self._bad("of no known form")
        kind = _KINDS.get(block_type)
        if kind is None or (nested and kind.nested):
            return self._bad(f"of the unknown type {block_type[:40]!a}")
        return self._built(kind, {name: self._field(kind, name, item[name]) for name in kind.names if name in item})

    def _field(self, kind: _Kind, name: str, value: JSON) -> Any:
        if name == kind.nested:
            items = [self.block(item, nested=True) for item in (value if isinstance(value, list) else [value])]
            return items if isinstance(value, list) else items[0]
        plain = self.value(value)
        return base64.b64encode(plain) if name == kind.data and type(plain) is bytes else plain

    def _built(self, kind: _Kind, fields: dict[str, Any]) -> BaseContentBlock:
        try:
            return _build(kind, fields)
        except Exception:  # noqa: BLE001 - whatever is wrong with it, it must not hide the other blocks
            return self._bad(f"{kind.block_type} with fields that are not its own")

    def _bad(self, reason: str) -> TextBlock:
        self.problems.append(f"block {reason}")
        return TextBlock(text=f"[unreadable block: {reason}]")

    def native(self, content: Any, item: dict[str, JSON]) -> BaseContentBlock:
        """Read a native block; `item` has the other fields of an image."""
        if isinstance(content, dict) and isinstance(text := content.get("text"), str):
            return TextBlock(text=text)
        image = content.get("image") if isinstance(content, dict) else None
        source = image.get("source") if isinstance(image, dict) else None
        if not isinstance(image, dict) or not isinstance(source, dict):
            return self._bad("missing, or neither text nor image")
        raw, place = source.get("bytes"), source.get("s3Location")
        fields = {name: self.value(item[name]) for name in _IMAGE.names if name in item}
        if isinstance(raw, bytes):
            prefix = item.get("data_url")
            held = self._base64(raw, prefix if isinstance(prefix, str) else "")
            fields.update({"url": held.decode()} if prefix else {"image": held})
        elif isinstance(place, dict) and isinstance(place.get("uri"), str):
            fields["url"] = place["uri"]
        else:
            return self._bad("image without a source")
        if "image_mimetype" not in fields:
            known = [mime for mime, name in _FORMATS.items() if name == image.get("format")]
            fields["image_mimetype"] = known[0] if known else _sniff(raw if isinstance(raw, bytes) else b"")
        if fields["image_mimetype"] is None:
            del fields["image_mimetype"]
        return self._built(_IMAGE, fields)

    def _base64(self, raw: bytes, prefix: str) -> bytes:
        """Encode an image once, however often a hostile record refers to it."""
        key = (id(raw), prefix)
        if key not in self._encoded:
            self._encoded[key] = (raw, prefix.encode() + base64.b64encode(raw))
        return self._encoded[key][1]

    def value(self, value: JSON, depth: int = 0) -> Any:
        """Return the plain value of its JSON form."""
        kind = type(value)
        if kind in _SCALARS:
            return value
        try:
            if kind is list and depth <= _MAX_DEPTH:
                return [self.value(item, depth + 1) for item in value]
            if kind is not dict or depth > _MAX_DEPTH:
                return self._unreadable()
            if len(value) == 1 and (tag := next(iter(value))).startswith("~"):
                return self._tag(tag, value[tag], depth)
            return {key: self.value(item, depth + 1) for key, item in value.items()}
        except Exception:  # noqa: BLE001 - a value that cannot be read must not hide the others
            return self._unreadable()

    def _unreadable(self) -> str:
        self.problems.append("a value that cannot be read")
        return "[unreadable value]"

    def _tag(self, tag: str, value: JSON, depth: int) -> Any:
        if tag == "~b":
            return base64.b64decode(value, validate=True)
        if tag == "~s":
            return base64.b64decode(value, validate=True).decode("utf-8", "surrogatepass")
        if tag == "~i":
            return int(value, 16)
        if tag == "~f":
            return _FLOATS[value]
        if tag == "~d":
            pairs = [(self.value(key, depth + 1), self.value(item, depth + 1)) for key, item in value]
            return {str(key): item for key, item in pairs}
        raise ValueError("a tag of a later release")
