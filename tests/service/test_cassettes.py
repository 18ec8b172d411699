"""Recorded traffic is played without a network, is what is recorded today, and holds no secret."""

from __future__ import annotations

import base64
import binascii
import copy
import json
import re
import socket
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import HTTPClientError
from vcr.errors import CannotOverwriteExistingCassetteException  # type: ignore[import-untyped]

from llama_index_bedrock_sessions.emulator import Behaviour, Emulator
from llama_index_bedrock_sessions.emulator import store as emulator_store
from tests.cassettes.__main__ import NEEDS_CLOCK, SCENARIOS, AwsWorld, record_emulator
from tests.cassettes.compare import differences
from tests.cassettes.facts import FACTS
from tests.cassettes.tape import (
    ACCOUNT,
    FOLDER,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    Tape,
    World,
    client,
    closed_network,
    play,
    record,
    scrubbed,
    tapes,
)

pytestmark = pytest.mark.thorough

ROOT = FOLDER.parent
PUBLISHERS = ("https://docs.aws.amazon.com/", "https://awsapichanges.com/")
"""AWS, and a site that shows each release of the service models."""


def each(*folders: str) -> pytest.MarkDecorator:
    """Parametrize by the recordings of some folders."""
    paths = [path for folder in folders for path in tapes(folder) if path.name != "behaviour.json"]
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))


def walk(tape: Tape) -> Any:
    """Return a scenario that makes the calls written in a transcription, and their answers."""

    def scenario(world: World) -> Any:
        answers = []
        for one in tape.interactions:
            call = one["call"]
            answer = getattr(world.client, call["operation"])(**call["arguments"])
            answers.append({name: value for name, value in answer.items() if name != "ResponseMetadata"})
        return json.loads(json.dumps(answers, default=lambda moment: f"{moment:%Y-%m-%dT%H:%M:%SZ}"))

    return scenario


@each("emulator", "aws")
def test_a_recording_is_played(path: Path) -> None:
    """With the network closed and no credentials the scenario finds what it found, and all of the tape is played."""
    tape = Tape.load(path)
    assert play(tape, SCENARIOS[tape.scenario]) == tape.finding


@each("published")
def test_a_transcription_is_played(path: Path) -> None:
    """botocore sends the documented requests, and reads the documented answers, member by member."""
    tape = Tape.load(path)
    assert play(tape, walk(tape)) == [one["response"].get("json", {}) for one in tape.interactions]


@each("emulator", "aws", "published")
def test_the_emulator_answers_as_it_was_recorded(path: Path) -> None:
    """Every recorded or documented request, put to the emulator, gets the recorded answer."""
    profile = path.parent.parent / "behaviour.json"
    behaviour = Behaviour.load(profile) if profile.exists() else Behaviour()
    with Emulator(behaviour=behaviour) as emulator:
        assert differences(Tape.load(path), emulator, form_only=path.is_relative_to(FOLDER / "published")) == []


@each("emulator")
def test_recording_again_changes_nothing(path: Path) -> None:
    """What is recorded against the emulator today is what is in the repository: if not, record it anew and review."""
    kept = Tape.load(path)
    today = record_emulator(kept.scenario)
    assert (today.interactions, today.finding) == (kept.interactions, kept.finding)


def test_every_scenario_is_recorded() -> None:
    """Each fact and each conversation has one recording against the emulator, and there is no other."""
    assert {Tape.load(path).scenario for path in tapes("emulator")} == set(SCENARIOS)
    assert len(tapes("emulator")) == len(SCENARIOS)
    assert {name.rpartition("/")[2] for name in SCENARIOS} > NEEDS_CLOCK


def test_each_fact_is_a_question() -> None:
    """What a fact asks is the first line of its docstring."""
    assert [name for name, fact in FACTS.items() if not (fact.__doc__ or "").splitlines()[0].endswith("?")] == []


def test_the_evidence_is_counted(record_property: Callable[[str, object], None]) -> None:
    """How many facts were recorded from AWS is printed, and wherever it is written it is that number."""
    recorded = {Tape.load(path).scenario for path in tapes("aws") if path.name != "behaviour.json"}
    line = f"recorded from AWS: {len(recorded & {f'facts/{name}' for name in FACTS})} of {len(FACTS)} facts"
    record_property("counted", line)
    written = {
        path: re.findall(r"recorded from AWS: \d+ of \d+ facts", (ROOT / path).read_text("utf-8"))
        for path in ("README.md", "docs/emulator.md")
    }
    assert written["docs/emulator.md"] == [line]
    assert set(written["README.md"]) <= {line}


