"""What a step contains: messages, changes, openings and closings, as values.

`docs/format.md` specifies how they are stored; `encoding.py` writes them and `decoding.py` reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, Place, parse_id
from llama_index_bedrock_sessions._journal.records import (
    Reference,
    newest_text_step,
    references,
    relocated,
    text_references,
    without_forged,
)
from llama_index_bedrock_sessions._journal.values import JSON, dump

VERSION = 1
MARK = "llama_index_bedrock_sessions"
BUDGET = 512 * 1024
"""Bytes of changes a step carries at most."""


class Message(NamedTuple):
    """One stored message: its id, its record, where its native blocks are, its size in bytes."""

    id: MessageId
    record: JSON
    homes: tuple[Home, ...]
    size: int

    def references(self) -> Iterator[Reference]:
        """Yield the native blocks that the record refers to."""
        return references(self.record, self.homes)

    def moved(self, moves: Mapping[Reference, Reference]) -> Message:
        """Return the message that refers to the native blocks that `moves` maps its references to."""
        record, homes = relocated(self.record, self.homes, moves)
        return self._replace(record=record, homes=homes)

    def newest_home(self) -> str:
        """Return the greatest id of the steps that hold its native blocks, "" if it has none."""
        return max((home.step for home, _ in self.references()), default="")


class Mark(NamedTuple):
    """Whether a mark is set on the whole conversation, and the texts that the application gave with it."""

    on: bool
    said: Mapping[str, str] = {}


HIDDEN, ENDED = "hidden", "ended"
"""The names of the marks."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One change of a conversation.

    - `time`: in ms.
    - `messages`: those that are left of the `count` messages that it added.
    - `state`: maps a name to [value], or to [] if it deletes the name.
    - `replaced`: names of state that it set and whose values are left out.
    - `written`: the session and invocation of its step.
    """

    id: str
    time: int
    messages: Mapping[int, Message] = dataclasses.field(default_factory=dict)
    removed: frozenset[MessageId] = frozenset()
    archived: frozenset[MessageId] = frozenset()
    is_set: bool = False
    state: Mapping[str, list[JSON]] = dataclasses.field(default_factory=dict)
    replaced: frozenset[str] = frozenset()
    marks: Mapping[str, Mark] = dataclasses.field(default_factory=dict)
    invocations: Mapping[str, str] = dataclasses.field(default_factory=dict)
    origin: JSON = None
    rewind: JSON = None
    by: str | None = None
    written: Place | None = None
    count: int = 0
    foreign: bool = False
    damaged: bool = False

    @property
    def key(self) -> tuple[int, str]:
        """Sorts changes into the order of the conversation."""
        return (self.time, self.id)

    def references(self) -> dict[int | str, tuple[Reference, ...]]:
        """Return where its native blocks are, by position of the message or name of the state that refers to some."""
        found: dict[int | str, tuple[Reference, ...]] = {}
        found |= {position: tuple(message.references()) for position, message in self.messages.items() if message.homes}
        found |= {
            name: tuple(text_references(value[0]))
            for name, value in self.state.items()
            if value and text_references(value[0])
        }
        return found

    def merged(self, other: Change) -> Change:
        """Return the union of two copies of the same change; of two copies of a content the newer home counts."""
        if self.damaged is not other.damaged:
            return other if self.damaged else self
        messages = dict(self.messages)
        for position, message in other.messages.items():
            mine = messages.get(position)
            if mine is None or message.newest_home() > mine.newest_home():
                messages[position] = message
        state = {**self.state, **other.state}
        state |= {
            name: value
            for name, value in self.state.items()
            if newest_text_step(value) >= newest_text_step(state[name])
        }
        return dataclasses.replace(
            self,
            messages=messages,
            removed=self.removed | other.removed,
            archived=self.archived | other.archived,
            is_set=self.is_set or other.is_set,
            state=state,
            replaced=(self.replaced | other.replaced) - state.keys(),
            marks={**other.marks, **self.marks},
            invocations={**other.invocations, **self.invocations},
            origin=self.origin or other.origin,
            rewind=self.rewind or other.rewind,
            by=self.by or other.by,
            written=self.written or other.written,
            count=max(self.count, other.count),
        )


class Segment(NamedTuple):
    """A step and those of its changes that no newer step carries.

    `taken` are the steps of earlier sessions whose content it contains.
    """

    home: Home
    changes: tuple[str, ...]
    taken: frozenset[str]
    own: bool


class Inherited(NamedTuple):
    """A segment of an earlier session as an opening names it; `dead` and `archived` by position of the change."""

    home: Home
    dead: Mapping[int, frozenset[int]]
    archived: Mapping[int, frozenset[int]]
    own: bool
    archive_only: bool = False
    """Whether all that counts of it is archived messages."""


@dataclasses.dataclass(frozen=True, slots=True)
class Opening:
    """What an opening records besides its change: see "Openings" in `docs/format.md`."""

    generation: int
    covers: Mapping[str, int]
    parents: Mapping[str, frozenset[str]]
    removed: frozenset[MessageId]
    segments: tuple[Inherited, ...]
    last_set: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """A step that has been read. `contents` are its own change and the carried ones, with the steps they came in.

    What is carried and cannot be read came in "" and is None.
    """

    home: Home
    contents: tuple[tuple[str, Change | None], ...]
    named: tuple[Home, ...] = ()
    taken: frozenset[str] = frozenset()
    opening: Opening | None = None
    newer: bool = False

    def alone(self) -> Step:
        """Return the step with a placeholder for what it carries that cannot be read, if nothing else holds that."""
        (step, own), *carried = self.contents
        if not any(source_step == "" for source_step, _ in carried):
            return self
        parsed = parse_id(step)
        lost = placeholder_change(step, parsed.ms if parsed else 0, "what a damaged step carried")
        if own is not None and not own.damaged:
            shown = lost.messages[0]._replace(id=(own.id, own.count))
            lost = dataclasses.replace(own, messages={**own.messages, own.count: shown}, damaged=True)
        return dataclasses.replace(self, contents=((step, lost), *carried))


def read_message(message_id: MessageId, record: JSON, homes: Sequence[Home]) -> Message:
    used = tuple(homes) if any(True for _ in references(record, homes)) else ()
    return Message(message_id, without_forged(record, len(homes)), used, len(dump(record).encode()))


def placeholder_change(step: str, ms: int, what: str) -> Change:
    record = message_codec.encode([message_codec.placeholder(what)])
    inline = message_codec.carried(record.records[0], lambda n: record.blocks[n])
    return Change(step, ms, {0: read_message((step, 0), inline, ())}, damaged=True)
