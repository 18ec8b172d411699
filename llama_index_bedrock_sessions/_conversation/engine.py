"""The parts that read and write one conversation, and the lock around them."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from llama_index_bedrock_sessions._bedrock.client import SessionClient
from llama_index_bedrock_sessions._bedrock.directory.base import Directory
from llama_index_bedrock_sessions._bedrock.fork import PerProcess
from llama_index_bedrock_sessions._bedrock.pool import calling_task
from llama_index_bedrock_sessions._bedrock.session_metadata import check_metadata, check_tags
from llama_index_bedrock_sessions._conversation.cache import ReleaseHookLock
from llama_index_bedrock_sessions._conversation.continuation import Continuation
from llama_index_bedrock_sessions._conversation.deletion import Deletion
from llama_index_bedrock_sessions._conversation.reader import Reader
from llama_index_bedrock_sessions._conversation.sessions import ConversationSessions, Settings
from llama_index_bedrock_sessions._conversation.steps import StepWriter
from llama_index_bedrock_sessions._conversation.writer import Writer
from llama_index_bedrock_sessions._journal.ids import MessageId
from llama_index_bedrock_sessions.errors import BedrockSessionsError


class _Parts:
    """The parts, the lock, and the positions of the tasks that read. A forked child makes its own."""

    def __init__(self, sessions: ConversationSessions, leaving: Callable[[], None]) -> None:
        self.lock = ReleaseHookLock(leaving)
        self.sessions = sessions
        self.reader = Reader(sessions)
        steps = StepWriter(self.reader)
        self.continuation = Continuation(self.reader, steps)
        self.writer = Writer(self.reader, steps, self.continuation)
        self.deletion = Deletion(self.reader, steps, self.writer, self.continuation)
        self.views: weakref.WeakKeyDictionary[Any, list[MessageId]] = weakref.WeakKeyDictionary()


class ConversationEngine:
    """One conversation, without the verbs of its users. Hold `lock`, or be in `changing()`, to use its parts.

    `used` is called with the bytes that the conversation holds, after each use and before the lock is released.
    """

    def __init__(
        self,
        key: str,
        client: SessionClient,
        directory: Directory,
        settings: Settings,
        *,
        used: Callable[[ConversationEngine, int], None],
    ) -> None:
        self.key = key
        self.client = client
        self._directory = directory
        self._settings = settings
        """As they were after the last use: a forked child begins with them."""
        self._used = used
        self._conversation: object = None
        self._parts = PerProcess(self._compose)

    def _compose(self) -> _Parts:
        sessions = ConversationSessions(self.key, self.client, self._directory, self._settings)
        return _Parts(sessions, self._leave)

    def _leave(self) -> None:
        self._settings = self.sessions.settings
        self._used(self, self.reader.held())

    @property
    def lock(self) -> ReleaseHookLock:
        """The lock around the parts."""
        return self._parts.get().lock

    @property
    def sessions(self) -> ConversationSessions:
        """The sessions of the key."""
        return self._parts.get().sessions

    @property
    def reader(self) -> Reader:
        """What finds and reads the sessions."""
        return self._parts.get().reader

    @property
    def continuation(self) -> Continuation:
        """What opens the next session."""
        return self._parts.get().continuation

    @property
    def writer(self) -> Writer:
        """What appends to the open session."""
        return self._parts.get().writer

    @property
    def deletion(self) -> Deletion:
        """What deletes and redacts."""
        return self._parts.get().deletion

    def keep_alive(self, conversation: object) -> None:
        """Keep the conversation for as long as this engine: one engine never has two."""
        self._conversation = conversation

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock. An error reports whether the operation may have happened, not only one call of it."""
        with self.lock:
            sessions = self.sessions
            before = sessions.effects
            try:
                yield
            except BedrockSessionsError as error:
                error.may_have_happened = sessions.effects != before
                raise

    def configure(self, **given: Any) -> None:
        """Change what future sessions are created with: `own_metadata`, `own_tags`, `encryption_key_arn`."""
        if not given:
            return
        check_metadata(given.get("own_metadata", {}))
        check_tags(given.get("own_tags", {}))
        with self.lock:
            self.sessions.settings = dataclasses.replace(self.sessions.settings, **given)

    def drop(self) -> bool:
        """Drop what was read, unless a thread is using it; return whether it was dropped. Never waits."""
        parts = self._parts.get()
        return parts.lock.if_free(parts.reader.drop)

    # Positions

    def view(self) -> list[MessageId] | None:
        """Return the messages that the calling task was last given, None if none. Its positions refer to them."""
        return self._parts.get().views.get(calling_task())

    def record_view(self, ids: list[MessageId]) -> None:
        """Record which messages the calling task is given."""
        self._parts.get().views[calling_task()] = ids
