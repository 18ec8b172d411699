"""What the next step carries, and what the opening of the next session carries and names.

Theory of operation. A list of steps comes without their content, so a plain log would cost a reader one get for each
step. Every step therefore carries earlier changes again, as a log-structured store merges small segments into larger
ones.

1. A *segment* is a step and those of its changes that no newer step carries. `segments` are the fewest steps that hold
   all that is known, newest first.
2. The next step takes the smallest segments first, as long as each is no larger than a quarter more than what the step
   has by then. So a change of n bytes is carried again only after about n newer bytes: about log2 times in all, and a
   reader gets about log2 steps (a binary counter). A step carries 512 KB at most.
3. A carried change lacks what no longer counts: removed messages, state that a later change has set.
4. The id of a step holds a *hint*: how many of the newest ids before it the step carries. A reader skips those. What a
   step neither carries nor hints at it *names*.
5. An opening names the segments of earlier sessions that still count, with what of them is dead or archived. It carries
   by value what is about to leave retention, what refers to it, and what is mostly dead (`expiring_segments`). What is
   too much for one step goes to attachments before it.

What cannot be read, because it is damaged or of a newer format, is never carried: it stays where it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.draft import Composed, Draft, Placed
from llama_index_bedrock_sessions._journal.encoding import (
    carried_json,
    envelope,
    facts_json,
    opening_json,
    own_json,
    own_records,
)
from llama_index_bedrock_sessions._journal.fetch_plan import FetchPlan
from llama_index_bedrock_sessions._journal.fold import NEVER, Fold, Key
from llama_index_bedrock_sessions._journal.ids import (
    HINT_MAX,
    Home,
    IdClock,
    Kind,
    MessageId,
    Place,
    kind_of,
    new_id,
    parse_id,
)
from llama_index_bedrock_sessions._journal.model import BUDGET, Change, Inherited, Message, Opening, Segment, Step
from llama_index_bedrock_sessions._journal.values import JSON, dump

OVERHEAD = 80
"""Bytes that a carried change costs besides its content: its id and punctuation."""
SAFE_AGE = 9 * 24 * 3600 * 1000
"""ms after which a session's content is carried into the next one, so that all that is alive has 20 days to live."""
STALE_AGE = 2 * 3600 * 1000
"""ms for which openings repeat what was removed: longer than an unopened session lives."""
COVERED_AGE = 31 * 24 * 3600 * 1000
"""ms after its creation for which an unlisted session is remembered: longer than the service keeps it."""


