"""Every constraint of botocore's model, tried on the emulator's wire: the cases are generated from the model."""

from __future__ import annotations

import base64
import copy
import json
import re
import uuid
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import pytest
from botocore.exceptions import ClientError

from llama_index_bedrock_sessions.emulator import AnswerError, Emulator
from llama_index_bedrock_sessions.emulator.shapes import parse_time, reader, writer
from llama_index_bedrock_sessions.emulator.wire import OPERATIONS, Request, Response, operations, route, service_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

UUID = "0a1b2c3d-0000-4000-8000-00000000000a"
ARN = f"arn:aws:bedrock:us-east-1:123456789012:session/{UUID}"
TIME = "2026-01-02T03:04:05Z"


@dataclass(frozen=True)
class Case:
    """A request that breaks one constraint, or keeps it at its limit (`says` is None)."""

    operation: str
    where: tuple[str | int, ...]
    kind: str
    params: dict[str, Any]
    says: str | None

    def __str__(self) -> str:
        return f"{self.operation}-{'.'.join(map(str, self.where))}-{self.kind}"


def valid(shape: Any, name: str = "") -> Any:
    """Return a JSON value that a shape accepts, with all its members set."""
    if shape.type_name == "structure":
        members = list(shape.members.items())
        if shape.metadata.get("union"):
            members = members[:1]
        return {member: valid(inner, member) for member, inner in members if member != "nextToken"}
    if shape.type_name == "list":
        return [valid(shape.member)]
    if shape.type_name == "map":
        return {valid(shape.key): valid(shape.value)}
    if shape.type_name == "string" and shape.metadata.get("enum"):
        return shape.metadata["enum"][0]
    plain = {"integer": 1, "timestamp": TIME, "blob": base64.b64encode(b"bytes").decode()}
    return plain.get(shape.type_name, _text(shape))


def _text(shape: Any) -> str:
    known = (UUID, ARN, "text", "s3://bucket/key", f"arn:aws:kms:us-east-1:123456789012:key/{UUID}")
    return next(text for text in known if re.fullmatch(shape.metadata.get("pattern", ".*"), text))


def _put(params: dict[str, Any], where: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(params)
    place: Any = changed
    for step in where[:-1]:
        place = place[step]
    if value is None:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    return changed


def _broken(shape: Any) -> Iterator[tuple[str, Any, str | None]]:
    """Yield (kind, value, message) for the constraints of a shape; the message is None for a value at a limit."""
    lowest, highest = shape.metadata.get("min"), shape.metadata.get("max")
    if shape.type_name == "integer":
        yield "type", "one", "type integer"
        yield "min", lowest - 1, f"greater than or equal to {lowest}"
        yield "max", highest + 1, f"less than or equal to {highest}"
        yield "at max", highest, None
        return
    of_length = {"string": lambda n: "a" * n, "blob": lambda n: base64.b64encode(b"a" * n).decode()}
    make: Any = of_length.get(shape.type_name)
    if shape.type_name == "list":
        make = lambda n: [valid(shape.member)] * n  # noqa: E731
    if shape.type_name == "map":
        make = lambda n: {f"k{number}": valid(shape.value) for number in range(n)}  # noqa: E731
    if make and lowest:
        yield "min", make(lowest - 1), f"length greater than or equal to {lowest}"
    if make and highest:
        yield "max", make(highest + 1), f"length less than or equal to {highest}"
        if re.fullmatch(shape.metadata.get("pattern", ".*"), "a" * highest):
            yield "at max", make(highest), None
    pattern = shape.metadata.get("pattern")
    if pattern:
        yield "pattern", "not \u00e9 valid\n", "regular expression pattern"
    yield from ((f"enum {value}", value, None) for value in shape.metadata.get("enum", ()))
    if shape.metadata.get("enum"):
        yield "enum", "tiff", f"enum value set: [{', '.join(shape.metadata['enum'])}]"
    wrong: Any = 7 if shape.type_name != "structure" else [7]
    names = {"string": "type string", "timestamp": "ISO 8601", "blob": "base64", "structure": "type structure"}
    yield "type", wrong, names.get(shape.type_name, f"type {shape.type_name}")


def _cases_of(shape: Any, where: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], str, Any, str | None]]:
    if where:
        for kind, value, says in _broken(shape):
            yield where, kind, value, says
    if shape.type_name == "structure":
        for member, inner in shape.members.items():
            if member in shape.required_members:
                yield (*where, member), "required", None, "must not be null"
            if shape.metadata.get("union"):
                yield where, "union of none", {}, "Exactly one member"
                others = {name: valid(other) for name, other in shape.members.items() if name != member}
                if others:
                    yield where, "union of two", {member: valid(inner), **others}, "Exactly one member"
                for path, kind, value, says in _cases_of(inner, (*where, member)):
                    if path == (*where, member):
                        yield where, f"{member} {kind}", {member: value}, says
                    elif member == next(iter(shape.members)):
                        yield path, kind, value, says
                    else:
                        inside = _put({member: valid(inner)}, path[len(where) :], value)
                        yield where, f"{path[len(where) :]} {kind}", inside, says
            else:
                yield from _cases_of(inner, (*where, member))
    elif shape.type_name == "list":
        yield from _cases_of(shape.member, (*where, 0))
    elif shape.type_name == "map":
        for kind, value, says in _broken(shape.key):
            if kind != "type":
                yield where, f"key {kind}", {value: valid(shape.value)}, says
        yield from _cases_of(shape.value, (*where, valid(shape.key)))


