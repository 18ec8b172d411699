"""Encode changes and openings as the content blocks of a step. `docs/format.md` specifies the format."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Mapping, Sequence

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.ids import Home, MessageId, Place
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import MARK, VERSION, Change, Opening
from llama_index_bedrock_sessions._journal.records import located, with_homes
from llama_index_bedrock_sessions._journal.values import JSON, dump


def own_records(
    encoded: message_codec.Encoded, homes: Sequence[Home | None], positions: Sequence[tuple[int, int]]
) -> tuple[list[JSON], list[JSON]]:
    """Return (`add`, `homes`) of an own change: native block i is block n of `homes[h]`, (h, n) = `positions[i]`."""
    if not homes:
        return encoded.records, []
    return [located(record, positions) for record in encoded.records], [list(home) if home else None for home in homes]


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
        body["add"] = [with_homes(change.messages[p].record, change.messages[p].homes, homes) for p in positions]
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
    """Return the members of a change besides its messages."""
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
    """Return a change as JSON for the step that it is written in: `add` refers to the step's native blocks."""
    body: dict[str, JSON] = {} if change.id == step else {"id": change.id}
    if add:
        body["add"] = add
    if homes:
        body["homes"] = homes
    return {**body, **facts_json(change)}


def envelope(body: Mapping[str, JSON], packed: Mapping[str, JSON]) -> ContentBlock:
    """Return the last content block of a step."""
    members: dict[str, JSON] = {MARK: VERSION, **{k: v for k, v in body.items() if v}}
    packed = {k: v for k, v in packed.items() if v}
    if packed:
        members["zip"] = base64.b64encode(zlib.compress(dump(packed).encode())).decode()
    return {"text": dump(members)}


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


def _ids_json(ids: Iterable[MessageId]) -> dict[str, list[int]]:
    grouped: dict[str, list[int]] = {}
    for change, position in sorted(ids):
        grouped.setdefault(change, []).append(position)
    return grouped
