"""The stores that are compared, each in the conversation of the same agent."""

# The peers come with an extra of their own:
# pyright: reportMissingImports=false

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock, ToolCallBlock
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer, Memory
from llama_index.core.storage.chat_store.base import BaseChatStore

from tests.benchmarks.byhand import ByHand
from tests.support.service import english, png

KEYS: dict[str, Any] = {"aws_access_key_id": "AKIDBENCHMARK", "aws_secret_access_key": "benchmark"}
REGION = "us-east-1"
EVERYTHING = 10**9  # tokens: no memory leaves messages out
FORECAST, HEADLINES, ANSWER = english(3)
WITH_PICTURE = 10  # every how many messages a user shows a picture


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def client(service: str, port: int) -> Any:
    """Return a boto3 client that tries a call once: nothing here is repeated."""
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client(service, REGION, endpoint_url=url(port), config=config, **KEYS)


def why(error: BaseException) -> str:
    """Say in a line what was raised; the innermost of an agent's wrapped errors."""
    after = f" {error}" if str(error).startswith("after ") else ""
    while error.__cause__ is not None:
        error = error.__cause__
    kind, text = type(error).__name__, " ".join(str(error).split("\n")[:2])
    if isinstance(error, ClientError):
        kind, text = error.response["Error"]["Code"], error.response["Error"]["Message"]
    return (f"{kind}: {text}" if text else kind) + after


class Said(NamedTuple):
    """What must come back of a message, whatever a store's own classes are."""

    role: str
    text: str
    calls: tuple[tuple[str, str], ...] = ()
    pictures: tuple[bytes, ...] = ()


def said(message: ChatMessage) -> Said:
    """Return what a message says."""
    calls = [
        (block.tool_name, json.dumps(block.tool_kwargs)) for block in message.blocks if isinstance(block, ToolCallBlock)
    ]
    pictures = [block.resolve_image().read() for block in message.blocks if isinstance(block, ImageBlock)]
    return Said(message.role.value, message.content or "", tuple(calls), tuple(pictures))


def asks(text: str, picture: bool = False) -> ChatMessage:
    """Return a user's message; its picture is 32 KB of noise."""
    blocks: list[Any] = [TextBlock(text=text)]
    if picture:
        blocks.append(ImageBlock(image=png(104, 104, seed=len(text)), image_mimetype="image/png"))
    return ChatMessage(role=MessageRole.USER, blocks=blocks)


def chat(length: int, pictures: bool) -> list[ChatMessage]:
    """Return a conversation of a user and an assistant in turns, of 1 KB each."""
    return [
        ChatMessage(role=MessageRole.ASSISTANT, content=text)
        if number % 2
        else asks(text, pictures and number % WITH_PICTURE == 0)
        for number, text in enumerate(english(length))
    ]


def weather(city: str) -> str:
    """Tell the weather."""
    return FORECAST


def news(city: str) -> str:
    """Tell the news."""
    return HEADLINES


def turn_of(question: ChatMessage) -> list[ChatMessage]:
    """Return what a turn leaves: the question, two tools' calls and results, the answer."""

    def call(tool: str) -> ChatMessage:
        block = ToolCallBlock(tool_call_id=f"call-{tool}", tool_name=tool, tool_kwargs={"city": "Oslo"})
        return ChatMessage(role=MessageRole.ASSISTANT, blocks=[TextBlock(text="I look it up."), block])

    def result(tool: str, text: str) -> ChatMessage:
        more = {"tool_call_id": f"call-{tool}"}
        return ChatMessage(role=MessageRole.TOOL, content=text, additional_kwargs=more)

    answer = ChatMessage(role=MessageRole.ASSISTANT, content=ANSWER)
    return [question, call("weather"), result("weather", FORECAST), call("news"), result("news", HEADLINES), answer]


class Peer(ABC):
    """One conversation in a store. Constructing it makes the objects that a new process makes; it is told where."""

    longest = 10_000

    def __init__(self, port: int, name: str) -> None:
        self.port, self.name = port, name
        self.loop = asyncio.new_event_loop()

    @classmethod
    def begin(cls, port: int) -> str:
        """Set up what a conversation needs to exist; return its name."""
        return uuid.uuid4().hex

    @abstractmethod
    def fill(self, messages: Sequence[ChatMessage]) -> None:
        """Store a conversation as so many turns would have."""

    @abstractmethod
    def turn(self, question: ChatMessage) -> None:
        """Let the agent take a turn."""

    @abstractmethod
    def add(self, text: str) -> None:
        """Store one message of a user."""

    @abstractmethod
    def read(self) -> list[Said]:
        """Return all that is stored."""

    def note(self) -> str:
        """Say what else there is to know of it; tried, in an empty conversation."""
        return ""

    def forget(self) -> None:
        """Leave nothing that would cost a later conversation something."""
        return


