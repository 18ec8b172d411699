"""One conversation: what an application reads and writes under one key.

`engine.py` holds the lock and the parts that do the work.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.workflow import Context, Workflow
from workflows.context.serializers import BaseSerializer

from llama_index_bedrock_sessions._bedrock.media import Objects
from llama_index_bedrock_sessions._bedrock.pool import Pool, async_twin
from llama_index_bedrock_sessions._bedrock.session_metadata import check_metadata, check_tags
from llama_index_bedrock_sessions._conversation import claims, contexts, lifecycle
from llama_index_bedrock_sessions._conversation.contexts import SavedContext
from llama_index_bedrock_sessions._conversation.continuation import noop
from llama_index_bedrock_sessions._conversation.describe import read_status, report
from llama_index_bedrock_sessions._conversation.engine import ConversationEngine
from llama_index_bedrock_sessions._conversation.fork import start_with
from llama_index_bedrock_sessions._conversation.invocation import Invocation
from llama_index_bedrock_sessions._conversation.messages import (
    NativeBlocks,
    active_messages,
    archived_by,
    check_status,
    decode,
    difference,
    encode,
    native_block,
    of_status,
    outlines,
)
from llama_index_bedrock_sessions._conversation.sessions import METADATA, TAGS
from llama_index_bedrock_sessions._conversation.state import TURN, State, check_not_reserved, state_json
from llama_index_bedrock_sessions._conversation.timeline import read_snapshot, read_timeline
from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.draft import Draft
from llama_index_bedrock_sessions._journal.history import (
    Entry,
    Point,
    Position,
    Record,
    Timeline,
    copied,
    iso,
    origin,
    text_id,
    time_of,
)
from llama_index_bedrock_sessions._journal.ids import Home, Kind, MessageId, new_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.limits import Copy, check_size
from llama_index_bedrock_sessions._journal.model import ENDED, HIDDEN, Change, Mark, Message
from llama_index_bedrock_sessions._journal.records import text_references, text_value
from llama_index_bedrock_sessions._journal.values import JSON, dump, from_json, json_size
from llama_index_bedrock_sessions.errors import (
    ConfigurationError,
    InvalidMessageError,
    InvalidPointError,
    InvalidStateError,
    StoredDataError,
)
from llama_index_bedrock_sessions.events import Action, AuditEvent, emit

RENEW_AFTER = timedelta(days=10)
"""A weekly job that renews what is older leaves 13 days of the service's 30."""
_GONE = "its text is no longer in the service"


