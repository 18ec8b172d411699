"""Chat messages as Bedrock content blocks, and back.

The law: **decode(encode(m)) == normal(m)**. `normal` is idempotent, and the identity on JSON values and bytes. This
module does no I/O and reads no clock. A caller that wants the content of local files passes `read`. URLs are never
fetched. `encode` accepts every message that LlamaIndex can build. `decode` is total: for any input it returns a
message, with a visible, logged placeholder for each block that it cannot read. Logs never contain content.

`normal` changes the following and nothing else, and logs what a reader could miss:

- A stream in a block becomes its bytes from the start. The stream keeps its position. A stream that cannot seek is read
  once, from its current position.
- A block with a readable `path` and no bytes gets the bytes of the file, because the path means nothing on another
  machine. If the file cannot be read, the path stays. LlamaIndex's own rule guesses a missing mimetype from the bytes
  (from the first 8 KB if the file goes to an object).
- Bytes that bypassed the constructor of a block become what the constructor makes of them: canonical base64.
- URLs become `AnyUrl`, as in the constructor. Paths become `Path` (`str` in a `DocumentBlock`).
- A subclass of a message or block becomes its nearest base in LlamaIndex. A block becomes text if it is not a block, or
  if its fields violate its class (only assignment and `model_construct` can do that).
- A non-empty `additional_kwargs["images"]` is removed. LlamaIndex has made blocks of it, and would do so again at every
  validation. Documents with inline images that are in no block become blocks. Everything else in it moves to
  `additional_kwargs["legacy_images"]`.
- Values in `additional_kwargs` and other untyped fields become JSON. Keys become strings. Tuples, deques, ranges, sets
  (sorted if possible) become lists, streams become bytes, enums become their values. Models, dataclasses, dates, UUIDs,
  decimals, paths and URLs become what pydantic's JSON mode makes of them. Arrays become lists by `tolist`. Other values
  become their repr. A sentence replaces a value that contains itself, is nested more than 100 levels deep, or repeats
  containers by reference more than 100,000 times.

NaN, infinities, integers of any size, bytes and lone surrogates are kept exactly.

`docs/format.md`, section "Records", specifies records, their items, and contents in S3. A store with `media=` keeps
contents from a threshold on in objects, and returns URLs of them. A block with such a URL refers to the object again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from llama_index.core.schema import ImageDocument
from PIL import Image
from pydantic import AnyUrl, BaseModel

from llama_index_bedrock_sessions._journal.records import (
    home_reference,
    is_record,
    is_reference,
    items,
    own_reference,
    with_items,
)
from llama_index_bedrock_sessions._journal.values import (
    JSON,
    Walk,
    dump,
    from_json,
    is_unicode,
    json_size,
    stream_content,
    to_json,
)
from llama_index_bedrock_sessions.errors import InvalidMessageError

logger = logging.getLogger("llama_index_bedrock_sessions")
ContentBlock = dict[str, Any]
Read = Callable[[str], "bytes | Content | None"]
Resolve = Callable[[Any], "ContentBlock | None"]
Fetch = Callable[[str], "bytes | str | None"]
MAX_IMAGE_BYTES = 3_750_000  # "3.75 MB", read as the smaller of its two meanings (Bedrock user guide, quotas)
_MAX_IMAGE_SIDE = 8_000  # pixels
_FORMATS = {"image/png": "png", "image/jpeg": "jpeg", "image/gif": "gif", "image/webp": "webp"}
_HEAD = 8192  # bytes: what `filetype` looks at
_SHA256 = re.compile("[0-9a-f]{64}")
_ROLES = {role.value: role for role in MessageRole}


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that are kept in an object of their own: these, or those of a file. `head` are the first 8 KB."""

    sha256: str
    size: int
    source: bytes | Path = field(repr=False)
    head: bytes = field(repr=False)

    @classmethod
    def of(cls, raw: bytes) -> Content:
        """Return bytes as such a content."""
        return cls(hashlib.sha256(raw).hexdigest(), len(raw), raw, raw[:_HEAD])

    @classmethod
    def of_file(cls, path: Path) -> Content:
        """Return the bytes of a file, which are read a piece at a time. Raises OSError."""
        digest, size, head = hashlib.sha256(), 0, b""
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                head = head or piece[:_HEAD]
                size += len(piece)
                digest.update(piece)
        return cls(digest.hexdigest(), size, path.absolute(), head)


