"""Which steps of a conversation are still to be read.

A step carries earlier changes again. So a reader gets few steps: it begins with the newest of each head, skips what
their hints cover, and then gets what they name. `FetchPlan.rounds` yields what to get, round by round.
"""

from __future__ import annotations

import bisect
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from llama_index_bedrock_sessions._journal.ids import Home, IdClock, Kind, kind_of, parse_id
from llama_index_bedrock_sessions._journal.model import Change, Inherited, Opening, Step


class Listed(NamedTuple):
    """A step as `ListInvocationSteps` shows it; `time` is `invocationStepTime` in ms."""

    home: Home
    time: int


class FetchPlan:
    """What was listed and read of the open sessions (`heads`) and of those before them, and what is missing."""

    def __init__(self, heads: Collection[str], known: Mapping[str, Change], clock: IdClock) -> None:
        self.listed: dict[str, dict[str, Listed]] = {head: {} for head in heads}
        """The steps of each session that was listed, by their ids."""
        self.openings: dict[str, list[Opening]] = {head: [] for head in heads}
        """The openings of each head that were read."""
        self.opened: dict[str, Opening] = {}
        """The same openings, by their step ids."""
        self.latest: dict[str, int] = {}
        """The time in ms of the newest step of each session that was listed."""
        self.closings: list[Listed] = []
        """The steps that close the heads."""
        self.read: dict[str, Step] = {}
        """Every step that was read, by its id."""
        self.source_step: dict[str, str] = {}
        """The step that each change was written in: the changes of the heads and of late steps, not inherited ones."""
        self.seen: dict[str, set[str]] = {}
        """By session before the heads, the steps of it that some opening has seen."""
        self.inherited: dict[str, list[Inherited]] = {}
        """By step of an earlier session, what openings name of it."""
        self.newer = False
        """Whether a step of a newer format was read."""
        self._heads = heads
        self._known = known
        self._clock = clock
        self._ids: dict[str, list[str]] = {}
        """By session, our step ids that can carry or be carried, sorted."""
        self._covered: set[str] = set()
        """Steps whose own change is known."""
        self._taken: set[str] = set()
        """Steps of earlier sessions whose content later steps carry."""
        self._lost: set[str] = set()
        """Steps that are not there."""

    # Lists

    def saw_list(self, session: str, steps: Iterable[Listed]) -> None:
        """Record a list of the steps of a session: of a head, or of a parent."""
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
            self._clock.saw(parsed.ms)
            if has_content(step.home.step):
                bisect.insort(ids, step.home.step)
            elif parsed.kind is Kind.CLOSING and session in self.openings:
                self.closings.append(step)

    def is_listed_in_a_head(self, step_id: str) -> bool:
        """Whether a head lists a step."""
        return any(step_id in self.listed[head] for head in self._heads)

    def newest_ids(self, session: str) -> list[str]:
        """Return our step ids of a session that can carry or be carried, newest first."""
        return self._ids.get(session, [])[::-1]

    # Openings

    def _all_openings(self) -> Iterator[Opening]:
        return (opening for head in self._heads for opening in self.openings[head])

    def parents(self) -> dict[str, None]:
        """Return the sessions that the heads continue."""
        return dict.fromkeys(parent for opening in self._all_openings() for parent in opening.parents)

    def unlisted_parents(self) -> list[str]:
        """Return the parents that have not been listed: they may hold steps that no opening has seen."""
        return [parent for parent in self.parents() if parent not in self.listed]

    def covers(self) -> dict[str, int]:
        """Return the sessions before the heads and their creation times in ms."""
        return {session: created for o in self._all_openings() for session, created in o.covers.items()}

    def sessions(self) -> set[str]:
        """Return the heads and the sessions before them."""
        return {*self._heads, *self.covers()}

    def generation(self) -> int:
        """Return the number of the newest head; -1 if there is none."""
        return max((o.generation for o in self._all_openings()), default=-1 if not self._heads else 0)

    def is_open(self, session: str) -> bool:
        """Whether an opening of this session has been read."""
        return bool(self.openings.get(session))

    def opening_ids(self) -> Iterator[str]:
        """Yield the openings of the heads that are listed."""
        return (step for head in self._heads for step in self.listed[head] if kind_of(step) is Kind.OPENING)

    # What is still to be read

    def rounds(self, *, with_archived: bool = True) -> Iterator[list[Home]]:
        """Yield the steps to get, round by round.

        What a round names must be absorbed, or `lost`, before the next. `with_archived`: archived messages too;
        otherwise steps are left out of which nothing but archived messages counts.
        """
        self._lost.clear()
        yield self._by_hints()
        yield self._by_names(with_archived=with_archived)
        while missing := self._missing(with_archived=with_archived):
            yield missing

    def is_complete(self) -> bool:
        """Whether everything that the openings name was read."""
        return not self._unread()

    def _unread(self) -> list[Home]:
        found = (s.home for s, *_ in self.inherited.values())
        return [home for home in found if home.step not in self.read and home.step not in self._taken]

    def _by_hints(self) -> list[Home]:
        plan: list[Home] = []
        for head in self._heads:
            ids = self.newest_ids(head)
            position = 0
            while position < len(ids):
                parsed = parse_id(ids[position])
                if ids[position] not in self._covered:
                    plan.append(self.listed[head][ids[position]].home)
                position += 1 + (parsed.hint if parsed else 0)
            plan += [self.listed[head][i].home for i in self._unread_openings(head)]
        return list(dict.fromkeys(plan))

    def _by_names(self, *, with_archived: bool) -> list[Home]:
        """Return what the newest step of a head names, and what is inherited; all that is missing if it names nothing.

        What it names may carry the others.
        """
        missing = self._missing(with_archived=with_archived)
        newest = [next((i for i in self.newest_ids(head) if i in self.read), "") for head in self._heads]
        named = {home.step for i in newest if i for home in self.read[i].named}
        if named.isdisjoint(home.step for home in missing):
            return missing
        return [home for home in missing if home.step in named or home.step in self.inherited]

    def _missing(self, *, with_archived: bool) -> list[Home]:
        plan: list[Home] = []
        left_out = frozenset() if with_archived else self._archive_only_steps()
        for head in self._heads:
            steps = self.listed[head]
            plan += [s.home for i, s in steps.items() if not self._is_settled(i) and has_content(i)]
            plan += [steps[i].home for i in self._unread_openings(head)]
        plan += [step.home for step in self._late_steps() if not self._is_settled(step.home.step)]
        plan += [home for home in self._unread() if home.step not in left_out]
        return list(dict.fromkeys(plan))

    def _archive_only_steps(self) -> frozenset[str]:
        """Return the steps that need not be read to know what is active: see "Openings" in `docs/format.md`."""
        if len(self.opened) != 1 or any(self._late_steps()):
            return frozenset()
        ((opening_id, opening),) = self.opened.items()
        for change_id, source_step in self.source_step.items():
            # A step of another tool has no id that shows its age.
            is_foreign = self._known[change_id].foreign and self.is_listed_in_a_head(change_id)
            if is_foreign or (source_step != change_id and change_id < opening_id):
                return frozenset()
        return frozenset(s.home.step for s in opening.segments if s.archive_only)

    def _is_settled(self, step_id: str) -> bool:
        return step_id in self._covered or step_id in self._lost

    def _unread_openings(self, head: str) -> list[str]:
        # An opening contains more than its change, so it is read even if a later step carries the change.
        return [
            i for i in self.listed[head] if kind_of(i) is Kind.OPENING and i not in self.read and i not in self._lost
        ]

    def _late_steps(self) -> Iterator[Listed]:
        """Yield the steps of the parents that no opening has seen."""
        for parent in self.seen:
            for step in self.listed.get(parent, {}).values():
                if self.is_late_step(step.home):
                    yield step

    def is_late_step(self, home: Home) -> bool:
        """Whether a step of a parent has been listed that no opening has seen."""
        seen = self.seen.get(home.session)
        is_listed = home.step in self.listed.get(home.session, {})
        return seen is not None and is_listed and home.step not in seen and has_content(home.step)

    # What was read

    def keep(self, step: Step) -> None:
        """Record a step that was read."""
        self.read[step.home.step] = step
        self.newer = self.newer or step.newer

    def cover(self, source_step: str, change: Change | None) -> None:
        """Record that the own change of a step is known, or (None) cannot be."""
        self._covered.add(source_step)
        if change and (change.id not in self.source_step or self.is_listed_in_a_head(source_step)):
            self.source_step[change.id] = source_step

    def covered(self, session: str) -> set[str]:
        """Return the listed steps of a session whose own change is known."""
        return self._covered.intersection(self.listed.get(session, ()))

    def take(self, steps: Iterable[str]) -> None:
        """Record steps of earlier sessions whose content a step carries."""
        self._taken.update(steps)

    def open(self, step: Step, opening: Opening) -> bool:
        """Record an opening of a head; return whether it is new."""
        self.opened[step.home.step] = opening
        if opening in self.openings[step.home.session]:
            return False
        self.openings[step.home.session].append(opening)
        for parent, seen in opening.parents.items():
            self.seen.setdefault(parent, set()).update(seen)
        for segment in opening.segments:
            self.inherited.setdefault(segment.home.step, []).append(segment)
        return True

    def lost(self, home: Home) -> None:
        """Record that a step is not there. A listed one is looked for again when `rounds` begins again."""
        if home.step in self.inherited:
            self._taken.add(home.step)
        self._lost.add(home.step)


def has_content(step_id: str) -> bool:
    """Whether a step can contain changes: it is of another tool, a change, or an opening."""
    return kind_of(step_id) in {None, Kind.CHANGE, Kind.OPENING}
