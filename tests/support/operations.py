"""What a process of a history or of the soak does with a conversation, and what it reports of that."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterable
from datetime import timedelta
from functools import cache
from typing import Any

from llama_index.core.base.llms.types import TextBlock, VideoBlock
from llama_index.core.llms import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.workflow import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)

from llama_index_bedrock_sessions import BedrockSessionsChatStore, Conversation
from llama_index_bedrock_sessions._journal.history import Record
from tests.support.ops import Op, Point, text

CONTENT = "+"
"""Ends the text of a message that brings a content which is kept in S3."""
THRESHOLD = 1000
"""Bytes from which a content is kept in S3."""
LARGE = 30_000
"""Characters of noise that do not fit into 16 KB of a context, even compressed."""


def perform(store: BedrockSessionsChatStore, chat: Conversation, op: Op, argument: int) -> Any:
    """Carry out an operation on a conversation; return what it was told."""
    if op.kind == "add":
        return chat.add([message(token) for token in op.tokens])
    if op.kind == "set":
        return chat.set([message(token) for token in op.tokens])
    if op.kind == "remove":
        present = chat.messages()
        return contents([chat.remove(argument % len(present)) if present else None])
    if op.kind == "clear":
        return contents(chat.clear())
    if op.kind == "erase":
        return contents(chat.delete())
    if op.kind == "redact":
        return redact(chat, argument, op)
    if op.kind == "renew":
        return chat.renew(timedelta(0))
    if op.kind == "hide":
        return contents(chat.hide())
    if op.kind in {"end", "reopen", "restore"}:
        return getattr(chat, op.kind)()
    if op.kind == "archive":
        return contents(chat.archive_oldest(1 + argument % 3))
    if op.kind == "name":
        return chat.state.update({op.name: op.tokens[0]})
    if op.kind == "named":
        return chat.state.copy()
    if op.kind == "save":
        return chat.save_context(context(op.tokens[0], large=argument % 2 == 0), op.name) and None
    if op.kind in {"load", "load_again"}:
        return loaded(chat.load_context(Order(timeout=None), op.name, by=op.process, again=op.kind == "load_again"))
    if op.kind == "at":
        return contents(chat.messages(at=op.name))
    if op.kind == "fork":
        return fork(store.conversation(op.source), op, argument)
    return read(chat, op)


def read(chat: Conversation, op: Op) -> list[str]:
    """Return the texts of a conversation, and note of which the content is missing."""
    found = chat.messages(status=None if op.view == "all" else MessageStatus.ACTIVE)
    op.missing = [token_of(m) for m in found if is_incomplete(m)]
    return [token_of(m) for m in found]


def redact(chat: Conversation, argument: int, op: Op) -> list[str]:
    """Redact a message: the one that the operation's name says, by its id and its text, if it has a name."""
    if op.name:
        message_id, token = op.name.split(" ", 1)
        chat.redact(message_id)
        return [token]
    chat.messages()
    there = chat._engine.reader.known().fold.visible()
    if not there:
        return []
    chosen = there[argument % len(there)]
    op.name = f"{chosen.id[0]}/{chosen.id[1]} {text(chosen.record)}"
    return redact(chat, argument, op)


def fork(source: Conversation, op: Op, argument: int) -> None:
    """Fork onto the operation's key; with an argument that is odd, up to a message."""
    if argument % 2 == 0:
        source.fork(op.key)
        return
    known = source.records(status=None)
    if not known:
        source.fork(op.key)
        return
    op.point = point_of(known[argument * 7 % len(known)], included=argument % 3 > 0)
    at = f"{op.point.change}/{op.point.position}"
    source.fork(op.key, **({"at": at} if op.point.included else {"before": at}))


def point_of(record: Record, *, included: bool) -> Point:
    """Return the point that a message is."""
    change, _, position = record.id.rpartition("/")
    return Point(change, int(position), included)


# Messages


def contents(found: Iterable[ChatMessage | None] | None) -> list[Any]:
    """Return the texts of what a store returned."""
    return [token_of(one) for one in found or () if one is not None]


def message(token: str) -> ChatMessage:
    """Return a message with a text, and with a content where the text calls for one."""
    if not token.endswith(CONTENT):
        return ChatMessage(content=token)
    return ChatMessage(blocks=[TextBlock(text=token), VideoBlock(video=content(token))])


@cache
def content(token: str) -> bytes:
    """Return the content that a text calls for."""
    return random.Random(token).randbytes(THRESHOLD + 200)


def token_of(found: ChatMessage) -> str:
    """Return the first text of a message: others may stand for a content that is missing."""
    return next((block.text for block in found.blocks if isinstance(block, TextBlock)), "")


def is_incomplete(found: ChatMessage) -> bool:
    """Whether the content that a message has to bring is missing, or another one."""
    token = token_of(found)
    if not token.endswith(CONTENT):
        return False
    videos = [block for block in found.blocks if isinstance(block, VideoBlock)]
    return [block.resolve_video().read() for block in videos] != [content(token)]


# Paused workflows


class Order(Workflow):
    """Asks before it orders."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answer = await ctx.wait_for_event(HumanResponseEvent, waiter_event=InputRequiredEvent())
        return StopEvent(result=[answer.response, await ctx.store.get("cart")])


@cache
def _paused() -> str:
    """Return the context of a workflow that has asked, as JSON."""

    async def ask() -> str:
        handler = Order(timeout=None).run()
        async for event in handler.stream_events():
            if isinstance(event, InputRequiredEvent):
                break
        assert handler.ctx is not None
        await handler.ctx.store.set("cart", "")
        found = json.dumps(handler.ctx.to_dict())
        await handler.cancel_run()
        return found

    return asyncio.run(ask())


def context(token: str, *, large: bool) -> Context[Any]:
    """Return a context that holds a token, and so much noise if it is to be large."""
    noise = random.Random(token).randbytes(LARGE // 2).hex() if large else ""
    data = json.loads(_paused())
    data["state"]["state_data"]["_data"]["cart"] = json.dumps([token, noise])
    found: Context[Any] = Context.from_dict(Order(timeout=None), data)
    return found


def loaded(found: Context[Any]) -> str:
    """Return the token that a context holds, if all the rest is there as well."""
    cart = json.loads(found.to_dict()["state"]["state_data"]["_data"]["cart"])
    token, noise = str(cart[0]), cart[1]
    whole = noise in {"", random.Random(token).randbytes(LARGE // 2).hex()}
    return token if whole and "ask" in found.to_dict()["workers"] else f"a damaged context: {token}"
