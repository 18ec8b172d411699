# %% [markdown]
# # A diagnostic assistant: one incident, three engineers, three days
#
# Checkout is slow. Whoever is on call looks into it, goes home, and comes back; the next day a database specialist
# takes over, and on the third day somebody else repairs it. Three times in between the Bedrock session expires.
# Nobody explains anything twice: symptoms, screenshots, commands with their results, hypotheses and plans stay.
#
# The conversation has the five stages of a session: it is created, stored to, retrieved, ended, deleted.
#
# Here it runs on the embedded service, which needs no AWS account, and with a scripted model, which knows nothing but
# the messages it is given. With `AWS_SESSIONS_REGION=us-west-2` in the environment the same cells run on Amazon
# Bedrock, and with `BEDROCK_MODEL=...` a model there reads the messages and calls the tools. Nothing else differs.

# %%
import json
import tempfile
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
from incident import KEY_ARN, NAMESPACE, REGION, new_agent, open_store
from IPython import display as screen
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock, ToolCallBlock

from llama_index_bedrock_sessions import (
    AuditEvent,
    BedrockSessionsChatStore,
    BedrockSessionsMemory,
    Conversation,
    ConversationEnded,
    StepTooLargeError,
)
from llama_index_bedrock_sessions.cli.demo import draw_bars, draw_dashboard, held
from llama_index_bedrock_sessions.emulator import Emulator

database = str(Path(tempfile.mkdtemp()) / "incidents.db")
audit_log: list[AuditEvent] = []
tickets = {"INC-4711": "open", "INC-4712": "open"}  # those of the ticket system


def audit(event: AuditEvent) -> None:
    """Be told of what was done to a whole conversation: it is logged, and the ticket follows."""
    audit_log.append(event)
    tickets[event.key] = event.action


def later(hours: int) -> None:
    """Let time pass in the embedded service; on AWS, run the next cell so much later."""
    if not REGION:
        with Emulator(database) as service:
            service.clock.advance(hours * 3600)


def ask(chat: Conversation, text: str, *screenshots: bytes) -> None:
    """Ask the assistant in a conversation, perhaps with screenshots, and print its answer."""
    memory = BedrockSessionsMemory.from_defaults(session_id=chat.key, chat_store=store)
    message = ChatMessage(role="user", blocks=[TextBlock(text=text), *(ImageBlock(image=one) for one in screenshots)])

    async def turn() -> str:
        return str(await new_agent().run(message, memory=memory))

    print(f"> {text}\n{asyncio_run(turn())}\n")


# %% [markdown]
# ## Day 1: an alert
#
# **Creation.** The key of the conversation is the number of the ticket. What is known of the incident becomes metadata
# of its Bedrock session; tags serve policies and cost reports. Bedrock encrypts everything with a key that AWS manages,
# or, as here, with one of yours, which the role has to be allowed to use (the README has the policies for both). The
# session is made when the first message is stored.

# %%
store = open_store(database, audit)
chat = store.conversation(
    "INC-4711",
    session_metadata={
        "incidentId": "INC-4711",
        "systemAffected": "payments",
        "severity": "high",
        "startedAt": "2026-03-02T14:03:00Z",  # says the alert
    },
    tags={"Environment": "Production", "IncidentType": "PerformanceDegradation"},
    encryption_key_arn=KEY_ARN,
)

# %% [markdown]
# **Storage.** The engineer's work is an invocation of its own, with a description; what the agent writes in the block
# belongs to it. Its tools ask the monitoring and run commands: what it calls, with which arguments, and what comes back
# is part of the conversation. The screenshot is stored as Bedrock's own image block.

# %%
screen.display(screen.Image(draw_dashboard(), width=560))
with chat.invocation("Day 1, on call: the alert", by="engineer-1"):
    ask(chat, "INC-4711: checkout is slow. Here is the dashboard, please look.", draw_dashboard())

# %% [markdown]
# ## Day 1, eight hours later
#
# The session has expired long ago. The conversation goes on in a new one, which has the metadata of the first; the
# engineer does nothing for it. What an application has to remember beside the messages is named state, JSON values
# that are stored with the conversation: here the hypotheses, failed ones too, the configuration, and the next steps.

# %%
later(hours=8)
connections = draw_bars("payments: connections in use, of 20", [6, 5, 7, 6, 8, 7, 6, 9, 14, *[20] * 15], limit=20)
screen.display(screen.Image(connections))