class OfLlamaIndex(Peer):
    """A memory of LlamaIndex, with LlamaIndex's FunctionAgent."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(port, name)
        self.memory = self.open()
        script = itertools.cycle(turn_of(asks(""))[1::2])
        model = MockFunctionCallingLLM(
            response_generator=lambda *_, **__: next(script).model_copy(deep=True), is_chat_model=True
        )
        self.agent = FunctionAgent(llm=model, tools=[weather, news])

    @abstractmethod
    def open(self) -> BaseMemory:
        """Return a memory of the conversation."""

    def turn(self, question: ChatMessage) -> None:
        async def take() -> None:
            await self.agent.run(question, memory=self.memory)

        self.loop.run_until_complete(take())

    def add(self, text: str) -> None:
        self.loop.run_until_complete(self.memory.aput(asks(text)))

    def read(self) -> list[Said]:
        return [said(message) for message in self.memory.get_all()]


class Ours(OfLlamaIndex):
    """BedrockSessionsMemory, on the emulator, the only conversation there: finding it among others is not measured."""

    def open(self) -> BaseMemory:
        from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory

        store = BedrockSessionsChatStore(region_name=REGION, endpoint_url=url(self.port), **KEYS)
        return BedrockSessionsMemory.from_defaults(
            session_id=self.name, chat_store=store, token_limit=EVERYTHING, tokenizer_fn=list
        )

    def fill(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            self._conversation().add([message])

    def forget(self) -> None:
        self._conversation().delete()

    def _conversation(self) -> Any:
        memory: Any = self.memory
        return memory.conversation


class Manual(Peer):
    """One step a message, everything listed and got, on the emulator: the agent is a loop by hand.

    Where a conversation is, the program knows without asking anybody.
    """

    longest = 1000
    places: ClassVar[dict[str, list[list[str]]]] = {}

    def __init__(self, port: int, name: str) -> None:
        super().__init__(port, name)
        self.hand = ByHand(client("bedrock-agent-runtime", port), self.places.setdefault(name, []))

    def fill(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            self._put(message)

    def turn(self, question: ChatMessage) -> None:
        self.hand.read()
        self.fill(turn_of(question))

    def add(self, text: str) -> None:
        self._put(asks(text))

    def read(self) -> list[Said]:
        return [said(message) for message in self.hand.read()]

    def _put(self, message: ChatMessage) -> None:
        self.hand.add(message, datetime.now(UTC).timestamp())


class LangGraph(Peer):
    """LangGraph's BedrockSessionSaver under a graph of a model and its tools, on the emulator."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(port, name)
        from langchain_core.messages import AIMessage, HumanMessage
        from langgraph.graph import START, MessagesState, StateGraph
        from langgraph.prebuilt import ToolNode, tools_condition
        from langgraph_checkpoint_aws import BedrockSessionSaver

        script = [said(message) for message in turn_of(asks(""))[1::2]]

        def model(state: Any) -> Any:
            ours = list(itertools.takewhile(lambda m: not isinstance(m, HumanMessage), reversed(state["messages"])))
            text = state["messages"][-len(ours) - 1].additional_kwargs.get("answer")
            line = Said("assistant", text) if text else script[len(ours) // 2]
            calls = [{"name": tool, "args": json.loads(args), "id": f"call-{tool}"} for tool, args in line.calls]
            return {"messages": [AIMessage(line.text, tool_calls=calls)]}

        graph: Any = StateGraph(MessagesState)
        graph.add_node("model", model)
        graph.add_node("tools", ToolNode([weather, news]))
        graph.add_edge(START, "model")
        graph.add_conditional_edges("model", tools_condition)
        graph.add_edge("tools", "model")
        self.graph = graph.compile(checkpointer=BedrockSessionSaver(client=client("bedrock-agent-runtime", port)))
        self.thread = {"configurable": {"thread_id": name}}

    @classmethod
    def begin(cls, port: int) -> str:
        return str(client("bedrock-agent-runtime", port).create_session()["sessionId"])

    def fill(self, messages: Sequence[ChatMessage]) -> None:
        stored = 0
        try:
            for question, answer in zip(messages[::2], messages[1::2], strict=True):
                self._invoke(question, answer=answer.content)
                stored += 2
        except Exception as error:
            raise RuntimeError(f"after {stored:,} messages") from error

    def turn(self, question: ChatMessage) -> None:
        self._invoke(question)

    def _invoke(self, question: ChatMessage, **more: Any) -> None:
        self.graph.invoke({"messages": [self._human(question, **more)]}, self.thread)

    @staticmethod
    def _human(message: ChatMessage, **more: Any) -> Any:
        from langchain_core.messages import HumanMessage

        content: list[Any] = [{"type": "text", "text": message.content}]
        for picture in said(message).pictures:
            data = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
            content.append({"type": "image_url", "image_url": {"url": data}})
        return HumanMessage(content, additional_kwargs=more)

    def add(self, text: str) -> None:
        self.graph.update_state(self.thread, {"messages": [self._human(asks(text))]}, as_node="__start__")

    def read(self) -> list[Said]:
        return [self._said(message) for message in self.graph.get_state(self.thread).values["messages"]]

    @staticmethod
    def _said(message: Any) -> Said:
        role = {"human": "user", "ai": "assistant", "tool": "tool"}[message.type]
        content: Any = message.content
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        calls = tuple((call["name"], json.dumps(call["args"])) for call in getattr(message, "tool_calls", ()))
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        return Said(role, text, calls, tuple(base64.b64decode(url.partition(",")[2]) for url in urls))


class OfChatStore(OfLlamaIndex):
    """A chat store under LlamaIndex's ChatMemoryBuffer, the memory that takes it."""

    memory: ChatMemoryBuffer

    @abstractmethod
    def store(self) -> Any:
        """Return a chat store."""

    def open(self) -> BaseMemory:
        return ChatMemoryBuffer.from_defaults(
            chat_store=self.store(), chat_store_key=self.name, token_limit=EVERYTHING, tokenizer_fn=list
        )

    def fill(self, messages: Sequence[ChatMessage]) -> None:
        self.memory.chat_store.set_messages(self.name, list(messages))


class DynamoDB(OfChatStore):
    """DynamoDBChatStore on moto, which enforces DynamoDB's 400 KB an item."""

    @classmethod
    def begin(cls, port: int) -> str:
        name = uuid.uuid4().hex
        client("dynamodb", port).create_table(
            TableName=name,
            KeySchema=[{"AttributeName": "SessionId", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "SessionId", "AttributeType": "S"}],
            BillingMode="PAY_PER_REQUEST",
        )
        return name

    def store(self) -> Any:
        from llama_index.storage.chat_store.dynamodb.base import DynamoDBChatStore

        class Synchronous(DynamoDBChatStore):  # type: ignore[misc]
            """Its own async method never works, see `note`: the base class's runs the sync one in a thread."""

            async_add_message = BaseChatStore.async_add_message

        return self._make(Synchronous)

    def _make(self, kind: Any) -> Any:
        return kind(
            self.name, region_name=REGION, resource_kwargs={"endpoint_url": url(self.port)}, max_retries=1, **KEYS
        )

    def note(self) -> str:
        from llama_index.storage.chat_store.dynamodb.base import DynamoDBChatStore

        try:
            self.loop.run_until_complete(self._make(DynamoDBChatStore).async_add_message(self.name, asks("hello")))
        except Exception as error:  # noqa: BLE001 - what it raises is what is to be known
            return f"its async method fails: {why(error)}; measured with its sync methods"
        return ""


class Redis(OfChatStore):
    """RedisChatStore on a real server."""

    def store(self) -> Any:
        from llama_index.storage.chat_store.redis import RedisChatStore

        return RedisChatStore(f"redis://127.0.0.1:{self.port}")


class SQLAlchemy(OfLlamaIndex):
    """LlamaIndex's own Memory on its SQLAlchemyChatStore, in a SQLite file: no wire, statements are counted."""

    def open(self) -> BaseMemory:
        from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore

        self.store = SQLAlchemyChatStore("messages", f"sqlite+aiosqlite:///{tempfile.gettempdir()}/{self.name}.db")
        return Memory.from_defaults(
            session_id=self.name, chat_store=self.store, token_limit=EVERYTHING, tokenizer_fn=list
        )

    def fill(self, messages: Sequence[ChatMessage]) -> None:
        self.loop.run_until_complete(self.store.add_messages(self.name, list(messages)))

    def read(self) -> list[Said]:
        return [said(message) for message in self.loop.run_until_complete(self.memory.aget_all())]


class AgentCore(OfLlamaIndex):
    """AgentCoreMemory on moto. It asks for the newest 20 events, and for more only if none of these is a user's."""

    longest = 1000

    def open(self) -> BaseMemory:
        from llama_index.memory.bedrock_agentcore import AgentCoreMemory, AgentCoreMemoryContext

        context = AgentCoreMemoryContext(actor_id="ada", memory_id="memory-0123456789", session_id=self.name)
        memory: BaseMemory = AgentCoreMemory(
            context, endpoint_url=url(self.port), region_name=REGION, max_retries=1, **KEYS
        )
        return memory

    def fill(self, messages: Sequence[ChatMessage]) -> None:
        for message in messages:
            self.memory.put(message)

    def note(self) -> str:
        block = ToolCallBlock(tool_call_id="call", tool_name="weather", tool_kwargs={})
        try:
            self.memory.put(ChatMessage(role=MessageRole.ASSISTANT, blocks=[block]))
        except Exception as error:  # noqa: BLE001 - what it raises is what is to be known
            return f"a tool call without a text fails: {why(error)}"
        return ""


PEERS: dict[str, type[Peer]] = {
    "BedrockSessionsMemory": Ours,
    "by hand": Manual,
    "LangGraph BedrockSessionSaver": LangGraph,
    "DynamoDBChatStore": DynamoDB,
    "RedisChatStore": Redis,
    "SQLAlchemyChatStore": SQLAlchemy,
    "AgentCoreMemory": AgentCore,
}
