"""A decoder written from docs/format.md alone, with the standard library: it knows nothing of the package.

It serves as evidence that the page is enough. It reads what was really stored, and leaves out the rules for limits.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
import zlib
from dataclasses import dataclass, field
from typing import Any

MARK = "llama_index_bedrock_sessions"
FACTS = ("remove", "archive", "set", "marks", "state", "invocations", "origin", "rewind", "by")
ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
CHANGE, OPENING = 0, 1
Home = tuple[str, str, str]
Key = tuple[int, str]


def parse(step: str) -> tuple[int, int, int] | None:
    """Section "Step ids": time, kind and hint."""
    bits = int(step.replace("-", ""), 16) if ID.fullmatch(step) else 1 << 127
    parts = bits >> 80, bits >> 74 & 3, bits >> 64 & 1023
    return parts if parts[0] <= 4102444800000 else None


def value(stored: Any) -> Any:
    """Section "Values"."""
    if isinstance(stored, list):
        return [value(item) for item in stored]
    if not isinstance(stored, dict):
        return stored
    if len(stored) == 1 and (tag := next(iter(stored))).startswith("~"):
        content = stored[tag]
        readers: dict[str, Any] = {
            "~b": base64.b64decode,
            "~s": lambda text: base64.b64decode(text).decode("utf-8", "surrogatepass"),
            "~i": lambda text: int(text, 16),
            "~f": float,
            "~d": lambda pairs: {value(key): value(item) for key, item in pairs},
        }
        return readers[tag](content) if tag in readers else "[unreadable value]"
    return {key: value(item) for key, item in stored.items()}


@dataclass
class Change:
    """A change: its messages are {position: (record, homes)}."""

    id: str
    time: int
    body: dict[str, Any] = field(default_factory=dict)
    messages: dict[int, tuple[dict[str, Any], list[Home]]] = field(default_factory=dict)
    written: list[str] | None = None

    @property
    def key(self) -> Key:
        return self.time, self.id

    def facts(self) -> dict[str, Any]:
        return {name: self.body[name] for name in FACTS if self.body.get(name)}


@dataclass
class Step:
    """A step: its own change and the carried ones, each with the step it was written in."""

    changes: list[tuple[str, Change | None]]
    named: list[Any] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    opening: dict[str, Any] | None = None


def decode(home: Home, time: int, content: list[dict[str, Any]]) -> Step:
    """Sections "Payload and envelope", "A change", "Carried changes", "Steps of other tools" and "Damage"."""
    own_id, parsed = home[2], parse(home[2])
    text = content[-1].get("text", "")
    if parsed is None or not text.startswith(f'{{"{MARK}"'):
        return Step([(own_id, _foreign(home, parsed[0] if parsed else time, content))])
    envelope = json.loads(text)
    if envelope[MARK] > 1:
        raise ValueError(f"version {envelope[MARK]}: {envelope.get('release')}")
    own: Change | None = None
    if "change" in envelope:
        if not isinstance(envelope["change"], dict):
            record = {"r": "user", "b": ["[unreadable message: a damaged step]"]}
            return Step([(own_id, Change(own_id, parsed[0], messages={0: (record, [])}))])
        own = _own(home, envelope["change"], content)
    packed = json.loads(zlib.decompress(base64.b64decode(envelope["zip"]))) if "zip" in envelope else {}
    places = packed.get("places", [])
    carried = [(body.get("step", body["id"]), _carried(body, places)) for body in packed.get("carried", [])]
    return Step(
        [(own_id, own), *carried],
        packed.get("named", []),
        packed.get("taken", []),
        packed.get("opening") if parsed[1] == OPENING else None,
    )


def _own(home: Home, body: dict[str, Any], content: list[dict[str, Any]]) -> Change:
    change_id = body.get("id", home[2])
    homes = [home if place is None else tuple(place) for place in body.get("homes", [None])]

    def item(given: Any) -> Any:
        return content[given].get("text", {"n": given}) if isinstance(given, int) else given

    records = [{**record, "b": [item(i) for i in record["b"]]} for record in body.get("add", [])]
    messages = {position: (record, homes) for position, record in enumerate(records)}
    return Change(change_id, _ms(change_id), body, messages, list(home[:2]))


def _carried(body: dict[str, Any], places: list[list[str]]) -> Change:
    homes = [tuple(place) for place in body.get("homes", [])]
    records = body.get("add", [])
    messages = {p: (r, homes) for p, r in zip(body.get("at", range(len(records))), records, strict=True)}
    written = places[body["in"]] if "in" in body else None
    return Change(body["id"], body["time"] if "time" in body else _ms(body["id"]), body, messages, written)


def _ms(change_id: str) -> int:
    parsed = parse(change_id)
    assert parsed
    return parsed[0]


def _foreign(home: Home, time: int, content: list[dict[str, Any]]) -> Change:
    change = Change(home[2], time, written=list(home[:2]))
    if not all(home[1] in _checkpoint_invocations(block.get("text", "")) for block in content):
        items = [block.get("text", {"n": n}) for n, block in enumerate(content)]
        change.messages = {0: ({"r": "user", "b": items}, [home])}
    return change


def _checkpoint_invocations(text: str) -> list[str]:
    try:
        body = json.loads(text)
        python, script = (
            ("CHECKPOINTS", "checkpoint_ns", "checkpoint_id"),
            ("CHECKPOINT", "checkpointNs", "checkpointId"),
        )
        prefix, space, checkpoint = python if "checkpoint_ns" in body else script
        names = [f"{prefix}#{body[space]}", f"WRITES#{body[space]}#{body[checkpoint]}"]
    except (ValueError, KeyError, TypeError):
        return []
    return [str(uuid.UUID(hashlib.md5(name.encode()).hexdigest())) for name in names]


@dataclass
class Conversation:
    """What the stored steps add up to; messages are (id, status, role, blocks, additional_kwargs)."""

    messages: list[tuple[str, str, str, list[Any], Any]]
    state: dict[str, Any]
    marks: dict[str, tuple[int, bool, dict[str, str]]]
    fetched: list[str]
    """The steps that a reader needs who makes few calls."""


class Service:
    """The sessions as Bedrock returns them: metadata, and {home: (time, content blocks)}."""

    def __init__(
        self, sessions: dict[str, dict[str, str]], steps: dict[Home, tuple[int, list[dict[str, Any]]]]
    ) -> None:
        self.sessions = sessions
        self.steps = steps

    def read(self, key: str, namespace: str) -> Conversation:
        """Section "How to read a conversation", by its numbers."""
        mine = [  # 1
            session
            for session, metadata in self.sessions.items()
            if (metadata.get("llama-index-key"), metadata.get("llama-index-namespace")) == (key, namespace)
        ]
        listed = {session: [home for home in sorted(self.steps) if home[0] == session] for session in mine}  # 2
        openings = {s: [h for h in homes if (parse(h[2]) or (0, -1))[1] == OPENING] for s, homes in listed.items()}
        covered = {  # 3
            before
            for session, homes in openings.items()
            for home in homes
            for before in self._opening(home)["covers"]
            if before != session
        }
        heads = [session for session in mine if openings[session] and session not in covered]
        read = [self._get(home) for head in heads for home in listed[head] if _has_content(home[2])]  # 4
        learnt = [change for step in read for _, change in step.changes if change]  # 5
        dead = {message for change in learnt for message in _ids(change.body.get("remove"))}
        archived = {message for change in learnt for message in _ids(change.body.get("archive"))}
        taken = {step_id for step in read for step_id in step.taken}
        opened = [step.opening for step in read if step.opening]
        last_sets = [(_ms(o["last_set"]), o["last_set"]) for o in opened if o.get("last_set")]
        segments = [segment for opening in opened for segment in opening.get("segments", [])]
        for opening in opened:  # 6
            dead |= _ids(opening.get("removed"))
        for segment in segments:
            if segment["home"][2] in taken or segment["home"][0] not in mine:
                continue
            for position, (_, change) in enumerate(self._get(tuple(segment["home"])).changes):
                if change is None or (position and segment.get("own")):
                    continue
                dead |= {(change.id, p) for p in segment.get("dead", {}).get(str(position), [])}
                archived |= {(change.id, p) for p in segment.get("archived", {}).get(str(position), [])}
                learnt.append(change)
        for opening in opened:  # 7
            for parent in opening.get("parents", {}):
                seen = {step_id for other in opened for step_id in other.get("parents", {}).get(parent, [])}
                for home in listed.get(parent, []):
                    if _has_content(home[2]) and home[2] not in seen and (own := self._get(home).changes[0][1]):
                        learnt.append(own)
                        dead |= _ids(own.body.get("remove"))
                        archived |= _ids(own.body.get("archive"))
        changes = sorted(_merged(learnt), key=lambda change: change.key)  # 8, 9
        last_set = max(
            [*last_sets, *(change.key for change in changes if change.body.get("set"))], default=(-1, "")
        )  # 10
        state: dict[str, tuple[Key, Any]] = {}
        marks: dict[str, tuple[Key, Any]] = {}
        for change in changes:  # 13, 14
            state |= {name: (change.key, stored) for name, stored in change.body.get("state", {}).items()}
            marks |= {name: (change.key, mark) for name, mark in change.body.get("marks", {}).items()}
        hidden_at, hidden = marks.get("hidden", ((-1, ""), [False]))
        from_here = hidden_at if hidden[0] else (-1, "")  # 15
        messages = [  # 11, 12
            self._message(change.id, position, *change.messages[position], archived=archived)
            for change in changes
            if change.key >= from_here and not (change.body.get("set") and change.key < last_set)
            for position in sorted(change.messages)
            if (change.id, position) not in dead
        ]
        return Conversation(
            messages,
            {name: self._value(stored[0]) for name, (at, stored) in state.items() if stored and at >= from_here},
            {name: (at[0], on, *(said or [{}])) for name, (at, (on, *said)) in marks.items()},  # pyright: ignore[reportArgumentType]
            [step for head in heads for step in self._by_hints(listed[head])],
        )

    def _value(self, stored: Any) -> Any:
        """Section "Named state": a value, or the text of native blocks."""
        if isinstance(stored, dict) and list(stored) == ["~parts"]:
            return "".join(self.steps[tuple(part[:3])][1][part[3]]["text"] for part in stored["~parts"])
        return value(stored)

    def _get(self, home: Home) -> Step:
        return decode(home, *self.steps[home])

    def _opening(self, home: Home) -> dict[str, Any]:
        opening = self._get(home).opening
        assert opening
        return opening

    def _by_hints(self, homes: list[Home]) -> list[str]:
        """Section "Fewer calls": the steps of a head to get first."""
        ids = [home[2] for home in homes if parse(home[2]) and _has_content(home[2])][::-1]
        found, position = [], 0
        while position < len(ids):
            found.append(ids[position])
            position += 1 + (parse(ids[position]) or (0, 0, 0))[2]
        return found

    def _message(
        self, change_id: str, position: int, record: dict[str, Any], homes: list[Home], *, archived: set[Any]
    ) -> tuple[str, str, str, list[Any], Any]:
        status = "archived" if (change_id, position) in archived else "active"
        shown = [self._block(item, homes) for item in record["b"]]  # 16
        return f"{change_id}/{position}", status, record["r"], shown, value(record.get("k", {}))

    def _block(self, item: Any, homes: list[Home]) -> Any:
        if isinstance(item, str):
            return item
        if "block_type" in item:
            return {name: _field(stored) for name, stored in item.items()}
        block = self.steps[homes[item.get("h", 0)]][1][item["n"]]
        if "text" in block:
            return block["text"]
        image = block["image"]
        mimetype = item.get("image_mimetype", f"image/{image['format']}")
        shown = {"block_type": "image", **({"image_mimetype": mimetype} if mimetype else {})}
        if "o" in item:
            return {**shown, "image": {"sha256": item["o"]}}
        raw = image["source"]["bytes"]
        if "data_url" in item:
            return {**shown, "url": item["data_url"] + base64.b64encode(raw).decode()}
        return {**shown, "image": raw}


def _field(stored: Any) -> Any:
    """A field of a block; the content of an object in S3 is shown as its SHA-256."""
    if isinstance(stored, dict) and list(stored) == ["~o"]:
        return {"sha256": stored["~o"]}
    return value(stored)


def object_key(prefix: str, namespace: str, key: str, sha256: str) -> str:
    """Section "Contents in S3"."""
    return f"{prefix}/{hashlib.sha256(json.dumps([namespace, key]).encode()).hexdigest()}/{sha256}"


def claim(session: str, of: str) -> Home:
    """Section "Claims"."""
    random = int.from_bytes(hashlib.sha256(f"{of} {session}".encode()).digest()[:8], "big") >> 2
    step = uuid.UUID(int=_ms(of) << 80 | 8 << 76 | 2 << 62 | random)
    return session, str(uuid.uuid5(uuid.UUID(session), of)), str(step)


def _has_content(step: str) -> bool:
    parsed = parse(step)
    return parsed is None or parsed[1] in (CHANGE, OPENING)


def _ids(grouped: dict[str, list[int]] | None) -> set[tuple[str, int]]:
    return {(change, position) for change, positions in (grouped or {}).items() for position in positions}


def _merged(copies: list[Change]) -> list[Change]:
    merged: dict[str, Change] = {}
    for copy in copies:
        one = merged.setdefault(copy.id, Change(copy.id, copy.time))
        for position, message in copy.messages.items():
            before = one.messages.get(position)
            if before is None or _newest(message[1]) > _newest(before[1]):
                one.messages[position] = message
        state = {**copy.body.get("state", {}), **one.body.get("state", {})}
        one.body = {**copy.body, **one.body, "state": state}
    return list(merged.values())


def _newest(homes: list[Home]) -> str:
    return max((home[2] for home in homes), default="")
