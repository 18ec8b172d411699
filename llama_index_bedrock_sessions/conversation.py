"""One conversation: what is stored under one key, over as many Bedrock sessions as it takes.

Here are the cache, the locks, and the rules by which a conversation continues in another session; what a step says is
in `journal.py`, what the steps add up to in `fold.py`, how the service is called in `sessions.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import json
import logging
import threading
import time
import weakref
from collections.abc import (
    Callable,
    Coroutine,
    ItemsView,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
    ValuesView,
)
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus

from llama_index_bedrock_sessions import blocks, directory
from llama_index_bedrock_sessions.blocks import ContentBlock
from llama_index_bedrock_sessions.directory import MetadataDirectory
from llama_index_bedrock_sessions.errors import (
    ConversationEnded,
    ForeignSessionError,
    InvalidStateError,
    NewerFormatError,
    StepTooLargeError,
    UnavailableError,
)
from llama_index_bedrock_sessions.fold import Composed, Draft, Fold, Listed, Placed
from llama_index_bedrock_sessions.journal import (
    VERSION,
    Change,
    Home,
    Kind,
    Message,
    MessageId,
    Place,
    Step,
    dump,
    envelope,
    new_id,
    parse_id,
    read_step,
)
from llama_index_bedrock_sessions.sessions import (
    Gone,
    Pool,
    Refused,
    SessionInfo,
    Sessions,
    Summary,
    after_fork,
    default_invocation,
)
from llama_index_bedrock_sessions.values import JSON, Walk, from_json, to_json

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
STEP_LIMIT = 50_000_000
"""Bytes of one step: 50 MB (Bedrock user guide), taken as what goes over the wire, the smallest reading of it."""
STEPS_PER_SESSION = 1000
"""Bedrock user guide, quotas."""
IMAGES_PER_STEP = 20
"""Bedrock user guide, quotas."""
CONTINUE_AT = 250
"""Steps from which a session is continued in another: botocore takes 55 ms to parse a list of 1,000."""
LIST_AFTER = 16
"""Appends without a list after which a writer lists again, so that several writers gather what the others left."""
ATTEMPTS = 8

logger = logging.getLogger("llama_index_bedrock_sessions")

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="_Pooled")

Resolve = Callable[[Fold], Draft | None]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the sessions of a conversation are created with."""

    namespace: str
    session_metadata: Mapping[str, str]
    tags: Mapping[str, str]
    encryption_key_arn: str | None
    refresh_interval: float = 0.0
    skip_newer: bool = False


@dataclasses.dataclass(frozen=True)
class Entry:
    """One change of a conversation, as `history()` tells it; message ids are "change id/position"."""

    id: str
    time: str
    session: str | None
    invocation: str | None
    added: tuple[str, ...]
    removed: tuple[str, ...]
    archived: tuple[str, ...]
    replaced_all: bool
    state: tuple[str, ...]
    description: str | None
    by: str | None
    foreign: bool

    def as_dict(self) -> dict[str, JSON]:
        """Return the entry as JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


_caller: contextvars.ContextVar[object | None] = contextvars.ContextVar("bedrock_sessions_caller", default=None)


async def in_pool(pool: Pool, function: Callable[[], R]) -> R:
    """Run a function in the pool on behalf of the current task."""
    token = _caller.set(asyncio.current_task())
    try:
        return await pool.run(function)
    finally:
        _caller.reset(token)


class _Pooled(Protocol):
    """What has methods that talk to the service."""

    @property
    def sessions(self) -> Sessions: ...


def twin(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], Coroutine[Any, Any, R]]:
    """Return the async form of a method: the same, in the store's thread pool."""

    @functools.wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await in_pool(self.sessions.pool, functools.partial(method, self, *args, **kwargs))

    call.__name__ = f"a{method.__name__}"
    call.__qualname__ = f"{method.__qualname__.removesuffix(method.__name__)}{call.__name__}"
    call.__doc__ = f"`{method.__name__}`, without blocking the event loop."
    return call


