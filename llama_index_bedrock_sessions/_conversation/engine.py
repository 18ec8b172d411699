"""The parts that read and write one conversation, and the lock around them."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from llama_index_bedrock_sessions._bedrock.client import SessionClient
from llama_index_bedrock_sessions._bedrock.directory.base import Directory
from llama_index_bedrock_sessions._bedrock.pool import after_fork, calling_task
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


class ConversationEngine:
    """One conversation, without the verbs of its users. Hold `lock`, or be in `changing()`, to use its parts."""

    def __init__(
        self,
        key: str,
        client: SessionClient,
        directory: Directory,
        settings: Settings,
        *,
        used: Callable[[ConversationEngine, int], Callable[[], None]],
    ) -> None:
        self.key = key
        self.client = client
        self._directory = directory
        self._used = used
        self._conversation: object = None
        self._compose(settings)
        after_fork(self)

    def _compose(self, settings: Settings) -> None:
        self.lock = ReleaseHookLock(lambda: self._used(self, self.reader.held()))
        self.sessions = ConversationSessions(self.key, self.client, self._directory, settings)
        self.reader = Reader(self.sessions)
        steps = StepWriter(self.reader)
        self.continuation = Continuation(self.reader, steps)
        self.writer = Writer(self.reader, steps, self.continuation)
        self.deletion = Deletion(self.reader, steps, self.writer, self.continuation)
        self._views: weakref.WeakKeyDictionary[Any, list[MessageId]] = weakref.WeakKeyDictionary()

    def keep_alive(self, conversation: object) -> None:
        """Keep an object for as long as this one is kept: of one engine there is never a second conversation."""
        self._conversation = conversation

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock; an error reports whether the operation, and not one call of it, may have happened."""
        with self.lock:
            before = self.sessions.effects
            try:
                yield
            except BedrockSessionsError as error:
                error.may_have_happened = self.sessions.effects != before
                raise

    def configure(self, **given: Any) -> None:
        """Change what future sessions are created with: `own_metadata`, `own_tags`, `encryption_key_arn`."""
        if not given:
            return
        check_metadata(given.get("own_metadata", {}))
        check_tags(given.get("own_tags", {}))
        with self.lock:
            self.sessions.settings = dataclasses.replace(self.sessions.settings, **given)

    def forget(self) -> None:
        """Drop everything in memory, locks included, as a forked child has to."""
        self._compose(self.sessions.settings)

    def drop(self) -> bool:
        """Drop what was read, unless a thread is using it; return whether it was dropped. Never waits."""
        return self.lock.if_free(self.reader.drop)

    # Positions

    def view(self) -> list[MessageId] | None:
        """Return the messages that the calling task was last given, None if none; its positions mean these."""
        return self._views.get(calling_task())

    def record_view(self, ids: list[MessageId]) -> None:
        """Record which messages the calling task is given."""
        self._views[calling_task()] = ids
