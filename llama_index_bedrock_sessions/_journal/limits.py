"""What one step takes: the service's limits, how much something is on the wire, and what goes into several steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.records import shifted
from llama_index_bedrock_sessions._journal.values import json_size
from llama_index_bedrock_sessions.errors import StepTooLargeError

STEP_LIMIT = 50_000_000
"""Bytes of one step: 50 MB (Bedrock user guide), taken as what goes over the wire, the smallest reading of it."""
IMAGES_PER_STEP = 20
"""Bedrock user guide, quotas."""
_ROOM = STEP_LIMIT - 2_000_000


def check_fits(encoded: message_codec.Encoded) -> None:
    """Refuse messages of which something does not fit into a step. Raises StepTooLargeError."""
    if is_small(encoded):
        return
    for block in encoded.blocks:
        check_size(wire_size(block))
    check_size(sum(encoded.wire_sizes()))


def check_size(size: int) -> None:
    """Refuse what does not fit into a step; `size` in bytes on the wire. Raises StepTooLargeError."""
    if size > STEP_LIMIT - 1_000_000:
        raise StepTooLargeError(
            f"{size / 1e6:.1f} MB do not fit into one invocation step, which holds 50 MB (Bedrock's limit). "
            "Nothing was stored. Images, audio, video and documents of any size can be kept in S3, by the chat store's "
            "argument media=; put the URL of all else into the message."
        )


def is_small(encoded: message_codec.Encoded) -> bool:
    """Whether it fits into a step by far, so that it need not be measured: a character takes 12 bytes at most."""
    texts = sum(len(block["text"]) if "text" in block else STEP_LIMIT for block in encoded.blocks)
    return 12 * (texts + sum(encoded.record_sizes())) < STEP_LIMIT // 10


def wire_size(block: ContentBlock) -> int:
    """Return about the bytes of a native block in a request."""
    if "text" in block:
        return json_size(block["text"])
    return len(block["image"]["source"].get("bytes", b"")) * 4 // 3 + 1200  # an s3Location has up to 1,024


def split(native_blocks: list[ContentBlock], records: int) -> list[list[ContentBlock]]:
    """Split native blocks into steps within the limits of bytes and images; usually one."""
    groups: list[list[ContentBlock]] = [[]]
    size, images = 0, 0
    for block in native_blocks:
        weight, image = wire_size(block), "image" in block
        if groups[-1] and (size + weight > _ROOM or (image and images == IMAGES_PER_STEP)):
            groups.append([])
            size, images = 0, 0
        groups[-1].append(block)
        size, images = size + weight, images + image
    if size + records > _ROOM and groups[-1]:
        groups.append([])
    return groups


class Copy(NamedTuple):
    """A message with all that it needs, and whether it is archived."""

    content: message_codec.Encoded
    archived: bool


def drafts(copies: Iterable[Copy], last: Draft) -> list[Draft]:
    """Return copies as the fewest drafts that fit into a step each: `last`, with the others as its `preceding`."""
    groups: list[list[Copy]] = [[]]
    size, images = 0, 0
    for copy in copies:
        weight = sum(wire_size(block) for block in copy.content.blocks) + sum(copy.content.wire_sizes())
        pictures = sum("image" in block for block in copy.content.blocks)
        if groups[-1] and (size + weight > _ROOM or images + pictures > IMAGES_PER_STEP):
            groups.append([])
            size, images = 0, 0
        groups[-1].append(copy)
        size, images = size + weight, images + pictures
    preceding = [Draft() for _ in groups[1:]]
    written = [*preceding, last]
    for draft, group in zip(written, groups, strict=True):
        draft.messages = _joined(copy.content for copy in group)
        draft.archived = frozenset(("", position) for position, copy in enumerate(group) if copy.archived)
    last.preceding = preceding
    return written


def _joined(several: Iterable[message_codec.Encoded]) -> message_codec.Encoded:
    joined = message_codec.Encoded([], [])
    for encoded in several:
        joined.records.extend(shifted(record, len(joined.blocks)) for record in encoded.records)
        joined.blocks.extend(encoded.blocks)
    return joined
