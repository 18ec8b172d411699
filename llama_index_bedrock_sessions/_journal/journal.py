"""The journal of one conversation: what is known (`fold`), what is missing (`plan`), what is next (`compaction`).

A journal belongs to its heads. When a conversation continues in another session, a new one is made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from llama_index_bedrock_sessions._journal.compaction import Compaction, change_ids
from llama_index_bedrock_sessions._journal.draft import Composed
from llama_index_bedrock_sessions._journal.fetch_plan import FetchPlan, Listed, has_content
from llama_index_bedrock_sessions._journal.fold import Fold
from llama_index_bedrock_sessions._journal.ids import Home, IdClock, parse_id
from llama_index_bedrock_sessions._journal.model import Change, Inherited, Message, Opening, Segment, Step
from llama_index_bedrock_sessions._journal.values import dump

CHANGE_HELD, MESSAGE_HELD, LISTED_HELD = 1300, 500, 600
"""Bytes of memory that a change, a message of it and a listed step take besides their texts: about, as measured."""


class Journal:
    """What was read of the open sessions (`heads`) of one conversation, and of those before them."""

    def __init__(self, heads: Iterable[str], last_ms: int = 0) -> None:
        self.heads = list(heads)
        self.clock = IdClock(last_ms)
        self.fold = Fold(self.clock)
        self.plan = FetchPlan(self.heads, self.fold.known, self.clock)
        self.compaction = Compaction(self.heads, self.fold, self.plan, self.clock)
        self._held = 0

    def absorb(self, step: Step) -> None:
        """Take in a step that was read."""
        home, plan = step.home, self.plan
        self._keep(step, step.contents)
        inherited = list(plan.inherited.get(home.step, ()))
        for segment in inherited:
            self._absorb_inherited(step, segment)
        if home.session in plan.openings and has_content(home.step):
            for source_step, change in step.contents:
                self._absorb_change(source_step, change)
            plan.take(step.taken)
            self.compaction.add_source(Segment(home, change_ids(step), step.taken, own=False))
            if step.opening:
                self._absorb_opening(step, step.opening)
        elif not inherited or plan.is_late_step(home):
            self._absorb_late_step(step, inherited)
        self.compaction.reset()

    def _keep(self, step: Step, new: Iterable[tuple[str, Change | None]]) -> None:
        self.plan.keep(step)
        for _, change in new:
            if change is not None:
                values = len(dump(change.state)) if change.state else 0
                self._held += CHANGE_HELD + values + sum(m.size + MESSAGE_HELD for m in change.messages.values())

    def _absorb_change(self, source_step: str, change: Change | None) -> None:
        self.plan.cover(source_step, change)
        if change is not None:
            self.fold.learn(change)

    def _absorb_late_step(self, step: Step, inherited: Sequence[Inherited]) -> None:
        source_step, change = step.contents[0]
        if change is not None:
            # One opening has not seen it, but another inherits it, and knows what of it is dead.
            dead = {p for segment in inherited for p in segment.dead.get(0, ())}
            change = dataclasses.replace(change, messages={p: m for p, m in change.messages.items() if p not in dead})
        self._absorb_change(source_step, change)
        if not inherited:
            self.compaction.add_source(
                Segment(step.home, change_ids(step, own=True), frozenset({step.home.step}), own=True)
            )

    def _absorb_opening(self, step: Step, opening: Opening) -> None:
        if not self.plan.open(step, opening):
            return
        for segment in opening.segments:
            if segment.home.step in self.plan.read:
                self._absorb_inherited(self.plan.read[segment.home.step], segment)
        parsed = parse_id(opening.last_set) if opening.last_set else None
        last_set = (parsed.ms, opening.last_set) if parsed and opening.last_set else None
        self.fold.learn_removed(opening.removed, last_set)

    def _absorb_inherited(self, step: Step, segment: Inherited) -> None:
        contents = step.contents[:1] if segment.own else step.alone().contents
        for position, (_, change) in enumerate(contents):
            if change is None:
                continue
            dead, archived = segment.dead.get(position, frozenset()), segment.archived.get(position, frozenset())
            self.fold.learn(
                dataclasses.replace(
                    change,
                    messages={p: m for p, m in change.messages.items() if p not in dead},
                    removed=frozenset(),
                    archived=frozenset((change.id, p) for p in archived),
                )
            )
        own = all(s.own for s in self.plan.inherited[step.home.step])
        self.compaction.add_source(Segment(step.home, change_ids(step, own=own), frozenset({step.home.step}), own=own))

    def stored(self, composed: Composed) -> None:
        """Record that a composed step is in the service."""
        step, home = composed.step, composed.step.home
        _, change = step.contents[0]
        is_additive = change is None or not (
            change.id in self.fold.known or change.removed or change.is_set or change.state
        )
        self.compaction.stored(composed, is_additive=is_additive)
        self.plan.saw_list(home.session, [Listed(home, self.clock.ms)])
        # What the step carries is known already.
        self._keep(step, step.contents[:1])
        self._absorb_change(*step.contents[0])

    def held(self) -> int:
        """Return the approximate bytes of memory that all of this takes."""
        return self._held + LISTED_HELD * sum(map(len, self.plan.listed.values()))

    def timeline(self) -> Iterator[tuple[Change, Home | None]]:
        """Yield every change that was read, and the step of a head that it was written in, if a head lists it."""
        listed = {step_id: step.home for head in self.heads for step_id, step in self.plan.listed[head].items()}
        own = (s for s in self.compaction.sources() if s.own and s.home.session in self.plan.openings)
        homes = {change_id: source.home for source in own for change_id in source.changes}
        for change in self.fold.changes():
            yield change, listed.get(self.plan.source_step.get(change.id, ""), homes.get(change.id))

    def native_homes(self, messages: Iterable[Message]) -> dict[Home, set[int]]:
        """Return the steps that hold native blocks of these messages, and which blocks."""
        homes: dict[Home, set[int]] = {}
        sessions = self.plan.sessions()
        for message in (m for m in messages if m.homes):
            for home, n in message.references():
                if home.session in sessions:
                    homes.setdefault(home, set()).add(n)
        return homes