@dataclass(frozen=True, slots=True)
class Offload:
    """Which contents go to objects: those from `threshold` bytes on; an object's URL is a folder and its SHA-256.

    The first of the folders is written into native blocks.
    """

    threshold: int
    folders: tuple[str, ...]

    def object_of(self, url: str) -> str | None:
        """Return the SHA-256 of the object of a URL, None if the URL is not of this store."""
        folder, sha256 = (bare := url.partition("?")[0])[:-64], bare[-64:]
        return sha256 if folder in self.folders and _SHA256.fullmatch(sha256) else None


@dataclass(frozen=True, slots=True)
class Encoded:
    """What `encode` returns: one JSON record a message, and the native blocks the records refer to, in order.

    `contents` are what has to be in objects before this is stored, by SHA-256.
    """

    records: list[JSON]
    blocks: list[ContentBlock]
    contents: Mapping[str, Content] = field(default_factory=dict)
    _sizes: list[tuple[int, int]] = field(default_factory=list, compare=False, repr=False)

    def record_sizes(self) -> list[int]:
        """Return the bytes of each record as JSON."""
        return [size for size, _ in self._measured()]

    def wire_sizes(self) -> list[int]:
        """Return the bytes of each record in a request, where its JSON is a text within botocore's JSON."""
        return [size for _, size in self._measured()]

    def _measured(self) -> list[tuple[int, int]]:
        """Return both sizes of each record. Each record is measured once."""
        for text in map(dump, self.records[len(self._sizes) :]):
            self._sizes.append((len(text.encode()), json_size(text)))
        return self._sizes


def _unread(_path: str) -> bytes | None:
    return None


def normal(message: ChatMessage, read: Read = _unread) -> ChatMessage:
    """Return the normal form of a message: a new object that shares nothing mutable with it.

    `read` gives the content of a local file, or None if it cannot be read. What it gives as `Content` is not encoded.
    """
    walk = _Walk(read)
    result = walk.message(message)
    _report("a message was changed to be stored", walk.notes)
    return result


def encode(
    messages: Sequence[ChatMessage],
    read: Read = _unread,
    *,
    native_blocks: bool = True,
    offload: Offload | None = None,
) -> Encoded:
    """Turn messages into native content blocks and JSON records (safe with `allow_nan=False`).

    Unless `native_blocks`, images are in the records. With `offload`, large contents are left out of both. Raises
    `InvalidMessageError` for what is not a `ChatMessage`, before anything is read.
    """
    for index, message in enumerate(messages):
        if not isinstance(message, ChatMessage):
            raise InvalidMessageError(
                f"message {index} is a {type(message).__name__}, not a llama_index.core.llms.ChatMessage"
            )
    writer = _Writer(native_blocks, offload)
    records = [writer.record(normal(message, read)) for message in messages]
    return Encoded(records, writer.blocks, writer.contents)


def decode(record: JSON, resolve: Resolve, fetch: Fetch | None = None) -> ChatMessage:
    """Turn a record into a new message, whatever the record is.

    `resolve` gives the native block an item refers to, or None; `fetch` the bytes of an object by SHA-256, or its URL,
    or None. What they raise is passed on. Nothing else is raised.
    """
    reader = _Reader(resolve, fetch)
    message = reader.message(record)
    _report("unreadable parts of a message were replaced by placeholders", reader.problems)
    return message


def outline(record: JSON, resolve: Resolve) -> ChatMessage:
    """Return the message of a record with the SHA-256 of contents in their place, wherever they are kept.

    The outlines of two records are equal if their messages are.
    """
    return _Outliner(resolve).message(record)


def objects(record: JSON) -> list[str]:
    """List the SHA-256 of the objects a record refers to, in its order."""
    return list(dict.fromkeys(_objects(items(record), 0)))


def _objects(blocks: list[JSON], depth: int) -> Iterator[str]:
    for item in blocks:
        kind = _KINDS.get(str(item.get("block_type"))) if isinstance(item, dict) else None
        if kind is None:
            found = _sha256(item.get("o")) if is_reference(item) else None
        else:
            found = _object_of(item.get(kind.data))
            inner = item.get(kind.nested) if not depth else None
            yield from _objects(inner if isinstance(inner, list) else [inner], depth + 1) if inner else ()
        if found:
            yield found


