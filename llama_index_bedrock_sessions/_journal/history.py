"""The past of a conversation: its changes as entries, and its messages and state at a point in time.

No I/O, like `fold.py`. A `Fold` knows the present. A `Timeline` knows every change that a session still contains or
mentions, also changes that no longer count.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.checks import YEARS
from llama_index_bedrock_sessions._journal.fold import Key
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, parse_id
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import ENDED, HIDDEN, Change, Message, Step
from llama_index_bedrock_sessions._journal.records import (
    is_record,
    is_reference,
    items,
    other_members,
    own_reference,
    reference,
    with_items,
)
from llama_index_bedrock_sessions._journal.values import JSON, is_unicode
from llama_index_bedrock_sessions.errors import InvalidPointError

Point = str | datetime
"""The id of a change, of its step, or of a message; or an aware datetime."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One change of a conversation, as `history()` returns it. Message ids are "change id/position".

    - `session`, `invocation` and `step`: where the change was written; None if the step is no longer in the service.
    - `description` and `by`: the description of the invocation and its writer, see `Conversation.invocation`.
    - `texts`: the texts of the messages in `added`, with their roles; None for messages that are not there now.
    - `hidden` and `ended`: True if the change hid or ended the conversation, False if it undid that, else None.
    - `said`: the texts that were given with it (`summary`, `kind`, `reason`, `by`).
    - `foreign`: whether another tool wrote the step.
    """

    id: str
    time: str
    session: str | None
    invocation: str | None
    step: str | None
    added: tuple[str, ...]
    texts: tuple[str | None, ...]
    removed: tuple[str, ...]
    archived: tuple[str, ...]
    replaced_all: bool
    state: tuple[str, ...]
    hidden: bool | None
    ended: bool | None
    said: Mapping[str, str]
    origin: JSON
    description: str | None
    by: str | None
    foreign: bool

    def as_dict(self) -> dict[str, JSON]:
        """Return the entry as JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


@dataclasses.dataclass(frozen=True)
class Record:
    """A message with its id, as in `history()`, its time (ISO 8601, UTC) and its status."""

    id: str
    time: str
    status: MessageStatus
    message: ChatMessage


class Position(NamedTuple):
    """A point between two changes or inside one: all changes before `key`, and `limit` messages of the change `key`."""

    key: Key
    limit: int = 0


_FIRST: Key = (-sys.maxsize, "")
END = Position((sys.maxsize, ""))


class Snapshot(NamedTuple):
    """A conversation at a position. Unknown content is None; the steps in `missing` may contain it."""

    messages: list[tuple[MessageId, Message | None]]
    archived: frozenset[MessageId]
    state: dict[str, list[JSON] | None]
    missing: list[Home]


