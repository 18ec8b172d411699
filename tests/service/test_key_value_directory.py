"""Finding the sessions of a key by entries in a key-value store: on real servers, and with whatever can go wrong."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.kvstore import SimpleKVStore
from llama_index.core.storage.kvstore.types import BaseKVStore

from llama_index_bedrock_sessions import (
    AccessDeniedError,
    BedrockSessionsChatStore,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    ThrottledError,
    UnavailableError,
)
from llama_index_bedrock_sessions._bedrock.directory.key_value import CACHE_SIZE, fingerprint
from llama_index_bedrock_sessions.conformance import ChatStoreContract
from tests.support import kvstores
from tests.support.kvstores import CountingKVStore
from tests.support.service import DAY, IDLE, KEY, Service, png, texts, user, users

pytestmark = pytest.mark.thorough

Make = Callable[[], BaseKVStore]
MINUTES = 6 * 60


@pytest.fixture(scope="module", params=list(kvstores.ALL))
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Give a function that makes a store on one server, as each process would."""
    with kvstores.ALL[request.param]() as make:
        yield make


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def kv() -> CountingKVStore:
    return CountingKVStore()


@pytest.fixture
def namespace() -> str:
    """Servers serve several tests."""
    return uuid.uuid4().hex


def put_by_hand(kv: BaseKVStore, store: BedrockSessionsChatStore, key: str, session: str, **more: Any) -> None:
    """Put an entry into the collection of a key, as anybody may who can write to the store."""
    said = {"key": key, "created": 1, "arn": None} | more
    collection = store._where._collection(key)  # type: ignore[attr-defined]
    kv.put(session, {"bedrock_session": json.dumps(said)}, collection=collection)


# On every store


class TestContract(ChatStoreContract):
    """What any chat store has to do, with each of the key-value stores."""

    @pytest.fixture
    def store(self, service: Service, make: Make, namespace: str) -> BaseChatStore:
        return service.store(directory=make(), namespace=namespace)


def test_a_conversation_goes_on_in_other_processes(service: Service, make: Make, namespace: str) -> None:
    """Other processes read, continue after an idle hour, list and delete what one has written; nothing stays behind."""
    for number in range(4):
        service.store(directory=make(), namespace=namespace).add_message(KEY, user(str(number)))
        service.later(IDLE)
    kv = make()
    other = service.store(directory=kv, namespace=namespace)
    assert texts(other) == ["0", "1", "2", "3"]
    assert other.get_keys() == [KEY]
    assert [found.key for found in other.conversations()] == [KEY]
    directory: Any = other._where
    collections = [directory._collection(KEY), directory._collection()]
    assert [len(kv.get_all(collection=collection)) for collection in collections] == [4, 4]
    other.delete_messages(KEY)
    assert [len(kv.get_all(collection=collection)) for collection in collections] == [0, 0]
    assert service.sessions() == []
    assert texts(service.store(directory=make(), namespace=namespace)) == []


@pytest.mark.parametrize("key", ["k" * 5000, "漢" * 5000, "a/b c\x00\n\u202e", "'; DROP TABLE x; --", "é"])
def test_any_key_has_entries(service: Service, make: Make, namespace: str, key: str) -> None:
    """Keys as long as a session's metadata takes them, and of any characters, are found and listed."""
    service.store(directory=make(), namespace=namespace).add_message(key, user("hello"))
    other = service.store(directory=make(), namespace=namespace)
    assert texts(other, key) == ["hello"]
    assert other.get_keys() == [key]


def test_threads_create_and_find_conversations_at_once(service: Service, make: Make, namespace: str) -> None:
    """Conversations begun by many threads at once, in a store that never was used before, are all found."""
    store = service.store(directory=make(), namespace=namespace)
    start = threading.Barrier(8)

    def begin(number: int) -> None:
        start.wait()
        store.add_message(f"k{number}", user(str(number)))

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = service.store(directory=make(), namespace=namespace)
    assert [texts(other, f"k{number}") for number in range(8)] == [[str(number)] for number in range(8)]


