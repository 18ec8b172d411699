"""Encode changes and openings as the content blocks of a step. `docs/format.md` specifies the format."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, Place
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import MARK, VERSION, Change, Message, Opening
from llama_index_bedrock_sessions._journal.records import PARTS, is_reference, reference
from llama_index_bedrock_sessions._journal.values import JSON, dump


def own_records(
    encoded: message_codec.Encoded, homes: Sequence[Home | None], place: Sequence[tuple[int, int]]
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
            | ({"rest": True} if s.archive_only else {})
            for s in opening.segments
        ],
        "last_set": opening.last_set,
    }


def _with_homes(message: Message, homes: dict[Home, int]) -> JSON:
    if not message.homes:
        return message.record

    def renumbered(item: JSON) -> JSON:
        if (found := reference(item, len(message.homes))) is None:
            return item
        number = homes.setdefault(message.homes[found[1]], len(homes))
        rest = {k: v for k, v in item.items() if k != "h"}
        return {**rest, "h": number} if number else rest

    return {**message.record, "b": [renumbered(item) for item in message.record["b"]]}


def _ids_json(ids: Iterable[MessageId]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for change, position in sorted(ids):
        grouped.setdefault(change, []).append(position)
    return grouped
