"""What is asked of the service, one fact a function, in plain boto3; what comes back is its finding.

A finding holds no id and no time, so that the same finding on AWS and on the emulator is the same answer. The first
line of each docstring is the question. `needs_clock` marks what takes an idle hour or more.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cassettes.tape import World

    Fact = Callable[[World], Any]

FACTS: dict[str, Fact] = {}
NEEDS_CLOCK: set[str] = set()
HOUR = 3600


def fact(function: Fact) -> Fact:
    FACTS[function.__name__] = function
    return function


def needs_clock(function: Fact) -> Fact:
    NEEDS_CLOCK.add(function.__name__)
    return function


class Session:
    """A session with an invocation, ended and deleted when the question was answered."""

    def __init__(self, world: World, **arguments: Any) -> None:
        self.world, self.client = world, world.client
        self.created = self.client.create_session(**arguments)
        self.id = self.created["sessionId"]
        self.invocation = world.uuid()
        self.client.create_invocation(sessionIdentifier=self.id, invocationId=self.invocation)
        self.names: dict[str, str] = {self.id: "the session", self.invocation: "the invocation"}

    def __enter__(self) -> Session:  # noqa: PYI034 - typing.Self came with Python 3.11
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()
        self.delete()

    def put(self, text: str = "text", *, at: float = 0, step: str | None = None, **more: Any) -> Any:
        step = step or self.world.uuid()
        self.names.setdefault(step, f"step {sum(name.startswith('step') for name in self.names.values()) + 1}")
        return said(
            self.client.put_invocation_step,
            sessionIdentifier=self.id,
            invocationIdentifier=more.get("invocation", self.invocation),
            invocationStepId=step,
            invocationStepTime=self.world.now() + timedelta(seconds=at),
            payload={"contentBlocks": more.get("blocks", [{"text": text}])},
        )

    def get(self, step: str, invocation: str | None = None) -> Any:
        answer = said(
            self.client.get_invocation_step,
            sessionIdentifier=self.id,
            invocationIdentifier=invocation or self.invocation,
            invocationStepId=step,
        )
        return answer if isinstance(answer, str) else answer["invocationStep"]["payload"]["contentBlocks"]

    def listed(self, **more: Any) -> Any:
        answer = said(self.client.list_invocation_steps, sessionIdentifier=self.id, **more)
        if isinstance(answer, str):
            return answer
        return [self.names[summary["invocationStepId"]] for summary in answer["invocationStepSummaries"]]

    def about(self) -> Any:
        return said(self.client.get_session, sessionIdentifier=self.id)

    def end(self) -> Any:
        return said(self.client.end_session, sessionIdentifier=self.id)

    def delete(self) -> Any:
        return said(self.client.delete_session, sessionIdentifier=self.id)


def said(call: Callable[..., Any], **arguments: Any) -> Any:
    """Return the answer of a call, or its error: the HTTP status and the code."""
    try:
        answer = call(**arguments)
    except ClientError as error:
        response: Any = error.response
        return f"{response['ResponseMetadata']['HTTPStatusCode']} {response['Error']['Code']}"
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def outcome(answer: Any) -> str:
    return answer if isinstance(answer, str) else "accepted"


@fact
def create_session(world: World) -> Any:
    """What does a new session say of itself?"""
    with Session(world, sessionMetadata={"deviceType": "mobile"}) as session:
        about = session.about()
        return {
            "created": sorted(session.created.keys() - {"ResponseMetadata"}),
            "got": sorted(about),
            "status": [session.created["sessionStatus"], about["sessionStatus"]],
            "metadata": about["sessionMetadata"],
            "arn ends with the id": about["sessionArn"].endswith(f":session/{session.id}"),
        }


@fact
def malformed_identifier(world: World) -> Any:
    """What is answered to an identifier that is none?"""
    return said(world.client.get_session, sessionIdentifier="not-an-id")


@fact
def unknown_identifier(world: World) -> Any:
    """What is answered to a well-formed identifier of no session?"""
    unknown = world.uuid()
    return {
        "GetSession": said(world.client.get_session, sessionIdentifier=unknown),
        "EndSession": said(world.client.end_session, sessionIdentifier=unknown),
        "DeleteSession": said(world.client.delete_session, sessionIdentifier=unknown),
        "ListInvocationSteps": said(world.client.list_invocation_steps, sessionIdentifier=unknown),
    }


@fact
def arn_as_identifier(world: World) -> Any:
    """Is a session found by its ARN?"""
    with Session(world) as session:
        found = said(world.client.get_session, sessionIdentifier=session.created["sessionArn"])
        return found["sessionId"] == session.id


@fact
def known_invocation_id(world: World) -> Any:
    """What is answered to a second invocation of the same id, and what becomes of its steps?"""
    with Session(world) as session:
        session.put()
        again = said(world.client.create_invocation, sessionIdentifier=session.id, invocationId=session.invocation)
        return {"again": outcome(again), "steps": session.listed()}


@fact
def description_is_not_returned(world: World) -> Any:
    """Does any answer about an invocation contain its description?"""
    with Session(world) as session:
        made = said(world.client.create_invocation, sessionIdentifier=session.id, description="about the weather")
        listed = said(world.client.list_invocations, sessionIdentifier=session.id)["invocationSummaries"]
        return {"created": sorted(made), "listed": sorted({name for summary in listed for name in summary})}


@fact
def step_with_the_id_of_its_invocation(world: World) -> Any:
    """May a step have the id of its invocation?"""
    with Session(world) as session:
        return {"put": outcome(session.put(step=session.invocation)), "read": session.get(session.invocation)}


@fact
def known_step_id(world: World) -> Any:
    """What does a second step of the same id do?"""
    with Session(world) as session:
        step = world.uuid()
        session.put("first", step=step)
        return {"again": outcome(session.put("second", step=step)), "read": session.get(step), "list": session.listed()}


@fact
def step_id_in_two_invocations(world: World) -> Any:
    """Does a step id count in its invocation, or in the session?"""
    with Session(world) as session:
        step, other = world.uuid(), world.uuid()
        world.client.create_invocation(sessionIdentifier=session.id, invocationId=other)
        session.put("first", step=step)
        again = outcome(session.put("second", step=step, invocation=other))
        return {"again": again, "first": session.get(step), "second": session.get(step, other)}


@fact
def step_id_in_two_sessions(world: World) -> Any:
    """Does a step id count in its session, or in the account?"""
    with Session(world) as one, Session(world) as other:
        step = world.uuid()
        one.put("first", step=step)
        return {"again": outcome(other.put("second", step=step)), "first": one.get(step), "second": other.get(step)}


@fact
def unknown_invocation(world: World) -> Any:
    """What is answered about an invocation that was never made?"""
    with Session(world) as session:
        unknown = world.uuid()
        return {
            "PutInvocationStep": outcome(session.put(invocation=unknown)),
            "GetInvocationStep": session.get(world.uuid(), unknown),
            "ListInvocationSteps": session.listed(invocationIdentifier=unknown),
        }


@fact
def unknown_step(world: World) -> Any:
    """What is answered about a step that was never put?"""
    with Session(world) as session:
        return session.get(world.uuid())


@fact
def ended_session(world: World) -> Any:
    """What can be done with an ENDED session?"""
    with Session(world) as session:
        step = world.uuid()
        session.put("before", step=step)
        return {
            "end": session.end()["sessionStatus"],
            "status": session.about()["sessionStatus"],
            "read": session.get(step),
            "list": session.listed(),
            "put": outcome(session.put("after")),
            "create invocation": outcome(said(world.client.create_invocation, sessionIdentifier=session.id)),
            "update": outcome(said(world.client.update_session, sessionIdentifier=session.id, sessionMetadata={})),
            "end again": outcome(session.end()),
        }


@fact
def delete_active_session(world: World) -> Any:
    """What is answered to deleting an ACTIVE session?"""
    with Session(world) as session:
        return {"delete": outcome(session.delete()), "status": session.about()["sessionStatus"]}


@fact
def end_and_delete(world: World) -> Any:
    """Can a session be deleted directly after it was ended, and what is left of it?"""
    with Session(world) as session:
        step = world.uuid()
        session.put(step=step)
        session.end()
        return {
            "delete": outcome(session.delete()),
            "GetSession": session.about(),
            "GetInvocationStep": session.get(step),
            "ListInvocationSteps": session.listed(),
            "delete again": outcome(session.delete()),
        }


@fact
@needs_clock
def expired_session(world: World) -> Any:
    """What can be done with a session after an idle hour?"""
    with Session(world) as session:
        step = world.uuid()
        session.put("before", step=step)
        world.later(HOUR + 300)
        return {
            "status": session.about()["sessionStatus"],
            "read": session.get(step),
            "list": session.listed(),
            "put": outcome(session.put("after")),
            "create invocation": outcome(said(world.client.create_invocation, sessionIdentifier=session.id)),
            "update": outcome(said(world.client.update_session, sessionIdentifier=session.id, sessionMetadata={})),
            "end": outcome(session.end()),
            "status then": session.about()["sessionStatus"],
        }


@fact
@needs_clock
def idle_timer(world: World) -> Any:
    """Does reading keep a session ACTIVE, and does writing?"""
    with Session(world) as read, Session(world) as written:
        world.later(HOUR / 2)
        read.about()
        read.listed()
        written.put()
        world.later(HOUR / 2 + 300)
        return {"read": read.about()["sessionStatus"], "written": written.about()["sessionStatus"]}


@fact
def update_session(world: World) -> Any:
    """Does UpdateSession replace the metadata, or merge it?"""
    with Session(world, sessionMetadata={"kept": "1", "changed": "1"}) as session:
        new = {"changed": "2", "added": "2"}
        updated = said(world.client.update_session, sessionIdentifier=session.id, sessionMetadata=new)
        return {"answer": sorted(updated), "metadata": session.about()["sessionMetadata"]}


@fact
def put_moves_last_updated_at(world: World) -> Any:
    """Does a put move the session's lastUpdatedAt?"""
    with Session(world) as session:
        before = session.about()["lastUpdatedAt"]
        world.later(2)
        session.put()
        return session.about()["lastUpdatedAt"] > before


