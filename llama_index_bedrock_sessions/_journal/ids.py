"""The ids of steps: a time, the kind of step and a hint, in the form of a UUID."""

from __future__ import annotations

import enum
import hashlib
import os
import re
import uuid
from typing import NamedTuple

YEAR_2100 = 4_102_444_800_000
HINT_MAX = 1023
STEP_ID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Kind(enum.IntEnum):
    """The kind of a step: two bits of its id."""

    CHANGE = 0
    OPENING = 1
    CLOSING = 2
    ATTACHMENT = 3


class StepId(NamedTuple):
    """The parts of our step ids: the time in ms, the kind of step, and the hint."""

    ms: int
    kind: Kind
    hint: int


class Home(NamedTuple):
    """Where a step is: `GetInvocationStep` needs all three."""

    session: str
    invocation: str
    step: str


class IdClock:
    """The time of the newest id that was read or written, in ms: the next id has to be later.

    No process writes ids of the future. An id later than `horizon` is forged, and must not spoil the order for all
    others, so it does not move the clock.
    """

    def __init__(self, ms: int = 0, horizon: int = YEAR_2100) -> None:
        self.ms = ms
        self.horizon = horizon

    def is_honest(self, ms: int) -> bool:
        """Whether a time is not of the future."""
        return ms <= self.horizon

    def saw(self, ms: int) -> None:
        """Record the time of an id that was read."""
        if self.is_honest(ms):
            self.ms = max(self.ms, ms)

    def advance(self, now: int) -> int:
        """Return the time of the next id; `now` is the service's time in ms."""
        self.ms = max(now, self.ms + 1)
        return self.ms


MessageId = tuple[str, int]
"""The id of a change, and the position of the message in it."""


def new_id(ms: int, kind: Kind, hint: int = 0) -> str:
    """Return a new step id for a time in ms."""
    random = int.from_bytes(os.urandom(8), "big") >> 2
    bits = ms << 80 | 8 << 76 | kind << 74 | min(hint, HINT_MAX) << 64 | 2 << 62 | random
    return str(uuid.UUID(int=bits))


def parse_id(step: str) -> StepId | None:
    """Return the parts of a step id, None if the library did not make it."""
    if not STEP_ID.fullmatch(step) or step[14] != "8" or step[19] not in "89ab":
        return None
    bits = int(step.replace("-", ""), 16)
    ms = bits >> 80
    if ms > YEAR_2100:
        return None
    return StepId(ms, Kind(bits >> 74 & 3), bits >> 64 & HINT_MAX)


def kind_of(step: str) -> Kind | None:
    """Return the kind of a step, or None if the library did not make its id."""
    parsed = parse_id(step)
    return parsed.kind if parsed else None


def claim_place(of: str, session: str) -> tuple[str, str]:
    """Return the invocation and the step that claim an id in a session: see `claims.py`."""
    parsed = parse_id(of)
    ms = parsed.ms if parsed else 0
    digest = hashlib.sha256(f"{of} {session}".encode()).digest()
    step = uuid.UUID(int=ms << 80 | 8 << 76 | 2 << 62 | int.from_bytes(digest[:8], "big") >> 2)
    return str(uuid.uuid5(uuid.UUID(session), of)), str(step)


Place = tuple[str, str]
"""A session and an invocation of it."""