# Negative controls


def changed(tape: Tape, change: str) -> Tape:
    """Return a tape of which one byte is another."""
    other = copy.deepcopy(tape)
    asked = next(one["request"] for one in other.interactions if "payload" in one["request"].get("json", {}))
    if change == "body":
        block = asked["json"]["payload"]["contentBlocks"][0]
        block["text"] = block["text"][:-1] + chr(ord(block["text"][-1]) ^ 1)
    elif change == "path":
        asked["path"] = asked["path"].replace("/invocationSteps/", "/invocationStepz/")
    elif change == "method":
        asked["method"] = "PUS"
    else:
        asked["query"] = "a=b"
    return other


@pytest.mark.parametrize("change", ["body", "path", "method", "query"])
@pytest.mark.parametrize("scenario", ["facts/known_step_id", "conversations/erase"])
def test_one_changed_byte_fails(scenario: str, change: str) -> None:
    """A recording of another body, path, method or query is not taken for that of the request."""
    tape = Tape.load(FOLDER / "emulator" / f"{scenario}.json")
    with pytest.raises(Exception) as failed:  # noqa: PT011 - the library gives botocore's error its own name
        play(changed(tape, change), SCENARIOS[scenario])
    causes: list[BaseException | None] = [failed.value]
    while causes[-1]:
        causes.append(causes[-1].__cause__ or causes[-1].__context__)
    assert any(isinstance(cause, (HTTPClientError, CannotOverwriteExistingCassetteException)) for cause in causes)


def test_what_was_not_played_fails() -> None:
    """A recording with an interaction more than the scenario asks for is a failure."""
    tape = Tape.load(FOLDER / "emulator" / "facts" / "create_session.json")
    more = copy.deepcopy(tape.interactions[0])
    more["request"]["json"] = {"sessionMetadata": {"nobody": "asks"}}
    tape.interactions.append(more)
    with pytest.raises(AssertionError, match=r"5 of 6 interactions were played"):
        play(tape, SCENARIOS[tape.scenario])


@pytest.mark.parametrize("change", ["status", "error", "member", "value", "order"])
def test_a_wrong_answer_is_a_difference(change: str) -> None:
    """A recorded answer that the emulator would not give is named."""
    name = {"error": "malformed_identifier", "order": "order_within_an_invocation"}.get(change, "update_session")
    tape = Tape.load(FOLDER / "emulator" / "facts" / f"{name}.json")
    answers = [one["response"] for one in tape.interactions]

    def having(member: str) -> dict[str, Any]:
        """Return the first answer with a member."""
        return next(answer["json"] for answer in answers if member in answer.get("json", {}))

    if change == "status":
        answers[-1]["status"] = 204
    elif change == "error":
        answers[0]["headers"]["x-amzn-errortype"] = "ConflictException:http://internal.amazon.com/"
    elif change == "member":
        del answers[0]["json"]["sessionArn"]
    elif change == "value":
        having("sessionMetadata")["sessionMetadata"] = {}
    else:
        having("invocationStepSummaries")["invocationStepSummaries"].reverse()
    with Emulator() as emulator:
        assert len(differences(tape, emulator)) == 1


def test_a_document_s_form_is_compared() -> None:
    """Of a transcription a missing member and another type are differences, another value is none."""
    path = FOLDER / "published" / "walk_through.json"
    with Emulator() as emulator:
        tape = Tape.load(path)
        tape.interactions[0]["response"]["json"]["createdAt"] = 1420070400
        del tape.interactions[1]["response"]["json"]["sessionId"]
        tape.interactions[7]["response"]["json"]["sessionStatus"] = "ACTIVE"
        assert [line.split()[0] for line in differences(tape, emulator, form_only=True)] == ["1", "2"]


# Recording against AWS, with an emulator for AWS


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve an account of another number; give its URL."""
    with monkeypatch.context() as patched:
        patched.setattr(emulator_store, "ACCOUNT", "998877665544")
        emulator = Emulator()
    with emulator, emulator.serve() as server:
        yield server.url


@pytest.mark.parametrize("scenario", ["conversations/lost_reply", "facts/arn_as_identifier", "facts/tags"])
def test_a_recording_of_an_account_is_scrubbed_and_played(account: str, scenario: str, tmp_path: Path) -> None:
    """The account's number is nowhere in a recording from it; a dropped reply is played as lost."""
    tape = Tape.new(scenario, "AWS, by an emulator", datetime.now(UTC), 12345)
    record(tape, AwsWorld(tape, client(account)), SCENARIOS[scenario])
    scrubbed(tape).save(tmp_path / "tape.json")
    text = (tmp_path / "tape.json").read_text("utf-8")
    assert "998877665544" not in text
    assert secrets_in(text) == []
    kept = Tape.load(tmp_path / "tape.json")
    assert play(kept, SCENARIOS[scenario]) == kept.finding
    assert any(one.get("lost") for one in kept.interactions) is (scenario == "conversations/lost_reply")
    with Emulator() as emulator:
        assert differences(kept, emulator) == []