store = open_store(database, audit)
chat = store.conversation("INC-4711")
with chat.invocation("Day 1, on call: logs and configuration", by="engineer-1"):
    ask(chat, "Was anything deployed, and how is the pool configured?", connections)
    chat.state.update(
        hypotheses=[
            {"hypothesis": "a bad deployment", "outcome": "failed", "because": "the last one was 6 days ago"},
            {"hypothesis": "the database is the bottleneck", "outcome": "open"},
        ],
        configuration={"pool.size": 20, "database": "PostgreSQL 16"},
        plan=["a database specialist looks at the slowest query"],
    )

# %% [markdown]
# ## Day 2: the database specialist takes over
#
# **Retrieval.** Before anybody is asked, there is the record: `describe()` says how the conversation stands, and
# `history()` who did what when, over all its sessions. Bedrock never returns what an invocation was described as;
# `history()` does. From these two and the messages the diagnostic context is made, as one JSON value.


# %%
def diagnostic_context(chat: Conversation) -> dict[str, Any]:
    """Give all that is known of an incident, as JSON."""
    described: Any = chat.describe()
    history = chat.history()
    blocks = [block for message in chat.messages() for block in message.blocks]
    calls: list[Any] = [block.tool_kwargs for block in blocks if isinstance(block, ToolCallBlock)]
    metadata = described["sessions"][-1]["metadata"]
    return {
        "incident": {name: metadata[name] for name in ("incidentId", "systemAffected", "severity", "startedAt")},
        "status": "Closed" if described["ended"] else "Active",
        "timeline": [
            {
                "hour": hours(history[0].time, entry.time),
                "engineer": entry.by,
                "work": entry.description,
                "said": [text for text in entry.texts if text],
                "noted": list(entry.state),
            }
            for entry in history
        ],
        **described["state"],
        "componentsTested": sorted({call["service"] for call in calls if "service" in call}),
        "commands": [call["command"] for call in calls if "command" in call],
        "screenshots": sum(isinstance(block, ImageBlock) for block in blocks),
    }


def hours(start: str, end: str) -> int:
    began, ended = (datetime.fromisoformat(time) for time in (start, end))
    return round((ended - began).total_seconds() / 3600)


later(hours=18)
store = open_store(database, audit)
chat = store.conversation("INC-4711")
context = json.loads(json.dumps(diagnostic_context(chat)))
for entry in context.pop("timeline"):
    print(f"hour {entry['hour']:2}, {entry['engineer']}, {entry['work']}:", entry["said"][-1:] or entry["noted"])
print(json.dumps(context, indent=2))

# %% [markdown]
# The assistant knows it as well, screenshots included: it has nothing but what was stored. The specialist confirms one
# hypothesis, and leaves a plan to whoever comes next.

# %%
with chat.invocation("Day 2, database specialist", by="engineer-2"):
    ask(chat, "I am taking over. What do we know?")
    ask(chat, "Which is the slowest query, and what is its plan?")
    hypotheses: Any = chat.state["hypotheses"]
    hypotheses[1] |= {"outcome": "confirmed", "because": "orders has no index on customer_id"}
    chat.state.update(hypotheses=hypotheses, plan=["create the index, concurrently", "watch p99 for an hour"])

# %% [markdown]
# ## Day 3: the repair

# %%
later(hours=24)
store = open_store(database, audit)
chat = store.conversation("INC-4711")
print("The plan:", chat.state["plan"])
recovered = draw_bars("payments: latency p99 in ms", [2090, 2140, 2100, 2120, 2080, 900, 300, *[190] * 17], limit=1000)
screen.display(screen.Image(recovered))
with chat.invocation("Day 3, repair", by="engineer-3"):
    ask(chat, "Create the index. This is p99 since then.", recovered)

# %% [markdown]
# ## What the service holds
#
# Session, invocation, step: the hierarchy is Bedrock's, and plain boto3 reads it, for an audit or another program. Each
# visit was a session; all but the last have expired, and still hold what they held. Nobody gave the later ones the
# tags and the key: they have those of the first.

# %%
bedrock = boto3.client("bedrock-agent-runtime", region_name=REGION) if REGION else Emulator(database).client()
for one in held(bedrock, NAMESPACE):
    blocks = [block for step in one.steps for block in step["payload"]["contentBlocks"]]
    images = [block["image"]["source"]["bytes"] for block in blocks if "image" in block]
    print(f"{one.session['sessionStatus']:8}", len(one.invocations), "invocations,", len(one.steps), "steps,", end=" ")
    print("the dashboard, byte for byte:", draw_dashboard() in images)
    tags = bedrock.list_tags_for_resource(resourceArn=one.session["sessionArn"])["tags"]
    key = one.session.get("encryptionKeyArn", "a key of AWS")
    print("        ", *sorted(tags.values()), "| encrypted with", key.rpartition("/")[2])