def test_the_fingerprint_says_where_entries_are(make: Make) -> None:
    """Two stores of one place have one fingerprint, stores of other places others."""
    assert fingerprint(make()) == fingerprint(make()) != fingerprint(SimpleKVStore())


# What it costs


@pytest.mark.parametrize("others", [0, 30])
def test_a_cold_open_is_one_read(service: Service, kv: CountingKVStore, others: int) -> None:
    """A cold open reads the store once, whatever the number of conversations and of sessions before."""
    for number in range(others):
        service.store(directory=kv).add_message(f"k{number}", user("hello"))
    for number in range(5):
        service.store(directory=kv).add_message(KEY, user(str(number)))
        service.later(IDLE)
    store = service.store(directory=kv)
    kv.calls.clear()
    with service.counting() as calls:
        assert texts(store) == ["0", "1", "2", "3", "4"]
    assert kv.calls == {"get_all": 1}
    assert calls["ListSessions"] == 0
    assert calls["GetSession"] == calls["ListInvocationSteps"] == 2  # the head's and its parent's
    kv.calls.clear()
    with service.counting() as calls:
        store.add_message(KEY, user("5"))
    assert kv.calls == {"get_all": 2, "put": 2}
    assert calls["ListSessions"] == 0
    kv.calls.clear()
    store.add_message(KEY, user("6"))
    texts(store)
    assert not kv.calls


def test_a_first_message_reads_twice(service: Service, kv: CountingKVStore) -> None:
    """A new key: one look, one more after the session was created, and no scan."""
    store = service.store(directory=kv)
    with service.counting() as calls:
        store.add_message(KEY, user("hello"))
    assert kv.calls == {"get_all": 2, "put": 2}
    assert calls == {"CreateSession": 1, "CreateInvocation": 1, "PutInvocationStep": 1, "total": 3}


def test_listing_keys_looks_at_no_session(service: Service, kv: CountingKVStore) -> None:
    """`get_keys` is one read and one list; `conversations` besides looks at one session of each that is asked for."""
    for _ in range(2):
        for number in range(30):
            service.store(directory=kv).add_message(f"k{number:02}", user("hello"))
        service.later(IDLE)
    store = service.store(directory=kv, max_concurrency=4)
    kv.calls.clear()
    with service.counting() as calls:
        assert len(store.get_keys()) == 30
    assert (kv.calls, calls) == ({"get_all": 1}, {"ListSessions": 1, "total": 1})
    with service.counting() as calls:
        assert next(store.conversations()).key == "k29"
    assert calls == {"ListSessions": 1, "GetSession": 4, "total": 5}
    with service.counting() as calls:
        assert [found.key for found in store.conversations(prefix="k1")] == [f"k1{n}" for n in reversed(range(10))]
    assert calls["GetSession"] <= 10


def test_pictures_in_older_sessions_are_found_without_a_scan(service: Service, kv: CountingKVStore) -> None:
    """Sessions that steps name are checked one GetSession each, not by listing all."""
    from tests.support.service import picture

    for number in range(3):
        service.store(directory=kv).add_message(KEY, picture(number))
        service.later(IDLE)
    with service.counting() as calls:
        found = service.store(directory=kv).get_messages(KEY)
    assert [message.blocks[1].image for message in found] == [picture(n).blocks[1].image for n in range(3)]  # type: ignore[union-attr]
    assert png(seed=0) != png(seed=1)
    assert calls["ListSessions"] == 0


# Entries that are wrong


