"""The sessions of one conversation, found and read to their end; `continuation.py` writes them.

`_journal` has what a step contains and what the steps add up to; `_bedrock.client` calls the service.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index_bedrock_sessions._bedrock.client import SessionInfo, Sessions
from llama_index_bedrock_sessions._bedrock.directory.base import Directory
from llama_index_bedrock_sessions._bedrock.errors import Gone, Refused
from llama_index_bedrock_sessions._bedrock.media import Objects
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.fold import Fold, Listed
from llama_index_bedrock_sessions._journal.history import Cut, Past, View
from llama_index_bedrock_sessions._journal.ids import Home, Kind, Place, parse_id
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import Message, Step
from llama_index_bedrock_sessions.errors import StoredDataError, UnavailableError
from llama_index_bedrock_sessions.events import AuditCallback, hashed

logger = logging.getLogger("llama_index_bedrock_sessions")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
STEPS_PER_SESSION = 1000
"""Bedrock user guide, quotas."""
RETENTION = 30 * DAY
"""ms after which the service deletes a session (Bedrock user guide); from its creation, the worst reading of it."""
ATTEMPTS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the sessions of a conversation are created with."""

    namespace: str
    session_metadata: Mapping[str, str]
    tags: Mapping[str, str]
    encryption_key_arn: str | None
    own_metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What was said for this conversation alone: it counts more than what is inherited."""
    own_tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refresh_interval: float = 0.0
    skip_newer: bool = False
    media: Objects | None = None
    has_retention: bool = True
    """Whether sessions are deleted 30 days after their creation."""
    audit: AuditCallback | None = None


class Likeness(NamedTuple):
    """What a session is made like: the heads of a conversation, and the metadata and tags that were added to them.

    `origin` is the key of that conversation, if the session begins a fork of it.
    """

    heads: Sequence[str] = ()
    metadata: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    origin: str | None = None


class Reader:
    """The sessions of one conversation, and what is known of them (`fold`, None if nothing)."""

    def __init__(self, key: str, sessions: Sessions, where: Directory, settings: Settings) -> None:
        self.key = key
        self.name = hashed(key)
        """How logs tell the key."""
        self.sessions = sessions
        self.settings = settings
        self.fold: Fold | None = None
        self.natives: dict[Home, list[ContentBlock]] = {}
        """The content blocks of steps that hold pictures and attachments of what is alive."""
        self._directory = where
        self._clock = 0
        self._created: dict[str, int] = {}
        self._closed: set[str] = set()
        self._tags: dict[str, dict[str, str]] = {}
        self._invocations: set[Place] = set()
        """Invocations of the application's own that have been made."""
        self._is_incomplete = False
        """Whether something that was to be read was not there, though retention cannot have taken it."""
        self._unlisted = 0
        self._unopened = False
        """Whether the last look found sessions of the key that nobody has opened."""
        self._validated = 0.0
        self._looked = 0
        """When the directory was last asked for the sessions of the key, in ms."""

    # What it takes to be up to date

    def known(self, *, whole: bool = True) -> Fold:
        """Return the fold as it was last read; read it if it never was, or never as `whole`."""
        if self.fold is None or (whole and not self.fold.is_whole()):
            return self.refresh(force=True, whole=whole)
        return self.fold

    def look(self, *, fresh: bool, whole: bool) -> Fold:
        """Return the fold as it is in the service (`fresh`), or as it was last read."""
        return self.refresh(whole=whole) if fresh else self.known(whole=whole)

    def refresh(self, *, force: bool = False, whole: bool = True) -> Fold:
        """Return the fold as it is in the service now, or (unless `force`) was within the refresh interval.

        Unless `whole`, archived messages may not be in it: it tells what is active, and takes what is to be added.
        """
        is_recent = time.monotonic() - self._validated < self.settings.refresh_interval
        if not force and is_recent and self.fold is not None:
            return self.known(whole=whole)
        passed_over: set[str] = set()
        for _ in range(ATTEMPTS):
            self._is_incomplete = False
            try:
                if self.fold is None or not self.fold.heads or not self._is_current(self.fold):
                    self._find(whole=whole)
                elif whole and not self.fold.is_whole():
                    self._read(self.fold)
            except Gone:
                self.drop()
                continue
            if not self._is_incomplete:
                break
            # A process that deletes what others continue puts it into another session first.
            others = self._others(self.known(whole=False)).keys()
            if others <= passed_over:
                break
            passed_over |= others
            self.drop()
        else:
            raise UnavailableError("The sessions of this conversation keep changing; try again.")
        self._validated, self._unlisted = time.monotonic(), 0
        return self.known(whole=False)

    def _found(self, fold: Fold | None = None, *, but: Collection[str] = ()) -> dict[str, SessionInfo]:
        """Return the sessions of the key that are there, the newest first; those of long before a fold may lack."""
        found = self._directory.find(self.key, lambda: self._since(fold) if fold else 0)
        named = [summary.session for summary in found if summary.session not in but]
        owned = self.sessions.pool.map(lambda session: self._directory.owned(session, self.key), named)
        return {info.session: info for info in owned if info}

    def _others(self, fold: Fold) -> dict[str, SessionInfo]:
        """Return the sessions of the key that the fold says nothing of, if new enough to matter."""
        return self._found(fold, but={*fold.heads, *fold.covers()})

    def _is_current(self, fold: Fold) -> bool:
        """List the heads; return whether no process can have continued them, or opened another beside them."""
        asked = self._old(fold.heads)
        # What was written to a parent before it was closed may not have been listed when it was read to its end.
        parents = list(fold.parents()) if any(self._unsettled(fold)) else []
        begun = self.sessions.clock.now()
        jobs: list[Callable[[], Any]] = [functools.partial(self._list, head) for head in fold.heads]
        jobs += [functools.partial(self._list_or_nothing, parent) for parent in parents]
        jobs += [functools.partial(self._is_active, head) for head in asked]
        results = self.sessions.pool.map(lambda job: job(), jobs)
        fold.horizon = self._horizon()
        listed = [*fold.heads, *parents]
        for session, steps in zip(listed, results, strict=False):
            fold.saw_list(session, steps)
        self._miss(fold, (p for p, steps in zip(parents, results[len(fold.heads) :], strict=False) if not steps))
        self._read(fold, whole=False)
        if not self._directory.continues:
            return True
        full = any(len(fold.listed[head]) >= STEPS_PER_SESSION for head in fold.heads)
        is_closed = fold.closings or fold.ended() or not self._closed.isdisjoint(fold.heads)
        if full or is_closed or not all(results[len(listed) :]):
            return False
        if any(settled <= begun for settled in self._unsettled(fold)):
            return False
        # The replies may have told that it is later than it seemed.
        return all(self._is_active(head) for head in self._old(fold.heads) if head not in asked)

    def _unsettled(self, fold: Fold) -> Iterator[int]:
        """Yield for each opening that was not looked beyond yet the time in ms from which lists show all beside it.

        That is what other processes wrote while the head was opened, three settling times after it. Of two processes
        that open a session each, because neither sees the other's, one opens its own at most a settling time after its
        last look (see `Chain._open_next`). The other may miss it for two: for the session, and for its opening.
        """
        for step in fold.opening_ids() if self.sessions.settle else ():
            parsed = parse_id(step)
            settled = (parsed.ms if parsed else 0) + 3 * int(self.sessions.settle * 1000)
            if self._looked < settled:
                yield settled

    def _old(self, heads: Iterable[str]) -> list[str]:
        """Return the sessions that may have expired: those that were created more than 50 minutes ago."""
        if not self._directory.continues:
            return []  # what has become of the session changes nothing for a reader
        now = self.sessions.clock.now()
        return [head for head in heads if now - self._created[head] > 50 * MINUTE]

    def _is_active(self, session: str) -> bool:
        return self.sessions.get(session).status == "ACTIVE"

    def _new_fold(self, heads: list[str]) -> Fold:
        fold = Fold(heads, self._clock)
        fold.horizon = self._horizon()
        return fold

    def _horizon(self) -> int:
        """Return the time in ms that no honest id is later than, however wrong a writer's clock."""
        return self.sessions.clock.now() + HOUR

    def _is_ours(self, fold: Fold, session: str) -> bool:
        """Whether a session that a stored step names is one of this conversation: anybody may name any session."""
        if session in fold.heads or self._directory.owned(session, self.key):
            return True
        logger.info("conversation %s: session %s, which a step names, is gone or another's", self.name, session)
        return False

    def _ours(self, fold: Fold, sessions: Iterable[str]) -> set[str]:
        """Return those of the sessions that are of this conversation."""
        named = sorted(set(sessions))
        ours = self.sessions.pool.map(functools.partial(self._is_ours, fold), named)
        return {session for session, owned in zip(named, ours, strict=True) if owned}

    def _list(self, session: str) -> list[Listed]:
        return [Listed(home, at) for home, at in self.sessions.steps(session)]

    def _find(self, *, whole: bool = True) -> None:
        """Look in the directory for the open sessions that nothing covers, and read them. Raises Gone."""
        before = self.fold
        since = self._since(before) if before else 0
        folds: dict[str, Fold] = {}
        covered: set[str] = set()
        self._unopened = False
        self._looked = self.sessions.clock.now()

        def still_wanted() -> int:
            # Once an open session is found, what was created long before it needs no look any more.
            return since

        for info in self._there(covered, still_wanted):
            self._created[info.session] = info.created
            steps = self._list(info.session)
            fold = self._new_fold([info.session])
            fold.saw_list(info.session, steps)
            self._get(fold, next(fold.rounds()), [])
            if fold.is_open(info.session) or not self._directory.continues:
                folds[info.session] = fold
                covered |= set(fold.covers())
                since = max(since, self._since(fold))
            else:
                self._unopened = True
        heads = sorted((s for s in folds if s not in covered), key=lambda s: (self._created[s], s))
        if len(heads) > 1:
            logger.info("conversation %s: has several heads, which the next write joins: %s", self.name, heads)
        fold = folds[heads[0]] if len(heads) == 1 else self._new_fold(heads)
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
        self._read(fold, whole=whole)
        self._switch(fold)

    def _there(self, covered: Collection[str], since: Callable[[], int]) -> Iterator[SessionInfo]:
        """Yield the sessions of the key that are there, newest first, but for those that are `covered` by then."""
        looked: set[str] = set()
        is_current = False
        while not is_current:
            is_current = True
            for summary in self._directory.find(self.key, since):
                if summary.session in covered or summary.session in looked:
                    continue
                looked.add(summary.session)
                info = self._directory.owned(summary.session, self.key, fresh=True)
                if info:
                    yield info
                else:
                    is_current = False  # who has deleted it may go on in another, which was not there to be found

    def _since(self, fold: Fold) -> int:
        return min((self._created[h] for h in fold.heads), default=0) - 2 * HOUR

    def _read(self, fold: Fold, *, whole: bool = True) -> None:
        """Read all that the lists say, the parents' lists too, and the native blocks of what is alive."""
        while True:
            for homes in fold.rounds(whole=whole):
                self._get(fold, homes, fold.unlisted_parents())
            parents = fold.unlisted_parents()
            if not parents:
                break
            self._get(fold, [], parents)
        self._clock = max(self._clock, fold.clock)
        self.natives = self._natives_of(fold, fold.alive())

    def _natives_of(self, fold: Fold, messages: Iterable[Message]) -> dict[Home, list[ContentBlock]]:
        """Return the native blocks of messages, by the steps that hold them; gets those that are not known."""
        needed = fold.native_homes(messages)
        known = {home: self.natives[home] for home in needed if home in self.natives}
        missing = [home for home in needed if home not in known]
        ours = self._ours(fold, (home.session for home in missing))
        found = dict(self.sessions.fetch(home for home in missing if home.session in ours))
        self._miss(fold, (home.session for home in missing if not found.get(home)))
        # What is not there, or not ours, is remembered as such: it is not asked for at every read.
        return known | {home: step[0] if (step := found.get(home)) else [] for home in missing}

    def _get(self, fold: Fold, homes: Iterable[Home], parents: Iterable[str]) -> None:
        homes = list(homes)
        known = {home.step: self.fold.read[home.step] for home in homes if self.fold and home.step in self.fold.read}
        lists, wanted = list(parents), [home for home in homes if home.step not in known]
        ours = self._ours(fold, [*lists, *(home.session for home in wanted)])
        jobs: list[Callable[[], Any]] = [
            functools.partial(self._list_or_nothing, p) if p in ours else list for p in lists
        ]
        jobs += [functools.partial(self._step_or_none, home) if home.session in ours else nothing for home in wanted]
        results = self.sessions.pool.map(lambda job: job(), jobs)
        for parent, steps in zip(lists, results, strict=False):
            fold.saw_list(parent, steps)
        for step in known.values():
            fold.absorb(step)
        for home, found in zip(wanted, results[len(lists) :], strict=True):
            self._absorb(fold, home, found)
        needed = [*lists, *(home.session for home in wanted)]
        self._miss(fold, (session for session, found in zip(needed, results, strict=True) if not found))

    def _miss(self, fold: Fold, sessions: Iterable[str]) -> None:
        """Take note of sessions that are not there, other than those which retention has taken."""
        if gone := set(sessions):
            oldest, created = self.sessions.clock.now() - RETENTION, fold.covers() | self._created
            self._is_incomplete |= any(created.get(session, oldest) >= oldest for session in gone)

    def _list_or_nothing(self, session: str) -> list[Listed]:
        try:
            return self._list(session)
        except (Gone, Refused):
            return []  # retention has taken it, or redact(): what was alive in it has been carried

    def _has_opening(self, session: str) -> bool:
        """Whether a process has opened a session; nobody will open one that is gone."""
        return any(is_opening(s.home.step) for s in self._list_or_nothing(session))

    def _step_or_none(self, home: Home) -> tuple[list[ContentBlock], int] | None:
        try:
            return self.sessions.step(home)
        except Gone:
            return None

    def _absorb(self, fold: Fold, home: Home, found: tuple[list[ContentBlock], int] | None) -> None:
        if found is None:
            if home.session in fold.heads:
                self.sessions.get(home.session)  # Gone: the session was deleted while it was read
            logger.warning(
                "conversation %s: step %s of session %s is listed or named, but not there",
                *(self.name, home.step, home.session),
            )
            fold.lost(home)
            return
        payload, at = found
        self._keep_natives(home, payload)
        fold.absorb(read_step(home, payload, at, skip_newer=self.settings.skip_newer))

    def _keep_natives(self, home: Home, payload: list[ContentBlock]) -> None:
        if any("image" in block for block in payload):
            self.natives[home] = payload

    def _switch(self, fold: Fold) -> None:
        # What was sent and not answered may still arrive: what is written next comes after it.
        fold.clock = max(fold.clock, self.fold.clock if self.fold else 0)
        self.fold = fold
        self._closed &= set(fold.heads)
        self._invocations = {place for place in self._invocations if place[0] in fold.heads}
        self._tags = {session: tags for session, tags in self._tags.items() if session in fold.heads}

    def drop(self) -> None:
        """Drop what was read: it is read again when it is wanted again."""
        if self.fold is not None:
            self._clock = max(self._clock, self.fold.clock)
        self.fold = None
        self.natives = {}

    def held(self) -> int:
        """Return about how many bytes of memory what was read takes."""
        natives = sum(_held(block) for payload in self.natives.values() for block in payload)
        return natives + (self.fold.held() if self.fold else 0)

    # How it stands

    def orphans(self, fold: Fold) -> list[SessionInfo]:
        """Return the sessions of the key that nobody has opened: a writer died, or another was faster."""
        return [info for session, info in self._others(fold).items() if not self._has_opening(session)]

    def complete_until(self, fold: Fold) -> int | None:
        """Return the time in ms at which the service deletes the first of what is there; None if it never does."""
        sessions = {*fold.heads, *(s.home.session for s in fold.segments())}
        sessions |= {home.session for home in fold.native_homes(fold.alive())}
        created = fold.covers() | self._created
        if not sessions or not self.settings.has_retention:
            return None
        return min(created[s] for s in sessions if s in created) + RETENTION

    # What it was

    def past(self) -> Past:
        """Return every change that the sessions still in the service tell of, those of which nothing is left too.

        Reads each of them in full, in parallel: a list, and about as many gets as a cold read of what it holds.
        """
        fold = self.refresh()
        created = {**fold.covers(), **{head: self._created[head] for head in fold.heads}}
        sessions = sorted(created, key=lambda session: (created[session], session))
        alone = {each.heads[0]: each for each in self.sessions.pool.map(self._alone, sessions) if each.read}
        # Sessions are deleted oldest first. One that was read, although a later one is gone, was deleted as well: what
        # the later one removed is not known. It counts if it is still there: another tool deleted the later one.
        last_gone = max((n for n, session in enumerate(sessions) if session not in alone), default=0)
        before = [session for session in sessions[:last_gone] if session in alone]
        for session, steps in zip(before, self.sessions.pool.map(self._list_or_nothing, before), strict=True):
            if not steps:
                del alone[session]
        return Past(told for each in (fold, *alone.values()) for told in each.told())

    def _alone(self, session: str) -> Fold:
        """Read one session by itself, whatever those after it say of it; nothing is read of one that is gone."""
        now = self.known()
        fold = self._new_fold([session])
        try:
            if session in now.heads:
                fold.saw_list(session, now.listed[session].values())
            elif self._is_ours(now, session):
                fold.saw_list(session, self._list_or_nothing(session))
            for homes in fold.rounds():
                for home in homes:
                    if home.session != session:
                        fold.lost(home)
                self._get(fold, [home for home in homes if home.session == session], [])
        except Gone:  # deleted while it was read
            return self._new_fold([session])
        return fold

    def view(self, past: Past, cut: Cut) -> tuple[View, dict[Home, list[ContentBlock]]]:
        """Return the conversation at a cut, and the native blocks of its messages; gets what was removed since."""
        view = past.at(cut)
        for home, found in self.sessions.fetch(view.missing):
            if found:
                past.absorb(read_step(home, *found, skip_newer=True))
        view = past.at(cut) if view.missing else view
        return view, self._natives_of(self.known(), [message for _, message in view.messages if message])

    # Single steps

    def texts(self, references: Sequence[tuple[Home, int]]) -> list[str]:
        """Return the texts of native blocks.

        Raises:
            StoredDataError: one is not there.

        """
        fold = self.known()
        homes = dict.fromkeys(home for home, _ in references if self._is_ours(fold, home.session))
        found = {home: step[0] for home, step in self.sessions.fetch(homes) if step}
        texts = [block.get("text") for home, n in references for block in found.get(home, [])[n : n + 1]]
        if len(texts) < len(references) or None in texts:
            raise StoredDataError("A part of it is no longer there: its session was deleted, or is another's.")
        return [str(text) for text in texts]

    def _read_one(self, home: Home) -> Step | None:
        found = self._step_or_none(home)
        return read_step(home, *found, skip_newer=True) if found else None


def is_opening(step: str) -> bool:
    """Whether an id is that of an opening."""
    parsed = parse_id(step)
    return parsed is not None and parsed.kind is Kind.OPENING


def _held(block: ContentBlock) -> int:
    return len(block["text"]) if "text" in block else len(block["image"]["source"].get("bytes", b""))


def nothing(*_: object) -> None:
    """Do nothing, and return nothing: a job not done, an undo that has nothing to undo, a change not made."""
