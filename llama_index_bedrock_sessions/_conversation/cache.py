"""What a store holds in memory: a number of conversations, and a number of bytes that they have read.

The least recently used conversations are evicted first. An evicted conversation reads again when it is used again. As
long as a caller holds it, it stays the same object, with its settings and the meaning of its positions.

No deadlock: a thread that holds the lock of a conversation may wait for the lock of the cache, never the reverse. The
cache evicts only conversations whose lock is free, and skips the others.
"""

from __future__ import annotations

import collections
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

C = TypeVar("C", bound="Evictable")
CONVERSATIONS = 1024
BUDGET = 256 * 1024 * 1024
"""Bytes that all conversations of a store hold. The conversation used last may hold more, alone."""


class Evictable(Protocol):
    """A conversation that holds in memory what it can read again."""

    def drop(self) -> bool:
        """Drop what was read, unless a thread is using it; return whether it was dropped. Never waits."""
        ...


class ConversationCache(Generic[C]):
    """The conversations of a store by their keys: at most `CONVERSATIONS`, and about `BUDGET` bytes. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: collections.OrderedDict[Hashable, C] = collections.OrderedDict()
        """The least recently used first."""
        self._alive: weakref.WeakValueDictionary[Hashable, C] = weakref.WeakValueDictionary()
        """Also those that only a caller holds: there are never two of one key."""
        self._held: dict[Hashable, int] = {}
        """The bytes of each conversation that has not been evicted."""

    @property
    def bytes(self) -> int:
        """About how many bytes all conversations hold."""
        with self._lock:
            return sum(self._held.values())

    def get(self, key: Hashable, make: Callable[[], C]) -> C:
        """Return the conversation of a key, made if there is none."""
        with self._lock:
            found = self._alive.get(key)
        made = make() if found is None else found  # without the lock: it calls functions of the application
        with self._lock:
            conversation = self._alive.setdefault(key, made)
            self._use(key, conversation)
        return conversation

    def used(self, key: Hashable, conversation: C, held: int) -> None:
        """Record the bytes that a conversation holds, and evict others. Its lock may be held."""
        with self._lock:
            if self._alive.setdefault(key, conversation) is not conversation:
                return  # it was made before a fork, and this process has made another
            self._held[key] = held
            self._use(key, conversation)

    def _use(self, key: Hashable, conversation: C) -> None:
        self._recent[key] = conversation
        self._recent.move_to_end(key)
        while len(self._recent) > CONVERSATIONS:
            self._evict(*self._recent.popitem(last=False))
        excess = sum(self._held.values()) - BUDGET
        for other, found in self._recent.items():
            if excess <= 0 or other == key:
                break
            excess -= self._evict(other, found)

    def _evict(self, key: Hashable, conversation: C) -> int:
        """Drop what a conversation has read; return how many bytes that were. One that is in use keeps them."""
        if key not in self._held or not conversation.drop():
            return 0
        return self._held.pop(key)


class ReleaseHookLock:
    """A reentrant lock. A thread calls `leaving` just before it releases it for the last time."""

    def __init__(self, leaving: Callable[[], None]) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._leaving = leaving

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        try:
            if self._depth == 1:
                self._leaving()
        finally:
            self._depth -= 1
            self._lock.release()

    def if_free(self, do: Callable[[], None]) -> bool:
        """Do something unless a thread holds the lock, even this one; return whether it was done. Never waits."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._depth:
                return False
            do()
            return True
        finally:
            self._lock.release()