def test_directory_entry_for_another_key_is_ignored(service: Service, kv: CountingKVStore) -> None:
    """Whatever is done to a key whose entries name other sessions, those stay as they are, and its own are used."""
    store = service.store(directory=kv)
    store.add_message(KEY, user("mine"))
    service.store(directory=kv).add_message("another", user("stays"))
    service.store(directory=kv, namespace="another").add_message(KEY, user("stays"))
    foreign = [*[s["sessionId"] for s in service.sessions()][1:], service.boto3.create_session()["sessionId"]]
    service.put(foreign[-1], [{"text": "by hand"}])
    for session, created in zip(foreign, (1, 10**15, -5), strict=True):
        put_by_hand(kv, store, KEY, session, created=created)
    before = [one for one in service.everything() if one[0]["sessionId"] in foreign]
    assert len(before) == 3
    other = service.store(directory=kv)
    assert texts(other) == ["mine"]
    other.set_messages(KEY, users("one", "two"))
    service.later(IDLE)
    other.add_message(KEY, user("three"))
    assert texts(service.store(directory=kv)) == ["one", "two", "three"]
    assert other.delete_messages(KEY) == users("one", "two", "three")
    assert [({**s, "sessionStatus": "ACTIVE"}, steps) for s, steps in service.everything()] == before
    assert texts(service.store(directory=kv)) == []


def test_when_a_session_was_made_is_not_believed_of_an_entry(service: Service, kv: CountingKVStore) -> None:
    """An entry that makes its session younger than it is does not keep the conversation in it until it is deleted."""
    store = service.store(directory=kv)
    store.add_message(KEY, user("one"))
    session = service.sessions()[0]["sessionId"]
    put_by_hand(kv, store, KEY, session, created=10**14)
    for _ in range(4):
        service.later(9 * DAY)
        service.store(directory=kv).add_message(KEY, user("more"))
    assert texts(service.store(directory=kv)) == ["one", *["more"] * 4]


@pytest.mark.parametrize(
    "value",
    [{}, {"bedrock_session": 5}, {"bedrock_session": "no JSON"}, {"bedrock_session": '{"key": "user-42"}'}]
    + [{"bedrock_session": json.dumps({"key": KEY, "created": created, "arn": None})} for created in ("1", True, 1.5)]
    + [{"bedrock_session": json.dumps({"key": "another", "created": 1, "arn": None})}],
)
def test_what_is_no_entry_is_ignored(service: Service, kv: CountingKVStore, value: dict[str, Any]) -> None:
    """Other things in the collection of a key, under a session's id or any other, do no harm."""
    store = service.store(directory=kv)
    store.add_message(KEY, user("hello"))
    directory: Any = store._where
    for name in (str(uuid.uuid4()), "no id"):
        for key in (KEY, None):
            kv.put(name, value, collection=directory._collection(key))
    other = service.store(directory=kv)
    assert texts(other) == ["hello"]
    assert other.get_keys() == [KEY]


def test_entries_of_deleted_sessions_are_removed(service: Service, kv: CountingKVStore) -> None:
    """A session deleted by other means is no part of its key; its entry is removed by who sees it."""
    service.store(directory=kv).add_message(KEY, user("gone"))
    [old] = [s["sessionId"] for s in service.sessions()]
    service.boto3.end_session(sessionIdentifier=old)
    service.boto3.delete_session(sessionIdentifier=old)
    service.later(MINUTES)
    store = service.store(directory=kv)
    assert texts(store) == []
    assert store.get_keys() == []
    store.add_message(KEY, user("new"))
    [new] = [s["sessionId"] for s in service.sessions()]
    assert kv.entries() == {new}
    assert texts(service.store(directory=kv)) == ["new"]


def test_only_entries_that_are_surely_stale_are_removed(service: Service, kv: CountingKVStore) -> None:
    """An entry stays while the service may not know its session yet, and where its session may be in another account.

    So a laptop's emulator that is given the store of an account leaves that one's entries alone.
    """
    store = service.store(directory=kv)
    store.add_message(KEY, user("hello"))
    [there] = service.sessions()
    young, old, elsewhere, nowhere = [str(uuid.uuid4()) for _ in range(4)]
    ours, theirs = there["sessionArn"], there["sessionArn"].replace(there["sessionArn"].split(":")[4], "999999999999")
    now = int(service.clock.now().timestamp() * 1000)
    for session, created, arn in ((young, now, ours), (old, 1, ours), (elsewhere, 1, theirs), (nowhere, 1, None)):
        put_by_hand(kv, store, KEY, session, created=created, arn=arn)
    assert texts(service.store(directory=kv)) == ["hello"]
    # The young one was not there: so it looked again, and had learnt by then which account is its own.
    assert kv.entries() == {there["sessionId"], young, elsewhere, nowhere}
    service.later(MINUTES)
    other = service.store(directory=kv)
    other.add_message("another", user("hello"))
    assert [texts(other, key) for key in ("another", KEY)] == [["hello"], ["hello"]]
    assert young not in kv.entries()
    assert {there["sessionId"], elsewhere, nowhere} < kv.entries()


