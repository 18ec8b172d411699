"""What a store keeps in memory: so many conversations, and so many bytes of them; who was used last goes last.

A conversation that is dropped from memory is read again when it is used again. It stays the same object, with its
settings and what its positions mean, for as long as somebody holds it.
"""

from __future__ import annotations

import collections
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar

from llama_index_bedrock_sessions._bedrock.pool import after_fork

C = TypeVar("C", bound="Droppable")
CONVERSATIONS = 1024
BUDGET = 256 * 1024 * 1024
"""Bytes of what was read that all conversations of a store keep; one alone may have more, while it is the only one."""


class Droppable(Protocol):
    """What keeps something in memory that can be read again."""

    def drop(self) -> bool:
        """Drop it, unless somebody is using it just now; return whether that was so. Never waits."""
        ...


class ConversationCache(Generic[C]):
    """The conversations of a store by their keys, at most `CONVERSATIONS`, and about `BUDGET` bytes of them."""

    def __init__(self) -> None:
        self.forget()
        after_fork(self)

    def forget(self) -> None:
        """Know none: a forked child starts anew."""
        self._lock = threading.Lock()
        self._by_key: collections.OrderedDict[Hashable, C] = collections.OrderedDict()
        """The least recently used first."""
        self._alive: weakref.WeakValueDictionary[Hashable, C] = weakref.WeakValueDictionary()
        """Those too that somebody else holds: of one key there are never two."""
        self._bytes: dict[Hashable, int] = {}

    @property
    def bytes(self) -> int:
        """About how many bytes all of them hold."""
        with self._lock:
            return sum(self._bytes.values())

    def get(self, key: Hashable, make: Callable[[], C]) -> C:
        """Return the conversation of a key, which is made if there is none."""
        with self._lock:
            found = self._alive.get(key)
            if found is None:
                found = self._alive[key] = make()
            dropped = self._use(key, found)
        self._drop(dropped)
        return found

    def used(self, key: Hashable, conversation: C, held: int) -> Callable[[], None]:
        """Take note of the bytes a conversation holds; return what drops others, to be called without any lock."""
        with self._lock:
            if self._alive.setdefault(key, conversation) is not conversation:
                return lambda: None  # one of before a fork, and there is another since
            self._bytes[key] = held
            dropped = self._use(key, conversation)
        return lambda: self._drop(dropped)

    def _use(self, key: Hashable, conversation: C) -> list[tuple[Hashable, C]]:
        """Return those that are to be dropped, the least recently used ones: they are not counted any more."""
        self._by_key[key] = conversation
        self._by_key.move_to_end(key)
        dropped = []
        while len(self._by_key) > CONVERSATIONS:
            dropped.append(self._by_key.popitem(last=False))
        excess = sum(self._bytes.values()) - BUDGET
        for other, found in self._by_key.items():
            if excess <= 0 or other == key:
                break
            if self._bytes.get(other):
                excess -= self._bytes[other]
                dropped.append((other, found))
        for other, _ in dropped:
            self._bytes.pop(other, None)
        return dropped

    def _drop(self, dropped: list[tuple[Hashable, C]]) -> None:
        # Who is using one says so when he is done: it is counted again then.
        for key, conversation in dropped:
            if conversation.drop():
                with self._lock:
                    self._bytes.pop(key, None)


class ReleaseHookLock:
    """A reentrant lock. Who leaves it calls `left` while he still has it, and what that returns once he has not."""

    def __init__(self, left: Callable[[], Callable[[], None]]) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self._left = left

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        then: Callable[[], None] | None = None
        try:
            if self._depth == 1:
                then = self._left()
        finally:
            self._depth -= 1
            self._lock.release()
        if then:
            then()

    def if_free(self, do: Callable[[], None]) -> bool:
        """Do something if nobody has the lock, this thread neither; return whether that was so. Never waits."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._depth:
                return False
            do()
            return True
        finally:
            self._lock.release()
