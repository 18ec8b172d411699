"""Agent memory: LlamaIndex's `Memory` on conversations, and the chat store for it.

Rule 1: whatever a `Memory` does with other stores, it does with this one; nothing of LlamaIndex is rewritten here.
Rule 2: a turn is strict, and read once. A turn lasts from a user's message to the answer, within one run of an agent:
its first read after the user's message asks the service, the others are that and what was written since. Outside of a
run every read asks the service. A run is known by the tag `llamaindex.run_id`, which the workflows set in each step.
Rule 3: what cannot be said in a dict is given again, or is refused by name; nothing is dropped silently.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import importlib
import json
import logging
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.memory import Memory
from llama_index.core.memory.memory import (
    DEFAULT_FLUSH_SIZE,
    DEFAULT_MEMORY_BLOCKS_TEMPLATE,
    DEFAULT_TOKEN_LIMIT,
    BaseMemoryBlock,
    InsertMethod,
)
from llama_index.core.prompts import RichPromptTemplate
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.utils import get_tokenizer
from llama_index.core.workflow import Context
from llama_index_instrumentation.dispatcher import active_instrument_tags
from pydantic import (
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)
from workflows.errors import WorkflowRuntimeError
from workflows.plugins import basic_runtime

from llama_index_bedrock_sessions import blocks
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.conversation import Conversation
from llama_index_bedrock_sessions.errors import BedrockSessionsError, ConfigurationError
from llama_index_bedrock_sessions.healing import Healed, has_calls, heal, tell
from llama_index_bedrock_sessions.values import JSON

TURN = "memory/turn"
"""Begins the name of the state of an unfinished turn, `/` and its run's id end it: {"after": message id, "messages":
records}."""
BLOCK = "memory/block/"
"""Begins the name of the state of a memory block: {field: value}."""
_SETTINGS = (
    "token_limit",
    "token_flush_size",
    "chat_history_token_ratio",
    "image_token_size_estimate",
    "audio_token_size_estimate",
    "video_token_size_estimate",
    "document_token_size_estimate",
    "autosave",
)

logger = logging.getLogger("llama_index_bedrock_sessions")

_as_known: contextvars.ContextVar[bool] = contextvars.ContextVar("bedrock_sessions_as_known", default=False)
"""Whether reads are to make no call: those by which a memory looks after its queue, right after a write."""
_live: weakref.WeakValueDictionary[str, BedrockSessionsMemory] = weakref.WeakValueDictionary()


@dataclasses.dataclass
class _Turn:
    """A turn over one conversation: the run it belongs to, whether it was read, and the task that gave the answer."""

    run: str
    read: bool = False
    answered_in: weakref.ref[asyncio.Task[Any]] | None = None

    def is_on(self, run: str | None) -> bool:
        """Whether it goes on here: an agent looks at its answer in the step that gave it, then the turn is over."""
        return self.run == run and (self.answered_in is None or self.answered_in() is asyncio.current_task())


class BedrockSessionsMemoryStore(AsyncDBChatStore):
    """The chat store LlamaIndex's `Memory` takes, over a `BedrockSessionsChatStore`.

    `Memory.from_defaults(chat_store=BedrockSessionsMemoryStore(store))` works; `BedrockSessionsMemory` does more.
    """

    chat_store: BedrockSessionsChatStore

    _turns: weakref.WeakKeyDictionary[Conversation, _Turn] = PrivateAttr(default_factory=weakref.WeakKeyDictionary)

    def __init__(self, chat_store: BedrockSessionsChatStore) -> None:
        super().__init__(chat_store=chat_store)  # type: ignore[call-arg] # pydantic's own

    @classmethod
    def class_name(cls) -> str:
        """Return the class's name."""
        return "BedrockSessionsMemoryStore"

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """Return the messages of a status (None: all), oldest first, `limit` of them from position `offset` on."""
        conversation = self.chat_store.conversation(key)
        turn = self._turn(conversation)
        fresh = not _as_known.get() and not (turn and turn.read)
        messages = await conversation.amessages(status=status, fresh=fresh)
        if turn and fresh:
            turn.read = True
        start = offset or 0
        return messages[start:] if limit is None else messages[start : start + limit]

    async def count_messages(self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages of a status (None: all) there are."""
        return await self.chat_store.conversation(key).acount(status)

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Add a message."""
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add messages, all or none, by one step."""
        await self._add(self.chat_store.conversation(key), messages, status)

    async def _add(
        self,
        conversation: Conversation,
        messages: Sequence[ChatMessage],
        status: MessageStatus = MessageStatus.ACTIVE,
        forget: Iterable[str] = (),
    ) -> None:
        await conversation.aadd(messages, status=status, forget=forget)
        run, turn = _run(), self._turn(conversation)
        if messages and messages[-1].role == MessageRole.USER:
            self._begin(conversation, run)
        elif messages and turn and messages[-1].role == MessageRole.ASSISTANT and not has_calls(messages[-1]):
            task = asyncio.current_task()
            turn.answered_in = weakref.ref(task) if task else None

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Make these all the messages of a key; archived ones go as well, as with LlamaIndex's SQL store."""
        conversation = self.chat_store.conversation(key)
        await conversation.aset(messages)
        if status is MessageStatus.ARCHIVED:
            await conversation.aarchive_oldest(len(messages))
        self._begin(conversation, _run())

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove the message at a position of the list this task was last given, and return it; None if none is."""
        return await self.chat_store.conversation(key).aremove(idx)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Remove every message of a status (None: all) by one step; named state stays."""
        await self.chat_store.conversation(key).aclear(status)

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Remove the n oldest messages of the list this task was last given, and return them."""
        return await self.chat_store.conversation(key).aremove_oldest(n)

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the n oldest messages of the list this task was last given, and return them."""
        return await self.chat_store.conversation(key).aarchive_oldest(n)

    async def get_keys(self) -> list[str]:
        """Return every key that has a session, sorted."""
        return await self.chat_store.aget_keys()

    def _turn(self, conversation: Conversation) -> _Turn | None:
        turn = self._turns.get(conversation)
        return turn if turn and turn.is_on(_run()) else None

    def _begin(self, conversation: Conversation, run: str | None) -> None:
        self._turns.pop(conversation, None)
        if run is not None:
            self._turns[conversation] = _Turn(run)

    def __copy__(self) -> BedrockSessionsMemoryStore:
        """Return the store itself, as `BedrockSessionsChatStore` does."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> BedrockSessionsMemoryStore:
        """Return the store itself, as `BedrockSessionsChatStore` does."""
        return self


class BedrockSessionsMemory(Memory):
    """LlamaIndex's `Memory` on Bedrock sessions: it survives its `Context`, its process, and failed turns.

    Made by `from_defaults`. `session_id` is the key of the conversation, not the id of a Bedrock session. Everything
    of `Memory` works as there; besides

    - a turn of an agent is written as one step, and takes three calls: the user's message, one list, the rest;
    - `to_dict` and `from_dict` bring it back, in a `Context` too, here and in another process;
    - `get` shows tool calls and results in pairs (`heal_tool_calls`);
    - what memory blocks have learnt (their fields, such as the facts of `FactExtractionMemoryBlock`) is kept in the
      conversation's named state and restored. Of two processes that learn at once, the last counts;
    - with `autosave=True` an agent's turn that never ends is not lost: see `from_defaults`.
    """

    sql_store: BedrockSessionsMemoryStore = Field(exclude=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    autosave: bool = Field(default=False, description="Keep what tools returned while a turn is still running.")

    _id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _own_tokenizer: bool = PrivateAttr(default=False)
    _configured: dict[str, dict[str, JSON]] = PrivateAttr(default_factory=dict)
    _learnt: dict[str, dict[str, JSON]] = PrivateAttr(default_factory=dict)
    _told: set[Healed] = PrivateAttr(default_factory=set)

    def model_post_init(self, context: Any, /) -> None:
        """Remember what the blocks were made with; no call is made."""
        super().model_post_init(context)
        self._own_tokenizer = self.tokenizer_fn is not get_tokenizer()
        self._configured = {block.name: _fields(block) for block in self.memory_blocks}
        _live[self._id] = self

    @classmethod
    def class_name(cls) -> str:
        """Return the class's name."""
        return "BedrockSessionsMemory"

    @classmethod
    def from_defaults(  # type: ignore[override]  # noqa: PLR0917 - the arguments and their order are LlamaIndex's
        cls,
        session_id: str | None = None,
        chat_history: list[ChatMessage] | None = None,
        token_limit: int = DEFAULT_TOKEN_LIMIT,
        memory_blocks: list[BaseMemoryBlock[Any]] | None = None,
        tokenizer_fn: Callable[[str], list[Any]] | None = None,
        chat_history_token_ratio: float = 0.7,
        token_flush_size: int = DEFAULT_FLUSH_SIZE,
        memory_blocks_template: RichPromptTemplate = DEFAULT_MEMORY_BLOCKS_TEMPLATE,
        insert_method: InsertMethod = InsertMethod.SYSTEM,
        image_token_size_estimate: int = 256,
        audio_token_size_estimate: int = 256,
        video_token_size_estimate: int = 256,
        document_token_size_estimate: int = 2048,
        chat_store: BedrockSessionsChatStore | BedrockSessionsMemoryStore | None = None,
        autosave: bool = False,
    ) -> BedrockSessionsMemory:
        """Make the memory of a conversation; no call is made, unless a `chat_history` replaces what is stored.

        `chat_store` is needed, `session_id` is random where it is left out, all else is as in `Memory.from_defaults`.

        LlamaIndex's agents store nothing of a turn but the user's message until the turn has ended. With `autosave`,
        what tools have returned by then is kept as named state, for one more call each time they return. If the turn
        never ends, the next one, begun by a user's message through a memory with `autosave`, finds it in the history.
        That costs a call more at the beginning of each turn. Of several runs at once on one conversation each keeps
        its own turn. What a run of this process has done is not offered to another while it goes on; of a run in
        another process it is not known whether it does, so that its turn may be offered while it is alive.

        Raises:
            ConfigurationError: no `chat_store`, or one of another kind.

        """
        if isinstance(chat_store, BedrockSessionsChatStore):
            chat_store = BedrockSessionsMemoryStore(chat_store)
        if not isinstance(chat_store, BedrockSessionsMemoryStore):
            kind = type(chat_store).__name__
            raise ConfigurationError(
                f"BedrockSessionsMemory needs chat_store=BedrockSessionsChatStore(...), not {kind}."
            )
        memory = super().from_defaults(
            session_id=session_id,
            chat_history=chat_history,
            token_limit=token_limit,
            memory_blocks=memory_blocks,
            tokenizer_fn=tokenizer_fn,
            chat_history_token_ratio=chat_history_token_ratio,
            token_flush_size=token_flush_size,
            memory_blocks_template=memory_blocks_template,
            insert_method=insert_method,
            image_token_size_estimate=image_token_size_estimate,
            audio_token_size_estimate=audio_token_size_estimate,
            video_token_size_estimate=video_token_size_estimate,
            chat_store=chat_store,
        )
        assert isinstance(memory, BedrockSessionsMemory)
        memory.document_token_size_estimate = document_token_size_estimate
        memory.autosave = autosave
        return memory

    @property
    def conversation(self) -> Conversation:
        """The conversation it remembers: its history, its named state, its sessions."""
        return self.sql_store.chat_store.conversation(self.session_id)

    # Reading

    async def aget(self, input: str | ChatMessage | None = None, **block_kwargs: Any) -> list[ChatMessage]:  # noqa: A002 - LlamaIndex's name
        """Return what a model should see: the active messages, tool calls in pairs, with what the blocks add."""
        messages, notes = heal(await super().aget(input, **block_kwargs))
        tell([note for note in notes if note not in self._told], self.session_id)
        self._told.update(notes)
        if self.autosave:
            await self._save_turn()
        return messages

    async def _get_memory_blocks_content(
        self,
        chat_history: list[ChatMessage],
        input: str | ChatMessage | None = None,  # noqa: A002 - LlamaIndex's name
        **block_kwargs: Any,
    ) -> dict[str, Any]:
        await self._restore_blocks()
        return await super()._get_memory_blocks_content(chat_history, input, **block_kwargs)

    # Writing

    async def aput(self, message: ChatMessage) -> None:
        """Add a message, and archive the oldest ones if there are too many; what the blocks have learnt is kept."""
        await self.aput_messages([message])

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """Add messages by one step, and archive the oldest ones if there are too many."""
        whole, forget = await self._with_unfinished(messages) if self.autosave else (messages, [])
        await self.sql_store._add(self.conversation, whole, forget=forget)  # noqa: SLF001 - one thing in two classes
        await self._manage_queue()

    async def _manage_queue(self) -> None:
        token = _as_known.set(True)
        try:
            known = await self.sql_store.get_messages(self.session_id)
            if sum(map(self._estimate_token_count, known)) > self.token_limit * self.chat_history_token_ratio:
                # Only now it matters what others have archived meanwhile: blocks are given each message once.
                await self.conversation.acount()
                await self._restore_blocks()
                await super()._manage_queue()
        finally:
            _as_known.reset(token)
        await self._save_blocks()

    # What blocks have learnt

    async def _restore_blocks(self, *, only_erased: bool = False) -> None:
        """Give the blocks what is stored; what is stored no longer, they have not learnt."""
        if not self.memory_blocks:
            return
        state = await self.conversation.state.acopy(fresh=False)
        for block in self.memory_blocks:
            learnt = self._learnt.get(block.name, {})
            stored = state.get(BLOCK + block.name, {})
            if not isinstance(stored, dict) or stored == learnt or (stored and only_erased):
                continue
            configured = self._configured.get(block.name, {})
            _set_fields(block, {**{name: configured[name] for name in learnt if name in configured}, **stored})
            self._learnt[block.name] = stored

    async def _save_blocks(self) -> None:
        """Store what the blocks have learnt; if that fails it is stored with the next message."""
        try:
            await self._restore_blocks(only_erased=True)
            await self._store_blocks()
        except BedrockSessionsError as error:
            logger.warning("what the memory blocks of %r have learnt was not saved: %s", self.session_id, error)

    async def _store_blocks(self) -> None:
        changed: dict[str, JSON] = {}
        for block in self.memory_blocks:
            fields = _fields(block)
            configured = self._configured.setdefault(block.name, fields)
            learnt = self._learnt.get(block.name, {})
            now = {name: value for name, value in fields.items() if name in learnt or value != configured.get(name)}
            if now != learnt:
                changed[block.name] = now
        if changed:
            await self.conversation.aadd([], state={BLOCK + name: fields for name, fields in changed.items()})
            self._learnt.update(changed)

    # A turn that has not ended

    async def _save_turn(self) -> None:
        """Keep what an agent has done in the turn that is running, for the case that it never ends."""
        messages = await self._unfinished()
        if not messages:
            return
        try:
            encoded = blocks.encode(messages, max_images=0)
            records = [blocks.carried(record, encoded.blocks.__getitem__) for record in encoded.records]
            turn = {"after": await self.conversation.alast_id(fresh=False), "messages": records}
            name = _turn_of(_run())
            if turn != await self.conversation.state.aget(name, fresh=False):
                await self.conversation.aadd([], state={name: turn})
        except BedrockSessionsError as error:
            logger.warning("the turn of %r that is running was not saved: %s", self.session_id, error)

    async def _with_unfinished(self, messages: list[ChatMessage]) -> tuple[list[ChatMessage], list[str]]:
        """Return the messages after those of a turn that never ended, and the names to forget with it."""
        begins = bool(messages) and messages[-1].role == MessageRole.USER
        state = await self.conversation.state.acopy(fresh=begins)
        own = _turn_of(_run())
        if not begins:
            return messages, [own] if own in state else []
        names = sorted(n for n in state if n == own or ((n == TURN or n.startswith(TURN + "/")) and not _is_alive(n)))
        if not names:
            return messages, []
        last = await self.conversation.alast_id(fresh=False)
        # On the context of a turn that failed the agent goes on with what it had, and brings it along.
        goes_on = bool(await self._unfinished())
        unfinished: list[ChatMessage] = []
        for name in names:
            saved = _saved_turn(state[name])
            if saved is None:
                logger.warning("an unfinished turn of %r is ignored: it cannot be read", self.session_id)
            elif saved[0] == last and name != own and not goes_on:
                unfinished += [blocks.decode(record, lambda _: None) for record in saved[1]]
        if unfinished:
            count = len(unfinished)
            logger.warning("the last turn of %r never ended: %d messages of it are kept", self.session_id, count)
        return [*unfinished, *messages], names

    async def _unfinished(self) -> list[ChatMessage]:
        """Return what the agent that runs on this memory has not stored yet: its context has it until the turn ends."""
        try:
            store = Context.get_step_context().store
        except WorkflowRuntimeError:
            return []
        memory = await store.get("memory", default=None)
        if not isinstance(memory, BedrockSessionsMemory) or (
            memory.session_id != self.session_id or memory.sql_store.chat_store is not self.sql_store.chat_store
        ):
            return []  # a tool, or a step of a workflow, looks into another conversation
        messages = list(await store.get("scratchpad", default=None) or [])
        reasoning = await store.get("current_reasoning", default=None)
        if reasoning:
            said = "\n".join(step.get_content() for step in reasoning)
            messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=said))
        return messages

    # Round trips

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:  # noqa: ARG002 - LlamaIndex's signature
        """Return the configuration as JSON values, without secrets; None stands for what has to be given again."""
        return {
            "class_name": self.class_name(),
            "instance": self._id,
            "session_id": self.session_id,
            "chat_store": self.sql_store.chat_store.to_dict(),
            **{name: getattr(self, name) for name in _SETTINGS},
            "insert_method": self.insert_method.value,
            "memory_blocks": [_block_json(block) for block in self.memory_blocks],
            "memory_blocks_template": _template_json(self.memory_blocks_template),
            "tokenizer_fn": None if self._own_tokenizer else "default",
        }

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` needs, as JSON values, without secrets. The messages are in the service."""
        return self.model_dump(**kwargs)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> BedrockSessionsMemory:
        """Return the memory a dict was made of: itself where it is alive in this process, else a new one.

        `kwargs` are arguments of `from_defaults`. Memory blocks that hold models, a tokenizer and a template with
        functions cannot be in a dict: they are taken from `kwargs` (blocks by their names), else from a memory of the
        same conversation that is alive. The chat store is found as `BedrockSessionsChatStore.from_dict` does.

        Raises:
            ConfigurationError: something has to be given again, or the chat store has to be constructed first.

        """
        live = _live.get(str(data.get("instance")))
        if live is not None and not kwargs:
            return live
        given = dict(kwargs)
        store = given.pop("chat_store", None) or BedrockSessionsChatStore.from_dict(data["chat_store"])
        chat_store = store.chat_store if isinstance(store, BedrockSessionsMemoryStore) else store
        session_id = given.pop("session_id", data["session_id"])
        alike = [m for m in list(_live.values()) if m.session_id == session_id and m.sql_store.chat_store is chat_store]
        arguments: dict[str, Any] = {name: data[name] for name in _SETTINGS if name in data}
        arguments["insert_method"] = InsertMethod(data.get("insert_method", InsertMethod.SYSTEM.value))
        arguments["memory_blocks"] = _blocks(data.get("memory_blocks", []), given.pop("memory_blocks", None), alike)
        template = data.get("memory_blocks_template")
        arguments["memory_blocks_template"] = RichPromptTemplate(template) if template else None
        for name, found in (("memory_blocks_template", template), ("tokenizer_fn", data.get("tokenizer_fn"))):
            if not found and name not in given:
                given[name] = _again(name, [getattr(memory, name) for memory in alike])
        return cls.from_defaults(session_id=session_id, chat_store=store, **{**arguments, **given})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the dict does: no secrets, and an error instead of a memory that lacks something."""
        return (type(self).from_dict, (self.to_dict(),))

    def __copy__(self) -> BedrockSessionsMemory:
        """Return the memory itself: it stands for what is in the service."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> BedrockSessionsMemory:
        """Return the memory itself: `ctx.store.edit_state()` copies deeply."""
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> BedrockSessionsMemory:  # noqa: ARG002 - pydantic's signature
        """Return another memory of the same blocks and store, with some fields changed."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **(update or {})})


# -- the run of an agent


def _run() -> str | None:
    """Return the id of the workflow's run this is called in; None outside of one."""
    run = active_instrument_tags.get().get("llamaindex.run_id")
    return str(run) if run else None


def _turn_of(run: str | None) -> str:
    return f"{TURN}/{run or ''}"


def _is_alive(name: str) -> bool:
    """Tell whether the run whose unfinished turn has this name goes on in this process."""
    try:
        adapter = basic_runtime.get_external_adapter(name.removeprefix(TURN + "/"))
    except RuntimeError:
        return False
    return bool(getattr(adapter, "is_running", False))


def _saved_turn(turn: JSON) -> tuple[str | None, list[JSON]] | None:
    """Return where an unfinished turn stopped, and its records; None if what is stored is no such thing."""
    if not isinstance(turn, dict):
        return None
    after, records = turn.get("after"), turn.get("messages")
    if not isinstance(after, (str, type(None))) or not isinstance(records, list):
        return None
    return (after, records) if records and all(isinstance(record, dict) for record in records) else None


# -- memory blocks


@cache
def _adapters(cls: type[BaseMemoryBlock[Any]]) -> dict[str, TypeAdapter[Any]]:
    """Return the fields of a class of blocks whose type pydantic can read."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, field in cls.model_fields.items():
        if not field.exclude:
            try:
                adapters[name] = TypeAdapter(field.rebuild_annotation())
            except Exception:  # noqa: BLE001, S112 - a type that has no schema: a client, a function
                continue
    return adapters


def _fields(block: BaseMemoryBlock[Any]) -> dict[str, JSON]:
    """Return the fields of a block that JSON brings back as they are: no models, clients, or templates."""
    fields: dict[str, JSON] = {}
    for name, adapter in _adapters(type(block)).items():
        value = getattr(block, name)
        try:
            plain = adapter.dump_python(value, mode="json", warnings=False)
            if isinstance(value, (set, frozenset)):
                plain.sort(key=json.dumps)  # its order differs from process to process
            if adapter.validate_json(json.dumps(plain)) == value:
                fields[name] = plain
        except Exception:  # noqa: BLE001, S112 - the serialisers of others raise what they like
            continue
    return fields


def _set_fields(block: BaseMemoryBlock[Any], stored: Mapping[str, JSON]) -> None:
    adapters = _adapters(type(block))
    for name, value in stored.items():
        try:
            setattr(block, name, adapters[name].validate_json(json.dumps(value)))
        except (KeyError, ValueError) as error:  # noqa: PERF203 - one field that cannot be restored is no reason for none
            logger.warning("what the memory block %r has learnt (%s) is not restored: %s", block.name, name, error)


def _block_json(block: BaseMemoryBlock[Any]) -> dict[str, JSON]:
    """Return a block as JSON; its `fields` are None where they do not make the block again."""
    cls = type(block)
    again = None
    if cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__:
        try:
            fields = block.model_dump(mode="json", warnings=False)
            if cls.model_validate_json(json.dumps(fields)).model_dump(mode="json", warnings=False) == fields:
                again = fields
        except Exception:  # noqa: BLE001 - it holds a model, a client, a template
            again = None
    return {"name": block.name, "class": f"{cls.__module__}:{cls.__qualname__}", "fields": again}


def _blocks(
    saved: Iterable[Mapping[str, Any]],
    given: Sequence[BaseMemoryBlock[Any]] | None,
    alike: Sequence[BedrockSessionsMemory],
) -> list[BaseMemoryBlock[Any]]:
    """Return the blocks of a dict: those given, those of memories that are alike, else made again."""
    mine = {block.name: block for block in given or ()}
    theirs = {block.name: block for memory in alike for block in memory.memory_blocks}
    found = []
    for entry in saved:
        name = entry["name"]
        block = mine.pop(name, None) or theirs.get(name) or _block(entry)
        found.append(block or _again(f"memory_blocks: {name} ({entry['class']})", []))
    return [*found, *mine.values()]


def _block(entry: Mapping[str, Any]) -> BaseMemoryBlock[Any] | None:
    if entry["fields"] is None:
        return None
    module, _, name = entry["class"].partition(":")
    try:
        cls: Any = importlib.import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part)
    except (ImportError, AttributeError):
        return None
    if not (isinstance(cls, type) and issubclass(cls, BaseMemoryBlock)):
        return None
    return cls.model_validate_json(json.dumps(entry["fields"]))


def _template_json(template: RichPromptTemplate) -> str | None:
    """Return a template's text, None if it is more than its text."""
    text = template.template_str
    return text if template == RichPromptTemplate(text) else None


def _again(what: str, found: Sequence[Any]) -> Any:
    if not found:
        raise ConfigurationError(
            f"A dict cannot hold everything of this memory; give it again: {what}. Pass it to from_dict, or make "
            "BedrockSessionsMemory.from_defaults(...) of the same session_id and chat_store with it before "
            "Context.from_dict, and keep that memory."
        )
    return found[0]