@fact
def order_within_an_invocation(world: World) -> Any:
    """In what order are steps of one invocation listed, by arrival or by their own time?"""
    with Session(world) as session:
        for at in (0, 60, -60):
            session.put(at=at)
        return {"session": session.listed(), "invocation": session.listed(invocationIdentifier=session.invocation)}


@fact
def order_across_invocations(world: World) -> Any:
    """In what order are steps of two invocations listed together?"""
    with Session(world) as session:
        other = world.uuid()
        world.client.create_invocation(sessionIdentifier=session.id, invocationId=other)
        for number in range(4):
            session.put(at=number, invocation=other if number % 2 else session.invocation)
        return session.listed()


@fact
def order_of_invocations(world: World) -> Any:
    """In what order are invocations listed?"""
    with Session(world) as session:
        other = world.uuid()
        world.later(1)
        world.client.create_invocation(sessionIdentifier=session.id, invocationId=other)
        listed = said(world.client.list_invocations, sessionIdentifier=session.id)["invocationSummaries"]
        return [{session.invocation: "first", other: "second"}[one["invocationId"]] for one in listed]


@fact
def an_empty_list(world: World) -> Any:
    """What is the list of a session without steps?"""
    with Session(world) as session:
        return said(world.client.list_invocation_steps, sessionIdentifier=session.id)


