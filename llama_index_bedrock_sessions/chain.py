"""The sessions of one conversation: read to their end, written in the newest, continued in the next.

Here are the rules by which a conversation outlives its sessions; what a step says is in `journal.py`, what the steps
add up to in `fold.py`, how the service is called in `sessions.py`. Not locked: its conversation holds the lock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from llama_index_bedrock_sessions import blocks, directory
from llama_index_bedrock_sessions.audit import AuditCallback
from llama_index_bedrock_sessions.blocks import Content, ContentBlock
from llama_index_bedrock_sessions.directory import Directory, session_closed
from llama_index_bedrock_sessions.errors import (
    BedrockSessionsError,
    ConversationEnded,
    ConversationExists,
    ForeignSessionError,
    NewerFormatError,
    ServiceError,
    StepTooLargeError,
    StoredDataError,
    UnavailableError,
)
from llama_index_bedrock_sessions.fold import SAFE_AGE, Composed, Draft, Fold, Listed, Placed
from llama_index_bedrock_sessions.history import Cut, Past, View
from llama_index_bedrock_sessions.instrumentation import hashed
from llama_index_bedrock_sessions.invocation import entered
from llama_index_bedrock_sessions.journal import (
    BUDGET,
    VERSION,
    Change,
    Home,
    Kind,
    Message,
    MessageId,
    Place,
    Step,
    claim_place,
    dump,
    envelope,
    new_id,
    parse_id,
    read_step,
    shifted,
)
from llama_index_bedrock_sessions.media import Objects
from llama_index_bedrock_sessions.sessions import Gone, Refused, SessionInfo, Sessions, Summary, default_invocation

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
STEP_LIMIT = 50_000_000
"""Bytes of one step: 50 MB (Bedrock user guide), taken as what goes over the wire, the smallest reading of it."""
STEPS_PER_SESSION = 1000
"""Bedrock user guide, quotas."""
RETENTION = 30 * DAY
"""ms after which the service deletes a session (Bedrock user guide); from its creation, the worst reading of it."""
IMAGES_PER_STEP = 20
"""Bedrock user guide, quotas."""
CONTINUE_AT = 250
"""Steps from which a session is continued in another: botocore takes 55 ms to parse a list of 1,000."""
LIST_AFTER = 16
"""Appends without a list after which a writer lists again, so that several writers gather what the others left."""
ATTEMPTS = 8
LOOKS = 3
"""Times to look for the claim of somebody who has just begun one, before the session is closed to find out."""
METADATA, TAGS = "session/metadata/", "session/tags/"
"""Named state that begins so is metadata and tags that were added to the sessions of a conversation."""

logger = logging.getLogger("llama_index_bedrock_sessions")

Resolve = Callable[[Fold], Draft | None]


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


@dataclasses.dataclass(frozen=True)
class Passage:
    """How a conversation goes over into its next session."""

    closing: Mapping[str, Any] | None = None
    """What closes the next session as it is opened."""
    ended: Literal["refuse", "keep", "reopen"] = "refuse"
    """What becomes of one that was ended: it is not continued, it stays ended, or it takes messages again."""
    whole: bool = False
    """Whether all that is alive is carried by value: nothing refers to the sessions before."""


ORDINARY, KEPT = Passage(), Passage(ended="keep")


class Chain:
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
        self._like: list[str] = []
        """Sessions of another conversation that the first one of this shall be made like."""
        self._unlisted = 0
        self._unopened = False
        """Whether the last look found sessions of the key that nobody has opened."""
        self._validated = 0.0

    # What it takes to be up to date

    def known(self) -> Fold:
        """Return the fold as it was last read; read it if it never was."""
        if self.fold is None:
            return self.refresh()
        return self.fold

    def refresh(self, *, force: bool = False) -> Fold:
        """Return the fold as it is in the service now, or (unless `force`) was within the refresh interval."""
        if not force and self.fold is not None and time.monotonic() - self._validated < self.settings.refresh_interval:
            return self.fold
        for _ in range(ATTEMPTS):
            try:
                if self.fold is not None and self.fold.heads and self._is_current(self.fold):
                    break
                self._find()
                break
            except Gone:
                self._forget_fold()
        else:
            raise UnavailableError("The sessions of this conversation keep changing; try again.")
        self._validated, self._unlisted = time.monotonic(), 0
        return self.known()

    def _is_current(self, fold: Fold) -> bool:
        """List the heads; return whether nobody can have continued them."""
        asked = self._old(fold.heads)
        jobs: list[Callable[[], Any]] = [functools.partial(self._list, head) for head in fold.heads]
        jobs += [functools.partial(self._is_active, head) for head in asked]
        results = self.sessions.pool.map(lambda job: job(), jobs)
        fold.horizon = self._horizon()
        for head, steps in zip(fold.heads, results, strict=False):
            fold.saw_list(head, steps)
        self._read(fold)
        if not self._directory.continues:
            return True
        full = any(len(fold.listed[head]) >= STEPS_PER_SESSION for head in fold.heads)
        if full or fold.closings or not all(results[len(fold.heads) :]):
            return False
        # The replies may have told that it is later than it seemed.
        return all(self._is_active(head) for head in self._old(fold.heads) if head not in asked)

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

    def _find(self) -> None:
        """Look in the directory for the open sessions that nothing covers, and read them. Raises Gone."""
        before = self.fold
        since = self._since(before) if before else 0
        folds: dict[str, Fold] = {}
        covered: set[str] = set()
        self._unopened = False

        def still_wanted() -> int:
            # Once an open session is found, what was created long before it needs no look any more.
            return since

        for summary in self._directory.find(self.key, still_wanted):
            if summary.session in covered:
                continue
            info = self._directory.owned(summary.session, self.key, fresh=True)
            if info is None:
                continue
            self._created[summary.session] = info.created
            steps = self._list(summary.session)
            fold = self._new_fold([summary.session])
            fold.saw_list(summary.session, steps)
            self._get(fold, next(fold.rounds()), [])
            if fold.is_open(summary.session) or not self._directory.continues:
                folds[summary.session] = fold
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
        self.natives = self._natives_of(fold, fold.alive())

    def _natives_of(self, fold: Fold, messages: Iterable[Message]) -> dict[Home, list[ContentBlock]]:
        """Return the native blocks of messages, by the steps that hold them; gets those that are not known."""
        needed = fold.native_homes(messages)
        known = {home: self.natives[home] for home in needed if home in self.natives}
        missing = [home for home in needed if home not in known]
        ours = self._ours(fold, (home.session for home in missing))
        found = dict(self.sessions.fetch(home for home in missing if home.session in ours))
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
        jobs += [functools.partial(self._step_or_none, home) if home.session in ours else _none for home in wanted]
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
        except (Gone, Refused):
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
            logger.warning(
                "conversation %s: step %s of session %s is listed or named, but not there",
                *(self.name, home.step, home.session),
            )
            fold.lost(home)
            return
        payload, at = found
        self._keep_natives(home, payload)
        fold.absorb(read_step(home, payload, at, skip_newer=self.settings.skip_newer))

    def _switch(self, fold: Fold) -> None:
        self.fold = fold
        self._closed &= set(fold.heads)
        self._invocations = {place for place in self._invocations if place[0] in fold.heads}
        self._tags = {session: tags for session, tags in self._tags.items() if session in fold.heads}

    def _forget_fold(self) -> None:
        if self.fold is not None:
            self._clock = max(self._clock, self.fold.clock)
        self.fold = None
        self.natives = {}

    # How it stands

    def orphans(self, fold: Fold) -> list[Summary]:
        """Return the sessions of the key that nobody has opened: a writer died, or another was faster."""
        ours = {*fold.heads, *fold.covers()}
        found = [s for s in self._directory.find(self.key, lambda: self._since(fold)) if s.session not in ours]
        found = [s for s in found if self._directory.owned(s.session, self.key)]
        return [s for s in found if not any(_is_opening(x.home.step) for x in self._list_or_nothing(s.session))]

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
        alone = self.sessions.pool.map(self._alone, [*fold.covers(), *fold.heads])
        return Past(told for each in (fold, *alone) for told in each.told())

    def _alone(self, session: str) -> Fold:
        """Read one session by itself, whatever those after it say of it."""
        now = self.known()
        fold = self._new_fold([session])
        with contextlib.suppress(Gone):  # deleted meanwhile
            if session in now.heads:
                fold.saw_list(session, now.listed[session].values())
            elif self._is_ours(now, session):
                fold.saw_list(session, self._list_or_nothing(session))
            for homes in fold.rounds():
                for home in homes:
                    if home.session != session:
                        fold.lost(home)
                self._get(fold, [home for home in homes if home.session == session], [])
        return fold

    def view(self, past: Past, cut: Cut) -> tuple[View, dict[Home, list[ContentBlock]]]:
        """Return the conversation at a cut, and the native blocks of its messages; gets what was removed since."""
        view = past.at(cut)
        for home, found in self.sessions.fetch(view.missing):
            if found:
                past.absorb(read_step(home, *found, skip_newer=True))
        view = past.at(cut) if view.missing else view
        return view, self._natives_of(self.known(), [message for _, message in view.messages if message])

    # Appending

    def append(self, resolve: Resolve, *, fresh: bool = False, passage: Passage = ORDINARY) -> None:
        """Write what `resolve` makes of the fold, in this session or the next; `fresh`: it has just been listed.

        `passage`: how it goes over into the next.
        """
        looked = False
        for _ in range(ATTEMPTS):
            if self.fold is None or self._unlisted >= LIST_AFTER or not (self.fold.heads or fresh):
                self.refresh()
            fold, fresh, looked = self.known(), False, looked or fresh
            self._refuse_other_keys(fold)
            if self._must_continue(fold):
                try:
                    if self._continue(fold, resolve, passage):
                        return
                except ConversationEnded:
                    if looked:
                        raise
                    looked = bool(self.refresh(force=True))  # somebody may have reopened it
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
        if not self._directory.continues:
            return False
        head = fold.heads[0]
        steps = fold.listed[head]
        now = self.sessions.clock.now()
        idle = now - fold.latest.get(head, now) > HOUR
        return idle or len(steps) >= CONTINUE_AT or now - self._created[head] > DAY or bool(fold.closings)

    def _write(self, fold: Fold, draft: Draft) -> None:
        place = self._choose_place(fold.heads[0], draft)
        reused = self._upload(draft)
        placed = self._place(draft, place)
        composed = fold.compose(place, draft, placed, self.sessions.clock.now())
        self.sessions.put(composed.step.home, fold.clock, composed.payload)
        fold.stored(composed)
        self._clock = max(self._clock, fold.clock)
        self._keep_natives(composed.step.home, composed.payload)
        self._upload_again(reused)

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

    def _keep_natives(self, home: Home, payload: list[ContentBlock]) -> None:
        if any("image" in block for block in payload):
            self.natives[home] = payload

    def _after_refusal(self, fold: Fold, refusal: Gone | Refused) -> None:
        """Find out what a refusal means: never from the error, always from the session's status."""
        head = fold.heads[0]
        try:
            status = self.sessions.get(head).status
        except Gone:
            logger.info("conversation %s: session %s is gone; looking for another", self.name, head)
            self._forget_fold()
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

    def attach(self, texts: Sequence[str]) -> list[tuple[Home, int]]:
        """Write texts as attachments, each a step, and return the references that are to be written next."""
        written: list[tuple[Home, int]] = []
        for fold in self._writable():
            place = (fold.heads[0], default_invocation(fold.heads[0]))
            try:
                for text in texts[len(written) :]:
                    written.append((self._attach(place, [{"text": text}]), 0))  # noqa: PERF401 - may be interrupted
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            break
        return written

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

    def _writable(self) -> Iterator[Fold]:
        """Yield what is known while there is one session that seems to take writes, which is opened if need be."""
        for _ in range(ATTEMPTS):
            fold = self.known()
            self._refuse_other_keys(fold)
            if self._must_continue(fold):
                self._continue(fold, _no_draft)
            else:
                yield fold
        raise UnavailableError("The conversation could not be continued in a session that takes writes; try again.")

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
                parents = {parent for opening in fold.openings[head] for parent in opening.parents}
                before = self._claims(of, parents)
                draft = resolve(fold)
                if before or draft is None:
                    return next(iter(before), None)
                home = Home(head, *claim_place(of, head))
                if not self.sessions.create_invocation(*home[:2]):
                    theirs = next((claim for _ in range(LOOKS) for claim in self._claims(of, [head])), None)
                    if theirs:
                        return theirs
                    self._continue(fold, _no_draft)
                    continue
                composed = fold.bare(home, draft, self.sessions.clock.now())
                self.sessions.put(home, fold.clock, composed.payload)
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            fold.stored(composed)
            self._clock = max(self._clock, fold.clock)
            found = {s.session for s in self._directory.find(self.key, functools.partial(self._since, fold))}
            others = {s for s in found - {head, *fold.covers()} if self._directory.owned(s, self.key)}
            return next(iter(self._claims(of, others)), None)
        return None

    def _claims(self, of: str, sessions: Iterable[str]) -> list[Change]:
        """Return the claims that are in some sessions, however late they are listed."""
        found = self.sessions.fetch(Home(session, *claim_place(of, session)) for session in sessions)
        steps = [read_step(home, *step, skip_newer=self.settings.skip_newer) for home, step in found if step]
        return [change for step in steps for _, change in step.contents[:1] if change]

    # Beginning with all that another conversation has

    def begin(self, copies: Sequence[Copy], draft: Draft, like: Iterable[str], prepare: Callable[[], object]) -> None:
        """Write messages, and last the draft, to a key that has nothing: all is there at once, or nothing.

        Nothing is until the opening step is stored; what was written before it then stays in a session nobody has
        opened, which the next who writes to the key takes. The session is made like those of another conversation.
        `prepare` is called before anything is written.

        Raises:
            ConversationExists: there are messages or state, or somebody else began at the same moment. Whoever sees
                that takes back what he wrote: of two at once, one or none succeeds (if sessions are not listed late).

        """
        drafts = _drafts(copies, draft)
        try:
            self._like = list(like)
            for _ in range(ATTEMPTS):
                fold = self.refresh(force=True)
                if fold.alive() or fold.state():
                    raise ConversationExists(f"There is a conversation {self.key!r} already. Take another key.")
                prepare()
                _number(drafts, max(self.sessions.clock.now(), fold.clock + 1))
                if self._continue(fold, lambda _: drafts[-1]):
                    break
            else:
                raise UnavailableError(f"The conversation {self.key!r} could not be begun; try again.")
        finally:
            self._like = []
        try:
            self._yield_to_others(drafts)
        except ServiceError as error:
            error.may_have_happened = True
            raise

    def _yield_to_others(self, drafts: Sequence[Draft]) -> None:
        with contextlib.suppress(Gone):  # deleted meanwhile
            self._find()
        fold = self.known()
        if sum(_is_opening(step) for head in fold.heads for step in fold.listed[head]) == 1:
            return
        mine = {draft.id for draft in drafts if draft.id}
        for _ in range(ATTEMPTS):
            withdrawal = _withdrawal(self.known(), mine, drafts[-1].state)
            if withdrawal is None:
                break
            self.append(functools.partial(_same, withdrawal))
            # Somebody may have withdrawn at the same moment, and brought back what we had.
            self.refresh(force=True)
        raise ConversationExists(
            f"Somebody else began the conversation {self.key!r} at the same moment. Take another key."
        )

    # Continuing in another session

    def _continue(self, fold: Fold, resolve: Resolve, passage: Passage = ORDINARY) -> bool:
        """Write in a new session that continues every head (or in the first one); False: start again.

        Nothing is written from memory: the heads are closed first and then read to their end.
        """
        try:
            self._refuse_if_newer(fold)
            self._refuse_if_ended(fold, passage)
            self._refuse_if_not_continued(fold)
            for head in fold.heads:
                if head not in self._closed:
                    self._seal(head, "continued", fold)
            parents = {p for head in fold.heads for o in fold.openings[head] for p in o.parents}
            for head in fold.heads:
                fold.saw_list(head, self._list(head))
            closing = self._refuse_if_ended(fold, passage)
            self._get(fold, [], parents)
            self._read(fold)
            self._refuse_if_newer(fold)
            return self._open_next(fold, resolve, dataclasses.replace(passage, closing=closing))
        except Gone:
            self._forget_fold()
            return False

    def _refuse_if_newer(self, fold: Fold) -> None:
        if fold.newer:
            raise NewerFormatError(
                f"The conversation {self.key!r} holds steps of a newer format, which would be left behind: a "
                "session of it is full or closed, and only the newer release can continue it in another."
            )

    def _refuse_if_ended(self, fold: Fold, passage: Passage) -> Mapping[str, Any] | None:
        """Return what closes the next session."""
        ended = None if passage.ended == "reopen" else self.ended(fold)
        if ended is not None and passage.ended == "refuse":
            raise ConversationEnded(
                f"The conversation {self.key!r} was ended and takes no more messages. Nothing was written. "
                "reopen() of the conversation lets it go on."
            )
        return passage.closing or ended

    def ended(self, fold: Fold) -> Mapping[str, Any] | None:
        """Return what the closing says that ended the conversation; None if none did."""
        for closing in fold.closings:
            step = fold.read.get(closing.home.step) or self._read_one(closing.home)
            if step and step.closing and step.closing.get("reason") == "ended":
                return step.closing
        return None

    def _refuse_if_not_continued(self, fold: Fold) -> None:
        if self._directory.continues:
            return
        if not fold.heads:
            raise session_closed(self.key, "is not there (any more)")
        status = self.sessions.get(self.key).status
        raise session_closed(self.key, f"takes no more messages (it is {'full' if status == 'ACTIVE' else status})")

    def _seal(self, session: str, reason: str, fold: Fold | None = None) -> None:
        """Write a closing step and end the session, until that succeeds or the closing step is refused. Raises Gone."""
        for _ in range(ATTEMPTS):
            if self._try_to_seal(session, reason, fold):
                return
        raise UnavailableError(f"Session {session} cannot be ended; try again.")

    def _try_to_seal(self, session: str, reason: str, fold: Fold | None) -> bool:
        try:
            self._put_closing(session, {"reason": reason}, fold)
        except Refused:
            # DeleteSession refuses what is still ACTIVE: a full session, say.
            return reason == "continued" or self._has_ended(session)
        except Gone:
            # The session is gone, which EndSession will say, or never had our invocation.
            return self._has_ended(session)
        return self.sessions.end(session)

    def _put_closing(self, session: str, closing: Mapping[str, Any], fold: Fold | None) -> Listed:
        ms = max(self.sessions.clock.now(), (fold.clock if fold else self._clock) + 1)
        home = Home(session, default_invocation(session), new_id(ms, Kind.CLOSING))
        self.sessions.put(home, ms, [envelope({"closing": closing}, {})])
        return Listed(home, ms)

    def _has_ended(self, session: str) -> bool:
        """End a session; return whether it takes no more writes."""
        return self.sessions.end(session) or self.sessions.get(session).status != "ACTIVE"

    def _open_next(self, fold: Fold, resolve: Resolve, passage: Passage) -> bool:
        void: set[str] = set(fold.heads) | set(fold.covers())
        mine: Summary | None = None
        parents: dict[str, SessionInfo] = {}
        for attempt in range(ATTEMPTS):
            # The first session of a key: the look that found nothing to take has just been taken.
            look = attempt or fold.heads or self._unopened
            found = list(self._directory.find(self.key, lambda: self._since(fold))) if look else []
            if mine and mine.session not in {s.session for s in found}:
                found.append(mine)
            unknown = [i for s in found if s.session not in void and (i := self._directory.owned(s.session, self.key))]
            candidates = [
                Summary(i.session, i.status, i.created, i.arn)
                for i in sorted(unknown, key=lambda i: (i.created, i.session))
            ]
            # Not of the one just created: should somebody have opened it, two openings of a session are one fold.
            if any(self._has_opening(s.session) for s in candidates if not mine or s.session != mine.session):
                self._forget_fold()
                return False
            if not candidates and not mine:
                mine = self._create(fold)
                continue
            parents = {head: self.sessions.get(head) for head in fold.heads or self._like}
            present = [s.session for s in found]
            for summary in candidates:
                if not self._may_open(summary, mine, parents):
                    logger.info("conversation %s: passes over session %s, unopened", self.name, summary.session)
                elif self._open(fold, summary, resolve, passage, present):
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
        return any(_is_opening(s.home.step) for s in self._list(session))

    def _create(self, fold: Fold) -> Summary:
        """Create a session with what was said for this conversation, what the one before had, and the store's own."""
        settings = self.settings
        own, tags, key_arn = dict(settings.session_metadata), dict(settings.tags), settings.encryption_key_arn
        for head in fold.heads or self._like:
            before = self._directory.info(head)
            own.update(directory.own_metadata(before))
            tags.update(self._tags_of(before))
            key_arn = key_arn or before.encryption_key_arn
        own.update({**fold.named(METADATA), **settings.own_metadata})
        tags.update({**fold.named(TAGS), **settings.own_tags})
        metadata = directory.metadata(self.key, settings.namespace, VERSION, own.items())
        summary = self.sessions.create(metadata, tags, key_arn)
        self._created[summary.session] = summary.created
        self._tags[summary.session] = tags
        self._directory.add(
            SessionInfo(
                summary.session, summary.status, summary.created, summary.created, metadata, key_arn, summary.arn
            )
        )
        return summary

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

    def _may_open(self, candidate: Summary, mine: Summary | None, parents: Mapping[str, SessionInfo]) -> bool:
        if mine and candidate.session == mine.session:
            return True
        info = self.sessions.get(candidate.session)
        wanted = self.settings.encryption_key_arn
        keys = {wanted} if wanted else {p.encryption_key_arn for p in parents.values()} or {None}
        return info.status == "ACTIVE" and info.encryption_key_arn in keys

    def _open(self, fold: Fold, summary: Summary, resolve: Resolve, passage: Passage, present: Iterable[str]) -> bool:
        """Write the opening step; False if the session does not take it."""
        place = (summary.session, default_invocation(summary.session))
        self._created[summary.session] = summary.created
        undo: Callable[[], None] = _none
        try:
            self.sessions.create_invocation(*place)
            draft = resolve(fold)
            place = self._choose_place(summary.session, draft)
            reused = self._upload(draft)
            placed = self._place(draft, place) if draft else Placed()
            dead = draft.removed if draft else frozenset()
            self._renew_media(fold)
            undo = self._copy_natives(fold, place, dead, whole=passage.whole)
            composed = self._compose_opening(fold, draft, placed, place, passage, present=present)
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
        except (Gone, Refused) as refusal:
            undo()
            logger.info(
                "conversation %s: session %s takes no opening: %s",
                *(self.name, summary.session, getattr(refusal, "code", "it is gone")),
            )
            self._raise_if_own_fault(summary.session, refusal)
            return False
        except BaseException:
            undo()  # what was copied is in a session that may never be opened
            raise
        self._clock = max(self._clock, fold.clock)
        before = ", ".join(fold.heads)
        logger.info(
            "conversation %s: goes on in session %s after %s" if before else "conversation %s: begins in session %s%s",
            *(self.name, summary.session, before),
        )
        self._adopt(composed.step, composed.payload)
        self._upload_again(reused)
        if passage.closing:
            self._finish(summary.session)
        return True

    def _raise_if_own_fault(self, session: str, refusal: Gone | Refused) -> None:
        """Raise a refusal that no other session would cure: this one is ACTIVE, unopened, and has room."""
        if isinstance(refusal, Gone) or self.sessions.get(session).status != "ACTIVE":
            return
        steps = self._list(session)
        if len(steps) < STEPS_PER_SESSION and not any(_is_opening(s.home.step) for s in steps):
            raise refusal.error() from refusal

    def _compose_opening(
        self,
        fold: Fold,
        draft: Draft | None,
        placed: Placed,
        place: Place,
        passage: Passage,
        *,
        present: Iterable[str],
    ) -> Composed:
        """Return the opening, with what is about to leave retention carried: what is too much, in attachments."""
        now, created = self.sessions.clock.now(), self._created_of(fold)
        *groups, last = fold.perishable(created, now, whole=passage.whole)
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
        opening = dataclasses.replace(fold.opening(created, now, present), segments=tuple(copies))
        copied = [segment for group in groups for segment in group]
        closing = passage.closing
        return fold.compose(place, draft, placed, now, opening=opening, closing=closing, forced=last, copied=copied)

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
        for part in _parts([natives[home][n] for home, n in old], 0):
            if part:
                attachment = self._attach(place, part)
                moves |= {old[len(moves) + n]: (attachment, n) for n in range(len(part))}
        return fold.rehome(moves) if moves else _none

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
                if self._continue(fold, _nothing, Passage(closing, ended="reopen")):
                    return True
                continue
            try:
                listed = self._put_closing(fold.heads[0], closing, fold)
            except (Gone, Refused) as refusal:
                self._after_refusal(fold, refusal)
                continue
            fold.saw_list(fold.heads[0], [listed])
            self._finish(fold.heads[0])
            return True
        raise UnavailableError("The conversation could not be ended; try again.")

    def _finish(self, session: str) -> None:
        """End a session that has been closed; that it is gone meanwhile is fine."""
        with contextlib.suppress(Gone):
            for _ in range(ATTEMPTS):
                if self._has_ended(session):
                    return
            raise UnavailableError(f"Session {session} cannot be ended; try again.", may_have_happened=True)

    def close(self) -> None:
        """End the session that is written: the next change goes to another one."""
        fold = self.known()
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
            if self._continue(fold, _nothing, passage):
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
        settings = self.settings
        own_metadata, own_tags = {**settings.own_metadata, **metadata}, {**settings.own_tags, **tags}
        self.settings = dataclasses.replace(settings, own_metadata=own_metadata, own_tags=own_tags)
        heads = self.refresh(force=True).heads
        if not heads:
            return  # the first session will have them
        draft = Draft(state=said)
        self.append(lambda _: draft, fresh=True, passage=KEPT)
        fold = self.known()
        if fold.heads != heads:
            return  # created with them
        info = self.sessions.get(fold.heads[0])
        if metadata:
            self.sessions.update(info.session, {**info.metadata, **metadata})
        if tags:
            self.sessions.tag(info.arn or info.session, tags)

    def age(self, fold: Fold) -> int:
        """Return the ms since the newest session was created."""
        return self.sessions.clock.now() - max((self._created[head] for head in fold.heads), default=0)

    def rewrite(self, removed: frozenset[MessageId]) -> None:
        """Remove messages for good: what stays alive goes to a new session by value, those before are deleted."""
        draft = Draft(removed=removed)
        for _ in range(ATTEMPTS):
            fold = self.refresh(force=True)
            self._refuse_other_keys(fold)
            if not fold.heads:
                # Deleted meanwhile; or another has moved it to a session that is listed late.
                raise UnavailableError("The sessions of this conversation cannot be found just now; try again.")
            if self._continue(fold, lambda _: draft, Passage(ended="keep", whole=True)):
                break
        else:
            raise UnavailableError("The conversation could not be continued in another session; try again.")
        fold = self.known()
        self._gather(fold)
        self._delete({session for session in fold.covers() if self._directory.owned(session, self.key)})
        for summary in self._directory.find(self.key):
            if summary.session not in fold.heads and self._directory.owned(summary.session, self.key):
                self._delete_unopened(summary.session)

    def _delete_unopened(self, session: str) -> None:
        """Delete what a crash has left of a continuation: it may hold copies. Who is about to open it takes another."""
        with contextlib.suppress(Gone, Refused):
            if not self._has_opening(session):
                self._seal(session, "deleted")
                if not self._has_opening(session):
                    self.sessions.delete(session)
                    self._directory.remove(session, self.key)

    def _gather(self, fold: Fold) -> None:
        """Carry what lists have shown late of the sessions before: they are about to be deleted."""
        head = fold.heads[0]
        parents = {p for opening in fold.openings[head] for p in opening.parents}
        self._get(fold, [], parents)
        self._read(fold)
        late = [segment for segment in fold.segments() if segment.home.session != head]
        if late:
            place = (head, default_invocation(head))
            self._copy_natives(fold, place, frozenset(), whole=True)
            composed = fold.compose(place, None, Placed(), self.sessions.clock.now(), forced=late)
            self.sessions.put(composed.step.home, fold.clock, composed.payload)
            fold.stored(composed)

    def erase(self) -> list[str]:
        """Delete every session of the key, oldest first, until none is listed; return which."""
        fold = self.refresh()
        if fold.alive() and not self._must_continue(fold):
            # Whoever continues the head meanwhile inherits an empty conversation.
            with contextlib.suppress(Gone, Refused):
                self._write(fold, Draft(removed=frozenset(m.id for m in fold.alive())))
        deleted = self._delete({*fold.heads, *fold.covers()}, others=True)
        self._forget_fold()
        return deleted

    def _delete(self, doomed: set[str], *, others: bool = False) -> list[str]:
        """Delete sessions, oldest first, until they are gone, and then what is in S3 and nobody refers to.

        The `others` of the key too, and what continues them. Returns those that were there.
        """
        deleted: dict[str, None] = {}
        first = stored = self._media()
        for attempt in range(ATTEMPTS):
            stored = self._media() if attempt else first
            named = [s.session for s in self._directory.find(self.key)]
            owned = self.sessions.pool.map(lambda session: self._directory.owned(session, self.key), named)
            found = {info.session: info.created for info in owned if info}
            if others:
                doomed |= {s for s in found if s not in doomed and (attempt == 0 or self._continues(s, doomed))}
            # A session may be listed late: what is known of it is that it has not been deleted.
            left = [s for s in doomed if s in found or (attempt == 0 and self._directory.owned(s, self.key))]
            if not left:
                # Where no session is, all that was in S3 before is of those deleted; else it goes on, or begins anew.
                self._delete_media(first if found else stored, others=bool(found))
                return list(deleted)
            for session in sorted(left, key=lambda s: (found.get(s, self._created.get(s, 0)), s)):
                self._delete_session(session)
                deleted[session] = None
        raise UnavailableError("Sessions of this conversation are still listed; call again to delete them.")

    def _continues(self, session: str, doomed: set[str]) -> bool:
        """Whether a session that was not there when the deletion began continues one that was, or is not open yet."""
        steps = self._list_or_nothing(session)
        openings = [step for s in steps if _is_opening(s.home.step) and (step := self._read_one(s.home))]
        covered = {s for step in openings if step.opening for s in step.opening.covers}
        return not openings or not covered.isdisjoint(doomed)

    def _read_one(self, home: Home) -> Step | None:
        found = self._step_or_none(home)
        return read_step(home, *found, skip_newer=True) if found else None

    def _delete_session(self, session: str) -> None:
        try:
            self._seal(session, "deleted")
            self.sessions.delete(session)
            self._directory.remove(session, self.key)
        except (Gone, Refused):
            # Refused: somebody wrote in between, or it is listed as it was; the next look shows it.
            logger.info("conversation %s: session %s is not deleted yet", self.name, session)
        else:
            logger.info("conversation %s: session %s is deleted", self.name, session)

    # Content that is not in steps

    def _upload(self, draft: Draft | None) -> Mapping[str, Content]:
        """Have the contents of a draft in S3; return those that were there: somebody may be about to delete them."""
        media = self.settings.media
        return media.upload(draft.messages.contents) if media and draft and draft.messages.contents else {}

    def _upload_again(self, reused: Mapping[str, Content]) -> None:
        """Look once more for what was there before the step was written: now that it is, nobody deletes it."""
        try:
            if self.settings.media and reused:
                self.settings.media.upload(reused)
        except BedrockSessionsError as error:
            error.may_have_happened = True
            raise

    def _renew_media(self, fold: Fold) -> None:
        """Let what is alive in S3 live as long as the session that is about to be opened."""
        oldest = self.sessions.clock.now() - SAFE_AGE
        of_old = [m for m in fold.alive() if (parsed := parse_id(m.id[0])) and parsed.ms < oldest]
        if not (old := {sha256 for message in of_old for sha256 in blocks.objects(message.record)}):
            return
        if self.settings.media:
            self.settings.media.renew(old)
        else:
            logger.warning("%d contents in S3 are not renewed: the chat store was made without media=", len(old))

    def _media(self) -> Iterable[str]:
        return self.settings.media.listed() if self.settings.media else ()

    def _delete_media(self, stored: Iterable[str], *, others: bool) -> None:
        """Delete objects of the conversation; with `others`, all but those of sessions that were begun meanwhile."""
        if not (self.settings.media and stored):
            return
        try:
            alive = self.refresh(force=True).alive() if others else ()
            used = {sha256 for message in alive for sha256 in blocks.objects(message.record)}
            self.settings.media.delete(sha256 for sha256 in stored if sha256 not in used)
        except BedrockSessionsError as error:
            error.may_have_happened = True  # the sessions are gone; calling again deletes the rest
            raise

    # Content that takes more than a step

    def _place(self, draft: Draft, place: Place) -> Placed:
        """Write what does not fit into the draft's own step as attachments before it, and say what is where."""
        if _is_small(draft.messages):
            return Placed()
        parts = _parts(draft.messages.blocks, sum(json_size(dump(r)) for r in draft.messages.records))
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


