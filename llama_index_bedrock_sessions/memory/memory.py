"""LlamaIndex's `Memory` on Bedrock sessions.

Rule 1: `Memory` behaves as with any other store. This module reimplements nothing of LlamaIndex.

Rule 2: An agent's turn reads the service once. A turn lasts from a user's message to the answer, within one run of a
workflow. Its first read calls the service. Later reads return that result and the messages written since. Outside a
run, every read calls the service. The tag `llamaindex.run_id`, which the workflow engine sets in each step, identifies
the run.

Rule 3: `to_dict` and `from_dict` drop nothing silently. If a dict cannot contain a value, the caller passes it again,
or gets an error that names it.
"""

import contextlib
import logging
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

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
from llama_index.core.utils import get_tokenizer
from llama_index.core.workflow import Context
from pydantic import Field, PrivateAttr, SerializationInfo, SerializerFunctionWrapHandler, model_serializer
from pydantic.fields import FieldInfo
from workflows.errors import WorkflowRuntimeError

from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._conversation.state import ReservedName
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.chat_store import BedrockSessionsChatStore
from llama_index_bedrock_sessions.errors import BedrockSessionsError, ConfigurationError
from llama_index_bedrock_sessions.events import key_hash
from llama_index_bedrock_sessions.memory.autosave import names_in_context, restore_turns, save_turn, turn_name
from llama_index_bedrock_sessions.memory.block_state import (
    BLOCK,
    BoundBlock,
    bind_block,
    block_json,
    block_lock,
    blocks_of,
    bound_blocks,
    from_json,
    json_fields,
    required,
    set_fields,
)
from llama_index_bedrock_sessions.memory.store import BedrockSessionsMemoryStore
from llama_index_bedrock_sessions.memory.turns import QueueManager, current_run, managing_queue, record_added
from llama_index_bedrock_sessions.tool_calls import PairingNote, log_pairing, pair

logger = logging.getLogger("llama_index_bedrock_sessions")
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
_live: "weakref.WeakValueDictionary[str, BedrockSessionsMemory]" = weakref.WeakValueDictionary()


class _OvertakenError(Exception):
    """Another task or process has already archived or removed the messages to be archived."""