# %% [markdown]
# ## How near the limits are
#
# A session takes 1,000 steps, a step 50 MB, and a session expires after an idle hour. `describe()` tells how near that
# is, and the conversation goes on in another session before. What no step takes is refused by name; nothing of it is
# stored.

# %%
described: Any = chat.describe()
newest = described["sessions"][-1]
print("steps left:", newest["steps_left"], "| expires after", hours(newest["updated"], newest["idle_at"]), "idle hour")
try:
    chat.add([ChatMessage("x" * 50_000_001)])
except StepTooLargeError as error:
    print(type(error).__name__, "retryable:", error.retryable)

# %% [markdown]
# ## A drill
#
# Before the next incident the team rehearses what a bad day is like, on a service of its own whose faults and clock
# are theirs. Bedrock throttles a call, and loses the answer to another: the turn goes on, and stores nothing twice.
# Then nobody writes for 31 days, and what Bedrock does after 30 is done: all of it is gone. A conversation that has to
# stay is written to, or renewed once a week (`store.renew()`).

# %%
with Emulator() as service:
    store = BedrockSessionsChatStore(client=service.client(), namespace=NAMESPACE)
    drill = store.conversation("DRILL-1")
    service.faults.add("PutInvocationStep", 2, "throttle")
    service.faults.add("ListInvocationSteps", 1, "lost_reply")
    ask(drill, "A drill: checkout is slow.")
    print("Faults:", [(fired.operation, fired.fault) for fired in service.faults.fired])
    print("Stored:", dict(Counter(message.role.value for message in drill.messages())))
    service.clock.advance(31 * 24 * 3600)
    print("31 days later:", drill.messages(), store.get_keys())

# %% [markdown]
# ## The end
#
# **Finalization.** Ending records how the incident was resolved, and of what kind that is, in the conversation, and
# ends the Bedrock session. It can be read from then on, and takes no more messages until `reopen()`.

# %%
chat.update_metadata({"resolution": "fix"})
chat.state["lessons"] = ["alert on sequential scans of large tables"]
chat.end("An index on orders.customer_id was missing: 1,840 ms a query, 3 ms now.", kind="fix", by="engineer-3")
ended: Any = chat.describe()["ended"]
print(ended["kind"], "by", ended["by"], "|", ended["summary"], "| the ticket:", tickets["INC-4711"])
try:
    chat.add([ChatMessage("One thing more.")])
except ConversationEnded as error:
    print(type(error).__name__, "retryable:", error.retryable)

# %% [markdown]
# ## What remains is knowledge
#
# With thousands of incidents it is the metadata that finds them, and nothing of them is read for it. Another incident
# has sessions of its own, and nothing of this one gets there. Resolved ones can be compared, and teach people and
# models: the diagnostic context of each is one JSON value. Somebody who does that comes later, with a store of his own.

# %%
store = open_store(database, audit)
other = store.conversation("INC-4712", session_metadata={"systemAffected": "search", "severity": "high"})
other.add([ChatMessage("Search returns nothing.")])
print("INC-4712 holds", [message.content for message in other.messages()], other.state.copy())
print("severity high:", sorted(found.key for found in store.conversations(session_metadata={"severity": "high"})))
for found in store.conversations(session_metadata={"resolution": "fix"}):
    lesson = diagnostic_context(store.conversation(found.key))
    print(found.key, lesson["status"], [(one["hypothesis"], one["outcome"]) for one in lesson["hypotheses"]])
    print("commands:", len(lesson["commands"]), "screenshots:", lesson["screenshots"], "lessons:", lesson["lessons"])

# %% [markdown]
# ## Deletion, with a trail
#
# Deleting is not trivial: who wants it says why, and who approved. First softly: hidden, it is gone for every reader
# and can be restored for as long as the service keeps it. Then for good: every session is deleted from the service.
# `audit=` was told of each of these, after it was done. Who asks Bedrock for a session that is gone gets an error; who
# asks here for a conversation that is gone finds nothing, and may begin it anew.

# %%
session_id = held(bedrock, NAMESPACE)[-1].session["sessionId"]
chat.hide(reason="retention policy", approver="privacy office")
print("hidden:", len(chat.messages()), "messages")
chat.restore(reason="the review goes on", approver="privacy office")
print("restored:", len(chat.messages()), "messages")
chat.delete(reason="retention policy", approver="privacy office")
other.delete(reason="a false alarm", approver="privacy office")
for event in audit_log:
    print(f"{event.key} {event.action:8} {event.reason}, by {event.approver}")
try:
    bedrock.get_session(sessionIdentifier=session_id)
except bedrock.exceptions.ResourceNotFoundException as error:
    print("Bedrock:", error.response["Error"]["Code"])
print("left:", chat.messages(), store.get_keys(), held(bedrock, NAMESPACE))