class Conversation:
    """All that is stored under one key. Made by `BedrockSessionsChatStore.conversation(key)`; safe to share by threads.

    Every method that talks to the service has a twin with an `a` before its name for use under asyncio, and raises the
    errors of `errors.py`: `AccountError`, `ServiceError`, `StoredDataError`, and `UsageError` where said.
    """

    def __init__(self, key: str, sessions: Sessions, where: MetadataDirectory, settings: Settings) -> None:
        self.key = key
        self.sessions = sessions
        self._directory = where
        self._settings = settings
        self._reset()
        after_fork(self)

    def _reset(self) -> None:
        self._lock = threading.RLock()
        self._fold: Fold | None = None
        self._clock = 0
        self._created: dict[str, int] = {}
        self._closed: set[str] = set()
        self._tags: dict[str, dict[str, str]] = {}
        self._natives: dict[Home, list[ContentBlock]] = {}
        self._unlisted = 0
        self._validated = 0.0
        self._views: weakref.WeakKeyDictionary[Any, list[MessageId]] = weakref.WeakKeyDictionary()

    def configure(self, **given: Any) -> None:
        """Change what the sessions it will create get: `session_metadata`, `tags`, `encryption_key_arn`."""
        for name in ("session_metadata", "tags"):
            directory.refuse_reserved(given.get(name, {}))
        self._settings = dataclasses.replace(self._settings, **given)

    def forget(self) -> None:
        """Drop all that is cached: a forked child starts anew."""
        self._reset()

    # Reading

    def messages(self, *, status: MessageStatus | None = MessageStatus.ACTIVE, fresh: bool = True) -> list[ChatMessage]:
        """Return the messages that are there, oldest first: the active ones, the archived ones, or (None) all.

        `fresh=False` makes no call where the conversation was read before: it returns what this process knows, its own
        writes included. The caller owns the messages.
        """
        with self._lock:
            fold = self._refresh() if fresh else self._refreshed()
            found = self._of_status(fold, status)
            if status is MessageStatus.ACTIVE:
                self._saw([m.id for m in found])
            natives = self._natives
        return [_decode(m, natives) for m in found]

    def count(self, status: MessageStatus | None = MessageStatus.ACTIVE) -> int:
        """Return how many messages there are: active ones, archived ones, or (None) all."""
        with self._lock:
            return len(self._of_status(self._refresh(), status))

    def history(self) -> list[Entry]:
        """Return what was changed, oldest first: frozen, and JSON by `as_dict()`."""
        with self._lock:
            fold = self._refresh()
            descriptions = {i: d for c in fold.changes() for i, d in c.invocations.items()}
            return [_entry(change, descriptions) for change in fold.changes()]

    def describe(self) -> dict[str, JSON]:
        """Return how the conversation stands, as JSON: its sessions, messages and steps."""
        with self._lock:
            fold = self._refresh()
            alive = fold.alive()
            archived = sum(fold.is_archived(m.id) for m in alive)
            heads = set(fold.heads)
            steps = {head: len(fold.listed[head]) for head in fold.heads}
            wanted = [*fold.covers(), *fold.heads]
            generation = fold.generation()
            names = sorted(fold.state())
        infos = self.sessions.pool.map(self._info_or_none, wanted)
        return {
            "key": self.key,
            "namespace": self._settings.namespace,
            "messages": len(alive) - archived,
            "archived": archived,
            "state": names,
            "generation": generation,
            "sessions": [
                {
                    "session": info.session,
                    "status": info.status,
                    "created": _iso(info.created),
                    "updated": _iso(info.updated),
                    "encryption_key_arn": info.encryption_key_arn,
                    "metadata": dict(info.metadata),
                    "head": info.session in heads,
                    "steps": steps.get(info.session),
                }
                for info in sorted((i for i in infos if i), key=lambda i: i.created)
            ],
        }

    amessages, acount, ahistory, adescribe = twin(messages), twin(count), twin(history), twin(describe)

    def _info_or_none(self, session: str) -> SessionInfo | None:
        try:
            return self.sessions.get(session)
        except Gone:
            return None

    def _active(self, fold: Fold) -> list[Message]:
        return [m for m in fold.alive() if not fold.is_archived(m.id)]

    def _of_status(self, fold: Fold, status: MessageStatus | None) -> list[Message]:
        if status is None:
            return list(fold.alive())
        return [m for m in fold.alive() if fold.is_archived(m.id) is (status is MessageStatus.ARCHIVED)]

    # Writing

    def add(
        self,
        messages: Sequence[ChatMessage],
        *,
        status: MessageStatus = MessageStatus.ACTIVE,
        state: Mapping[str, JSON] | None = None,
        forget: Iterable[str] = (),
    ) -> None:
        """Add messages at the end, set named state and delete the names in `forget`: all or nothing, by one step.

        With `status=ARCHIVED` they are archived by a second step.

        Raises:
            InvalidMessageError: something is not a ChatMessage.
            InvalidStateError: a name or a value that named state cannot have.
            StepTooLargeError: a content block exceeds 50 MB.
            ConversationEnded: the conversation was ended on purpose.

        """
        encoded, named = self._encode(messages), _state_json(state or {}, forget)
        if not encoded.records and not named:
            return
        draft = Draft(encoded, state=named)
        with self._lock:
            self._append(lambda _: draft)
            if status is MessageStatus.ARCHIVED and draft.id is not None:
                archiving = Draft(archived=frozenset((draft.id, position) for position in range(len(encoded.records))))
                self._append(lambda _: archiving)
            else:
                self._seen_also(draft)

    def set(self, messages: Sequence[ChatMessage]) -> None:
        """Make these the messages; what is there already, in this order, stays as it is. Raises as `add` does."""
        encoded = self._encode(messages)
        # As they will be read: a stream could not be read twice.
        wanted = [blocks.decode(record, functools.partial(_native, encoded.blocks)) for record in encoded.records]
        sent: list[Draft] = []

        def resolve(fold: Fold) -> Draft | None:
            draft = self._difference(fold, wanted, encoded)
            if draft and sent:
                draft.id = sent[0].id
            if draft:
                sent[:1] = [draft]
            return draft

        with self._lock:
            self._refresh()
            self._append(resolve, fresh=True)
            self._saw([m.id for m in self._active(self._refreshed())])

    def _difference(self, fold: Fold, wanted: list[ChatMessage], encoded: blocks.Encoded) -> Draft | None:
        """Return the least that makes `wanted` of what is there: nothing, removals and additions, or a set."""
        alive = fold.alive()
        present = [None if fold.is_archived(m.id) else _decode(m, self._natives) for m in alive]
        kept, gone = 0, []
        for message, content in zip(alive, present, strict=True):
            if kept < len(wanted) and content is not None and content == wanted[kept]:
                kept += 1
            else:
                gone.append(message)
        if kept == len(wanted) and not gone:
            return None
        moved = any(_contains(wanted[kept:], present[alive.index(m)]) for m in gone)
        if wanted and (kept == 0 or moved):
            return Draft(encoded, removed=frozenset(m.id for m in alive), is_set=True)
        return Draft(_tail(encoded, kept), removed=frozenset(m.id for m in gone))

    def remove(self, index: int) -> ChatMessage | None:
        """Remove the message at a position of the list this task was last given, and return it; None if there is none.

        A task (or a thread) that was given none yet means the list as it is now.
        """
        with self._lock:
            active = {m.id: m for m in self._active(self._refresh())}
            view = self._views.get(_who(), list(active))
            try:
                target = view[index]
            except IndexError:
                return None
            return self._remove(active.get(target))

    def remove_last(self) -> ChatMessage | None:
        """Remove the message that is last now, and return it; None if there is none."""
        with self._lock:
            active = self._active(self._refresh())
            return self._remove(active[-1] if active else None)

    def _remove(self, message: Message | None) -> ChatMessage | None:
        if message is None:
            return None
        removed = _decode(message, self._natives)
        draft = Draft(removed=frozenset({message.id}))
        self._append(lambda _: draft, fresh=True)
        view = self._views.get(_who())
        if view is not None and message.id in view:
            view.remove(message.id)
        return removed

    def remove_oldest(self, n: int) -> list[ChatMessage]:
        """Remove the n oldest messages of the list this task was last given, less what it removed; return them."""
        return self._take_oldest(n, lambda ids: Draft(removed=ids))

    def archive_oldest(self, n: int) -> list[ChatMessage]:
        """Archive the n oldest messages of the list this task was last given, less what it removed; return them."""
        return self._take_oldest(n, lambda ids: Draft(archived=ids))

    def _take_oldest(self, n: int, draft: Callable[[frozenset[MessageId]], Draft]) -> list[ChatMessage]:
        with self._lock:
            view = self._views.get(_who())
            # Ids mean the same whatever others have written meanwhile: only who has seen no list has to read one.
            active = {m.id: m for m in self._active(self._refresh() if view is None else self._refreshed())}
            oldest = (list(active) if view is None else view)[: max(n, 0)]
            found = [active[message_id] for message_id in oldest if message_id in active]
            taken = [_decode(m, self._natives) for m in found]
            if found:
                change = draft(frozenset(m.id for m in found))
                self._append(lambda _: change)
            if view is not None:
                del view[: len(oldest)]
            return taken

    def clear(self, status: MessageStatus | None = None) -> list[ChatMessage] | None:
        """Remove every message (of a status) by one step, and return those that were active; named state stays.

        None if the key is unknown.
        """
        with self._lock:
            fold = self._refresh()
            removed = [_decode(m, self._natives) for m in self._active(fold)]
            if not self._of_status(fold, status):
                return [] if fold.heads else None
            drafts: list[Draft] = []

            def resolve(fold: Fold) -> Draft:
                gone = frozenset(m.id for m in self._of_status(fold, status))
                draft = Draft(removed=gone, id=drafts[0].id if drafts else None)
                drafts[:1] = [draft]
                return draft

            self._append(resolve, fresh=True)
            self._saw([m.id for m in self._active(self._refreshed())])
            return removed

    def erase(self) -> list[ChatMessage] | None:
        """Delete every session of the key from the service, and return the messages; None if there were none.

        Every session that exists when this begins, or that continues one of them, is ended and deleted, oldest first.
        """
        with self._lock:
            fold = self._refresh()
            removed = [_decode(m, self._natives) for m in self._active(fold)] if fold.heads else None
            if fold.alive() and not self._must_continue(fold):
                # Whoever continues the head meanwhile inherits an empty conversation.
                self._write(fold, Draft(removed=frozenset(m.id for m in fold.alive())))
            for _ in range(ATTEMPTS):
                found = self._directory.find(self.key)
                if not found:
                    self._forget_fold()
                    return removed
                for session in sorted(found, key=lambda s: (s.created, s.session)):
                    self._delete_session(session.session)
            raise UnavailableError("Sessions of this conversation are still listed; call again to delete them.")

    def _delete_session(self, session: str) -> None:
        try:
            self._seal(session, "deleted")
            self.sessions.delete(session)
        except (Gone, Refused):
            # Refused: somebody wrote in between, or it is listed as it was; the next look shows it.
            logger.info("session %s is not deleted yet", session)

    aadd, aset = twin(add), twin(set)  # noqa: A003 - the method above
    aremove, aremove_last = twin(remove), twin(remove_last)
    aremove_oldest, aarchive_oldest = twin(remove_oldest), twin(archive_oldest)
    aclear, aerase = twin(clear), twin(erase)

    # Named state

    @property
    def state(self) -> State:
        """JSON values by name, kept beside the messages: preferences, hypotheses, carts."""
        return State(self)

    def last_id(self, *, fresh: bool = True) -> str | None:
        """Return the id of the last active message, as `history()` spells it; `fresh` as in `messages()`."""
        with self._lock:
            active = self._active(self._refresh() if fresh else self._refreshed())
            return _text_id(active[-1].id) if active else None

    alast_id = twin(last_id)

    def _named(self, *, fresh: bool) -> dict[str, JSON]:
        with self._lock:
            state = (self._refresh() if fresh else self._refreshed()).state()
        return {name: from_json(value, lambda: "[unreadable value]") for name, value in state.items()}

    def _name(self, values: Mapping[str, JSON], forget: Iterable[str]) -> None:
        named = _state_json(values, forget)
        self._refuse_too_large(_json_size(dump(named)))
        draft = Draft(state=named)
        with self._lock:
            if named:
                self._refresh()
                self._append(lambda _: draft, fresh=True)

    # What it takes to be up to date

    def _refreshed(self) -> Fold:
        if self._fold is None:
            return self._refresh()
        return self._fold

    def _refresh(self) -> Fold:
        """Return the fold as it is in the service now."""
        if self._fold is not None and time.monotonic() - self._validated < self._settings.refresh_interval:
            return self._fold
        for _ in range(ATTEMPTS):
            try:
                if self._fold is not None and self._fold.heads and self._is_current(self._fold):
                    break
                self._find()
                break
            except Gone:
                self._forget_fold()
        else:
            raise UnavailableError("The sessions of this conversation keep changing; try again.")
        self._validated, self._unlisted = time.monotonic(), 0
        return self._refreshed()

    def _is_current(self, fold: Fold) -> bool:
        """List the heads; return whether nobody can have continued them."""
        now = self.sessions.clock.now()
        old = [head for head in fold.heads if now - self._created[head] > 50 * MINUTE]
        results = self.sessions.pool.map(
            lambda job: job(),
            [functools.partial(self._list, head) for head in fold.heads]
            + [functools.partial(self._is_active, head) for head in old],
        )
        for head, steps in zip(fold.heads, results, strict=False):
            fold.saw_list(head, steps)  # type: ignore[arg-type]
        self._read(fold)
        full = any(len(fold.listed[head]) >= STEPS_PER_SESSION for head in fold.heads)
        return not full and not fold.closings and all(results[len(fold.heads) :])

    def _is_active(self, session: str) -> bool:
        return self.sessions.get(session).status == "ACTIVE"

    def _list(self, session: str) -> list[Listed]:
        return [Listed(home, at) for home, at in self.sessions.steps(session)]

    def _find(self) -> None:
        """Look in the directory for the open sessions that nothing covers, and read them. Raises Gone."""
        before = self._fold
        since = min((self._created[h] for h in before.heads), default=0) - 2 * HOUR if before else 0
        folds: dict[str, Fold] = {}
        covered: set[str] = set()
        for summary in self._directory.find(self.key, since):
            self._created[summary.session] = summary.created
            if summary.session in covered:
                continue
            fold = Fold([summary.session], self._clock)
            fold.saw_list(summary.session, self._list(summary.session))
            self._get(fold, next(fold.rounds()), [])
            if fold.is_open(summary.session):
                folds[summary.session] = fold
                covered |= set(fold.covers())
        heads = sorted((s for s in folds if s not in covered), key=lambda s: (self._created[s], s))
        fold = folds[heads[0]] if len(heads) == 1 else Fold(heads, self._clock)
        for head in heads:
            fold.saw_list(head, folds[head].listed[head].values())
            self._created.update(folds[head].covers())
        for step in [s for head in heads for s in folds[head].read.values()]:
            if len(heads) > 1:
                fold.absorb(step)
        if before is not None and before.heads == fold.heads:
            for head in heads:
                before.saw_list(head, fold.listed[head].values())
            fold = before
        self._read(fold)
        self._switch(fold)

    def _read(self, fold: Fold) -> None:
        """Read all that the lists say, the parents' lists too, and the native blocks of what is alive."""
        while True:
            for homes in fold.rounds():
                self._get(fold, homes, fold.unlisted_parents())
            parents = fold.unlisted_parents()
            if not parents:
                break
            self._get(fold, [], parents)
        self._clock = max(self._clock, fold.clock)
        needed = fold.native_homes(fold.alive())
        self._natives = {home: payload for home, payload in self._natives.items() if home in needed}
        for home, found in self.sessions.fetch(home for home in needed if home not in self._natives):
            self._natives[home] = found[0] if found else []

    def _get(self, fold: Fold, homes: Iterable[Home], parents: Iterable[str]) -> None:
        homes = list(homes)
        known = {home.step: self._fold.read[home.step] for home in homes if self._fold and home.step in self._fold.read}
        lists, wanted = list(parents), [home for home in homes if home.step not in known]
        jobs: list[Callable[[], Any]] = [functools.partial(self._list_or_nothing, p) for p in lists]
        jobs += [functools.partial(self._step_or_none, home) for home in wanted]
        results = self.sessions.pool.map(lambda job: job(), jobs)
        for parent, steps in zip(lists, results, strict=False):
            fold.saw_list(parent, steps)
        for step in known.values():
            fold.absorb(step)
        for home, found in zip(wanted, results[len(lists) :], strict=True):
            self._absorb(fold, home, found)

    def _list_or_nothing(self, session: str) -> list[Listed]:
        try:
            return self._list(session)
        except Gone:
            return []  # retention has taken it: what was alive in it has been carried

    def _step_or_none(self, home: Home) -> tuple[list[ContentBlock], int] | None:
        try:
            return self.sessions.step(home)
        except Gone:
            return None

    def _absorb(self, fold: Fold, home: Home, found: tuple[list[ContentBlock], int] | None) -> None:
        if found is None:
            if home.session in fold.heads:
                self.sessions.get(home.session)  # Gone: the session was deleted while it was read
            logger.warning("step %s of session %s is listed or named, but not there", home.step, home.session)
            fold.lost(home)
            return
        payload, at = found
        if any("image" in block for block in payload):
            self._natives[home] = payload
        fold.absorb(read_step(home, payload, at, skip_newer=self._settings.skip_newer))

    def _switch(self, fold: Fold) -> None:
        self._fold = fold
        self._closed &= set(fold.heads)
        self._tags = {session: tags for session, tags in self._tags.items() if session in fold.heads}

    def _forget_fold(self) -> None:
        if self._fold is not None:
            self._clock = max(self._clock, self._fold.clock)
        self._fold = None
        self._natives = {}
        self._views.clear()

    # Appending

    def _append(self, resolve: Resolve, *, fresh: bool = False) -> None:
        """Write what `resolve` makes of the fold, in this session or the next; `fresh`: it has just been listed."""
        for _ in range(ATTEMPTS):
            if self._fold is None or self._unlisted >= LIST_AFTER or not (self._fold.heads or fresh):
                self._refresh()
            fold, fresh = self._refreshed(), False
            self._refuse_other_keys(fold)
            if self._must_continue(fold):
                if self._continue(fold, resolve):
                    return
                continue
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
        raise UnavailableError("The conversation could not be continued in a session that takes writes; try again.")

    def _must_continue(self, fold: Fold) -> bool:
        if len(fold.heads) != 1 or fold.heads[0] in self._closed:
            return True
        head = fold.heads[0]
        steps = fold.listed[head]
        now = self.sessions.clock.now()
        idle = now - fold.latest.get(head, now) > HOUR
        return idle or len(steps) >= CONTINUE_AT or now - self._created[head] > DAY or bool(fold.closings)

    def _write(self, fold: Fold, draft: Draft) -> None:
        session = fold.heads[0]
        place = (session, default_invocation(session))
        placed = self._place(draft, place)
        composed = fold.compose(place, draft, placed, self.sessions.clock.now())
        self.sessions.put(composed.step.home, fold.clock, composed.payload)
        fold.stored(composed)
        self._keep_natives(composed.step.home, composed.payload)

    def _keep_natives(self, home: Home, payload: list[ContentBlock]) -> None:
        self._clock = max(self._clock, self._refreshed().clock)
        if any("image" in block for block in payload):
            self._natives[home] = payload

    def _after_refusal(self, fold: Fold, refusal: Gone | Refused) -> None:
        """Find out what a refusal means: never from the error, always from the session's status."""
        head = fold.heads[0]
        try:
            status = self.sessions.get(head).status
        except Gone:
            self._forget_fold()
            return
        if status != "ACTIVE":
            # A session that is not ACTIVE and has refused a write takes none: no need to close it.
            self._closed.add(head)
            return
        if isinstance(refusal, Gone):
            with contextlib.suppress(Gone, Refused):  # the next put says what is wrong
                self.sessions.create_invocation(head, default_invocation(head))
            return
        fold.saw_list(head, self._list(head))
        if len(fold.listed[head]) < STEPS_PER_SESSION:
            raise refusal.error() from refusal
        self._closed.add(head)

    # Continuing in another session

    def _continue(self, fold: Fold, resolve: Resolve) -> bool:
        """Write in a new session that continues every head (or in the first one); False: start again.

        Nothing is written from memory: the heads are closed first and then read to their end.
        """
        try:
            if fold.newer:
                raise NewerFormatError(
                    f"The conversation {self.key!r} holds steps of a newer format, which would be left behind: a "
                    "session of it is full or closed, and only the newer release can continue it in another."
                )
            for head in fold.heads:
                self._refuse_if_ended(fold, head)
            # Somebody has begun to continue it: then there may be a session to go to already.
            others = bool(fold.closings)
            for head in fold.heads:
                if head not in self._closed:
                    self._seal(head, "continued", fold)
            parents = {p for head in fold.heads for o in fold.openings[head] for p in o.parents}
            for head in fold.heads:
                fold.saw_list(head, self._list(head))
            self._get(fold, [], parents)
            self._read(fold)
            return self._open_next(fold, resolve, look=others)
        except Gone:
            self._forget_fold()
            return False

    def _refuse_if_ended(self, fold: Fold, head: str) -> None:
        for closing in fold.closings:
            if closing.home.session == head:
                found = self._step_or_none(closing.home)
                step = read_step(closing.home, found[0], found[1], skip_newer=True) if found else None
                if step and step.closing and step.closing.get("reason") == "ended":
                    raise ConversationEnded(f"The conversation {self.key!r} was ended and takes no more messages.")

    def _seal(self, session: str, reason: str, fold: Fold | None = None) -> None:
        """Write a closing step and end the session, until that succeeds or the closing step is refused. Raises Gone."""
        for _ in range(ATTEMPTS):
            ms = max(self.sessions.clock.now(), (fold.clock if fold else self._clock) + 1)
            home = Home(session, default_invocation(session), new_id(ms, Kind.CLOSING))
            try:
                self.sessions.put(home, ms, [envelope({"closing": {"reason": reason}}, {})])
            except Refused:
                if reason == "continued":
                    return
                # DeleteSession refuses what is still ACTIVE: a full session, say.
                if self.sessions.end(session) or self.sessions.get(session).status != "ACTIVE":
                    return
            except Gone:
                # The session is gone, which EndSession will say, or never had our invocation.
                if self.sessions.end(session):
                    return
            else:
                if self.sessions.end(session):
                    return
        raise UnavailableError(f"Session {session} cannot be ended; try again.")

    def _open_next(self, fold: Fold, resolve: Resolve, *, look: bool) -> bool:
        void: set[str] = set(fold.heads) | set(fold.covers())
        mine: Summary | None = None
        parents: dict[str, SessionInfo] = {}
        for attempt in range(ATTEMPTS):
            found = self._directory.find(self.key, self._since(fold)) if attempt or look else []
            if mine and mine.session not in {s.session for s in found}:
                found.append(mine)
            candidates = []
            for summary in sorted((s for s in found if s.session not in void), key=lambda s: (s.created, s.session)):
                steps = self._list(summary.session)
                if any(_is_opening(s.home.step) for s in steps):
                    self._forget_fold()
                    return False
                candidates.append(summary)
            if not candidates and not mine:
                mine = self._create(fold)
                continue
            parents = {head: self.sessions.get(head) for head in fold.heads}
            for summary in candidates:
                if self._may_open(summary, mine, parents) and self._open(fold, summary, resolve):
                    return True
                void.add(summary.session)
            mine = None
            if any(self._has_opening(s.session) for s in candidates):
                self._forget_fold()
                return False
        return False

    def _since(self, fold: Fold) -> int:
        return min((self._created[h] for h in fold.heads), default=0) - 2 * HOUR

    def _has_opening(self, session: str) -> bool:
        return any(_is_opening(s.home.step) for s in self._list_or_nothing(session))

    def _create(self, fold: Fold) -> Summary:
        """Create a session with what the application says, or what the session before it had."""
        own, settings = dict(self._settings.session_metadata), self._settings
        key_arn, tags = settings.encryption_key_arn, dict(settings.tags)
        for head in fold.heads:
            before = self._directory.info(head)
            own = {**directory.own_metadata(before), **own}
            key_arn = key_arn or before.encryption_key_arn
            tags = {**self._tags_of(before), **tags}
        metadata = directory.metadata(self.key, settings.namespace, VERSION, own.items())
        summary = self.sessions.create(metadata, tags, key_arn)
        self._created[summary.session] = summary.created
        self._tags[summary.session] = tags
        self._directory.add(
            SessionInfo(summary.session, summary.status, summary.created, summary.created, metadata, key_arn)
        )
        return summary

    def _tags_of(self, before: SessionInfo) -> dict[str, str]:
        if before.session not in self._tags:
            self._tags[before.session] = self.sessions.tags(before.arn) if before.arn else {}
        return self._tags[before.session]

    def _refuse_other_keys(self, fold: Fold) -> None:
        wanted = self._settings.encryption_key_arn
        for head in fold.heads if wanted else ():
            have = self._directory.info(head).encryption_key_arn
            if have != wanted:
                raise ForeignSessionError(
                    f"The conversation {self.key!r} is encrypted with {have or 'a key that AWS manages'}, not with "
                    f"{wanted}. Nothing was written. Use its key, or copy the conversation to a new one."
                )

    def _may_open(self, candidate: Summary, mine: Summary | None, parents: Mapping[str, SessionInfo]) -> bool:
        if mine and candidate.session == mine.session:
            return True
        info = self.sessions.get(candidate.session)
        wanted = self._settings.encryption_key_arn
        keys = {wanted} if wanted else {p.encryption_key_arn for p in parents.values()} or {None}
        return info.status == "ACTIVE" and info.encryption_key_arn in keys

    def _open(self, fold: Fold, summary: Summary, resolve: Resolve) -> bool:
        """Write the opening step; False if the session does not take it."""
        place = (summary.session, default_invocation(summary.session))
        self._created[summary.session] = summary.created
        try:
            self.sessions.create_invocation(*place)
            draft = resolve(fold)
            placed = self._place(draft, place) if draft else Placed()
            created = {head: self._created[head] for head in fold.heads}
            self._copy_natives(fold, place, created)
            composed = self._compose_opening(fold, draft, placed, place, created)
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
        except (Gone, Refused) as refusal:
            logger.info("session %s takes no opening: %s", summary.session, refusal)
            return False
        self._clock = max(self._clock, fold.clock)
        self._adopt(composed.step, composed.payload)
        return True

    def _compose_opening(
        self, fold: Fold, draft: Draft | None, placed: Placed, place: Place, created: Mapping[str, int]
    ) -> Composed:
        """Return the opening, with what is about to leave retention carried: what is too much, in attachments."""
        now = self.sessions.clock.now()
        *groups, last = fold.perishable(created, now)
        copies = []
        for group in groups:
            composed, inherited = fold.copy(place, group, now)
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
            copies.append(inherited)
        opening = dataclasses.replace(fold.opening(created, now), segments=tuple(copies))
        copied = [segment for group in groups for segment in group]
        return fold.compose(place, draft, placed, now, opening=opening, forced=last, copied=copied)

    def _copy_natives(self, fold: Fold, place: Place, created: Mapping[str, int]) -> None:
        """Copy native blocks that are about to leave retention into attachments of the new session."""
        old = [
            (home, n)
            for home, n in fold.old_natives(created, self.sessions.clock.now())
            if n < len(self._natives.get(home, ()))
        ]
        moves: dict[tuple[Home, int], tuple[Home, int]] = {}
        for part in _parts([self._natives[home][n] for home, n in old], 0):
            if part:
                attachment = self._attach(place, part)
                moves |= {old[len(moves) + n]: (attachment, n) for n in range(len(part))}
        if moves:
            fold.rehome(moves)

    def _adopt(self, opening: Step, payload: list[ContentBlock]) -> None:
        """Start a new fold from an opening step of our own; what it names has been read."""
        fold = Fold([opening.home.session], self._clock)
        for parent in opening.opening.parents if opening.opening else ():
            fold.saw_list(parent, ())
        fold.saw_list(opening.home.session, [Listed(opening.home, self._clock)])
        fold.absorb(opening)
        if any("image" in block for block in payload):
            self._natives[opening.home] = payload
        self._read(fold)
        self._switch(fold)
        self._unlisted = 0

    # Content that takes more than a step

    def _encode(self, messages: Sequence[ChatMessage]) -> blocks.Encoded:
        encoded = blocks.encode(messages, _read_file, max_images=1 << 30)
        for block in encoded.blocks:
            self._refuse_too_large(_wire_size(block))
        self._refuse_too_large(sum(_json_size(dump(record)) for record in encoded.records))
        return encoded

    def _refuse_too_large(self, size: int) -> None:
        if size > STEP_LIMIT - 1_000_000:
            raise StepTooLargeError(
                f"{size / 1e6:.1f} MB do not fit into one invocation step, which holds 50 MB (Bedrock's limit). "
                "Nothing was stored. Store the content elsewhere and put its URL into the message."
            )

    def _place(self, draft: Draft, place: Place) -> Placed:
        """Write what does not fit into the draft's own step as attachments before it, and say what is where."""
        parts = _parts(draft.messages.blocks, sum(_json_size(dump(r)) for r in draft.messages.records))
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
        self._natives[home] = payload
        return home

    # Positions

    def _saw(self, ids: list[MessageId]) -> None:
        self._views[_who()] = ids

    def _seen_also(self, draft: Draft) -> None:
        view = self._views.get(_who())
        if view is not None and draft.id is not None:
            view += [(draft.id, position) for position in range(len(draft.messages.records))]


