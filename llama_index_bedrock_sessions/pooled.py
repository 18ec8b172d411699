"""The async form of what talks to the service: the same in the store's thread pool, on behalf of the task that asks."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import (
    Callable,
    Coroutine,
)
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from llama_index_bedrock_sessions.sessions import Pool

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="Pooled")

_caller: contextvars.ContextVar[object | None] = contextvars.ContextVar("bedrock_sessions_caller", default=None)


async def in_pool(pool: Pool, function: Callable[[], R]) -> R:
    """Run a function in the pool on behalf of the current task."""
    token = _caller.set(asyncio.current_task())
    try:
        return await pool.run(function)
    finally:
        _caller.reset(token)


class Pooled(Protocol):
    """What has methods that talk to the service."""

    @property
    def _pool(self) -> Pool: ...


def twin(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], Coroutine[Any, Any, R]]:
    """Return the async form of a method: the same, or what a subclass has in its place, in the store's thread pool."""

    @functools.wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, R] = getattr(self, method.__name__)
        return await in_pool(self._pool, functools.partial(bound, *args, **kwargs))

    call.__name__ = f"a{method.__name__}"
    call.__qualname__ = f"{method.__qualname__.removesuffix(method.__name__)}{call.__name__}"
    call.__doc__ = f"`{method.__name__}`, without blocking the event loop."
    return call


def caller() -> object:
    """Return the task, or else the thread, that is calling: a position means the list it was last given."""
    return _caller.get() or threading.current_thread()
