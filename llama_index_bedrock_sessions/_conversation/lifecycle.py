"""End a conversation, leave its session, renew it, and add to its metadata and tags."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence

from llama_index_bedrock_sessions._bedrock import session_metadata
from llama_index_bedrock_sessions._bedrock.client import SessionInfo
from llama_index_bedrock_sessions._bedrock.errors import NotFound, RequestRejected, attempts
from llama_index_bedrock_sessions._conversation.continuation import Continuation, noop
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import METADATA, TAGS, ConversationSessions
from llama_index_bedrock_sessions._conversation.writer import Writer
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.journal import Journal


def end(reader: Reader, writer: Writer, mark: Draft) -> bool:
    """Write the change that ends the conversation, and end its session; False if there is none, or it had ended."""
    journal = reader.refresh(force=True)
    had_ended = journal.fold.ended() is not None
    if journal.heads and not had_ended:
        writer.append(lambda _: mark, just_listed=True, ended=True)
    for head in reader.known().heads:
        reader.sessions.finish(head)
    return bool(journal.heads) and not had_ended


def leave_session(reader: Reader) -> None:
    """Close the session that is written, if the next change can go to another one."""
    sessions = reader.sessions
    if not sessions.directory.continues:
        return
    for head in reader.known().heads:
        with contextlib.suppress(NotFound):
            sessions.seal(head, "continued", reader.journal.clock.ms if reader.journal else None)
        sessions.closed.add(head)


def renew(reader: Reader, continuation: Continuation, older_than: int) -> bool:
    """Continue in another session if the newest is so old (ms), and there is something; return whether it was."""
    sessions = reader.sessions
    for _ in attempts("The conversation could not be continued in another session; try again."):
        journal = reader.refresh(force=True)
        age = sessions.now() - max((sessions.created[head] for head in journal.heads), default=0)
        if journal.fold.is_empty() or age < older_than:
            return False
        sessions.check_encryption_key(journal.heads)
        if continuation.continue_in_new_session(journal, noop, ended=True):
            break
    return True


def update(reader: Reader, writer: Writer, metadata: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Add to the metadata and the tags of the session that is written, and of all that continue it.

    Both are stored as named state too, because every process that continues the conversation reads that.
    """
    sessions = reader.sessions
    state = {
        **{METADATA + name: [value] for name, value in metadata.items()},
        **{TAGS + name: [value] for name, value in tags.items()},
    }
    journal, settings = reader.refresh(force=True), sessions.settings
    heads = [sessions.client.get(head) for head in journal.heads]
    _check_fits(sessions, journal, heads, metadata, tags)
    own_metadata, own_tags = {**settings.own_metadata, **metadata}, {**settings.own_tags, **tags}
    sessions.settings = dataclasses.replace(settings, own_metadata=own_metadata, own_tags=own_tags)
    if not heads:
        return  # the first session will have them
    draft = Draft(state=state)
    writer.append(lambda _: draft, just_listed=True, ended=True)
    try:
        for head in reader.known().heads:
            sessions.update(sessions.client.get(head), metadata, tags)
    except NotFound:
        return  # deleted by another process; the session that continues it has them
    except RequestRejected as refusal:
        raise refusal.error() from refusal


def _check_fits(
    sessions: ConversationSessions,
    journal: Journal,
    heads: Sequence[SessionInfo],
    metadata: Mapping[str, str],
    tags: Mapping[str, str],
) -> None:
    """Raise ConfigurationError for metadata and tags that, with those there, are more than a session can have."""
    settings = sessions.settings
    own, all_tags = dict(settings.session_metadata), dict(settings.tags)
    for head in heads:
        own.update(session_metadata.own_metadata(head))
        all_tags.update(sessions.tags_of(head) if tags else {})
    session_metadata.check_metadata({**own, **settings.own_metadata, **journal.fold.named(METADATA), **metadata})
    session_metadata.check_tags({**all_tags, **settings.own_tags, **journal.fold.named(TAGS), **tags})
