"""A real S3 API for tests: moto's server in this process, and a client of it that counts and fails on demand."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

import boto3
from botocore.awsrequest import AWSResponse
from botocore.config import Config
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

ACCOUNT = "123456789012"


@cache
def endpoint() -> str:
    """Start the server, once; return its URL."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    return f"http://127.0.0.1:{port}" if host else ""


@cache
def client() -> Any:
    """Return the one client of all tests: making one takes long. It tries a call once."""
    config = Config(retries={"total_max_attempts": 1}, max_pool_connections=16, s3={"addressing_style": "path"})
    keys = {"aws_access_key_id": "AKIDS3", "aws_secret_access_key": "secret"}
    made: Any = boto3.client("s3", endpoint_url=endpoint(), region_name="us-east-1", config=config, **keys)
    made.meta.events.register("before-send.s3", _before)
    return made


def _before(request: Any, event_name: str, **_: Any) -> AWSResponse | None:
    of_bucket = _buckets.get(urlsplit(request.url).path.split("/")[1])
    return of_bucket.asked(event_name.rpartition(".")[2], request) if of_bucket else None


_buckets: WeakValueDictionary[str, S3] = WeakValueDictionary()


class S3:
    """A bucket of its own. `calls` counts operations; `before[operation]` runs first, and may answer instead."""

    def __init__(self) -> None:
        self.bucket = f"media-{uuid.uuid4().hex}"
        self.calls: Counter[str] = Counter()
        self.before: dict[str, Callable[[Any], AWSResponse | None]] = {}
        self.client = client()
        self.client.create_bucket(Bucket=self.bucket)
        _buckets[self.bucket] = self

    def asked(self, operation: str, request: Any) -> AWSResponse | None:
        """Count a call, and answer it if that was prepared."""
        self.calls[operation] += 1
        return self.before[operation](request) if operation in self.before else None

    def fail(self, operation: str, status: int, code: str) -> None:
        """Answer an operation with an error, until `before` is cleared."""
        self.before[operation] = lambda request: refusal(request, status, code)

    def names(self) -> list[str]:
        """Return the keys of all objects, not counted as a call."""
        return sorted(self._keys())

    def content(self, key: str) -> bytes:
        return bytes(self._keys()[key].value)

    def put(self, key: str, content: bytes) -> None:
        """Store an object as somebody else would: not counted as a call."""
        del _buckets[self.bucket]
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)
        _buckets[self.bucket] = self

    def remove(self, *keys: str) -> None:
        """Remove objects, all if none is named."""
        for key in keys or self.names():
            self._keys().pop(key)

    def later(self, age: timedelta) -> None:
        """Let all objects have been there for so much longer."""
        for key in self._keys().values():
            key.last_modified -= age

    def age(self, key: str) -> timedelta:
        """Return how long an object is there."""
        age: timedelta = datetime.now(UTC) - self._keys()[key].last_modified.replace(tzinfo=UTC)
        return age

    def _keys(self) -> Any:
        return s3_backends[ACCOUNT]["aws"].buckets[self.bucket].keys


def refusal(request: Any, status: int, code: str) -> AWSResponse:
    """Return an error as S3 writes it."""
    body = f"<Error><Code>{code}</Code><Message>told so</Message></Error>" if request.method != "HEAD" else ""
    return answer(request, status, body.encode())


def answer(request: Any, status: int, body: bytes) -> AWSResponse:
    """Return an answer in place of the server's."""
    return AWSResponse(request.url, status, {"content-type": "application/xml"}, _Raw(body))


class _Raw:
    """What is left of an HTTP response once it has been read."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: Any) -> list[bytes]:
        return [self._content]

    def read(self, **_: Any) -> bytes:
        return self._content
