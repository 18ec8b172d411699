"""What is done to a whole conversation: it is begun as a copy, ended, moved on, redacted, deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from llama_index_bedrock_sessions import blocks, directory
from llama_index_bedrock_sessions.chain import KEPT, LOOKS, METADATA, TAGS, Chain, Passage
from llama_index_bedrock_sessions.errors import (
    BedrockSessionsError,
    ConversationExists,
    UnavailableError,
)
from llama_index_bedrock_sessions.fold import Draft, Fold
from llama_index_bedrock_sessions.journal import (
    Kind,
    Message,
    MessageId,
    Step,
    new_id,
)
from llama_index_bedrock_sessions.limits import Copy, drafts
from llama_index_bedrock_sessions.reading import (
    ATTEMPTS,
    Likeness,
    is_opening,
    nothing,
)
from llama_index_bedrock_sessions.sessions import Gone, Refused, SessionInfo

logger = logging.getLogger("llama_index_bedrock_sessions")


class Lifecycle(Chain):
    """The sessions of a conversation, and what is done to all of them. Not locked: its conversation holds the lock."""

    # Beginning with all that another conversation has

    def begin(self, copies: Sequence[Copy], draft: Draft, like: Likeness, prepare: Callable[[], object]) -> None:
        """Write messages, and last the draft, to a key that has nothing: all is there at once, or nothing.

        Nothing is until the opening step is stored; what was written before it then stays in a session nobody has
        opened, which the next who writes to the key takes. The session is made like those of another conversation.
        `prepare` is called before anything is written.

        Raises:
            ConversationExists: there are messages or state, or somebody else began at the same moment. Whoever sees
                that takes back what he wrote: of two at once, one or none succeeds (if sessions are not listed late).

        """
        wanted, before = drafts(copies, draft), self.effects
        try:
            self._like = like
            for _ in range(ATTEMPTS):
                fold = self.refresh(force=True)
                if fold.alive() or fold.state():
                    raise ConversationExists(f"There is a conversation {self.key!r} already. Take another key.")
                prepare()
                _number(wanted, max(self.sessions.clock.now(), fold.clock + 1))
                if self._continue(fold, lambda _: wanted[-1]):
                    break
            else:
                raise UnavailableError(f"The conversation {self.key!r} could not be begun; try again.")
        finally:
            self._like = Likeness()
        if not self._is_alone():
            self._withdraw(wanted)
            self.effects = before
            raise ConversationExists(
                f"Somebody else began the conversation {self.key!r} at the same moment. Take another key."
            )

    def _is_alone(self) -> bool:
        """Whether nobody else has begun the conversation."""
        with contextlib.suppress(Gone):  # deleted meanwhile
            self._find()
        fold = self.known()
        return sum(is_opening(step) for head in fold.heads for step in fold.listed[head]) == 1

    def _withdraw(self, written: Sequence[Draft]) -> None:
        mine = {draft.id for draft in written if draft.id}
        for _ in range(ATTEMPTS):
            withdrawal = _withdrawal(self.known(), mine, written[-1].state)
            if withdrawal is None:
                break
            self.append(functools.partial(_same, withdrawal))
            # Somebody may have withdrawn at the same moment, and brought back what we had.
            self.refresh(force=True)

    # Ending, moving on, deleting

    def end(self, said: Mapping[str, Any]) -> bool:
        """Close the conversation: it takes no more messages until it is reopened. False if there is none to end."""
        closing = {"reason": "ended", **said}
        for _ in range(ATTEMPTS):
            fold = self.refresh(force=True)
            if not fold.heads:
                return False
            if self.ended(fold) is not None:
                for head in fold.heads:
                    self._finish(head)
                return False
            if self._must_continue(fold):
                if self._continue(fold, nothing, Passage(closing, ended="reopen")):
                    return True
                continue
            try:
                with self._effect():
                    listed = self._put_closing(fold.heads[0], closing, fold)
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            fold.saw_list(fold.heads[0], [listed])
            self._finish(fold.heads[0])
            return True
        raise UnavailableError("The conversation could not be ended; try again.")

    def close(self) -> None:
        """End the session that is written, if the next change can go to another one."""
        if not self._directory.continues:
            return
        self._close(self.known())

    def _close(self, fold: Fold) -> None:
        for head in fold.heads:
            with contextlib.suppress(Gone):
                self._seal(head, "continued", fold)
            self._closed.add(head)

    def move_on(self, wanted: Callable[[Fold], Passage | None]) -> bool:
        """Continue in another session by the passage that is wanted of the fold; False if none is."""
        for _ in range(ATTEMPTS):
            fold = self.refresh(force=True)
            passage = wanted(fold) if fold.heads else None
            if passage is None:
                return False
            if self._continue(fold, nothing, passage):
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
        self.append(lambda _: draft, fresh=True, passage=KEPT)
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
            own.update(directory.own_metadata(head))
            all_tags.update(self._tags_of(head) if tags else {})
        directory.refuse_metadata({**own, **self.settings.own_metadata, **fold.named(METADATA), **metadata})
        directory.refuse_tags({**all_tags, **self.settings.own_tags, **fold.named(TAGS), **tags})

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

    def age(self, fold: Fold) -> int:
        """Return the ms since the newest session was created."""
        return self.sessions.clock.now() - max((self._created[head] for head in fold.heads), default=0)

    def rewrite(self, removed: frozenset[MessageId], deleted: dict[str, None]) -> None:
        """Remove messages for good: what stays alive goes to a new session by value, those before are `deleted`.

        Once more if somebody else has gone on at the same moment, and has taken along what is removed.
        """
        draft = Draft(removed=removed)
        aware: set[str] = set()
        for attempt in range(ATTEMPTS):
            fold = self._present()
            self._refuse_other_keys(fold)
            if not attempt:  # later ones are of others who redact
                self._sweep({*fold.heads, *fold.covers()})
            if not self._continue(fold, lambda _: draft, Passage(ended="keep", whole=True)):
                continue
            copy, before = self.fold, {*fold.heads, *fold.covers()}
            aware |= _aware(fold.read, removed, aware)
            self._delete(self._ours(fold, before), deleted)
            if copy is not None and self._is_clean(copy, removed, aware):
                with contextlib.suppress(BedrockSessionsError):  # it is done, and the next who writes goes on
                    self._continue(copy, nothing, KEPT)
                return
            self.drop()
        raise UnavailableError("Others go on in new sessions all the time, which may hold copies; call again.")

    def _present(self) -> Fold:
        """Return the fold of a conversation that is there. Raises UnavailableError: its sessions are not found."""
        fold = self.refresh(force=True)
        if not fold.heads:
            # Deleted meanwhile; or another has moved it to a session that is listed late.
            raise UnavailableError("The sessions of this conversation cannot be found just now; try again.")
        return fold

    def _found(self) -> dict[str, int]:
        """Return the sessions of the key that are there, and when they were created (ms)."""
        named = [summary.session for summary in self._directory.find(self.key)]
        owned = self.sessions.pool.map(lambda session: self._directory.owned(session, self.key), named)
        return {info.session: info.created for info in owned if info}

    def _sweep(self, but: Iterable[str]) -> None:
        """Delete what crashes have left, or somebody is about to open: he takes another."""
        for session in {s for _ in range(LOOKS) for s in self._found()}.difference(but):
            self._delete_unopened(session)

    def _is_clean(self, copy: Fold, removed: frozenset[MessageId], aware: Collection[str]) -> bool:
        """Close a copy that was made; return whether nobody has taken along what is `removed`, there or elsewhere.

        What was read from is deleted. Who read it, too, looks for it just before he opens a session. So he has opened
        it already; or he finds that it is swept; or he is about to open the copy, which is why that is closed. `aware`
        are openings of sessions that are deleted by now, whose writers had read the removal.
        """
        (head,) = copy.heads
        self._sweep(copy.heads)
        self._close(copy)
        self._finish(head)
        openings: dict[str, Step] = {}
        for session in (s for _ in range(LOOKS) for s in {head, *self._found()}):
            steps = self._list_or_nothing(session)
            homes = [listed.home for listed in steps if is_opening(listed.home.step)]
            if steps and not homes:
                return False  # it could not be deleted
            for home in homes:
                if home.step not in openings and (step := self._read_one(home)):
                    openings[home.step] = step
            if session == head:
                copy.saw_list(head, steps)
        try:
            self._read(copy)
        except Gone:
            return False  # another has gone on from it, who redacts, too
        # One who continues nothing has read nothing; what a newer release says is told by the next look.
        taking = {i for i, step in openings.items() if step.newer or (step.opening and step.opening.parents)}
        return taking <= _aware(openings, removed, aware) and not copy.strays(head)

    def erase(self, deleted: dict[str, None]) -> None:
        """Delete every session of the key, oldest first, until none is listed; those that it tried go to `deleted`."""
        fold = self.refresh()
        if fold.alive() and not self._must_continue(fold):
            # Whoever continues the head meanwhile inherits an empty conversation.
            with contextlib.suppress(Gone, Refused):
                self._write(fold, Draft(removed=frozenset(m.id for m in fold.alive())))
        self._delete({*fold.heads, *fold.covers()}, deleted, others=True)
        self.drop()

    def _delete(self, doomed: set[str], deleted: dict[str, None], *, others: bool = False) -> None:
        """Delete sessions, oldest first, until they are gone, and then what is in S3 and nobody refers to.

        The `others` of the key too, and what continues them.
        """
        first = stored = self._media()
        for attempt in range(ATTEMPTS):
            stored = self._media() if attempt else first
            found = self._found()
            if others:
                doomed |= {s for s in found if s not in doomed and (attempt == 0 or self._continues(s, doomed))}
            # A session may be listed late: what is known of it is that it has not been deleted.
            left = [s for s in doomed if s in found or (attempt == 0 and self._directory.owned(s, self.key))]
            if not left:
                if others and not found:
                    self._delete_media(stored, ())  # all of it is of those deleted
                elif first:
                    # It goes on, even if that is listed late; or it has begun anew.
                    fold = self.refresh(force=True) if others else self._present()
                    self._delete_media(first, fold.alive())
                return
            for session in sorted(left, key=lambda s: (found.get(s, self._created.get(s, 0)), s)):
                deleted[session] = None
                self._delete_session(session)
        raise UnavailableError("Sessions of this conversation are still listed; call again to delete them.")

    def _continues(self, session: str, doomed: set[str]) -> bool:
        """Whether a session that was not there when the deletion began continues one that was, or is not open yet."""
        steps = self._list_or_nothing(session)
        openings = [step for s in steps if is_opening(s.home.step) and (step := self._read_one(s.home))]
        covered = {s for step in openings if step.opening for s in step.opening.covers}
        return not openings or not covered.isdisjoint(doomed)

    def _delete_session(self, session: str) -> None:
        try:
            self._seal(session, "deleted")
            with self._effect():
                self.sessions.delete(session)
            self._directory.remove(session, self.key)
        except Gone:
            # By another, who may have died before he said so.
            self._directory.remove(session, self.key)
        except Refused:
            # Somebody wrote in between, or it is listed as it was; the next look shows it.
            logger.info("conversation %s: session %s is not deleted yet", self.name, session)
            return
        logger.info("conversation %s: session %s is deleted", self.name, session)

    def _media(self) -> Iterable[str]:
        return self.settings.media.listed() if self.settings.media else ()

    def _delete_media(self, stored: Iterable[str], alive: Iterable[Message]) -> None:
        """Delete objects of the conversation, but not those that messages refer to."""
        if not (self.settings.media and stored):
            return
        used = {sha256 for message in alive for sha256 in blocks.objects(message.record)}
        self.effects += 1  # of several objects, some may be deleted when this fails
        self.settings.media.delete(sha256 for sha256 in stored if sha256 not in used)


def _withdrawal(fold: Fold, mine: set[str], names: Iterable[str]) -> Draft | None:
    """Return what takes changes back, as if they had never been: None if nothing of them is left."""
    alive = {message.id[0] for message in fold.alive()}
    void = mine | {c.id for c in fold.changes() if c.origin and c.count and c.id not in alive}
    left = [c.state for c in fold.changes() if c.id not in void and void.isdisjoint(m[0] for m in c.removed)]
    state = {name: next((each[name] for each in reversed(left) if name in each), []) for name in names}
    removed = frozenset(message.id for message in fold.alive() if message.id[0] in mine)
    now = {name: value for name, value in fold.state().items() if name in state}
    if not removed and now == {name: value[0] for name, value in state.items() if value}:
        return None
    return Draft(removed=removed, state=state)


def _same(draft: Draft, _: Fold) -> Draft:
    return draft


def _aware(steps: Mapping[str, Step], removed: frozenset[MessageId], aware: Collection[str]) -> set[str]:
    """Return those of some openings whose writers had read that something was removed, and so do not take it along.

    Or had read an opening of such a writer: `aware` are more of them.
    """
    found: set[str] = set()
    for step_id, step in sorted(steps.items()):  # the id of an opening is greater than what its writer had read
        opening, own = step.opening, step.contents[0][1]
        if opening and (
            removed <= opening.removed | (own.removed if own else frozenset())
            or any(not seen.isdisjoint(found) or not seen.isdisjoint(aware) for seen in opening.parents.values())
        ):
            found.add(step_id)
    return found


def _number(several: Iterable[Draft], ms: int) -> None:
    """Give drafts ids in their order."""
    for number, draft in enumerate(several):
        draft.id = new_id(ms + number, Kind.CHANGE)
