"""The server side of rest-json, driven by botocore's model of `bedrock-agent-runtime`: routes, parsing, rendering.

Law: what the model says is read from the model (`shapes`), what the service does is asked of `store`; here is only how
the two meet in HTTP. Any bytes get an answer: a modelled error, or for what names no operation the 404 that AWS
endpoints give.

Decided here, where AWS has not said: a body that is no JSON object, a value of the wrong JSON type, and a
Content-Type other than JSON are a ValidationException, because the model has no other error for them; a body without
a Content-Type is read as JSON; of a query parameter given twice the last counts.
"""

from __future__ import annotations

import json
import re
import sqlite3
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import botocore.loaders
from botocore import xform_name
from botocore.model import ServiceModel

from llama_index_bedrock_sessions.emulator.clock import http_date
from llama_index_bedrock_sessions.emulator.paging import TokenError
from llama_index_bedrock_sessions.emulator.shapes import EPOCH, AnswerError, reader, writer
from llama_index_bedrock_sessions.emulator.store import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llama_index_bedrock_sessions.emulator.shapes import Reader, Writer
    from llama_index_bedrock_sessions.emulator.store import Store

OPERATIONS = (
    "CreateInvocation",
    "CreateSession",
    "DeleteSession",
    "EndSession",
    "GetInvocationStep",
    "GetSession",
    "ListInvocationSteps",
    "ListInvocations",
    "ListSessions",
    "ListTagsForResource",
    "PutInvocationStep",
    "TagResource",
    "UntagResource",
    "UpdateSession",
)
_INTEGER = re.compile(r"[+-]?\d{1,18}", re.ASCII)
# A label is one segment of the path; an ARN sent raw brings a slash of its own.
_LABEL = r"(?P<{}>[aA][rR][nN](?::|%3[aA])[^/]*(?::|%3[aA])session/[^/]+|[^/]+)"
_HTML = {"Content-Type": "text/html"}
_LISTED = 10  # constraint messages that one answer spells out


@dataclass(frozen=True)
class Request:
    """An HTTP request: `path` and `query` as they were sent, percent-encoded or not; header names in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """An HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Exchange:
    """What came of a request: the service's answer, if it saw the request, and the fault on the way, if any."""

    response: Response | None
    fault: str | None = None
    delay: float = 0.0  # seconds between answering and sending the answer


@dataclass(frozen=True)
class Operation:
    """One operation of the service, compiled from the model."""

    name: str
    method: str
    path: re.Pattern[str]
    status: int
    errors: frozenset[str]
    uri: dict[str, tuple[str, Reader]]
    query: dict[str, tuple[str, str, Reader]]
    body: dict[str, Reader]
    required: tuple[str, ...]
    output: Writer | None


@lru_cache(maxsize=1)
def loader() -> Any:
    """Return the loader of botocore's models, shared because it caches what it has parsed."""
    return botocore.loaders.create_loader()


@lru_cache(maxsize=1)
def service_model() -> ServiceModel:
    """Return botocore's model of the service."""
    description = loader().load_service_model("bedrock-agent-runtime", "service-2")
    return ServiceModel(description, "bedrock-agent-runtime")


@lru_cache(maxsize=1)
def operations() -> tuple[Operation, ...]:
    """Return the operations of session management, compiled."""
    return tuple(_compile(name) for name in OPERATIONS)


def _compile(name: str) -> Operation:
    model: Any = service_model().operation_model(name)
    shape: Any = model.input_shape
    output: Any = model.output_shape
    uri: dict[str, tuple[str, Reader]] = {}
    query: dict[str, tuple[str, str, Reader]] = {}
    body: dict[str, Reader] = {}
    for member, inner in shape.members.items():
        location = inner.serialization.get("location")
        wire_name = inner.serialization.get("name", member)
        if location == "uri":
            uri[wire_name] = member, reader(inner)
        elif location == "querystring":
            query[wire_name] = member, inner.type_name, reader(inner)
        else:
            body[member] = reader(inner)
    template = model.http["requestUri"].rstrip("/")
    return Operation(
        name=name,
        method=model.http["method"],
        path=re.compile(re.sub(r"\{(\w+)\}", lambda found: _LABEL.format(found[1]), template) + "/?"),
        status=model.http.get("responseCode", 200),
        errors=frozenset(error.name for error in model.error_shapes),
        uri=uri,
        query=query,
        body=body,
        required=tuple(shape.required_members),
        output=writer(output) if output is not None and output.members else None,
    )


def route(request: Request) -> tuple[Operation, dict[str, str]] | None:
    """Return the operation a request names, with the labels of its path as they were sent; None if there is none."""
    for operation in operations():
        if operation.method == request.method:
            found = operation.path.fullmatch(request.path)
            if found:
                return operation, found.groupdict()
    return None


def parse(operation: Operation, labels: Mapping[str, str], request: Request) -> dict[str, Any]:
    """Return the parameters of a request. Raises `Refusal` (ValidationException) naming every broken constraint."""
    faults: list[str] = []
    params: dict[str, Any] = {}
    try:
        for wire_name, (member, read) in operation.uri.items():
            params[member] = read(unquote(labels[wire_name], errors="strict"), member, faults)
        if operation.query:
            params.update(_parse_query(operation, request.query, faults))
    except ValueError:
        raise Refusal("ValidationException", "The request's path or query is not valid.") from None
    if operation.body:
        params.update(_parse_body(operation, request, faults))
    faults.extend(
        f"Value null at {name!r} failed to satisfy constraint: Member must not be null"
        for name in operation.required
        if name not in params
    )
    if faults:
        count = f"{len(faults)} validation error{'s' if len(faults) > 1 else ''} detected: "
        raise Refusal("ValidationException", count + "; ".join(faults[:_LISTED]))
    return params