def test_entries_do_not_pile_up(service: Service, kv: CountingKVStore) -> None:
    """A conversation that lives for months has entries of the sessions that are there, and a few that just went."""
    for _ in range(30):
        service.later(3 * DAY)
        service.store(directory=kv).add_message(KEY, user("hello"))
    there = {s["sessionId"] for s in service.sessions()}
    assert there <= kv.entries()
    assert len(kv.entries() - there) <= 1
    service.later(40 * DAY)
    store = service.store(directory=kv)
    store.add_message("another", user("hello"))
    assert store.get_keys() == ["another"]
    assert len(kv.entries()) == 1


# When the store fails


def failing(operation: str, nth: int, error: Exception) -> Callable[[str, int], None]:
    def fails(name: str, number: int) -> None:
        if (name, number) == (operation, nth):
            raise error

    return fails


@pytest.mark.parametrize(("operation", "nth"), [("get_all", 1), ("put", 1), ("put", 2), ("get_all", 2)])
def test_a_failure_while_a_conversation_begins_is_an_error(
    service: Service, kv: CountingKVStore, operation: str, nth: int
) -> None:
    """Each call may fail: that is said, nothing is half stored, and the same call succeeds later."""
    store = service.store(directory=kv)
    kv.fails = failing(operation, nth, ConnectionError("refused"))
    with pytest.raises(UnavailableError, match=r"key-value store of directory= .*refused") as caught:
        store.add_message(KEY, user("hello"))
    assert caught.value.retryable
    assert not caught.value.may_have_happened
    assert texts(service.store(directory=kv)) == []
    store.add_message(KEY, user("hello"))
    assert texts(service.store(directory=kv)) == ["hello"]
    open_sessions = [s for s in service.sessions() if service.steps(s["sessionId"])]
    assert len(open_sessions) == 1


@pytest.mark.parametrize(("operation", "nth"), [("put", 1), ("put", 2), ("get_all", 3)])
def test_a_failure_while_a_conversation_is_continued_is_an_error(
    service: Service, kv: CountingKVStore, operation: str, nth: int
) -> None:
    """Whatever fails, the conversation is found as it was, and goes on later."""
    service.store(directory=kv).add_message(KEY, user("one"))
    service.later(IDLE)
    store = service.store(directory=kv)
    kv.calls.clear()
    kv.fails = failing(operation, nth, ConnectionError("refused"))
    with pytest.raises(UnavailableError):
        store.add_message(KEY, user("two"))
    assert texts(service.store(directory=kv)) == ["one"]
    for writer in (service.store(directory=kv), store):
        writer.add_message(KEY, user("more"))
    assert texts(service.store(directory=kv)) == ["one", "more", "more"]


def test_two_processes_delete_one_session(service: Service, kv: CountingKVStore) -> None:
    """Its entry goes too: the other may have died before he removed it."""
    chat = service.store(directory=kv).conversation(KEY)
    chat.add([user("hello")])
    client: Any = chat._engine.client.client()
    end = client.end_session

    def ended(sessionIdentifier: str) -> Any:  # noqa: N803 - boto3's name
        service.boto3.end_session(sessionIdentifier=sessionIdentifier)
        service.boto3.delete_session(sessionIdentifier=sessionIdentifier)
        return end(sessionIdentifier=sessionIdentifier)

    client.end_session = ended
    assert chat.delete() == [user("hello")]
    assert service.sessions() == []
    assert service.store(directory=kv).get_keys() == []
    assert chat.delete() is None


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failure_while_a_conversation_is_deleted_is_an_error(service: Service, kv: CountingKVStore, nth: int) -> None:
    """Sessions whose entry could not be removed are gone all the same, and deleting again leaves nothing of the key."""
    service.store(directory=kv).add_message(KEY, user("one"))
    store = service.store(directory=kv)
    kv.fails = failing("delete", nth, ConnectionError("refused"))
    with pytest.raises(UnavailableError):
        store.delete_messages(KEY)
    assert texts(service.store(directory=kv)) == texts(store) == []
    store.delete_messages(KEY)
    assert store.get_keys() == []
    assert service.sessions() == []


