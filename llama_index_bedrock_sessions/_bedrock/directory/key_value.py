"""Find the sessions of a key by entries in a key-value store of LlamaIndex."""

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
from llama_index_bedrock_sessions._journal.fold import COVERED_AGE
from llama_index_bedrock_sessions.errors import (
    BedrockSessionsError,
)

logger = logging.getLogger("llama_index_bedrock_sessions")
CACHE_SIZE = 10_000
"""Sessions a `KeyValueDirectory` remembers; what is forgotten costs a GetSession when it is needed again."""
FRESH = 300_000
"""Age in ms up to which an entry is kept although the service does not know its session: it may answer late."""


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

    def __init__(self, kv: BaseKVStore, sessions: SessionClient, namespace: str, rate: float = math.inf) -> None:
        self._kv = kv
        self._claims: dict[str, _Entry] = {}
        self._places: set[str] = set()
        self._calling = ForkSafeLock()
        super().__init__(sessions, namespace, rate=rate)

    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> list[SessionSummary]:  # noqa: ARG002
        """Return the sessions that have an entry, newest first. Older than retention only those that are there."""
        entries = {s: entry for s, entry in self._entries(key).items() if entry.key == key}
        horizon = self._sessions.clock.now() - COVERED_AGE
        old = [session for session, entry in entries.items() if entry.created < horizon]
        there = self._sessions.pool.map(lambda session: self.owned(session, key), old)
        gone = {session for session, info in zip(old, there, strict=True) if info is None}
        found = [SessionSummary(s, "", entry.created, entry.arn) for s, entry in entries.items() if s not in gone]
        return sorted(found, key=lambda s: (s.created, s.session), reverse=True)

    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted: one read of the store, and one list."""
        return sorted(self._by_key(""))

    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each key that begins so, with its newest session; see `Directory.newest`."""

        def look(item: tuple[str, list[SessionSummary]]) -> tuple[str, SessionSummary, SessionInfo] | None:
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
        except NotFound:
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

    def _by_key(self, prefix: str) -> dict[str, list[SessionSummary]]:
        """Return the sessions that have an entry and are listed, by their keys; newest first."""
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
        """Return the entries of a key, or of all, by their sessions; what is no entry is ignored."""
        found = self._call("get_all", collection=self._collection(key))
        entries = {session: entry for session, value in found.items() if (entry := _entry(session, value))}
        with self._lock:
            if len(self._claims) > CACHE_SIZE:
                self._claims.clear()
            self._claims.update(entries)
        return entries

    def _learn(self, found: Mapping[str, SessionInfo | None]) -> None:
        with self._lock:
            self._places |= {_place(info.arn) for info in found.values() if info and info.arn}
            if len(self._learnt) > CACHE_SIZE:
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
            raise translate(error, key_value_store(type(self._kv).__name__)) from error


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
