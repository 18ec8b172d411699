"""A recording as a file: JSON that can be reviewed, recorded and played by vcrpy.

A tape says against what it was recorded, with which versions, the time at its start and the seed of its ids. Bodies
that are JSON objects are kept as JSON; they are compared as JSON, and everything else byte for byte. Only the headers
named here are kept. `{"lost": true}` in place of a response is a reply that was lost: the service has carried the
request out, and the client was not told.

vcrpy is not thread-safe, so one request is under way at a time.
"""

from __future__ import annotations

import base64
import json
import random
import re
import socket
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock
from urllib.parse import urlsplit

import boto3.session
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError
from botocore.httpsession import URLLib3Session
from vcr.config import VCR  # type: ignore[import-untyped]
from vcr.record_mode import RecordMode  # type: ignore[import-untyped]
from vcr.request import Request  # type: ignore[import-untyped]
from vcr.serialize import deserialize, serialize  # type: ignore[import-untyped]

from llama_index_bedrock_sessions._journal import ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FOLDER = Path(__file__).parents[2] / "cassettes"
REQUEST_HEADERS = {"content-type"}
RESPONSE_HEADERS = {"content-type", "date", "x-amzn-errortype"}
ACCOUNT = "123456789012"
LOST = 599
_NOWHERE = "http://127.0.0.1:9"
_lock = threading.RLock()


@dataclass
class Tape:
    """A recording: its header, what the scenario found, and the interactions in their order."""

    scenario: str
    against: str
    clock: str
    seed: int
    versions: dict[str, str] = field(default_factory=dict)
    finding: Any = None
    interactions: list[dict[str, Any]] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def new(cls, scenario: str, against: str, clock: datetime, seed: int) -> Tape:
        versions = {name: version(name) for name in ("boto3", "botocore", "vcrpy")}
        return cls(scenario, against, clock.strftime("%Y-%m-%dT%H:%M:%SZ"), seed, versions)

    @classmethod
    def load(cls, path: Path) -> Tape:
        content = json.loads(path.read_text("utf-8"))
        known = {name: content.pop(name) for name in ("scenario", "finding", "interactions") if name in content}
        recorded = content.pop("recorded")
        return cls(**known, **recorded, more=content)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.text(), "utf-8")

    def text(self) -> str:
        recorded = {"against": self.against, "versions": self.versions, "clock": self.clock, "seed": self.seed}
        content = {"scenario": self.scenario, "recorded": recorded, **self.more}
        content |= {"finding": self.finding, "interactions": self.interactions}
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"

    @property
    def start(self) -> datetime:
        return datetime.strptime(self.clock, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def tapes(folder: str) -> list[Path]:
    """Return the recordings in one of the folders of cassettes/."""
    return sorted((FOLDER / folder).rglob("*.json"))


# The form on disk, and vcrpy's


def _packed(content: bytes | str) -> dict[str, Any]:
    """Return a body as it is written to disk."""
    data = content.encode() if isinstance(content, str) else content
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}
    try:
        value = json.loads(text)
    except ValueError:
        return {"text": text} if text else {}
    return {"json": value} if isinstance(value, dict) else {"text": text}


def unpacked(body: dict[str, Any]) -> bytes:
    """Return a body as bytes: JSON as Python's `json` writes it."""
    if "json" in body:
        return json.dumps(body["json"]).encode()
    if "base64" in body:
        return base64.b64decode(body["base64"])
    return str(body.get("text", "")).encode()


class _Form:
    """vcrpy's serializer: from its dictionary to our text and back; the header of the tape is not its business."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def serialize(self, cassette: dict[str, Any]) -> str:
        self.tape.interactions = [self._written(one["request"], one["response"]) for one in cassette["interactions"]]
        return self.tape.text()

    def _written(self, request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
        url = urlsplit(request["uri"])
        asked = {"method": request["method"], "path": url.path, **({"query": url.query} if url.query else {})}
        asked |= _packed(request["body"] or b"")
        if response["status"]["code"] == LOST:
            return {"request": asked, "lost": True}
        headers = {name: ", ".join(values) for name, values in sorted(response["headers"].items())}
        answer = {"status": response["status"]["code"], "headers": headers, **_packed(response["body"]["string"])}
        return {"request": asked, "response": answer}

    def deserialize(self, _text: str) -> dict[str, Any]:
        return {"version": 1, "interactions": [self._read(one) for one in self.tape.interactions]}

    def _read(self, one: dict[str, Any]) -> dict[str, Any]:
        asked = one["request"]
        query = f"?{asked['query']}" if "query" in asked else ""
        request = {"method": asked["method"], "uri": f"{_NOWHERE}{asked['path']}{query}", "headers": {}}
        answer = one.get("response", {"status": LOST, "headers": {}})
        response = {
            "status": {"code": answer["status"], "message": ""},
            "headers": {name: [value] for name, value in answer["headers"].items()},
            "body": {"string": unpacked(answer)},
        }
        return {"request": {**request, "body": unpacked(asked)}, "response": response}


class _Memory:
    """vcrpy's persister: the tape is in memory, and saved by whoever recorded it."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape

    def load_cassette(self, _path: str, serializer: _Form) -> tuple[list[Any], list[Any]]:
        return deserialize("", serializer)  # type: ignore[no-any-return]

    def save_cassette(self, _path: str, cassette: dict[str, Any], serializer: _Form) -> None:
        serialize(cassette, serializer)


def _content(request: Any) -> Any:
    body = request.body or b""
    return _packed(body if isinstance(body, (bytes, str)) else body.read())


def _same_body(ours: Any, recorded: Any) -> None:
    assert _content(ours) == _content(recorded)