# Hygiene

SECRETS = {
    "access key": re.compile(r"\b(AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}"),
    "signature": re.compile(r"(?i)AWS4-HMAC|X-Amz-(Signature|Credential|Security-Token)|Signature=|\bauthorization\b"),
    "secret key": re.compile(r"(?i)aws_?secret|secret_?access_?key|session_?token"),
    "private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "account": re.compile(
        r"arn(?::|%3A)aws[a-z-]*(?::|%3A)[a-z0-9-]+(?::|%3A)[a-z0-9-]*(?::|%3A)(?!123456789012)\d{12}"
    ),
    "address": re.compile(r"[\w.+-]+@[\w-]+\.[a-z]{2,}|\b(?!127\.0\.0\.1)\d{1,3}(\.\d{1,3}){3}\b|/(home|Users|root)/"),
}


def strings(value: Any) -> Iterator[str]:
    """Give every string in a JSON value, and what it holds: JSON, base64, and what was compressed."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield str(name)
            yield from strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from strings(one)
    elif isinstance(value, str):
        yield value
        yield from decoded(value)


def decoded(text: str) -> Iterator[str]:
    if text[:1] in "{[":
        try:
            yield from strings(json.loads(text))
        except ValueError:
            return
    elif len(text) >= 16 and re.fullmatch(r"[A-Za-z0-9+/_-]+={0,2}", text):
        try:
            content = base64.b64decode(text.translate(str.maketrans("-_", "+/")) + "==")
        except binascii.Error:
            return
        yield content.decode("latin-1")
        try:
            plain = zlib.decompress(content).decode()
        except (zlib.error, UnicodeDecodeError):
            return
        yield plain
        yield from decoded(plain)


def secrets_in(text: str) -> list[str]:
    return [
        f"{name}: {found[0]}"
        for string in strings(json.loads(text))
        for name, pattern in SECRETS.items()
        if (found := pattern.search(string))
    ]


@each("emulator", "aws", "published")
def test_a_recording_holds_no_secret(path: Path) -> None:
    """Whatever is decoded and decompressed: no key, signature, token, account or address; and only headers we name."""
    assert secrets_in(path.read_text("utf-8")) == []
    assert path.stat().st_size <= 64 * 1024
    for one in Tape.load(path).interactions:
        assert set(one.get("response", {}).get("headers", {})) <= RESPONSE_HEADERS
        assert set(one["request"]) <= {"method", "path", "query", "json", "text", "base64"}
    assert {"content-type"} == REQUEST_HEADERS


@pytest.mark.parametrize(
    "hidden",
    [
        "AKIAIOSFODNN7EXAMPLE",
        base64.b64encode(b'{"Authorization": "AWS4-HMAC-SHA256 Credential=x"}').decode(),
        json.dumps({"zip": base64.b64encode(zlib.compress(b'{"t": "aws_secret_access_key = x"}')).decode()}),
        "/sessions/arn%3Aaws%3Abedrock%3Aus-west-2%3A998877665544%3Asession%2Fx",
        "someone@example.com",
    ],
)
def test_a_hidden_secret_is_found(hidden: str) -> None:
    """The search looks into JSON within JSON, base64 and compressed content."""
    assert secrets_in(json.dumps({"interactions": [{"text": hidden}]})) != []
    assert secrets_in(json.dumps({"arn": f"arn:aws:bedrock:us-west-2:{ACCOUNT}:session/x"})) == []


@each("published")
def test_a_transcription_names_its_sources(path: Path) -> None:
    """Each documented request says where it is documented."""
    for one in Tape.load(path).interactions:
        assert one["sources"]
        assert all(source.startswith(PUBLISHERS) for source in one["sources"])


def test_the_network_is_closed() -> None:
    """While a recording is played nothing connects, and no name is looked up."""
    with closed_network():
        with pytest.raises(OSError, match="closed"):
            socket.create_connection(("127.0.0.1", 9))
        with pytest.raises(OSError, match="closed"):
            socket.getaddrinfo("localhost", 80)
