"""Decode one invocation step, of this library or of another tool.

Every step is decoded to changes, becomes one visible placeholder, or is refused by its version. `docs/format.md`
specifies the format. `fetch_plan.py` decides which steps to read, and `fold.py` what they add up to.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import logging
import math
import re
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

from llama_index_bedrock_sessions._journal import message_codec
from llama_index_bedrock_sessions._journal.checks import (
    Damaged,
    check_home,
    check_id,
    check_integer,
    check_list,
    check_object,
    check_place,
    check_string,
    check_time,
)
from llama_index_bedrock_sessions._journal.ids import Home, Kind, MessageId, Place, StepId, parse_id
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import (
    MARK,
    VERSION,
    Change,
    Inherited,
    Mark,
    Opening,
    Step,
    placeholder_change,
    read_message,
)
from llama_index_bedrock_sessions._journal.values import JSON
from llama_index_bedrock_sessions.errors import NewerFormatError

logger = logging.getLogger("llama_index_bedrock_sessions")
DECOMPRESSED = 64 * 1024 * 1024
"""Bytes that a `zip` may unpack to: far more than a writer packs, far less than a compression bomb."""
CONTAINERS = 2_000_000
"""JSON objects and lists that a `zip` may contain: parsed, each takes a thousand times its packed bytes."""
MANY = 1_000_000
"""More messages than one change adds, or than the carried changes of a step have added."""
CARRIED = 10_000
"""More changes than a step carries: 512 KB at 80 bytes or more each."""
_NESTING = 450
"""Levels that an envelope may have: a value has up to 100, each takes 3 in `values.py`, and Python's limit is 1,000."""
_SAVERS = (
    ("CHECKPOINTS", "checkpoint_ns", "checkpoint_id"),
    ("CHECKPOINT", "checkpointNs", "checkpointId"),
)
"""The checkpoint savers of LangGraph, in Python and in JavaScript."""


def read_step(home: Home, payload: Sequence[ContentBlock], time: int, *, skip_newer: bool = False) -> Step:
    """Return a decoded step. Total: content that cannot be read becomes one visible placeholder, and is logged.

    `time` is the step's `invocationStepTime` in ms: it orders the steps of other tools.

    Raises:
        NewerFormatError: the step was written by a newer release, and not `skip_newer`.

    """
    parsed = parse_id(home.step)
    step = _step(home, parsed, payload, time, skip_newer=skip_newer)
    if parsed and parsed.kind is Kind.OPENING and step.opening is None:
        # The session is open, even if its opening is damaged. The sessions before it become heads again.
        step = dataclasses.replace(step, opening=Opening(0, {}, {}, frozenset(), (), None))
    return step.alone() if parsed and parsed.kind in {Kind.OPENING, Kind.ATTACHMENT} else step


def _step(home: Home, parsed: StepId | None, payload: Sequence[ContentBlock], time: int, *, skip_newer: bool) -> Step:
    text = payload[-1].get("text") if payload and isinstance(payload[-1], dict) else None
    if parsed is None or not isinstance(text, str) or not text.startswith('{"' + MARK + '"'):
        return Step(home, ((home.step, _foreign(home, payload, time)),))
    try:
        body = check_object(_loads(text))
        version = check_integer(body.get(MARK) or None)  # version 0 does not exist
        if version > VERSION:
            return _newer(home, parsed.ms, body, version, skip_newer=skip_newer)
        return _read(home, parsed, body, payload)
    except (Damaged, ValueError, RecursionError) as error:
        logger.warning("step %s of session %s cannot be read: %s", home.step, home.session, type(error).__name__)
        return Step(home, ((home.step, placeholder_change(home.step, parsed.ms, "a damaged step")),))


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
    change = placeholder_change(home.step, ms, f"a step of format {version}, which {reads} reads")
    return Step(home, ((home.step, change),), newer=True)


def _read(home: Home, parsed: StepId, body: Mapping[str, JSON], payload: Sequence[ContentBlock]) -> Step:
    own = _own_change(home, parsed.ms, body["change"], payload) if "change" in body else None
    step = Step(home, ((home.step, own),))
    try:
        return _carrying(step, parsed.kind, _unzip(body["zip"])) if "zip" in body else step
    except (Damaged, ValueError, RecursionError) as error:
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
        named=tuple(check_home(h) for h in check_list(packed.get("named", []))),
        taken=frozenset(check_string(s) for s in check_list(packed.get("taken", []))),
        opening=_opening(packed["opening"], step.home) if "opening" in packed and kind is Kind.OPENING else None,
    )


def _unzip(text: JSON) -> Mapping[str, JSON]:
    try:
        inflate = zlib.decompressobj()
        raw = inflate.decompress(base64.b64decode(check_string(text), validate=True), DECOMPRESSED)
    except (ValueError, zlib.error) as error:
        raise Damaged("zip") from error
    if not inflate.eof or raw.count(b"{") + raw.count(b"[") > CONTAINERS:
        raise Damaged("zip is cut short, or too large")
    return check_object(_loads(raw))


