"""The documented rules of Bedrock sessions, asked of the emulator through a real boto3 client."""

from __future__ import annotations

import base64
import itertools
import os
import struct
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_bedrock_sessions.emulator import Behaviour, ClosedError, Emulator
from llama_index_bedrock_sessions.emulator.images import size_in_pixels
from llama_index_bedrock_sessions.emulator.wire import Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as emulator:
        emulator.clock.stop(START)
        yield emulator


@pytest.fixture
def client(emulator: Emulator) -> Any:
    return emulator.client(config=Config(retries={"total_max_attempts": 1}))


@pytest.fixture
def session(client: Any) -> Any:
    return client.create_session()["sessionId"]


@pytest.fixture
def invocation(client: Any, session: str) -> Any:
    return client.create_invocation(sessionIdentifier=session)["invocationId"]


def put(client: Any, session: str, invocation: str, *, at: datetime = START, blocks: Any = None, **more: Any) -> Any:
    return client.put_invocation_step(
        sessionIdentifier=session,
        invocationIdentifier=invocation,
        invocationStepTime=at,
        payload={"contentBlocks": blocks or [{"text": "text"}]},
        **more,
    )["invocationStepId"]


def refusal(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ClientError) as caught:
        call(*args, **kwargs)
    response: Any = caught.value.response
    return str(response["Error"]["Code"])


def test_a_session_remembers_what_it_was_created_with(client: Any) -> None:
    """GetSession returns the key and the metadata, ListTagsForResource the tags, of CreateSession."""
    key = f"arn:aws:kms:us-east-1:123456789012:key/{uuid.uuid4()}"
    made = client.create_session(encryptionKeyArn=key, sessionMetadata={"a": "b"}, tags={"Environment": "Test"})
    assert made["createdAt"] == START
    assert made["sessionStatus"] == "ACTIVE"
    assert uuid.UUID(made["sessionId"]).version == 4
    assert made["sessionArn"] == f"arn:aws:bedrock:us-east-1:123456789012:session/{made['sessionId']}"
    for identifier in (made["sessionId"], made["sessionArn"]):
        described = client.get_session(sessionIdentifier=identifier)
        assert described["encryptionKeyArn"] == key
        assert described["sessionMetadata"] == {"a": "b"}
        assert described["createdAt"] == described["lastUpdatedAt"] == START
    assert client.list_tags_for_resource(resourceArn=made["sessionArn"])["tags"] == {"Environment": "Test"}


def test_what_was_not_given_is_absent(client: Any, session: str) -> None:
    """A session without key, metadata and tags has no such members; empty metadata stays empty."""
    described = client.get_session(sessionIdentifier=session)
    assert "encryptionKeyArn" not in described
    assert "sessionMetadata" not in described
    assert "tags" not in client.list_tags_for_resource(resourceArn=described["sessionArn"])
    client.update_session(sessionIdentifier=session, sessionMetadata={})
    assert client.get_session(sessionIdentifier=session)["sessionMetadata"] == {}
    client.update_session(sessionIdentifier=session, sessionMetadata={"a": "b"})
    client.update_session(sessionIdentifier=session)
    assert client.get_session(sessionIdentifier=session)["sessionMetadata"] == {"a": "b"}


def test_regions_have_the_partition_of_their_name() -> None:
    """ARNs of China and GovCloud bear their partitions."""
    arns = [
        Emulator(region_name=region).client().create_session()["sessionArn"].rpartition("/")[0]
        for region in ("cn-north-1", "us-gov-west-1", "eu-central-1")
    ]
    assert arns == [
        "arn:aws-cn:bedrock:cn-north-1:123456789012:session",
        "arn:aws-us-gov:bedrock:us-gov-west-1:123456789012:session",
        "arn:aws:bedrock:eu-central-1:123456789012:session",
    ]