def generate() -> list[Case]:
    """Return a case for each constraint on each member of each operation's input."""
    cases = []
    for operation in OPERATIONS:
        shape: Any = service_model().operation_model(operation).input_shape
        params = valid(shape)
        labels = {name for name, member in shape.members.items() if member.serialization.get("location") == "uri"}
        query = {
            name for name, member in shape.members.items() if member.serialization.get("location") == "querystring"
        }
        for where, kind, value, says in _cases_of(shape, ()):
            unsayable = where[0] in labels and kind in {"required", "type"}  # a path without it is another route
            unsayable |= where[0] in query and kind == "type" and shape.members[where[0]].type_name != "integer"
            unsayable |= where == ("tagKeys",) and kind == "min"  # none at all is the case "required"
            unsayable |= len(where) > 1 and where[0] in query and kind == "type"
            if not unsayable:
                cases.append(Case(operation, where, kind, _put(params, where, value), says))
    return cases


def send(emulator: Emulator, operation: str, params: dict[str, Any]) -> Response:
    """Serialise parameters without any check, and return the emulator's answer."""
    model: Any = service_model().operation_model(operation)
    path: str = model.http["requestUri"]
    query: list[tuple[str, Any]] = []
    body: dict[str, Any] = {}
    for name, shape in model.input_shape.members.items():
        location = shape.serialization.get("location")
        if name not in params:
            continue
        if location == "uri":
            path = path.replace("{" + name + "}", quote(params[name], safe=""))
        elif location == "querystring":
            values = params[name] if isinstance(params[name], list) else [params[name]]
            query.extend((name, value) for value in values)
        else:
            body[name] = params[name]
    content = json.dumps(body).encode() if body else b""
    headers = {"content-type": "application/json"}
    return answer(emulator, Request(model.http["method"], path, urlencode(query), headers, content))


def answer(emulator: Emulator, request: Request) -> Response:
    response = emulator.exchange(request).response
    assert response is not None
    return response


CASES = generate()


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        yield emulator


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_constraint_of_the_model_is_held(case: Any, emulator: Emulator) -> None:
    """A value that breaks a constraint is refused in AWS's words; a value at its limit is not."""
    response = send(emulator, case.operation, case.params)
    if case.says is None:
        assert b"validation error" not in response.body
    else:
        assert response.status == 400
        assert response.headers["x-amzn-ErrorType"] == "ValidationException"
        message = json.loads(response.body)["message"]
        assert re.match(r"\d+ validation errors? detected: Value ", message)
        assert case.says in message


def test_every_operation_has_cases(record_property: Callable[[str, object], None]) -> None:
    """The generator finds constraints on every operation; its counts are printed."""
    counts = Counter(case.operation for case in CASES)
    record_property("counted", f"{len(CASES)} constraint cases: {dict(sorted(counts.items()))}")
    assert set(counts) == set(OPERATIONS)
    assert len(CASES) >= 140


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.name)
def test_routes(operation: Any) -> None:
    """Identifiers are found encoded or raw, an ARN's slash included, with and without a trailing slash."""
    template = service_model().operation_model(operation.name).http["requestUri"].rstrip("/")
    for label in (UUID, ARN, quote(ARN, safe=""), ARN.replace(":", "%3a")):
        path = re.sub(r"\{sessionIdentifier\}|\{resourceArn\}", label, template)
        path = path.replace("{invocationStepId}", UUID)
        for variant in (path, path + "/"):
            found = route(Request(operation.method, variant))
            assert found is not None
            assert found[0] is operation
            assert all(value in (label, UUID) for value in found[1].values())


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/sessions/"),
        ("DELETE", "/sessions"),
        ("PUT", "/sessions/a/b/c/"),
        ("OPTIONS", "/sessions/"),
        ("POST", f"/sessions/{UUID}/invocationSteps/{UUID}/more"),
        ("get", f"/sessions/{UUID}/"),
        ("GET", "/sessions//"),
        ("", ""),
    ],
)
def test_unknown_routes(method: str, path: str, emulator: Emulator) -> None:
    """What names no operation gets the 404 of AWS endpoints."""
    response = answer(emulator, Request(method, path))
    assert response.status == 404
    assert b"<UnknownOperationException/>" in response.body


