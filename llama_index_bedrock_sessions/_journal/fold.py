"""What is known of a conversation: the changes that were read, what they add up to, what is still to be read.

It says which steps to get and is given what they say. It composes the next step and is told whether it was stored. A
`Fold` is made anew when a conversation moves to another session.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.encoding import (
    carried_json,
    envelope,
    facts_json,
    opening_json,
    own_json,
    own_records,
    parts_json,
)
from llama_index_bedrock_sessions._journal.ids import (
    HINT_MAX,
    YEAR_2100,
    Home,
    Kind,
    MessageId,
    Place,
    new_id,
    parse_id,
)
from llama_index_bedrock_sessions._journal.model import (
    BUDGET,
    ENDED,
    HIDDEN,
    Change,
    Inherited,
    Mark,
    Message,
    Opening,
    Segment,
    Step,
)
from llama_index_bedrock_sessions._journal.records import parts
from llama_index_bedrock_sessions._journal.values import JSON, dump

OVERHEAD = 80
"""Bytes a carried change costs besides what it says: its id and punctuation."""
CHANGE_HELD, MESSAGE_HELD, LISTED_HELD = 1300, 500, 600
"""Bytes of memory that a change, a message of it and a listed step take besides their texts: about, as measured."""
SAFE_AGE = 9 * 24 * 3600 * 1000
"""ms after which a session's content is carried into the next one, so that all that is alive has 20 days to live."""
STALE_AGE = 2 * 3600 * 1000
"""ms for which openings say again what was removed: longer than a session lives that no process has opened."""
COVERED_AGE = 31 * 24 * 3600 * 1000
"""ms a session is remembered for after its creation, even where it is not listed: longer than the service keeps it."""
Key = tuple[int, str]
_NEVER: Key = (-1, "")


class Listed(NamedTuple):
    """A step as `ListInvocationSteps` shows it; `time` is `invocationStepTime` in ms."""

    home: Home
    time: int


@dataclasses.dataclass(slots=True)
class Draft:
    """A change that is to be written. `homes` and `place` say where native blocks are that went into attachments.

    `id` is set once it has been sent: it keeps its id when it has to go to another session. Until then an id of "" in
    `archived` names a message of its own.
    """

    messages: message_codec.Encoded = dataclasses.field(default_factory=lambda: message_codec.Encoded([], []))
    removed: frozenset[MessageId] = frozenset()
    archived: frozenset[MessageId] = frozenset()
    is_set: bool = False
    state: Mapping[str, list[JSON]] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, Mark] = dataclasses.field(default_factory=dict)
    invocations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: JSON = None
    rewind: JSON = None
    by: str | None = None
    id: str | None = None
    parts: Sequence[Draft] = ()
    """Changes that are there once this one is: those of a fork that are too much for one step."""
    _size: int | None = None

    def size(self) -> int:
        """Return about the bytes it takes to carry the change."""
        if self._size is None:
            records = sum(len(dump(record).encode()) for record in self.messages.records)
            texts = sum(len(b["text"].encode()) for b in self.messages.blocks if "text" in b)
            self._size = records + texts + len(dump(facts_json(self.change("", {}, None))).encode())
        return self._size

    def change(self, change_id: str, messages: Mapping[int, Message], written: Place | None) -> Change:
        """Return the change that it becomes."""
        parsed = parse_id(change_id)
        return Change(
            id=change_id,
            time=parsed.ms if parsed else 0,
            messages=messages,
            removed=self.removed,
            archived=frozenset((named or change_id, position) for named, position in self.archived),
            is_set=self.is_set,
            state=self.state,
            marks=self.marks,
            invocations=self.invocations,
            origin=self.origin,
            rewind=self.rewind,
            by=self.by,
            written=written,
            count=len(messages),
        )


class Placed(NamedTuple):
    """Where a draft's native blocks are: block i is block `place[i][1]` of `homes[place[i][0]]`; None: this step."""

    homes: tuple[Home | None, ...] = ()
    place: tuple[tuple[int, int], ...] = ()
    rest: tuple[message_codec.ContentBlock, ...] = ()


class Composed(NamedTuple):
    """A step that is ready to be put, and what it says."""

    step: Step
    payload: list[message_codec.ContentBlock]
    taken: tuple[Segment, ...]


