"""Named state: what an application, and the memory of its agents, keep beside the messages."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, MutableMapping, ValuesView
from typing import Any, Protocol

from llama_index_bedrock_sessions._bedrock.client import SessionClient
from llama_index_bedrock_sessions._bedrock.pool import async_twin
from llama_index_bedrock_sessions._conversation import contexts
from llama_index_bedrock_sessions._conversation.sessions import METADATA, TAGS
from llama_index_bedrock_sessions._journal.limits import check_size
from llama_index_bedrock_sessions._journal.values import JSON, Walk, dump, json_size, to_json
from llama_index_bedrock_sessions.errors import InvalidStateError


class ReservedName(str):
    """A name of state that begins with a reserved prefix, or such a prefix, as the library itself uses it.

    What takes the names of an application refuses the same text as a plain string.
    """

    __slots__ = ()


MEMORY_PREFIX = ReservedName("memory/")
"""Prefix of the state that `BedrockSessionsMemory` keeps."""
TURN = ReservedName(MEMORY_PREFIX + "turn")
"""Prefix of the state of unfinished turns, which runs of agents keep while they are live."""
RESERVED = {
    MEMORY_PREFIX: "what BedrockSessionsMemory remembers",
    METADATA: "the metadata of sessions",
    contexts.PREFIX: "saved contexts",
    TAGS: "the tags of sessions",
}
"""The prefixes of names that applications can neither see nor write, and their content."""


class _Read(Protocol):
    def __call__(self, *, fresh: bool) -> dict[str, JSON]: ...


_Write = Callable[[Mapping[str, JSON], Iterable[str]], None]


class State(MutableMapping[str, JSON]):
    """The named state of a conversation: JSON values by name, for the application.

    Last write wins. A read costs one list, a write one list and one step. A caller owns the values that it reads:
    changing them stores nothing. Under asyncio use the methods that begin with `a`.

    Some names are reserved: "memory/" for `BedrockSessionsMemory`, "context/" for saved contexts, "session/metadata/"
    and "session/tags/" for `Conversation.update_metadata`. They are not shown, cannot be set, and survive `clear`.

    Raises:
        KeyError: there is no value of this name.
        InvalidStateError: the name is reserved or not a string, or JSON cannot represent the value.
        StepTooLargeError: the values exceed 50 MB.

    """

    def __init__(self, key: str, sessions: SessionClient, read: _Read, write: _Write) -> None:
        self._pool = sessions.pool
        self._key, self._read, self._write = key, read, write

    def __repr__(self) -> str:
        return f"State({self._key!r})"

    def __getitem__(self, name: str) -> JSON:
        return self.copy()[name]

    def __setitem__(self, name: str, value: JSON) -> None:
        self.update({name: value})

    def __delitem__(self, name: str) -> None:
        del self.copy()[name]
        self._write({}, [name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.copy())

    def __len__(self) -> int:
        return len(self.copy())

    def items(self) -> ItemsView[str, JSON]:
        """Return the names and values, by one read."""
        return self.copy().items()

    def values(self) -> ValuesView[JSON]:
        """Return the values, by one read."""
        return self.copy().values()

    def get(self, name: str, default: JSON = None, *, fresh: bool = True) -> JSON:
        """Return a value, or the default; `fresh` as in `Conversation.messages`."""
        return self.copy(fresh=fresh).get(name, default)

    def pop(self, name: str, *default: JSON) -> JSON:
        """Delete a name, and return the value it had; the default, if one is given, where there is none."""
        values = self.copy()
        there = name in values
        value = values.pop(name, *default)
        if not there:
            return value
        self._write({}, [name])
        return value

    def update(self, *values: Any, **more: JSON) -> None:
        """Set several names by one step."""
        named = dict(*values, **more)
        check_not_reserved(named)
        self._write(named, ())

    def clear(self) -> None:
        """Delete every name by one step."""
        self._write({}, self.copy())

    def copy(self, *, fresh: bool = True, reserved: ReservedName | None = None) -> dict[str, JSON]:
        """Return all of it by one read; `fresh` as in `Conversation.messages`.

        `reserved` is a prefix that the library uses itself: the names that begin with it are returned instead.
        """
        named = self._read(fresh=fresh)
        if reserved is not None:
            return {name: value for name, value in named.items() if name.startswith(reserved)}
        return {name: value for name, value in named.items() if not name.startswith(tuple(RESERVED))}

    aget, apop, aupdate, aclear, acopy = (
        async_twin(get),
        async_twin(pop),
        async_twin(update),
        async_twin(clear),
        async_twin(copy),
    )


def state_json(values: Mapping[str, JSON], forget: Iterable[str] = ()) -> dict[str, list[JSON]]:
    """Return named state as a change contains it: {name: [value]}, or {name: []} where it is deleted.

    Raises InvalidStateError and StepTooLargeError.
    """
    forget = tuple(forget)
    for name in (*forget, *values):
        if not isinstance(name, str):
            raise InvalidStateError(f"The name of a state is a string, not {type(name).__name__}.")
    named: dict[str, list[JSON]] = {str(name): [] for name in forget}
    for name, value in values.items():
        walk = Walk()
        plain = walk.plain(value)
        if walk.notes:
            raise InvalidStateError(f"The state {name!r} is not a JSON value: {'; '.join(walk.notes)}.")
        named[str(name)] = [to_json(plain)]
    if values:
        check_size(json_size(dump(named)))
    return named


def check_not_reserved(names: Iterable[object]) -> None:
    """Refuse names that are not the application's. Raises InvalidStateError."""
    for name in names:
        for prefix, what in RESERVED.items():
            if isinstance(name, str) and not isinstance(name, ReservedName) and name.startswith(prefix):
                raise InvalidStateError(
                    f'{name!r} cannot be the name of a state: those that begin with "{prefix}" are kept for {what}. '
                    "Choose another name."
                )
