# %% [markdown]
# # An agent that remembers
#
# LlamaIndex's `Memory` gives an agent its history, and blocks that learn from it. This notebook shows what it takes to
# keep all of that: across a saved `Context`, a turn that breaks off, another process, and a full context window.
# It needs no AWS account: the store is the embedded service. On AWS one line differs.

# %%
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from IPython import display as screen
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.llms import MockFunctionCallingLLM
from llama_index.core.memory import FactExtractionMemoryBlock
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.workflow import Context
from PIL import Image as Pictures
from PIL import ImageDraw

from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory
from llama_index_bedrock_sessions.cli.demo import answer, draw_dashboard, query_metrics, scripted_model, search_logs

database = Path(tempfile.mkdtemp()) / "chats.db"
store = BedrockSessionsChatStore.local(database)
# On AWS: store = BedrockSessionsChatStore(region_name="us-west-2")

# %% [markdown]
# ## A turn with a picture and two tools
#
# The model is scripted and knows nothing but the messages it is given. `session_id` is the key of the conversation.

# %%
agent = FunctionAgent(llm=scripted_model(), tools=[query_metrics, search_logs])
memory = BedrockSessionsMemory.from_defaults(session_id="INC-4711", chat_store=store)
context = Context(agent)

report = ChatMessage(
    role="user",
    blocks=[TextBlock(text="INC-4711: checkout is slow, please look."), ImageBlock(image=draw_dashboard())],
)
screen.display(screen.Image(draw_dashboard(), width=560))


async def turn(agent: FunctionAgent, message: ChatMessage, **given: Any) -> str:
    return str(await agent.run(message, **given))


print(asyncio_run(turn(agent, report, ctx=context, memory=memory)))

# %% [markdown]
# ## The Context is saved
#
# A `Context` becomes JSON and comes back, here or in another process. LlamaIndex leaves its own `Memory` out of that,
# with a warning, and goes on with an empty one. This memory is in it: as a reference to the conversation, not as a copy
# of its messages.

# %%
saved = context.to_dict()
print("The picture is in what was saved:", len(str(saved)) > len(draw_dashboard()))

elsewhere = FunctionAgent(llm=scripted_model(), tools=[query_metrics, search_logs])
restored = Context.from_dict(elsewhere, saved)
print(asyncio_run(turn(elsewhere, ChatMessage("What do we know?"), ctx=restored)))
print([message.role.value for message in memory.get()])

# %% [markdown]
# ## A turn that breaks off
#
# LlamaIndex stores a turn when it ends. With `autosave=True`, what the tools returned is kept while it is running. Here
# the model fails after both tools; the next turn, with a memory of its own, finds their results in the history.

# %%


def failing(messages: Sequence[ChatMessage], tools: Any = (), **more: Any) -> ChatMessage:
    if sum(message.role.value == "tool" for message in messages) == 2:
        raise TimeoutError("the model does not answer")
    return answer(messages, tools, **more)


def saving() -> BedrockSessionsMemory:
    return BedrockSessionsMemory.from_defaults(session_id="INC-4712", chat_store=store, autosave=True)


broken = FunctionAgent(
    llm=MockFunctionCallingLLM(response_generator=failing, is_chat_model=True), tools=[query_metrics, search_logs]
)
try:
    asyncio_run(turn(broken, ChatMessage("INC-4712: checkout is slow again"), memory=saving()))
except TimeoutError as error:
    print(f"The turn failed: {error}.")
print([message.role.value for message in saving().get()])

print(asyncio_run(turn(agent, ChatMessage("Sorry, what did you find?"), memory=saving())))
print([message.role.value for message in saving().get()])

# %% [markdown]
# ## What the agent has learnt, and what the application keeps
#
# Facts that a `FactExtractionMemoryBlock` has extracted live in the process that extracted them. Here they are kept
# with the conversation. Beside them the application has named state of its own.

# %%


def facts(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
    """Stand for a model that extracts facts: what people say they like."""
    said = [message.content or "" for message in messages if message.role.value == "user"]
    found = [f"<fact>{text.split('I ')[-1]}</fact>" for text in said if "I like" in text]
    return ChatMessage(role="assistant", content=f"<facts>{''.join(found)}</facts>")


def learning() -> BedrockSessionsMemory:
    block = FactExtractionMemoryBlock(llm=MockFunctionCallingLLM(response_generator=facts, is_chat_model=True))
    return BedrockSessionsMemory.from_defaults(
        session_id="alice", chat_store=store, memory_blocks=[block], token_limit=120, token_flush_size=40
    )


alice = learning()
for number in range(6):
    said = "I like short answers" if number == 0 else f"Question {number}: what is there to do?"
    alice.put_messages([ChatMessage(said), ChatMessage(role="assistant", content=f"Answer {number}, in short.")])
alice.conversation.state["theme"] = "dark"

print(learning().get()[0].content)
print(dict(learning().conversation.state))

# %% [markdown]
# ## What a model sees, and what is kept
#
# When the context window is full, the oldest turns are archived: the model sees them no more, but nothing is gone.


# %%
def draw(chat: BedrockSessionsMemory) -> bytes:
    """Draw each message as a square: filled if a model still sees it."""
    archived = len(chat.get_all(status=MessageStatus.ARCHIVED))
    everything = chat.get_all()
    colours = {"user": "#3fb6ff", "assistant": "#7ee787"}
    picture = Pictures.new("RGB", (40 * len(everything) + 16, 56), "#0d1117")
    pen = ImageDraw.Draw(picture)
    for number, message in enumerate(everything):
        box, colour = (16 + 40 * number, 16, 40 + 40 * number, 40), colours[message.role.value]
        pen.rounded_rectangle(box, 5, fill=None if number < archived else colour, outline=colour, width=2)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


screen.display(screen.Image(draw(alice)))
print(
    f"{len(alice.get_all())} messages are kept, of which a model sees {len(alice.get_all(status=MessageStatus.ACTIVE))}"
)

# %% [markdown]
# Emptying the memory is one step; facts and named state stay.

# %%
alice.reset()
print(len(alice.get_all()), dict(alice.conversation.state), "short answers" in str(learning().get()))
