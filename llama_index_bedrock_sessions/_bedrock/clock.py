"""The service's time, learned from the Date headers of its replies."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime


class Clock:
    """The service's time. The `Date` header of each reply bounds the error of the local clock to about a second."""

    def __init__(self, local: Callable[[], float] = time.time) -> None:
        self.local = local
        self._low, self._high = -math.inf, math.inf

    def saw(self, date: str | None, sent: float, received: float) -> None:
        """Learn from a reply: its `Date` header, and the local times (seconds) around it."""
        stamp = _seconds(date) if date else None
        if stamp is None:
            return
        low, high = stamp - received, stamp + 1 - sent
        both = max(low, self._low), min(high, self._high)
        # Bounds that exclude each other mean that one of the clocks was set.
        self._low, self._high = both if both[0] <= both[1] else (low, high)

    def now(self) -> int:
        """Return the service's time in ms since the epoch: the local time, if the bounds allow it."""
        offset = 0.0 if self._low <= 0 <= self._high else self._low if self._low > 0 else self._high
        return int((self.local() + offset) * 1000)


@functools.lru_cache(maxsize=16)  # replies of one second have the same header
def _seconds(date: str) -> float | None:
    """Return a `Date` header in seconds since the epoch, None if it cannot be read."""
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
