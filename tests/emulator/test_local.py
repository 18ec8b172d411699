"""What `BedrockSessionsChatStore.local` keeps, and for how long."""

from __future__ import annotations

from pathlib import Path

from llama_index.core.base.llms.types import ChatMessage, MessageRole

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from llama_index_bedrock_sessions.emulator import Emulator

YEARS = 10 * 365 * 24 * 3600


def say(store: BedrockSessionsChatStore, text: str) -> list[str | None]:
    """Add a message; return all."""
    store.add_message("user-42", ChatMessage(role=MessageRole.USER, content=text))
    return [message.content for message in store.get_messages("user-42")]


def test_a_local_store_keeps_chats_for_ever(tmp_path: Path) -> None:
    """After ten years its session has expired, but is there, and the conversation goes on in another."""
    path = tmp_path / "chats.db"
    assert say(BedrockSessionsChatStore.local(path), "then") == ["then"]
    with Emulator(path) as emulator:
        assert emulator.retention is False
        emulator.clock.advance(YEARS)
        (session,) = emulator.client().list_sessions()["sessionSummaries"]
        assert session["sessionStatus"] == "EXPIRED"
    assert say(BedrockSessionsChatStore.local(path), "now") == ["then", "now"]
    with Emulator(path) as emulator:
        statuses = [summary["sessionStatus"] for summary in emulator.client().list_sessions()["sessionSummaries"]]
        assert statuses[0] == "ACTIVE"
        assert "ACTIVE" not in statuses[1:]


def test_a_store_that_is_told_to_forgets_as_aws_does(tmp_path: Path) -> None:
    """On a file whose sessions are deleted after 30 days, the conversation is gone then, and starts again."""
    with Emulator(tmp_path / "chats.db") as emulator:
        assert say(BedrockSessionsChatStore(client=emulator.client()), "then") == ["then"]
        emulator.clock.advance(30 * 24 * 3600)
        assert say(BedrockSessionsChatStore(client=emulator.client()), "now") == ["now"]