class OperationalError(Exception):
    """Of SQLAlchemy's, by name: its text holds the statement."""


class AuthenticationError(ConnectionError):
    """Of redis-py's, by name."""


class NoPermissionError(Exception):
    """Of redis-py's, by name."""


def client_error(code: str, status: int = 400) -> ClientError:
    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "Query")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (client_error("ResourceNotFoundException"), ConfigurationError),
        (client_error("ValidationException"), ConfigurationError),
        (client_error("AccessDeniedException"), AccessDeniedError),
        (client_error("UnrecognizedClientException"), CredentialsError),
        (client_error("ProvisionedThroughputExceededException"), ThrottledError),
        (client_error("InternalServerError", 500), UnavailableError),
        (EndpointConnectionError(endpoint_url="x"), UnavailableError),
        (NoCredentialsError(), CredentialsError),
        (OperationalError("gone\n[SQL: SELECT secret]"), UnavailableError),
        (OperationalError('password authentication failed for user "x"'), CredentialsError),
        (AuthenticationError("invalid password"), CredentialsError),
        (NoPermissionError("no"), AccessDeniedError),
        (NotImplementedError(), ConfigurationError),
        (TypeError("no"), ConfigurationError),
        (TimeoutError(), UnavailableError),
        (Exception("anything"), UnavailableError),
    ],
    ids=lambda value: str(getattr(value, "response", {}).get("Error", {}).get("Code") or type(value).__name__),
)
def test_what_a_store_raises_is_an_error_of_ours(
    service: Service, kv: CountingKVStore, raised: Exception, expected: type[BedrockSessionsError]
) -> None:
    """Whose fault it is, is told apart; statements that a driver adds to its message are left out."""
    kv.fails = failing("get_all", 1, raised)
    with pytest.raises(expected) as caught:
        service.store(directory=kv).get_messages(KEY)
    assert type(caught.value) is expected
    assert caught.value.__cause__ is raised
    assert "secret" not in str(caught.value)


def test_servers_that_are_not_there_are_unavailable(service: Service) -> None:
    """What the real drivers raise when nobody listens is an error to try again after."""
    import boto3
    from botocore.config import Config
    from llama_index.storage.kvstore.dynamodb import DynamoDBKVStore
    from llama_index.storage.kvstore.postgres import PostgresKVStore
    from llama_index.storage.kvstore.redis import RedisKVStore

    port = kvstores.free_port()
    keys = {"aws_access_key_id": "AKIDTESTS", "aws_secret_access_key": "tests", "region_name": "us-east-1"}
    once = Config(retries={"total_max_attempts": 1})
    resource: Any = boto3.resource("dynamodb", endpoint_url=f"http://127.0.0.1:{port}", config=once, **keys)
    table = resource.Table("t")
    # Its schema is asked for when the store is made.
    table.meta.data = {"KeySchema": [{"KeyType": kind, "AttributeName": kind} for kind in ("HASH", "RANGE")]}
    for kv in (
        RedisKVStore(redis_uri=f"redis://:hunter2@127.0.0.1:{port}"),
        PostgresKVStore.from_uri(f"postgresql://tests:hunter2@127.0.0.1:{port}/postgres"),
        DynamoDBKVStore(table),
    ):
        with pytest.raises(UnavailableError, match=type(kv).__name__) as caught:
            service.store(directory=kv).get_messages(KEY)
        assert "hunter2" not in str(caught.value)
        assert "hunter2" not in json.dumps(service.store(directory=kv).to_dict())
        assert "hunter2" not in repr(service.store(directory=kv))


