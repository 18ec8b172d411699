"""What memory blocks have learnt: saved in named state and restored; and blocks restored from a dict."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
import json
import logging
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llama_index.core.memory import Memory
from llama_index.core.memory.memory import BaseMemoryBlock
from pydantic import BaseModel, TypeAdapter

from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._conversation.state import MEMORY_PREFIX, ReservedName
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.errors import ConfigurationError

logger = logging.getLogger("llama_index_bedrock_sessions")
BLOCK = ReservedName(MEMORY_PREFIX + "block/")
"""Prefix of the named state of a memory block: {field: value}."""


@dataclasses.dataclass
class BoundBlock:
    """The conversation that a block learns from, the fields it was made with, and the fields that are stored."""

    chat_store: weakref.ref[BedrockSessionsChatStore]
    session_id: str
    configured: dict[str, JSON]
    learnt: dict[str, JSON] = dataclasses.field(default_factory=dict)


bound_blocks: dict[int, BoundBlock] = {}
"""By the `id()` of a block, as long as the block exists: blocks have no hash."""
_locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[Conversation, asyncio.Lock]] = (
    weakref.WeakKeyDictionary()
)


def block_lock(conversation: Conversation) -> asyncio.Lock:
    """Return the lock that a task holds while it saves or restores the blocks of a conversation.

    Without it a task could read what another task has just stored before that task has recorded it as stored. It would
    take it for the work of another process, and undo what the block has learnt since.
    """
    of_loop = _locks.setdefault(asyncio.get_running_loop(), weakref.WeakKeyDictionary())
    return of_loop.setdefault(conversation, asyncio.Lock())


def bind_block(block: BaseMemoryBlock[Any], chat_store: BedrockSessionsChatStore, session_id: str) -> BoundBlock:
    """Bind a block to the conversation that it learns from, as long as the block exists."""
    bound = bound_blocks[id(block)] = BoundBlock(weakref.ref(chat_store), session_id, json_fields(block))
    weakref.finalize(block, bound_blocks.pop, id(block), None)
    return bound


@functools.cache
def _adapters(cls: type[BaseModel]) -> dict[str, TypeAdapter[Any]]:
    """Return the fields of a class whose types pydantic can read, without excluded fields."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, field in cls.model_fields.items():
        if not field.exclude:
            try:
                adapters[name] = TypeAdapter(field.rebuild_annotation())
            except Exception:  # noqa: BLE001, S112 - a type that has no schema: a client, a function
                continue
    return adapters


def json_fields(model: BaseModel, names: Iterable[str] | None = None) -> dict[str, JSON]:
    """Return the fields that JSON restores exactly: no models, clients, templates or secrets."""
    fields: dict[str, JSON] = {}
    for name, adapter in _adapters(type(model)).items():
        if names is not None and name not in names:
            continue
        value = getattr(model, name)
        try:
            plain = adapter.dump_python(value, mode="json", warnings=False)
            if isinstance(value, (set, frozenset)):
                plain.sort(key=json.dumps)  # its order differs from process to process
            if adapter.validate_json(json.dumps(plain)) == value:
                fields[name] = plain
        except Exception:  # noqa: BLE001, S112 - the serialisers of others raise what they like
            continue
    return fields


def from_json(cls: type[BaseModel], name: str, value: JSON) -> Any:
    """Return the value of a field of a class. Raises KeyError, ValueError."""
    return _adapters(cls)[name].validate_json(json.dumps(value))


def set_fields(block: BaseMemoryBlock[Any], stored: Mapping[str, JSON]) -> None:
    """Set the fields of a block. A field that the block refuses is logged and left unchanged."""
    for name, value in stored.items():
        try:
            setattr(block, name, from_json(type(block), name, value))
        except (KeyError, ValueError) as error:
            logger.warning(
                "what the memory block %r has learnt (%s) is not restored: %s", block.name, name, type(error).__name__
            )


def block_json(block: BaseMemoryBlock[Any], bound: BoundBlock) -> dict[str, JSON]:
    """Return a block as JSON, without its stored fields. `fields` is None if they do not restore the whole block."""
    cls = type(block)
    entry: dict[str, JSON] = {"name": block.name, "class": f"{cls.__module__}:{cls.__qualname__}", "fields": None}
    if cls.__module__ == "__main__" or _block_class(entry) is not cls:
        return entry
    now = json_fields(block)
    stored = {n: v for n, v in bound.configured.items() if n in bound.learnt and now.get(n) == bound.learnt[n]}
    try:
        fields = block.model_dump(mode="json", warnings=False)
        # The comparison of pydantic, even if the class has another: excluded, private and secret values count too.
        whole = BaseModel.__eq__(cls.model_validate_json(json.dumps(fields)), block)
        fields |= stored
        if whole and json_fields(cls.model_validate_json(json.dumps(fields))) == now | stored:
            entry["fields"] = fields
    except Exception as error:  # noqa: BLE001 - it holds a model, a client, a template: these raise what they like
        logger.debug("the memory block %r has to be given again: %s", block.name, type(error).__name__)
    return entry


def blocks_of(
    saved: Iterable[Mapping[str, Any]],
    given: Sequence[BaseMemoryBlock[Any]] | None,
    alike: Sequence[Memory],
) -> list[BaseMemoryBlock[Any]]:
    """Return the blocks of a dict: given blocks first, then those of live memories, else restored ones."""
    mine = {block.name: block for block in given or ()}
    theirs = {block.name: block for memory in alike for block in memory.memory_blocks}
    found = []
    for entry in saved:
        name = entry["name"]
        block = mine.pop(name, None) or theirs.get(name) or _block(entry)
        found.append(block or required(f"memory_blocks: {name} ({entry['class']})", []))
    return [*found, *mine.values()]


def _block(entry: Mapping[str, Any]) -> BaseMemoryBlock[Any] | None:
    """Return the block of an entry, None if it is incomplete or its class has changed."""
    cls = _block_class(entry)
    if entry["fields"] is None or cls is None:
        return None
    try:
        return cls.model_validate_json(json.dumps(entry["fields"]))
    except ValueError:
        return None


def _block_class(entry: Mapping[str, Any]) -> type[BaseMemoryBlock[Any]] | None:
    module, _, name = entry["class"].partition(":")
    try:
        found: Any = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, TypeError, ValueError):
        return None
    return found if isinstance(found, type) and issubclass(found, BaseMemoryBlock) else None


def required(what: str, found: Sequence[Any]) -> Any:
    """Return the first value. Raises ConfigurationError if there is none, because a dict cannot hold the value."""
    if not found:
        raise ConfigurationError(
            f"A dict cannot hold everything of this memory; give it again: {what}. Pass it to from_dict, or make "
            "BedrockSessionsMemory.from_defaults(...) of the same session_id and chat_store with it before "
            "Context.from_dict, and keep that memory."
        )
    return found[0]
