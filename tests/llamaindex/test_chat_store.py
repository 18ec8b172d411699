"""`BedrockSessionsChatStore`: the contract, its arguments, its round trips, bad input, and asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import gc
import json
import multiprocessing
import os
import pickle
import threading
from typing import TYPE_CHECKING, Any

import botocore.session
import pytest
from botocore.config import Config
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.workflow import Context

from llama_index_bedrock_sessions import (
    AccessDeniedError,
    BedrockSessionsChatStore,
    BedrockSessionsError,
    ConfigurationError,
    CredentialsError,
    InvalidKeyError,
    InvalidMessageError,
    RequestRefusedError,
    StepTooLargeError,
)
from llama_index_bedrock_sessions.conformance import ChatStoreContract
from llama_index_bedrock_sessions.emulator import Emulator, Server
from tests.support.service import KEY, Service, run, texts, user, users

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from pathlib import Path

    from llama_index.core.storage.chat_store.base import BaseChatStore

ARN = "arn:aws:kms:us-east-1:123456789012:key/11111111-2222-3333-4444-555555555555"
make: Callable[..., BedrockSessionsChatStore] = BedrockSessionsChatStore
"""The constructor, to be given what no type checker would let pass."""
SECRETS = ("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI-secret", "FwoGZXIvYXdz-token")


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty environment but for what keeps boto3 from looking for this machine's own configuration."""
    for name in list(os.environ):
        if not name.startswith(("AWS_CONFIG", "AWS_SHARED", "AWS_EC2", "PYTEST", "PATH")):
            monkeypatch.delenv(name)


# The contract; in a file and in memory `test_conformance.py` runs it


class TestClient(ChatStoreContract):
    """A boto3 client that the application made."""

    @pytest.fixture
    def store(self) -> BaseChatStore:
        return Service().store()


class TestClear(ChatStoreContract):
    """`on_delete="clear"`: one step, the session stays."""

    @pytest.fixture
    def store(self) -> BaseChatStore:
        return BedrockSessionsChatStore.local(on_delete="clear")

    def test_deleted_key_is_not_listed(self, store: BaseChatStore) -> None:
        """A key that was cleared is still listed: its session is still there."""
        store.add_message("a", user("goes"))
        store.delete_messages("a")
        assert store.get_keys() == ["a"]

    def test_async_does_what_sync_does(self, store: BaseChatStore) -> None:
        """Each async method does what its sync twin does; `aget_keys` still lists what was cleared."""

        async def by_async() -> list[Any]:
            await store.aset_messages("k", users("zero", "one", "two"))
            await store.async_add_message("k", user("three"))
            deleted = [await store.adelete_message("k", 1), await store.adelete_last_message("k")]
            return [
                *deleted,
                await store.adelete_messages("k"),
                await store.aget_messages("k"),
                await store.aget_keys(),
            ]

        assert asyncio.run(by_async()) == [user("one"), user("three"), users("zero", "two"), [], ["k"]]


@pytest.mark.thorough
class TestServed(ChatStoreContract):
    """An endpoint over HTTP, as AWS is one: one server, and an emulator for each test."""

    @pytest.fixture(scope="class")
    def served(self) -> Iterator[tuple[list[Emulator], str]]:
        emulators: list[Emulator] = []
        with Server(lambda request: emulators[-1].exchange(request), 0, None) as server:  # noqa: PLW0108 - the last then
            yield emulators, server.url

    @pytest.fixture
    def store(self, served: tuple[list[Emulator], str]) -> BaseChatStore:
        emulators, url = served
        emulators.append(Emulator())
        return BedrockSessionsChatStore(
            endpoint_url=url, region_name="us-east-1", aws_access_key_id="AKIDSERVED", aws_secret_access_key="secret"
        )


# Arguments


def test_a_misspelt_argument_is_refused_with_the_right_name() -> None:
    """An unknown keyword is refused, and the message names the nearest one that exists."""
    with pytest.raises(ConfigurationError, match="region_name="):
        make(region="eu-central-1")
    with pytest.raises(ConfigurationError, match="namespace"):
        make(zzz=1)
    with pytest.raises(ConfigurationError, match="encryption_key_arn="):
        BedrockSessionsChatStore.local(encryption_key="alias/chat")


@pytest.mark.parametrize(
    "arguments",
    [
        {"aws_secret_access_key": ["hunter2"]},
        {"aws_session_token": {"token": "hunter2"}},
        {"aws_access_key_id": 471100, "aws_secret_access_key": "hunter2"},
        {"aws_secret": "hunter2"},
        {"region_name": 471100, "aws_secret_access_key": "hunter2"},
    ],
)
def test_a_bad_argument_never_shows_a_secret(arguments: dict[str, Any]) -> None:
    """What is wrong with an argument is said by its name, not by its value."""
    with pytest.raises(ConfigurationError) as refused:
        make(**arguments)
    shown = f"{refused.value!r}{refused.value.__cause__}{refused.value.__context__}"
    assert "hunter2" not in shown
    assert "471100" not in shown


