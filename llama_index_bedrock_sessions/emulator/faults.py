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

import threading
from dataclasses import dataclass

from llama_index_bedrock_sessions.emulator.wire import OPERATIONS

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


def _counts(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


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
        if not isinstance(fault, str) or fault not in FAULTS:
            raise ValueError(f"unknown fault {fault!r}: there are {', '.join(sorted(FAULTS))}")
        if operation not in (None, "*", *OPERATIONS):
            raise ValueError(f"unknown operation {operation!r}: there are *, {', '.join(OPERATIONS)}")
        if not _counts(nth) or not (times is None or _counts(times)):
            raise ValueError(f"nth={nth!r}, times={times!r}: both count from 1")
        if isinstance(seconds, bool) or not (
            isinstance(seconds, (int, float)) and 0 <= seconds <= threading.TIMEOUT_MAX
        ):
            raise ValueError(f"seconds={seconds!r}: a number from 0 is accepted")
        with self._lock:
            self._rules.append(_Rule(None if operation == "*" else operation, nth, fault, times, seconds))

    def add_written(self, text: str) -> None:
        """Add what is written as on a command line: OPERATION:NTH:FAULT, such as "PutInvocationStep:2:lost_reply".

        `*` is any operation, and `slow=1.5` an answer that is 1.5 seconds late. Raises ValueError.
        """
        operation, nth, fault = [*text.split(":"), "", ""][:3]
        fault, _, seconds = fault.partition("=")
        if text.count(":") != 2 or not (nth.isascii() and nth.isdigit()) or (seconds and fault != "slow"):
            raise ValueError(f"{text!r}: OPERATION:NTH:FAULT is accepted, such as PutInvocationStep:2:lost_reply")
        try:
            self.add(operation, int(nth), fault, seconds=float(seconds or 0.05))
        except ValueError as error:
            raise ValueError(f"{text!r}: {error}") from None

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
