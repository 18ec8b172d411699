"""Encode and decode one invocation step. Pure: no I/O and no clock; the time is an argument.

Rule 1: every rule about the content of a stored step is in this module.
Rule 2: whatever is stored reads as changes, as one visible placeholder, or is refused by its version.

`docs/format.md` specifies the format. This module has its types (`Change`, `Opening`, `Step`), the ids of steps, one
function for each part of a step that is written, and `read_step`, which reads any step. It does not decide which steps
to read or what they add up to: see `fold.py`.
"""

from __future__ import annotations

import base64
import dataclasses
import enum
import hashlib
import json
import logging
import math
import os
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from llama_index_bedrock_sessions import blocks
from llama_index_bedrock_sessions.blocks import ContentBlock
from llama_index_bedrock_sessions.errors import NewerFormatError
from llama_index_bedrock_sessions.values import JSON

VERSION = 1
MARK = "llama_index_bedrock_sessions"
PARTS = "~parts"
"""The only member of a value of the named state that is the text of native blocks: `values.py` writes no such value."""
BUDGET = 512 * 1024
"""Bytes of changes a step carries at most."""
DECOMPRESSED = 64 * 1024 * 1024
"""Bytes a `zip` may unpack to: far more than a writer ever packs, far less than a compressed bomb."""
CONTAINERS = 2_000_000
"""JSON objects and lists a `zip` may hold: parsed, each takes a thousand times the bytes it takes packed."""
YEAR_2100 = 4_102_444_800_000
HINT_MAX = 1023
MANY = 1_000_000
"""More messages than one change ever adds, or than those a step carries have added."""
CARRIED = 10_000
"""More changes than a step ever carries: in 512 KB, of which each takes 80 bytes at least."""
YEARS = (-62_135_596_800_000, 253_402_300_799_999)
"""The ms that a foreign step can have as its time: the years 1 to 9999."""
_NESTING = 450
"""Levels an envelope may have: `values.py` needs 3 for each of the 100 a value may have; Python stops at a thousand."""
_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SAVERS = (
    ("CHECKPOINTS", "checkpoint_ns", "checkpoint_id"),
    ("CHECKPOINT", "checkpointNs", "checkpointId"),
)
"""LangGraph's savers, in Python and in JavaScript."""

logger = logging.getLogger("llama_index_bedrock_sessions")


# -- ids


class Kind(enum.IntEnum):
    """The two bits of a step id that say what kind of step it is."""

    CHANGE = 0
    OPENING = 1
    CLOSING = 2
    ATTACHMENT = 3


class StepId(NamedTuple):
    """What a step id of ours says: its time in ms, the kind of step, and the hint."""

    ms: int
    kind: Kind
    hint: int


class Home(NamedTuple):
    """Where a step is: `GetInvocationStep` needs all three."""

    session: str
    invocation: str
    step: str


MessageId = tuple[str, int]
"""The id of a change, and the position of the message in it."""


def new_id(ms: int, kind: Kind, hint: int = 0) -> str:
    """Return a new step id for a time in ms."""
    random = int.from_bytes(os.urandom(8), "big") >> 2
    bits = ms << 80 | 8 << 76 | kind << 74 | min(hint, HINT_MAX) << 64 | 2 << 62 | random
    return str(uuid.UUID(int=bits))


def parse_id(step: str) -> StepId | None:
    """Return what an id says, or None if it is not ours."""
    if not _ID.fullmatch(step) or step[14] != "8" or step[19] not in "89ab":
        return None
    bits = int(step.replace("-", ""), 16)
    ms = bits >> 80
    if ms > YEAR_2100:
        return None
    return StepId(ms, Kind(bits >> 74 & 3), bits >> 64 & HINT_MAX)