def test_a_table_that_is_not_there_is_named(service: Service) -> None:
    """A missing DynamoDB table is the configuration's fault."""
    from llama_index.storage.kvstore.dynamodb import DynamoDBKVStore

    with kvstores.dynamodb() as make:
        kv: Any = make()
        assert isinstance(kv, DynamoDBKVStore)
        kv._table.delete()
        with pytest.raises(ConfigurationError, match="ResourceNotFound"):
            service.store(directory=kv).get_messages(KEY)


# Writers at once, entries that were lost, rebuilding


def test_two_writers_who_create_at_once_lose_nothing(service: Service, kv: CountingKVStore) -> None:
    """A session that another process has created and opened meanwhile is found before a second one is opened."""
    first, second = service.store(directory=kv), service.store(directory=kv)

    def meanwhile(name: str, number: int) -> None:
        if name == "put" and number == 1:
            second.add_message(KEY, user("second"))

    kv.fails = meanwhile
    first._where._calling = threading.RLock()  # type: ignore[attr-defined]  # each process has a lock of its own
    first.add_message(KEY, user("first"))
    assert texts(service.store(directory=kv)) == texts(first) == texts(second) == ["second", "first"]
    opened = [s for s in service.sessions() if service.steps(s["sessionId"])]
    assert len(opened) == 1


def test_a_lost_entry_hides_no_message_from_who_knows_them(service: Service, kv: CountingKVStore) -> None:
    """An entry removed by hand: who has the conversation in memory goes on with it, and it is found again."""
    store = service.store(directory=kv)
    store.add_message(KEY, user("one"))
    kv._collections_mappings.clear()
    assert texts(service.store(directory=kv)) == []
    service.later(IDLE)
    store.add_message(KEY, user("two"))
    assert texts(service.store(directory=kv)) == texts(store) == ["one", "two"]


def test_session_begun_during_lost_entry_is_joined(service: Service, kv: CountingKVStore) -> None:
    """After a rebuild, what was written under the key before and after the loss is one conversation."""
    service.store(directory=kv).add_message(KEY, user("before"))
    kv._collections_mappings.clear()
    service.later(10)
    service.store(directory=kv).add_message(KEY, user("after"))
    assert texts(service.store(directory=kv)) == ["after"]
    assert service.store(directory=kv).rebuild_directory() == 2
    assert texts(service.store(directory=kv)) == ["before", "after"]
    service.store(directory=kv).add_message(KEY, user("more"))
    assert texts(service.store(directory=kv)) == ["before", "after", "more"]


def test_a_rebuilt_directory_is_as_it_was(service: Service, kv: CountingKVStore) -> None:
    """Rebuilding from nothing but the service restores every entry; repeating it changes nothing."""
    for number in range(3):
        service.store(directory=kv).add_message(f"k{number}", user("hello"))
        service.later(IDLE)
        service.store(directory=kv).add_message(f"k{number}", user("again"))
    service.store(directory=kv, namespace="another").add_message(KEY, user("hello"))
    before = json.loads(json.dumps(kv.to_dict()))
    kv._collections_mappings.clear()
    told: list[tuple[int, int]] = []
    assert service.store(directory=kv).rebuild_directory(lambda *progress: told.append(progress)) == 6
    assert asyncio.run(service.store(directory=kv, namespace="another").arebuild_directory()) == 1
    assert kv.to_dict() == before
    assert told == [(7, 7)]
    assert service.store(directory=kv).rebuild_directory() == 6
    assert kv.to_dict() == before


def test_conversations_of_the_metadata_directory_are_taken_over(service: Service, kv: CountingKVStore) -> None:
    """What was begun under "metadata" is found after a rebuild, and goes on there."""
    service.store().add_message(KEY, user("one"))
    store = service.store(directory=kv)
    assert texts(service.store(directory=kv)) == []
    assert store.rebuild_directory() == 1
    assert texts(store) == ["one"]
    service.later(IDLE)
    store.add_message(KEY, user("two"))
    assert texts(service.store()) == texts(service.store(directory=kv)) == ["one", "two"]