def test_a_session_expires_an_hour_after_the_last_write(
    emulator: Emulator, client: Any, session: str, invocation: str
) -> None:
    """Idle for an hour it is EXPIRED (documented): it can be read, ended and deleted, not written."""
    emulator.clock.advance(HOUR - 1)
    step = put(client, session, invocation)
    emulator.clock.advance(HOUR - 1)
    assert client.get_session(sessionIdentifier=session)["sessionStatus"] == "ACTIVE"
    emulator.clock.advance(1)
    assert client.get_session(sessionIdentifier=session)["sessionStatus"] == "EXPIRED"
    assert client.list_sessions()["sessionSummaries"][0]["sessionStatus"] == "EXPIRED"
    assert refusal(put, client, session, invocation) == "ConflictException"
    assert client.list_invocation_steps(sessionIdentifier=session)["invocationStepSummaries"]
    assert client.get_invocation_step(sessionIdentifier=session, invocationIdentifier=invocation, invocationStepId=step)
    client.delete_session(sessionIdentifier=session)


def test_an_ended_session_can_be_read_and_deleted(client: Any, session: str, invocation: str) -> None:
    """After EndSession the content is there, takes no more, and goes with the session (documented)."""
    step = put(client, session, invocation)
    assert client.end_session(sessionIdentifier=session)["sessionStatus"] == "ENDED"
    where = {"sessionIdentifier": session, "invocationIdentifier": invocation}
    assert client.get_invocation_step(**where, invocationStepId=step)["invocationStep"]["invocationStepId"] == step
    assert refusal(put, client, session, invocation) == "ConflictException"
    client.delete_session(sessionIdentifier=session)
    for call in (client.get_session, client.list_invocations, client.list_invocation_steps, client.end_session):
        assert refusal(call, sessionIdentifier=session) == "ResourceNotFoundException"
    assert client.list_sessions()["sessionSummaries"] == []


def test_sessions_are_deleted_after_thirty_days(emulator: Emulator, client: Any, session: str, invocation: str) -> None:
    """At the end of retention a session is gone for every operation, and from the file with the next write."""
    put(client, session, invocation)
    emulator.clock.advance(30 * DAY - 1)
    assert client.get_session(sessionIdentifier=session)["sessionStatus"] == "EXPIRED"
    emulator.clock.advance(1)
    assert refusal(client.get_session, sessionIdentifier=session) == "ResourceNotFoundException"
    assert client.list_sessions()["sessionSummaries"] == []
    client.create_session()
    with emulator._database.reading() as db:
        assert db.execute("SELECT count(*) FROM payloads").fetchone()[0] == 0


def test_without_retention_sessions_stay(emulator: Emulator, client: Any) -> None:
    """An emulator made with `retention=False` keeps sessions for ever, and they expire all the same."""
    kept = Emulator(retention=False)
    session = kept.client().create_session()["sessionId"]
    kept.clock.advance(365 * DAY)
    assert kept.client().get_session(sessionIdentifier=session)["sessionStatus"] == "EXPIRED"
    assert not kept.retention


def test_steps_belong_to_an_invocation(client: Any, session: str, invocation: str) -> None:
    """A step is found in its own invocation only; unknown invocations and steps are not found."""
    step = put(client, session, invocation)
    other = client.create_invocation(sessionIdentifier=session)["invocationId"]
    unknown = str(uuid.uuid4())
    for wrong in ((other, step), (unknown, step), (invocation, unknown)):
        where = {"sessionIdentifier": session, "invocationIdentifier": wrong[0], "invocationStepId": wrong[1]}
        assert refusal(client.get_invocation_step, **where) == "ResourceNotFoundException"
    assert refusal(put, client, session, unknown) == "ResourceNotFoundException"
    listing = {"sessionIdentifier": session, "invocationIdentifier": unknown}
    assert refusal(client.list_invocation_steps, **listing) == "ResourceNotFoundException"
    listing["invocationIdentifier"] = other
    assert client.list_invocation_steps(**listing)["invocationStepSummaries"] == []


def test_ids_of_the_client_are_kept(client: Any, session: str) -> None:
    """Any id of the documented shape is taken as it is; a known invocation id is a conflict; a step may share it."""
    chosen = "ffffffff-0000-0000-0000-000000000000"
    where = {"sessionIdentifier": session, "invocationId": chosen, "description": "why"}
    assert client.create_invocation(**where)["invocationId"] == chosen
    assert refusal(client.create_invocation, **where) == "ConflictException"
    assert put(client, session, chosen, invocationStepId=chosen) == chosen
    assert uuid.UUID(put(client, session, chosen)).version == 4


