"""What is done to a whole conversation: it is begun as a copy, ended, moved on, redacted, deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime

from llama_index_bedrock_sessions._bedrock import session_metadata
from llama_index_bedrock_sessions._bedrock.client import SessionInfo
from llama_index_bedrock_sessions._bedrock.errors import Gone, Refused, attempts
from llama_index_bedrock_sessions._bedrock.session_metadata import COPY
from llama_index_bedrock_sessions._conversation.continuation import METADATA, TAGS, Chain, Resolve
from llama_index_bedrock_sessions._conversation.reader import ATTEMPTS, Likeness, is_opening, nothing
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.fold import Draft, Fold
from llama_index_bedrock_sessions._journal.ids import Kind, MessageId, new_id
from llama_index_bedrock_sessions._journal.limits import Copy, drafts
from llama_index_bedrock_sessions._journal.model import Step
from llama_index_bedrock_sessions.errors import ConversationExists, UnavailableError

logger = logging.getLogger("llama_index_bedrock_sessions")


class Lifecycle(Chain):
    """The sessions of a conversation, and what is done to all of them. Not locked: its conversation holds the lock."""

    # Copies: a session of its own, which no other process opens, holds all that is alive by value

    def begin(self, copies: Sequence[Copy], draft: Draft, like: Likeness, prepare: Callable[[], object]) -> None:
        """Write messages, and last the draft, to a key that has nothing: all is there at once, or nothing.

        Nothing is until the opening step is stored. The session is made like those of another conversation. `prepare`
        is called before anything is written.

        Raises:
            ConversationExists: there are messages or state, or another process begins a copy at the same moment. Of
                two at once at most one succeeds, if sessions are not listed late.

        """
        wanted = drafts(copies, draft)

        def unless_taken(fold: Fold) -> Draft:
            if fold.ended():
                raise self._conversation_ended()
            self._refuse_other_keys(fold)
            if not fold.is_empty():
                raise ConversationExists(f"There is a conversation {self.key!r} already. Take another key.")
            _number(wanted, max(self.sessions.clock.now(), fold.clock + 1))
            return draft

        for attempt in range(ATTEMPTS):
            fold = self.refresh(force=True)
            unless_taken(fold)
            if not attempt:
                prepare()
            if self._copy(fold, unless_taken, like):
                return
        raise UnavailableError(f"The conversation {self.key!r} could not be begun; try again.")

    def _copy(self, fold: Fold, resolve: Resolve, like: Likeness | None = None) -> bool:
        """Continue in a session that holds all that is alive by value; False: start again.

        With `like`, where there must be nothing to continue, no other process may have begun: what it has opened is
        found before the opening.
        """
        mine: SessionInfo | None = None
        with contextlib.suppress(Gone):
            self._close_and_read(fold, settle=like is None)
            draft = resolve(fold)
            mine = self._create(fold, like, copy=True)
            found = self._found(fold)
            void = {mine.session, *fold.heads, *fold.covers()}
            others = [info for session, info in found.items() if session not in void]
            copies = [info for info in others if COPY in info.metadata]
            # A copy may stand beside what another process opens, but not beside a copy, which may lack what it removes.
            is_alone = not any(self._has_opening(info.session) for info in (others if like else copies))
            if like and is_alone:
                is_alone = self._is_first(mine, copies)
            if is_alone and self._open(fold, mine, draft, present=found, whole=True):
                if like:
                    self._close_others()
                return True
        if mine:
            self._delete_unopened(mine.session)
        self.drop()
        return False

    def _is_first(self, mine: SessionInfo, copies: Iterable[SessionInfo]) -> bool:
        """Delete the `copies` that are not open, so that this one may be; False: one is open by now.

        Of several that are begun at the same moment the newest counts.

        Raises:
            ConversationExists: another process begins a copy that is newer.

        """
        if any((info.created, info.session) > (mine.created, mine.session) for info in copies):
            self._delete_unopened(mine.session)
            raise ConversationExists(
                f"Another process begins the conversation {self.key!r} at the same moment. Take another key."
            )
        return all(self._delete_unopened(info.session) for info in copies)

    # Ending, continuing, deleting

    def end(self, mark: Draft) -> bool:
        """Write the change that ends the conversation, and end its session; False if there is none, or it had ended."""
        fold = self.refresh(force=True)
        had_ended = fold.ended() is not None
        if fold.heads and not had_ended:
            self.append(lambda _: mark, fresh=True, ended=True)
        for head in self.known().heads:
            self._finish(head)
        return bool(fold.heads) and not had_ended

    def close(self) -> None:
        """End the session that is written, if the next change can go to another one."""
        if not self._directory.continues:
            return
        for head in self.known().heads:
            with contextlib.suppress(Gone):
                self._seal(head, "continued", self.fold)
            self._closed.add(head)

    def renew(self, older_than: int) -> bool:
        """Continue in another session if the newest is so old (ms), and there is something; return whether it was."""
        for _ in range(ATTEMPTS):
            fold = self.refresh(force=True)
            age = self.sessions.clock.now() - max((self._created[head] for head in fold.heads), default=0)
            if fold.is_empty() or age < older_than:
                return False
            self._refuse_other_keys(fold)
            if self._continue(fold, nothing, ended=True):
                return True
        raise UnavailableError("The conversation could not be continued in another session; try again.")

    def update(self, metadata: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add to the metadata and the tags of the session that is written, and of all that continue it.

        They are kept as named state too: whoever continues reads that, whatever he has learnt of the sessions before.
        """
        said = {
            **{METADATA + name: [value] for name, value in metadata.items()},
            **{TAGS + name: [value] for name, value in tags.items()},
        }
        fold, settings = self.refresh(force=True), self.settings
        there = [self.sessions.get(head) for head in fold.heads]
        self._refuse_what_no_session_can_have(fold, there, metadata, tags)
        own_metadata, own_tags = {**settings.own_metadata, **metadata}, {**settings.own_tags, **tags}
        self.settings = dataclasses.replace(settings, own_metadata=own_metadata, own_tags=own_tags)
        if not there:
            return  # the first session will have them
        draft = Draft(state=said)
        self.append(lambda _: draft, fresh=True, ended=True)
        try:
            for head in self.known().heads:
                self._update_session(self.sessions.get(head), metadata, tags)
        except Gone:
            return  # deleted meanwhile; what continues it has them
        except Refused as refusal:
            raise refusal.error() from refusal

    def _refuse_what_no_session_can_have(
        self, fold: Fold, there: Sequence[SessionInfo], metadata: Mapping[str, str], tags: Mapping[str, str]
    ) -> None:
        """Refuse metadata and tags that are too many with those there: no session could continue these ones."""
        own, all_tags = dict(self.settings.session_metadata), dict(self.settings.tags)
        for head in there:
            own.update(session_metadata.own_metadata(head))
            all_tags.update(self._tags_of(head) if tags else {})
        session_metadata.refuse_metadata({**own, **self.settings.own_metadata, **fold.named(METADATA), **metadata})
        session_metadata.refuse_tags({**all_tags, **self.settings.own_tags, **fold.named(TAGS), **tags})

    def _update_session(self, head: SessionInfo, metadata: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Give a session what it was not created with. Raises Gone; Refused if it takes writes and not these."""
        try:
            if not metadata.items() <= head.metadata.items():
                self.sessions.update(head.session, {**head.metadata, **metadata})
            if not tags.items() <= self._tags.get(head.session, {}).items():
                self.sessions.tag(head.arn or head.session, tags)
                self._tags.pop(head.session, None)
        except Refused:
            # What has ended is being continued, by somebody who reads what was written here.
            if self.sessions.get(head.session).status == "ACTIVE":
                raise

    def rewrite(self, removed: frozenset[MessageId], deleted: dict[str, None]) -> None:
        """Remove messages for good: what stays alive goes to a session by value, those before it are `deleted`.

        1. The removal is an ordinary change. A process that continues the conversation closes its session and reads it
           to its end, so from here on it takes nothing along of what is removed.
        2. The heads are closed, read to their end once lists show all of them, and copied.
        3. The sessions before are deleted, the oldest first, once the directory finds the copy. What another process
           has opened by then may refer to them: all of that is in the copy too.
        4. What is left is found once more. A session that no process has opened is deleted: its creator may have read
           what is removed before step 1. If one was opened by such a process, all is done again.
        """
        draft = Draft(removed=removed)
        stored = self._media()
        fold = self._present()
        self._refuse_if_newer(fold)
        self._refuse_if_not_continued(fold)
        self.append(lambda _: draft, fresh=True, ended=True)
        left: list[str] = []
        for _ in range(ATTEMPTS):
            fold = self._present()
            self._refuse_other_keys(fold)
            if self._copy(fold, lambda _: draft):
                (copy,) = self.known().heads
                self._wait_until_found(copy)
                self._delete(self._ours(fold, {*fold.heads, *fold.covers()}), deleted, stored)
                left = self._unaware(copy, removed)
                if not left:
                    return
        raise UnavailableError(
            "Other processes open sessions at the same time, which may hold copies"
            f"{' ({})'.format(', '.join(left)) if left else ''}; call again."
        )

    def _present(self) -> Fold:
        """Return the fold of a conversation that is there. Raises UnavailableError: its sessions are not found."""
        fold = self.refresh(force=True)
        if not fold.heads:
            # Deleted by another process, or moved to a session that is listed late.
            raise UnavailableError("The sessions of this conversation cannot be found just now; try again.")
        return fold

    def _wait_until_found(self, session: str) -> None:
        """Return once all processes know a session and its opening, and the directory finds it."""
        for _ in range(ATTEMPTS):
            self.sessions.wait_until_listed()
            if session in self._found():
                return
        raise UnavailableError(f"Session {session} was created and is not listed; call again.")

    def _unaware(self, copy: str, removed: frozenset[MessageId]) -> list[str]:
        """Delete what no process has opened; return the sessions opened by one that had not read a removal."""
        self.sessions.wait_until_listed()
        if self._close_others():
            self.sessions.wait_until_listed()  # so that all that was opened by then is seen
        aware, unaware = {copy}, []
        for session in sorted(self._found().keys() - aware, key=lambda session: (self._created_at(session), session)):
            openings = self._openings(session)
            # A process that continued nothing had read nothing, and one that had read an aware opening is aware.
            if (
                openings
                and all(
                    not step.newer
                    and step.opening
                    and (
                        not step.opening.parents
                        or not aware.isdisjoint(step.opening.parents)
                        or removed <= step.opening.removed.union(*(c.removed for _, c in step.contents[:1] if c))
                    )
                    for step in openings
                )
                and not self._alone(session).strays(session)
            ):
                aware.add(session)
            elif openings or not self._delete_unopened(session):
                unaware.append(session)
        return unaware

    def _openings(self, session: str) -> list[Step]:
        listed = (s.home for s in self._list_or_nothing(session) if is_opening(s.home.step))
        return [step for home in listed if (step := self._read_one(home))]

    def erase(self, deleted: dict[str, None]) -> None:
        """Delete every session of the key, oldest first, until none is listed; those that it tried go to `deleted`."""
        fold = self.refresh()
        if fold.alive() and not self._must_continue(fold):
            # A process that continues the head inherits an empty conversation.
            with contextlib.suppress(Gone, Refused):
                self._write(fold, Draft(removed=frozenset(m.id for m in fold.alive())))
        self._delete({*fold.heads, *fold.covers()}, deleted, self._media(), others=True)
        self.drop()

    def _delete(
        self, doomed: set[str], deleted: dict[str, None], stored: Mapping[str, datetime], *, others: bool = False
    ) -> None:
        """Delete sessions, oldest first, until none is left, and then the unreferenced ones of the objects `stored`.

        With `others`, the other sessions of the key are deleted too, and later ones that continue them or that no
        process has opened. One whose opening is listed late is kept: its conversation began after this deletion did.
        """
        looked = False
        last_stored = stored
        for attempt in range(ATTEMPTS):
            last_stored = self._media() if attempt and others and not looked else last_stored
            found = self._found()
            new = [s for s in found if others and s not in doomed]
            if attempt == 0:
                doomed |= set(new)
                new = []
            openings = {s: [step.opening for step in self._openings(s) if step.opening] for s in new}
            unopened = [s for s in new if not openings[s]]
            doomed |= {s for s in new if any(not doomed.isdisjoint(opening.covers) for opening in openings[s])}
            # A session may be listed late: what is known of it is that it has not been deleted.
            left = [s for s in doomed if s in found or (attempt == 0 and self._directory.owned(s, self.key))]
            for session in sorted(left, key=lambda session: (self._created_at(session), session)):
                deleted[session] = None
                self._delete_session(session)
            deleted |= {session: None for session in unopened if self._delete_unopened(session)}
            if left or unopened:
                looked = False
            elif looked or not others or not self.sessions.settle:
                # If no session is left, every object is one of those deleted.
                self._delete_media(stored if found else last_stored, others=others)
                return
            else:
                self.sessions.wait_until_listed()
                looked = True
        raise UnavailableError("Sessions of this conversation are still listed; call again to delete them.")

    def _created_at(self, session: str) -> int:
        return self._created.get(session) or self._directory.info(session).created

    def _delete_session(self, session: str) -> None:
        try:
            try:
                self._delete_closed(session)
            except Refused:  # it is ACTIVE
                self._seal(session, "deleted")
                self._delete_closed(session)
        except Gone:
            pass  # deleted by another process, which may have died before it removed the entry
        except Refused:
            # A process wrote in between; the next look shows it.
            logger.info("conversation %s: session %s is not deleted yet", self.name, session)
            return
        self._directory.remove(session, self.key)
        logger.info("conversation %s: session %s is deleted", self.name, session)

    def _delete_closed(self, session: str) -> None:
        with self._effect():
            self.sessions.delete(session)

    def _media(self) -> Mapping[str, datetime]:
        return self.settings.media.listed() if self.settings.media else {}

    def _delete_media(self, stored: Mapping[str, datetime], *, others: bool) -> None:
        """Delete the objects of the conversation that were `stored`, but not those that messages refer to.

        A writer may have uploaded one of them and not written its step yet. It looks at the object at most a settling
        time before it writes the step, and what it looks at changes. So an object that is unchanged two settling times
        after it was listed has no step that lists do not show.
        """
        media = self.settings.media
        if not (media and stored):
            return
        if others:
            self.sessions.wait_until_listed()  # the second settling time; before a copy is found two have passed
        for _ in attempts("Other processes store the same contents at the same time; call again to delete the rest."):
            self.drop()  # what others have opened has to be known too
            # After a copy it continues, even if that is listed late; after a deletion it may have begun again.
            alive = (self.refresh(force=True) if others else self._present()).alive()
            used = {sha256 for message in alive for sha256 in message_codec.objects(message.record)}
            self.effects += 1  # of several objects, some may be deleted when this fails
            stored = media.delete({sha256: modified for sha256, modified in stored.items() if sha256 not in used})
            if not stored:
                return
            for _ in range(2):
                self.sessions.wait_until_listed()


def _number(several: Iterable[Draft], ms: int) -> None:
    """Give drafts ids in their order."""
    for number, draft in enumerate(several):
        draft.id = new_id(ms + number, Kind.CHANGE)
