"""Agent memory: LlamaIndex's `Memory` on conversations.

1. This memory does what LlamaIndex's `Memory` does with other stores. It copies no code of LlamaIndex.
2. An agent reads the service once in each turn. A turn lasts from a user's message to the answer, within one run of
   the agent. The first read after the user's message calls the service. Later reads return that result and what was
   written since. Outside of a run every read calls the service. The workflows set the tag `llamaindex.run_id` in each
   step, by which a run is recognised.
3. Arguments that a dict cannot hold have to be given again, or are refused by name. Nothing is dropped silently.
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
from llama_index_bedrock_sessions.memory.autosave import keep_turn, kept_turns, names_in_context, turn_name
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
    """Another process has archived or removed the messages that were about to be archived."""


class BedrockSessionsMemory(Memory):
    """LlamaIndex's `Memory` on Bedrock sessions. It survives its `Context`, its process, and failed turns.

    Make it with `from_defaults`. `session_id` is the key of the conversation, not the id of a Bedrock session.
    Everything works as in `Memory`, and besides:

    - A turn of an agent takes three calls: the user's message, one list, and one step for the rest.
    - `to_dict` and `from_dict` restore it, also in a `Context` and in another process.
    - `get` returns tool calls paired with their results (`heal_tool_calls`).
    - The fields of memory blocks, such as the facts of `FactExtractionMemoryBlock`, are saved in the conversation's
      named state and restored. If two processes save at once, the last write wins. A block belongs to one conversation
      and is refused in others, so that it cannot reveal there what it has learnt here.
    - With `autosave=True` an unfinished turn of an agent is not lost: see `from_defaults`.
    """

    sql_store: BedrockSessionsMemoryStore = Field(exclude=True)  # pyright: ignore[reportIncompatibleVariableOverride]
    autosave: bool = Field(default=False, description="Save what tools have returned while a turn is running.")

    _id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)
    _own_tokenizer: bool = PrivateAttr(default=False)
    _told: set[PairingNote] = PrivateAttr(default_factory=set)

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
        """Make the memory of a conversation, without a call unless a `chat_history` replaces the stored messages.

        `chat_store` is required, and `session_id` is random by default. All else is as in `Memory.from_defaults`.

        LlamaIndex's agents store only the user's message until a turn has ended. With `autosave`, what tools
        have returned is saved as named state, by one call each time they return. If the turn never ends, the next turn
        finds it in the history. The next turn is begun by a user's message through a memory with `autosave`. This costs
        one more call at the beginning of each turn. Each of several concurrent runs on one conversation saves its own
        turn. The turn of a live run of this process is not offered to others. For runs of other processes this is
        unknown, so their turns can be offered while they are live.

        Raises:
            ConfigurationError: `chat_store` is missing or of another kind; a memory block belongs to another
                conversation.

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
        """The conversation of this memory: its history, its named state, its sessions."""
        return self.sql_store.chat_store.conversation(self.session_id)

    # Reading

    async def aget(self, input: str | ChatMessage | None = None, **block_kwargs: Any) -> list[ChatMessage]:  # noqa: A002 - LlamaIndex's name
        """Return what a model should see: the active messages, with paired tool calls and the content of the blocks."""
        messages, notes = pair(await super().aget(input, **block_kwargs))
        log_pairing([note for note in notes if note not in self._told], self.session_id)
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
        """Add a message, archive the oldest ones if there are too many, and save what the blocks have learnt."""
        await self.aput_messages([message])

    async def aput_messages(self, messages: list[ChatMessage]) -> None:
        """Add messages by one step, and archive the oldest ones if there are too many.

        Once the messages are stored, errors of the service are logged and not raised, because a caller that gets an
        error stores the messages again. Errors of memory blocks are raised, as by LlamaIndex's `Memory`. The messages
        are stored by then.
        """
        self._bind_blocks()
        whole, forget = await self._with_unfinished(messages) if self.autosave else (messages, [])
        await self.conversation.aadd(whole, forget=forget)
        record_added(self.conversation, whole)
        try:
            await self._manage_queue()
        except BedrockSessionsError as error:
            logger.warning(
                "the messages of conversation %s are stored, but old ones may not be archived until the next put: %s",
                key_hash(self.session_id),
                type(error).__name__,
            )
        await self._save_blocks()

    async def _manage_queue(self) -> None:
        with managing_queue(QueueManager(self.conversation, self._archive)):
            for _ in range(3):  # after that, other processes and the next message archive them
                with contextlib.suppress(_OvertakenError):
                    await super()._manage_queue()
                    break

    async def _archive(self, n: int) -> list[ChatMessage]:
        """Archive the oldest messages and return them for the blocks: each message once among all processes."""
        await self.conversation.acount()  # reads what other processes have archived
        await self._restore_blocks()
        archived = await self.conversation.aarchive_oldest(n, all_or_none=True)
        if not archived:
            raise _OvertakenError
        return archived

    # What blocks have learnt

    def _bind_blocks(self) -> list[tuple[BaseMemoryBlock[Any], BoundBlock]]:
        """Return the blocks with what is known of each. They may have changed since the memory was made.

        Raises ConfigurationError if one belongs to another conversation. Then none is bound.
        """
        store, key = self.sql_store.chat_store, self.session_id
        for block in self.memory_blocks:
            found = bound_blocks.get(id(block))
            if found and (found.session_id != key or found.chat_store() is not store):
                raise ConfigurationError(
                    f"The memory block {block.name!r} belongs to another conversation than {key!r}, or to another chat "
                    "store. It could reveal here what it has learnt there. Make a new block for each conversation."
                )
        return [(block, bound_blocks.get(id(block)) or bind_block(block, store, key)) for block in self.memory_blocks]

    async def _restore_blocks(self) -> None:
        """Set the blocks to what is stored. What is no longer stored is reset."""
        if self.memory_blocks:
            async with block_lock(self.conversation):
                await self._take_stored()

    async def _take_stored(self, *, only_erased: bool = False) -> None:
        state = await self.conversation.state.acopy(fresh=False, reserved=BLOCK)
        for block, bound in self._bind_blocks():
            stored = state.get(BLOCK + block.name, {})
            if not isinstance(stored, dict) or stored == bound.learnt or (stored and only_erased):
                continue
            made_with = {name: bound.configured[name] for name in bound.learnt if name in bound.configured}
            set_fields(block, {**made_with, **stored})
            bound.learnt = stored

    async def _save_blocks(self) -> None:
        """Store what the blocks have learnt. If that fails, the next message stores it."""
        if not self.memory_blocks:
            return
        try:
            async with block_lock(self.conversation):
                await self._take_stored(only_erased=True)
                await self._store_blocks()
        except BedrockSessionsError as error:
            logger.warning(
                "what the memory blocks of conversation %s have learnt was not saved: %s",
                key_hash(self.session_id),
                type(error).__name__,
            )

    async def _store_blocks(self) -> None:
        changed: dict[str, tuple[BoundBlock, dict[str, JSON]]] = {}
        for block, bound in self._bind_blocks():
            now = {
                name: value
                for name, value in json_fields(block).items()
                if name in bound.learnt or value != bound.configured.get(name)
            }
            if now != bound.learnt:
                changed[ReservedName(BLOCK + block.name)] = bound, now
        if changed:
            state = {name: now for name, (_, now) in changed.items()}
            await self.conversation.aadd([], state=state)
            for bound, now in changed.values():
                bound.learnt = now

    # A turn that has not ended

    async def _save_turn(self) -> None:
        """Save what an agent has done in the running turn, in case the turn never ends."""
        messages = await self._unfinished()
        if not messages:
            return
        try:
            await keep_turn(self.conversation, turn_name(current_run()), messages)
        except BedrockSessionsError as error:
            logger.warning(
                "the turn of conversation %s that is running was not saved: %s",
                key_hash(self.session_id),
                type(error).__name__,
            )

    async def _with_unfinished(self, messages: list[ChatMessage]) -> tuple[list[ChatMessage], list[ReservedName]]:
        """Return the messages of an unfinished turn followed by these, and the named state to delete with them."""
        begins = bool(messages) and messages[-1].role == MessageRole.USER
        # An agent that continues in the context of a failed turn still has the messages of that turn.
        goes_on = begins and bool(await self._unfinished())
        unfinished, names = await kept_turns(
            self.conversation, turn_name(current_run()), begins=begins, goes_on=goes_on
        )
        return [*unfinished, *messages], names

    async def _unfinished(self) -> list[ChatMessage]:
        """Return the messages of the running agent that are only in its context until the turn ends."""
        try:
            context = Context.get_step_context()
        except WorkflowRuntimeError:
            return []
        store = context.store
        memory = await store.get("memory", default=None)
        if not isinstance(memory, BedrockSessionsMemory) or (
            memory.session_id != self.session_id or memory.sql_store.chat_store is not self.sql_store.chat_store
        ):
            return []  # a tool or a step of a workflow reads another conversation
        messages: list[ChatMessage] = []
        for name in names_in_context(context, "scratchpad"):
            messages += await store.get(name, default=None) or []
        for name in names_in_context(context, "reasoning", "current_reasoning"):
            reasoning = await store.get(name, default=None)
            if reasoning:
                said = "\n".join(step.get_content() for step in reasoning)
                messages.append(ChatMessage(role=MessageRole.ASSISTANT, content=said))
        return messages

    # Round trips

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:  # noqa: ARG002 - LlamaIndex's signature
        """Return the configuration as JSON values, without secrets. None marks what has to be given again."""
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
        """Return the fields of a subclass: [value], or None if JSON does not restore the value."""
        more = _more(type(self))
        said = {name: [value] for name, value in json_fields(self, more).items()}
        return {**dict.fromkeys(name for name in more if _differs(self, name)), **said}

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` needs, as JSON values, without secrets. The messages are in the service."""
        return self.model_dump(**kwargs)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """Return the memory of a dict: the memory itself if it is alive in this process, else a new one.

        `kwargs` are arguments of `from_defaults` and fields of a subclass. A dict cannot hold a tokenizer, a template
        with functions, or memory blocks with models, secrets, excluded fields or private attributes. Those come from
        `kwargs` (blocks by their names), or from a live memory of the same conversation. A block is restored as it was
        first made; what it has learnt since is in the conversation. The chat store is found as by
        `BedrockSessionsChatStore.from_dict`.

        Raises:
            ConfigurationError: an argument has to be given again, or the chat store has to be constructed first.

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
        arguments["memory_blocks"] = blocks_of(data.get("memory_blocks", []), given.pop("memory_blocks", None), alike)
        template = data.get("memory_blocks_template")
        arguments["memory_blocks_template"] = RichPromptTemplate(template) if template else None
        for name, found in (("memory_blocks_template", template), ("tokenizer_fn", data.get("tokenizer_fn"))):
            if not found and name not in given:
                given[name] = required(name, [getattr(memory, name) for memory in alike])
        more = {name: given.pop(name) for name in _more(cls) if name in given}
        for name, value in data.get("fields", {}).items():
            if name in _more(cls) and name not in more:
                found = [getattr(memory, name) for memory in alike if _differs(memory, name)]
                more[name] = from_json(cls, name, value[0]) if value else required(name, found)
        memory = BedrockSessionsMemory.from_defaults(session_id=session_id, chat_store=store, **{**arguments, **given})
        return cls(**{name: getattr(memory, name) for name in BedrockSessionsMemory.model_fields}, **more)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the dict: without secrets, and with an error instead of an incomplete memory."""
        return (type(self).from_dict, (self.to_dict(),))

    def __copy__(self) -> "BedrockSessionsMemory":
        """Return the memory itself, because it represents what is in the service."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "BedrockSessionsMemory":
        """Return the memory itself: `ctx.store.edit_state()` copies deeply."""
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "BedrockSessionsMemory":  # noqa: ARG002 - pydantic's signature
        """Return another memory with the same blocks and store, and with some fields changed."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **(update or {})})


def _more(cls: type[BedrockSessionsMemory]) -> dict[str, FieldInfo]:
    """Return the fields that a subclass has added."""
    return {name: field for name, field in cls.model_fields.items() if name not in BedrockSessionsMemory.model_fields}


def _template_json(template: RichPromptTemplate) -> str | None:
    """Return the text of a template, None if the template has functions besides."""
    text = template.template_str
    return text if template == RichPromptTemplate(text) else None


def _differs(memory: BedrockSessionsMemory, name: str) -> bool:
    """Whether a field may have another value than its class gives it."""
    field = type(memory).model_fields.get(name)
    return field is not None and getattr(memory, name) is not field.default
