"""Messages as callers give and get them: encoded, decoded, compared with what is stored."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus

from llama_index_bedrock_sessions._bedrock.media import Objects
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.fold import Fold
from llama_index_bedrock_sessions._journal.ids import Home, MessageId
from llama_index_bedrock_sessions._journal.limits import check_fits
from llama_index_bedrock_sessions._journal.message_codec import Content, ContentBlock, Encoded, Offload
from llama_index_bedrock_sessions._journal.model import Message
from llama_index_bedrock_sessions._journal.records import own_number, own_references, reference, shifted
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.errors import InvalidMessageError, InvalidPointError

NativeBlocks = Mapping[Home, Sequence[ContentBlock]]
"""The content blocks of steps that hold images and attachments."""


def check_status(status: MessageStatus | None) -> MessageStatus | None:
    """Return a status that is given as such or as its text. Raises InvalidPointError for an unknown status."""
    try:
        return None if status is None else MessageStatus(status)
    except ValueError:
        named = ", ".join(repr(one.value) for one in MessageStatus)
        raise InvalidPointError(f"status={status!r}: expected one of {named}, or None for all.") from None


def of_status(fold: Fold, status: MessageStatus | None) -> list[Message]:
    """Return the messages of a status, all if None, that are not hidden."""
    if status is None:
        return list(fold.visible())
    return [m for m in fold.visible() if fold.is_archived(m.id) is (status is MessageStatus.ARCHIVED)]


def active_messages(fold: Fold) -> list[Message]:
    """Return the active messages that are not hidden."""
    return of_status(fold, MessageStatus.ACTIVE)


# Encoding and decoding


def encode(messages: Iterable[ChatMessage], media: Objects | None) -> Encoded:
    """Return messages as they are stored; large contents go to S3 if there is `media`.

    Raises:
        InvalidMessageError: something is not a ChatMessage.
        StepTooLargeError: a content block exceeds 50 MB.

    """
    if not isinstance(messages, Iterable) or isinstance(messages, (str, bytes, ChatMessage)):
        raise InvalidMessageError(f"expected a list of ChatMessage, got {type(messages).__name__}")
    offload = media.offload() if media else None
    encoded = message_codec.encode(list(messages), functools.partial(read_file, offload=offload), offload=offload)
    check_fits(encoded)
    return encoded


def decode(messages: Sequence[Message], native_blocks: NativeBlocks, media: Objects | None) -> list[ChatMessage]:
    """Return messages as the caller gets them; contents in S3 are fetched in parallel."""
    found = media.fetch(sha256 for m in messages for sha256 in message_codec.objects(m.record)) if media else {}
    fetch = found.get if media else None
    return [message_codec.decode(m.record, functools.partial(_resolve, m, native_blocks), fetch) for m in messages]


def _resolve(message: Message, native_blocks: NativeBlocks, item: Any) -> ContentBlock | None:
    """Return the native block that an item of a message's record stands for, None if there is none."""
    found = reference(item, len(message.homes))
    return native_block(native_blocks.get(message.homes[found[1]], ()), found[0]) if found else None


def native_block(payload: Sequence[ContentBlock], n: int) -> ContentBlock | None:
    """Return block n of a payload, None if there is none."""
    return payload[n] if 0 <= n < len(payload) else None


def _native_of(encoded: Encoded) -> Callable[[JSON], ContentBlock | None]:
    """Return what gives the native block that an item of an encoded record refers to."""

    def native(item: JSON) -> ContentBlock | None:
        n = own_number(item)
        return None if n is None else native_block(encoded.blocks, n)

    return native


def read_file(path: str, *, offload: Offload | None = None) -> bytes | Content | None:
    """Return what is in a file, None if it cannot be read; a `Content` where it is to be offloaded."""
    file = Path(path)
    try:
        # What may become a native image has to be looked at.
        if offload and file.stat().st_size > max(offload.threshold, message_codec.MAX_IMAGE_BYTES):
            return Content.of_file(file)
        return file.read_bytes()
    except OSError:
        return None


# The difference between what is stored and what is wanted


def outlines(encoded: Encoded) -> list[ChatMessage]:
    """Return messages as they will be read, so that they can be compared; a stream could not be read twice."""
    native = _native_of(encoded)
    return [message_codec.outline(record, native) for record in encoded.records]


def difference(
    fold: Fold,
    native_blocks: NativeBlocks,
    wanted: Sequence[ChatMessage],
    encoded: Encoded,
    status: MessageStatus | None,
) -> Draft | None:
    """Return the smallest change that turns the stored messages into `wanted`; None if they are equal.

    That is removals and additions, or a set. `encoded` are the wanted messages as they are stored.
    """
    alive, same = fold.visible(), {m.id for m in of_status(fold, status)}
    kept = 0
    gone: list[MessageId] = []
    gone_contents: list[ChatMessage] = []
    for message in alive:
        resolve = functools.partial(_resolve, message, native_blocks)
        content = message_codec.outline(message.record, resolve) if message.id in same else None
        if kept < len(wanted) and content == wanted[kept]:
            kept += 1
            continue
        gone.append(message.id)
        if content is not None:
            gone_contents.append(content)
    if kept == len(wanted) and not gone:
        return None
    if wanted and (kept == 0 or _have_one_in_common(gone_contents, wanted[kept:])):
        # What stays would have to move, or nothing stays: of two such writers, one shall win. But a set would do
        # away with what an earlier one has added and is hidden now.
        draft = Draft(encoded, removed=frozenset(m.id for m in alive), is_set=not fold.hidden())
    else:
        draft = Draft(_tail(encoded, kept), removed=frozenset(gone))
    draft.archived = archived_by(draft.messages, status)
    return draft


def archived_by(encoded: Encoded, status: MessageStatus | None) -> frozenset[MessageId]:
    """Return the messages of a draft that it archives as it adds them."""
    return frozenset(("", n) for n in range(len(encoded.records)) if status is MessageStatus.ARCHIVED)


def _have_one_in_common(some: Iterable[ChatMessage], others: Iterable[ChatMessage]) -> bool:
    # Messages have no hash: only those of one text are compared.
    by_text: dict[str | None, list[ChatMessage]] = {}
    for message in others:
        by_text.setdefault(message.content, []).append(message)
    return any(message == other for message in some for other in by_text.get(message.content, ()))


def _tail(encoded: Encoded, skip: int) -> Encoded:
    """Return the encoding without its first messages. Native blocks are renumbered."""
    if skip == 0:
        return encoded
    used = [n for record in encoded.records[skip:] for n in own_references(record)]
    first = min(used, default=len(encoded.blocks))
    records = [shifted(record, -first) for record in encoded.records[skip:]]
    used_contents = {sha256: encoded.contents[sha256] for r in records for sha256 in message_codec.objects(r)}
    return Encoded(records, encoded.blocks[first:], used_contents)