@pytest.mark.parametrize(
    "arguments",
    [
        {"timeout": 0},
        {"timeout": "soon"},
        {"max_retries": -1},
        {"max_concurrency": 0},
        {"refresh_interval": -0.1},
        {"on_delete": "drop"},
        {"directory": "dynamodb"},
        {"namespace": ""},
        {"namespace": "x" * 5001},
        {"namespace": "\ud800"},
        {"scan_limit": 0},
        {"tags": {"team": 7}},
        {"tags": ["team"]},
        {"session_metadata": {1: "one"}},
        {"session_metadata": {"llama-index-key": "other"}},
        {"session_metadata": {"llama-index-namespace": "other"}},
        {"session_metadata": {"llama-index-format": "2"}},
        {"session_metadata": {str(number): "" for number in range(48)}},
    ],
)
def test_a_value_that_cannot_work_is_refused(arguments: dict[str, Any]) -> None:
    """A value outside what an argument takes is refused when the store is made, and the argument is named."""
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        make(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"database": "chats.db", "region_name": "us-east-1"},
        {"database": "chats.db", "profile_name": "work"},
        {"database": "chats.db", "endpoint_url": "http://127.0.0.1:1"},
        {"database": "chats.db", "aws_access_key_id": "AKID"},
        {"database": "chats.db", "client": object()},
        {"client": object(), "region_name": "us-east-1"},
        {"client": object(), "endpoint_url": "http://127.0.0.1:1"},
        {"client": object(), "aws_secret_access_key": "s"},
        {"client": object(), "botocore_config": Config()},
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any]) -> None:
    """Of two arguments that both say where the service is, neither is ignored: both together are refused."""
    with pytest.raises(ConfigurationError, match="leave"):
        make(**arguments)


@pytest.mark.usefixtures("no_aws")
def test_constructing_makes_no_call() -> None:
    """A store is made without a region, without credentials and without asking the client anything."""
    BedrockSessionsChatStore()
    BedrockSessionsChatStore(region_name="us-west-2").conversation(KEY)
    BedrockSessionsChatStore(profile_name="nowhere")
    BedrockSessionsChatStore(client=object()).conversation(KEY)


def test_a_path_is_made_absolute_and_its_file_only_by_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`local("chats.db")` means the file seen from here, also after the process has gone elsewhere."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = BedrockSessionsChatStore.local("chats.db")
    assert list(tmp_path.glob("*.db")) == []
    monkeypatch.chdir(tmp_path / "elsewhere")
    store.add_message(KEY, user("hello"))
    assert (tmp_path / "chats.db").exists()
    assert texts(BedrockSessionsChatStore.local(tmp_path / "chats.db")) == ["hello"]


def test_erase_deletes_the_sessions(service: Service) -> None:
    """By default `delete_messages` deletes every session of the key from the service, those of earlier visits too."""
    store = service.store()
    for text in ("one", "two", "three"):
        store.add_message(KEY, user(text))
        service.clock.advance(3700)
    store.add_message("other", user("stays"))
    assert store.delete_messages(KEY) == users("one", "two", "three")
    assert [s["sessionMetadata"]["llama-index-key"] for s in service.sessions()] == ["other"]
    assert texts(service.store()) == []


def test_clear_keeps_the_session(service: Service) -> None:
    """With on_delete="clear" `delete_messages` writes one step; an auditor still finds what was said."""
    store = service.store(on_delete="clear")
    store.add_message(KEY, user("one"))
    (session,) = service.sessions()
    assert store.delete_messages(KEY) == users("one")
    assert [s["sessionId"] for s in service.sessions()] == [session["sessionId"]]
    assert len(service.steps(session["sessionId"])) == 2
    assert texts(service.store()) == []


def test_what_a_session_gets_may_depend_on_the_key(service: Service) -> None:
    """Tags, metadata and the KMS key are values or functions of the key."""
    store = service.store(
        tags=lambda key: {"Tenant": key},
        session_metadata=lambda key: {"for": key},
        encryption_key_arn=lambda key: ARN if key == "a" else None,
    )
    store.add_message("a", user("hello"))
    store.add_message("b", user("hello"))
    a, b = service.sessions()
    assert (a["sessionMetadata"]["for"], b["sessionMetadata"]["for"]) == ("a", "b")
    assert (a["encryptionKeyArn"], b.get("encryptionKeyArn")) == (ARN, None)
    for session, key in ((a, "a"), (b, "b")):
        assert service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"] == {"Tenant": key}


