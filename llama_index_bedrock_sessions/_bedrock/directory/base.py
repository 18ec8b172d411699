"""Which sessions belong to a key. The service gives session ids itself and has no search.

There are three ways, of which a store has one: by the metadata of all sessions (`MetadataDirectory`, nothing to set
up), by entries in a LlamaIndex key-value store (`KeyValueDirectory`, one read whatever the number of conversations), or
keys that are session ids (`SessionIdDirectory`).

Every session that is created carries in its metadata the key, the namespace and the format. That is the truth: entries
are only believed where it agrees, and can always be made again from the service alone.
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
"""Sessions to scan from which a warning is logged, and after which progress is."""
BATCH = 64
"""Sessions that are looked at before it is asked again whether older ones have to be."""
Progress = Callable[[int, int], None]
"""Is told how many sessions have been looked at, and of how many."""


def from_the_beginning() -> int:
    return 0


class RateLimiter:
    """Lets so many requests a second begin, and after a pause those of one second at once."""

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._interval = 1 / rate
        self._clock, self._sleep = clock, sleep
        self._next = -math.inf
        self._lock = ForkSafeLock()

    def wait(self) -> None:
        """Return when the next request may begin."""
        with self._lock:
            now = self._clock()
            self._next = max(self._next, now - 1) + self._interval
            pause = self._next - now
        if pause > 0:
            self._sleep(pause)


class Directory(abc.ABC):
    """Finds the sessions of a key. What it has learnt of a session it remembers: its key and namespace never change.

    `limit` is the number of unseen sessions from which it refuses to scan, `rate` how many it looks at in a second.
    """

    kind = ""
    """What the sessions it finds say of it in their metadata."""
    continues = True
    """Whether a conversation goes on in another session where one takes no more writes."""

    def __init__(
        self, sessions: SessionClient, namespace: str, limit: float = math.inf, rate: float = math.inf
    ) -> None:
        self._sessions = sessions
        self._namespace = namespace
        self._limit = limit
        self._pace = RateLimiter(rate)
        self._learnt: dict[str, SessionInfo | None] = {}
        self._allowed = False
        self._lock = ForkSafeLock()
        self._scanning = ForkSafeLock()

    @abc.abstractmethod
    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> Iterable[SessionSummary]:
        """Yield the sessions of a key, newest first, as far as it is known: `owned` says which of them really are.

        Where it has to look at sessions not seen before, it does so only at those created after `since()` (ms), which
        is asked again from time to time.

        Raises:
            DirectoryTooLarge: there are more sessions than one should scan.

        """

    @abc.abstractmethod
    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted."""

    @abc.abstractmethod
    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each key that begins so, with its newest session: the newest first, found as they are asked for."""

    def info(self, session: str) -> SessionInfo:
        """Return what the service says of a session, from memory where it does not change. Raises NotFound."""
        with self._lock:
            known = self._learnt.get(session)
        if known is None:
            known = self._sessions.get(session)
            self._learn({session: known})
        return known

    def add(self, info: SessionInfo) -> None:
        """Let a session that was just created be found."""
        self._learn({info.session: info})

    def remove(self, session: str, key: str) -> None:  # noqa: B027 - most have nothing to do
        """Let a session of a key that was deleted no longer be found."""

    def owned(self, session: str, key: str, *, fresh: bool = False) -> SessionInfo | None:  # noqa: ARG002 - see below
        """Return what the service says of a session if it is there (now, if `fresh`) and is one of the key."""
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
        """Return all sessions of the account, newest first, and forget what was learnt of others."""
        with self._lock:
            before = set(self._learnt)
        listed = sorted(self._sessions.list_sessions(), key=lambda s: (s.created, s.session), reverse=True)
        with self._lock:
            for session in before - {s.session for s in listed}:
                # Deleted; one that is only listed late is looked at once more.
                self._learnt.pop(session, None)
        return listed

    def _scan(
        self, since: Callable[[], int] = from_the_beginning, progress: Progress | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[SessionSummary, SessionInfo | None]]:
        """Yield all sessions, newest first, each with what is known of it: unseen ones are looked at in parallel.

        With `fresh` those of ours that have changed since too: metadata other than the key may have.
        """
        told: set[str] = set()
        is_current = False
        while not is_current:
            # Who has deleted a session meanwhile may go on in another, which was not there to be listed.
            is_current = True
            listed = [summary for summary in self._listed() if summary.session not in told]
            told |= {summary.session for summary in listed}
            total, done = len(self._unseen(listed, since())), 0
            self._check_number(total)
            for start in range(0, len(listed), BATCH):
                batch = listed[start : start + BATCH]
                # One at a time: who waits for another finds that it has looked already.
                with self._scanning:
                    unseen = self._unseen(batch, since())
                    is_current = self._look(unseen + (self._changed(batch) if fresh else [])) and is_current
                before, done = done, done + len(unseen)
                if done // MANY > before // MANY:
                    logger.info("looked at %d of %d sessions", done, total)
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
        """Whether what a session says of itself matters to this directory."""
        return self._key_of(info) is not None

    def _check_number(self, unseen: int) -> None:
        if unseen > self._limit:
            raise DirectoryTooLarge(
                f"{unseen:,} sessions would have to be looked through to find one conversation (limit "
                f"{self._limit:,}). Give the store directory=, a key-value store of LlamaIndex's such as "
                "DynamoDBKVStore, RedisKVStore or PostgresKVStore, and call rebuild_directory() once: a conversation "
                'is then found by one read. Or use directory="session-id", delete sessions that are no longer needed, '
                "or raise scan_limit=."
            )
        if unseen > MANY and self._limit < math.inf:
            logger.warning(
                "up to %d sessions have to be looked through to find a conversation: with directory=, a key-value "
                "store of LlamaIndex's, it is one read (call rebuild_directory() once after setting it)",
                unseen,
            )

    def _look(self, unseen: list[str]) -> bool:
        """Learn what the service says of sessions; return whether all of them are there."""
        denied: list[AccessDeniedError] = []

        def look(session: str) -> tuple[str, SessionInfo | None] | None:
            self._pace.wait()
            try:
                return session, self._sessions.get(session)
            except NotFound:
                return session, None
            except AccessDeniedError as error:
                logger.warning("session %s may not be looked at: it is taken for somebody else's", session)
                denied.append(error)
                return None

        found = dict(entry for entry in self._sessions.pool.map(look, unseen) if entry is not None)
        self._learn(found)
        self._allowed = self._allowed or bool(found)
        if denied and not self._allowed:
            # One session somebody else may keep to himself; all of them means the policy lacks bedrock:GetSession.
            raise denied[0]
        return None not in found.values()
