"""Use a session that another tool has made, by its id."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from llama_index_bedrock_sessions._bedrock.client import SessionInfo, SessionSummary
from llama_index_bedrock_sessions._bedrock.directory.base import Directory, from_the_beginning
from llama_index_bedrock_sessions._bedrock.errors import NotFound
from llama_index_bedrock_sessions._bedrock.session_metadata import KEY, NAMESPACE, is_ours
from llama_index_bedrock_sessions.errors import ForeignSessionError, InvalidKeyError, SessionClosed


class SessionIdDirectory(Directory):
    """Keys are the ids of sessions that other tools have made: there is nothing to find, and nothing is created."""

    continues = False

    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> Iterator[SessionSummary]:  # noqa: ARG002
        """Yield the session, if it is there. Raises ForeignSessionError: it is one of a conversation of ours."""
        with contextlib.suppress(NotFound):
            info = self.look(key)
            yield SessionSummary(key, info.status, info.created, info.arn, info.updated)

    def look(self, session: str) -> SessionInfo:
        """Return what the service says of a session that belongs to no conversation of ours.

        Raises:
            NotFound: it is not there.
            ForeignSessionError: it belongs to a conversation of ours.

        """
        info = self._sessions.get(session)
        if is_ours(info):
            raise ForeignSessionError(
                f"Session {session} belongs to the conversation {info.metadata.get(KEY)!r} in the namespace "
                f"{info.metadata.get(NAMESPACE)!r}: use it by that key, under the directory it was made with."
            )
        self._learn({session: info})
        return info

    def is_of(self, info: SessionInfo, key: str) -> bool:
        """Return whether it is the session."""
        return info.session == key

    def _is_mine(self, info: SessionInfo) -> bool:
        return not is_ours(info)

    def keys(self) -> list[str]:
        """Return the ids of all sessions that belong to no conversation of ours, sorted."""
        return sorted(summary.session for summary, info in self._scan() if info is not None and not is_ours(info))

    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each session that belongs to no conversation of ours; see `Directory.newest`."""
        for summary, info in self._scan(fresh=True):
            if info is not None and not is_ours(info) and summary.session.startswith(prefix):
                yield summary.session, summary, info


def is_session_id(text: str) -> bool:
    """Return whether a text has the form of a session id (service model: `Uuid`)."""
    return re.fullmatch(r"[a-f0-9]{8}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{4}-[a-f0-9]{12}", text) is not None


def check_session_id(text: object) -> None:
    """Raise InvalidKeyError unless it is a session id."""
    if not isinstance(text, str) or not is_session_id(text):
        raise InvalidKeyError(
            f"{str(text)[:100]!r} is not the id of a Bedrock session, which has the form "
            "12345678-90ab-cdef-1234-567890abcdef in lower case: the part of an ARN after the last slash. Keys of "
            'your own choice need directory="metadata" or a key-value store.'
        )


def session_closed(session: str, why: str) -> SessionClosed:
    """Return the error for a session that is not continued in another."""
    return SessionClosed(
        f"Session {session} {why}, and a session that is used by its id is not continued in another: nobody could "
        'find it. Under directory="metadata", or with a key-value store as directory=, a conversation has a key of '
        "your choice and goes on in new sessions."
    )