def _kept_request(request: Any) -> Any:
    request.headers = {name: value for name, value in request.headers.items() if name.lower() in REQUEST_HEADERS}
    return request


def _kept_response(response: dict[str, Any]) -> dict[str, Any]:
    kept = {name.lower(): values for name, values in response["headers"].items() if name.lower() in RESPONSE_HEADERS}
    return {**response, "headers": kept}


@contextmanager
def _playing(tape: Tape, mode: RecordMode, drops: Callable[[Any], bool] = lambda _request: False) -> Iterator[Any]:
    """Record to a tape, or play it; give vcrpy's cassette. `drops`: whether the reply to a request is to be lost."""
    recorder = VCR(
        serializer="tape",
        record_mode=mode,
        match_on=("method", "path", "query", "same_body"),
        before_record_request=_kept_request,
        before_record_response=_kept_response,
    )
    recorder.register_serializer("tape", _Form(tape))
    recorder.register_persister(_Memory(tape))
    recorder.register_matcher("same_body", _same_body)
    with (
        recorder.use_cassette(f"{tape.scenario}.json") as cassette,
        mock.patch.object(URLLib3Session, "send", _one_at_a_time(cassette, URLLib3Session.send, drops)),
    ):
        yield cassette


def _one_at_a_time(
    cassette: Any, send: Callable[..., Any], drops: Callable[[Any], bool]
) -> Callable[[URLLib3Session, Any], Any]:
    lost = {"status": {"code": LOST, "message": ""}, "headers": {}, "body": {"string": b""}}

    def sending(session: URLLib3Session, request: Any) -> Any:
        with _lock:
            try:
                response = send(session, request)
            except ConnectionClosedError:
                cassette.append(Request(request.method, request.url, request.body or b"", {}), lost)
                raise
            if not cassette.write_protected and drops(request):
                cassette.data[-1] = (cassette.data[-1][0], lost)
                raise ConnectionClosedError(endpoint_url=request.url)
        if response.status_code == LOST:
            raise ConnectionClosedError(endpoint_url=request.url)
        return response

    return sending


# What a scenario is given


class World:
    """A service to record or play against: a boto3 client, a clock, ids from a seed."""

    def __init__(self, tape: Tape, client: Any) -> None:
        self.client = client
        self._random = random.Random(tape.seed)
        self._now = tape.start.timestamp()

    def seconds(self) -> float:
        """Return the time: that of the tape's start, and what has passed by `later`."""
        return self._now

    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now, UTC)

    def uuid(self) -> str:
        """Return a fresh id, the same one when the tape is played."""
        digits = self.bits(16).hex()
        return "-".join((digits[:8], digits[8:12], f"4{digits[13:16]}", f"a{digits[17:20]}", digits[20:]))

    def bits(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def later(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds

    def lose_reply(self, operation: str) -> None:
        """Let the reply to the next call of an operation be lost."""

    def drops(self, request: Any) -> bool:
        """Return whether the reply to this request is to be dropped now that it has come."""
        return False


@contextmanager
def seeded(world: World) -> Iterator[None]:
    """Let the library take its random bits from the tape's seed: `_journal.ids` asks `os.urandom` for them."""
    with mock.patch.object(ids, "os", SimpleNamespace(urandom=world.bits)):
        yield


def record(tape: Tape, world: World, scenario: Callable[[World], Any]) -> Tape:
    """Run a scenario, and return the tape with what was found and said."""
    with _playing(tape, RecordMode.ALL, world.drops), seeded(world):
        finding = scenario(world)
    tape.finding = json.loads(json.dumps(finding))
    return tape


def play(tape: Tape, scenario: Callable[[World], Any]) -> Any:
    """Run a scenario on a tape, with the network closed and no credentials; return what it found.

    Raises AssertionError if not all of the tape was played.
    """
    with ExitStack() as stack:
        stack.enter_context(closed_network())
        cassette = stack.enter_context(_playing(tape, RecordMode.NONE))
        world = World(tape, client(_NOWHERE))
        stack.enter_context(seeded(world))
        finding = scenario(world)
        assert cassette.all_played, f"{cassette.play_count} of {len(cassette)} interactions were played"
    return json.loads(json.dumps(finding))


def client(url: str | None = None, **arguments: str | None) -> Any:
    """Return a boto3 client that tries a call once, and leaves it to the service to check what it is sent.

    With a URL: of that server, with credentials that are none. Without: of AWS, `arguments` are a boto3 session's.
    """
    config = Config(retries={"total_max_attempts": 1}, parameter_validation=False)
    if url is None:
        return boto3.session.Session(**arguments).client("bedrock-agent-runtime", config=config)
    return boto3.session.Session().client(
        "bedrock-agent-runtime",
        config=config,
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",
    )


@contextmanager
def closed_network() -> Iterator[None]:
    """Let nothing connect anywhere, nor look up a name."""

    def closed(*_arguments: Any, **_more: Any) -> Any:
        raise OSError("the network is closed")

    with (
        mock.patch.object(socket.socket, "connect", closed),
        mock.patch.object(socket, "create_connection", closed),
        mock.patch.object(socket, "getaddrinfo", closed),
    ):
        yield


def scrubbed(tape: Tape) -> Tape:
    """Return a tape without the number of the account it was recorded in."""
    text = tape.text()
    for account in set(
        re.findall(r"arn(?::|%3A)aws[a-z-]*(?::|%3A)[a-z0-9-]+(?::|%3A)[a-z0-9-]*(?::|%3A)(\d{12})", text)
    ):
        text = text.replace(account, ACCOUNT)
    content = json.loads(text)
    tape.finding, tape.interactions = content["finding"], content["interactions"]
    return tape
