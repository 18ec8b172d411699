"""Save an agent's unfinished turn in named state, and restore it if the turn never ends."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.workflow import Context
from workflows.plugins import basic_runtime

from llama_index_bedrock_sessions._conversation.contexts import workflow_of
from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._conversation.state import TURN, ReservedName
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.events import key_hash

logger = logging.getLogger("llama_index_bedrock_sessions")


def turn_name(run: str | None) -> ReservedName:
    """Return the name of the state that holds a run's unfinished turn.

    Its value is `{"after": id of the last stored message or None, "messages": records}`.
    """
    return ReservedName(f"{TURN}/{run or ''}")


def _is_alive(name: str) -> bool:
    """Check whether the run that saved a turn under this name is still active in this process."""
    try:
        adapter = basic_runtime.get_external_adapter(name.removeprefix(TURN + "/"))
    except RuntimeError:
        return False
    return bool(getattr(adapter, "is_running", False))


def names_in_context(context: Context, kind: str, default: str | None = None) -> list[str]:
    """Return the names that the workflow's agents use in its context for one kind of data, such as "scratchpad"."""
    workflow = workflow_of(context)
    agents = getattr(workflow, "agents", None)
    agents = list(agents.values()) if isinstance(agents, dict) else [workflow]
    return list(dict.fromkeys(str(getattr(agent, f"{kind}_key", default or kind)) for agent in agents))


async def save_turn(conversation: Conversation, name: ReservedName, messages: Sequence[ChatMessage]) -> None:
    """Save the messages of an unfinished turn, unless the same ones are already saved."""
    records = await asyncio.to_thread(_records, messages)  # encoding images takes long enough to block the event loop
    turn: dict[str, JSON] = {"after": await conversation.alast_id(fresh=False), "messages": records}
    if turn != (await conversation.state.acopy(fresh=False, reserved=name)).get(name):
        await conversation.aadd([], state={name: turn})


def _records(messages: Sequence[ChatMessage]) -> list[JSON]:
    encoded = message_codec.encode(messages, native_blocks=False)
    return [message_codec.carried(record, encoded.blocks.__getitem__) for record in encoded.records]


async def restore_turns(
    conversation: Conversation, own: ReservedName, *, begins: bool, resumed: bool
) -> tuple[list[ChatMessage], list[ReservedName]]:
    """Return the messages of turns that never ended, and the names of state to delete.

    Messages are returned only if a new turn `begins` and the agent has not `resumed` its own unfinished turn. A turn
    is restored only if nothing was stored after it.
    """
    state = await conversation.state.acopy(fresh=begins, reserved=TURN)
    if not begins:
        return [], [own] if own in state else []
    turns = (name for name in state if name == TURN or name.startswith(TURN + "/"))
    names = sorted(ReservedName(name) for name in turns if name == own or not _is_alive(name))
    last = await conversation.alast_id(fresh=False) if names else None
    unfinished: list[ChatMessage] = []
    for name in names:
        saved = _saved_turn(state[name])
        if saved is None:
            logger.warning("ignored a saved turn of conversation %s that cannot be read", key_hash(conversation.key))
        elif saved[0] == last and name != own and not resumed:
            unfinished += [message_codec.decode(record, lambda _: None) for record in saved[1]]
    if unfinished:
        count = len(unfinished)
        logger.warning(
            "the last turn of conversation %s never ended; restored %d of its messages",
            key_hash(conversation.key),
            count,
        )
    return unfinished, names


def _saved_turn(turn: JSON) -> tuple[str | None, list[JSON]] | None:
    """Return the id of the message before an unfinished turn, and the turn's records; None if the value is invalid."""
    if not isinstance(turn, dict):
        return None
    after, records = turn.get("after"), turn.get("messages")
    if not isinstance(after, (str, type(None))) or not isinstance(records, list):
        return None
    return (after, records) if records and all(isinstance(record, dict) for record in records) else None
