"""What the library says to the service in four conversations: as it is used, after an idle hour, erasing, and after a
lost reply. Each returns what was read, and asserts what has to be true on any service."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions._bedrock.clock import Clock
from llama_index_bedrock_sessions._bedrock.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.cassettes.tape import World

KEY = "INC-4711"
NEEDS_CLOCK = {"continuing_after_expiry"}


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# One grey pixel, stored without compression: the same bytes whatever zlib there is.
_PIXEL = b"\x78\x01\x01\x02\x00\xfd\xff\x00\x80" + struct.pack(">I", zlib.adler32(b"\x00\x80"))
PICTURE = (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + _chunk(b"IDAT", _PIXEL)
    + _chunk(b"IEND", b"")
)


class _InOrder(Pool):
    """Does one thing after the other, so that a recording has one order."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]


def store(world: World) -> BedrockSessionsChatStore:
    """Return a store as a new process would have it, with the clock of the tape."""
    made = BedrockSessionsChatStore(client=world.client, namespace="cassettes", max_concurrency=1)
    made._sessions.clock = Clock(world.seconds)
    made._sessions.sleep = world.later
    made._sessions.pool = _InOrder(1)
    return made


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def read(messages: list[ChatMessage]) -> list[str]:
    """Return messages in words."""
    found = []
    for message in messages:
        parts = []
        for block in message.blocks:
            if isinstance(block, TextBlock):
                parts.append(block.text)
            elif isinstance(block, ImageBlock):
                parts.append(f"[image of {len(block.resolve_image().read())} bytes]")
            elif isinstance(block, ToolCallBlock):
                parts.append(f"[call {block.tool_name}({block.tool_kwargs})]")
        found.append(f"{message.role.value}: {' '.join(parts)}")
    return found


def conversation(world: World) -> Any:
    """A turn with a text, an image and a tool call, and another process that reads it."""
    call = ToolCallBlock(tool_call_id="call-1", tool_name="latency", tool_kwargs={"service": "payments"})
    turn = [
        ChatMessage(
            role=MessageRole.USER,
            blocks=[TextBlock(text="Checkout is slow."), ImageBlock(image=PICTURE, image_mimetype="image/png")],
        ),
        ChatMessage(role=MessageRole.ASSISTANT, blocks=[call]),
        ChatMessage(
            role=MessageRole.TOOL,
            content="p99 2100 ms",
            additional_kwargs={"tool_call_id": "call-1", "name": "latency"},
        ),
        ChatMessage(role=MessageRole.ASSISTANT, content="Payments is the cause."),
    ]
    writer = store(world)
    for message in turn:
        writer.add_message(KEY, message)
    found = store(world).get_messages(KEY)
    assert read(found) == read(turn)
    world.later(1)
    writer.delete_messages(KEY)
    return read(found)


def continuing_after_expiry(world: World) -> Any:
    """A message, two idle hours, and another process that goes on in a new session."""
    store(world).add_message(KEY, user("before the pause"))
    world.later(2 * 3600)
    writer = store(world)
    writer.add_message(KEY, user("after it"))
    found = read(store(world).get_messages(KEY))
    assert found == ["user: before the pause", "user: after it"]
    writer.delete_messages(KEY)
    return found


def erase(world: World) -> Any:
    """Deleting a conversation: nothing of its key is left, for this process or another."""
    writer = store(world)
    writer.add_message(KEY, user("a secret"))
    deleted = writer.delete_messages(KEY)
    left = writer.get_messages(KEY), store(world).get_messages(KEY)
    assert left == ([], [])
    return read(deleted or [])


def lost_reply(world: World) -> Any:
    """The reply to an append is lost, and the message is there once."""
    writer = store(world)
    writer.add_message(KEY, user("first"))
    world.lose_reply("PutInvocationStep")
    writer.add_message(KEY, user("second"))
    found = read(store(world).get_messages(KEY))
    assert found == ["user: first", "user: second"]
    writer.delete_messages(KEY)
    return found


CONVERSATIONS: dict[str, Callable[[World], Any]] = {
    function.__name__: function for function in (conversation, continuing_after_expiry, erase, lost_reply)
}