def _loads(text: str | bytes) -> JSON:
    """Parse JSON that can be written again: not NaN, not a number beyond floats, not nested without end."""

    def refused(_: str) -> NoReturn:
        raise Damaged("not a number of JSON")

    def real(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refused(text)

    value = json.loads(text, parse_constant=refused, parse_float=real)
    level = [value]
    for _ in range(_NESTING):
        level = [i for v in level if type(v) in (dict, list) for i in (v.values() if type(v) is dict else v)]
        if not level:
            return value
    raise Damaged("nested too deeply")


def _own_change(home: Home, ms: int, body: JSON, payload: Sequence[ContentBlock]) -> Change:
    def native(n: JSON) -> ContentBlock | None:
        return payload[n] if 0 <= n < len(payload) - 1 else None

    return _change(check_object(body), home.step, ms, home, lambda record: message_codec.carried(record, native))


def _carried_changes(home: Home, items: JSON, places: JSON) -> Iterator[tuple[str, Change | None]]:
    written = [check_place(place) for place in check_list(places)]
    left = MANY
    if len(check_list(items)) > CARRIED:
        raise Damaged("more changes than a step carries")
    for item in items:
        source_step, change = _carried_change(home, item, written)
        left -= change.count if change else 0
        if left < 0:
            raise Damaged("more messages than changes have")
        yield source_step, change


def _carried_change(home: Home, item: JSON, written: Sequence[Place]) -> tuple[str, Change | None]:
    try:
        body = check_object(item)
        change_id = check_string(body.get("id"))
        parsed = parse_id(change_id)
        ms = parsed.ms if parsed else check_time(body.get("time"))
        change = _change(body, change_id, ms, None, lambda record: record)
        place = written[check_integer(body["in"])] if "in" in body else None
        return check_string(body.get("step", change_id)), dataclasses.replace(change, written=place)
    except (Damaged, IndexError):
        # The step it came in is still there and is read by itself: it is not covered by this copy.
        logger.warning("a change carried by step %s of session %s cannot be read", home.step, home.session)
        return "", None


def _change(
    body: Mapping[str, JSON], change_id: str, ms: int, own: Home | None, convert: Callable[[JSON], JSON]
) -> Change:
    if own is not None and "id" in body:
        change_id = check_string(body["id"])
        parsed = parse_id(change_id)
        if parsed is None:
            raise Damaged("id")
        ms = parsed.ms
    homes = [own if h is None and own else check_home(h) for h in check_list(body.get("homes", [None] if own else []))]
    records = check_list(body.get("add", []))
    positions = [check_integer(p) for p in check_list(body["at"])] if "at" in body else list(range(len(records)))
    if len(positions) != len(records):
        raise Damaged("at")
    messages = {
        position: read_message((change_id, position), convert(record), homes)
        for position, record in zip(positions, records, strict=True)
    }
    count = max([check_integer(body.get("of", 0)), *(position + 1 for position in positions)])
    if count > MANY:
        raise Damaged("more messages than changes have")
    return Change(
        id=change_id,
        time=ms,
        messages=messages,
        removed=_ids(body.get("remove", {})),
        archived=_ids(body.get("archive", {})),
        is_set=body.get("set") is True,
        state={check_string(k): check_list(v)[:1] for k, v in check_object(body.get("state", {})).items()},
        replaced=frozenset(check_string(name) for name in check_list(body.get("was", []))),
        marks={check_string(name): _mark(mark) for name, mark in check_object(body.get("marks", {})).items()},
        invocations={check_string(k): check_string(v) for k, v in check_object(body.get("invocations", {})).items()},
        origin=body.get("origin"),
        rewind=body.get("rewind"),
        by=check_string(body["by"]) if "by" in body else None,
        written=own[:2] if own else None,
        count=count,
        foreign=parse_id(change_id) is None,
    )


def _mark(value: JSON) -> Mark:
    match value:
        case [bool(on), *said] if len(said) < 2:
            return Mark(
                on,
                {check_string(name): check_string(text) for each in said for name, text in check_object(each).items()},
            )
    raise Damaged("mark")


def _foreign(home: Home, payload: Sequence[ContentBlock], time: int) -> Change:
    parsed = parse_id(home.step)
    change = Change(home.step, parsed.ms if parsed else time, written=home[:2], foreign=parsed is None)
    if payload and all(home.invocation in _langgraph_invocations(block) for block in payload):
        logger.debug("step %s of session %s is a checkpoint of LangGraph: skipped", home.step, home.session)
        return change
    message = read_message((home.step, 0), message_codec.foreign(payload), (home,))
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
    except (Damaged, ValueError, RecursionError):
        return  # not JSON


def _opening(body: JSON, home: Home) -> Opening:
    body = check_object(body)
    last_set = body.get("last_set")
    segments = tuple(_inherited(check_object(s)) for s in check_list(body.get("segments", [])))
    if len({segment.home.step for segment in segments}) < len(segments):
        raise Damaged("a segment is named twice")
    # A forged session that covers itself would have no head.
    covers = {
        check_id(k): check_integer(v) for k, v in check_object(body.get("covers", {})).items() if k != home.session
    }
    return Opening(
        generation=check_integer(body.get("generation", 0)),
        covers=covers,
        parents={
            check_id(k): frozenset(check_string(s) for s in check_list(v))
            for k, v in check_object(body.get("parents", {})).items()
        },
        removed=_ids(body.get("removed", {})),
        segments=segments,
        last_set=check_string(last_set) if last_set is not None else None,
    )


def _inherited(body: Mapping[str, JSON]) -> Inherited:
    def positions(value: JSON) -> dict[int, frozenset[int]]:
        return {int(k): frozenset(check_integer(p) for p in check_list(v)) for k, v in check_object(value).items()}

    dead, archived = positions(body.get("dead", {})), positions(body.get("archived", {}))
    return Inherited(check_home(body.get("home")), dead, archived, body.get("own") is True, body.get("rest") is True)


def _ids(value: JSON) -> frozenset[MessageId]:
    return frozenset((check_string(k), check_integer(p)) for k, v in check_object(value).items() for p in check_list(v))