@fact
def a_step_is_listed_at_once(world: World) -> Any:
    """Does the list directly after a put have the step?"""
    with Session(world) as session:
        session.put()
        return session.listed()


@fact
def pages(world: World) -> Any:
    """How full are pages, and has the last one a nextToken?"""
    with Session(world) as session:
        for number in range(3):
            session.put(at=number)
        found: list[Any] = []
        token: dict[str, str] = {}
        while len(found) < 10:
            answer = said(world.client.list_invocation_steps, sessionIdentifier=session.id, maxResults=2, **token)
            found.append([session.names[one["invocationStepId"]] for one in answer["invocationStepSummaries"]])
            if "nextToken" not in answer:
                break
            token = {"nextToken": answer["nextToken"]}
        return found


@fact
def a_foreign_token(world: World) -> Any:
    """What is answered to a nextToken that was never given?"""
    with Session(world) as session:
        return session.listed(nextToken="AAAA")


@fact
def too_large_a_page(world: World) -> Any:
    """What is answered to maxResults above 1000?"""
    with Session(world) as session:
        return session.listed(maxResults=1001)


@fact
def times_of_steps(world: World) -> Any:
    """Are step times of any age kept, and how exactly?"""
    moments = [
        datetime(2015, 1, 1, tzinfo=UTC),
        datetime(2100, 1, 1, 12, 30, 15, tzinfo=UTC),
        datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    ]
    with Session(world) as session:
        for moment in moments:
            session.put(at=(moment - world.now()).total_seconds())
        listed = said(world.client.list_invocation_steps, sessionIdentifier=session.id)["invocationStepSummaries"]
        return sorted(one["invocationStepTime"].astimezone(UTC).isoformat() for one in listed)