def _members(operation: str) -> Any:
    shape: Any = service_model().operation_model(operation).input_shape
    return shape.members


def _named(operation: str) -> str | None:
    names = _members(operation)
    return next((name for name in ("sessionIdentifier", "resourceArn") if name in names), None)


STRANGERS = (
    UUID,
    ARN,
    ARN.replace("us-east-1", "eu-west-1"),
    ARN.replace("123456789012", "210987654321"),
    ARN.replace("arn:aws:", "arn:aws-cn:"),
)


@pytest.mark.parametrize(
    ("operation", "identifier"),
    [
        (operation, identifier)
        for operation in OPERATIONS
        for identifier in STRANGERS[{"sessionIdentifier": 0, "resourceArn": 1, None: 5}[_named(operation)] :]
    ],
)
def test_a_session_that_is_not_here_is_not_found(operation: Any, identifier: str, emulator: Emulator) -> None:
    """A well-formed identifier of no session, another region, account or partition is a ResourceNotFoundException."""
    name = _named(operation)
    params = {**valid(service_model().operation_model(operation).input_shape), name: identifier}
    response = send(emulator, operation, params)
    assert (response.status, response.headers["x-amzn-ErrorType"]) == (404, "ResourceNotFoundException")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("fault", ["throttle", "internal", "access_denied"])
def test_modelled_errors_reach_boto3_by_name(operation: Any, fault: str, emulator: Emulator) -> None:
    """The errors that any operation can have are parsed by botocore as those of its model."""
    model: Any = service_model().operation_model(operation)
    kind = {
        "throttle": "ThrottlingException",
        "internal": "InternalServerException",
        "access_denied": "AccessDeniedException",
    }[fault]
    assert kind in [error.name for error in model.error_shapes]
    emulator.faults.clear()
    emulator.faults.add(operation, 1, fault)
    response = send(emulator, operation, valid(model.input_shape))
    status = service_model().shape_for(kind).metadata["error"]["httpStatusCode"]
    assert (response.status, response.headers["x-amzn-ErrorType"]) == (status, kind)


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"\xff\xfe{}",
        b'{"tags": NaN}',
        b"{}{}",
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
        '{"sessionMetadata": {"a": "b"}}'.encode("utf-16"),
        b"\xef\xbb\xbf{}",
        b'{"sessionMetadata": {"key": "\\ud800"}}',
    ],
)
def test_a_body_that_is_no_json_object_is_refused(body: bytes, emulator: Emulator) -> None:
    """Malformed JSON, other JSON, other encodings and lone surrogates are a ValidationException."""
    response = answer(emulator, Request("PUT", "/sessions/", "", {"content-type": "application/json"}, body))
    assert (response.status, response.headers["x-amzn-ErrorType"]) == (400, "ValidationException")


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        (None, 201),
        ("application/json", 201),
        ("Application/JSON; charset=utf-8", 201),
        ("text/plain", 400),
        ("application/x-www-form-urlencoded", 400),
        ("", 400),
    ],
)
def test_content_types(content_type: Any, status: Any, emulator: Emulator) -> None:
    """A body is JSON unless its Content-Type says otherwise, which is refused."""
    headers = {} if content_type is None else {"content-type": content_type}
    assert answer(emulator, Request("PUT", "/sessions/", "", headers, b"{}")).status == status


def test_unknown_members_and_nulls_are_ignored(emulator: Emulator) -> None:
    """What the model does not know, and what is null, is as if it was not sent; a union of unknown members is empty."""
    body = b'{"sessionMetadata": null, "colour": "red", "tags": null}'
    assert answer(emulator, Request("PUT", "/sessions/", "", {}, body)).status == 201
    step = valid(service_model().operation_model("PutInvocationStep").input_shape)
    step["payload"] = {"contentBlocks": [{"video": {}}]}
    assert b"Exactly one member" in send(emulator, "PutInvocationStep", step).body


