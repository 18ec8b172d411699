"""Which sessions belong to a key. The service chooses session ids itself and has no search.

A store has one of three directories:

- `MetadataDirectory` reads the metadata of all sessions. It needs no setup.
- `KeyValueDirectory` reads entries in a LlamaIndex key-value store: one read, however many conversations there are.
- `SessionIdDirectory` takes session ids as keys.

The metadata of each session that the library creates holds the key, the namespace and the format. The metadata decides:
an entry counts only if the metadata agrees, and all entries can be made again from the service alone.
"""

from __future__ import annotations

import abc
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from llama_index_bedrock_sessions._bedrock.client import SessionClient, SessionInfo, SessionSummary
from llama_index_bedrock_sessions._bedrock.errors import NotFound
from llama_index_bedrock_sessions._bedrock.fork import ForkSafeLock
from llama_index_bedrock_sessions._bedrock.session_metadata import KEY, NAMESPACE
from llama_index_bedrock_sessions.errors import AccessDeniedError, DirectoryTooLarge

logger = logging.getLogger("llama_index_bedrock_sessions")
MANY = 200
"""Sessions to scan above which a warning is logged. Progress is logged after each such number."""
BATCH = 64
"""Sessions that a scan reads before it checks again whether it must read older ones."""
Progress = Callable[[int, int], None]
"""Receives how many sessions have been read, and of how many."""


def from_the_beginning() -> int:
    """Return the time in ms before every session."""
    return 0


class RateLimiter:
    """Lets `rate` requests a second begin. After a pause, those of one second begin at once. Thread-safe."""

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._interval = 1 / rate
        self._clock, self._sleep = clock, sleep
        self._next = -math.inf
        self._lock = ForkSafeLock()

    def wait(self) -> None:
        """Wait until the next request may begin."""
        with self._lock:
            now = self._clock()
            self._next = max(self._next, now - 1) + self._interval
            pause = self._next - now
        if pause > 0:
            self._sleep(pause)