class Copy(NamedTuple):
    """A message with all that it needs, and whether it is archived."""

    content: blocks.Encoded
    archived: bool


def _drafts(copies: Iterable[Copy], last: Draft) -> list[Draft]:
    """Return copies as the fewest drafts that fit into a step each; the last is `last`, with the others as parts."""
    groups: list[list[Copy]] = [[]]
    size, images = 0, 0
    for copy in copies:
        weight = sum(_wire_size(block) for block in copy.content.blocks) + json_size(dump(copy.content.records[0]))
        pictures = sum("image" in block for block in copy.content.blocks)
        if groups[-1] and (size + weight > STEP_LIMIT - 2_000_000 or images + pictures > IMAGES_PER_STEP):
            groups.append([])
            size, images = 0, 0
        groups[-1].append(copy)
        size, images = size + weight, images + pictures
    parts = [Draft() for _ in groups[1:]]
    drafts = [*parts, last]
    for draft, group in zip(drafts, groups, strict=True):
        draft.messages = _joined(copy.content for copy in group)
        draft.archived = frozenset(("", position) for position, copy in enumerate(group) if copy.archived)
    last.parts = parts
    return drafts


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


def _number(drafts: Iterable[Draft], ms: int) -> None:
    """Give drafts ids in their order: what archives its own messages has to name itself."""
    for number, draft in enumerate(drafts):
        draft.id = new_id(ms + number, Kind.CHANGE)
        draft.archived = frozenset((draft.id, position) for _, position in draft.archived)