@pytest.mark.parametrize("more", [{"region_name": "us-east-1"}, {"database": ":memory:"}], ids=["aws", "embedded"])
def test_timeouts_retries_and_connections_reach_botocore(more: dict[str, Any]) -> None:
    """The client waits, repeats and keeps connections as the store was told, and says which framework calls."""
    store = make(timeout=7, max_retries=2, max_concurrency=5, **more)
    config: Any = store._sessions.client().meta.config
    assert (config.connect_timeout, config.read_timeout, config.max_pool_connections) == (7, 7, 5)
    assert config.retries == {"total_max_attempts": 3, "mode": "standard"}
    assert "x-client-framework:llama_index" in config.user_agent_extra


def test_a_botocore_config_counts_more_than_ours() -> None:
    """What `botocore_config` says replaces what the store would say; the rest stays."""
    store = BedrockSessionsChatStore(region_name="us-east-1", botocore_config=Config(read_timeout=99))
    config: Any = store._sessions.client().meta.config
    assert (config.read_timeout, config.connect_timeout) == (99, 10)


def test_credentials_and_sessions_reach_boto3() -> None:
    """Keys given to the store sign its requests, and a botocore session is used as it is."""
    key, secret, token = SECRETS
    store = BedrockSessionsChatStore(
        region_name="us-west-2", aws_access_key_id=key, aws_secret_access_key=secret, aws_session_token=token
    )
    client: Any = store._sessions.client()
    found = client._request_signer._credentials.get_frozen_credentials()
    assert (found.access_key, found.secret_key, found.token) == SECRETS
    assert client.meta.region_name == "us-west-2"
    session = botocore.session.Session()
    session.set_config_variable("region", "eu-central-1")
    assert BedrockSessionsChatStore(botocore_session=session)._sessions.client().meta.region_name == "eu-central-1"


def test_up_to_200_tags_are_taken(service: Service) -> None:
    """A session takes 200 tags: the limit of metadata entries is not that of tags."""
    service.store(tags={f"tag{number}": "" for number in range(200)}).add_message(KEY, user("hello"))
    (session,) = service.sessions()
    assert len(service.boto3.list_tags_for_resource(resourceArn=session["sessionArn"])["tags"]) == 200


def test_functions_of_the_key_are_checked_like_values(service: Service) -> None:
    """A function that returns a name of ours, or what is no mapping of strings, is refused before any call."""
    for returned in ({"llama-index-key": "other"}, {"a": 1}, None):
        store = service.store(session_metadata=lambda _key, returned=returned: returned)
        with service.counting() as calls, pytest.raises(ConfigurationError):
            store.add_message(KEY, user("hello"))
        assert calls["total"] == 0


def test_arguments_cannot_be_changed_afterwards(service: Service) -> None:
    """Assigning to an argument raises: half a store in another namespace would lose what it writes."""
    store = service.store()
    with pytest.raises((ConfigurationError, ValueError)):
        store.namespace = "elsewhere"
    assert store.namespace == "default"


def test_a_modified_copy_leaves_the_original_alone(service: Service) -> None:
    """`model_copy(update=...)` never changes the store it was called on."""
    store = service.store()
    with contextlib.suppress(ConfigurationError, ValueError):
        store.model_copy(update={"namespace": "elsewhere"})
    assert store.namespace == "default"


# Round trips


def memory_of(store: BaseChatStore, key: str = KEY) -> ChatMemoryBuffer:
    return ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key=key, token_limit=10_000)


def dumped(store: BaseChatStore) -> dict[str, Any]:
    """Give what is left of a memory on a store in a JSON document."""
    loaded: dict[str, Any] = json.loads(json.dumps(memory_of(store).to_dict()))
    return loaded


def test_a_memory_finds_the_very_store(service: Service) -> None:
    """Loaded where it was dumped, a memory has the same store again."""
    store = service.store(session_metadata=lambda key: {"for": key})
    assert ChatMemoryBuffer.from_dict(dumped(store)).chat_store is store


def test_a_memory_finds_a_store_of_the_same_place(tmp_path: Path) -> None:
    """If the store is gone, one that was made alike since is taken; one that would write otherwise is not."""
    path = tmp_path / "chats.db"
    data = dumped(BedrockSessionsChatStore.local(path, tags=lambda key: {"for": key}))
    gc.collect()
    untagged = BedrockSessionsChatStore.local(path)
    with pytest.raises(ConfigurationError, match="Construct"):
        ChatMemoryBuffer.from_dict(dict(data))
    store = BedrockSessionsChatStore.local(path, tags=lambda key: {"for": key})
    assert ChatMemoryBuffer.from_dict(data).chat_store is store is not untagged


AWS: dict[str, Any] = {
    "region_name": "eu-central-1",
    "profile_name": "work",
    "endpoint_url": "https://bedrock.example",
    "namespace": "shop",
    "tags": {"Team": "pay"},
    "session_metadata": {"severity": "high"},
    "encryption_key_arn": ARN,
    "refresh_interval": 2.5,
    "max_retries": 1,
    "max_concurrency": 3,
    "scan_limit": 9,
}

