# %% [markdown]
# # A shopping assistant: crash, replay, another choice, and a human's yes
#
# A customer looks for shoes. The assistant searches the shop, fills a cart, crashes, goes on; the conversation is
# replayed and branched; and before anything is ordered a human of the shop says yes, in another process.
#
# The shop stands in [`shop.py`](shop.py): its goods and the agent's tools, which read and write what is stored with
# the conversation. It is a module, because the other process runs it too.
#
# Here it runs on the embedded service, which needs no AWS account, and with a scripted model, which knows nothing but
# the messages it is given. With `AWS_SESSIONS_REGION=us-west-2` in the environment the same cells run on Amazon
# Bedrock, and with `BEDROCK_MODEL=...` a model there reads the messages and calls the tools. Nothing else differs.

# %%
import io
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import boto3
import shop
from IPython import display as screen
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, ToolCallBlock
from llama_index.core.workflow import InputRequiredEvent
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.event_handlers import BaseEventHandler
from PIL import Image, ImageDraw, ImageFont

from llama_index_bedrock_sessions import BedrockSessionsMemory, Conversation, ServiceCallEvent
from llama_index_bedrock_sessions.cli.demo import draw_bars, held
from llama_index_bedrock_sessions.emulator import Emulator

database = str(Path(tempfile.mkdtemp()) / "chats.db")
store = shop.open_store(database)


def ask(chat: Conversation, text: str, kind: type[FunctionAgent] = FunctionAgent) -> str:
    """Let the customer say something, and return the answer: an invocation in the session for each time."""
    memory = BedrockSessionsMemory.from_defaults(session_id=chat.key, chat_store=store, autosave=True)

    async def turn() -> str:
        async with chat.invocation(text, by="customer"):
            return str(await shop.new_agent(chat, kind).run(text, memory=memory))

    return str(asyncio_run(turn()))


# %% [markdown]
# ## A conversation with a state
#
# The messages, with every tool call and its result, are the conversation. Beside them stands named state: who the
# customer is and what he prefers, at which stage the conversation is, what is in the cart. `search_shoes` reads the
# size from there; nobody has to tell it again, today or next week. Another customer has a key, and so sessions, of his
# own; `namespace=` separates applications, and IAM and the KMS key decide who may read a session at all.

# %%
chat = store.conversation("customer-42", session_metadata={"channel": "web"}, tags={"Environment": "Test"})
chat.state.update(customer={"size": 42}, stage="browsing", cart=[])
print(ask(chat, "I am looking for running shoes."))

# %% [markdown]
# ## A crash in the middle of a turn
#
# This agent's process dies when its tools have returned and before the model has answered. What the tools did is there,
# since they wrote the state when they ran. What they returned is there too: `autosave=True` keeps it while the turn is
# running, and the next turn finds it in the history. Nothing is bought twice, and nothing forgotten.


# %%
class PowerFailureError(Exception):
    pass


class Dying(FunctionAgent):
    async def take_step(self, ctx: Any, *args: Any, **kwargs: Any) -> Any:
        if await ctx.store.get(self.scratchpad_key, default=[]):
            raise PowerFailureError
        return await super().take_step(ctx, *args, **kwargs)


try:
    ask(chat, "I take the blue ones.", Dying)
except PowerFailureError:
    print("The turn has broken off.")

store = shop.open_store(database)  # as another process would
chat = store.conversation("customer-42")
print("The cart:", chat.state["cart"])
print(ask(chat, "Are you there?"))

# %% [markdown]
# ## The history
#
# `history()` tells what was changed, when, by whom, and in which invocation. `records()` gives the messages with their
# ids, which are points one can go back to.

# %%
for entry in chat.history():
    noted = [name for name in entry.state if "/" not in name]  # the others are the memory's own
    if entry.texts or noted:
        print(f"{entry.by or 'the shop'}, {entry.description or 'to begin with'}: {list(entry.texts)} {noted}")
records = chat.records()
print([record.message.role.value for record in records])

# %% [markdown]
# For an audit, or a program that has nothing of this library, boto3 alone reads it. Nothing has to be deserialized:
# what was said are text blocks. And every call to the service is an event of LlamaIndex's instrumentation, with its
# duration and outcome, so that one can see what is slow, and what a turn costs.

# %%
bedrock = boto3.client("bedrock-agent-runtime", region_name=shop.REGION) if shop.REGION else Emulator(database).client()
for step in held(bedrock, shop.NAMESPACE)[0].steps:
    for block in step["payload"]["contentBlocks"][:-1]:  # the last one tells roles, tool calls and state
        print(f"  {block['text']}")

calls: Counter[str] = Counter()


class Counting(BaseEventHandler):
    def handle(self, event: Any, **_: Any) -> None:
        if isinstance(event, ServiceCallEvent):
            calls[event.operation] += 1


get_dispatcher("llama_index_bedrock_sessions").add_event_handler(Counting())
chat.messages()
print("Reading it again:", dict(calls))

