"""Faults as data: which call fails, and how. Nothing here knows how a transport shows them.

What reaches the service and what reaches the client are two things, and a program that must not lose or repeat
anything has to survive their every combination:

    fault          the service                     the client (as botocore names it)
    throttle       refuses                         ThrottlingException, 429
    internal       refuses                         InternalServerException, 500
    unavailable    refuses                         503, no modelled error
    access_denied  refuses                         AccessDeniedException, 403
    refused        never sees the call             EndpointConnectionError
    reset          never sees the call             ConnectionClosedError
    lost_reply     carries the call out            ConnectionClosedError
    read_timeout   carries the call out            ReadTimeoutError
    torn_body      carries the call out            half of the answer, which recent botocore takes for a whole one
    slow           carries the call out            the answer, late

Over HTTP `refused` shows as `reset`, for the connection stands already, and botocore before 1.44 or so notices a torn
body (ConnectionClosedError); in process it never does, which is the harder case.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

#: Every fault `Faults.add` takes.
FAULTS = frozenset(
    {
        "access_denied",
        "internal",
        "lost_reply",
        "read_timeout",
        "refused",
        "reset",
        "slow",
        "throttle",
        "torn_body",
        "unavailable",
    }
)
#: Those that never reach the service.
UNSEEN = frozenset({"refused", "reset"})


@dataclass(frozen=True)
class Fired:
    """A fault that happened: to which operation, which fault, and for `slow` by how many seconds."""

    operation: str
    fault: str
    seconds: float = 0.0


@dataclass
class _Rule:
    operation: str | None
    nth: int
    fault: str
    times: int | None
    seconds: float
    seen: int = 0

    def counts(self, operation: str) -> bool:
        """Count a call that this rule is about; True if it is one of those to fail."""
        if self.operation not in (None, operation):
            return False
        self.seen += 1
        return self.seen >= self.nth and (self.times is None or self.seen < self.nth + self.times)


class Faults:
    """The faults an emulator is to show. Thread-safe.

    `latency`: seconds added to every call. `fired`: what has happened, in order.
    """

    def __init__(self) -> None:
        self.latency = 0.0
        self.fired: list[Fired] = []
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(self, operation: str | None, nth: int, fault: str, times: int | None = 1, *, seconds: float = 0.05) -> None:
        """Let the nth call of an operation from now on fail, and those after it until `times` have.

        `operation`: a name such as "PutInvocationStep"; None or "*" for any. `nth`: 1 is the next call; attempts that
        botocore repeats count like all others. `times`: None for ever. `seconds`: the delay of `slow`.
        Where several faults fall on one call, the one added first happens. Raises ValueError.
        """
        if fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}: there are {', '.join(sorted(FAULTS))}")
        if nth < 1 or (times is not None and times < 1) or seconds < 0:
            raise ValueError("nth and times count from 1, seconds from 0")
        with self._lock:
            self._rules.append(_Rule(None if operation == "*" else operation, nth, fault, times, seconds))

    def clear(self) -> None:
        """Forget all faults, what has fired, and the latency."""
        with self._lock:
            self._rules.clear()
            self.fired.clear()
            self.latency = 0.0

    def meet(self, operation: str) -> Fired | None:
        """Count one call of an operation; return the fault that falls on it."""
        if not self._rules:
            return None
        with self._lock:
            due = [rule for rule in self._rules if rule.counts(operation)]
            if not due:
                return None
            fired = Fired(operation, due[0].fault, due[0].seconds if due[0].fault == "slow" else 0.0)
            self.fired.append(fired)
            return fired

    def renew_lock(self) -> None:
        """Take a new lock: in a child process the old one may be held by a thread that is not there."""
        self._lock = threading.Lock()
