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
import hashlib
import itertools
import json
import logging
import math
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    DirectoryTooLarge,
    ForeignSessionError,
    InvalidKeyError,
    SessionClosed,
    UnavailableError,
)
from llama_index_bedrock_sessions.fold import COVERED_AGE
from llama_index_bedrock_sessions.sessions import Gone, SessionInfo, Sessions, Summary, after_fork, other_aws_error

KEY = "llama-index-key"
NAMESPACE = "llama-index-namespace"
FORMAT = "llama-index-format"
DIRECTORY = "llama-index-directory"
COPY = "llama-index-copy"
ORIGIN = "llama-index-origin"
"""The names of our entries in `sessionMetadata`; the last two are not in every session."""
OURS = (KEY, NAMESPACE, FORMAT, DIRECTORY, COPY, ORIGIN)
MOST_METADATA, MOST_TAGS = 50 - len(OURS), 200
"""Entries of the application that a session takes (service model): 50 less ours, and 200."""
MANY = 200
"""Sessions to scan from which a warning is logged, and after which progress is."""
BATCH = 64
"""Sessions that are looked at before it is asked again whether older ones have to be."""
LEARNT = 10_000
"""Sessions a `KeyValueDirectory` remembers; what is forgotten costs a GetSession when it is needed again."""
FRESH = 300_000
"""Age in ms up to which an entry is kept although the service does not know its session: it may answer late."""

logger = logging.getLogger("llama_index_bedrock_sessions")

Progress = Callable[[int, int], None]
"""Is told how many sessions have been looked at, and of how many."""


def _from_the_beginning() -> int:
    return 0


class Pace:
    """Lets so many requests a second begin, and after a pause those of one second at once."""

    def __init__(
        self, rate: float, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._interval = 1 / rate
        self._clock, self._sleep = clock, sleep
        self._next = -math.inf
        self.forget()
        after_fork(self)

    def forget(self) -> None:
        """Make the lock anew: in a forked child it may be held by a thread that does not exist."""
        self._lock = threading.Lock()

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

    def __init__(self, sessions: Sessions, namespace: str, limit: float = math.inf, rate: float = math.inf) -> None:
        self._sessions = sessions
        self._namespace = namespace
        self._limit = limit
        self._pace = Pace(rate)
        self._learnt: dict[str, SessionInfo | None] = {}
        self._allowed = False
        self.forget()
        after_fork(self)

    def forget(self) -> None:
        """Make the locks anew: in a forked child they may be held by threads that do not exist."""
        self._lock = threading.Lock()
        self._scanning = threading.Lock()

    @abc.abstractmethod
    def find(self, key: str, since: Callable[[], int] = _from_the_beginning) -> Iterable[Summary]:
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
    def newest(self, prefix: str = "") -> Iterator[tuple[str, Summary, SessionInfo]]:
        """Yield each key that begins so, with its newest session: the newest first, found as they are asked for."""

    def info(self, session: str) -> SessionInfo:
        """Return what the service says of a session, from memory where it does not change. Raises Gone."""
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
        with contextlib.suppress(Gone):
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

    def _listed(self) -> list[Summary]:
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
        self, since: Callable[[], int] = _from_the_beginning, progress: Progress | None = None, *, fresh: bool = False
    ) -> Iterator[tuple[Summary, SessionInfo | None]]:
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
            self._refuse_too_many(total)
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

    def _unseen(self, listed: Iterable[Summary], since: int) -> list[str]:
        with self._lock:
            return [s.session for s in listed if s.created >= since and s.session not in self._learnt]

    def _changed(self, listed: Iterable[Summary]) -> list[str]:
        with self._lock:
            known = [(s, self._learnt.get(s.session)) for s in listed]
        return [s.session for s, info in known if info and self._is_mine(info) and info.updated != s.updated]

    def _is_mine(self, info: SessionInfo) -> bool:
        """Whether what a session says of itself matters to this directory."""
        return self._key_of(info) is not None

    def _refuse_too_many(self, unseen: int) -> None:
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
            except Gone:
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