def _joined(several: Iterable[blocks.Encoded]) -> blocks.Encoded:
    whole = blocks.Encoded([], [])
    for encoded in several:
        whole.records.extend(shifted(record, len(whole.blocks)) for record in encoded.records)
        whole.blocks.extend(encoded.blocks)
    return whole


def refuse_too_large(encoded: blocks.Encoded) -> None:
    """Refuse messages of which something does not fit into a step. Raises StepTooLargeError."""
    if _is_small(encoded):
        return
    for block in encoded.blocks:
        refuse_size(_wire_size(block))
    refuse_size(sum(json_size(dump(record)) for record in encoded.records))


def refuse_size(size: int) -> None:
    """Refuse what does not fit into a step; `size` in bytes on the wire. Raises StepTooLargeError."""
    if size > STEP_LIMIT - 1_000_000:
        raise StepTooLargeError(
            f"{size / 1e6:.1f} MB do not fit into one invocation step, which holds 50 MB (Bedrock's limit). "
            "Nothing was stored. Images, audio, video and documents of any size can be kept in S3, by the chat store's "
            "argument media=; put the URL of all else into the message."
        )


def _is_small(encoded: blocks.Encoded) -> bool:
    """Whether it fits into a step by far, so that it need not be measured: a character takes 12 bytes at most."""
    texts = sum(len(block["text"]) if "text" in block else STEP_LIMIT for block in encoded.blocks)
    return 12 * (texts + sum(len(dump(record)) for record in encoded.records)) < STEP_LIMIT // 10


def _is_opening(step: str) -> bool:
    parsed = parse_id(step)
    return parsed is not None and parsed.kind is Kind.OPENING


def json_size(text: str) -> int:
    """Return the bytes of a text in botocore's JSON, which escapes all that is not ASCII."""
    return len(json.dumps(text))


def _wire_size(block: ContentBlock) -> int:
    if "text" in block:
        return json_size(block["text"])
    return len(block["image"]["source"].get("bytes", b"")) * 4 // 3 + 1200  # an s3Location has up to 1,024


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


def _no_draft(_: Fold) -> None:
    """Say that there is nothing to write: what a session is opened with where something else is to be written."""


def _none() -> None:
    """Do nothing, and return nothing: a job that is not done, an undo that has nothing to undo."""


def _nothing(_: Fold) -> None:
    """Have no change to write: a conversation is continued for its own sake."""
