"""Agent memory: LlamaIndex's `Memory` on conversations, and the chat store for it.

Rule 1: whatever a `Memory` does with other stores, it does with this one; nothing of LlamaIndex is rewritten here.
Rule 2: a turn is strict, and read once. A turn lasts from a user's message to the answer, within one run of an agent:
its first read after the user's message asks the service, the others are that and what was written since. Outside of a
run every read asks the service. A run is known by the tag `llamaindex.run_id`, which the workflows set in each step.
Rule 3: what cannot be said in a dict is given again, or is refused by name; nothing is dropped silently.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import importlib
import json
import logging
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

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
    BaseModel,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)
from pydantic.fields import FieldInfo
from workflows.errors import WorkflowRuntimeError
from workflows.plugins import basic_runtime

from llama_index_bedrock_sessions._bedrock.pool import in_pool
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._conversation.state import OF_MEMORY, TURN
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.errors import BedrockSessionsError, ConfigurationError
from llama_index_bedrock_sessions.events import hashed
from llama_index_bedrock_sessions.tool_calls import Healed, has_calls, heal, tell

if TYPE_CHECKING:
    from typing import Self

P = ParamSpec("P")
R = TypeVar("R")
BLOCK = OF_MEMORY + "block/"
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


@dataclasses.dataclass
class _Bound:
    """The one conversation a block learns from, what the block was made with, and what is stored of it."""

    chat_store: weakref.ref[BedrockSessionsChatStore]
    session_id: str
    configured: dict[str, JSON]
    learnt: dict[str, JSON] = dataclasses.field(default_factory=dict)


_bound: dict[int, _Bound] = {}
"""By the `id()` of a block, for as long as there is the block: blocks have no hash."""


class _OvertakenError(Exception):
    """What was to be archived has been archived, or removed, by somebody else."""


class BedrockSessionsMemoryStore(AsyncDBChatStore):
    """The chat store LlamaIndex's `Memory` takes, over a `BedrockSessionsChatStore`.

    `Memory.from_defaults(chat_store=BedrockSessionsMemoryStore(store))` works; `BedrockSessionsMemory` does more.
    """

    chat_store: BedrockSessionsChatStore

    _turns: weakref.WeakKeyDictionary[Conversation, _Turn] = PrivateAttr(default_factory=weakref.WeakKeyDictionary)
    # By task, not by context: a task that a memory block starts inherits the context, and may live for ever.
    _keepers: weakref.WeakKeyDictionary[asyncio.Task[Any], BedrockSessionsMemory] = PrivateAttr(
        default_factory=weakref.WeakKeyDictionary
    )

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
        fresh = self._keeper(key) is None and not (turn and turn.read)
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
        add = functools.partial(conversation._add, messages, status=status, forget=forget)  # noqa: SLF001 - names of the memory
        await in_pool(conversation.sessions.pool, add)
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
        await conversation.aset(messages, status=status)
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
        keeper = self._keeper(key)
        if keeper is not None:
            return await keeper._archive(n)  # noqa: SLF001 - one thing in two classes
        return await self.chat_store.conversation(key).aarchive_oldest(n)

    async def get_keys(self) -> list[str]:
        """Return every key that has a session, sorted."""
        return await self.chat_store.aget_keys()

    @contextlib.contextmanager
    def _kept_by(self, memory: BedrockSessionsMemory) -> Iterator[None]:
        """Let this task's reads make no call, and its archiving be the memory's: it looks after its queue."""
        task = asyncio.current_task()
        assert task is not None
        self._keepers[task] = memory
        try:
            yield
        finally:
            self._keepers.pop(task, None)

    def _keeper(self, key: str) -> BedrockSessionsMemory | None:
        task = asyncio.current_task()
        memory = self._keepers.get(task) if task else None
        return memory if memory is not None and memory.session_id == key else None

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
      conversation's named state and restored. Of two processes that learn at once, the last counts. A block belongs to
      one conversation: it is refused in another, where it would tell what it has learnt here;
    - with `autosave=True` an agent's turn that never ends is not lost: see `from_defaults`.
    """

    sql_store: BedrockSessionsMemoryStore = Field(exclude=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    autosave: bool = Field(default=False, description="Keep what tools returned while a turn is still running.")

    _id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _own_tokenizer: bool = PrivateAttr(default=False)
    _told: set[Healed] = PrivateAttr(default_factory=set)

    if not TYPE_CHECKING:

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self._own_tokenizer = self.tokenizer_fn is not get_tokenizer()
            self._bind_blocks()
            _live[self._id] = self

    @classmethod
    def class_name(cls) -> str:
        """Return the class's name."""
        return "BedrockSessionsMemory"

    @classmethod
    def from_defaults(  # type: ignore[override]  # noqa: PLR0917 - LlamaIndex's signature
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
            ConfigurationError: no `chat_store`, or one of another kind; a memory block of another conversation.

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
        """Add messages by one step, and archive the oldest ones if there are too many.

        Once the messages are stored, an error of the service is logged and not raised: who is told that it failed
        would store them again. What a memory block raises is raised, as by LlamaIndex's `Memory`; they are stored.
        """
        self._bind_blocks()
        whole, forget = await self._with_unfinished(messages) if self.autosave else (messages, [])
        await self.sql_store._add(self.conversation, whole, forget=forget)  # noqa: SLF001 - one thing in two classes
        try:
            await self._manage_queue()
        except BedrockSessionsError as error:
            logger.warning(
                "the messages of conversation %s are stored, but old ones may not be archived until the next put: %s",
                hashed(self.session_id),
                type(error).__name__,
            )
        await self._save_blocks()

    async def _manage_queue(self) -> None:
        with self.sql_store._kept_by(self):  # noqa: SLF001 - one thing in two classes
            for _ in range(3):  # who is overtaken more often leaves it to the others, and to the next message
                with contextlib.suppress(_OvertakenError):
                    await super()._manage_queue()
                    break

    async def _archive(self, n: int) -> list[ChatMessage]:
        """Archive the oldest messages, which blocks are then given: each message once, whoever else is at it."""
        await self.conversation.acount()  # asks what other processes have archived meanwhile
        await self._restore_blocks()
        archived = await self.conversation.aarchive_oldest(n, whole=True)
        if not archived:
            raise _OvertakenError
        return archived

    async def _in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await in_pool(self.conversation.sessions.pool, functools.partial(function, *args, **kwargs))

    # What blocks have learnt

    def _bind_blocks(self) -> list[tuple[BaseMemoryBlock[Any], _Bound]]:
        """Return the blocks, and what is known of each; they may have been changed since the memory was made.

        Raises ConfigurationError if one belongs to another conversation; then none is bound.
        """
        store, key = self.sql_store.chat_store, self.session_id
        for block in self.memory_blocks:
            found = _bound.get(id(block))
            if found and (found.session_id != key or found.chat_store() is not store):
                raise ConfigurationError(
                    f"The memory block {block.name!r} belongs to another conversation than {key!r}, or to that of "
                    "another chat store: it would tell here what it has learnt there. Make a new block for each "
                    "conversation."
                )
        return [(block, _bound.get(id(block)) or _bind(block, store, key)) for block in self.memory_blocks]

    async def _restore_blocks(self, *, only_erased: bool = False) -> None:
        """Give the blocks what is stored; what is stored no longer, they have not learnt."""
        if not self.memory_blocks:
            return
        state = await self._in_pool(self.conversation._named, fresh=False)  # noqa: SLF001 - names of the memory
        for block, bound in self._bind_blocks():
            stored = state.get(BLOCK + block.name, {})
            if not isinstance(stored, dict) or stored == bound.learnt or (stored and only_erased):
                continue
            made_with = {name: bound.configured[name] for name in bound.learnt if name in bound.configured}
            _set_fields(block, {**made_with, **stored})
            bound.learnt = stored

    async def _save_blocks(self) -> None:
        """Store what the blocks have learnt; if that fails it is stored with the next message."""
        try:
            await self._restore_blocks(only_erased=True)
            await self._store_blocks()
        except BedrockSessionsError as error:
            logger.warning(
                "what the memory blocks of conversation %s have learnt was not saved: %s",
                hashed(self.session_id),
                type(error).__name__,
            )

    async def _store_blocks(self) -> None:
        changed: dict[str, tuple[_Bound, dict[str, JSON]]] = {}
        for block, bound in self._bind_blocks():
            now = {
                name: value
                for name, value in _fields(block).items()
                if name in bound.learnt or value != bound.configured.get(name)
            }
            if now != bound.learnt:
                changed[BLOCK + block.name] = bound, now
        if changed:
            state = {name: now for name, (_, now) in changed.items()}
            await self._in_pool(self.conversation._add, [], state=state)  # noqa: SLF001 - names of the memory
            for bound, now in changed.values():
                bound.learnt = now

    # A turn that has not ended

    async def _save_turn(self) -> None:
        """Keep what an agent has done in the turn that is running, for the case that it never ends."""
        messages = await self._unfinished()
        if not messages:
            return
        try:
            await self._in_pool(_keep_turn, self.conversation, _turn_of(_run()), messages)
        except BedrockSessionsError as error:
            logger.warning(
                "the turn of conversation %s that is running was not saved: %s",
                hashed(self.session_id),
                type(error).__name__,
            )

    async def _with_unfinished(self, messages: list[ChatMessage]) -> tuple[list[ChatMessage], list[str]]:
        """Return the messages after those of a turn that never ended, and the names to forget with it."""
        begins = bool(messages) and messages[-1].role == MessageRole.USER
        # On the context of a turn that failed the agent goes on with what it had, and brings it along.
        goes_on = begins and bool(await self._unfinished())
        unfinished, names = await self._in_pool(
            _kept_turns, self.conversation, _turn_of(_run()), begins=begins, goes_on=goes_on
        )
        return [*unfinished, *messages], names

    async def _unfinished(self) -> list[ChatMessage]:
        """Return what the agent that runs on this memory has not stored yet: its context has it until the turn ends."""
        try:
            context = Context.get_step_context()
        except WorkflowRuntimeError:
            return []
        store = context.store
        memory = await store.get("memory", default=None)
        if not isinstance(memory, BedrockSessionsMemory) or (
            memory.session_id != self.session_id or memory.sql_store.chat_store is not self.sql_store.chat_store
        ):
            return []  # a tool, or a step of a workflow, looks into another conversation
        messages: list[ChatMessage] = []
        for name in _names_in_context(context, "scratchpad"):
            messages += await store.get(name, default=None) or []
        for name in _names_in_context(context, "reasoning", "current_reasoning"):
            reasoning = await store.get(name, default=None)
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
            "fields": self._more_fields(),
            "memory_blocks": [_block_json(block, bound) for block, bound in self._bind_blocks()],
            "memory_blocks_template": _template_json(self.memory_blocks_template),
            "tokenizer_fn": None if self._own_tokenizer else "default",
        }

    def _more_fields(self) -> dict[str, list[JSON] | None]:
        """Return the fields that a subclass has added: [value], or None for what JSON does not bring back."""
        more = _more(type(self))
        said = {name: [value] for name, value in _fields(self, more).items()}
        return {**dict.fromkeys(name for name in more if self._differs(name)), **said}

    def _differs(self, name: str) -> bool:
        """Tell whether a field may not be what its class makes it."""
        field = type(self).model_fields.get(name)
        return field is not None and getattr(self, name) is not field.default

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` needs, as JSON values, without secrets. The messages are in the service."""
        return self.model_dump(**kwargs)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Return the memory a dict was made of: itself where it is alive in this process, else a new one.

        `kwargs` are arguments of `from_defaults`, and fields of a subclass. Memory blocks that hold more than JSON can
        say (models, secrets, excluded fields, private attributes), a tokenizer and a template with functions cannot be
        in a dict: they are taken from `kwargs` (blocks by their names), else from a memory of the same conversation
        that is alive. A block is made again as it was first made; what it has learnt since is in the conversation. The
        chat store is found as `BedrockSessionsChatStore.from_dict` does.

        Raises:
            ConfigurationError: something has to be given again, or the chat store has to be constructed first.

        """
        live = _live.get(str(data.get("instance")))
        if isinstance(live, cls) and not kwargs:
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
        more = {name: given.pop(name) for name in _more(cls) if name in given}
        for name, value in data.get("fields", {}).items():
            if name in _more(cls) and name not in more:
                found = [getattr(memory, name) for memory in alike if memory._differs(name)]  # noqa: SLF001 - of this class
                more[name] = _from_json(cls, name, value[0]) if value else _again(name, found)
        memory = BedrockSessionsMemory.from_defaults(session_id=session_id, chat_store=store, **{**arguments, **given})
        return cls(**{name: getattr(memory, name) for name in BedrockSessionsMemory.model_fields}, **more)

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
    """Return the name of a run's unfinished turn; its value is {"after": message id, "messages": records}."""
    return f"{TURN}/{run or ''}"


def _is_alive(name: str) -> bool:
    """Tell whether the run whose unfinished turn has this name goes on in this process."""
    try:
        adapter = basic_runtime.get_external_adapter(name.removeprefix(TURN + "/"))
    except RuntimeError:
        return False
    return bool(getattr(adapter, "is_running", False))


def _names_in_context(context: Context, kind: str, default: str | None = None) -> list[str]:
    """Return the names under which the agents of the workflow that runs keep things of a kind in its context."""
    # There is no public way from a context to its workflow.
    workflow = getattr(getattr(context, "_face", None), "_workflow", None)
    agents = getattr(workflow, "agents", None)
    agents = list(agents.values()) if isinstance(agents, dict) else [workflow]
    return list(dict.fromkeys(str(getattr(agent, f"{kind}_key", default or kind)) for agent in agents))


def _keep_turn(conversation: Conversation, name: str, messages: Sequence[ChatMessage]) -> None:
    """Keep what an agent has done in a turn, if that is not kept already. Pictures take a while: not for the loop."""
    encoded = message_codec.encode(messages, natives=False)
    records = [message_codec.carried(record, encoded.blocks.__getitem__) for record in encoded.records]
    turn: dict[str, JSON] = {"after": conversation.last_id(fresh=False), "messages": records}
    if turn != conversation._named(fresh=False).get(name):  # noqa: SLF001 - names of the memory
        conversation._add([], state={name: turn})  # noqa: SLF001


def _kept_turns(
    conversation: Conversation, own: str, *, begins: bool, goes_on: bool
) -> tuple[list[ChatMessage], list[str]]:
    """Return what turns that never ended have left, if one begins, and the names that are done with."""
    state = conversation._named(fresh=begins)  # noqa: SLF001 - names of the memory
    if not begins:
        return [], [own] if own in state else []
    names = sorted(n for n in state if n == own or ((n == TURN or n.startswith(TURN + "/")) and not _is_alive(n)))
    last = conversation.last_id(fresh=False) if names else None
    unfinished: list[ChatMessage] = []
    for name in names:
        saved = _saved_turn(state[name])
        if saved is None:
            logger.warning(
                "an unfinished turn of conversation %s is ignored: it cannot be read", hashed(conversation.key)
            )
        elif saved[0] == last and name != own and not goes_on:
            unfinished += [message_codec.decode(record, lambda _: None) for record in saved[1]]
    if unfinished:
        count = len(unfinished)
        logger.warning(
            "the last turn of conversation %s never ended: %d messages of it are kept", hashed(conversation.key), count
        )
    return unfinished, names


def _saved_turn(turn: JSON) -> tuple[str | None, list[JSON]] | None:
    """Return where an unfinished turn stopped, and its records; None if what is stored is no such thing."""
    if not isinstance(turn, dict):
        return None
    after, records = turn.get("after"), turn.get("messages")
    if not isinstance(after, (str, type(None))) or not isinstance(records, list):
        return None
    return (after, records) if records and all(isinstance(record, dict) for record in records) else None


# -- memory blocks, and subclasses of the memory


def _bind(block: BaseMemoryBlock[Any], chat_store: BedrockSessionsChatStore, session_id: str) -> _Bound:
    bound = _bound[id(block)] = _Bound(weakref.ref(chat_store), session_id, _fields(block))
    weakref.finalize(block, _bound.pop, id(block), None)
    return bound


def _more(cls: type[BedrockSessionsMemory]) -> dict[str, FieldInfo]:
    """Return the fields that a subclass has added."""
    return {name: field for name, field in cls.model_fields.items() if name not in BedrockSessionsMemory.model_fields}


@functools.cache
def _adapters(cls: type[BaseModel]) -> dict[str, TypeAdapter[Any]]:
    """Return the fields of a class whose type pydantic can read, without those it excludes."""
    adapters: dict[str, TypeAdapter[Any]] = {}
    for name, field in cls.model_fields.items():
        if not field.exclude:
            try:
                adapters[name] = TypeAdapter(field.rebuild_annotation())
            except Exception:  # noqa: BLE001, S112 - a type that has no schema: a client, a function
                continue
    return adapters


def _fields(model: BaseModel, names: Iterable[str] | None = None) -> dict[str, JSON]:
    """Return the fields that JSON brings back as they are: no models, clients, templates, or secrets."""
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


def _from_json(cls: type[BaseModel], name: str, value: JSON) -> Any:
    return _adapters(cls)[name].validate_json(json.dumps(value))


def _set_fields(block: BaseMemoryBlock[Any], stored: Mapping[str, JSON]) -> None:
    for name, value in stored.items():
        try:
            setattr(block, name, _from_json(type(block), name, value))
        except (KeyError, ValueError) as error:
            logger.warning(
                "what the memory block %r has learnt (%s) is not restored: %s", block.name, name, type(error).__name__
            )


def _block_json(block: BaseMemoryBlock[Any], bound: _Bound) -> dict[str, JSON]:
    """Return a block as JSON, less what is stored of it; `fields` are None where they do not make it again whole."""
    cls = type(block)
    entry: dict[str, JSON] = {"name": block.name, "class": f"{cls.__module__}:{cls.__qualname__}", "fields": None}
    if cls.__module__ == "__main__" or _block_class(entry) is not cls:
        return entry
    now = _fields(block)
    stored = {n: v for n, v in bound.configured.items() if n in bound.learnt and now.get(n) == bound.learnt[n]}
    try:
        fields = block.model_dump(mode="json", warnings=False)
        # Of pydantic, whatever the class says: it compares what is excluded, private or secret too.
        whole = BaseModel.__eq__(cls.model_validate_json(json.dumps(fields)), block)
        fields |= stored
        if whole and _fields(cls.model_validate_json(json.dumps(fields))) == now | stored:
            entry["fields"] = fields
    except Exception as error:  # noqa: BLE001 - it holds a model, a client, a template: these raise what they like
        logger.debug("the memory block %r has to be given again: %s", block.name, type(error).__name__)
    return entry


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
    """Return the block of an entry, None if it cannot be made: it lacks something, or its class is another by now."""
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
