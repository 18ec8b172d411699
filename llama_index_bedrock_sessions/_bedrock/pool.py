"""A bounded thread pool that cannot deadlock on itself, the async twins of methods, and what a fork resets."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, NoReturn, ParamSpec, Protocol, TypeVar

C = TypeVar("C", bound="Pooled")
P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
_calling_task: contextvars.ContextVar[object | None] = contextvars.ContextVar("bedrock_sessions_caller", default=None)


async def in_pool(pool: Pool, function: Callable[[], R]) -> R:
    """Run a function in the pool on behalf of the current task."""
    token = _calling_task.set(asyncio.current_task())
    try:
        return await pool.run(function)
    finally:
        _calling_task.reset(token)


class Pooled(Protocol):
    """What has methods that talk to the service."""

    @property
    def _pool(self) -> Pool: ...


def async_twin(method: Callable[Concatenate[C, P], R]) -> Callable[Concatenate[C, P], Coroutine[Any, Any, R]]:
    """Return the async form of a method: the same, or what a subclass has in its place, in the store's thread pool."""

    @functools.wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[P, R] = getattr(self, method.__name__)
        return await in_pool(self._pool, functools.partial(bound, *args, **kwargs))

    call.__name__ = f"a{method.__name__}"
    call.__qualname__ = f"{method.__qualname__.removesuffix(method.__name__)}{call.__name__}"
    call.__doc__ = f"`{method.__name__}`, without blocking the event loop."
    return call


def calling_task() -> object:
    """Return the task, or else the thread, that is calling: a position means the list it was last given."""
    return _calling_task.get() or threading.current_thread()


class Pool:
    """A bounded thread pool that cannot deadlock on itself: who waits for a task that has not begun does it himself."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._lock = threading.Lock()
        self._executor: concurrent.futures.ThreadPoolExecutor | None = None
        after_fork(self)

    def _pool(self) -> concurrent.futures.ThreadPoolExecutor:
        with self._lock:
            if self._executor is None:
                self._executor = concurrent.futures.ThreadPoolExecutor(self.size, "bedrock-sessions")
            return self._executor

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Return [function(item)] in order, done in parallel; the first error is raised after all have ended."""
        if len(items) <= 1:
            return [function(item) for item in items]
        run = self._pool()
        futures = [run.submit(contextvars.copy_context().run, function, item) for item in items[1:]]
        outcomes: list[Callable[[], R]] = [_attempt(function, items[0])]
        for future, item in zip(futures, items[1:], strict=True):
            outcomes.append(_attempt(function, item) if future.cancel() else _settled(future))
        return [outcome() for outcome in outcomes]

    async def run(self, function: Callable[[], R]) -> R:
        """Run a function in the pool, in a copy of the caller's context."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._pool(), context.run, function)

    def forget(self) -> None:
        """Drop the threads: in a forked child they do not exist."""
        self._lock = threading.Lock()
        self._executor = None

    def close(self) -> None:
        """Let the threads go once they are idle."""
        with self._lock:
            executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(wait=False)


def _attempt(function: Callable[[T], R], item: T) -> Callable[[], R]:
    try:
        result = function(item)
    except Exception as error:  # noqa: BLE001 - raised by the caller, once everything has ended
        return functools.partial(_raise, error)
    return lambda: result


def _settled(future: concurrent.futures.Future[R]) -> Callable[[], R]:
    concurrent.futures.wait([future])
    return future.result


def _raise(error: BaseException) -> NoReturn:
    raise error


_forgetful: weakref.WeakSet[Any] = weakref.WeakSet()


def after_fork(thing: Any) -> None:
    """Have `thing.forget()` called in every child this process forks: locks, threads and sockets do not survive it."""
    _forgetful.add(thing)


def forget_all() -> None:
    """Reset everything that was registered."""
    for thing in list(_forgetful):
        thing.forget()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=forget_all)
