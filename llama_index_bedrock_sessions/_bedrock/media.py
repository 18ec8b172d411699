"""Large contents in Amazon S3, in place of the steps that refer to them.

The law: **an object is named by what it holds, and belongs to one conversation**: its key in the bucket is
`<prefix>/<conversation>/<SHA-256 of the content>`, where the conversation is the SHA-256 of its namespace and key. So
nothing stored can name an object of another conversation, or of another bucket; what is read is held against its name;
deleting a conversation deletes what is below its prefix, and copying one copies it.

A writer uploads an object before it writes the step that refers to it, and looks for it again afterwards. An object
that is there already is copied onto itself, which sends no bytes. So its `LastModified` is never older than the last
look of a writer, and a lifecycle rule of the bucket counts from there.

A process that deletes unreferenced objects lists them, waits until lists show every step that was written by then,
reads the references, and deletes only objects whose `LastModified` has not changed.
"""

from __future__ import annotations

import base64
import collections
import dataclasses
import functools
import hashlib
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal

import botocore.exceptions as aws

from llama_index_bedrock_sessions._bedrock.errors import AWS_ERRORS, ObjectNotFound, s3, translate
from llama_index_bedrock_sessions._bedrock.fork import PerProcess
from llama_index_bedrock_sessions._bedrock.pool import Pool
from llama_index_bedrock_sessions._journal.message_codec import Content, Offload
from llama_index_bedrock_sessions.errors import (
    AccessDeniedError,
    BedrockSessionsError,
    ConfigurationError,
    RequestRefusedError,
    StepTooLargeError,
    ThrottledError,
    UnavailableError,
)

logger = logging.getLogger("llama_index_bedrock_sessions")
THRESHOLD = 256 * 1024
"""Bytes: about what a step carries again at most; larger contents would stay where they are anyway."""
MAX_OBJECT = 5_000_000_000
"""Bytes: the limit of one PutObject is 5 GB (S3 user guide)."""
CACHE = 64 * 1024 * 1024
"""Bytes of contents that a store keeps in memory; the least recently used go first."""
URL_SECONDS = 3600
"""How long a presigned URL is valid."""
FRESH = timedelta(days=9)
"""Age from which `Objects.renew` copies an object onto itself."""
_DELETE = 1000  # keys one DeleteObjects takes (S3 API)


@dataclasses.dataclass(frozen=True)
class S3MediaStore:
    """Where a chat store keeps large contents: the argument `media=`. Constructing makes no call.

    bucket: its name; it exists already.
    prefix: what the names of all objects begin with.
    threshold: bytes from which the content of a block goes to S3. Images within Bedrock's limits (3.75 MB) become
        native image blocks with an `s3Location`; with a threshold above that, no image does.
    read: what messages hold when they are read: "bytes", or the object's URL, as "s3" (`s3://bucket/...`, which Bedrock
        takes) or "presigned" (`https://...`, valid for an hour). Given back to the store, such a URL is the object.
    kms_key_arn: a KMS key to encrypt with (SSE-KMS); the bucket's own rule if left out.
    region_name, endpoint_url: of the bucket; the region of the chat store, and AWS, if left out.
    client: a ready boto3 S3 client; otherwise one is made of the chat store's credentials.

    Raises:
        ConfigurationError: an argument cannot be used.

    """

    bucket: str
    prefix: str = ""
    _: dataclasses.KW_ONLY
    threshold: int = THRESHOLD
    read: Literal["bytes", "s3", "presigned"] = "bytes"
    kms_key_arn: str | None = None
    region_name: str | None = None
    endpoint_url: str | None = None
    client: Any = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", str(self.prefix).strip("/"))
        if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", str(self.bucket)):
            raise ConfigurationError(f"S3MediaStore: {self.bucket!r} is not the name of a bucket.")
        if not re.fullmatch(r"[A-Za-z0-9!_.*'()/-]{0,700}", self.prefix):
            raise ConfigurationError("S3MediaStore: a prefix has up to 700 letters, digits and characters of !-_.*'()/")
        if not isinstance(self.threshold, int) or self.threshold < 1:
            raise ConfigurationError("S3MediaStore: threshold is a number of bytes, 1 or more.")
        if self.read not in ("bytes", "s3", "presigned"):
            raise ConfigurationError('S3MediaStore: read is "bytes", "s3" or "presigned".')
        if self.client is not None and (self.region_name or self.endpoint_url):
            raise ConfigurationError("S3MediaStore: client= is complete: leave out region_name and endpoint_url.")

    def describe(self) -> dict[str, Any]:
        """Return the arguments as JSON values: all of them, less those left out and the client."""
        described = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("_", "client")}
        return {name: value for name, value in described.items() if value is not None}


