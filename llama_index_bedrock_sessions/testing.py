"""For tests of programs that use Bedrock sessions: a pytest fixture with the embedded service, asked for by name.

    pytest_plugins = ["llama_index_bedrock_sessions.testing"]    # in conftest.py

    def test_my_agent_remembers(bedrock_sessions_emulator):
        answer(BedrockSessionsChatStore(client=bedrock_sessions_emulator.client()), "I am Ada")
        bedrock_sessions_emulator.clock.advance(26 * 3600)
        assert "Ada" in answer(BedrockSessionsChatStore(client=bedrock_sessions_emulator.client()), "Who am I?")

It is no entry point of pytest on purpose. Importing it imports this package, and with it LlamaIndex: only who asks
for it pays for that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llama_index_bedrock_sessions.emulator import Emulator

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDPOINT = "AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME"


@pytest.fixture
def bedrock_sessions_emulator() -> Iterator[Emulator]:
    """Give an empty service in memory, of this test alone: `client()`, `clock`, `faults`, `calls`, `behaviour`."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def bedrock_sessions_endpoint(bedrock_sessions_emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve that service over HTTP for code that makes its own boto3 clients, in this process or in those it starts.

    While the test runs, AWS's environment variables lead every `bedrock-agent-runtime` client to it, with credentials
    and a region that are none. Gives the endpoint URL.
    """
    with bedrock_sessions_emulator.serve() as server:
        monkeypatch.setenv(ENDPOINT, server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "emulator")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "emulator")
        monkeypatch.setenv("AWS_DEFAULT_REGION", bedrock_sessions_emulator.region_name)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "AWS_REGION"):
            monkeypatch.delenv(name, raising=False)
        yield server.url
