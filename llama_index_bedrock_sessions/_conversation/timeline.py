"""A conversation as it was at a point in time: every session that is still in the service, read in full."""

from __future__ import annotations

from llama_index_bedrock_sessions._bedrock.errors import NotFound
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.history import Position, Snapshot, Timeline
from llama_index_bedrock_sessions._journal.ids import Home
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock


def read_timeline(reader: Reader) -> Timeline:
    """Return every change in the sessions that are still in the service, including changes that no longer count.

    Reads each session in full, in parallel: one list, and about as many gets as a cold read of what it holds.
    """
    journal = reader.refresh()
    sessions, pool = reader.sessions, reader.sessions.client.pool
    created = {**journal.plan.covers(), **{head: sessions.created[head] for head in journal.heads}}
    ordered = sorted(created, key=lambda session: (created[session], session))
    alone = {each.heads[0]: each for each in pool.map(lambda s: read_alone(reader, s), ordered) if each.plan.read}
    # A process deletes sessions oldest first. If a session was read and a later one is gone, the earlier one was being
    # deleted too, and the removals in the later one are unknown. List it again: it counts if it is still there, because
    # then another tool deleted the later one.
    last_gone = max((n for n, session in enumerate(ordered) if session not in alone), default=0)
    before = [session for session in ordered[:last_gone] if session in alone]
    for session, steps in zip(before, pool.map(sessions.listed_or_nothing, before), strict=True):
        if not steps:
            del alone[session]
    return Timeline(pair for each in (journal, *alone.values()) for pair in each.timeline())


def read_alone(reader: Reader, session: str) -> Journal:
    """Return the journal of one session alone, without later sessions; an empty one if the session was deleted."""
    now = reader.known()
    journal = reader.new_journal([session])
    try:
        if session in now.heads:
            journal.plan.saw_list(session, now.plan.listed[session].values())
        elif reader.sessions.owns(session, now.heads):
            journal.plan.saw_list(session, reader.sessions.listed_or_nothing(session))
        for homes in journal.plan.rounds():
            for home in homes:
                if home.session != session:
                    journal.plan.lost(home)
            reader.get(journal, [home for home in homes if home.session == session], [])
    except NotFound:  # deleted while it was read
        return reader.new_journal([session])
    return journal


def read_snapshot(
    reader: Reader, timeline: Timeline, position: Position
) -> tuple[Snapshot, dict[Home, list[ContentBlock]]]:
    """Return the conversation at a position, and the native blocks of its messages; get what was removed since."""
    snapshot = timeline.at(position)
    for home, found in reader.sessions.client.fetch(snapshot.missing):
        if found:
            timeline.absorb(read_step(home, *found, skip_newer=True))
    snapshot = timeline.at(position) if snapshot.missing else snapshot
    return snapshot, reader.native_blocks_of(reader.known(), [message for _, message in snapshot.messages if message])