ELSEWHERE = """
import json, pickle, sys
import llama_index_bedrock_sessions
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
on_file, on_aws, pickled, pickled_in_memory = json.loads(sys.argv[1])
memory = ChatMemoryBuffer.from_dict(on_file)
print([message.content for message in memory.get_all()])
memory.put(ChatMessage("two"))
print(memory.chat_store.namespace, memory.chat_store.on_delete, memory.chat_store.timeout)
print(json.dumps(ChatMemoryBuffer.from_dict(on_aws).chat_store.to_dict()))
print(pickle.loads(bytes.fromhex(pickled)) is memory.chat_store)
try:
    pickle.loads(bytes.fromhex(pickled_in_memory))
except llama_index_bedrock_sessions.ConfigurationError as error:
    print(error)
"""


def test_stores_go_on_in_another_process(tmp_path: Path) -> None:
    """A memory or a pickle is rebuilt in another operating-system process with all its arguments, or refused there."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db", namespace="shop", on_delete="clear", timeout=3)
    store.add_message(KEY, user("one"))
    in_memory = BedrockSessionsChatStore.local()
    pickles = [pickle.dumps(store).hex(), pickle.dumps(in_memory).hex()]
    given = [dumped(store), dumped(make(**AWS)), *pickles]
    read, arguments, on_aws, same, refused = run(ELSEWHERE, json.dumps(given)).splitlines()
    assert (read, arguments, same) == ("['one']", "shop clear 3.0", "True")
    assert AWS.items() <= json.loads(on_aws).items()
    assert "Construct" in refused
    assert texts(store) == ["one", "two"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"client": "given"},
        {"aws_access_key_id": SECRETS[0], "aws_secret_access_key": SECRETS[1], "region_name": "us-east-1"},
        {"botocore_session": "given", "region_name": "us-east-1"},
        {"database": ":memory:"},
        {"region_name": "us-east-1", "tags": lambda key: {"for": key}},
        {"region_name": "us-east-1", "encryption_key_arn": lambda key: key},
        {"region_name": "us-east-1", "botocore_config": Config(proxies={"https": "http://proxy.example:3128"})},
    ],
    ids=["client", "keys", "botocore session", "memory", "tags", "kms", "botocore config"],
)
def test_what_cannot_be_rebuilt_is_refused(arguments: dict[str, Any]) -> None:
    """Where a dict cannot hold what a store was made with, and the store is gone, the error says what to construct."""
    data = dumped(make(**arguments))
    gc.collect()
    with pytest.raises(ConfigurationError, match="Construct") as refused:
        ChatMemoryBuffer.from_dict(data)
    assert str(arguments.get("region_name", "")) in str(refused.value)


@pytest.mark.parametrize("other", [{"namespace": "other"}, {"region_name": "eu-west-1"}, {"profile_name": "other"}])
def test_a_store_that_looks_elsewhere_is_never_taken(other: dict[str, Any]) -> None:
    """A live store of another namespace, region or profile is not mistaken for the one that was dumped."""
    given: dict[str, Any] = {"region_name": "us-east-1", "namespace": "shop", "tags": lambda key: {"for": key}}
    data = dumped(make(**given))
    gc.collect()
    elsewhere = make(**{**given, **other})
    with pytest.raises(ConfigurationError):
        ChatMemoryBuffer.from_dict(data)
    assert elsewhere.to_dict() != data


def test_a_store_of_another_account_is_never_taken() -> None:
    """A live store with another access key may be another account: it is not taken."""
    place: dict[str, Any] = {"region_name": "us-east-1", "aws_secret_access_key": "s"}
    data = dumped(make(aws_access_key_id="AKIDONE", **place))
    gc.collect()
    others = [
        make(aws_access_key_id="AKIDTWO", **place),
        BedrockSessionsChatStore(region_name="us-east-1"),
    ]
    with pytest.raises(ConfigurationError):
        ChatMemoryBuffer.from_dict(data)
    assert len(others) == 2


def test_a_client_of_another_region_is_never_taken() -> None:
    """Of stores on clients, only one whose client goes to the same endpoint can stand for the one that was dumped."""
    here, there = Emulator(region_name="us-east-1"), Emulator(region_name="eu-west-1")
    data = dumped(BedrockSessionsChatStore(client=here.client(), namespace="of this test alone"))
    gc.collect()
    elsewhere = BedrockSessionsChatStore(client=there.client(), namespace="of this test alone")
    with pytest.raises(ConfigurationError):
        ChatMemoryBuffer.from_dict(data)
    assert elsewhere.region_name is None


def test_the_region_of_the_environment_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that took its region from the environment is not rebuilt in the region of another environment."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    data = dumped(BedrockSessionsChatStore())
    gc.collect()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    try:
        store: Any = ChatMemoryBuffer.from_dict(data).chat_store
    except ConfigurationError:
        return
    assert store._sessions.client().meta.region_name == "us-west-2"


def test_copies_are_the_store_itself(service: Service) -> None:
    """Copying, deeply or not, gives the store: `ctx.store.edit_state()` copies what it holds."""
    store = service.store()
    assert copy.copy(store) is store
    assert copy.deepcopy({"memory": [store]})["memory"][0] is store


def test_a_copied_or_pickled_conversation_is_the_same(tmp_path: Path) -> None:
    """It stands for what is in the service, as its store does; one that was attached is found by its session id."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")
    chat = store.conversation("a")
    assert copy.copy(chat) is copy.deepcopy([chat])[0] is pickle.loads(pickle.dumps(chat)) is chat
    attached = store.attach(store._sessions.client().create_session()["sessionId"])
    assert copy.deepcopy(attached) is attached
    with pytest.raises(TypeError, match="attach"):
        pickle.dumps(attached)


