"""The sessions of one conversation, written in the newest and continued in the next.

Here are the rules by which a conversation outlives its sessions; how they are read is in `reader.py`, what is done to
all of them at once in `deletion.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from llama_index_bedrock_sessions._bedrock import session_metadata
from llama_index_bedrock_sessions._bedrock.client import SessionInfo, default_invocation
from llama_index_bedrock_sessions._bedrock.directory.session_id import session_closed
from llama_index_bedrock_sessions._bedrock.errors import Gone, Refused
from llama_index_bedrock_sessions._bedrock.session_metadata import COPY, DIRECTORY, FORMAT, KEY, NAMESPACE, ORIGIN
from llama_index_bedrock_sessions._conversation.invocation import entered
from llama_index_bedrock_sessions._conversation.reader import (
    ATTEMPTS,
    DAY,
    HOUR,
    STEPS_PER_SESSION,
    Likeness,
    Reader,
    is_opening,
    nothing,
)
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.encoding import envelope
from llama_index_bedrock_sessions._journal.fold import SAFE_AGE, Composed, Draft, Fold, Listed, Placed
from llama_index_bedrock_sessions._journal.ids import Home, Kind, MessageId, Place, claim_place, new_id, parse_id
from llama_index_bedrock_sessions._journal.limits import is_small, json_size, split
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import BUDGET, VERSION, Change, Step
from llama_index_bedrock_sessions._journal.values import dump
from llama_index_bedrock_sessions.errors import (
    BedrockSessionsError,
    ConversationEnded,
    ForeignSessionError,
    NewerFormatError,
    UnavailableError,
)

logger = logging.getLogger("llama_index_bedrock_sessions")
CONTINUE_AT = 250
"""Steps from which a session is continued in another: botocore takes 55 ms to parse a list of 1,000."""
LIST_AFTER = 16
"""Appends without a list after which a writer lists again, so that several writers gather what the others left."""
CLAIM_LOOKS = 3
"""Times to get a claim whose invocation another process has created: it may be about to be written.

