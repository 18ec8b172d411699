"""Which sessions belong to a key. The service gives session ids itself and has no search.

Every session carries in its metadata the key, the namespace and the format, so that what is stored can always be found
from the service alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping

from llama_index_bedrock_sessions.errors import AccessDeniedError, ConfigurationError, DirectoryTooLarge
from llama_index_bedrock_sessions.sessions import Gone, SessionInfo, Sessions, Summary, after_fork

KEY = "llama-index-key"
NAMESPACE = "llama-index-namespace"
FORMAT = "llama-index-format"
"""The names of our entries in `sessionMetadata`."""
MANY = 200
"""Sessions to scan from which a warning is logged."""

logger = logging.getLogger("llama_index_bedrock_sessions")


class MetadataDirectory:
    """Finds sessions by listing all of them and reading the metadata of those not seen before, in parallel.

    `limit` is the number of unseen sessions from which it refuses. What it has learnt, it remembers: the key and the
    namespace of a session never change.
    """

    def __init__(self, sessions: Sessions, namespace: str, limit: int = 2000) -> None:
        self._sessions = sessions
        self._namespace = namespace
        self._limit = limit
        self._learnt: dict[str, SessionInfo | None] = {}
        self.forget()
        after_fork(self)

    def forget(self) -> None:
        """Make the locks anew: in a forked child they may be held by threads that do not exist."""
        self._lock = threading.Lock()
        self._scanning = threading.Lock()

    def find(self, key: str, since: int = 0) -> list[Summary]:
        """Return the sessions of a key, newest first; of those not seen before only ones created after `since` (ms).

        Raises:
            DirectoryTooLarge: there are more sessions than one should scan.

        """
        return [summary for summary, owner in self._scan(since) if owner == key]

    def keys(self) -> list[str]:
        """Return every key of the namespace, sorted."""
        return sorted({key for _, key in self._scan(0) if key is not None})

    def info(self, session: str) -> SessionInfo:
        """Return what the service says of a session, from memory where it does not change. Raises Gone."""
        with self._lock:
            known = self._learnt.get(session)
        if known is None:
            known = self._sessions.get(session)
            self.add(known)
        return known

    def add(self, info: SessionInfo) -> None:
        """Remember a session."""
        with self._lock:
            self._learnt[info.session] = info

    def owns(self, session: str, key: str) -> bool:
        """Return whether a session is there and is one of a key in this namespace."""
        try:
            return self.is_of(self.info(session), key)
        except Gone:
            return False

    def is_of(self, info: SessionInfo, key: str) -> bool:
        """Return whether a session is one of a key in this namespace."""
        return self._key_of(info) == key

    def _key_of(self, info: SessionInfo | None) -> str | None:
        if info is None or info.metadata.get(NAMESPACE) != self._namespace:
            return None
        return info.metadata.get(KEY)

    def _scan(self, since: int) -> list[tuple[Summary, str | None]]:
        """Return all sessions, newest first, each with its key if it is one of this namespace."""
        # One scan at a time: who waits for another finds that it has looked already.
        with self._scanning:
            with self._lock:
                before = dict(self._learnt)
            listed = sorted(self._sessions.list_sessions(), key=lambda s: (s.created, s.session), reverse=True)
            found = self._look([s.session for s in listed if s.session not in before and s.created >= since])
            known = {s.session for s in listed}
            with self._lock:
                self._learnt.update(found)
                for session in before.keys() - known:
                    # Deleted; one that is only listed late is looked at once more.
                    self._learnt.pop(session, None)
                return [(s, self._key_of(self._learnt.get(s.session))) for s in listed]

    def _look(self, unseen: list[str]) -> dict[str, SessionInfo | None]:
        if len(unseen) > self._limit:
            raise DirectoryTooLarge(
                f"{len(unseen):,} sessions would have to be looked through to find one conversation (limit "
                f"{self._limit:,}). Delete sessions that are no longer needed, or raise scan_limit=."
            )
        if len(unseen) > MANY:
            logger.warning("looking through %d sessions to find a conversation", len(unseen))
        denied: list[AccessDeniedError] = []

        def look(session: str) -> tuple[str, SessionInfo | None] | None:
            try:
                return session, self._sessions.get(session)
            except Gone:
                return session, None
            except AccessDeniedError as error:
                logger.warning("session %s may not be looked at: it is taken for somebody else's", session)
                denied.append(error)
                return None

        found = self._sessions.pool.map(look, unseen)
        if denied and len(denied) == len(unseen):
            # One session somebody else may keep to himself; all of them means the policy lacks bedrock:GetSession.
            raise denied[0]
        return dict(entry for entry in found if entry is not None)


def refuse_metadata(own: Mapping[str, str]) -> None:
    """Refuse metadata of the application that a session cannot have.

    Raises:
        ConfigurationError: not strings, names of ours, or more than 47 entries (of the service's 50 we take three).

    """
    _refuse_other_than_strings("session_metadata", own)
    taken = sorted({KEY, NAMESPACE, FORMAT} & set(own))
    if taken:
        raise ConfigurationError(f"The name {taken[0]} in session_metadata is used by this library: take another.")
    if len(own) > 47:
        raise ConfigurationError(f"session_metadata holds 47 entries of the application at most, not {len(own)}.")


def refuse_tags(tags: Mapping[str, str]) -> None:
    """Refuse tags that a session cannot have. Raises ConfigurationError: not strings, or more than 200."""
    _refuse_other_than_strings("tags", tags)
    if len(tags) > 200:
        raise ConfigurationError(f"A session takes 200 tags at most, not {len(tags)}.")


def _refuse_other_than_strings(name: str, given: object) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for item in given.items() for text in item):
        raise ConfigurationError(f"{name} maps strings to strings, or is a function of the key that returns such.")


def metadata(key: str, namespace: str, version: int, own: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the `sessionMetadata` of a session of a key; `own` are the application's entries."""
    return {**dict(own), KEY: key, NAMESPACE: namespace, FORMAT: str(version)}


def own_metadata(info: SessionInfo) -> dict[str, str]:
    """Return the application's entries of a session's metadata."""
    return {k: v for k, v in info.metadata.items() if k not in {KEY, NAMESPACE, FORMAT}}
