"""What a forked child must not inherit: locks that vanished threads hold, threads, connections and half-made changes.

A child has one thread, the one that forked. Before `os.fork` returns there, every `ForkSafeLock` is free and every
`PerProcess` is empty.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Inherited(Protocol):
    """What a forked child resets before it uses it."""

    def reset(self) -> None:
        """Make it as new. No other thread runs."""
        ...


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


class ForkSafeLock:
    """A reentrant lock that is new, and free, in a forked child."""

    def __init__(self) -> None:
        self.reset()
        _inherited.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        # A thread that forks inside the `with` block leaves it in the child too, and does not hold the new lock.
        with contextlib.suppress(RuntimeError):
            self._lock.release()

    def reset(self) -> None:
        """Replace the lock, which a vanished thread may hold."""
        self._lock = threading.RLock()


class PerProcess(Generic[T]):
    """A resource that each process makes for itself, once, when it first needs it. Thread-safe."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._lock = ForkSafeLock()
        self._made: T | None = None
        _inherited.add(self)

    def get(self) -> T:
        """Return the resource of this process. If `make` raises, so does this, and the next call makes it again."""
        made = self._made
        if made is not None:  # without the lock: each use of a conversation asks several times
            return made
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def take(self) -> T | None:
        """Drop the resource and return it, None if there is none. The next `get` makes another."""
        with self._lock:
            made, self._made = self._made, None
            return made

    def reset(self) -> None:
        """Drop the resource, which belongs to the parent."""
        self._made = None


def reset_inherited() -> None:
    """Reset every lock and every resource, as a forked child does."""
    for each in list(_inherited):
        each.reset()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=reset_inherited)