class Conversation:
    """Everything that is stored under one key. Threads can share it. Made by `BedrockSessionsChatStore.conversation`.

    Every method that calls the service has an async twin, whose name begins with `a`. It raises `AccountError`,
    `ServiceError` and `StoredDataError` (see `errors.py`), and the `UsageError`s that its documentation names.
    """

    def __init__(
        self,
        engine: ConversationEngine,
        sibling: Callable[[str], Conversation],
        engine_of: Callable[[str], ConversationEngine],
    ) -> None:
        self.key = engine.key
        self._engine = engine
        self._sibling = sibling
        self._engine_of = engine_of
        engine.keep_alive(self)

    @property
    def _pool(self) -> Pool:
        return self._engine.client.pool

    # Reading

    def messages(
        self,
        *,
        at: Point | None = None,
        before: Point | None = None,
        last: int | None = None,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        fresh: bool = True,
    ) -> list[ChatMessage]:
        """Return the active messages, the archived ones, or (`status=None`) all, oldest first. The caller owns them.

        Args:
            at: a point in time: the messages as they were then, with those that were removed later. A point is the id
                of a change or of a message, as `history()` returns them, or an aware datetime. It is included.
            before: the same, without the point itself.
            last: the number of messages from the end.
            status: `MessageStatus.ACTIVE`, `MessageStatus.ARCHIVED`, or None for all.
            fresh: False makes no call if the conversation was read before. It returns what this process knows, its own
                writes included. Archived messages of earlier sessions are read when they are first needed.

        A read at a point costs what `history()` costs, and one step for each change of which something was removed
        since. A placeholder replaces a message whose text is no longer in the service. What was removed by a change in
        a deleted session is missing. `remove` takes positions of the list without `at`, `before`, `last` and `status`.

        Raises:
            InvalidPointError: the point is unknown, or is a time without a time zone; `last` or `status` is invalid.

        """
        found, native_blocks, _ = self._look(at, before, last, status, fresh=fresh)
        return self._shown([message for _, message, _ in found], native_blocks)

    def records(
        self,
        *,
        at: Point | None = None,
        before: Point | None = None,
        last: int | None = None,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        fresh: bool = True,
    ) -> list[Record]:
        """Return the messages with their ids, times and statuses. Arguments and errors are those of `messages`."""
        found, native_blocks, changes = self._look(at, before, last, status, fresh=fresh)
        shown = self._shown([message for _, message, _ in found], native_blocks)
        return [
            Record(
                id=text_id(message_id),
                time=iso(time_of(message_id, changes)),
                status=MessageStatus.ARCHIVED if archived else MessageStatus.ACTIVE,
                message=message,
            )
            for (message_id, _, archived), message in zip(found, shown, strict=True)
        ]

    def _look(
        self, at: Point | None, before: Point | None, last: int | None, status: MessageStatus | None, *, fresh: bool
    ) -> tuple[list[tuple[MessageId, Message | None, bool]], NativeBlocks, Mapping[str, Change]]:
        """Return (id, message, whether archived) of what is wanted, their native blocks, and the changes by id."""
        if last is not None and (not isinstance(last, int) or last < 0):
            raise InvalidPointError(f"last={last!r}: it is the number of messages wanted, 0 or more.")
        status = check_status(status)
        found: list[tuple[MessageId, Message | None, bool]]
        with self._engine.lock:
            if at is None and before is None:
                with_archived = status is not MessageStatus.ACTIVE
                journal = self._engine.reader.look(fresh=fresh, with_archived=with_archived)
                found = [(m.id, m, journal.fold.is_archived(m.id)) for m in of_status(journal.fold, status)]
                if status is MessageStatus.ACTIVE and last is None:
                    self._engine.record_view([message_id for message_id, _, _ in found])
                native_blocks, changes = self._engine.reader.native_blocks, journal.fold.known
            else:
                timeline = read_timeline(self._engine.reader)
                snapshot, native_blocks = read_snapshot(self._engine.reader, timeline, timeline.locate(at, before))
                wanted = {None: (True, False), MessageStatus.ARCHIVED: (True,)}.get(status, (False,))
                all_ = (
                    (message_id, message, message_id in snapshot.archived) for message_id, message in snapshot.messages
                )
                found, changes = [each for each in all_ if each[2] in wanted], timeline.known
        return found if last is None else found[max(len(found) - last, 0) :], native_blocks, changes

    def _shown(self, messages: Sequence[Message | None], native_blocks: NativeBlocks) -> list[ChatMessage]:
        decoded = iter(self._decoded([message for message in messages if message], native_blocks))
        return [next(decoded) if message else message_codec.placeholder(_GONE) for message in messages]

    def count(self, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return the number of active messages, of archived ones, or (`status=None`) of all."""
        status = check_status(status)
        with self._engine.lock:
            return len(
                of_status(self._engine.reader.refresh(with_archived=status is not MessageStatus.ACTIVE).fold, status)
            )

    def history(self) -> list[Entry]:
        """Return every change, oldest first. Entries are frozen, and `as_dict()` returns JSON.

        The history is complete as long as the service keeps the sessions. It reads all of them in parallel: one list
        and a few gets for each session.
        """
        with self._engine.lock:
            timeline = read_timeline(self._engine.reader)
            return timeline.entries(self._engine.reader.known().fold.visible())

    def describe(self) -> dict[str, JSON]:
        """Return the state of the conversation and of its sessions as JSON, for the analysis of an incident.

        - `name`: the key as logs show it.
        - `complete_until`: when the service deletes the first content, 30 days after its session was created, unless a
          process writes before; None if never.
        - `sessions`, oldest first: `age` in seconds; `steps` and `steps_left` of 1,000, None if they were not listed;
          `idle_at`, when the session expires unless a process writes; `deleted_at`.
        - `unopened_sessions`: sessions of the key that no process has opened. They contain nothing of the conversation,
          which can continue in one of them.
        - `state`: the named state of the application.

        Together with `history()` this is everything that a hand-over needs.
        """
        with self._engine.lock:
            status = read_status(self._engine.reader)
            state = self.state.copy(fresh=False)
        return report(status, state, self._engine.sessions)

    amessages, arecords, acount = async_twin(messages), async_twin(records), async_twin(count)
    ahistory, adescribe = async_twin(history), async_twin(describe)

    def fork(self, new_key: str, *, at: Point | None = None, before: Point | None = None) -> Conversation:
        """Copy the conversation, as it was at a point, to a new key; return the copy.

        Points are those of `messages`; without a point everything that exists now is copied. The fork contains:

        - the messages with their pictures and statuses, under ids and a time of its own
        - the named state
        - the session metadata, tags and encryption key that new sessions of this conversation get

        The fork does not depend on this conversation. `history()` and `describe()` of the fork name its origin. If a
        point is inside a change, the removals of that change count and its state does not. Content that is no longer
        in the service is copied as `messages` shows it. Saved contexts and the unfinished turn of `autosave=True` are
        not copied, because they may continue only once.

        All or nothing: the fork exists once its last step is stored. After a failure, call again. If the conversation
        exists by then, the first call stored it (see the error's `may_have_happened`).

        Raises:
            InvalidPointError: the point is unknown, or is a time without a time zone; nothing is stored under this key,
                or the content at that point is hidden.
            InvalidKeyError: the new key is not a string of 1 to 5,000 characters.
            ConfigurationError: there are contents in S3, and the store was constructed without `media=`.
            ConversationExists: the new key is in use. Of two concurrent forks to one key at most one succeeds.

        """
        target = self._sibling(new_key)
        other = self._engine_of(new_key)
        with self._engine.changing():
            timeline = read_timeline(self._engine.reader)
            until = timeline.locate(at, before)
            snapshot, native_blocks = read_snapshot(self._engine.reader, timeline, until)
            like = self._engine.continuation.template()._replace(origin=self.key)
            # The session gets metadata and tags when it is created. The others may continue only once, and here.
            left = (METADATA, TAGS, TURN, contexts.PREFIX)
            state = {name: value for name, value in snapshot.state.items() if value and not name.startswith(left)}
            if not snapshot.messages and not state:
                self._check_fork_source(timeline, until)
        media, folder = self._media_for(
            other.sessions.settings.media, [message for _, message in snapshot.messages if message]
        )
        copies = [
            Copy(
                copied(message, lambda home, n: native_block(native_blocks.get(home, ()), n), folder)
                if message
                else message_codec.encode([message_codec.placeholder(_GONE)]),
                message_id in snapshot.archived,
            )
            for message_id, message in snapshot.messages
        ]
        draft = Draft(state=state, origin=origin(self.key, timeline, at, before))
        with other.changing():
            start_with(other.reader, other.writer, other.continuation, copies, draft, inherits=like, prepare=media)
        return target

    afork = async_twin(fork)

    def _check_fork_source(self, timeline: Timeline, until: Position) -> None:
        """Refuse a fork that is empty by mistake. A point before the first message gives an empty fork on purpose."""
        journal = self._engine.reader.known()
        if not journal.heads:
            raise InvalidPointError(f"There is no conversation {self.key!r} to fork. store.get_keys() lists the keys.")
        if timeline.hides(until) or (journal.fold.hidden() and not journal.fold.visible()):
            raise InvalidPointError(
                f"The content of the conversation {self.key!r} is hidden. Call restore() before you fork it."
            )

    def _media_for(self, other: Objects | None, messages: Iterable[Message]) -> tuple[Callable[[], object], str]:
        """Return a function that copies the contents in S3 of messages, and the folder of the copies."""
        used = {sha256 for message in messages for sha256 in message_codec.objects(message.record)}
        mine = self._media
        if not used:
            return noop, ""
        if mine is None or other is None:
            raise ConfigurationError(
                f"The conversation {self.key!r} has contents in S3, which a fork has to copy. Construct the chat store "
                "with the media= that it was written with."
            )
        return functools.partial(mine.copy, other, used), other.offload().folders[0]

    # Writing

    def invocation(self, description: str, *, by: str | None = None) -> Invocation:
        """Return a block, for `with` or `async with`, whose writes go to one Bedrock invocation.

        Every write to this conversation counts, also by the store and by memories, in the block and in tasks that it
        starts. Other keys are not affected. `history()` shows the description and the writer (`by`) of each change.
        The first write creates the invocation by one call. If the conversation continues in another session, the
        first write there creates one with the same description. The block itself makes no call.

        Raises:
            ConfigurationError: the description does not have 1 to 200 characters, or `by` is not a string.

        """
        return Invocation(self._engine.client, self.key, description, by)

    def add(
        self,
        messages: Sequence[ChatMessage],
        *,
        status: MessageStatus = MessageStatus.ACTIVE,
        state: Mapping[str, JSON] | None = None,
        forget: Iterable[str] = (),
    ) -> None:
        """Add messages at the end, set named state, and delete the names in `forget`, by one step: all or nothing.

        Raises:
            InvalidMessageError: a message is not a ChatMessage.
            InvalidStateError: named state cannot have a name or a value.
            StepTooLargeError: a content block or the state exceeds 50 MB.
            ConversationEnded: the conversation was ended on purpose.

        """
        state, forget = dict(state or {}), tuple(forget)
        check_not_reserved((*state, *forget))
        encoded, named = encode(messages, self._media), state_json(state, forget)
        if not encoded.records and not named:
            return
        draft = Draft(encoded, archived=archived_by(encoded, check_status(status)), state=named)
        with self._engine.changing():
            self._engine.writer.append(lambda _: draft, with_archived=False)
            view = self._engine.view()
            if view is not None and draft.id is not None and not draft.archived:
                view += [(draft.id, position) for position in range(len(draft.messages.records))]

    def set(self, messages: Sequence[ChatMessage], *, status: MessageStatus = MessageStatus.ACTIVE) -> None:
        """Replace all messages by these. Messages that are already stored in this order are not written again.

        Raises as `add` does.
        """
        encoded, wanted_status = encode(messages, self._media), check_status(status)
        wanted = outlines(encoded)
        sent: list[Draft] = []

        def resolve(journal: Journal) -> Draft | None:
            draft = difference(journal.fold, self._engine.reader.native_blocks, wanted, encoded, wanted_status)
            if draft and sent:
                draft.id = sent[0].id
            if draft:
                sent[:1] = [draft]
            return draft

        with self._engine.changing():
            self._engine.reader.refresh(force=True)
            self._engine.writer.append(resolve, just_listed=True)
            self._engine.record_view([m.id for m in active_messages(self._engine.reader.known().fold)])

    def remove(self, index: int) -> ChatMessage | None:
        """Remove and return the message at a position of the list that this task last read; None if there is none.

        For a task or thread that has read no list, the position refers to the current list.
        """
        with self._engine.changing():
            active = {m.id: m for m in active_messages(self._engine.reader.refresh(force=True).fold)}
            view = self._engine.view()
            try:
                target = (list(active) if view is None else view)[index]
            except IndexError:
                return None
            return self._remove(active.get(target))

    def remove_last(self) -> ChatMessage | None:
        """Remove and return the last message; None if there is none."""
        with self._engine.changing():
            active = active_messages(self._engine.reader.refresh(force=True).fold)
            return self._remove(active[-1] if active else None)

    def _remove(self, message: Message | None) -> ChatMessage | None:
        if message is None:
            return None
        (removed,) = self._decoded([message])
        draft = Draft(removed=frozenset({message.id}))
        self._engine.writer.append(lambda _: draft, just_listed=True)
        view = self._engine.view()
        if view is not None and message.id in view:
            view.remove(message.id)
        return removed

    def remove_oldest(self, n: int) -> list[ChatMessage]:
        """Remove and return the n oldest messages of the list that this task last read, less what it removed."""
        return self._take_oldest(n, lambda ids: Draft(removed=ids))

    def archive_oldest(self, n: int, *, all_or_none: bool = False) -> list[ChatMessage]:
        """Archive and return the n oldest messages of the list that this task last read, less what it removed.

        With `all_or_none`, archives nothing and returns [] if one of them has been archived or removed since.
        """
        return self._take_oldest(n, lambda ids: Draft(archived=ids), all_or_none=all_or_none)

    def _take_oldest(
        self, n: int, draft: Callable[[frozenset[MessageId]], Draft], *, all_or_none: bool = False
    ) -> list[ChatMessage]:
        with self._engine.changing():
            view = self._engine.view()
            # Ids stay valid whatever other processes write. Only a task that has read no list needs a read.
            journal = (
                self._engine.reader.refresh(with_archived=False)
                if view is None
                else self._engine.reader.known(with_archived=False)
            )
            active = {m.id: m for m in active_messages(journal.fold)}
            oldest = (list(active) if view is None else view)[: max(n, 0)]
            found = [active[message_id] for message_id in oldest if message_id in active]
            if all_or_none and len(found) < len(oldest):
                return []
            taken = self._decoded(found)
            if found:
                change = draft(frozenset(m.id for m in found))
                self._engine.writer.append(lambda _: change, with_archived=False)
            if view is not None:
                del view[: len(oldest)]
            return taken

    def clear(self, status: MessageStatus | None = None) -> list[ChatMessage] | None:
        """Remove every message (of a status) by one step; return the active ones, None if the key is unknown.

        Named state stays.
        """
        with self._engine.changing():
            journal = self._engine.reader.refresh(force=True)
            removed = self._decoded(active_messages(journal.fold))
            if not of_status(journal.fold, status):
                return [] if journal.heads else None
            drafts: list[Draft] = []

            def resolve(journal: Journal) -> Draft:
                gone = frozenset(m.id for m in of_status(journal.fold, status))
                draft = Draft(removed=gone, id=drafts[0].id if drafts else None)
                drafts[:1] = [draft]
                return draft

            self._engine.writer.append(resolve, just_listed=True)
            self._engine.record_view([m.id for m in active_messages(self._engine.reader.known().fold)])
            return removed

    # The life of a conversation

    def end(self, summary: str | None = None, *, kind: str | None = None, by: str | None = None) -> bool:
        """End the conversation: it can be read, but takes no messages until `reopen()`. False if it had ended.

        `describe()` shows the summary, the kind of resolution, and who ended it. The Bedrock session is ended too. If
        it has expired, the end is written to a new session, which is then ended.

        Raises:
            InvalidStateError: an argument is not text.

        """
        said = _texts(summary=summary, kind=kind, by=by)
        check_size(json_size(dump(said)))
        mark = Draft(marks={ENDED: Mark(on=True, said=said)})
        with self._engine.changing():
            before = self._engine.sessions.effects
            try:
                return lifecycle.end(self._engine.reader, self._engine.writer, mark)
            finally:
                # After a failure, the next call may find it ended.
                if self._engine.sessions.effects != before:
                    self._audit("ended", reason=kind, approver=by)

    def reopen(self, *, reason: str | None = None, approver: str | None = None) -> bool:
        """Let an ended conversation take messages again, in a new session; False if it had not ended."""
        said = _texts(reason=reason, approver=approver)
        with self._engine.changing():
            if not self._engine.reader.refresh(force=True).fold.ended():
                return False
            self._mark(ENDED, said, on=False)
            self._audit("reopened", **said)
            return True

    def _mark(self, name: str, said: Mapping[str, str], *, on: bool) -> None:
        """Write a change that marks the conversation, or undoes the mark. The conversation has just been read."""
        known_as = {"reason": "reason", "approver": "by"}
        draft = Draft(marks={name: Mark(on, {known_as[each]: text for each, text in said.items()})})
        self._engine.writer.append(lambda _: draft, just_listed=True, ended=True)

    def hide(self, *, reason: str | None = None, approver: str | None = None) -> list[ChatMessage] | None:
        """Hide all messages and named state, and leave the session; return the messages, None if the key is unknown.

        Later messages are visible: the key starts again. `restore()` undoes it as long as the service keeps the
        content, at least 20 days after the last write or `renew()`.
        """
        said = _texts(reason=reason, approver=approver)
        with self._engine.changing():
            journal = self._engine.reader.refresh(force=True)
            hidden = self._decoded(active_messages(journal.fold))
            if not journal.fold.visible() and not journal.fold.state():
                return [] if journal.heads else None
            self._mark(HIDDEN, said, on=True)
            self._engine.record_view([])
            self._audit("hidden", **said)
            lifecycle.leave_session(self._engine.reader)
            return hidden

    def restore(self, *, reason: str | None = None, approver: str | None = None) -> bool:
        """Undo `hide()`; False if nothing is hidden. The messages come back before those written since."""
        said = _texts(reason=reason, approver=approver)
        with self._engine.changing():
            if not self._engine.reader.refresh(force=True).fold.hidden():
                return False
            self._mark(HIDDEN, said, on=False)
            self._audit("restored", **said)
            return True

    def redact(self, *message_ids: str, reason: str | None = None, approver: str | None = None) -> None:
        """Delete messages from the service for good, by the ids of `history()`, also messages that were removed before.

        1. The messages are removed as usual, and no reader sees them any more.
        2. Everything alive is copied by value to a new session.
        3. Every earlier session of the conversation is deleted, with everything that was ever removed in it.

        It takes about 16 calls for a short conversation and one for each further session, and waits three settling
        times (`settling_time` of the store). Other processes can write at the same time. Named state is not searched
        for the texts of the messages. If it fails half-way, call it again. Only removed messages are lost.

        Raises:
            UnavailableError: sessions cannot be found yet, or another process has opened sessions that may hold copies.
                `may_have_happened` reports whether step 1 is done. Call it again.
            InvalidMessageError: an id is not that of a message of this conversation. Nothing was changed.
            ConfigurationError: a message has contents in S3, and the store was constructed without `media=`. Nothing
                was changed.

        """
        said = _texts(reason=reason, approver=approver)
        with self._engine.changing():
            journal = self._engine.reader.refresh(force=True)
            doomed = frozenset(map(_message_id, message_ids))
            if not doomed:
                return
            # Only the session in which a message was removed still knows it, if it is not the last one.
            timeline = None if all(map(journal.fold.holds, doomed)) else read_timeline(self._engine.reader)
            if timeline and (unknown := next((m for m in doomed if not timeline.holds(m)), None)):
                raise _no_message(text_id(unknown))
            self._check_no_media(doomed, (timeline or journal.fold).known)
            sessions: dict[str, None] = {}
            try:
                self._engine.deletion.rewrite_without(doomed, sessions)
            finally:
                if sessions:
                    self._audit("redacted", sessions=sessions, messages=message_ids, **said)
            self._engine.record_view([m.id for m in active_messages(self._engine.reader.known().fold)])

    def _check_no_media(self, doomed: Iterable[MessageId], known: Mapping[str, Change]) -> None:
        messages = (known[change].messages.get(position) for change, position in doomed if change in known)
        if self._media is None and any(m and message_codec.objects(m.record) for m in messages):
            raise ConfigurationError(
                "The message has contents in S3, which would stay there. Construct the chat store with the media= that "
                "it was written with."
            )

    def renew(self, older_than: timedelta = RENEW_AFTER) -> bool:
        """Continue in a new session if the newest one is older than `older_than`; return whether it was.

        The service deletes a session 30 days after its creation. A conversation stays complete for at least 20 days
        after its renewal or its last write. One that is written at least every 20 days needs no renewal.
        """
        age = to_ms(older_than)
        with self._engine.changing():
            return lifecycle.renew(self._engine.reader, self._engine.continuation, age)

    def update_metadata(self, session_metadata: Mapping[str, str], *, tags: Mapping[str, str] | None = None) -> None:
        """Add metadata and tags to the current Bedrock session, and to the sessions that continue it.

        They take precedence over those given to `store.conversation(key, session_metadata=...)`, now and later. If two
        processes set the same name at the same moment, one wins.

        Raises:
            ConfigurationError: a session cannot have these metadata or tags, or not together with those it has. Nothing
                was changed.

        """
        check_metadata(session_metadata)
        check_tags(tags or {})
        with self._engine.changing():
            lifecycle.update(self._engine.reader, self._engine.writer, session_metadata, tags or {})

    def delete(self, *, reason: str | None = None, approver: str | None = None) -> list[ChatMessage] | None:
        """Delete every session of the key from the service; return the messages, None if there was no session.

        Ends and deletes every session that exists at the beginning, and those that continue one of them, oldest first.
        If it fails half-way, call it again for the rest. Each audit event names the sessions whose deletion was begun.
        """
        said = _texts(reason=reason, approver=approver)
        with self._engine.changing():
            journal = self._engine.reader.refresh(force=True)
            removed = self._decoded(active_messages(journal.fold)) if journal.heads else None
            sessions: dict[str, None] = {}
            try:
                self._engine.deletion.erase(sessions)
            finally:
                # After a failure, the next call does not find these sessions.
                if sessions:
                    self._audit("deleted", sessions=sessions, **said)
            self._engine.record_view([])
            return removed

    def _audit(
        self,
        action: Action,
        *,
        sessions: Iterable[str] = (),
        messages: Iterable[str] = (),
        reason: str | None = None,
        approver: str | None = None,
    ) -> None:
        settings, journal = self._engine.sessions.settings, self._engine.reader.journal
        done_to = tuple(sessions) or tuple(journal.heads if journal else ())
        now = iso(self._engine.client.clock.now())
        event = AuditEvent(action, self.key, settings.namespace, now, done_to, tuple(messages), reason, approver)
        emit(event, settings.audit)

    aend, areopen, ahide, arestore = async_twin(end), async_twin(reopen), async_twin(hide), async_twin(restore)
    aredact, arenew, adelete, aupdate_metadata = (
        async_twin(redact),
        async_twin(renew),
        async_twin(delete),
        async_twin(update_metadata),
    )
    aadd, aset = async_twin(add), async_twin(set)  # noqa: A003 - the method above
    aremove, aremove_last = async_twin(remove), async_twin(remove_last)
    aremove_oldest, aarchive_oldest = async_twin(remove_oldest), async_twin(archive_oldest)
    aclear = async_twin(clear)

    # Named state

    @property
    def state(self) -> State:
        """Named state: JSON values beside the messages, such as preferences, hypotheses, carts."""
        return State(self.key, self._engine.client, self._named, self._name)

    def last_id(self, *, fresh: bool = True) -> str | None:
        """Return the id of the last active message, as in `history()`; `fresh` as in `messages()`."""
        with self._engine.lock:
            journal = self._engine.reader.look(fresh=fresh, with_archived=False)
            active = active_messages(journal.fold)
            return text_id(active[-1].id) if active else None

    alast_id = async_twin(last_id)

    # Paused workflows

    def save_context(
        self, ctx: Context[Any], name: str = "default", *, serializer: BaseSerializer | None = None
    ) -> SavedContext:
        """Save the state of a workflow (`handler.ctx`) under a name, for `load_context` in any process.

        Replaces an earlier context of that name. Stores everything that the workflow put into its context. Cancel the
        run afterwards (`handler.cancel_run()`), or it continues here too. Costs one list and one step, and one step for
        each 4 MB (compressed) if the context exceeds 16 KB.

        Raises:
            InvalidContextError: the context contains a value that JSON cannot represent.
            StepTooLargeError: the context exceeds 50 MB of JSON.

        """
        contexts.check_name(name)
        return self._save_context(contexts.snapshot(ctx, serializer), name)

    async def asave_context(
        self, ctx: Context[Any], name: str = "default", *, serializer: BaseSerializer | None = None
    ) -> SavedContext:
        """`save_context`, without blocking the event loop."""
        contexts.check_name(name)
        # In this event loop, not in the pool: no step of the workflow may run while its context is read.
        taken = contexts.snapshot(ctx, serializer)
        return await self._asave_context(taken, name)

    def _save_context(self, snapshot: contexts.Snapshot, name: str) -> SavedContext:
        content = snapshot.content()
        with self._engine.changing():
            self._engine.reader.refresh(force=True)
            inline = contexts.is_inline(content)

            def draft(references: list[tuple[Home, int]]) -> Draft:
                stored = content[0] if inline else text_value(references)
                now = self._engine.client.clock.now()
                return Draft(state=snapshot.state(name, new_id(now, Kind.CHANGE), iso(now), stored))

            self._engine.writer.append_with([] if inline else content, draft)
            return contexts.find(self._engine.reader.known().fold.state(), name).listed()

    _asave_context = async_twin(_save_context)

    def load_context(
        self,
        workflow: Workflow,
        name: str = "default",
        *,
        by: str | None = None,
        again: bool = False,
        serializer: BaseSerializer | None = None,
    ) -> Context[Any]:
        """Return a saved context for `workflow.run(ctx=...)`. Of all processes that load it, only one gets it.

        `by` names that process, for the others and in `contexts()`. If the process crashes afterwards, load the context
        with `again=True`; steps since the save run again. Errors are found before the context is taken, so that the
        next call can load it.

        Raises:
            AlreadyResumed: the context was loaded before, and `again` is False.
            InvalidContextError: there is no context of that name, it is of another workflow, or it needs another
                serializer.
            ConfigurationError: a memory or a store in it has to be constructed first.
            StoredDataError: its content is no longer in the service, or cannot be read.

        """
        contexts.check_name(name)
        contexts.check_reader(by)
        with self._engine.changing():
            missing: object = None
            while True:
                found = contexts.find(self._engine.reader.refresh(force=True).fold.state(), name)
                found.check_same_workflow(workflow, serializer)
                if not again:
                    found.check_not_taken()
                try:
                    references = text_references(found.content)
                    texts = self._engine.reader.texts(references) if references else [str(found.content)]
                    break
                except StoredDataError:
                    if found.content == missing:
                        raise
                    missing = found.content
                    self._engine.reader.drop()  # redact() in another process may have moved it to an unknown session
        context = found.restored(texts, workflow, serializer)
        with self._engine.changing():
            draft = Draft(state=found.claim(by, iso(self._engine.client.clock.now())), by=by)
            if again:
                self._engine.writer.append(lambda _: draft)
            elif rival := self._claim(found, draft):
                raise found.lost_to(rival)
        return context

    def _claim(self, found: contexts.Found, draft: Draft) -> Change | None:
        engine = self._engine
        unless_taken = functools.partial(_unless_taken, saved=found, draft=draft)
        return claims.claim(engine.reader, engine.writer, engine.continuation, found.id, unless_taken)

    def contexts(self) -> list[SavedContext]:
        """Return the saved contexts by name: when each was saved, its workflow, and when and by whom it was loaded."""
        with self._engine.lock:
            state = self._engine.reader.refresh().fold.state()
        return [contexts.find(state, name).listed() for name in contexts.names(state)]

    def delete_context(self, name: str = "default") -> None:
        """Delete a saved context by one step, so that it cannot be loaded. Does nothing if there is none.

        Content of more than 16 KB stays in its session until the session is deleted.
        """
        with self._engine.changing():
            if name in contexts.names(self._engine.reader.refresh(force=True).fold.state()):
                draft = Draft(state=contexts.deleted(name))
                self._engine.writer.append(lambda _: draft, just_listed=True)

    aload_context, acontexts, adelete_context = (
        async_twin(load_context),
        async_twin(contexts),
        async_twin(delete_context),
    )

    def _named(self, *, fresh: bool) -> dict[str, JSON]:
        with self._engine.lock:
            journal = self._engine.reader.look(fresh=fresh, with_archived=False)
            state = journal.fold.state()
        return {name: from_json(value, lambda: "[unreadable value]") for name, value in state.items()}

    def _name(self, values: Mapping[str, JSON], forget: Iterable[str]) -> None:
        named = state_json(values, forget)
        draft = Draft(state=named)
        with self._engine.changing():
            if named:
                self._engine.reader.refresh(force=True, with_archived=False)
                self._engine.writer.append(lambda _: draft, just_listed=True, with_archived=False)

    @property
    def _media(self) -> Objects | None:
        return self._engine.sessions.settings.media

    def _decoded(self, messages: Sequence[Message], native_blocks: NativeBlocks | None = None) -> list[ChatMessage]:
        known = self._engine.reader.native_blocks
        return decode(messages, known if native_blocks is None else native_blocks, self._media)

    def __copy__(self) -> Conversation:
        """Return the conversation itself, because it represents what is in the service."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Conversation:
        """Return the conversation itself."""
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the store and the key. Settings given for future sessions are not kept."""
        if self._sibling(self.key) is not self:
            raise TypeError("An attached conversation cannot be pickled. Pickle its key, and pass that to attach().")
        return self._sibling, (self.key,)


def to_ms(older_than: timedelta) -> int:
    """Return an age in ms. Raises ConfigurationError if it is not a timedelta."""
    if not isinstance(older_than, timedelta):
        raise ConfigurationError(f"older_than takes a datetime.timedelta, got {type(older_than).__name__}.")
    return older_than // timedelta(milliseconds=1)


def _texts(**given: str | None) -> dict[str, str]:
    """Return the texts that were given. Raises InvalidStateError if one is not text."""
    for name, text in given.items():
        if text is not None and not isinstance(text, str):
            raise InvalidStateError(f"{name}= takes a string, got {type(text).__name__}.")
    return {name: text for name, text in given.items() if text is not None}


def _message_id(text: str) -> MessageId:
    change, _, position = text.rpartition("/") if isinstance(text, str) else ("", "", "")
    if not (position.isdecimal() and len(position) < 10):
        raise _no_message(text)
    return change, int(position)


def _no_message(text: object) -> InvalidMessageError:
    # A message passed in place of its id contains what has to be deleted, so it is not quoted.
    shown = repr(text) if isinstance(text, str) else f"A value of type {type(text).__name__}"
    return InvalidMessageError(
        f"{shown} is not the id of a message of this conversation. history() lists the ids. Nothing was changed."
    )


def _unless_taken(journal: Journal, saved: contexts.Found, draft: Draft) -> Draft:
    """Return the draft of a claim. Raises AlreadyResumed."""
    now = journal.fold.state()
    if saved.name in contexts.names(now) and (there := contexts.find(now, saved.name)).id == saved.id:
        there.check_not_taken()
    return draft
