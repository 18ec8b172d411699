"""What the tests of the store share: an emulator that counts, messages, and other operating-system processes."""

from __future__ import annotations

import base64
import json
import os
import random
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from email.utils import format_datetime
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from botocore import UNSIGNED
from botocore.config import Config
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, MessageRole, TextBlock
from PIL import Image

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions._bedrock.connection import timestamp
from llama_index_bedrock_sessions.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llama_index.core.storage.chat_store.base import BaseChatStore

HOUR = 3600.0
IDLE = HOUR + 60
DAY = 24 * HOUR
KEY = "user-42"
QUICK: Any = {"signature_version": UNSIGNED, "user_agent": "tests"}
"""What a client's `Config` may say to be quick: to sign, and to compose botocore's User-Agent, is a third of a call."""


class Service:
    """An emulator, and stores on it as different processes would have them: each with a client and a cache of its own.

    A call is tried once, so that a fault shows at once instead of after botocore's pauses.
    """

    def __init__(self, **arguments: Any) -> None:
        self.emulator = Emulator(**arguments)
        self.clock = self.emulator.clock
        self.faults = self.emulator.faults
        self.calls = self.emulator.calls
        self.seconds_per_call = 0.0
        """What the service's clock advances by before each call is served."""
        self.boto3: Any = self.client()
        self._stores: list[BedrockSessionsChatStore] = []

    def client(self) -> Any:
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=16, **QUICK)
        client: Any = self.emulator.client(config=config, timestamp_parser=timestamp)
        client.meta.events.register("before-call", self._spend)
        return client

    def _spend(self, **_event: Any) -> None:
        if self.seconds_per_call:
            self.clock.advance(self.seconds_per_call)

    def store(self, **arguments: Any) -> BedrockSessionsChatStore:
        store = BedrockSessionsChatStore(client=self.client(), **arguments)
        store._sessions.sleep = self.later
        self._stores.append(store)
        return store

    def later(self, seconds: float) -> None:
        """Let time pass for the service and for every process: their clocks go on too.

        `clock.advance` alone lets the service's clock jump, which a process learns from the next reply.
        """
        self.clock.advance(seconds)
        now = time.time()
        for store in self._stores:
            store._sessions.clock.saw(format_datetime(self.clock.now(), usegmt=True), now, now)

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Give the calls by operation, and their number as `total`, once the block has ended."""
        counted: Counter[str] = Counter()
        self.calls.clear()
        yield counted
        counted.update(call.operation for call in self.calls)
        counted["total"] = counted.total()

    def sessions(self) -> list[dict[str, Any]]:
        """Return every session as plain boto3 describes it, oldest first."""
        return sessions(self.boto3)

    def steps(self, session: str) -> list[dict[str, Any]]:
        """Return the steps of a session as plain boto3 reads them, in the order of their ids."""
        return steps(self.boto3, session)

    def everything(self) -> list[Any]:
        """Return all that is stored, to show that something changes none of it."""
        return [({**s, "ResponseMetadata": None}, self.steps(s["sessionId"])) for s in self.sessions()]

    def put(self, session: str, content: Sequence[dict[str, Any]], **more: Any) -> str:
        """Write a step with plain boto3, as another tool would, in an invocation of its own; return the step's id."""
        invocation = self.boto3.create_invocation(sessionIdentifier=session)["invocationId"]
        step = {"invocationStepTime": self.clock.now(), "payload": {"contentBlocks": list(content)}, **more}
        reply = self.boto3.put_invocation_step(sessionIdentifier=session, invocationIdentifier=invocation, **step)
        return str(reply["invocationStepId"])


def sessions(client: Any) -> list[dict[str, Any]]:
    """Return every session as a client of boto3 describes it, oldest first."""
    pages = client.get_paginator("list_sessions").paginate()
    ids = [summary["sessionId"] for page in pages for summary in page["sessionSummaries"]]
    return sorted((client.get_session(sessionIdentifier=i) for i in ids), key=lambda s: s["createdAt"])


def steps(client: Any, session: str) -> list[dict[str, Any]]:
    """Return the steps of a session as a client of boto3 reads them, in the order of their ids."""
    pages = client.get_paginator("list_invocation_steps").paginate(sessionIdentifier=session)
    listed = [summary for page in pages for summary in page["invocationStepSummaries"]]
    return [
        client.get_invocation_step(
            sessionIdentifier=session,
            invocationIdentifier=summary["invocationId"],
            invocationStepId=summary["invocationStepId"],
        )["invocationStep"]
        for summary in sorted(listed, key=lambda summary: summary["invocationStepId"])
    ]


def stored(client: Any) -> str:
    """Return all that is in a service, unpacked: to show that something is nowhere in it."""
    said: list[str] = []
    for session in sessions(client):
        for step in steps(client, session["sessionId"]):
            for block in step["payload"]["contentBlocks"]:
                said.append(repr(block))
                packed = json.loads(block["text"]).get("zip") if block.get("text", "").startswith('{"llama') else None
                said.append(zlib.decompress(base64.b64decode(packed)).decode() if packed else "")
    return "\n".join(said)


def user(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.USER, content=text)


def users(*texts: str) -> list[ChatMessage]:
    return [user(text) for text in texts]


def texts(store: BaseChatStore, key: str = KEY) -> list[str | None]:
    return [message.content for message in store.get_messages(key)]


@cache
def png(width: int = 8, height: int = 8, seed: int = 0) -> bytes:
    """Return a real picture of noise, which does not compress: about three bytes a pixel."""
    noise = random.Random(seed).randbytes(width * height * 3)
    file = BytesIO()
    Image.frombytes("RGB", (width, height), noise).save(file, "PNG", compress_level=0)
    return file.getvalue()


def picture(seed: int = 0, text: str = "look") -> ChatMessage:
    image = ImageBlock(image=png(seed=seed), image_mimetype="image/png")
    return ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text=text), image])


def english(count: int, size: int = 1024) -> list[str]:
    """Return texts of English sentences, each of so many characters, none like another."""
    chance = random.Random(1)
    return [" ".join(chance.choices(_words(), k=size // 2))[:size] for _ in range(count)]


def chinese(count: int, size: int = 1024) -> list[str]:
    """Return texts of Chinese characters, each of so many bytes in UTF-8, some characters more frequent than others."""
    chance = random.Random(2)
    characters = [chr(0x4E00 + 7 * number) for number in range(1200)]
    weights = [1 / (rank + 20) for rank in range(1200)]
    return ["".join(chance.choices(characters, weights, k=size // 3)) for _ in range(count)]


@cache
def _words() -> list[str]:
    return [word for module in (subprocess, random, os, time) for word in (module.__doc__ or "").split()]


def python(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start another Python process; `run` waits for one."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONUTF8": "1"} | environment,
    )


def run(script: str, *arguments: str, **environment: str) -> str:
    """Return what a script prints in another Python process."""
    process = python(script, *arguments, **environment)
    output, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return output
