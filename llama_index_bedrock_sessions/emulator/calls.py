"""What an emulator has served, for tests and benchmarks that count calls and bytes."""

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import overload

_RECORDS = 100_000
_BODIES = 64 * 1024 * 1024  # bytes


@dataclass
class Call:
    """One call that reached the service.

    `operation`: its name, "" for an unknown route. `path`: as sent. `status`: HTTP's. `fault`: what was done to it,
    None for nothing. `request_size` and `response_size` are the bytes of the bodies; the bodies themselves are b""
    once they are among the oldest beyond the limit of what is kept.
    """

    operation: str
    path: str
    status: int
    request_body: bytes
    response_body: bytes
    request_size: int
    response_size: int
    fault: str | None = None


class Calls:
    """The calls served, in order. Thread-safe; keeps the last 100,000, and the bodies of the last 64 MiB."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: deque[Call] = deque(maxlen=_RECORDS)
        self._with_bodies: deque[Call] = deque()
        self._kept = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        with self._lock:
            return iter(list(self._calls))

    @overload
    def __getitem__(self, index: int) -> Call: ...

    @overload
    def __getitem__(self, index: slice) -> list[Call]: ...

    def __getitem__(self, index: int | slice) -> Call | list[Call]:
        return list(self)[index]

    def add(self, call: Call) -> None:
        """Append a call; let go of the oldest bodies beyond what is kept."""
        with self._lock:
            self._calls.append(call)
            self._with_bodies.append(call)
            self._kept += call.request_size + call.response_size
            while self._kept > _BODIES or len(self._with_bodies) > _RECORDS:
                oldest = self._with_bodies.popleft()
                self._kept -= oldest.request_size + oldest.response_size
                oldest.request_body = oldest.response_body = b""

    def clear(self) -> None:
        """Forget all calls."""
        with self._lock:
            self._calls.clear()
            self._with_bodies.clear()
            self._kept = 0

    def count(self, operation: str | None = None) -> int:
        """Return how many calls are recorded, of one operation or of all."""
        return sum(1 for call in self if operation in (None, call.operation))

    def renew_lock(self) -> None:
        """Take a new lock: in a child process the old one may be held by a thread that is not there."""
        self._lock = threading.Lock()