class Compaction:
    """Composes the steps of a conversation from what is known (`fold`) and where it was read (`plan`)."""

    def __init__(self, heads: Collection[str], fold: Fold, plan: FetchPlan, clock: IdClock) -> None:
        self._heads = heads
        self._fold = fold
        self._plan = plan
        self._clock = clock
        self._sources: dict[str, Segment] = {}
        """By step that was read, the step with all changes that it holds."""
        self._facts: dict[str, tuple[Change, int]] = {}
        """The bytes of what a change contains besides messages and state."""
        self._segments: list[Segment] | None = None
        self._weights: dict[str, int] = {}
        """The bytes it takes to carry each segment."""

    # Segments

    def add_source(self, segment: Segment) -> None:
        """Record a step that holds changes."""
        self._sources[segment.home.step] = segment

    def sources(self) -> Iterable[Segment]:
        """Return the steps that hold changes, with all changes that each holds."""
        return self._sources.values()

    def reset(self) -> None:
        """Compute the segments again when they are next used: something was read."""
        self._segments = None
        self._weights.clear()

    def segments(self) -> list[Segment]:
        """Return the fewest steps that hold all that is known, found from the newest to the oldest."""
        if self._segments is None:
            remaining = {change_id for change_id in self._fold.known if self._matters(change_id)}
            self._segments = []
            for step_id in sorted(self._sources, reverse=True):
                source = self._sources[step_id]
                mine = tuple(c for c in source.changes if c in remaining)
                if mine:
                    self._segments.append(source._replace(changes=mine))
                    remaining.difference_update(mine)
        return self._segments

    def _matters(self, change_id: str) -> bool:
        if change_id in self._plan.source_step:
            return True
        pruned = self._pruned(change_id, frozenset(), self._fold.last_set)
        return bool(pruned.messages or pruned.state or pruned.origin) or self._fold.is_marking(pruned)

    def size(self, segment: Segment) -> int:
        """Return the bytes it takes to carry a segment."""
        if segment.home.step not in self._weights:
            self._weights[segment.home.step] = sum(self._size(change_id) for change_id in segment.changes)
        return self._weights[segment.home.step]

    def _size(self, change_id: str) -> int:
        change = self._fold.known[change_id]
        alive = 0
        if self._fold.counts(change):
            alive = sum(m.size for p, m in change.messages.items() if not self._fold.is_dead((change_id, p)))
        state = self._fold.live_state(change)
        return OVERHEAD + self._facts_size(change) + alive + (len(dump(state).encode()) if state else 0)

    def _facts_size(self, change: Change) -> int:
        measured, size = self._facts.get(change.id, (None, 0))
        if measured is not change:
            facts = {name: value for name, value in facts_json(change).items() if name != "state"}
            size = len(dump(facts).encode()) if facts else 2
            self._facts[change.id] = change, size
        return size

    # The next step

    def compose(
        self,
        home: Place,
        draft: Draft | None,
        placed: Placed,
        now: int,
        *,
        opening: Opening | None = None,
        forced: Sequence[Segment] = (),
        copied: Sequence[Segment] = (),
    ) -> Composed:
        """Return the next step for (session, invocation): the draft, what it carries, and what it names.

        `now` is the service's time in ms. `forced` segments are carried whatever their size. Of an opening, the
        segments that were `copied` into attachments are in its `segments` already; those it leaves are added there.
        """
        take, left = self._choose(OVERHEAD + (draft.size() if draft else 0), forced, copied)
        ms = self._clock.advance(now)
        kind = Kind.OPENING if opening else Kind.CHANGE
        carried_ids = {c for segment in take for c in segment.changes}
        step_id = new_id(ms, kind, 0 if opening else self._hint(home[0], carried_ids))
        where = Home(*home, step_id)
        own, body, payload = _own(draft, placed, where)
        dead = own.removed if own else frozenset()
        last_set = max(self._fold.last_set, own.key) if own and own.is_set else self._fold.last_set
        source = self._plan.source_step
        carried = [(source.get(c, c), self._pruned(c, dead, last_set)) for c in sorted(carried_ids)]
        if opening:
            carried = [(c.id, self._handed_down(c)) for _, c in carried]
            opening = dataclasses.replace(
                opening, segments=(*opening.segments, *(self.inherit(s, dead, last_set) for s in left))
            )
        taken = frozenset() if opening else frozenset(i for s in take for i in s.taken)
        named = () if opening else tuple(s.home for s in left if s.home.step not in self._plan.inherited)
        packed = {
            **carried_json(carried),
            "named": [list(h) for h in named],
            "taken": sorted(taken),
            "opening": opening_json(opening) if opening else None,
        }
        step = Step(where, ((step_id, own), *carried), named, taken, opening)
        return Composed(step, [*payload, envelope({"change": body}, packed)], tuple(take))

    def stored(self, composed: Composed, *, is_additive: bool) -> None:
        """Record a composed step that is in the service. `is_additive`: its change only adds messages."""
        segments = [s for s in self.segments() if s not in composed.taken]
        step, changes = composed.step, change_ids(composed.step)
        segment = Segment(step.home, changes, step.taken, own=False)
        self.add_source(segment)
        if not is_additive:
            self._weights.clear()
        self._segments = [segment, *segments] if changes else segments

    def claim_step(self, home: Home, draft: Draft, now: int) -> Composed:
        """Return a step of a given id that contains one change, whose own id is a new one, and carries nothing."""
        ms = self._clock.advance(now)
        draft.id = draft.id or new_id(ms, Kind.CHANGE)
        own, body, payload = _own(draft, Placed(), home)
        return Composed(Step(home, ((home.step, own),)), [*payload, envelope({"change": body}, {})], ())

    def _choose(
        self, size: int, forced: Sequence[Segment], copied: Sequence[Segment]
    ) -> tuple[list[Segment], list[Segment]]:
        """Return the segments that the next step carries, and those that it leaves."""
        take, left = list(forced), []
        size += sum(self.size(s) for s in forced)
        rest = (s for s in self.segments() if s not in forced and s not in copied)
        for weight, segment in sorted(((self.size(s), s) for s in rest), key=lambda x: x[0]):
            # A quarter more than what is carried already: messages of one size must not miss each other by a byte.
            fits = weight <= size * 5 // 4 and size + weight <= BUDGET and weight <= BUDGET // 2
            if fits and self._is_readable(segment):
                take.append(segment)
                size += weight
            else:
                left.append(segment)
        return take, left

    def _is_readable(self, segment: Segment) -> bool:
        return not self._plan.newer and not any(self._fold.known[c].damaged for c in segment.changes)

    def _hint(self, session: str, carried: set[str]) -> int:
        steps = {self._plan.source_step.get(c, c) for c in carried}
        hint = 0
        for step_id in self._plan.newest_ids(session):
            if step_id not in steps or hint == HINT_MAX:
                break
            hint += 1
        return hint

    def _pruned(self, change_id: str, dead: frozenset[MessageId], last_set: Key) -> Change:
        """Return what is carried of a change: all but removed and replaced messages, and superseded state.

        What the change itself removes stays in it.
        """
        change = self._fold.known[change_id]
        gone = change.is_set and change.key < last_set
        messages = {
            p: m
            for p, m in change.messages.items()
            if not gone and not self._fold.is_dead((change_id, p)) and (change_id, p) not in dead
        }
        state = self._fold.live_state(change)
        if len(messages) == len(change.messages) and len(state) == len(change.state):
            return change
        replaced = change.replaced | (change.state.keys() - state.keys())
        return dataclasses.replace(change, messages=messages, state=state, replaced=replaced)

    # The next opening

    def opening(self, created: Mapping[str, int], now: int, present: Iterable[str] = (), late: int = 0) -> Opening:
        """Return the opening of the session that continues the heads; `created` are their creation times in ms.

        It covers the heads, and what they cover for as long as that may still be found: it is `present`, or young.
        What a head continued less than `late` ms ago stays a parent: its list may lack steps.
        """
        fold, plan = self._fold, self._plan
        still = {*self._heads, *present}
        covers = {**plan.covers(), **{head: created[head] for head in self._heads}}
        ages = {opening_id: now - parsed.ms for opening_id in plan.opened if (parsed := parse_id(opening_id))}
        removed = {m for c in plan.source_step for m in fold.known[c].removed}
        recent: set[str] = set()
        for opening_id, age in ages.items():
            # A copy that a process was about to open when the messages were removed may hold them.
            removed |= plan.opened[opening_id].removed if age < STALE_AGE else frozenset()
            recent.update(plan.opened[opening_id].parents if age < late else ())
        seen = {session: plan.seen.get(session, set()) for session in {*self._heads, *recent}}
        return Opening(
            generation=plan.generation() + 1,
            covers={s: ms for s, ms in covers.items() if s in still or now - ms <= COVERED_AGE},
            parents={session: frozenset(steps | plan.covered(session)) for session, steps in seen.items()},
            removed=frozenset(removed),
            segments=(),
            last_set=fold.last_set[1] or None,
        )

    def inherit(self, segment: Segment, dead: frozenset[MessageId] = frozenset(), last_set: Key = NEVER) -> Inherited:
        """Return a segment as an opening names it: with what of it is no longer alive, or is archived."""
        contents = self._plan.read[segment.home.step].contents[: 1 if segment.own else None]
        gone: dict[int, frozenset[int]] = {}
        archived: dict[int, frozenset[int]] = {}
        archive_only = all(source_step for source_step, _ in contents)
        for position, (_, change) in enumerate(contents):
            if change is None:
                continue
            pruned = self._pruned(change.id, dead, max(last_set, self._fold.last_set))
            alive, archive_only = pruned.messages, archive_only and self._is_archive_only(pruned)
            gone[position] = frozenset(p for p in change.messages if p not in alive)
            archived[position] = frozenset(p for p in alive if self._fold.is_archived((change.id, p)))
        return Inherited(
            segment.home,
            {k: v for k, v in gone.items() if v},
            {k: v for k, v in archived.items() if v},
            segment.own,
            archive_only,
        )

    def _is_archive_only(self, change: Change) -> bool:
        """Whether all that counts of a change is archived messages."""
        is_archived = all(self._fold.is_archived((change.id, p)) for p in change.messages)
        return is_archived and not (change.state or self._fold.is_marking(change))

    def _handed_down(self, change: Change) -> Change:
        """Return a change as an opening carries it.

        The opening itself records what is removed. The change that archived its messages may be left behind.
        """
        marks = frozenset((change.id, p) for p in change.messages if self._fold.is_archived((change.id, p)))
        return dataclasses.replace(change, removed=frozenset(), archived=change.archived | marks)

    def expiring_segments(self, created: Mapping[str, int], now: int, *, by_value: bool = False) -> list[list[Segment]]:
        """Return the segments that the next opening has to carry, in groups of up to 512 KB.

        Those are in a session older than nine days, or refer to one (see `Fold.relocate_blocks`), or are mostly dead;
        with `by_value`, all.
        """
        groups: list[list[Segment]] = [[]]
        size = 0
        for segment in self.segments():
            if not by_value and not self._must_be_carried(segment, created, now):
                continue
            weight = self.size(segment)
            if groups[-1] and size + weight > BUDGET:
                groups.append([])
                size = 0
            groups[-1].append(segment)
            size += weight
        return groups

    def _must_be_carried(self, segment: Segment, created: Mapping[str, int], now: int) -> bool:
        if not self._is_readable(segment):
            return False
        moved = not self._fold.moved.isdisjoint(segment.changes)
        return moved or self._is_old(segment.home, created, now) or self._is_mostly_dead(segment)

    def _is_old(self, home: Home, created: Mapping[str, int], now: int) -> bool:
        return now - created.get(home.session, self._plan.covers().get(home.session, 0)) > SAFE_AGE

    def _is_mostly_dead(self, segment: Segment) -> bool:
        contents = self._plan.read[segment.home.step].contents[: 1 if segment.own else None]
        stored = sum(m.size for _, c in contents if c for m in c.messages.values())
        return stored > 2 * self.size(segment)

    # Attachments

    def copy(
        self, place: Place, segments: Sequence[Segment], now: int, dead: frozenset[MessageId] = frozenset()
    ) -> tuple[Composed, Inherited]:
        """Return an attachment that carries segments, less what is about to be `dead`, and how the opening names it.

        It is recorded as read.
        """
        where = Home(*place, new_id(self._clock.advance(now), Kind.ATTACHMENT))
        ids = sorted(c for segment in segments for c in segment.changes)
        carried = [(c, self._handed_down(self._pruned(c, dead, self._fold.last_set))) for c in ids]
        step = Step(where, ((where.step, None), *carried))
        self._plan.keep(step)
        inherited = self.inherit(Segment(where, tuple(ids), frozenset(), own=False))
        return Composed(step, [envelope({"attachment": True}, carried_json(carried))], ()), inherited

    def attachment_for(self, place: Place, draft: Draft, placed: Placed, now: int) -> tuple[Composed, Inherited]:
        """Return an attachment with a change of its own, and how the opening names it. It is recorded as read."""
        where = Home(*place, new_id(self._clock.advance(now), Kind.ATTACHMENT))
        own, body, payload = _own(draft, placed, where)
        step = Step(where, ((where.step, own),))
        self._plan.keep(step)
        archived = frozenset(position for change_id, position in draft.archived if not change_id)
        inherited = Inherited(where, {}, {0: archived} if archived else {}, own=True)
        return Composed(step, [*payload, envelope({"attachment": True, "change": body}, {})], ()), inherited

    def old_native_blocks(
        self, created: Mapping[str, int], now: int, dead: frozenset[MessageId] = frozenset(), *, by_value: bool = False
    ) -> list[tuple[Home, int]]:
        """Return the native blocks of what stays alive that are in sessions older than nine days; `by_value`: all."""
        found = [reference for m in self._fold.alive() if m.id not in dead for reference in m.references()]
        found += self._fold.state_references()
        return [(home, n) for home, n in dict.fromkeys(found) if by_value or self._is_old(home, created, now)]

    def orphan_attachments(self, head: str) -> set[str]:
        """Return the attachments in a head that nothing refers to: a process has copied them and did not open it."""
        used = {home.step for home, _ in self.old_native_blocks({}, 0, by_value=True)}
        used |= {segment.home.step for opening in self._plan.openings[head] for segment in opening.segments}
        return {step for step in self._plan.listed[head] if kind_of(step) is Kind.ATTACHMENT} - used


def change_ids(step: Step, *, own: bool = False) -> tuple[str, ...]:
    """Return the ids of the changes that a step holds, or (`own`) of its own change alone."""
    return tuple(change.id for _, change in step.contents[: 1 if own else None] if change is not None)


def _own(
    draft: Draft | None, placed: Placed, where: Home
) -> tuple[Change | None, dict[str, JSON], list[message_codec.ContentBlock]]:
    """Return the own change of a step, its JSON, and the native blocks that the step holds."""
    if draft is None:
        return None, {}, []
    draft.id = draft.id or where.step
    add, homes = own_records(draft.messages, placed.homes, placed.positions)
    payload = list(placed.rest) if placed.homes else draft.messages.blocks
    resolved = tuple(home or where for home in placed.homes) or (where,)
    messages: dict[int, Message] = {}
    for position, record in enumerate(message_codec.carried(r, payload.__getitem__) for r in add):
        message = Message((draft.id, position), record, resolved, len(dump(record).encode()))
        messages[position] = message if any(True for _ in message.references()) else message._replace(homes=())
    change = draft.change(draft.id, messages, where[:2])
    body = own_json(change, where.step, add, homes)
    return change if body else None, body, payload
