"""The incident of `bedrock-sessions demo`: a picture, two tools, a scripted model, and one day of the conversation.

Each day of the demo runs in a separate operating-system process, `python -m llama_index_bedrock_sessions.cli.demo
REQUEST`. The two processes share only the chat store. REQUEST is a JSON object with the fields of `Request`. The
process writes its events to standard output, one JSON object per line. Examples and tests use the same model and tools.

The scripted model is `answer`, whose result depends only on its messages. On the second day, everything it knows
comes from the chat store.
"""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.agent.workflow import AgentInput, AgentOutput, FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ToolCallBlock,
)
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index_instrumentation.base import BaseEvent
from llama_index_instrumentation.event_handlers import BaseEventHandler
from PIL import Image, ImageDraw, ImageFont

from llama_index_bedrock_sessions.errors import BedrockSessionsError
from llama_index_bedrock_sessions.events import ServiceCallEvent, dispatcher

if TYPE_CHECKING:
    from datetime import datetime

    from llama_index.core.llms.function_calling import FunctionCallingLLM
    from llama_index.core.storage.chat_store.base import BaseChatStore
    from llama_index.core.tools import BaseTool

INCIDENT = "INC-4711"
GREETING = "How can I help you today?"
SYSTEM_PROMPT = (
    "You help engineers on call with incidents. Look at metrics and logs with the tools before you draw conclusions. "
    "If nothing has been reported, ask how you can help."
)
REPORT = (
    f"{INCIDENT}, severity high: checkout is slow, it seems to be the payments service. "
    "Here is the dashboard. Please look at its metrics and logs."
)
FOLLOW_UP = "Good morning, I am taking over from yesterday's shift. What do we know so far, and what is next?"


def _wave(minute: int) -> float:
    """Return the p99 latency in milliseconds, `minute` minutes after 13:30."""
    calm = 190 + 24 * math.sin(minute * 1.3) + 11 * math.sin(minute * 0.37)
    slow = max(0, minute - 32)
    return calm + 1_900 * (1 - math.exp(-slow / 4)) + (90 * math.sin(minute * 2.1) if slow else 0)


LATENCIES = [round(_wave(minute)) for minute in range(61)]


def _clock(minute: int) -> str:
    return f"{13 + (30 + minute) // 60}:{(30 + minute) % 60:02d}"


def _log_lines() -> list[str]:
    lines = []
    for minute, latency in enumerate(LATENCIES):
        lines.append(f"{_clock(minute)}:00 INFO payments GET /health 200")
        if latency > 1_000:
            lines += [
                f"{_clock(minute)}:{second:02d} ERROR payments Connection is not available, "
                f"request timed out after 30000 ms (total=20, active=20, idle=0, waiting={latency // 40})"
                for second in range(minute % 7, 60, 7)
            ]
    return lines


