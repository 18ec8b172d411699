# %% [markdown]
# # A conversation that lasts
#
# An agent with two tools looks into an incident. Its conversation is stored in Amazon Bedrock sessions: here in the
# embedded service, which is one file and needs no AWS account. The code for AWS differs in one line.

# %%
import tempfile
from pathlib import Path

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.memory import ChatMemoryBuffer

from llama_index_bedrock_sessions import BedrockSessionsChatStore

database = Path(tempfile.mkdtemp()) / "chats.db"
store = BedrockSessionsChatStore.local(database)
# On AWS: store = BedrockSessionsChatStore(region_name="us-west-2")

# %% [markdown]
# The model here is scripted, so that this runs anywhere: it needs no key and no network, and knows nothing but the
# messages it is given. Any model of LlamaIndex takes its place, such as `BedrockConverse(model="...")`. The tools are
# plain functions that return what a monitoring system would.

# %%
from llama_index_bedrock_sessions.cli.demo import draw_dashboard, query_metrics, scripted_model, search_logs

agent = FunctionAgent(llm=scripted_model(), tools=[query_metrics, search_logs])


def ask(store: BedrockSessionsChatStore, message: ChatMessage) -> str:
    """Ask the agent, whose memory is the conversation with the key INC-4711."""
    memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key="INC-4711", token_limit=30_000)

    async def turn() -> str:
        return str(await agent.run(user_msg=message, memory=memory))

    return str(asyncio_run(turn()))


# %% [markdown]
# ## Day 1
#
# An engineer reports an incident and attaches a picture. The agent calls both tools before it answers.

# %%
report = [
    TextBlock(text="INC-4711: checkout is slow. Here is the dashboard, please look into it."),
    ImageBlock(image=draw_dashboard()),
]
print(ask(store, ChatMessage(role="user", blocks=report)))

# %%
for message in store.get_messages("INC-4711"):
    print(f"{message.role.value:10}", [block.block_type for block in message.blocks])

# %% [markdown]
# ## A day later
#
# A Bedrock session expires after an idle hour. The embedded service's clock can be moved, so 26 hours pass here in no
# time. Then somebody else goes on, with a store of his own: nothing is left of the first one but what Bedrock holds.

# %%
from llama_index_bedrock_sessions.emulator import Emulator

with Emulator(database) as service:
    service.clock.advance(26 * 3600)

tomorrow = BedrockSessionsChatStore.local(database)
print(ask(tomorrow, ChatMessage("Good morning, I am taking over. What do we know?")))

# %% [markdown]
# The conversation went on in a second session. Nobody had to care.

# %%
chat = tomorrow.conversation("INC-4711")
for session in chat.describe()["sessions"]:
    print(session["status"], session["metadata"]["llama-index-key"])

# %%
history = chat.history()
print(f"{len(history)} changes in {len({entry.session for entry in history})} sessions")

# %% [markdown]
# ## The end
#
# Deleting a conversation deletes its sessions from the service.

# %%
deleted = tomorrow.delete_messages("INC-4711")
print(f"{len(deleted or [])} messages deleted; keys left: {tomorrow.get_keys()}")