# %% [markdown]
# ## Many customers, long conversations
#
# Another customer comes back forty times. Writing and reading take as many calls on the last visit as on the second,
# one each. How many milliseconds this process works for it (with the embedded service, which is in it) was measured for
# the picture; on AWS the network comes on top. He has a cart of his own: nothing of one conversation gets into another.

# %%
regular = store.conversation("customer-43", session_metadata={"channel": "app"})
regular.state["cart"] = ["ridge"]
took, counted = [], []
for visit in range(40):
    calls.clear()
    started = time.process_time()
    regular.add([ChatMessage(f"Visit {visit}: are there new hiking shoes? " * 20) for _ in range(5)])
    regular.messages(last=5)
    took.append(round(1e6 * (time.process_time() - started)))
    counted.append(dict(calls))
median = sorted(took)[20] / 1000
title = f"To write 5 messages and read 5, of up to {regular.count()}: {median:.1f} ms (median of 40 visits)"
screen.display(screen.Image(draw_bars(title, took, limit=1_000_000)))
print("Visit 2: ", counted[1])
print("Visit 40:", counted[-1])
print("The carts:", chat.state["cart"], regular.state["cart"])

# %% [markdown]
# The shop looks at how its assistant is used: who came, and which tools were called how often.

# %%
used = Counter(
    block.tool_name
    for found in store.conversations()
    for message in store.conversation(found.key).messages()
    for block in message.blocks
    if isinstance(block, ToolCallBlock)
)
came = Counter(found.metadata["channel"] for found in store.conversations())
print("came by", dict(sorted(came.items())), "| tools", dict(used))

# %% [markdown]
# ## Replay
#
# The first question is asked again, to the same past: a fork is a copy of the conversation as it was at a point, here
# before that question. What was before is there, and not run again; what comes after is run.

# %%
question, answer = records[0], records[3]
replay = chat.fork("customer-42, replayed", before=question.id)
again = ask(replay, question.message.content or "")
print(again)
print("The same answer:", again == answer.message.content)

# %% [markdown]
# ## Another choice
#
# A fork before the moment of the choice, and the red ones instead. It has the past of the first conversation, the state
# included, depends on nothing of it, and changes nothing in it.

# %%
choice = next(record for record in records if record.message.content == "I take the blue ones.")
other = chat.fork("customer-42, the red ones", before=choice.id)
print(ask(other, "I take the red ones."))


def carts(*conversations: Conversation) -> bytes:
    """Draw the carts of conversations side by side."""
    picture = Image.new("RGB", (280 * len(conversations), 150), "#0d1117")
    pen = ImageDraw.Draw(picture)
    for number, conversation in enumerate(conversations):
        left, cart = 280 * number + 20, conversation.state["cart"]
        pen.text((left, 14), conversation.key, fill="#8b949e", font=ImageFont.load_default(15))
        for place, name in enumerate(cart if isinstance(cart, list) else []):
            box, shoe = (left, 46 + 60 * place, left + 240, 96 + 60 * place), shop.GOODS[str(name)]
            pen.rounded_rectangle(box, 8, fill={"blue": "#1f6feb", "red": "#da3633"}[shoe["colour"]])
            pen.text((left + 14, 60 + 60 * place), f"{name}, {shoe['euros']} euros", fill="white", font_size=18)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


screen.display(screen.Image(carts(chat, other)))
print(chat.state["cart"], other.state["cart"])

# %% [markdown]
# ## A human approves
#
# The customer orders. `place_order` asks somebody of the shop and waits; that may take days. So the paused workflow is
# saved in the conversation, and this process could end here.


# %%
async def order(chat: Conversation) -> None:
    memory = BedrockSessionsMemory.from_defaults(session_id=chat.key, chat_store=store)
    handler = shop.new_agent(chat).run("Order it, please.", memory=memory)
    async for event in handler.stream_events():
        if isinstance(event, InputRequiredEvent):
            print(event.prefix)
            await chat.asave_context(handler.ctx, "order")
            await handler.cancel_run()


asyncio_run(order(chat))
print([(saved.name, saved.workflow, saved.taken_by) for saved in chat.contexts()])
print("Ordered yet:", "orders" in chat.state)

# %% [markdown]
# Another process loads it and answers. The button is clicked twice, or two people click it: one of them is heard.

# %%
command = [sys.executable, str(shop.__file__), database, "customer-42", "yes", "--by", "the shop"]
print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())  # noqa: S603
print(asyncio_run(shop.answer_order(database, "customer-42", "yes", by="the manager")))
print("The orders:", chat.state["orders"], "The stage:", chat.state["stage"])

# %% [markdown]
# ## The end
#
# The conversation is over: its session is ended, so that nothing stays open. Then everything is cleaned up.

# %%
chat.end("one pair ordered", kind="sold")
ended: Any = chat.describe()["ended"]
print(ended["kind"], "|", ended["summary"])
for key in store.get_keys():
    store.delete_messages(key)
print("Left:", store.get_keys(), held(bedrock, shop.NAMESPACE))
