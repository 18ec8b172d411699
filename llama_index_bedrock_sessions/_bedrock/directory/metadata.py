"""Find the sessions of a key by the metadata of every session of the account."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from llama_index_bedrock_sessions._bedrock.client import SessionInfo, SessionSummary
from llama_index_bedrock_sessions._bedrock.directory.base import Directory, from_the_beginning


class MetadataDirectory(Directory):
    """Finds sessions by listing all of them and reading the metadata of unseen ones, in parallel."""

    kind = "metadata"

    def find(self, key: str, since: Callable[[], int] = from_the_beginning) -> Iterator[SessionSummary]:
        """Yield the sessions of a key, newest first; see `Directory.find`."""
        return (summary for summary, info in self._scan(since) if self._key_of(info) == key)

    def keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted."""
        return sorted({key for _, info in self._scan() if (key := self._key_of(info)) is not None})

    def newest(self, prefix: str = "") -> Iterator[tuple[str, SessionSummary, SessionInfo]]:
        """Yield each key that begins with `prefix`, and its newest session; see `Directory.newest`."""
        yielded: set[str] = set()
        for summary, info in self._scan(fresh=True):
            key = self._key_of(info)
            if info is not None and key is not None and key.startswith(prefix) and key not in yielded:
                yielded.add(key)
                yield key, summary, info