BLOCKS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: {"text": text}),
    st.binary(min_size=1, max_size=200).map(lambda content: {"image": {"format": "gif", "source": {"bytes": content}}}),
    st.just({"image": {"format": "webp", "source": {"s3Location": {"uri": "s3://bucket/some/key.webp"}}}}),
)


@settings(max_examples=50, deadline=None)
@given(blocks=st.lists(BLOCKS, min_size=1, max_size=20))
def test_payloads_come_back_as_they_went_in(blocks: Any) -> None:
    """Any texts and bytes are returned in their order, unchanged."""
    with Emulator() as emulator:
        client: Any = emulator.client()
        session = client.create_session()["sessionId"]
        invocation = client.create_invocation(sessionIdentifier=session)["invocationId"]
        step = put(client, session, invocation, blocks=blocks)
        answer = client.get_invocation_step(
            sessionIdentifier=session, invocationIdentifier=invocation, invocationStepId=step
        )
        assert answer["invocationStep"]["payload"]["contentBlocks"] == blocks


@pytest.mark.parametrize(
    "at",
    [
        datetime(1000, 1, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=45))),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ],
)
def test_step_times_of_any_age_are_kept(
    emulator: Emulator, client: Any, session: str, invocation: str, at: datetime
) -> None:
    """The time of a step is the client's, whatever the service's clock says."""
    step = put(client, session, invocation, at=at)
    emulator.calls.clear()
    client.list_invocation_steps(sessionIdentifier=session)
    rendered = at.astimezone(UTC).strftime("%m-%dT%H:%M:%S.%fZ")
    assert rendered.encode() in emulator.calls[0].response_body
    assert step.encode() in emulator.calls[0].response_body


def test_a_session_takes_a_thousand_steps(client: Any, session: str) -> None:
    """The limit counts across invocations (documented), and a refused step is not stored."""
    invocations = [client.create_invocation(sessionIdentifier=session)["invocationId"] for _ in range(3)]
    for _, invocation in zip(range(1000), itertools.cycle(invocations)):
        put(client, session, invocation)
    assert refusal(put, client, session, invocations[0]) == "ServiceQuotaExceededException"
    listed = client.list_invocation_steps(sessionIdentifier=session, maxResults=1000)
    assert len(listed["invocationStepSummaries"]) == 1000
    assert "nextToken" not in listed


@pytest.mark.thorough
def test_a_step_of_fifty_megabytes() -> None:
    """Thirteen images of the largest size fill a step when decoded bytes count; one byte more is refused."""
    with Emulator(behaviour=Behaviour(step_size_counts="decoded")) as emulator:
        client: Any = emulator.client()
        session = client.create_session()["sessionId"]
        invocation = client.create_invocation(sessionIdentifier=session)["invocationId"]
        image = {"image": {"format": "png", "source": {"bytes": os.urandom(3_750_000)}}}
        rest = {"text": "x" * (50_000_000 - 13 * 3_750_000)}
        step = put(client, session, invocation, blocks=[image] * 13 + [rest])
        where = {"sessionIdentifier": session, "invocationIdentifier": invocation, "invocationStepId": step}
        blocks = client.get_invocation_step(**where)["invocationStep"]["payload"]["contentBlocks"]
        assert blocks == [image] * 13 + [rest]
        over = [image] * 13 + [rest, {"text": "x"}]
        assert refusal(put, client, session, invocation, blocks=over) == "ValidationException"


def test_tags(client: Any, session: str) -> None:
    """Tags are set, replaced and removed by key; a session takes 200 of them (documented)."""
    arn = client.get_session(sessionIdentifier=session)["sessionArn"]
    client.tag_resource(resourceArn=arn, tags={f"key {number}": "" for number in range(199)})
    client.tag_resource(resourceArn=arn, tags={"key 0": "new", "last": "one"})
    tags = client.list_tags_for_resource(resourceArn=arn)["tags"]
    assert (len(tags), tags["key 0"], tags["last"]) == (200, "new", "one")
    assert refusal(client.tag_resource, resourceArn=arn, tags={"more": ""}) == "ServiceQuotaExceededException"
    client.untag_resource(resourceArn=arn, tagKeys=["key 0", "nobody has this"])
    assert client.list_tags_for_resource(resourceArn=arn)["tags"].keys() == tags.keys() - {"key 0"}