def _parse_query(operation: Operation, query: str, faults: list[str]) -> dict[str, Any]:
    given: dict[str, list[str]] = {}
    for name, text in parse_qsl(query, keep_blank_values=True, errors="strict"):
        given.setdefault(name, []).append(text)
    params: dict[str, Any] = {}
    for wire_name, (member, kind, read) in operation.query.items():
        if wire_name in given:
            values = given[wire_name]
            value: Any = values if kind == "list" else values[-1]
            if kind == "integer" and _INTEGER.fullmatch(value):
                value = int(value)
            params[member] = read(value, member, faults)
    return params


def _parse_body(operation: Operation, request: Request, faults: list[str]) -> dict[str, Any]:
    if not request.body:
        return {}
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Refusal("ValidationException", f"The Content-Type {content_type[:100]!r} is not application/json.")
    try:
        content = json.loads(request.body.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refusal("ValidationException", "The request's body is not valid JSON in UTF-8.") from None
    if not isinstance(content, dict):
        raise Refusal("ValidationException", "The request's body is not a JSON object.")
    return {
        member: read(content[member], member, faults)
        for member, read in operation.body.items()
        if content.get(member) is not None
    }


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class Wire:
    """Answers HTTP requests from a store. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def answer(self, request: Request) -> Response:
        """Answer a request. Raises `AnswerError` where the answer would break the model: a bug of the emulator."""
        found = route(request)
        if found is None:
            return self._respond(404, b"<UnknownOperationException/>\n", {"Content-Type": "application/xml"})
        operation, labels = found
        try:
            return self._carry_out(operation, labels, request)
        except Refusal as refusal:
            return self._refuse(operation, refusal.kind, str(refusal))
        except TokenError as error:
            return self._refuse(operation, "ValidationException", str(error))
        except sqlite3.Error as error:
            return self._refuse(operation, "InternalServerException", f"The emulator's database: {error}")

    def _carry_out(self, operation: Operation, labels: Mapping[str, str], request: Request) -> Response:
        if operation.name == "PutInvocationStep":
            self._store.check_encoded_size(len(request.body))
        params = parse(operation, labels, request)
        method: Callable[[dict[str, Any]], dict[str, Any]] = getattr(self._store, xform_name(operation.name))
        answer = method(params)
        if operation.output is None:
            return self._respond(operation.status, b"")
        rendered = operation.output(answer, operation.name, self._stamp())
        if self._store.behaviour.more_members != "none":
            rendered = _with_more(rendered, service_model().operation_model(operation.name).output_shape)
        return self._respond(operation.status, json.dumps(rendered, ensure_ascii=False, separators=(",", ":")).encode())

    def _stamp(self) -> Callable[[int], str]:
        precision = self._store.behaviour.time_precision
        digits = {"seconds": 0, "milliseconds": 4, "microseconds": 7}[precision]

        def stamp(moment: int) -> str:
            seconds, fraction = divmod(moment, 1_000_000)
            return f"{_whole_seconds(seconds)}{f'.{fraction:06}'[:digits]}Z"

        return stamp

    def _refuse(self, operation: Operation, kind: str, message: str) -> Response:
        if kind.isdigit():
            return self._respond(int(kind), json.dumps({"message": message}).encode())
        if kind not in operation.errors:
            raise AnswerError(f"{operation.name} has no {kind} in the model")
        return self.error(kind, message)

    def error(self, kind: str, message: str, *, member: str = "message") -> Response:
        """Return an error of the model as AWS renders it. `member`: IAM's refusals came as "Message" (seen)."""
        shape = service_model().shape_for(kind)
        uri = ":http://internal.amazon.com/coral/com.amazon.bedrock/"
        named = kind + (uri if self._store.behaviour.error_type_header == "name and uri" else "")
        body = json.dumps({member: message}, separators=(",", ":")).encode()
        return self._respond(shape.metadata["error"]["httpStatusCode"], body, {"x-amzn-ErrorType": named})

    def unavailable(self) -> Response:
        """Return the 503 of a load balancer that found nobody behind it."""
        return self._respond(503, b"<html><body><h1>503 Service Unavailable</h1></body></html>\n", _HTML)

    def _respond(self, status: int, body: bytes, more: Mapping[str, str] | None = None) -> Response:
        headers = {
            "Date": http_date(self._store.now()),
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "x-amzn-RequestId": str(uuid.uuid4()),
        }
        return Response(status, {**headers, **(more or {})}, body)


def _with_more(rendered: Any, shape: Any) -> Any:
    """Return a rendered value with null for the members it has no value for, and one that the model does not name."""
    if shape.type_name == "list":
        return [_with_more(item, shape.member) for item in rendered]
    if shape.type_name != "structure" or getattr(shape, "is_tagged_union", False):
        return rendered
    more = {name: _with_more(value, shape.members[name]) for name, value in rendered.items()}
    return {**dict.fromkeys(shape.members), **more, "unnamedMember": {"since": ["tomorrow"]}}


@lru_cache(maxsize=4096)
def _whole_seconds(seconds: int) -> str:
    moment = EPOCH + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0")
