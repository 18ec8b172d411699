"""An agent's turn that has not ended: kept in named state, and offered to the next turn."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.workflow import Context
from workflows.plugins import basic_runtime

from llama_index_bedrock_sessions._conversation.conversation import Conversation
from llama_index_bedrock_sessions._conversation.state import TURN
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.events import hashed

logger = logging.getLogger("llama_index_bedrock_sessions")


def turn_name(run: str | None) -> str:
    """Return the name of a run's unfinished turn; its value is {"after": message id, "messages": records}."""
    return f"{TURN}/{run or ''}"


def _is_alive(name: str) -> bool:
    """Tell whether the run whose unfinished turn has this name goes on in this process."""
    try:
        adapter = basic_runtime.get_external_adapter(name.removeprefix(TURN + "/"))
    except RuntimeError:
        return False
    return bool(getattr(adapter, "is_running", False))


def names_in_context(context: Context, kind: str, default: str | None = None) -> list[str]:
    """Return the names under which the agents of the workflow that runs keep things of a kind in its context."""
    # There is no public way from a context to its workflow.
    workflow = getattr(getattr(context, "_face", None), "_workflow", None)
    agents = getattr(workflow, "agents", None)
    agents = list(agents.values()) if isinstance(agents, dict) else [workflow]
    return list(dict.fromkeys(str(getattr(agent, f"{kind}_key", default or kind)) for agent in agents))


def keep_turn(conversation: Conversation, name: str, messages: Sequence[ChatMessage]) -> None:
    """Keep what an agent has done in a turn, if that is not kept already. Pictures take a while: not for the loop."""
    encoded = message_codec.encode(messages, natives=False)
    records = [message_codec.carried(record, encoded.blocks.__getitem__) for record in encoded.records]
    turn: dict[str, JSON] = {"after": conversation.last_id(fresh=False), "messages": records}
    if turn != conversation._named(fresh=False).get(name):  # noqa: SLF001 - names of the memory
        conversation._add([], state={name: turn})  # noqa: SLF001


def kept_turns(
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
