"""Large contents in Amazon S3, in place of the steps that refer to them.

The law: **the content names the object, and the object belongs to one conversation**. Its key in the bucket is
`<prefix>/<conversation>/<SHA-256 of the content>`, where the conversation is the SHA-256 of its namespace and key. So:

- Nothing stored can refer to an object of another conversation or of another bucket.
- A reader checks each content against its name.
- Deleting a conversation deletes everything below its prefix, and copying it copies that.

A writer stores an object in this order:

1. It uploads the object. If the object exists, the writer copies it onto itself, which sends no bytes.
2. It writes the step that refers to the object.
3. It uploads the object again if it is gone.

So each writer that refers to an object has renewed its `LastModified`, and a lifecycle rule of the bucket counts from
there. A process deletes unreferenced objects in this order:

1. It lists the objects.
2. It waits until lists show every step that was written by then, and reads the references.
3. It deletes the objects without a reference whose `LastModified` has not changed.
"""

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
"""Bytes. About what a step carries again at most, so that larger contents are not carried in any case."""
MAX_OBJECT = 5_000_000_000
"""Bytes: the limit of one PutObject is 5 GB (S3 user guide)."""
CACHE = 64 * 1024 * 1024
"""Bytes of contents that a store keeps in memory."""
URL_SECONDS = 3600
"""How long a presigned URL is valid."""
RENEW_AGE = timedelta(days=9)
"""Age from which `Objects.renew` copies an object onto itself."""
_DELETE = 1000  # keys in one DeleteObjects (S3 API)