Of 150 pairs of loaders at once, 7 % closed a session in vain with three looks, and 27 % with one.
"""
METADATA, TAGS = "session/metadata/", "session/tags/"
"""Named state that begins so is metadata and tags that were added to the sessions of a conversation."""
Resolve = Callable[[Fold], Draft | None]


class Chain(Reader):
    """Writes the sessions of a conversation. Not locked: its conversation holds the lock."""

    effects = 0
    """How often something was, or may have been, stored or deleted of what was asked for."""

    @contextlib.contextmanager
    def _effect(self) -> Iterator[None]:
        """Count a call by which an operation happens, unless it is known not to have been carried out."""
        try:
            yield
        except BedrockSessionsError as error:
            self.effects += error.may_have_happened
            raise
        self.effects += 1

    # Appending

    def append(self, resolve: Resolve, *, fresh: bool = False, whole: bool = True, ended: bool = False) -> None:
        """Write what `resolve` makes of the fold, in this session or the next; `fresh`: it has just been listed.

        `whole`: `resolve` needs archived messages too. `ended`: also to a conversation that has ended.
        """
        for fold in self._writable(resolve, fresh=fresh, whole=whole, ended=ended):
            draft = resolve(fold)
            if draft is None:
                return
            try:
                self._write(fold, draft)
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            self._unlisted += 1
            return

    def _writable(
        self, resolve: Resolve = nothing, *, fresh: bool = False, whole: bool = True, ended: bool = False
    ) -> Iterator[Fold]:
        """Yield what is known while there is one session that seems to take writes.

        Where the conversation has to continue in another session, what `resolve` makes of the fold is written as that
        is opened, and nothing more is yielded.

        Raises:
            ConversationEnded: it was ended, and not `ended`; a list has confirmed that it was not reopened.
            UnavailableError: no session was found or opened that takes writes.

        """
        looked = fresh
        for _ in range(ATTEMPTS):
            if self.fold is None or self._unlisted >= LIST_AFTER or not (self.fold.heads or fresh):
                self.refresh(whole=whole)
            fold, fresh = self.known(whole=whole), False
            self._refuse_other_keys(fold)
            if fold.ended() and not ended:
                if looked:
                    raise self._conversation_ended()
                looked = bool(self.refresh(force=True, whole=whole))
            elif not self._must_continue(fold):
                yield fold
            elif not self._continue(fold, resolve, ended=ended):
                looked = False
            elif resolve is not nothing:
                return
        raise UnavailableError("The conversation could not be continued in a session that takes writes; try again.")

    def _conversation_ended(self) -> ConversationEnded:
        return ConversationEnded(
            f"The conversation {self.key!r} was ended and takes no more messages. Nothing was written. "
            + (
                "Call reopen() of the conversation first."
                if self._directory.continues
                else "A session that is used by its id cannot be reopened."
            )
        )

    def _must_continue(self, fold: Fold) -> bool:
        if len(fold.heads) != 1 or fold.heads[0] in self._closed:
            return True
        if not self._directory.continues:
            return False
        head = fold.heads[0]
        steps = fold.listed[head]
        now = self.sessions.clock.now()
        idle = now - fold.latest.get(head, now) > HOUR
        is_closed = bool(fold.closings or fold.ended())
        return idle or is_closed or len(steps) >= CONTINUE_AT or now - self._created[head] > DAY

    def _write(self, fold: Fold, draft: Draft) -> None:
        place = self._choose_place(fold.heads[0], draft)
        self._upload(draft)
        placed = self._place(draft, place)
        composed = fold.compose(place, draft, placed, self.sessions.clock.now())
        with self._effect():
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
        fold.stored(composed)
        self._clock = max(self._clock, fold.clock)
        self._keep_natives(composed.step.home, composed.payload)
        self._upload(draft, again=True)  # now that they are referred to, nobody deletes them

    def _choose_place(self, session: str, draft: Draft | None) -> Place:
        """Return where a draft goes: into the invocation of the block that it is written in, or the default one.

        No operation returns the description of an invocation, so the draft says it too. Raises Gone, Refused.
        """
        block = entered(self.sessions, self.key)
        if block is None or draft is None:
            return session, default_invocation(session)
        place = session, block.id_in(session)
        if place not in self._invocations:
            self.sessions.create_invocation(*place, block.description)
            self._invocations.add(place)
        draft.invocations, draft.by = {place[1]: block.description}, block.by
        return place

    def _after_refusal(self, fold: Fold, refusal: Gone | Refused) -> None:
        """Find out what a refusal means: never from the error, always from the session's status."""
        head = fold.heads[0]
        try:
            status = self.sessions.get(head).status
        except Gone:
            logger.info("conversation %s: session %s is gone; looking for another", self.name, head)
            self.drop()
            return
        logger.info(
            "conversation %s: session %s, which is %s, has refused a write: %s",
            *(self.name, head, status, getattr(refusal, "code", "not found")),
        )
        if status != "ACTIVE":
            # A session that is not ACTIVE and has refused a write takes none: no need to close it.
            self._closed.add(head)
            return
        if isinstance(refusal, Gone):
            self._invocations.clear()
            with contextlib.suppress(Gone, Refused):  # the next put says what is wrong
                self.sessions.create_invocation(head, default_invocation(head))
            return
        fold.saw_list(head, self._list(head))
        if len(fold.listed[head]) < STEPS_PER_SESSION:
            raise refusal.error() from refusal
        self._closed.add(head)

    # Writing beside the changes

    def append_with(self, texts: Sequence[str], draft: Callable[[list[tuple[Home, int]]], Draft]) -> None:
        """Write texts as attachments, each a step, and then the draft that refers to them.

        All in one session: redact() copies what is referred to, and deletes the rest.
        """
        if not texts:
            alone = draft([])
            self.append(lambda _: alone, fresh=True)
            return
        for fold in self._writable():
            place = (fold.heads[0], default_invocation(fold.heads[0]))
            try:
                self._write(fold, draft([(self._attach(place, [{"text": text}]), 0) for text in texts]))
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            self._unlisted += 1
            return

    def claim(self, of: str, resolve: Resolve) -> Change | None:
        """Write what `resolve` makes of the fold, unless another claims `of` (an id of ours) now: return his change.

        Of all who call this, in whatever processes, at most one is returned None. What makes it so is that an
        invocation is created once (the second CreateInvocation of an id is refused: strongly inferred, AWS's own client
        is built on it), and that a session takes no writes once it has ended (documented). In the head everybody
        derives the same invocation. Who has created it writes the claim there. Who has not, or cannot tell since the
        reply was lost, looks for the claim; if there is none he closes the head, so that there never will be one, and
        all go on in the next. What a put of a known step id does is unknown, and does not matter.

        Two heads that were opened at the same moment are told by a look after the claim: who claims later sees the
        other's. If both see both, neither has it. (Where the service lists new sessions late, that look can miss one.)
        What was claimed before is for `resolve` to see, which raises then; that what is known is up to date is not
        needed for what is said here.
        """
        for fold in self._writable():
            head = fold.heads[0]
            try:
                # Parents take no writes any more, but what they took last may be listed late.
                before = self._claims(of, fold.parents())
                draft = resolve(fold)
                if before or draft is None:
                    return next(iter(before), None)
                home = Home(head, *claim_place(of, head))
                if not self.sessions.create_invocation(*home[:2]):
                    theirs = next((claim for _ in range(CLAIM_LOOKS) for claim in self._claims(of, [head])), None)
                    if theirs:
                        return theirs
                    self._continue(fold, nothing)
                    continue
                composed = fold.bare(home, draft, self.sessions.clock.now())
                with self._effect():
                    self.sessions.put(home, fold.clock, composed.payload)
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            fold.stored(composed)
            self._clock = max(self._clock, fold.clock)
            return next(iter(self._claims(of, self._others(fold))), None)
        return None

    def _claims(self, of: str, sessions: Iterable[str]) -> list[Change]:
        """Return the claims that are in some sessions, however late they are listed."""
        found = self.sessions.fetch(Home(session, *claim_place(of, session)) for session in sessions)
        steps = [read_step(home, *step, skip_newer=self.settings.skip_newer) for home, step in found if step]
        return [change for step in steps for _, change in step.contents[:1] if change]

    # Continuing in another session

    def _continue(self, fold: Fold, resolve: Resolve, *, ended: bool = False) -> bool:
        """Write in a new session that continues every head (or in the first one); False: start again.

        Nothing is written from memory: the heads are closed first and then read to their end. One that has ended by
        then is continued only if `ended`.
        """
        try:
            self._close_and_read(fold)
            return (ended or not fold.ended()) and self._open_next(fold, resolve(fold))
        except Gone:
            self.drop()
            return False

    def _close_and_read(self, fold: Fold, *, settle: bool = False) -> None:
        """Close the heads and read them to their end; `settle`: what is not read then will be deleted. Raises Gone."""
        self._refuse_if_newer(fold)
        self._refuse_if_not_continued(fold)
        for head in fold.heads:
            if head not in self._closed:
                self._seal(head, "deleted" if settle else "continued", fold)
            elif settle:
                self._finish(head)
        if settle:
            self.sessions.wait_until_listed()
        for head in fold.heads:
            fold.saw_list(head, self._list(head))
        self._get(fold, [], fold.parents())
        self._read(fold)
        self._refuse_if_newer(fold)

    def _refuse_if_newer(self, fold: Fold) -> None:
        if fold.newer:
            raise NewerFormatError(
                f"The conversation {self.key!r} holds steps of a newer format, which would be left behind: a "
                "session of it is full or closed, and only the newer release can continue it in another."
            )

    def _refuse_if_not_continued(self, fold: Fold) -> None:
        if self._directory.continues:
            return
        if not fold.heads:
            raise session_closed(self.key, "is not there (any more)")
        status = self.sessions.get(self.key).status
        if status == "ACTIVE" and len(fold.listed[self.key]) < STEPS_PER_SESSION:
            raise session_closed(self.key, "would have to be left for a new one")
        raise session_closed(self.key, f"takes no more messages (it is {'full' if status == 'ACTIVE' else status})")

    def _seal(self, session: str, reason: str, fold: Fold | None = None) -> None:
        """Write a closing step and end the session, until that succeeds or the closing step is refused. Raises Gone."""
        for _ in range(ATTEMPTS):
            if self._try_to_seal(session, reason, fold):
                return
        raise UnavailableError(f"Session {session} cannot be ended; try again.")

    def _try_to_seal(self, session: str, reason: str, fold: Fold | None) -> bool:
        try:
            self._put_closing(session, reason, fold)
        except Refused:
            # DeleteSession refuses what is still ACTIVE: a full session, say.
            return reason == "continued" or self._has_ended(session)
        except Gone:
            # The session is gone, which EndSession will say, or never had our invocation.
            return self._has_ended(session)
        return self.sessions.end(session)

    def _put_closing(self, session: str, reason: str, fold: Fold | None) -> None:
        ms = max(self.sessions.clock.now(), (fold.clock if fold else self._clock) + 1)
        home = Home(session, default_invocation(session), new_id(ms, Kind.CLOSING))
        self.sessions.put(home, ms, [envelope({"closing": {"reason": reason}}, {})])

    def _has_ended(self, session: str) -> bool:
        """End a session; return whether it takes no more writes."""
        return self.sessions.end(session) or self.sessions.get(session).status != "ACTIVE"

    def _open_next(self, fold: Fold, draft: Draft | None) -> bool:
        void: set[str] = set(fold.heads) | set(fold.covers())
        mine: SessionInfo | None = None
        for attempt in range(ATTEMPTS):
            # The first session of a key: the look that found nothing to take has just been taken.
            look = attempt or fold.heads or self._unopened
            looked = self.sessions.clock.now()
            found = self._found(fold) if look else {}
            others = [info for session, info in found.items() if session not in void]
            # Not of the one just created: if another process has opened it, two openings of a session are one fold.
            if any(self._has_opening(info.session) for info in others if not mine or info.session != mine.session):
                self.drop()
                return False
            if mine and mine.session not in found:
                others.append(mine)
            candidates = sorted((i for i in others if COPY not in i.metadata), key=lambda i: (i.created, i.session))
            if not candidates:
                mine = self._create(fold)
                continue
            parents = {head: self.sessions.get(head) for head in fold.heads}
            for info in candidates:
                if not self._may_open(info, mine, parents):
                    logger.info("conversation %s: passes over session %s, unopened", self.name, info.session)
                elif self._open(fold, info, draft, present=found):
                    is_late = self.sessions.clock.now() - looked > self.sessions.settle * 1000 > 0
                    if len(candidates) < len(others) or is_late:
                        self._close_others()
                    return True
                # Another process may have opened it since: another one beside it would be a second head.
                if self._has_opening(info.session):
                    self.drop()
                    return False
                void.add(info.session)
            mine = None
        return False

    def _close_others(self) -> bool:
        """Close what other processes have opened at the same time; return whether there was any.

        All that know one of the heads look for the others then. A process that opens a copy looks afterwards, and one
        that has passed over the copy does too: one of them finds both open. So does one that opened a session much
        later than it had looked for others.
        """
        heads = [session for session in self._others(self.known()) if self._has_opening(session)]
        for head in heads:
            with contextlib.suppress(Gone):
                self._seal(head, "continued")
        if heads:
            self.drop()
        return bool(heads)

    def _delete_unopened(self, session: str) -> bool:
        """Delete a session that no process has opened; False if one has, or it cannot be deleted."""
        try:
            if self._has_opening(session):
                return False
            self._seal(session, "deleted")
            self.sessions.wait_until_listed()
            if self._has_opening(session):
                return False
            self.sessions.delete(session)
        except Refused:
            return False
        except Gone:
            pass
        self._directory.remove(session, self.key)
        return True

    def _create(self, fold: Fold, like: Likeness | None = None, *, copy: bool = False) -> SessionInfo:
        """Create a session with what was said for this conversation, what the one before had, and the store's own.

        One marked as a `copy` is opened by no other process.
        """
        settings = self.settings
        had: dict[str, str] = {}
        had_tags: dict[str, str] = {}
        key_arn = settings.encryption_key_arn
        like = like or Likeness(fold.heads)
        origin = like.origin
        for head in like.heads:
            before = self._directory.info(head)
            had.update(session_metadata.own_metadata(before))
            had_tags.update(self._tags_of(before))
            origin = origin or before.metadata.get(ORIGIN)
        for head in fold.heads or like.heads:
            key_arn = key_arn or self._directory.info(head).encryption_key_arn
        said = {**like.metadata, **settings.own_metadata, **fold.named(METADATA)}
        said_tags = {**like.tags, **settings.own_tags, **fold.named(TAGS)}
        own = self._fitting(session_metadata.MOST_METADATA, settings.session_metadata, had, said)
        tags = self._fitting(session_metadata.MOST_TAGS, settings.tags, had_tags, said_tags)
        ours = {KEY: self.key, NAMESPACE: settings.namespace, FORMAT: str(VERSION), DIRECTORY: self._directory.kind}
        metadata = session_metadata.metadata({**ours, ORIGIN: origin, COPY: "true" if copy else None}, own)
        info = self.sessions.create(metadata, tags, key_arn)
        self._created[info.session] = info.created
        self._tags[info.session] = tags
        self._directory.add(info)
        return info

    def _fitting(self, most: int, *layers: Mapping[str, str]) -> dict[str, str]:
        """Return the entries of all layers, of which a later one counts more; too many do not keep one from writing."""
        entries = {name: value for layer in layers for name, value in layer.items()}
        ranked = sorted(entries, key=lambda name: [*(name not in layer for layer in reversed(layers)), name])
        if left := ranked[most:]:
            logger.warning("conversation %s: a session takes %d entries, so it is not given %s", self.name, most, left)
        return {name: value for name, value in entries.items() if name not in left}

    def likeness(self) -> Likeness:
        """Return what the next session would be made like."""
        fold = self.known()
        return Likeness(tuple(fold.heads), fold.named(METADATA), fold.named(TAGS))

    def _tags_of(self, before: SessionInfo) -> dict[str, str]:
        if before.session not in self._tags:
            self._tags[before.session] = self.sessions.tags(before.arn) if before.arn else {}
        return self._tags[before.session]

    def _refuse_other_keys(self, fold: Fold) -> None:
        wanted = self.settings.encryption_key_arn
        for head in fold.heads if wanted else ():
            have = self._directory.info(head).encryption_key_arn
            if have != wanted:
                raise ForeignSessionError(
                    f"The conversation {self.key!r} is encrypted with {have or 'a key that AWS manages'}, not with "
                    f"{wanted}. Nothing was written. Use its key, or copy the conversation to a new one."
                )

    def _may_open(self, candidate: SessionInfo, mine: SessionInfo | None, parents: Mapping[str, SessionInfo]) -> bool:
        if mine and candidate.session == mine.session:
            return True
        info = self.sessions.get(candidate.session)
        wanted = self.settings.encryption_key_arn
        keys = {wanted} if wanted else {p.encryption_key_arn for p in parents.values()} or {None}
        return info.status == "ACTIVE" and info.encryption_key_arn in keys

    def _open(
        self, fold: Fold, info: SessionInfo, draft: Draft | None, *, present: Iterable[str], whole: bool = False
    ) -> bool:
        """Write the opening step; False if the session does not take it.

        `whole`: all that is alive is carried by value, so that nothing refers to the sessions before.
        """
        self._created[info.session] = info.created
        place = info.session, default_invocation(info.session)
        undo: Callable[[], None] = nothing
        try:
            self.sessions.create_invocation(*place)
            place = self._choose_place(info.session, draft)
            self._upload(draft)
            placed = self._place(draft, place) if draft else Placed()
            self._renew_media(fold)
            undo = self._copy_natives(fold, place, draft.removed if draft else frozenset(), whole=whole)
            composed = self._compose_opening(fold, draft, placed, place, present, whole=whole)
            # An opening that only continues says nothing that was asked for.
            with self._effect() if draft else contextlib.nullcontext():
                self.sessions.put(composed.step.home, fold.clock, composed.payload)
        except (Gone, Refused) as refusal:
            undo()
            logger.info(
                "conversation %s: session %s takes no opening: %s",
                *(self.name, info.session, getattr(refusal, "code", "it is gone")),
            )
            self._raise_if_own_fault(info.session, refusal)
            return False
        except BaseException:
            undo()  # what was copied is in a session that may never be opened
            raise
        self._clock = max(self._clock, fold.clock)
        before = ", ".join(fold.heads)
        logger.info(
            "conversation %s: goes on in session %s after %s" if before else "conversation %s: begins in session %s%s",
            *(self.name, info.session, before),
        )
        try:
            self._adopt(composed.step, composed.payload)
        except BedrockSessionsError as error:
            # What was to be written is: that it cannot be read just now is for the next who reads.
            logger.info("conversation %s: cannot be read after it was written (%s)", self.name, type(error).__name__)
            self.drop()
        self._upload(draft, again=True)  # now that they are referred to, nobody deletes them
        if self.fold and self.fold.ended():
            self._finish(info.session)
        return True

    def _finish(self, session: str) -> None:
        """End a session that has been closed; that it is gone meanwhile is fine."""
        with contextlib.suppress(Gone):
            for _ in range(ATTEMPTS):
                if self._has_ended(session):
                    return
            raise UnavailableError(f"Session {session} cannot be ended; try again.")

    def _raise_if_own_fault(self, session: str, refusal: Gone | Refused) -> None:
        """Raise a refusal that no other session would cure: this one is ACTIVE, unopened, and has room."""
        if isinstance(refusal, Gone) or self.sessions.get(session).status != "ACTIVE":
            return
        steps = self._list(session)
        if len(steps) < STEPS_PER_SESSION and not any(is_opening(s.home.step) for s in steps):
            raise refusal.error() from refusal

    def _compose_opening(
        self,
        fold: Fold,
        draft: Draft | None,
        placed: Placed,
        place: Place,
        present: Iterable[str],
        *,
        whole: bool,
    ) -> Composed:
        """Return the opening, with what is about to leave retention carried: what is too much, in attachments."""
        now, created = self.sessions.clock.now(), self._created_of(fold)
        *groups, last = fold.perishable(created, now, whole=whole)
        dead = draft.removed if draft else frozenset()
        if draft and sum(fold.size(segment) for segment in last) + draft.size() > BUDGET:
            groups, last = [*groups, last], []
        copies = []
        for group in filter(None, groups):
            composed, inherited = fold.copy(place, group, now, dead)
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
            copies.append(inherited)
        for part in draft.parts if draft else ():
            composed, inherited = fold.part(place, part, self._place(part, place), now)
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
            self._keep_natives(composed.step.home, composed.payload)
            copies.append(inherited)
        late = 30 * int(self.sessions.settle * 1000)  # a minute on AWS: ten times what lists need at most
        opening = dataclasses.replace(fold.opening(created, now, present, late), segments=tuple(copies))
        copied = [segment for group in groups for segment in group]
        return fold.compose(place, draft, placed, now, opening=opening, forced=last, copied=copied)

    def _created_of(self, fold: Fold) -> dict[str, int]:
        return {head: self._created[head] for head in fold.heads}

    def _copy_natives(self, fold: Fold, place: Place, dead: frozenset[MessageId], *, whole: bool) -> Callable[[], None]:
        """Copy native blocks that are about to leave retention (or all) into attachments of a session; return an undo.

        Those of messages that are about to be `dead` are left behind.
        """
        found = fold.old_natives(self._created_of(fold), self.sessions.clock.now(), dead, whole=whole)
        old = [(home, n) for home, n in found if home.session != place[0]]
        # Parts of the named state are read when somebody wants them, or they have to be copied.
        unread = dict.fromkeys(
            home for home, _ in old if home not in self.natives and self._is_ours(fold, home.session)
        )
        natives = self.natives | {home: step[0] for home, step in self.sessions.fetch(unread) if step}
        old = [(home, n) for home, n in old if n < len(natives.get(home, ()))]
        moves: dict[tuple[Home, int], tuple[Home, int]] = {}
        for part in split([natives[home][n] for home, n in old], 0):
            if part:
                attachment = self._attach(place, part)
                moves |= {old[len(moves) + n]: (attachment, n) for n in range(len(part))}
        return fold.rehome(moves) if moves else nothing

    def _adopt(self, opening: Step, payload: list[ContentBlock]) -> None:
        """Start a new fold from an opening step of our own; what it names has been read."""
        fold = self._new_fold([opening.home.session])
        for parent in opening.opening.parents if opening.opening else ():
            fold.saw_list(parent, ())
        fold.saw_list(opening.home.session, [Listed(opening.home, self._clock)])
        fold.absorb(opening)
        self._keep_natives(opening.home, payload)
        self._read(fold)
        self._switch(fold)
        self._unlisted = 0

    # Content that is not in steps

    def _upload(self, draft: Draft | None, *, again: bool = False) -> None:
        """Have the contents of a draft in S3; `again` after it was written."""
        media = self.settings.media
        if not (media and draft and draft.messages.contents):
            return
        begun = time.monotonic()
        media.upload(draft.messages.contents, again=again)
        if not again and 2 * (time.monotonic() - begun) > self.sessions.settle > 0:
            # A process that deletes objects expects the step within a settling time: see `_delete_media`.
            media.upload(draft.messages.contents)

    def _renew_media(self, fold: Fold) -> None:
        """Let what is alive in S3 live as long as the session that is about to be opened."""
        oldest = self.sessions.clock.now() - SAFE_AGE
        of_old = [m for m in fold.alive() if (parsed := parse_id(m.id[0])) and parsed.ms < oldest]
        if not (old := {sha256 for message in of_old for sha256 in message_codec.objects(message.record)}):
            return
        if self.settings.media:
            self.settings.media.renew(old)
        else:
            logger.warning("%d contents in S3 are not renewed: the chat store was made without media=", len(old))

    # Content that takes more than a step

    def _place(self, draft: Draft, place: Place) -> Placed:
        """Write what does not fit into the draft's own step as attachments before it, and say what is where."""
        if is_small(draft.messages):
            return Placed()
        parts = split(draft.messages.blocks, sum(json_size(dump(r)) for r in draft.messages.records))
        if len(parts) <= 1:
            return Placed()
        homes: list[Home | None] = [None]
        where: list[tuple[int, int]] = []
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if not last:
                homes.append(self._attach(place, part))
            where += [(0 if last else len(homes) - 1, position) for position in range(len(part))]
        return Placed(tuple(homes), tuple(where), tuple(parts[-1]))

    def _attach(self, place: Place, natives: list[ContentBlock]) -> Home:
        ms = max(self.sessions.clock.now(), self._clock + 1)
        home = Home(*place, new_id(ms, Kind.ATTACHMENT))
        payload = [*natives, envelope({"attachment": True}, {})]
        self.sessions.put(home, ms, payload)
        self.natives[home] = payload
        return home