def _sha256(value: JSON) -> str | None:
    return value if isinstance(value, str) and _SHA256.fullmatch(value) else None


def _object_of(value: JSON) -> str | None:
    """Return the SHA-256 of the object that holds the bytes of a block, None if there is none."""
    return _sha256(value.get("~o")) if isinstance(value, dict) and len(value) == 1 else None


def carried(record: JSON, resolve: Resolve) -> JSON:
    """Return the record as another step carries it: native texts in place, native images as references.

    Items that `resolve` does not know stay references; unknown members of the record and of its items are kept.
    """
    return with_items(record, lambda item: _carried_item(item, resolve))


def foreign(blocks: Sequence[ContentBlock]) -> JSON:
    """Return the record of the one user message that the content blocks of another tool's step are."""
    texts = [block.get("text") if isinstance(block, dict) else None for block in blocks]
    return {"r": "user", "b": [text if isinstance(text, str) else home_reference(n) for n, text in enumerate(texts)]}


def placeholder(reason: str) -> ChatMessage:
    """Return the visible message that replaces a step that cannot be decoded."""
    return ChatMessage(role=MessageRole.USER, content=f"[unreadable message: {reason}]")


def _report(what: str, reasons: list[str]) -> None:
    if reasons:
        counts = Counter(reasons).items()
        logger.warning("%s: %s", what, "; ".join(f"{reason} ({n})" if n > 1 else reason for reason, n in counts))


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


def _kind_of(block: object) -> _Kind | None:
    return next((_BY_CLASS[cls] for cls in type(block).__mro__ if cls in _BY_CLASS), None)


def _build(kind: _Kind, fields: dict[str, Any]) -> BaseContentBlock:
    """Make a block of plain fields as its constructor would, but without looking for files or guessing again.

    Binary data is given as blocks hold it, as base64. Raises for fields that break the class's declaration.
    """
    fields, apart = dict(fields), dict[str, Any]()
    if kind.data and type(fields.get(kind.data)) in (bytes, Content):
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


def _role(role: Any, notes: list[str]) -> MessageRole:
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        notes.append("an unknown role became user")
    return known or MessageRole.USER