@dataclasses.dataclass(frozen=True)
class S3MediaStore:
    """Where a chat store keeps large contents: the argument `media=`. Constructing makes no call.

    bucket: the name of an existing bucket.
    prefix: the beginning of the names of all objects.
    threshold: bytes from which the content of a block goes to S3. Images within Bedrock's limits (3.75 MB) become
        native image blocks with an `s3Location`; with a threshold above that, no image does.
    read: what messages hold when they are read: "bytes", or the object's URL, as "s3" (`s3://bucket/...`, which Bedrock
        takes) or "presigned" (`https://...`, valid for an hour). The store recognizes its URLs in new messages.
    kms_key_arn: a KMS key to encrypt with (SSE-KMS); the bucket's own rule if left out.
    region_name, endpoint_url: of the bucket; the region of the chat store, and AWS, if left out.
    client: a ready boto3 S3 client; otherwise one is made with the chat store's credentials.

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
        """Return the arguments as JSON values, without the client and those that were left out."""
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

    def objects(self, namespace: str, key: str) -> "Objects":
        """Return the objects of a conversation, without a call."""
        conversation = hashlib.sha256(json.dumps([namespace, key]).encode()).hexdigest()
        return Objects(self, f"{self.store.prefix}/{conversation}/".lstrip("/"))

    def call(self, action: str, operation: str, /, **arguments: Any) -> dict[str, Any]:
        """Call an S3 operation on the bucket. `action` is the permission that it needs."""
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
        """Turn errors of boto3 into ours."""
        try:
            yield
        except AWS_ERRORS as error:
            raise self.error(error, action) from error

    def error(self, error: Exception, action: str) -> BedrockSessionsError:
        """Return our error for what boto3 raised."""
        return translate(error, s3(self.store.bucket, self.store.prefix), action=action)

    def encryption(self) -> dict[str, str]:
        """Return the arguments that name the KMS key."""
        arn = self.store.kms_key_arn
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": arn} if arn else {}


class Objects:
    """The objects of one conversation, by the SHA-256 of their content. All of them are below `folder`.

    Every method raises `AccessDeniedError`, `CredentialsError`, `ConfigurationError` (no such bucket), `ThrottledError`
    and `UnavailableError`.
    """

    def __init__(self, bucket: Bucket, folder: str) -> None:
        self._bucket = bucket
        self.folder = folder

    def offload(self) -> Offload:
        """Return which contents go to objects, and with what the URLs of these begin."""
        store = self._bucket.store
        places = [f"s3://{store.bucket}/{self.folder}"]
        if store.read == "presigned":
            places.append(self._presigned("0" * 64).partition("?")[0][:-64])
        return Offload(store.threshold, tuple(places))

    def upload(self, contents: Mapping[str, Content], *, again: bool = False) -> None:
        """Store contents in S3, unless they are there.

        `again`: a message refers to them by now, so it is only logged if S3 does not answer whether they are there.

        Raises:
            StepTooLargeError: a content exceeds 5 GB.
            RequestRefusedError: a file has changed since it was first read, or cannot be read.

        """
        for content in contents.values():
            if content.size > MAX_OBJECT:
                raise StepTooLargeError(
                    f"A content has {content.size / 1e9:.1f} GB, and S3 takes 5 GB in one upload. Nothing was stored. "
                    "Store the content elsewhere and put its URL into the message."
                )
        self._bucket.pool.map(functools.partial(self._have, again=again), list(contents.values()))

    def _have(self, content: Content, *, again: bool) -> None:
        try:
            if self._is_there(content) and (again or self._copy(content.sha256, self.folder)):
                return
        except (ThrottledError, UnavailableError) as error:
            if not again:
                raise
            # It was there before the step was written. A caller that gets an error would store the message twice.
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
                # S3 compares the content that arrives with it.
                ChecksumSHA256=base64.b64encode(bytes.fromhex(content.sha256)).decode(),
                **self._bucket.encryption(),
            )

    def _is_there(self, content: Content) -> bool:
        try:
            reply = self._bucket.call("s3:GetObject", "head_object", Key=self.folder + content.sha256)
        except (ObjectNotFound, AccessDeniedError):
            # Without the permission to list, S3 denies access to a missing object. The upload reports other denials.
            return False
        return bool(reply["ContentLength"] == content.size)

    def fetch(self, digests: Iterable[str]) -> dict[str, bytes | str | None]:
        """Return contents, read in parallel, or URLs, by `S3MediaStore.read`; None if missing or unlike its name."""
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
            logger.warning("object %s is ignored: its content is not that of its name", name)
            return None
        self._bucket.contents().add(name, content)
        return content

    def _presigned(self, sha256: str) -> str:
        with self._bucket.errors("s3:GetObject"):
            parameters = {"Bucket": self._bucket.store.bucket, "Key": self.folder + sha256}
            url = self._bucket.client().generate_presigned_url("get_object", Params=parameters, ExpiresIn=URL_SECONDS)
        return str(url)

    def listed(self) -> dict[str, datetime]:
        """Return the `LastModified` of every object of the conversation, referenced or not.

        Objects with names of another form are left out: another program stored them.
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
        """Copy objects that are older than nine days onto themselves, so that a lifecycle rule counts from now."""
        wanted = set(digests)
        old = [sha256 for sha256, _, age in self._entries() if sha256 in wanted and age >= RENEW_AGE]
        self._bucket.pool.map(lambda sha256: self._copy(sha256, self.folder), old)

    def copy(self, other: "Objects", digests: Iterable[str]) -> None:
        """Copy objects to another conversation. Missing objects are skipped."""
        self._bucket.pool.map(lambda sha256: self._copy(sha256, other.folder), list(dict.fromkeys(digests)))

    def _copy(self, sha256: str, folder: str) -> bool:
        """Copy an object to a folder; return whether it exists."""
        source = {"Bucket": self._bucket.store.bucket, "Key": self.folder + sha256}
        try:
            # Without REPLACE, S3 refuses to copy an object onto itself.
            self._bucket.call(
                "s3:PutObject",
                "copy_object",
                Key=folder + sha256,
                CopySource=source,
                MetadataDirective="REPLACE",
                **self._bucket.encryption(),
            )
        except ObjectNotFound:
            logger.warning("object %s cannot be copied: it does not exist", source["Key"])
            return False
        return True

    def delete(self, listed: Mapping[str, datetime]) -> dict[str, datetime]:
        """Delete objects that have not changed since they were `listed`; return those that have changed."""
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
    """Return the time since an object was uploaded or copied, by the clock of S3."""
    date = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
    now = parsedate_to_datetime(date) if date else datetime.now(UTC)
    age: timedelta = now - entry["LastModified"]
    return age
