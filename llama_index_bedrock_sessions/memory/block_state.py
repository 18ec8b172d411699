"""Save what memory blocks learn in named state, restore it, and rebuild blocks from a dict."""

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
"""The prefix of the names of memory blocks in named state. Each value is `{field: value}`."""


@dataclasses.dataclass
class BoundBlock:
    """The one conversation that a block learns from.

    `configured` are the fields that the block was created with. `learned` are the fields that are stored.
    """

    chat_store: weakref.ref[BedrockSessionsChatStore]
    session_id: str
    configured: dict[str, JSON]
    learned: dict[str, JSON] = dataclasses.field(default_factory=dict)


bound_blocks: dict[int, BoundBlock] = {}
"""The bindings, by the `id()` of the block, because blocks are not hashable. An entry lasts as long as its block."""
_locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, weakref.WeakKeyDictionary[Conversation, asyncio.Lock]] = (
    weakref.WeakKeyDictionary()
)


def block_lock(conversation: Conversation) -> asyncio.Lock:
    """Return the lock that a task holds while it saves or restores the blocks of a conversation.

    Without the lock, a task could read a value that another task has stored but not yet recorded as stored. It would
    assume that another process wrote the value, and overwrite what the block has learned since.
    """
    of_loop = _locks.setdefault(asyncio.get_running_loop(), weakref.WeakKeyDictionary())
    return of_loop.setdefault(conversation, asyncio.Lock())


def bind_block(block: BaseMemoryBlock[Any], chat_store: BedrockSessionsChatStore, session_id: str) -> BoundBlock:
    """Bind a block to the one conversation that it learns from, for the lifetime of the block."""
    bound = bound_blocks[id(block)] = BoundBlock(weakref.ref(chat_store), session_id, json_fields(block))
    weakref.finalize(block, bound_blocks.pop, id(block), None)
    return bound


@functools.cache
def _adapters(cls: type[BaseModel]) -> dict[str, TypeAdapter[Any]]:
    """Return the fields of a class that are not excluded and have a type that pydantic can validate."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, field in cls.model_fields.items():
        if not field.exclude:
            try:
                adapters[name] = TypeAdapter(field.rebuild_annotation())
            except Exception:  # noqa: BLE001, S112 - a type without a schema, such as a client or a function
                continue
    return adapters


def json_fields(model: BaseModel, names: Iterable[str] | None = None) -> dict[str, JSON]:
    """Return the fields whose values are unchanged by a JSON round trip: no models, clients, templates or secrets."""
    fields: dict[str, JSON] = {}
    for name, adapter in _adapters(type(model)).items():
        if names is not None and name not in names:
            continue
        value = getattr(model, name)
        try:
            plain = adapter.dump_python(value, mode="json", warnings=False)
            if isinstance(value, (set, frozenset)):
                plain.sort(key=json.dumps)  # the order of a set differs between processes
            if adapter.validate_json(json.dumps(plain)) == value:
                fields[name] = plain
        except Exception:  # noqa: BLE001, S112 - serializers of other packages may raise anything
            continue
    return fields


def from_json(cls: type[BaseModel], name: str, value: JSON) -> Any:
    """Return the value of a field from its JSON form.

    Raises KeyError if the class has no such field, and ValueError if the value is invalid.
    """
    return _adapters(cls)[name].validate_json(json.dumps(value))


def set_fields(block: BaseMemoryBlock[Any], stored: Mapping[str, JSON]) -> None:
    """Set the stored fields of a block. A field that the block rejects is logged and left unchanged."""
    for name, value in stored.items():
        try:
            setattr(block, name, from_json(type(block), name, value))
        except (KeyError, ValueError) as error:
            logger.warning(
                "the field %s of the memory block %r was not restored: %s", name, block.name, type(error).__name__
            )


def block_json(block: BaseMemoryBlock[Any], bound: BoundBlock) -> dict[str, JSON]:
    """Return a block as JSON, with its stored fields as they were when it was created.

    `fields` is None if the block cannot be rebuilt in full from its fields.
    """
    cls = type(block)
    entry: dict[str, JSON] = {"name": block.name, "class": f"{cls.__module__}:{cls.__qualname__}", "fields": None}
    if cls.__module__ == "__main__" or _block_class(entry) is not cls:
        return entry
    now = json_fields(block)
    stored = {n: v for n, v in bound.configured.items() if n in bound.learned and now.get(n) == bound.learned[n]}
    try:
        fields = block.model_dump(mode="json", warnings=False)
        # Even if the class overrides __eq__: pydantic's also compares excluded, private and secret fields.
        is_complete = BaseModel.__eq__(cls.model_validate_json(json.dumps(fields)), block)
        fields |= stored
        if is_complete and json_fields(cls.model_validate_json(json.dumps(fields))) == now | stored:
            entry["fields"] = fields
    except Exception as error:  # noqa: BLE001 - models, clients and templates in a block may raise anything
        logger.debug("the memory block %r has no JSON form: %s", block.name, type(error).__name__)
    return entry


def blocks_of(
    saved: Iterable[Mapping[str, Any]],
    given: Sequence[BaseMemoryBlock[Any]] | None,
    live: Sequence[Memory],
) -> list[BaseMemoryBlock[Any]]:
    """Return the memory blocks of a dict, and any other given blocks.

    Each block is, in this order: the given block of that name, that of a live memory, or one rebuilt from its fields.
    """
    given_blocks = {block.name: block for block in given or ()}
    live_blocks = {block.name: block for memory in live for block in memory.memory_blocks}
    found = []
    for entry in saved:
        name = entry["name"]
        block = given_blocks.pop(name, None) or live_blocks.get(name) or _block(entry)
        found.append(block or required(f"memory_blocks: {name} ({entry['class']})", []))
    return [*found, *given_blocks.values()]


def _block(entry: Mapping[str, Any]) -> BaseMemoryBlock[Any] | None:
    """Rebuild a block from its entry. Return None if a field is missing, or if its class has changed or is gone."""
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
    """Return the first value found. Raises ConfigurationError if there is none, because a dict cannot contain it."""
    if not found:
        raise ConfigurationError(
            f"The dict of the memory does not contain {what}. Pass it to from_dict. Before Context.from_dict, create a "
            "memory that has it, with the same session_id and chat_store, and keep that memory."
        )
    return found[0]
