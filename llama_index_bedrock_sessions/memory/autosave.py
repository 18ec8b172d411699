"""The unfinished turn of an agent: saved in named state, and offered to the next turn."""

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
    """Return the name of a run's unfinished turn; its value is {"after": message id, "messages": records}."""
    return ReservedName(f"{TURN}/{run or ''}")


def _is_alive(name: str) -> bool:
    """Return whether the run of an unfinished turn is live in this process."""
    try:
        adapter = basic_runtime.get_external_adapter(name.removeprefix(TURN + "/"))
    except RuntimeError:
        return False
    return bool(getattr(adapter, "is_running", False))


def names_in_context(context: Context, kind: str, default: str | None = None) -> list[str]:
    """Return the names under which the agents of the running workflow keep values of a kind in its context."""
    workflow = workflow_of(context)
    agents = getattr(workflow, "agents", None)
    agents = list(agents.values()) if isinstance(agents, dict) else [workflow]
    return list(dict.fromkeys(str(getattr(agent, f"{kind}_key", default or kind)) for agent in agents))


async def keep_turn(conversation: Conversation, name: ReservedName, messages: Sequence[ChatMessage]) -> None:
    """Save what an agent has done in a turn, unless it is saved already."""
    records = await asyncio.to_thread(_records, messages)  # images take a while
    turn: dict[str, JSON] = {"after": await conversation.alast_id(fresh=False), "messages": records}
    if turn != (await conversation.state.acopy(fresh=False, reserved=name)).get(name):
        await conversation.aadd([], state={name: turn})


def _records(messages: Sequence[ChatMessage]) -> list[JSON]:
    encoded = message_codec.encode(messages, native_blocks=False)
    return [message_codec.carried(record, encoded.blocks.__getitem__) for record in encoded.records]


async def kept_turns(
    conversation: Conversation, own: ReservedName, *, begins: bool, goes_on: bool
) -> tuple[list[ChatMessage], list[ReservedName]]:
    """Return the messages of unfinished turns if a turn begins, and the names of state that are no longer needed."""
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
            logger.warning(
                "an unfinished turn of conversation %s is ignored: it cannot be read", key_hash(conversation.key)
            )
        elif saved[0] == last and name != own and not goes_on:
            unfinished += [message_codec.decode(record, lambda _: None) for record in saved[1]]
    if unfinished:
        count = len(unfinished)
        logger.warning(
            "the last turn of conversation %s never ended: %d messages of it are kept",
            key_hash(conversation.key),
            count,
        )
    return unfinished, names


def _saved_turn(turn: JSON) -> tuple[str | None, list[JSON]] | None:
    """Return the message after which an unfinished turn began, and its records; None if the value is invalid."""
    if not isinstance(turn, dict):
        return None
    after, records = turn.get("after"), turn.get("messages")
    if not isinstance(after, (str, type(None))) or not isinstance(records, list):
        return None
    return (after, records) if records and all(isinstance(record, dict) for record in records) else None
