"""Find the sessions of a key by entries in a LlamaIndex key-value store."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import math
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_bedrock_sessions._bedrock.client import SessionClient, SessionInfo, SessionSummary
from llama_index_bedrock_sessions._bedrock.directory.base import Directory, Progress, from_the_beginning
from llama_index_bedrock_sessions._bedrock.directory.session_id import is_session_id
from llama_index_bedrock_sessions._bedrock.errors import NotFound, key_value_store, translate
from llama_index_bedrock_sessions._bedrock.fork import ForkSafeLock
from llama_index_bedrock_sessions._bedrock.session_metadata import KEY
from llama_index_bedrock_sessions._journal.compaction import COVERED_AGE
from llama_index_bedrock_sessions.errors import (
    BedrockSessionsError,
)

logger = logging.getLogger("llama_index_bedrock_sessions")
CACHE_SIZE = 10_000
"""Sessions that a `KeyValueDirectory` remembers. Another one costs a GetSession."""
GRACE = 300_000
"""Age in ms up to which an entry is kept although the service does not know its session, which may appear late."""


class _Entry(NamedTuple):
    key: str
    created: int
    arn: str | None


class KeyValueDirectory(Directory):
    """Finds sessions by entries in a LlamaIndex `BaseKVStore`: one read for a key, however many others there are.

    The entry of a session is put under its id into two collections: first that of its namespace, which lists the keys,
    then that of its key. It is put after the session was created and before it is opened. So a session that cannot be
    found never holds a message. No entry is read in order to be written.

    The name of a collection is "bedrock-sessions/" and a SHA-256 of region, namespace and key: 81 ASCII characters. A
    key may have 5,000 characters, and DynamoDB takes 2,048 bytes. A collection is a partition in DynamoDBKVStore, a
    hash in RedisKVStore, and a value of the column `namespace` in PostgresKVStore. DynamoDBKVStore reads with eventual
    consistency, so it may find an entry of another process a moment late.

    An entry is one JSON text, {key, created (ms), arn}. Every store keeps a text unchanged, while numbers, empty
    strings, NUL and names of columns have different rules in each.

    An entry may be forged, so it counts only if the session's own metadata agrees. An entry whose session does not
    exist is ignored. It is removed unless it is at most five minutes old or of another account. The entry of a session
    of another key is ignored and logged.

    Key-value stores do not promise to be thread-safe (boto3's resources and SimpleKVStore are not), so this class makes
    one call at a time. It never calls their async methods.

    Raises:
        AccountError, ConfigurationError, ServiceError: what the store raises, as our error.

    """

    kind = "key-value"

    def __init__(self, kv: BaseKVStore, sessions: SessionClient, namespace: str, rate: float = math.inf) -> None:
        self._kv = kv
        self._entries_read: dict[str, _Entry] = {}
        self._accounts: set[str] = set()
        self._calling = ForkSafeLock()
        super().__init__(sessions, namespace, rate=rate)

    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> list[SessionSummary]:  # noqa: ARG002
        """Return the sessions that have an entry, newest first; those older than retention only if they exist."""
        entries = {s: entry for s, entry in self._entries(key).items() if entry.key == key}
        horizon = self._sessions.clock.now() - COVERED_AGE
        old = [session for session, entry in entries.items() if entry.created < horizon]
        there = self._sessions.pool.map(lambda session: self.owned(session, key), old)
        gone = {session for session, info in zip(old, there, strict=True) if info is None}
        found = [SessionSummary(s, "", entry.created, entry.arn) for s, entry in entries.items() if s not in gone]
        return sorted(found, key=lambda s: (s.created, s.session), reverse=True)

    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted, by one read of the store and one list."""
        return sorted(self._by_key(""))

    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each key that begins with `prefix`, and its newest session; see `Directory.newest`."""

        def look(item: tuple[str, list[SessionSummary]]) -> tuple[str, SessionSummary, SessionInfo] | None:
            key, summaries = item
            for summary in summaries:
                self._limiter.wait()
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
            self._entries_read.pop(session, None)
        # In the reverse order of putting them: a session that is found by its key is listed.
        for collection in (self._collection(key), self._collection()):
            self._call("delete", session, collection=collection)

    def owned(self, session: str, key: str, *, fresh: bool = False) -> SessionInfo | None:
        """Return a session if it exists (now, if `fresh`) and its metadata has the key."""
        if fresh:
            with self._lock:
                self._learnt.pop(session, None)
        try:
            info = self.info(session)
        except NotFound:
            self._remove_if_stale(session)
            return None
        if self.is_of(info, key):
            return info
        logger.warning("session %s is ignored: its key is not that of the entry, or the step, that names it", session)
        return None

    def rebuild(self, progress: Progress | None = None) -> int:
        """Put an entry for every session of the namespace, and remove entries whose session does not exist.

        Returns how many sessions have an entry. It can be repeated, and can run while conversations are used.
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

    def _by_key(self, prefix: str) -> dict[str, list[SessionSummary]]:
        """Return the sessions that have an entry and are listed, by key, newest first."""
        entries = self._entries()
        found: dict[str, list[SessionSummary]] = {}
        for summary in self._listed() if entries else ():
            entry = entries.pop(summary.session, None)
            if entry is not None and entry.key.startswith(prefix):
                found.setdefault(entry.key, []).append(summary)
        horizon = self._sessions.clock.now() - COVERED_AGE
        old = [(session, entry.key) for session, entry in entries.items() if entry.created < horizon]
        self._sessions.pool.map(lambda item: self.owned(*item, fresh=True), old)
        return found

    def _entries(self, key: str | None = None) -> dict[str, _Entry]:
        """Return the entries of a key, or of all keys, by session. What is not an entry is ignored."""
        found = self._call("get_all", collection=self._collection(key))
        entries = {session: entry for session, value in found.items() if (entry := _entry(session, value))}
        with self._lock:
            if len(self._entries_read) > CACHE_SIZE:
                self._entries_read.clear()
            self._entries_read.update(entries)
        return entries

    def _learn(self, found: Mapping[str, SessionInfo | None]) -> None:
        with self._lock:
            self._accounts |= {_account(info.arn) for info in found.values() if info and info.arn}
            if len(self._learnt) > CACHE_SIZE:
                self._learnt.clear()
            self._learnt.update(found)

    def _remove_if_stale(self, session: str) -> None:
        with self._lock:
            entry = self._entries_read.get(session)
        if entry is None or entry.arn is None or _account(entry.arn) not in self._accounts:
            return  # the session may exist in an account or an emulator that this directory has not seen
        if self._sessions.clock.now() - entry.created > GRACE:
            logger.info("session %s does not exist: its entry is removed", session)
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
            raise translate(error, key_value_store(type(self._kv).__name__)) from error


def _account(arn: str) -> str:
    """Return the region and account of an ARN."""
    return arn.rpartition("/")[0]


def _entry(session: object, value: object) -> _Entry | None:
    """Return the content of an entry, None if it is not one of ours."""
    try:
        content = json.loads(value["bedrock_session"])  # type: ignore[index]
        key, created, arn = content["key"], content["created"], content["arn"]
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
    logger.warning("an entry in the directory is ignored: it does not describe a session")
    return None


_tokens: weakref.WeakKeyDictionary[BaseKVStore, str] = weakref.WeakKeyDictionary()


def fingerprint(kv: BaseKVStore) -> str:
    """Return what identifies a key-value store, without secrets. Two objects for the same server and table are equal.

    A store that keeps its entries in an unknown place, such as memory, is equal only to itself.
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
