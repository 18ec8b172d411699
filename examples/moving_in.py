# %% [markdown]
# # Moving in
#
# An application has its conversations elsewhere: in a `SimpleChatStore`, or in a table of DynamoDB. They
# are copied here, compared with what they were, and the application goes on with one line changed.
#
# Here the target is the embedded service. On AWS it is `BedrockSessionsChatStore(region_name="us-west-2")`.

# %%
import tempfile
from pathlib import Path
from typing import Any

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.async_utils import asyncio_run
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.storage.chat_store import SimpleChatStore

from llama_index_bedrock_sessions import BedrockSessionsChatStore, CopyReport, copy_conversations
from llama_index_bedrock_sessions.cli.demo import draw_dashboard, query_metrics, scripted_model, search_logs

folder = Path(tempfile.mkdtemp())
agent = FunctionAgent(llm=scripted_model(), tools=[query_metrics, search_logs])


def ask(store: Any, key: str, message: ChatMessage) -> str:
    """Ask the agent of the application; this stays as it is."""

    async def turn() -> str:
        memory = ChatMemoryBuffer.from_defaults(chat_store=store, chat_store_key=key, token_limit=30_000)
        return str(await agent.run(message, memory=memory))

    return str(asyncio_run(turn()))


# %% [markdown]
# ## The application, before
#
# Two conversations, one with a picture and tool calls, in LlamaIndex's own store, which lives in this process.

# %%
source = SimpleChatStore()
report = [TextBlock(text="INC-4711: checkout is slow, please look."), ImageBlock(image=draw_dashboard())]
print(ask(source, "INC-4711", ChatMessage(role="user", blocks=report)))
print(ask(source, "hello", ChatMessage("Hello!")))

# %% [markdown]
# ## The move
#
# Every key is copied, read back as another process would read it, and compared message by message.

# %%
target = BedrockSessionsChatStore.local(folder / "chats.db")


def progress(key: str, done: int, of: int) -> None:
    print(f"{done} of {of}: {key}")


moved = copy_conversations(source, target, progress=progress)
print(f"{moved.messages} messages of {len(moved.copied)} conversations, {len(moved.problems)} problems")
print("Equal:", all(target.get_messages(key) == source.get_messages(key) for key in source.get_keys()))

# %% [markdown]
# It may be interrupted and called again: what is there is left alone, and what is there in part is completed. What the
# target has otherwise is never overwritten, but told.

# %%
source.add_message("hello", ChatMessage("One thing more, said while we were moving."))
target.add_message("INC-4711", ChatMessage("Somebody works here already."))
again = copy_conversations(source, target)
print("completed:", again.copied)
for problem in again.problems:
    print(f"{problem.key}, message {problem.position}: {problem.reason}")

# %% [markdown]
# ## The application, after
#
# The agent knows what was said before the move, its tools' results and the picture included.

# %%
print(ask(BedrockSessionsChatStore.local(folder / "chats.db"), "INC-4711", ChatMessage("What do we know?")))

# %% [markdown]
# ## From DynamoDB
#
# Any chat store of LlamaIndex is a source. The one on DynamoDB is a package of its own,
# `llama-index-storage-chat-store-dynamodb`, which wants an older boto3 than the newest. So this is not called in this
# notebook, but by a test, where both are installed.


# %%
def move_from_dynamodb(table_name: str, target: BedrockSessionsChatStore) -> CopyReport:
    from llama_index.storage.chat_store.dynamodb import DynamoDBChatStore  # noqa: PGH003, PLC0415  # pyright: ignore

    return copy_conversations(DynamoDBChatStore(table_name=table_name, region_name="us-east-1"), target)


# %% [markdown]
# ## And out again
#
# The target may be any chat store as well.

# %%
back = SimpleChatStore()
print("moved out:", copy_conversations(target, back).copied)