def test_a_pickled_store_is_the_same_store(tmp_path: Path) -> None:
    """A store loaded from its pickle where it lives is the store."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")
    assert pickle.loads(pickle.dumps(store)) is store


def test_a_dict_says_what_the_model_dump_says(service: Service) -> None:
    """`to_dict`, `model_dump` and JSON agree, so that it does not matter which of them LlamaIndex calls."""
    store = service.store(tags={"a": "b"})
    data = store.to_dict()
    assert data == store.model_dump() == json.loads(store.model_dump_json()) == json.loads(json.dumps(data))
    assert data["class_name"] == "BedrockSessionsChatStore"
    assert BedrockSessionsChatStore.from_dict(data) is store


def test_secrets_are_nowhere() -> None:
    """Credentials are not in a store's dict, JSON, repr, text or pickle, nor in the errors it raises."""
    store = BedrockSessionsChatStore(
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:1",
        aws_access_key_id=SECRETS[0],
        aws_secret_access_key=SECRETS[1],
        aws_session_token=SECRETS[2],
        botocore_config=Config(proxies={"https": "http://user:proxy-password@proxy.example"}),
        max_retries=0,
        timeout=1,
    )
    memory = memory_of(store)
    shown = [
        *(repr(store), str(store), json.dumps(store.to_dict()), store.model_dump_json(), store.to_json()),
        *(repr(memory), str(memory), json.dumps(memory.to_dict()), repr(pickle.dumps(store)), repr(vars(memory))),
        repr(store.conversation(KEY)),
    ]
    with pytest.raises(BedrockSessionsError) as failed:
        store.get_messages(KEY)
    shown.append(f"{failed.value!r} {failed.value}")
    for secret in (*SECRETS, "proxy-password"):
        assert [text for text in shown if secret in text] == []


def look(subject: str) -> str:
    """Look at something."""
    return f"{subject}: 42"


def scripted(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
    """Call the tool for what a user says, and answer once there is a result."""
    if messages[-1].role == MessageRole.USER:
        call = ToolCallBlock(tool_call_id=f"c{len(messages)}", tool_name="look", tool_kwargs={"subject": "logs"})
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[call])
    return ChatMessage(role=MessageRole.ASSISTANT, content=f"I know {len(messages)} messages.")


def agent() -> FunctionAgent:
    return FunctionAgent(llm=MockFunctionCallingLLM(response_generator=scripted, is_chat_model=True), tools=[look])


def test_one_context_serves_several_runs(tmp_path: Path) -> None:
    """Three runs of an agent on one `Context` leave 4, 8 and 12 messages, each run knowing those before."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")

    async def runs() -> list[tuple[int, str | None]]:
        worker = agent()
        ctx = Context(worker)
        counts = []
        for number in range(3):
            memory: dict[str, Any] = {"memory": memory_of(store)} if number == 0 else {}
            output: Any = await worker.run(f"question {number}", ctx=ctx, **memory)
            counts.append((len(await store.aget_messages(KEY)), output.response.content))
        return counts

    assert asyncio.run(runs()) == [(4, "I know 3 messages."), (8, "I know 7 messages."), (12, "I know 11 messages.")]


def test_a_context_goes_on_after_json(tmp_path: Path) -> None:
    """A `Context` saved as JSON and loaded again goes on with the conversation its memory had."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")

    async def runs() -> None:
        ctx = Context(worker := agent())
        await worker.run("first", ctx=ctx, memory=memory_of(store))
        saved = json.loads(json.dumps(ctx.to_dict()))
        again = Context.from_dict(other := agent(), saved)
        await other.run("second", ctx=again)

    asyncio.run(runs())
    said = [message.content for message in store.get_messages(KEY) if message.role == MessageRole.USER]
    assert (len(store.get_messages(KEY)), said) == (8, ["first", "second"])