class Timeline:
    """Every known change, each with the step it was written in if that step still exists."""

    def __init__(self, changes: Iterable[tuple[Change, Home | None]]) -> None:
        self.known: dict[str, Change] = {}
        """Every change, by its id."""
        self._homes: dict[str, Home] = {}
        for change, home in changes:
            self._learn(change)
            if home is not None:
                self._homes[change.id] = home

    def _learn(self, change: Change) -> None:
        before = self.known.get(change.id)
        self.known[change.id] = before.merged(change) if before else change

    def absorb(self, step: Step) -> None:
        """Take in the own change of a step that was missing from a snapshot."""
        change = step.contents[0][1]
        if change is not None and not change.damaged:
            self._learn(change)

    def changes(self) -> list[Change]:
        """Return the known changes, in order."""
        return sorted(self.known.values(), key=lambda change: change.key)

    def entries(self, alive: Iterable[Message]) -> list[Entry]:
        """Return every change as an entry; `alive` are the messages that are there now."""
        there = {message.id: message for message in alive}
        archived = self._archived()
        return [self._entry(change, there, archived[change.id]) for change in self.changes()]

    def _entry(self, change: Change, there: Mapping[MessageId, Message], archived: frozenset[MessageId]) -> Entry:
        session, invocation = change.written or (None, None)
        home = self._homes.get(change.id)
        ids = [(change.id, position) for position in range(change.count)]
        return Entry(
            id=change.id,
            time=iso(change.time),
            session=session,
            invocation=invocation,
            step=home.step if home else None,
            added=tuple(map(text_id, ids)),
            texts=tuple(_text(there[i].record) if i in there else None for i in ids),
            removed=tuple(map(text_id, sorted(change.removed))),
            archived=tuple(map(text_id, sorted(archived))),
            replaced_all=change.is_set,
            state=tuple(sorted(change.state.keys() | change.replaced)),
            hidden=change.marks[HIDDEN].on if HIDDEN in change.marks else None,
            ended=change.marks[ENDED].on if ENDED in change.marks else None,
            said={name: text for mark in change.marks.values() for name, text in mark.said.items()},
            origin=change.origin,
            description=change.invocations.get(invocation or ""),
            by=change.by,
            foreign=change.foreign,
        )

    def holds(self, message: MessageId) -> bool:
        """Whether a message is known, whether it is there now or was removed."""
        change = self.known.get(message[0])
        return (change is not None and message[1] < change.count) or message in _removed(self.changes())

    # Points

    def locate(self, at: Point | None, before: Point | None) -> Position:
        """Return the position just after the point `at`, or just before the point `before`; without both, the end.

        Raises InvalidPointError.
        """
        point = before if at is None else at
        if point is None:
            return END
        if at is not None and before is not None:
            raise InvalidPointError("Give at= (which includes the point) or before= (which does not), not both.")
        if isinstance(point, datetime):
            return _cut_at_time(point, included=at is not None)
        change, position = self._find(point)
        if position is None:
            return Position(change.key, sys.maxsize if at is not None else 0)
        if position == change.count - 1 and at is not None:
            return Position(change.key, sys.maxsize)
        return Position(change.key, position + (at is not None))

    def _find(self, point: str) -> tuple[Change, int | None]:
        if not isinstance(point, str):
            raise InvalidPointError(f"A point is an id of history() or an aware datetime, not {type(point).__name__}.")
        name, is_message, number = point.partition("/")
        steps = {home.step: change_id for change_id, home in self._homes.items()}
        change = self.known.get(name) or self.known.get(steps.get(name, ""))
        position = int(number) if number.isdecimal() and len(number) < 10 else None
        if change is None or (is_message and (position is None or position >= change.count)):
            raise InvalidPointError(
                f"{point!r} is not the id of a change or message of this conversation, or its session was deleted. Use "
                "an id of history() or an aware datetime."
            )
        return change, position

    # How it was

    def at(self, until: Position) -> Snapshot:
        """Return the conversation at a position, with the messages that were removed later.

        A change removes and archives first, then adds messages, then sets state. A message of unknown text is None if
        a later change is known to remove it. Otherwise it is left out, because it may not have been there. What is
        hidden now is hidden at every position.
        """
        changes = self.changes()
        within = [
            change for change in changes if change.key < until.key or (change.key == until.key and until.limit > 0)
        ]
        dead = {m for change in within for m in change.removed}
        last_set = max((change.key for change in within if change.is_set), default=None)
        later = _removed(changes)
        ids = _ids(within, until) + _forgotten(later, self.known, until)
        archived = self._archived()
        snapshot = Snapshot([], frozenset().union(*(archived[change.id] for change in within)), {}, [])
        hidden = self._hidden_before()
        for key, message_id in sorted(ids):
            if key < hidden:
                continue
            change = self.known.get(message_id[0])
            if message_id in dead or (change and change.is_set and last_set and change.key < last_set):
                continue
            message = change.messages.get(message_id[1]) if change else None
            if message or message_id in later:
                snapshot.messages.append((message_id, message))
            if change and message is None:
                self._miss(change, snapshot)
        self._add_state([change for change in within if change.key >= hidden], until, snapshot)
        return snapshot

    def hides(self, until: Position) -> bool:
        """Whether everything at a position is hidden."""
        return until.key <= self._hidden_before()

    def _hidden_before(self) -> Key:
        hiding = ((c.key, c.marks[HIDDEN].on) for c in self.known.values() if HIDDEN in c.marks)
        key, hides = max(hiding, default=(_FIRST, False))
        return key if hides else _FIRST

    def _miss(self, change: Change, snapshot: Snapshot) -> None:
        home = self._homes.get(change.id)
        if home is not None and home not in snapshot.missing:
            snapshot.missing.append(home)

    def _archived(self) -> dict[str, frozenset[MessageId]]:
        """Return the messages that each change has archived."""
        by_others = {m for change in self.known.values() for m in change.archived if m[0] != change.id}
        # An opening that carries a change marks its archived messages in the change, whichever change archived them.
        return {
            change.id: frozenset(m for m in change.archived if m[0] != change.id or m not in by_others)
            for change in self.known.values()
        }

    def _add_state(self, within: Iterable[Change], until: Position, snapshot: Snapshot) -> None:
        last: dict[str, Change] = {}
        for change in within:
            if change.key < until.key or until.limit >= change.count:
                last.update(dict.fromkeys([*change.state, *change.replaced], change))
        for name, change in last.items():
            snapshot.state[name] = change.state.get(name)
            if name not in change.state:
                self._miss(change, snapshot)


