"""The Bedrock sessions of one conversation: found, listed, created, closed, ended and deleted.

`reader.py` reads what their steps add up to; this module does not look into a step, but for openings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from llama_index_bedrock_sessions._bedrock import session_metadata
from llama_index_bedrock_sessions._bedrock.client import SessionClient, SessionInfo, default_invocation
from llama_index_bedrock_sessions._bedrock.directory.base import Directory
from llama_index_bedrock_sessions._bedrock.errors import NotFound, RequestRejected, attempts
from llama_index_bedrock_sessions._bedrock.media import Objects
from llama_index_bedrock_sessions._bedrock.session_metadata import COPY, DIRECTORY, FORMAT, KEY, NAMESPACE, ORIGIN
from llama_index_bedrock_sessions._journal.decoding import read_step
from llama_index_bedrock_sessions._journal.encoding import envelope
from llama_index_bedrock_sessions._journal.fetch_plan import Listed
from llama_index_bedrock_sessions._journal.ids import Home, Kind, Place, new_id, parse_id
from llama_index_bedrock_sessions._journal.message_codec import ContentBlock
from llama_index_bedrock_sessions._journal.model import VERSION, Step
from llama_index_bedrock_sessions.errors import BedrockSessionsError, ForeignSessionError
from llama_index_bedrock_sessions.events import AuditCallback, key_hash

logger = logging.getLogger("llama_index_bedrock_sessions")
MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
STEPS_PER_SESSION = 1000
"""Bedrock user guide, quotas."""
RETENTION = 30 * DAY
"""ms after which the service deletes a session (Bedrock user guide). Counted from its creation, the shorter reading."""
METADATA, TAGS = "session/metadata/", "session/tags/"
"""Prefixes of the named state that holds metadata and tags added to the sessions of a conversation."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the sessions of a conversation are created with, and how they are read."""

    namespace: str
    session_metadata: Mapping[str, str]
    tags: Mapping[str, str]
    encryption_key_arn: str | None
    own_metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metadata given for this conversation alone. It takes precedence over inherited metadata."""
    own_tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refresh_interval: float = 0.0
    skip_newer: bool = False
    media: Objects | None = None
    has_retention: bool = True
    """Whether the service deletes sessions 30 days after their creation."""
    audit: AuditCallback | None = None


class SessionTemplate(NamedTuple):
    """What a new session is created from: the heads of a conversation, and the metadata and tags added to them.

    `origin` is the key of that conversation if the session starts a fork of it.
    """

    heads: Sequence[str] = ()
    metadata: Mapping[str, str] = {}
    tags: Mapping[str, str] = {}
    origin: str | None = None


class ConversationSessions:
    """The sessions of one key. Not locked: the conversation holds the lock.

    `created` maps a session to its creation time in ms. `closed` are the heads that are known to take no more writes.
    `last_ms` is the time of the newest id that was read or written. `effects` counts the calls that stored or deleted,
    or may have stored or deleted, something of what the caller asked for.
    """

    def __init__(self, key: str, client: SessionClient, directory: Directory, settings: Settings) -> None:
        self.key = key
        self.name = key_hash(key)
        """The key as logs show it."""
        self.client = client
        self.directory = directory
        self.settings = settings
        self.created: dict[str, int] = {}
        self.closed: set[str] = set()
        self.last_ms = 0
        self.effects = 0
        self.invocations: set[Place] = set()
        """The application's own invocations that have been created in the heads."""
        self._tags: dict[str, dict[str, str]] = {}

    @contextlib.contextmanager
    def effect(self) -> Iterator[None]:
        """Count a call by which an operation happens, unless the call is known to have failed."""
        try:
            yield
        except BedrockSessionsError as error:
            self.effects += error.may_have_happened
            raise
        self.effects += 1

    def now(self) -> int:
        """Return the service's time in ms."""
        return self.client.clock.now()

    def next_ms(self, last_ms: int) -> int:
        """Return the time in ms of the next id, which is later than `last_ms`."""
        return max(self.now(), last_ms + 1)

    def keep_only(self, heads: Collection[str]) -> None:
        """Drop what is known of sessions that are no longer heads."""
        self.closed &= set(heads)
        self.invocations = {place for place in self.invocations if place[0] in heads}
        self._tags = {session: tags for session, tags in self._tags.items() if session in heads}

    # Finding

    def since(self, heads: Iterable[str]) -> int:
        """Return the time in ms from which sessions matter that were created beside these heads."""
        return min((self.created[head] for head in heads), default=0) - 2 * HOUR

    def found(self, heads: Collection[str] = (), *, but: Collection[str] = ()) -> dict[str, SessionInfo]:
        """Return the sessions of the key, newest first; those created long before the heads may be missing."""
        found = self.directory.find(self.key, lambda: self.since(heads) if heads else 0)
        named = [summary.session for summary in found if summary.session not in but]
        owned = self.client.pool.map(lambda session: self.directory.owned(session, self.key), named)
        return {info.session: info for info in owned if info}

    def owns(self, session: str, heads: Collection[str]) -> bool:
        """Whether a session that a stored step names belongs to this conversation: a step can name any session."""
        if session in heads or self.directory.owned(session, self.key):
            return True
        logger.info("conversation %s: session %s, which a step names, is gone or another's", self.name, session)
        return False

    def owned(self, sessions: Iterable[str], heads: Collection[str]) -> set[str]:
        """Return those of the sessions that belong to this conversation."""
        named = sorted(set(sessions))
        ours = self.client.pool.map(lambda session: self.owns(session, heads), named)
        return {session for session, is_ours in zip(named, ours, strict=True) if is_ours}

    def created_at(self, session: str) -> int:
        """Return the creation time in ms. Raises NotFound."""
        return self.created.get(session) or self.directory.info(session).created

    def maybe_expired(self, heads: Iterable[str]) -> list[str]:
        """Return the heads that may have expired: those created more than 50 minutes ago."""
        if not self.directory.continues:
            return []  # the status of the session changes nothing for a reader
        now = self.now()
        return [head for head in heads if now - self.created[head] > 50 * MINUTE]

    def is_active(self, session: str) -> bool:
        """Whether the session takes writes, by the status of the service. Raises NotFound."""
        return self.client.get(session).status == "ACTIVE"

    # Listing

    def listed(self, session: str) -> list[Listed]:
        """Return the steps of a session. Raises NotFound."""
        return [Listed(home, at) for home, at in self.client.steps(session)]

    def listed_or_nothing(self, session: str) -> list[Listed]:
        """Return the steps of a session, [] if it is gone: what was alive in it has been carried."""
        try:
            return self.listed(session)
        except (NotFound, RequestRejected):
            return []

    def step_or_none(self, home: Home) -> tuple[list[ContentBlock], int] | None:
        """Return the content blocks of a step and its time in ms, None if it is gone."""
        try:
            return self.client.step(home)
        except NotFound:
            return None

    def has_opening(self, session: str) -> bool:
        """Whether a process has opened a session; no process will open one that is gone."""
        return any(is_opening(step.home.step) for step in self.listed_or_nothing(session))

    def openings(self, session: str) -> list[Step]:
        """Return the openings of a session, read."""
        homes = (step.home for step in self.listed_or_nothing(session) if is_opening(step.home.step))
        found = ((home, self.step_or_none(home)) for home in homes)
        return [read_step(home, *step, skip_newer=True) for home, step in found if step]

    # Creating

    def create(
        self, template: SessionTemplate, *, inherits: SessionTemplate | None = None, copy: bool = False
    ) -> SessionInfo:
        """Create a session from the template of this conversation, and from another's that it `inherits` from.

        No other process opens a session that is marked as a `copy`.
        """
        settings, source = self.settings, inherits or template
        inherited: dict[str, str] = {}
        inherited_tags: dict[str, str] = {}
        key_arn = settings.encryption_key_arn
        origin = source.origin
        for head in source.heads:
            before = self.directory.info(head)
            inherited.update(session_metadata.own_metadata(before))
            inherited_tags.update(self.tags_of(before))
            origin = origin or before.metadata.get(ORIGIN)
        for head in template.heads or source.heads:
            key_arn = key_arn or self.directory.info(head).encryption_key_arn
        given = {**source.metadata, **settings.own_metadata, **template.metadata}
        given_tags = {**source.tags, **settings.own_tags, **template.tags}
        own = self._fitting(session_metadata.MAX_METADATA, settings.session_metadata, inherited, given)
        tags = self._fitting(session_metadata.MAX_TAGS, settings.tags, inherited_tags, given_tags)
        ours = {KEY: self.key, NAMESPACE: settings.namespace, FORMAT: str(VERSION), DIRECTORY: self.directory.kind}
        metadata = session_metadata.metadata({**ours, ORIGIN: origin, COPY: "true" if copy else None}, own)
        info = self.client.create(metadata, tags, key_arn)
        self.created[info.session] = info.created
        self._tags[info.session] = tags
        self.directory.add(info)
        return info

    def _fitting(self, most: int, *layers: Mapping[str, str]) -> dict[str, str]:
        """Return at most `most` entries of all layers; later layers take precedence."""
        entries = {name: value for layer in layers for name, value in layer.items()}
        ranked = sorted(entries, key=lambda name: [*(name not in layer for layer in reversed(layers)), name])
        if left := ranked[most:]:
            logger.warning("conversation %s: a session takes %d entries, so it is not given %s", self.name, most, left)
        return {name: value for name, value in entries.items() if name not in left}

    def tags_of(self, session: SessionInfo) -> dict[str, str]:
        """Return the tags of a session, from memory if they were read."""
        if session.session not in self._tags:
            self._tags[session.session] = self.client.tags(session.arn) if session.arn else {}
        return self._tags[session.session]

    def update(self, session: SessionInfo, metadata: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Add metadata and tags to a session, unless it has ended. Raises Gone; RequestRejected if it is ACTIVE."""
        try:
            if not metadata.items() <= session.metadata.items():
                self.client.update(session.session, {**session.metadata, **metadata})
            if not tags.items() <= self._tags.get(session.session, {}).items():
                self.client.tag(session.arn or session.session, tags)
                self._tags.pop(session.session, None)
        except RequestRejected:
            if self.is_active(session.session):
                raise

    def check_encryption_key(self, heads: Iterable[str]) -> None:
        """Raise ForeignSessionError if a head is encrypted with another key than the one that was asked for."""
        wanted = self.settings.encryption_key_arn
        for head in heads if wanted else ():
            have = self.directory.info(head).encryption_key_arn
            if have != wanted:
                raise ForeignSessionError(
                    f"The conversation {self.key!r} is encrypted with {have or 'a key that AWS manages'}, not with "
                    f"{wanted}. Nothing was written. Use its key, or copy the conversation to a new one."
                )

    def may_open(self, candidate: str, parents: Iterable[SessionInfo]) -> bool:
        """Whether a session that another process created takes writes and has the right encryption key."""
        info = self.client.get(candidate)
        wanted = self.settings.encryption_key_arn
        keys = {wanted} if wanted else {parent.encryption_key_arn for parent in parents} or {None}
        return info.status == "ACTIVE" and info.encryption_key_arn in keys

    # Closing and deleting

    def seal(self, session: str, reason: str, after: int | None = None) -> None:
        """Write a closing step later than `after` (ms), and end the session. Raises NotFound.

        Repeated until the session is ended, or the closing step is refused.
        """
        for _ in attempts(f"Session {session} cannot be ended; try again."):
            if self._try_to_seal(session, reason, self.last_ms if after is None else after):
                return

    def _try_to_seal(self, session: str, reason: str, after: int) -> bool:
        ms = self.next_ms(after)
        home = Home(session, default_invocation(session), new_id(ms, Kind.CLOSING))
        try:
            self.client.put(home, ms, [envelope({"closing": {"reason": reason}}, {})])
        except RequestRejected:
            # DeleteSession refuses a session that is still ACTIVE: a full one, for example.
            return reason == "continued" or self._has_ended(session)
        except NotFound:
            # Either the session is gone, which EndSession reports, or it has no default invocation.
            return self._has_ended(session)
        return self.client.end(session)

    def finish(self, session: str) -> None:
        """End a session that has been closed; a session that is gone counts as ended."""
        with contextlib.suppress(NotFound):
            for _ in attempts(f"Session {session} cannot be ended; try again."):
                if self._has_ended(session):
                    return

    def _has_ended(self, session: str) -> bool:
        """End a session; return whether it takes no more writes."""
        return self.client.end(session) or not self.is_active(session)

    def delete(self, session: str) -> bool:
        """Delete a session, closed first if it is ACTIVE; return whether it is gone."""
        try:
            try:
                self._delete_closed(session)
            except RequestRejected:  # it is ACTIVE
                self.seal(session, "deleted")
                self._delete_closed(session)
        except NotFound:
            pass  # another process deleted it, and may have crashed before it removed the directory entry
        except RequestRejected:
            # A process wrote in between, which the next look shows.
            logger.info("conversation %s: session %s is not deleted yet", self.name, session)
            return False
        self.directory.remove(session, self.key)
        logger.info("conversation %s: session %s is deleted", self.name, session)
        return True

    def _delete_closed(self, session: str) -> None:
        with self.effect():
            self.client.delete(session)

    def delete_unopened(self, session: str) -> bool:
        """Delete a session that no process has opened; False if one has, or the session cannot be deleted."""
        try:
            if self.has_opening(session):
                return False
            self.seal(session, "deleted")
            self.client.wait_until_listed()
            if self.has_opening(session):
                return False
            self.client.delete(session)
        except RequestRejected:
            return False
        except NotFound:
            pass
        self.directory.remove(session, self.key)
        return True


def is_opening(step: str) -> bool:
    """Whether an id is that of an opening."""
    parsed = parse_id(step)
    return parsed is not None and parsed.kind is Kind.OPENING