def claim_place(of: str, session: str) -> tuple[str, str]:
    """Return the invocation and the step by which what has an id of ours is claimed in a session; see `Chain.claim`."""
    parsed = parse_id(of)
    ms = parsed.ms if parsed else 0
    digest = hashlib.sha256(f"{of} {session}".encode()).digest()
    step = uuid.UUID(int=ms << 80 | 8 << 76 | 2 << 62 | int.from_bytes(digest[:8], "big") >> 2)
    return str(uuid.uuid5(uuid.UUID(session), of)), str(step)


# -- changes


class Message(NamedTuple):
    """One message as it is kept: its id, its record (`blocks.py`), where its native blocks are, its size in bytes."""

    id: MessageId
    record: JSON
    homes: tuple[Home, ...]
    size: int

    def references(self) -> Iterator[tuple[Home, int]]:
        """Yield the (home, block position) of every native block the record refers to."""
        for n, h in _references(self.record, len(self.homes)):
            yield self.homes[h], n

    def moved(self, moves: Mapping[tuple[Home, int], tuple[Home, int]]) -> Message:
        """Return the message with native blocks elsewhere: `moves` maps (home, block position) to the new ones."""
        homes: dict[Home, int] = {}

        def item(value: JSON) -> JSON:
            if (found := _reference(value, len(self.homes))) is None:
                return value
            n, h = found
            home, n = moves.get((self.homes[h], n), (self.homes[h], n))
            return {**value, "n": n, "h": homes.setdefault(home, len(homes))}

        record = {**self.record, "b": [item(value) for value in self.record["b"]]}
        return self._replace(record=record, homes=tuple(homes))

    def newest_home(self) -> str:
        """Return the greatest id of the steps that hold its native blocks, "" if it has none."""
        return max((home.step for home, _ in self.references()), default="")


class Mark(NamedTuple):
    """Whether something is true of the whole conversation, and the texts that the application gave with it."""

    on: bool
    said: Mapping[str, str] = {}


HIDDEN, ENDED = "hidden", "ended"
"""The names of the marks."""

Place = tuple[str, str]
"""A session and an invocation of it."""


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """What one step says. `time` is in ms; `state` maps a name to [value], or [] if deleted; `written` is where.

    `count` is how many messages it had: `messages` are those that are left. `replaced` are the names of the state it
    set of which the value is left out.
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

    def references(self) -> dict[int | str, tuple[tuple[Home, int], ...]]:
        """Return where its native blocks are, by position of the message or name of the state that refers to some."""
        found: dict[int | str, tuple[tuple[Home, int], ...]] = {}
        found |= {position: tuple(message.references()) for position, message in self.messages.items() if message.homes}
        found |= {name: tuple(parts(value[0])) for name, value in self.state.items() if value and parts(value[0])}
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
        state |= {name: value for name, value in self.state.items() if _newest_part(value) >= _newest_part(state[name])}
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
    """A step and the changes of it nobody newer carries. `taken`: the earlier sessions' steps whose content it has."""

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
    at_rest: bool = False
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
        """Return the step as it is where what it carries is nowhere else: what cannot be read of that is shown."""
        (step, own), *carried = self.contents
        if not any(came_in == "" for came_in, _ in carried):
            return self
        parsed = parse_id(step)
        lost = _placeholder(step, parsed.ms if parsed else 0, "what a damaged step carried")
        if own is not None and not own.damaged:
            shown = lost.messages[0]._replace(id=(own.id, own.count))
            lost = dataclasses.replace(own, messages={**own.messages, own.count: shown}, damaged=True)
        return dataclasses.replace(self, contents=((step, lost), *carried))


# -- writing one step


def own_records(
    encoded: blocks.Encoded, homes: Sequence[Home | None], place: Sequence[tuple[int, int]]
) -> tuple[list[JSON], list[JSON]]:
    """Return (`add`, `homes`) of an own change whose native block i is block `place[i][1]` of home `place[i][0]`."""
    if not homes:
        return encoded.records, []

    def moved(item: JSON) -> JSON:
        n = item if isinstance(item, int) else item["n"]
        home, position = place[n]
        rest = {} if isinstance(item, int) else item
        return {**rest, "n": position, "h": home}

    records = [{**record, "b": [moved(i) if is_reference(i) else i for i in record["b"]]} for record in encoded.records]
    return records, [list(home) if home else None for home in homes]