def test_lists_and_maps_hold_no_null(emulator: Emulator) -> None:
    """A null inside a list or a map is refused, for it cannot be left out there."""
    step = valid(service_model().operation_model("PutInvocationStep").input_shape)
    step["payload"] = {"contentBlocks": [{"text": "a"}, None]}
    body = send(emulator, "PutInvocationStep", step).body
    assert b"Value null at 'payload.contentBlocks.2.member'" in body
    body = send(emulator, "CreateSession", {"sessionMetadata": {"key": None}}).body
    assert b"Value null at 'sessionMetadata.key.member'" in body


def test_sensitive_values_are_not_repeated(emulator: Emulator) -> None:
    """A message about a content block does not tell its content."""
    step = valid(service_model().operation_model("PutInvocationStep").input_shape)
    step["payload"] = {"contentBlocks": [{"text": "", "image": "my secret"}]}
    assert b"my secret" not in send(emulator, "PutInvocationStep", step).body


def test_long_values_are_cut_in_messages(emulator: Emulator) -> None:
    """A refused value of any size makes a message of bounded size."""
    response = send(emulator, "CreateSession", {"sessionMetadata": {"k" * 100_000: "v" * 100_000}})
    assert response.status == 400
    assert len(response.body) < 3000


def test_headers(emulator: Emulator) -> None:
    """Every answer names the request by a random UUID, and the service's time."""
    emulator.clock.advance(0)
    answers = [answer(emulator, Request("POST", "/sessions/")) for _ in range(2)]
    ids = {answer.headers["x-amzn-RequestId"] for answer in answers}
    assert len(ids) == 2
    assert {uuid.UUID(one).version for one in ids} == {4}
    assert all(re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", answer.headers["Date"]) for answer in answers)
    assert all(answer.headers["Content-Length"] == str(len(answer.body)) for answer in answers)


def test_operations_without_an_answer_have_an_empty_body(emulator: Emulator) -> None:
    """DeleteSession, TagResource and UntagResource answer 200 with an empty body (documented)."""
    client = emulator.client()
    session = client.create_session()
    emulator.calls.clear()
    client.tag_resource(resourceArn=session["sessionArn"], tags={"a": "b"})
    client.untag_resource(resourceArn=session["sessionArn"], tagKeys=["a"])
    client.end_session(sessionIdentifier=session["sessionId"])
    client.delete_session(sessionIdentifier=session["sessionId"])
    assert [call.response_body for call in emulator.calls if call.operation != "EndSession"] == [b"", b"", b""]


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T23:00:00-01:00", 0),
        ("1969-12-31T23:59:59.999999999Z", -1),
        ("1970-01-01T00:00:00", None),
        ("1970-01-01", None),
        ("0", None),
        ("2026-02-30T00:00:00Z", None),
        ("2026-01-01T00:00:60Z", None),
        ("\u0661970-01-01T00:00:00Z", None),
        ("0000-01-01T00:00:00Z", None),
    ],
)
def test_times(text: str, microseconds: Any) -> None:
    """Times are ISO 8601 with a zone, as the model says of them; anything else is none."""
    assert parse_time(text) == microseconds


@pytest.mark.parametrize("operation", OPERATIONS)
def test_our_own_answers_are_checked(operation: Any) -> None:
    """An answer that lacks, adds or breaks a member of the model is refused before it leaves."""
    shape: Any = service_model().operation_model(operation).output_shape
    write = writer(shape)
    faults: list[str] = []
    native = reader(shape)(valid(shape), "", faults)
    assert not faults
    assert write(native, operation, lambda _: TIME) == valid(shape)
    with pytest.raises(AnswerError):
        write({**native, "more": 1}, operation, lambda _: TIME)
    for member in shape.members:
        if member in shape.required_members:
            with pytest.raises(AnswerError):
                write({name: value for name, value in native.items() if name != member}, operation, lambda _: TIME)
        with pytest.raises(AnswerError):
            write({**native, member: object()}, operation, lambda _: TIME)


def test_botocore_raises_the_modelled_classes(emulator: Emulator) -> None:
    """A refusal is the exception class that the client's `exceptions` offers."""
    client = emulator.client()
    with pytest.raises(client.exceptions.ResourceNotFoundException) as caught:
        client.get_session(sessionIdentifier=UUID)
    assert isinstance(caught.value, ClientError)
    assert UUID in str(caught.value)
