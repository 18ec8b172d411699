"""A chat service in which every user's agent remembers, across requests, workers and restarts.

    pip install llama-index-bedrock-sessions fastapi uvicorn
    uvicorn fastapi_app:app --workers 4
    curl -X POST localhost:8000/users/alice/messages -H 'content-type: application/json' -d '{"text": "Hello!"}'

Without configuration the conversations are in the file chats.db. With AWS_SESSIONS_REGION=us-west-2 they are in Amazon
Bedrock; nothing else changes. The model is scripted, so that this runs without a key: put yours in its place.

No worker holds anything: a memory is made for each request, which costs no call, and whichever worker is asked next
knows what the last one did. A service for real users finds out who is asking from their credentials, not from the URL.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import FastAPI
from llama_index.core.agent.workflow import FunctionAgent
from pydantic import BaseModel

from llama_index_bedrock_sessions import BedrockSessionsChatStore, BedrockSessionsMemory
from llama_index_bedrock_sessions.cli.demo import query_metrics, scripted_model, search_logs

REGION = os.environ.get("AWS_SESSIONS_REGION")
PREFERENCES = "preferences"
"""The one name of the state that users write to: what they send never names a state, such as those of the memory."""

store = BedrockSessionsChatStore(region_name=REGION) if REGION else BedrockSessionsChatStore.local("chats.db")
app = FastAPI(title="An agent that remembers")


class Text(BaseModel):
    text: str


def memory_of(user: str) -> BedrockSessionsMemory:
    """Return the memory of a user; what a turn that broke off had found out is kept for the next one (`autosave`)."""
    return BedrockSessionsMemory.from_defaults(session_id=f"user-{user}", chat_store=store, autosave=True)


@app.post("/users/{user}/messages")
async def ask(user: str, message: Text) -> Text:
    agent = FunctionAgent(llm=scripted_model(), tools=[query_metrics, search_logs])
    return Text(text=str(await agent.run(message.text, memory=memory_of(user))))


@app.get("/users/{user}/messages")
async def history(user: str) -> list[dict[str, Any]]:
    return [message.model_dump(mode="json") for message in await memory_of(user).aget_all()]


@app.get("/users/{user}/preferences")
async def preferences(user: str) -> dict[str, Any]:
    return dict(await memory_of(user).conversation.state.aget(PREFERENCES) or {})


@app.patch("/users/{user}/preferences")
async def prefer(user: str, changed: dict[str, Any]) -> dict[str, Any]:
    wanted = {**await preferences(user), **changed}
    await memory_of(user).conversation.state.aupdate({PREFERENCES: wanted})
    return wanted


@app.delete("/users/{user}")
async def forget(user: str) -> dict[str, int]:
    deleted = await store.adelete_messages(f"user-{user}")
    return {"messages": len(deleted or [])}