# Bad input

VERBS: dict[str, Callable[[BaseChatStore, Any], Any]] = {
    "set_messages": lambda store, key: store.set_messages(key, users("x")),
    "get_messages": lambda store, key: store.get_messages(key),
    "add_message": lambda store, key: store.add_message(key, user("x")),
    "delete_messages": lambda store, key: store.delete_messages(key),
    "delete_message": lambda store, key: store.delete_message(key, 0),
    "delete_last_message": lambda store, key: store.delete_last_message(key),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    "key", [None, 5, b"user", ["user"], "", "k" * 5001, "\ud800"], ids=lambda key: type(key).__name__ + str(key)[:9]
)
def test_a_bad_key_is_refused(verb: str, key: Any) -> None:
    """Whatever is asked for a key that cannot be one raises `InvalidKeyError` before any call."""
    service = Service()
    with service.counting() as calls, pytest.raises(InvalidKeyError):
        VERBS[verb](service.store(), key)
    assert calls["total"] == 0


def test_the_longest_keys_are_taken(service: Service) -> None:
    """A key of 5,000 characters works, whatever the characters."""
    for key in ("k" * 5000, "会" * 5000, "🙂" * 5000):
        service.store().add_message(key, user("hello"))
        assert texts(service.store(), key) == ["hello"]


@pytest.mark.parametrize("bad", ["text", {"role": "user", "content": "x"}, None, 7], ids=repr)
def test_what_is_no_message_is_refused(service: Service, bad: Any) -> None:
    """What is not a `ChatMessage` raises `InvalidMessageError`, also inside a list, and nothing is stored."""
    store = service.store()
    store.set_messages(KEY, users("one", "two"))
    before = service.everything()
    attempts: list[Callable[[], Any]] = [
        lambda: store.add_message(KEY, bad),
        lambda: store.set_messages(KEY, [user("a"), bad, user("b")]),
        lambda: store.conversation(KEY).add([user("a"), bad, user("b")]),
        lambda: asyncio.run(store.async_add_message(KEY, bad)),
    ]
    for attempt in attempts:
        with pytest.raises(InvalidMessageError):
            attempt()
    assert service.everything() == before
    assert texts(store) == ["one", "two"]


def test_a_generator_is_no_empty_list(service: Service) -> None:
    """An iterator of messages is stored whole or refused: it never empties a conversation."""
    store = service.store()
    store.set_messages(KEY, users("one"))
    given: Any = (message for message in users("one", "two"))
    try:
        store.set_messages(KEY, given)
    except InvalidMessageError:
        assert texts(store) == ["one"]
    else:
        assert texts(store) == ["one", "two"]


def test_no_list_of_messages_is_refused(service: Service) -> None:
    """None instead of a list raises an error of ours, and leaves what is stored."""
    store = service.store()
    store.set_messages(KEY, users("one"))
    nothing: Any = None
    with pytest.raises(InvalidMessageError):
        store.set_messages(KEY, nothing)
    assert texts(store) == ["one"]


@pytest.mark.parametrize("verb", ["add", "set"])
@pytest.mark.parametrize("kind", ["text", "document"])
def test_more_than_a_step_holds_is_refused(service: Service, kind: str, verb: str) -> None:
    """A block of more than 50 MB raises `StepTooLargeError` before any call, and what is stored stays."""
    block = TextBlock(text="x" * 50_000_001) if kind == "text" else DocumentBlock(data=b"\xff" * 38_000_000)
    huge = ChatMessage(role=MessageRole.USER, blocks=[block])
    store = service.store()
    store.add_message(KEY, user("one"))
    with service.counting() as calls, pytest.raises(StepTooLargeError, match="50 MB"):
        getattr(store.conversation(KEY), verb)([user("before"), huge])
    assert calls["total"] == calls["ListInvocationSteps"]
    assert texts(store) == texts(service.store()) == ["one"]


@pytest.mark.usefixtures("no_aws")
@pytest.mark.parametrize("verb", VERBS)
def test_without_a_region_the_error_says_so(verb: str) -> None:
    """The first operation without a region raises `ConfigurationError` that names the argument and the alternative."""
    with pytest.raises(ConfigurationError, match=r"region_name=.*local"):
        VERBS[verb](BedrockSessionsChatStore(), KEY)


@pytest.mark.usefixtures("no_aws")
@pytest.mark.parametrize("verb", VERBS)
def test_without_credentials_the_error_says_so(verb: str) -> None:
    """The first operation without credentials raises `CredentialsError`, and names the way without an account."""
    with pytest.raises(CredentialsError, match="local"):
        VERBS[verb](BedrockSessionsChatStore(region_name="us-east-1"), KEY)