def test_merged_metadata_has_fifty_entries_at_most(emulator: Emulator, client: Any, session: str) -> None:
    """Where UpdateSession merges, the result must hold the limit, not only what was sent."""
    emulator.behaviour = replace(emulator.behaviour, update_metadata="merge")
    client.update_session(sessionIdentifier=session, sessionMetadata={f"a{n}": "" for n in range(50)})
    again = {"sessionIdentifier": session, "sessionMetadata": {"b": ""}}
    assert refusal(client.update_session, **again) == "ValidationException"


# Paging


def pages(call: Any, key: str, **query: Any) -> list[list[dict[str, Any]]]:
    found = []
    token: dict[str, str] = {}
    while True:
        answer = call(**query, **token)
        found.append(answer[key])
        if "nextToken" not in answer:
            return found
        token = {"nextToken": answer["nextToken"]}


@pytest.mark.parametrize("size", [1, 3, 7, 8, 1000])
@pytest.mark.parametrize("order", Behaviour.choices()["step_order"])
@pytest.mark.parametrize("kind", Behaviour.choices()["pages"])
def test_pages_hold_every_step_once(emulator: Emulator, session: str, size: int, order: Any, kind: Any) -> None:
    """Whatever the order and the size of pages, together they are the whole list, in one order."""
    client = emulator.client()
    emulator.behaviour = replace(emulator.behaviour, step_order=order, pages=kind)
    invocations = [client.create_invocation(sessionIdentifier=session)["invocationId"] for _ in range(2)]
    put_steps = [put(client, session, invocations[n % 2], at=START + timedelta(seconds=n % 3)) for n in range(8)]
    query = {"sessionIdentifier": session, "maxResults": size}
    found = pages(client.list_invocation_steps, "invocationStepSummaries", **query)
    listed = [step["invocationStepId"] for page in found for step in page]
    assert sorted(listed) == sorted(put_steps)
    assert all(len(page) <= size for page in found)
    one = pages(client.list_invocation_steps, "invocationStepSummaries", sessionIdentifier=session)
    assert listed == [step["invocationStepId"] for page in one for step in page]


def test_pages_survive_what_happens_between_them(client: Any, session: str, invocation: str) -> None:
    """Steps added and sessions deleted between two pages neither repeat nor hide what was there."""
    before = {put(client, session, invocation) for _ in range(6)}
    first = client.list_invocation_steps(sessionIdentifier=session, maxResults=2)
    put(client, session, invocation)
    seen = [step["invocationStepId"] for step in first["invocationStepSummaries"]]
    rest = client.list_invocation_steps(sessionIdentifier=session, nextToken=first["nextToken"])
    seen += [step["invocationStepId"] for step in rest["invocationStepSummaries"]]
    assert sorted(seen) == sorted(before)


def test_lists_of_sessions_and_invocations_have_pages(client: Any, session: str) -> None:
    """ListSessions and ListInvocations are paged as ListInvocationSteps is, newest first."""
    more = [client.create_session()["sessionId"] for _ in range(4)]
    invocations = [client.create_invocation(sessionIdentifier=session)["invocationId"] for _ in range(5)]
    found = pages(client.list_sessions, "sessionSummaries", maxResults=2)
    assert [one["sessionId"] for page in found for one in page] == [*more[::-1], session]
    found = pages(client.list_invocations, "invocationSummaries", maxResults=2, sessionIdentifier=session)
    assert [one["invocationId"] for page in found for one in page] == invocations[::-1]


def test_tokens_of_other_queries_are_refused(emulator: Emulator, client: Any, session: str, invocation: str) -> None:
    """A token is good for its operation, session, invocation and order, for a day; never when it was changed."""
    other = client.create_session()["sessionId"]
    for one in (session, other):
        for _ in range(2):
            client.create_invocation(sessionIdentifier=one)
        put(client, session, invocation)
    query = {"sessionIdentifier": session, "maxResults": 1}
    token = client.list_invocation_steps(**query)["nextToken"]
    assert client.list_invocation_steps(**query, nextToken=token)["invocationStepSummaries"]
    assert refusal(client.list_invocations, **query, nextToken=token) == "ValidationException"
    assert refusal(client.list_sessions, maxResults=1, nextToken=token) == "ValidationException"
    wrong = {**query, "nextToken": token}
    assert refusal(client.list_invocation_steps, **{**wrong, "sessionIdentifier": other}) == "ValidationException"
    narrower = {**wrong, "invocationIdentifier": invocation}
    assert refusal(client.list_invocation_steps, **narrower) == "ValidationException"
    for changed in (token[:-2], token[::-1], "x", "\u00e9", base64.b64encode(bytes(16)).decode(), "A" * 2048):
        assert refusal(client.list_invocation_steps, **query, nextToken=changed) == "ValidationException"
    emulator.behaviour = replace(emulator.behaviour, step_order="id")
    assert refusal(client.list_invocation_steps, **wrong) == "ValidationException"
    emulator.behaviour = Behaviour()
    emulator.clock.advance(DAY + 1)
    assert refusal(client.list_invocation_steps, **wrong) == "ValidationException"