def _ids(within: Iterable[Change], until: Position) -> list[tuple[Key, MessageId]]:
    return [
        (change.key, (change.id, position))
        for change in within
        for position in range(change.count if change.key < until.key else min(change.count, until.limit))
    ]


def _removed(changes: Iterable[Change]) -> set[MessageId]:
    """Return every message that is known to have been removed or replaced."""
    last_set = max((change.key for change in changes if change.is_set), default=None)
    replaced = {
        (change.id, position)
        for change in changes
        if change.is_set and last_set and change.key < last_set
        for position in range(change.count)
    }
    return replaced.union(*(change.removed for change in changes))


def _forgotten(
    removed: Iterable[MessageId], known: Mapping[str, Change], until: Position
) -> list[tuple[Key, MessageId]]:
    """Return the removed messages of changes that no session mentions any more. They were there before."""
    found = []
    for change, position in removed:
        parsed = parse_id(change)
        if parsed and change not in known and (parsed.ms, change) < until.key:
            found.append(((parsed.ms, change), (change, position)))
    return found


def _cut_at_time(point: datetime, *, included: bool) -> Position:
    if point.tzinfo is None or point.utcoffset() is None:
        raise InvalidPointError(
            f"{point!r} has no time zone, so it is not a definite moment. Use an aware datetime, such as "
            "datetime.now(timezone.utc)."
        )
    ms, rest = divmod(point - _EPOCH, timedelta(milliseconds=1))
    return Position((ms + (1 if included or rest else 0), ""))


def copied(
    message: Message, native: Callable[[Home, int], ContentBlock | None], folder: str = ""
) -> message_codec.Encoded:
    """Return a message with everything that it refers to, as if it had just been encoded.

    `native` returns its native blocks. `folder` is the one to which the objects in S3 were copied.
    """
    found: list[ContentBlock] = []

    def item(value: JSON) -> JSON:
        content: ContentBlock | None = {"text": value} if isinstance(value, str) and is_unicode(value) else None
        if is_reference(value):
            found_at = reference(value, len(message.homes))
            content = native(message.homes[found_at[1]], found_at[0]) if found_at else None
            if content is None or not ("text" in content or "image" in content):
                return "[unreadable block: missing, or neither text nor image]"
        if content and "image" in content and (objects := message_codec.objects({"b": [value]})):
            content = {"image": {**content["image"], "source": {"s3Location": {"uri": folder + objects[0]}}}}
        if content is None or content.get("text", "x").strip() == "":
            return value
        found.append(content)
        return own_reference(len(found) - 1, other_members(value))

    if not is_record(message.record):
        return message_codec.encode([message_codec.placeholder("its record is not an object")])
    return message_codec.Encoded([with_items(message.record, item)], found)


def origin(key: str, past: Timeline, at: Point | None, before: Point | None) -> JSON:
    """Return the origin of a fork: the key of its source, and the point as in `history()`."""
    point = before if at is None else at
    if point is None:
        point = next((change.id for change in reversed(past.changes())), None)
    if isinstance(point, datetime):
        point = iso((point - _EPOCH) // timedelta(milliseconds=1))
    return {"key": key, "at" if before is None else "before": point}


def text_id(message: MessageId) -> str:
    """Return the id of a message as applications see it: "change id/position"."""
    return f"{message[0]}/{message[1]}"


def iso(ms: int) -> str:
    """Return a time in ms as ISO 8601 in UTC, limited to what Python can represent: other tools write any time."""
    moment = _EPOCH + timedelta(milliseconds=min(max(ms, YEARS[0]), YEARS[1]))
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def time_of(message: MessageId, changes: Mapping[str, Change]) -> int:
    """Return the time of a message in ms: that of its change."""
    change = changes.get(message[0])
    parsed = parse_id(message[0])
    return change.time if change else parsed.ms if parsed else 0


def _text(record: JSON) -> str:
    """Return a message as a line of text: its role, its texts, and the types of its other blocks."""
    return f"{record.get('r')}: {' '.join(_pieces(items(record)))}" if is_record(record) else "[unreadable message]"


def _pieces(items: Iterable[JSON]) -> Iterator[str]:
    for item in items:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict) and isinstance(item.get("block_type"), str):
            text = item.get("text")
            yield text if isinstance(text, str) else f"[{item['block_type']}]"
        else:
            yield "[image]"