def shifted(record: JSON, by: int) -> JSON:
    """Return a record whose native blocks are numbered from another start."""

    def item(value: JSON) -> JSON:
        if not is_reference(value):
            return value
        return value + by if isinstance(value, int) else {**value, "n": value["n"] + by}

    return {**record, "b": [item(value) for value in record["b"]]}


def carried_json(carried: Iterable[tuple[str, Change]]) -> dict[str, JSON]:
    """Return (step, change) pairs as another step carries them: the members `carried` and `places`."""
    places: dict[Place, int] = {}
    changes = [_carried_json(change, step, places) for step, change in carried]
    return {"carried": changes, "places": [list(place) for place in places]}


def _carried_json(change: Change, step: str, places: dict[Place, int]) -> dict[str, JSON]:
    body: dict[str, JSON] = {"id": change.id}
    if step != change.id:
        body["step"] = step
    if change.written:
        body["in"] = places.setdefault(change.written, len(places))
    if change.foreign:
        body["time"] = change.time
    if change.messages:
        homes: dict[Home, int] = {}
        positions = sorted(change.messages)
        body["add"] = [_with_homes(change.messages[p], homes) for p in positions]
        if positions != list(range(len(positions))):
            body["at"] = positions
        if homes:
            body["homes"] = [list(home) for home in homes]
    if change.count > len(change.messages):
        body["of"] = change.count
    if change.replaced:
        body["was"] = sorted(change.replaced)
    body.update(facts_json(change))
    return body


def facts_json(change: Change) -> dict[str, JSON]:
    """Return what a change says besides its messages."""
    facts: dict[str, JSON] = {}
    if change.removed:
        facts["remove"] = _ids_json(change.removed)
    if change.archived:
        facts["archive"] = _ids_json(change.archived)
    if change.is_set:
        facts["set"] = True
    if change.marks:
        said = {name: [dict(mark.said)] if mark.said else [] for name, mark in change.marks.items()}
        facts["marks"] = {name: [mark.on, *said[name]] for name, mark in change.marks.items()}
    for name in ("state", "invocations", "origin", "rewind", "by"):
        if value := getattr(change, name):
            facts[name] = dict(value) if isinstance(value, Mapping) else value
    return facts


def own_json(change: Change, step: str, add: list[JSON], homes: list[JSON]) -> dict[str, JSON]:
    """Return a change as its own step says it: `add` refers to the step's native blocks."""
    body: dict[str, JSON] = {} if change.id == step else {"id": change.id}
    if add:
        body["add"] = add
    if homes:
        body["homes"] = homes
    return {**body, **facts_json(change)}


def parts(value: JSON) -> list[tuple[Home, int]]:
    """Return the (home, block position)s that a value of the named state is the text of, [] if it is a value itself."""
    if not isinstance(value, dict) or list(value) != [PARTS]:
        return []
    try:
        return [(_home(item), _integer(item[3])) for item in _list(value[PARTS])]
    except (_Damaged, IndexError):
        return []


def _newest_part(value: list[JSON]) -> str:
    """Return the id of the newest step that a value of the named state refers to."""
    return max((home.step for home, _ in parts(value[0])), default="") if value else ""


def parts_json(references: Iterable[tuple[Home, int]]) -> JSON:
    """Return a value of the named state that is the text of native blocks."""
    return {PARTS: [[*home, n] for home, n in references]}


def envelope(body: Mapping[str, JSON], packed: Mapping[str, JSON]) -> ContentBlock:
    """Return the last content block of a step."""
    whole: dict[str, JSON] = {MARK: VERSION, **{k: v for k, v in body.items() if v}}
    packed = {k: v for k, v in packed.items() if v}
    if packed:
        whole["zip"] = base64.b64encode(zlib.compress(dump(packed).encode())).decode()
    return {"text": dump(whole)}