class Directory(abc.ABC):
    """Finds the sessions of a key. It remembers what it has read, because a session's key and namespace never change.

    limit: it refuses to scan more unseen sessions than this.
    rate: the sessions that a scan reads in a second.
    """

    kind = ""
    """Its name in the metadata of the sessions that it finds."""
    continues = True
    """Whether a conversation continues in another session after one that takes no more writes."""

    def __init__(
        self, sessions: SessionClient, namespace: str, limit: float = math.inf, rate: float = math.inf
    ) -> None:
        self._sessions = sessions
        self._namespace = namespace
        self._limit = limit
        self._limiter = RateLimiter(rate)
        self._learnt: dict[str, SessionInfo | None] = {}
        self._allowed = False
        self._lock = ForkSafeLock()
        self._scanning = ForkSafeLock()

    @abc.abstractmethod
    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> Iterable[SessionSummary]:
        """Yield the sessions that seem to be of a key, newest first; `owned` decides which of them are.

        It reads unseen sessions only if they were created after `since()` (ms), and calls `since` again after each
        `BATCH`.

        Raises:
            DirectoryTooLarge: there are more unseen sessions than `limit`.

        """

    @abc.abstractmethod
    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted."""

    @abc.abstractmethod
    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each key that begins with `prefix`, and its newest session. Newest first, read on demand."""

    def info(self, session: str) -> SessionInfo:
        """Return a session, from memory if it was read before. Raises NotFound."""
        with self._lock:
            known = self._learnt.get(session)
        if known is None:
            known = self._sessions.get(session)
            self._learn({session: known})
        return known

    def add(self, info: SessionInfo) -> None:
        """Record a session that was just created, so that it is found."""
        self._learn({info.session: info})

    def remove(self, session: str, key: str) -> None:  # noqa: B027 - most have nothing to do
        """Record that a session of a key was deleted, so that it is no longer found."""

    def owned(self, session: str, key: str, *, fresh: bool = False) -> SessionInfo | None:  # noqa: ARG002 - see below
        """Return a session if it exists (now, if `fresh`) and is one of the key."""
        with contextlib.suppress(NotFound):
            info = self.info(session)
            return info if self.is_of(info, key) else None
        return None

    def _learn(self, found: Mapping[str, SessionInfo | None]) -> None:
        with self._lock:
            self._learnt.update(found)

    def is_of(self, info: SessionInfo, key: str) -> bool:
        """Return whether a session is one of a key in this namespace."""
        return self._key_of(info) == key

    def _key_of(self, info: SessionInfo | None) -> str | None:
        if info is None or info.metadata.get(NAMESPACE) != self._namespace:
            return None
        return info.metadata.get(KEY)

    def _listed(self) -> list[SessionSummary]:
        """Return all sessions of the account, newest first. Drop from memory those that are not listed."""
        with self._lock:
            before = set(self._learnt)
        listed = sorted(self._sessions.list_sessions(), key=lambda s: (s.created, s.session), reverse=True)
        with self._lock:
            for session in before - {s.session for s in listed}:
                # It was deleted. If it is only listed late, it is read once more.
                self._learnt.pop(session, None)
        return listed

    def _scan(
        self, since: Callable[[], int] = from_the_beginning, progress: Progress | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[SessionSummary, SessionInfo | None]]:
        """Yield all sessions, newest first, each with what is known of it. Unseen sessions are read in parallel.

        With `fresh`, own sessions that have changed are read again: metadata other than the key can change.
        """
        yielded: set[str] = set()
        is_current = False
        while not is_current:
            # A process that deletes a session during the scan may continue in another, which was not listed.
            is_current = True
            listed = [summary for summary in self._listed() if summary.session not in yielded]
            yielded |= {summary.session for summary in listed}
            total, done = len(self._unseen(listed, since())), 0
            self._check_number(total)
            for start in range(0, len(listed), BATCH):
                batch = listed[start : start + BATCH]
                # One scan at a time: a scan that waits finds that the other has read the sessions.
                with self._scanning:
                    unseen = self._unseen(batch, since())
                    is_current = self._look(unseen + (self._changed(batch) if fresh else [])) and is_current
                before, done = done, done + len(unseen)
                if done // MANY > before // MANY:
                    logger.info("read %d of %d sessions", done, total)
                if progress:
                    progress(min(done, total), total)
                with self._lock:
                    known = [self._learnt.get(s.session) for s in batch]
                yield from zip(batch, known, strict=True)

    def _unseen(self, listed: Iterable[SessionSummary], since: int) -> list[str]:
        with self._lock:
            return [s.session for s in listed if s.created >= since and s.session not in self._learnt]

    def _changed(self, listed: Iterable[SessionSummary]) -> list[str]:
        with self._lock:
            known = [(s, self._learnt.get(s.session)) for s in listed]
        return [s.session for s, info in known if info and self._is_mine(info) and info.updated != s.updated]

    def _is_mine(self, info: SessionInfo) -> bool:
        """Whether the metadata of a session matters to this directory."""
        return self._key_of(info) is not None

    def _check_number(self, unseen: int) -> None:
        if unseen > self._limit:
            raise DirectoryTooLarge(
                f"To find one conversation, {unseen:,} sessions would have to be read (limit {self._limit:,}). Give "
                "the store a LlamaIndex key-value store as directory=, such as DynamoDBKVStore, RedisKVStore or "
                "PostgresKVStore, and call rebuild_directory() once. One read then finds a conversation. Or use "
                'directory="session-id", delete sessions that are no longer needed, or raise scan_limit=.'
            )
        if unseen > MANY and self._limit < math.inf:
            logger.warning(
                "up to %d sessions have to be read to find a conversation; with a LlamaIndex key-value store as "
                "directory= it is one read (call rebuild_directory() once after setting it)",
                unseen,
            )

    def _look(self, unseen: list[str]) -> bool:
        """Read sessions, in parallel; return whether all of them exist."""
        denied: list[AccessDeniedError] = []

        def look(session: str) -> tuple[str, SessionInfo | None] | None:
            self._limiter.wait()
            try:
                return session, self._sessions.get(session)
            except NotFound:
                return session, None
            except AccessDeniedError as error:
                logger.warning("session %s may not be read: it is taken for one of another application", session)
                denied.append(error)
                return None

        found = dict(entry for entry in self._sessions.pool.map(look, unseen) if entry is not None)
        self._learn(found)
        self._allowed = self._allowed or bool(found)
        if denied and not self._allowed:
            # Another application may deny access to its sessions. If all are denied, the policy lacks GetSession.
            raise denied[0]
        return None not in found.values()
