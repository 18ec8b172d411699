"""`BedrockSessionsChatStore`: its configuration, LlamaIndex's methods over conversations, and its dict round trip."""

import contextlib
import dataclasses
import difflib
import hashlib
import itertools
import logging
import math
import os
import uuid
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store import loading
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.kvstore.types import BaseKVStore
from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
    field_validator,
    model_serializer,
)

from llama_index_bedrock_sessions._bedrock.client import SETTLE, SessionClient
from llama_index_bedrock_sessions._bedrock.connection import Connection, timestamp
from llama_index_bedrock_sessions._bedrock.directory.base import Directory, Progress
from llama_index_bedrock_sessions._bedrock.directory.key_value import KeyValueDirectory, fingerprint
from llama_index_bedrock_sessions._bedrock.directory.metadata import MetadataDirectory
from llama_index_bedrock_sessions._bedrock.directory.session_id import (
    SessionIdDirectory,
    check_session_id,
    session_closed,
)
from llama_index_bedrock_sessions._bedrock.errors import NotFound
from llama_index_bedrock_sessions._bedrock.fork import PerProcess
from llama_index_bedrock_sessions._bedrock.media import Bucket, S3MediaStore
from llama_index_bedrock_sessions._bedrock.pool import Pool, async_twin
from llama_index_bedrock_sessions._bedrock.session_metadata import check_metadata, check_tags
from llama_index_bedrock_sessions._conversation.cache import ConversationCache
from llama_index_bedrock_sessions._conversation.conversation import RENEW_AFTER, Conversation, to_ms
from llama_index_bedrock_sessions._conversation.describe import ConversationSummary
from llama_index_bedrock_sessions._conversation.engine import ConversationEngine
from llama_index_bedrock_sessions._conversation.sessions import Settings
from llama_index_bedrock_sessions.errors import BedrockSessionsError, ConfigurationError, InvalidKeyError
from llama_index_bedrock_sessions.events import AuditEvent, key_hash

R = TypeVar("R")
StrMap = dict[str, str]
KEY_LENGTH = 5000
"""Characters of a key: the service's limit for a value of `sessionMetadata`."""
_SECRETS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "botocore_session", "botocore_config")
_IN_MEMORY = ":memory:"
_PLACE = ("region_name", "profile_name", "endpoint_url", "database", "namespace", "directory")
logger = logging.getLogger("llama_index_bedrock_sessions")
_live: "weakref.WeakValueDictionary[str, BedrockSessionsChatStore]" = weakref.WeakValueDictionary()


