"""What is stored in the sessions of one conversation: found, and read to the end.

`sessions.py` calls the service for the sessions of a key. `_journal` knows what a step contains, what the steps add up
to, and which of them are still to be read.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from llama_index_bedrock_sessions._bedrock.client import SessionInfo
from llama_index_bedrock_sessions._bedrock.errors import NotFound, attempts
from llama_index_bedrock_sessions._conversation.sessions import HOUR, RETENTION, STEPS_PER_SESSION, ConversationSessions
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.ids import Home, parse_id
from llama_index_bedrock_sessions._journal.journal import Journal
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import Message
from llama_index_bedrock_sessions.errors import StoredDataError

logger = logging.getLogger("llama_index_bedrock_sessions")


class Reader:
    """Reads the sessions of one conversation. `journal` is what was read, None if nothing is known.

    `native_blocks` are the content blocks of steps that hold pictures and attachments of what is alive. `unlisted` is
    the number of steps that were written since the heads were listed. `has_unopened` is whether the last search found
    sessions of the key that no process has opened.
    """

    def __init__(self, sessions: ConversationSessions) -> None:
        self.sessions = sessions
        self.journal: Journal | None = None
        self.native_blocks: dict[Home, list[ContentBlock]] = {}
        self.unlisted = 0
        self.has_unopened = False
        self._is_incomplete = False
        """Whether something was missing that retention cannot have deleted."""
        self._validated = 0.0
        self._searched = 0
        """When the directory was last asked for the sessions of the key, in ms."""

    # Up to date

    def known(self, *, with_archived: bool = True) -> Journal:
        """Return what was read last. Read first if nothing was, or if archived messages are wanted and missing."""
        if self.journal is None or (with_archived and not self.journal.plan.is_complete()):
            return self.refresh(force=True, with_archived=with_archived)
        return self.journal

    def look(self, *, fresh: bool, with_archived: bool) -> Journal:
        """Return what is in the service now (`fresh`), or what was read last."""
        return self.refresh(with_archived=with_archived) if fresh else self.known(with_archived=with_archived)

    def refresh(self, *, force: bool = False, with_archived: bool = True) -> Journal:
        """Return what is in the service now, or (unless `force`) what was there within the refresh interval.

        Unless `with_archived`, archived messages may be missing; what is active is complete.

        Raises:
            UnavailableError: sessions were deleted by other processes during every attempt.

        """
        is_recent = time.monotonic() - self._validated < self.sessions.settings.refresh_interval
        if not force and is_recent and self.journal is not None:
            return self.known(with_archived=with_archived)
        passed_over: set[str] = set()
        for _ in attempts("The sessions of this conversation keep changing; try again."):
            self._is_incomplete = False
            try:
                if self.journal is None or not self.journal.heads or not self._is_current(self.journal):
                    self._find(with_archived=with_archived)
                elif with_archived and not self.journal.plan.is_complete():
                    self.read(self.journal)
            except NotFound:
                self.drop()
                continue
            if not self._is_incomplete:
                break
            # A process that deletes sessions copies what is alive to another session first.
            others = self.others(self.known(with_archived=False)).keys()
            if others <= passed_over:
                break
            passed_over |= others
            self.drop()
        self._validated, self.unlisted = time.monotonic(), 0
        return self.known(with_archived=False)

    def others(self, journal: Journal) -> dict[str, SessionInfo]:
        """Return the sessions of the key of which the journal contains nothing, if they are recent enough to matter."""
        return self.sessions.found(journal.heads, but={*journal.heads, *journal.plan.covers()})

    def _is_current(self, journal: Journal) -> bool:
        """List the heads; return whether no process can have continued them or opened another session beside them."""
        asked = self.sessions.maybe_expired(journal.heads)
        # A step written to a parent before it was closed may not have been listed yet when the parent was read.
        parents = list(journal.plan.parents()) if any(self._unsettled(journal)) else []
        begun = self.sessions.now()
        jobs: list[Callable[[], Any]] = [functools.partial(self.sessions.listed, head) for head in journal.heads]
        jobs += [functools.partial(self.sessions.listed_or_nothing, parent) for parent in parents]
        jobs += [functools.partial(self.sessions.is_active, head) for head in asked]
        results = self.sessions.client.pool.map(lambda job: job(), jobs)
        journal.clock.horizon = self._horizon()
        listed = [*journal.heads, *parents]
        for session, steps in zip(listed, results, strict=False):
            journal.plan.saw_list(session, steps)
        self._miss(journal, (p for p, steps in zip(parents, results[len(journal.heads) :], strict=False) if not steps))
        self.read(journal, with_archived=False)
        if not self.sessions.directory.continues:
            return True
        full = any(len(journal.plan.listed[head]) >= STEPS_PER_SESSION for head in journal.heads)
        is_closed = journal.plan.closings or journal.fold.ended() or not self.sessions.closed.isdisjoint(journal.heads)
        if full or is_closed or not all(results[len(listed) :]):
            return False
        if any(settled <= begun for settled in self._unsettled(journal)):
            return False
        # The replies may have moved the clock forward.
        expired = self.sessions.maybe_expired(journal.heads)
        return all(self.sessions.is_active(head) for head in expired if head not in asked)

    def _unsettled(self, journal: Journal) -> Iterator[int]:
        """Yield the time in ms from which lists show every session opened at the same time, for each opening.

        Openings after which the directory was searched at such a time are left out. The time is three settling times
        after the opening. Two processes open a session each if neither finds the other's. One of them opens its own at
        most one settling time after its last search (`Continuation`). The other misses it for up to two more: one
        until the session is listed, one until its opening is.
        """
        for step in journal.plan.opening_ids() if self.sessions.client.settle else ():
            parsed = parse_id(step)
            settled = (parsed.ms if parsed else 0) + 3 * int(self.sessions.client.settle * 1000)
            if self._searched < settled:
                yield settled

    def new_journal(self, heads: list[str]) -> Journal:
        """Return a journal that knows nothing of these heads yet."""
        journal = Journal(heads, self.sessions.last_ms)
        journal.clock.horizon = self._horizon()
        return journal

    def _horizon(self) -> int:
        """Return the time in ms that no honest id is later than, however wrong a writer's clock."""
        return self.sessions.now() + HOUR

    def _find(self, *, with_archived: bool = True) -> None:
        """Find the open sessions that no other session covers, and read them. Raises NotFound."""
        before = self.journal
        since = self.sessions.since(before.heads) if before else 0
        journals: dict[str, Journal] = {}
        covered: set[str] = set()
        self.has_unopened = False
        self._searched = self.sessions.now()

        def still_wanted() -> int:
            # Once an open session is found, sessions created long before it need not be looked at.
            return since

        for info in self._there(covered, still_wanted):
            self.sessions.created[info.session] = info.created
            steps = self.sessions.listed(info.session)
            journal = self.new_journal([info.session])
            journal.plan.saw_list(info.session, steps)
            self.get(journal, next(journal.plan.rounds()), [])
            if journal.plan.is_open(info.session) or not self.sessions.directory.continues:
                journals[info.session] = journal
                covered |= set(journal.plan.covers())
                since = max(since, self.sessions.since(journal.heads))
            else:
                self.has_unopened = True
        heads = sorted((s for s in journals if s not in covered), key=lambda s: (self.sessions.created[s], s))
        if len(heads) > 1:
            logger.info("conversation %s: has several heads, which the next write joins: %s", self.sessions.name, heads)
        journal = journals[heads[0]] if len(heads) == 1 else self.new_journal(heads)
        for head in heads:
            journal.plan.saw_list(head, journals[head].plan.listed[head].values())
            self.sessions.created.update(journals[head].plan.covers())
        for step in [s for head in heads for s in journals[head].plan.read.values()]:
            if len(heads) > 1:
                journal.absorb(step)
        if before is not None and before.heads == journal.heads:
            for head in heads:
                before.plan.saw_list(head, journal.plan.listed[head].values())
            journal = before
        self.read(journal, with_archived=with_archived)
        self.switch_to(journal)

    def _there(self, covered: Collection[str], since: Callable[[], int]) -> Iterator[SessionInfo]:
        """Yield the sessions of the key that exist, newest first, without those that are `covered` by then."""
        looked: set[str] = set()
        is_current = False
        while not is_current:
            is_current = True
            for summary in self.sessions.directory.find(self.sessions.key, since):
                if summary.session in covered or summary.session in looked:
                    continue
                looked.add(summary.session)
                info = self.sessions.directory.owned(summary.session, self.sessions.key, fresh=True)
                if info:
                    yield info
                else:
                    is_current = False  # the process that deleted it may have continued in a session not found yet

    def read(self, journal: Journal, *, with_archived: bool = True) -> None:
        """Read every step that the lists and openings name, and the native blocks of what is alive."""
        while True:
            for homes in journal.plan.rounds(with_archived=with_archived):
                self.get(journal, homes, journal.plan.unlisted_parents())
            parents = journal.plan.unlisted_parents()
            if not parents:
                break
            self.get(journal, [], parents)
        self.sessions.last_ms = max(self.sessions.last_ms, journal.clock.ms)
        self.native_blocks = self.native_blocks_of(journal, journal.fold.alive())

    def native_blocks_of(self, journal: Journal, messages: Iterable[Message]) -> dict[Home, list[ContentBlock]]:
        """Return the native blocks of messages by step; get those that are not known."""
        needed = journal.native_homes(messages)
        known = {home: self.native_blocks[home] for home in needed if home in self.native_blocks}
        missing = [home for home in needed if home not in known]
        owned = self.sessions.owned((home.session for home in missing), journal.heads)
        found = dict(self.sessions.client.fetch(home for home in missing if home.session in owned))
        self._miss(journal, (home.session for home in missing if not found.get(home)))
        # Remembered as empty if missing or of another conversation, so that no read requests it again.
        return known | {home: step[0] if (step := found.get(home)) else [] for home in missing}

    def get(self, journal: Journal, homes: Iterable[Home], parents: Iterable[str]) -> None:
        """Get steps and list parents, in parallel; sessions of other conversations are passed over."""
        homes = list(homes)
        known = {
            home.step: self.journal.plan.read[home.step]
            for home in homes
            if self.journal and home.step in self.journal.plan.read
        }
        lists, wanted = list(parents), [home for home in homes if home.step not in known]
        owned = self.sessions.owned([*lists, *(home.session for home in wanted)], journal.heads)
        jobs: list[Callable[[], Any]] = [
            functools.partial(self.sessions.listed_or_nothing, p) if p in owned else list for p in lists
        ]
        get = self.sessions.step_or_none
        jobs += [functools.partial(get, home) if home.session in owned else lambda: None for home in wanted]
        results = self.sessions.client.pool.map(lambda job: job(), jobs)
        for parent, steps in zip(lists, results, strict=False):
            journal.plan.saw_list(parent, steps)
        for step in known.values():
            journal.absorb(step)
        for home, found in zip(wanted, results[len(lists) :], strict=True):
            self._absorb(journal, home, found)
        needed = [*lists, *(home.session for home in wanted)]
        self._miss(journal, (session for session, found in zip(needed, results, strict=True) if not found))

    def _miss(self, journal: Journal, sessions: Iterable[str]) -> None:
        """Note that sessions are gone, except for those that retention has deleted."""
        if gone := set(sessions):
            oldest, created = self.sessions.now() - RETENTION, journal.plan.covers() | self.sessions.created
            self._is_incomplete |= any(created.get(session, oldest) >= oldest for session in gone)

    def _absorb(self, journal: Journal, home: Home, found: tuple[list[ContentBlock], int] | None) -> None:
        if found is None:
            if home.session in journal.heads:
                self.sessions.client.get(home.session)  # NotFound: the session was deleted while it was read
            logger.warning(
                "conversation %s: step %s of session %s is listed or named, but not there",
                *(self.sessions.name, home.step, home.session),
            )
            journal.plan.lost(home)
            return
        payload, at = found
        self.keep_native_blocks(home, payload)
        journal.absorb(read_step(home, payload, at, skip_newer=self.sessions.settings.skip_newer))

    def keep_native_blocks(self, home: Home, payload: list[ContentBlock]) -> None:
        """Keep the content blocks of a step if there are images among them."""
        if any("image" in block for block in payload):
            self.native_blocks[home] = payload

    def switch_to(self, journal: Journal) -> None:
        """Make this what is known."""
        # A step that was sent without a reply may still arrive: the next step must have a later id.
        journal.clock.ms = max(journal.clock.ms, self.journal.clock.ms if self.journal else 0)
        self.journal = journal
        self.sessions.keep_only(journal.heads)

    def drop(self) -> None:
        """Drop what was read; the next call reads it again."""
        if self.journal is not None:
            self.sessions.last_ms = max(self.sessions.last_ms, self.journal.clock.ms)
        self.journal = None
        self.native_blocks = {}

    def held(self) -> int:
        """Return the approximate bytes of memory that this takes."""
        native_blocks = sum(_held(block) for payload in self.native_blocks.values() for block in payload)
        return native_blocks + (self.journal.held() if self.journal else 0)

    # Status

    def unopened_sessions(self, journal: Journal) -> list[SessionInfo]:
        """Return the sessions of the key that no process has opened: a writer crashed, or another was faster."""
        return [info for session, info in self.others(journal).items() if not self.sessions.has_opening(session)]

    def complete_until(self, journal: Journal) -> int | None:
        """Return the time in ms at which the service deletes the first session that is needed, None if never."""
        sessions = {*journal.heads, *(s.home.session for s in journal.compaction.segments())}
        sessions |= {home.session for home in journal.native_homes(journal.fold.alive())}
        created = journal.plan.covers() | self.sessions.created
        if not sessions or not self.sessions.settings.has_retention:
            return None
        return min(created[s] for s in sessions if s in created) + RETENTION

    def texts(self, references: Sequence[tuple[Home, int]]) -> list[str]:
        """Return the texts of native blocks.

        Raises:
            StoredDataError: one is not there.

        """
        journal = self.known()
        homes = dict.fromkeys(home for home, _ in references if self.sessions.owns(home.session, journal.heads))
        found = {home: step[0] for home, step in self.sessions.client.fetch(homes) if step}
        texts = [block.get("text") for home, n in references for block in found.get(home, [])[n : n + 1]]
        if len(texts) < len(references) or None in texts:
            raise StoredDataError(
                "A part of the content is missing: its session was deleted or belongs to another conversation."
            )
        return [str(text) for text in texts]


def _held(block: ContentBlock) -> int:
    return len(block["text"]) if "text" in block else len(block["image"]["source"].get("bytes", b""))