def _harmless(kwargs: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Rename `images`: LlamaIndex would take them for image documents at every validation, and raise."""
    if kwargs.get("images"):
        kwargs["legacy_images"] = kwargs.pop("images")
        notes.append("additional_kwargs['images'] became 'legacy_images'")
    return kwargs


def _each(value: Any, convert: Callable[[Any], Any]) -> Any:
    """Convert the nested block of a citation, or the nested blocks of a citable block."""
    return [convert(item) for item in value] if isinstance(value, list) else convert(value)


def _add_missing(blocks: list[Any], images: Sequence[ImageDocument]) -> None:
    """Add the images that were put into `additional_kwargs` too late for LlamaIndex to make blocks of them."""
    for image in images:
        block = ImageBlock(image=image.image.encode()) if image.image else None
        if block and all(vars(other).get("image") != block.image for other in blocks):
            blocks.append(block)


class _Walk(Walk):
    """One walk over messages that makes them normal."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read

    def message(self, message: ChatMessage) -> ChatMessage:
        held = vars(message)
        blocks = held.get("blocks") or []
        blocks = [self.block(block) for block in (blocks if isinstance(blocks, (list, tuple)) else [blocks])]
        kwargs = held.get("additional_kwargs") or {}
        images = kwargs.get("images") if isinstance(kwargs, dict) else None
        if isinstance(images, list) and images and all(isinstance(image, ImageDocument) for image in images):
            kwargs = {key: value for key, value in kwargs.items() if key != "images"}
            _add_missing(blocks, images)
        plain = self.plain(kwargs)
        return ChatMessage.model_construct(
            role=_role(held.get("role"), self.notes),
            blocks=blocks,
            additional_kwargs=_harmless(plain if isinstance(plain, dict) else {"additional_kwargs": plain}, self.notes),
        )

    def block(self, block: Any, *, nested: bool = False) -> BaseContentBlock:
        if type(block) is TextBlock and type(text := vars(block).get("text")) is str:
            return TextBlock(text=text)
        kind = _kind_of(block)
        if kind and not (nested and kind.nested):
            try:
                return _build(kind, self._fields(kind, block))
            except Exception:  # noqa: BLE001 - pydantic, streams and foreign objects raise what they like
                self.notes.append(f"a block of type {kind.block_type} that breaks its declaration is shown as text")
        else:
            self.notes.append(f"an object of type {type(block).__name__} among the blocks is shown as text")
        shown = self.plain(vars(block) if kind else block)
        return TextBlock(text=shown if type(shown) is str else json.dumps(to_json(shown)))

    def _fields(self, kind: _Kind, block: BaseContentBlock) -> dict[str, Any]:
        fields = {name: value for name in kind.names if (value := vars(block).get(name)) is not None}
        if kind.data:
            self._materialise(kind, kind.data, fields)
        for name, value in fields.items():
            if name == kind.nested:
                fields[name] = _each(value, partial(self.block, nested=True))
            elif not isinstance(value, Content):
                fields[name] = self.plain(value)
        return fields

    def _materialise(self, kind: _Kind, data: str, fields: dict[str, Any]) -> None:
        value = fields.get(data)
        found: bytes | Content | None = None
        if isinstance(value, bytes):
            fields[data] = base64.b64encode(_raw(value))
        elif isinstance(value, IOBase):
            found = _raw(stream_content(value))
        elif value is None and "path" in fields:
            found = self._read(str(fields["path"]))
            if found is None:
                self.notes.append(f"the file of a block of type {kind.block_type} could not be read: its path is kept")
            else:
                del fields["path"]
        if found is not None:
            fields[data] = found if isinstance(found, Content) else base64.b64encode(found)
            if kind.mime and kind.mime not in fields:
                sample = found.head if isinstance(found, Content) else found
                fields[kind.mime] = vars(kind.cls(**{data: sample}))[kind.mime]

    def dumped(self, model: BaseModel) -> Any:
        """Dump messages and blocks in their normal form: their own serialisers move the streams of the caller."""
        if isinstance(model, ChatMessage):
            model = self.message(model)
        elif _kind_of(model):
            model = self.block(model)
        return super().dumped(model)


def _sniff(raw: Any) -> str | None:
    """Return the mimetype of an image from its bytes."""
    guess = filetype.guess(raw) if isinstance(raw, bytes) else None
    return str(guess.mime) if guess else None


def _native_format(raw: bytes) -> str | None:
    """Return the format of an image within Bedrock's limits; only the header is read."""
    found = _FORMATS.get(_sniff(raw) or "") if len(raw) <= MAX_IMAGE_BYTES else None
    if found is None:
        return None
    try:
        with Image.open(BytesIO(raw), formats=[found.upper()]) as image:
            return found if max(image.size) <= _MAX_IMAGE_SIDE else None
    except Exception:  # noqa: BLE001 - pillow's decoders raise what they like on corrupt headers
        return None


class _Writer:
    """Writes the records of normal messages, and gathers their native blocks."""

    def __init__(self, native_blocks: bool, offload: Offload | None) -> None:
        self.blocks: list[ContentBlock] = []
        self.contents: dict[str, Content] = {}
        self._native_blocks = native_blocks
        self._offload = offload

    def record(self, message: ChatMessage) -> JSON:
        record = {"r": message.role.value, "b": [self._item(block) for block in message.blocks]}
        if message.additional_kwargs:
            record["k"] = to_json(message.additional_kwargs)
        return record

    def _item(self, block: BaseContentBlock) -> JSON:
        if isinstance(block, TextBlock) and is_unicode(block.text):
            # Bedrock asks for one character; whether blank text counts as one is not documented.
            return self._add({"text": block.text}) if block.text.strip() else block.text
        if isinstance(block, ImageBlock) and self._native_blocks and (item := self._image(block)) is not None:
            return item
        return self._json(block)

    def _json(self, block: BaseContentBlock) -> dict[str, JSON]:
        """Return the JSON form of a normal block."""
        kind = _BY_CLASS[type(block)]
        result: dict[str, JSON] = {"block_type": kind.block_type}
        for name in kind.names:
            value = vars(block)[name]
            if value is None:
                continue
            if name == kind.data:
                result[name] = self._data(value)
            elif name == kind.nested:
                result[name] = _each(value, self._json)
            else:
                result[name] = to_json(vars(value) if isinstance(value, BaseModel) else value)
        if kind.data and (sha256 := self._given_out(kind, block)):
            del result["url"]
            result[kind.data] = {"~o": sha256}
        return result

    def _data(self, value: bytes | Content) -> JSON:
        if isinstance(value, bytes):
            if self._offload is None or len(raw := base64.b64decode(value)) < self._offload.threshold:
                return {"~b": value.decode("ascii")}
            value = Content.of(raw)
        self.contents[value.sha256] = value
        return {"~o": value.sha256}

    def _given_out(self, kind: _Kind, block: BaseContentBlock) -> str | None:
        """Return the object that a block has only the URL of: a reader was given it in place of the content."""
        held = vars(block)
        if self._offload is None or not held["url"] or held["path"] is not None or held[str(kind.data)] is not None:
            return None
        return self._offload.object_of(str(held["url"]))

    def _image(self, block: ImageBlock) -> JSON | None:
        held = vars(block)["image"]
        if isinstance(held, Content):
            return None
        raw, prefix = (base64.b64decode(held), None) if held else _from_data_url(block)
        if not raw or not (found := _native_format(raw)):
            return None
        fields = self._json(block)
        data = fields.pop("image") if prefix is None else self._data(base64.b64encode(raw))
        for name in ("block_type",) if prefix is None else ("block_type", "url"):
            del fields[name]
        if block.image_mimetype == f"image/{found}":
            del fields["image_mimetype"]
        elif block.image_mimetype is None:
            fields["image_mimetype"] = None
        if prefix is not None:
            fields["data_url"] = prefix
        source: ContentBlock = {"bytes": raw}
        if self._offload and (sha256 := _object_of(data)):
            source = {"s3Location": {"uri": self._offload.folders[0] + sha256}}
            fields["o"] = sha256
        index = self._add({"image": {"format": found, "source": source}})
        return own_reference(index, fields)

    def _add(self, block: ContentBlock) -> int:
        self.blocks.append(block)
        return len(self.blocks) - 1


def _from_data_url(block: ImageBlock) -> tuple[bytes | None, str]:
    """Split the data URL of an image with no other source, if it can be put together again exactly."""
    url = str(block.url) if block.url and block.image is None and block.path is None else ""
    head, separator, data = url.partition(";base64,")
    raw = _raw(data.encode()) if url.startswith("data:") and separator else b""
    return (raw if base64.b64encode(raw).decode() == data else None), head + separator


def _carried_item(item: JSON, resolve: Resolve) -> JSON:
    if type(item) is not int:
        return item
    content = resolve(item)
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        return home_reference(item)
    return text if is_unicode(text) else {"block_type": "text", "text": to_json(text)}


def _any_url(text: str) -> AnyUrl | str:
    try:
        return AnyUrl(text)
    except ValueError:
        return text  # which the block will refuse


class _Reader:
    """Reads one record; what cannot be read becomes a placeholder and a problem."""

    def __init__(self, resolve: Resolve, fetch: Fetch | None = None) -> None:
        self._resolve = resolve
        self._fetch = fetch
        self.problems: list[str] = []
        self._encoded: dict[Any, tuple[bytes, Any]] = {}  # with the raw bytes, so that no other object gets their ids

    def message(self, record: JSON) -> ChatMessage:
        if not isinstance(record, dict):
            self.problems.append("the record is not an object")
            return placeholder("its record is not an object")
        blocks = [self.item(i) for i in items(record)] if is_record(record) else [self._bad("no list of blocks")]
        role = _role(record.get("r"), self.problems)
        return ChatMessage.model_construct(role=role, blocks=blocks, additional_kwargs=self._kwargs(record))

    def _kwargs(self, record: dict[str, JSON]) -> dict[str, Any]:
        if "k" not in record:
            return {}
        kwargs = self._value(record["k"])
        if not isinstance(kwargs, dict):
            self.problems.append("additional_kwargs are not an object")
            return {}
        return _harmless(kwargs, self.problems)

    def item(self, item: JSON) -> BaseContentBlock:
        if type(item) is int:
            return self.native(self._resolve(item), {})
        if type(item) is str:
            return TextBlock(text=item)
        if is_reference(item):
            return self.native(self._resolve(item), item)
        return self.block(item)

    def block(self, item: JSON, *, nested: bool = False) -> BaseContentBlock:
        block_type = item.get("block_type") if isinstance(item, dict) else None
        if not isinstance(block_type, str):
            return self._bad("of no known form")
        kind = _KINDS.get(block_type)
        if kind is None or (nested and kind.nested):
            return self._bad(f"of the unknown type {block_type[:40]!a}")
        sha256 = _object_of(item.get(kind.data)) if kind.data else None
        names = [name for name in kind.names if name in item and not (sha256 and name == kind.data)]
        fields = {name: self._field(kind, name, item[name]) for name in names}
        return self._fetched(kind, fields, sha256) if sha256 else self._built(kind, fields)

    def _fetched(self, kind: _Kind, fields: dict[str, Any], sha256: str, prefix: JSON = None) -> BaseContentBlock:
        """Build a block whose bytes are in an object: of the bytes or of its URL."""
        if self._fetch is None:
            return self._bad(f"{kind.block_type} in S3: the chat store was made without media=")
        content = self._fetch(sha256)
        if content is None:
            return self._bad(f"{kind.block_type} whose content is not in S3 any more, or was changed there")
        if isinstance(content, str):
            fields["url"] = content
        elif prefix is not None:
            fields["url"] = self._data_url(content, prefix)
        else:
            fields[str(kind.data)] = self._base64(content)
        return self._built(kind, fields)

    def _field(self, kind: _Kind, name: str, value: JSON) -> Any:
        if name == kind.nested:
            return _each(value, partial(self.block, nested=True))
        plain = self._value(value)
        return self._base64(plain) if name == kind.data and type(plain) is bytes else plain

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
        raw, location = source.get("bytes"), source.get("s3Location")
        mime = next((mime for mime, name in _FORMATS.items() if name == image.get("format")), None)
        fields: dict[str, Any] = {"image_mimetype": mime or _sniff(raw)}
        fields.update((name, self._value(item[name])) for name in _IMAGE.names if name in item and name != "image")
        sha256 = _sha256(item.get("o"))
        if sha256 and (self._fetch or not location):
            given = {name: value for name, value in fields.items() if value is not None}
            return self._fetched(_IMAGE, given, sha256, item.get("data_url"))
        if not isinstance(raw, bytes):
            fields["url"] = location.get("uri") if isinstance(location, dict) else None
        elif "data_url" in item:
            fields["url"] = self._data_url(raw, item["data_url"])
        else:
            fields["image"] = self._base64(raw)
        if "image" not in fields and not fields.get("url"):
            return self._bad("image without a source")
        return self._built(_IMAGE, {name: value for name, value in fields.items() if value is not None})

    def _base64(self, raw: bytes) -> Any:
        return self._once((id(raw), None), raw, lambda: base64.b64encode(raw))

    def _data_url(self, raw: bytes, prefix: JSON) -> Any:
        return self._once((id(raw), str(prefix)), raw, lambda: _any_url(f"{prefix}{self._base64(raw).decode()}"))

    def _once(self, key: Any, raw: bytes, make: Callable[[], Any]) -> Any:
        """Encode an image once, however often a hostile record refers to it."""
        if key not in self._encoded:
            self._encoded[key] = (raw, make())
        return self._encoded[key][1]

    def _value(self, value: JSON) -> Any:
        return from_json(value, self._unreadable)

    def _unreadable(self) -> str:
        self.problems.append("a value that cannot be read")
        return "[unreadable value]"


class _Digest(bytes):
    """The SHA-256 of a content, in its place."""


class _Outliner(_Reader):
    """Reads a record with digests in place of contents, so that no object has to be fetched to compare messages."""

    def __init__(self, resolve: Resolve) -> None:
        super().__init__(resolve, lambda sha256: _Digest(sha256.encode()))

    def _base64(self, raw: bytes) -> Any:
        digest = raw if isinstance(raw, _Digest) else hashlib.sha256(raw).hexdigest().encode()
        return self._once((id(raw), None), raw, lambda: bytes(digest))