def query_metrics(service: str, metric: str) -> str:
    """Return how a service's metric developed in the last hour: its median before the steepest rise, and its peak."""
    climb = max(range(1, len(LATENCIES)), key=lambda minute: LATENCIES[minute] - LATENCIES[minute - 1])
    before = sorted(LATENCIES[:climb])
    return json.dumps(
        {
            "service": service,
            "metric": metric,
            "unit": "ms",
            "median_before": before[len(before) // 2],
            "since": _clock(climb),
            "peak": max(LATENCIES),
        }
    )


def search_logs(service: str, contains: str) -> str:
    """Count a service's log lines of the last hour that contain a text, and return the first one."""
    found = [line for line in _log_lines() if service in line and contains in line]
    return json.dumps(
        {"service": service, "contains": contains, "lines": len(found), "first": found[0] if found else None}
    )


TOOLS: list[BaseTool | Callable[..., Any]] = [query_metrics, search_logs]


def draw_dashboard() -> bytes:
    """Draw the dashboard that the engineer attaches, with the hour of the incident, as a PNG."""
    scale = 2  # drawn at twice the size, then reduced for smooth lines
    width, height = 960 * scale, 540 * scale
    left, top, right, bottom = 78 * scale, 152 * scale, 908 * scale, 488 * scale
    ink, faint, panel, alarm, calm = "#e6edf3", "#8b949e", "#161b22", "#ff6b5e", "#3fb6ff"
    picture = Image.new("RGB", (width, height), "#0d1117")
    draw = ImageDraw.Draw(picture)

    def write(where: tuple[float, float], text: str, size: int, colour: str, anchor: str = "la") -> None:
        draw.text(where, text, fill=colour, font=ImageFont.load_default(size * scale), anchor=anchor)

    def at(minute: float, latency: float) -> tuple[float, float]:
        x = left + (right - left) * minute / (len(LATENCIES) - 1)
        return x, bottom - (bottom - top) * latency / 2_500

    write((30 * scale, 22 * scale), "payments / overview", 22, ink)
    write((930 * scale, 28 * scale), "last hour", 14, faint, "ra")
    errors = sum("ERROR" in line for line in _log_lines())
    tiles = [
        ("p99 now", f"{LATENCIES[-1]:,} ms", alarm),
        ("p99 at 13:30", f"{LATENCIES[0]:,} ms", calm),
        ("errors", f"{errors:,}", alarm),
        ("connections", "20 / 20", alarm),
    ]
    for number, (name, value, colour) in enumerate(tiles):
        x = (30 + 229 * number) * scale
        draw.rounded_rectangle((x, 62 * scale, x + 213 * scale, 122 * scale), 8 * scale, fill=panel)
        write((x + 14 * scale, 70 * scale), name, 13, faint)
        write((x + 14 * scale, 89 * scale), value, 22, colour)
    draw.rounded_rectangle((30 * scale, 134 * scale, 930 * scale, 525 * scale), 8 * scale, fill=panel)
    for latency in range(0, 2_501, 500):
        draw.line((at(0, latency), at(60, latency)), fill="#30363d", width=scale)
        write((left - 8 * scale, at(0, latency)[1]), f"{latency:,}", 12, faint, "rm")
    for minute in range(0, 61, 10):
        write((at(minute, 0)[0], bottom + 8 * scale), _clock(minute), 12, faint, "ma")
    points = [at(minute, latency) for minute, latency in enumerate(LATENCIES)]
    draw.polygon([(left, bottom), *points, (right, bottom)], fill="#14304a")
    for minute, (start, end) in enumerate(pairwise(points)):
        draw.line((start, end), fill=alarm if LATENCIES[minute + 1] > 1_000 else calm, width=3 * scale, joint="curve")
    for x in range(int(left), int(right), 16 * scale):
        draw.line(((x, at(0, 1_000)[1]), (x + 8 * scale, at(0, 1_000)[1])), fill=alarm, width=scale)
    write((left + 6 * scale, at(0, 1_000)[1] - 4 * scale), "objective: 1,000 ms", 12, alarm, "ld")
    buffer = io.BytesIO()
    picture.resize((width // scale, height // scale), Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def draw_bars(title: str, values: Sequence[int], limit: int) -> bytes:
    """Draw a smaller screenshot as a PNG, with one bar per value. Bars at or above the limit are red."""
    picture = Image.new("RGB", (40 + 22 * len(values), 220), "#0d1117")
    draw = ImageDraw.Draw(picture)
    draw.text((20, 16), title, fill="#e6edf3", font=ImageFont.load_default(18))
    for number, value in enumerate(values):
        x, height = 20 + 22 * number, 140 * value / max(values)
        draw.rectangle((x, 200 - height, x + 15, 200), fill="#ff6b5e" if value >= limit else "#3fb6ff")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


CALLS = (
    ("query_metrics", {"service": "payments", "metric": "latency_p99"}),
    ("search_logs", {"service": "payments", "contains": "Connection is not available"}),
)
"""The tool calls of the scripted model, in order."""


def answer(messages: Sequence[ChatMessage], tools: Sequence[BaseTool] = (), **_: Any) -> ChatMessage:
    """Return the scripted model's reply, which depends only on the messages.

    If the last user message reports an incident, the model calls its tools. Otherwise it answers with the findings
    about an incident in the messages. If they mention no incident, it greets the user.
    """
    last = max((i for i, message in enumerate(messages) if message.role == MessageRole.USER), default=-1)
    texts = (message.content or "" for message in messages if message.role == MessageRole.USER)
    incident = next((found.group() for text in texts if (found := re.search(r"INC-\d+", text))), None)
    if incident is None:
        return ChatMessage(role=MessageRole.ASSISTANT, content=GREETING)
    reported_now = incident in (messages[last].content or "")
    if reported_now:
        offered = {tool.metadata.get_name() for tool in tools}
        calls = [call for call in CALLS if call[0] in offered]
        results = sum(message.role == MessageRole.TOOL for message in messages[last:])
        if results < len(calls):
            name, arguments = calls[results]
            block = ToolCallBlock(tool_call_id=f"call-{len(messages)}", tool_name=name, tool_kwargs=arguments)
            return ChatMessage(role=MessageRole.ASSISTANT, blocks=[block])
    opening = f"{incident}:" if reported_now else f"Good morning. {incident}, as we left it:"
    findings = _findings(messages) or ["nothing has been found out yet."]
    return ChatMessage(role=MessageRole.ASSISTANT, content=" ".join([opening, *findings]))


def _findings(messages: Sequence[ChatMessage]) -> list[str]:
    """Return sentences about the pictures and tool results in the messages."""
    sentences = []
    for message in messages:
        for block in message.blocks:
            if isinstance(block, ImageBlock):
                width, height = Image.open(io.BytesIO(block.resolve_image().read())).size
                sentences.append(f"The dashboard you sent is a picture of {width} x {height} pixels.")
            elif message.role == MessageRole.TOOL and isinstance(block, TextBlock):
                sentences.append(_finding(json.loads(block.text)))
    return sentences


def _finding(result: dict[str, Any]) -> str:
    """Describe the result of one tool in a sentence."""
    if "peak" in result:
        return (
            f"{result['service']} {result['metric']} was {result['median_before']:,} {result['unit']} "
            f"until {result['since']}, then rose to {result['peak']:,} {result['unit']}."
        )
    finding = f'{result["lines"]:,} log lines say "{result["contains"]}".'
    if pool := re.search(r"total=(\d+), active=(\d+)", result["first"] or ""):
        finding += f" {pool[2]} of {pool[1]} connections were in use. Next: find what holds them."
    return finding


Line = str | tuple[str, dict[str, Any]] | Callable[[Sequence[ChatMessage]], str]
"""The next action of a scripted model: a text, a tool call (name, arguments), or a function from all messages to a
text."""


def following(script: Mapping[str, Sequence[Line]]) -> Callable[..., ChatMessage]:
    """Return the reply function of a model that follows a script.

    `script` maps a part of the user's message to the lines that answer it. Like `answer`, the reply depends only on the
    messages: the number of tool results since the user's message selects the line.
    """

    def reply(messages: Sequence[ChatMessage], *_: Any, **__: Any) -> ChatMessage:
        last = max((i for i, message in enumerate(messages) if message.role == MessageRole.USER), default=0)
        asked = messages[last].content or ""
        lines = next((lines for part, lines in script.items() if part in asked), [GREETING])
        line = lines[sum(message.role == MessageRole.TOOL for message in messages[last:])]
        if isinstance(line, tuple):
            call = ToolCallBlock(tool_call_id=f"call-{len(messages)}", tool_name=line[0], tool_kwargs=line[1])
            return ChatMessage(role=MessageRole.ASSISTANT, blocks=[call])
        return ChatMessage(role=MessageRole.ASSISTANT, content=line if isinstance(line, str) else line(messages))

    return reply


def scripted_model(reply: Callable[..., ChatMessage] = answer) -> MockFunctionCallingLLM:
    """Return a mock model that replies with `reply`, calls tools, and needs no key and no network."""
    return MockFunctionCallingLLM(response_generator=reply, is_chat_model=True)


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of one process of the demo. `store` is "simple", "local" or "aws"."""

    day: int
    store: str
    picture: str
    key: str = INCIDENT
    database: str | None = None
    region: str | None = None
    profile: str | None = None
    namespace: str = "default"
    model: str | None = None


def open_store(request: Request, calls: Counter[str]) -> BaseChatStore:
    """Open the chat store of a request as an application would, and add its service calls to `calls`."""
    if request.store == "simple":
        return SimpleChatStore()
    from llama_index_bedrock_sessions import BedrockSessionsChatStore

    if request.database is not None:
        store = BedrockSessionsChatStore.local(request.database)
    else:
        store = BedrockSessionsChatStore(
            region_name=request.region, profile_name=request.profile, namespace=request.namespace
        )

    dispatcher.add_event_handler(CallCounter(count=calls.update))
    return store


class CallCounter(BaseEventHandler):
    """Count service calls by operation, including retries."""

    count: Callable[[Mapping[str, int]], None]

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the handler."""
        return "CallCounter"

    def handle(self, event: BaseEvent, **_: Any) -> None:
        """Count an event."""
        if isinstance(event, ServiceCallEvent):
            self.count({event.operation: 1 + (event.retries or 0)})


def open_model(
    name: str | None,
    reply: Callable[..., ChatMessage] = answer,
    *,
    region: str | None = None,
    profile: str | None = None,
) -> FunctionCallingLLM:
    """Return the Bedrock model with this id, or a scripted model if `name` is None."""
    if name is None:
        return scripted_model(reply)
    from llama_index.llms.bedrock_converse import BedrockConverse

    model: FunctionCallingLLM = BedrockConverse(model=name, region_name=region, profile_name=profile)
    return model


def message_of(request: Request) -> ChatMessage:
    """Return the engineer's message of the day: the report with the picture, or the question of the next shift."""
    if request.day > 1:
        return ChatMessage(role=MessageRole.USER, content=FOLLOW_UP)
    picture = ImageBlock(image=Path(request.picture).read_bytes(), image_mimetype="image/png")
    return ChatMessage(role=MessageRole.USER, blocks=[TextBlock(text=REPORT), picture])


async def spend_day(request: Request, store: BaseChatStore, report: Callable[..., None]) -> None:
    """Run one day's conversation, and report each event when it happens."""
    message = message_of(request)
    report("user", text=message.content, images=sum(isinstance(block, ImageBlock) for block in message.blocks))
    memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key=request.key, token_limit=100_000)
    model = open_model(request.model, region=request.region, profile=request.profile)
    agent = FunctionAgent(llm=model, tools=TOOLS, system_prompt=SYSTEM_PROMPT)
    handler = agent.run(user_msg=message, memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, AgentInput):
            report("given", roles=Counter(given.role.value for given in event.input))
        elif isinstance(event, ToolCallResult):
            report("tool", name=event.tool_name, kwargs=event.tool_kwargs, result=event.tool_output.content)
    output: AgentOutput = await handler
    report("answer", text=output.response.content)


def main() -> None:
    """Run the day that the request on the command line describes."""

    def report(event: str, **details: Any) -> None:
        print(json.dumps({"event": event, **details}), flush=True)  # noqa: T201 - standard output is this process's result

    request = Request(**json.loads(sys.argv[1]))
    report("process", pid=os.getpid())
    calls: Counter[str] = Counter()
    try:
        asyncio.run(spend_day(request, open_store(request, calls), report))
    except BedrockSessionsError as error:
        report("error", text=f"{type(error).__name__}: {error}")
        sys.exit(1)
    report("calls", **calls)


def in_another_process(request: Request) -> Iterator[dict[str, Any]]:
    """Run one day in a new process, and yield its events.

    The last event is `{"event": "end", "status": exit status, "stderr": text}`.
    """
    command = [sys.executable, "-m", __name__, json.dumps(dataclasses.asdict(request))]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(  # noqa: S603 - runs this module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            env=os.environ | {"PYTHONUTF8": "1"},
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
        except BaseException:
            process.terminate()
            raise
        finally:
            status = process.wait()
        stderr.seek(0)
        yield {"event": "end", "status": status, "stderr": stderr.read()}


@dataclasses.dataclass(frozen=True)
class Held:
    """One session with its invocations and steps, as boto3 returns them."""

    session: dict[str, Any]
    invocations: list[dict[str, Any]]
    steps: list[dict[str, Any]]


def held(client: Any, namespace: str, *, since: datetime | None = None) -> list[Held]:
    """Read the sessions of a namespace that were created since a time, oldest first, with boto3 alone."""
    found = []
    for summary in _all(client, "list_sessions", "sessionSummaries"):
        if since is not None and summary["createdAt"] < since:
            continue
        where = {"sessionIdentifier": summary["sessionId"]}
        session = client.get_session(**where)
        if namespace not in session.get("sessionMetadata", {}).values():
            continue
        steps = [
            client.get_invocation_step(
                **where, invocationIdentifier=step["invocationId"], invocationStepId=step["invocationStepId"]
            )["invocationStep"]
            for step in _all(client, "list_invocation_steps", "invocationStepSummaries", **where)
        ]
        steps.sort(key=lambda step: (step["invocationStepTime"], step["invocationStepId"]))
        found.append(Held(session, _all(client, "list_invocations", "invocationSummaries", **where), steps))
    return sorted(found, key=lambda one: one.session["createdAt"])


def _all(client: Any, operation: str, member: str, **arguments: Any) -> list[dict[str, Any]]:
    pages = client.get_paginator(operation).paginate(**arguments)
    return [entry for page in pages for entry in page[member]]


if __name__ == "__main__":
    main()