def test_a_rebuild_removes_entries_of_sessions_that_are_gone(service: Service, kv: CountingKVStore) -> None:
    """After a rebuild the entries are those of the sessions that are there."""
    for key in ("a", "b"):
        service.store(directory=kv).add_message(key, user("hello"))
    gone, there = [s["sessionId"] for s in service.sessions()]
    service.boto3.end_session(sessionIdentifier=gone)
    service.boto3.delete_session(sessionIdentifier=gone)
    service.later(MINUTES)
    assert service.store(directory=kv).rebuild_directory() == 1
    assert kv.entries() == {there}


def test_there_is_nothing_to_rebuild_without_a_key_value_store(service: Service) -> None:
    """The other directories keep nothing."""
    for directory in ("metadata", "session-id"):
        with pytest.raises(ConfigurationError, match=directory):
            service.store(directory=directory).rebuild_directory()


# The store as a dict


def test_a_dict_names_the_store_by_a_fingerprint(service: Service, kv: CountingKVStore) -> None:
    """A dict is JSON and leads to a live store of the same key-value store, and to none of another."""
    client = service.client()
    store = BedrockSessionsChatStore(client=client, directory=kv)
    data = json.loads(json.dumps(store.to_dict()))
    assert data["directory"] == fingerprint(kv)
    assert BedrockSessionsChatStore.from_dict(data) is store
    another = BedrockSessionsChatStore(client=client, directory=SimpleKVStore())
    del data["instance"]
    assert BedrockSessionsChatStore.from_dict(data) is store
    assert BedrockSessionsChatStore.from_dict({**another.to_dict(), "instance": None}) is another
    with pytest.raises(ConfigurationError, match="key-value store"):
        BedrockSessionsChatStore.from_dict({**data, "directory": "SimpleKVStore 0123456789abcdef"})


def test_a_store_with_another_directory_is_never_taken(make: Make) -> None:
    """Only a live store whose entries are in the same place stands for a dumped one, and none is made without."""
    arguments: dict[str, Any] = {"region_name": "us-east-1", "namespace": uuid.uuid4().hex}
    plain = BedrockSessionsChatStore(**arguments)
    elsewhere = BedrockSessionsChatStore(directory=SimpleKVStore(), **arguments)
    data = {**plain.to_dict(), "instance": None, "directory": fingerprint(make())}
    with pytest.raises(ConfigurationError, match="Construct the same"):
        BedrockSessionsChatStore.from_dict(data)
    same = BedrockSessionsChatStore(directory=make(), **arguments)
    assert BedrockSessionsChatStore.from_dict(data) is same
    assert elsewhere is not same


def test_a_copy_keeps_the_directory(service: Service, kv: CountingKVStore) -> None:
    """A modified copy of a store finds conversations in the same place."""
    store = service.store(directory=kv)
    store.add_message(KEY, user("hello"))
    copy = store.model_copy(update={"on_delete": "clear"})
    assert copy.directory is kv
    assert texts(copy) == ["hello"]


def test_what_is_remembered_of_sessions_is_bounded(service: Service, kv: CountingKVStore) -> None:
    """A store used for very many conversations does not remember every session it ever met."""
    store = service.store(directory=kv)
    store.add_message(KEY, user("hello"))
    directory: Any = store._where
    info = directory.info(service.sessions()[0]["sessionId"])
    for number in range(CACHE_SIZE + 10):
        directory._learn({str(number): info})
    assert len(directory._learnt) <= CACHE_SIZE + 1
    assert texts(store) == ["hello"]


def test_what_a_fold_covers_is_not_looked_at_again(service: Service, kv: CountingKVStore) -> None:
    """The search for unopened sessions asks the service nothing about those that were read."""
    chat = service.store(directory=kv, settling_time=0).conversation(KEY)
    chat.add(users("one"))
    for _ in range(3):
        chat.renew(timedelta(0))
    cold = service.store(directory=kv, settling_time=0).conversation(KEY)
    assert len(cold.messages()) == 1
    with service.counting() as counted:
        assert cold._engine.reader.unopened_sessions(cold._engine.reader.known()) == []
    assert counted["total"] == 0
