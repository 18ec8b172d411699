"""What the changes of a conversation add up to: messages, archive, named state, hidden, ended.

A fold is a union. A message is there if some copy of it was read and no change that was read removes it. The order in
which changes are learnt does not matter, so two processes that have read the same steps know the same.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llama_index_bedrock_sessions._journal.ids import IdClock, MessageId
from llama_index_bedrock_sessions._journal.model import ENDED, HIDDEN, Change, Mark, Message
from llama_index_bedrock_sessions._journal.records import Reference, text_references, text_value
from llama_index_bedrock_sessions._journal.values import JSON

Key = tuple[int, str]
NEVER: Key = (-1, "")
"""Sorts before the key of every change."""


class Fold:
    """The changes that are known, and what they add up to."""

    def __init__(self, clock: IdClock) -> None:
        self.known: dict[str, Change] = {}
        """Every change that was read, by its id."""
        self.moved: set[str] = set()
        """Changes whose copies refer to native blocks in different steps: the next opening carries them."""
        self.last_set: Key = NEVER
        """The greatest change that replaced all messages."""
        self._clock = clock
        self._order: list[Key] = []
        self._dead: set[MessageId] = set()
        self._archived: set[MessageId] = set()
        self._state: dict[str, tuple[Key, list[JSON]]] = {}
        self._marks: dict[str, tuple[Key, Mark]] = {}
        self._alive: list[Message] | None = None

    # What was read

    def learn(self, change: Change) -> None:
        """Take in a copy of a change. Copies of one change are united."""
        before = self.known.get(change.id)
        after = before.merged(change) if before else change
        if before and (known := after.references()):
            # A step that an opening names for it may hold the copy with the older references.
            copies = [*before.references().items(), *change.references().items()]
            self.moved |= {change.id for name, references in copies if known.get(name) != references}
        if after == before:
            return
        self.known[change.id] = after
        newest = not self._order or change.key > self._order[-1]
        if before is None:
            bisect.insort(self._order, change.key)
        if not change.foreign:
            self._clock.saw(change.time)
        self._dead |= change.removed
        self._archived |= change.archived
        for name in change.state:
            if name not in self._state or self._state[name][0] <= change.key:
                self._state[name] = (change.key, after.state[name])
        # A forged mark of the future would count until then, whatever is written.
        for name, mark in change.marks.items() if self._clock.is_honest(change.time) else ():
            if self._mark(name)[0] < change.key:
                self._marks[name] = (change.key, mark)
        if change.is_set:
            self.last_set = max(self.last_set, change.key)
        if self._alive is not None and newest and not change.removed and not change.is_set:
            self._alive += [change.messages[p] for p in sorted(change.messages) if (change.id, p) not in self._dead]
        else:
            self._alive = None

    def learn_removed(self, removed: Iterable[MessageId], last_set: Key | None) -> None:
        """Take in what an opening records of changes that are not known: removed messages, the last replacement."""
        self._dead.update(removed)
        self.last_set = max(self.last_set, last_set or NEVER)
        self._alive = None

    def relocate_blocks(self, moves: Mapping[Reference, Reference]) -> Callable[[], None]:
        """Let messages and state refer to copies of native blocks, until the returned function is called.

        `moves` maps each native block to its copy.
        """
        before, state, moved = dict(self.known), dict(self._state), set(self.moved)

        def undo() -> None:
            self.known.clear()
            self.known.update(before)
            self._state, self.moved, self._alive = state, moved, None

        for message in self.alive():
            if any(reference in moves for reference in message.references()):
                change = self.known[message.id[0]]
                messages = {**change.messages, message.id[1]: message.moved(moves)}
                self.known[change.id] = dataclasses.replace(change, messages=messages)
                self.moved.add(change.id)
        for name, (key, value) in state.items():
            references = text_references(value[0]) if value else []
            if not moves.keys().isdisjoint(references):
                change = self.known[key[1]]
                there = [text_value(moves.get(reference, reference) for reference in references)]
                self._state[name] = (key, there)
                self.known[change.id] = dataclasses.replace(change, state={**change.state, name: there})
                self.moved.add(change.id)
        self._alive = None
        return undo

    # Messages

    def changes(self) -> list[Change]:
        """Return every change that was read, in order."""
        return [self.known[change_id] for _, change_id in self._order]

    def alive(self) -> list[Message]:
        """Return the messages that are there, archived ones too, in order. The list is the fold's own."""
        if self._alive is None:
            self._alive = [
                change.messages[p]
                for change in self.changes()
                if self.counts(change)
                for p in sorted(change.messages)
                if (change.id, p) not in self._dead
            ]
        return self._alive

    def counts(self, change: Change) -> bool:
        """Whether no later change has replaced all messages that this change set."""
        return not change.is_set or change.key >= self.last_set

    def is_dead(self, message: MessageId) -> bool:
        """Whether a message has been removed."""
        return message in self._dead

    def is_archived(self, message: MessageId) -> bool:
        """Whether a message has been archived."""
        return message in self._archived

    def holds(self, message: MessageId) -> bool:
        """Whether a message is known, alive or removed."""
        change = self.known.get(message[0])
        return message in self._dead or (change is not None and message[1] in change.messages)

    def visible(self) -> list[Message]:
        """Return the messages that are there and not hidden, archived ones too, in order."""
        return [m for m in self.alive() if not self.hides(self.known[m.id[0]].key)] if self.hidden() else self.alive()

    def is_empty(self) -> bool:
        """Whether there are no messages and no named state, not even hidden ones."""
        return not self.alive() and not any(value for _, value in self._state.values())

    # Named state

    def state(self) -> dict[str, JSON]:
        """Return the named state that is not hidden."""
        return {n: value[0] for n, (key, value) in sorted(self._state.items()) if value and not self.hides(key)}

    def named(self, prefix: str) -> dict[str, Any]:
        """Return the named state whose names begin with a prefix, hidden or not; the names lack the prefix."""
        return {n.removeprefix(prefix): v[0] for n, (_, v) in self._state.items() if n.startswith(prefix) and v}

    def live_state(self, change: Change) -> dict[str, list[JSON]]:
        """Return the named state of a change that no later change has set."""
        return {k: v for k, v in change.state.items() if self._state[k][0] == change.key}

    def state_references(self) -> list[Reference]:
        """Return the native blocks whose text is a value of the named state."""
        return [reference for _, value in self._state.values() if value for reference in text_references(value[0])]

    # Marks

    def _mark(self, name: str) -> tuple[Key, Mark]:
        return self._marks.get(name, (NEVER, Mark(on=False)))

    def is_marking(self, change: Change) -> bool:
        """Whether one of the marks of a change has not been superseded by a later change."""
        return any(self._mark(name)[0] <= change.key for name in change.marks)

    def hidden(self) -> bool:
        """Whether the conversation was hidden, and not restored since."""
        return self._mark(HIDDEN)[1].on

    def hides(self, key: Key) -> bool:
        """Whether a change with this key is hidden: what was written after the hiding is seen."""
        return self.hidden() and key < self._mark(HIDDEN)[0]

    def ended(self) -> tuple[int, Mapping[str, str]] | None:
        """Return when the conversation was ended (ms) and the texts given with it, None if it takes messages."""
        (ms, _), mark = self._mark(ENDED)
        return (ms, mark.said) if mark.on else None
