"""The metadata entries and tags of a session: ours, and those that an application adds."""

from __future__ import annotations

import re
from collections.abc import Mapping

from llama_index_bedrock_sessions._bedrock.client import SessionInfo
from llama_index_bedrock_sessions.errors import ConfigurationError

KEY = "llama-index-key"
NAMESPACE = "llama-index-namespace"
FORMAT = "llama-index-format"
DIRECTORY = "llama-index-directory"
COPY = "llama-index-copy"
ORIGIN = "llama-index-origin"
"""The names of our entries in `sessionMetadata`. Only some sessions have the last two."""
OURS = (KEY, NAMESPACE, FORMAT, DIRECTORY, COPY, ORIGIN)
MAX_METADATA, MAX_TAGS = 50 - len(OURS), 200
"""Entries of the application that a session can have (service model): 50 less ours, and 200."""


def is_ours(info: SessionInfo) -> bool:
    """Whether this library created the session."""
    return not info.metadata.keys().isdisjoint(OURS)


def check_metadata(own: Mapping[str, str]) -> None:
    """Refuse metadata of the application that a session cannot have.

    Raises:
        ConfigurationError: not strings, a name of ours, more than 44 entries (six of the service's 50 are ours), a name
            of other than 1 to 100 characters, or a value of more than 5,000 (service model).

    """
    _check_strings("session_metadata", own)
    taken = sorted(set(OURS) & set(own))
    if taken:
        raise ConfigurationError(f"The name {taken[0]} in session_metadata is used by this library. Choose another.")
    _check_lengths("session_metadata", own, most=MAX_METADATA, name=100, value=5000)


def check_tags(tags: Mapping[str, str]) -> None:
    """Refuse tags that a session cannot have.

    Raises:
        ConfigurationError: not strings, more than 200 tags, a name of other than 1 to 128 characters, a value of more
            than 256, or a character that is not allowed (service model).

    """
    _check_strings("tags", tags)
    _check_lengths("tags", tags, most=MAX_TAGS, name=128, value=256)
    for text in (text for item in tags.items() for text in item):
        if not re.fullmatch(r"[a-zA-Z0-9\s._:/=+@-]*", text):
            raise ConfigurationError(f"{text!r} in tags: use letters, digits, spaces and the characters ._:/=+@-")


def _check_lengths(what: str, given: Mapping[str, str], *, most: int, name: int, value: int) -> None:
    if len(given) > most:
        raise ConfigurationError(f"{what}: a session can have {most} of the application, not {len(given)}.")
    for key, text in given.items():
        if not 1 <= len(key) <= name or len(text) > value:
            raise ConfigurationError(
                f"{what}: {key[:name]!r} has {len(key):,} characters and its value {len(text):,}. A name has 1 to "
                f"{name:,}, a value up to {value:,}."
            )


def _check_strings(name: str, given: object) -> None:
    if not isinstance(given, Mapping) or not all(isinstance(text, str) for item in given.items() for text in item):
        raise ConfigurationError(f"{name} must map strings to strings, or be a function of the key that returns that.")


def metadata(ours: Mapping[str, str | None], own: Mapping[str, str]) -> dict[str, str]:
    """Return the `sessionMetadata` of a session: the application's `own` entries, and our entries with a value."""
    return {**own, **{name: value for name, value in ours.items() if value is not None}}


def own_metadata(info: SessionInfo) -> dict[str, str]:
    """Return the application's entries of a session's metadata."""
    return {k: v for k, v in info.metadata.items() if k not in OURS}