class MetadataDirectory(Directory):
    """Finds sessions by listing all of them and reading the metadata of those not seen before, in parallel."""

    kind = "metadata"

    def find(self, key: str, since: Callable[[], int] = _from_the_beginning) -> Iterator[Summary]:
        """Yield the sessions of a key, newest first; see `Directory.find`."""
        return (summary for summary, info in self._scan(since) if self._key_of(info) == key)

    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted."""
        return sorted({key for _, info in self._scan() if (key := self._key_of(info)) is not None})

    def newest(self, prefix: str = "") -> Iterator[tuple[str, Summary, SessionInfo]]:
        """Yield each key that begins so, with its newest session; see `Directory.newest`."""
        told: set[str] = set()
        for summary, info in self._scan(fresh=True):
            key = self._key_of(info)
            if info is not None and key is not None and key.startswith(prefix) and key not in told:
                told.add(key)
                yield key, summary, info


class SessionIdDirectory(Directory):
    """Keys are the ids of sessions that other tools have made: there is nothing to find, and nothing is created."""

    continues = False

    def find(self, key: str, since: Callable[[], int] = _from_the_beginning) -> Iterator[Summary]:  # noqa: ARG002
        """Yield the session, if it is there. Raises ForeignSessionError: it is one of a conversation of ours."""
        with contextlib.suppress(Gone):
            info = self.look(key)
            yield Summary(key, info.status, info.created, info.arn, info.updated)

    def look(self, session: str) -> SessionInfo:
        """Return what the service says of a session that belongs to no conversation of ours.

        Raises:
            Gone: it is not there.
            ForeignSessionError: it belongs to a conversation of ours.

        """
        info = self._sessions.get(session)
        if _is_ours(info):
            raise ForeignSessionError(
                f"Session {session} belongs to the conversation {info.metadata.get(KEY)!r} in the namespace "
                f"{info.metadata.get(NAMESPACE)!r}: use it by that key, under the directory it was made with."
            )
        self._learn({session: info})
        return info

    def is_of(self, info: SessionInfo, key: str) -> bool:
        """Return whether it is the session."""
        return info.session == key

    def _is_mine(self, info: SessionInfo) -> bool:
        return not _is_ours(info)

    def keys(self) -> list[str]:
        """Return the ids of all sessions that belong to no conversation of ours, sorted."""
        return sorted(summary.session for summary, info in self._scan() if info is not None and not _is_ours(info))

    def newest(self, prefix: str = "") -> Iterator[tuple[str, Summary, SessionInfo]]:
        """Yield each session that belongs to no conversation of ours; see `Directory.newest`."""
        for summary, info in self._scan(fresh=True):
            if info is not None and not _is_ours(info) and summary.session.startswith(prefix):
                yield summary.session, summary, info


class _Entry(NamedTuple):
    key: str
    created: int
    arn: str | None


class KeyValueDirectory(Directory):
    """Finds sessions by entries in a LlamaIndex `BaseKVStore`: one read for a key, whatever the number of others.

    A session's entry is put under its id into two collections: that of its namespace, from which the keys are listed,
    and then that of its key. It is put after the session was created and before it is opened, so that a session nobody
    can find never holds a message. Nothing is read in order to be written.

    A collection is named "bedrock-sessions/" and a SHA-256 of region, namespace and key: 81 ASCII characters, since a
    key may have 5,000 and DynamoDB takes 2,048 bytes. With DynamoDBKVStore a collection is a partition (read with
    eventual consistency: what another process has just put may be found a moment later), with RedisKVStore a hash, with
    PostgresKVStore a value of the column `namespace`. An entry is one JSON text, {key, created (ms), arn}: every store
    keeps that as it is, where numbers, empty strings, NUL and names of columns have rules of their own.

    Whoever may write to the store may lie: what an entry says counts only where the session's own metadata agrees.
    An entry whose session is gone is ignored, and removed unless it is of the last five minutes or of another account.
    The entry of a session that belongs to somebody else is ignored and logged.

    Key-value stores do not promise to be safe for threads (boto3's resources and SimpleKVStore are not): one call at a
    time. Their async methods are never called.

    Raises:
        AccountError, ConfigurationError, ServiceError: what the store raises, as one of ours.

    """

    kind = "key-value"

    def __init__(self, kv: BaseKVStore, sessions: Sessions, namespace: str, rate: float = math.inf) -> None:
        self._kv = kv
        self._claims: dict[str, _Entry] = {}
        self._places: set[str] = set()
        super().__init__(sessions, namespace, rate=rate)

    def forget(self) -> None:
        """Make the locks anew."""
        super().forget()
        self._calling = threading.Lock()

    def find(self, key: str, since: Callable[[], int] = _from_the_beginning) -> list[Summary]:  # noqa: ARG002
        """Return the sessions that have an entry, newest first. Older than retention only those that are there."""
        entries = {s: entry for s, entry in self._entries(key).items() if entry.key == key}
        horizon = self._sessions.clock.now() - COVERED_AGE
        old = [session for session, entry in entries.items() if entry.created < horizon]
        there = self._sessions.pool.map(lambda session: self.owned(session, key), old)
        gone = {session for session, info in zip(old, there, strict=True) if info is None}
        found = [Summary(s, "", entry.created, entry.arn) for s, entry in entries.items() if s not in gone]
        return sorted(found, key=lambda s: (s.created, s.session), reverse=True)

    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted: one read of the store, and one list."""
        return sorted(self._by_key(""))

    def newest(self, prefix: str = "") -> Iterator[tuple[str, Summary, SessionInfo]]:
        """Yield each key that begins so, with its newest session; see `Directory.newest`."""

        def look(item: tuple[str, list[Summary]]) -> tuple[str, Summary, SessionInfo] | None:
            key, summaries = item
            for summary in summaries:
                self._pace.wait()
                with self._lock:
                    known = self._learnt.get(summary.session)
                changed = known is not None and known.updated != summary.updated
                info = self.owned(summary.session, key, fresh=changed)
                if info is not None:
                    return key, summary, info
            return None

        items = iter(self._by_key(prefix).items())
        while batch := list(itertools.islice(items, self._sessions.pool.size)):
            yield from filter(None, self._sessions.pool.map(look, batch))

    def add(self, info: SessionInfo) -> None:
        """Put the entry of a session that was just created."""
        self._put(info)
        self._learn({info.session: info})

    def remove(self, session: str, key: str) -> None:
        """Delete the entry of a session of a key."""
        with self._lock:
            self._learnt.pop(session, None)
            self._claims.pop(session, None)
        # In this order, as they were put in the other: what is found by its key is listed.
        for collection in (self._collection(key), self._collection()):
            self._call("delete", session, collection=collection)

    def owned(self, session: str, key: str, *, fresh: bool = False) -> SessionInfo | None:
        """Return what the service says of a session if it is there (now, if `fresh`) and its metadata says the key."""
        if fresh:
            with self._lock:
                self._learnt.pop(session, None)
        try:
            info = self.info(session)
        except Gone:
            self._remove_if_stale(session)
            return None
        if self.is_of(info, key):
            return info
        logger.warning("session %s is not of the key that an entry, or a step, names it for", session)
        return None

    def rebuild(self, progress: Progress | None = None) -> int:
        """Put an entry for every session of the namespace, whoever made it; remove those whose session is gone.

        Returns how many sessions have an entry. It may be repeated, and run while conversations are used.
        """
        count = 0
        listed: set[str] = set()
        for summary, info in self._scan(progress=progress):
            listed.add(summary.session)
            if info is not None and self._key_of(info) is not None:
                self._put(info)
                count += 1
        unlisted = [(s, entry.key) for s, entry in self._entries().items() if s not in listed]
        self._sessions.pool.map(lambda item: self.owned(*item, fresh=True), unlisted)
        return count

    def _put(self, info: SessionInfo) -> None:
        key = info.metadata[KEY]
        value = {"bedrock_session": json.dumps({"key": key, "created": info.created, "arn": info.arn})}
        for collection in (self._collection(), self._collection(key)):
            self._call("put", info.session, value, collection=collection)

    def _by_key(self, prefix: str) -> dict[str, list[Summary]]:
        """Return the sessions that have an entry and are listed, by their keys; newest first."""
        entries = self._entries()
        found: dict[str, list[Summary]] = {}
        for summary in self._listed() if entries else ():
            entry = entries.pop(summary.session, None)
            if entry is not None and entry.key.startswith(prefix):
                found.setdefault(entry.key, []).append(summary)
        horizon = self._sessions.clock.now() - COVERED_AGE
        old = [(session, entry.key) for session, entry in entries.items() if entry.created < horizon]
        self._sessions.pool.map(lambda item: self.owned(*item, fresh=True), old)
        return found

    def _entries(self, key: str | None = None) -> dict[str, _Entry]:
        """Return the entries of a key, or of all, by their sessions; what is no entry is ignored."""
        found = self._call("get_all", collection=self._collection(key))
        entries = {session: entry for session, value in found.items() if (entry := _entry(session, value))}
        with self._lock:
            if len(self._claims) > LEARNT:
                self._claims.clear()
            self._claims.update(entries)
        return entries

    def _learn(self, found: Mapping[str, SessionInfo | None]) -> None:
        with self._lock:
            self._places |= {_place(info.arn) for info in found.values() if info and info.arn}
            if len(self._learnt) > LEARNT:
                self._learnt.clear()
            self._learnt.update(found)

    def _remove_if_stale(self, session: str) -> None:
        with self._lock:
            entry = self._claims.get(session)
        if entry is None or entry.arn is None or _place(entry.arn) not in self._places:
            return  # of an account or an emulator we do not know: there the session may well be
        if self._sessions.clock.now() - entry.created > FRESH:
            logger.info("session %s is gone: its entry is removed", session)
            self.remove(session, entry.key)

    def _collection(self, key: str | None = None) -> str:
        region = getattr(getattr(self._sessions.client(), "meta", None), "region_name", None)
        parts = [str(region), self._namespace, *([] if key is None else [key])]
        return f"bedrock-sessions/{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}"

    def _call(self, method: str, *arguments: Any, collection: str) -> Any:
        try:
            with self._calling:
                return getattr(self._kv, method)(*arguments, collection=collection)
        except BedrockSessionsError:
            raise
        except Exception as error:
            raise _kv_error(error, self._kv) from error


def _place(arn: str) -> str:
    """Return the region and account of an ARN."""
    return arn.rpartition("/")[0]


def _entry(session: object, value: object) -> _Entry | None:
    """Return what an entry says, None if it is none of ours."""
    try:
        said = json.loads(value["bedrock_session"])  # type: ignore[index]
        key, created, arn = said["key"], said["created"], said["arn"]
    except (TypeError, KeyError, ValueError, RecursionError):
        key = created = arn = None
    if (
        isinstance(session, str)
        and is_session_id(session)
        and isinstance(key, str)
        and type(created) is int
        and (arn is None or isinstance(arn, str))
    ):
        return _Entry(key, created, arn)
    logger.warning("an entry in the directory is ignored: it says nothing of a session")
    return None


_DENIED = {"NoPermissionError", "InsufficientPrivilege"}
_MISCONFIGURED = {
    "TypeError",
    "AttributeError",
    "ValueError",
    "NotImplementedError",
    "ImportError",
    "ArgumentError",
    "ProgrammingError",
    "NoSuchModuleError",
}


def _kv_error(error: Exception, kv: BaseKVStore) -> BedrockSessionsError:
    """Return what a key-value store raised as an error of ours, told by its classes: no driver is imported here."""
    what = f"The key-value store of directory= ({type(kv).__name__})"
    known = other_aws_error(error, what)
    if known is not None:
        return known
    causes = [error, getattr(error, "orig", None)]  # SQLAlchemy's errors hold those of the driver
    classes = {c.__name__ for cause in causes for c in type(cause).__mro__}
    # The first line: SQLAlchemy adds the statement and its parameters.
    text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    if "AuthenticationError" in classes or "authentication failed" in text:
        return CredentialsError(f"{what} does not accept its credentials: {text}")
    if classes & _DENIED:
        return AccessDeniedError(f"{what} may not be used: {text}. It needs to read, put and delete.")
    if classes & _MISCONFIGURED:
        return ConfigurationError(f"{what} cannot be used as it is: {text}")
    return UnavailableError(f"{what} failed: {text}")


_tokens: weakref.WeakKeyDictionary[BaseKVStore, str] = weakref.WeakKeyDictionary()


def fingerprint(kv: BaseKVStore) -> str:
    """Return what tells key-value stores apart, without secrets: two of the same place have the same.

    One of which it is not known where it keeps its entries (in memory, say) has one of its own.
    """
    found = [type(kv).__name__]
    table = getattr(kv, "_table", None)  # DynamoDBKVStore
    redis = getattr(getattr(getattr(kv, "_redis_client", None), "connection_pool", None), "connection_kwargs", None)
    connection = getattr(kv, "connection_string", None) or getattr(getattr(kv, "_engine", None), "url", None)
    with contextlib.suppress(Exception):
        if table is not None:
            found += [table.name, table.meta.client.meta.region_name, table.meta.client.meta.endpoint_url]
        elif redis is not None:
            found += [str(redis.get(name)) for name in ("host", "port", "path", "db")]
        elif connection is not None:
            # PostgresKVStore: everything but user and password
            place = str(connection).rpartition("@")[2].partition("?")[0]
            found += [place, str(vars(kv)["schema_name"]), str(vars(kv)["table_name"])]
    if len(found) == 1:
        found.append(_tokens.setdefault(kv, uuid.uuid4().hex))
    return f"{found[0]} {hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]}"


def is_session_id(text: str) -> bool:
    """Return whether a text has the form of a session id (service model: `Uuid`)."""
    return re.fullmatch(r"[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}", text) is not None


def refuse_no_session_id(text: object) -> None:
    """Raise InvalidKeyError unless it is a session id."""
    if not isinstance(text, str) or not is_session_id(text):
        raise InvalidKeyError(
            f"{str(text)[:100]!r} is not the id of a Bedrock session, which has the form "
            "12345678-90ab-cdef-1234-567890abcdef in lower case: the part of an ARN after the last slash. Keys of "
            'your own choice need directory="metadata" or a key-value store.'
        )


def session_closed(session: str, why: str) -> SessionClosed:
    """Return the error for a session that is not continued in another."""
    return SessionClosed(
        f"Session {session} {why}, and a session that is used by its id is not continued in another: nobody could "
        'find it. Under directory="metadata", or with a key-value store as directory=, a conversation has a key of '
        "your choice and goes on in new sessions."
    )


def _is_ours(info: SessionInfo) -> bool:
    return not info.metadata.keys().isdisjoint(OURS)


def refuse_metadata(own: Mapping[str, str]) -> None:
    """Refuse metadata of the application that a session cannot have.

    Raises:
        ConfigurationError: not strings, names of ours, more than 44 entries (of the service's 50 six are ours), names
            of other than 1 to 100 or values of more than 5,000 characters (service model).

    """
    _refuse_other_than_strings("session_metadata", own)
    taken = sorted(set(OURS) & set(own))
    if taken:
        raise ConfigurationError(f"The name {taken[0]} in session_metadata is used by this library: take another.")
    _refuse_lengths("session_metadata", own, most=MOST_METADATA, name=100, value=5000)


def refuse_tags(tags: Mapping[str, str]) -> None:
    """Refuse tags that a session cannot have.

    Raises:
        ConfigurationError: not strings, more than 200, names of other than 1 to 128 or values of more than 256
            characters, or characters that are not allowed (service model).

    """
    _refuse_other_than_strings("tags", tags)
    _refuse_lengths("tags", tags, most=MOST_TAGS, name=128, value=256)
    for text in (text for item in tags.items() for text in item):
        if not re.fullmatch(r"[a-zA-Z0-9\s._:/=+@-]*", text):
            raise ConfigurationError(f"{text!r} in tags: tags have letters, digits, spaces and characters of ._:/=+@-")


def _refuse_lengths(what: str, given: Mapping[str, str], *, most: int, name: int, value: int) -> None:
    if len(given) > most:
        raise ConfigurationError(f"{what}: a session takes {most} of the application at most, not {len(given)}.")
    for key, text in given.items():
        if not 1 <= len(key) <= name or len(text) > value:
            raise ConfigurationError(
                f"{what}: {key[:name]!r} has {len(key):,} characters and its value {len(text):,}; a name has 1 to "
                f"{name:,}, a value up to {value:,}."
            )


def _refuse_other_than_strings(name: str, given: object) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for item in given.items() for text in item):
        raise ConfigurationError(f"{name} maps strings to strings, or is a function of the key that returns such.")


def metadata(ours: Mapping[str, str | None], own: Mapping[str, str]) -> dict[str, str]:
    """Return the `sessionMetadata` of a session: the application's `own` entries, and those of ours with a value."""
    return {**own, **{name: value for name, value in ours.items() if value is not None}}


def own_metadata(info: SessionInfo) -> dict[str, str]:
    """Return the application's entries of a session's metadata."""
    return {k: v for k, v in info.metadata.items() if k not in OURS}
