"""Invocations of the application's own: what is written in a block of code goes into one, by the context it runs in.

Tasks and threads that are started in the block with a copy of its context, as asyncio does, belong to it.
"""

from __future__ import annotations

import contextvars
import os
import uuid
from types import TracebackType

from llama_index_bedrock_sessions._bedrock.client import SessionClient
from llama_index_bedrock_sessions.errors import ConfigurationError

DESCRIPTION = 200
"""Characters of a description (service model)."""
_entered: contextvars.ContextVar[tuple[Invocation, ...]] = contextvars.ContextVar(
    "bedrock_sessions_invocations", default=()
)


class Invocation:
    """A block of code whose writes to one conversation go to one invocation: see `Conversation.invocation`.

    For `with` and `async with`. Entering and leaving makes no call. It can be entered again.
    """

    def __init__(self, sessions: SessionClient, key: str, description: str, by: str | None) -> None:
        if not isinstance(description, str) or not 1 <= len(description) <= DESCRIPTION:
            what = f"{len(description):,}" if isinstance(description, str) else type(description).__name__
            raise ConfigurationError(f"The description of an invocation has 1 to {DESCRIPTION} characters, not {what}.")
        if by is not None and not isinstance(by, str):
            raise ConfigurationError(f"by= is the name of the writer, a string, not {type(by).__name__}.")
        self.description = description
        self.by = by
        self._of = (sessions, key)
        self._name = os.urandom(16).hex()

    def __repr__(self) -> str:
        return f"Invocation({self.description!r}, by={self.by!r})"

    def id_in(self, session: str) -> str:
        """Return the id of the invocation in a session. Each session of the conversation has its own."""
        return str(uuid.uuid5(uuid.UUID(session), self._name))

    def is_of(self, sessions: SessionClient, key: str) -> bool:
        """Whether it is one of this conversation."""
        return self._of == (sessions, key)

    def __enter__(self) -> None:
        _entered.set((*_entered.get(), self))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = list(_entered.get())
        if self in left:
            del left[len(left) - 1 - left[::-1].index(self)]
        _entered.set(tuple(left))

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)


def entered(sessions: SessionClient, key: str) -> Invocation | None:
    """Return the innermost block of a conversation that the caller is in, None if in none."""
    return next((block for block in reversed(_entered.get()) if block.is_of(sessions, key)), None)