@pytest.mark.usefixtures("no_aws")
def test_incomplete_arguments_are_explained() -> None:
    """A profile that does not exist, an impossible endpoint or region are errors of our tree."""
    for arguments in (
        {"profile_name": "nowhere"},
        {"endpoint_url": "no url", "region_name": "us-east-1"},
        {"region_name": "not a region!"},
    ):
        with pytest.raises((ConfigurationError, CredentialsError)):
            make(**arguments).get_messages(KEY)


def test_half_a_pair_of_keys_is_refused() -> None:
    """An access key without its secret is refused when the store is made: botocore would sign with None."""
    for half in ({"aws_access_key_id": "AKID"}, {"aws_secret_access_key": "s"}, {"aws_session_token": "t"}):
        with pytest.raises(ConfigurationError):
            make(region_name="us-east-1", **half)


@pytest.mark.parametrize(
    "operation",
    ["ListSessions", "CreateSession", "GetSession", "CreateInvocation", "PutInvocationStep"],
)
def test_denied_access_is_named_and_harms_nothing(service: Service, operation: str) -> None:
    """Where IAM refuses an operation the error names it, and all is well once it is allowed."""
    service.store().add_message("other", user("stays"))
    store = service.store()
    service.faults.add(operation, 1, "access_denied", times=None)
    with pytest.raises(AccessDeniedError, match=rf"bedrock:{operation}") as denied:
        store.add_message(KEY, user("one"))
    assert not denied.value.may_have_happened
    service.faults.clear()
    store.add_message(KEY, user("two"))
    assert texts(store) == texts(service.store()) == ["two"]
    assert texts(service.store(), "other") == ["stays"]


@pytest.mark.parametrize("content", [b"not a database", b"SQLite format 3\0 but broken" * 99, b"\0" * 5000])
def test_a_file_that_is_no_database_is_left_untouched(tmp_path: Path, content: bytes) -> None:
    """A file that is something else raises `ConfigurationError`, and is afterwards what it was, byte for byte."""
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    store = BedrockSessionsChatStore.local(path)
    for verb in VERBS.values():
        with pytest.raises(ConfigurationError, match=r"letter\.txt"):
            verb(store, KEY)
    assert path.read_bytes() == content
    assert [entry.name for entry in tmp_path.iterdir()] == ["letter.txt"]


def test_a_path_that_cannot_be_a_file_is_refused(tmp_path: Path) -> None:
    """A directory, or a path in a directory that does not exist, raises `ConfigurationError`."""
    for path in (tmp_path, tmp_path / "missing" / "chats.db"):
        with pytest.raises(ConfigurationError):
            BedrockSessionsChatStore.local(path).add_message(KEY, user("x"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"session_metadata": {"note": "x" * 5001}},
        {"session_metadata": {"n" * 101: "x"}},
        {"tags": {"bad!": "x"}},
        {"tags": {"team": "a,b"}},
        {"tags": {"t" * 129: "x"}},
        {"encryption_key_arn": "alias/chat"},
    ],
    ids=["long value", "long name", "tag name", "tag value", "long tag", "alias"],
)
def test_what_the_service_refuses_is_an_error_of_ours(service: Service, arguments: dict[str, Any]) -> None:
    """Metadata, tags and keys that the service refuses raise our error with its words; nothing is left behind."""
    with pytest.raises((RequestRefusedError, ConfigurationError)):
        service.store(**arguments).add_message(KEY, user("one"))
    with pytest.raises((RequestRefusedError, ConfigurationError)):
        service.store().conversation(KEY, **arguments).add([user("one")])
    assert service.sessions() == []
    service.store().add_message(KEY, user("two"))
    assert texts(service.store()) == ["two"]


@pytest.mark.parametrize(
    "given",
    [
        {"session_metadata": {"llama-index-key": "x"}},
        {"session_metadata": {str(n): "" for n in range(48)}},
        {"session_metadata": {"n": 1}},
        {"tags": {"n": None}},
    ],
    ids=["reserved", "too many", "number", "none"],
)
def test_a_conversation_refuses_what_a_session_cannot_have(service: Service, given: dict[str, Any]) -> None:
    """What is given for one conversation is checked at once, without a call."""
    with service.counting() as calls, pytest.raises(ConfigurationError):
        service.store().conversation(KEY, **given)
    assert calls["total"] == 0


# Asyncio, threads, processes


def wait_for(event: threading.Event) -> Callable[..., None]:
    """Make a botocore handler that holds every request until the event is set."""

    def hold(**_: Any) -> None:
        assert event.wait(60), "the event loop was blocked: it never set the event"

    return hold


