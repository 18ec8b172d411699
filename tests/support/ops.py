"""What a history records: operations, and the changes that they send to the service."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llama_index_bedrock_sessions._conversation.contexts import PREFIX
from llama_index_bedrock_sessions._conversation.sessions import METADATA, TAGS
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, parse_id

NEVER = float("inf")
CLOCK = 1.25
"""Seconds that a writer's idea of the service's time may be wrong, besides the time a call takes."""

OWN = (METADATA, TAGS, PREFIX)
"""Named state that begins so is the library's own."""


class Anomaly(NamedTuple):
    """A broken promise: which, and what shows it."""

    what: str
    shown: str


@dataclasses.dataclass(frozen=True)
class Said:
    """A change that was sent; `wrong`: seconds that the sender's clock may have been ahead or behind at most.

    `state`: the names it sets, each with [its value] or [] where it deletes the name. `time`: ms, the position in the
    conversation of a change that another tool wrote.
    """

    at: float
    change: str
    added: Mapping[int, str]
    removed: frozenset[MessageId]
    archived: frozenset[MessageId]
    is_set: bool
    wrong: float
    state: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    time: int = 0

    @property
    def order(self) -> tuple[int, str]:
        """Sort changes into the order of the conversation."""
        parsed = parse_id(self.change)
        return (parsed.ms if parsed else self.time, self.change)

    @property
    def foreign(self) -> bool:
        """Whether another tool wrote it."""
        return parse_id(self.change) is None


class Point(NamedTuple):
    """A message of the source up to which a fork copies, and whether that message is copied too."""

    change: str
    position: int
    included: bool


@dataclasses.dataclass
class Op:
    """One operation of a process. `outcome`: ok, failed (it did not happen), unknown.

    `tokens`: what a write brings, each text once in a history; for `set`, all it wants; for `name` and `save`, a value.
    `result`: what a read, a removal or a load returned. `name`: of the state, or of the saved context.
    `strict`: whether its process had a way to know of all that was there.
    `said`: the changes that its steps contain, of which `last` counts if it succeeded.
    `error`: the class of the exception it raised.
    `source`, `point`: what a fork copies; its `key` is the new one.
    `missing`: of the messages a read returned, those whose content was not there.
    `left`: the tokens whose content was still in S3 when the operation returned.
    """

    process: str
    kind: str
    key: str
    begin: float
    tokens: list[str] = dataclasses.field(default_factory=list)
    end: float = NEVER
    outcome: str = "unknown"
    result: Any = None
    said: list[Said] = dataclasses.field(default_factory=list)
    view: str = "active"
    name: str = ""
    strict: bool = True
    error: str = ""
    source: str = ""
    point: Point | None = None
    missing: list[str] = dataclasses.field(default_factory=list)
    left: list[str] = dataclasses.field(default_factory=list)
    last: Said | None = None

    def say(self, change: Said | None) -> None:
        """Note the change in a step that it sends; None: an opening that changes nothing, all before was refused."""
        self.last = change
        if change:
            self.said.append(change)

    @property
    def sent(self) -> list[str]:
        """Return the texts that the change that counts adds."""
        return [token for _, token in sorted(self.last.added.items())] if self.last else []

    @property
    def copy(self) -> Said | None:
        """Return what a fork copies, with which it begins."""
        return next((change for change in self.said if change.added or change.state), None) if self.source else None

    @property
    def copied(self) -> list[str]:
        """Return the texts that a fork copies, in their order."""
        return [token for _, token in sorted(self.copy.added.items())] if self.copy else []

    @property
    def counts(self) -> Said | None:
        """Return the change that counts if it succeeded: of a fork the last one that copies."""
        if not self.source:
            return self.last
        return next((change for change in reversed(self.said) if change.added or change.state), None)

    @property
    def may_count(self) -> bool:
        """Whether it may have had an effect."""
        return self.outcome != "failed"

    def __str__(self) -> str:
        about = "".join(f" {word}" for word in (self.name, *self.tokens, *(["of", self.source] * bool(self.source))))
        return (
            f"{self.process} {self.kind}{about} [{self.begin:.3f} {self.end:.3f}] {self.outcome} {self.error}".strip()
        )


def said(home: Home, payload: Sequence[Any], at: float, wrong: float, time: int = 0) -> Said | None:
    """Return the change in a step that is about to be put, None if there is none."""
    _, change = read_step(home, payload, time).contents[0]
    if change is None:
        return None
    added = {position: text(message.record) for position, message in change.messages.items()}
    state = {name: list(value) for name, value in change.state.items() if not name.startswith(OWN)}
    return Said(at, change.id, added, change.removed, change.archived, change.is_set, wrong, state, time)


def text(record: Any) -> str:
    """Return the text of a record of text blocks."""
    return "".join(item for item in record["b"] if isinstance(item, str))


class Hidings:
    """The times at which a key may be hidden, and at which something else was undone."""

    def __init__(self, ops: Iterable[Op], late: float) -> None:
        ops, self.late = list(ops), late
        self.hides = [op for op in ops if op.kind == "hide" and op.may_count]
        self.restores = [op for op in ops if op.kind in {"restore", "erase"} and op.may_count]

    def may_hide(self, op: Op) -> bool:
        """Whether a hiding may be in effect at some time of an operation."""
        return any(not self.undone(hide, op, self.restores) for hide in self.hides if hide.begin < op.end)

    def undone(self, what: Op, before: Op, by: Iterable[Op]) -> bool:
        """Whether something was surely undone, and known to be, before an operation began."""
        late = self.late
        return any(
            o.outcome == "ok" and o.strict and what.end + late < o.begin and o.end + late < before.begin for o in by
        )


Report = Callable[[str, object], None]
"""Notes a broken promise: which, and what shows it."""