@fact
def content_comes_back(world: World) -> Any:
    """Do texts and bytes come back as they went in, in their order?"""
    image = {"format": "png", "source": {"bytes": bytes(range(256))}}
    blocks: list[dict[str, Any]] = [{"text": "a\u0000\u4e2d\U0001f600\r\n\u2028"}, {"image": image}, {"text": " "}]
    with Session(world) as session:
        step = world.uuid()
        put = outcome(session.put(step=step, blocks=blocks))
        return {"put": put, "same": session.get(step) == blocks}


@fact
def image_that_is_none(world: World) -> Any:
    """Is an image refused whose bytes are none?"""
    image = {"format": "jpeg", "source": {"bytes": b"no image"}}
    with Session(world) as session:
        return outcome(session.put(blocks=[{"image": image}]))


@fact
def too_many_images(world: World) -> Any:
    """What is answered to 21 images in a step?"""
    image = {"format": "gif", "source": {"bytes": b"GIF89a"}}
    with Session(world) as session:
        return outcome(session.put(blocks=[{"image": image}] * 21))


@fact
def empty_text(world: World) -> Any:
    """What is answered to a text block of no character?"""
    with Session(world) as session:
        return outcome(session.put(""))


@fact
def no_blocks(world: World) -> Any:
    """What is answered to a step of no content block?"""
    with Session(world) as session:
        return outcome(session.put(blocks=[]))


@fact
def too_long_metadata(world: World) -> Any:
    """What is answered to a metadata value of 5,001 characters?"""
    made = said(world.client.create_session, sessionMetadata={"key": "x" * 5001})
    if not isinstance(made, str):
        said(world.client.end_session, sessionIdentifier=made["sessionId"])
        said(world.client.delete_session, sessionIdentifier=made["sessionId"])
    return outcome(made)


@fact
def tags(world: World) -> Any:
    """Are tags set, replaced and removed by their keys?"""
    with Session(world, tags={"Environment": "Test", "Project": "Demo"}) as session:
        arn = session.created["sessionArn"]
        tagged = said(world.client.tag_resource, resourceArn=arn, tags={"Project": "Other", "Owner": "A"})
        untagged = said(world.client.untag_resource, resourceArn=arn, tagKeys=["Environment"])
        listed = said(world.client.list_tags_for_resource, resourceArn=arn)
        return {"tag": outcome(tagged), "untag": outcome(untagged), "tags": listed["tags"]}