ASYNC: dict[str, Callable[[BedrockSessionsChatStore], Awaitable[Any]]] = {
    "aset_messages": lambda store: store.aset_messages(KEY, users("x")),
    "aget_messages": lambda store: store.aget_messages(KEY),
    "async_add_message": lambda store: store.async_add_message(KEY, user("x")),
    "adelete_messages": lambda store: store.adelete_messages(KEY),
    "adelete_message": lambda store: store.adelete_message(KEY, 0),
    "adelete_last_message": lambda store: store.adelete_last_message(KEY),
    "aget_keys": lambda store: store.aget_keys(),
    "amessages": lambda store: store.conversation(KEY).amessages(),
    "ahistory": lambda store: store.conversation(KEY).ahistory(),
    "adescribe": lambda store: store.conversation(KEY).adescribe(),
}


@pytest.mark.parametrize("method", ASYNC)
def test_async_methods_leave_the_loop_free(service: Service, method: str) -> None:
    """While an async method waits for the service, the event loop runs: here it is the loop that lets it go on."""
    store = service.store()
    store.set_messages(KEY, users("one", "two"))
    released = threading.Event()
    store.client.meta.events.register_first("before-send.bedrock-agent-runtime", wait_for(released))

    async def call() -> None:
        task = asyncio.ensure_future(ASYNC[method](store))
        asyncio.get_running_loop().call_soon(released.set)
        await task

    asyncio.run(call())


def test_fifty_coroutines_lose_nothing(service: Service) -> None:
    """Fifty messages added at once to one key are all there, once each, for every reader."""
    store = service.store()

    async def add() -> None:
        await asyncio.gather(*(store.async_add_message(KEY, user(f"{number}")) for number in range(50)))

    asyncio.run(add())
    assert sorted(texts(store), key=str) == sorted((f"{number}" for number in range(50)), key=str)
    assert texts(service.store()) == texts(store)


def test_fifty_coroutines_on_fifty_new_keys(service: Service) -> None:
    """Fifty conversations begun at once from one loop each have their one message and one session."""
    store = service.store()

    async def add() -> None:
        await asyncio.gather(*(store.async_add_message(f"k{number}", user(f"{number}")) for number in range(50)))

    asyncio.run(add())
    fresh = service.store()
    assert [texts(fresh, f"k{number}") for number in range(50)] == [[f"{number}"] for number in range(50)]
    assert len(service.sessions()) == 50


def test_threads_share_one_conversation(service: Service) -> None:
    """Eight threads on one key lose and repeat nothing, and each thread's messages keep their order."""
    store = service.store()

    def add(name: int) -> None:
        for number in range(10):
            store.add_message(KEY, user(f"{name}-{number}"))

    threads = [threading.Thread(target=add, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [str(text) for text in texts(service.store())]
    for name in range(8):
        mine = [text for text in found if text.startswith(f"{name}-")]
        assert mine == [f"{name}-{number}" for number in range(10)]
    assert len(found) == 80


def test_context_variables_reach_the_pool(service: Service) -> None:
    """What runs in the pool runs in the caller's context: traces and request ids stay with their task."""
    request = contextvars.ContextVar("request", default="none")
    seen: set[str] = set()
    writer = service.store()
    for number in range(40):
        writer.add_message(KEY, user(f"{number}"))
    store = service.store()

    def see(**_: Any) -> None:
        seen.add(request.get())

    store.client.meta.events.register_first("before-send.bedrock-agent-runtime", see)

    async def call() -> None:
        request.set("r-1")
        await store.aget_messages(KEY)

    asyncio.run(call())
    assert seen == {"r-1"}


def test_a_forked_child_goes_on(tmp_path: Path) -> None:
    """A process forked after the store was used can use it, and so can its parent afterwards."""
    store = BedrockSessionsChatStore.local(tmp_path / "chats.db")
    store.add_message(KEY, user("parent"))
    asyncio.run(store.aget_messages(KEY))  # the pool has threads now, which the child will not have

    def child() -> None:
        store.add_message(KEY, user("child"))
        asyncio.run(store.async_add_message(KEY, user("child again")))
        assert texts(store) == ["parent", "child", "child again"]

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    store.add_message(KEY, user("parent again"))
    assert texts(store) == ["parent", "child", "child again", "parent again"]


def test_a_list_is_read_without_dateutil(monkeypatch: pytest.MonkeyPatch) -> None:
    def dateutil(text: Any) -> Any:
        raise AssertionError(f"{text!r} was read by dateutil")

    monkeypatch.setattr("llama_index_bedrock_sessions._bedrock.connection.parse_timestamp", dateutil)
    monkeypatch.setattr("botocore.parsers.DEFAULT_TIMESTAMP_PARSER", dateutil)
    with Emulator() as emulator, emulator.serve() as server:
        store = BedrockSessionsChatStore(
            endpoint_url=server.url,
            region_name="us-east-1",
            aws_access_key_id="AKIDSERVED",
            aws_secret_access_key="secret",
        )
        store.add_message(KEY, user("a"))
        assert texts(store) == ["a"]
