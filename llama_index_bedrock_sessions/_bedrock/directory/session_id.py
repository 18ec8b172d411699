"""Use a session that another tool has created, by its id."""

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
    """Keys are the ids of sessions that other tools have created. It searches nothing and creates nothing."""

    continues = False

    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> Iterator[SessionSummary]:  # noqa: ARG002
        """Yield the session, if it exists. Raises ForeignSessionError: it belongs to one of our conversations."""
        with contextlib.suppress(NotFound):
            info = self.look(key)
            yield SessionSummary(key, info.status, info.created, info.arn, info.updated)

    def look(self, session: str) -> SessionInfo:
        """Return a session that another tool has created.

        Raises:
            NotFound: it does not exist.
            ForeignSessionError: it belongs to one of our conversations.

        """
        info = self._sessions.get(session)
        if is_ours(info):
            raise ForeignSessionError(
                f"Session {session} belongs to the conversation {info.metadata.get(KEY)!r} in the namespace "
                f"{info.metadata.get(NAMESPACE)!r}. Use it by that key, under the directory it was created with."
            )
        self._learn({session: info})
        return info

    def is_of(self, info: SessionInfo, key: str) -> bool:
        """Return whether it is the session."""
        return info.session == key

    def _is_mine(self, info: SessionInfo) -> bool:
        return not is_ours(info)

    def keys(self) -> list[str]:
        """Return the ids of all sessions that other tools have created, sorted."""
        return sorted(summary.session for summary, info in self._scan() if info is not None and not is_ours(info))

    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each session that another tool has created; see `Directory.newest`."""
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
            f"{str(text)[:100]!r} is not the id of a Bedrock session. An id has the form "
            "12345678-90ab-cdef-1234-567890abcdef in lower case, as in an ARN after the last slash. To choose keys "
            'yourself, use directory="metadata" or a key-value store.'
        )


def session_closed(session: str, why: str) -> SessionClosed:
    """Return the error for a session that is not continued in another; `why` follows its id in the message."""
    return SessionClosed(
        f"Session {session} {why}. A session that is used by its id is not continued in another, which could not be "
        'found by that id. With directory="metadata" or a key-value store as directory=, a conversation has a key of '
        "your choice and continues in new sessions."
    )
