"""Key-value stores of LlamaIndex on real servers, started for the tests on free ports, and one that counts."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore


class CountingKVStore(SimpleKVStore):
    """A SimpleKVStore that counts its calls, fails where `fails` says so, and has no async methods.

    `fails` is asked before each call with its name and its number among those of that name, from 1; it may raise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.fails: Callable[[str, int], None] = lambda _name, _number: None

    def _counted(self, name: str) -> None:
        self.calls[name] += 1
        self.fails(name, self.calls[name])

    def put(self, key: str, val: dict[str, Any], collection: str = "data") -> None:
        self._counted("put")
        super().put(key, val, collection)

    def get(self, key: str, collection: str = "data") -> dict[str, Any] | None:
        self._counted("get")
        return super().get(key, collection)

    def get_all(self, collection: str = "data") -> dict[str, dict[str, Any]]:
        self._counted("get_all")
        return super().get_all(collection)

    def delete(self, key: str, collection: str = "data") -> bool:
        self._counted("delete")
        return super().delete(key, collection)

    async def _never(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("only the sync methods of a key-value store are called")

    aput = aget = aget_all = adelete = _never

    def entries(self) -> set[str]:
        """Return the sessions that have an entry anywhere."""
        return {session for entries in self._collections_mappings.values() for session in entries}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _program(name: str, package: str) -> str:
    places = [os.environ.get("PATH", ""), *map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True))]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        pytest.skip(f"needs {name}, of the package {package}")
    return found


@contextlib.contextmanager
def _running(command: list[str], ready: str, folder: str, **more: Any) -> Iterator[None]:
    """Run a server in a folder until it is no longer needed; it says `ready` once it is."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if ready in line:
                break
        else:
            raise AssertionError("".join(said))
        yield
    finally:
        process.send_signal(signal.SIGINT)  # to PostgreSQL: without waiting for its clients
        process.communicate()


@contextlib.contextmanager
def redis() -> Iterator[Callable[[], BaseKVStore]]:
    """Run a Redis server; give a function that makes a store on it."""
    from llama_index.storage.kvstore.redis import RedisKVStore

    port = free_port()
    command = [_program("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    with tempfile.TemporaryDirectory() as folder, _running(command, "Ready to accept connections", folder):
        yield lambda: RedisKVStore(redis_uri=f"redis://:@127.0.0.1:{port}/0")


@contextlib.contextmanager
def postgres() -> Iterator[Callable[[], BaseKVStore]]:
    """Run a PostgreSQL server; give a function that makes a store on it."""
    from llama_index.storage.kvstore.postgres import PostgresKVStore

    initdb, server = _program("initdb", "postgresql"), _program("postgres", "postgresql")
    # PostgreSQL refuses to run as root: then it runs as the user that its package makes.
    as_user: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        if as_user:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        data = f"{folder}/data"
        make = [initdb, "-D", data, "-U", "tests", "-A", "trust", "--no-sync", "--locale=C", "-E", "UTF8"]
        subprocess.run(make, cwd=folder, check=True, capture_output=True, **as_user)
        command = [server, "-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
        with _running(command, "ready to accept connections", folder, **as_user):
            # jsonb is the stricter of its two types: it takes no NUL
            yield lambda: PostgresKVStore.from_uri(f"postgresql://tests@127.0.0.1:{port}/postgres", use_jsonb=True)


@contextlib.contextmanager
def dynamodb() -> Iterator[Callable[[], BaseKVStore]]:
    """Run moto's server with a table; give a function that makes a store on it."""
    from llama_index.storage.kvstore.dynamodb import DynamoDBKVStore
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()

        def resource() -> Any:
            keys = {"aws_access_key_id": "AKIDTESTS", "aws_secret_access_key": "tests"}
            return boto3.resource("dynamodb", "us-east-1", endpoint_url=f"http://{host}:{port}", **keys)

        table = uuid.uuid4().hex  # moto's servers of one process share what they hold
        resource().create_table(
            TableName=table,
            KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}, {"AttributeName": "created", "KeyType": "RANGE"}],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("key", "created")],
            BillingMode="PAY_PER_REQUEST",
        )
        yield lambda: DynamoDBKVStore(resource().Table(table))
    finally:
        server.stop()


@contextlib.contextmanager
def simple() -> Iterator[Callable[[], BaseKVStore]]:
    """Give a function that always returns the same store in memory, as two processes could not have it."""
    kv = SimpleKVStore()
    yield lambda: kv


ALL = {"SimpleKVStore": simple, "DynamoDB": dynamodb, "Redis": redis, "Postgres": postgres}
