"""Which sessions belong to a key. The service gives session ids itself and has no search.

Every session carries in its metadata the key, the namespace and the format, so that what is stored can always be found
from the service alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping

from llama_index_bedrock_sessions.errors import AccessDeniedError, ConfigurationError, DirectoryTooLarge
from llama_index_bedrock_sessions.sessions import Gone, SessionInfo, Sessions, Summary

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
        self._lock = threading.Lock()
        self._learnt: dict[str, SessionInfo | None] = {}

    def find(self, key: str, since: int = 0) -> list[Summary]:
        """Return the sessions of a key, newest first; of those not seen before only ones created after `since` (ms).

        Raises:
            DirectoryTooLarge: there are more sessions than one should scan.

        """
        return [s for s in self._scan(since) if self._owner(s.session) == key]

    def keys(self) -> list[str]:
        """Return every key of the namespace, sorted."""
        found = (self._owner(s.session) for s in self._scan(0))
        return sorted({key for key in found if key is not None})

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

    def _owner(self, session: str) -> str | None:
        info = self._learnt.get(session)
        if info is None or info.metadata.get(NAMESPACE) != self._namespace:
            return None
        return info.metadata.get(KEY)

    def _scan(self, since: int) -> list[Summary]:
        listed = sorted(self._sessions.list_sessions(), key=lambda s: (s.created, s.session), reverse=True)
        with self._lock:
            unseen = [s.session for s in listed if s.session not in self._learnt and s.created >= since]
        self._look(unseen)
        with self._lock:
            # A session that is listed late is only looked at once more.
            known = {s.session for s in listed}
            self._learnt = {session: info for session, info in self._learnt.items() if session in known}
        return listed

    def _look(self, unseen: list[str]) -> None:
        if len(unseen) > self._limit:
            raise DirectoryTooLarge(
                f"{len(unseen):,} sessions would have to be looked through to find one conversation (limit "
                f"{self._limit:,}). Delete sessions that are no longer needed, or raise scan_limit=."
            )
        if len(unseen) > MANY:
            logger.warning("looking through %d sessions to find a conversation", len(unseen))
        denied: list[AccessDeniedError] = []

        def look(session: str) -> tuple[str, SessionInfo | None]:
            try:
                return session, self._sessions.get(session)
            except Gone:
                return session, None
            except AccessDeniedError as error:
                denied.append(error)
                return session, None

        found = self._sessions.pool.map(look, unseen)
        if denied and len(denied) == len(unseen):
            # One session somebody else may keep to himself; all of them means the policy lacks bedrock:GetSession.
            raise denied[0]
        with self._lock:
            self._learnt.update(found)


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
