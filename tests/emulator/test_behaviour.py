"""Every switch of the emulator's behaviour changes an answer, and none changes anything else."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from llama_index_bedrock_sessions.emulator import Behaviour, BehaviourError, Emulator

if TYPE_CHECKING:
    from collections.abc import Callable

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
HOUR = 3600
DAY = 24 * HOUR


class Service:
    """An emulator under one behaviour, with a session, and what the tests ask of it."""

    def __init__(self, **behaviour: Any) -> None:
        self.emulator = Emulator(behaviour=replace(Behaviour(), **behaviour))
        self.emulator.clock.stop(START)
        self.client: Any = self.emulator.client(config=Config(retries={"total_max_attempts": 1}))
        self.session = self.client.create_session()["sessionId"]
        self.invocation = self.invoke()
        self.steps = 0

    def invoke(self, session: str | None = None) -> Any:
        return self.client.create_invocation(sessionIdentifier=session or self.session)["invocationId"]

    def put(self, step: str | None = None, *, at: float = 0.0, text: str = "text", **where: Any) -> Any:
        self.steps += 1
        return self.client.put_invocation_step(
            sessionIdentifier=where.get("session", self.session),
            invocationIdentifier=where.get("invocation", self.invocation),
            invocationStepId=step or f"00000000-0000-4000-8000-{self.steps:012}",
            invocationStepTime=START + timedelta(seconds=at),
            payload={"contentBlocks": where.get("blocks", [{"text": text}])},
        )["invocationStepId"]

    def text_of(self, step: str) -> Any:
        answer = self.client.get_invocation_step(
            sessionIdentifier=self.session, invocationIdentifier=self.invocation, invocationStepId=step
        )
        return answer["invocationStep"]["payload"]["contentBlocks"][0]["text"]

    def listed(self, **more: Any) -> list[str]:
        answer = self.client.list_invocation_steps(sessionIdentifier=self.session, **more)
        return [step["invocationStepId"][-4:].lstrip("0") for step in answer["invocationStepSummaries"]]

    def pages(self) -> list[int]:
        """Return the number of steps on each page of the whole list."""
        sizes: list[int] = []
        token: Any = {}
        while True:
            answer = self.client.list_invocation_steps(sessionIdentifier=self.session, **token)
            sizes.append(len(answer["invocationStepSummaries"]))
            if "nextToken" not in answer:
                return sizes
            token = {"nextToken": answer["nextToken"]}

    def status(self, session: str | None = None) -> Any:
        return self.client.get_session(sessionIdentifier=session or self.session)["sessionStatus"]

    def end(self) -> None:
        self.client.end_session(sessionIdentifier=self.session)

    def later(self, seconds: float) -> None:
        self.emulator.clock.advance(seconds)


def said(call: Callable[[], Any]) -> str:
    """Return the code of the refusal a call meets, or "accepted"."""
    try:
        call()
    except ClientError as error:
        return code(error)
    return "accepted"


def code(error: Any) -> str:
    return str(error.response["Error"]["Code"])


def write_to_ended(service: Service) -> Any:
    service.end()
    return said(service.put), said(service.invoke)


def write_to_expired(service: Service) -> Any:
    service.later(HOUR)
    return said(service.put), said(service.invoke), service.status()


def update_when_closed(service: Service) -> Any:
    service.end()
    return said(lambda: service.client.update_session(sessionIdentifier=service.session, sessionMetadata={}))


def delete_active(service: Service) -> Any:
    return said(lambda: service.client.delete_session(sessionIdentifier=service.session))


def end_when_closed(service: Service) -> Any:
    service.later(HOUR)
    return said(service.end), said(service.end), service.status()


def known_step_id(service: Service) -> Any:
    step = service.put(text="first")
    return said(lambda: service.put(step, text="second")), service.text_of(step), service.listed()


def step_ids_unique_per(service: Service) -> Any:
    step = service.put()
    other = service.client.create_session()["sessionId"]
    elsewhere = service.invoke(other)
    return (
        said(lambda: service.put(step, session=other, invocation=elsewhere)),
        said(lambda: service.put(step, invocation=service.invoke())),
    )


def step_order(service: Service) -> Any:
    second = service.invoke()
    invocations = sorted([service.invocation, second], key=lambda one: one[19:])
    service.put("90000000-0000-4000-8000-000000000001", at=20, invocation=invocations[0])
    service.put("80000000-0000-4000-8000-000000000002", at=10, invocation=invocations[0])
    service.put("70000000-0000-4000-8000-000000000003", at=0, invocation=invocations[1])
    service.put("a0000000-0000-4000-8000-000000000004", at=10, invocation=invocations[0])
    return service.listed()


def session_order(service: Service) -> Any:
    made = [service.session, *(service.client.create_session()["sessionId"] for _ in range(8))]
    listed = [one["sessionId"] for one in service.client.list_sessions()["sessionSummaries"]]
    return listed == made, listed == made[::-1], listed == sorted(made, reverse=True)


def paging(service: Service) -> Any:
    for _ in range(25):
        service.put()
    return service.pages()


def each_second(service: Service, look: Callable[[], Any]) -> list[Any]:
    """Return what a look gives at once, and one to four seconds later."""
    seen = [look()]
    for _ in range(4):
        service.later(1)
        seen.append(look())
    return seen


def steps_listed_after_seconds(service: Service) -> Any:
    step = service.put()
    assert service.text_of(step) == "text"
    return each_second(service, service.listed)


def sessions_listed_after_seconds(service: Service) -> Any:
    assert service.status() == "ACTIVE"
    return each_second(service, lambda: len(service.client.list_sessions()["sessionSummaries"]))


def late_lists(service: Service) -> Any:
    service.emulator.behaviour = replace(service.emulator.behaviour, steps_listed_after_seconds=3)
    for _ in range(12):
        service.put()
    return each_second(service, lambda: len(service.listed()))


def step_quota_error(service: Service) -> Any:
    service.emulator.behaviour = replace(service.emulator.behaviour, steps_per_session=2)
    return [said(service.put) for _ in range(3)]


def step_size_error(service: Service) -> Any:
    service.emulator.behaviour = replace(service.emulator.behaviour, step_bytes=1000)
    return said(lambda: service.put(text="x" * 1000))


def step_size_counts(service: Service) -> Any:
    service.emulator.behaviour = replace(service.emulator.behaviour, step_bytes=1000)
    return said(lambda: service.put(text="\u4e2d" * 300)), said(lambda: service.put(text="\u4e2d" * 334))


def png(width: int, height: int) -> bytes:
    header = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\x0d" + header + zlib.crc32(header).to_bytes(4, "big")


def image(content: bytes, kind: str = "png") -> dict[str, Any]:
    return {"image": {"format": kind, "source": {"bytes": content}}}


def image_error(service: Service) -> Any:
    too_many = [image(png(1, 1))] * 21
    return [
        said(partial(service.put, blocks=blocks))
        for blocks in (too_many, [image(png(8001, 1))], [image(bytes(3_750_001))], too_many[:20])
    ]


def image_content(service: Service) -> Any:
    return said(lambda: service.put(blocks=[image(b"no image")])), said(lambda: service.put(blocks=[image(png(1, 1))]))


def image_in_s3(service: Service) -> Any:
    block = {"image": {"format": "png", "source": {"s3Location": {"uri": "s3://a-bucket/a.png"}}}}
    return said(lambda: service.put(blocks=[block])), said(lambda: service.put(blocks=[image(png(1, 1))]))


def update_metadata(service: Service) -> Any:
    for metadata in ({"a": "1", "b": "1"}, {"b": "2"}):
        service.client.update_session(sessionIdentifier=service.session, sessionMetadata=metadata)
    return service.client.get_session(sessionIdentifier=service.session)["sessionMetadata"]


def idle_timer_reset_by(service: Service) -> Any:
    statuses = []
    for read in (False, True):
        session = service.client.create_session()["sessionId"]
        service.later(0.9 * HOUR)
        if read:
            service.client.list_invocations(sessionIdentifier=session)
        else:
            service.invoke(session)
        service.later(0.2 * HOUR)
        statuses.append(service.status(session))
    return statuses


def retention_from(service: Service) -> Any:
    service.later(29 * DAY)
    service.end()
    service.later(2 * DAY)
    return said(service.status)


def put_moves_last_updated_at(service: Service) -> Any:
    before = service.client.get_session(sessionIdentifier=service.session)["lastUpdatedAt"]
    service.later(60)
    service.put()
    after = service.client.get_session(sessionIdentifier=service.session)["lastUpdatedAt"]
    return (after - before).total_seconds()


def time_precision(service: Service) -> Any:
    service.emulator.calls.clear()
    service.status()
    body = service.emulator.calls[0].response_body.decode()
    return json.loads(body)["createdAt"]


def more_members(service: Service) -> Any:
    service.put()
    service.emulator.calls.clear()
    service.status()
    listed = service.listed()
    bodies = [json.loads(call.response_body) for call in service.emulator.calls]
    structures = [*bodies, bodies[1]["invocationStepSummaries"][0]]
    nulls = [sorted(name for name, value in structure.items() if value is None) for structure in structures]
    return nulls, ["unnamedMember" in structure for structure in structures], listed


def error_type_header(service: Service) -> Any:
    client: Any = service.emulator.client(config=Config(retries={"total_max_attempts": 1}))
    with pytest.raises(client.exceptions.ConflictException) as caught:
        client.delete_session(sessionIdentifier=service.session)
    response: Any = caught.value.response
    return response["ResponseMetadata"]["HTTPHeaders"]["x-amzn-errortype"]


def sessions_per_account(service: Service) -> Any:
    return [said(service.client.create_session) for _ in range(3)]


def invocations_per_session(service: Service) -> Any:
    return [said(service.invoke) for _ in range(3)]


CONFLICT, VALIDATION, QUOTA = "ConflictException", "ValidationException", "ServiceQuotaExceededException"
MISSING = "ResourceNotFoundException"
OK = "accepted"
DENIED = "AccessDeniedException"

# What each setting answers to its question. The first setting of each is the default.
EXPECTED: list[tuple[Callable[[Service], Any], dict[str, dict[Any, Any]]]] = [
    (write_to_ended, {"write_to_ended": {error: (error,) * 2 for error in (CONFLICT, VALIDATION, "409")}}),
    (
        write_to_expired,
        {
            "write_to_expired": {
                CONFLICT: (CONFLICT, CONFLICT, "EXPIRED"),
                VALIDATION: (VALIDATION, VALIDATION, "EXPIRED"),
                MISSING: (MISSING, MISSING, "EXPIRED"),
                "409": ("409", "409", "EXPIRED"),
                "accepted": (OK, OK, "ACTIVE"),
            }
        },
    ),
    (update_when_closed, {"update_when_closed": {"as a write": CONFLICT, "accepted": OK}}),
    (delete_active, {"delete_active": {error: error for error in (CONFLICT, VALIDATION, "409")}}),
    (
        end_when_closed,
        {
            "end_when_closed": {
                "accepted": (OK, OK, "ENDED"),
                CONFLICT: (CONFLICT, CONFLICT, "EXPIRED"),
                VALIDATION: (VALIDATION, VALIDATION, "EXPIRED"),
                "409": ("409", "409", "EXPIRED"),
            }
        },
    ),
    (
        known_step_id,
        {
            "known_step_id": {
                CONFLICT: (CONFLICT, "first", ["1"]),
                "overwrite": (OK, "second", ["1"]),
                "no-op": (OK, "first", ["1"]),
            }
        },
    ),
    (
        step_ids_unique_per,
        {
            "step_ids_unique_per": {
                "session": (OK, CONFLICT),
                "account": (CONFLICT, CONFLICT),
                "invocation": (OK, OK),
            }
        },
    ),
    (
        step_order,
        {
            "step_order": {
                "time": ["1", "4", "2", "3"],
                "arrival": ["4", "3", "2", "1"],
                "ascending": ["3", "2", "4", "1"],
                "id": ["4", "1", "2", "3"],
                "shuffled": ["3", "1", "4", "2"],
            }
        },
    ),
    (
        session_order,
        {
            "session_order": {
                "newest": (False, True, False),
                "oldest": (True, False, False),
                "id": (False, False, True),
            }
        },
    ),
    (paging, {"default_page_size": {100: [25], 10: [10, 10, 5], 1000: [25], 25: [25]}}),
    (paging, {"largest_page": {1000: [25], 20: [20, 5]}}),
    (paging, {"pages": {"full": [25], "short": [13, 6, 3, 2, 1], "empty": [0, 25]}}),
    (
        steps_listed_after_seconds,
        {"steps_listed_after_seconds": {0.0: [["1"]] * 5, 1: [[], *[["1"]] * 4], 2.5: [[], [], [], ["1"], ["1"]]}},
    ),
    (
        sessions_listed_after_seconds,
        {"sessions_listed_after_seconds": {0.0: [1] * 5, 1: [0, 1, 1, 1, 1], 2.5: [0, 0, 0, 1, 1], 1e300: [0] * 5}},
    ),
    (late_lists, {"late_lists": {"exactly": [0, 0, 0, 12, 12], "up to": [0, 5, 6, 12, 12]}}),
    (
        step_quota_error,
        {"step_quota_error": {e: [OK, OK, e] for e in (QUOTA, VALIDATION, "409")}},
    ),
    (step_size_error, {"step_size_error": {VALIDATION: VALIDATION, QUOTA: QUOTA, "413": "413"}}),
    (step_size_counts, {"step_size_counts": {"encoded": (VALIDATION, VALIDATION), "decoded": (OK, VALIDATION)}}),
    (image_error, {"image_error": {VALIDATION: [VALIDATION] * 3 + [OK], QUOTA: [QUOTA] * 3 + [OK]}}),
    (image_content, {"image_content": {"unchecked": (OK, OK), "checked": (VALIDATION, OK)}}),
    (
        image_in_s3,
        {"image_in_s3": {"unchecked": (OK, OK), VALIDATION: (VALIDATION, OK), DENIED: (DENIED, OK)}},
    ),
    (update_metadata, {"update_metadata": {"replace": {"b": "2"}, "merge": {"a": "1", "b": "2"}}}),
    (
        idle_timer_reset_by,
        {
            "idle_timer_reset_by": {
                "writes": ["ACTIVE", "EXPIRED"],
                "any call": ["ACTIVE", "ACTIVE"],
                "nothing": ["EXPIRED", "EXPIRED"],
            }
        },
    ),
    (retention_from, {"retention_from": {"creation": MISSING, "last update": OK}}),
    (put_moves_last_updated_at, {"put_moves_last_updated_at": {True: 60.0, False: 0.0}}),
    (
        time_precision,
        {
            "time_precision": {
                "microseconds": "2026-01-02T03:04:05.678901Z",
                "milliseconds": "2026-01-02T03:04:05.678Z",
                "seconds": "2026-01-02T03:04:05Z",
            }
        },
    ),
    (
        more_members,
        {
            "more_members": {
                "none": ([[], [], []], [False] * 3, ["1"]),
                "null and unknown": ([["encryptionKeyArn", "sessionMetadata"], ["nextToken"], []], [True] * 3, ["1"]),
            }
        },
    ),
    (
        error_type_header,
        {
            "error_type_header": {
                "name": CONFLICT,
                "name and uri": f"{CONFLICT}:http://internal.amazon.com/coral/com.amazon.bedrock/",
            }
        },
    ),
    (sessions_per_account, {"sessions_per_account": {None: [OK] * 3, 2: [OK, QUOTA, QUOTA]}}),
    (invocations_per_session, {"invocations_per_session": {None: [OK] * 3, 2: [OK, QUOTA, QUOTA]}}),
]
SETTINGS = [
    pytest.param(name, setting, question, answer, id=f"{name}={setting}")
    for question, switches in EXPECTED
    for name, answers in switches.items()
    for setting, answer in answers.items()
]


@pytest.mark.parametrize(("name", "setting", "question", "answer"), SETTINGS)
def test_each_setting_has_its_answer(name: Any, setting: Any, question: Any, answer: Any) -> None:
    """A setting answers its question as it says, and as no other setting of the switch that is meant to differ."""
    assert question(Service(**{name: setting})) == answer


def test_no_setting_is_left_out() -> None:
    """Every value of every switch has a case above, and no two named values of a switch give the same answer."""
    answers = {name: answers for _, switches in EXPECTED for name, answers in switches.items()}
    for name, accepted in Behaviour.choices().items():
        assert list(answers[name]) == list(accepted)
        assert len({repr(answer) for answer in answers[name].values()}) == len(accepted)
    numbers = {field.name for field in fields(Behaviour)} - set(answers)
    assert numbers == {"steps_per_session", "step_bytes", "images_per_step", "image_bytes", "image_pixels"}


@pytest.mark.parametrize(
    "setting",
    [
        {"step_order": "random"},
        {"write_to_ended": "accepted"},
        {"put_moves_last_updated_at": 1},
        {"default_page_size": 0},
        {"default_page_size": 1001},
        {"steps_listed_after_seconds": -0.1},
        {"steps_listed_after_seconds": True},
        {"steps_listed_after_seconds": "1"},
        {"sessions_listed_after_seconds": float("nan")},
        {"sessions_listed_after_seconds": float("inf")},
        {"sessions_listed_after_seconds": None},
        {"steps_per_session": True},
        {"steps_per_session": None},
        {"sessions_per_account": 1.5},
        {"known_step_id": ["overwrite"]},
    ],
)
def test_wrong_settings_are_refused_by_name(setting: Any) -> None:
    """A value that a switch does not know is refused with its name and what is accepted."""
    name = next(iter(setting))
    with pytest.raises(BehaviourError, match=rf"{name}=.*accepted are"):
        Behaviour(**setting)


def test_a_profile_is_a_dictionary() -> None:
    """`to_dict` and `from_dict` are inverse; what is missing keeps its default; unknown names are refused."""
    behaviour = Behaviour(step_order="id", default_page_size=10)
    assert Behaviour.from_dict(behaviour.to_dict()) == behaviour
    assert Behaviour.from_dict({"step_order": "id"}) == Behaviour(step_order="id")
    with pytest.raises(BehaviourError, match="colour"):
        Behaviour.from_dict({"colour": "red"})


def test_behaviour_can_be_replaced_while_the_emulator_runs() -> None:
    """The next call is answered under the new behaviour; anything but a `Behaviour` is refused."""
    service = Service()
    assert delete_active(service) == CONFLICT
    service.emulator.behaviour = replace(service.emulator.behaviour, delete_active="ValidationException")
    assert delete_active(service) == VALIDATION
    nothing: Any = {}
    with pytest.raises(TypeError):
        service.emulator.behaviour = nothing


def test_a_late_entry_is_listed_when_the_clock_is_moved() -> None:
    """However many lists are asked for, a stopped clock shows nothing new; each entry keeps the time it was given."""
    service = Service(steps_listed_after_seconds=60)
    service.put()
    assert [service.listed() for _ in range(5)] == [[]] * 5
    service.emulator.behaviour = replace(service.emulator.behaviour, steps_listed_after_seconds=10)
    service.put()
    service.later(10)
    assert service.listed() == ["2"]
    service.emulator.behaviour = Behaviour()
    assert service.listed() == ["2", "1"]
    service.emulator.behaviour = Behaviour(steps_listed_after_seconds=10)
    service.later(50)
    assert service.listed() == ["2", "1"]


def test_entry_listed_between_pages_hides_none() -> None:
    """What becomes listed after the place a token names is on a later page, what does before it on none."""
    service = Service(steps_listed_after_seconds=10)
    for at in (30, 20, 10):
        service.put(at=at)
    service.later(10)
    service.put(at=25)
    service.put(at=5)
    first = service.client.list_invocation_steps(sessionIdentifier=service.session, maxResults=2)
    service.later(10)
    assert [step["invocationStepId"][-1] for step in first["invocationStepSummaries"]] == ["1", "2"]
    assert service.listed(maxResults=2, nextToken=first["nextToken"]) == ["3", "5"]
    assert service.listed() == ["1", "4", "2", "3", "5"]


@pytest.mark.parametrize("known", ["overwrite", "no-op"])
def test_an_overwritten_step_moves_to_where_it_was_put(known: Any) -> None:
    """Where ids are the account's, overwriting a step of another session takes it along; a no-op leaves it."""
    service = Service(known_step_id=known, step_ids_unique_per="account")
    first, inside = service.session, service.invocation
    step = service.put(text="first")
    service.session = service.client.create_session()["sessionId"]
    service.invocation = service.invoke()
    service.put(step, text="second")
    here = service.listed()
    service.session, service.invocation = first, inside
    assert (here, service.listed()) == ((["1"], []) if known == "overwrite" else ([], ["1"]))
