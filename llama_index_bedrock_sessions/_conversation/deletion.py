"""Delete a conversation, or some of its messages, from the service for good."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from datetime import datetime

from llama_index_bedrock_sessions._bedrock.errors import ATTEMPTS, NotFound, RequestRejected, attempts
from llama_index_bedrock_sessions._conversation.continuation import Continuation
from llama_index_bedrock_sessions._conversation.fork import copy_by_value
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.steps import StepWriter
from llama_index_bedrock_sessions._conversation.timeline import read_alone
from llama_index_bedrock_sessions._conversation.writer import Writer
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.ids import MessageId
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.model import Step
from llama_index_bedrock_sessions.errors import UnavailableError

logger = logging.getLogger("llama_index_bedrock_sessions")


class Deletion:
    """Deletes the sessions of one conversation. Not locked: the conversation holds the lock."""

    def __init__(self, reader: Reader, steps: StepWriter, writer: Writer, continuation: Continuation) -> None:
        self.sessions = reader.sessions
        self._reader = reader
        self._steps = steps
        self._writer = writer
        self._continuation = continuation

    def rewrite_without(self, removed: frozenset[MessageId], deleted: dict[str, None]) -> None:
        """Remove messages for good: what stays alive goes to a session by value; `deleted` gets the sessions before it.

        1. The removal is an ordinary change. A process that continues the conversation closes its session and reads it
           to its end, so from here on no session carries what is removed.
        2. The heads are closed, read to their end once lists show all of them, and copied.
        3. The sessions before are deleted, oldest first, once the directory finds the copy. A session that another
           process has opened by then may refer to them: all of that is in the copy too.
        4. The sessions of the key are found once more. One that no process has opened is deleted: its creator may have
           read what is removed before step 1. If such a process has opened one, all is done again.

        Raises:
            UnavailableError: sessions cannot be found yet, or other processes keep opening sessions.

        """
        draft = Draft(removed=removed)
        stored = self._media()
        journal = self._present()
        self._continuation.check_format(journal)
        self._continuation.check_continues(journal)
        self._writer.append(lambda _: draft, just_listed=True, ended=True)
        left: list[str] = []
        for _ in range(ATTEMPTS):
            journal = self._present()
            self.sessions.check_encryption_key(journal.heads)
            if copy_by_value(self._reader, self._continuation, journal, lambda _: draft):
                (copy,) = self._reader.known().heads
                self._wait_until_found(copy)
                self._delete(
                    self.sessions.owned({*journal.heads, *journal.plan.covers()}, journal.heads), deleted, stored
                )
                left = self._delete_late(copy, removed)
                if not left:
                    return
        raise UnavailableError(
            "Other processes open sessions at the same time, which may hold copies"
            f"{' ({})'.format(', '.join(left)) if left else ''}; call again."
        )

    def _present(self) -> Journal:
        """Return the journal of a conversation that exists. Raises UnavailableError: its sessions are not found."""
        journal = self._reader.refresh(force=True)
        if not journal.heads:
            # Deleted by another process, or moved to a session that is listed late.
            raise UnavailableError("The sessions of this conversation cannot be found just now; try again.")
        return journal

    def _wait_until_found(self, session: str) -> None:
        """Return once all processes know a session and its opening, and the directory finds it."""
        for _ in attempts(f"Session {session} was created and is not listed; call again."):
            self.sessions.client.wait_until_listed()
            if session in self.sessions.found():
                return

    def _delete_late(self, copy: str, removed: frozenset[MessageId]) -> list[str]:
        """Delete sessions that no process has opened; return those opened by a process that had not read a removal."""
        self.sessions.client.wait_until_listed()
        if self._continuation.close_others():
            self.sessions.client.wait_until_listed()  # so that lists show everything that was opened by then
        saw_removal, left = {copy}, []
        others = self.sessions.found().keys() - saw_removal
        for session in sorted(others, key=lambda session: (self.sessions.created_at(session), session)):
            openings = self.sessions.openings(session)
            if (
                openings
                and all(_saw_removal(step, removed, saw_removal) for step in openings)
                and not read_alone(self._reader, session).compaction.orphan_attachments(session)
            ):
                saw_removal.add(session)
            elif openings or not self.sessions.delete_unopened(session):
                left.append(session)
        return left

    def erase(self, deleted: dict[str, None]) -> None:
        """Delete every session of the key, oldest first, until none is listed; `deleted` gets those it tried."""
        journal = self._reader.refresh()
        if journal.fold.alive() and not self._continuation.is_due(journal):
            # A process that continues the head inherits an empty conversation.
            with contextlib.suppress(NotFound, RequestRejected):
                self._steps.write(journal, Draft(removed=frozenset(m.id for m in journal.fold.alive())))
        self._delete({*journal.heads, *journal.plan.covers()}, deleted, self._media(), others=True)
        self._reader.drop()

    def _delete(
        self, doomed: set[str], deleted: dict[str, None], stored: Mapping[str, datetime], *, others: bool = False
    ) -> None:
        """Delete sessions, oldest first, until none is left, and then the unreferenced ones of the objects `stored`.

        With `others`, the other sessions of the key are deleted too, and later ones that continue them or that no
        process has opened. One whose opening is listed late is kept: its conversation began after this deletion did.
        """
        has_looked = False
        last_stored = stored
        for attempt in attempts("Sessions of this conversation are still listed; call again to delete them."):
            last_stored = self._media() if attempt and others and not has_looked else last_stored
            found = self.sessions.found()
            new = [session for session in found if others and session not in doomed]
            if attempt == 0:
                doomed |= set(new)
                new = []
            openings = {s: [step.opening for step in self.sessions.openings(s) if step.opening] for s in new}
            unopened = [s for s in new if not openings[s]]
            doomed |= {s for s in new if any(not doomed.isdisjoint(opening.covers) for opening in openings[s])}
            # A session may be listed late: this process knows of it, and not that it was deleted.
            left = [s for s in doomed if s in found or (attempt == 0 and self._still_exists(s))]
            for session in sorted(left, key=lambda session: (self.sessions.created_at(session), session)):
                deleted[session] = None
                self.sessions.delete(session)
            deleted |= {session: None for session in unopened if self.sessions.delete_unopened(session)}
            if left or unopened:
                has_looked = False
            elif has_looked or not others or not self.sessions.client.settle:
                # If no session is left, every object belongs to a deleted one.
                self._delete_media(stored if found else last_stored, others=others)
                return
            else:
                self.sessions.client.wait_until_listed()
                has_looked = True

    def _still_exists(self, session: str) -> bool:
        return self.sessions.directory.owned(session, self.sessions.key) is not None

    def _media(self) -> Mapping[str, datetime]:
        media = self.sessions.settings.media
        return media.listed() if media else {}

    def _delete_media(self, stored: Mapping[str, datetime], *, others: bool) -> None:
        """Delete the objects of the conversation that were `stored`, but not those that messages refer to.

        A writer may have uploaded one of them and not written its step yet. It looks at the object at most a settling
        time before it writes the step, and what it looks at changes. So an object that is unchanged two settling times
        after it was listed has no step that lists do not show.
        """
        media = self.sessions.settings.media
        if not (media and stored):
            return
        if others:
            self.sessions.client.wait_until_listed()  # the second settling time; before a copy is found two have passed
        for _ in attempts("Other processes store the same contents at the same time; call again to delete the rest."):
            self._reader.drop()  # sessions that other processes have opened have to be known too
            # A copied conversation exists even if it is listed late; a deleted one may have begun again.
            alive = (self._reader.refresh(force=True) if others else self._present()).fold.alive()
            used = {sha256 for message in alive for sha256 in message_codec.objects(message.record)}
            self.sessions.effects += 1  # some objects may be deleted when this fails
            stored = media.delete({sha256: modified for sha256, modified in stored.items() if sha256 not in used})
            if not stored:
                return
            for _ in range(2):
                self.sessions.client.wait_until_listed()


def _saw_removal(step: Step, removed: frozenset[MessageId], saw_removal: set[str]) -> bool:
    """Whether the process that wrote an opening had read a removal, or continued nothing."""
    opening = step.opening
    if opening is None or step.newer:
        return False
    if not opening.parents or not saw_removal.isdisjoint(opening.parents):
        return True
    return removed <= opening.removed.union(*(change.removed for _, change in step.contents[:1] if change))
