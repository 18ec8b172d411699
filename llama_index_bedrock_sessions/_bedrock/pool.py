"""A bounded thread pool that cannot deadlock on itself, and the async twins of methods, which run in it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

from llama_index_bedrock_sessions._bedrock.fork import PerProcess

C = TypeVar("C", bound="Pooled")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_calling_task: contextvars.ContextVar[object | None] = contextvars.ContextVar("bedrock_sessions_caller", default=None)


class Pooled(Protocol):
    """An object whose methods call the service."""

    @property
    def _pool(self) -> Pool: ...


def async_twin(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], Coroutine[Any, Any, R]]:
    """Return the async form of a method: it runs the method, or that of a subclass, in the store's pool."""

    @functools.wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, R] = getattr(self, method.__name__)
        return await self._pool.run(functools.partial(bound, *args, **kwargs))

    call.__name__ = f"a{method.__name__}"
    call.__qualname__ = f"{method.__qualname__.removesuffix(method.__name__)}{call.__name__}"
    call.__doc__ = f"`{method.__name__}`, without blocking the event loop."
    return call


def calling_task() -> object:
    """Return the task that awaits this call, or else the thread: a position refers to the list it was last given."""
    return _calling_task.get() or threading.current_thread()


class Pool:
    """A bounded thread pool that cannot deadlock on itself.

    A thread that would wait for a task that has not begun runs it itself.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._executor = PerProcess(lambda: concurrent.futures.ThreadPoolExecutor(size, "bedrock-sessions"))

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return [function(item)] in order, run in parallel; raise the first error in order when all have ended."""
        if len(items) <= 1:
            return [function(item) for item in items]
        run = self._executor.get()
        futures = [run.submit(contextvars.copy_context().run, function, item) for item in items[1:]]
        outcomes: list[Callable[[], R]] = [_attempt(function, items[0])]
        for future, item in zip(futures, items[1:], strict=True):
            outcomes.append(_attempt(function, item) if future.cancel() else _settled(future))
        return [outcome() for outcome in outcomes]

    async def run(self, function: Callable[[], R]) -> R:
        """Run a function in the pool for the current task, in a copy of its context."""
        context = contextvars.copy_context()
        context.run(_calling_task.set, asyncio.current_task())
        return await asyncio.get_running_loop().run_in_executor(self._executor.get(), context.run, function)

    def close(self) -> None:
        """Let the threads end when they are idle. Later work starts new ones."""
        executor = self._executor.take()
        if executor is not None:
            executor.shutdown(wait=False)


def _attempt(function: Callable[[T], R], item: T) -> Callable[[], R]:
    try:
        result = function(item)
    except Exception as error:  # noqa: BLE001 - the caller raises it, once everything has ended
        return functools.partial(_raise, error)
    return lambda: result


def _settled(future: concurrent.futures.Future[R]) -> Callable[[], R]:
    concurrent.futures.wait([future])
    return future.result


def _raise(error: BaseException) -> NoReturn:
    raise error
