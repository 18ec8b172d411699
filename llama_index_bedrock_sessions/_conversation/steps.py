"""One step, written into a session: its invocation, its contents in S3, its attachments, and the put."""

from __future__ import annotations

import time

from llama_index_bedrock_sessions._bedrock.client import default_invocation
from llama_index_bedrock_sessions._conversation.invocation import entered
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._journal.draft import Draft, Placed
from llama_index_bedrock_sessions._journal.encoding import envelope
from llama_index_bedrock_sessions._journal.ids import Home, Kind, Place, new_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.limits import is_small, split
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock


class StepWriter:
    """Writes steps into the sessions of one conversation.

    Every method raises NotFound and RequestRejected as the service does.
    """

    def __init__(self, reader: Reader) -> None:
        self.sessions = reader.sessions
        self._reader = reader

    def write(self, journal: Journal, draft: Draft) -> None:
        """Write a draft as the next step of the head."""
        place = self.choose_place(journal.heads[0], draft)
        self.upload(draft)
        placed = self.attach_excess(draft, place)
        composed = journal.compaction.compose(place, draft, placed, self.sessions.now())
        with self.sessions.effect():
            self.sessions.client.put(composed.step.home, journal.clock.ms, composed.payload)
        journal.stored(composed)
        self.sessions.last_ms = max(self.sessions.last_ms, journal.clock.ms)
        self._reader.keep_native_blocks(composed.step.home, composed.payload)
        self.upload(draft, again=True)  # now that a step refers to them, no process deletes them

    def choose_place(self, session: str, draft: Draft | None) -> Place:
        """Return where a draft goes: the invocation of the block of code that writes it, or the default invocation.

        The draft records the description too, because no operation returns the description of an invocation.
        """
        block = entered(self.sessions.client, self.sessions.key)
        if block is None or draft is None:
            return session, default_invocation(session)
        place = session, block.id_in(session)
        if place not in self.sessions.invocations:
            self.sessions.client.create_invocation(*place, block.description)
            self.sessions.invocations.add(place)
        draft.invocations, draft.by = {place[1]: block.description}, block.by
        return place

    def upload(self, draft: Draft | None, *, again: bool = False) -> None:
        """Have the contents of a draft in S3; `again` after its step was written."""
        media = self.sessions.settings.media
        if not (media and draft and draft.messages.contents):
            return
        begun = time.monotonic()
        media.upload(draft.messages.contents, again=again)
        if not again and 2 * (time.monotonic() - begun) > self.sessions.client.settle > 0:
            # A process that deletes objects expects the step within a settling time: see `Deletion`.
            media.upload(draft.messages.contents)

    def attach_excess(self, draft: Draft, place: Place) -> Placed:
        """Write what does not fit into the draft's own step as attachments before it; return what is where."""
        if is_small(draft.messages):
            return Placed()
        groups = split(draft.messages.blocks, sum(draft.messages.wire_sizes()))
        if len(groups) <= 1:
            return Placed()
        homes: list[Home | None] = [None]
        where: list[tuple[int, int]] = []
        for number, group in enumerate(groups):
            last = number == len(groups) - 1
            if not last:
                homes.append(self.attach(place, group))
            where += [(0 if last else len(homes) - 1, position) for position in range(len(group))]
        return Placed(tuple(homes), tuple(where), tuple(groups[-1]))

    def attach(self, place: Place, native_blocks: list[ContentBlock]) -> Home:
        """Write native blocks as an attachment; return its step."""
        ms = self.sessions.next_ms(self.sessions.last_ms)
        home = Home(*place, new_id(ms, Kind.ATTACHMENT))
        payload = [*native_blocks, envelope({"attachment": True}, {})]
        self.sessions.client.put(home, ms, payload)
        self._reader.native_blocks[home] = payload
        return home