def test_the_list_of_an_invocation_is_part_of_the_session_s(client: Any, session: str) -> None:
    """With invocationIdentifier only its steps are listed, newest first (seen on AWS)."""
    first, second = (client.create_invocation(sessionIdentifier=session)["invocationId"] for _ in range(2))
    steps = [put(client, session, (first, second)[n % 2], at=START + timedelta(seconds=n)) for n in range(6)]
    answer = client.list_invocation_steps(sessionIdentifier=session, invocationIdentifier=second)
    assert [step["invocationStepId"] for step in answer["invocationStepSummaries"]] == steps[::-2]
    assert {step["invocationId"] for step in answer["invocationStepSummaries"]} == {second}


# Images


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height)


def jpeg(width: int, height: int) -> bytes:
    start = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xd0"  # a segment, padding, and a marker without length
    return start + b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width)


def webp(kind: bytes, data: bytes) -> bytes:
    return b"RIFF\x00\x00\x00\x00WEBP" + kind + b"\x00\x00\x00\x00" + data


IMAGES = [
    ("png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR" + struct.pack(">II", 8001, 3), (8001, 3)),
    ("gif", gif(3, 8001), (3, 8001)),
    ("jpeg", jpeg(8001, 3), (8001, 3)),
    ("webp", webp(b"VP8X", bytes(4) + (8000).to_bytes(3, "little") + (2).to_bytes(3, "little")), (8001, 3)),
    ("webp", webp(b"VP8L", b"\x2f" + (8000 | 2 << 14).to_bytes(4, "little")), (8001, 3)),
    ("webp", webp(b"VP8 ", b"\x00\x00\x00\x9d\x01\x2a" + struct.pack("<HH", 8001, 3)), (8001, 3)),
]


@pytest.mark.parametrize("case", IMAGES)
def test_images_are_measured(client: Any, session: str, invocation: str, case: Any) -> None:
    """Width and height are read from the header, and held to the documented 8000 pixels."""
    kind, content, pixels = case
    assert size_in_pixels(kind, content) == pixels
    assert size_in_pixels(kind, content[:-1]) is None
    block = {"image": {"format": kind, "source": {"bytes": content}}}
    assert refusal(put, client, session, invocation, blocks=[block]) == "ValidationException"


@settings(max_examples=200, deadline=None)
@given(kind=st.sampled_from(["png", "gif", "jpeg", "webp", "bmp"]), start=st.sampled_from(IMAGES), rest=st.binary())
def test_any_bytes_can_be_measured(kind: str, start: Any, rest: Any) -> None:
    """Measuring damaged images gives a size or None, never an error."""
    for content in (rest, start[1][: len(rest)] + rest, start[1] + rest):
        size = size_in_pixels(kind, content)
        assert size is None or min(size) >= 0


# The object


def test_the_clock(emulator: Emulator) -> None:
    """The clock moves as it is told, not back; started again it runs on from where it was."""
    assert emulator.clock.now() == START
    emulator.clock.advance(0.5)
    assert emulator.clock.now() == START + timedelta(seconds=0.5)
    with pytest.raises(ValueError, match="back"):
        emulator.clock.advance(-1)
    with pytest.raises(ValueError, match="zone"):
        emulator.clock.stop(datetime(2026, 1, 1))  # noqa: DTZ001 - that is what is refused
    emulator.clock.start()
    assert START <= emulator.clock.now() < START + timedelta(minutes=10)
    before = emulator.clock.now()
    emulator.clock.advance(DAY)
    emulator.clock.stop()
    assert timedelta(days=1) <= emulator.clock.now() - before < timedelta(days=1, minutes=10)


