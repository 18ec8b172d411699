"""The status report of a conversation, and the short summary of one that is not read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from llama_index_bedrock_sessions._bedrock.client import SessionInfo, SessionSummary
from llama_index_bedrock_sessions._bedrock.errors import NotFound
from llama_index_bedrock_sessions._bedrock.session_metadata import own_metadata
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import (
    HOUR,
    RETENTION,
    STEPS_PER_SESSION,
    ConversationSessions,
)
from llama_index_bedrock_sessions._journal.history import iso
from llama_index_bedrock_sessions._journal.values import JSON


@dataclasses.dataclass(frozen=True)
class ConversationSummary:
    """What is known of a conversation without reading it: its key, and the status of its newest session."""

    key: str
    session: str
    status: str
    created: str
    updated: str
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, key: str, summary: SessionSummary, info: SessionInfo) -> ConversationSummary:
        """Return the summary: times as in `describe()`, the metadata without the library's own entries."""
        times = iso(summary.created), iso(summary.updated)
        return cls(key, summary.session, summary.status, *times, own_metadata(info))


@dataclasses.dataclass(frozen=True)
class Status:
    """What a conversation adds up to at one moment, read under its lock."""

    facts: Mapping[str, JSON]
    heads: frozenset[str]
    sessions: tuple[str, ...]
    steps: Mapping[str, int]
    unopened: tuple[SessionInfo, ...]


def read_status(reader: Reader) -> Status:
    """Read the conversation and return its status."""
    journal = reader.refresh()
    messages = journal.fold.visible()
    archived = sum(journal.fold.is_archived(m.id) for m in messages)
    until, ended = reader.complete_until(journal), journal.fold.ended()
    return Status(
        {
            "messages": len(messages) - archived,
            "archived": archived,
            "origin": next((change.origin for change in journal.fold.changes() if change.origin), None),
            "generation": journal.plan.generation(),
            "complete_until": None if until is None else iso(until),
            "ended": {**ended[1], "at": iso(ended[0])} if ended else None,
            "hidden": journal.fold.hidden(),
        },
        frozenset(journal.heads),
        (*journal.plan.covers(), *journal.heads),
        # For sessions that this process continued itself there was no list.
        {session: len(listed) for session, listed in journal.plan.listed.items() if listed},
        tuple(reader.unopened_sessions(journal)),
    )


def report(status: Status, state: JSON, sessions: ConversationSessions) -> dict[str, JSON]:
    """Return a status as the JSON of `Conversation.describe()`; get each of its sessions."""
    found = sessions.client.pool.map(lambda session: _info_or_none(sessions, session), list(status.sessions))
    now = sessions.now()
    return {
        "key": sessions.key,
        "name": sessions.name,
        "namespace": sessions.settings.namespace,
        "state": state,
        **status.facts,
        "sessions": [
            {
                "session": info.session,
                "status": info.status,
                "created": iso(info.created),
                "updated": iso(info.updated),
                "age": (now - info.created) // 1000,
                "idle_at": iso(info.updated + HOUR) if info.status == "ACTIVE" else None,
                "deleted_at": iso(info.created + RETENTION) if sessions.settings.has_retention else None,
                "encryption_key_arn": info.encryption_key_arn,
                "metadata": dict(info.metadata),
                "head": info.session in status.heads,
                "steps": (steps := status.steps.get(info.session)),
                "steps_left": None if steps is None else max(0, STEPS_PER_SESSION - steps),
            }
            for info in sorted((info for info in found if info), key=lambda info: info.created)
        ],
        "unopened_sessions": [
            {"session": s.session, "status": s.status, "created": iso(s.created)} for s in status.unopened
        ],
    }


def _info_or_none(sessions: ConversationSessions, session: str) -> SessionInfo | None:
    try:
        info = sessions.client.get(session)
    except NotFound:
        return None
    # A stored step can name any session.
    return info if sessions.directory.is_of(info, sessions.key) else None
