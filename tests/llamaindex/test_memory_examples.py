"""The web service among the examples, over HTTP and across a restart."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from llama_index_bedrock_sessions import BedrockSessionsChatStore
from tests.operating.test_examples import EXAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def served(folder: Path) -> Iterator[httpx.Client]:
    """Run the service as its docstring says, on a free port, with its file in a folder."""
    command = [sys.executable, "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(EXAMPLES), "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if found := re.search(r"running on (http://\S+)", line):
                    break
            else:
                pytest.fail("".join(said))
            with httpx.Client(base_url=found[1], timeout=60) as client:
                yield client
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.thorough
def test_the_service_remembers_each_user_across_a_restart(tmp_path: Path) -> None:
    """Two users talk, the service is restarted, and each goes on where he was; one is deleted, the other stays."""

    def ask(client: httpx.Client, user: str, text: str) -> str:
        return str(client.post(f"/users/{user}/messages", json={"text": text}).raise_for_status().json()["text"])

    with served(tmp_path) as client:
        assert "connections were in use" in ask(client, "alice", "INC-4711: checkout is slow")
        assert ask(client, "bob", "Hello!") == "How can I help you today?"
        assert client.patch("/users/alice/preferences", json={"theme": "dark"}).json() == {"theme": "dark"}
        foreign = {"memory/turn": {"after": None, "messages": None}, "memory/block/facts": "mine"}
        assert client.patch("/users/bob/preferences", json=foreign).json() == foreign
    with served(tmp_path) as client:
        assert "INC-4711, as we left it" in ask(client, "alice", "What do we know?")
        assert ask(client, "bob", "What do we know?") == "How can I help you today?"
        assert client.get("/users/alice/preferences").json() == {"theme": "dark"}
        assert BedrockSessionsChatStore.local(tmp_path / "chats.db").conversation("user-bob").state.copy() == {
            "preferences": foreign
        }
        assert [m["role"] for m in client.get("/users/bob/messages").json()] == ["user", "assistant"] * 2
        assert client.delete("/users/bob").json() == {"messages": 4}
        assert client.get("/users/bob/messages").json() == []
        assert len(client.get("/users/alice/messages").json()) == 8