def test_the_date_header_is_the_emulator_s_time(client: Any, emulator: Emulator) -> None:
    """Every answer, a refusal too, bears the service's time."""
    dates = [client.list_sessions()["ResponseMetadata"]["HTTPHeaders"]["date"]]
    emulator.clock.advance(DAY)
    with pytest.raises(ClientError) as caught:
        client.get_session(sessionIdentifier=str(uuid.uuid4()))
    response: Any = caught.value.response
    dates.append(response["ResponseMetadata"]["HTTPHeaders"]["date"])
    assert dates == ["Fri, 02 Jan 2026 03:04:05 GMT", "Sat, 03 Jan 2026 03:04:05 GMT"]


def test_calls_are_recorded(emulator: Emulator, client: Any) -> None:
    """`calls` has every call served, with its bytes; it can be counted, indexed and cleared."""
    emulator.calls.clear()
    session = client.create_session(sessionMetadata={"a": "b"})["sessionId"]
    with pytest.raises(ClientError):
        client.get_session(sessionIdentifier="nobody")
    emulator.exchange(Request("GET", "/nowhere"))
    assert [(call.operation, call.status) for call in emulator.calls] == [
        ("CreateSession", 201),
        ("GetSession", 400),
        ("", 404),
    ]
    assert emulator.calls[0].request_body == b'{"sessionMetadata": {"a": "b"}}'
    assert session.encode() in emulator.calls[0].response_body
    assert emulator.calls[0].response_size == len(emulator.calls[0].response_body)
    assert emulator.calls[1:][0].path == "/sessions/nobody/"
    assert (emulator.calls.count(), emulator.calls.count("GetSession")) == (3, 1)
    emulator.calls.clear()
    assert len(emulator.calls) == 0


def test_recorded_calls_do_not_fill_the_memory(emulator: Emulator, client: Any, session: str, invocation: str) -> None:
    """Beyond 64 MiB the oldest calls lose their bodies, and keep their sizes."""
    emulator.calls.clear()
    for _ in range(3):
        put(client, session, invocation, blocks=[{"text": "x" * 30_000_000}])
    kept = [bool(call.request_body) for call in emulator.calls]
    assert kept == [False, True, True]
    assert all(call.request_size > 30_000_000 for call in emulator.calls)


def test_clients_need_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No profile, endpoint, region or credential of the environment reaches an emulator's client."""
    broken = tmp_path / "config"
    broken.write_text("no configuration")
    for name, value in {
        "AWS_PROFILE": "nobody",
        "AWS_CONFIG_FILE": str(broken),
        "AWS_SHARED_CREDENTIALS_FILE": str(broken),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1/prefix",
        "AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME": "http://127.0.0.1:1/prefix",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_DEFAULT_REGION": "not a region",
    }.items():
        monkeypatch.setenv(name, value)
    for options in ({}, {"region_name": "eu-west-1"}, {"config": Config(user_agent_extra="mine")}, {"config": None}):
        client = Emulator().client(**options)
        assert client.create_session()["sessionStatus"] == "ACTIVE"
    assert client.meta.region_name == "us-east-1"


def test_a_user_s_config_is_merged(emulator: Emulator) -> None:
    """What `config=` says holds; the region of a client does not change the emulator's."""
    client: Any = emulator.client(region_name="eu-west-1", config=Config(read_timeout=7, retries={"mode": "standard"}))
    assert (client.meta.config.read_timeout, client.meta.config.retries["mode"]) == (7, "standard")
    assert client.meta.region_name == "eu-west-1"
    assert ":us-east-1:" in client.create_session()["sessionArn"]


def test_emulators_in_memory_are_private() -> None:
    """Two emulators without a path share nothing; all clients of one share everything."""
    one, other = Emulator(), Emulator()
    one.client().create_session()
    assert len(one.client().list_sessions()["sessionSummaries"]) == 1
    assert other.client().list_sessions()["sessionSummaries"] == []
    assert one.path is None


def test_a_closed_emulator_says_so(emulator: Emulator, client: Any) -> None:
    """After `close` clients raise `ClosedError` at once; closing again does nothing."""
    emulator.close()
    emulator.close()
    with pytest.raises(ClosedError):
        client.list_sessions()