class BedrockSessionsMemory(Memory):
    """LlamaIndex's `Memory` on Bedrock sessions; it outlives its `Context`, its process, and failed turns.

    Create it with `from_defaults`. `session_id` is the key of the conversation, not the id of a Bedrock session. In
    addition to what `Memory` does:

    - An agent's turn takes three calls: one stores the user's message, one lists the steps, one stores everything else
      as one step.
    - `to_dict` and `from_dict` save and restore the memory, alone or in a `Context`, in the same or another process.
    - `get` pairs tool calls with their results, as `heal_tool_calls` does.
    - The fields of memory blocks, such as the facts of `FactExtractionMemoryBlock`, are stored in the conversation's
      named state, and restored from it. If two processes store them at the same time, the last write wins.
    - A memory block belongs to one conversation. Another conversation rejects it, because the block would reveal there
      what it learned here.
    - With `autosave=True`, the work of an agent's turn that never ends is not lost. See `from_defaults`.
    """

    sql_store: BedrockSessionsMemoryStore = Field(exclude=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    autosave: bool = Field(default=False, description="Save the results of tools while a turn is still running.")

    _id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _own_tokenizer: bool = PrivateAttr(default=False)
    _logged: set[PairingNote] = PrivateAttr(default_factory=set)

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
    ) -> "BedrockSessionsMemory":
        """Return the memory of a conversation.

        No call is made, unless `chat_history` replaces the stored messages. `chat_store` is required. The default of
        `session_id` is a random key. All other arguments are those of `Memory.from_defaults`.

        During a turn, LlamaIndex's agents store only the user's message; they store the rest at the end. With
        `autosave`, the messages so far are saved in named state each time tools have returned, at the cost of one call.
        If the turn never ends, the next user's message through a memory with `autosave` restores them to the history.
        This costs one more call at the beginning of each turn.

        If several runs work on one conversation, each saves its own turn. A turn is not restored while its run is
        active in this process. For a run in another process this cannot be known, so its turn may be restored while
        the run is still active.

        Raises:
            ConfigurationError: `chat_store` is missing or of another type, or a memory block belongs to another
                conversation.

        """
        if isinstance(chat_store, BedrockSessionsChatStore):
            chat_store = BedrockSessionsMemoryStore(chat_store)
        if not isinstance(chat_store, BedrockSessionsMemoryStore):
            kind = type(chat_store).__name__
            raise ConfigurationError(f"Expected chat_store= to be a BedrockSessionsChatStore, got {kind}.")
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
        """The conversation of this memory, with its history, named state and sessions."""
        return self.sql_store.chat_store.conversation(self.session_id)

    # Reading

    async def aget(self, input: str | ChatMessage | None = None, **block_kwargs: Any) -> list[ChatMessage]:  # noqa: A002 - LlamaIndex's name
        """Return the messages for a model: the active ones, with tool calls paired and the content of the blocks."""
        messages, notes = pair(await super().aget(input, **block_kwargs))
        log_pairing([note for note in notes if note not in self._logged], self.session_id)
        self._logged.update(notes)
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
        """Add a message, archive the oldest ones if the history is too long, and save the memory blocks."""
        await self.aput_messages([message])

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """Add messages in one step, archive the oldest ones if the history is too long, and save the memory blocks.

        Once the messages are stored, a later error of the service is logged and not raised. A caller that gets an error
        would store the messages again. An exception of a memory block is raised, as by LlamaIndex's `Memory`, although
        the messages are stored.
        """
        self._bind_blocks()
        added, forget = await self._with_unfinished(messages) if self.autosave else (messages, [])
        await self.conversation.aadd(added, forget=forget)
        record_added(self.conversation, added)
        try:
            await self._manage_queue()
        except BedrockSessionsError as error:
            logger.warning(
                "stored the messages of conversation %s, but could not archive old ones; the next put tries again: %s",
                key_hash(self.session_id),
                type(error).__name__,
            )
        await self._save_blocks()

    async def _manage_queue(self) -> None:
        with managing_queue(QueueManager(self.conversation, self._archive)):
            for _ in range(3):  # after three conflicts, the other tasks or the next message archive the rest
                with contextlib.suppress(_OvertakenError):
                    await super()._manage_queue()
                    break

    async def _archive(self, n: int) -> list[ChatMessage]:
        """Archive the oldest messages and return them for the blocks.

        Each message is returned once, even if several tasks or processes archive at the same time. Raises
        _OvertakenError if others have archived them.
        """
        await self.conversation.acount()  # reads what other processes have archived
        await self._restore_blocks()
        archived = await self.conversation.aarchive_oldest(n, all_or_none=True)
        if not archived:
            raise _OvertakenError
        return archived

    # Memory blocks

    def _bind_blocks(self) -> list[tuple[BaseMemoryBlock[Any], BoundBlock]]:
        """Bind the blocks to this conversation, and return each with its binding.

        The list of blocks can change after the memory was created, so every use of the blocks binds them. Raises
        ConfigurationError, and binds no block, if one of them belongs to another conversation.
        """
        store, key = self.sql_store.chat_store, self.session_id
        for block in self.memory_blocks:
            found = bound_blocks.get(id(block))
            if found and (found.session_id != key or found.chat_store() is not store):
                raise ConfigurationError(
                    f"The memory block {block.name!r} already belongs to another conversation or chat store, and would "
                    f"reveal its content in {key!r}. Create a new block for each conversation."
                )
        return [(block, bound_blocks.get(id(block)) or bind_block(block, store, key)) for block in self.memory_blocks]

    async def _restore_blocks(self) -> None:
        """Set the blocks to their stored fields. A field that is no longer stored gets its original value."""
        if self.memory_blocks:
            async with block_lock(self.conversation):
                await self._take_stored()

    async def _take_stored(self, *, only_erased: bool = False) -> None:
        """Set the blocks to their stored fields. With `only_erased`, reset only blocks whose stored fields are gone."""
        state = await self.conversation.state.acopy(fresh=False, reserved=BLOCK)
        for block, bound in self._bind_blocks():
            stored = state.get(BLOCK + block.name, {})
            if not isinstance(stored, dict) or stored == bound.learned or (stored and only_erased):
                continue
            original = {name: bound.configured[name] for name in bound.learned if name in bound.configured}
            set_fields(block, {**original, **stored})
            bound.learned = stored

    async def _save_blocks(self) -> None:
        """Store the changed fields of the blocks. If this fails, the next put stores them."""
        if not self.memory_blocks:
            return
        try:
            async with block_lock(self.conversation):
                await self._take_stored(only_erased=True)
                await self._store_blocks()
        except BedrockSessionsError as error:
            logger.warning(
                "could not save the memory blocks of conversation %s; the next put tries again: %s",
                key_hash(self.session_id),
                type(error).__name__,
            )

    async def _store_blocks(self) -> None:
        changed: dict[str, tuple[BoundBlock, dict[str, JSON]]] = {}
        for block, bound in self._bind_blocks():
            now = {
                name: value
                for name, value in json_fields(block).items()
                if name in bound.learned or value != bound.configured.get(name)
            }
            if now != bound.learned:
                changed[ReservedName(BLOCK + block.name)] = bound, now
        if changed:
            state = {name: now for name, (_, now) in changed.items()}
            await self.conversation.aadd([], state=state)
            for bound, now in changed.values():
                bound.learned = now

    # Unfinished turns

    async def _save_turn(self) -> None:
        """Save the messages of the running turn, in case the turn never ends."""
        messages = await self._unfinished()
        if not messages:
            return
        try:
            await save_turn(self.conversation, turn_name(current_run()), messages)
        except BedrockSessionsError as error:
            logger.warning(
                "could not save the running turn of conversation %s: %s",
                key_hash(self.session_id),
                type(error).__name__,
            )

    async def _with_unfinished(self, messages: list[ChatMessage]) -> tuple[list[ChatMessage], list[ReservedName]]:
        """Return the messages, preceded by those of an unfinished turn, and the names of saved turns to delete."""
        begins = bool(messages) and messages[-1].role == MessageRole.USER
        # An agent that continues in the context of a failed turn still has that turn's messages, and will store them.
        resumed = begins and bool(await self._unfinished())
        unfinished, names = await restore_turns(
            self.conversation, turn_name(current_run()), begins=begins, resumed=resumed
        )
        return [*unfinished, *messages], names

    async def _unfinished(self) -> list[ChatMessage]:
        """Return the messages of the running turn that the agent still keeps in its context, and has not stored."""
        try:
            context = Context.get_step_context()
        except WorkflowRuntimeError:
            return []
        store = context.store
        memory = await store.get("memory", default=None)
        if not isinstance(memory, BedrockSessionsMemory) or (
            memory.session_id != self.session_id or memory.sql_store.chat_store is not self.sql_store.chat_store
        ):
            return []  # a tool or a workflow step reads another conversation
        messages: list[ChatMessage] = []
        for name in names_in_context(context, "scratchpad"):
            messages += await store.get(name, default=None) or []
        for name in names_in_context(context, "reasoning", "current_reasoning"):
            reasoning = await store.get(name, default=None)
            if reasoning:
                text = "\n".join(step.get_content() for step in reasoning)
                messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=text))
        return messages

    # Round trips

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:  # noqa: ARG002 - LlamaIndex's signature
        """Return the configuration as JSON values, without secrets. None replaces a value that has no JSON form."""
        return {
            "class_name": self.class_name(),
            "instance": self._id,
            "session_id": self.session_id,
            "chat_store": self.sql_store.chat_store.to_dict(),
            **{name: getattr(self, name) for name in _SETTINGS},
            "insert_method": self.insert_method.value,
            "fields": self._more_fields(),
            "memory_blocks": [block_json(block, bound) for block, bound in self._bind_blocks()],
            "memory_blocks_template": _template_json(self.memory_blocks_template),
            "tokenizer_fn": None if self._own_tokenizer else "default",
        }

    def _more_fields(self) -> dict[str, list[JSON] | None]:
        """Return the fields of a subclass as `[value]`, or as None if the value has no JSON form."""
        more = _added_fields(type(self))
        with_json = {name: [value] for name, value in json_fields(self, more).items()}
        return {**dict.fromkeys(name for name in more if _differs(self, name)), **with_json}

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments of `from_dict` as JSON values, without secrets and without messages."""
        return self.model_dump(**kwargs)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Return the memory that the dict was made from if it still exists in this process, else a new memory.

        `kwargs` are arguments of `from_defaults` and fields of a subclass. With `kwargs`, the memory is always new.

        A dict cannot contain a tokenizer, a template with functions, or a memory block with models, secrets, excluded
        fields or private attributes. These are taken from `kwargs` (blocks by their names), or else from an existing
        memory of the same conversation. Other blocks are rebuilt as they were created; what they have learned is in the
        conversation. `BedrockSessionsChatStore.from_dict` provides the chat store.

        Raises:
            ConfigurationError: a value has to be passed again, or the chat store has to be constructed first.

        """
        live = _live.get(str(data.get("instance")))
        if isinstance(live, cls) and not kwargs:
            return live
        given = dict(kwargs)
        store = given.pop("chat_store", None) or BedrockSessionsChatStore.from_dict(data["chat_store"])
        chat_store = store.chat_store if isinstance(store, BedrockSessionsMemoryStore) else store
        session_id = given.pop("session_id", data["session_id"])
        same = [m for m in list(_live.values()) if m.session_id == session_id and m.sql_store.chat_store is chat_store]
        arguments: dict[str, Any] = {name: data[name] for name in _SETTINGS if name in data}
        arguments["insert_method"] = InsertMethod(data.get("insert_method", InsertMethod.SYSTEM.value))
        arguments["memory_blocks"] = blocks_of(data.get("memory_blocks", []), given.pop("memory_blocks", None), same)
        template = data.get("memory_blocks_template")
        arguments["memory_blocks_template"] = RichPromptTemplate(template) if template else None
        for name, found in (("memory_blocks_template", template), ("tokenizer_fn", data.get("tokenizer_fn"))):
            if not found and name not in given:
                given[name] = required(name, [getattr(memory, name) for memory in same])
        more = {name: given.pop(name) for name in _added_fields(cls) if name in given}
        for name, value in data.get("fields", {}).items():
            if name in _added_fields(cls) and name not in more:
                found = [getattr(memory, name) for memory in same if _differs(memory, name)]
                more[name] = from_json(cls, name, value[0]) if value else required(name, found)
        memory = BedrockSessionsMemory.from_defaults(session_id=session_id, chat_store=store, **{**arguments, **given})
        return cls(**{name: getattr(memory, name) for name in BedrockSessionsMemory.model_fields}, **more)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the result of `to_dict`: without secrets, and with an error if `from_dict` needs more."""
        return (type(self).from_dict, (self.to_dict(),))

    def __copy__(self) -> "BedrockSessionsMemory":
        """Return the memory itself, because it only refers to a conversation in the service."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "BedrockSessionsMemory":
        """Return the memory itself, because `ctx.store.edit_state()` makes deep copies."""
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "BedrockSessionsMemory":  # noqa: ARG002 - pydantic's signature
        """Return a new memory with the same blocks and store, and with some fields changed."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **(update or {})})


def _added_fields(cls: type[BedrockSessionsMemory]) -> dict[str, FieldInfo]:
    """Return the fields that a subclass adds."""
    return {name: field for name, field in cls.model_fields.items() if name not in BedrockSessionsMemory.model_fields}


def _template_json(template: RichPromptTemplate) -> str | None:
    """Return the text of a template, or None if the template has more than its text."""
    text = template.template_str
    return text if template == RichPromptTemplate(text) else None


def _differs(memory: BedrockSessionsMemory, name: str) -> bool:
    """Check whether a field's value can differ from the default of its class."""
    field = type(memory).model_fields.get(name)
    return field is not None and getattr(memory, name) is not field.default
