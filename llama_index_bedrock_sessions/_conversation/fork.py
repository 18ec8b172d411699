"""Copy all that is alive, by value, into a session of its own: the start of a fork, and the copy that redact() keeps.

No other process opens a session that is marked as a copy, so what it holds is all there at once, or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

from llama_index_bedrock_sessions._bedrock.client import SessionInfo
from llama_index_bedrock_sessions._bedrock.errors import NotFound, attempts
from llama_index_bedrock_sessions._bedrock.session_metadata import COPY
from llama_index_bedrock_sessions._conversation.continuation import Continuation, Resolve, template_of
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import ConversationSessions, SessionTemplate
from llama_index_bedrock_sessions._conversation.writer import Writer
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.ids import Kind, new_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.limits import Copy, drafts
from llama_index_bedrock_sessions.errors import ConversationExists


def start_with(
    reader: Reader,
    writer: Writer,
    continuation: Continuation,
    copies: Sequence[Copy],
    draft: Draft,
    *,
    inherits: SessionTemplate,
    prepare: Callable[[], object],
) -> None:
    """Write messages, and last the draft, to a key that has nothing: all is there at once, or nothing.

    Nothing is there until the opening step is stored. The session inherits from the template of another conversation.
    `prepare` is called before anything is written.

    Raises:
        ConversationExists: there are messages or state, or another process starts a copy at the same moment. Of two
            at once at most one succeeds, if sessions are not listed late.

    """
    sessions = reader.sessions
    wanted = drafts(copies, draft)

    def unless_taken(journal: Journal) -> Draft:
        if journal.fold.ended():
            raise writer.conversation_ended()
        sessions.check_encryption_key(journal.heads)
        if not journal.fold.is_empty():
            raise ConversationExists(f"There is a conversation {sessions.key!r} already. Take another key.")
        first_ms = sessions.next_ms(journal.clock.ms)
        for number, each in enumerate(wanted):
            each.id = new_id(first_ms + number, Kind.CHANGE)
        return draft

    for attempt in attempts(f"The conversation {sessions.key!r} could not be begun; try again."):
        journal = reader.refresh(force=True)
        unless_taken(journal)
        if not attempt:
            prepare()
        if copy_by_value(reader, continuation, journal, unless_taken, inherits):
            return


def copy_by_value(
    reader: Reader,
    continuation: Continuation,
    journal: Journal,
    resolve: Resolve,
    inherits: SessionTemplate | None = None,
) -> bool:
    """Continue in a session that holds all that is alive by value; False: start again.

    With `inherits` there must be nothing to continue, and no other process may have begun: sessions that another
    process has opened are found before the opening is written.
    """
    sessions = reader.sessions
    mine: SessionInfo | None = None
    with contextlib.suppress(NotFound):
        continuation.close_and_read(journal, settle=inherits is None)
        draft = resolve(journal)
        mine = sessions.create(template_of(journal), inherits=inherits, copy=True)
        found = sessions.found(journal.heads)
        void = {mine.session, *journal.heads, *journal.plan.covers()}
        others = [info for session, info in found.items() if session not in void]
        copies = [info for info in others if COPY in info.metadata]
        # A copy may stand beside what another process opens, but not beside a copy, which may lack what it removes.
        is_alone = not any(sessions.has_opening(info.session) for info in (others if inherits else copies))
        if inherits and is_alone:
            is_alone = is_first(sessions, mine, copies)
        if is_alone and continuation.open(journal, mine, draft, present=found, by_value=True):
            if inherits:
                continuation.close_others()
            return True
    if mine:
        sessions.delete_unopened(mine.session)
    reader.drop()
    return False


def is_first(sessions: ConversationSessions, mine: SessionInfo, copies: Iterable[SessionInfo]) -> bool:
    """Delete the `copies` that are not open, so that this one may be; False: one is open by now.

    Of several that are started at the same moment the newest counts.

    Raises:
        ConversationExists: another process starts a copy that is newer.

    """
    if any((info.created, info.session) > (mine.created, mine.session) for info in copies):
        sessions.delete_unopened(mine.session)
        raise ConversationExists(
            f"Another process begins the conversation {sessions.key!r} at the same moment. Take another key."
        )
    return all(sessions.delete_unopened(info.session) for info in copies)
