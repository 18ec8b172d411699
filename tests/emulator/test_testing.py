"""The pytest fixtures for users' own tests."""

from __future__ import annotations

import importlib.metadata

import pytest

_CONFTEST = 'pytest_plugins = ["llama_index_bedrock_sessions.testing"]'

_OWN_TEST = """
from llama_index.core.base.llms.types import ChatMessage
from llama_index_bedrock_sessions import BedrockSessionsChatStore

def say(emulator, text):
    store = BedrockSessionsChatStore(client=emulator.client())
    store.add_message("user-42", ChatMessage(text))
    return [message.content for message in store.get_messages("user-42")]

def test_my_agent_remembers(bedrock_sessions_emulator):
    say(bedrock_sessions_emulator, "I am Ada")
    bedrock_sessions_emulator.clock.advance(26 * 3600)
    assert say(bedrock_sessions_emulator, "Who am I?") == ["I am Ada", "Who am I?"]

def test_it_is_empty_again(bedrock_sessions_emulator):
    assert say(bedrock_sessions_emulator, "Who am I?") == ["Who am I?"]
"""

_OWN_CLIENT = """
import os, subprocess, sys
import boto3

SCRIPT = "import boto3; boto3.client('bedrock-agent-runtime').create_session()"

def test_my_program(bedrock_sessions_endpoint, bedrock_sessions_emulator):
    assert os.environ["AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME"] == bedrock_sessions_endpoint
    boto3.session.Session().client("bedrock-agent-runtime").create_session()
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)
    assert bedrock_sessions_emulator.calls.count("CreateSession") == 2

def test_the_environment_is_as_before():
    assert "AWS_ENDPOINT_URL_BEDROCK_AGENT_RUNTIME" not in os.environ
    assert "AWS_ACCESS_KEY_ID" not in os.environ
"""


def run(pytester: pytest.Pytester, test: str) -> pytest.RunResult:
    pytester.makeconftest(_CONFTEST)
    pytester.makepyfile(test)
    return pytester.runpytest_subprocess("-p", "no:randomly")


@pytest.mark.thorough
def test_an_agent_is_tested_in_three_lines(pytester: pytest.Pytester) -> None:
    """Each test that asks for `bedrock_sessions_emulator` gets an empty service, whose clock and faults are its own."""
    run(pytester, _OWN_TEST).assert_outcomes(passed=2)


@pytest.mark.thorough
def test_a_program_of_its_own_clients_is_led_to_the_emulator(pytester: pytest.Pytester) -> None:
    """`bedrock_sessions_endpoint` leads boto3 clients there, made anywhere, and leaves the environment as it was."""
    run(pytester, _OWN_CLIENT).assert_outcomes(passed=2)


def test_pytest_is_left_alone_unless_asked() -> None:
    """The package registers nothing with pytest: no run imports LlamaIndex because this is installed."""
    entry_points = importlib.metadata.distribution("llama-index-bedrock-sessions").entry_points
    assert [entry.name for entry in entry_points if entry.group == "pytest11"] == []