class BedrockSessionsChatStore(BaseChatStore):
    """A LlamaIndex chat store on Amazon Bedrock sessions, or with `local(path)` in a file on this machine.

    The constructor makes no call and needs no credentials. Any number of keys, threads and event loops share one store.

    Raises:
        ConfigurationError: an argument is unknown or cannot be used.

    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    region_name: str | None = Field(default=None, description="AWS region; boto3's usual default if left out.")
    profile_name: str | None = Field(
        default=None, description="Profile of the AWS configuration; boto3's usual default."
    )
    endpoint_url: str | None = Field(default=None, description="Another endpoint, such as an emulator's.")
    aws_access_key_id: str | None = Field(default=None, exclude=True, repr=False)
    aws_secret_access_key: str | None = Field(default=None, exclude=True, repr=False)
    aws_session_token: str | None = Field(default=None, exclude=True, repr=False)
    botocore_session: Any = Field(
        default=None, exclude=True, repr=False, description="A botocore session to make the client of."
    )
    botocore_config: Any = Field(
        default=None, exclude=True, repr=False, description="A botocore Config, merged over ours."
    )
    client: Any = Field(default=None, exclude=True, repr=False, description="A ready `bedrock-agent-runtime` client.")
    database: str | None = Field(default=None, description="File of the embedded service; see `local`.")
    timeout: float = Field(default=10.0, gt=0, description="Seconds to wait for a connection, and for an answer.")
    max_retries: int = Field(default=4, ge=0, description="Retries of a request by botocore.")
    namespace: str = Field(
        default="default", min_length=1, max_length=KEY_LENGTH, description="Separates applications."
    )
    directory: Literal["metadata", "session-id"] | BaseKVStore = Field(
        default="metadata",
        exclude=True,
        repr=False,
        description="How the sessions of a key are found: by their metadata, by entries in a key-value store, or keys "
        "are session ids.",
    )
    scan_limit: int = Field(default=2000, ge=1, description="Sessions a scan of the metadata looks through at most.")
    scan_rate: float = Field(default=100.0, gt=0, description="Sessions a scan of the metadata looks at in a second.")
    encryption_key_arn: str | Callable[[str], str | None] | None = Field(
        default=None, description="KMS key of new sessions, or a function of the conversation's key."
    )
    tags: StrMap | Callable[[str], StrMap] = Field(
        default_factory=dict, description="Tags of new sessions, or a function of the conversation's key."
    )
    session_metadata: StrMap | Callable[[str], StrMap] = Field(
        default_factory=dict, description="Metadata of new sessions, or a function of the conversation's key."
    )
    media: S3MediaStore | None = Field(
        default=None, description="Where large contents are kept; in the steps if left out."
    )
    on_delete: Literal["erase", "hide", "clear"] = Field(
        default="erase",
        description="`delete_messages` deletes the sessions from the service, hides all (`Conversation.restore` brings "
        "it back), or clears them by one step.",
    )
    audit: Callable[[AuditEvent], None] | None = Field(
        default=None, exclude=True, repr=False, description="Called after a conversation was ended, deleted, ..."
    )
    refresh_interval: float = Field(
        default=0.0, ge=0, description="Seconds for which a read may be reused; 0: every read calls the service."
    )
    settling_time: float | None = Field(
        default=None,
        ge=0,
        description="Seconds within which the service lists what was written. `redact`, `delete` and `fork` wait "
        "for it before they delete what no list has shown. 2 by default, 0 with `local`.",
    )
    max_concurrency: int = Field(
        default=16, ge=1, description="Threads of the store's pool, and connections of its client."
    )
    skip_newer: bool = Field(
        default=False, description="Show steps of a newer format as placeholders, instead of raising."
    )

    _sessions: SessionClient = PrivateAttr()
    _where: Directory = PrivateAttr()
    _by_id: SessionIdDirectory = PrivateAttr()
    _bucket: Bucket | None = PrivateAttr(default=None)
    _caches: PerProcess[ConversationCache[ConversationEngine]] = PrivateAttr()
    _facades: weakref.WeakValueDictionary[int, Conversation] = PrivateAttr()
    _id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)

    if not TYPE_CHECKING:

        def __init__(self, **arguments: Any) -> None:
            _check_arguments(arguments, type(self).model_fields)
            try:
                super().__init__(**arguments)
            except ValidationError as error:
                # Only the names and the reasons: an input may be a secret.
                reasons = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
                raise ConfigurationError(f"BedrockSessionsChatStore: {'; '.join(reasons)}") from None

    def model_post_init(self, context: Any, /) -> None:
        """Make the parts of the store, without a call."""
        super().model_post_init(context)
        self._check_consistent()
        settle = self.settling_time
        if settle is None:
            settle = SETTLE if self.database is None else 0.0
        self._sessions = SessionClient(self._make_client, Pool(self.max_concurrency), settle)
        # In a file on this machine a scan is cheap, and sessions are never deleted.
        limit, rate = (self.scan_limit, self.scan_rate) if self.database is None else (math.inf, math.inf)
        self._by_id = SessionIdDirectory(self._sessions, self.namespace, limit, rate)
        if isinstance(self.directory, BaseKVStore):
            self._where = KeyValueDirectory(self.directory, self._sessions, self.namespace, rate)
        elif self.directory == "session-id":
            self._where = self._by_id
        else:
            self._where = MetadataDirectory(self._sessions, self.namespace, limit, rate)
        if self.media is not None:
            self._bucket = Bucket(self.media, self._make_s3_client, self._sessions.pool)
        self._caches = PerProcess(ConversationCache)
        self._facades = weakref.WeakValueDictionary()
        _live[self._id] = self

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex finds the store."""
        return "BedrockSessionsChatStore"

    @classmethod
    def local(cls, path: str | os.PathLike[str] | None = None, **arguments: Any) -> "BedrockSessionsChatStore":
        """Return a store on the embedded service: one SQLite file, no account, no network, no expiry.

        Several processes can use one file at once. Without a path everything is in memory and private to the store.
        Other arguments are those of the constructor. The first operation opens the file. It raises
        `ConfigurationError` if the file is not one of the embedded service.
        """
        return cls(database=_IN_MEMORY if path is None else os.fspath(path), **arguments)

    @field_validator("database")
    @classmethod
    def _absolute(cls, database: str | None) -> str | None:
        return database if database in (None, _IN_MEMORY) else os.path.abspath(database)  # noqa: PTH100 - follows no link

    @field_validator("media", mode="before")
    @classmethod
    def _described(cls, media: Any) -> Any:
        return S3MediaStore(**media) if isinstance(media, dict) else media

    @field_serializer("media")
    def _describe(self, media: S3MediaStore | None) -> dict[str, Any] | None:
        if media is None:
            return None
        return {**media.describe(), **({"client": _key_of(media.client)} if media.client is not None else {})}

    @property
    def _pool(self) -> Pool:
        return self._sessions.pool

    @property
    def _cache(self) -> ConversationCache[ConversationEngine]:
        return self._caches.get()

    # Conversations

    def conversation(
        self,
        key: str,
        *,
        session_metadata: StrMap | None = None,
        tags: StrMap | None = None,
        encryption_key_arn: str | None = None,
    ) -> Conversation:
        """Return the conversation of a key, without a call.

        Metadata, tags and the encryption key apply to the sessions that the conversation creates from now on.

        Raises:
            InvalidKeyError: the key is not a string of 1 to 5,000 characters. With `directory="session-id"`: it is not
                a session id.
            ConfigurationError: a session cannot have these metadata or tags.

        """
        engine = self._engine(key)
        given = {"own_metadata": session_metadata, "own_tags": tags, "encryption_key_arn": encryption_key_arn}
        engine.configure(**{name: value for name, value in given.items() if value is not None})
        return self._facades[id(engine)]

    def uncached(self, key: str) -> Conversation:
        """Return the conversation of a key as another process sees it: with nothing in memory.

        Use it to check what is stored, and `conversation()` for everything else. Raises as `conversation()` does.
        """
        self._check_key(key)
        engine = self._new_engine(key, self._where)
        return self._facades[id(engine)]

    def attach(self, session_id: str) -> Conversation:
        """Return the conversation in a session that another tool created. Its key is the session id.

        Works with every `directory`. The conversation can be read, continued and deleted like any other while the
        session takes writes. It is never continued in another session: writing then raises `SessionClosed`. Costs one
        GetSession.

        Raises:
            InvalidKeyError: the argument is not a session id.
            SessionClosed: there is no such session.
            ForeignSessionError: the session belongs to a conversation of this library. Use that conversation's key.

        """
        check_session_id(session_id)
        try:
            self._by_id.look(session_id)
        except NotFound:
            raise session_closed(session_id, "is not there (any more) in this account and region") from None
        engine = self._cache.get((session_id, False), lambda: self._new_engine(session_id, self._by_id))
        return self._facades[id(engine)]

    def conversations(
        self, prefix: str = "", session_metadata: Mapping[str, str] | None = None
    ) -> Iterator[ConversationSummary]:
        """Yield the conversations whose keys begin with a prefix and whose metadata contain these entries.

        The conversation with the newest session comes first. Sessions are read while conversations are consumed. Raises
        DirectoryTooLarge as every search does.
        """
        wanted = dict(session_metadata or {}).items()
        for key, summary, info in self._where.newest(prefix):
            found = ConversationSummary.of(key, summary, info)
            if wanted <= found.metadata.items():
                yield found

    def rebuild_directory(self, progress: Progress | None = None) -> int:
        """Write an entry for every session of the namespace to the key-value store; return the number of sessions.

        Use it after a change of `directory`, or after the loss of the key-value store. Scans the metadata of all
        sessions at `scan_rate`, and removes entries of deleted sessions. It can be repeated. Calls `progress` with the
        number of sessions that were scanned and the number of all.

        Raises:
            ConfigurationError: the directory is not a key-value store.

        """
        if not isinstance(self._where, KeyValueDirectory):
            raise ConfigurationError(
                f"directory={self.directory!r} has no entries to rebuild: only a key-value store has."
            )
        return self._where.rebuild(progress)

    def _check_key(self, key: str) -> None:
        _check_key_form(key)
        if self._where is self._by_id:
            check_session_id(key)

    def _engine(self, key: str) -> ConversationEngine:
        self._check_key(key)
        return self._cache.get((key, self._where.continues), lambda: self._new_engine(key, self._where))

    def _new_engine(self, key: str, where: Directory) -> ConversationEngine:
        session_metadata, tags = _of_key(self.session_metadata, key), _of_key(self.tags, key)
        check_metadata(session_metadata)
        check_tags(tags)
        settings = Settings(
            namespace=self.namespace,
            session_metadata=session_metadata,
            tags=tags,
            encryption_key_arn=_of_key(self.encryption_key_arn, key),
            refresh_interval=self.refresh_interval,
            skip_newer=self.skip_newer,
            # An id can also be the key of a conversation, so attached sessions have a folder of their own.
            media=self._bucket.objects(self.namespace, key if where.continues else f"session {key}")
            if self._bucket
            else None,
            has_retention=self.database is None,
            audit=self.audit,
        )

        def used(engine: ConversationEngine, held: int) -> None:
            self._cache.used((key, where.continues), engine, held)

        engine = ConversationEngine(key, self._sessions, where, settings, used=used)
        self._facades[id(engine)] = Conversation(engine, self.conversation, self._engine)
        return engine

    # LlamaIndex's methods

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Replace the messages of a key. Messages that are already stored in this order are not written again."""
        self.conversation(key).set(messages)

    def get_messages(self, key: str) -> list[ChatMessage]:
        """Return the messages of a key, oldest first, [] if there are none. The caller owns them."""
        return self.conversation(key).messages()

    def add_message(self, key: str, message: ChatMessage) -> None:
        """Add a message. It is in the service once this returns."""
        self.conversation(key).add([message])

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Delete everything of a key by the policy `on_delete`, and return the messages; None if the key is unknown."""
        conversation = self.conversation(key)
        if self.on_delete == "clear":
            return conversation.clear()
        return conversation.hide() if self.on_delete == "hide" else conversation.delete()

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Remove and return the message at a position of the list that this task last read; None if there is none."""
        return self.conversation(key).remove(idx)

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Remove and return the last message; None if there is none."""
        return self.conversation(key).remove_last()

    def renew(self, *, older_than: timedelta = RENEW_AFTER, progress: Progress | None = None) -> "RenewResult":
        """Renew every conversation whose newest session is older than `older_than`: for a scheduled job.

        If a conversation fails, it is logged and reported in the result, and the others are renewed. Calls `progress`
        with the number of conversations that are done and the number of all.

        Raises:
            ConfigurationError: `older_than` is not a timedelta, or keys are session ids, whose sessions are never
                continued.

        """
        age = to_ms(older_than)
        if not self._where.continues:
            raise ConfigurationError(
                f"directory={self.directory!r}: a session that is used by its id cannot be renewed."
            )
        keys = [key for key, newest, _ in self._where.newest() if self._sessions.clock.now() - newest.created >= age]
        logger.info("%d conversations are older than %s", len(keys), older_than)
        done = itertools.count(1)

        def renew(key: str) -> bool | BedrockSessionsError:
            try:
                return self.conversation(key).renew(older_than)
            except BedrockSessionsError as error:
                logger.warning("conversation %s could not be renewed: %s", key_hash(key), type(error).__name__)
                return error
            finally:
                if progress:
                    progress(next(done), len(keys))

        results = dict(zip(keys, self._sessions.pool.map(renew, keys), strict=True))
        return RenewResult(
            tuple(sorted(key for key, result in results.items() if result is True)),
            {key: result for key, result in results.items() if isinstance(result, BedrockSessionsError)},
        )

    def get_keys(self) -> list[str]:
        """Return every key of the namespace that has a session, sorted."""
        return self._where.keys()

    if not TYPE_CHECKING:  # the types are those of BaseChatStore
        aset_messages, aget_messages, async_add_message = (
            async_twin(set_messages),
            async_twin(get_messages),
            async_twin(add_message),
        )
        adelete_messages, adelete_message = async_twin(delete_messages), async_twin(delete_message)
        adelete_last_message, aget_keys = async_twin(delete_last_message), async_twin(get_keys)

    aattach, arenew, arebuild_directory = async_twin(attach), async_twin(renew), async_twin(rebuild_directory)

    async def aconversations(
        self, prefix: str = "", session_metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[ConversationSummary]:
        """`conversations`, without blocking the event loop."""
        found = self.conversations(prefix, session_metadata)
        while batch := await self._anext_batch(found):
            for one in batch:
                yield one

    def _next_batch(self, found: Iterator[ConversationSummary]) -> list[ConversationSummary]:
        return list(itertools.islice(found, self.max_concurrency))

    _anext_batch = async_twin(_next_batch)

    # Round trips

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:  # noqa: ARG002 - LlamaIndex's signature
        """Return the configuration as JSON values, without secrets; `ChatMemoryBuffer.to_dict` calls this."""
        data = handler(self)
        for name in ("encryption_key_arn", "tags", "session_metadata"):
            if callable(getattr(self, name)):
                data.pop(name, None)
        held = {"audit": self.audit is not None}
        return {**data, **self._place(), **held, "class_name": self.class_name(), "instance": self._id}

    def _place(self) -> dict[str, str | None]:
        """Return what identifies the data. Two stores use the same data if all of it is equal. No secrets."""
        region, endpoint = self.region_name, self.endpoint_url
        if self.client is not None:
            meta = getattr(self.client, "meta", None)
            region, endpoint = getattr(meta, "region_name", None), getattr(meta, "endpoint_url", None)
        elif self.database is None and region is None:
            # The region that boto3 uses in this process; another process may have another.
            with contextlib.suppress(Exception):
                region = self._connection().session().region_name
        return {
            "region_name": region,
            "profile_name": self.profile_name,
            "endpoint_url": endpoint,
            "database": self.database,
            "namespace": self.namespace,
            "directory": fingerprint(self.directory) if isinstance(self.directory, BaseKVStore) else self.directory,
            "account": self._account(),
        }

    def _account(self) -> str | None:
        """Return a name for credentials or a client, which a dict cannot hold; None without them. No secrets."""
        if self.client is not None:
            return f"client of {_key_of(self.client)}"
        if self.botocore_session is not None:
            return "botocore_session"
        if self.aws_access_key_id is not None:
            return _hidden(self.aws_access_key_id)
        return None if self.botocore_config is None else "botocore_config"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """Return what `from_dict` needs, as JSON values, without secrets."""
        return self.model_dump(**kwargs)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> "BedrockSessionsChatStore":
        """Return the store of a dict: the store itself, a live one with the same configuration, or a new one.

        Never returns a store that uses other data.

        Raises:
            ConfigurationError: the store was made with something that a dict cannot hold (a client, credentials, a
                function, memory), and this process has not constructed such a store.

        """
        data = {**data, **kwargs}
        live = _live.get(str(data.get("instance")))
        if live is not None:
            return live
        same = [s for s in list(_live.values()) if _is_alike(data, s.model_dump())]
        unsure = data.get("account") == "botocore_session" and len(same) > 1
        if same and not unsure and data.get("database") != _IN_MEMORY:
            return same[0]
        missing = [name for name in ("encryption_key_arn", "tags", "session_metadata") if name not in data]
        media = data.get("media")
        held = data.get("account") is not None or data.get("audit") or (isinstance(media, dict) and "client" in media)
        elsewhere = data.get("directory") not in {"metadata", "session-id"}
        if held or missing or elsewhere or data.get("database") == _IN_MEMORY:
            place = {name: data[name] for name in _PLACE if data.get(name) is not None}
            raise ConfigurationError(
                "This chat store was made with what a dict cannot hold (a client, credentials, a configuration of "
                "botocore, a function, a key-value store, or memory). Construct the same BedrockSessionsChatStore "
                f"first, with {place}, and load it again."
            )
        return cls(**{name: value for name, value in data.items() if name in cls.model_fields and name != "audit"})

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the dict: without secrets, and with an error instead of an empty store."""
        return (type(self).from_dict, (self.to_dict(),))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> "BedrockSessionsChatStore":  # noqa: ARG002
        """Return the store itself; with `update`, a new store with the same arguments and these."""
        if not update:
            return self
        return type(self)(**{name: getattr(self, name) for name in self.model_fields_set} | dict(update))

    def __copy__(self) -> "BedrockSessionsChatStore":
        """Return the store itself, because it represents what is in the service."""
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "BedrockSessionsChatStore":
        """Return the store itself: `ctx.store.edit_state()` copies deeply."""
        return self

    # Construction

    def _check_consistent(self) -> None:
        others = ("region_name", "profile_name", "endpoint_url", *_SECRETS, "client")
        given = [name for name in others if getattr(self, name) is not None]
        if self.database is not None and given:
            raise ConfigurationError(f"The embedded service takes no {', '.join(given)}: leave it out, or `database`.")
        if self.client is not None and len(given) > 1:
            raise ConfigurationError(f"client= is complete as it is: leave out {', '.join(given[:-1])}.")
        if (self.aws_access_key_id is None) is not (self.aws_secret_access_key is None):
            raise ConfigurationError("aws_access_key_id and aws_secret_access_key go together: one of them is missing.")
        if self.aws_session_token is not None and self.aws_access_key_id is None:
            raise ConfigurationError("aws_session_token goes with aws_access_key_id and aws_secret_access_key.")
        if not callable(self.session_metadata):
            check_metadata(self.session_metadata)
        if not callable(self.tags):
            check_tags(self.tags)

    def _make_client(self) -> Any:
        if self.client is not None:
            return self.client
        connection = self._connection()
        if self.database is not None:
            return _embedded(self.database, connection.config())
        return connection.client("bedrock-agent-runtime", endpoint_url=self.endpoint_url)

    def _make_s3_client(self) -> Any:
        media = self.media
        assert media is not None
        return self._connection().client("s3", endpoint_url=media.endpoint_url, region_name=media.region_name)

    def _connection(self) -> Connection:
        return Connection(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Connection)})


@dataclasses.dataclass(frozen=True)
class RenewResult:
    """The result of `BedrockSessionsChatStore.renew`: the renewed keys, and the error of each key that failed."""

    keys: tuple[str, ...]
    failed: Mapping[str, BedrockSessionsError]


def _embedded(database: str, config: Any) -> Any:
    from llama_index_bedrock_sessions.emulator import Emulator, EmulatorError  # noqa: PLC0415 - only who uses it pays

    try:
        emulator = Emulator(None if database == _IN_MEMORY else database, retention=False)
        return emulator.client(config=config, timestamp_parser=timestamp)
    except EmulatorError as error:
        raise ConfigurationError(str(error)) from error


def _is_alike(data: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    return all(data.get(name) == value for name, value in live.items() if name != "instance")


def _key_of(client: Any) -> str:
    """Return a name for the credentials of a client. A client offers no public way to read them without a call."""
    signer = getattr(client, "_request_signer", None)
    key = getattr(getattr(signer, "_credentials", None), "access_key", None)
    return _hidden(key) if isinstance(key, str) else "unknown credentials"


def _hidden(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _of_key(value: Any, key: str) -> Any:
    return value(key) if callable(value) else value


def _check_arguments(arguments: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for name in arguments:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f" Did you mean {close[0]}=?" if close else f" It takes {', '.join(sorted(known))}."
            raise ConfigurationError(f"BedrockSessionsChatStore takes no argument {name!r}.{meant}")


def _check_key_form(key: object) -> None:
    if not isinstance(key, str):
        raise InvalidKeyError(f"The key of a conversation is a string, not {type(key).__name__}.")
    if not 1 <= len(key) <= KEY_LENGTH:
        raise InvalidKeyError(f"The key of a conversation has 1 to {KEY_LENGTH:,} characters, not {len(key):,}.")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidKeyError(
            "The key of a conversation must be valid Unicode. This one contains a lone surrogate."
        ) from None


# ChatMemoryBuffer.from_dict finds the store by name here, and only here.
_recognized: dict[str, Any] = loading.RECOGNIZED_CHAT_STORES
_recognized[BedrockSessionsChatStore.class_name()] = BedrockSessionsChatStore