class State(MutableMapping[str, JSON]):
    """The named state of a conversation: JSON values by name, for the application's own use and that of its memory.

    Of several writes of one name the last counts, whoever wrote it. Every read is one list of the service's steps;
    every write one list and one step. What is read belongs to the caller: changing it in place stores nothing.
    Names that begin with "memory/" are those of `BedrockSessionsMemory`. Under asyncio use the methods with an `a`.

    Raises:
        KeyError: the name is not there.
        InvalidStateError: a name that is not a string, or a value that JSON cannot say.

    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    @property
    def sessions(self) -> Sessions:
        """What the twins run in."""
        return self._conversation.sessions

    def __repr__(self) -> str:
        return f"State({self._conversation.key!r})"

    def __getitem__(self, name: str) -> JSON:
        return self.copy()[name]

    def __setitem__(self, name: str, value: JSON) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        del self.copy()[name]
        self._conversation._name({}, [name])  # noqa: SLF001 - one object in two parts

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def items(self) -> ItemsView[str, JSON]:
        """Return the names and values, by one read."""
        return self.copy().items()

    def values(self) -> ValuesView[JSON]:
        """Return the values, by one read."""
        return self.copy().values()

    def get(self, name: str, default: JSON = None, *, fresh: bool = True) -> JSON:
        """Return a value, or the default; `fresh` as in `Conversation.messages`."""
        return self.copy(fresh=fresh).get(name, default)

    def pop(self, name: str, *default: JSON) -> JSON:
        """Delete a name, and return the value it had; the default, if one is given, where there is none."""
        value = self.copy().pop(name, *default)
        self._conversation._name({}, [name])  # noqa: SLF001 - one object in two parts
        return value

    def update(self, *values: Any, **more: JSON) -> None:
        """Set several names by one step."""
        self._conversation._name(dict(*values, **more), ())  # noqa: SLF001 - one object in two parts

    def clear(self) -> None:
        """Delete every name by one step, those of the memory too."""
        self._conversation._name({}, self.copy())  # noqa: SLF001 - one object in two parts

    def copy(self, *, fresh: bool = True) -> dict[str, JSON]:
        """Return all of it by one read; `fresh` as in `Conversation.messages`."""
        return self._conversation._named(fresh=fresh)  # noqa: SLF001 - one object in two parts

    aget, apop, aupdate, aclear, acopy = twin(get), twin(pop), twin(update), twin(clear), twin(copy)


def _state_json(values: Mapping[str, JSON], forget: Iterable[str] = ()) -> dict[str, list[JSON]]:
    """Return named state as a change says it: {name: [value]}, or {name: []} where it is deleted."""
    named: dict[str, list[JSON]] = {name: [] for name in forget}
    for name, value in values.items():
        walk = Walk()
        plain = walk.plain(value)
        if not isinstance(name, str):
            raise InvalidStateError(f"The name of a state is a string, not {type(name).__name__}.")
        if walk.notes:
            raise InvalidStateError(f"The state {name!r} is not a JSON value: {'; '.join(walk.notes)}.")
        named[name] = [to_json(plain)]
    return named


def _who() -> object:
    """Return the task, or else the thread, that is calling: a position means the list it was last given."""
    return _caller.get() or threading.current_thread()


def _decode(message: Message, natives: Mapping[Home, Sequence[ContentBlock]]) -> ChatMessage:
    def resolve(item: Any) -> ContentBlock | None:
        h = item.get("h", 0) if isinstance(item, dict) else 0
        if not isinstance(h, int) or not 0 <= h < len(message.homes):
            return None
        return _native(natives.get(message.homes[h], ()), item)

    return blocks.decode(message.record, resolve)


def _native(payload: Sequence[ContentBlock], item: Any) -> ContentBlock | None:
    """Return the block of a payload that an item of a record stands for, None if there is none."""
    n = item.get("n") if isinstance(item, dict) else item
    return payload[n] if isinstance(n, int) and 0 <= n < len(payload) else None


def _entry(change: Change, descriptions: Mapping[str, str]) -> Entry:
    session, invocation = change.written or (None, None)
    return Entry(
        id=change.id,
        time=_iso(change.time),
        session=session,
        invocation=invocation,
        added=tuple(_text_id((change.id, position)) for position in sorted(change.messages)),
        removed=tuple(_text_id(m) for m in sorted(change.removed)),
        archived=tuple(_text_id(m) for m in sorted(change.archived)),
        replaced_all=change.is_set,
        state=tuple(sorted(change.state)),
        description=descriptions.get(invocation or ""),
        by=change.by,
        foreign=change.foreign,
    )


def _text_id(message: MessageId) -> str:
    return f"{message[0]}/{message[1]}"


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _contains(messages: Sequence[ChatMessage], one: ChatMessage | None) -> bool:
    return one is not None and any(m == one for m in messages)


def _tail(encoded: blocks.Encoded, skip: int) -> blocks.Encoded:
    """Return the encoding without its first messages: native blocks are numbered anew."""
    if skip == 0:
        return encoded
    used = [n for record in encoded.records[skip:] for n in blocks.references(record)]
    first = min(used, default=len(encoded.blocks))

    def moved(item: JSON) -> JSON:
        if isinstance(item, int):
            return item - first
        return {**item, "n": item["n"] - first} if isinstance(item, dict) and "n" in item else item

    records = [{**record, "b": [moved(item) for item in record["b"]]} for record in encoded.records[skip:]]
    return blocks.Encoded(records, encoded.blocks[first:])


def _read_file(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def _is_opening(step: str) -> bool:
    parsed = parse_id(step)
    return parsed is not None and parsed.kind is Kind.OPENING


def _json_size(text: str) -> int:
    """Return the bytes of a text in botocore's JSON, which escapes all that is not ASCII."""
    return len(json.dumps(text))


def _wire_size(block: ContentBlock) -> int:
    if "text" in block:
        return _json_size(block["text"])
    return len(block["image"]["source"]["bytes"]) * 4 // 3 + 100


def _parts(natives: list[ContentBlock], records: int) -> list[list[ContentBlock]]:
    """Split native blocks into steps within the limits of bytes and images; usually one."""
    limit = STEP_LIMIT - 2_000_000
    parts: list[list[ContentBlock]] = [[]]
    size, images = 0, 0
    for block in natives:
        weight, image = _wire_size(block), "image" in block
        if parts[-1] and (size + weight > limit or (image and images == IMAGES_PER_STEP)):
            parts.append([])
            size, images = 0, 0
        parts[-1].append(block)
        size, images = size + weight, images + image
    if size + records > limit and parts[-1]:
        parts.append([])
    return parts