class ContentCache:
    """Contents that were read, by their names: `CACHE` bytes, the least recently used leave first. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._bytes = 0

    def get(self, name: str) -> bytes | None:
        """Return a content, None if it is not here."""
        with self._lock:
            if name in self._by_name:
                self._by_name.move_to_end(name)
            return self._by_name.get(name)

    def add(self, name: str, content: bytes) -> None:
        """Keep a content for the next read, unless it would take more than half of the cache."""
        with self._lock:
            if name in self._by_name or len(content) > CACHE // 2:
                return
            self._by_name[name] = content
            self._bytes += len(content)
            while self._bytes > CACHE:
                self._bytes -= len(self._by_name.popitem(last=False)[1])

    def drop(self, names: Iterable[str]) -> None:
        """Drop contents."""
        with self._lock:
            for name in names:
                self._bytes -= len(self._by_name.pop(name, b""))


class Bucket:
    """A media store at work: its client, and the contents that were read from it. Thread-safe."""

    def __init__(self, store: S3MediaStore, make_client: Callable[[], Any], pool: Pool) -> None:
        self.store = store
        self.pool = pool
        self._make_client = make_client
        self._client = PerProcess(self._made_client)
        self._contents = PerProcess(ContentCache)

    def objects(self, namespace: str, key: str) -> Objects:
        """Return the objects of a conversation; no call is made."""
        conversation = hashlib.sha256(json.dumps([namespace, key]).encode()).hexdigest()
        return Objects(self, f"{self.store.prefix}/{conversation}/".lstrip("/"))

    def call(self, action: str, operation: str, /, **arguments: Any) -> dict[str, Any]:
        """Call an S3 operation on the bucket. `action` is what IAM calls it."""
        with self.errors(action):
            reply: dict[str, Any] = getattr(self.client(), operation)(Bucket=self.store.bucket, **arguments)
            return reply

    def client(self) -> Any:
        """Return the boto3 client."""
        return self._client.get()

    def _made_client(self) -> Any:
        try:
            return self.store.client or self._make_client()
        except BedrockSessionsError:
            raise
        except Exception as error:
            raise self.error(error, "") from error

    def contents(self) -> ContentCache:
        """Return the contents that this process has read."""
        return self._contents.get()

    @contextmanager
    def errors(self, action: str) -> Iterator[None]:
        """Raise what boto3 raises as our errors."""
        try:
            yield
        except AWS_ERRORS as error:
            raise self.error(error, action) from error

    def error(self, error: Exception, action: str) -> BedrockSessionsError:
        """Return what boto3 raised as our error."""
        return translate(error, s3(self.store.bucket, self.store.prefix), action=action)

    def encryption(self) -> dict[str, str]:
        """Return the arguments that name the KMS key."""
        arn = self.store.kms_key_arn
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": arn} if arn else {}


class Objects:
    """The objects of one conversation, by the SHA-256 of their content; all are below `folder`.

    Every method raises `AccessDeniedError`, `CredentialsError`, `ConfigurationError` (no such bucket), `ThrottledError`
    or `UnavailableError` as S3 has it.
    """

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self._bucket = bucket
        self.folder = folder

    def offload(self) -> Offload:
        """Return which contents go to objects, and how these are told by their URLs."""
        store = self._bucket.store
        places = [f"s3://{store.bucket}/{self.folder}"]
        if store.read == "presigned":
            places.append(self._presigned("0" * 64).partition("?")[0][:-64])
        return Offload(store.threshold, tuple(places))

    def upload(self, contents: Mapping[str, Content], *, again: bool = False) -> None:
        """Have these contents in S3; `again` if a message refers to them by now: that S3 has no answer is logged then.

        Raises:
            StepTooLargeError: a content exceeds 5 GB.
            RequestRefusedError: a file was changed since it was read first.

        """
        for content in contents.values():
            if content.size > MAX_OBJECT:
                raise StepTooLargeError(
                    f"{content.size / 1e9:.1f} GB do not fit into one object as S3 takes it at once, which is 5 GB. "
                    "Nothing was stored. Store the content elsewhere and put its URL into the message."
                )
        self._bucket.pool.map(functools.partial(self._have, again=again), list(contents.values()))

    def _have(self, content: Content, *, again: bool) -> None:
        try:
            if self._is_there(content) and (again or self._copy(content.sha256, self.folder)):
                return
        except (ThrottledError, UnavailableError) as error:
            if not again:
                raise
            # It was there just now. Who is told that his message failed would store it twice.
            logger.warning("object %s was not looked for again: %s", self.folder + content.sha256, error)
            return
        try:
            source = content.source.open("rb") if isinstance(content.source, Path) else nullcontext(content.source)
        except OSError as error:
            raise RequestRefusedError(f"A file that was to be stored cannot be read any more: {error}") from error
        with source as body:
            self._bucket.call(
                "s3:PutObject",
                "put_object",
                Key=self.folder + content.sha256,
                Body=body,
                # S3 holds what arrives against it.
                ChecksumSHA256=base64.b64encode(bytes.fromhex(content.sha256)).decode(),
                **self._bucket.encryption(),
            )

    def _is_there(self, content: Content) -> bool:
        try:
            reply = self._bucket.call("s3:GetObject", "head_object", Key=self.folder + content.sha256)
        except (ObjectNotFound, AccessDeniedError):
            # Without the permission to list, S3 does not say that an object is missing; the upload reports the rest.
            return False
        return bool(reply["ContentLength"] == content.size)

    def fetch(self, digests: Iterable[str]) -> dict[str, bytes | str | None]:
        """Return contents, in parallel, or URLs, as the store was told; None is missing, or not what its name says."""
        wanted = list(dict.fromkeys(digests))
        if self._bucket.store.read == "s3":
            return {sha256: f"s3://{self._bucket.store.bucket}/{self.folder}{sha256}" for sha256 in wanted}
        if self._bucket.store.read == "presigned":
            return {sha256: self._presigned(sha256) for sha256 in wanted}
        return dict(zip(wanted, self._bucket.pool.map(self._content, wanted), strict=True))

    def _content(self, sha256: str) -> bytes | None:
        name = self.folder + sha256
        if (cached := self._bucket.contents().get(name)) is not None:
            return cached
        try:
            reply = self._bucket.call("s3:GetObject", "get_object", Key=name)
            with self._bucket.errors("s3:GetObject"):
                content: bytes = reply["Body"].read()
        except ObjectNotFound:
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            logger.warning("object %s does not hold what its name says", name)
            return None
        self._bucket.contents().add(name, content)
        return content

    def _presigned(self, sha256: str) -> str:
        with self._bucket.errors("s3:GetObject"):
            parameters = {"Bucket": self._bucket.store.bucket, "Key": self.folder + sha256}
            url = self._bucket.client().generate_presigned_url("get_object", Params=parameters, ExpiresIn=URL_SECONDS)
        return str(url)

    def listed(self) -> dict[str, datetime]:
        """Return all objects of the conversation, referenced or not, and their `LastModified`.

        Objects with other names are not ours and are left out.
        """
        return {sha256: modified for sha256, modified, _ in self._entries()}

    def _entries(self) -> Iterator[tuple[str, datetime, timedelta]]:
        """Yield (SHA-256, `LastModified`, age) of each object of the conversation."""
        token: dict[str, Any] = {}
        while True:
            reply = self._bucket.call("s3:ListBucket", "list_objects_v2", Prefix=self.folder, **token)
            for entry in reply.get("Contents", ()):
                sha256 = str(entry["Key"]).removeprefix(self.folder)
                if re.fullmatch("[0-9a-f]{64}", sha256):
                    yield sha256, entry["LastModified"], _age(reply, entry)
            if not reply.get("NextContinuationToken"):
                return
            token = {"ContinuationToken": reply["NextContinuationToken"]}

    def renew(self, digests: Iterable[str]) -> None:
        """Copy those of these objects that are older than nine days onto themselves: a lifecycle rule counts anew."""
        wanted = set(digests)
        old = [sha256 for sha256, _, age in self._entries() if sha256 in wanted and age >= FRESH]
        self._bucket.pool.map(lambda sha256: self._copy(sha256, self.folder), old)

    def copy(self, other: Objects, digests: Iterable[str]) -> None:
        """Copy objects to another conversation. What is missing is passed over."""
        self._bucket.pool.map(lambda sha256: self._copy(sha256, other.folder), list(dict.fromkeys(digests)))

    def _copy(self, sha256: str, folder: str) -> bool:
        """Copy an object to a folder; return whether it was there."""
        source = {"Bucket": self._bucket.store.bucket, "Key": self.folder + sha256}
        try:
            # REPLACE: S3 refuses to copy an object onto itself otherwise.
            self._bucket.call(
                "s3:PutObject",
                "copy_object",
                Key=folder + sha256,
                CopySource=source,
                MetadataDirective="REPLACE",
                **self._bucket.encryption(),
            )
        except ObjectNotFound:
            logger.warning("object %s is to be copied, but not there", source["Key"])
            return False
        return True

    def delete(self, listed: Mapping[str, datetime]) -> dict[str, datetime]:
        """Delete objects that have not changed since they were `listed` so; return those that have."""
        if not listed:
            return {}
        now = {sha256: modified for sha256, modified in self.listed().items() if sha256 in listed}
        names = [self.folder + sha256 for sha256, modified in now.items() if modified == listed[sha256]]
        self._bucket.contents().drop(names)
        for start in range(0, len(names), _DELETE):
            keys = [{"Key": name} for name in names[start : start + _DELETE]]
            reply = self._bucket.call("s3:DeleteObject", "delete_objects", Delete={"Objects": keys, "Quiet": True})
            if reply.get("Errors"):
                failed = {"Error": reply["Errors"][0], "ResponseMetadata": {}}
                raise self._bucket.error(aws.ClientError(failed, "DeleteObjects"), "s3:DeleteObject")
        return {sha256: modified for sha256, modified in now.items() if modified != listed[sha256]}


def _age(reply: Mapping[str, Any], entry: Mapping[str, Any]) -> timedelta:
    """Return how long ago an object was uploaded or copied, by the clock of S3."""
    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    age: timedelta = now - entry["LastModified"]
    return age
