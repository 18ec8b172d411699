"""Close the open session of a conversation and continue in the next.

Theory of operation. A session ends after an idle hour, 24 hours or 1,000 steps, and is deleted after 30 days. A
conversation has no end: the process that writes next continues its open sessions, the heads, in a new session.

1. Close. Write a closing step to each head, and end it. From here on the heads take no writes, so what is read next is
   all they will ever hold.
2. Read the heads to their end. Nothing is written from memory.
3. Choose. List the sessions of the key. If another process has opened one, read that and start again.
   Otherwise take the earliest session that no process has opened: several writers choose the same one. If there is
   none, create one and list again.
4. Open. Write the opening step. It names what it continues (`parents`, `covers`), what was removed, and which steps of
   earlier sessions still count (`segments`); what is about to leave retention is carried by value.

| a process finds                            | it                                                            |
|--------------------------------------------|---------------------------------------------------------------|
| an opened session beside the heads         | reads it and starts again                                     |
| an unopened session that takes writes      | opens it, even if another process created it                  |
| an unopened session that takes no writes   | passes over it                                                |
| an unopened session marked as a copy       | passes over it: only its creator opens it                     |
| two heads, opened where lists were late    | joins them: both are closed, read, and parents of the next    |

Two processes can open the same session: its two openings are one journal, as every step of a session is. Two processes
can open different sessions only if neither list shows the other's session. Each reads the other's later (see
`Reader._unsettled`), and the next write joins them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable
from typing import Any

from llama_index_bedrock_sessions._bedrock.client import SessionInfo, default_invocation
from llama_index_bedrock_sessions._bedrock.directory.session_id import session_closed
from llama_index_bedrock_sessions._bedrock.errors import ATTEMPTS, NotFound, RequestRejected
from llama_index_bedrock_sessions._bedrock.session_metadata import COPY
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import (
    DAY,
    HOUR,
    METADATA,
    STEPS_PER_SESSION,
    TAGS,
    SessionTemplate,
    is_opening,
)
from llama_index_bedrock_sessions._conversation.steps import StepWriter
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.compaction import SAFE_AGE
from llama_index_bedrock_sessions._journal.draft import Composed, Draft, Placed
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, Place, parse_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.limits import split
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import BUDGET, Step
from llama_index_bedrock_sessions.errors import BedrockSessionsError, NewerFormatError

logger = logging.getLogger("llama_index_bedrock_sessions")
CONTINUE_AT = 250
"""Steps from which a session is continued in another: botocore takes 55 ms to parse a list of 1,000."""
Resolve = Callable[[Journal], Draft | None]
"""Returns the change to write, given what is known; None if there is nothing to write."""


class Continuation:
    """Continues a conversation in its next session."""

    def __init__(self, reader: Reader, steps: StepWriter) -> None:
        self.sessions = reader.sessions
        self._reader = reader
        self._steps = steps

    def is_due(self, journal: Journal) -> bool:
        """Whether the next step has to go to another session."""
        if len(journal.heads) != 1 or journal.heads[0] in self.sessions.closed:
            return True
        if not self.sessions.directory.continues:
            return False
        head = journal.heads[0]
        now = self.sessions.now()
        idle = now - journal.plan.latest.get(head, now) > HOUR
        is_closed = bool(journal.plan.closings or journal.fold.ended())
        return (
            idle
            or is_closed
            or len(journal.plan.listed[head]) >= CONTINUE_AT
            or now - self.sessions.created[head] > DAY
        )

    def continue_in_new_session(self, journal: Journal, resolve: Resolve, *, ended: bool = False) -> bool:
        """Write what `resolve` returns in a new session that continues every head; False: start again.

        A conversation that has ended by the time its heads are closed is continued only if `ended`.
        """
        try:
            self.close_and_read(journal)
            return (ended or not journal.fold.ended()) and self._open_next(journal, resolve(journal))
        except NotFound:
            self._reader.drop()
            return False

    def template(self) -> SessionTemplate:
        """Return what the next session is created from."""
        return template_of(self._reader.known())

    # 1. Close, 2. read

    def close_and_read(self, journal: Journal, *, settle: bool = False) -> None:
        """Close the heads and read them to their end. Raises NotFound.

        With `settle` it first waits until lists show every step, because what is not read will be deleted.
        """
        self.check_format(journal)
        self.check_continues(journal)
        for head in journal.heads:
            if head not in self.sessions.closed:
                self.sessions.seal(head, "deleted" if settle else "continued", journal.clock.ms)
            elif settle:
                self.sessions.finish(head)
        if settle:
            self.sessions.client.wait_until_listed()
        for head in journal.heads:
            journal.plan.saw_list(head, self.sessions.listed(head))
        self._reader.get(journal, [], journal.plan.parents())
        self._reader.read(journal)
        self.check_format(journal)

    def check_format(self, journal: Journal) -> None:
        """Raise NewerFormatError if a continuation would leave steps behind that this release cannot read."""
        if journal.plan.newer:
            raise NewerFormatError(
                f"The conversation {self.sessions.key!r} holds steps of a newer format, which would be left behind: a "
                "session of it is full or closed, and only the newer release can continue it in another."
            )

    def check_continues(self, journal: Journal) -> None:
        """Raise SessionClosed if the conversation is one session that is used by its id."""
        if self.sessions.directory.continues:
            return
        key = self.sessions.key
        if not journal.heads:
            raise session_closed(key, "is not there (any more)")
        status = self.sessions.client.get(key).status
        if status == "ACTIVE" and len(journal.plan.listed[key]) < STEPS_PER_SESSION:
            raise session_closed(key, "would have to be left for a new one")
        raise session_closed(key, f"takes no more messages (it is {'full' if status == 'ACTIVE' else status})")

    # 3. Choose

    def _open_next(self, journal: Journal, draft: Draft | None) -> bool:
        void: set[str] = set(journal.heads) | set(journal.plan.covers())
        mine: SessionInfo | None = None
        for attempt in range(ATTEMPTS):
            # For the first session of a key the search that found nothing has just been made.
            searches = attempt or journal.heads or self._reader.has_unopened
            searched = self.sessions.now()
            found = self.sessions.found(journal.heads) if searches else {}
            others = [info for session, info in found.items() if session not in void]
            # Not of the one just created: if another process has opened it, two openings of a session are one journal.
            if any(self.sessions.has_opening(i.session) for i in others if not mine or i.session != mine.session):
                self._reader.drop()
                return False
            if mine and mine.session not in found:
                others.append(mine)
            candidates = sorted((i for i in others if COPY not in i.metadata), key=lambda i: (i.created, i.session))
            if not candidates:
                mine = self.sessions.create(template_of(journal))
                continue
            parents = [self.sessions.client.get(head) for head in journal.heads]
            for info in candidates:
                is_mine = mine is not None and info.session == mine.session
                if not is_mine and not self.sessions.may_open(info.session, parents):
                    logger.info("conversation %s: passes over session %s, unopened", self.sessions.name, info.session)
                elif self.open(journal, info, draft, present=found):
                    settle_ms = self.sessions.client.settle * 1000
                    is_late = self.sessions.now() - searched > settle_ms > 0
                    if len(candidates) < len(others) or is_late:
                        self.close_others()
                    return True
                # Another process may have opened it since: another session beside it would be a second head.
                if self.sessions.has_opening(info.session):
                    self._reader.drop()
                    return False
                void.add(info.session)
            mine = None
        return False

    def close_others(self) -> bool:
        """Close what other processes have opened at the same time; return whether there was any.

        Every process that knows one of the heads then looks for the others. Called in three cases: a copy
        was opened, a copy was passed over (one of the two finds both sessions open), or an opening came much later
        than the search for other sessions.
        """
        others = self._reader.others(self._reader.known())
        heads = [session for session in others if self.sessions.has_opening(session)]
        for head in heads:
            with contextlib.suppress(NotFound):
                self.sessions.seal(head, "continued")
        if heads:
            self._reader.drop()
        return bool(heads)

    # 4. Open

    def open(
        self,
        journal: Journal,
        info: SessionInfo,
        draft: Draft | None,
        *,
        present: Iterable[str],
        by_value: bool = False,
    ) -> bool:
        """Write the opening step; False if the session does not take it.

        `present` are the sessions of the key that were found. With `by_value`, all that is alive is carried by value.
        Then nothing refers to earlier sessions.
        """
        self.sessions.created[info.session] = info.created
        place = info.session, default_invocation(info.session)
        undo: Callable[[], None] = noop
        try:
            self.sessions.client.create_invocation(*place)
            place = self._steps.choose_place(info.session, draft)
            self._steps.upload(draft)
            placed = self._steps.attach_excess(draft, place) if draft else Placed()
            self._renew_media(journal)
            undo = self._copy_native_blocks(journal, place, draft.removed if draft else frozenset(), by_value=by_value)
            composed = self._compose_opening(journal, draft, placed, place, present, by_value=by_value)
            # An opening that only continues contains nothing that the caller asked for.
            with self.sessions.effect() if draft else contextlib.nullcontext():
                self.sessions.client.put(composed.step.home, journal.clock.ms, composed.payload)
        except (NotFound, RequestRejected) as refusal:
            undo()
            logger.info(
                "conversation %s: session %s takes no opening: %s",
                *(self.sessions.name, info.session, getattr(refusal, "code", "it is gone")),
            )
            self._raise_if_own_fault(info.session, refusal)
            return False
        except BaseException:
            undo()  # the copies are in a session that may never be opened
            raise
        self.sessions.last_ms = max(self.sessions.last_ms, journal.clock.ms)
        before = ", ".join(journal.heads)
        logger.info(
            "conversation %s: continues in session %s after %s"
            if before
            else "conversation %s: begins in session %s%s",
            *(self.sessions.name, info.session, before),
        )
        try:
            self._adopt(composed.step, composed.payload)
        except BedrockSessionsError as error:
            # The step is stored; the next read reports that it cannot be read now.
            name = type(error).__name__
            logger.info("conversation %s: cannot be read after it was written (%s)", self.sessions.name, name)
            self._reader.drop()
        self._steps.upload(draft, again=True)  # now that a step refers to them, no process deletes them
        if self._reader.journal and self._reader.journal.fold.ended():
            self.sessions.finish(info.session)
        return True

    def _raise_if_own_fault(self, session: str, refusal: NotFound | RequestRejected) -> None:
        """Raise a refusal that no other session would cure: this one is ACTIVE, unopened, and has room."""
        if isinstance(refusal, NotFound) or not self.sessions.is_active(session):
            return
        steps = self.sessions.listed(session)
        if len(steps) < STEPS_PER_SESSION and not any(is_opening(s.home.step) for s in steps):
            raise refusal.error() from refusal

    def _compose_opening(
        self,
        journal: Journal,
        draft: Draft | None,
        placed: Placed,
        place: Place,
        present: Iterable[str],
        *,
        by_value: bool,
    ) -> Composed:
        """Return the opening. It carries what is about to leave retention; what is too much goes to attachments."""
        now, created = self.sessions.now(), self._created_of(journal)
        *groups, last = journal.compaction.expiring_segments(created, now, by_value=by_value)
        dead = draft.removed if draft else frozenset()
        if draft and sum(journal.compaction.size(segment) for segment in last) + draft.size() > BUDGET:
            groups, last = [*groups, last], []
        copies = []
        for group in filter(None, groups):
            composed, inherited = journal.compaction.copy(place, group, now, dead)
            self.sessions.client.put(composed.step.home, journal.clock.ms, composed.payload)
            copies.append(inherited)
        for earlier in draft.preceding if draft else ():
            composed, inherited = journal.compaction.attachment_for(
                place, earlier, self._steps.attach_excess(earlier, place), now
            )
            self.sessions.client.put(composed.step.home, journal.clock.ms, composed.payload)
            self._reader.keep_native_blocks(composed.step.home, composed.payload)
            copies.append(inherited)
        late = 30 * int(self.sessions.client.settle * 1000)  # a minute on AWS: ten times what lists need at most
        opening = dataclasses.replace(journal.compaction.opening(created, now, present, late), segments=tuple(copies))
        copied = [segment for group in groups for segment in group]
        return journal.compaction.compose(place, draft, placed, now, opening=opening, forced=last, copied=copied)

    def _created_of(self, journal: Journal) -> dict[str, int]:
        return {head: self.sessions.created[head] for head in journal.heads}

    def _copy_native_blocks(
        self, journal: Journal, place: Place, dead: frozenset[MessageId], *, by_value: bool
    ) -> Callable[[], None]:
        """Copy native blocks that are about to leave retention (or all) into attachments of a session; return an undo.

        Those of messages that are about to be `dead` are left behind.
        """
        found = journal.compaction.old_native_blocks(
            self._created_of(journal), self.sessions.now(), dead, by_value=by_value
        )
        old = [(home, n) for home, n in found if home.session != place[0]]
        # Parts of the named state are read only when they are used or copied.
        known = self._reader.native_blocks
        unread = dict.fromkeys(
            home for home, _ in old if home not in known and self.sessions.owns(home.session, journal.heads)
        )
        blocks = known | {home: step[0] for home, step in self.sessions.client.fetch(unread) if step}
        old = [(home, n) for home, n in old if n < len(blocks.get(home, ()))]
        moves: dict[tuple[Home, int], tuple[Home, int]] = {}
        for part in split([blocks[home][n] for home, n in old], 0):
            if part:
                attachment = self._steps.attach(place, part)
                moves |= {old[len(moves) + n]: (attachment, n) for n in range(len(part))}
        return journal.fold.relocate_blocks(moves) if moves else noop

    def _adopt(self, opening: Step, payload: list[ContentBlock]) -> None:
        """Start a new journal from an opening step that was just written; what it names has been read."""
        journal = self._reader.new_journal([opening.home.session])
        for parent in opening.opening.parents if opening.opening else ():
            journal.plan.saw_list(parent, ())
        journal.plan.saw_list(opening.home.session, [Listed(opening.home, self.sessions.last_ms)])
        journal.absorb(opening)
        self._reader.keep_native_blocks(opening.home, payload)
        self._reader.read(journal)
        self._reader.switch_to(journal)
        self._reader.unlisted = 0

    def _renew_media(self, journal: Journal) -> None:
        """Make the contents in S3 that are alive live as long as the session that is about to be opened."""
        oldest = self.sessions.now() - SAFE_AGE
        of_old = [m for m in journal.fold.alive() if (parsed := parse_id(m.id[0])) and parsed.ms < oldest]
        if not (old := {sha256 for message in of_old for sha256 in message_codec.objects(message.record)}):
            return
        if media := self.sessions.settings.media:
            media.renew(old)
        else:
            logger.warning("%d contents in S3 are not renewed: the chat store was made without media=", len(old))


def template_of(journal: Journal) -> SessionTemplate:
    """Return what the session that continues these heads is created from."""
    return SessionTemplate(tuple(journal.heads), journal.fold.named(METADATA), journal.fold.named(TAGS))


def noop(*_: Any) -> None:
    """Do nothing: an undo with nothing to undo, a change not made."""