class Fold:
    """What was read of the open sessions (`heads`) of one conversation, and of those before them."""

    def __init__(self, heads: Iterable[str], clock: int = 0) -> None:
        self.heads = list(heads)
        self.clock = clock
        self.horizon = YEAR_2100
        """Ids of a later time (ms) do not move the clock."""
        self.known: dict[str, Change] = {}
        self.listed: dict[str, dict[str, Listed]] = {head: {} for head in self.heads}
        self.openings: dict[str, list[Opening]] = {head: [] for head in self.heads}
        self.latest: dict[str, int] = {}
        """The time of the newest step of a session that is listed, in ms."""
        self.closings: list[Listed] = []
        """The steps of the heads that close them."""
        self.read: dict[str, Step] = {}
        self.newer = False
        self._ids: dict[str, list[str]] = {}
        """The ids of ours that can carry or be carried, a list a session, sorted."""
        self._weights: dict[str, int] = {}
        self._covered: set[str] = set()
        self._taken: set[str] = set()
        self._lost: set[str] = set()
        self._inherited: dict[str, list[Inherited]] = {}
        self._opened: dict[str, Opening] = {}
        self._seen: dict[str, set[str]] = {}
        """By session before the heads, the steps of it that some opening has seen."""
        self._sources: dict[str, Segment] = {}
        self._local: set[str] = set()
        self._moved: set[str] = set()
        self._source_step: dict[str, str] = {}
        self._facts: dict[str, int] = {}
        self._order: list[Key] = []
        self._dead: set[MessageId] = set()
        self._archived: set[MessageId] = set()
        self._state: dict[str, tuple[Key, list[JSON]]] = {}
        self._marks: dict[str, tuple[Key, Mark]] = {}
        self._last_set: Key = _NEVER
        self._alive: list[Message] | None = None
        self._segments: list[Segment] | None = None
        self._held = 0

    # What is still to be read

    def saw_list(self, session: str, steps: Iterable[Listed]) -> None:
        """Take note of a list of a session's steps (of a head, or of a parent)."""
        known = self.listed.setdefault(session, {})
        ids = self._ids.setdefault(session, [])
        for step in steps:
            if step.home.step in known:
                continue
            known[step.home.step] = step
            self.latest[session] = max(step.time, self.latest.get(session, 0))
            parsed = parse_id(step.home.step)
            if parsed is None:
                continue
            self._tick(parsed.ms)
            if _has_content(step.home.step):
                bisect.insort(ids, step.home.step)
            elif parsed.kind is Kind.CLOSING and session in self.openings:
                self.closings.append(step)

    def _tick(self, ms: int) -> None:
        # Nobody writes ids of the future: one that is there is forged, and shall not spoil the order for all others.
        if ms <= self.horizon:
            self.clock = max(self.clock, ms)

    def unlisted_parents(self) -> list[str]:
        """Return the sessions before the heads that have not been listed: they may hold steps no opening has seen."""
        return [parent for parent in self.parents() if parent not in self.listed]

    def parents(self) -> dict[str, None]:
        """Return the sessions that the heads continue."""
        return dict.fromkeys(parent for opening in self._all_openings() for parent in opening.parents)

    def opening_ids(self) -> Iterator[str]:
        """Yield the openings of the heads that are listed."""
        return (step for head in self.heads for step in self.listed[head] if _kind(step) is Kind.OPENING)

    def rounds(self, *, whole: bool = True) -> Iterator[list[Home]]:
        """Yield what to get, round by round; what a round names must be absorbed (or `lost`) before the next.

        `whole`: archived messages too; else those are left out of which nothing else is known.
        """
        self._lost.clear()
        yield self._by_hints()
        yield self._by_names(whole=whole)
        while missing := self._missing(whole=whole):
            yield missing

    def is_whole(self) -> bool:
        """Whether nothing is left out of what the openings name."""
        return not self._unread()

    def _unread(self) -> list[Home]:
        found = (s.home for s, *_ in self._inherited.values())
        return [home for home in found if home.step not in self.read and home.step not in self._taken]

    def _by_hints(self) -> list[Home]:
        plan: list[Home] = []
        for head in self.heads:
            ids = self._ids.get(head, [])[::-1]
            position = 0
            while position < len(ids):
                parsed = parse_id(ids[position])
                if ids[position] not in self._covered:
                    plan.append(self.listed[head][ids[position]].home)
                position += 1 + (parsed.hint if parsed else 0)
            plan += [self.listed[head][i].home for i in self._unread_openings(head)]
        return list(dict.fromkeys(plan))

    def _by_names(self, *, whole: bool) -> list[Home]:
        """Return what the newest step of a head names, and what is inherited; all that is missing if it names nothing.

        What it names may carry the others.
        """
        missing = self._missing(whole=whole)
        newest = [next((i for i in reversed(self._ids.get(head, [])) if i in self.read), "") for head in self.heads]
        named = {home.step for i in newest if i for home in self.read[i].named}
        if named.isdisjoint(home.step for home in missing):
            return missing
        return [home for home in missing if home.step in named or home.step in self._inherited]

    def _missing(self, *, whole: bool) -> list[Home]:
        plan: list[Home] = []
        archive_only = frozenset() if whole else self._archive_only_steps()
        for head in self.heads:
            steps = self.listed[head]
            plan += [s.home for i, s in steps.items() if not self._is_settled(i) and _has_content(i)]
            plan += [steps[i].home for i in self._unread_openings(head)]
        plan += [step.home for step in self._late_steps() if not self._is_settled(step.home.step)]
        plan += [home for home in self._unread() if home.step not in archive_only]
        return list(dict.fromkeys(plan))

    def _archive_only_steps(self) -> frozenset[str]:
        """Return the steps that need not be read to know what is active: see "Openings" in `docs/format.md`."""
        if len(self._opened) != 1 or any(self._late_steps()):
            return frozenset()
        ((opening_id, opening),) = self._opened.items()
        for change_id, source_step in self._source_step.items():
            # What another tool has written here has no id that tells its age.
            is_foreign = self.known[change_id].foreign and any(change_id in self.listed[head] for head in self.heads)
            if is_foreign or (source_step != change_id and change_id < opening_id):
                return frozenset()
        return frozenset(s.home.step for s in opening.segments if s.archive_only)

    def _is_settled(self, step_id: str) -> bool:
        return step_id in self._covered or step_id in self._lost

    def _unread_openings(self, head: str) -> list[str]:
        # An opening says more than its change, so it is read even where a later step carries that.
        return [i for i in self.listed[head] if _kind(i) is Kind.OPENING and i not in self.read and i not in self._lost]

    def _late_steps(self) -> Iterator[Listed]:
        """Yield the steps of the parents that no opening has seen."""
        for parent in self._seen:
            for step in self.listed.get(parent, {}).values():
                if self._is_late_step(step.home):
                    yield step

    def _is_late_step(self, home: Home) -> bool:
        seen = self._seen.get(home.session)
        is_listed = home.step in self.listed.get(home.session, {})
        return seen is not None and is_listed and home.step not in seen and _has_content(home.step)

    def _all_openings(self) -> Iterator[Opening]:
        return (opening for head in self.heads for opening in self.openings[head])

    # What was read

    def absorb(self, step: Step) -> None:
        """Take in what a step says."""
        home = step.home
        self._keep(step, step.contents)
        self.newer = self.newer or step.newer
        inherited = self._inherited.get(home.step, [])
        for segment in inherited:
            self._absorb_inherited(step, segment)
        if home.session in self.openings and _has_content(home.step):
            for source_step, change in step.contents:
                self._cover(source_step, change)
            self._taken |= step.taken
            self._sources[home.step] = Segment(home, _change_ids(step), step.taken, own=False)
            if step.opening:
                self._opened[home.step] = step.opening
                self._absorb_opening(home.session, step.opening)
        elif not inherited or self._is_late_step(home):
            self._absorb_late_step(step, inherited)
        self._segments = None
        self._weights.clear()

    def _keep(self, step: Step, new: Iterable[tuple[str, Change | None]]) -> None:
        self.read[step.home.step] = step
        for _, change in new:
            if change is not None:
                values = len(dump(change.state)) if change.state else 0
                self._held += CHANGE_HELD + values + sum(m.size + MESSAGE_HELD for m in change.messages.values())

    def held(self) -> int:
        """Return about how many bytes of memory all of this takes."""
        return self._held + LISTED_HELD * sum(map(len, self.listed.values()))

    def lost(self, home: Home) -> None:
        """Take note that a step is not there. One that is listed is looked for again when `rounds` begins anew."""
        if home.step in self._inherited:
            self._taken.add(home.step)
        self._lost.add(home.step)

    def _absorb_late_step(self, step: Step, inherited: Sequence[Inherited]) -> None:
        source_step, change = step.contents[0]
        if change is not None:
            # One opening has not seen it, but another inherits it, and knows what of it is dead.
            dead = {p for segment in inherited for p in segment.dead.get(0, ())}
            change = dataclasses.replace(change, messages={p: m for p, m in change.messages.items() if p not in dead})
        self._cover(source_step, change)
        if not inherited:
            self._sources[step.home.step] = Segment(
                step.home, _change_ids(step, own=True), frozenset({step.home.step}), own=True
            )

    def _cover(self, source_step: str, change: Change | None) -> None:
        self._covered.add(source_step)
        if change is None:
            return
        self._local.add(change.id)
        if change.id not in self._source_step or any(source_step in self.listed[head] for head in self.heads):
            self._source_step[change.id] = source_step
        self._learn(change)

    def _absorb_opening(self, session: str, opening: Opening) -> None:
        if opening in self.openings[session]:
            return
        self.openings[session].append(opening)
        for parent, seen in opening.parents.items():
            self._seen.setdefault(parent, set()).update(seen)
        self._dead |= opening.removed
        for segment in opening.segments:
            self._inherited.setdefault(segment.home.step, []).append(segment)
            if segment.home.step in self.read:
                self._absorb_inherited(self.read[segment.home.step], segment)
        parsed = parse_id(opening.last_set) if opening.last_set else None
        if parsed and opening.last_set:
            self._last_set = max(self._last_set, (parsed.ms, opening.last_set))
        self._alive = None

    def _absorb_inherited(self, step: Step, segment: Inherited) -> None:
        contents = step.contents[:1] if segment.own else step.alone().contents
        for position, (_, change) in enumerate(contents):
            if change is None:
                continue
            dead, archived = segment.dead.get(position, frozenset()), segment.archived.get(position, frozenset())
            self._learn(
                dataclasses.replace(
                    change,
                    messages={p: m for p, m in change.messages.items() if p not in dead},
                    removed=frozenset(),
                    archived=frozenset((change.id, p) for p in archived),
                )
            )
        own = all(s.own for s in self._inherited[step.home.step])
        self._sources[step.home.step] = Segment(
            step.home, _change_ids(step, own=own), frozenset({step.home.step}), own=own
        )

    def _learn(self, change: Change) -> None:
        before = self.known.get(change.id)
        after = before.merged(change) if before else change
        if before and (known := after.references()):
            # The next opening carries it: a step that is named for it may hold the copy with the older references.
            copies = [*before.references().items(), *change.references().items()]
            self._moved |= {change.id for name, references in copies if known.get(name) != references}
        if after == before:
            return
        self.known[change.id] = after
        newest = not self._order or change.key > self._order[-1]
        if before is None:
            bisect.insort(self._order, change.key)
        if not change.foreign:
            self._tick(change.time)
        self._dead |= change.removed
        self._archived |= change.archived
        for name in change.state:
            if name not in self._state or self._state[name][0] <= change.key:
                self._state[name] = (change.key, after.state[name])
        # A forged one of the future would count until then, whatever is written.
        for name, mark in change.marks.items() if change.time <= self.horizon else ():
            if self._marked(name)[0] < change.key:
                self._marks[name] = (change.key, mark)
        if change.is_set:
            self._last_set = max(self._last_set, change.key)
        facts = {name: value for name, value in facts_json(after).items() if name != "state"}
        self._facts[change.id] = len(dump(facts).encode()) if facts else 2
        if before is not None or change.removed or change.is_set or change.state:
            self._weights.clear()
        if self._alive is not None and newest and not change.removed and not change.is_set:
            self._alive += [change.messages[p] for p in sorted(change.messages) if (change.id, p) not in self._dead]
        else:
            self._alive = None

    # What it adds up to

    def alive(self) -> list[Message]:
        """Return the messages that are there, archived ones too, in order. The list is the fold's own."""
        if self._alive is None:
            self._alive = [
                change.messages[p]
                for change in (self.known[change_id] for _, change_id in self._order)
                if self._counts(change)
                for p in sorted(change.messages)
                if (change.id, p) not in self._dead
            ]
        return self._alive

    def _counts(self, change: Change) -> bool:
        return not change.is_set or change.key >= self._last_set

    def is_archived(self, message: MessageId) -> bool:
        """Whether a message has been archived."""
        return message in self._archived

    def visible(self) -> list[Message]:
        """Return the messages that are there and not hidden, archived ones too, in order."""
        return [m for m in self.alive() if not self.hides(self.known[m.id[0]].key)] if self.hidden() else self.alive()

    def state(self) -> dict[str, JSON]:
        """Return the named state that is not hidden."""
        return {n: value[0] for n, (key, value) in sorted(self._state.items()) if value and not self.hides(key)}

    def named(self, prefix: str) -> dict[str, Any]:
        """Return the named state that begins so, hidden or not, without the beginning."""
        return {n.removeprefix(prefix): v[0] for n, (_, v) in self._state.items() if n.startswith(prefix) and v}

    def is_empty(self) -> bool:
        """Whether nothing is there that could be lost, not even hidden."""
        return not self.alive() and not any(value for _, value in self._state.values())

    def _marked(self, name: str) -> tuple[Key, Mark]:
        return self._marks.get(name, (_NEVER, Mark(on=False)))

    def hidden(self) -> bool:
        """Whether the conversation was hidden, and not restored since."""
        return self._marked(HIDDEN)[1].on

    def hides(self, key: Key) -> bool:
        """Whether what was written then is hidden: what is written after the hiding is seen."""
        return self.hidden() and key < self._marked(HIDDEN)[0]

    def ended(self) -> tuple[int, Mapping[str, str]] | None:
        """Return when the conversation was ended (ms) and what was said of it, None if it takes messages."""
        (ms, _), mark = self._marked(ENDED)
        return (ms, mark.said) if mark.on else None

    def holds(self, message: MessageId) -> bool:
        """Whether a message is known, be it alive or removed."""
        change = self.known.get(message[0])
        return message in self._dead or (change is not None and message[1] in change.messages)

    def changes(self) -> list[Change]:
        """Return every change that was read, in order."""
        return [self.known[change_id] for _, change_id in self._order]

    def told(self) -> Iterator[tuple[Change, Home | None]]:
        """Yield every change that was read, and the listed step of a head it was written in, if there is one."""
        listed = {step_id: step.home for head in self.heads for step_id, step in self.listed[head].items()}
        own = (source for source in self._sources.values() if source.own and source.home.session in self.openings)
        homes = {change_id: source.home for source in own for change_id in source.changes}
        for change in self.changes():
            yield change, listed.get(self._source_step.get(change.id, ""), homes.get(change.id))

    def generation(self) -> int:
        """Return the number of the newest head; -1 if there is none."""
        return max((o.generation for o in self._all_openings()), default=-1 if not self.heads else 0)

    def is_open(self, session: str) -> bool:
        """Whether an opening of this session has been read."""
        return bool(self.openings.get(session))

    def covers(self) -> dict[str, int]:
        """Return the sessions before the heads and their creation in ms."""
        return {session: created for o in self._all_openings() for session, created in o.covers.items()}

    def native_homes(self, messages: Iterable[Message]) -> dict[Home, set[int]]:
        """Return the steps that hold native blocks of these messages, and which blocks."""
        homes: dict[Home, set[int]] = {}
        ours = set(self.heads) | set(self.covers())
        for message in (m for m in messages if m.homes):
            for home, n in message.references():
                if home.session in ours:
                    homes.setdefault(home, set()).add(n)
        return homes

    # What the next step carries

    def segments(self) -> list[Segment]:
        """Return the fewest steps that hold all that is known, found from the newest to the oldest."""
        if self._segments is None:
            remaining = {change_id for change_id in self.known if self._matters(change_id)}
            self._segments = []
            for step_id in sorted(self._sources, reverse=True):
                source = self._sources[step_id]
                mine = tuple(c for c in source.changes if c in remaining)
                if mine:
                    self._segments.append(source._replace(changes=mine))
                    remaining.difference_update(mine)
        return self._segments

    def _matters(self, change_id: str) -> bool:
        if change_id in self._local:
            return True
        reduced = self._pruned(change_id, frozenset(), self._last_set)
        return bool(reduced.messages or reduced.state or reduced.origin) or self._is_marking(reduced)

    def _is_marking(self, change: Change) -> bool:
        """Whether no later change says the opposite of one of the marks of this one."""
        return any(self._marked(name)[0] <= change.key for name in change.marks)

    def _pruned(self, change_id: str, dead: frozenset[MessageId], last_set: Key) -> Change:
        """Return a change as it is carried: what was removed or replaced is left out, what it removes is not."""
        change = self.known[change_id]
        gone = change.is_set and change.key < last_set
        messages = {
            p: m
            for p, m in change.messages.items()
            if not gone and (change_id, p) not in self._dead and (change_id, p) not in dead
        }
        state = self._live_state(change)
        if len(messages) == len(change.messages) and len(state) == len(change.state):
            return change
        replaced = change.replaced | (change.state.keys() - state.keys())
        return dataclasses.replace(change, messages=messages, state=state, replaced=replaced)

    def _size(self, change_id: str) -> int:
        change = self.known[change_id]
        alive = 0
        if self._counts(change):
            alive = sum(m.size for p, m in change.messages.items() if (change_id, p) not in self._dead)
        state = self._live_state(change)
        return OVERHEAD + self._facts[change_id] + alive + (len(dump(state).encode()) if state else 0)

    def _live_state(self, change: Change) -> dict[str, list[JSON]]:
        return {k: v for k, v in change.state.items() if self._state[k][0] == change.key}

    def size(self, segment: Segment) -> int:
        """Return the bytes it takes to carry a segment."""
        if segment.home.step not in self._weights:
            self._weights[segment.home.step] = sum(self._size(change_id) for change_id in segment.changes)
        return self._weights[segment.home.step]

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

        `now` is the service's time in ms. `forced` segments are carried whatever their size. For an opening, those
        that were `copied` into attachments are in its `segments` already, where those it leaves are added.
        """
        take, left = self._choose(OVERHEAD + (draft.size() if draft else 0), forced, copied)
        self.clock = max(now, self.clock + 1)
        kind = Kind.OPENING if opening else Kind.CHANGE
        carried_ids = {c for segment in take for c in segment.changes}
        step_id = new_id(self.clock, kind, 0 if opening else self._hint(home[0], carried_ids))
        where = Home(*home, step_id)
        own, body, payload = self._own(draft, placed, where)
        dead = own.removed if own else frozenset()
        last_set = max(self._last_set, own.key) if own and own.is_set else self._last_set
        carried = [(self._source_step.get(c, c), self._pruned(c, dead, last_set)) for c in sorted(carried_ids)]
        if opening:
            carried = [(c.id, self._handed_down(c)) for _, c in carried]
            opening = dataclasses.replace(
                opening, segments=(*opening.segments, *(self.inherit(s, dead, last_set) for s in left))
            )
        taken = frozenset() if opening else frozenset(i for s in take for i in s.taken)
        named = () if opening else tuple(s.home for s in left if s.home.step not in self._inherited)
        packed = {
            **carried_json(carried),
            "named": [list(h) for h in named],
            "taken": sorted(taken),
            "opening": opening_json(opening) if opening else None,
        }
        step = Step(where, ((step_id, own), *carried), named, taken, opening)
        return Composed(step, [*payload, envelope({"change": body}, packed)], tuple(take))

    def claim_step(self, home: Home, draft: Draft, now: int) -> Composed:
        """Return a step of a given id that says one change, whose own id is a new one, and carries nothing."""
        self.clock = max(now, self.clock + 1)
        draft.id = draft.id or new_id(self.clock, Kind.CHANGE)
        own, body, payload = self._own(draft, Placed(), home)
        return Composed(Step(home, ((home.step, own),)), [*payload, envelope({"change": body}, {})], ())

    def _handed_down(self, change: Change) -> Change:
        """Return a change as an opening carries it: the opening says what is removed; what archived it may be left."""
        marks = frozenset((change.id, p) for p in change.messages if (change.id, p) in self._archived)
        return dataclasses.replace(change, removed=frozenset(), archived=change.archived | marks)

    def _choose(
        self, size: int, forced: Sequence[Segment], copied: Sequence[Segment]
    ) -> tuple[list[Segment], list[Segment]]:
        take, left = list(forced), []
        size += sum(self.size(s) for s in forced)
        rest = (s for s in self.segments() if s not in forced and s not in copied)
        for weight, segment in sorted(((self.size(s), s) for s in rest), key=lambda x: x[0]):
            # A quarter more than what is carried already: messages of one size must not miss each other by a byte.
            fits = weight <= size * 5 // 4 and size + weight <= BUDGET and weight <= BUDGET // 2
            if fits and not self.newer and not any(self.known[c].damaged for c in segment.changes):
                take.append(segment)
                size += weight
            else:
                left.append(segment)
        return take, left

    def _hint(self, session: str, carried: set[str]) -> int:
        steps = {self._source_step.get(c, c) for c in carried}
        hint = 0
        for step_id in reversed(self._ids.get(session, [])):
            if step_id not in steps or hint == HINT_MAX:
                break
            hint += 1
        return hint

    def _own(
        self, draft: Draft | None, placed: Placed, where: Home
    ) -> tuple[Change | None, dict[str, JSON], list[message_codec.ContentBlock]]:
        if draft is None:
            return None, {}, []
        draft.id = draft.id or where.step
        add, homes = own_records(draft.messages, placed.homes, placed.place)
        payload = list(placed.rest) if placed.homes else draft.messages.blocks
        resolved = tuple(home or where for home in placed.homes) or (where,)
        messages: dict[int, Message] = {}
        for position, record in enumerate(message_codec.carried(r, payload.__getitem__) for r in add):
            message = Message((draft.id, position), record, resolved, len(dump(record).encode()))
            messages[position] = message if any(True for _ in message.references()) else message._replace(homes=())
        change = draft.change(draft.id, messages, where[:2])
        body = own_json(change, where.step, add, homes)
        return change if body else None, body, payload

    def inherit(self, segment: Segment, dead: frozenset[MessageId] = frozenset(), last_set: Key = _NEVER) -> Inherited:
        """Return a segment as an opening names it: what of it is no longer alive, or is archived."""
        contents = self.read[segment.home.step].contents[: 1 if segment.own else None]
        gone: dict[int, frozenset[int]] = {}
        archived: dict[int, frozenset[int]] = {}
        archive_only = all(source_step for source_step, _ in contents)
        for position, (_, change) in enumerate(contents):
            if change is None:
                continue
            reduced = self._pruned(change.id, dead, max(last_set, self._last_set))
            alive, archive_only = reduced.messages, archive_only and self._is_archive_only(reduced)
            gone[position] = frozenset(p for p in change.messages if p not in alive)
            archived[position] = frozenset(p for p in alive if (change.id, p) in self._archived)
        return Inherited(
            segment.home,
            {k: v for k, v in gone.items() if v},
            {k: v for k, v in archived.items() if v},
            segment.own,
            archive_only,
        )

    def _is_archive_only(self, change: Change) -> bool:
        """Whether all that counts of a change is archived messages."""
        is_archived = all((change.id, p) in self._archived for p in change.messages)
        return is_archived and not (change.state or self._is_marking(change))

    def stored(self, composed: Composed) -> None:
        """Take note that a composed step is in the service."""
        segments = [s for s in self.segments() if s not in composed.taken]
        step, home = composed.step, composed.step.home
        self.saw_list(home.session, [Listed(home, self.clock)])
        # What it carries is known already.
        self._keep(step, step.contents[:1])
        self._cover(*step.contents[0])
        changes = _change_ids(step)
        self._sources[home.step] = Segment(home, changes, step.taken, own=False)
        self._segments = [Segment(home, changes, step.taken, own=False), *segments] if changes else segments

    # What an opening says

    def opening(self, created: Mapping[str, int], now: int, present: Iterable[str] = (), late: int = 0) -> Opening:
        """Return the opening of the session that continues the heads; `created` are their creation times in ms.

        It covers the heads, and what they cover for as long as that may still be found: it is `present`, or young.
        What a head continued less than `late` ms ago stays a parent: its list may lack steps.
        """
        still = {*self.heads, *present}
        covers = {**self.covers(), **{head: created[head] for head in self.heads}}
        ages = {opening_id: now - parsed.ms for opening_id in self._opened if (parsed := parse_id(opening_id))}
        removed = {m for c in self._local for m in self.known[c].removed}
        recent: set[str] = set()
        for opening_id, age in ages.items():
            # A copy that a process was about to open when the messages were removed may hold them.
            removed |= self._opened[opening_id].removed if age < STALE_AGE else frozenset()
            recent.update(self._opened[opening_id].parents if age < late else ())
        seen = {session: self._seen.get(session, set()) for session in {*self.heads, *recent}}
        return Opening(
            generation=self.generation() + 1,
            covers={s: ms for s, ms in covers.items() if s in still or now - ms <= COVERED_AGE},
            parents={
                session: frozenset(steps).union(i for i in self.listed.get(session, ()) if i in self._covered)
                for session, steps in seen.items()
            },
            removed=frozenset(removed),
            segments=(),
            last_set=self._last_set[1] or None,
        )

    def expiring_segments(self, created: Mapping[str, int], now: int, *, whole: bool = False) -> list[list[Segment]]:
        """Return the segments that have to be carried, in groups of up to 512 KB.

        Those are in a session older than nine days, or refer to one (see `relocate_blocks`), or are mostly dead; or, if
        `whole`, all.
        """
        groups: list[list[Segment]] = [[]]
        size = 0
        for segment in self.segments():
            if not whole and not self._must_be_carried(segment, created, now):
                continue
            weight = self.size(segment)
            if groups[-1] and size + weight > BUDGET:
                groups.append([])
                size = 0
            groups[-1].append(segment)
            size += weight
        return groups

    def _is_old(self, home: Home, created: Mapping[str, int], now: int) -> bool:
        return now - created.get(home.session, self.covers().get(home.session, 0)) > SAFE_AGE

    def _must_be_carried(self, segment: Segment, created: Mapping[str, int], now: int) -> bool:
        if self.newer or any(self.known[c].damaged for c in segment.changes):
            return False
        moved = not self._moved.isdisjoint(segment.changes)
        return moved or self._is_old(segment.home, created, now) or self._is_mostly_dead(segment)

    def _is_mostly_dead(self, segment: Segment) -> bool:
        contents = self.read[segment.home.step].contents[: 1 if segment.own else None]
        stored = sum(m.size for _, c in contents if c for m in c.messages.values())
        return stored > 2 * self.size(segment)

    def copy(
        self, place: Place, segments: Sequence[Segment], now: int, dead: frozenset[MessageId] = frozenset()
    ) -> tuple[Composed, Inherited]:
        """Return an attachment that carries segments, less what is about to be `dead`, and how the opening names it.

        It is taken note of as read.
        """
        self.clock = max(now, self.clock + 1)
        where = Home(*place, new_id(self.clock, Kind.ATTACHMENT))
        ids = sorted(c for segment in segments for c in segment.changes)
        carried = [(c, self._handed_down(self._pruned(c, dead, self._last_set))) for c in ids]
        step = Step(where, ((where.step, None), *carried))
        self.read[where.step] = step
        inherited = self.inherit(Segment(where, tuple(ids), frozenset(), own=False))
        return Composed(step, [envelope({"attachment": True}, carried_json(carried))], ()), inherited

    def attachment_for(self, place: Place, draft: Draft, placed: Placed, now: int) -> tuple[Composed, Inherited]:
        """Return an attachment with a change of its own, and how the opening names it. It is taken note of as read."""
        self.clock = max(now, self.clock + 1)
        where = Home(*place, new_id(self.clock, Kind.ATTACHMENT))
        own, body, payload = self._own(draft, placed, where)
        step = Step(where, ((where.step, own),))
        self.read[where.step] = step
        archived = frozenset(position for change_id, position in draft.archived if not change_id)
        inherited = Inherited(where, {}, {0: archived} if archived else {}, own=True)
        return Composed(step, [*payload, envelope({"attachment": True, "change": body}, {})], ()), inherited

    def old_native_blocks(
        self, created: Mapping[str, int], now: int, dead: frozenset[MessageId] = frozenset(), *, whole: bool = False
    ) -> list[tuple[Home, int]]:
        """Return the native blocks of what stays alive: those in sessions older than nine days, or all (`whole`)."""
        found = [reference for m in self.alive() if m.id not in dead for reference in m.references()]
        found += [reference for _, value in self._state.values() if value for reference in parts(value[0])]
        return [(home, n) for home, n in dict.fromkeys(found) if whole or self._is_old(home, created, now)]

    def orphan_attachments(self, head: str) -> set[str]:
        """Return the attachments in a head that nothing refers to: what somebody has copied who did not open it."""
        used = {home.step for home, _ in self.old_native_blocks({}, 0, whole=True)}
        used |= {segment.home.step for opening in self.openings[head] for segment in opening.segments}
        return {step for step in self.listed[head] if _kind(step) is Kind.ATTACHMENT} - used

    def relocate_blocks(self, moves: Mapping[tuple[Home, int], tuple[Home, int]]) -> Callable[[], None]:
        """Take note that native blocks were copied: messages refer to the copies, until the result is called."""
        before, state, moved = dict(self.known), dict(self._state), set(self._moved)

        def undo() -> None:
            self.known, self._state, self._moved = before, state, moved
            self._alive = None

        for message in self.alive():
            if any(reference in moves for reference in message.references()):
                change = self.known[message.id[0]]
                messages = {**change.messages, message.id[1]: message.moved(moves)}
                self.known[change.id] = dataclasses.replace(change, messages=messages)
                self._moved.add(change.id)
        for name, (key, value) in state.items():
            references = parts(value[0]) if value else []
            if not moves.keys().isdisjoint(references):
                change = self.known[key[1]]
                there = [parts_json(moves.get(reference, reference) for reference in references)]
                self._state[name] = (key, there)
                self.known[change.id] = dataclasses.replace(change, state={**change.state, name: there})
                self._moved.add(change.id)
        self._alive = None
        return undo


def _has_content(step_id: str) -> bool:
    return _kind(step_id) in {None, Kind.CHANGE, Kind.OPENING}


def _kind(step_id: str) -> Kind | None:
    parsed = parse_id(step_id)
    return parsed.kind if parsed else None


def _change_ids(step: Step, *, own: bool = False) -> tuple[str, ...]:
    return tuple(change.id for _, change in step.contents[: 1 if own else None] if change is not None)