# Made once: making one costs as much as it takes to write a small value.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ASCII_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def dump(value: JSON) -> str:
    """Return JSON as short as it gets; escaped to ASCII only where UTF-8 cannot say it (lone surrogates)."""
    text = _ENCODER.encode(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return _ASCII_ENCODER.encode(value)
    return text


def opening_json(opening: Opening) -> dict[str, JSON]:
    """Return an opening as JSON."""
    return {
        "generation": opening.generation,
        "covers": dict(opening.covers),
        "parents": {session: sorted(steps) for session, steps in opening.parents.items()},
        "removed": _ids_json(opening.removed),
        "segments": [
            {"home": list(s.home)}
            | ({"dead": {str(k): sorted(v) for k, v in s.dead.items()}} if s.dead else {})
            | ({"archived": {str(k): sorted(v) for k, v in s.archived.items()}} if s.archived else {})
            | ({"own": True} if s.own else {})
            | ({"rest": True} if s.at_rest else {})
            for s in opening.segments
        ],
        "last_set": opening.last_set,
    }


def _with_homes(message: Message, homes: dict[Home, int]) -> JSON:
    if not message.homes:
        return message.record

    def renumbered(item: JSON) -> JSON:
        if (found := _reference(item, len(message.homes))) is None:
            return item
        number = homes.setdefault(message.homes[found[1]], len(homes))
        rest = {k: v for k, v in item.items() if k != "h"}
        return {**rest, "h": number} if number else rest

    return {**message.record, "b": [renumbered(item) for item in message.record["b"]]}


def is_reference(item: JSON) -> bool:
    """Whether an item of a record stands for a native block."""
    return (isinstance(item, int) and not isinstance(item, bool)) or (isinstance(item, dict) and "n" in item)


def _references(record: JSON, homes: int) -> Iterator[tuple[int, int]]:
    items = record.get("b") if isinstance(record, dict) else None
    for item in items if isinstance(items, list) else ():
        if found := _reference(item, homes):
            yield found


def _reference(item: JSON, homes: int) -> tuple[int, int] | None:
    """Return (block position, home position) of a native block elsewhere, None for all else."""
    if not isinstance(item, dict) or "n" not in item:
        return None
    n, h = item["n"], item.get("h", 0)
    return (n, h) if _natural(n) and _natural(h) and h < homes else None


def _ids_json(ids: Iterable[MessageId]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for change, position in sorted(ids):
        grouped.setdefault(change, []).append(position)
    return grouped


# -- reading one step


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """Something stored does not have the form it should have."""


def read_step(home: Home, payload: Sequence[ContentBlock], time: int, *, skip_newer: bool = False) -> Step:
    """Return what a step says. Total: what cannot be read becomes one visible placeholder, and is logged.

    `time` is the step's `invocationStepTime` in ms: it orders the steps of other tools.

    Raises:
        NewerFormatError: the step was written by a newer release, and not `skip_newer`.

    """
    parsed = parse_id(home.step)
    step = _step(home, parsed, payload, time, skip_newer=skip_newer)
    if parsed and parsed.kind is Kind.OPENING and step.opening is None:
        # The session is open, whatever its opening cannot tell any more: those before it are heads again.
        step = dataclasses.replace(step, opening=Opening(0, {}, {}, frozenset(), (), None))
    return step.alone() if parsed and parsed.kind in {Kind.OPENING, Kind.ATTACHMENT} else step


def _step(home: Home, parsed: StepId | None, payload: Sequence[ContentBlock], time: int, *, skip_newer: bool) -> Step:
    text = payload[-1].get("text") if payload and isinstance(payload[-1], dict) else None
    if parsed is None or not isinstance(text, str) or not text.startswith('{"' + MARK + '"'):
        return Step(home, ((home.step, _foreign(home, payload, time)),))
    try:
        body = _object(_loads(text))
        version = _integer(body.get(MARK) or None)  # there is no version 0
        if version > VERSION:
            return _newer(home, parsed.ms, body, version, skip_newer=skip_newer)
        return _read(home, parsed, body, payload)
    except (_Damaged, ValueError, RecursionError) as error:
        logger.warning("step %s of session %s cannot be read: %s", home.step, home.session, type(error).__name__)
        return Step(home, ((home.step, _placeholder(home.step, parsed.ms, "a damaged step")),))


def _newer(home: Home, ms: int, body: Mapping[str, JSON], version: int, *, skip_newer: bool) -> Step:
    release = body.get("release")
    is_named = isinstance(release, str) and re.fullmatch(r"[0-9A-Za-z.+!-]{1,40}", release)
    reads = f"llama-index-bedrock-sessions {release}" if is_named else "a newer release"
    message = (
        f"Step {home.step} of session {home.session} has format {version}; this release reads up to {VERSION}. "
        f"Upgrade to {reads}{' or later' if is_named else ''}, or read around it with skip_newer=True."
    )
    if not skip_newer:
        raise NewerFormatError(message)
    logger.warning(message)
    change = _placeholder(home.step, ms, f"a step of format {version}, which {reads} reads")
    return Step(home, ((home.step, change),), newer=True)


def _read(home: Home, parsed: StepId, body: Mapping[str, JSON], payload: Sequence[ContentBlock]) -> Step:
    own = _own_change(home, parsed.ms, body["change"], payload) if "change" in body else None
    step = Step(home, ((home.step, own),))
    try:
        return _carrying(step, parsed.kind, _unzip(body["zip"])) if "zip" in body else step
    except (_Damaged, ValueError, RecursionError) as error:
        if own is None:
            raise
        logger.warning(
            "what step %s of session %s carries cannot be read: %s", home.step, home.session, type(error).__name__
        )
        return dataclasses.replace(step, contents=(*step.contents, ("", None)))


def _carrying(step: Step, kind: Kind, packed: Mapping[str, JSON]) -> Step:
    carried = tuple(_carried_changes(step.home, packed.get("carried", []), packed.get("places", [])))
    return dataclasses.replace(
        step,
        contents=(*step.contents, *carried),
        named=tuple(_home(h) for h in _list(packed.get("named", []))),
        taken=frozenset(_string(s) for s in _list(packed.get("taken", []))),
        opening=_opening(packed["opening"], step.home) if "opening" in packed and kind is Kind.OPENING else None,
    )


def _unzip(text: JSON) -> Mapping[str, JSON]:
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(_string(text), validate=True), DECOMPRESSED)
    except (ValueError, zlib.error) as error:
        raise _Damaged("zip") from error
    if not inflate.eof or raw.count(b"{") + raw.count(b"[") > CONTAINERS:
        raise _Damaged("zip is cut short, or too large")
    return _object(_loads(raw))


def _loads(text: str | bytes) -> JSON:
    """Parse JSON that can be written again: not NaN, not a number beyond floats, not nested without end."""

    def refused(_: str) -> NoReturn:
        raise _Damaged("not a number of JSON")

    def real(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refused(text)

    value = json.loads(text, parse_constant=refused, parse_float=real)
    level = [value]
    for _ in range(_NESTING):
        level = [i for v in level if type(v) in (dict, list) for i in (v.values() if type(v) is dict else v)]
        if not level:
            return value
    raise _Damaged("nested too deeply")


def _own_change(home: Home, ms: int, body: JSON, payload: Sequence[ContentBlock]) -> Change:
    def native(n: JSON) -> ContentBlock | None:
        return payload[n] if 0 <= n < len(payload) - 1 else None

    return _change(_object(body), home.step, ms, home, lambda record: blocks.carried(record, native))


def _carried_changes(home: Home, items: JSON, places: JSON) -> Iterator[tuple[str, Change | None]]:
    written = [_place(place) for place in _list(places)]
    left = MANY
    if len(_list(items)) > CARRIED:
        raise _Damaged("more changes than a step carries")
    for item in items:
        came_in, change = _carried_change(home, item, written)
        left -= change.count if change else 0
        if left < 0:
            raise _Damaged("more messages than changes have")
        yield came_in, change


def _carried_change(home: Home, item: JSON, written: Sequence[Place]) -> tuple[str, Change | None]:
    try:
        body = _object(item)
        change_id = _string(body.get("id"))
        parsed = parse_id(change_id)
        ms = parsed.ms if parsed else _time(body.get("time"))
        change = _change(body, change_id, ms, None, lambda record: record)
        place = written[_integer(body["in"])] if "in" in body else None
        return _string(body.get("step", change_id)), dataclasses.replace(change, written=place)
    except (_Damaged, IndexError):
        # The step it came in is still there and is read by itself: it is not covered by this copy.
        logger.warning("a change carried by step %s of session %s cannot be read", home.step, home.session)
        return "", None


def _change(
    body: Mapping[str, JSON], change_id: str, ms: int, own: Home | None, convert: Callable[[JSON], JSON]
) -> Change:
    if own is not None and "id" in body:
        change_id = _string(body["id"])
        parsed = parse_id(change_id)
        if parsed is None:
            raise _Damaged("id")
        ms = parsed.ms
    homes = [own if h is None and own else _home(h) for h in _list(body.get("homes", [None] if own else []))]
    records = _list(body.get("add", []))
    positions = [_integer(p) for p in _list(body["at"])] if "at" in body else list(range(len(records)))
    if len(positions) != len(records):
        raise _Damaged("at")
    messages = {
        position: _message((change_id, position), convert(record), homes)
        for position, record in zip(positions, records, strict=True)
    }
    count = max([_integer(body.get("of", 0)), *(position + 1 for position in positions)])
    if count > MANY:
        raise _Damaged("more messages than changes have")
    return Change(
        id=change_id,
        time=ms,
        messages=messages,
        removed=_ids(body.get("remove", {})),
        archived=_ids(body.get("archive", {})),
        is_set=body.get("set") is True,
        state={_string(k): _list(v)[:1] for k, v in _object(body.get("state", {})).items()},
        replaced=frozenset(_string(name) for name in _list(body.get("was", []))),
        marks={_string(name): _mark(mark) for name, mark in _object(body.get("marks", {})).items()},
        invocations={_string(k): _string(v) for k, v in _object(body.get("invocations", {})).items()},
        origin=body.get("origin"),
        rewind=body.get("rewind"),
        by=_string(body["by"]) if "by" in body else None,
        written=own[:2] if own else None,
        count=count,
        foreign=parse_id(change_id) is None,
    )


def _mark(value: JSON) -> Mark:
    match value:
        case [bool(on), *said] if len(said) < 2:
            return Mark(on, {_string(name): _string(text) for each in said for name, text in _object(each).items()})
    raise _Damaged("mark")


def _message(message_id: MessageId, record: JSON, homes: Sequence[Home]) -> Message:
    used = tuple(homes) if any(True for _ in _references(record, len(homes))) else ()
    return Message(message_id, _without_forged(record, len(homes)), used, len(dump(record).encode()))


def _without_forged(record: JSON, homes: int) -> JSON:
    """Return a record whose references all have a home: no other comes to have one when it is carried on."""

    def item(value: JSON) -> JSON:
        forged = isinstance(value, dict) and "n" in value and _reference(value, homes) is None
        return {**value, "h": None} if forged else value

    items = record.get("b") if isinstance(record, dict) else None
    return {**record, "b": [item(i) for i in items]} if isinstance(items, list) else record


def _foreign(home: Home, payload: Sequence[ContentBlock], time: int) -> Change:
    parsed = parse_id(home.step)
    change = Change(home.step, parsed.ms if parsed else time, written=home[:2], foreign=parsed is None)
    if payload and all(home.invocation in _langgraph_invocations(block) for block in payload):
        logger.debug("step %s of session %s is a checkpoint of LangGraph: skipped", home.step, home.session)
        return change
    message = _message((home.step, 0), blocks.foreign(payload), (home,))
    return dataclasses.replace(change, messages={0: message}, count=1)


def _langgraph_invocations(block: ContentBlock) -> Iterator[str]:
    """Yield the ids of the invocations in which LangGraph's savers would have put a block."""
    text = block.get("text") if isinstance(block, dict) else None
    try:
        body = _loads(text) if isinstance(text, str) and text.startswith("{") else {}
        for prefix, namespace, checkpoint in _SAVERS:
            if isinstance(body.get(namespace), str) and isinstance(body.get(checkpoint), str):
                for name in (f"{prefix}#{body[namespace]}", f"WRITES#{body[namespace]}#{body[checkpoint]}"):
                    yield str(uuid.UUID(bytes=hashlib.md5(name.encode(), usedforsecurity=False).digest()))
    except (_Damaged, ValueError, RecursionError):
        return  # no JSON


def _placeholder(step: str, ms: int, what: str) -> Change:
    record = blocks.encode([blocks.placeholder(what)])
    inline = blocks.carried(record.records[0], lambda n: record.blocks[n])
    return Change(step, ms, {0: _message((step, 0), inline, ())}, damaged=True)


def _opening(body: JSON, home: Home) -> Opening:
    body = _object(body)
    last_set = body.get("last_set")
    segments = tuple(_inherited(_object(s)) for s in _list(body.get("segments", [])))
    if len({segment.home.step for segment in segments}) < len(segments):
        raise _Damaged("a segment is named twice")
    # A session that says it comes before itself would have no head.
    covers = {_id(k): _integer(v) for k, v in _object(body.get("covers", {})).items() if k != home.session}
    return Opening(
        generation=_integer(body.get("generation", 0)),
        covers=covers,
        parents={_id(k): frozenset(_string(s) for s in _list(v)) for k, v in _object(body.get("parents", {})).items()},
        removed=_ids(body.get("removed", {})),
        segments=segments,
        last_set=_string(last_set) if last_set is not None else None,
    )


def _inherited(body: Mapping[str, JSON]) -> Inherited:
    def positions(value: JSON) -> dict[int, frozenset[int]]:
        return {int(k): frozenset(_integer(p) for p in _list(v)) for k, v in _object(value).items()}

    dead, archived = positions(body.get("dead", {})), positions(body.get("archived", {}))
    return Inherited(_home(body.get("home")), dead, archived, body.get("own") is True, body.get("rest") is True)


def _ids(value: JSON) -> frozenset[MessageId]:
    return frozenset((_string(k), _integer(p)) for k, v in _object(value).items() for p in _list(v))


def _home(value: JSON) -> Home:
    parts = _list(value)
    if len(parts) < 3:
        raise _Damaged("home")
    return Home(*(_id(p) for p in parts[:3]))


def _place(value: JSON) -> Place:
    parts = _list(value)
    if len(parts) < 2:
        raise _Damaged("place")
    return _id(parts[0]), _id(parts[1])


def _id(value: JSON) -> str:
    """Return an id that the service can be asked for."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise _Damaged("not an id")
    return value


def _time(value: JSON) -> int:
    if not isinstance(value, int) or not YEARS[0] <= value <= YEARS[1]:
        raise _Damaged("not a time")
    return value


def _natural(value: JSON) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _integer(value: JSON) -> int:
    if not _natural(value):
        raise _Damaged("not a whole number")
    return int(value)


def _string(value: JSON) -> str:
    if not isinstance(value, str):
        raise _Damaged("not a string")
    return value


def _list(value: JSON) -> list[JSON]:
    if not isinstance(value, list):
        raise _Damaged("not a list")
    return value


def _object(value: JSON) -> dict[str, JSON]:
    if not isinstance(value, dict):
        raise _Damaged("not an object")
    return value
